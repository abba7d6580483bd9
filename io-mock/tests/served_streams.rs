//! Requests in frames and requests by way of others, over gRPC.
#![cfg(feature = "serve")]

use futures_util::StreamExt;
use tikv_io_mock::serve::ServedCluster;
use tikv_proto::kvrpcpb::{self, Context, KvPair, Mutation, Op};
use tikv_proto::pdpb;
use tikv_proto::pdpb::pd_client::PdClient;
use tikv_proto::tikvpb::batch_commands_request::request::Cmd;
use tikv_proto::tikvpb::batch_commands_response::response::Cmd as Answer;
use tikv_proto::tikvpb::tikv_client::TikvClient;
use tikv_proto::tikvpb::{BatchCommandsRequest, BatchCommandsResponse, batch_commands_request};
use tonic::transport::Channel;
use tonic::{Code, Request};

async fn serve() -> ServedCluster {
    ServedCluster::builder().stores(2).start().await.unwrap()
}

async fn channel(address: impl std::fmt::Display) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect().await.unwrap()
}

fn address(cluster: &ServedCluster, store: u64) -> String {
    let (_, address) = cluster.stores().find(|(id, _)| *id == store).unwrap();
    address.to_string()
}

async fn connect(cluster: &ServedCluster, store: u64) -> TikvClient<Channel> {
    TikvClient::new(channel(address(cluster, store)).await)
}

/// The context of a request to the leader of the only region.
fn context(cluster: &ServedCluster) -> Option<Box<Context>> {
    cluster.with(|cluster, _| {
        let region = cluster.regions().iter().next().unwrap();
        Some(Box::new(Context {
            region_id: region.meta.id,
            region_epoch: region.meta.region_epoch,
            peer: region.leader_peer().copied(),
            ..Default::default()
        }))
    })
}

/// A frame of the same request, ten times.
fn ten(cmd: Option<Cmd>) -> BatchCommandsRequest {
    BatchCommandsRequest {
        requests: vec![batch_commands_request::Request { cmd }; 10],
        request_ids: (0..10).collect(),
        ..Default::default()
    }
}

/// Sends frames and ends the stream; the answers until it ends.
async fn send(
    client: &mut TikvClient<Channel>,
    frames: Vec<BatchCommandsRequest>,
    by_way_of: Option<&str>,
) -> Vec<BatchCommandsResponse> {
    let request = Request::new(futures_util::stream::iter(frames));
    let request = forwarded(request, by_way_of);
    let mut answers = match client.batch_commands(request).await {
        Ok(answers) => answers.into_inner(),
        Err(_) => return Vec::new(),
    };
    let mut all = Vec::new();
    while let Some(Ok(answer)) = answers.next().await {
        assert_eq!(answer.responses.len(), answer.request_ids.len());
        all.push(answer);
    }
    all
}

fn forwarded<T>(mut request: Request<T>, host: Option<&str>) -> Request<T> {
    if let Some(host) = host {
        let host = host.parse().unwrap();
        request.metadata_mut().insert("tikv-forwarded-host", host);
    }
    request
}

fn count(answers: &[BatchCommandsResponse]) -> usize {
    answers.iter().map(|answer| answer.responses.len()).sum()
}

#[tokio::test]
async fn test_batch_commands() {
    let cluster = serve().await;
    let mut client = connect(&cluster, 1).await;
    let answers = send(&mut client, vec![ten(None); 300], None).await;
    assert_eq!(count(&answers), 3000);
}

#[tokio::test]
async fn test_empty_commands() {
    let cluster = serve().await;
    let mut client = connect(&cluster, 1).await;
    let empty = ten(Some(Cmd::Empty(Default::default())));
    let answers = send(&mut client, vec![empty; 300], None).await;
    assert_eq!(count(&answers), 3000);
    let mut responses = answers.iter().flat_map(|answer| &answer.responses);
    assert!(responses.all(|response| matches!(response.cmd, Some(Answer::Empty(_)))));
}

