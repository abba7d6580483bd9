//! The writes of a transaction before they leave for TiKV.
//!
//! A [`MemBuffer`] is an ordered map from keys to values, deletions and [flags](KeyFlags). It
//! nests: a [stage](MemBuffer::staging) is a set of writes that is [kept](MemBuffer::release) or
//! [undone](MemBuffer::cleanup) as a whole, a [checkpoint](MemBuffer::checkpoint) is a moment to
//! [go back to](MemBuffer::revert_to). Both cost what they touch. [`merge`] lays the buffer over
//! what a snapshot of the cluster says.
//!
//! | file | holds |
//! |---|---|
//! | `flags` | what is known of a key besides its value |
//! | `mod` | the buffer: reads, sizes, memory |
//! | `write` | sets, deletions, flag updates, limits |
//! | `stages` | stages, checkpoints, history, the end of the values |
//! | `iter` | iterators that borrow, cursors that do not |
//! | `before` | the view from before the first open stage |
//! | `merge` | the union of buffer and snapshot |
//! | `arena` `table` `log` `index` | bytes, entries, value log, order of keys |
//!
//! Nothing here locks, sends, waits or calls back. One owner writes (`&mut self`), readers share
//! `&self`; who wants to share the buffer puts it into a lock. There is no hook for memory:
//! [`MemBuffer::mem`] costs nothing and is asked after a write. (client-go: `unionstore.MemBuffer`,
//! `unionstore.MemDB`, `art.ART`)

mod arena;
mod before;
mod flags;
mod index;
mod iter;
mod log;
pub mod merge;
mod stages;
mod table;
mod write;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;

pub use before::BufferSnapshot;
pub use flags::{Assertion, FlagOp, KeyFlags};
pub use iter::{Buffered, Cursor, Direction, Entry, Handle, Iter};
pub use stages::{Checkpoint, History, StageEntries, StageHandle};
pub use write::{KEY_SIZE_MAX, VALUE_SIZE_MAX};

use crate::error::{Error, Result};
use crate::key::Key;
use index::Index;
use log::ValueLog;
use table::{EntryId, Position, Table};

/// The writes of a transaction (client-go: `MemBuffer`).
///
/// An empty value is a deletion. It is not the same as no value: the buffer knows nothing of a
/// key until it is written or flagged.
///
/// ```
/// use tikv_core::txn::buffer::{FlagOp, MemBuffer};
///
/// let mut buffer = MemBuffer::new();
/// buffer.set(b"a", b"1")?;
/// let stage = buffer.staging();
/// buffer.set(b"a", b"22")?;
/// buffer.delete_with_flags(b"b", &[FlagOp::SetKeyLocked])?;
/// buffer.cleanup(stage)?;
///
/// assert_eq!(buffer.get(b"a")?.as_deref(), Some(&b"1"[..]));
/// assert_eq!(buffer.get(b"b")?, None);
/// assert!(buffer.flags(b"b").is_some_and(|flags| flags.is_locked()), "a lock is no write");
/// # Ok::<(), tikv_core::Error>(())
/// ```
pub struct MemBuffer {
    table: Table,
    index: Index,
    log: ValueLog,
    /// The position at which each open stage began, outermost first.
    stages: Vec<Position>,
    /// The checkpoints that can be reverted to, one a position, oldest first.
    checkpoints: Vec<Checkpoint>,
    checkpoint_serial: u64,
    len: usize,
    size: usize,
    entry_limit: usize,
    total_limit: usize,
    dirty: bool,
    /// Grows with every write; cursors are bound to it.
    write_seq: u64,
    /// Grows with every change of the view from before the first stage.
    snapshot_seq: u64,
    last: LastEntry,
}

impl MemBuffer {
    /// An empty buffer without limits. Allocates nothing.
    pub fn new() -> Self {
        MemBuffer {
            table: Table::default(),
            index: Index::default(),
            log: ValueLog::default(),
            stages: Vec::new(),
            checkpoints: Vec::new(),
            checkpoint_serial: 0,
            len: 0,
            size: 0,
            entry_limit: usize::MAX,
            total_limit: usize::MAX,
            dirty: false,
            write_seq: 0,
            snapshot_seq: 0,
            last: LastEntry::default(),
        }
    }

