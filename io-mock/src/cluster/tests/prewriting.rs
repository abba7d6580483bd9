//! Prewrite and flush.

use bytes::Bytes;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::{
    DoConstraintCheck, DoPessimisticCheck, SkipPessimisticCheck,
};
use tikv_proto::kvrpcpb::write_conflict::Reason;
use tikv_proto::kvrpcpb::{
    Assertion, AssertionLevel, FlushRequest, KeyError, Op, PrewriteRequest, PrewriteResponse,
};

use super::{Bench, NOW, mutation, put};
use crate::cluster::mvcc::write_record::WriteKind;

fn reason(error: Option<KeyError>) -> Option<Reason> {
    error?.conflict.map(|conflict| conflict.reason())
}

fn request(keys: &[&[u8]], start_ts: u64) -> PrewriteRequest {
    PrewriteRequest {
        mutations: keys.iter().map(|k| put(k, b"v")).collect(),
        primary_lock: Bytes::copy_from_slice(keys[0]),
        start_version: start_ts,
        ..Default::default()
    }
}

#[test]
fn test_mvcc_txn_prewrite_insert() {
    let mut b = Bench::new();
    let k = b"k1";
    let insert = mutation(Op::Insert, k, b"v2");
    b.must_prewrite_put(k, b"v1", k, 1);
    b.must_commit(k, 1, 2);
    assert!(
        b.must_prewrite_err(insert.clone(), k, 3)
            .already_exist
            .is_some()
    );
    // The key must not exist now; that it did not at an older version is no help.
    b.must_prewrite_delete(k, k, 4);
    assert!(b.must_prewrite_err(insert.clone(), k, 5).locked.is_some());
    b.must_commit(k, 4, 6);
    assert_eq!(
        reason(b.prewrite_one(insert.clone(), k, 5)),
        Some(Reason::Optimistic)
    );
    assert_eq!(b.prewrite_one(insert.clone(), k, 7), None);
    assert_eq!(b.prewrite_one(insert, k, 7), None);
    b.must_rollback(k, 7);
    // Below a rollback and a lock the value still exists.
    b.must_prewrite_put(k, b"v", k, 8);
    b.must_commit(k, 8, 9);
    b.must_prewrite_put(k, b"v", b"other", 10);
    b.must_rollback(k, 10);
    let insert = mutation(Op::Insert, k, b"v2");
    assert!(b.must_prewrite_err(insert, k, 11).already_exist.is_some());
}

#[test]
fn test_mvcc_txn_prewrite_check_not_exist() {
    let mut b = Bench::new();
    let k = b"k1";
    let check = mutation(Op::CheckNotExists, k, b"");
    assert_eq!(b.prewrite_one(check.clone(), k, 1), None);
    b.must_unlocked(k);
    b.must_prewrite_put(k, b"v1", k, 2);
    assert!(b.must_prewrite_err(check.clone(), k, 3).locked.is_some());
    b.must_commit(k, 2, 4);
    assert!(
        b.must_prewrite_err(check.clone(), k, 5)
            .already_exist
            .is_some()
    );
    let pessimistic = b.pessimistic_prewrite(check, k, 6, 6, DoPessimisticCheck);
    assert!(
        pessimistic
            .expect("refused")
            .abort
            .contains("checkNotExists")
    );
}

#[test]
fn test_constraint_check_with_overlapping_txn() {
    let mut b = Bench::new();
    let k = b"k1";
    b.must_prewrite_put(k, b"v1", k, 10);
    b.must_commit(k, 10, 11);
    b.must_lock(k, k, 5, 12);
    let lock = mutation(Op::Lock, k, b"");
    assert_eq!(
        b.pessimistic_prewrite(lock, k, 5, 12, DoPessimisticCheck),
        None
    );
    b.must_commit(k, 5, 15);
    b.must_get(k, 19, b"v1");
    let insert = mutation(Op::Insert, k, b"v1");
    assert!(b.must_prewrite_err(insert, k, 20).already_exist.is_some());
}

#[test]
fn test_non_pessimistic_lock_conflict() {
    let mut b = Bench::new();
    let k = b"k1";
    let mut first = request(&[k], 2);
    first.lock_ttl = 3;
    assert_eq!(b.prewrite(first).errors, []);
    // A pessimistic transaction is told to resolve at once.
    let error = b.pessimistic_prewrite(put(k, b"v"), k, 10, 10, SkipPessimisticCheck);
    assert_eq!(error.and_then(|e| e.locked).expect("locked").lock_ttl, 0);
    let error = b.must_prewrite_err(put(k, b"v"), k, 10);
    assert_eq!(error.locked.expect("locked").lock_ttl, 3);
}