#[tokio::test]
async fn test_check_cluster_id_for_batch_cmds() {
    let cluster = serve().await;
    let mut client = connect(&cluster, 1).await;
    let own = cluster.with(|cluster, _| cluster.config().cluster_id);
    for says_cluster in [false, true] {
        for foreign in [0, 5, 9, 20] {
            let mut frame = ten(None);
            for (i, request) in frame.requests.iter_mut().enumerate() {
                let mut context = context(&cluster);
                if says_cluster && let Some(context) = &mut context {
                    context.cluster_id = if i == foreign { own + 100 } else { own };
                }
                request.cmd = Some(Cmd::Get(kvrpcpb::GetRequest {
                    context,
                    key: "k1".into(),
                    version: 10,
                    ..Default::default()
                }));
            }
            let answered = count(&send(&mut client, vec![frame], None).await);
            if says_cluster && foreign < 10 {
                assert!(answered < 10, "{foreign}: the stream ends");
            } else {
                assert_eq!(answered, 10);
            }
        }
    }
}

/// Each request is refused by a store that does not lead, and passed on to the one that does if it
/// says so.
macro_rules! go_by_way {
    ($client:ident, $cluster:ident, $leader:ident, $($call:ident($request:ident { $($field:ident: $value:expr),* $(,)? })),* $(,)?) => {
        $(
            #[allow(clippy::needless_update)] // Some requests have no other fields.
            let request = kvrpcpb::$request {
                context: context(&$cluster),
                $($field: $value,)*
                ..Default::default()
            };
            let refused = $client.$call(request.clone()).await.unwrap().into_inner();
            let error = refused.region_error.expect(stringify!($call));
            assert!(error.store_not_match.is_some(), "{error:?}");
            let request = forwarded(Request::new(request), Some(&$leader));
            let answer = $client.$call(request).await.unwrap().into_inner();
            assert_eq!(answer.region_error, None, stringify!($call));
        )*
    };
}

