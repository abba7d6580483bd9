//! One suite for every driver: the whole public API, once, against a cluster that is empty.
//!
//! Each check leaves its own keys behind, under a prefix of its own. A check panics where the
//! driver, or the protocol under it, does not keep its word.

use std::time::Duration;

use tikv_core::driver::Driver;
use tikv_core::{
    Error, Key, KeyRange, KvPair, RawClient, Result, Timestamp, TransactionClient,
    TransactionOptions,
};

/// Transactions, snapshots and scans.
pub async fn transactions<D: Driver>(client: &TransactionClient<D>) -> Result<()> {
    client.ready(Duration::from_secs(10)).await?;
    reads_and_writes(client).await?;
    conflicts(client).await?;
    inserts(client).await?;
    scans(client).await?;
    savepoints(client).await?;
    large(client).await?;
    closures(client).await?;
    deadlines(client).await
}

/// Raw key-value.
pub async fn raw<D: Driver>(client: &RawClient<D>) -> Result<()> {
    client.ready(Duration::from_secs(10)).await?;
    assert_eq!(client.get("raw/a").await?, None);
    client.put("raw/a", "1").await?;
    client.put("raw/empty", "").await?;
    assert_eq!(client.get("raw/a").await?.as_deref(), Some(&b"1"[..]));
    assert_eq!(client.get("raw/empty").await?.as_deref(), Some(&b""[..]));

    let pairs: Vec<_> = (0..600)
        .map(|n| (format!("raw/many/{n:03}"), n.to_string()))
        .collect();
    client.batch_put(pairs.clone()).await?;
    let asked = ["raw/many/599", "raw/none", "raw/many/000", "raw/many/599"];
    let found = client.batch_get(asked).await?;
    let found: Vec<_> = found.iter().map(Option::as_deref).collect();
    assert_eq!(found, [Some(&b"599"[..]), None, Some(b"0"), Some(b"599")]);

    let rows = client.scan(KeyRange::prefix("raw/many/"), 1000).await?;
    assert_eq!(rows.len(), 600);
    assert!(rows.windows(2).all(|pair| pair[0].key() < pair[1].key()));
    let last = client
        .scan_reverse(KeyRange::prefix("raw/many/"), 2)
        .await?;
    let keys: Vec<_> = last.iter().map(|row| row.key().to_string()).collect();
    assert_eq!(keys, ["raw/many/599", "raw/many/598"]);
    let keys = client
        .scan_keys("raw/many/010"..="raw/many/012", 10)
        .await?;
    assert_eq!(
        keys,
        ["raw/many/010", "raw/many/011", "raw/many/012"].map(Key::from)
    );
    let too_many = client.scan(.., u32::MAX).await;
    assert!(
        matches!(too_many, Err(Error::InvalidArgument { .. })),
        "{too_many:?}"
    );

    client.delete("raw/a").await?;
    client
        .batch_delete(["raw/many/000", "raw/many/001"])
        .await?;
    client.delete_range("raw/many/100"..).await?;
    assert_eq!(client.get("raw/a").await?, None);
    assert_eq!(
        client
            .scan(KeyRange::prefix("raw/many/"), 1000)
            .await?
            .len(),
        98
    );
    Ok(())
}

async fn reads_and_writes<D: Driver>(client: &TransactionClient<D>) -> Result<()> {
    let before = client.snapshot().await?;
    let txn = client.begin().await?;
    assert_eq!(txn.get("rw/a").await?, None);
    txn.put("rw/a", "1").await?;
    txn.put("rw/b", "2").await?;
    txn.put("rw/gone", "3").await?;
    txn.delete("rw/gone").await?;
    assert_eq!(
        txn.get("rw/a").await?.as_deref(),
        Some(&b"1"[..]),
        "its own write"
    );
    assert_eq!(txn.get("rw/gone").await?, None, "its own deletion");
    let start_ts = txn.start_timestamp();
    let commit_ts = txn
        .commit()
        .await?
        .commit_ts
        .expect("there was something to write");
    assert!(commit_ts > start_ts);

    assert_eq!(before.get("rw/a").await?, None, "a snapshot does not move");
    let after = client.snapshot().await?;
    assert!(after.version() > commit_ts);
    assert!(after.key_exists("rw/a").await?);
    let found = after.batch_get(["rw/b", "rw/none", "rw/a", "rw/b"]).await?;
    let found: Vec<_> = found.iter().map(Option::as_deref).collect();
    assert_eq!(found, [Some(&b"2"[..]), None, Some(b"1"), Some(b"2")]);
    let just_then = client.snapshot_at(commit_ts);
    assert_eq!(just_then.get("rw/b").await?.as_deref(), Some(&b"2"[..]));
    let newest = client.snapshot_at(Timestamp::MAX);
    assert_eq!(newest.get("rw/b").await?.as_deref(), Some(&b"2"[..]));

    let txn = client.begin().await?;
    txn.put("rw/b", "22").await?;
    let found = txn.batch_get(["rw/a", "rw/b"]).await?;
    let found: Vec<_> = found.iter().map(Option::as_deref).collect();
    assert_eq!(found, [Some(&b"1"[..]), Some(b"22")]);
    txn.rollback().await?;
    assert_eq!(
        client.snapshot().await?.get("rw/b").await?.as_deref(),
        Some(&b"2"[..])
    );

    let nothing = client.begin().await?.commit().await?;
    assert_eq!(nothing.commit_ts, None);
    let past = client
        .begin_with(TransactionOptions::optimistic().start_ts(start_ts))
        .await?;
    assert_eq!(past.get("rw/a").await?, None);
    let empty = past.put("rw/empty", "").await;
    assert!(matches!(empty, Err(Error::EmptyValue { .. })), "{empty:?}");
    let huge = past.put("rw/huge", vec![0; 7 << 20]).await;
    assert!(matches!(huge, Err(Error::EntryTooLarge { .. })), "{huge:?}");
    let key = past.put(vec![b'k'; 70_000], "v").await;
    assert!(matches!(key, Err(Error::KeyTooLarge { .. })), "{key:?}");
    Ok(())
}

