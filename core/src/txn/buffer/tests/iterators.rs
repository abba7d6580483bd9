//! Iterators over ranges.

use super::*;

#[test]
fn iterator() {
    let buffer = filled(10_000);
    for (from, to) in [
        (0, 10_000),
        (1, 9999),
        (17, 18),
        (4000, 4000),
        (9999, 10_000),
    ] {
        let expected: Vec<[u8; 4]> = (from..to).map(n).collect();
        let range = n(from)..n(to);
        assert!(
            buffer
                .iter(range.clone())
                .map(|e| e.key())
                .eq(expected.iter())
        );
        assert!(
            buffer
                .iter(range)
                .rev()
                .map(|e| e.key())
                .eq(expected.iter().rev())
        );
        assert_eq!(buffer.iter(n(from)..).count(), 10_000 - from as usize);
        assert_eq!(buffer.iter(..n(to)).rev().count(), to as usize);
    }
}

#[test]
fn new_iterator() {
    let mut buffer = MemBuffer::new();
    assert!(buffer.iter(..).next().is_none());
    assert!(buffer.iter(..).next_back().is_none());
    for i in [0, 2] {
        buffer
            .set(ten_digits(i).as_bytes(), ten_digits(i).as_bytes())
            .unwrap();
    }
    let found = |from: u32| {
        keys(buffer.iter(ten_digits(from)..))
            .first()
            .map(|key| key.to_vec())
    };
    assert_eq!(found(0), Some(ten_digits(0).into_bytes()), "at the key");
    assert_eq!(found(2), Some(ten_digits(2).into_bytes()), "at the key");
    assert_eq!(found(1), Some(ten_digits(2).into_bytes()), "between two");
    assert_eq!(found(4), None, "after the last");
    assert_eq!(buffer.iter(ten_digits(0)..).count(), 2);
}

#[test]
fn iter_next_until() {
    let buffer = filled(2);
    let mut iter = buffer.iter(..);
    while iter.next().is_some() {}
    assert!(iter.next().is_none(), "an end stays one");
    assert!(iter.next_back().is_none());
}

#[test]
fn basic_new_iterator() {
    assert!(MemBuffer::new().iter("2"..).next().is_none());
}

#[test]
fn new_iterator_min() {
    let mut buffer = MemBuffer::new();
    let record = |row: u32, column: &str| {
        format!("DATA_test_main_db_tbl_tbl_test_record__{row:020}{column}").into_bytes()
    };
    for row in [1, 2] {
        for column in ["", "_0002", "_0003"] {
            buffer.set(&record(row, column), b"hello").unwrap();
        }
    }
    assert_eq!(buffer.iter(..).count(), 6);
    assert_eq!(keys(buffer.iter(record(0, "")..))[0], record(1, ""));
    assert_eq!(
        keys(buffer.iter(..record(2, "")).rev())[0],
        record(1, "_0003")
    );
}

#[test]
fn iter_no_result() {
    let mut buffer = MemBuffer::new();
    buffer.set(&[1, 1], &[1, 1]).unwrap();
    for (from, to) in [
        (vec![1, 1], vec![1, 1]),
        (vec![1, 0, 0], vec![1, 0, 1]),
        (vec![1, 0, 1], vec![1, 0, 0]),
        (vec![9], vec![0]),
    ] {
        let range = from..to;
        assert!(buffer.iter(range.clone()).next().is_none(), "{range:?}");
        assert!(
            buffer.iter(range.clone()).next_back().is_none(),
            "{range:?}"
        );
        let mut cursor = buffer.cursor(range, Direction::Reverse);
        assert_eq!(buffer.page(&mut cursor, 9).unwrap(), []);
    }
}

/// Fan-outs around those of client-go's tree nodes, and of this index' nodes.
#[test]
fn iter_seek_no_result_and_iterate_node_capacity() {
    for count in [4_u32, 16, 48, 63, 64, 65, 256] {
        let mut buffer = MemBuffer::new();
        for i in 0..count {
            buffer.set(&n(2 * i), &n(i)).unwrap();
        }
        for i in 0..count - 1 {
            assert!(buffer.iter(n(2 * i + 1)..n(2 * i + 2)).next().is_none());
            assert!(
                buffer
                    .iter(n(2 * i + 1)..n(2 * i + 2))
                    .next_back()
                    .is_none()
            );
        }
        let middle = n(count);
        let below = (count as usize).div_ceil(2);
        assert_eq!(buffer.iter(..middle).count(), below);
        assert_eq!(buffer.iter(middle..).count(), count as usize - below);
        for entry in buffer.iter(middle..).chain(buffer.iter(..middle).rev()) {
            let handle = entry.handle();
            assert_eq!(&*buffer.key_by_handle(handle).unwrap(), entry.key());
            assert_eq!(buffer.value_by_handle(handle).as_deref(), entry.value());
        }
    }
}

#[test]
fn keys_that_are_prefixes_of_others() {
    // `multi_level_iterate`, `sub_node`, `long_prefix` and the mismatches of client-go's tree.
    let mut sorted: Vec<Vec<u8>> = (1..=20).map(|len| vec![0; len]).collect();
    sorted.extend([vec![1], vec![1, 1], vec![1, 1, 2]]);
    sorted.extend([
        vec![2; 10],
        [vec![2; 29], vec![3]].concat(),
        [vec![2; 29], vec![4]].concat(),
    ]);
    sorted.extend((0..4).map(|i| [&[b'm'; 26][..], &[i]].concat()));
    sorted.sort();
    let mut buffer = MemBuffer::new();
    for key in sorted.iter().rev() {
        buffer.set(key, key).unwrap();
    }
    assert_eq!(keys(buffer.iter(..)), sorted);
    let backwards: Vec<&[u8]> = sorted.iter().rev().map(Vec::as_slice).collect();
    assert_eq!(keys(buffer.iter(..).rev()), backwards);
    for key in &sorted {
        assert_eq!(buffer.get(key).unwrap().unwrap(), key);
    }
    for absent in [
        &b""[..],
        &[1, 1, 1, 3],
        &[2; 11],
        &[2; 30],
        &[b'm'; 26],
        &[b'm'; 28],
    ] {
        assert_eq!(buffer.get(absent).unwrap(), None);
    }
    // The bounds of client-go's seek tests.
    assert_eq!(keys(buffer.iter(vec![1]..vec![1, 1])), [[1]]);
    assert_eq!(
        keys(buffer.iter(vec![1, 0, 0]..vec![1, 1, 0]).rev()),
        [[1, 1]]
    );
}
