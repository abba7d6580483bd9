//! Keys, values and ranges of keys, and every convenient way to write one down.
//!
//! These are the caller's keys. Keyspace prefixes and PD's encoding are added by `keyspace`.

use std::fmt;
use std::ops::{
    Bound, Deref, Range, RangeBounds, RangeFrom, RangeFull, RangeInclusive, RangeTo,
    RangeToInclusive,
};

use bytes::{BufMut, Bytes, BytesMut};

/// Above every key: TiKV takes keys of at most 8 KiB unless it is told otherwise.
static ABOVE_ALL: [u8; 8 * 1024 + 1] = [0xFF; 8 * 1024 + 1];

/// Writes the conversions that keys and values share.
macro_rules! bytes_newtype {
    ($name:ident) => {
        impl $name {
            /// Wraps bytes that never move again, without copying them.
            pub const fn from_static(bytes: &'static [u8]) -> Self {
                $name(Bytes::from_static(bytes))
            }

            /// The bytes themselves, without a copy.
            pub fn into_bytes(self) -> Bytes {
                self.0
            }

            /// The bytes as a shared buffer.
            pub fn as_bytes(&self) -> &Bytes {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = [u8];
            fn deref(&self) -> &[u8] {
                &self.0
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl From<Bytes> for $name {
            fn from(bytes: Bytes) -> Self {
                $name(bytes)
            }
        }

        impl From<BytesMut> for $name {
            fn from(bytes: BytesMut) -> Self {
                $name(bytes.freeze())
            }
        }

        impl From<Vec<u8>> for $name {
            fn from(bytes: Vec<u8>) -> Self {
                $name(bytes.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                $name(text.into())
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                $name(Bytes::copy_from_slice(text.as_bytes()))
            }
        }

        impl From<&String> for $name {
            fn from(text: &String) -> Self {
                $name(Bytes::copy_from_slice(text.as_bytes()))
            }
        }

        impl From<&[u8]> for $name {
            fn from(bytes: &[u8]) -> Self {
                $name(Bytes::copy_from_slice(bytes))
            }
        }

        impl From<&Vec<u8>> for $name {
            fn from(bytes: &Vec<u8>) -> Self {
                $name(Bytes::copy_from_slice(bytes))
            }
        }

        impl<const N: usize> From<[u8; N]> for $name {
            fn from(bytes: [u8; N]) -> Self {
                $name(Bytes::copy_from_slice(&bytes))
            }
        }

        impl<const N: usize> From<&[u8; N]> for $name {
            fn from(bytes: &[u8; N]) -> Self {
                $name(Bytes::copy_from_slice(bytes))
            }
        }

        impl From<&$name> for $name {
            fn from(same: &$name) -> Self {
                same.clone()
            }
        }

        impl From<$name> for Bytes {
            fn from(value: $name) -> Bytes {
                value.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"{}\"", self.0.escape_ascii())
            }
        }
    };
}

/// A key, as the caller names it.
///
/// Cheap to clone: clones share one buffer.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

bytes_newtype!(Key);

impl Key {
    /// The smallest key. As the end of a region it means "no end".
    pub const EMPTY: Key = Key(Bytes::new());

    /// The smallest key after this one: itself and a zero byte.
    pub fn next(&self) -> Key {
        let mut next = BytesMut::with_capacity(self.len() + 1);
        next.put_slice(self);
        next.put_u8(0);
        Key(next.freeze())
    }

    /// The smallest key after all keys that begin with this one, `None` if there is none (the
    /// key is empty or all `0xFF`).
    pub fn prefix_end(&self) -> Option<Key> {
        let keep = self.iter().rposition(|byte| *byte != 0xFF)?;
        let mut end = self[..=keep].to_vec();
        end[keep] += 1;
        Some(end.into())
    }
}

/// Escaped, so that a log line stays one line.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

/// A value to be written.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(Bytes);

bytes_newtype!(Value);

/// One row of a read.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KvPair {
    key: Key,
    value: Bytes,
}

impl KvPair {
    /// Pairs a key with its value.
    pub fn new(key: impl Into<Key>, value: impl Into<Value>) -> Self {
        KvPair {
            key: key.into(),
            value: value.into().into(),
        }
    }

    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The value; empty where only keys were asked for.
    pub fn value(&self) -> &Bytes {
        &self.value
    }

    /// Takes the pair apart.
    pub fn into_parts(self) -> (Key, Bytes) {
        (self.key, self.value)
    }
}

impl fmt::Debug for KvPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({:?}, \"{}\")", self.key, self.value.escape_ascii())
    }
}

