//! What commands leave behind, key by key: rollback marks, what a lock says of itself, and the
//! smallest commit version of a transaction that commits by its locks.

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::{
    DoPessimisticCheck, SkipPessimisticCheck,
};
use tikv_proto::kvrpcpb::{
    CleanupResponse, LockInfo, MvccGetByKeyRequest, Op, PessimisticLockRequest,
};

use super::looks::at;
use super::vocabulary::{SELF, pre, word};
use super::{Bench, NOW, mutation, put};
use crate::cluster::mvcc::write_record::WriteKind;

#[test]
fn test_rollback_lock_pessimistic() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k1", b"k2");
    for (start, prewritten) in [(5, false), (15, true)] {
        b.must_lock(k1, k1, start, start);
        b.must_lock(k2, k1, start, start + 2);
        if prewritten {
            for k in [k1, k2] {
                let one = pre(k1, start).put(&[k]);
                b.must_run(one.pessimistic(start + 2, &[DoPessimisticCheck]));
            }
        }
        for k in [k1, k2] {
            b.must_rollback(k, start);
            // Only the primary's mark decides the transaction, so only it is protected.
            b.must_rolled_back(k, start, k == k1);
        }
    }
}

#[test]
fn test_rollback_del() {
    let mut b = Bench::new();
    let k = b"k1";
    b.write(k, b"v1", 5, 10);
    b.must_prewrite_delete(k, k, 15);
    b.must_locked(k, 15);
    b.must_rollback(k, 15);
    b.must_get(k, 20, b"v1");
}

#[test]
fn test_scan_values_in_default() {
    let mut b = Bench::new();
    let long = |c: u8| vec![c; 256];
    b.write(&[2], &long(b'v'), 3, 4);
    b.write(&[3], &long(b'a'), 3, 4);
    b.write(&[3], &long(b'b'), 5, 6);
    b.write(&[6], &long(b'x'), 3, 6);
    let (context, store) = b.to(&[3]);
    let request = MvccGetByKeyRequest {
        context,
        key: vec![3].into(),
    };
    let info = b.cluster.mvcc_get_by_key(NOW, store, request).info;
    let values: Vec<(u64, Option<u8>)> = info
        .iter()
        .flat_map(|info| &info.values)
        .map(|value| (value.start_ts, value.value.first().copied()))
        .collect();
    assert_eq!(values, [(5, Some(b'b')), (3, Some(b'a'))], "newest first");
}

#[test]
fn test_lock_info_validation() {
    let k = b"k";
    for optimistic in [false, true] {
        let mut b = Bench::new();
        let mut expected = LockInfo {
            primary_lock: k[..].into(),
            key: k[..].into(),
            lock_version: 10,
            lock_ttl: 3,
            ..Default::default()
        };
        if optimistic {
            expected.txn_size = 10;
            expected.set_lock_type(Op::Put);
            let mut one = pre(k, 10).put(&[k]);
            (one.request.lock_ttl, one.request.txn_size) = (3, 10);
            b.must_run(one);
        } else {
            expected.lock_for_update_ts = 10;
            expected.set_lock_type(Op::PessimisticLock);
            let request = PessimisticLockRequest {
                lock_ttl: 3,
                ..Default::default()
            };
            assert_eq!(b.lock_one(request, k, k, 10, 10).errors, []);
        }
        let prewrite = b.must_prewrite_err(put(k, b"v"), k, 20).locked;
        assert_eq!(prewrite.as_deref(), Some(&expected));
        let lock = b.must_lock_err(k, k, 30, 30).locked;
        assert_eq!(lock.as_deref(), Some(&expected));
        let cleanup = b.cleanup(k, 10, 1).error.and_then(|error| error.locked);
        assert_eq!(cleanup.as_deref(), Some(&expected), "not expired");
        // A pessimistic transaction that meets a lock at the end has it resolved at once.
        expected.lock_ttl = 0;
        let one = pre(k, 40)
            .put(&[k])
            .pessimistic(40, &[SkipPessimisticCheck]);
        let late = b.run(one).errors.remove(0).locked;
        assert_eq!(late.as_deref(), Some(&expected));
    }
}

#[test]
fn test_non_pessimistic_lock_conflict_with_optimistic_txn() {
    let mut b = Bench::new();
    let k = b"k1";
    b.must_prewrite_put(k, b"v1", k, 2);
    for start in [1, 3] {
        let one = pre(k, start).put(&[k]);
        let refused = b.try_run(one.pessimistic(start, &[SkipPessimisticCheck]));
        assert_eq!(refused, "locked");
    }
    b.must_locked(k, 2);
}

