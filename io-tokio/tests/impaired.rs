//! The clients against a served cluster that is kept from its work: members of PD that come and go,
//! stores that pause, answer in another order and lose replies, saved clusters, TLS.

mod common;

use std::time::Duration;

use common::*;
use tikv_io_mock::serve::ServedCluster;
use tikv_io_tokio::{Connect, Error, RawClient, Result, TransactionClient};
use tokio::task::JoinSet;

/// Adds one to a number and returns it.
async fn count(client: &TransactionClient, key: &str) -> Result<u64> {
    client
        .transact(async |txn| {
            let found = txn.get(key).await?;
            let text = found.as_deref().map(String::from_utf8_lossy);
            let next = text.map_or(0, |text| text.parse::<u64>().unwrap()) + 1;
            txn.put(key, next.to_string()).await?;
            Ok::<_, Error>(next)
        })
        .await
}

#[tokio::test]
async fn leadership_of_pd_moves_and_timestamps_go_on() {
    let builder = ServedCluster::builder().pd_members(3);
    let cluster = builder.start().await.unwrap();
    let client = TransactionClient::connect(cluster.pd_endpoints())
        .await
        .unwrap();
    assert_eq!(count(&client, "k").await.unwrap(), 1);
    cluster.lead_pd(Some(2));
    assert_eq!(count(&client, "k").await.unwrap(), 2);
    // Stopped while it leads: the first of the others takes over.
    cluster.stop_pd_member(2).await;
    assert_eq!(count(&client, "k").await.unwrap(), 3);
    cluster.start_pd_member(2).await.unwrap();
    cluster.lead_pd(None);
    let (counted, ()) = tokio::join!(count(&client, "k"), async {
        tokio::task::yield_now().await;
        cluster.lead_pd(Some(1));
    });
    assert_eq!(counted.unwrap(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_in_any_order_reach_who_asked() {
    let builder = ServedCluster::builder().even_regions(4);
    let cluster = builder.start().await.unwrap();
    for (store, _) in cluster.stores() {
        cluster.shuffle_replies(store, true);
    }
    let client = RawClient::connect(cluster.pd_endpoints()).await.unwrap();
    let mut calls = JoinSet::new();
    for number in 0..200u32 {
        let client = client.clone();
        calls.spawn(async move {
            let key = vec![number as u8, (number >> 8) as u8];
            client.put(key.clone(), number.to_string()).await.unwrap();
            let found = client.get(key).await.unwrap();
            assert_eq!(found.as_deref(), Some(number.to_string().as_bytes()));
        });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
}

#[tokio::test]
async fn a_call_outlives_a_pause() {
    let cluster = serve().await;
    let client = RawClient::connect(cluster.pd_endpoints()).await.unwrap();
    client.put("k", "before").await.unwrap();
    cluster.pause_store(1);
    let mut call = tokio::spawn({
        let client = client.clone();
        async move { client.put("k", "after").await }
    });
    // Long enough for the request to be there, far too short for its deadline.
    let early = tokio::time::timeout(Duration::from_millis(20), &mut call).await;
    assert!(early.is_err(), "{early:?}");
    cluster.resume_store(1);
    call.await.unwrap().unwrap();
    let found = client.get("k").await.unwrap();
    assert_eq!(found.as_deref(), Some(&b"after"[..]));
}

#[tokio::test]
async fn a_saved_cluster_has_what_was_committed_until_then() {
    let cluster = serve().await;
    let client = TransactionClient::connect(cluster.pd_endpoints())
        .await
        .unwrap();
    assert_eq!(count(&client, "k").await.unwrap(), 1);
    let saved = cluster.with(|cluster, _| cluster.save());
    assert_eq!(count(&client, "k").await.unwrap(), 2);
    cluster.stop().await;

    let loaded = tikv_io_mock::cluster::Cluster::load(&saved).unwrap();
    let builder = ServedCluster::builder().from_cluster(loaded);
    let again = builder.start().await.unwrap();
    let client = TransactionClient::connect(again.pd_endpoints())
        .await
        .unwrap();
    assert_eq!(
        count(&client, "k").await.unwrap(),
        2,
        "what came later is gone"
    );
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn connections_to_stores_and_pd_are_encrypted() {
    use tikv_io_tokio::Security;

    let name = format!("tikv-io-tokio-tls-{}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    let builder = ServedCluster::builder().pd_members(2).tls(&directory);
    let cluster = builder.start().await.unwrap();
    let ca = std::fs::read(directory.join("cert.pem")).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    let connect = |security| {
        RawClient::builder()
            .pd(cluster.pd_endpoints())
            .tls(security)
            .connect_timeout(Duration::from_millis(500))
            .connect()
    };
    let client = connect(Security::with_ca(ca.clone())).await.unwrap();
    client.put("k", "v").await.unwrap();
    cluster.lead_pd(Some(1));
    let found = client.get("k").await.unwrap();
    assert_eq!(found.as_deref(), Some(&b"v"[..]));

    let stranger = Security::with_ca(ca).domain("elsewhere");
    assert!(connect(stranger).await.is_err());
    let plain = RawClient::builder()
        .pd(cluster.pd_endpoints())
        .connect_timeout(Duration::from_millis(500));
    assert!(plain.connect().await.is_err());
}
