//! Locking one key pessimistically: conflicts, repetitions, values, shared locks.

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::{
    self, DoPessimisticCheck, SkipPessimisticCheck,
};
use tikv_proto::kvrpcpb::{Assertion, Op, PessimisticLockRequest};

use super::prewrite_actions::fenced;
use super::vocabulary::{OPTIMISTIC, Prepare, RETRY, SELF, pre, word};
use super::{Bench, mutation};
use crate::cluster::mvcc::write_record::WriteKind;

/// Locks a key and tells the error by one word.
fn lock(b: &mut Bench, k: &[u8], start: u64, for_update: u64) -> &'static str {
    let response = b.lock_one(Default::default(), k, k, start, for_update);
    word(response.errors.first())
}

fn prewrite(
    b: &mut Bench,
    op: Op,
    start: u64,
    for_update: u64,
    action: PessimisticAction,
) -> &'static str {
    let one = pre(b"k1", start).with(mutation(op, b"k1", b"v1"));
    b.try_run(one.pessimistic(for_update, &[action]))
}

#[test]
fn test_pessimistic_lock() {
    let mut b = Bench::new();
    let (k, v) = (b"k1", b"v1");
    let check = DoPessimisticCheck;
    b.must_lock(k, k, 1, 1);
    b.must_pessimistic_locked(k, 1, 1);
    assert_eq!(prewrite(&mut b, Op::Put, 1, 1, check), "");
    b.must_commit(k, 1, 2);
    b.must_unlocked(k);
    // Another lock is in the way.
    b.must_prewrite_put(k, v, k, 3);
    assert_eq!(lock(&mut b, k, 4, 4), "locked");
    b.must_cleanup(k, 3, 0);
    b.must_lock(k, k, 5, 5);
    assert_eq!(b.try_run(pre(k, 6).put(&[k])), "locked");
    assert_eq!(lock(&mut b, k, 6, 6), "locked");
    b.must_cleanup(k, 5, 0);
    // A newer version is.
    b.write(k, v, 7, 9);
    assert_eq!(b.try_run(pre(k, 8).put(&[k])), OPTIMISTIC);
    assert_eq!(lock(&mut b, k, 8, 8), RETRY);
    b.must_lock(k, k, 8, 9);
    assert_eq!(prewrite(&mut b, Op::Put, 8, 8, check), "");
    b.must_commit(k, 8, 10);
    // Once rolled back, nothing works any more.
    for start in [11, 12] {
        b.must_lock(k, k, start, start);
        if start == 12 {
            assert_eq!(prewrite(&mut b, Op::Put, start, start, check), "");
        }
        b.must_cleanup(k, start, 0);
        assert_eq!(lock(&mut b, k, start, start), "abort");
        assert_eq!(
            prewrite(&mut b, Op::Put, start, start, check),
            "lock missing"
        );
        assert_eq!(b.try_run(pre(k, start).put(&[k])), SELF);
        b.must_unlocked(k);
    }
    // Twice.
    for _ in 0..2 {
        b.must_lock(k, k, 13, 13);
        b.must_pessimistic_locked(k, 13, 13);
    }
    for _ in 0..2 {
        assert_eq!(prewrite(&mut b, Op::Put, 13, 13, check), "");
        b.must_locked(k, 13);
    }
    for _ in 0..2 {
        b.must_commit(k, 13, 14);
        b.must_unlocked(k);
    }
    // Readers do not mind it before it is prewritten.
    b.must_lock(k, k, 15, 15);
    b.must_get(k, 16, b"v1");
    assert_eq!(prewrite(&mut b, Op::Del, 15, 15, check), "");
    b.must_get_err(k, 16);
    b.must_commit(k, 15, 17);
    b.must_lock(k, k, 18, 18);
    b.must_rollback(k, 18);
    b.write(k, v, 19, 20);
    assert_eq!(lock(&mut b, k, 18, 21), "abort");
    // The own lock is of the other kind.
    b.must_prewrite_put(k, v, k, 23);
    assert_eq!(lock(&mut b, k, 23, 23), "abort");
    b.must_cleanup(k, 23, 0);
    b.must_lock(k, k, 24, 24);
    assert_eq!(b.try_run(pre(k, 24).put(&[k])), "abort");
    b.must_rollback(k, 24);
    b.must_lock(k, k, 26, 26);
    assert_eq!(prewrite(&mut b, Op::Del, 26, 26, check), "");
    assert_eq!(lock(&mut b, k, 26, 26), "abort");
    b.must_locked(k, 26);
    b.must_commit(k, 26, 27);
    assert_eq!(lock(&mut b, k, 26, 26), RETRY);
    b.must_get_none(k, 28);
    // It tells success here, because the transaction has been committed.
    assert_eq!(prewrite(&mut b, Op::Put, 26, 26, check), "");
    b.must_unlocked(k);
    b.must_get_none(k, 28);
    // The server cannot avoid this either.
    b.must_lock(k, k, 26, 29);
    b.pessimistic_rollback(k, 26, 29);
    // A key that is not locked in a pessimistic transaction.
    assert_eq!(prewrite(&mut b, Op::Put, 30, 30, SkipPessimisticCheck), "");
    b.must_commit(k, 30, 31);
    // A mark that has collapsed is forgotten.
    b.must_rollback(k, 32);
    b.must_rollback(k, 33);
    assert_eq!(lock(&mut b, k, 32, 32), RETRY);
    b.must_lock(k, k, 32, 34);
    b.pessimistic_rollback(k, 32, 34);
    // Again at another version.
    for (for_update, held) in [(36, 36), (35, 36), (37, 37)] {
        b.must_lock(k, k, 35, for_update);
        b.must_pessimistic_locked(k, 35, held);
    }
    assert_eq!(prewrite(&mut b, Op::Put, 36, 36, check), "lock missing");
    assert_eq!(prewrite(&mut b, Op::Put, 36, 38, check), "lock missing");
    assert_eq!(prewrite(&mut b, Op::Put, 35, 37, check), "");
    assert_eq!(prewrite(&mut b, Op::Put, 36, 38, check), "lock missing");
    b.must_locked(k, 35);
    // Below the version of the lock; nobody checks.
    b.must_commit(k, 35, 36);
    for (start, locked_at, for_update, action, commit) in [
        (40, 40, 40, SkipPessimisticCheck, 41),
        (42, 45, 43, check, 45),
        (46, 47, 48, check, 50),
    ] {
        b.must_lock(k, k, start, locked_at);
        assert_eq!(prewrite(&mut b, Op::Put, start, for_update, action), "");
        b.must_commit(k, start, commit);
        assert_eq!(b.commit_of(k, start), Some(commit));
    }
    assert_eq!(prewrite(&mut b, Op::Put, 47, 48, SkipPessimisticCheck), "");
    b.must_cleanup(k, 47, 0);
    // The mark of a primary stays.
    b.must_lock(k, k, 49, 60);
    assert_eq!(prewrite(&mut b, Op::Put, 49, 60, check), "");
    b.must_cleanup(k, 49, 0);
    b.must_rolled_back(k, 49, true);
    b.must_prewrite_put(k, v, k, 51);
    b.must_rollback(k, 51);
    assert_eq!(lock(&mut b, k, 49, 60), "abort");
    // On a record of another transaction.
    b.must_lock(k, k, 50, 61);
    assert_eq!(prewrite(&mut b, Op::Put, 50, 61, check), "");
    b.must_cleanup(k, 50, 0);
    let write = b.must_written(k, 46, 50, WriteKind::Put);
    assert_eq!((write.overlapped_rollback, write.gc_fence), (true, Some(0)));
    // Transactions that interlace.
    for start in [140, 150, 160] {
        b.must_lock(k, k, start, start + 48);
        assert_eq!(prewrite(&mut b, Op::Put, start, start + 48, check), "");
        b.must_commit(k, start, start + 50);
        b.must_get(k, start + 51, v);
    }
    b.must_rollback(k, 170);
    for start in [140, 150, 160] {
        assert_eq!(b.commit_of(k, start), Some(start + 50));
    }
    b.must_rolled_back(k, 170, false);
}

