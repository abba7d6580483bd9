//! What may be proposed: disks, merges, transfers.

use tikv_proto::kvrpcpb::{self, DiskFullOpt, Op};

use crate::cluster::store::Disk;
use crate::cluster::tests::{Bench, NOW, mutation, put};

fn disks(b: &mut Bench, disks: [Disk; 3]) {
    for (store, disk) in (1..).zip(disks) {
        b.cluster.store_mut(store).expect("a store").disk = disk;
    }
}

/// Prewrites a key; the stores that had no room.
fn full(b: &mut Bench, start_ts: u64, allowed: DiskFullOpt) -> Vec<u64> {
    let (mut context, store) = b.to(b"k");
    let body = context.as_mut().expect("a context");
    body.set_disk_full_opt(allowed);
    let request = kvrpcpb::PrewriteRequest {
        context: context.clone(),
        mutations: vec![put(b"k", b"v")],
        primary_lock: "k".into(),
        start_version: start_ts,
        ..Default::default()
    };
    let response = b.cluster.kv_prewrite(NOW, store, request);
    let stores = match response.region_error {
        Some(error) => error.disk_full.expect("nothing else is wrong").store_id,
        None => Vec::new(),
    };
    disks(b, [Disk::Normal; 3]);
    if stores.is_empty() {
        b.must_rollback(b"k", start_ts);
    }
    stores
}

#[test]
fn a_full_disk_refuses_what_does_not_make_room() {
    use Disk::{AlmostFull, AlreadyFull, Normal};
    use DiskFullOpt::{AllowedOnAlmostFull, AllowedOnAlreadyFull, NotAllowedOnFull};
    let mut b = Bench::new();
    let cases: [([Disk; 3], DiskFullOpt, &[u64]); 14] = [
        ([Normal, Normal, Normal], NotAllowedOnFull, &[]),
        // The leader's own disk.
        ([AlmostFull, Normal, Normal], NotAllowedOnFull, &[1]),
        ([AlmostFull, Normal, Normal], AllowedOnAlmostFull, &[]),
        ([AlmostFull, Normal, Normal], AllowedOnAlreadyFull, &[]),
        ([AlreadyFull, Normal, Normal], AllowedOnAlmostFull, &[1]),
        ([AlreadyFull, Normal, Normal], AllowedOnAlreadyFull, &[1]),
        // One follower of two does not matter.
        ([Normal, AlmostFull, Normal], NotAllowedOnFull, &[]),
        ([Normal, AlreadyFull, Normal], NotAllowedOnFull, &[]),
        // Both do.
        ([Normal, AlmostFull, AlmostFull], NotAllowedOnFull, &[2, 3]),
        ([Normal, AlmostFull, AlmostFull], AllowedOnAlmostFull, &[]),
        ([Normal, AlmostFull, AlreadyFull], NotAllowedOnFull, &[2, 3]),
        ([Normal, AlmostFull, AlreadyFull], AllowedOnAlmostFull, &[]),
        (
            [Normal, AlreadyFull, AlreadyFull],
            AllowedOnAlmostFull,
            &[2, 3],
        ),
        ([AlmostFull, AlmostFull, Normal], AllowedOnAlmostFull, &[]),
    ];
    for (turn, (now, allowed, expected)) in cases.into_iter().enumerate() {
        disks(&mut b, now);
        let stores = full(&mut b, 10 + turn as u64, allowed);
        assert_eq!(stores, expected, "{now:?} {allowed:?}");
    }
}

#[test]
fn a_lock_takes_no_last_room() {
    let mut b = Bench::new();
    let lock = |b: &mut Bench, allowed: DiskFullOpt| {
        disks(b, [Disk::AlmostFull, Disk::Normal, Disk::Normal]);
        let (mut context, store) = b.to(b"k");
        let body = context.as_mut().expect("a context");
        body.set_disk_full_opt(allowed);
        let request = kvrpcpb::PessimisticLockRequest {
            context,
            mutations: vec![mutation(Op::PessimisticLock, b"k", b"")],
            primary_lock: "k".into(),
            start_version: 10,
            for_update_ts: 10,
            ..Default::default()
        };
        let response = b.cluster.kv_pessimistic_lock(NOW, store, request);
        response.region_error.is_none()
    };
    assert!(!lock(&mut b, DiskFullOpt::NotAllowedOnFull));
    assert!(!lock(&mut b, DiskFullOpt::AllowedOnAlreadyFull));
    assert!(lock(&mut b, DiskFullOpt::AllowedOnAlmostFull));
}

#[test]
fn a_split_passes_a_disk_that_is_almost_full() {
    let mut b = Bench::new();
    for (disk, splits) in [(Disk::AlreadyFull, false), (Disk::AlmostFull, true)] {
        disks(&mut b, [disk, Disk::Normal, Disk::Normal]);
        let (context, store) = b.to(b"k");
        let request = kvrpcpb::SplitRegionRequest {
            context,
            split_keys: vec!["m".into()],
            ..Default::default()
        };
        let response = b.cluster.split_region(NOW, store, request);
        assert_eq!(response.regions.len() == 2, splits);
        let error = response.region_error;
        assert_eq!(
            error.is_some_and(|error| error.disk_full.is_some()),
            !splits
        );
    }
}

