//! The buffer in the order of its keys: iterators that borrow it, cursors that do not.
//!
//! The borrow checker keeps an [`Iter`] from outliving a write. A scan that waits for the cluster
//! between two pages can't hold a borrow: its [`Cursor`] remembers where it stands, and notices
//! when the buffer was written in between.

use bytes::Bytes;

use super::MemBuffer;
use super::before::BufferSnapshot;
use super::flags::KeyFlags;
use super::index::Range;
use super::table::EntryId;
use crate::error::{Error, Result};
use crate::key::{Key, KeyRange};

/// Which way to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From small keys to large ones.
    #[default]
    Forward,
    /// From large keys to small ones.
    Reverse,
}

impl MemBuffer {
    /// The values and deletions in `range`, ascending (client-go: `Iter`); from the other end
    /// with [`Iterator::rev`] (client-go: `IterReverse`).
    pub fn iter(&self, range: impl Into<KeyRange>) -> Iter<'_> {
        self.iter_entries(&range.into(), false)
    }

    /// [`MemBuffer::iter`] and the keys that have only flags
    /// (client-go: `IterWithFlags`, `IterReverseWithFlags`).
    pub fn iter_with_flags(&self, range: impl Into<KeyRange>) -> Iter<'_> {
        self.iter_entries(&range.into(), true)
    }

    fn iter_entries(&self, range: &KeyRange, flags_only: bool) -> Iter<'_> {
        Iter {
            buffer: self,
            range: self.index.range(&self.table, range),
            flags_only,
        }
    }

    /// A cursor over the values and deletions in `range`. A page of it fails after a write,
    /// unless it is made [lenient](Cursor::across_writes).
    pub fn cursor(&self, range: impl Into<KeyRange>, direction: Direction) -> Cursor {
        Cursor::new(range.into(), direction, View::Now(self.write_seq))
    }

    /// A cursor over the values and deletions that `snapshot` sees in `range`
    /// (client-go: `BatchedSnapshotIter`).
    pub fn cursor_at(
        &self,
        snapshot: &BufferSnapshot,
        range: impl Into<KeyRange>,
        direction: Direction,
    ) -> Cursor {
        Cursor::new(range.into(), direction, View::Before(*snapshot))
    }

    /// The next at most `limit` (at least one) values and deletions of a cursor. Fewer mean that
    /// it is [finished](Cursor::is_finished).
    ///
    /// Fails with [`Error::InvalidArgument`] when the buffer has been written since the cursor
    /// was made (for a cursor of a snapshot: when the snapshot is no longer valid), and with
    /// [`Error::TransactionEnded`] once the values are discarded.
    pub fn page(&self, cursor: &mut Cursor, limit: usize) -> Result<Vec<Buffered>> {
        self.check_values()?;
        let position = match cursor.view {
            View::AcrossWrites => None,
            View::Now(write_seq) if write_seq == self.write_seq => None,
            View::Now(_) => {
                return Err(Error::invalid_argument(
                    "the buffer was written while it was iterated over",
                ));
            }
            View::Before(snapshot) => Some(self.check_snapshot(&snapshot)?),
        };
        if cursor.finished {
            return Ok(Vec::new());
        }
        let mut ids = self.index.range(&self.table, &cursor.rest);
        let mut page = Vec::new();
        let mut last = None;
        while page.len() < limit.max(1) {
            let id = match cursor.direction {
                Direction::Forward => ids.next(),
                Direction::Reverse => ids.next_back(),
            };
            let Some(id) = id else {
                cursor.finished = true;
                return Ok(page);
            };
            let head = match position {
                None => self.table.slot(id).head(),
                Some(position) => self.record_at(id, position),
            };
            if let Some(value) = head.and_then(|at| self.log.value_bytes(at)) {
                let key = self.key_of(id);
                page.push(Buffered { key, value });
                last = Some(id);
            }
        }
        if let Some(id) = last {
            cursor.move_past(self.table.key(id));
        }
        Ok(page)
    }

    /// The key of a handle, also of one whose entry was undone (client-go: `GetKeyByHandle`).
    /// `None` only if the handle is not of this buffer.
    pub fn key_by_handle(&self, handle: Handle) -> Option<Key> {
        ((handle.id as usize) < self.table.len()).then(|| self.key_of(handle.id))
    }

    /// The newest value of a handle's key (client-go: `GetValueByHandle`). `None` if it has none,
    /// was undone, or the values are discarded.
    pub fn value_by_handle(&self, handle: Handle) -> Option<Bytes> {
        if handle.id as usize >= self.table.len() {
            return None;
        }
        self.log.value_bytes(self.table.slot(handle.id).head()?)
    }
}

/// What the buffer knows of one key.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    pub(super) buffer: &'a MemBuffer,
    pub(super) id: EntryId,
}

