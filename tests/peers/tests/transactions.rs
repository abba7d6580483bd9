//! Transactions of the client `tikv-client` on the simulated cluster.

use std::sync::Arc;

use tikv_client::{
    CheckLevel, Error, Key, RetryOptions, TimestampExt, Transaction, TransactionClient,
    TransactionOptions,
};
use tikv_io_mock::serve::ServedCluster;
use tikv_peers::cluster;

async fn client(cluster: &ServedCluster) -> TransactionClient {
    TransactionClient::new(cluster.pd_endpoints())
        .await
        .unwrap()
}

fn optimistic() -> TransactionOptions {
    TransactionOptions::new_optimistic().drop_check(CheckLevel::Warn)
}

fn pessimistic() -> TransactionOptions {
    TransactionOptions::new_pessimistic().drop_check(CheckLevel::Warn)
}

/// Every way in which a transaction of this client commits.
fn ways() -> Vec<TransactionOptions> {
    [optimistic(), pessimistic()]
        .into_iter()
        .flat_map(|kind| {
            [
                kind.clone(),
                kind.clone().use_async_commit(),
                kind.clone().try_one_pc(),
                kind.use_async_commit().try_one_pc(),
            ]
        })
        .collect()
}

async fn get(client: &TransactionClient, key: &str) -> Option<String> {
    let ts = client.current_timestamp().await.unwrap();
    let mut snapshot = client.snapshot(ts, optimistic());
    let found = snapshot.get(key.to_owned()).await.unwrap();
    found.map(|value| String::from_utf8(value).unwrap())
}

