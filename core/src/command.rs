//! The catalogue: every unary request of the protocol, with its method, its place in the
//! BatchCommands stream and its response. One table; everything else is derived from it.
//!
//! A [`Command`] is the body of a request without its context. The context names region, epoch
//! and peer and differs from attempt to attempt, so it is kept beside the body and put in front
//! of it when the request is encoded: a body is built once and shared by all attempts.
//! (client-go: `tikvrpc.CmdType` and `tikvrpc.Request`)

use bytes::{BufMut, Bytes};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tikv_proto::{coprocessor, errorpb, kvrpcpb, mpp, pdpb};

/// Asks whether a server lives (the gRPC health checking protocol, of which an empty name means
/// the server as a whole).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HealthCheckRequest {
    /// The service asked about.
    #[prost(string, tag = "1")]
    pub service: String,
}

/// Says whether a server lives.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct HealthCheckResponse {
    /// A [`ServingStatus`].
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub status: i32,
}

/// How a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ServingStatus {
    /// It does not know itself.
    Unknown = 0,
    /// It serves.
    Serving = 1,
    /// It does not.
    NotServing = 2,
    /// It knows no such service.
    ServiceUnknown = 3,
}

/// A request type of the catalogue, tied to its response.
pub trait Call: Message + Clone + Default + Into<Command> + 'static {
    /// What the server answers with.
    type Response: Message + Default + 'static;
    /// The name in errors, logs and labels.
    const LABEL: &'static str;

    /// The response, if `reply` is one to this request.
    fn response(reply: Response) -> Option<Self::Response>;
}

/// A response that may carry a region error instead of an answer.
pub trait RegionResponse {
    /// Takes the region error out.
    fn take_region_error(&mut self) -> Option<errorpb::Error>;
    /// An otherwise empty response with this region error.
    fn from_region_error(error: errorpb::Error) -> Self;
}

macro_rules! catalogue {
    (
        store { $( $variant:ident: $service:literal, $method:literal, $request:ty, $response:ty, $arm:expr; )* }
        other { $( $other_variant:ident: $other_path:literal, $other_request:ty, $other_response:ty; )* }
    ) => {
        /// The body of one request.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, missing_docs)]
        pub enum Command {
            $( $variant($request), )*
            $( $other_variant($other_request), )*
        }

        /// The answer to one request.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, missing_docs)]
        pub enum Response {
            $( $variant($response), )*
            $( $other_variant($other_response), )*
        }

        impl Command {
            /// The name in errors, logs and labels.
            pub const fn label(&self) -> &'static str {
                match self {
                    $( Command::$variant(_) => stringify!($variant), )*
                    $( Command::$other_variant(_) => stringify!($other_variant), )*
                }
            }

            /// The gRPC path.
            pub const fn path(&self) -> &'static str {
                match self {
                    $( Command::$variant(_) => concat!("/", $service, "/", $method), )*
                    $( Command::$other_variant(_) => $other_path, )*
                }
            }

            /// The field of the BatchCommands messages that carries this request and its answer;
            /// `None` if it can only go alone.
            pub const fn batch_arm(&self) -> Option<u32> {
                match self {
                    $( Command::$variant(_) => $arm, )*
                    $( Command::$other_variant(_) => None, )*
                }
            }

            /// Puts a context into the body itself, for servers that take whole requests.
            /// Requests to PD, and health checks, have none.
            pub fn set_context(&mut self, context: Box<kvrpcpb::Context>) {
                match self {
                    $( Command::$variant(request) => request.context = Some(context), )*
                    $( Command::$other_variant(_) => {} )*
                }
            }

            fn body_len(&self) -> usize {
                match self {
                    $( Command::$variant(request) => request.encoded_len(), )*
                    $( Command::$other_variant(request) => request.encoded_len(), )*
                }
            }

            fn encode_body(&self, buf: &mut impl BufMut) {
                match self {
                    $( Command::$variant(request) => request.encode_raw(buf), )*
                    $( Command::$other_variant(request) => request.encode_raw(buf), )*
                }
            }

            /// Reads the answer to this request.
            pub fn decode_response(&self, bytes: Bytes) -> Result<Response, prost::DecodeError> {
                Ok(match self {
                    $( Command::$variant(_) => Response::$variant(Message::decode(bytes)?), )*
                    $( Command::$other_variant(_) => Response::$other_variant(Message::decode(bytes)?), )*
                })
            }

            /// Reads the request of this gRPC path. For servers; `None` if the catalogue has no
            /// such path.
            pub fn decode_request(path: &str, bytes: Bytes) -> Option<Result<Command, prost::DecodeError>> {
                Some(match path {
                    $( concat!("/", $service, "/", $method) => <$request>::decode(bytes).map(Command::$variant), )*
                    $( $other_path => <$other_request>::decode(bytes).map(Command::$other_variant), )*
                    _ => return None,
                })
            }

            /// Reads the request in field `arm` of a BatchCommands frame. For servers; `None` if
            /// the catalogue has no such field.
            pub fn decode_batched(arm: u32, bytes: Bytes) -> Option<Result<Command, prost::DecodeError>> {
                $(
                    const _: Option<u32> = $arm;
                    if $arm == Some(arm) {
                        return Some(<$request>::decode(bytes).map(Command::$variant));
                    }
                )*
                None
            }
        }

        impl Response {
            /// The name of the request this answers.
            pub const fn label(&self) -> &'static str {
                match self {
                    $( Response::$variant(_) => stringify!($variant), )*
                    $( Response::$other_variant(_) => stringify!($other_variant), )*
                }
            }

            /// Encodes the answer. For servers.
            pub fn encode(&self) -> Bytes {
                match self {
                    $( Response::$variant(response) => response.encode_to_vec().into(), )*
                    $( Response::$other_variant(response) => response.encode_to_vec().into(), )*
                }
            }

            /// The field of the BatchCommands messages that carries this answer.
            pub const fn batch_arm(&self) -> Option<u32> {
                match self {
                    $( Response::$variant(_) => $arm, )*
                    $( Response::$other_variant(_) => None, )*
                }
            }
        }

        $(
            impl From<$request> for Command {
                fn from(request: $request) -> Self {
                    Command::$variant(request)
                }
            }

            impl Call for $request {
                type Response = $response;
                const LABEL: &'static str = stringify!($variant);

                fn response(reply: Response) -> Option<$response> {
                    match reply {
                        Response::$variant(response) => Some(response),
                        _ => None,
                    }
                }
            }
        )*
    };
}