/// The keys from `start` on, up to but without `end`; `None` as the end means "to the last key".
///
/// Built from every Rust range of things that become keys, and by [`KeyRange::prefix`].
///
/// ```
/// use tikv_core::{Key, KeyRange};
///
/// assert!(KeyRange::from("a".."c").contains(&Key::from("b")));
/// assert!(KeyRange::from("a"..="c").contains(&Key::from("c")));
/// assert!(KeyRange::prefix("user/").contains(&Key::from("user/7")));
/// assert!(!KeyRange::prefix("user/").contains(&Key::from("user0")));
/// assert!(KeyRange::from("c".."a").is_empty());
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct KeyRange {
    start: Key,
    end: Option<Key>,
}

impl KeyRange {
    /// The keys from `start` up to but without `end`, `None` for no end.
    pub fn new(start: impl Into<Key>, end: Option<Key>) -> Self {
        KeyRange {
            start: start.into(),
            end,
        }
    }

    /// Every key.
    pub fn all() -> Self {
        KeyRange::default()
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: impl Into<Key>) -> Self {
        let start = prefix.into();
        let end = start.prefix_end();
        KeyRange { start, end }
    }

    /// The first key of the range.
    pub fn start(&self) -> &Key {
        &self.start
    }

    /// The first key after the range, `None` if the range has no end.
    pub fn end(&self) -> Option<&Key> {
        self.end.as_ref()
    }

    /// The end as the wire has it, where an empty key means "no end".
    ///
    /// Only right for ranges that are not [empty](KeyRange::is_empty).
    pub fn wire_end(&self) -> Key {
        self.end.clone().unwrap_or_default()
    }

    /// The bounds as a scan request has them, in the order in which it goes through the range.
    ///
    /// A scan that goes down begins below a key, and to TiKV an empty key is the lowest there is
    /// and not "no end": it would find nothing. It has to begin below a key above all others.
    pub(crate) fn wire_bounds(&self, reverse: bool) -> (Bytes, Bytes) {
        let lower = self.start.as_bytes().clone();
        let upper = self.end.as_ref().map(|end| end.as_bytes().clone());
        if reverse {
            let above_all = || Bytes::from_static(&ABOVE_ALL);
            (upper.unwrap_or_else(above_all), lower)
        } else {
            (lower, upper.unwrap_or_default())
        }
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &*self.start && self.end.as_ref().is_none_or(|end| key < &**end)
    }

    /// The keys that are in both ranges.
    pub fn intersect(&self, other: &KeyRange) -> KeyRange {
        let start = self.start.clone().max(other.start.clone());
        let end = match (&self.end, &other.end) {
            (Some(a), Some(b)) => Some(a.clone().min(b.clone())),
            (Some(end), None) | (None, Some(end)) => Some(end.clone()),
            (None, None) => None,
        };
        KeyRange { start, end }
    }

    /// The range from two bounds.
    pub fn from_bounds<K: Into<Key>>(start: Bound<K>, end: Bound<K>) -> Self {
        let start = match start {
            Bound::Included(key) => key.into(),
            Bound::Excluded(key) => key.into().next(),
            Bound::Unbounded => Key::EMPTY,
        };
        let end = match end {
            Bound::Included(key) => Some(key.into().next()),
            Bound::Excluded(key) => Some(key.into()),
            Bound::Unbounded => None,
        };
        KeyRange { start, end }
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            Some(end) => write!(f, "[{:?}, {end:?})", self.start),
            None => write!(f, "[{:?}, +inf)", self.start),
        }
    }
}

impl<K: Into<Key>> From<Range<K>> for KeyRange {
    fn from(range: Range<K>) -> Self {
        KeyRange::from_bounds(Bound::Included(range.start), Bound::Excluded(range.end))
    }
}

impl<K: Into<Key>> From<RangeInclusive<K>> for KeyRange {
    fn from(range: RangeInclusive<K>) -> Self {
        let (start, end) = range.into_inner();
        KeyRange::from_bounds(Bound::Included(start), Bound::Included(end))
    }
}

impl<K: Into<Key>> From<RangeFrom<K>> for KeyRange {
    fn from(range: RangeFrom<K>) -> Self {
        KeyRange::from_bounds(Bound::Included(range.start), Bound::Unbounded)
    }
}

