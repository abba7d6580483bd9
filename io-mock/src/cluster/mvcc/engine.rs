//! The data: locks, versions and long values of transactions, and raw values beside them.
//!
//! All stores share one engine, because a write is applied to every peer at once. What peers that have
//! fallen behind have not applied is kept [beside it](super::past), and read past it. Raw and
//! transactional data live in separate maps, so that mixing both APIs over the same keys shows each
//! only its own; what deletes whole ranges deletes from all.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;

use bytes::Bytes;

use super::lock::KeyLock;
use super::past::{Past, View};
use super::write_record::WriteRecord;
use crate::cluster::key::Key;
use crate::cluster::region::StoreId;

/// The versions of one key.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Write records, newest commit version first.
    writes: Vec<(u64, WriteRecord)>,
    /// Long values by start version.
    values: BTreeMap<u64, Bytes>,
}

impl History {
    /// Newest record at or below `ts`.
    pub fn seek(&self, ts: u64) -> Option<(u64, &WriteRecord)> {
        self.from(ts).next()
    }

    /// Records at or below `ts`, newest first.
    pub fn from(&self, ts: u64) -> impl Iterator<Item = (u64, &WriteRecord)> {
        let first = self
            .writes
            .partition_point(|(commit_ts, _)| *commit_ts > ts);
        self.writes[first..]
            .iter()
            .map(|(commit_ts, write)| (*commit_ts, write))
    }

    /// The long value a transaction wrote.
    pub fn value(&self, start_ts: u64) -> Option<&Bytes> {
        self.values.get(&start_ts)
    }

    /// All long values by start version.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = (u64, &Bytes)> {
        self.values.iter().map(|(ts, value)| (*ts, value))
    }

    pub(in crate::cluster) fn put_value(&mut self, start_ts: u64, value: Bytes) {
        self.values.insert(start_ts, value);
    }

    pub(in crate::cluster) fn put_write(&mut self, commit_ts: u64, write: WriteRecord) {
        let at = self.writes.partition_point(|(ts, _)| *ts > commit_ts);
        match self.writes.get_mut(at) {
            Some((ts, old)) if *ts == commit_ts => *old = write,
            _ => self.writes.insert(at, (commit_ts, write)),
        }
    }

    fn delete_write(&mut self, commit_ts: u64) {
        self.writes.retain(|(ts, _)| *ts != commit_ts);
    }

    fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.values.is_empty()
    }
}

/// One change to the engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Sets the lock of a key.
    PutLock(Key, KeyLock),
    /// Sets an exclusive pessimistic lock, which a leader may keep in memory alone.
    PutPessimisticLock(Key, super::lock::Lock),
    /// Removes the lock of a key.
    DeleteLock(Key),
    /// Sets the write record of a key at a commit version.
    PutWrite(Key, u64, WriteRecord),
    /// Removes the write record of a key at a commit version.
    DeleteWrite(Key, u64),
    /// Sets the long value of a key at a start version.
    PutValue(Key, u64, Bytes),
    /// Removes the long value of a key at a start version.
    DeleteValue(Key, u64),
}

/// A column family as raw requests name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnFamily {
    /// `""` or `"default"`.
    Default,
    /// `"lock"`.
    Lock,
    /// `"write"`.
    Write,
}

/// A raw value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawValue {
    /// What the client wrote.
    pub value: Bytes,
    /// Second at which it is gone; 0 is never.
    pub expires_at: u64,
    /// API v2 keeps deletions as marks.
    pub deleted: bool,
}

/// Locks, versions and raw values of the whole cluster.
#[derive(Clone, Debug, Default)]
pub struct Engine {
    locks: BTreeMap<Key, KeyLock>,
    histories: BTreeMap<Key, History>,
    raw: [BTreeMap<Bytes, RawValue>; 3],
    /// What stores have not applied.
    past: BTreeMap<StoreId, Past>,
}

/// The upper end of a range; empty bytes are infinity.
pub fn upper_bound(end: &[u8]) -> Option<&[u8]> {
    (!end.is_empty()).then_some(end)
}

impl Engine {
    /// The stored lock of a key.
    pub fn lock(&self, key: &Key) -> Option<&KeyLock> {
        self.locks.get(key)
    }

    /// The versions of a key.
    pub fn history(&self, key: &Key) -> Option<&History> {
        self.histories.get(key)
    }

