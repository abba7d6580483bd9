//! The suite for a real cluster, which `PD_ADDRS` names: `host:port`, several separated by commas.
//!
//! Without it every test returns at once, with a note. All keys stand under prefixes that are
//! removed first, so that the suite can be run again on the same cluster; no range without an end
//! is written or deleted.

use std::time::Duration;

use tikv_core::driver::Driver;
use tikv_io_tokio::{Connect, Error, KeyRange, RawClient, Result, TransactionClient};
use tikv_tests::conformance;

/// Where PD is; `None`, and a note, if nobody says.
fn pd() -> Option<Vec<String>> {
    match std::env::var("PD_ADDRS") {
        Ok(addresses) if !addresses.trim().is_empty() => Some(
            addresses
                .split(',')
                .map(|address| address.trim().to_owned())
                .collect(),
        ),
        _ => {
            println!("PD_ADDRS is not set: no real cluster, nothing tested");
            None
        }
    }
}

const READY: Duration = Duration::from_secs(60);

async fn connect(pd: Vec<String>) -> Result<TransactionClient> {
    let client = TransactionClient::connect(pd).await?;
    client.ready(READY).await?;
    Ok(client)
}

/// Deletes what an earlier run has left.
async fn remove(client: &TransactionClient, range: KeyRange) -> Result<()> {
    loop {
        let rows = client
            .snapshot()
            .await?
            .scan(range.clone())
            .keys_only()
            .limit(500);
        let keys = rows.into_vec().await?;
        if keys.is_empty() {
            return Ok(());
        }
        let txn = client.begin().await?;
        for row in &keys {
            txn.delete(row.key()).await?;
        }
        txn.commit().await?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_of_all_drivers() -> Result<()> {
    let Some(pd) = pd() else { return Ok(()) };
    let client = connect(pd).await?;
    for prefix in ["rw/", "conflict/", "insert/", "scan/", "save/", "count"] {
        remove(&client, KeyRange::prefix(prefix)).await?;
    }
    for letter in 'a'..='z' {
        remove(&client, KeyRange::prefix(format!("{letter}/large/"))).await?;
    }
    conformance::transactions(&client).await?;
    let closed = client.close(Duration::from_secs(20)).await;
    assert_eq!(closed.left, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_increment_is_lost() -> Result<()> {
    const CALLERS: u64 = 8;
    const EACH: u64 = 25;
    let Some(pd) = pd() else { return Ok(()) };
    let client = connect(pd).await?;
    let key = "real/counter";
    remove(&client, KeyRange::prefix(key)).await?;
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut done = (0, 0);
                for _ in 0..EACH {
                    match increment(&client, key).await {
                        Ok(()) => done.0 += 1,
                        // It may or may not have happened.
                        Err(error) if error.is_undetermined() => done.1 += 1,
                        Err(error) => return Err(error),
                    }
                }
                Ok(done)
            })
        })
        .collect();
    let (mut certain, mut uncertain) = (0, 0);
    for caller in callers {
        let done = caller.await.expect("no caller panics")?;
        certain += done.0;
        uncertain += done.1;
    }
    let found = client.snapshot().await?.get(key).await?;
    let found = number(found.as_deref());
    assert!(
        (certain..=certain + uncertain).contains(&found),
        "{found} of {certain}"
    );
    Ok(())
}

async fn increment<D: Driver>(client: &tikv_core::TransactionClient<D>, key: &str) -> Result<()> {
    client
        .transact(async |txn| {
            let count = number(txn.get_for_update(key).await?.as_deref());
            txn.put(key, (count + 1).to_string()).await?;
            Ok::<_, Error>(())
        })
        .await
}

fn number(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |value| {
        String::from_utf8_lossy(value).parse().expect("a number")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn long_scans_are_complete_in_both_directions() -> Result<()> {
    const ROWS: usize = 3_000;
    let Some(pd) = pd() else { return Ok(()) };
    let client = connect(pd).await?;
    let range = || KeyRange::prefix("real/rows/");
    remove(&client, range()).await?;
    for first in (0..ROWS).step_by(500) {
        let txn = client.begin().await?;
        for row in first..first + 500 {
            txn.put(format!("real/rows/{row:06}"), row.to_string())
                .await?;
        }
        txn.commit().await?;
    }
    let snapshot = client.snapshot().await?;
    let rows = snapshot.scan(range()).into_vec().await?;
    assert_eq!(rows.len(), ROWS);
    assert!(rows.windows(2).all(|pair| pair[0].key() < pair[1].key()));
    let mut reversed = snapshot
        .scan(range())
        .reverse()
        .page_size(77)
        .into_vec()
        .await?;
    reversed.reverse();
    assert_eq!(reversed, rows);
    remove(&client, range()).await?;
    assert_eq!(client.snapshot().await?.scan(range()).into_vec().await?, []);
    assert_eq!(
        snapshot.scan(range()).into_vec().await?.len(),
        ROWS,
        "a snapshot does not move"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_calls() -> Result<()> {
    let Some(pd) = pd() else { return Ok(()) };
    let client = RawClient::connect(pd).await?;
    client.ready(READY).await?;
    let all = || KeyRange::prefix("real/raw/");
    client.delete_range(all()).await?;
    assert_eq!(client.scan(all(), 10).await?, []);

    let key = |n: usize| format!("real/raw/{n:04}");
    client
        .batch_put((0..1_000).map(|n| (key(n), n.to_string())))
        .await?;
    client.put(key(1), "").await?;
    let found = client
        .batch_get([key(999), key(1), key(5_000), key(999)])
        .await?;
    let found: Vec<_> = found.iter().map(Option::as_deref).collect();
    assert_eq!(found, [Some(&b"999"[..]), Some(b""), None, Some(b"999")]);

    assert_eq!(client.scan(all(), 10_000).await?.len(), 1_000);
    let last = client.scan_keys_reverse(all(), 2).await?;
    assert_eq!(last, [key(999).into(), key(998).into()]);
    client.delete(key(0)).await?;
    client.batch_delete([key(2), key(3)]).await?;
    client.delete_range(key(500)..key(1_000)).await?;
    assert_eq!(client.scan(all(), 10_000).await?.len(), 497);
    client.delete_range(all()).await?;
    client.close(Duration::from_secs(5)).await;
    Ok(())
}
