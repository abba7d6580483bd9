//! Transactions, snapshots and scans in one minute.
//!
//! ```text
//! cargo run --example quickstart                     # on an embedded cluster
//! cargo run --example quickstart -- 127.0.0.1:2379   # on a real one
//! ```

#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use tikv_io_tokio::{Connect, Error, KeyRange, Result, TransactionClient};

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let target = support::Target::new(support::pd_from_args()).await?;
    let client = TransactionClient::connect(target.pd.clone()).await?;

    // Writes stay in memory until the commit, which writes all of them or none.
    let txn = client.begin().await?;
    txn.put("stock/7", "41").await?;
    txn.put("stock/8", "3").await?;
    let committed = txn.commit().await?;
    println!("committed at {:?}", committed.commit_ts);

    // Repeated for as long as other transactions are in the way.
    let left = client
        .transact(async |txn| take_one(&txn, "stock/7").await)
        .await?;
    println!("{left} left of 7");

    // A snapshot never changes, whatever is written after it.
    let snapshot = client.snapshot().await?;
    client
        .transact(async |txn| {
            txn.delete("stock/8").await?;
            Ok::<_, Error>(())
        })
        .await?;
    let mut rows = snapshot.scan(KeyRange::prefix("stock/")).limit(1000);
    while let Some(row) = rows.try_next().await? {
        println!("{} = {}", row.key(), String::from_utf8_lossy(row.value()));
    }
    println!(
        "stock/8 is now {:?}",
        client.snapshot().await?.get("stock/8").await?
    );

    let closed = client.close(Duration::from_secs(5)).await;
    println!("closed, {} commits left behind", closed.left);
    Ok(())
}

/// Takes one off a number, and says what is left.
async fn take_one(txn: &tikv_io_tokio::Transaction, key: &str) -> Result<u64> {
    let stock = txn.get_for_update(key).await?.unwrap_or_default();
    let stock: u64 = String::from_utf8_lossy(&stock)
        .parse()
        .map_err(|_| Error::invalid_argument(format!("{key} holds no number")))?;
    let left = stock.saturating_sub(1);
    txn.put(key, left.to_string()).await?;
    Ok(left)
}