async fn conflicts<D: Driver>(client: &TransactionClient<D>) -> Result<()> {
    let (first, second) = (client.begin().await?, client.begin().await?);
    first.put("conflict/a", "first").await?;
    second.put("conflict/a", "second").await?;
    first.commit().await?;
    let error = second.commit().await.expect_err("the first was faster");
    assert!(
        error.is_conflict() && error.is_retryable() && !error.is_undetermined(),
        "{error}"
    );
    assert!(matches!(error, Error::WriteConflict(_)), "{error}");
    let value = client.snapshot().await?.get("conflict/a").await?;
    assert_eq!(value.as_deref(), Some(&b"first"[..]));

    // A key that is only read does not conflict, unless it is read for update.
    let reader = client.begin().await?;
    reader.get("conflict/a").await?;
    reader.put("conflict/b", "b").await?;
    let locker = client.begin().await?;
    locker.get_for_update("conflict/a").await?;
    locker.put("conflict/c", "c").await?;
    put(client, "conflict/a", "third").await?;
    reader.commit().await?;
    let error = locker
        .commit()
        .await
        .expect_err("what it decided by has changed");
    assert!(error.is_conflict(), "{error}");
    Ok(())
}

async fn inserts<D: Driver>(client: &TransactionClient<D>) -> Result<()> {
    let txn = client.begin().await?;
    txn.insert("insert/a", "1").await?;
    let twice = txn.insert("insert/a", "2").await;
    assert!(matches!(twice, Err(Error::KeyExists { .. })), "{twice:?}");
    txn.commit().await?;
    let txn = client.begin().await?;
    txn.insert("insert/a", "2").await?;
    let error = txn.commit().await.expect_err("it is there");
    assert_eq!(
        error,
        Error::KeyExists {
            key: "insert/a".into()
        }
    );
    let txn = client.begin().await?;
    txn.delete("insert/a").await?;
    txn.insert("insert/a", "3").await?;
    txn.commit().await?;
    let value = client.snapshot().await?.get("insert/a").await?;
    assert_eq!(value.as_deref(), Some(&b"3"[..]));
    Ok(())
}

async fn scans<D: Driver>(client: &TransactionClient<D>) -> Result<()> {
    let txn = client.begin().await?;
    for n in 0..100 {
        txn.put(format!("scan/{n:02}"), n.to_string()).await?;
    }
    txn.commit().await?;
    let range = || KeyRange::prefix("scan/");
    let keys = |rows: &[KvPair]| {
        rows.iter()
            .map(|row| row.key().to_string())
            .collect::<Vec<_>>()
    };

    let snapshot = client.snapshot().await?;
    let rows = snapshot.scan(range()).page_size(7).into_vec().await?;
    let expected: Vec<_> = (0..100).map(|n| format!("scan/{n:02}")).collect();
    assert_eq!(keys(&rows), expected);
    assert_eq!(rows[42].value(), "42");
    let mut rows = snapshot
        .scan(range())
        .reverse()
        .page_size(9)
        .into_vec()
        .await?;
    rows.reverse();
    assert_eq!(keys(&rows), expected);
    let rows = snapshot
        .scan("scan/10".."scan/20")
        .keys_only()
        .limit(3)
        .into_vec()
        .await?;
    assert_eq!(keys(&rows), ["scan/10", "scan/11", "scan/12"]);
    assert!(rows.iter().all(|row| row.value().is_empty()));
    assert_eq!(snapshot.scan("b".."a").into_vec().await?, []);

    // A transaction sees its own writes between the others.
    let txn = client.begin().await?;
    txn.delete("scan/11").await?;
    txn.put("scan/115", "new").await?;
    txn.put("scan/12", "changed").await?;
    let seen = ["scan/10", "scan/115", "scan/12", "scan/13"];
    let rows = txn
        .scan("scan/10".."scan/14")
        .page_size(1)
        .into_vec()
        .await?;
    assert_eq!(keys(&rows), seen);
    assert_eq!(rows[2].value(), "changed");
    let mut rows = txn
        .scan("scan/10".."scan/14")
        .reverse()
        .page_size(2)
        .into_vec()
        .await?;
    rows.reverse();
    assert_eq!(keys(&rows), seen);
    txn.rollback().await
}

