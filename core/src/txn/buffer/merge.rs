//! The union of a buffer and a snapshot: what a transaction reads.
//!
//! The buffer wins; its deletions hide rows and are not shown themselves. The rules are [`judge`]
//! and [`overlay`]; the rest applies them to iterators, to pages, to batches. Pure: where the
//! rows come from is the caller's business. (client-go: `KVUnionStore`, `UnionIter`)

use std::collections::{BTreeSet, VecDeque};
use std::iter::Peekable;

use bytes::Bytes;

use super::iter::{Buffered, Direction};
use crate::key::{Key, KvPair};

/// What the buffer says of a key that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// The transaction wrote this value. The snapshot is not asked.
    Value(Bytes),
    /// The transaction deleted the key. The snapshot is not asked.
    Deleted,
    /// The transaction did not write the key. What the snapshot says holds.
    Unknown,
}

/// Judges the buffer's answer to a [get](super::MemBuffer::get).
pub fn overlay(buffered: Option<Bytes>) -> Overlay {
    match buffered {
        Some(value) if value.is_empty() => Overlay::Deleted,
        Some(value) => Overlay::Value(value),
        None => Overlay::Unknown,
    }
}

/// Judges the buffer's answers to a [batch](super::MemBuffer::batch_get): one verdict a key, and
/// the keys to ask the snapshot for, each once, in the order given
/// (client-go: `BufferBatchGetter`).
pub fn overlay_batch(keys: &[Key], buffered: Vec<Option<Bytes>>) -> (Vec<Overlay>, Vec<Key>) {
    let verdicts: Vec<Overlay> = buffered.into_iter().map(overlay).collect();
    let mut seen = BTreeSet::new();
    let ask = keys
        .iter()
        .zip(&verdicts)
        .filter(|(key, verdict)| **verdict == Overlay::Unknown && seen.insert(*key))
        .map(|(key, _)| key.clone())
        .collect();
    (verdicts, ask)
}

/// What to do with the first buffered entry and the first row of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both sides are at their end.
    Finished,
    /// Show the snapshot's row.
    ShowRow,
    /// Show the buffered value.
    ShowBuffered,
    /// Show the buffered value and drop the snapshot's row, which it replaces.
    ReplaceRow,
    /// Drop the deletion: the snapshot has no such key.
    DropDeletion,
    /// Drop the deletion and the row it deletes.
    DropBoth,
}

/// The rule of the union: a buffered key and whether it is deleted, a key of the snapshot, and
/// the direction in which both are read.
pub fn judge(buffered: Option<(&[u8], bool)>, row: Option<&[u8]>, direction: Direction) -> Verdict {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let ((_, deleted), order) = match (buffered, row) {
        (None, None) => return Verdict::Finished,
        (None, Some(_)) => return Verdict::ShowRow,
        (Some(buffered), None) => (buffered, Less),
        (Some(buffered), Some(row)) => (buffered, buffered.0.cmp(row)),
    };
    let order = match (direction, row) {
        (Direction::Reverse, Some(_)) => order.reverse(),
        _ => order,
    };
    match (order, deleted) {
        (Greater, _) => Verdict::ShowRow,
        (Equal, false) => Verdict::ReplaceRow,
        (Equal, true) => Verdict::DropBoth,
        (Less, false) => Verdict::ShowBuffered,
        (Less, true) => Verdict::DropDeletion,
    }
}

/// A row of a scan.
pub trait Row {
    /// The row's key.
    fn key(&self) -> &[u8];

    /// The row that a buffered value makes. It has no commit timestamp yet.
    fn from_buffer(key: Key, value: Bytes) -> Self;
}

impl Row for KvPair {
    fn key(&self) -> &[u8] {
        KvPair::key(self)
    }

    fn from_buffer(key: Key, value: Bytes) -> Self {
        KvPair::new(key, value)
    }
}

/// Merges buffered entries and rows of a snapshot, both in `direction`, into what is visible.
pub fn merge<R: Row>(
    buffered: impl IntoIterator<Item = Buffered>,
    rows: impl IntoIterator<Item = R>,
    direction: Direction,
) -> impl Iterator<Item = R> {
    Merge {
        buffered: buffered.into_iter().peekable(),
        rows: rows.into_iter().peekable(),
        direction,
    }
}

