//! Asking how a transaction stands.

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::DoPessimisticCheck;
use tikv_proto::kvrpcpb::{
    Action, CheckTxnStatusRequest, Op, PessimisticLockKeyResultType, PessimisticLockRequest,
    PessimisticLockWakeUpMode,
};

use super::vocabulary::{SELF, pre, word};
use super::{Bench, put, ts};
use crate::cluster::mvcc::write_record::WriteKind;

/// What a status check came to.
#[derive(Debug, PartialEq)]
enum Told {
    Committed(u64),
    /// Alive: time to live and smallest commit version.
    Alive(u64, u64),
    Over(Action),
    Failed(&'static str),
}
use Told::{Alive, Committed, Failed, Over};

fn ask(b: &mut Bench, k: &[u8], start: u64, query: CheckTxnStatusRequest) -> Told {
    let response = b.check_status(k, start, query);
    if let Some(error) = response.error {
        return Failed(word(Some(&error)));
    }
    if response.commit_version != 0 {
        return Committed(response.commit_version);
    }
    match &response.lock_info {
        Some(lock) => Alive(lock.lock_ttl, lock.min_commit_ts),
        None => Over(response.action()),
    }
}

fn query(caller: u64, current: u64, rollback: bool) -> CheckTxnStatusRequest {
    CheckTxnStatusRequest {
        caller_start_ts: caller,
        current_ts: current,
        rollback_if_not_exist: rollback,
        verify_is_primary: true,
        ..Default::default()
    }
}

/// A lock in spite of a newer version; tells that version.
fn force(b: &mut Bench, k: &[u8], pk: &[u8], start: u64) -> Result<u64, &'static str> {
    let mut request = PessimisticLockRequest {
        lock_ttl: 10,
        ..Default::default()
    };
    request.set_wake_up_mode(PessimisticLockWakeUpMode::WakeUpModeForceLock);
    let response = b.lock_one(request, k, pk, start, start);
    if let Some(error) = response.errors.first() {
        return Err(word(Some(error)));
    }
    let result = &response.results[0];
    let conflict = PessimisticLockKeyResultType::LockResultLockedWithConflict;
    assert_eq!(result.r#type(), conflict);
    Ok(result.locked_with_conflict_ts)
}

#[test]
fn test_check_async_commit_txn_status() {
    for rollback in [true, false] {
        let mut b = Bench::new();
        let unchanged = |b: &mut Bench, k: &[u8], start: u64, min: u64, later: u64| {
            let max = u64::MAX;
            for (caller, current) in [
                (0, 0),
                (later, 0),
                (0, later),
                (later, later + 1),
                (max, later),
                (later, max),
            ] {
                let told = ask(b, k, start, query(caller, current, rollback));
                assert_eq!(told, Alive(100, min));
            }
            let forced = CheckTxnStatusRequest {
                force_sync_commit: true,
                ..query(later, max, rollback)
            };
            assert_eq!(ask(b, k, start, forced), Over(Action::TtlExpireRollback));
            b.must_unlocked(k);
            b.must_rolled_back(k, start, true);
        };
        b.must_run(pre(b"k1", 1).put(&[b"k1"]).by_locks(&[], 0).min(2));
        unchanged(&mut b, b"k1", 1, 2, 5);
        b.must_lock(b"k2", b"k2", 15, 15);
        let one = pre(b"k2", 15).put(&[b"k2"]).by_locks(&[], 0).min(17);
        b.must_run(one.pessimistic(16, &[DoPessimisticCheck]));
        unchanged(&mut b, b"k2", 15, 17, 18);
        // The secondary is prewritten first; the primary is still a pessimistic lock.
        for (k, other, start, min) in [(b"k3", b"k4", 20, 21), (b"k5", b"k6", 30, 0)] {
            for (k, for_update) in [(k, start), (other, start + 5)] {
                let request = PessimisticLockRequest {
                    lock_ttl: 100,
                    min_commit_ts: min,
                    ..Default::default()
                };
                b.lock_one(request, k, b"pk", start, for_update);
            }
            let one = pre(k, start).put(&[other]).by_locks(&[], 0).min(start + 8);
            b.must_run(one.pessimistic(start + 5, &[DoPessimisticCheck]));
            let asked = CheckTxnStatusRequest {
                verify_is_primary: false,
                ..query(0, 0, rollback)
            };
            assert_eq!(ask(&mut b, k, start, asked), Alive(100, min));
        }
    }
}

#[test]
fn test_check_txn_status_resolving_primary_pessimistic_lock() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k1", b"k2");
    let lock = |b: &mut Bench, k: &[u8], start: u64| {
        let request = PessimisticLockRequest {
            lock_ttl: 10,
            ..Default::default()
        };
        let response = b.lock_one(request, k, k1, start, start);
        assert_eq!(response.errors, []);
    };
    let resolving = |now: u64, rollback: bool, pessimistic: bool| CheckTxnStatusRequest {
        resolving_pessimistic_lock: pessimistic,
        ..query(ts(now, 0), ts(now, 0), rollback)
    };
    for k in [k1, k2] {
        lock(&mut b, k, ts(1, 0));
        let one = pre(k1, ts(1, 0)).put(&[k]);
        b.must_run(one.pessimistic(ts(1, 0), &[DoPessimisticCheck]));
    }
    b.must_commit(k1, ts(1, 0), ts(2, 0));
    // A lock request that came late locked the committed primary again.
    assert_eq!(force(&mut b, k1, k1, ts(1, 0)), Ok(ts(2, 0)));
    let told = ask(&mut b, k1, ts(1, 0), resolving(5, false, false));
    assert_eq!(told, Committed(ts(2, 0)));
    b.must_unlocked(k1);
    b.must_commit(k2, ts(1, 0), ts(2, 0));

