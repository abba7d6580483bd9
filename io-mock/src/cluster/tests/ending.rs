//! Commit, rollback, cleanup, status checks, resolution.

use bytes::Bytes;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::DoPessimisticCheck;
use tikv_proto::kvrpcpb::{self, Action, CheckTxnStatusRequest, Op};

use super::{Bench, NOW, mutation, put, ts};
use crate::cluster::mvcc::write_record::WriteKind;

#[test]
fn test_commit_ok() {
    let mut b = Bench::new();
    let (k1, k2, k3) = (b"tk1", b"tk2", b"tk3");
    b.must_prewrite_put(k1, b"v", k1, 10);
    b.must_prewrite_lock(k2, k1, 10);
    b.must_prewrite_delete(k3, k1, 10);
    for k in [k1, k2, k3] {
        b.must_locked(k, 10);
        b.must_commit(k, 10, 15);
        b.must_commit(k, 10, 15);
    }
    b.must_written(k1, 10, 15, WriteKind::Put);
    b.must_written(k2, 10, 15, WriteKind::Lock);
    b.must_written(k3, 10, 15, WriteKind::Delete);
}

#[test]
fn test_commit_err() {
    let mut b = Bench::new();
    let k = b"k";
    // Without a lock, and with a lock of another transaction.
    assert!(
        b.commit(k, 1, 2)
            .expect("no lock")
            .txn_lock_not_found
            .is_some()
    );
    b.must_prewrite_put(k, b"v", k, 5);
    assert!(
        b.commit(k, 4, 5)
            .expect("foreign lock")
            .txn_lock_not_found
            .is_some()
    );
    // A commit version that is not above the start version.
    assert!(
        b.commit(k, 5, 5)
            .expect("bad version")
            .abort
            .contains("InvalidTxnTso")
    );
    b.must_commit(k, 5, 6);
}

#[test]
fn test_min_commit_ts() {
    let mut b = Bench::new();
    let k = b"k";
    b.must_prewrite_async(put(k, b"v"), k, &[], 10, 20);
    let error = b
        .commit(k, 10, 15)
        .expect("below the minimum")
        .commit_ts_expired;
    let error = error.expect("the minimum");
    assert_eq!((error.attempted_commit_ts, error.min_commit_ts), (15, 20));
    b.must_commit(k, 10, 20);
}

#[test]
fn test_rollback_lock_optimistic() {
    let mut b = Bench::new();
    let (k, v) = (b"k1", b"v1");
    b.must_prewrite_put(k, v, k, 5);
    b.must_commit(k, 5, 10);
    b.must_prewrite_lock(k, k, 15);
    b.must_locked(k, 15);
    b.must_rollback(k, 15);
    b.must_unlocked(k);
    b.must_written(k, 5, 10, WriteKind::Put);
    b.must_rolled_back(k, 15, true);
}

#[test]
fn test_rollback_overlapped() {
    let mut b = Bench::new();
    let (k1, k2) = (b"key1", b"key2");
    b.must_prewrite_put(k1, b"v1", k1, 10);
    b.must_prewrite_put(k2, b"v2", k2, 11);
    b.must_commit(k1, 10, 20);
    b.must_commit(k2, 11, 20);
    let w1 = b.must_written(k1, 10, 20, WriteKind::Put);
    let w2 = b.must_written(k2, 11, 20, WriteKind::Put);
    assert!(!w1.overlapped_rollback && !w2.overlapped_rollback);
    b.must_cleanup(k1, 20, 0);
    b.must_rollback(k2, 20);
    assert!(
        b.must_written(k1, 10, 20, WriteKind::Put)
            .overlapped_rollback
    );
    // An unprotected rollback leaves the other transaction's record alone.
    assert_eq!(b.must_written(k2, 11, 20, WriteKind::Put), w2);
}

#[test]
fn test_mvcc_txn_rollback_after_commit() {
    let mut b = Bench::new();
    let k = b"k";
    b.must_prewrite_put(k, b"v", k, 1);
    b.must_commit(k, 1, 2);
    assert!(
        b.rollback(k, 1)
            .expect("committed")
            .abort
            .contains("Committed")
    );
    assert_eq!(b.cleanup(k, 1, 0).commit_version, 2);
    b.must_get(k, 3, b"v");
}