#[test]
fn test_pessimistic_txn_ttl() {
    for (held, asked, ttl) in [(100, 110, 110), (100, 90, 100)] {
        let mut b = Bench::new();
        let k = b"k";
        b.must_lock(k, k, 10, 10);
        assert_eq!(b.heart_beat(k, 10, held).lock_ttl, held);
        let mut request = request(&[k], 10);
        request.for_update_ts = 10;
        request.pessimistic_actions = vec![DoPessimisticCheck.into()];
        request.lock_ttl = asked;
        assert_eq!(b.prewrite(request).errors, []);
        assert_eq!(b.must_locked(k, 10).ttl, ttl);
    }
}

#[test]
fn test_amend_pessimistic_lock() {
    let mut b = Bench::new();
    let k = b"key";
    b.must_prewrite_put(k, b"v", k, 2);
    b.must_commit(k, 2, 3);
    // Not changed since the start: as good as locked.
    let prewrite = |b: &mut Bench, start: u64, for_update: u64| {
        b.pessimistic_prewrite(put(k, b"v"), k, start, for_update, DoPessimisticCheck)
    };
    assert_eq!(prewrite(&mut b, 4, 5), None);
    b.must_locked(k, 4);
    b.must_commit(k, 4, 6);
    // Changed since, or held by another.
    let gone = prewrite(&mut b, 5, 7).expect("changed");
    assert!(gone.abort.contains("LockMissingAmendFail"));
    b.must_prewrite_put(k, b"v", k, 10);
    let gone = prewrite(&mut b, 12, 12).expect("held by another");
    assert!(gone.abort.contains("LockTsMismatch"));
}

#[test]
fn test_deferred_constraint_check() {
    let mut b = Bench::new();
    let k = b"k";
    let insert = |b: &mut Bench, start: u64, for_update: u64| {
        let m = mutation(Op::Insert, k, b"v");
        b.pessimistic_prewrite(m, k, start, for_update, DoConstraintCheck)
    };
    b.must_prewrite_put(k, b"v", k, 5);
    b.must_commit(k, 5, 10);
    assert_eq!(
        reason(insert(&mut b, 6, 20)),
        Some(Reason::LazyUniquenessCheck)
    );
    assert!(
        insert(&mut b, 15, 20)
            .expect("exists")
            .already_exist
            .is_some()
    );
    b.must_prewrite_delete(k, k, 25);
    b.must_commit(k, 25, 30);
    assert_eq!(insert(&mut b, 35, 40), None);
}

#[test]
fn test_pessimistic_prewrite_check_for_update_ts() {
    let mut b = Bench::new();
    let k = b"k";
    let constrained = |b: &mut Bench, expected: u64, index: u32| {
        let mut request = request(&[k], 10);
        request.for_update_ts = 20;
        request.pessimistic_actions = vec![DoPessimisticCheck.into()];
        let expected_for_update_ts = expected;
        request.for_update_ts_constraints = vec![
            tikv_proto::kvrpcpb::prewrite_request::ForUpdateTsConstraint {
                index,
                expected_for_update_ts,
            },
        ];
        b.prewrite(request)
            .errors
            .into_iter()
            .next()
            .map(|error| error.abort)
    };
    b.must_lock(k, k, 10, 15);
    assert!(
        constrained(&mut b, 15, 1)
            .expect("no such key")
            .contains("index 1")
    );
    assert!(
        constrained(&mut b, 10, 0)
            .expect("mismatch")
            .contains("LockForUpdateTsMismatch")
    );
    assert_eq!(constrained(&mut b, 15, 0), None);
    assert_eq!(b.must_locked(k, 10).for_update_ts, 20);
}

#[test]
fn test_prewrite_with_assertion() {
    let assert_that = |assertion: Assertion, level: AssertionLevel, exists: bool| {
        let mut b = Bench::new();
        let k = b"k";
        if exists {
            b.must_prewrite_put(k, b"v", k, 5);
            b.must_commit(k, 5, 6);
        }
        let mut request = request(&[k], 10);
        request.mutations[0].set_assertion(assertion);
        request.set_assertion_level(level);
        b.prewrite(request)
            .errors
            .first()
            .is_some_and(|error| error.assertion_failed.is_some())
    };
    for level in [AssertionLevel::Fast, AssertionLevel::Strict] {
        assert!(assert_that(Assertion::Exist, level, false));
        assert!(assert_that(Assertion::NotExist, level, true));
        assert!(!assert_that(Assertion::Exist, level, true));
        assert!(!assert_that(Assertion::NotExist, level, false));
        assert!(!assert_that(Assertion::None, level, true));
    }
    assert!(!assert_that(Assertion::Exist, AssertionLevel::Off, false));
}