    for k in [k1, k2] {
        lock(&mut b, k, ts(11, 0));
    }
    let told = ask(&mut b, k1, ts(11, 0), resolving(15, false, false));
    assert_eq!(told, Alive(10, 0));
    let told = ask(&mut b, k1, ts(11, 0), resolving(25, false, true));
    assert_eq!(told, Over(Action::TtlExpirePessimisticRollback));
    lock(&mut b, k1, ts(11, 0));
    let told = ask(&mut b, k1, ts(11, 0), resolving(25, false, false));
    assert_eq!(told, Over(Action::TtlExpireRollback));
    b.must_rolled_back(k1, ts(11, 0), true);
    b.must_rollback(k2, ts(11, 0));

    // The lock names another primary: it is a stale one, if the lock that led here is prewritten.
    lock(&mut b, k2, ts(12, 0));
    let told = ask(&mut b, k2, ts(12, 0), resolving(25, false, true));
    assert_eq!(told, Failed("not the primary"));
    let told = ask(&mut b, k2, ts(12, 0), resolving(25, false, false));
    assert_eq!(told, Failed("no transaction"));
    let told = ask(&mut b, k2, ts(12, 0), resolving(25, true, false));
    assert_eq!(told, Over(Action::LockNotExistRollback));
    b.must_unlocked(k2);
    b.must_rolled_back(k2, ts(12, 0), true);
    // Where there is a mark, a late request gets no lock.
    b.write(k1, b"v2", ts(31, 0), ts(32, 0));
    assert_eq!(force(&mut b, k1, k1, ts(11, 0)), Err("abort"));
}

