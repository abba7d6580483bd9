//! Replicas that lag, over gRPC: a read that waits for one holds no other up, and is answered when the
//! replica has caught up.
#![cfg(feature = "serve")]

use futures_util::StreamExt;
use tikv_io_mock::control::{Outcome, Verb};
use tikv_io_mock::dispatch;
use tikv_io_mock::serve::ServedCluster;
use tikv_proto::kvrpcpb::{Context, RawGetRequest, RawPutRequest};
use tikv_proto::tikvpb::batch_commands_request::{Request, request::Cmd};
use tikv_proto::tikvpb::batch_commands_response::response::Cmd as Answer;
use tikv_proto::tikvpb::tikv_client::TikvClient;
use tikv_proto::tikvpb::{BatchCommandsRequest, BatchCommandsResponse};
use tonic::transport::Channel;

const REPLICA: u64 = 2;

/// The context of a request to the peer on a store.
fn context(cluster: &ServedCluster, store: u64, stale: bool) -> Option<Box<Context>> {
    let region = cluster.with(|cluster, _| cluster.regions().iter().next().cloned());
    let region = region.unwrap();
    Some(Box::new(Context {
        region_id: region.meta.id,
        region_epoch: region.meta.region_epoch,
        peer: region.peer_on(store).copied(),
        replica_read: store != 1 && !stale,
        stale_read: stale,
        ..Default::default()
    }))
}

fn put(cluster: &ServedCluster, value: &'static str) {
    let request = RawPutRequest {
        context: context(cluster, 1, false),
        key: "k".into(),
        value: value.into(),
        ..Default::default()
    };
    let done = cluster
        .with(|cluster, now_ms| dispatch::store(cluster, now_ms, 1, request.into()))
        .unwrap();
    assert_eq!(dispatch::region_error(&done), None);
}

fn get(cluster: &ServedCluster, stale: bool) -> Request {
    Request {
        cmd: Some(Cmd::RawGet(RawGetRequest {
            context: context(cluster, REPLICA, stale),
            key: "k".into(),
            ..Default::default()
        })),
    }
}

/// The ids and the values of a frame of answers.
fn told(frame: BatchCommandsResponse) -> Vec<(u64, String)> {
    let values = frame.responses.into_iter().map(|one| match one.cmd {
        Some(Answer::RawGet(answer)) => {
            assert_eq!(answer.region_error, None);
            String::from_utf8_lossy(&answer.value).into_owned()
        }
        other => panic!("{other:?}"),
    });
    frame.request_ids.into_iter().zip(values).collect()
}

#[tokio::test]
async fn a_read_waits_for_its_replica_and_holds_no_other_up() {
    let cluster = ServedCluster::builder().stores(3).start().await.unwrap();
    put(&cluster, "old");
    let region = cluster.regions()[0];
    let stall = Verb::FallBehind {
        region,
        store: REPLICA,
        entries: 0,
        stuck: true,
    };
    assert_eq!(cluster.control(stall).await, Ok(Outcome::Done));
    put(&cluster, "new");

    let (_, address) = cluster.stores().find(|(id, _)| *id == REPLICA).unwrap();
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    let mut client = TikvClient::new(endpoint.connect().await.unwrap());
    let frame = BatchCommandsRequest {
        requests: vec![get(&cluster, false), get(&cluster, true)],
        request_ids: vec![1, 2],
        ..Default::default()
    };
    let frames = futures_util::stream::iter([frame]).chain(futures_util::stream::pending());
    let mut answers = client.batch_commands(frames).await.unwrap().into_inner();
    // What need not be of the present is answered.
    let first = answers.message().await.unwrap().unwrap();
    assert_eq!(told(first), [(2, "old".to_owned())]);
    put(&cluster, "newest");
    let catch_up = Verb::CatchUp {
        store: REPLICA,
        region: None,
    };
    assert_eq!(cluster.control(catch_up).await, Ok(Outcome::Done));
    let second = answers.message().await.unwrap().unwrap();
    assert_eq!(told(second), [(1, "newest".to_owned())]);
}
