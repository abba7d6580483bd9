//! The buffer over a snapshot.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::merge::*;
use super::*;
use crate::key::{KeyRange, KvPair};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// A transaction: what it wrote over what was there.
#[derive(Default)]
struct Store {
    buffer: MemBuffer,
    rows: Rows,
}

impl Store {
    fn new(rows: &[&str]) -> Self {
        let rows = rows
            .iter()
            .map(|row| (row.as_bytes().to_vec(), row.as_bytes().to_vec()));
        Store {
            rows: rows.collect(),
            ..Store::default()
        }
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match overlay(self.buffer.get(key).unwrap()) {
            Overlay::Value(value) => Some(value.to_vec()),
            Overlay::Deleted => None,
            Overlay::Unknown => self.rows.get(key).cloned(),
        }
    }

    fn snapshot(&self, range: &KeyRange, direction: Direction) -> Vec<KvPair> {
        let within = self.rows.iter().filter(|(key, _)| range.contains(key));
        let mut rows: Vec<_> = within.map(|(key, value)| KvPair::new(key, value)).collect();
        if direction == Direction::Reverse {
            rows.reverse();
        }
        rows
    }

    /// What a scan shows: merged at once, and merged page by page.
    fn scan(&self, range: impl Into<KeyRange>, direction: Direction, size: usize) -> Vec<KvPair> {
        let range = range.into();
        let mut cursor = self.buffer.cursor(range.clone(), direction);
        let buffered = self.buffer.page(&mut cursor, usize::MAX).unwrap();
        let rows = self.snapshot(&range, direction);
        let merged: Vec<KvPair> = merge(buffered, rows.clone(), direction).collect();

        let mut cursor = self.buffer.cursor(range, direction);
        let mut pages = rows.chunks(size);
        let mut union = Union::new(direction);
        let mut paged = Vec::new();
        loop {
            match union.next() {
                Step::Row(row) => paged.push(row),
                Step::NeedBuffer => {
                    let page = self.buffer.page(&mut cursor, size).unwrap();
                    union.push_buffer(page, cursor.is_finished());
                }
                Step::NeedSnapshot => {
                    let page = pages.next().unwrap_or_default().to_vec();
                    union.push_snapshot(page, pages.len() == 0);
                }
                Step::Finished => break,
            }
        }
        assert_eq!(union.next(), Step::Finished);
        assert_eq!(paged, merged);
        merged
    }

    fn check(&self, range: impl Into<KeyRange>, direction: Direction, keys: &[&str]) {
        let got: Vec<String> = self
            .scan(range, direction, 2)
            .iter()
            .map(|row| String::from_utf8_lossy(row.key()).into_owned())
            .collect();
        assert_eq!(got, keys);
    }
}

#[test]
fn union_store_get_set() {
    let mut store = Store::new(&["1"]);
    assert_eq!(store.get(b"1").unwrap(), b"1");
    store.buffer.set(b"1", b"2").unwrap();
    assert_eq!(store.get(b"1").unwrap(), b"2");
    assert_eq!((store.buffer.size(), store.buffer.len()), (2, 1));
}

#[test]
fn union_store_delete() {
    let mut store = Store::new(&["1"]);
    store.buffer.delete(b"1").unwrap();
    assert_eq!(store.get(b"1"), None);
    store.buffer.set(b"1", b"2").unwrap();
    assert_eq!(store.get(b"1").unwrap(), b"2");
}

#[test]
fn union_store_seek() {
    let mut store = Store::new(&["1", "2", "3"]);
    store.check(.., Direction::Forward, &["1", "2", "3"]);
    store.check("2".., Direction::Forward, &["2", "3"]);
    store.buffer.set(b"4", b"4").unwrap();
    store.check("2".., Direction::Forward, &["2", "3", "4"]);
    store.buffer.delete(b"3").unwrap();
    store.check("2".., Direction::Forward, &["2", "4"]);
}

