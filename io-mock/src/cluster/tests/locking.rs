//! Pessimistic locks.

use bytes::Bytes;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::{
    DoPessimisticCheck, SkipPessimisticCheck,
};
use tikv_proto::kvrpcpb::{
    Assertion, Op, PessimisticLockKeyResultType, PessimisticLockRequest, PessimisticLockWakeUpMode,
};

use super::{Bench, mutation, put};
use crate::cluster::mvcc::write_record::WriteKind;

#[test]
fn test_pessimistic_lock() {
    let mut b = Bench::new();
    let (k, v) = (b"k1", b"v1");
    let prewrite = |b: &mut Bench, start: u64, for_update: u64| {
        b.pessimistic_prewrite(put(k, v), k, start, for_update, DoPessimisticCheck)
    };
    b.must_lock(k, k, 1, 1);
    b.must_pessimistic_locked(k, 1, 1);
    assert_eq!(prewrite(&mut b, 1, 1), None);
    b.must_locked(k, 1);
    b.must_commit(k, 1, 2);
    // A lock in the way.
    b.must_prewrite_put(k, v, k, 3);
    b.must_lock_err(k, k, 4, 4);
    b.must_cleanup(k, 3, 0);
    b.must_lock(k, k, 5, 5);
    b.must_prewrite_err(mutation(Op::Lock, k, b""), k, 6);
    b.must_lock_err(k, k, 6, 6);
    b.must_cleanup(k, 5, 0);
    // A version in the way.
    b.must_prewrite_put(k, v, k, 7);
    b.must_commit(k, 7, 9);
    b.must_prewrite_err(mutation(Op::Lock, k, b""), k, 8);
    b.must_lock_err(k, k, 8, 8);
    b.must_lock(k, k, 8, 9);
    assert_eq!(prewrite(&mut b, 8, 8), None);
    b.must_commit(k, 8, 10);
    // Rolled back, locked or prewritten.
    for start in [11, 12] {
        b.must_lock(k, k, start, start);
        if start == 12 {
            assert_eq!(prewrite(&mut b, start, start), None);
        }
        b.must_cleanup(k, start, 0);
        b.must_lock_err(k, k, start, start);
        assert!(prewrite(&mut b, start, start).is_some());
        b.must_prewrite_err(mutation(Op::Lock, k, b""), k, start);
        b.must_unlocked(k);
    }
    // Everything twice.
    for _ in 0..2 {
        b.must_lock(k, k, 13, 13);
        b.must_pessimistic_locked(k, 13, 13);
    }
    for _ in 0..2 {
        assert_eq!(prewrite(&mut b, 13, 13), None);
        b.must_locked(k, 13);
    }
    for _ in 0..2 {
        b.must_commit(k, 13, 14);
        b.must_unlocked(k);
    }
    // A pessimistic lock does not hinder reads.
    b.must_lock(k, k, 15, 15);
    b.must_get(k, 16, v);
    let delete = mutation(Op::Del, k, b"");
    assert_eq!(
        b.pessimistic_prewrite(delete.clone(), k, 15, 15, DoPessimisticCheck),
        None
    );
    b.must_get_err(k, 16);
    b.must_commit(k, 15, 17);
    // Rolled back below a newer version.
    b.must_lock(k, k, 18, 18);
    b.must_rollback(k, 18);
    b.must_prewrite_put(k, v, k, 19);
    b.must_commit(k, 19, 20);
    b.must_lock_err(k, k, 18, 21);
    // Locks of the wrong kind.
    b.must_prewrite_put(k, v, k, 23);
    b.must_lock_err(k, k, 23, 23);
    b.must_cleanup(k, 23, 0);
    b.must_lock(k, k, 24, 24);
    b.must_prewrite_err(put(k, v), k, 24);
    b.must_rollback(k, 24);
    // Prewritten and committed keys are not locked again,
    b.must_lock(k, k, 26, 26);
    assert_eq!(
        b.pessimistic_prewrite(delete, k, 26, 26, DoPessimisticCheck),
        None
    );
    b.must_lock_err(k, k, 26, 26);
    b.must_commit(k, 26, 27);
    b.must_lock_err(k, k, 26, 26);
    assert_eq!(
        prewrite(&mut b, 26, 26),
        None,
        "committed before: success again"
    );
    b.must_unlocked(k);
    // except by a request with a newer version: a known gap.
    b.must_lock(k, k, 26, 29);
    b.pessimistic_rollback(k, 26, 29);
    b.must_unlocked(k);
    // A key that is not locked.
    assert_eq!(
        b.pessimistic_prewrite(put(k, v), k, 30, 30, SkipPessimisticCheck),
        None
    );
    b.must_commit(k, 30, 31);
    b.must_written(k, 30, 31, WriteKind::Put);
    // A collapsed rollback: the same gap.
    b.must_rollback(k, 32);
    b.must_rollback(k, 33);
    b.must_lock_err(k, k, 32, 32);
    b.must_lock(k, k, 32, 34);
    b.pessimistic_rollback(k, 32, 34);
    // The version of a lock only grows.
    for (for_update_ts, held) in [(36, 36), (35, 36), (37, 37)] {
        b.must_lock(k, k, 35, for_update_ts);
        b.must_pessimistic_locked(k, 35, held);
    }
    assert!(prewrite(&mut b, 36, 36).is_some());
    assert!(prewrite(&mut b, 36, 38).is_some());
    b.must_pessimistic_locked(k, 35, 37);
}

