//! Raw work of the client `tikv-client` on the simulated cluster.
//!
//! A scan of this client begins anew at the first key when its range ends inside the last region,
//! and stops with the first region when its range has no end. Ranges here end where a region does.

use std::collections::BTreeMap;

use tikv_client::{KvPair, RawClient};
use tikv_io_mock::serve::ServedCluster;
use tikv_peers::raw_cluster;

async fn client(cluster: &ServedCluster) -> RawClient {
    RawClient::new(cluster.pd_endpoints()).await.unwrap()
}

fn text(pairs: Vec<KvPair>) -> Vec<(String, String)> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    pairs
        .into_iter()
        .map(|pair| (text(pair.0.into()), text(pair.1)))
        .collect()
}

fn numbered(range: std::ops::Range<u32>) -> impl Iterator<Item = (String, String)> {
    range.map(|n| (format!("k{n:04}"), format!("v{n}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn single_keys() {
    let cluster = raw_cluster(&["b", "l"]).await;
    let client = client(&cluster).await;
    assert_eq!(client.get("a".to_owned()).await.unwrap(), None);
    for key in ["a", "b", "c"] {
        client.put(key.to_owned(), format!("{key}1")).await.unwrap();
    }
    assert_eq!(
        client.get("b".to_owned()).await.unwrap(),
        Some(b"b1".to_vec())
    );
    client.put("b".to_owned(), "b2").await.unwrap();
    assert_eq!(
        client.get("b".to_owned()).await.unwrap(),
        Some(b"b2".to_vec())
    );
    client.delete("b".to_owned()).await.unwrap();
    client.delete("b".to_owned()).await.unwrap();
    assert_eq!(client.get("b".to_owned()).await.unwrap(), None);
    assert_eq!(
        client.get("c".to_owned()).await.unwrap(),
        Some(b"c1".to_vec())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_over_several_regions() {
    let cluster = raw_cluster(&["k0100", "k0200", "k0300", "l"]).await;
    let client = client(&cluster).await;
    client.batch_put(numbered(0..400)).await.unwrap();
    let keys: Vec<String> = numbered(0..400).map(|(key, _)| key).step_by(7).collect();
    let found: BTreeMap<_, _> = text(client.batch_get(keys.clone()).await.unwrap())
        .into_iter()
        .collect();
    let expected: BTreeMap<_, _> = numbered(0..400).step_by(7).collect();
    assert_eq!(found, expected);

    client.batch_delete(keys.clone()).await.unwrap();
    assert!(client.batch_get(keys).await.unwrap().is_empty());
    let left = client
        .scan("k".to_owned().."l".to_owned(), 1000)
        .await
        .unwrap();
    assert_eq!(left.len(), 400 - expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_over_several_regions() {
    let cluster = raw_cluster(&["k0100", "k0200", "l"]).await;
    let client = client(&cluster).await;
    client.batch_put(numbered(0..300)).await.unwrap();

    let range = || "k0050".to_owned().."k0250".to_owned();
    let forwards = text(client.scan(range(), 1000).await.unwrap());
    assert_eq!(forwards, numbered(50..250).collect::<Vec<_>>());
    let first = text(client.scan(range(), 60).await.unwrap());
    assert_eq!(first, numbered(50..110).collect::<Vec<_>>());
    let keys = client.scan_keys(range(), 1000).await.unwrap();
    assert_eq!(keys.len(), 200);

    // Within one region: across several, this client takes the parts in the wrong order.
    let inner = || "k0110".to_owned().."k0190".to_owned();
    let mut backwards = text(client.scan_reverse(inner(), 30).await.unwrap());
    backwards.reverse();
    assert_eq!(backwards, numbered(160..190).collect::<Vec<_>>());

    let ranges = vec![
        "k0000".to_owned().."k0010".to_owned(),
        "k0150".to_owned().."k0160".to_owned(),
    ];
    let each = client.batch_scan(ranges, 3).await.unwrap();
    let starts: Vec<_> = text(each).into_iter().map(|(key, _)| key).collect();
    assert_eq!(
        starts,
        ["k0000", "k0001", "k0002", "k0150", "k0151", "k0152"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_deleted() {
    let cluster = raw_cluster(&["k0100", "l"]).await;
    let client = client(&cluster).await;
    client.batch_put(numbered(0..200)).await.unwrap();
    client
        .delete_range("k0010".to_owned().."k0190".to_owned())
        .await
        .unwrap();
    let left = text(
        client
            .scan("k".to_owned().."l".to_owned(), 1000)
            .await
            .unwrap(),
    );
    let expected: Vec<_> = numbered(0..10).chain(numbered(190..200)).collect();
    assert_eq!(left, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn compare_and_swap() {
    let cluster = raw_cluster(&["l"]).await;
    let client = client(&cluster).await.with_atomic_for_cas();
    let swap = |old: Option<&str>, new: &str| {
        let old = old.map(|old| old.as_bytes().to_vec());
        client.compare_and_swap("cas".to_owned(), old, new.as_bytes().to_vec())
    };
    assert_eq!(swap(None, "1").await.unwrap(), (None, true));
    assert_eq!(swap(None, "2").await.unwrap(), (Some(b"1".to_vec()), false));
    assert_eq!(
        swap(Some("1"), "2").await.unwrap(),
        (Some(b"1".to_vec()), true)
    );
    assert_eq!(
        client.get("cas".to_owned()).await.unwrap(),
        Some(b"2".to_vec())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn increments_by_swapping_are_not_lost() {
    let cluster = raw_cluster(&["l"]).await;
    let client = client(&cluster).await.with_atomic_for_cas();
    client.put("n".to_owned(), "0").await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    let mut seen = client.get("n".to_owned()).await.unwrap();
                    loop {
                        let count: u64 = String::from_utf8(seen.clone().unwrap())
                            .unwrap()
                            .parse()
                            .unwrap();
                        let more = (count + 1).to_string().into_bytes();
                        match client
                            .compare_and_swap("n".to_owned(), seen, more)
                            .await
                            .unwrap()
                        {
                            (_, true) => break,
                            (now, false) => seen = now,
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(
        client.get("n".to_owned()).await.unwrap(),
        Some(b"160".to_vec())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_while_regions_change() {
    let cluster = raw_cluster(&["k0100", "l"]).await;
    let client = client(&cluster).await;
    client.batch_put(numbered(0..200)).await.unwrap();
    for key in ["k0050", "k0150", "k0175"] {
        cluster.split_raw(key.as_bytes());
        let found = client
            .scan("k".to_owned().."l".to_owned(), 1000)
            .await
            .unwrap();
        assert_eq!(found.len(), 200);
        for (turn, region) in cluster.regions().into_iter().enumerate() {
            cluster.transfer_leader(region, turn as u64 % 3 + 1);
        }
        client.put(key.to_owned(), "again").await.unwrap();
        assert_eq!(
            client.get(key.to_owned()).await.unwrap(),
            Some(b"again".to_vec())
        );
    }
}