catalogue! {
    store {
        Get: "tikvpb.Tikv", "KvGet", kvrpcpb::GetRequest, kvrpcpb::GetResponse, Some(1);
        Scan: "tikvpb.Tikv", "KvScan", kvrpcpb::ScanRequest, kvrpcpb::ScanResponse, Some(2);
        Prewrite: "tikvpb.Tikv", "KvPrewrite", kvrpcpb::PrewriteRequest, kvrpcpb::PrewriteResponse, Some(3);
        Commit: "tikvpb.Tikv", "KvCommit", kvrpcpb::CommitRequest, kvrpcpb::CommitResponse, Some(4);
        Cleanup: "tikvpb.Tikv", "KvCleanup", kvrpcpb::CleanupRequest, kvrpcpb::CleanupResponse, Some(6);
        BatchGet: "tikvpb.Tikv", "KvBatchGet", kvrpcpb::BatchGetRequest, kvrpcpb::BatchGetResponse, Some(7);
        BatchRollback: "tikvpb.Tikv", "KvBatchRollback", kvrpcpb::BatchRollbackRequest, kvrpcpb::BatchRollbackResponse, Some(8);
        ScanLock: "tikvpb.Tikv", "KvScanLock", kvrpcpb::ScanLockRequest, kvrpcpb::ScanLockResponse, Some(9);
        ResolveLock: "tikvpb.Tikv", "KvResolveLock", kvrpcpb::ResolveLockRequest, kvrpcpb::ResolveLockResponse, Some(10);
        DeleteRange: "tikvpb.Tikv", "KvDeleteRange", kvrpcpb::DeleteRangeRequest, kvrpcpb::DeleteRangeResponse, Some(12);
        RawGet: "tikvpb.Tikv", "RawGet", kvrpcpb::RawGetRequest, kvrpcpb::RawGetResponse, Some(13);
        RawBatchGet: "tikvpb.Tikv", "RawBatchGet", kvrpcpb::RawBatchGetRequest, kvrpcpb::RawBatchGetResponse, Some(14);
        RawPut: "tikvpb.Tikv", "RawPut", kvrpcpb::RawPutRequest, kvrpcpb::RawPutResponse, Some(15);
        RawBatchPut: "tikvpb.Tikv", "RawBatchPut", kvrpcpb::RawBatchPutRequest, kvrpcpb::RawBatchPutResponse, Some(16);
        RawDelete: "tikvpb.Tikv", "RawDelete", kvrpcpb::RawDeleteRequest, kvrpcpb::RawDeleteResponse, Some(17);
        RawBatchDelete: "tikvpb.Tikv", "RawBatchDelete", kvrpcpb::RawBatchDeleteRequest, kvrpcpb::RawBatchDeleteResponse, Some(18);
        RawScan: "tikvpb.Tikv", "RawScan", kvrpcpb::RawScanRequest, kvrpcpb::RawScanResponse, Some(19);
        RawDeleteRange: "tikvpb.Tikv", "RawDeleteRange", kvrpcpb::RawDeleteRangeRequest, kvrpcpb::RawDeleteRangeResponse, Some(20);
        RawBatchScan: "tikvpb.Tikv", "RawBatchScan", kvrpcpb::RawBatchScanRequest, kvrpcpb::RawBatchScanResponse, Some(21);
        Coprocessor: "tikvpb.Tikv", "Coprocessor", coprocessor::Request, coprocessor::Response, Some(22);
        PessimisticLock: "tikvpb.Tikv", "KvPessimisticLock", kvrpcpb::PessimisticLockRequest, kvrpcpb::PessimisticLockResponse, Some(23);
        PessimisticRollback: "tikvpb.Tikv", "KVPessimisticRollback", kvrpcpb::PessimisticRollbackRequest, kvrpcpb::PessimisticRollbackResponse, Some(24);
        CheckTxnStatus: "tikvpb.Tikv", "KvCheckTxnStatus", kvrpcpb::CheckTxnStatusRequest, kvrpcpb::CheckTxnStatusResponse, Some(25);
        TxnHeartBeat: "tikvpb.Tikv", "KvTxnHeartBeat", kvrpcpb::TxnHeartBeatRequest, kvrpcpb::TxnHeartBeatResponse, Some(26);
        CheckSecondaryLocks: "tikvpb.Tikv", "KvCheckSecondaryLocks", kvrpcpb::CheckSecondaryLocksRequest, kvrpcpb::CheckSecondaryLocksResponse, Some(33);
        RawCoprocessor: "tikvpb.Tikv", "RawCoprocessor", kvrpcpb::RawCoprocessorRequest, kvrpcpb::RawCoprocessorResponse, Some(34);
        FlashbackToVersion: "tikvpb.Tikv", "KvFlashbackToVersion", kvrpcpb::FlashbackToVersionRequest, kvrpcpb::FlashbackToVersionResponse, Some(35);
        PrepareFlashbackToVersion: "tikvpb.Tikv", "KvPrepareFlashbackToVersion", kvrpcpb::PrepareFlashbackToVersionRequest, kvrpcpb::PrepareFlashbackToVersionResponse, Some(36);
        Flush: "tikvpb.Tikv", "KvFlush", kvrpcpb::FlushRequest, kvrpcpb::FlushResponse, Some(37);
        BufferBatchGet: "tikvpb.Tikv", "KvBufferBatchGet", kvrpcpb::BufferBatchGetRequest, kvrpcpb::BufferBatchGetResponse, Some(38);
        GetHealthFeedback: "tikvpb.Tikv", "GetHealthFeedback", kvrpcpb::GetHealthFeedbackRequest, kvrpcpb::GetHealthFeedbackResponse, Some(39);
        BroadcastTxnStatus: "tikvpb.Tikv", "BroadcastTxnStatus", kvrpcpb::BroadcastTxnStatusRequest, kvrpcpb::BroadcastTxnStatusResponse, Some(40);
        RawGetKeyTtl: "tikvpb.Tikv", "RawGetKeyTTL", kvrpcpb::RawGetKeyTtlRequest, kvrpcpb::RawGetKeyTtlResponse, None;
        RawCompareAndSwap: "tikvpb.Tikv", "RawCompareAndSwap", kvrpcpb::RawCasRequest, kvrpcpb::RawCasResponse, None;
        RawChecksum: "tikvpb.Tikv", "RawChecksum", kvrpcpb::RawChecksumRequest, kvrpcpb::RawChecksumResponse, None;
        UnsafeDestroyRange: "tikvpb.Tikv", "UnsafeDestroyRange", kvrpcpb::UnsafeDestroyRangeRequest, kvrpcpb::UnsafeDestroyRangeResponse, None;
        SplitRegion: "tikvpb.Tikv", "SplitRegion", kvrpcpb::SplitRegionRequest, kvrpcpb::SplitRegionResponse, None;
        MvccGetByKey: "tikvpb.Tikv", "MvccGetByKey", kvrpcpb::MvccGetByKeyRequest, kvrpcpb::MvccGetByKeyResponse, None;
        MvccGetByStartTs: "tikvpb.Tikv", "MvccGetByStartTs", kvrpcpb::MvccGetByStartTsRequest, kvrpcpb::MvccGetByStartTsResponse, None;
        GetLockWaitInfo: "tikvpb.Tikv", "GetLockWaitInfo", kvrpcpb::GetLockWaitInfoRequest, kvrpcpb::GetLockWaitInfoResponse, None;
    }
    other {
        GetMembers: "/pdpb.PD/GetMembers", pdpb::GetMembersRequest, pdpb::GetMembersResponse;
        GetClusterInfo: "/pdpb.PD/GetClusterInfo", pdpb::GetClusterInfoRequest, pdpb::GetClusterInfoResponse;
        GetRegion: "/pdpb.PD/GetRegion", pdpb::GetRegionRequest, pdpb::GetRegionResponse;
        GetPrevRegion: "/pdpb.PD/GetPrevRegion", pdpb::GetRegionRequest, pdpb::GetRegionResponse;
        GetRegionById: "/pdpb.PD/GetRegionByID", pdpb::GetRegionByIdRequest, pdpb::GetRegionResponse;
        BatchScanRegions: "/pdpb.PD/BatchScanRegions", pdpb::BatchScanRegionsRequest, pdpb::BatchScanRegionsResponse;
        GetStore: "/pdpb.PD/GetStore", pdpb::GetStoreRequest, pdpb::GetStoreResponse;
        GetAllStores: "/pdpb.PD/GetAllStores", pdpb::GetAllStoresRequest, pdpb::GetAllStoresResponse;
        ScatterRegion: "/pdpb.PD/ScatterRegion", pdpb::ScatterRegionRequest, pdpb::ScatterRegionResponse;
        SplitRegions: "/pdpb.PD/SplitRegions", pdpb::SplitRegionsRequest, pdpb::SplitRegionsResponse;
        GetOperator: "/pdpb.PD/GetOperator", pdpb::GetOperatorRequest, pdpb::GetOperatorResponse;
        GetMinTs: "/pdpb.PD/GetMinTS", pdpb::GetMinTsRequest, pdpb::GetMinTsResponse;
        GetGcState: "/pdpb.PD/GetGCState", pdpb::GetGcStateRequest, pdpb::GetGcStateResponse;
        DispatchMppTask: "/tikvpb.Tikv/DispatchMPPTask", mpp::DispatchTaskRequest, mpp::DispatchTaskResponse;
        CancelMppTask: "/tikvpb.Tikv/CancelMPPTask", mpp::CancelTaskRequest, mpp::CancelTaskResponse;
        HealthCheck: "/grpc.health.v1.Health/Check", HealthCheckRequest, HealthCheckResponse;
    }
}