    /// Stored locks in an encoded range.
    pub fn locks(&self, start: &Bytes, end: &Bytes) -> Range<'_, Key, KeyLock> {
        range(
            &self.locks,
            Key::from_encoded(start.clone()),
            Key::from_encoded(end.clone()),
        )
    }

    /// Histories in an encoded range.
    pub fn histories(&self, start: &Bytes, end: &Bytes) -> Range<'_, Key, History> {
        range(
            &self.histories,
            Key::from_encoded(start.clone()),
            Key::from_encoded(end.clone()),
        )
    }

    /// The data as a store has it.
    pub fn on(&self, store: StoreId) -> View<'_> {
        View {
            engine: self,
            past: self.past.get(&store),
        }
    }

    pub(super) fn all_locks(&self) -> &BTreeMap<Key, KeyLock> {
        &self.locks
    }

    pub(super) fn all_histories(&self) -> &BTreeMap<Key, History> {
        &self.histories
    }

    pub(super) fn all_raw(&self, cf: ColumnFamily) -> &BTreeMap<Bytes, RawValue> {
        &self.raw[cf as usize]
    }

    /// An encoded range stands still on a store from now on. It may overlap no other there.
    pub(in crate::cluster) fn hold(&mut self, store: StoreId, start: Bytes, end: Bytes) {
        self.past.entry(store).or_default().hold(start, end);
    }

    /// The range with this start goes on on a store.
    pub(in crate::cluster) fn release(&mut self, store: StoreId, start: &Bytes) {
        let any_left = self.past.get_mut(&store).map(|past| past.release(start));
        if any_left == Some(false) {
            self.past.remove(&store);
        }
    }

    /// What a store has not applied, if anything stands still there.
    pub(in crate::cluster) fn past(&self, store: StoreId) -> Option<&Past> {
        self.past.get(&store)
    }

    /// The same, to be put back as it was.
    pub(in crate::cluster) fn past_mut(&mut self, store: StoreId) -> Option<&mut Past> {
        self.past.get_mut(&store)
    }

    /// Whether an encoded key lies in a range that stands still on a store.
    pub(in crate::cluster) fn stands_still(&self, store: StoreId, encoded: &[u8]) -> bool {
        let past = self.past.get(&store);
        past.is_some_and(|past| past.holds(encoded))
    }

    /// Whether anything stands still.
    pub(in crate::cluster) fn stands_still_anywhere(&self) -> bool {
        !self.past.is_empty()
    }

    /// Keeps a lock for those who stand still, before it changes.
    fn keep_lock(&mut self, key: &Key) {
        for past in self.past.values_mut().filter(|it| it.holds(key.encoded())) {
            keep(&mut past.locks, &self.locks, key);
        }
    }

    /// Keeps the versions of a key for those who stand still, before they change.
    fn keep_history(&mut self, key: &Key) {
        for past in self.past.values_mut().filter(|it| it.holds(key.encoded())) {
            keep(&mut past.histories, &self.histories, key);
        }
    }

    /// Keeps a raw value for those who stand still, before it changes.
    fn keep_raw(&mut self, cf: ColumnFamily, key: &Bytes) {
        let cf = cf as usize;
        for past in self.past.values_mut().filter(|it| it.holds(key)) {
            keep(&mut past.raw[cf], &self.raw[cf], key);
        }
    }

    /// Applies one change.
    pub fn apply(&mut self, change: Change) {
        if !self.past.is_empty() {
            match &change {
                Change::PutLock(key, _)
                | Change::PutPessimisticLock(key, _)
                | Change::DeleteLock(key) => self.keep_lock(key),
                Change::PutWrite(key, ..)
                | Change::DeleteWrite(key, _)
                | Change::PutValue(key, ..)
                | Change::DeleteValue(key, _) => self.keep_history(key),
            }
        }
        match change {
            Change::PutLock(key, lock) => {
                self.locks.insert(key, lock);
            }
            Change::PutPessimisticLock(key, lock) => {
                self.locks.insert(key, KeyLock::Exclusive(lock));
            }
            Change::DeleteLock(key) => {
                self.locks.remove(&key);
            }
            Change::PutWrite(key, commit_ts, write) => {
                self.histories
                    .entry(key)
                    .or_default()
                    .put_write(commit_ts, write);
            }
            Change::DeleteWrite(key, commit_ts) => {
                self.edit(key, |history| history.delete_write(commit_ts));
            }
            Change::PutValue(key, start_ts, value) => {
                self.histories
                    .entry(key)
                    .or_default()
                    .put_value(start_ts, value);
            }
            Change::DeleteValue(key, start_ts) => self.edit(key, |history| {
                history.values.remove(&start_ts);
            }),
        }
    }

    /// Puts the versions of a key back as they were saved.
    pub(in crate::cluster) fn put_history(&mut self, key: Key, history: History) {
        self.keep_history(&key);
        self.histories.insert(key, history);
    }

    fn edit(&mut self, key: Key, change: impl FnOnce(&mut History)) {
        if let Some(history) = self.histories.get_mut(&key) {
            change(history);
            if history.is_empty() {
                self.histories.remove(&key);
            }
        }
    }

    /// A raw value, whether expired, deleted or alive.
    pub fn raw(&self, cf: ColumnFamily, key: &Bytes) -> Option<&RawValue> {
        self.raw[cf as usize].get(key)
    }

    /// Raw values in a range of stored keys.
    pub fn raw_range(
        &self,
        cf: ColumnFamily,
        start: &Bytes,
        end: &Bytes,
    ) -> Range<'_, Bytes, RawValue> {
        range(&self.raw[cf as usize], start.clone(), end.clone())
    }

    /// Sets a raw value.
    pub fn put_raw(&mut self, cf: ColumnFamily, key: Bytes, value: RawValue) {
        self.keep_raw(cf, &key);
        self.raw[cf as usize].insert(key, value);
    }

    /// Removes a raw value.
    pub fn delete_raw(&mut self, cf: ColumnFamily, key: &Bytes) {
        self.keep_raw(cf, key);
        self.raw[cf as usize].remove(key);
    }

    /// Removes the raw values of a range.
    pub fn delete_raw_range(&mut self, cf: ColumnFamily, start: &Bytes, end: &Bytes) {
        let gone = keys(&self.raw[cf as usize], start.clone(), end.clone());
        for key in gone {
            self.delete_raw(cf, &key);
        }
    }

    /// Removes everything in an encoded range, whatever it is.
    pub fn delete_range(&mut self, start: &Bytes, end: &Bytes) {
        let (first, last) = (
            Key::from_encoded(start.clone()),
            Key::from_encoded(end.clone()),
        );
        for key in keys(&self.locks, first.clone(), last.clone()) {
            self.keep_lock(&key);
            self.locks.remove(&key);
        }
        for key in keys(&self.histories, first, last) {
            self.keep_history(&key);
            self.histories.remove(&key);
        }
        for cf in [
            ColumnFamily::Default,
            ColumnFamily::Lock,
            ColumnFamily::Write,
        ] {
            self.delete_raw_range(cf, start, end);
        }
    }

    /// Removes everything in an encoded range at once everywhere, past all logs.
    pub fn destroy_range(&mut self, start: &Bytes, end: &Bytes) {
        self.delete_range(start, end);
        for past in self.past.values_mut() {
            past.forget(start, end);
        }
    }
}