/// Locks a key for its value; `Err` holds the word of the error.
fn lock_value(
    b: &mut Bench,
    k: &[u8],
    start: u64,
    for_update: u64,
    only_if_exists: bool,
) -> Result<Option<Vec<u8>>, &'static str> {
    let request = PessimisticLockRequest {
        return_values: true,
        lock_only_if_exists: only_if_exists,
        ..Default::default()
    };
    let response = b.lock_one(request, k, k, start, for_update);
    match response.errors.first() {
        Some(error) => Err(word(Some(error))),
        None if response.not_founds[0] => Ok(None),
        None => Ok(Some(response.values[0].to_vec())),
    }
}

#[test]
fn test_pessimistic_lock_return_value() {
    let mut b = Bench::new();
    let (k, v) = (b"k", b"v");
    let some = Ok(Some(v.to_vec()));
    assert_eq!(lock_value(&mut b, k, 10, 10, false), Ok(None));
    b.pessimistic_rollback(k, 10, 10);
    b.must_prewrite_put(k, v, k, 10);
    assert_eq!(lock_value(&mut b, k, 20, 20, false), Err("locked"));
    b.must_commit(k, 10, 20);
    assert_eq!(lock_value(&mut b, k, 15, 15, false), Err(RETRY));
    let read = |b: &mut Bench, ts: u64| {
        let value = lock_value(b, k, ts, ts, false);
        b.must_pessimistic_locked(k, ts, ts);
        b.pessimistic_rollback(k, ts, ts);
        value
    };
    assert_eq!(read(&mut b, 25), some);
    b.touch(k, 30, 40);
    assert_eq!(read(&mut b, 45), some, "below a record without data");
    b.must_rollback(k, 50);
    assert_eq!(read(&mut b, 55), some, "below a rollback");
    b.erase(k, 60, 70);
    for (for_update, value) in [(75, Ok(None)), (75, Ok(None)), (55, some)] {
        assert_eq!(lock_value(&mut b, k, 75, for_update, false), value);
        b.must_pessimistic_locked(k, 75, 75);
    }
}

