//! Scanning a range downwards.

use super::Bench;
use super::forward_scanner::{fenced, three_versions};
use super::looks::at;

#[test]
fn test_range() {
    let mut b = three_versions();
    for (bounds, expected) in [
        (("3", "5"), "4=4 3=3"),
        (("", "3"), "2=2 1=1"),
        (("5", ""), "6=6 5=5"),
        (("", ""), "6=6 5=5 4=4 3=3 2=2 1=1"),
    ] {
        assert_eq!(b.rows_down(&at(10), bounds), expected);
    }
}

#[test]
fn test_backward_scanner_check_gc_fence() {
    let mut b = fenced();
    assert_eq!(b.rows_down(&at(40), ("", "")), "k8=v8 k6=v6 k1=v1");
}

#[test]
fn test_rc_read_check_ts() {
    let mut b = Bench::new();
    for (k, v, start, commit) in [
        (b"k1", "v1", 25, 30),
        (b"k2", "v2", 6, 9),
        (b"k2", "v22", 10, 20),
        (b"k3", "v3", 5, 6),
        (b"k4", "v4", 3, 4),
        (b"k5", "v5", 1, 2),
    ] {
        b.write(k, v.as_bytes(), start, commit);
    }
    b.must_prewrite_put(b"k0", b"v0", b"k0", 60);
    b.must_prewrite_lock(b"k4", b"k4", 5);
    b.must_lock(b"k5", b"k5", 3, 3);
    let (old, new) = (at(29).rc_check(), at(55).rc_check());
    assert_eq!(b.rows_down(&old, ("k2", "")), "k5=v5 k4=v4 k3=v3 k2=v22");
    assert_eq!(b.rows_down(&old, ("", "")), "!RcCheckTs", "a newer version");
    let above = "k5=v5 k4=v4 k3=v3 k2=v22 k1=v1";
    assert_eq!(b.rows_down(&new, ("k1", "")), above);
    assert_eq!(b.rows_down(&new, ("", "")), "!RcCheckTs", "a newer lock");
}

#[test]
fn test_load_commit_ts_with_top_lock_versions() {
    let mut b = Bench::new();
    b.write(b"k", b"v", 1, 2);
    for i in 2..40 {
        b.touch(b"k", 2 * i, 2 * i + 1);
    }
    assert_eq!(b.rows_down(&at(70), ("", "")), "k=v");
    let entry = b.entry(b"k", &at(70).with_commit_ts());
    assert_eq!(entry, Ok(Some(("v".into(), 2))));
}