#[test]
fn test_mvcc_txn_rollback_before_prewrite() {
    let mut b = Bench::new();
    b.must_rollback(b"key", 5);
    let error = b.must_prewrite_err(put(b"key", b"value"), b"key", 5);
    let conflict = error.conflict.expect("a conflict with itself");
    assert_eq!(
        conflict.reason(),
        kvrpcpb::write_conflict::Reason::SelfRolledBack
    );
}

#[test]
fn test_collapse_prev_rollback() {
    let mut b = Bench::new();
    let (k, pk) = (b"key", b"pk");
    for start_ts in [1, 2] {
        b.must_prewrite_put(k, b"value", pk, start_ts);
        b.must_rollback(k, start_ts);
        b.must_rolled_back(k, start_ts, false);
    }
    assert_eq!(b.written(k, 1), None);
    // One that comes before its prewrite collapses the one before, too.
    b.must_rollback(k, 3);
    b.must_rolled_back(k, 3, false);
    assert_eq!(b.written(k, 2), None);
}

#[test]
fn test_txn_timestamp_overlapping() {
    let mut b = Bench::new();
    let (k, v) = (b"k1", b"v1");
    b.must_prewrite_put(k, v, k, 10);
    b.must_commit(k, 10, 20);
    // Starting where another transaction committed is allowed,
    b.must_prewrite_put(k, v, k, 20);
    b.must_commit(k, 20, 30);
    // unless the start has been rolled back.
    b.must_cleanup(k, 30, 0);
    assert!(
        b.must_written(k, 20, 30, WriteKind::Put)
            .overlapped_rollback
    );
    b.must_prewrite_err(put(k, v), k, 30);
    b.must_unlocked(k);
    // The same for pessimistic transactions.
    b.must_prewrite_put(k, v, k, 40);
    b.must_commit(k, 40, 50);
    b.must_lock(k, k, 50, 50);
    b.must_pessimistic_locked(k, 50, 50);
    assert_eq!(
        b.pessimistic_prewrite(put(k, v), k, 50, 50, DoPessimisticCheck),
        None
    );
    b.must_commit(k, 50, 60);
    b.must_cleanup(k, 60, 0);
    assert!(
        b.must_written(k, 50, 60, WriteKind::Put)
            .overlapped_rollback
    );
    b.must_lock_err(k, k, 60, 60);
    b.must_unlocked(k);
}

#[test]
fn test_rollback_while_other_transaction_running() {
    let ends: [fn(&mut Bench, &[u8], u64); 3] = [
        |b, k, start_ts| b.must_cleanup(k, start_ts, 0),
        |b, k, start_ts| {
            let query = CheckTxnStatusRequest {
                rollback_if_not_exist: true,
                ..Default::default()
            };
            let response = b.check_status(k, start_ts, query);
            assert_eq!(response.action(), Action::LockNotExistRollback);
        },
        |b, k, start_ts| assert_eq!(b.check_secondary(k, start_ts), (0, false)),
    ];
    let (k, v) = (b"k1", b"v1");
    for end in ends {
        let mut b = Bench::new();
        b.must_prewrite_async(put(k, v), k, &[], 10, 0);
        end(&mut b, k, 15);
        b.must_commit(k, 10, 15);
        let write = b.must_written(k, 10, 15, WriteKind::Put);
        assert_eq!((write.overlapped_rollback, write.gc_fence), (true, None));
    }
    let mut b = Bench::new();
    // Only the version it could hit is remembered by the lock.
    b.must_prewrite_async(put(k, v), k, &[], 40, 0);
    b.must_cleanup(k, 44, 0);
    b.must_commit(k, 40, 45);
    assert!(
        !b.must_written(k, 40, 45, WriteKind::Put)
            .overlapped_rollback
    );
    // Not by a plain lock, not below the start, not below the smallest commit version.
    b.must_prewrite_put(k, v, k, 50);
    b.must_cleanup(k, 55, 0);
    assert!(b.must_locked(k, 50).rollback_ts.is_empty());
    b.must_commit(k, 50, 56);
    b.must_prewrite_async(put(k, v), k, &[], 60, 0);
    b.must_cleanup(k, 59, 0);
    assert!(b.must_locked(k, 60).rollback_ts.is_empty());
    b.must_commit(k, 60, 65);
    b.must_prewrite_async(put(k, v), k, &[], 70, 75);
    b.must_cleanup(k, 74, 0);
    b.must_cleanup(k, 75, 0);
    let lock = b.must_locked(k, 70);
    assert_eq!((lock.min_commit_ts, lock.rollback_ts), (75, vec![75]));
}

