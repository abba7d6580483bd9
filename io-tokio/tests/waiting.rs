//! Requests that wait for a lock on the served cluster, sent alone, without the driver.

mod common;

use bytes::Bytes;
use common::raw_codec::Raw;
use common::{eventually, serve};
use prost::Message;
use tikv_io_mock::serve::ServedCluster;
use tikv_proto::kvrpcpb::{
    Context, GetLockWaitInfoRequest, Mutation, Op, PessimisticLockRequest, PessimisticLockResponse,
    PessimisticRollbackRequest,
};
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const LOCK: &str = "/tikvpb.Tikv/KvPessimisticLock";
const RELEASE: &str = "/tikvpb.Tikv/KVPessimisticRollback";

fn lock(cluster: &ServedCluster, start_ts: u64) -> PessimisticLockRequest {
    PessimisticLockRequest {
        context: Some(Box::new(context(cluster))),
        mutations: vec![Mutation {
            op: Op::PessimisticLock.into(),
            key: "k".into(),
            ..Default::default()
        }],
        primary_lock: "k".into(),
        start_version: start_ts,
        for_update_ts: start_ts,
        lock_ttl: 60_000,
        ..Default::default()
    }
}

fn release(cluster: &ServedCluster, start_ts: u64) -> PessimisticRollbackRequest {
    PessimisticRollbackRequest {
        context: Some(Box::new(context(cluster))),
        keys: vec!["k".into()],
        start_version: start_ts,
        for_update_ts: start_ts,
    }
}

fn context(cluster: &ServedCluster) -> Context {
    cluster.with(|cluster, _| {
        let region = cluster.regions().iter().next().unwrap();
        Context {
            region_id: region.meta.id,
            region_epoch: region.meta.region_epoch,
            peer: region.leader_peer().copied(),
            ..Default::default()
        }
    })
}

async fn connect(cluster: &ServedCluster) -> Grpc<Channel> {
    let (_, address) = cluster.stores().next().unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    Grpc::new(endpoint.connect().await.unwrap())
}

async fn call(
    client: &Grpc<Channel>,
    method: &'static str,
    request: impl Message,
) -> Result<Bytes, Status> {
    let mut client = client.clone();
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(method);
    let request = Request::new(request.encode_to_vec().into());
    let answer = client.unary(request, path, Raw).await?;
    Ok(answer.into_inner())
}

async fn somebody_waits(cluster: &ServedCluster) {
    let waits = || {
        cluster.with(|cluster, now_ms| {
            let request = GetLockWaitInfoRequest::default();
            let told = cluster.get_lock_wait_info(now_ms, 1, request);
            !told.entries.is_empty()
        })
    };
    eventually("somebody waits", waits).await;
}

#[tokio::test]
async fn a_call_that_waits_ends_when_the_lock_is_released() {
    let cluster = serve().await;
    let client = connect(&cluster).await;
    call(&client, LOCK, lock(&cluster, 10)).await.unwrap();
    let waiting = call(&client, LOCK, lock(&cluster, 20));
    let releasing = async {
        somebody_waits(&cluster).await;
        call(&client, RELEASE, release(&cluster, 10)).await.unwrap();
    };
    let (answer, ()) = futures_util::future::join(waiting, releasing).await;
    let answer = PessimisticLockResponse::decode(answer.unwrap()).unwrap();
    let conflict = answer.errors[0].conflict.as_ref().expect("a release");
    assert_eq!(conflict.conflict_ts, 10);
}

#[tokio::test]
async fn a_call_that_waits_ends_with_its_store() {
    let cluster = serve().await;
    let client = connect(&cluster).await;
    call(&client, LOCK, lock(&cluster, 10)).await.unwrap();
    let waiting = call(&client, LOCK, lock(&cluster, 20));
    let stopping = async {
        somebody_waits(&cluster).await;
        cluster.stop_store(1).await;
    };
    let (answer, ()) = futures_util::future::join(waiting, stopping).await;
    assert!(answer.is_err());
}