#[test]
fn test_pessimistic_lock_only_if_exists() {
    let mut b = Bench::new();
    let (k, v) = (b"k", b"v");
    assert_eq!(lock_value(&mut b, k, 10, 10, true), Ok(None));
    b.must_unlocked(k);
    let without_value = PessimisticLockRequest {
        lock_only_if_exists: true,
        ..Default::default()
    };
    let refused = b.lock_one(without_value, k, k, 10, 10).errors;
    assert!(refused[0].abort.contains("LockIfExistsFailed"));
    b.write(k, v, 10, 20);
    let prepare: [(u64, Prepare); 3] = [
        (25, |_| {}),
        (45, |b| b.touch(b"k", 30, 40)),
        (55, |b| b.must_rollback(b"k", 50)),
    ];
    for (ts, prepare) in prepare {
        prepare(&mut b);
        assert_eq!(lock_value(&mut b, k, ts, ts, true), Ok(Some(v.to_vec())));
        b.must_pessimistic_locked(k, ts, ts);
        b.pessimistic_rollback(k, ts, ts);
    }
    b.erase(k, 60, 70);
    assert_eq!(lock_value(&mut b, k, 75, 75, true), Ok(None));
    b.must_unlocked(k);
    assert_eq!(lock_value(&mut b, k, 75, 75, false), Ok(None));
    b.must_pessimistic_locked(k, 75, 75);
    // Locked already: it stays locked though there is no value.
    assert_eq!(lock_value(&mut b, k, 75, 85, true), Ok(None));
    b.must_pessimistic_locked(k, 75, 85);
}

#[test]
fn test_overwrite_pessimistic_lock() {
    let mut b = Bench::new();
    for (for_update, held) in [(2, 2), (1, 2), (3, 3)] {
        b.must_lock(b"k1", b"k1", 1, for_update);
        b.must_pessimistic_locked(b"k1", 1, held);
    }
}

#[test]
fn test_pessimistic_lock_check_gc_fence() {
    let (mut b, cases) = fenced();
    for (k, counts) in cases {
        let mut must_be_absent = mutation(Op::PessimisticLock, k, b"");
        must_be_absent.set_assertion(Assertion::NotExist);
        let request = PessimisticLockRequest {
            mutations: vec![must_be_absent],
            ..Default::default()
        };
        let errors = b.lock_one(request, k, k, 50, 50).errors;
        let expected = if counts { "exists" } else { "" };
        assert_eq!(word(errors.first()), expected, "{k:?}");
        b.pessimistic_rollback(k, 50, 51);
        b.must_unlocked(k);
        for locked_before in [false, true] {
            if locked_before {
                b.must_lock(k, k, 50, 51);
            }
            let value = lock_value(&mut b, k, 50, 50, false);
            assert_eq!(value.map(|v| v.is_some()), Ok(counts), "{k:?}");
            b.pessimistic_rollback(k, 50, 51);
        }
    }
}