#[tokio::test]
async fn test_tikv_forwarding() {
    let cluster = serve().await;
    let leader = address(&cluster, 1);
    let mut client = connect(&cluster, 2).await;
    let mutations = |op: Op| {
        vec![Mutation {
            op: op.into(),
            key: "key".into(),
            ..Default::default()
        }]
    };
    go_by_way!(
        client,
        cluster,
        leader,
        kv_get(GetRequest {}),
        kv_scan(ScanRequest { limit: 1 }),
        kv_prewrite(PrewriteRequest {
            mutations: mutations(Op::Put),
            start_version: 5,
        }),
        kv_pessimistic_lock(PessimisticLockRequest {
            mutations: mutations(Op::PessimisticLock),
            wait_timeout: -1,
        }),
        kv_pessimistic_rollback(PessimisticRollbackRequest {
            keys: vec!["key".into()],
        }),
        kv_commit(CommitRequest {
            keys: vec!["key".into()],
            start_version: 5,
            commit_version: 6,
        }),
        kv_cleanup(CleanupRequest {
            key: "key".into(),
            start_version: 7,
        }),
        kv_batch_get(BatchGetRequest {}),
        kv_batch_rollback(BatchRollbackRequest {
            keys: vec!["key".into()],
            start_version: 8,
        }),
        kv_txn_heart_beat(TxnHeartBeatRequest {
            primary_lock: "key".into(),
        }),
        kv_check_txn_status(CheckTxnStatusRequest {
            primary_key: "key".into(),
            lock_ts: 9,
        }),
        kv_check_secondary_locks(CheckSecondaryLocksRequest {
            keys: vec!["key".into()],
            start_version: 9,
        }),
        kv_scan_lock(ScanLockRequest {}),
        kv_resolve_lock(ResolveLockRequest { start_version: 9 }),
        kv_delete_range(DeleteRangeRequest {
            start_key: "x".into(),
            end_key: "y".into()
        }),
        mvcc_get_by_key(MvccGetByKeyRequest { key: "key".into() }),
        mvcc_get_by_start_ts(MvccGetByStartTsRequest { start_ts: 5 }),
        raw_get(RawGetRequest { key: "r".into() }),
        raw_batch_get(RawBatchGetRequest {
            keys: vec!["r".into()],
        }),
        raw_scan(RawScanRequest { limit: 1 }),
        raw_batch_scan(RawBatchScanRequest { each_limit: 1 }),
        raw_put(RawPutRequest {
            key: "r".into(),
            value: "v".into(),
        }),
        raw_batch_put(RawBatchPutRequest {
            pairs: vec![KvPair {
                key: "r".into(),
                value: "v".into(),
                ..Default::default()
            }],
        }),
        raw_delete(RawDeleteRequest { key: "r".into() }),
        raw_batch_delete(RawBatchDeleteRequest {
            keys: vec!["r".into()],
        }),
        raw_delete_range(RawDeleteRangeRequest {
            start_key: "a".into(),
            end_key: "b".into(),
        }),
        split_region(SplitRegionRequest {
            split_keys: vec!["k1".into()],
        }),
    );
    // A stream is passed on as a whole.
    for by_way_of in [None, Some(leader.as_str())] {
        let get = Cmd::Get(kvrpcpb::GetRequest {
            context: context(&cluster),
            key: "a".into(),
            version: 10,
            ..Default::default()
        });
        let answers = send(&mut client, vec![ten(Some(get)); 10], by_way_of).await;
        assert_eq!(count(&answers), 100);
        for response in answers.iter().flat_map(|answer| &answer.responses) {
            let Some(Answer::Get(get)) = &response.cmd else {
                panic!("{response:?}");
            };
            let wrong_store = get
                .region_error
                .as_ref()
                .is_some_and(|error| error.store_not_match.is_some());
            assert_eq!(wrong_store, by_way_of.is_none());
        }
    }
}

#[tokio::test]
async fn test_forwarding_reconnect() {
    let cluster = serve().await;
    let leader = address(&cluster, 1);
    let mut client = connect(&cluster, 2).await;
    let request = kvrpcpb::RawGetRequest {
        context: context(&cluster),
        key: "k".into(),
        ..Default::default()
    };
    let by_way = || forwarded(Request::new(request.clone()), Some(&leader));
    cluster.stop_store(1).await;
    let refused = client.raw_get(by_way()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Cancelled);
    cluster.start_store(1).await.unwrap();
    let answer = client.raw_get(by_way()).await.unwrap().into_inner();
    let wrong_store = answer.region_error.and_then(|error| error.store_not_match);
    assert_eq!(wrong_store, None);
}

#[tokio::test]
async fn test_reject_unknown_forwarded_host() {
    let cluster = serve().await;
    let mut client = PdClient::new(channel(cluster.pd_address()).await);
    let header = || {
        Some(pdpb::RequestHeader {
            cluster_id: cluster.with(|cluster, _| cluster.config().cluster_id),
            ..Default::default()
        })
    };
    // Nobody is connected to.
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    let host = format!("http://{}", stranger.local_addr().unwrap());
    let mut request = Request::new(pdpb::GetAllStoresRequest {
        header: header(),
        ..Default::default()
    });
    request
        .metadata_mut()
        .insert("pd-forwarded-host", host.parse().unwrap());
    let refused = client.get_all_stores(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let wish = pdpb::TsoRequest {
        header: header(),
        count: 1,
        ..Default::default()
    };
    let mut request = Request::new(futures_util::stream::iter([wish]));
    request
        .metadata_mut()
        .insert("pd-forwarded-host", host.parse().unwrap());
    let refused = match client.tso(request).await {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(refused) => refused,
    };
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(stranger.accept().is_err());
}
