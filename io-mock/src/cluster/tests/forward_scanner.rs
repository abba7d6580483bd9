//! Scanning a range upwards.

use super::Bench;
use super::looks::at;

/// Three versions of each of six keys; the middle one is 2 to 7.
pub(super) fn three_versions() -> Bench {
    let mut b = Bench::new();
    for i in b'1'..=b'6' {
        b.write(&[i], b"", 1, 2);
        b.write(&[i], &[i], 7, 8);
        b.write(&[i], b"", 14, 15);
    }
    b
}

/// Keys whose newest version may be one that was garbage when its record was marked; a read at 40
/// sees three of them.
pub(super) fn fenced() -> Bench {
    let mut b = Bench::new();
    for (k, v, start) in [(b"k1", b"v1", 10), (b"k2", b"v2", 11), (b"k3", b"v3", 12)] {
        b.write(k, v, start, 20);
    }
    b.write(b"k1", b"x", 49, 50);
    for (k, fence) in [(b"k1", 50), (b"k2", 40), (b"k3", 30)] {
        b.fence(k, 20, fence);
    }
    for k in [b"k4", b"k5"] {
        b.write(k, b"v", 13, 14);
    }
    b.write(b"k4", b"x", 15, 20);
    b.erase(b"k5", 15, 20);
    for k in [b"k4", b"k5"] {
        b.fence(k, 14, 20);
        b.fence(k, 20, 30);
    }
    for (k, v) in [(b"k6", b"v6"), (b"k7", b"v7")] {
        b.write(k, v, 16, 20);
        b.touch(k, 25, 26);
        b.touch(k, 28, 29);
    }
    b.write(b"k6", b"x", 49, 50);
    b.fence(b"k6", 20, 50);
    b.fence(b"k7", 20, 27);
    b.write(b"k8", b"v8", 17, 30);
    b.fence(b"k8", 30, 0);
    b.write(b"k9", b"v9", 18, 20);
    b.touch(b"k9", 25, 26);
    b.fence(b"k9", 20, 27);
    b
}

#[test]
fn test_range() {
    let mut b = three_versions();
    for (bounds, expected) in [
        (("3", "5"), "3=3 4=4"),
        (("", "3"), "1=1 2=2"),
        (("5", ""), "5=5 6=6"),
        (("", ""), "1=1 2=2 3=3 4=4 5=5 6=6"),
    ] {
        assert_eq!(b.rows(&at(10), bounds), expected);
    }
}

#[test]
fn test_latest_kv_check_gc_fence() {
    let mut b = fenced();
    assert_eq!(b.rows(&at(40), ("", "")), "k1=v1 k6=v6 k8=v8");
}

#[test]
fn test_rc_read_check_ts() {
    let mut b = Bench::new();
    for (k, v, start, commit) in [
        (b"k0", "v0", 1, 5),
        (b"k1", "v1", 10, 20),
        (b"k2", "v2", 30, 40),
        (b"k2", "v22", 41, 42),
        (b"k3", "v3", 50, 51),
        (b"k4", "v4", 55, 56),
        (b"k5", "v5", 57, 58),
    ] {
        b.write(k, v.as_bytes(), start, commit);
    }
    b.must_prewrite_lock(b"k4", b"k4", 60);
    b.must_lock(b"k5", b"k5", 65, 65);
    b.must_prewrite_put(b"k6", b"v6", b"k6", 75);
    let (old, new) = (at(35).rc_check(), at(70).rc_check());
    assert_eq!(b.rows(&old, ("", "k2")), "k0=v0 k1=v1");
    assert_eq!(b.rows(&old, ("", "")), "!RcCheckTs", "a newer version");
    let below = "k0=v0 k1=v1 k2=v22 k3=v3 k4=v4 k5=v5";
    assert_eq!(b.rows(&new, ("", "k6")), below);
    assert_eq!(b.rows(&new, ("", "")), "!RcCheckTs", "a newer lock");
}
