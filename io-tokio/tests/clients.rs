//! The clients as applications use them, over the served cluster.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;
use tikv_io_tokio::{
    Connect, Error, ErrorKind, IoConfig, KeyRange, RawClient, Result, TransactionClient,
};
use tokio::task::JoinSet;

async fn connect(cluster: &tikv_io_mock::serve::ServedCluster) -> TransactionClient {
    TransactionClient::connect(cluster.pd_endpoints())
        .await
        .unwrap()
}

#[tokio::test]
async fn what_is_committed_is_read_by_others() {
    let cluster = tikv_io_mock::serve::ServedCluster::builder()
        .regions(["b", "c"])
        .start()
        .await
        .unwrap();
    let client = connect(&cluster).await;
    let before = client.snapshot().await.unwrap();
    let txn = client.begin().await.unwrap();
    for key in ["a", "b", "c"] {
        txn.put(key, format!("value of {key}")).await.unwrap();
    }
    let committed = txn.commit().await.unwrap().commit_ts.unwrap();

    let other = connect(&cluster).await;
    let after = other.snapshot().await.unwrap();
    assert!(before.version() < committed && committed < after.version());
    assert_eq!(before.get("b").await.unwrap(), None);
    assert_eq!(
        after.get("b").await.unwrap().as_deref(),
        Some(&b"value of b"[..])
    );
    let rows = after.scan(KeyRange::all()).into_vec().await.unwrap();
    let keys: Vec<_> = rows.iter().map(|row| row.key().to_string()).collect();
    assert_eq!(keys, ["a", "b", "c"]);
    let many = after.batch_get(["c", "x", "a"]).await.unwrap();
    assert_eq!(
        many.iter().map(Option::is_some).collect::<Vec<_>>(),
        [true, false, true]
    );
    assert_eq!(client.close(PATIENCE).await.left, 0);
}

#[tokio::test]
async fn raw_calls_reach_every_region() {
    let cluster = tikv_io_mock::serve::ServedCluster::builder()
        .even_regions(16)
        .start()
        .await
        .unwrap();
    let client = RawClient::connect(cluster.pd_endpoints()).await.unwrap();
    let keys: Vec<Vec<u8>> = (0..=255).map(|first| vec![first, 1]).collect();
    client
        .batch_put(keys.iter().map(|key| (key.clone(), "v")))
        .await
        .unwrap();
    let found = client.batch_get(keys.clone()).await.unwrap();
    assert!(found.iter().all(Option::is_some));
    assert_eq!(client.scan(KeyRange::all(), 1000).await.unwrap().len(), 256);
    client.delete_range(KeyRange::all()).await.unwrap();
    assert_eq!(client.get(keys[0].clone()).await.unwrap(), None);
    assert!(client.driver().stats().stores == 3);
}

#[tokio::test]
async fn two_clients_may_share_one_driver() {
    let cluster = serve().await;
    let client = connect(&cluster).await;
    let raw = RawClient::builder()
        .pd(cluster.pd_endpoints())
        .driver(client.driver().clone())
        .connect()
        .await
        .unwrap();
    drop(client);
    raw.put("k", "v").await.unwrap();

    let mut io = IoConfig::default();
    io.grpc_connection_count = 1;
    let both = RawClient::builder()
        .pd(cluster.pd_endpoints())
        .driver(raw.driver().clone())
        .io_config(io)
        .connect()
        .await;
    assert!(
        matches!(both, Err(Error::InvalidArgument { .. })),
        "{both:?}"
    );
}

async fn fails_within(limit: Duration, pd: String) -> Error {
    let began = Instant::now();
    let error = TransactionClient::builder()
        .pd([pd])
        .connect_timeout(Duration::from_millis(500))
        .connect()
        .await
        .unwrap_err();
    assert!(began.elapsed() < limit, "{:?}: {error}", began.elapsed());
    error
}

