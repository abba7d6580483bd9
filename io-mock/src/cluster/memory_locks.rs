//! The pessimistic locks that only a region's leader holds, and how much room they take.
//!
//! Beyond a limit locks are stored. The room is counted as they come and go, so that a command need
//! not look at all of them.

use std::collections::BTreeMap;
use std::ops::Deref;

use super::key::Key;
use super::mvcc::lock::Lock;

/// What a lock takes beside its key and its primary.
const OVERHEAD: usize = 80;

/// Locks by their keys.
#[derive(Clone, Debug, Default)]
pub struct MemoryLocks {
    locks: BTreeMap<Key, Lock>,
    size: usize,
}

impl FromIterator<(Key, Lock)> for MemoryLocks {
    fn from_iter<T: IntoIterator<Item = (Key, Lock)>>(locks: T) -> Self {
        let mut all = MemoryLocks::default();
        for (key, lock) in locks {
            all.insert(key, lock);
        }
        all
    }
}

impl MemoryLocks {
    /// How much room they take.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Puts a lock in, in place of the one its key had.
    pub fn insert(&mut self, key: Key, lock: Lock) {
        self.remove(&key);
        self.size += size(&key, &lock);
        self.locks.insert(key, lock);
    }

    /// Takes the lock of a key out.
    pub fn remove(&mut self, key: &Key) -> Option<Lock> {
        let lock = self.locks.remove(key)?;
        self.size -= size(key, &lock);
        Some(lock)
    }

    /// Takes all of them out.
    pub fn clear(&mut self) {
        *self = MemoryLocks::default();
    }

    /// Takes those out from a key on.
    pub fn split_off(&mut self, key: &Key) -> MemoryLocks {
        let locks = self.locks.split_off(key);
        let taken: usize = locks.iter().map(|(key, lock)| size(key, lock)).sum();
        self.size -= taken;
        MemoryLocks { locks, size: taken }
    }
}

impl Deref for MemoryLocks {
    type Target = BTreeMap<Key, Lock>;

    fn deref(&self) -> &Self::Target {
        &self.locks
    }
}

impl IntoIterator for MemoryLocks {
    type Item = (Key, Lock);
    type IntoIter = std::collections::btree_map::IntoIter<Key, Lock>;

    fn into_iter(self) -> Self::IntoIter {
        self.locks.into_iter()
    }
}

/// How much room a lock takes.
pub fn size(key: &Key, lock: &Lock) -> usize {
    key.encoded().len() + lock.primary.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::mvcc::lock::LockKind;

    #[test]
    fn the_room_is_that_of_the_locks_that_are_there() {
        let counted = |locks: &MemoryLocks| -> usize {
            let sizes = locks.iter().map(|(key, lock)| size(key, lock));
            sizes.sum()
        };
        let mut locks = MemoryLocks::default();
        for (key, primary) in [("a", "p"), ("b", "long"), ("a", "longer"), ("c", "")] {
            let lock = Lock::new(LockKind::Pessimistic, primary.into(), 1, 1);
            locks.insert(Key::from_user(key.as_bytes()), lock);
            assert_eq!(locks.size(), counted(&locks));
        }
        let mut right = locks.split_off(&Key::from_user(b"b"));
        assert_eq!((locks.len(), right.len()), (1, 2));
        assert_eq!(right.size(), counted(&right));
        assert!(right.remove(&Key::from_user(b"b")).is_some());
        assert!(right.remove(&Key::from_user(b"b")).is_none());
        assert_eq!(right.size(), counted(&right));
        locks.clear();
        assert_eq!((locks.size(), counted(&locks)), (0, 0));
    }
}
