//! A command's view of one region: its locks, its versions, and the question what became of a
//! transaction. Reads the state before the command; what the command itself changes is in
//! [`Changes`](super::changes::Changes).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::engine::History;
use super::error::MvccError;
use super::last_change::{FOLLOWED_FROM, LastChange};
use super::lock::{KeyLock, Lock, SharedLocks};
use super::past::View;
use super::write_record::{WriteKind, WriteRecord};
use crate::cluster::key::Key;

/// Locks and versions of one region.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// The data, as the region's peer has it.
    pub engine: View<'a>,
    /// Pessimistic locks that only the region's leader holds.
    pub memory: &'a BTreeMap<Key, Lock>,
    /// The region, for the message of a key outside it.
    pub region_id: u64,
    /// Encoded lower bound of the region.
    pub start: &'a Bytes,
    /// Encoded upper bound of the region, empty for infinity.
    pub end: &'a Bytes,
}

/// What the versions of a key say of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum CommitRecord {
    /// A record of its own; its kind may be a rollback.
    Single {
        /// Where it stands.
        commit_ts: u64,
        /// The record.
        write: WriteRecord,
    },
    /// Rolled back by a mark on another transaction's record.
    OverlappedRollback,
    /// Nothing.
    None {
        /// A record of another transaction at this one's start version, which a rollback would hit.
        overlapped: Option<Overlapped>,
    },
}

/// A commit record that stands where a rollback should be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Overlapped {
    /// The record in the way.
    pub write: WriteRecord,
    /// Commit version of the next newer put or delete; 0 if none.
    pub gc_fence: u64,
}

impl<'a> Reader<'a> {
    /// Whether an encoded key belongs to the region.
    pub fn contains(&self, encoded: &[u8]) -> bool {
        encoded >= self.start.as_ref() && (self.end.is_empty() || encoded < self.end.as_ref())
    }

    fn check_key(&self, key: &Key) -> Result<(), MvccError> {
        if self.contains(key.encoded()) {
            return Ok(());
        }
        Err(MvccError::mvcc(format_args!(
            "Kv(Error(Other(\"{}\")))",
            self.outside(key.encoded())
        )))
    }

    /// Whether a walk may begin at an encoded key: the end of the region is as good as its keys.
    pub fn check_seek(&self, encoded: &[u8]) -> Result<(), MvccError> {
        if self.contains(encoded) || encoded == self.end.as_ref() {
            return Ok(());
        }
        Err(MvccError::mvcc(format_args!(
            "Kv(Error(Other(\"{}\")))",
            self.outside(encoded)
        )))
    }

    /// Text for a key outside the region.
    pub fn outside(&self, encoded: &[u8]) -> String {
        format!(
            "Key {} is out of [region {}] [{}, {})",
            hex(encoded),
            self.region_id,
            hex(self.start),
            hex(self.end)
        )
    }

