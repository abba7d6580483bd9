//! What a store remembers of transactions that have ended.

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::SkipPessimisticCheck;
use tikv_proto::kvrpcpb::{BroadcastTxnStatusRequest, TxnStatus};

use super::vocabulary::pre;
use super::{Bench, NOW, put};
use crate::cluster::store::CommittedCache;

fn known(cache: &CommittedCache, starts: &[u64]) -> Vec<Option<u64>> {
    starts.iter().map(|&start| cache.get(start)).collect()
}

#[test]
fn test_evicting_expired() {
    let mut cache = CommittedCache::default();
    for (since, start) in [(0, 1), (1, 3), (2, 5)] {
        cache.insert(since, start, start + 1);
    }
    assert_eq!(known(&cache, &[1, 3, 5]), [Some(2), Some(4), Some(6)]);
    cache.insert(30_001, 7, 8);
    assert_eq!(known(&cache, &[1, 3, 5]), [None, Some(4), Some(6)]);
    cache.insert(30_004, 9, 10);
    assert_eq!(
        known(&cache, &[3, 5, 7, 9]),
        [None, None, Some(8), Some(10)]
    );
    // Being told again makes nothing younger; a clock set back makes nothing older.
    cache.insert(40_000, 7, 8);
    cache.insert(20_000, 11, 12);
    assert_eq!(known(&cache, &[7, 9, 11]), [Some(8), Some(10), Some(12)]);
    cache.insert(60_002, 13, 14);
    assert_eq!(
        known(&cache, &[7, 9, 11, 13]),
        [None, Some(10), None, Some(14)]
    );
}

#[test]
fn test_eviction_normal_txn() {
    let mut b = Bench::new();
    let k = b"k";
    // A key that was not locked and is not looked at: only the store's memory tells that the
    // request has come before.
    let one = || pre(b"pk", 10).put(&[k]);
    let again = |b: &mut Bench| {
        let answer = b.must_run(
            one()
                .by_locks(&[], 0)
                .pessimistic(10, &[SkipPessimisticCheck]),
        );
        (answer.min_commit_ts, b.lock_of(k).is_some())
    };
    assert_eq!(again(&mut b), (11, true));
    b.must_commit(k, 10, 20);
    assert_eq!(again(&mut b), (20, false));
    let (_, store) = b.to(k);
    tell(&mut b, NOW + 31_000, 30, 31, 32);
    assert_eq!(
        b.cluster.store(store).and_then(|s| s.committed.get(10)),
        None
    );
    assert_eq!(again(&mut b), (11, true), "forgotten, so it is a new lock");
}

/// Tells the first store how a transaction stands; a commit version of 0 is one under way.
fn tell(b: &mut Bench, now_ms: u64, start_ts: u64, min_commit_ts: u64, commit_ts: u64) {
    let status = TxnStatus {
        start_ts,
        min_commit_ts,
        commit_ts,
        ..Default::default()
    };
    let request = BroadcastTxnStatusRequest {
        txn_status: vec![status],
        ..Default::default()
    };
    b.cluster.broadcast_txn_status(now_ms, 1, request);
}

#[test]
fn test_large_to_normal_txn_transition() {
    let mut b = Bench::new();
    let committed = |b: &Bench| b.cluster.store(1).and_then(|s| s.committed.get(1));
    tell(&mut b, NOW, 1, 10_000, 0);
    assert_eq!(committed(&b), None);
    tell(&mut b, NOW, 1, 10_000, 10_001);
    assert_eq!(committed(&b), Some(10_001));
}

/// Leaves a lock of a transaction that writes in many steps.
fn flushed(start_ts: u64) -> Bench {
    let mut b = Bench::new();
    assert_eq!(b.flush(start_ts, 1, put(b"k", b"v")), "");
    b
}

/// Up to where replicas may read, which the lock holds back.
fn held_back_at(b: &mut Bench) -> u64 {
    let id = b.to(b"k").0.expect("a context").region_id;
    b.cluster.advance_safe_ts(NOW, id)
}

#[test]
fn test_eviction_large_txn() {
    let mut b = flushed(1);
    assert_eq!(held_back_at(&mut b), 1);
    tell(&mut b, NOW, 1, 10_000, 0);
    assert_eq!(held_back_at(&mut b), 9_999);
    // One that is told of later drives out what is too old.
    tell(&mut b, NOW + 30_000, 2, 20_000, 0);
    assert_eq!(held_back_at(&mut b), 9_999);
    tell(&mut b, NOW + 61_000, 2, 20_000, 0);
    assert_eq!(held_back_at(&mut b), 1);
    let known = &b.cluster.store(1).expect("a store").large_txns;
    assert!(known.keys().eq([&2]));
}

#[test]
fn test_normal_to_large_txn_transition() {
    let mut b = flushed(1);
    // As long as it announces nothing beyond its start it is as any other.
    tell(&mut b, NOW, 1, 1, 0);
    assert_eq!(held_back_at(&mut b), 1);
    tell(&mut b, NOW, 1, 20, 0);
    assert_eq!(held_back_at(&mut b), 19);
    // What it has announced holds.
    tell(&mut b, NOW, 1, 10, 0);
    assert_eq!(held_back_at(&mut b), 19);
}

#[test]
fn a_transaction_that_was_called_rolled_back_is_not_known_as_committed() {
    let mut b = Bench::new();
    let tell = |b: &mut Bench, rolled_back, commit_ts| {
        let (context, store) = b.to(b"k");
        let status = TxnStatus {
            start_ts: 5,
            commit_ts,
            rolled_back,
            ..Default::default()
        };
        let request = BroadcastTxnStatusRequest {
            context,
            txn_status: vec![status],
        };
        b.cluster.broadcast_txn_status(NOW, store, request);
        b.cluster.store(store).and_then(|s| s.committed.get(5))
    };
    assert_eq!(tell(&mut b, true, 0), None);
    assert_eq!(tell(&mut b, false, 8), None);
    let mut b = Bench::new();
    assert_eq!(tell(&mut b, false, 8), Some(8));
    assert_eq!(tell(&mut b, true, 0), Some(8), "what is said first counts");
}

#[test]
fn test_update_committed_txn() {
    let mut cache = CommittedCache::default();
    cache.insert(0, 1, 2);
    cache.insert_rolled_back(0, 1);
    assert_eq!(known(&cache, &[1]), [Some(2)]);
}

#[test]
fn test_get_committed() {
    let mut b = Bench::new();
    tell(&mut b, NOW, 1, 0, 2);
    tell(&mut b, NOW, 3, 4, 0);
    let store = b.cluster.store(1).expect("a store");
    assert_eq!(known(&store.committed, &[1, 3]), [Some(2), None]);
}

#[test]
fn test_remove_large_txn() {
    let mut b = Bench::new();
    tell(&mut b, NOW, 1, 10_000, 0);
    let large = |b: &Bench| {
        b.cluster
            .store(1)
            .is_some_and(|s| s.large_txns.contains_key(&1))
    };
    assert!(large(&b));
    let status = TxnStatus {
        start_ts: 1,
        commit_ts: 10_001,
        is_completed: true,
        ..Default::default()
    };
    let request = BroadcastTxnStatusRequest {
        txn_status: vec![status],
        ..Default::default()
    };
    b.cluster.broadcast_txn_status(NOW, 1, request);
    assert!(!large(&b));
}
