//! Going back: stages, checkpoints, and the history they keep.
//!
//! Undoing a value gives the key its previous one. Undoing a key's first value leaves its
//! persistent flags, or a dead entry. Flags written in a stage on a key that had a value or flags
//! before therefore stay; so it is in client-go, and a lock that was taken is not given back by
//! undoing a statement.

use super::MemBuffer;
use super::iter::Entry;
use super::log::ValueLog;
use super::table::{NO_RECORD, Position, Table};
use crate::error::{Error, Result};

use bytes::Bytes;

/// An open stage, by its depth: 1 is the outermost (client-go: the `int` that `Staging` returns).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[must_use = "a stage is to be released or cleaned up"]
pub struct StageHandle(usize);

impl StageHandle {
    /// No stage: releasing it and cleaning it up do nothing (client-go: `InvalidStagingHandle`).
    pub const NONE: StageHandle = StageHandle(0);

    /// The stage at `depth`.
    pub const fn at_depth(depth: usize) -> Self {
        StageHandle(depth)
    }

    /// How many stages are open up to this one.
    pub const fn depth(self) -> usize {
        self.0
    }
}

/// A moment of a buffer's values to go back to (client-go: `MemDBCheckpoint`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    position: Position,
    serial: u64,
}

impl MemBuffer {
    /// Opens a stage (client-go: `Staging`).
    pub fn staging(&mut self) -> StageHandle {
        self.stages.push(self.log.end());
        StageHandle(self.stages.len())
    }

    /// How many stages are open.
    pub fn stage_depth(&self) -> usize {
        self.stages.len()
    }

    /// Closes the innermost stage and keeps its writes (client-go: `Release`). Fails with
    /// [`Error::InvalidArgument`] for another one.
    pub fn release(&mut self, stage: StageHandle) -> Result<()> {
        if stage == StageHandle::NONE {
            return Ok(());
        }
        let start = match self.stages.pop() {
            Some(start) if stage.0 == self.stages.len() + 1 => start,
            popped => {
                self.stages.extend(popped);
                return Err(not_innermost("release", stage, self.stages.len()));
            }
        };
        self.write_seq += 1;
        if self.stages.is_empty() {
            self.snapshot_seq += 1;
            self.dirty |= self.log.end() != start;
        }
        Ok(())
    }

    /// Closes the innermost stage and undoes its writes (client-go: `Cleanup`).
    ///
    /// A stage that is closed already is left alone; one that has open stages inside fails with
    /// [`Error::InvalidArgument`].
    pub fn cleanup(&mut self, stage: StageHandle) -> Result<()> {
        let depth = self.stages.len();
        if stage.0 == 0 || stage.0 > depth {
            return Ok(());
        }
        if stage.0 < depth {
            return Err(not_innermost("clean up", stage, depth));
        }
        if let Some(start) = self.stages.pop() {
            self.undo_to(start);
        }
        self.write_seq += 1;
        if depth == 1 {
            self.snapshot_seq += 1;
        }
        Ok(())
    }

    /// A moment to [go back to](MemBuffer::revert_to) (client-go: `Checkpoint`).
    pub fn checkpoint(&mut self) -> Checkpoint {
        let position = self.log.end();
        match self.checkpoints.last() {
            Some(last) if last.position == position => *last,
            _ => {
                self.checkpoint_serial += 1;
                let serial = self.checkpoint_serial;
                let checkpoint = Checkpoint { position, serial };
                self.checkpoints.push(checkpoint);
                checkpoint
            }
        }
    }

    /// Undoes every value written after `checkpoint` (client-go: `RevertToCheckpoint`). The same
    /// checkpoint may be reverted to again.
    ///
    /// Fails with [`Error::InvalidArgument`] if the buffer has gone back beyond the checkpoint
    /// since, or if the checkpoint lies before the beginning of an open stage.
    pub fn revert_to(&mut self, checkpoint: Checkpoint) -> Result<()> {
        self.check_values()?;
        let alive = self
            .checkpoints
            .binary_search_by_key(&checkpoint.position, |alive| alive.position)
            .is_ok_and(|at| self.checkpoints[at] == checkpoint);
        if !alive {
            return Err(Error::invalid_argument(
                "the checkpoint is gone: the buffer was reverted beyond it",
            ));
        }
        if self
            .stages
            .last()
            .is_some_and(|start| checkpoint.position < *start)
        {
            return Err(Error::invalid_argument(
                "the checkpoint was taken before a stage that is open",
            ));
        }
        self.undo_to(checkpoint.position);
        self.write_seq += 1;
        if self.stages.is_empty() {
            self.snapshot_seq += 1;
        }
        Ok(())
    }