struct Merge<B: Iterator<Item = Buffered>, S: Iterator> {
    buffered: Peekable<B>,
    rows: Peekable<S>,
    direction: Direction,
}

impl<B: Iterator<Item = Buffered>, S: Iterator<Item: Row>> Iterator for Merge<B, S> {
    type Item = S::Item;

    fn next(&mut self) -> Option<S::Item> {
        loop {
            let buffered = self
                .buffered
                .peek()
                .map(|entry| (&*entry.key, entry.is_delete()));
            let verdict = judge(buffered, self.rows.peek().map(Row::key), self.direction);
            if matches!(verdict, Verdict::ReplaceRow | Verdict::DropBoth) {
                self.rows.next();
            }
            match verdict {
                Verdict::Finished => return None,
                Verdict::ShowRow => return self.rows.next(),
                Verdict::ShowBuffered | Verdict::ReplaceRow => {
                    let Buffered { key, value } = self.buffered.next()?;
                    return Some(Row::from_buffer(key, value));
                }
                Verdict::DropDeletion | Verdict::DropBoth => {
                    self.buffered.next();
                }
            }
        }
    }
}

/// A union whose two sides come in pages, whenever they come.
///
/// ```text
///   loop over next():  Row(r)        show it
///                      NeedBuffer    push_buffer(page, whether it is the last), go on
///                      NeedSnapshot  push_snapshot(page, whether it is the last), go on
///                      Finished      stop
/// ```
#[derive(Clone, Debug)]
pub struct Union<R> {
    direction: Direction,
    buffered: VecDeque<Buffered>,
    buffer_ended: bool,
    rows: VecDeque<R>,
    snapshot_ended: bool,
}

/// What a [`Union`] has, or wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<R> {
    /// The next visible row.
    Row(R),
    /// More of the buffer must be pushed first.
    NeedBuffer,
    /// More of the snapshot must be pushed first.
    NeedSnapshot,
    /// There is nothing more.
    Finished,
}

impl<R: Row> Union<R> {
    /// A union of which nothing is known yet.
    pub fn new(direction: Direction) -> Self {
        Union {
            direction,
            buffered: VecDeque::new(),
            buffer_ended: false,
            rows: VecDeque::new(),
            snapshot_ended: false,
        }
    }

    /// Adds the buffer's next entries; `ended` if there are no more.
    pub fn push_buffer(&mut self, page: impl IntoIterator<Item = Buffered>, ended: bool) {
        self.buffered.extend(page);
        self.buffer_ended = ended;
    }

    /// Adds the snapshot's next rows; `ended` if there are no more.
    pub fn push_snapshot(&mut self, page: impl IntoIterator<Item = R>, ended: bool) {
        self.rows.extend(page);
        self.snapshot_ended = ended;
    }

    /// The next row, or what is missing to know it.
    #[expect(clippy::should_implement_trait, reason = "a step is no item")]
    pub fn next(&mut self) -> Step<R> {
        loop {
            if self.buffered.is_empty() && !self.buffer_ended {
                return Step::NeedBuffer;
            }
            if self.rows.is_empty() && !self.snapshot_ended {
                return Step::NeedSnapshot;
            }
            let buffered = self
                .buffered
                .front()
                .map(|entry| (&*entry.key, entry.is_delete()));
            let verdict = judge(buffered, self.rows.front().map(Row::key), self.direction);
            let entry = match verdict {
                Verdict::Finished | Verdict::ShowRow => None,
                _ => self.buffered.pop_front(),
            };
            let row = match verdict {
                Verdict::ShowRow | Verdict::ReplaceRow | Verdict::DropBoth => self.rows.pop_front(),
                _ => None,
            };
            match (verdict, entry, row) {
                (Verdict::ShowRow, _, Some(row)) => return Step::Row(row),
                (Verdict::ShowBuffered | Verdict::ReplaceRow, Some(entry), _) => {
                    return Step::Row(R::from_buffer(entry.key, entry.value));
                }
                (Verdict::DropDeletion | Verdict::DropBoth, ..) => {}
                _ => return Step::Finished,
            }
        }
    }
}