#[test]
fn test_assertion_fail_on_conflicting_index_key() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k1", b"k2");
    b.must_prewrite_put(k1, b"v", k1, 1);
    b.must_commit(k1, 1, 2);
    b.must_prewrite_put(k2, b"v", k2, 3);
    b.must_commit(k2, 3, 12);
    let mut both = request(&[k1, k2], 10);
    both.for_update_ts = 11;
    both.pessimistic_actions = vec![SkipPessimisticCheck.into(), DoPessimisticCheck.into()];
    both.mutations[0].set_assertion(Assertion::NotExist);
    both.set_assertion_level(AssertionLevel::Strict);
    let errors = b.prewrite(both).errors;
    assert!(
        errors[0].abort.contains("PessimisticLockNotFound"),
        "{errors:?}"
    );
}

#[test]
fn test_async_commit_prewrite_min_commit_ts() {
    let mut b = Bench::new();
    let k = b"k1";
    // Above everything read so far, the start, and what is asked.
    assert_eq!(b.must_prewrite_async(put(k, b"v"), k, &[], 10, 0), 11);
    assert_eq!(
        b.must_prewrite_async(put(k, b"v"), k, &[], 10, 100),
        11,
        "again: unchanged"
    );
    b.must_rollback(k, 10);
    b.must_get_none(k, 50);
    assert_eq!(b.must_prewrite_async(put(k, b"v"), k, &[b"k2"], 20, 0), 51);
    let lock = b.must_locked(k, 20);
    assert!(lock.async_commit);
    assert_eq!(lock.secondaries, [&b"k2"[..]]);
    b.must_rollback(k, 20);
    assert_eq!(b.must_prewrite_async(put(k, b"v"), k, &[], 60, 70), 70);
}

#[test]
fn test_async_commit_prewrite_check_max_commit_ts() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k1", b"k2");
    b.must_get_none(k1, 42);
    let mut request = request(&[k1, k2], 10);
    request.use_async_commit = true;
    request.secondaries = vec![Bytes::from_static(k2)];
    request.max_commit_ts = 42;
    let response = b.prewrite(request);
    assert_eq!((response.errors, response.min_commit_ts), (vec![], 0));
    for k in [k1, k2] {
        let lock = b.must_locked(k, 10);
        assert!(!lock.async_commit && lock.secondaries.is_empty());
    }
}

#[test]
fn test_prewrite_1pc() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k1", b"k2");
    b.must_get_none(k1, 20);
    let mut one = request(&[k1, k2], 10);
    one.try_one_pc = true;
    one.max_commit_ts = 50;
    for _ in 0..2 {
        let response = b.prewrite(one.clone());
        assert_eq!((response.errors, response.one_pc_commit_ts), (vec![], 21));
    }
    for k in [k1, k2] {
        b.must_unlocked(k);
        b.must_written(k, 10, 21, WriteKind::Put);
    }
    // Too late to commit at once: plain locks.
    b.must_get(k1, 60, b"v");
    let mut late = one;
    late.start_version = 40;
    let response = b.prewrite(late);
    assert_eq!((response.errors, response.one_pc_commit_ts), (vec![], 0));
    b.must_locked(k1, 40);
    b.must_locked(k2, 40);
}

#[test]
fn test_prewrite_pessimistic_1pc() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k1", b"k2");
    b.must_lock(k1, k1, 10, 12);
    let mut one = request(&[k1, k2], 10);
    one.for_update_ts = 15;
    one.pessimistic_actions = vec![DoPessimisticCheck.into(), SkipPessimisticCheck.into()];
    one.try_one_pc = true;
    for _ in 0..2 {
        let PrewriteResponse {
            errors,
            one_pc_commit_ts,
            ..
        } = b.prewrite(one.clone());
        assert_eq!((errors, one_pc_commit_ts), (vec![], 16));
        b.must_unlocked(k1);
    }
    b.must_written(k2, 10, 16, WriteKind::Put);
    assert_eq!(b.written(k2, 17), None);
}

#[test]
fn test_optimistic_prewrite_committed_transaction() {
    let mut b = Bench::new();
    let k = b"k1";
    let mut again = request(&[k], 10);
    again.use_async_commit = true;
    assert_eq!(b.prewrite(again.clone()).min_commit_ts, 11);
    b.must_commit(k, 10, 11);
    // A newer lock does not hide that the transaction has been committed.
    b.must_prewrite_put(k, b"v2", k, 20);
    let response = b.prewrite(again.clone());
    assert_eq!((response.errors, response.min_commit_ts), (vec![], 11));
    again.use_async_commit = false;
    let response = b.prewrite(again);
    assert_eq!((response.errors, response.min_commit_ts), (vec![], 0));
    b.must_locked(k, 20);
}