#[test]
fn test_verify_is_primary() {
    let mut b = Bench::new();
    let mismatch = |b: &mut Bench, k: &[u8], start: u64| {
        let asked = CheckTxnStatusRequest {
            resolving_pessimistic_lock: true,
            ..query(start, 0, true)
        };
        let error = b.check_status(k, start, asked).error.expect("refused");
        let info = error.primary_mismatch.expect("the lock");
        let info = info.lock_info.expect("its info");
        assert_eq!(info.key, k);
        (info.primary_lock.to_vec(), info.lock_type())
    };
    b.must_lock(b"k1", b"k2", 1, 1);
    let expected = (b"k2".to_vec(), Op::PessimisticLock);
    assert_eq!(mismatch(&mut b, b"k1", 1), expected);
    b.must_pessimistic_locked(b"k1", 1, 1);
    let one = pre(b"k2", 1).put(&[b"k1"]);
    b.must_run(one.pessimistic(1, &[DoPessimisticCheck]));
    assert_eq!(mismatch(&mut b, b"k1", 1), (b"k2".to_vec(), Op::Put));
    b.must_locked(b"k1", 1);
    b.must_share(b"k2", b"k3", 2, 2);
    assert_eq!(mismatch(&mut b, b"k2", 1), (vec![], Op::SharedLock));
}

#[test]
fn test_check_txn_status_rollback_optimistic() {
    let mut b = Bench::new();
    let k = b"k1";
    let (first, second) = (ts(1, 0), ts(2, 0));
    b.must_run(pre(k, first).put(&[k]).by_locks(&[], 0).min(ts(1, 1)));
    b.must_commit(k, first, second);
    b.must_prewrite_put(k, b"v2", k, second);
    let record = b.must_written(k, first, second, WriteKind::Put);
    assert!(!record.overlapped_rollback);
    let told = ask(&mut b, k, second, query(ts(3, 0), ts(3, 0), true));
    assert_eq!(told, Over(Action::TtlExpireRollback));
    let record = b.must_written(k, first, second, WriteKind::Put);
    let marks = (record.overlapped_rollback, record.gc_fence);
    assert_eq!(marks, (true, Some(0)));
    let error = b.must_prewrite_err(put(k, b"v2"), k, second);
    assert_eq!(word(Some(&error)), SELF);
    let conflict = error.conflict.expect("a conflict");
    assert_eq!((conflict.conflict_ts, conflict.start_ts), (first, second));
    assert_eq!(conflict.conflict_commit_ts, second);
    assert_eq!((&conflict.key[..], &conflict.primary[..]), (&k[..], &k[..]));
}

#[test]
fn test_check_async_commit_secondary_locks() {
    let mut b = Bench::new();
    let k = b"k1";
    let lock_and_commit = |b: &mut Bench, start: u64, commit: u64| {
        b.must_prewrite_lock(k, b"key", start);
        b.must_commit(k, start, commit);
    };
    lock_and_commit(&mut b, 1, 3);
    b.must_rollback(k, 5);
    lock_and_commit(&mut b, 7, 9);
    assert_eq!(b.check_secondary(k, 7), (9, false));
    assert_eq!(b.check_secondary(k, 5), (0, false));
    b.must_rolled_back(k, 5, false);
    assert_eq!(b.check_secondary(k, 1), (3, false));
    assert_eq!(b.check_secondary(k, 6), (0, false));
    b.must_rolled_back(k, 6, true);
    // A pessimistic lock is as good as none.
    b.must_lock(k, b"key", 11, 11);
    assert_eq!(b.check_secondary(k, 11), (0, false));
    b.must_rolled_back(k, 11, true);
    b.must_unlocked(k);
    b.must_prewrite_lock(k, b"key", 13);
    assert_eq!(b.check_secondary(k, 13), (0, true));
    b.must_commit(k, 13, 15);
    assert_eq!(b.check_secondary(k, 14), (0, false));
    b.must_rolled_back(k, 14, true);
    assert_eq!(b.check_secondary(k, 15), (0, false));
    let record = b.must_written(k, 13, 15, WriteKind::Lock);
    let marks = (record.overlapped_rollback, record.gc_fence);
    assert_eq!(marks, (true, Some(0)));
    // Locked by a request that came late: committed long ago, and nothing known.
    for (start, commit) in [(7, 9), (8, 0)] {
        assert_eq!(force(&mut b, k, b"key", start), Ok(15));
        assert_eq!(b.check_secondary(k, start), (commit, false));
        b.must_unlocked(k);
    }
}