#[test]
fn test_check_existence() {
    let mut b = Bench::new();
    b.write(b"k2", b"v2", 5, 20);
    b.write(b"k3", b"v3", 5, 6);
    b.erase(b"k3", 7, 20);
    b.write(b"k4", b"v4", 5, 15);
    b.touch(b"k4", 16, 17);
    b.must_cleanup(b"k4", 20, 0);
    b.write(b"k5", b"v5", 5, 6);
    b.fence(b"k5", 6, 8);
    for case in 0..16 {
        let (values, existence) = (case & 1 != 0, case & 2 != 0);
        let (start, repeated) = (if case & 4 != 0 { 10 } else { 30 }, case & 8 != 0);
        let found: [(&[u8], Option<&str>); 5] = [
            (b"k1", None),
            (b"k2", Some("v2")),
            (b"k3", None),
            (b"k4", Some("v4")),
            (b"k5", None),
        ];
        for (k, value) in found {
            if repeated {
                b.must_lock(k, k, start, 30);
            }
            let request = PessimisticLockRequest {
                return_values: values,
                check_existence: existence,
                ..Default::default()
            };
            let response = b.lock_one(request, k, k, start, 30);
            let told = if values { value.unwrap_or("") } else { "" };
            assert_eq!(response.values.len(), usize::from(values));
            assert!(response.values.iter().all(|v| v == told.as_bytes()));
            let absent = vec![value.is_none(); usize::from(values || existence)];
            assert_eq!(response.not_founds, absent, "{case} {k:?}");
            b.pessimistic_rollback(k, start, 30);
        }
    }
}

#[test]
fn test_acquire_pessimistic_lock_should_not_exist() {
    let mut b = Bench::new();
    let k = b"k";
    b.write(k, b"val", 3, 5);
    let mut absent = |ts: u64, max_ts: u64| {
        let mut m = mutation(Op::PessimisticLock, k, b"");
        m.set_assertion(Assertion::NotExist);
        let request = PessimisticLockRequest {
            mutations: vec![m],
            ..Default::default()
        };
        let errors = b.lock_one(request, k, k, ts, ts).errors;
        assert_eq!(b.served(k), max_ts);
        if ts == 15 {
            b.must_lock(k, k, 8, 8);
            let one = pre(k, 8).with(mutation(Op::Del, k, b""));
            b.must_run(one.pessimistic(8, &[DoPessimisticCheck]));
            b.must_commit(k, 8, max_ts + 1);
        }
        word(errors.first())
    };
    assert_eq!(absent(15, 15), "exists");
    assert_eq!(absent(10, 15), RETRY);
}

#[test]
fn test_repeated_request_check_should_not_exist() {
    for case in 0..4 {
        let mut b = Bench::new();
        let k = b"k";
        // What the transactions leave one after the other, and whether the next finds a value.
        let steps = [
            (10, Op::Lock, false),
            (20, Op::Put, false),
            (30, Op::Lock, true),
            (40, Op::Del, true),
            (50, Op::Lock, false),
            (60, Op::Lock, false),
        ];
        for (ts, op, exists) in steps {
            b.must_lock(k, k, ts, ts);
            let mut m = mutation(Op::PessimisticLock, k, b"");
            m.set_assertion(Assertion::NotExist);
            let request = PessimisticLockRequest {
                mutations: vec![m],
                return_values: case & 1 != 0,
                check_existence: case & 2 != 0,
                ..Default::default()
            };
            let errors = b.lock_one(request, k, k, ts, ts).errors;
            assert_eq!(word(errors.first()), if exists { "exists" } else { "" });
            let one = pre(k, ts).with(mutation(op, k, b"v1"));
            b.must_run(one.pessimistic(ts, &[DoPessimisticCheck]));
            b.must_commit(k, ts, ts + 9);
        }
    }
}

#[test]
fn test_acquire_shared_lock_creates_shared_entry() {
    let mut b = Bench::new();
    b.must_share(b"k", b"pk", 5, 15);
    let shared = b.shared(b"k");
    assert_eq!(shared.members.len(), 1);
    let lock = &shared.members[&5];
    assert!(lock.is_pessimistic());
    assert_eq!((&lock.primary[..], lock.for_update_ts), (&b"pk"[..], 15));
}

#[test]
fn test_acquire_shared_lock_merges_existing_entries() {
    let mut b = Bench::new();
    b.must_share(b"k", b"pk1", 10, 20);
    b.must_share(b"k", b"pk2", 12, 18);
    let shared = b.shared(b"k");
    let members = shared.members.values();
    let members: Vec<_> = members
        .map(|l| {
            (
                l.start_ts,
                l.for_update_ts,
                &l.primary[..],
                l.is_pessimistic(),
            )
        })
        .collect();
    let expected = [(10, 20, &b"pk1"[..], true), (12, 18, &b"pk2"[..], true)];
    assert_eq!(members, expected);
}

