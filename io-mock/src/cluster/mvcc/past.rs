//! The data as a store has it whose peers have fallen behind: what they have not applied is undone
//! where they read.
//!
//! The [`Engine`] holds what leaders have applied. For a range that stands still on a store it keeps
//! what a key was before its first change since then, and a [`View`] of that store shows that. As
//! long as nothing stands still anywhere, a view is the engine.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;

use bytes::Bytes;

use super::engine::{ColumnFamily, Engine, History, RangeKey, RawValue, bounds, clear};
use super::lock::KeyLock;
use crate::cluster::key::Key;

/// Entries as they were; `None` for those that were not there.
pub(in crate::cluster) type Before<K, V> = BTreeMap<K, Option<V>>;

/// What one store has not applied, undone.
#[derive(Clone, Debug, Default)]
pub(in crate::cluster) struct Past {
    /// Encoded ranges that stand still, the end of each by its start. They do not overlap.
    ranges: BTreeMap<Bytes, Bytes>,
    pub(in crate::cluster) locks: Before<Key, KeyLock>,
    pub(in crate::cluster) histories: Before<Key, History>,
    pub(in crate::cluster) raw: [Before<Bytes, RawValue>; 3],
}

impl Past {
    /// Whether an encoded key lies in a range that stands still.
    pub(super) fn holds(&self, encoded: &[u8]) -> bool {
        let upto = (Bound::Unbounded, Bound::Included(encoded));
        let range = self.ranges.range::<[u8], _>(upto).next_back();
        range.is_some_and(|(_, end)| end.is_empty() || encoded < end.as_ref())
    }

    /// A range stands still from now on.
    pub(super) fn hold(&mut self, start: Bytes, end: Bytes) {
        self.ranges.insert(start, end);
    }

    /// The range with this start goes on; whether any is left.
    pub(super) fn release(&mut self, start: &Bytes) -> bool {
        if let Some(end) = self.ranges.remove(start) {
            self.forget(start, &end);
        }
        !self.ranges.is_empty()
    }

    /// Forgets what there was in an encoded range.
    pub(super) fn forget(&mut self, start: &Bytes, end: &Bytes) {
        let (first, last) = (
            Key::from_encoded(start.clone()),
            Key::from_encoded(end.clone()),
        );
        clear(&mut self.locks, first.clone(), last.clone());
        clear(&mut self.histories, first, last);
        for raw in &mut self.raw {
            clear(raw, start.clone(), end.clone());
        }
    }
}

/// The data as one store has it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub(super) engine: &'a Engine,
    pub(super) past: Option<&'a Past>,
}

impl<'a> View<'a> {
    /// The stored lock of a key.
    pub fn lock(self, key: &Key) -> Option<&'a KeyLock> {
        match self.past.and_then(|past| past.locks.get(key)) {
            Some(before) => before.as_ref(),
            None => self.engine.lock(key),
        }
    }

    /// The versions of a key.
    pub fn history(self, key: &Key) -> Option<&'a History> {
        match self.past.and_then(|past| past.histories.get(key)) {
            Some(before) => before.as_ref(),
            None => self.engine.history(key),
        }
    }

    /// Stored locks in an encoded range.
    pub fn locks(self, start: &Bytes, end: &Bytes) -> Entries<'a, Key, KeyLock> {
        let (first, last) = (
            Key::from_encoded(start.clone()),
            Key::from_encoded(end.clone()),
        );
        let before = self.past.map(|past| &past.locks);
        Entries::new(self.engine.all_locks(), before, first, last)
    }

    /// Histories in an encoded range.
    pub fn histories(self, start: &Bytes, end: &Bytes) -> Entries<'a, Key, History> {
        let (first, last) = (
            Key::from_encoded(start.clone()),
            Key::from_encoded(end.clone()),
        );
        let before = self.past.map(|past| &past.histories);
        Entries::new(self.engine.all_histories(), before, first, last)
    }

    /// A raw value, whether expired, deleted or alive.
    pub fn raw(self, cf: ColumnFamily, key: &Bytes) -> Option<&'a RawValue> {
        match self.past.and_then(|past| past.raw[cf as usize].get(key)) {
            Some(before) => before.as_ref(),
            None => self.engine.raw(cf, key),
        }
    }

    /// Raw values in a range of stored keys.
    pub fn raw_range(
        self,
        cf: ColumnFamily,
        start: &Bytes,
        end: &Bytes,
    ) -> Entries<'a, Bytes, RawValue> {
        let before = self.past.map(|past| &past.raw[cf as usize]);
        Entries::new(self.engine.all_raw(cf), before, start.clone(), end.clone())
    }
}

