//! Prewrites of several keys: committing at once and by locks, and requests that come twice.

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::{
    DoPessimisticCheck, SkipPessimisticCheck,
};
use tikv_proto::kvrpcpb::{self, Action, Assertion, AssertionLevel, CheckTxnStatusRequest, Op};

use super::vocabulary::{OPTIMISTIC, pre, word};
use super::{Bench, NOW, mutation, ts};
use crate::cluster::mvcc::write_record::WriteKind;

#[test]
fn test_prewrite_1pc() {
    let mut b = Bench::new();
    let k = b"k";
    b.max_ts(1);
    b.must_run(pre(k, 10).put(&[k]).one_pc(15));
    b.must_unlocked(k);
    b.must_get(k, 12, b"v");
    assert_eq!(b.commit_of(k, 10), Some(11));
    b.max_ts(50);
    for _ in 0..2 {
        let response = b.must_run(pre(k, 20).put(&[k]).one_pc(30));
        assert_eq!((response.min_commit_ts, response.one_pc_commit_ts), (0, 0));
        b.must_locked(k, 20);
    }
    b.must_rollback(k, 20);
    let absent = mutation(Op::CheckNotExists, b"absent", b"");
    b.must_run(pre(k, 40).put(&[k]).with(absent).one_pc(60));
    // Nothing at all is written if one key is locked.
    b.must_run(pre(b"k2", 50).put(&[b"k2"]));
    let both = pre(b"k1", 60).put(&[b"k1", b"k2"]).one_pc(70);
    assert_eq!(b.try_run(both), "locked");
    b.must_unlocked(b"k1");
    b.must_locked(b"k2", 50);
    assert_eq!(
        (b.commit_of(b"k1", 60), b.commit_of(b"k2", 60)),
        (None, None)
    );
}

#[test]
fn test_prewrite_pessimsitic_1pc() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k", b"k2");
    let check = [DoPessimisticCheck, SkipPessimisticCheck];
    b.max_ts(1);
    b.must_lock(k1, k1, 10, 10);
    b.must_run(pre(k1, 10).put(&[k1]).one_pc(15).pessimistic(10, &check));
    b.must_unlocked(k1);
    b.must_get(k1, 12, b"v");
    assert_eq!(b.commit_of(k1, 10), Some(11));
    b.must_lock(k1, k1, 8, 12);
    let both = pre(k1, 8).put(&[k1, k2]).one_pc(15);
    b.must_run(both.pessimistic(12, &check));
    for k in [&k1[..], k2] {
        b.must_unlocked(k);
        b.must_get(k, 16, b"v");
        assert_eq!(b.commit_of(k, 8), Some(13));
    }
    b.max_ts(50);
    b.must_lock(k1, k1, 20, 20);
    let late = pre(k1, 20).put(&[k1]).one_pc(30).pessimistic(20, &check);
    let response = b.must_run(late);
    assert_eq!((response.min_commit_ts, response.one_pc_commit_ts), (0, 0));
    b.must_locked(k1, 20);
    b.must_cleanup(k1, 20, 0);
    b.must_run(pre(k2, 50).put(&[k2]));
    b.must_lock(k1, k1, 60, 60);
    let both = pre(k1, 60).put(&[k1, k2]).one_pc(70);
    assert_eq!(b.try_run(both.pessimistic(60, &check)), "locked");
    b.must_pessimistic_locked(k1, 60, 60);
    b.must_locked(k2, 50);
    assert_eq!((b.commit_of(k1, 60), b.commit_of(k2, 60)), (None, None));
}

#[test]
fn test_prewrite_async_commit() {
    let mut b = Bench::new();
    b.max_ts(1);
    let response = b.must_run(pre(b"k", 10).put(&[b"k"]).by_locks(&[], 0));
    assert_eq!((response.min_commit_ts, response.one_pc_commit_ts), (11, 0));
    b.must_locked(b"k", 10);
    b.max_ts(50);
    for _ in 0..2 {
        let both = pre(b"k1", 20).put(&[b"k1", b"k2"]).min(21);
        let response = b.must_run(both.by_locks(&[b"k2"], 40));
        assert_eq!((response.min_commit_ts, response.one_pc_commit_ts), (0, 0));
        for k in [b"k1", b"k2"] {
            assert!(!b.must_locked(k, 20).async_commit);
        }
    }
}

