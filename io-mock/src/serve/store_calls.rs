//! The calls of a store that the client's catalogue does not have: questions of other stores, and
//! what is left to an [`Extension`](crate::cluster::extension::Extension). Called by
//! [`store`](super::store) for every path that is not in the catalogue.

use bytes::Bytes;
use prost::Message;
use tonic::Status;

use super::grpc;
use crate::cluster::Cluster;
use crate::cluster::region::StoreId;

const COPROCESSOR_STREAM: &str = "/tikvpb.Tikv/CoprocessorStream";
/// The calls that have a stream of answers.
const STREAMS: [&str; 3] = [
    COPROCESSOR_STREAM,
    "/tikvpb.Tikv/BatchCoprocessor",
    "/tikvpb.Tikv/EstablishMPPConnection",
];

/// Whether a call has a stream of answers.
pub(super) fn is_stream(path: &str) -> bool {
    STREAMS.contains(&path)
}

/// Answers a call that has one answer.
pub(super) fn answer(
    cluster: &mut Cluster,
    now_ms: u64,
    store: StoreId,
    path: &str,
    body: Bytes,
) -> Result<Bytes, Status> {
    match path {
        "/tikvpb.Tikv/GetStoreSafeTS" => {
            cluster.admit(store, None).map_err(grpc::status)?;
            let answer = cluster.get_store_safe_ts(now_ms, store, read(body)?);
            Ok(answer.encode_to_vec().into())
        }
        "/tikvpb.Tikv/CheckLeader" => {
            cluster.admit(store, None).map_err(grpc::status)?;
            let answer = cluster.check_leader(now_ms, store, read(body)?);
            Ok(answer.encode_to_vec().into())
        }
        path => {
            let answers = cluster.extended_call(now_ms, store, path, &body);
            let answers = answers.map_err(grpc::status)?;
            Ok(answers.into_iter().next().unwrap_or_default())
        }
    }
}

/// Answers a call that has a stream of answers.
pub(super) fn answers(
    cluster: &mut Cluster,
    now_ms: u64,
    store: StoreId,
    path: &str,
    body: Bytes,
) -> Result<Vec<Bytes>, Status> {
    if path != COPROCESSOR_STREAM {
        let answers = cluster.extended_call(now_ms, store, path, &body);
        return answers.map_err(grpc::status);
    }
    let request: tikv_proto::coprocessor::Request = read(body)?;
    let admitted = cluster.admit(store, request.context.as_deref());
    admitted.map_err(grpc::status)?;
    let answers = cluster.coprocessor_stream(now_ms, store, &request);
    Ok(answers
        .iter()
        .map(|answer| answer.encode_to_vec().into())
        .collect())
}

fn read<M: Message + Default>(body: Bytes) -> Result<M, Status> {
    M::decode(body).map_err(grpc::unreadable)
}
