//! Writing ahead of the end of a transaction, and what an insert finds.

use tikv_proto::kvrpcpb::{Assertion, Op};

use super::vocabulary::{Prepare, pre, word};
use super::{Bench, mutation, put};

#[test]
fn test_flush() {
    let mut b = Bench::new();
    let k = b"key";
    assert_eq!(b.flush(1, 1, put(k, b"value")), "");
    b.must_locked(k, 1);
    b.must_commit(k, 1, 2);
    b.must_get(k, 2, b"value");
}

#[test]
fn test_write_conflict() {
    let mut b = Bench::new();
    let k = b"key";
    assert_eq!(b.flush(1, 1, put(k, b"v")), "");
    assert_eq!(b.flush(2, 2, put(k, b"v")), "locked");
    assert_eq!(word(Some(&b.must_lock_err(k, k, 2, 2))), "locked");
    assert_eq!(b.try_run(pre(k, 2).put(&[k])), "locked");
    b.must_lock(b"key2", b"key2", 1, 1);
    assert_eq!(b.flush(2, 3, put(b"key2", b"v")), "locked");
    b.must_prewrite_put(b"key3", b"v", b"key3", 1);
    assert_eq!(b.flush(2, 4, put(b"key3", b"v")), "locked");
}

#[test]
fn test_flush_overwrite() {
    let mut b = Bench::new();
    let k = b"key";
    assert_eq!(b.flush(1, 1, put(k, b"value")), "");
    assert_eq!(b.flush(1, 2, put(k, b"value2")), "");
    b.must_commit(k, 1, 2);
    b.must_get(k, 3, b"value2");
}

#[test]
fn test_flush_out_of_order() {
    let mut b = Bench::new();
    let k = b"key";
    assert_eq!(b.flush(1, 0, put(k, b"value")), "abort");
    assert_eq!(b.flush(1, 2, put(k, b"value")), "");
    assert_eq!(b.flush(1, 1, put(k, b"value2")), "");
    b.must_commit(k, 1, 2);
    b.must_get(k, 3, b"value");
}

#[test]
fn test_flushed_existence_check() {
    let mut b = Bench::new();
    let k = b"key";
    let insert = || mutation(Op::Insert, k, b"value");
    assert_eq!(b.flush(1, 1, put(k, b"value")), "");
    assert_eq!(b.flush(1, 2, insert()), "exists");
    b.must_commit(k, 1, 2);
    assert_eq!(b.flush(3, 1, insert()), "exists");
}

#[test]
fn test_flush_overwrite_assertion() {
    let mut b = Bench::new();
    let k = b"key";
    let mut flush = |generation: u64, value: &[u8], assertion: Assertion| {
        let mut m = put(k, value);
        m.set_assertion(assertion);
        b.flush(1, generation, m)
    };
    assert_eq!(flush(1, b"value", Assertion::NotExist), "");
    // The own first flush is not yet a version.
    assert_eq!(flush(2, b"value2", Assertion::Exist), "");
    b.must_commit(k, 1, 2);
    b.must_get(k, 3, b"value2");
}

#[test]
fn test_check_data_constraint() {
    // The newest record of the key, and whether an insert above it finds a value.
    let cases: [(Prepare, &str); 5] = [
        (|_| {}, ""),
        (|b| b.erase(b"a", 6, 7), ""),
        (|b| b.write(b"a", b"v", 2, 5), "exists"),
        (
            |b| {
                b.write(b"a", b"v", 2, 5);
                b.must_rollback(b"a", 6);
            },
            "exists",
        ),
        (
            |b| {
                b.write(b"a", b"v", 2, 5);
                b.touch(b"a", 10, 15);
            },
            "exists",
        ),
    ];
    for (prepare, expected) in cases {
        let mut b = Bench::new();
        prepare(&mut b);
        let insert = pre(b"a", 20).with(mutation(Op::Insert, b"a", b"v"));
        assert_eq!(b.try_run(insert), expected);
        let plain = b.try_run(pre(b"a", 21).put(&[b"other"]));
        assert_eq!(plain, "", "no other operation minds");
    }
}