async fn savepoints<D: Driver>(client: &TransactionClient<D>) -> Result<()> {
    let txn = client.begin().await?;
    txn.put("save/a", "1").await?;
    let outer = txn.savepoint();
    txn.put("save/a", "2").await?;
    txn.put("save/b", "2").await?;
    let inner = txn.savepoint();
    txn.delete("save/a").await?;
    txn.rollback_to(inner)?;
    assert_eq!(txn.get("save/a").await?.as_deref(), Some(&b"2"[..]));
    txn.rollback_to(outer)?;
    assert_eq!(txn.get("save/a").await?.as_deref(), Some(&b"1"[..]));
    assert_eq!(txn.get("save/b").await?, None);
    txn.commit().await?;
    assert!(!client.snapshot().await?.key_exists("save/b").await?);
    Ok(())
}

/// Many keys in many regions and batches, of which all or none are there.
async fn large<D: Driver>(client: &TransactionClient<D>) -> Result<()> {
    let txn = client.begin().await?;
    for n in 0..500 {
        txn.put(
            format!("{}/large/{n}", (b'a' + (n % 26) as u8) as char),
            vec![b'v'; 200],
        )
        .await?;
    }
    txn.commit().await?;
    let snapshot = client.snapshot().await?;
    let keys = (0..500).map(|n| format!("{}/large/{n}", (b'a' + (n % 26) as u8) as char));
    let found = snapshot.batch_get(keys).await?;
    assert!(
        found
            .iter()
            .all(|value| value.as_ref().is_some_and(|value| value.len() == 200))
    );
    assert!(client.warm_up(..).await? >= 1);
    Ok(())
}

async fn closures<D: Driver>(client: &TransactionClient<D>) -> Result<()> {
    put(client, "count", "0").await?;
    // The closure is repeated when another transaction gets in between.
    let mut tries = 0;
    let total: u64 = client
        .transact(|txn| {
            tries += 1;
            let first = tries == 1;
            async move {
                let count = number(txn.get_for_update("count").await?);
                if first {
                    put(client, "count", "41").await?;
                }
                txn.put("count", (count + 1).to_string()).await?;
                Ok::<_, Error>(count + 1)
            }
        })
        .await?;
    assert_eq!((total, tries), (42, 2));
    // What the closure fails with itself ends it.
    let failed: Result<(), Error> = client
        .transact(async |txn| {
            txn.put("count", "nothing").await?;
            Err(Error::TransactionEnded)
        })
        .await;
    assert_eq!(failed, Err(Error::TransactionEnded));
    assert_eq!(number(client.snapshot().await?.get("count").await?), 42);
    Ok(())
}

async fn deadlines<D: Driver>(client: &TransactionClient<D>) -> Result<()> {
    // Nothing is so fast; and a deadline that has passed is no reason to hang.
    let hurried = client.with_timeout(Duration::ZERO);
    let error = hurried.begin().await.expect_err("no time at all");
    let kinds = [
        tikv_core::ErrorKind::DeadlineExceeded,
        tikv_core::ErrorKind::Unavailable,
    ];
    assert!(kinds.contains(&error.kind()), "{error}");
    client.snapshot().await?.get("still usable").await?;
    Ok(())
}

async fn put<D: Driver>(
    client: &TransactionClient<D>,
    key: &'static str,
    value: &'static str,
) -> Result<()> {
    let txn = client.begin().await?;
    txn.put(key, value).await?;
    txn.commit().await?;
    Ok(())
}

fn number(value: Option<impl AsRef<[u8]>>) -> u64 {
    let text = value.map(|value| String::from_utf8_lossy(value.as_ref()).into_owned());
    text.and_then(|text| text.parse().ok()).expect("a number")
}