#[test]
fn test_prewrite_pessimsitic_async_commit() {
    let mut b = Bench::new();
    let check = [DoPessimisticCheck; 2];
    b.max_ts(1);
    b.must_lock(b"k", b"k", 10, 10);
    let one = pre(b"k", 10).put(&[b"k"]).by_locks(&[], 0);
    let response = b.must_run(one.pessimistic(10, &check));
    assert_eq!((response.min_commit_ts, response.one_pc_commit_ts), (11, 0));
    b.max_ts(50);
    for k in [b"k1", b"k2"] {
        b.must_lock(k, b"k1", 20, 20);
    }
    let both = pre(b"k1", 20).put(&[b"k1", b"k2"]).by_locks(&[b"k2"], 40);
    let response = b.must_run(both.pessimistic(20, &check));
    assert_eq!((response.min_commit_ts, response.one_pc_commit_ts), (0, 0));
    for k in [b"k1", b"k2"] {
        assert!(!b.must_locked(k, 20).async_commit);
    }
}

#[test]
fn test_prewrite_should_not_exist() {
    let mut b = Bench::new();
    let k = b"k";
    let absent = |start: u64| pre(k, start).with(mutation(Op::CheckNotExists, k, b""));
    b.max_ts(5);
    b.write(k, b"val", 3, 5);
    assert_eq!(b.try_run(absent(15)), "exists");
    assert_eq!(b.served(k), 15, "it is a read");
    b.erase(k, 8, 16);
    assert_eq!(b.try_run(absent(10)), OPTIMISTIC);
}

/// Runs two transactions, the first by its locks and the second at once, and both again after a
/// third one has written.
fn committed_twice(pessimistic: bool) {
    let mut b = Bench::new();
    let k = b"k";
    b.max_ts(1);
    let one = |b: &mut Bench, start: u64| {
        let one = pre(k, start).put(&[k]);
        if !pessimistic {
            return one;
        }
        if b.seek(k, u64::MAX).is_none_or(|(ts, _, _)| ts < start) {
            b.must_lock(k, k, start, start);
        }
        one.pessimistic(start, &[DoPessimisticCheck])
    };
    let first = one(&mut b, 5).by_locks(&[], 0).min(10);
    b.must_run(first.clone());
    b.must_commit(k, 5, 10);
    let second = one(&mut b, 15).one_pc(0);
    let commit_ts = b.must_run(second.clone()).one_pc_commit_ts;
    assert_eq!(commit_ts, 16);
    b.write(k, b"v3", 20, 25);
    let response = b.must_run(first);
    assert_eq!((response.min_commit_ts, response.one_pc_commit_ts), (10, 0));
    let response = b.must_run(second);
    let versions = (response.min_commit_ts, response.one_pc_commit_ts);
    assert_eq!(versions, (0, commit_ts));
    b.must_unlocked(k);
    assert_eq!(b.seek(k, u64::MAX), Some((25, 20, WriteKind::Put)));
}

#[test]
fn test_optimistic_prewrite_committed_transaction() {
    committed_twice(false);
}

#[test]
fn test_pessimistic_prewrite_committed_transaction() {
    committed_twice(true);
}

#[test]
fn test_repeated_pessimistic_prewrite_1pc() {
    let mut b = Bench::new();
    b.max_ts(1);
    b.must_lock(b"k2", b"k2", 5, 5);
    let both = pre(b"k2", 5).put(&[b"k1", b"k2"]).one_pc(100);
    let both = both.pessimistic(5, &[SkipPessimisticCheck, DoPessimisticCheck]);
    let commit_ts = b.must_run(both.clone()).one_pc_commit_ts;
    b.max_ts(commit_ts + 1);
    assert_eq!(b.must_run(both).one_pc_commit_ts, commit_ts);
    for k in [b"k1", b"k2"] {
        assert_eq!(b.seek(k, 100), Some((commit_ts, 5, WriteKind::Put)));
    }
}