#[test]
fn union_store_iter_reverse() {
    let mut store = Store::new(&["1", "2", "3"]);
    store.check(.., Direction::Reverse, &["3", "2", "1"]);
    store.check("1".."3", Direction::Reverse, &["2", "1"]);
    store.check(.."3", Direction::Reverse, &["2", "1"]);
    store.buffer.set(b"0", b"0").unwrap();
    store.check(.."3", Direction::Reverse, &["2", "1", "0"]);
    store.buffer.delete(b"1").unwrap();
    store.check(.."3", Direction::Reverse, &["2", "0"]);
    store.check("1".."3", Direction::Reverse, &["2"]);
}

/// A batch keeps the order asked, answers duplicates alike, and asks once.
#[test]
fn buffer_batch_getter() {
    let mut buffer = MemBuffer::new();
    buffer.set(b"a", b"1").unwrap();
    buffer.delete(b"b").unwrap();
    let keys: Vec<Key> = ["c", "a", "b", "d", "c", "b"].map(Key::from).to_vec();
    let (verdicts, ask) = overlay_batch(&keys, buffer.batch_get(&keys).unwrap());
    use Overlay::{Deleted, Unknown, Value};
    let value = Value(b"1".as_slice().into());
    assert_eq!(
        verdicts,
        [Unknown, value, Deleted, Unknown, Unknown, Deleted]
    );
    assert_eq!(ask, [Key::from("c"), Key::from("d")]);
}

#[test]
fn every_line_of_the_rule() {
    use Verdict::*;
    let (a, b) = (&b"a"[..], &b"b"[..]);
    let table = [
        (None, None, Finished, Finished),
        (None, Some(a), ShowRow, ShowRow),
        (Some((a, true)), None, DropDeletion, DropDeletion),
        (Some((a, false)), None, ShowBuffered, ShowBuffered),
        (Some((a, true)), Some(a), DropBoth, DropBoth),
        (Some((a, false)), Some(a), ReplaceRow, ReplaceRow),
        (Some((b, true)), Some(a), ShowRow, DropDeletion),
        (Some((b, false)), Some(a), ShowRow, ShowBuffered),
        (Some((a, true)), Some(b), DropDeletion, ShowRow),
        (Some((a, false)), Some(b), ShowBuffered, ShowRow),
    ];
    for (buffered, row, forward, reverse) in table {
        assert_eq!(
            judge(buffered, row, Direction::Forward),
            forward,
            "{buffered:?} {row:?}"
        );
        assert_eq!(
            judge(buffered, row, Direction::Reverse),
            reverse,
            "{buffered:?} {row:?}"
        );
    }
}

proptest! {
    #[test]
    fn a_scan_shows_the_overlay_of_two_maps(
        rows in vec((vec(0u8..3, 0..4), 1u8..9), 0..40),
        writes in vec((vec(0u8..3, 0..4), prop::option::of(1u8..9)), 0..40),
        from in vec(0u8..3, 0..3),
        to in prop::option::of(vec(0u8..3, 0..3)),
        size in 1usize..6,
    ) {
        let mut store = Store::default();
        store.rows.extend(rows.into_iter().map(|(key, value)| (key, vec![value])));
        let mut overlaid = store.rows.clone();
        for (key, value) in writes {
            match value {
                Some(value) => {
                    store.buffer.set(&key, &[value]).unwrap();
                    overlaid.insert(key, vec![value]);
                }
                None => {
                    store.buffer.delete(&key).unwrap();
                    overlaid.remove(&key);
                }
            }
        }
        for (key, value) in &overlaid {
            prop_assert_eq!(store.get(key), Some(value.clone()));
        }
        let range = KeyRange::new(from, to.map(Key::from));
        let within = overlaid.iter().filter(|(key, _)| range.contains(key));
        let mut expected: Vec<_> = within.map(|(key, value)| KvPair::new(key, value)).collect();
        prop_assert_eq!(&store.scan(range.clone(), Direction::Forward, size), &expected);
        expected.reverse();
        prop_assert_eq!(&store.scan(range, Direction::Reverse, size), &expected);
    }
}