    fn history(&self, key: &Key) -> Option<&'a History> {
        self.engine.history(key)
    }

    /// The lock of a key, from memory or from storage.
    pub fn lock(&self, key: &Key) -> Result<Option<KeyLock>, MvccError> {
        self.check_key(key)?;
        if let Some(lock) = self.memory.get(key) {
            return Ok(Some(KeyLock::Exclusive(lock.clone())));
        }
        Ok(self.engine.lock(key).cloned())
    }

    /// Newest record of any kind at or below `ts`.
    pub fn seek_write(
        &self,
        key: &Key,
        ts: u64,
    ) -> Result<Option<(u64, &'a WriteRecord)>, MvccError> {
        self.check_key(key)?;
        Ok(self.history(key).and_then(|history| history.seek(ts)))
    }

    /// The put that a read at `ts` sees, where the reader's own version `fence_ts` decides about
    /// fenced records.
    pub fn get_write(
        &self,
        key: &Key,
        ts: u64,
        fence_ts: u64,
    ) -> Result<Option<(u64, &'a WriteRecord)>, MvccError> {
        self.check_key(key)?;
        let Some(history) = self.history(key) else {
            return Ok(None);
        };
        let mut next = history.seek(ts);
        while let Some((commit_ts, write)) = next {
            // A fenced record of any kind hides what is older, because that was garbage too.
            if !write.passes_gc_fence(fence_ts) {
                return Ok(None);
            }
            match write.kind {
                WriteKind::Put => return Ok(Some((commit_ts, write))),
                WriteKind::Delete => return Ok(None),
                WriteKind::Lock | WriteKind::Rollback => {}
            }
            next = match write.last_change {
                LastChange::None => None,
                LastChange::At {
                    commit_ts,
                    distance: FOLLOWED_FROM..,
                } => history.seek(commit_ts).filter(|(ts, _)| *ts == commit_ts),
                LastChange::Unknown | LastChange::At { .. } => {
                    commit_ts.checked_sub(1).and_then(|ts| history.seek(ts))
                }
            };
        }
        Ok(None)
    }

    /// How many records lie from one version down to another, the lower one not counted.
    pub fn count_between(&self, key: &Key, upper: u64, lower: u64) -> u64 {
        let records = self.history(key).map(|history| {
            let above = history.from(upper);
            above.take_while(|(ts, _)| *ts > lower).count()
        });
        records.unwrap_or_default() as u64
    }

    /// The put that a scan downwards sees at `ts`. It walks the versions from the oldest on, so that
    /// only the newest data it comes by can be fenced, unless there are more than `limit`.
    pub fn get_write_upwards(
        &self,
        key: &Key,
        ts: u64,
        limit: usize,
    ) -> Option<(u64, &'a WriteRecord)> {
        let mut known: Vec<_> = self.history(key)?.from(ts).collect();
        let oldest = known.split_off(known.len().saturating_sub(limit));
        let is_data =
            |write: &WriteRecord| matches!(write.kind, WriteKind::Put | WriteKind::Delete);
        for (commit_ts, write) in known {
            if !write.passes_gc_fence(ts) {
                return None;
            }
            if is_data(write) {
                return (write.kind == WriteKind::Put).then_some((commit_ts, write));
            }
        }
        let mut oldest = oldest.into_iter();
        let last = oldest.find(|(_, write)| is_data(write));
        last.filter(|(_, write)| write.kind == WriteKind::Put && write.passes_gc_fence(ts))
    }

    /// The oldest version above `ts`, if it is among the first `limit`.
    pub fn first_above(&self, key: &Key, ts: u64, limit: usize) -> Option<u64> {
        let history = self.history(key)?;
        if history.from(ts).count() >= limit {
            return None;
        }
        let above = history.from(u64::MAX).map(|(commit_ts, _)| commit_ts);
        above.take_while(|&commit_ts| commit_ts > ts).last()
    }

    /// The value of a put.
    pub fn load_value(&self, key: &Key, write: &WriteRecord) -> Result<Bytes, MvccError> {
        if let Some(value) = &write.short_value {
            return Ok(value.clone());
        }
        self.long_value(key, write.start_ts)
            .ok_or_else(|| MvccError::default_not_found(&key.to_user()))
    }

    /// The long value a transaction wrote.
    pub fn long_value(&self, key: &Key, start_ts: u64) -> Option<Bytes> {
        self.history(key)?.value(start_ts).cloned()
    }

    /// The value that a read at `ts` sees.
    pub fn get(&self, key: &Key, ts: u64, fence_ts: u64) -> Result<Option<Bytes>, MvccError> {
        let write = self.get_write(key, ts, fence_ts)?;
        write
            .map(|(_, write)| self.load_value(key, write))
            .transpose()
    }

    /// What became of the transaction `start_ts` on a key.
    pub fn commit_record(&self, key: &Key, start_ts: u64) -> Result<CommitRecord, MvccError> {
        self.check_key(key)?;
        let mut gc_fence = 0;
        let none = CommitRecord::None { overlapped: None };
        let Some(history) = self.history(key) else {
            return Ok(none);
        };
        for (commit_ts, write) in history.from(u64::MAX) {
            // Before the version is looked at: a record may stand below its transaction's start,
            // where a resolving request has put it.
            if write.start_ts == start_ts {
                return Ok(CommitRecord::Single {
                    commit_ts,
                    write: write.clone(),
                });
            }
            if commit_ts < start_ts {
                break;
            }
            if commit_ts == start_ts {
                if write.overlapped_rollback {
                    return Ok(CommitRecord::OverlappedRollback);
                }
                let overlapped = Some(Overlapped {
                    write: write.clone(),
                    gc_fence,
                });
                return Ok(CommitRecord::None { overlapped });
            }
            if matches!(write.kind, WriteKind::Put | WriteKind::Delete) {
                gc_fence = commit_ts;
            }
        }
        Ok(none)
    }

    /// Clips an encoded range to the region.
    pub fn clip(&self, start: &Bytes, end: &Bytes) -> (Bytes, Bytes) {
        let start = start.max(self.start).clone();
        let end = match (end.is_empty(), self.end.is_empty()) {
            (true, _) => self.end.clone(),
            (false, true) => end.clone(),
            (false, false) => end.min(self.end).clone(),
        };
        (start, end)
    }

    /// Stored locks in a range that pass the filter, as keys with what passed. Members of shared
    /// locks count one by one; `limit` 0 is unlimited. The flag says that more may follow.
    pub fn scan_stored_locks(
        &self,
        start: &Bytes,
        end: &Bytes,
        limit: usize,
        mut filter: impl FnMut(&Lock) -> bool,
    ) -> (Vec<(Key, KeyLock)>, bool) {
        let (start, end) = self.clip(start, end);
        let mut found = Vec::new();
        let mut count = 0;
        for (key, lock) in self.engine.locks(&start, &end) {
            let Some(lock) = filter_lock(lock, &mut filter) else {
                continue;
            };
            let lock = match lock {
                KeyLock::Shared(mut shared) => {
                    let mut cut = false;
                    if limit > 0 {
                        while shared.members.len() > limit - count {
                            shared.members.pop_last();
                            cut = true;
                        }
                    }
                    count += shared.members.len();
                    found.push((key.clone(), KeyLock::Shared(shared)));
                    if cut || (limit > 0 && count >= limit) {
                        return (found, true);
                    }
                    continue;
                }
                exclusive @ KeyLock::Exclusive(_) => exclusive,
            };
            count += 1;
            found.push((key.clone(), lock));
            if limit > 0 && count >= limit {
                return (found, true);
            }
        }
        (found, false)
    }

    /// Locks in a range from memory and storage, merged by key. Here shared locks of one key count
    /// once when memory has any, as in the server.
    pub fn scan_locks(
        &self,
        start: &Bytes,
        end: &Bytes,
        limit: usize,
        mut filter: impl FnMut(&Lock) -> bool,
    ) -> (Vec<(Key, KeyLock)>, bool) {
        let (first, last) = self.clip(start, end);
        let from = Key::from_encoded(first);
        let until = Key::from_encoded(last);
        let memory: Vec<(Key, KeyLock)> = self
            .memory
            .range(from..)
            .take_while(|(key, _)| until.encoded().is_empty() || **key < until)
            .filter(|(_, lock)| filter(lock))
            .map(|(key, lock)| (key.clone(), KeyLock::Exclusive(lock.clone())))
            .collect();
        if memory.is_empty() {
            return self.scan_stored_locks(start, end, limit, filter);
        }
        let (stored, _) = self.scan_stored_locks(start, end, 0, filter);
        let mut merged: BTreeMap<Key, KeyLock> = memory.into_iter().collect();
        merged.extend(stored);
        let more = limit > 0 && merged.len() > limit;
        let take = if limit > 0 { limit } else { usize::MAX };
        (merged.into_iter().take(take).collect(), more)
    }
}

fn filter_lock(lock: &KeyLock, filter: &mut impl FnMut(&Lock) -> bool) -> Option<KeyLock> {
    match lock {
        KeyLock::Exclusive(lock) => filter(lock).then(|| KeyLock::Exclusive(lock.clone())),
        KeyLock::Shared(shared) => {
            let members: BTreeMap<u64, Lock> = shared
                .members
                .iter()
                .filter(|(_, lock)| filter(lock))
                .map(|(ts, lock)| (*ts, lock.clone()))
                .collect();
            (!members.is_empty()).then(|| {
                KeyLock::Shared(SharedLocks {
                    members,
                    shrink_only: shared.shrink_only,
                    written: shared.written.clone(),
                })
            })
        }
    }
}

/// Bytes in upper-case hexadecimal, as the server's messages print keys.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}