#[test]
fn test_pessimistic_lock_return_value_and_existence() {
    let mut b = Bench::new();
    let k = b"k";
    let values = PessimisticLockRequest {
        return_values: true,
        ..Default::default()
    };
    let exists = PessimisticLockRequest {
        check_existence: true,
        ..Default::default()
    };
    let response = b.lock_one(values.clone(), k, k, 10, 10);
    assert_eq!(
        (response.values, response.not_founds),
        (vec![Bytes::new()], vec![true])
    );
    let response = b.lock_one(exists.clone(), k, k, 10, 10);
    assert_eq!((response.values, response.not_founds), (vec![], vec![true]));
    b.pessimistic_rollback(k, 10, 10);
    b.must_prewrite_put(k, b"v", k, 20);
    b.must_commit(k, 20, 25);
    let response = b.lock_one(values, k, k, 30, 30);
    assert_eq!(
        (response.values, response.not_founds),
        (vec![Bytes::from("v")], vec![false])
    );
    let response = b.lock_one(exists, k, k, 30, 30);
    assert_eq!(
        (response.values, response.not_founds),
        (vec![], vec![false])
    );
}

#[test]
fn test_pessimistic_lock_only_if_exists() {
    let mut b = Bench::new();
    let k = b"k";
    let only = |values: bool| PessimisticLockRequest {
        lock_only_if_exists: true,
        return_values: values,
        ..Default::default()
    };
    let error = b.lock_one(only(false), k, k, 10, 10).errors;
    assert!(error[0].abort.contains("LockIfExistsFailed"));
    assert_eq!(b.lock_one(only(true), k, k, 10, 10).not_founds, [true]);
    b.must_unlocked(k);
    b.must_prewrite_put(k, b"v", k, 20);
    b.must_commit(k, 20, 25);
    assert_eq!(b.lock_one(only(true), k, k, 30, 30).not_founds, [false]);
    b.must_pessimistic_locked(k, 30, 30);
}

#[test]
fn test_pessimistic_lock_should_not_exist() {
    let mut b = Bench::new();
    let k = b"k";
    let mut insert = mutation(Op::PessimisticLock, k, b"");
    insert.set_assertion(Assertion::NotExist);
    let request = PessimisticLockRequest {
        mutations: vec![insert],
        ..Default::default()
    };
    assert_eq!(b.lock_one(request.clone(), k, k, 5, 5).errors, []);
    b.pessimistic_rollback(k, 5, 5);
    b.must_prewrite_put(k, b"v", k, 10);
    b.must_commit(k, 10, 15);
    let errors = b.lock_one(request, k, k, 20, 20).errors;
    assert!(errors[0].already_exist.is_some());
}

