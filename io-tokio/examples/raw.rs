//! Raw key-value: no transactions, no versions, each call by itself.
//!
//! ```text
//! cargo run --example raw                     # on an embedded cluster
//! cargo run --example raw -- 127.0.0.1:2379   # on a real one
//! ```

#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use tikv_io_tokio::{Connect, KeyRange, RawClient};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let target = support::Target::new(support::pd_from_args()).await?;
    let client = RawClient::connect(target.pd.clone()).await?;

    client.put("city/ber", "Berlin").await?;
    client
        .batch_put([("city/osl", "Oslo"), ("city/par", "Paris")])
        .await?;
    println!("city/osl = {:?}", client.get("city/osl").await?);
    println!(
        "both = {:?}",
        client.batch_get(["city/par", "city/rom"]).await?
    );

    for row in client.scan(KeyRange::prefix("city/"), 100).await? {
        println!("{} = {}", row.key(), String::from_utf8_lossy(row.value()));
    }
    let last = client
        .scan_keys_reverse(KeyRange::prefix("city/"), 1)
        .await?;
    println!("the last key is {last:?}");

    client.delete_range(KeyRange::prefix("city/")).await?;
    assert_eq!(client.get("city/ber").await?, None);
    client.close(Duration::from_secs(5)).await;
    Ok(())
}