fn keep<K: RangeKey, V: Clone>(
    before: &mut BTreeMap<K, Option<V>>,
    present: &BTreeMap<K, V>,
    key: &K,
) {
    if !before.contains_key(key) {
        before.insert(key.clone(), present.get(key).cloned());
    }
}

/// Anything ordered whose empty value means "no bound".
pub trait RangeKey: Ord + Clone {
    /// Whether it is no bound.
    fn is_unbounded(&self) -> bool;
}

impl RangeKey for Key {
    fn is_unbounded(&self) -> bool {
        self.encoded().is_empty()
    }
}

impl RangeKey for Bytes {
    fn is_unbounded(&self) -> bool {
        self.is_empty()
    }
}

pub(super) fn bounds<K: RangeKey>(start: K, end: K) -> (Bound<K>, Bound<K>) {
    if end.is_unbounded() {
        (Bound::Included(start), Bound::Unbounded)
    } else if end < start {
        // An inverted range is empty; ordered maps refuse to be asked for one.
        (Bound::Included(start.clone()), Bound::Excluded(start))
    } else {
        (Bound::Included(start), Bound::Excluded(end))
    }
}

fn range<K: RangeKey, V>(map: &BTreeMap<K, V>, start: K, end: K) -> Range<'_, K, V> {
    map.range(bounds(start, end))
}

fn keys<K: RangeKey, V>(map: &BTreeMap<K, V>, start: K, end: K) -> Vec<K> {
    range(map, start, end).map(|(key, _)| key.clone()).collect()
}

pub(super) fn clear<K: RangeKey, V>(map: &mut BTreeMap<K, V>, start: K, end: K) {
    for key in keys(map, start, end) {
        map.remove(&key);
    }
}
