//! Clients that are not this project's, at work on the simulated cluster over gRPC.
//!
//! The client of `core` and the simulated cluster were written from one reading of the protocol, so
//! a misreading could hide in both. A client written by others has no part in it. What stands in
//! the way of one of them is mended in the cluster, by the rules of the real one, or named in the
//! test; the cluster knows no client.

use bytes::Bytes;
use tikv_io_mock::serve::{ServedCluster, ServedClusterBuilder};
use tikv_proto::kvrpcpb;

/// A cluster of three stores, with regions that begin at these keys of transactions.
pub async fn cluster(split_keys: &[&str]) -> ServedCluster {
    start(ServedCluster::builder().regions(split_keys)).await
}

/// A cluster of three stores, with regions that begin at these raw keys.
pub async fn raw_cluster(split_keys: &[&str]) -> ServedCluster {
    start(ServedCluster::builder().raw_regions(split_keys)).await
}

async fn start(builder: ServedClusterBuilder) -> ServedCluster {
    builder
        .stores(3)
        .start()
        .await
        .expect("ports of the loopback address are free")
}

/// Prewrites these keys, the first of which is the primary, as a client that goes away right
/// after. The locks' time to live is over at once.
pub fn leave_locks(cluster: &ServedCluster, start_ts: u64, keys: &[&str]) {
    let bytes = |key: &&str| as_bytes(key);
    let primary = keys.first().map(bytes).unwrap_or_default();
    cluster.with(|cluster, now_ms| {
        for key in keys {
            let encoded = tikv_io_mock::cluster::key::encode(key.as_bytes());
            let region = cluster
                .regions()
                .find(&encoded)
                .expect("regions cover all keys")
                .clone();
            let leader = region.leader.expect("nothing has happened to the leader");
            let request = kvrpcpb::PrewriteRequest {
                context: Some(Box::new(kvrpcpb::Context {
                    region_id: region.meta.id,
                    region_epoch: region.meta.region_epoch,
                    peer: region.leader_peer().copied(),
                    ..Default::default()
                })),
                mutations: vec![kvrpcpb::Mutation {
                    op: kvrpcpb::Op::Put.into(),
                    key: bytes(key),
                    value: bytes(&"half written"),
                    ..Default::default()
                }],
                primary_lock: primary.clone(),
                start_version: start_ts,
                lock_ttl: 1,
                txn_size: keys.len() as u64,
                ..Default::default()
            };
            let reply = cluster.kv_prewrite(now_ms, leader, request);
            assert!(
                reply.region_error.is_none() && reply.errors.is_empty(),
                "{reply:?}"
            );
        }
    });
}

fn as_bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}