#[test]
fn test_acquire_shared_lock_idempotent_for_same_txn() {
    let mut b = Bench::new();
    b.must_share(b"k", b"pk", 25, 35);
    b.must_share(b"k", b"pk", 25, 45);
    let shared = b.shared(b"k");
    assert_eq!(shared.members.len(), 1);
    assert_eq!(shared.members[&25].for_update_ts, 45);
}

#[test]
fn test_lock_upgrade_and_downgrade_blocked() {
    let mut b = Bench::new();
    b.must_share(b"shared", b"pk", 25, 35);
    b.must_lock_err(b"shared", b"pk", 25, 45);
    b.must_lock(b"alone", b"pk", 25, 35);
    assert_eq!(b.share(b"alone", b"pk", 25, 45).errors.len(), 1);
    b.must_pessimistic_locked(b"alone", 25, 35);
}

#[test]
fn test_xlock_meet_slock_without_shrink_only() {
    let mut b = Bench::new();
    b.must_share(b"k", b"pk", 10, 20);
    assert!(!b.shared(b"k").shrink_only);
    let error = b.must_lock_err(b"k", b"pk", 30, 30);
    let info = error.locked.expect("the shared locks are in the way");
    assert_eq!(info.shared_lock_infos.len(), 1);
    let shared = b.shared(b"k");
    assert!(shared.shrink_only, "closed to new members");
    assert_eq!(shared.members.len(), 1);
}

#[test]
fn test_slock_meet_slock_with_shrink_only() {
    let mut b = Bench::new();
    b.must_share(b"k", b"pk", 5, 15);
    b.must_lock_err(b"k", b"pk", 30, 30);
    let errors = b.share(b"k", b"pk", 20, 20).errors;
    let info = errors[0].locked.clone().expect("closed");
    assert_eq!(info.lock_type(), Op::SharedLock);
    // A member may ask again.
    b.must_share(b"k", b"pk", 5, 16);
}

#[test]
fn test_pessimistic_with_return_values() {
    let mut b = Bench::new();
    let keys: [&[u8]; 5] = [b"k1", b"k2", b"k3", b"k4", b"k5"];
    for k in &keys[..4] {
        b.write(k, b"v1", 10, 20);
    }
    b.write(b"k1", b"v2", 30, 40);
    b.write(b"k2", b"v2", 30, 40);
    b.erase(b"k3", 30, 40);
    b.erase(b"k4", 30, 40);
    for k in [b"k1", b"k3"] {
        b.must_prewrite_put(k, b"v3", b"k1", 50);
        b.must_rollback(k, 50);
    }
    for k in [b"k2", b"k4"] {
        b.touch(k, 51, 60);
    }
    let values: [&[u8]; 5] = [b"v2", b"v2", b"", b"", b""];
    for start in [15, 25, 35, 45, 55, 65] {
        let mut ask = |wanted: &[&[u8]], start: u64| {
            let mutations = wanted.iter();
            let mutations = mutations.map(|k| mutation(Op::PessimisticLock, k, b""));
            let request = PessimisticLockRequest {
                mutations: mutations.collect(),
                return_values: true,
                ..Default::default()
            };
            let response = b.lock_one(request, wanted[0], wanted[0], start, start + 50);
            assert_eq!(response.errors, []);
            for k in wanted {
                b.must_pessimistic_locked(k, start, start + 50);
                b.must_rollback(k, start);
            }
            (response.values, response.not_founds)
        };
        let (got, absent) = ask(&keys, start);
        assert_eq!(got, values);
        assert_eq!(absent, [false, false, true, true, true]);
        for (k, value) in keys.iter().zip(values) {
            let (got, absent) = ask(&[k], start + 1);
            assert_eq!((&got[0][..], absent), (value, vec![value.is_empty()]));
        }
    }
}

#[test]
fn test_shared_locks() {
    let mut b = Bench::new();
    let k = b"shared";
    b.must_share(k, b"pk", 5, 5);
    b.must_share(k, b"pk", 7, 7);
    let error = b.must_lock_err(k, b"pk", 10, 10);
    assert_eq!(error.locked.expect("shared").shared_lock_infos.len(), 2);
    assert!(b.shared(k).shrink_only);
    // From now on both kinds would wait.
    b.must_lock_err(k, b"pk", 12, 12);
    assert_eq!(word(b.share(k, b"pk", 15, 15).errors.first()), "locked");
    assert_eq!(b.shared(k).members.len(), 2);
    // The last one who leaves frees the key.
    b.pessimistic_rollback(k, 5, 5);
    b.pessimistic_rollback(k, 7, 7);
    b.must_lock(k, b"pk", 16, 16);
}
