//! What stores with full disks still take.

use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{Context, DiskFullOpt, GetRequest, PrewriteRequest};

use super::{Bench, NOW, put};
use crate::cluster::Config;
use crate::cluster::region::StoreId;
use crate::cluster::store::Disk;

impl Bench {
    fn fill(&mut self, store: StoreId, disk: Disk) {
        self.cluster.store_mut(store).expect("a store").disk = disk;
    }

    /// Prewrites a key at its leader; the stores that have no room.
    fn prewrite_at(
        &mut self,
        k: &[u8],
        start_ts: u64,
        for_update_ts: u64,
        allowed: DiskFullOpt,
    ) -> Option<Vec<StoreId>> {
        let (mut context, store) = self.to(k);
        let body = context.as_mut().expect("a context");
        body.set_disk_full_opt(allowed);
        let request = PrewriteRequest {
            context,
            mutations: vec![put(k, b"v")],
            primary_lock: k.to_vec().into(),
            start_version: start_ts,
            for_update_ts,
            pessimistic_actions: vec![i32::from(for_update_ts != 0)],
            ..Default::default()
        };
        let response = self.cluster.kv_prewrite(NOW, store, request);
        assert_eq!(response.errors, []);
        let error = response.region_error?;
        Some(error.disk_full.expect("nothing else is wrong").store_id)
    }
}

#[test]
fn test_disk_full_txn_behaviors() {
    use DiskFullOpt::{AllowedOnAlmostFull, NotAllowedOnFull};
    let mut b = Bench::new();
    let full = |b: &mut Bench| b.fill(1, Disk::AlmostFull);
    let empty = |b: &mut Bench| b.fill(1, Disk::Normal);

    full(&mut b);
    assert_eq!(b.prewrite_at(b"k3", 10, 0, NotAllowedOnFull), Some(vec![1]));
    empty(&mut b);
    assert_eq!(b.prewrite_at(b"k4", 20, 0, NotAllowedOnFull), None);
    full(&mut b);
    b.must_commit(b"k4", 20, 21);
    b.must_get(b"k4", 21, b"v");

    assert_eq!(b.prewrite_at(b"k5", 30, 0, AllowedOnAlmostFull), None);
    b.must_commit(b"k5", 30, 31);

    empty(&mut b);
    assert_eq!(b.prewrite_at(b"k6", 40, 0, NotAllowedOnFull), None);
    full(&mut b);
    b.must_rollback(b"k6", 40);
    b.must_unlocked(b"k6");

    empty(&mut b);
    b.must_lock(b"k7", b"k7", 50, 50);
    full(&mut b);
    assert_eq!(b.prewrite_at(b"k7", 50, 50, AllowedOnAlmostFull), None);
    b.must_commit(b"k7", 50, 51);

    empty(&mut b);
    b.must_lock(b"k8", b"k8", 60, 60);
    full(&mut b);
    b.pessimistic_rollback(b"k8", 60, 60);
    b.must_unlocked(b"k8");
}

#[test]
fn test_almost_and_already_full_behavior() {
    let mut b = Bench::with(Config {
        stores: 5,
        ..Config::default()
    });
    for (store, disk) in [
        (2, Disk::AlmostFull),
        (3, Disk::AlmostFull),
        (4, Disk::AlreadyFull),
        (5, Disk::AlreadyFull),
    ] {
        b.fill(store, disk);
    }
    // The leader and those that are almost full are a majority, if the write may fill them.
    let refused = b.prewrite_at(b"k2", 10, 0, DiskFullOpt::NotAllowedOnFull);
    assert_eq!(refused, Some(vec![2, 3, 4, 5]));
    let allowed = b.prewrite_at(b"k2", 10, 0, DiskFullOpt::AllowedOnAlmostFull);
    assert_eq!(allowed, None);
    b.must_commit(b"k2", 10, 11);
    b.fill(3, Disk::AlreadyFull);
    let refused = b.prewrite_at(b"k2", 20, 0, DiskFullOpt::AllowedOnAlmostFull);
    assert!(refused.is_some());
}

#[test]
fn test_reject_follower_read_index_when_disk_full() {
    let mut b = Bench::new();
    b.write(b"k1", b"v1", 1, 2);
    let read = |b: &mut Bench, store: StoreId| -> Option<Box<errorpb::Error>> {
        let (context, _) = b.to(b"k1");
        let context = context.expect("a context");
        let region = b.cluster.region(context.region_id).expect("a region");
        let request = GetRequest {
            context: Some(Box::new(Context {
                peer: region.peer_on(store).copied(),
                replica_read: true,
                ..*context
            })),
            key: "k1".into(),
            version: 10,
            need_commit_ts: false,
        };
        b.cluster.kv_get(NOW, store, request).region_error
    };
    for disk in [Disk::AlmostFull, Disk::AlreadyFull] {
        b.fill(2, disk);
        let refused = read(&mut b, 2).expect("it might wait for long");
        assert_eq!(refused.disk_full.expect("its detail").store_id, [2]);
        b.fill(1, disk);
        assert_eq!(read(&mut b, 1), None, "a leader need not ask");
        b.fill(1, Disk::Normal);
    }
    assert_eq!(read(&mut b, 3), None);
}