#[test]
fn test_gc_fence() {
    let k = b"k1";
    let mut b = Bench::new();
    let commit = |b: &mut Bench, start_ts: u64| {
        b.must_prewrite_put(k, b"v1", k, start_ts);
        b.must_commit(k, start_ts, start_ts + 1);
    };
    let fence = |b: &mut Bench, commit_ts: u64| {
        b.must_cleanup(k, commit_ts, 0);
        b.must_written(k, commit_ts - 1, commit_ts, WriteKind::Put)
            .gc_fence
    };
    commit(&mut b, 101);
    assert_eq!(fence(&mut b, 102), Some(0));
    commit(&mut b, 103);
    commit(&mut b, 105);
    assert_eq!(fence(&mut b, 104), Some(106), "a newer put");
    commit(&mut b, 107);
    b.must_prewrite_delete(k, k, 109);
    b.must_commit(k, 109, 110);
    assert_eq!(fence(&mut b, 108), Some(110), "a newer delete");
    commit(&mut b, 111);
    b.must_prewrite_put(k, b"v1", k, 113);
    b.must_rollback(k, 113);
    b.must_prewrite_lock(k, k, 115);
    b.must_commit(k, 115, 116);
    assert_eq!(fence(&mut b, 112), Some(0), "a newer rollback and lock");
    commit(&mut b, 121);
    b.must_prewrite_lock(k, k, 125);
    b.must_commit(k, 125, 126);
    commit(&mut b, 127);
    assert_eq!(fence(&mut b, 122), Some(128), "a newer put after a lock");
    commit(&mut b, 131);
    b.must_prewrite_put(b"k2", b"v1", b"k2", 133);
    b.must_commit(b"k2", 133, 134);
    assert_eq!(fence(&mut b, 132), Some(0), "another key's newer put");
}

#[test]
fn test_overlapped_ts_commit_before_rollback() {
    let mut b = Bench::new();
    let (k1, k2) = (b"key1", b"key2");
    b.must_prewrite_put(k1, b"v1", k1, 10);
    b.must_commit(k1, 10, 20);
    b.must_lock(k2, k2, 20, 20);
    assert_eq!(
        b.pessimistic_prewrite(put(k2, b"v2"), k2, 20, 20, DoPessimisticCheck),
        None
    );
    b.must_commit(k2, 20, 30);
    b.must_cleanup(k1, 20, 0);
    assert!(
        b.must_written(k1, 10, 20, WriteKind::Put)
            .overlapped_rollback
    );
    b.must_get(k1, 25, b"v1");
}

#[test]
fn test_cleanup() {
    let mut b = Bench::new();
    let (k, v) = (b"k", b"v");
    b.must_prewrite_put(k, v, k, ts(10, 0));
    assert_eq!(b.heart_beat(k, ts(10, 0), 100).lock_ttl, 100);
    assert_eq!(b.heart_beat(k, ts(10, 0), 90).lock_ttl, 100);
    // Alive.
    let error = b
        .cleanup(k, ts(10, 0), ts(20, 0))
        .error
        .expect("the lock is alive");
    assert!(error.locked.is_some());
    // Another transaction's lock is no lock of this one.
    b.must_cleanup(k, ts(10, 1), ts(120, 0));
    b.must_rolled_back(k, ts(10, 1), true);
    b.must_locked(k, ts(10, 0));
    // Expired.
    b.must_cleanup(k, ts(10, 0), ts(120, 0));
    b.must_unlocked(k);
    b.must_rolled_back(k, ts(10, 0), true);
    // A pessimistic lock that was never prewritten, and one that was.
    b.must_lock(k, k, ts(11, 1), ts(12, 1));
    b.must_cleanup(k, ts(11, 1), ts(120, 0));
    b.must_rolled_back(k, ts(11, 1), true);
    b.must_lock(k, k, ts(13, 1), ts(14, 1));
    let prewritten = b.pessimistic_prewrite(put(k, v), k, ts(13, 1), ts(14, 1), DoPessimisticCheck);
    assert_eq!(prewritten, None);
    b.must_cleanup(k, ts(13, 1), ts(120, 0));
    b.must_rolled_back(k, ts(13, 1), true);
}

