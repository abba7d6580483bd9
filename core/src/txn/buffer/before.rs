//! The buffer as it was before the first stage that is open.
//!
//! A statement that reads what it writes must not see its own writes; it opens a stage and reads
//! through such a snapshot. (client-go: `MemBufferSnapshot`)

use bytes::Bytes;

use super::MemBuffer;
use super::index::Range;
use super::table::{EntryId, Position};
use crate::error::{Error, Result};
use crate::key::KeyRange;

/// A view of a buffer's values that writes in stages do not change.
///
/// It holds no borrow; it is handed to the buffer with every read, which fails with
/// [`Error::InvalidArgument`] once the view can no longer be shown: after a write outside of all
/// stages, and after the outermost stage was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSnapshot {
    position: Position,
    seq: u64,
}

impl MemBuffer {
    /// The view from before the outermost open stage; of now, if none is open
    /// (client-go: `GetSnapshot`).
    pub fn snapshot(&self) -> BufferSnapshot {
        BufferSnapshot {
            position: self.stages.first().copied().unwrap_or(self.log.end()),
            seq: self.snapshot_seq,
        }
    }

    /// Whether `snapshot` can still be read.
    pub fn is_valid(&self, snapshot: &BufferSnapshot) -> bool {
        snapshot.seq == self.snapshot_seq
    }

    /// The value of `key` in `snapshot`: empty if it was deleted, `None` if there was neither
    /// value nor deletion.
    pub fn get_at(&self, snapshot: &BufferSnapshot, key: &[u8]) -> Result<Option<Bytes>> {
        self.check_values()?;
        let position = self.check_snapshot(snapshot)?;
        let record = self.find(key).and_then(|id| self.record_at(id, position));
        Ok(record.and_then(|at| self.log.value_bytes(at)))
    }

    /// The values and deletions that `snapshot` sees in `range`, ascending, or from the other
    /// end with [`Iterator::rev`] (client-go: `ForEachInSnapshotRange`).
    pub fn iter_at(
        &self,
        snapshot: &BufferSnapshot,
        range: impl Into<KeyRange>,
    ) -> Result<IterAt<'_>> {
        self.check_values()?;
        Ok(IterAt {
            buffer: self,
            position: self.check_snapshot(snapshot)?,
            range: self.index.range(&self.table, &range.into()),
        })
    }

    /// The position that `snapshot` shows.
    pub(super) fn check_snapshot(&self, snapshot: &BufferSnapshot) -> Result<Position> {
        if !self.is_valid(snapshot) {
            return Err(Error::invalid_argument(format!(
                "the buffer's snapshot {} is gone, the buffer is at {}",
                snapshot.seq, self.snapshot_seq
            )));
        }
        Ok(snapshot.position)
    }

    /// The newest record of an entry that is older than `position`.
    pub(super) fn record_at(&self, id: EntryId, position: Position) -> Option<Position> {
        let mut head = self.table.slot(id).head;
        // "No record" is the largest position.
        while head >= position {
            if head == super::table::NO_RECORD {
                return None;
            }
            head = self.log.record(head).prev;
        }
        Some(head)
    }
}

/// The values and deletions of a snapshot in the order of their keys, from both ends.
#[derive(Clone, Debug)]
pub struct IterAt<'a> {
    buffer: &'a MemBuffer,
    position: Position,
    range: Range<'a>,
}

impl<'a> IterAt<'a> {
    fn show(&self, id: EntryId) -> Option<(&'a [u8], &'a [u8])> {
        let record = self.buffer.record_at(id, self.position)?;
        Some((self.buffer.table.key(id), self.buffer.log.value(record)?))
    }
}

impl<'a> Iterator for IterAt<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let id = self.range.next()?;
            if let Some(pair) = self.show(id) {
                return Some(pair);
            }
        }
    }
}

impl DoubleEndedIterator for IterAt<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            let id = self.range.next_back()?;
            if let Some(pair) = self.show(id) {
                return Some(pair);
            }
        }
    }
}