#[test]
fn test_prewrite_committed_encounter_newer_lock() {
    let mut b = Bench::new();
    let k = b"k1";
    let first = pre(k, 5).put(&[k]).by_locks(&[], 0).min(10);
    b.must_run(first.clone());
    b.must_commit(k, 5, 15);
    b.must_prewrite_put(k, b"v2", k, 20);
    b.max_ts(20);
    assert_eq!(b.must_run(first).min_commit_ts, 15);
    b.must_locked(k, 20);
}

#[test]
fn test_repeated_prewrite_commit_ts_too_large() {
    let mut b = Bench::new();
    b.max_ts(1);
    b.must_lock(b"k1", b"k1", 5, 10);
    let one = pre(b"k1", 5).put(&[b"k1"]).by_locks(&[b"k2"], 0).min(15);
    b.must_run(one.pessimistic(10, &[DoPessimisticCheck]));
    let two = pre(b"k1", 5).put(&[b"k2"]).by_locks(&[], 20).min(15);
    let two = two.pessimistic(10, &[SkipPessimisticCheck]);
    b.must_run(two.clone());
    b.must_commit(b"k1", 5, 18);
    b.must_commit(b"k2", 5, 18);
    b.max_ts(50);
    assert_eq!(b.must_run(two).min_commit_ts, 18, "where it has committed");
    b.must_unlocked(b"k2");
}

#[test]
fn test_prewrite_rolledback_transaction() {
    let mut b = Bench::new();
    let k = b"k1";
    b.must_lock(k, b"v1", 1, 1);
    b.must_cleanup(k, 1, 0);
    b.write(k, b"v2", 5, 6);
    let conflict = b.try_run(pre(k, 1).put(&[k]).by_locks(&[], 10).min(2));
    assert_eq!(conflict, OPTIMISTIC);
    b.must_lock(k, b"v1", 10, 10);
    b.must_cleanup(k, 10, 0);
    b.must_lock(k, b"v1", 15, 15);
    let one = pre(k, 10).put(&[k]);
    let missing = b.try_run(one.pessimistic(10, &[DoPessimisticCheck]));
    assert_eq!(missing, "lock missing");
}

#[test]
fn test_assertion_fail_on_conflicting_index_key() {
    let mut b = Bench::new();
    let (t1, t2) = (ts(1, 0), ts(2, 0));
    b.must_lock(b"row", b"row", t1, t1);
    let held = b.must_lock_err(b"row", b"row", t2, t2);
    assert_eq!(word(Some(&held)), "locked");
    let query = CheckTxnStatusRequest {
        caller_start_ts: t2,
        current_ts: t2,
        resolving_pessimistic_lock: true,
        ..Default::default()
    };
    let action = b.check_status(b"row", t1, query).action();
    assert_eq!(action, Action::TtlExpirePessimisticRollback);
    b.must_lock(b"row", b"row", t2, t2);
    let checks = [DoPessimisticCheck, SkipPessimisticCheck];
    let write = |start: u64, keys: [&[u8]; 2], actions| {
        let both = pre(b"row", start).put(&keys).pessimistic(t2, actions);
        both.assert(Assertion::NotExist, AssertionLevel::Strict)
    };
    b.must_run(write(t2, [b"row", b"index"], &checks));
    b.must_commit(b"row", t2, ts(3, 0));
    b.must_commit(b"index", t2, ts(3, 0));
    // The missing lock is the better news, in either order.
    let missing = b.try_run(write(t1, [b"row", b"index"], &checks));
    assert_eq!(missing, "lock missing");
    let turned = [SkipPessimisticCheck, DoPessimisticCheck];
    let missing = b.try_run(write(t1, [b"index", b"row"], &turned));
    assert_eq!(missing, "lock missing");
    for (k, action) in [(&b"row"[..], checks[0]), (b"index", checks[1])] {
        let one = pre(b"row", t1).put(&[k]).pessimistic(t1, &[action]);
        let one = one.assert(Assertion::NotExist, AssertionLevel::Strict);
        assert_eq!(b.try_run(one), "lock missing");
    }
}

