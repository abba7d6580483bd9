//! No runtime is baked in: the same suite passes on async-std, on tokio and on a bare executor,
//! each over the cluster in this process.

use tikv_core::Result;
use tikv_io_mock::LocalCluster;
use tikv_tests::conformance;

async fn whole_api() -> Result<()> {
    let cluster = LocalCluster::builder()
        .stores(3)
        .regions(["d", "k", "s"])
        .start();
    let client = cluster.transaction_client().await?;
    conformance::transactions(&client).await?;

    let raw_cluster = LocalCluster::builder()
        .stores(3)
        .raw_regions(["raw/many/3", "s"])
        .start();
    conformance::raw(&raw_cluster.raw_client().await?).await?;

    let closed = client.close(std::time::Duration::from_secs(5)).await;
    assert_eq!(closed.left, 0);
    Ok(())
}

#[cfg(feature = "async-std")]
#[test]
fn on_async_std() {
    async_std::task::block_on(async_std::task::spawn(whole_api())).unwrap();
}

#[test]
fn on_tokio() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::spawn(whole_api()).await.unwrap() })
        .unwrap();
}

#[test]
fn on_a_bare_executor() {
    pollster::block_on(whole_api()).unwrap();
}
