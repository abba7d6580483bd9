//! The value log: every value written, in the order of writing, each with the one it replaced.
//!
//! It is the undo log of stages and checkpoints: a position in it is a point in time, and going
//! back means taking records from its end. (client-go: `MemdbVlog`)

use bytes::Bytes;

use super::arena::{Arena, Place, Source};
use super::table::{EntryId, Position};

/// The records of a buffer, and their values.
#[derive(Debug, Default)]
pub(super) struct ValueLog {
    records: Vec<Record>,
    values: Arena,
    /// Bytes of all values, replaced ones included.
    value_bytes: usize,
    /// Records below are shared with readers, and so are never overwritten.
    sealed: Position,
    discarded: bool,
}

/// One write of a value; a deletion if `len` is zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// The record it replaced, or `NO_RECORD`.
    pub(super) prev: Position,
    pub(super) entry: EntryId,
    pub(super) len: u32,
    place: Place,
}

impl ValueLog {
    /// The position after the last record.
    pub(super) fn end(&self) -> Position {
        self.records.len() as Position
    }

    /// Appends a record of `value`, empty for a deletion.
    pub(super) fn push(&mut self, prev: Position, entry: EntryId, value: Source<'_>) -> Position {
        let len = value.as_slice().len();
        let place = if len == 0 {
            Place::default()
        } else {
            self.values.push(value)
        };
        let position = self.end();
        self.records.push(Record {
            prev,
            entry,
            len: len as u32,
            place,
        });
        self.value_bytes += len;
        position
    }

    /// Writes `value`, of the same length, over that of a record that is not sealed.
    pub(super) fn overwrite(&mut self, at: Position, value: Source<'_>) {
        debug_assert!(at >= self.sealed);
        self.values.overwrite(self.record(at).place, value);
    }

    /// Takes back the last record.
    pub(super) fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop()?;
        self.sealed = self.sealed.min(self.records.len() as Position);
        self.value_bytes -= record.len as usize;
        if record.len > 0 {
            self.values.pop(record.place);
        }
        Some(record)
    }

    pub(super) fn record(&self, at: Position) -> &Record {
        &self.records[at as usize]
    }

    /// The length of the value at `at`.
    pub(super) fn len_at(&self, at: Position) -> usize {
        self.record(at).len as usize
    }

    /// The value at `at`, empty for a deletion; `None` once the values are discarded.
    pub(super) fn value(&self, at: Position) -> Option<&[u8]> {
        let record = self.record(at);
        match (self.discarded, record.len as usize) {
            (true, _) => None,
            (false, 0) => Some(&[]),
            (false, len) => Some(self.values.slice(record.place, len)),
        }
    }

    /// As [`ValueLog::value`], to keep.
    pub(super) fn value_bytes(&self, at: Position) -> Option<Bytes> {
        let record = self.record(at);
        match (self.discarded, record.len as usize) {
            (true, _) => None,
            (false, 0) => Some(Bytes::new()),
            (false, len) => Some(self.values.bytes(record.place, len)),
        }
    }

    /// Makes the values of all records so far shareable, and so unchangeable.
    pub(super) fn seal(&mut self) {
        self.values.seal();
        self.sealed = self.end();
    }

    pub(super) fn sealed(&self) -> Position {
        self.sealed
    }

    /// Frees the values; the records stay, so that it is still known which keys were written.
    pub(super) fn discard(&mut self) {
        self.values = Arena::default();
        self.value_bytes = 0;
        self.discarded = true;
    }

    pub(super) fn is_discarded(&self) -> bool {
        self.discarded
    }

    pub(super) fn allocated(&self) -> usize {
        self.records.capacity() * size_of::<Record>() + self.values.allocated()
    }

    pub(super) fn used(&self) -> usize {
        self.records.len() * size_of::<Record>() + self.value_bytes
    }
}