#[test]
fn test_pessimistic_prewrite_check_for_update_ts() {
    let mut b = Bench::new();
    let keys: [&[u8]; 3] = [b"k1", b"k2", b"k3"];
    for (k, for_update_ts) in keys.into_iter().zip([10, 20, 20]) {
        b.must_lock(k, b"k1", 10, for_update_ts);
    }
    let mut ask = |granted_at: &[(u32, u64)]| {
        let all = pre(b"k1", 10).put(&keys).granted_at(granted_at);
        let outcome = b.try_run(all.pessimistic(15, &[DoPessimisticCheck; 3]));
        for (k, for_update_ts) in keys.into_iter().zip([10, 20, 20]) {
            if outcome.is_empty() {
                b.must_locked(k, 10);
            } else {
                b.must_pessimistic_locked(k, 10, for_update_ts);
            }
        }
        outcome
    };
    assert_eq!(ask(&[(1, 15)]), "lock missing");
    assert_eq!(ask(&[(0, 15), (1, 15), (2, 15)]), "lock missing");
    assert_eq!(ask(&[(2, 15), (0, 20)]), "lock missing");
    assert_eq!(ask(&[(0, 15), (2, 20)]), "lock missing");
    assert_eq!(ask(&[(3, 30)]), "abort");
    assert_eq!(ask(&[(0, 10), (2, 20)]), "");
}

#[test]
fn test_shared_lock_prewrite_cannot_amend_pessimistic_lock() {
    let mut b = Bench::new();
    let k = b"shared";
    let one = pre(k, 10).with(mutation(Op::SharedLock, k, b""));
    let one = one.pessimistic(10, &[DoPessimisticCheck]);
    assert_eq!(b.try_run(one.clone()), "lock missing");
    b.must_share(k, k, 11, 11);
    assert_eq!(b.try_run(one), "lock missing");
    assert_eq!(b.shared(k).members.len(), 1);
}

#[test]
fn test_prewrite_skip_constraint_check() {
    // A large request skips looking for conflicts only if none of its keys has a version.
    for (written, keys) in [(0u8, 13), (5, 13), (12, 13)] {
        let mut b = Bench::new();
        let pk = [0];
        b.write(&[written], b"100", 99, 100);
        let mut all = pre(&pk, 98);
        for i in 0..keys {
            all = all.with(mutation(Op::Insert, &[i], b"100"));
        }
        assert_eq!(b.try_run(all.clone()), OPTIMISTIC);
        all.request.start_version = 101;
        assert_eq!(b.try_run(all.clone()), "exists");
        b.erase(&[written], 102, 103);
        all.request.start_version = 104;
        assert_eq!(b.try_run(all), "");
        for i in 0..keys {
            b.must_commit(&[i], 104, 105);
        }
    }
}

#[test]
fn test_prewrite_skip_too_many_tombstone() {
    // Rolled back and collected, the keys are as if never written.
    let mut b = Bench::new();
    let keys: Vec<[u8; 2]> = (0..40).map(|i| [b'z', i]).collect();
    let all = |start: u64, count: usize| {
        let each = keys.iter().take(count);
        each.fold(pre(&[0], start), |all, k| {
            all.with(mutation(Op::Insert, k, b"100"))
        })
    };
    b.must_run(all(100, 40));
    for k in &keys {
        b.must_rollback(k, 100);
    }
    b.cluster.collect_garbage(101);
    assert!(keys.iter().all(|k| b.seek(k, u64::MAX).is_none()));
    b.must_run(all(110, 13));
    for k in &keys[..13] {
        b.must_locked(k, 110);
    }
}

#[test]
fn test_prewrite_1pc_with_txn_source() {
    let mut b = Bench::new();
    let (context, store) = b.to(b"k");
    let context = context.map(|context| {
        Box::new(kvrpcpb::Context {
            txn_source: 1,
            ..*context
        })
    });
    let request = kvrpcpb::PrewriteRequest {
        context,
        ..pre(b"k", 10).put(&[b"k"]).one_pc(15).request
    };
    let response = b.cluster.kv_prewrite(NOW, store, request);
    assert_eq!((response.errors, response.one_pc_commit_ts), (vec![], 11));
    b.must_unlocked(b"k");
    b.must_get(b"k", 12, b"v");
    assert_eq!(b.must_written(b"k", 10, 11, WriteKind::Put).txn_source, 1);
}