fn keys(found: impl Iterator<Item = Key>) -> Vec<String> {
    found
        .map(|key| String::from_utf8(key.into()).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_read() {
    let cluster = cluster(&["h", "p"]).await;
    let client = client(&cluster).await;
    for (turn, options) in ways().into_iter().enumerate() {
        let mut txn = client.begin_with_options(options.clone()).await.unwrap();
        for key in ["a", "k", "z"] {
            txn.put(key.to_owned(), format!("{key}{turn}"))
                .await
                .unwrap();
        }
        txn.delete("gone".to_owned()).await.unwrap();
        assert_eq!(
            txn.get("k".to_owned()).await.unwrap(),
            Some(format!("k{turn}").into_bytes())
        );
        let commit_ts = txn.commit().await.unwrap();
        assert!(commit_ts.is_some(), "{options:?}");
        for key in ["a", "k", "z"] {
            assert_eq!(
                get(&client, key).await,
                Some(format!("{key}{turn}")),
                "{options:?}"
            );
        }
        assert_eq!(get(&client, "gone").await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_does_not_move() {
    let cluster = cluster(&["k05"]).await;
    let client = client(&cluster).await;
    let write = |value: &'static str| {
        let client = client.clone();
        async move {
            let mut txn = client.begin_optimistic().await.unwrap();
            for n in 0..10 {
                txn.put(format!("k{n:02}"), value).await.unwrap();
            }
            txn.commit().await.unwrap();
        }
    };
    write("old").await;
    let ts = client.current_timestamp().await.unwrap();
    write("new").await;
    let mut then = client.snapshot(ts, optimistic());
    let found: Vec<_> = then.scan("k".to_owned().., 100).await.unwrap().collect();
    assert_eq!(found.len(), 10);
    assert!(found.iter().all(|pair| pair.1 == b"old"), "{found:?}");
    assert_eq!(get(&client, "k03").await.as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_both_ways_with_buffered_changes() {
    let cluster = cluster(&["k10", "k20"]).await;
    let client = client(&cluster).await;
    let mut txn = client.begin_optimistic().await.unwrap();
    for n in 0..30 {
        txn.put(format!("k{n:02}"), format!("v{n}")).await.unwrap();
    }
    txn.commit().await.unwrap();

    let mut txn = client.begin_optimistic().await.unwrap();
    txn.delete("k12".to_owned()).await.unwrap();
    txn.put("k125".to_owned(), "between").await.unwrap();
    let range = || "k08".to_owned().."k22".to_owned();
    let mut expected: Vec<String> = (8..22)
        .filter(|n| *n != 12)
        .map(|n| format!("k{n:02}"))
        .collect();
    expected.push("k125".to_owned());
    expected.sort();
    assert_eq!(keys(txn.scan_keys(range(), 100).await.unwrap()), expected);
    expected.reverse();
    assert_eq!(
        keys(txn.scan_keys_reverse(range(), 100).await.unwrap()),
        expected
    );
    let batch = txn
        .batch_get(["k01", "k12", "k125", "k29"].map(str::to_owned))
        .await
        .unwrap();
    assert_eq!(keys(batch.map(|pair| pair.0)).len(), 3);
    txn.rollback().await.unwrap();
    assert_eq!(get(&client, "k12").await.as_deref(), Some("v12"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction() {
    let cluster = cluster(&["k0500", "k1000", "k1500"]).await;
    let client = client(&cluster).await;
    for options in [optimistic(), pessimistic(), optimistic().use_async_commit()] {
        let mut txn = client.begin_with_options(options).await.unwrap();
        let value = vec![b'x'; 512];
        for n in 0..2000 {
            txn.put(format!("k{n:04}"), value.clone()).await.unwrap();
        }
        txn.commit().await.unwrap();
        let ts = client.current_timestamp().await.unwrap();
        let mut snapshot = client.snapshot(ts, optimistic());
        let found: Vec<_> = snapshot
            .scan("k".to_owned().., 5000)
            .await
            .unwrap()
            .collect();
        assert_eq!(found.len(), 2000);
        assert!(found.iter().all(|pair| pair.1 == value));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_optimistic_writers_one_fails() {
    let cluster = cluster(&[]).await;
    let client = client(&cluster).await;
    let no_retry = || optimistic().retry_options(RetryOptions::none());
    let mut first = client.begin_with_options(no_retry()).await.unwrap();
    let mut second = client.begin_with_options(no_retry()).await.unwrap();
    first.put("k".to_owned(), "first").await.unwrap();
    second.put("k".to_owned(), "second").await.unwrap();
    first.commit().await.unwrap();
    let error = second.commit().await.unwrap_err();
    assert!(conflicts(&error), "{error:?}");
    assert_eq!(get(&client, "k").await.as_deref(), Some("first"));
}

fn conflicts(error: &Error) -> bool {
    match error {
        Error::KeyError(error) => error.conflict.is_some(),
        Error::ExtractedErrors(errors) | Error::MultipleKeyErrors(errors) => {
            errors.iter().any(conflicts)
        }
        Error::PessimisticLockError { inner, .. } => conflicts(inner),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inserted_key_must_not_exist() {
    let cluster = cluster(&[]).await;
    let client = client(&cluster).await;
    for options in [optimistic(), pessimistic()] {
        let name = if options.is_pessimistic() { "p" } else { "o" };
        let mut txn = client.begin_with_options(options.clone()).await.unwrap();
        txn.insert(name.to_owned(), "1").await.unwrap();
        txn.commit().await.unwrap();
        let mut txn = client.begin_with_options(options).await.unwrap();
        let inserted = txn.insert(name.to_owned(), "2").await;
        let ended = match inserted {
            Ok(()) => txn.commit().await.map(|_| ()),
            Err(error) => {
                txn.rollback().await.unwrap();
                Err(error)
            }
        };
        assert!(ended.is_err());
        assert_eq!(get(&client, name).await.as_deref(), Some("1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pessimistic_increments_are_not_lost() {
    let cluster = cluster(&["n"]).await;
    let client = Arc::new(client(&cluster).await);
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    while !increment(&client).await {}
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(get(&client, "n").await.as_deref(), Some("60"));
}

/// `false` if another transaction was in the way and nothing has been done.
async fn increment(client: &TransactionClient) -> bool {
    let mut txn = client.begin_with_options(pessimistic()).await.unwrap();
    match try_increment(&mut txn).await {
        Ok(()) => txn.commit().await.is_ok(),
        Err(_) => {
            txn.rollback().await.unwrap();
            false
        }
    }
}

async fn try_increment(txn: &mut Transaction) -> Result<(), Error> {
    let seen = txn.get_for_update("n".to_owned()).await?;
    let count: u64 = seen.map_or(0, |seen| String::from_utf8(seen).unwrap().parse().unwrap());
    txn.put("n".to_owned(), (count + 1).to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_keys_keep_writers_away() {
    let cluster = cluster(&["m"]).await;
    let client = client(&cluster).await;
    let mut holder = client.begin_with_options(pessimistic()).await.unwrap();
    holder
        .lock_keys(["a", "z"].map(str::to_owned))
        .await
        .unwrap();
    assert!(holder.send_heart_beat().await.unwrap() > 0);

    let mut other = client
        .begin_with_options(optimistic().retry_options(RetryOptions::none()))
        .await
        .unwrap();
    other.put("z".to_owned(), "stolen").await.unwrap();
    assert!(other.commit().await.is_err());

    holder.put("a".to_owned(), "mine").await.unwrap();
    holder.commit().await.unwrap();
    assert_eq!(get(&client, "a").await.as_deref(), Some("mine"));
    assert_eq!(get(&client, "z").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_left_behind_are_found_and_resolved() {
    let cluster = cluster(&["m"]).await;
    let client = client(&cluster).await;
    let mut txn = client.begin_optimistic().await.unwrap();
    txn.put("a".to_owned(), "before").await.unwrap();
    txn.commit().await.unwrap();

    // A client that dies between the two phases, as the cluster sees it.
    let start_ts = cluster.with(|cluster, now_ms| cluster.pd_mut().next_tso(now_ms));
    tikv_peers::leave_locks(&cluster, start_ts, &["a", "b", "x"]);

    let bound = client.current_timestamp().await.unwrap();
    let locks = client.scan_locks(&bound, .., 100).await.unwrap();
    assert_eq!(locks.len(), 3, "{locks:?}");

    // Their time is over, so a reader rolls the transaction back.
    assert_eq!(get(&client, "a").await.as_deref(), Some("before"));
    assert_eq!(get(&client, "x").await, None);
    let bound = client.current_timestamp().await.unwrap();
    client
        .cleanup_locks(.., &bound, Default::default())
        .await
        .unwrap();
    assert!(client.scan_locks(&bound, .., 100).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_safe_point_is_set_by_collecting_garbage() {
    let cluster = cluster(&["m"]).await;
    let client = client(&cluster).await;
    let safe_point = client.current_timestamp().await.unwrap();
    // This client moves only the second of two points. PD keeps that one behind the first, which
    // the program that collects garbage moves.
    let refused = client.gc(safe_point.clone()).await.unwrap_err();
    let code = "PD:gc:ErrGCSafePointExceedsTxnSafePoint";
    assert!(refused.to_string().contains(code), "{refused}");

    let target = safe_point.version();
    cluster.with(|cluster, _| cluster.pd_mut().gc_mut().txn_safe_point = target);
    assert!(client.gc(safe_point).await.unwrap());
    let set = cluster.with(|cluster, _| cluster.pd().gc().gc_safe_point);
    assert_eq!(set, target);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_while_regions_change() {
    let cluster = cluster(&["k10"]).await;
    let client = client(&cluster).await;
    for (turn, split) in ["k05", "k15", "k17"].into_iter().enumerate() {
        let mut txn = client.begin_pessimistic().await.unwrap();
        for n in 0..20 {
            txn.put(format!("k{n:02}"), format!("v{turn}"))
                .await
                .unwrap();
        }
        cluster.split(split.as_bytes());
        for (place, region) in cluster.regions().into_iter().enumerate() {
            cluster.transfer_leader(region, (place + turn) as u64 % 3 + 1);
        }
        txn.commit().await.unwrap();
        let ts = client.current_timestamp().await.unwrap();
        let mut snapshot = client.snapshot(ts, optimistic());
        let found: Vec<_> = snapshot
            .scan("k".to_owned().., 100)
            .await
            .unwrap()
            .collect();
        assert_eq!(found.len(), 20);
        assert!(
            found
                .iter()
                .all(|pair| pair.1 == format!("v{turn}").into_bytes())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_destroyed() {
    let cluster = cluster(&["k10"]).await;
    let client = client(&cluster).await;
    let mut txn = client.begin_optimistic().await.unwrap();
    for n in 0..20 {
        txn.put(format!("k{n:02}"), "v").await.unwrap();
    }
    txn.commit().await.unwrap();
    client
        .unsafe_destroy_range("k05".to_owned().."k15".to_owned())
        .await
        .unwrap();
    assert_eq!(get(&client, "k04").await.as_deref(), Some("v"));
    assert_eq!(get(&client, "k05").await, None);
    assert_eq!(get(&client, "k14").await, None);
    assert_eq!(get(&client, "k15").await.as_deref(), Some("v"));
}
