//! The examples of the book's chapter on the simulated cluster, which includes them from here:
//! TiKV in an application's unit tests, on tokio, on async-std, and over gRPC.

// ANCHOR: application
use tikv_core::driver::Driver;
use tikv_core::{Error, Result, TransactionClient};

/// Counts a visit of a page, and says how many there were.
async fn visit<D: Driver>(client: &TransactionClient<D>, page: &str) -> Result<u64> {
    client
        .transact(async |txn| {
            let before = txn.get(page).await?;
            let text = before.as_deref().map(String::from_utf8_lossy);
            let visits = text.map_or(0, |text| text.parse().unwrap_or(0)) + 1;
            txn.put(page, visits.to_string()).await?;
            Ok::<_, Error>(visits)
        })
        .await
}
// ANCHOR_END: application

// ANCHOR: tokio
use tikv_io_mock::LocalCluster;

#[tokio::test]
async fn visits_add_up() -> Result<()> {
    let cluster = LocalCluster::builder().stores(3).start();
    let client = cluster.transaction_client().await?;
    assert_eq!(visit(&client, "page/home").await?, 1);
    assert_eq!(visit(&client, "page/home").await?, 2);
    assert_eq!(visit(&client, "page/help").await?, 1);
    Ok(())
}
// ANCHOR_END: tokio

// ANCHOR: trouble
#[tokio::test]
async fn visits_add_up_while_regions_split_and_leaders_move() -> Result<()> {
    let cluster = LocalCluster::builder().stores(3).start();
    let client = cluster.transaction_client().await?;
    for before in 0..30 {
        assert_eq!(visit(&client, "page/home").await?, before + 1);
        // The second argument is the cluster's clock.
        cluster.with(|cluster, now_ms| {
            let region = cluster.regions().ids().next().expect("there is a region");
            cluster.transfer_leader(now_ms, region, 1 + before % 3);
            let at = tikv_io_mock::cluster::key::encode(format!("page/{before}").as_bytes());
            cluster.split(now_ms, region, &[at]);
        });
    }
    Ok(())
}
// ANCHOR_END: trouble

// ANCHOR: prepared
#[tokio::test]
async fn each_test_begins_with_the_same_data() -> Result<()> {
    let prepared = LocalCluster::builder().stores(3).start();
    let client = prepared.transaction_client().await?;
    visit(&client, "page/home").await?;
    // Bytes, to be kept in a file beside the test.
    let saved = prepared.with(|cluster, _| cluster.save());

    for _ in 0..3 {
        let cluster = tikv_io_mock::cluster::Cluster::load(&saved).expect("it has just been saved");
        let cluster = LocalCluster::builder().from_cluster(cluster).start();
        let client = cluster.transaction_client().await?;
        assert_eq!(visit(&client, "page/home").await?, 2);
    }
    Ok(())
}
// ANCHOR_END: prepared

#[cfg(feature = "async-std")]
mod on_async_std {
    use super::{LocalCluster, Result, visit};

    // ANCHOR: async_std
    #[test]
    fn visits_add_up() -> Result<()> {
        async_std::task::block_on(async {
            let cluster = LocalCluster::builder().stores(3).start();
            let client = cluster.transaction_client().await?;
            let one_visit = |_| {
                let client = client.clone();
                async_std::task::spawn(async move { visit(&client, "page/home").await })
            };
            for visit in (0..8).map(one_visit).collect::<Vec<_>>() {
                visit.await?;
            }
            assert_eq!(visit(&client, "page/home").await?, 9);
            Ok(())
        })
    }
    // ANCHOR_END: async_std
}

// ANCHOR: served
use std::time::Duration;
use tikv_io_mock::serve::ServedCluster;
use tikv_io_tokio::Connect;

#[tokio::test]
async fn visits_add_up_over_grpc() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let cluster = ServedCluster::builder().stores(3).start().await?;
    let client = TransactionClient::connect(cluster.pd_endpoints()).await?;
    assert_eq!(visit(&client, "page/home").await?, 1);

    cluster.slow_store(1, Duration::from_millis(5));
    assert_eq!(visit(&client, "page/home").await?, 2);

    cluster.slow_store(1, Duration::ZERO);
    cluster.stop_store(1).await;
    cluster.fail_over(1);
    assert_eq!(visit(&client, "page/home").await?, 3);

    cluster.start_store(1).await?;
    cluster.stop().await;
    Ok(())
}
// ANCHOR_END: served

// ANCHOR: control
use tikv_io_mock::control::{Outcome, Verb};

#[tokio::test]
async fn a_test_drives_the_cluster_by_verbs() -> std::result::Result<(), Box<dyn std::error::Error>>
{
    let cluster = ServedCluster::builder().stores(3).start().await?;
    let keys = vec!["page/h".into()];
    let split = Verb::Split { keys, raw: false };
    let Outcome::Regions(new) = cluster.control(split).await? else {
        unreachable!("splitting tells the new regions");
    };
    let (region, store) = (new[0], 2);
    cluster
        .control(Verb::TransferLeader { region, store })
        .await?;
    cluster.control(Verb::JumpTso { by_ms: 60_000 }).await?;
    Ok(())
}
// ANCHOR_END: control
