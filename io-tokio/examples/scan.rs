//! Long scans: page by page, in both directions, resumed after a stop.
//!
//! ```text
//! cargo run --example scan                     # on an embedded cluster
//! cargo run --example scan -- 127.0.0.1:2379   # on a real one
//! ```

#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use tikv_io_tokio::{Connect, Error, Key, KeyRange, TransactionClient};

const ROWS: usize = 10_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let target = support::Target::new(support::pd_from_args()).await?;
    let client = TransactionClient::connect(target.pd.clone()).await?;
    for first in (0..ROWS).step_by(1000) {
        client
            .transact(async |txn| {
                for n in first..first + 1000 {
                    txn.put(format!("row/{n:05}"), n.to_string()).await?;
                }
                Ok::<_, Error>(())
            })
            .await?;
    }
    if let Some(cluster) = &target.embedded {
        // Scans cross regions without being told.
        cluster.split(b"row/03000");
        cluster.split(b"row/07000");
    }

    let snapshot = client.snapshot().await?;
    let mut rows = snapshot.scan(KeyRange::prefix("row/")).page_size(500);
    let (mut count, mut sum) = (0, 0);
    let mut last = None;
    // Stop in the middle, as a program does that answers page by page.
    while count < ROWS / 2
        && let Some(row) = rows.try_next().await?
    {
        (count, sum) = (count + 1, sum + number(row.value()));
        last = Some(row.key().clone());
    }
    drop(rows);
    println!("half way: {count} rows, up to {last:?}");

    // The rest, from the key after the last one; the snapshot is the same as before.
    let start = last.map_or(Key::from("row/"), |key| key.next());
    let end = Key::from("row/").prefix_end();
    let mut rows = snapshot.scan(KeyRange::new(start, end));
    while let Some(row) = rows.try_next().await? {
        (count, sum) = (count + 1, sum + number(row.value()));
    }
    println!("{count} rows, the sum is {sum}");
    assert_eq!((count, sum), (ROWS, ROWS * (ROWS - 1) / 2));

    let last = snapshot
        .scan(KeyRange::prefix("row/"))
        .reverse()
        .keys_only()
        .limit(3);
    for row in last.into_vec().await? {
        println!("from the end: {}", row.key());
    }
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

fn number(value: &[u8]) -> usize {
    String::from_utf8_lossy(value).parse().unwrap_or(0)
}
