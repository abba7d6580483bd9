//! What a command reads before it decides: records of a transaction, the newest put, locks of a range.

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::DoPessimisticCheck;
use tikv_proto::kvrpcpb::{CheckTxnStatusRequest, Op, ScanLockRequest};

use super::looks::{at, text};
use super::vocabulary::{pre, word};
use super::{Bench, NOW, mutation};
use crate::cluster::mvcc::lock::{Lock, LockKind, SharedLocks};
use crate::cluster::mvcc::write_record::WriteKind;

/// Locks, prewrites and commits one key of a pessimistic transaction.
fn write_locked(b: &mut Bench, k: &[u8], op: Op, start: u64, for_update: u64, commit: u64) {
    b.must_lock(k, k, start, for_update);
    let one = pre(k, start).with(mutation(op, k, b"v"));
    b.must_run(one.pessimistic(for_update, &[DoPessimisticCheck]));
    b.must_commit(k, start, commit);
}

/// What became of a transaction: where it committed, 0 for a rollback, or that nothing is known.
fn fate(b: &mut Bench, k: &[u8], start: u64) -> Result<u64, &'static str> {
    let response = b.check_status(k, start, CheckTxnStatusRequest::default());
    match response.error {
        Some(error) => Err(word(Some(&error))),
        None => Ok(response.commit_version),
    }
}

#[test]
fn test_get_txn_commit_record() {
    let mut b = Bench::new();
    let k = b"k";
    b.must_rollback(k, 5);
    write_locked(&mut b, k, Op::Put, 1, 6, 10);
    b.must_rollback(k, 20);
    b.write(k, b"v", 25, 30);
    b.write(k, b"v", 35, 40);
    // The mark goes onto the record which already stands there.
    b.must_cleanup(k, 40, 0);
    write_locked(&mut b, k, Op::Put, 45, 45, 50);
    let nothing = Err("no transaction");
    for (start, expected) in [
        (55, nothing),
        (50, nothing),
        (45, Ok(50)),
        (40, Ok(0)),
        (35, Ok(40)),
        (30, nothing),
        (25, Ok(30)),
        (20, Ok(0)),
        (5, Ok(0)),
        (1, Ok(10)),
    ] {
        assert_eq!(fate(&mut b, k, start), expected, "{start}");
    }
    let marked = b.must_written(k, 35, 40, WriteKind::Put);
    assert!(marked.overlapped_rollback);
}

#[test]
fn test_get_txn_commit_record_of_pessimistic_txn() {
    let mut b = Bench::new();
    let k = b"k";
    // The older transaction commits later.
    write_locked(&mut b, k, Op::Put, 2, 2, 3);
    write_locked(&mut b, k, Op::Put, 1, 3, 4);
    assert_eq!(fate(&mut b, k, 2), Ok(3));
    assert_eq!(fate(&mut b, k, 1), Ok(4));
}

/// Locks up to a version as `key@transaction`, one word each, members of shared ones too.
fn locks(b: &mut Bench, max_version: u64, start: &str, end: &str, limit: u32) -> String {
    let (context, store) = b.to(b"");
    let request = ScanLockRequest {
        context,
        max_version,
        start_key: start.to_owned().into(),
        end_key: end.to_owned().into(),
        limit,
    };
    let response = b.cluster.kv_scan_lock(NOW, store, request);
    assert_eq!((response.region_error, response.error), (None, None));
    let mut words = Vec::new();
    for lock in &response.locks {
        let mut add = |ts: u64| words.push(format!("{}@{ts}", text(&lock.key)));
        match lock.lock_type() {
            Op::SharedLock => {
                let mut members: Vec<u64> = lock
                    .shared_lock_infos
                    .iter()
                    .map(|member| member.lock_version)
                    .collect();
                members.sort_unstable();
                members.into_iter().for_each(add);
            }
            _ => add(lock.lock_version),
        }
    }
    words.join(" ")
}