#[test]
fn test_pessimistic_rollback() {
    let mut b = Bench::new();
    let k = b"k1";
    b.must_lock(k, k, 1, 1);
    // Another transaction, and an older request of the same one.
    b.pessimistic_rollback(k, 2, 2);
    b.must_pessimistic_locked(k, 1, 1);
    b.must_lock(k, k, 1, 3);
    b.pessimistic_rollback(k, 1, 2);
    b.must_pessimistic_locked(k, 1, 3);
    b.pessimistic_rollback(k, 1, 3);
    b.must_unlocked(k);
    assert_eq!(b.written(k, 1), None);
    // A prewritten lock is not touched.
    b.must_prewrite_put(k, b"v", k, 5);
    b.pessimistic_rollback(k, 5, 5);
    b.must_locked(k, 5);
}

#[test]
fn test_check_txn_status() {
    let mut b = Bench::new();
    let k = b"k1";
    let query = |caller: u64, current: u64, rollback: bool| CheckTxnStatusRequest {
        caller_start_ts: caller,
        current_ts: current,
        rollback_if_not_exist: rollback,
        ..Default::default()
    };
    // Nothing known: an error, or the end of the transaction.
    let response = b.check_status(k, ts(3, 0), query(ts(3, 1), ts(3, 2), false));
    assert!(response.error.expect("unknown").txn_not_found.is_some());
    let response = b.check_status(k, ts(3, 0), query(ts(3, 1), ts(3, 2), true));
    assert_eq!(response.action(), Action::LockNotExistRollback);
    b.must_rolled_back(k, ts(3, 0), true);
    let response = b.check_status(k, ts(3, 0), query(ts(3, 1), ts(3, 2), true));
    assert_eq!(
        (response.action(), response.lock_ttl),
        (Action::NoAction, 0)
    );

    // A large transaction's lock, pushed by whoever reads above it.
    let prewrite = |b: &mut Bench, start: u64, min_commit_ts: u64| {
        let response = b.prewrite(kvrpcpb::PrewriteRequest {
            mutations: vec![put(k, b"v")],
            primary_lock: Bytes::from_static(k),
            start_version: start,
            lock_ttl: 100,
            min_commit_ts,
            ..Default::default()
        });
        assert_eq!(response.errors, []);
    };
    prewrite(&mut b, ts(5, 0), ts(5, 1));
    let pushed = |b: &mut Bench, caller: u64, current: u64| {
        let response = b.check_status(k, ts(5, 0), query(caller, current, true));
        assert_eq!(response.lock_ttl, 100);
        (response.action(), b.must_locked(k, ts(5, 0)).min_commit_ts)
    };
    assert_eq!(
        pushed(&mut b, ts(6, 0), ts(7, 0)),
        (Action::MinCommitTsPushed, ts(7, 0))
    );
    assert_eq!(
        pushed(&mut b, ts(7, 0), ts(6, 0)),
        (Action::MinCommitTsPushed, ts(7, 1))
    );
    assert_eq!(
        pushed(&mut b, ts(6, 0), ts(9, 0)),
        (Action::MinCommitTsPushed, ts(7, 1))
    );
    assert_eq!(pushed(&mut b, 0, ts(9, 0)), (Action::NoAction, ts(7, 1)));
    assert_eq!(
        pushed(&mut b, u64::MAX, ts(9, 0)),
        (Action::MinCommitTsPushed, ts(7, 1))
    );
    let response = b.check_status(k, ts(5, 0), query(ts(6, 0), ts(106, 0), true));
    assert_eq!(response.action(), Action::TtlExpireRollback);
    b.must_unlocked(k);
    b.must_rolled_back(k, ts(5, 0), true);

    // Committed.
    prewrite(&mut b, ts(110, 0), 0);
    let response = b.check_status(k, ts(110, 0), query(ts(111, 0), ts(111, 1), true));
    assert_eq!(
        (response.action(), response.lock_ttl),
        (Action::NoAction, 100)
    );
    assert_eq!(
        b.must_locked(k, ts(110, 0)).min_commit_ts,
        0,
        "a lock without minimum stays so"
    );
    b.must_commit(k, ts(110, 0), ts(112, 0));
    let response = b.check_status(k, ts(110, 0), query(ts(111, 0), ts(111, 1), true));
    assert_eq!(response.commit_version, ts(112, 0));
}

