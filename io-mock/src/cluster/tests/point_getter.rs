//! Reading one key at a version.

use super::looks::at;
use super::vocabulary::pre;
use super::{Bench, put};
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::DoPessimisticCheck;

const LATEST: u64 = u64::MAX;
const CONFLICT: &str = "!RcCheckTs";

/// A value too long for its record.
fn long(start: &str) -> Vec<u8> {
    let mut value = start.as_bytes().to_vec();
    value.resize(300, b'v');
    value
}

#[test]
fn test_locked() {
    let mut b = Bench::new();
    let foo = |n: char| long(&format!("foo{n}"));
    b.must_prewrite_put(b"foo1", &foo('1'), b"foo1", 2);
    b.must_prewrite_put(b"bar", b"barval", b"foo1", 2);
    b.must_commit(b"foo1", 2, 3);
    b.must_commit(b"bar", 2, 3);
    b.must_prewrite_put(b"foo2", &foo('2'), b"foo2", 4);
    b.must_prewrite_delete(b"bar", b"foo2", 4);
    for (ts, expected) in [
        (1, ["", "", "", "", ""]),
        (3, ["", "barval", "foo1", "", ""]),
        (4, ["", "!locked", "foo1", "!locked", ""]),
    ] {
        for (k, expected) in ["a", "bar", "foo1", "foo2", "zz"].iter().zip(expected) {
            let mut seen = b.see(k.as_bytes(), &at(ts));
            if seen.len() == 300 {
                seen.truncate(4);
            }
            assert_eq!(seen, expected, "{k} at {ts}");
        }
    }
}

#[test]
fn test_get_latest_value() {
    let mut b = Bench::new();
    let k = b"foo";
    b.write(k, b"bar", 10, 20);
    assert_eq!(b.see(k, &at(LATEST)), "bar");
    b.must_prewrite_delete(k, k, 30);
    assert_eq!(b.see(k, &at(LATEST)), "bar", "the lock is the primary");
    b.must_rollback(k, 30);
    b.must_prewrite_delete(k, b"bar", 40);
    assert_eq!(b.see(k, &at(LATEST)), "!locked", "a secondary may be over");
    b.must_rollback(k, 40);
    // The primary lock's transaction started before the newest version was committed.
    b.must_lock(k, k, 15, 50);
    let one = pre(k, 15).with(super::mutation(tikv_proto::kvrpcpb::Op::Del, k, b""));
    b.must_run(one.pessimistic(50, &[DoPessimisticCheck]));
    assert_eq!(b.see(k, &at(LATEST)), "bar");
}

#[test]
fn test_get_bypass_locks() {
    let mut b = Bench::new();
    let k = b"foo";
    b.write(k, b"bar", 10, 20);
    b.must_prewrite_delete(k, k, 30);
    assert_eq!(b.see(k, &at(60).bypass(&[30, 40, 50])), "bar");
    assert_eq!(b.see(k, &at(60).bypass(&[31, 29])), "!locked");
}

#[test]
fn test_get_access_locks() {
    let mut b = Bench::new();
    let k = b"foo";
    for (start, value) in [(10, b"bar".to_vec()), (20, long("long"))] {
        b.must_prewrite_put(k, &value, k, start);
        let expected = String::from_utf8(value).expect("text");
        assert_eq!(b.see(k, &at(start + 10).access(&[start])), expected);
        b.must_commit(k, start, start + 5);
        assert_eq!(b.see(k, &at(start + 10)), expected);
    }
    b.must_prewrite_delete(k, k, 30);
    assert_eq!(b.see(k, &at(40).access(&[30])), "");
    b.must_commit(k, 30, 35);
    // Locks that do not hinder are not read through either.
    b.must_prewrite_put(k, b"bar", k, 50);
    assert_eq!(b.see(k, &at(45).access(&[50])), "");
    b.must_commit(k, 50, 55);
    b.must_prewrite_lock(k, k, 60);
    assert_eq!(b.see(k, &at(65).access(&[60])), "bar");
    b.must_commit(k, 60, 65);
    b.must_lock(k, k, 70, 70);
    assert_eq!(b.see(k, &at(75).access(&[70])), "bar");
    b.must_rollback(k, 70);
    b.must_run(pre(k, 80).put(&[k]).min(100));
    assert_eq!(b.see(k, &at(85).access(&[80])), "bar");
    b.must_rollback(k, 80);
    b.must_prewrite_put(k, b"b", k, 90);
    assert_eq!(b.see(k, &at(LATEST).access(&[90])), "bar");
    b.must_rollback(k, 90);
    b.must_prewrite_put(k, b"b", k, 100);
    assert_eq!(b.see(k, &at(105).bypass(&[100]).access(&[100])), "bar");
}