#[test]
fn test_scan_locks() {
    let mut b = Bench::new();
    for (op, k, start) in [
        (Op::Put, "k1", 5),
        (Op::Put, "k2", 10),
        (Op::Del, "k3", 10),
        (Op::Lock, "k3\0", 10),
        (Op::Del, "k4", 12),
    ] {
        let one = mutation(op, k.as_bytes(), b"v");
        assert_eq!(b.prewrite_one(one, b"k1", start), None);
    }
    b.must_lock(b"k5", b"k1", 10, 12);
    b.must_lock(b"k6", b"k1", 12, 12);
    let all = ["k1@5", "k2@10", "k3@10", "k3\0@10", "k5@10"];
    for (start, end, limit, from, to) in [
        ("", "", 6, 0, 5),
        ("", "", 5, 0, 5),
        ("", "", 4, 0, 4),
        ("k2", "", 3, 1, 4),
        ("k3\0", "", 1, 3, 4),
        ("k3\0", "", 10, 3, 5),
        ("", "", 0, 0, 5),
        ("", "k3", 0, 0, 2),
        ("", "k3\0", 0, 0, 3),
        ("", "k3\0", 3, 0, 3),
        ("", "k3\0", 2, 0, 2),
    ] {
        let found = locks(&mut b, 10, start, end, limit);
        assert_eq!(found, all[from..to].join(" "), "{start} {end} {limit}");
    }
}

fn shared(starts: &[u64]) -> SharedLocks {
    let member = |&start: &u64| {
        let primary = format!("pk{start}").into();
        (start, Lock::new(LockKind::Pessimistic, primary, start, 100))
    };
    SharedLocks {
        members: starts.iter().map(member).collect(),
        written: starts.to_vec(),
        ..SharedLocks::default()
    }
}

#[test]
fn test_scan_locks_from_storage_shared_locks_limit() {
    let mut b = Bench::new();
    b.set_shared(b"shared", shared(&[1, 2, 3, 4, 5]));
    assert_eq!(locks(&mut b, 100, "", "", 1), "shared@1");
}

#[test]
fn test_scan_locks_shared_limit_across_keys_keeps_smallest_ts() {
    let mut b = Bench::new();
    b.must_prewrite_put(b"exclusive", b"v", b"exclusive", 50);
    b.set_shared(b"shared", shared(&[8, 2, 6, 1]));
    let found = locks(&mut b, 100, "", "", 3);
    assert_eq!(found, "exclusive@50 shared@1 shared@2");
}

#[test]
fn test_get_write() {
    let mut b = Bench::new();
    let k = b"k";
    b.write(k, b"1", 1, 2);
    b.must_rollback(k, 5);
    b.touch(k, 6, 7);
    b.erase(k, 8, 9);
    b.write(k, b"12", 12, 14);
    write_locked(&mut b, k, Op::Lock, 13, 15, 16);
    b.write(k, b"18", 18, 20);
    write_locked(&mut b, k, Op::Lock, 17, 21, 22);
    b.must_prewrite_put(k, b"24", k, 24);
    for (ts, expected) in [
        (1, ""),
        (2, "1"),
        (5, "1"),
        (7, "1"),
        (9, ""),
        (14, "12"),
        (17, "12"),
        (20, "18"),
        (23, "18"),
    ] {
        assert_eq!(b.see(k, &at(ts)), expected, "{ts}");
    }
    assert_eq!(b.see(b"j", &at(100)), "");
}

fn touch_often(b: &mut Bench, k: &[u8], from: u64, to: u64) {
    for start in (from..to).step_by(2) {
        b.touch(k, start, start + 1);
    }
}

#[test]
fn test_get_write_not_exist_skip_lock() {
    let mut b = Bench::new();
    touch_often(&mut b, b"k", 6, 30);
    assert_eq!(b.entry(b"k", &at(40).with_commit_ts()), Ok(None));
}

#[test]
fn test_get_write_second_get() {
    let mut b = Bench::new();
    let k = b"k";
    b.write(k, b"v", 1, 2);
    touch_often(&mut b, k, 6, 30);
    b.erase(k, 45, 46);
    touch_often(&mut b, k, 50, 80);
    let found = Ok(Some(("v".into(), 2)));
    assert_eq!(b.entry(k, &at(40).with_commit_ts()), found);
    assert_eq!(b.entry(k, &at(80).with_commit_ts()), Ok(None));
}

#[test]
fn test_locks_interleaving_rollbacks() {
    let mut b = Bench::new();
    let k = b"k";
    b.write(k, b"v", 1, 2);
    touch_often(&mut b, k, 6, 30);
    b.must_rollback(k, 30);
    b.touch(k, 31, 32);
    let found = Ok(Some(("v".into(), 2)));
    assert_eq!(b.entry(k, &at(100).with_commit_ts()), found);
}