impl<'a> Entry<'a> {
    /// The key.
    pub fn key(&self) -> &'a [u8] {
        self.buffer.table.key(self.id)
    }

    /// The key, to keep.
    pub fn to_key(&self) -> Key {
        self.buffer.key_of(self.id)
    }

    /// The newest value, empty for a deletion. `None` if the key has only flags, or if the values
    /// are discarded.
    pub fn value(&self) -> Option<&'a [u8]> {
        self.buffer.log.value(self.head()?)
    }

    /// As [`Entry::value`], to keep.
    pub fn to_value(&self) -> Option<Bytes> {
        self.buffer.log.value_bytes(self.head()?)
    }

    /// Bytes of the newest value, also when it is discarded.
    pub fn value_len(&self) -> usize {
        self.head().map_or(0, |at| self.buffer.log.len_at(at))
    }

    /// Whether the key has a value or a deletion, and not only flags (client-go: `HasValue`).
    pub fn has_value(&self) -> bool {
        self.head().is_some()
    }

    /// Whether the key is deleted.
    pub fn is_delete(&self) -> bool {
        self.has_value() && self.value_len() == 0
    }

    /// The flags of the key (client-go: `Flags`).
    pub fn flags(&self) -> KeyFlags {
        self.buffer.table.slot(self.id).flags()
    }

    /// A handle of the key that outlives the borrow (client-go: `Handle`).
    pub fn handle(&self) -> Handle {
        Handle {
            id: self.id,
            user_data: 0,
        }
    }

    fn head(&self) -> Option<u32> {
        self.buffer.table.slot(self.id).head()
    }
}

impl std::fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.to_key())
            .field("value_len", &self.head().map(|_| self.value_len()))
            .field("flags", &self.flags())
            .finish()
    }
}

/// A key of a buffer by number, with 16 bits for whoever holds it
/// (client-go: `MemKeyHandle`). Stays right whatever is written or undone, until the buffer is
/// reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    id: EntryId,
    user_data: u16,
}

impl Handle {
    /// The holder's bits.
    pub const fn user_data(self) -> u16 {
        self.user_data
    }

    /// The same key, with other bits of the holder.
    #[must_use]
    pub const fn with_user_data(self, user_data: u16) -> Self {
        Handle { user_data, ..self }
    }
}

/// Entries in the order of their keys, from both ends.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    buffer: &'a MemBuffer,
    range: Range<'a>,
    flags_only: bool,
}

impl<'a> Iter<'a> {
    fn show(&self, id: EntryId) -> Option<Entry<'a>> {
        let slot = self.buffer.table.slot(id);
        let shown = slot.head().is_some() || (self.flags_only && !slot.is_dead());
        shown.then_some(Entry {
            buffer: self.buffer,
            id,
        })
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        loop {
            let id = self.range.next()?;
            if let Some(entry) = self.show(id) {
                return Some(entry);
            }
        }
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            let id = self.range.next_back()?;
            if let Some(entry) = self.show(id) {
                return Some(entry);
            }
        }
    }
}

/// A value or a deletion, taken out of the buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffered {
    /// The key.
    pub key: Key,
    /// The value, empty for a deletion.
    pub value: Bytes,
}

impl Buffered {
    /// Whether the key is deleted.
    pub fn is_delete(&self) -> bool {
        self.value.is_empty()
    }
}

/// Where a scan of a buffer stands. Borrows nothing.
#[derive(Clone, Debug)]
pub struct Cursor {
    rest: KeyRange,
    direction: Direction,
    view: View,
    finished: bool,
}

#[derive(Clone, Copy, Debug)]
enum View {
    /// The buffer as it is while its write number is this one.
    Now(u64),
    AcrossWrites,
    Before(BufferSnapshot),
}

impl Cursor {
    fn new(rest: KeyRange, direction: Direction, view: View) -> Self {
        Cursor {
            finished: rest.is_empty(),
            rest,
            direction,
            view,
        }
    }

    /// Lets the buffer be written between two pages: each page then shows what is there when it
    /// is taken. Keys that were passed are not visited again.
    #[must_use]
    pub fn across_writes(self) -> Self {
        Cursor {
            view: View::AcrossWrites,
            ..self
        }
    }

    /// Whether there is nothing left.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Which way it goes.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// What it has not visited yet.
    pub fn rest(&self) -> &KeyRange {
        &self.rest
    }

    fn move_past(&mut self, key: &[u8]) {
        self.rest = match self.direction {
            Direction::Forward => KeyRange::new(Key::from(key).next(), self.rest.end().cloned()),
            Direction::Reverse => KeyRange::new(self.rest.start(), Some(key.into())),
        };
        self.finished = self.rest.is_empty();
    }
}