#[test]
fn test_check_txn_status_resolving_pessimistic_lock() {
    let mut b = Bench::new();
    let k = b"k1";
    let query = |current: u64, resolving: bool| CheckTxnStatusRequest {
        caller_start_ts: current,
        current_ts: current,
        rollback_if_not_exist: true,
        resolving_pessimistic_lock: resolving,
        ..Default::default()
    };
    assert_eq!(
        b.check_status(k, ts(1, 0), query(ts(10, 0), true)).action(),
        Action::LockNotExistDoNothing
    );
    assert_eq!(b.written(k, ts(1, 0)), None);
    b.must_lock(k, k, ts(10, 0), ts(10, 0));
    assert_eq!(
        b.check_status(k, ts(10, 0), query(ts(11, 0), true))
            .action(),
        Action::TtlExpirePessimisticRollback
    );
    b.must_unlocked(k);
    assert_eq!(b.written(k, ts(10, 0)), None);
    b.must_lock(k, k, ts(20, 0), ts(20, 0));
    assert_eq!(
        b.check_status(k, ts(20, 0), query(ts(21, 0), false))
            .action(),
        Action::TtlExpireRollback
    );
    b.must_rolled_back(k, ts(20, 0), true);
}

#[test]
fn test_verify_is_primary() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k1", b"k2");
    let query = |resolving: bool| CheckTxnStatusRequest {
        rollback_if_not_exist: true,
        verify_is_primary: true,
        resolving_pessimistic_lock: resolving,
        ..Default::default()
    };
    b.must_lock(k1, k2, 1, 1);
    let mismatch = |response: kvrpcpb::CheckTxnStatusResponse| {
        let error = response.error.expect("another primary").primary_mismatch;
        error
            .and_then(|error| error.lock_info)
            .expect("the lock")
            .primary_lock
    };
    assert_eq!(mismatch(b.check_status(k1, 1, query(true))), &k2[..]);
    // Whoever comes from a prewritten lock knows the primary: this lock is stale.
    assert_eq!(
        b.check_status(k1, 1, query(false)).action(),
        Action::LockNotExistRollback
    );
    b.must_unlocked(k1);
    b.must_prewrite_put(k1, b"v", k2, 5);
    assert_eq!(mismatch(b.check_status(k1, 5, query(false))), &k2[..]);
    b.must_locked(k1, 5);
}

#[test]
fn test_check_async_commit_secondary_locks() {
    let mut b = Bench::new();
    let (k, pk) = (b"k1", b"key");
    b.must_prewrite_lock(k, pk, 1);
    b.must_commit(k, 1, 3);
    b.must_rollback(k, 5);
    b.must_prewrite_lock(k, pk, 7);
    b.must_commit(k, 7, 9);
    assert_eq!(b.check_secondary(k, 7), (9, false));
    assert_eq!(b.check_secondary(k, 5), (0, false));
    assert_eq!(b.check_secondary(k, 1), (3, false));
    assert_eq!(b.check_secondary(k, 6), (0, false));
    b.must_rolled_back(k, 6, true);
    b.must_lock(k, pk, 11, 11);
    assert_eq!(b.check_secondary(k, 11), (0, false));
    b.must_rolled_back(k, 11, true);
    b.must_prewrite_lock(k, pk, 13);
    assert_eq!(b.check_secondary(k, 13), (0, true));
    b.must_locked(k, 13);
    b.must_commit(k, 13, 15);
    assert_eq!(b.check_secondary(k, 14), (0, false));
    b.must_rolled_back(k, 14, true);
    assert_eq!(b.check_secondary(k, 15), (0, false));
    let write = b.must_written(k, 13, 15, WriteKind::Lock);
    assert_eq!((write.overlapped_rollback, write.gc_fence), (true, Some(0)));
}

