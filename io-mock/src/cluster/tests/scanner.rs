//! Scanning a range in either direction: what of a lock matters.

use super::Bench;
use super::looks::{Look, at};

/// Scans everything both ways; the answer must be the same backwards.
fn both_ways(b: &mut Bench, look: &Look) -> String {
    let up = b.rows(look, ("", ""));
    let down = b.rows_down(look, ("", ""));
    let mut reversed: Vec<&str> = down.split(' ').collect();
    reversed.reverse();
    assert_eq!(reversed.join(" "), up);
    up
}

#[test]
fn test_scan_bypass_locks() {
    let mut b = Bench::new();
    for (i, k) in (0..).zip(["0", "1", "2", "3", "4"].map(str::as_bytes)) {
        b.write(k, b"v", 10, 20);
        b.must_prewrite_put(k, b"w", k, 30 + i * 10);
    }
    let look = at(65).bypass(&[30, 41, 50]);
    assert_eq!(both_ways(&mut b, &look), "0=v 1!locked 2=v 3!locked 4=v");
}

#[test]
fn test_scan_access_locks() {
    for delete_bound in [false, true] {
        let mut b = Bench::new();
        for k in b'0'..=b'8' {
            b.write(&[k], &[k], 10, 20);
        }
        for (k, start, delete) in [
            (b"0", 30, delete_bound),
            (b"1", 40, false),
            (b"2", 50, true),
            (b"4", 70, false),
            (b"5", 80, false),
            (b"6", 100, false),
            (b"8", 90, delete_bound),
        ] {
            match delete {
                true => b.must_prewrite_delete(k, k, start),
                false => b.must_prewrite_put(k, b"new", k, start),
            }
        }
        b.must_prewrite_lock(b"3", b"3", 60);
        let look = at(95).bypass(&[80]).access(&[30, 40, 50, 60, 90]);
        let inner = "1=new 3=3 4!locked 5=5 6=6 7=7";
        let expected = match delete_bound {
            true => inner.to_owned(),
            false => format!("0=new {inner} 8=new"),
        };
        assert_eq!(both_ways(&mut b, &look), expected);
    }
}

#[test]
fn test_rc_scan_skip_lock() {
    let mut b = Bench::new();
    b.write(b"foo1", b"bar1", 10, 20);
    b.write(b"foo2", b"bar2", 30, 40);
    b.must_prewrite_put(b"foo1", b"bar12", b"foo1", 50);
    assert_eq!(both_ways(&mut b, &at(60).rc()), "foo1=bar1 foo2=bar2");
}

#[test]
fn test_scan_with_lock() {
    let mut b = Bench::new();
    for k in b'0'..=b'4' {
        b.write(&[k], &[k], 1, 2);
        b.write(&[k], &[k], 10, 100);
    }
    for (k, start) in [(b"1", 20), (b"2", 50), (b"3", 105)] {
        b.must_lock(k, k, start, 110);
    }
    b.must_prewrite_put(b"4", b"a", b"4", 105);
    for ts in [30, 70, 103] {
        assert_eq!(both_ways(&mut b, &at(ts)), "0=0 1=1 2=2 3=3 4=4");
    }
    assert_eq!(both_ways(&mut b, &at(106)), "0=0 1=1 2=2 3=3 4!locked");
}

#[test]
fn test_scan_with_lock_and_write() {
    // Which of the two lies on the lower key, or both on one.
    for (written, locked, expected) in [
        ("a", "b", "a=v b!locked"),
        ("a", "a", "a!locked"),
        ("b", "a", "a!locked b=v"),
        ("", "a", "a!locked"),
        ("a", "", "a=v"),
    ] {
        let mut b = Bench::new();
        if !written.is_empty() {
            b.write(written.as_bytes(), b"v", 3, 4);
        }
        if !locked.is_empty() {
            b.must_prewrite_put(locked.as_bytes(), b"lock", locked.as_bytes(), 5);
        }
        assert_eq!(both_ways(&mut b, &at(10)), expected);
    }
}

#[test]
fn test_scan_with_load_commit_ts() {
    let mut b = Bench::new();
    for (k, v, start, commit) in [
        (b"foo1", b"bar1", 10, 20),
        (b"foo2", b"bar2", 30, 40),
        (b"foo3", b"bar3", 50, 60),
        (b"foo1", b"bar4", 60, 70),
    ] {
        b.write(k, v, start, commit);
    }
    let look = at(80).with_commit_ts();
    let expected = [
        ("foo1", "bar4", 70),
        ("foo2", "bar2", 40),
        ("foo3", "bar3", 60),
    ];
    for (k, v, commit) in expected {
        let entry = b.entry(k.as_bytes(), &look);
        assert_eq!(entry, Ok(Some((v.into(), commit))));
    }
    for k in [b"foo1", b"foo2"] {
        b.must_prewrite_put(k, b"new", b"foo1", 80);
    }
    b.must_commit(b"foo1", 80, 90);
    let look = at(100).access(&[80]).with_commit_ts();
    assert_eq!(b.entry(b"foo1", &look), Ok(Some(("new".into(), 90))));
    assert_eq!(b.entry(b"foo2", &look), Err("locked"), "not read through");
}

#[test]
fn test_scan_with_load_commit_ts_top_lock_versions_across_seek_bound_and_delete() {
    let mut b = Bench::new();
    // Fewer and more locks above the version than the server walks through.
    for (k, locks, delete) in [
        (b"k1", 7, false),
        (b"k2", 9, false),
        (b"k3", 7, true),
        (b"k4", 9, true),
    ] {
        b.write(k, k, 1, 2);
        if delete {
            b.erase(k, 3, 4);
        }
        for i in 0..locks {
            b.touch(k, 5 + 2 * i, 6 + 2 * i);
        }
    }
    assert_eq!(both_ways(&mut b, &at(100)), "k1=k1 k2=k2");
    for k in [b"k1", b"k2"] {
        let entry = b.entry(k, &at(100).with_commit_ts());
        assert_eq!(entry.expect("no error").map(|(_, ts)| ts), Some(2));
    }
}

#[test]
fn test_scan_with_bound() {
    let mut b = Bench::new();
    for n in 10..40 {
        b.write(format!("key{n}").as_bytes(), b"v", 1, 2);
    }
    let expected: Vec<String> = (20..30).map(|n| format!("key{n}=v")).collect();
    assert_eq!(b.rows(&at(9), ("key20", "key30")), expected.join(" "));
    let expected: Vec<String> = (20..30).rev().map(|n| format!("key{n}=v")).collect();
    assert_eq!(b.rows_down(&at(9), ("key20", "key30")), expected.join(" "));
}
