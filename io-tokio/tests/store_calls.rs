//! The calls of a served store that no client here makes: questions of other stores, and what is
//! left to an extension, plain and as streams.

mod common;

use bytes::Bytes;
use common::raw_codec::Raw;
use prost::Message;
use tikv_io_mock::cluster::Config;
use tikv_io_mock::cluster::extension::{Asked, Extension};
use tikv_io_mock::cluster::failure::GrpcError;
use tikv_io_mock::serve::ServedCluster;
use tikv_proto::{coprocessor, kvrpcpb};
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

struct Client(Grpc<Channel>);

impl Client {
    async fn of(cluster: &ServedCluster) -> Client {
        let (_, address) = cluster.stores().next().expect("a store");
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect().await.expect("it listens");
        Client(Grpc::new(channel))
    }

    async fn unary(&mut self, path: &'static str, body: impl Message) -> Result<Bytes, Status> {
        self.0.ready().await.expect("a connection");
        let request = Request::new(Bytes::from(body.encode_to_vec()));
        let path = http::uri::PathAndQuery::from_static(path);
        Ok(self.0.unary(request, path, Raw).await?.into_inner())
    }

    async fn stream(&mut self, path: &'static str, body: Bytes) -> Result<Vec<Bytes>, Status> {
        self.0.ready().await.expect("a connection");
        let path = http::uri::PathAndQuery::from_static(path);
        let answers = self.0.server_streaming(Request::new(body), path, Raw);
        let mut answers = answers.await?.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await? {
            all.push(answer);
        }
        Ok(all)
    }
}

/// Says everything twice.
struct Echo;

impl Extension for Echo {
    fn coprocessor(
        &self,
        _: &Asked<'_>,
        request: &coprocessor::Request,
    ) -> Option<coprocessor::Response> {
        Some(coprocessor::Response {
            data: request.data.clone(),
            ..Default::default()
        })
    }

    fn coprocessor_stream(
        &self,
        asked: &Asked<'_>,
        request: &coprocessor::Request,
    ) -> Option<Vec<coprocessor::Response>> {
        let one = self.coprocessor(asked, request)?;
        Some(vec![one.clone(), one])
    }

    fn call(
        &self,
        _: &Asked<'_>,
        path: &str,
        request: &Bytes,
    ) -> Option<Result<Vec<Bytes>, GrpcError>> {
        path.ends_with("/BatchCoprocessor")
            .then(|| Ok(vec![request.clone(), request.clone()]))
    }
}

async fn cluster(extended: bool) -> ServedCluster {
    let config = Config {
        extension: extended.then(|| Echo.into()),
        ..Config::default()
    };
    let cluster = ServedCluster::builder().config(config).start().await;
    cluster.expect("ports are free")
}

fn plan(cluster: &ServedCluster, data: &'static str) -> coprocessor::Request {
    let context = cluster.with(|cluster, _| {
        let region = cluster.regions().iter().next().expect("a region");
        kvrpcpb::Context {
            region_id: region.meta.id,
            region_epoch: region.meta.region_epoch,
            peer: region.leader_peer().copied(),
            ..Default::default()
        }
    });
    coprocessor::Request {
        context: Some(Box::new(context)),
        tp: 103,
        data: data.into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_are_run_by_the_extension() {
    let cluster = cluster(true).await;
    let mut client = Client::of(&cluster).await;
    let body = plan(&cluster, "x");
    let answer = client.unary("/tikvpb.Tikv/Coprocessor", body.clone()).await;
    let answer = coprocessor::Response::decode(answer.expect("an answer")).expect("a message");
    assert_eq!(answer.data, "x");
    let body = Bytes::from(body.encode_to_vec());
    let answers = client.stream("/tikvpb.Tikv/CoprocessorStream", body).await;
    let answers = answers.expect("answers");
    assert_eq!(answers.len(), 2);
    for answer in answers {
        let answer = coprocessor::Response::decode(answer).expect("a message");
        assert_eq!(answer.data, "x");
    }
    let body = Bytes::from_static(b"\x10\x01");
    let answers = client.stream("/tikvpb.Tikv/BatchCoprocessor", body.clone());
    assert_eq!(answers.await.expect("answers"), [body.clone(), body]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_knows_is_unimplemented() {
    let cluster = cluster(false).await;
    let mut client = Client::of(&cluster).await;
    for path in [
        "/tikvpb.Tikv/KvGC",
        "/tikvpb.Tikv/KvImport",
        "/tikvpb.Tikv/ReadIndex",
        "/tikvpb.Tikv/Compact",
        "/tikvpb.Tikv/PhysicalScanLock",
        "/tikvpb.Tikv/RegisterLockObserver",
        "/tikvpb.Tikv/CheckLockObserver",
        "/tikvpb.Tikv/RemoveLockObserver",
        "/tikvpb.Tikv/GetLockWaitHistory",
        "/tikvpb.Tikv/DelegateCoprocessor",
        "/tikvpb.Tikv/DispatchMPPTask",
        "/tikvpb.Tikv/CancelMPPTask",
        "/tikvpb.Tikv/IsAlive",
    ] {
        let status = client.unary(path, ()).await.expect_err(path);
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
    }
    for path in [
        "/tikvpb.Tikv/BatchCoprocessor",
        "/tikvpb.Tikv/EstablishMPPConnection",
    ] {
        let status = client.stream(path, Bytes::new()).await.expect_err(path);
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
    }
    let body = plan(&cluster, "x");
    let answer = client.unary("/tikvpb.Tikv/Coprocessor", body).await;
    let answer = coprocessor::Response::decode(answer.expect("an answer")).expect("a message");
    assert_eq!(answer.other_error, "unsupported tp 103");
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_answer_each_other() {
    let cluster = cluster(false).await;
    let mut client = Client::of(&cluster).await;
    cluster.with(|cluster, _| {
        let region = cluster.regions().ids().next().expect("a region");
        cluster.set_safe_ts(region, 7);
    });
    let asked = kvrpcpb::StoreSafeTsRequest::default();
    let answer = client.unary("/tikvpb.Tikv/GetStoreSafeTS", asked).await;
    let answer = kvrpcpb::StoreSafeTsResponse::decode(answer.expect("an answer"));
    assert_eq!(answer.expect("a message").safe_ts, 7);
    let asked = kvrpcpb::CheckLeaderRequest {
        ts: 9,
        ..Default::default()
    };
    let answer = client.unary("/tikvpb.Tikv/CheckLeader", asked).await;
    let answer = kvrpcpb::CheckLeaderResponse::decode(answer.expect("an answer"));
    assert_eq!(answer.expect("a message").ts, 9);
}