/// Entries of a range in order, from either end.
#[derive(Debug)]
pub struct Entries<'a, K, V>(Source<'a, K, V>);

#[derive(Debug)]
enum Source<'a, K, V> {
    Present(Range<'a, K, V>),
    Past(Merged<'a, K, V>),
}

/// Present entries with those in place that were different. What is left of the range is looked up
/// at every step.
#[derive(Debug)]
struct Merged<'a, K, V> {
    present: &'a BTreeMap<K, V>,
    before: &'a Before<K, V>,
    left: (Bound<K>, Bound<K>),
}

impl<'a, K: RangeKey, V> Entries<'a, K, V> {
    fn new(
        present: &'a BTreeMap<K, V>,
        before: Option<&'a Before<K, V>>,
        start: K,
        end: K,
    ) -> Self {
        let left = bounds(start, end);
        Entries(match before.filter(|before| !before.is_empty()) {
            None => Source::Present(present.range(left)),
            Some(before) => Source::Past(Merged {
                present,
                before,
                left,
            }),
        })
    }
}

impl<'a, K: RangeKey, V> Merged<'a, K, V> {
    /// The entry at one end, taken out of what is left; `None` for one that was not there.
    fn step(&mut self, forward: bool) -> Option<(&'a K, Option<&'a V>)> {
        let present = ends(self.present.range(self.left.clone()), forward);
        let before = ends(self.before.range(self.left.clone()), forward);
        let entry = match (present, before) {
            (Some((key, value)), None) => (key, Some(value)),
            (Some((key, value)), Some((old, _))) if key != old && (key < old) == forward => {
                (key, Some(value))
            }
            (_, Some((key, value))) => (key, value.as_ref()),
            (None, None) => return None,
        };
        let rest = Bound::Excluded(entry.0.clone());
        match forward {
            true => self.left.0 = rest,
            false => self.left.1 = rest,
        }
        Some(entry)
    }

    fn next_there(&mut self, forward: bool) -> Option<(&'a K, &'a V)> {
        loop {
            if let (key, Some(value)) = self.step(forward)? {
                return Some((key, value));
            }
        }
    }
}

fn ends<'a, K, V>(mut range: Range<'a, K, V>, forward: bool) -> Option<(&'a K, &'a V)> {
    match forward {
        true => range.next(),
        false => range.next_back(),
    }
}

impl<'a, K: RangeKey, V> Iterator for Entries<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Source::Present(range) => range.next(),
            Source::Past(merged) => merged.next_there(true),
        }
    }
}

