//! When a read minds a lock, what a fence hides, and who may join shared locks.

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::DoPessimisticCheck;
use tikv_proto::kvrpcpb::{self, IsolationLevel, Op};

use super::vocabulary::{pre, word};
use super::{Bench, NOW, mutation};
use crate::cluster::key::Key;
use crate::cluster::mvcc::lock::{Lock, LockKind, ReadRules, SharedLocks};
use crate::cluster::mvcc::write_record::{WriteKind, WriteRecord};

/// Whether a read of `foo` passes a lock.
fn passes(lock: &Lock, isolation: IsolationLevel, ts: u64, bypass: &[u64]) -> bool {
    let rules = ReadRules {
        ts,
        isolation,
        bypass,
        access: &[],
        replica: false,
    };
    lock.check_read(&Key::from_user(b"foo"), &rules).is_ok()
}

#[test]
fn test_check_ts_conflict() {
    let mut lock = Lock::new(LockKind::Put, "".into(), 100, 3);
    let si = IsolationLevel::Si;
    for (ts, bypass, expected) in [
        (50, &[][..], true),
        (110, &[], false),
        (110, &[109], false),
        (110, &[110], false),
        (110, &[100], true),
        (110, &[99, 101, 102, 100, 80], true),
    ] {
        assert_eq!(passes(&lock, si, ts, bypass), expected, "{ts} {bypass:?}");
    }
    for kind in [LockKind::Lock, LockKind::Pessimistic] {
        lock.kind = kind;
        assert!(passes(&lock, si, 110, &[]));
    }
    lock.kind = LockKind::Put;
    lock.primary = "foo".into();
    assert!(passes(&lock, si, u64::MAX, &[]));
    let by_locks = Lock {
        async_commit: true,
        ..lock.clone()
    };
    assert!(!passes(&by_locks, si, u64::MAX, &[]));
    lock.primary = "bar".into();
    assert!(!passes(&lock, si, u64::MAX, &[]));
    lock.min_commit_ts = 150;
    for (ts, expected) in [(140, true), (150, false), (160, false)] {
        assert_eq!(passes(&lock, si, ts, &[]), expected);
    }
    // Shared locks hinder no read.
    let mut b = Bench::new();
    b.write(b"foo", b"v", 1, 2);
    b.set_shared(b"foo", SharedLocks::default());
    b.must_get(b"foo", 160, b"v");
}

#[test]
fn test_check_ts_conflict_rc_check_ts() {
    let mut lock = Lock::new(LockKind::Put, "".into(), 100, 3);
    let check = IsolationLevel::RcCheckTs;
    assert!(passes(&lock, check, 50, &[100]));
    for (kind, expected) in [
        (LockKind::Pessimistic, true),
        (LockKind::Lock, true),
        (LockKind::Put, false),
        (LockKind::Delete, false),
    ] {
        lock.kind = kind;
        for ts in [50, 110] {
            assert_eq!(passes(&lock, check, ts, &[]), expected, "{kind:?} {ts}");
        }
    }
}

#[test]
fn test_check_gc_fence() {
    for (gc_fence, read_ts, expected) in [
        (None, 10, true),
        (None, 100, true),
        (None, u64::MAX, true),
        (Some(0), 100, true),
        (Some(0), u64::MAX, true),
        (Some(100), 50, true),
        (Some(100), 100, false),
        (Some(100), 150, false),
        (Some(100), u64::MAX, false),
    ] {
        let record = WriteRecord {
            overlapped_rollback: true,
            gc_fence,
            ..WriteRecord::new(WriteKind::Put, 5, None)
        };
        assert_eq!(record.passes_gc_fence(read_ts), expected);
    }
}

const K: &[u8] = b"shared";

#[test]
fn test_shared_locks_shrink_only_flag_basic() {
    let mut b = Bench::new();
    b.must_share(K, b"primary", 10, 10);
    assert!(!b.shared(K).shrink_only);
    // Someone who wants the key alone stops others from joining.
    assert_eq!(word(Some(&b.must_lock_err(K, K, 20, 20))), "locked");
    let after = b.shared(K);
    assert!(after.shrink_only);
    assert_eq!(after.members.len(), 1);
}

#[test]
fn test_insert_lock_duplicate_fails() {
    let mut b = Bench::new();
    for _ in 0..2 {
        b.must_share(K, b"primary", 10, 10);
        assert_eq!(b.shared(K).members.len(), 1, "one member however often");
    }
}

#[test]
fn test_insert_lock_to_shrink_only_fails() {
    let mut b = Bench::new();
    b.must_share(K, b"txn1", 5, 5);
    b.must_lock_err(K, K, 6, 6);
    let refused = b.share(K, b"txn2", 7, 7);
    assert_eq!(word(refused.errors.first()), "locked");
    assert_eq!(b.shared(K).members.len(), 1);
}

fn prewrite_shared(b: &mut Bench, start: u64) -> &'static str {
    let one = pre(b"primary", start).with(mutation(Op::SharedLock, K, b""));
    b.try_run(one.pessimistic(start, &[DoPessimisticCheck]))
}

#[test]
fn test_update_lock_nonexistent_fails() {
    let mut b = Bench::new();
    b.must_share(K, b"primary", 10, 10);
    let before = b.shared(K);
    assert_eq!(prewrite_shared(&mut b, 11), "lock missing");
    assert_eq!(b.shared(K), before);
}

#[test]
fn test_update_lock_success() {
    let mut b = Bench::new();
    b.must_share(K, b"primary", 10, 10);
    assert_eq!(prewrite_shared(&mut b, 10), "");
    assert_eq!(b.shared(K).members[&10].kind, LockKind::Lock);
}

#[test]
fn members_are_listed_as_the_server_s_table_has_them() {
    let infos = |b: &mut Bench| {
        let (context, store) = b.to(b"k");
        let request = kvrpcpb::ScanLockRequest {
            context,
            max_version: u64::MAX,
            ..Default::default()
        };
        let locks = b.cluster.kv_scan_lock(NOW, store, request).locks;
        let members = locks.into_iter().flat_map(|lock| lock.shared_lock_infos);
        let members: Vec<u64> = members.map(|lock| lock.lock_version).collect();
        members
    };
    // The last two bits are what the place in a small table depends on.
    let mut b = Bench::new();
    b.must_share(b"k", b"pk", 6, 6);
    b.must_share(b"k", b"pk", 9, 9);
    assert_eq!(infos(&mut b), [9, 6]);
    let mut b = Bench::new();
    b.must_share(b"k", b"pk", 7, 7);
    b.must_share(b"k", b"pk", 11, 11);
    assert_eq!(infos(&mut b), [7, 11]);
    // Each time it is written, what did not fit behind the others has come before them.
    b.must_share(b"k", b"pk", 11, 12);
    assert_eq!(infos(&mut b), [11, 7]);
    b.must_share(b"k", b"pk", 7, 12);
    assert_eq!(infos(&mut b), [7, 11]);
}