    /// The values of `key`, newest first, that an open stage, a checkpoint or a
    /// different length kept from being overwritten. A deletion is an empty value. Empty for a
    /// key without value.
    pub fn history(&self, key: &[u8]) -> Result<History<'_>> {
        self.check_values()?;
        Ok(History {
            log: &self.log,
            next: self.find_head(key).unwrap_or(NO_RECORD),
        })
    }

    /// The newest value of [the history](MemBuffer::history) that `accept` takes
    /// (client-go: `SelectValueHistory`).
    pub fn select_value_history(
        &self,
        key: &[u8],
        mut accept: impl FnMut(&[u8]) -> bool,
    ) -> Result<Option<Bytes>> {
        let mut history = self.history(key)?;
        loop {
            let at = history.next;
            match history.next() {
                Some(value) if accept(value) => return Ok(self.log.value_bytes(at)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// The entries whose newest value was written in `stage` or in one inside it, latest write
    /// first (client-go: `InspectStage`). Flags without value are not among them.
    ///
    /// Fails with [`Error::InvalidArgument`] if the stage is not open.
    pub fn inspect_stage(&self, stage: StageHandle) -> Result<StageEntries<'_>> {
        let start = stage.0.checked_sub(1).and_then(|at| self.stages.get(at));
        match start {
            Some(start) => Ok(StageEntries {
                buffer: self,
                start: *start,
                next: self.log.end(),
            }),
            None => Err(Error::invalid_argument(format!(
                "there is no stage {} to inspect, {} are open",
                stage.0,
                self.stages.len()
            ))),
        }
    }

    /// Frees the values, which no one needs once the commit can't fail any more
    /// (client-go: `DiscardValues`). Keys, flags, sizes and handles stay readable; reading values
    /// and writing fail with [`Error::TransactionEnded`].
    pub fn discard_values(&mut self) {
        self.log.discard();
    }

    /// Makes the buffer new, except for its limits (client-go: `Reset`).
    pub fn reset(&mut self) {
        *self = MemBuffer {
            entry_limit: self.entry_limit,
            total_limit: self.total_limit,
            write_seq: self.write_seq + 1,
            snapshot_seq: self.snapshot_seq + 1,
            // Continued, so that no checkpoint of before is taken for one of after.
            checkpoint_serial: self.checkpoint_serial,
            ..MemBuffer::new()
        };
    }

    /// The first record that may be overwritten in place: no stage, checkpoint or reader of
    /// sealed values can ask for what it holds now.
    pub(super) fn in_place_from(&self) -> Position {
        let stage = self.stages.last().copied().unwrap_or(0);
        let checkpoint = self.checkpoints.last().map_or(0, |newest| newest.position);
        stage.max(checkpoint).max(self.log.sealed())
    }

    fn undo_to(&mut self, position: Position) {
        if self.log.is_discarded() {
            return;
        }
        while self.log.end() > position {
            let Some(record) = self.log.pop() else { break };
            self.size -= record.len as usize;
            let slot = self.table.slot_mut(record.entry);
            slot.head = record.prev;
            match slot.head() {
                Some(at) => self.size += self.log.len_at(at),
                None => {
                    let flags = slot.flags().persistent();
                    slot.set_flags(flags);
                    if flags.is_empty() {
                        slot.kill();
                        self.len -= 1;
                        self.size -= slot.key_len();
                    }
                }
            }
        }
        while self
            .checkpoints
            .pop_if(|newest| newest.position > position)
            .is_some()
        {}
    }
}

/// The values of a key, newest first.
#[derive(Clone, Debug)]
pub struct History<'a> {
    log: &'a ValueLog,
    next: Position,
}

impl<'a> Iterator for History<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.next == NO_RECORD {
            return None;
        }
        let value = self.log.value(self.next);
        self.next = self.log.record(self.next).prev;
        value
    }
}

/// The entries written in a stage, latest first.
#[derive(Clone, Debug)]
pub struct StageEntries<'a> {
    buffer: &'a MemBuffer,
    start: Position,
    next: Position,
}

impl<'a> Iterator for StageEntries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let table: &Table = &self.buffer.table;
        while self.next > self.start {
            self.next -= 1;
            let id = self.buffer.log.record(self.next).entry;
            if table.slot(id).head == self.next {
                let buffer = self.buffer;
                return Some(Entry { buffer, id });
            }
        }
        None
    }
}

fn not_innermost(verb: &str, stage: StageHandle, depth: usize) -> Error {
    Error::invalid_argument(format!(
        "cannot {verb} stage {}: the innermost one is {depth}",
        stage.0
    ))
}