    /// The newest value of `key`: empty if it is deleted, `None` if the buffer has neither value
    /// nor deletion for it (client-go: `Get`, `GetLocal`).
    ///
    /// Fails with [`Error::TransactionEnded`] once the values are
    /// [discarded](MemBuffer::discard_values).
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.check_values()?;
        Ok(self.find_head(key).and_then(|at| self.log.value_bytes(at)))
    }

    /// As [`MemBuffer::get`], without a copy.
    pub fn get_ref(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        self.check_values()?;
        Ok(self.find_head(key).and_then(|at| self.log.value(at)))
    }

    /// [`MemBuffer::get`] for each of `keys`, in their order (client-go: `BatchGet`).
    pub fn batch_get<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Bytes>>> {
        keys.into_iter().map(|key| self.get(key.as_ref())).collect()
    }

    /// The flags of `key`, `None` if the buffer knows nothing of it (client-go: `GetFlags`).
    pub fn flags(&self, key: &[u8]) -> Option<KeyFlags> {
        self.entry(key).map(|entry| entry.flags())
    }

    /// What the buffer knows of `key`.
    pub fn entry(&self, key: &[u8]) -> Option<Entry<'_>> {
        let id = self.find(key)?;
        (!self.table.slot(id).is_dead()).then_some(Entry { buffer: self, id })
    }

    /// How many keys the buffer knows: those with a value, a deletion or only flags
    /// (client-go: `Len`).
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer knows no key.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the keys the buffer knows and of their newest values (client-go: `Size`).
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether there is something to commit: a write or a persistent flag that was not undone
    /// (client-go: `Dirty`). Once true it stays so until [`MemBuffer::reset`].
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Bytes allocated (client-go: `Mem`). Zero for a buffer that was never written to; what is
    /// undone is kept for the next writes.
    pub fn mem(&self) -> usize {
        self.table.allocated()
            + self.index.allocated()
            + self.log.allocated()
            + self.stages.capacity() * size_of::<Position>()
            + self.checkpoints.capacity() * size_of::<Checkpoint>()
    }

    /// Bytes in use: keys and values, replaced values included, with what each costs to keep
    /// except for the index. Exact, where [`MemBuffer::mem`] grows in steps.
    pub fn used(&self) -> usize {
        self.table.used() + self.log.used()
    }

    /// Makes what was written so far cheap to hand out: reads of it no longer copy. It can't be
    /// overwritten in place any more, and its memory is not reused while a reader holds a part.
    ///
    /// Called once, when the transaction is about to commit.
    pub fn seal(&mut self) {
        self.table.seal();
        self.log.seal();
    }

    /// How many lookups were answered by remembering the last key, and how many were not
    /// (client-go: `GetCacheHitCount`, `GetCacheMissCount`).
    pub fn cache_hits_and_misses(&self) -> (u64, u64) {
        (
            self.last.hits.load(Ordering::Relaxed),
            self.last.misses.load(Ordering::Relaxed),
        )
    }

    /// The entry of `key`, dead ones included.
    fn find(&self, key: &[u8]) -> Option<EntryId> {
        if let Some(id) = self.last.get(&self.table, key) {
            return Some(id);
        }
        let found = self.index.find(&self.table, key)?;
        self.last.set(found);
        Some(found)
    }

    fn find_head(&self, key: &[u8]) -> Option<Position> {
        self.table.slot(self.find(key)?).head()
    }

    fn check_values(&self) -> Result<()> {
        if self.log.is_discarded() {
            return Err(Error::TransactionEnded);
        }
        Ok(())
    }

    fn key_of(&self, id: EntryId) -> Key {
        self.table.key_bytes(id).into()
    }
}

impl Default for MemBuffer {
    fn default() -> Self {
        MemBuffer::new()
    }
}

impl fmt::Debug for MemBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemBuffer")
            .field("len", &self.len)
            .field("size", &self.size)
            .field("dirty", &self.dirty)
            .field("stages", &self.stages.len())
            .finish_non_exhaustive()
    }
}

/// The entry that was found or made last. A key is often read, written and flagged in a row.
///
/// Atomic, so that readers may share the buffer; a lost update costs a lookup and nothing else.
struct LastEntry {
    id: AtomicU32,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl LastEntry {
    /// The entry, if `key` is its key.
    fn get(&self, table: &Table, key: &[u8]) -> Option<EntryId> {
        let last = self.id.load(Ordering::Relaxed);
        let hit = (last as usize) < table.len() && table.key(last) == key;
        LastEntry::count(if hit { &self.hits } else { &self.misses });
        hit.then_some(last)
    }

    fn set(&self, id: EntryId) {
        self.id.store(id, Ordering::Relaxed);
    }

    /// Not a `fetch_add`, which costs more than the lookup saves: a count lost to a concurrent
    /// reader matters to no one.
    fn count(counter: &AtomicU64) {
        let count = counter.load(Ordering::Relaxed);
        counter.store(count.wrapping_add(1), Ordering::Relaxed);
    }
}

impl Default for LastEntry {
    fn default() -> Self {
        LastEntry {
            id: AtomicU32::new(EntryId::MAX),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }
}