#[test]
fn test_lock_with_conflict() {
    let mut b = Bench::new();
    let k = b"k1";
    let force = PessimisticLockRequest {
        wake_up_mode: PessimisticLockWakeUpMode::WakeUpModeForceLock.into(),
        ..Default::default()
    };
    b.must_prewrite_put(k, b"v1", k, 10);
    b.must_commit(k, 10, 20);
    for for_update_ts in [15, 10] {
        let response = b.lock_one(force.clone(), k, k, 10, for_update_ts);
        let result = &response.results[0];
        assert_eq!(
            result.r#type(),
            PessimisticLockKeyResultType::LockResultLockedWithConflict
        );
        assert_eq!(
            (result.locked_with_conflict_ts, &result.value[..]),
            (20, &b"v1"[..])
        );
        b.must_pessimistic_locked(k, 10, 20);
    }
    let response = b.lock_one(force.clone(), k, k, 10, 20);
    assert_eq!(
        response.results[0].r#type(),
        PessimisticLockKeyResultType::LockResultNormal
    );
    // A lock in the way fails the key.
    let response = b.lock_one(force, k, k, 30, 30);
    assert_eq!(
        response.results[0].r#type(),
        PessimisticLockKeyResultType::LockResultFailed
    );
    assert!(response.errors[0].locked.is_some());
}

#[test]
fn test_shared_locks() {
    let mut b = Bench::new();
    let (k, pk) = (b"k", b"p");
    let shared = PessimisticLockRequest {
        mutations: vec![mutation(Op::SharedPessimisticLock, k, b"")],
        ..Default::default()
    };
    for start_ts in [10, 20] {
        assert_eq!(b.lock_one(shared.clone(), k, pk, start_ts, 20).errors, []);
    }
    // Whoever wants the key alone closes it for new members.
    let locked = b.must_lock_err(k, pk, 30, 30).locked.expect("locked");
    assert_eq!(locked.lock_type(), Op::SharedLock);
    assert_eq!(locked.shared_lock_infos.len(), 2);
    assert!(b.lock_one(shared, k, pk, 40, 40).errors[0].locked.is_some());
    let member = mutation(Op::SharedLock, k, b"");
    assert_eq!(
        b.pessimistic_prewrite(member, pk, 10, 20, DoPessimisticCheck),
        None
    );
    b.must_commit(k, 10, 50);
    b.must_written(k, 10, 50, WriteKind::Lock);
    b.pessimistic_rollback(k, 20, 20);
    b.must_lock(k, pk, 60, 60);
}

#[test]
fn test_memory_locks_follow_the_leader() {
    let mut b = Bench::new();
    let (k, id) = (b"k", b.to(b"k").0.expect("a context").region_id);
    b.must_lock(k, k, 10, 10);
    assert_eq!(
        b.cluster.region(id).expect("the region").memory_locks.len(),
        1
    );
    // A voluntary transfer hands them over, a crash loses them.
    assert!(b.cluster.transfer_leader(super::NOW, id, 2));
    b.must_pessimistic_locked(k, 10, 10);
    b.must_lock(k, k, 10, 12);
    b.must_lock(b"k2", k, 10, 12);
    assert!(b.cluster.elect(super::NOW, id, 3));
    b.must_unlocked(b"k2");
    b.must_pessimistic_locked(k, 10, 10);
    // A lost lock is as good as held while the key has not changed.
    let lost = put(b"k2", b"v");
    assert_eq!(
        b.pessimistic_prewrite(lost, k, 10, 12, DoPessimisticCheck),
        None
    );
}

#[test]
fn a_lock_in_memory_hides_one_that_is_stored_later() {
    let mut b = Bench::new();
    b.must_lock(b"a", b"a", 5, 5);
    // Beside a shared lock everything is stored, and what is in memory is not looked for.
    let request = PessimisticLockRequest {
        mutations: vec![
            mutation(Op::PessimisticLock, b"a", b""),
            mutation(Op::SharedPessimisticLock, b"b", b""),
        ],
        ..Default::default()
    };
    let response = b.lock_one(request, b"a", b"a", 5, 9);
    assert_eq!((response.region_error, response.errors), (None, vec![]));
    b.must_pessimistic_locked(b"a", 5, 5);
    b.pessimistic_rollback(b"a", 5, 9);
    b.must_unlocked(b"a");
}