#[test]
fn test_repeated_prewrite_non_pessimistic_lock() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k1", b"k2");
    b.must_lock(k1, k1, 10, 10);
    let mut both = request(&[k1, k2], 10);
    both.for_update_ts = 10;
    both.pessimistic_actions = vec![DoPessimisticCheck.into(), SkipPessimisticCheck.into()];
    assert_eq!(b.prewrite(both).errors, []);
    for k in [k1, k2] {
        b.must_commit(k, 10, 20);
    }
    // The store remembers the commit, so even a key that is not checked is.
    let mut second = request(&[k2], 10);
    second.for_update_ts = 10;
    second.pessimistic_actions = vec![SkipPessimisticCheck.into()];
    assert_eq!(b.prewrite(second).errors, []);
    b.must_unlocked(k2);
}

#[test]
fn test_prewrite_skip_constraint_check() {
    let mut b = Bench::new();
    let k = b"key";
    b.must_prewrite_put(k, b"v", k, 5);
    b.must_commit(k, 5, 10);
    b.must_prewrite_err(put(k, b"v"), k, 5 - 1);
    let mut skipping = request(&[k], 8);
    skipping.skip_constraint_check = true;
    assert_eq!(b.prewrite(skipping).errors, []);
}

#[test]
fn test_every_lock_in_the_way_is_told() {
    let mut b = Bench::new();
    for k in [b"k1", b"k3"] {
        b.must_prewrite_put(k, b"v", k, 5);
    }
    let response = b.prewrite(request(&[b"k1", b"k2", b"k3"], 10));
    assert_eq!(response.errors.len(), 2);
    b.must_unlocked(b"k2");
}

#[test]
fn test_prewrite_before_max_ts_is_synced() {
    let config = crate::cluster::Config {
        sync_max_ts_at_once: false,
        ..Default::default()
    };
    let mut b = Bench::with(config);
    let id = b.to(b"k").0.expect("a context").region_id;
    b.cluster.transfer_leader(NOW, id, 2);
    let mut asynchronous = request(&[b"k"], 10);
    asynchronous.use_async_commit = true;
    let error = b
        .prewrite(asynchronous.clone())
        .region_error
        .expect("not synced");
    assert!(error.max_timestamp_not_synced.is_some());
    assert_eq!(b.prewrite(request(&[b"other"], 10)).region_error, None);
    b.cluster.sync_max_ts(NOW, id);
    let response = b.prewrite(asynchronous);
    assert_eq!(response.region_error, None);
    assert!(
        response.min_commit_ts > NOW << 18,
        "above what PD had given out"
    );
}

fn flush(b: &mut Bench, generation: u64, m: tikv_proto::kvrpcpb::Mutation) -> Vec<KeyError> {
    let (context, store) = b.to(&m.key);
    let request = FlushRequest {
        context,
        primary_key: Bytes::from_static(b"p"),
        mutations: vec![m],
        start_ts: 10,
        generation,
        lock_ttl: 100,
        ..Default::default()
    };
    b.cluster.kv_flush(NOW, store, request).errors
}

#[test]
fn test_flush() {
    let mut b = Bench::new();
    let k = b"k";
    assert!(
        flush(&mut b, 0, put(k, b"v"))[0]
            .abort
            .contains("generation")
    );
    assert_eq!(flush(&mut b, 2, put(k, b"v2")), []);
    let lock = b.must_locked(k, 10);
    assert_eq!(
        (lock.generation, lock.txn_size, lock.min_commit_ts),
        (2, u64::MAX, 11)
    );
    // One that comes late changes nothing; a newer one overwrites.
    assert_eq!(flush(&mut b, 1, put(k, b"v1")), []);
    assert_eq!(
        b.must_locked(k, 10).short_value.as_deref(),
        Some(&b"v2"[..])
    );
    assert!(
        flush(&mut b, 3, mutation(Op::Insert, k, b"v"))[0]
            .already_exist
            .is_some()
    );
    assert_eq!(flush(&mut b, 3, mutation(Op::Del, k, b"")), []);
    assert_eq!(b.must_locked(k, 10).generation, 3);
    // Its rollback mark always stays.
    b.must_rollback(k, 10);
    b.must_rolled_back(k, 10, true);
    assert_eq!(
        reason(flush(&mut b, 4, put(k, b"v")).into_iter().next()),
        Some(Reason::SelfRolledBack)
    );
}