#[test]
fn what_can_not_be_proposed_is_told_in_the_order_of_the_server() {
    let mut b = Bench::new();
    let id = b.to(b"k").0.expect("a context").region_id;
    b.cluster.prepare_merge(NOW, id);
    b.cluster.set_transferring(id, true);
    disks(&mut b, [Disk::AlreadyFull, Disk::Normal, Disk::Normal]);
    let load = |b: &mut Bench, queue: bool, delay: u64| {
        let store = b.cluster.store_mut(1).expect("a store");
        store.load.raftstore_full = queue;
        store.load.observer_delay_ms = delay;
    };
    load(&mut b, true, 5);
    let refused = |b: &mut Bench| {
        let (context, store) = b.to(b"k");
        let request = kvrpcpb::PrewriteRequest {
            context,
            mutations: vec![put(b"k", b"v")],
            primary_lock: "k".into(),
            start_version: 5,
            ..Default::default()
        };
        let error = b.cluster.kv_prewrite(NOW, store, request).region_error;
        error.expect("something is in the way")
    };
    let busy = refused(&mut b).server_is_busy.expect("the queue is full");
    assert_eq!(busy.reason, "raftstore is busy");
    load(&mut b, false, 5);
    assert!(refused(&mut b).disk_full.is_some());
    disks(&mut b, [Disk::Normal; 3]);
    assert!(refused(&mut b).proposal_in_merging_mode.is_some());
    b.cluster.rollback_merge(NOW, id);
    let busy = refused(&mut b).server_is_busy.expect("an observer");
    assert_eq!(busy.backoff_ms, 5);
    load(&mut b, false, 0);
    assert!(refused(&mut b).not_leader.is_some());
}

#[test]
fn what_ends_transactions_passes_a_disk_that_is_almost_full() {
    let mut b = Bench::new();
    b.must_prewrite_put(b"a", b"v", b"a", 5);
    b.must_prewrite_put(b"b", b"v", b"b", 6);
    b.must_lock(b"c", b"c", 7, 7);
    disks(&mut b, [Disk::AlmostFull, Disk::Normal, Disk::Normal]);
    b.must_get_none(b"x", 5);
    b.must_commit(b"a", 5, 8);
    b.must_rollback(b"b", 6);
    assert_eq!(b.heart_beat(b"c", 7, 1_000).lock_ttl, 1_000);
    b.pessimistic_rollback(b"c", 7, 7);
    let (context, store) = b.to(b"raw");
    let request = kvrpcpb::RawPutRequest {
        context,
        key: "raw".into(),
        ..Default::default()
    };
    let response = b.cluster.raw_put(NOW, store, request);
    assert_eq!(response.region_error, None);
    // A lock request makes no room.
    let response = b.lock_one(Default::default(), b"d", b"d", 9, 9);
    let error = response.region_error.expect("no room");
    assert!(
        error.message.starts_with("store ids [1], errmsg "),
        "{error:?}"
    );
    disks(&mut b, [Disk::AlreadyFull, Disk::Normal, Disk::Normal]);
    b.must_get(b"a", 9, b"v");
    let (context, store) = b.to(b"a");
    let request = kvrpcpb::CleanupRequest {
        context,
        key: "z".into(),
        start_version: 9,
        ..Default::default()
    };
    let response = b.cluster.kv_cleanup(NOW, store, request);
    assert!(response.region_error.expect("no room").disk_full.is_some());
}

#[test]
fn a_leader_on_its_way_out_proposes_nothing() {
    let mut b = Bench::new();
    let id = b.to(b"").0.expect("a context").region_id;
    b.cluster.set_transferring(id, true);
    let response = b.prewrite(kvrpcpb::PrewriteRequest {
        mutations: vec![put(b"k", b"v")],
        primary_lock: "k".into(),
        start_version: 5,
        ..Default::default()
    });
    let error = response.region_error.expect("no proposal");
    assert_eq!(error.not_leader.expect("its detail").leader, None);
    b.must_get_none(b"k", 6);
    b.cluster.transfer_leader(NOW, id, 2);
    b.must_prewrite_put(b"k", b"v", b"k", 7);
}

#[test]
fn a_prepared_merge_lets_only_reads_through() {
    let mut b = Bench::new();
    let id = b.to(b"").0.expect("a context").region_id;
    b.cluster.prepare_merge(NOW, id);
    let response = b.prewrite(kvrpcpb::PrewriteRequest {
        mutations: vec![put(b"k", b"v")],
        primary_lock: "k".into(),
        start_version: 5,
        ..Default::default()
    });
    let error = response.region_error.expect("no proposal");
    assert_eq!(
        error
            .proposal_in_merging_mode
            .expect("its detail")
            .region_id,
        id
    );
    b.must_get_none(b"k", 6);
}
