//! What a command wants changed, collected before anything is applied.
//!
//! A command reads the state before itself; the one exception is a key whose shared locks several
//! steps of one command take apart, which asks [`Changes::pending_lock`].

use bytes::Bytes;

use super::engine::Change;
use super::error::MvccError;
use super::lock::{KeyLock, Lock, SharedLocks};
use super::max_ts::MaxTs;
use super::reader::Reader;
use super::write_record::WriteRecord;
use crate::cluster::key::Key;

/// A lock that a command removed, for those who wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The key.
    pub key: Key,
    /// The transaction that held it.
    pub start_ts: u64,
    /// Where it committed; 0 if it did not.
    pub commit_ts: u64,
    /// Whether it belonged to a pessimistic transaction.
    pub pessimistic: bool,
}

/// Changes in the order they were made; a later one on the same place wins.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// For the engine.
    pub list: Vec<Change>,
    /// Locks removed on the way.
    pub released: Vec<Released>,
    /// Locks whose commit version has been computed: readers must see them before they are applied.
    pub published: Vec<(Key, Lock)>,
    /// Pessimistic locks are stored, though the leader may have room for them in its memory.
    pub stores_locks: bool,
}

impl Changes {
    /// The lock of a key as earlier steps of this command left it: `None` if they did not touch
    /// it, `Some(None)` if they removed it.
    pub fn pending_lock(&self, key: &Key) -> Option<Option<KeyLock>> {
        self.list.iter().rev().find_map(|change| match change {
            Change::PutLock(k, lock) if k == key => Some(Some(lock.clone())),
            Change::PutPessimisticLock(k, lock) if k == key => {
                Some(Some(KeyLock::Exclusive(lock.clone())))
            }
            Change::DeleteLock(k) if k == key => Some(None),
            _ => None,
        })
    }

    /// Sets an exclusive lock.
    pub fn put_lock(&mut self, key: Key, lock: Lock) {
        self.list
            .push(Change::PutLock(key, KeyLock::Exclusive(lock)));
    }

    /// Sets the shared locks of a key.
    pub fn put_shared(&mut self, key: Key, mut shared: SharedLocks) {
        shared.written = shared.listed();
        self.list
            .push(Change::PutLock(key, KeyLock::Shared(shared)));
    }

    /// Sets what is left of a key's shared locks; the last member's leaving frees the key.
    pub fn put_remaining(&mut self, key: Key, shared: SharedLocks, start_ts: u64, commit_ts: u64) {
        if shared.members.is_empty() {
            self.unlock(key, start_ts, commit_ts, true);
        } else {
            self.put_shared(key, shared);
        }
    }

    /// Sets a pessimistic lock.
    pub fn put_pessimistic(&mut self, key: Key, lock: Lock) {
        self.list.push(Change::PutPessimisticLock(key, lock));
    }

    /// Removes the lock of a key.
    pub fn unlock(&mut self, key: Key, start_ts: u64, commit_ts: u64, pessimistic: bool) {
        self.released.push(Released {
            key: key.clone(),
            start_ts,
            commit_ts,
            pessimistic,
        });
        self.list.push(Change::DeleteLock(key));
    }

    /// Sets a write record.
    pub fn put_write(&mut self, key: Key, commit_ts: u64, write: WriteRecord) {
        self.list.push(Change::PutWrite(key, commit_ts, write));
    }

    /// Removes a write record.
    pub fn delete_write(&mut self, key: Key, commit_ts: u64) {
        self.list.push(Change::DeleteWrite(key, commit_ts));
    }

    /// Sets a long value.
    pub fn put_value(&mut self, key: Key, start_ts: u64, value: Bytes) {
        self.list.push(Change::PutValue(key, start_ts, value));
    }

    /// Removes a long value.
    pub fn delete_value(&mut self, key: Key, start_ts: u64) {
        self.list.push(Change::DeleteValue(key, start_ts));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.list.clear();
        self.released.clear();
        self.published.clear();
        self.stores_locks = false;
    }
}

/// One command at work for one transaction: what it sees, what it changes, and the store's
/// greatest timestamp, which it may raise.
#[derive(Debug)]
pub struct Work<'a> {
    /// The state before the command.
    pub reader: Reader<'a>,
    /// The transaction.
    pub start_ts: u64,
    /// What has been decided so far.
    pub changes: Changes,
    /// The store's greatest timestamp seen.
    pub max_ts: &'a mut MaxTs,
}

impl Work<'_> {
    /// The lock of a key, including what this command already did to it.
    pub fn current_lock(&self, key: &Key) -> Result<Option<KeyLock>, MvccError> {
        match self.changes.pending_lock(key) {
            Some(lock) => Ok(lock),
            None => self.reader.lock(key),
        }
    }

    /// Removes this transaction's lock on a key.
    pub fn unlock(&mut self, key: Key, commit_ts: u64, pessimistic: bool) {
        self.changes
            .unlock(key, self.start_ts, commit_ts, pessimistic);
    }
}