#[test]
fn test_non_pessimistic_lock_conflict_with_pessismitic_txn() {
    let mut b = Bench::new();
    // A row, the entry of an index for it, and another row.
    let (row, index, other) = (b"k1", b"k2", b"k3");
    b.write(other, b"v3", 1, 20);
    b.must_lock(row, row, 10, 10);
    b.must_lock_err(other, row, 10, 10);
    b.must_lock(other, row, 10, 20);
    for (k, action) in [
        (row, DoPessimisticCheck),
        (other, DoPessimisticCheck),
        (index, SkipPessimisticCheck),
    ] {
        b.must_run(pre(row, 10).put(&[k]).pessimistic(20, &[action]));
    }
    // The row is rolled back for its age; the index entry is left behind.
    b.must_rollback(row, 10);
    b.must_lock(row, row, 15, 15);
    let one = pre(row, 15).put(&[row]);
    b.must_run(one.pessimistic(15, &[DoPessimisticCheck]));
    let one = pre(row, 15).put(&[index]);
    let error = b.run(one.pessimistic(15, &[SkipPessimisticCheck])).errors;
    assert_eq!(error[0].locked.as_ref().map(|lock| lock.lock_ttl), Some(0));
}

#[test]
fn test_commit_pessimistic_lock() {
    let mut b = Bench::new();
    let k = b"k";
    b.must_lock(k, k, 10, 10);
    assert_eq!(word(b.commit(k, 20, 30).as_ref()), "no lock");
    b.must_commit(k, 10, 20);
    assert_eq!(b.seek(k, 30), None);
}

#[test]
fn test_async_prewrite_primary() {
    let mut b = Bench::new();
    b.max_ts(42);
    let secondaries: [&[u8]; 3] = [b"key1", b"key2", b"key3"];
    for _ in 0..2 {
        let answer = b.must_run(pre(b"key", 2).put(&[b"key"]).by_locks(&secondaries, 0));
        assert_eq!(answer.min_commit_ts, 43, "one above what has been served");
        let lock = b.must_locked(b"key", 2);
        assert_eq!((lock.async_commit, lock.min_commit_ts), (true, 43));
        assert_eq!(lock.secondaries, secondaries);
        b.max_ts(50);
    }
}

#[test]
fn test_async_pessimistic_prewrite_primary() {
    let mut b = Bench::new();
    b.max_ts(42);
    b.must_lock(b"key", b"key", 2, 2);
    let secondaries: [&[u8]; 3] = [b"key1", b"key2", b"key3"];
    for _ in 0..2 {
        let one = pre(b"key", 2).put(&[b"key"]).by_locks(&secondaries, 0);
        let answer = b.must_run(one.pessimistic(4, &[DoPessimisticCheck]));
        assert_eq!(answer.min_commit_ts, 43);
        let lock = b.must_locked(b"key", 2);
        assert_eq!((lock.async_commit, lock.min_commit_ts), (true, 43));
        assert_eq!(lock.secondaries, secondaries);
    }
}

#[test]
fn test_async_commit_pushed_min_commit_ts() {
    let mut b = Bench::new();
    b.max_ts(42);
    let request = PessimisticLockRequest {
        lock_ttl: 20_000,
        min_commit_ts: 100,
        ..Default::default()
    };
    let locked = b.lock_one(request, b"key", b"key", 2, 2);
    assert_eq!(locked.errors, []);
    let one = pre(b"key", 2).put(&[b"key"]).by_locks(&[b"key1"], 0);
    let answer = b.must_run(one.pessimistic(4, &[DoPessimisticCheck]));
    assert_eq!(answer.min_commit_ts, 100, "what the lock was pushed to");
}

#[test]
fn test_overlapped_ts_prewrite_before_rollback() {
    let mut b = Bench::new();
    let (k1, k2) = (b"key1", b"key2");
    for k in [k1, k2] {
        b.must_run(pre(k1, 10).put(&[k]).by_locks(&[k2], 0));
    }
    assert_eq!(b.try_run(pre(k2, 20).put(&[k2])), "locked");
    assert_eq!(b.cleanup(k2, 20, 0), CleanupResponse::default());
    for k in [k1, k2] {
        b.must_commit(k, 10, 20);
    }
    let record = b.must_written(k2, 10, 20, WriteKind::Put);
    assert!(record.overlapped_rollback);
    assert_eq!(b.try_run(pre(k2, 20).put(&[k2])), SELF);
}

#[test]
fn test_mvcc_txn_pessimistic_prewrite_check_not_exist() {
    let mut b = Bench::new();
    for action in [DoPessimisticCheck, SkipPessimisticCheck] {
        let m = mutation(Op::CheckNotExists, b"k1", b"");
        let error = b.pessimistic_prewrite(m, b"k1", 3, 3, action);
        assert!(!error.expect("it must fail").abort.is_empty());
    }
}

#[test]
fn test_read_commit() {
    let mut b = Bench::new();
    b.write(b"key", b"v1", 5, 10);
    b.must_prewrite_put(b"key", b"v2", b"key", 15);
    b.must_get_err(b"key", 20);
    for ts in [12, 20] {
        assert_eq!(b.see(b"key", &at(ts).rc()), "v1");
    }
}
