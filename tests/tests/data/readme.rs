//! The README's example, word for word.

use tikv_io_tokio::{Connect, KeyRange, Result, TransactionClient};

#[tokio::main]
async fn main() -> Result<()> {
    let client = TransactionClient::connect(["127.0.0.1:2379"]).await?;

    let txn = client.begin().await?;
    txn.put("stock/7", "41").await?;
    txn.put("stock/8", "3").await?;
    txn.commit().await?;

    let mut rows = client.snapshot().await?.scan(KeyRange::prefix("stock/"));
    while let Some(row) = rows.try_next().await? {
        println!("{} = {}", row.key(), String::from_utf8_lossy(row.value()));
    }
    Ok(())
}