impl<K: RangeKey, V> DoubleEndedIterator for Entries<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Source::Present(range) => range.next_back(),
            Source::Past(merged) => merged.next_there(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::mvcc::engine::Change;
    use crate::cluster::mvcc::lock::{Lock, LockKind};
    use crate::cluster::mvcc::write_record::{WriteKind, WriteRecord};

    const STORE: u64 = 2;

    /// What may happen to keys of one letter.
    #[derive(Clone, Debug)]
    enum Event {
        Lock(u8, u64),
        Unlock(u8),
        Write(u8, u64),
        Erase(u8, u64),
        Long(u8, u64),
        Raw(u8, u8),
        Unraw(u8),
        Clear(u8, u8),
    }

    fn event() -> impl Strategy<Value = Event> {
        let key = || 0..8u8;
        prop_oneof![
            (key(), 1..9u64).prop_map(|(key, ts)| Event::Lock(key, ts)),
            key().prop_map(Event::Unlock),
            (key(), 1..9u64).prop_map(|(key, ts)| Event::Write(key, ts)),
            (key(), 1..9u64).prop_map(|(key, ts)| Event::Erase(key, ts)),
            (key(), 1..9u64).prop_map(|(key, ts)| Event::Long(key, ts)),
            (key(), 0..9u8).prop_map(|(key, value)| Event::Raw(key, value)),
            key().prop_map(Event::Unraw),
            (key(), key()).prop_map(|(start, end)| Event::Clear(start, end)),
        ]
    }

    fn plain(key: u8) -> Bytes {
        Bytes::from(vec![b'a' + key])
    }

    fn do_to(engine: &mut Engine, event: &Event) {
        let key = |key: u8| Key::from_encoded(plain(key));
        let cf = ColumnFamily::Default;
        match *event {
            Event::Lock(at, ts) => {
                let lock = Lock::new(LockKind::Put, plain(at), ts, 1);
                engine.apply(Change::PutLock(key(at), KeyLock::Exclusive(lock)));
            }
            Event::Unlock(at) => engine.apply(Change::DeleteLock(key(at))),
            Event::Write(at, ts) => {
                let write = WriteRecord::new(WriteKind::Put, ts, None);
                engine.apply(Change::PutWrite(key(at), ts, write));
            }
            Event::Erase(at, ts) => engine.apply(Change::DeleteWrite(key(at), ts)),
            Event::Long(at, ts) => engine.apply(Change::PutValue(key(at), ts, plain(at))),
            Event::Raw(at, value) => {
                let value = RawValue {
                    value: plain(value),
                    expires_at: 0,
                    deleted: false,
                };
                engine.put_raw(cf, plain(at), value);
            }
            Event::Unraw(at) => engine.delete_raw(cf, &plain(at)),
            Event::Clear(start, end) => engine.delete_range(&plain(start), &plain(end)),
        }
    }

    /// Everything there is in a range, as it is told, in one direction or the other.
    fn seen(view: View<'_>, start: u8, end: u8, forward: bool) -> Vec<String> {
        let (start, end) = (plain(start), plain(end));
        let show = |key: &Key, what: &dyn std::fmt::Debug| format!("{key:?} {what:?}");
        let turned = |mut list: Vec<String>| {
            if !forward {
                list.reverse();
            }
            list
        };
        fn list<K: RangeKey, V>(entries: Entries<'_, K, V>, forward: bool) -> Vec<(&K, &V)> {
            match forward {
                true => entries.collect(),
                false => entries.rev().collect(),
            }
        }
        let locks = list(view.locks(&start, &end), forward);
        for (key, lock) in &locks {
            assert_eq!(view.lock(key), Some(*lock));
        }
        let locks = locks.into_iter().map(|(key, lock)| show(key, lock));
        let histories = list(view.histories(&start, &end), forward);
        let histories = histories.into_iter().map(|(key, it)| show(key, it));
        let raw = list(view.raw_range(ColumnFamily::Default, &start, &end), forward);
        let raw = raw.into_iter().map(|(key, it)| format!("{key:?} {it:?}"));
        let mut all = turned(locks.collect());
        all.extend(turned(histories.collect()));
        all.extend(turned(raw.collect()));
        all
    }

    proptest! {
        #[test]
        fn a_range_that_stands_still_is_as_it_was_and_the_rest_is_not(
            before in vec(event(), 0..30),
            after in vec(event(), 0..30),
            (start, end) in (0..8u8, 0..8u8),
        ) {
            let mut engine = Engine::default();
            before.iter().for_each(|event| do_to(&mut engine, event));
            let old = engine.clone();
            engine.hold(STORE, plain(start), plain(end));
            after.iter().for_each(|event| do_to(&mut engine, event));
            for forward in [true, false] {
                prop_assert_eq!(
                    seen(engine.on(STORE), start, end, forward),
                    seen(old.on(STORE), start, end, forward)
                );
                // What leads, and other stores, see the present; so does this one elsewhere.
                let elsewhere = (end.max(start), 9);
                prop_assert_eq!(
                    seen(engine.on(STORE), elsewhere.0, elsewhere.1, forward),
                    seen(engine.on(1), elsewhere.0, elsewhere.1, forward)
                );
            }
            engine.release(STORE, &plain(start));
            prop_assert_eq!(seen(engine.on(STORE), 0, 9, true), seen(engine.on(1), 0, 9, true));
            prop_assert!(!engine.stands_still_anywhere());
        }
    }
}
