//! The entries by number, and their keys.
//!
//! An entry is made by the first write of its key and is never removed: undone, it is dead until
//! the next write of the key. Its number therefore serves as a handle that no write invalidates.

use bytes::Bytes;

use super::arena::{Arena, Place, Source};
use super::flags::KeyFlags;

/// The number of an entry, in the order of first writes.
pub(super) type EntryId = u32;

/// The number of a record of the value log, its position.
pub(super) type Position = u32;

/// Where a chain of records ends, or that there is none.
pub(super) const NO_RECORD: Position = Position::MAX;

/// All entries of a buffer.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Slot>,
    keys: Arena,
    /// Bytes of all keys, those of dead entries included.
    key_bytes: usize,
}

/// One entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    key: Place,
    /// The newest record of the key's values, or [`NO_RECORD`].
    pub(super) head: Position,
    key_len: u16,
    /// The flags' bits, and [`DEAD`].
    state: u16,
}

impl Table {
    /// Adds a dead entry for `key`, which is at most `u16::MAX` bytes long.
    pub(super) fn push(&mut self, key: &[u8]) -> EntryId {
        let id = self.entries.len() as EntryId;
        self.entries.push(Slot {
            key: self.keys.push(Source::Borrowed(key)),
            head: NO_RECORD,
            key_len: key.len() as u16,
            state: DEAD,
        });
        self.key_bytes += key.len();
        id
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn slot(&self, id: EntryId) -> &Slot {
        &self.entries[id as usize]
    }

    pub(super) fn slot_mut(&mut self, id: EntryId) -> &mut Slot {
        &mut self.entries[id as usize]
    }

    pub(super) fn key(&self, id: EntryId) -> &[u8] {
        let slot = self.slot(id);
        self.keys.slice(slot.key, slot.key_len())
    }

    pub(super) fn key_bytes(&self, id: EntryId) -> Bytes {
        let slot = self.slot(id);
        self.keys.bytes(slot.key, slot.key_len())
    }

    pub(super) fn seal(&mut self) {
        self.keys.seal();
    }

    pub(super) fn allocated(&self) -> usize {
        self.entries.capacity() * size_of::<Slot>() + self.keys.allocated()
    }

    pub(super) fn used(&self) -> usize {
        self.entries.len() * size_of::<Slot>() + self.key_bytes
    }
}

impl Slot {
    pub(super) fn key_len(&self) -> usize {
        usize::from(self.key_len)
    }

    pub(super) fn flags(&self) -> KeyFlags {
        KeyFlags::from_bits(self.state)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state & DEAD != 0
    }

    /// The newest record, if the key has a value or a deletion.
    pub(super) fn head(&self) -> Option<Position> {
        (self.head != NO_RECORD).then_some(self.head)
    }

    /// Gives the entry `flags` and life.
    pub(super) fn set_flags(&mut self, flags: KeyFlags) {
        self.state = flags.bits();
    }

    pub(super) fn kill(&mut self) {
        debug_assert!(self.head == NO_RECORD, "only an entry without value dies");
        self.state = DEAD;
    }
}

/// The bit of `state` that no flag has.
const DEAD: u16 = 1 << 15;