#[test]
fn test_point_get_check_gc_fence() {
    let mut b = Bench::new();
    for (k, commit, fence) in [(b"k1", 20, 50), (b"k2", 20, 40), (b"k3", 20, 30)] {
        b.write(k, b"v", commit - 5, commit);
        b.fence(k, commit, fence);
    }
    for (k, delete) in [(b"k4", false), (b"k5", true)] {
        b.write(k, b"v", 13, 14);
        match delete {
            true => b.erase(k, 15, 20),
            false => b.write(k, b"x", 15, 20),
        }
        b.fence(k, 14, 20);
        b.fence(k, 20, 30);
    }
    for (k, fence) in [(b"k6", 50), (b"k7", 27)] {
        b.write(k, b"v", 16, 20);
        b.touch(k, 25, 26);
        b.touch(k, 28, 29);
        b.fence(k, 20, fence);
    }
    b.write(b"k8", b"v", 17, 30);
    b.fence(b"k8", 30, 0);
    b.write(b"k9", b"v", 18, 20);
    b.touch(b"k9", 25, 26);
    b.fence(b"k9", 20, 27);
    let there: Vec<u8> = (b'1'..=b'9')
        .filter(|n| b.see(&[b'k', *n], &at(40)) == "v")
        .collect();
    assert_eq!(there, b"168");
}

#[test]
fn test_point_get_check_rc_ts() {
    let mut b = Bench::new();
    for (k, v, start, commit) in [
        (b"k0", "v0", 1, 5),
        (b"k1", "v1", 10, 20),
        (b"k2", "v2", 30, 40),
        (b"k2", "v22", 41, 42),
        (b"k4", "v4", 55, 56),
        (b"k5", "v5", 57, 58),
    ] {
        b.write(k, v.as_bytes(), start, commit);
    }
    b.must_prewrite_put(b"k3", b"v3", b"k3", 50);
    b.must_prewrite_lock(b"k4", b"k4", 60);
    b.must_lock(b"k5", b"k5", 65, 65);
    for (ts, k, expected) in [
        (25, b"k1", "v1"),
        // A newer version, and a lock however new it is.
        (35, b"k2", CONFLICT),
        (45, b"k3", CONFLICT),
        (45, b"k2", "v22"),
        (35, b"k0", "v0"),
        // A lock without data does not count.
        (70, b"k4", "v4"),
        (70, b"k5", "v5"),
    ] {
        assert_eq!(b.see(k, &at(ts).rc_check()), expected, "{k:?} at {ts}");
    }
}

#[test]
fn test_point_get_load_commit_ts() {
    let mut b = Bench::new();
    let k = b"foo";
    b.write(k, b"bar", 10, 20);
    b.write(k, b"val2", 30, 40);
    let bar = |ts: u64| Ok(Some(("bar".into(), ts)));
    assert_eq!(b.entry(k, &at(39)), bar(0));
    assert_eq!(b.entry(k, &at(39).with_commit_ts()), bar(20));
    // Where a lock is read through the version is not known, so it is not read through.
    assert_eq!(b.prewrite_one(put(k, b"val3"), k, 50), None);
    let through = at(60).access(&[50]);
    assert_eq!(b.entry(k, &through), Ok(Some(("val3".into(), 0))));
    assert_eq!(b.entry(k, &through.with_commit_ts()), Err("locked"));
}

/// Puts (and deletes) at small versions, locks above them, and tells where a read finds the value.
fn under_locks(locks: u64, delete: bool) -> Option<u64> {
    let mut b = Bench::new();
    let k = b"k";
    b.write(k, b"v", 1, 2);
    if delete {
        b.erase(k, 3, 4);
    }
    for i in 0..locks {
        b.touch(k, 10 + 2 * i, 11 + 2 * i);
    }
    let entry = b.entry(k, &at(1000).with_commit_ts());
    entry.expect("no error").map(|(_, commit_ts)| commit_ts)
}

/// From how many steps on the server jumps to the version it is looking for.
const SEEK_BOUND: u64 = 8;

#[test]
fn test_point_get_load_commit_ts_with_ge_seek_bound_lock_versions_above_delete() {
    assert_eq!(under_locks(SEEK_BOUND + 1, true), None);
}

#[test]
fn test_point_get_load_commit_ts_with_ge_seek_bound_lock_versions_above_put() {
    assert_eq!(under_locks(SEEK_BOUND + 1, false), Some(2));
}

#[test]
fn test_point_get_load_commit_ts_with_lt_seek_bound_lock_versions_above_delete() {
    assert_eq!(under_locks(SEEK_BOUND - 1, true), None);
}

#[test]
fn test_point_get_load_commit_ts_with_lt_seek_bound_lock_versions_above_put() {
    assert_eq!(under_locks(SEEK_BOUND - 1, false), Some(2));
}

#[test]
fn test_point_get_load_commit_ts_with_top_lock_versions() {
    assert_eq!(under_locks(40, false), Some(2));
}