macro_rules! region_responses {
    ($($response:ty),* $(,)?) => {$(
        impl RegionResponse for $response {
            fn take_region_error(&mut self) -> Option<errorpb::Error> {
                self.region_error.take().map(|error| *error)
            }

            fn from_region_error(error: errorpb::Error) -> Self {
                Self { region_error: Some(error.into()), ..Default::default() }
            }
        }
    )*};
}

region_responses! {
    kvrpcpb::GetResponse, kvrpcpb::ScanResponse, kvrpcpb::PrewriteResponse, kvrpcpb::CommitResponse,
    kvrpcpb::CleanupResponse, kvrpcpb::BatchGetResponse, kvrpcpb::BatchRollbackResponse,
    kvrpcpb::ScanLockResponse, kvrpcpb::ResolveLockResponse, kvrpcpb::DeleteRangeResponse,
    kvrpcpb::RawGetResponse, kvrpcpb::RawBatchGetResponse, kvrpcpb::RawPutResponse,
    kvrpcpb::RawBatchPutResponse, kvrpcpb::RawDeleteResponse, kvrpcpb::RawBatchDeleteResponse,
    kvrpcpb::RawScanResponse, kvrpcpb::RawDeleteRangeResponse, kvrpcpb::RawBatchScanResponse,
    coprocessor::Response, kvrpcpb::PessimisticLockResponse, kvrpcpb::PessimisticRollbackResponse,
    kvrpcpb::CheckTxnStatusResponse, kvrpcpb::TxnHeartBeatResponse,
    kvrpcpb::CheckSecondaryLocksResponse, kvrpcpb::RawCoprocessorResponse,
    kvrpcpb::FlashbackToVersionResponse, kvrpcpb::PrepareFlashbackToVersionResponse,
    kvrpcpb::FlushResponse, kvrpcpb::BufferBatchGetResponse, kvrpcpb::GetHealthFeedbackResponse,
    kvrpcpb::RawGetKeyTtlResponse, kvrpcpb::RawCasResponse, kvrpcpb::RawChecksumResponse,
    kvrpcpb::UnsafeDestroyRangeResponse, kvrpcpb::SplitRegionResponse,
    kvrpcpb::MvccGetByKeyResponse, kvrpcpb::MvccGetByStartTsResponse,
    kvrpcpb::GetLockWaitInfoResponse,
}