impl<K: Into<Key>> From<RangeTo<K>> for KeyRange {
    fn from(range: RangeTo<K>) -> Self {
        KeyRange::from_bounds(Bound::Unbounded, Bound::Excluded(range.end))
    }
}

impl<K: Into<Key>> From<RangeToInclusive<K>> for KeyRange {
    fn from(range: RangeToInclusive<K>) -> Self {
        KeyRange::from_bounds(Bound::Unbounded, Bound::Included(range.end))
    }
}

impl From<RangeFull> for KeyRange {
    fn from(_: RangeFull) -> Self {
        KeyRange::all()
    }
}

impl<K: Into<Key>> From<(Bound<K>, Bound<K>)> for KeyRange {
    fn from((start, end): (Bound<K>, Bound<K>)) -> Self {
        KeyRange::from_bounds(start, end)
    }
}

/// So that a [`KeyRange`] serves as a range of a `BTreeMap` keyed by [`Key`].
impl RangeBounds<Key> for KeyRange {
    fn start_bound(&self) -> Bound<&Key> {
        Bound::Included(&self.start)
    }

    fn end_bound(&self) -> Bound<&Key> {
        match &self.end {
            // A range that ends before it starts would make the map panic.
            Some(end) if *end < self.start => Bound::Excluded(&self.start),
            Some(end) => Bound::Excluded(end),
            None => Bound::Unbounded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    #[test]
    fn a_scan_downwards_begins_below_a_key() {
        let bounds = |range: KeyRange, reverse| {
            let (first, second) = range.wire_bounds(reverse);
            (first.len(), second.len())
        };
        assert_eq!(bounds(("a".."bb").into(), false), (1, 2));
        assert_eq!(bounds(("a".."bb").into(), true), (2, 1));
        assert_eq!(bounds(("a"..).into(), false), (1, 0));
        assert_eq!(bounds(("a"..).into(), true), (ABOVE_ALL.len(), 1));
    }

    #[test]
    fn every_range_syntax_names_the_same_keys_as_rust() {
        let keys: Vec<Key> = ["", "a", "b", "b\0", "c"]
            .into_iter()
            .map(Key::from)
            .collect();
        let b = || Key::from("b");
        let table: [(KeyRange, [bool; 5]); 8] = [
            (("a".."b").into(), [false, true, false, false, false]),
            (("a"..="b").into(), [false, true, true, false, false]),
            (("b"..).into(), [false, false, true, true, true]),
            ((.."b").into(), [true, true, false, false, false]),
            ((..="b").into(), [true, true, true, false, false]),
            ((..).into(), [true; 5]),
            (
                (Bound::Excluded(b()), Bound::Unbounded).into(),
                [false, false, false, true, true],
            ),
            ((.."").into(), [false; 5]),
        ];
        for (range, expected) in table {
            let got: Vec<bool> = keys.iter().map(|key| range.contains(key)).collect();
            assert_eq!(got, expected, "{range:?}");
        }
    }

    #[test]
    fn prefix_ends_after_the_last_key_with_it() {
        assert_eq!(Key::from("ab").prefix_end(), Some(Key::from("ac")));
        assert_eq!(
            Key::from([1, 0xFF, 0xFF]).prefix_end(),
            Some(Key::from([2]))
        );
        assert_eq!(Key::from([0xFF, 0xFF]).prefix_end(), None);
        assert_eq!(Key::EMPTY.prefix_end(), None);
    }

    #[test]
    fn an_inverted_range_is_empty_and_harmless_in_a_map() {
        let map: std::collections::BTreeMap<Key, ()> = [("b".into(), ())].into();
        let range = KeyRange::from("c".."a");
        assert!(range.is_empty());
        assert_eq!(map.range(range).count(), 0);
    }

    quickcheck! {
        fn prefix_holds_exactly_the_keys_that_begin_with_it(prefix: Vec<u8>, key: Vec<u8>) -> bool {
            KeyRange::prefix(&prefix).contains(&key) == key.starts_with(&prefix)
        }

        fn nothing_lies_between_a_key_and_its_next(key: Vec<u8>, other: Vec<u8>) -> bool {
            let next = Key::from(&key).next();
            !(other > key && *other < *next)
        }

        fn intersection_is_conjunction(a: Vec<u8>, b: Vec<u8>, c: Vec<u8>, d: Vec<u8>, k: Vec<u8>) -> bool {
            let (x, y) = (KeyRange::from(a..b), KeyRange::from(c..d));
            x.intersect(&y).contains(&k) == (x.contains(&k) && y.contains(&k))
        }
    }
}
