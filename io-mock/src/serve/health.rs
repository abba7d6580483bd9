//! `grpc.health.v1.Health`: every server that answers at all is serving. One that is paused does
//! not answer.
//!
//! Servers speak for themselves as a whole, which is the service without a name; of others they
//! know nothing. PD's library knows a list of all, TiKV's does not.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use super::grpc;
use super::impairment::Impairment;

const SERVICE: &str = "/grpc.health.v1.Health/";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const LIST: &str = "/grpc.health.v1.Health/List";

/// A `HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// A `HealthCheckResponse` with status SERVING, which is field 1 with value 1.
const SERVING: &[u8] = &[0x08, 0x01];
/// The same with status SERVICE_UNKNOWN.
const SERVICE_UNKNOWN: &[u8] = &[0x08, 0x03];

/// A `HealthListResponse`: a map that has SERVING for the empty name.
const LISTED: &[u8] = &[0x0a, 0x06, 0x0a, 0x00, 0x12, 0x02, 0x08, 0x01];

/// Who is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Store,
    Pd,
}

/// Whether a call is one of the health service's.
pub(super) fn is_call(path: &str) -> bool {
    path.starts_with(SERVICE)
}

/// Answers a call.
pub(super) async fn call(
    asked: Asked,
    impairment: &Arc<Impairment>,
    request: http::Request<Incoming>,
) -> http::Response<Body> {
    let impairment = impairment.clone();
    match request.uri().path() {
        CHECK => {
            grpc::unary(request, async move |body| {
                impairment.admit().await;
                match is_known(body)? {
                    true => Ok(Bytes::from_static(SERVING)),
                    false => Err(Status::not_found("unknown service")),
                }
            })
            .await
        }
        // It tells the status and then every change of it; here there is none before the end.
        WATCH => {
            grpc::many(request, move |body| {
                let status = match is_known(body)? {
                    true => SERVING,
                    false => SERVICE_UNKNOWN,
                };
                Ok(grpc::unfold(true, move |first| {
                    let impairment = impairment.clone();
                    async move {
                        if !first {
                            std::future::pending::<()>().await;
                        }
                        impairment.admit().await;
                        Ok(Some((Bytes::from_static(status), false)))
                    }
                }))
            })
            .await
        }
        LIST if asked == Asked::Pd => {
            grpc::unary(request, async move |_| {
                impairment.admit().await;
                Ok(Bytes::from_static(LISTED))
            })
            .await
        }
        path => grpc::unimplemented(path),
    }
}

fn is_known(body: Bytes) -> Result<bool, Status> {
    let question = Question::decode(body).map_err(grpc::unreadable)?;
    Ok(question.service.is_empty())
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::testing::Client;
    use super::*;
    use crate::serve::ServedCluster;

    /// The status in an answer.
    #[derive(Clone, PartialEq, Message)]
    struct Answer {
        #[prost(int32, tag = "1")]
        status: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    struct List {
        #[prost(btree_map = "string, message", tag = "1")]
        statuses: std::collections::BTreeMap<String, Answer>,
    }

    fn about(service: &str) -> Question {
        Question {
            service: service.to_owned(),
        }
    }

    #[tokio::test]
    async fn servers_speak_for_themselves_and_pd_lists_that() {
        let cluster = ServedCluster::builder().stores(1).start().await.unwrap();
        let address =
            cluster.with(|cluster, _| cluster.store(1).unwrap().meta.address.parse().unwrap());
        for (asked, address) in [(Asked::Store, address), (Asked::Pd, cluster.pd_address())] {
            let mut client = Client::connect(address).await;
            let itself: Answer = client.unary(CHECK, &about("")).await.unwrap();
            assert_eq!(itself.status, 1);
            let unknown: Result<Answer, Status> = client.unary(CHECK, &about("other")).await;
            assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
            let list: Result<List, Status> = client.unary(LIST, &about("")).await;
            match asked {
                Asked::Pd => assert_eq!(list.unwrap().statuses[""].status, 1),
                Asked::Store => assert_eq!(list.unwrap_err().code(), Code::Unimplemented),
            }
            for (service, status) in [("", 1), ("other", 3)] {
                let request = Bytes::from(about(service).encode_to_vec());
                let requests = futures_util::stream::iter([request]);
                let mut told = client.streams(WATCH, requests).await.unwrap();
                let first = told.message().await.unwrap().unwrap();
                assert_eq!(Answer::decode(first).unwrap().status, status);
            }
        }
    }
}