#[tokio::test]
async fn a_pd_that_is_not_there_or_does_not_answer_is_a_clear_error_in_time() {
    let nowhere = nowhere().await;
    let error = fails_within(Duration::from_secs(2), nowhere.clone()).await;
    assert!(error.to_string().contains(&nowhere), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    let (mute, _task) = mute().await;
    let error = fails_within(Duration::from_secs(2), mute.clone()).await;
    assert!(error.to_string().contains(&mute), "{error}");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
}

#[tokio::test]
async fn a_key_beyond_the_limit_is_a_clear_error() {
    let cluster = serve().await;
    let client = connect(&cluster).await;
    let txn = client.begin().await.unwrap();
    let error = txn.put(vec![b'k'; 100_000], "v").await.unwrap_err();
    assert!(matches!(error, Error::KeyTooLarge { .. }), "{error}");
    let error = txn.put("k", vec![b'v'; 10 << 20]).await.unwrap_err();
    assert!(matches!(error, Error::EntryTooLarge { .. }), "{error}");
    txn.put("k", "v").await.unwrap();
    txn.commit().await.unwrap();
}

/// Adds one to a counter.
async fn increment(client: &TransactionClient, key: &str) -> Result<()> {
    client
        .transact(async |txn| {
            let value = txn.get(key).await?.unwrap_or_default();
            let count: u64 = String::from_utf8_lossy(&value).parse().unwrap_or(0);
            txn.put(key, (count + 1).to_string()).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_increment_is_lost_while_stores_die_and_regions_move() {
    let cluster = tikv_io_mock::serve::ServedCluster::builder()
        .regions(["counter/4"])
        .start()
        .await
        .unwrap();
    let client = connect(&cluster).await;
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for n in 0..8 {
        let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
        callers.spawn(async move {
            // Few keys, so that transactions meet.
            let key = format!("counter/{}", n % 4 * 2);
            let (mut sure, mut unsure) = (0_u64, 0_u64);
            while !stop.load(Ordering::Relaxed) {
                match increment(&client, &key).await {
                    Ok(()) => sure += 1,
                    Err(error) if error.is_undetermined() => unsure += 1,
                    Err(error) => panic!("{error}"),
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            (sure, unsure)
        });
    }
    for round in 0..3 {
        let goal = done.load(Ordering::Relaxed) + 50;
        eventually("increments go on", || done.load(Ordering::Relaxed) >= goal).await;
        let store = round + 1;
        cluster.stop_store(store).await;
        cluster.fail_over(store);
        let goal = done.load(Ordering::Relaxed) + 50;
        eventually("others take over", || done.load(Ordering::Relaxed) >= goal).await;
        cluster.start_store(store).await.unwrap();
        cluster.split(format!("counter/{}", round * 2 + 1).as_bytes());
    }
    stop.store(true, Ordering::Relaxed);
    let (mut sure, mut unsure) = (0, 0);
    for (more_sure, more_unsure) in callers.join_all().await {
        (sure, unsure) = (sure + more_sure, unsure + more_unsure);
    }
    let rows = client
        .snapshot()
        .await
        .unwrap()
        .scan(KeyRange::prefix("counter/"));
    let counted: u64 = rows
        .into_vec()
        .await
        .unwrap()
        .iter()
        .map(|row| String::from_utf8_lossy(row.value()).parse::<u64>().unwrap())
        .sum();
    assert!(
        (sure..=sure + unsure).contains(&counted),
        "{sure} + {unsure}, counted {counted}"
    );
    client.close(PATIENCE).await;
}

#[tokio::test]
async fn a_call_has_the_time_it_was_given() {
    let cluster = serve().await;
    let client = connect(&cluster)
        .await
        .with_timeout(Duration::from_millis(300));
    let snapshot = client.snapshot().await.unwrap();
    for (store, _) in cluster.stores() {
        cluster.stop_store(store).await;
    }
    let began = Instant::now();
    let error = snapshot.get("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(began.elapsed() < Duration::from_secs(2));
}