/// The field number of the context in every request to a store.
const CONTEXT_FIELD: u32 = 1;

/// How long the encoding of a request is.
pub(crate) fn encoded_request_len(context: Option<&kvrpcpb::Context>, command: &Command) -> usize {
    command.body_len()
        + context.map_or(0, |context| {
            let len = context.encoded_len();
            key_len(CONTEXT_FIELD) + encoded_len_varint(len as u64) + len
        })
}

/// Writes a request: the context, then the body that has none.
pub(crate) fn encode_request_into(
    context: Option<&kvrpcpb::Context>,
    command: &Command,
    buf: &mut impl BufMut,
) {
    if let Some(context) = context {
        encode_key(CONTEXT_FIELD, WireType::LengthDelimited, buf);
        encode_varint(context.encoded_len() as u64, buf);
        context.encode_raw(buf);
    }
    command.encode_body(buf);
}

/// The encoding of a request, as it goes into a unary call.
pub fn encode_request(context: Option<&kvrpcpb::Context>, command: &Command) -> Bytes {
    // prost writes into a vector three times as fast as into `BytesMut`.
    let mut buf = Vec::with_capacity(encoded_request_len(context, command));
    encode_request_into(context, command, &mut buf);
    buf.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_beside_the_body_encodes_like_one_within() {
        let context = kvrpcpb::Context {
            region_id: 7,
            cluster_id: 9,
            ..Default::default()
        };
        let body = kvrpcpb::GetRequest {
            key: "k".into(),
            version: 5,
            ..Default::default()
        };
        let whole = kvrpcpb::GetRequest {
            context: Some(Box::new(context.clone())),
            ..body.clone()
        };
        let encoded = encode_request(Some(&context), &body.clone().into());
        assert_eq!(encoded, whole.encode_to_vec());
        let mut command = Command::from(body);
        command.set_context(Box::new(context));
        assert_eq!(command, Command::Get(whole));
    }

    #[test]
    fn requests_and_answers_come_back_as_they_went() {
        let request = Command::from(kvrpcpb::GetRequest {
            key: "k".into(),
            ..Default::default()
        });
        let bytes = encode_request(None, &request);
        assert_eq!(
            Command::decode_request(request.path(), bytes.clone()).unwrap(),
            Ok(request.clone())
        );
        assert_eq!(
            Command::decode_batched(1, bytes.clone()).unwrap(),
            Ok(request.clone())
        );
        assert!(Command::decode_batched(5, bytes.clone()).is_none());
        assert!(Command::decode_request("/tikvpb.Tikv/KvNothing", bytes).is_none());

        let answer = Response::Get(kvrpcpb::GetResponse {
            not_found: true,
            ..Default::default()
        });
        assert_eq!(request.decode_response(answer.encode()), Ok(answer.clone()));
        assert!(
            request
                .decode_response(Bytes::from_static(&[0xFF]))
                .is_err()
        );
        assert_eq!(answer.batch_arm(), request.batch_arm());
        assert!(kvrpcpb::GetRequest::response(answer).is_some());
        assert!(kvrpcpb::GetRequest::response(Response::Scan(Default::default())).is_none());
    }
}