#[test]
fn test_txn_heart_beat() {
    let mut b = Bench::new();
    let k = b"k1";
    let missing = |b: &mut Bench, start_ts: u64| {
        b.heart_beat(k, start_ts, 100)
            .error
            .expect("no lock")
            .txn_not_found
            .is_some()
    };
    assert!(missing(&mut b, 5));
    b.must_prewrite_put(k, b"v1", k, 5);
    assert_eq!(b.heart_beat(k, 5, 200).lock_ttl, 200);
    assert_eq!(b.heart_beat(k, 5, 90).lock_ttl, 200);
    assert!(missing(&mut b, 3));
    assert!(missing(&mut b, 7));
    b.must_commit(k, 5, 10);
    assert!(missing(&mut b, 5));
    b.must_lock(k, k, 8, 15);
    b.must_pessimistic_locked(k, 8, 15);
    assert_eq!(b.heart_beat(k, 8, 100).lock_ttl, 100);
}

#[test]
fn test_resolve_lock() {
    let mut b = Bench::new();
    let key = |i: u32| format!("k{i:04}").into_bytes();
    for i in 0..300 {
        b.must_prewrite_put(&key(i), b"v", &key(0), 10);
        b.must_prewrite_put(&[b"x", key(i).as_slice()].concat(), b"v", b"x", 20);
    }
    let (context, store) = b.to(b"k");
    let txn_infos = [(10, 15), (20, 0)].map(|(txn, status)| kvrpcpb::TxnInfo {
        txn,
        status,
        ..Default::default()
    });
    let response = b.cluster.kv_resolve_lock(
        NOW,
        store,
        kvrpcpb::ResolveLockRequest {
            context,
            txn_infos: txn_infos.into(),
            ..Default::default()
        },
    );
    assert_eq!((response.region_error, response.error), (None, None));
    for i in 0..300 {
        b.must_written(&key(i), 10, 15, WriteKind::Put);
        let other = [b"x", key(i).as_slice()].concat();
        b.must_unlocked(&other);
        b.must_rolled_back(&other, 20, false);
    }
}

#[test]
fn test_resolve_commit_pessimistic_locks() {
    let mut b = Bench::new();
    let k = b"k";
    b.must_lock(k, k, 10, 10);
    let resolve = |b: &mut Bench, keys: Vec<Bytes>| {
        let (context, store) = b.to(k);
        let request = kvrpcpb::ResolveLockRequest {
            context,
            start_version: 10,
            commit_version: 20,
            keys,
            ..Default::default()
        };
        b.cluster.kv_resolve_lock(NOW, store, request).error
    };
    assert_eq!(resolve(&mut b, vec![Bytes::from_static(k)]), None);
    b.must_unlocked(k);
    assert_eq!(b.written(k, 20), None);
    let error = resolve(&mut b, vec![Bytes::from_static(k)]).expect("neither lock nor record");
    assert!(error.txn_lock_not_found.is_some());
    assert_eq!(resolve(&mut b, vec![]), None);
}

#[test]
fn test_gc() {
    let mut b = Bench::new();
    let k = b"k";
    for (start, commit) in [(5, 10), (15, 20), (25, 30)] {
        b.must_prewrite_put(k, b"v", k, start);
        b.must_commit(k, start, commit);
    }
    b.must_prewrite_lock(k, k, 35);
    b.must_commit(k, 35, 40);
    b.cluster.collect_garbage(12);
    b.must_get(k, 12, b"v");
    b.cluster.collect_garbage(22);
    b.must_get_none(k, 19);
    b.must_get(k, 22, b"v");
    b.cluster.collect_garbage(45);
    assert_eq!(b.written(k, 40), None);
    assert_eq!(b.written(k, 20), None);
    b.must_get(k, 45, b"v");
    assert_eq!(b.prewrite_one(mutation(Op::Del, k, b""), k, 50), None);
    b.must_commit(k, 50, 55);
    b.cluster.collect_garbage(60);
    b.must_get_none(k, 60);
    assert_eq!(b.written(k, 55), None);
}
