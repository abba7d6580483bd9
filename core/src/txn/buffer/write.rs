//! Writes into the buffer, and what they may not exceed.

use bytes::Bytes;

use super::MemBuffer;
use super::arena::Source;
use super::flags::{FlagOp, KeyFlags};
use super::table::EntryId;
use crate::error::{Error, Result};

/// Bytes a key may have (client-go: `MaxKeyLen`).
pub const KEY_SIZE_MAX: usize = u16::MAX as usize;

/// Bytes a value may have: what client-go can keep in one block.
pub const VALUE_SIZE_MAX: usize = (128 << 20) - 20;

impl MemBuffer {
    /// Bytes that one entry and all together may have, zero for "any number"
    /// (client-go: `SetEntrySizeLimit`).
    pub fn set_limits(&mut self, entry: usize, total: usize) {
        let limit = |bytes| if bytes == 0 { usize::MAX } else { bytes };
        self.entry_limit = limit(entry);
        self.total_limit = limit(total);
    }

    /// Writes a value (client-go: `Set`).
    ///
    /// # Errors
    ///
    /// Nothing is stored after [`Error::EmptyValue`], [`Error::KeyTooLarge`],
    /// [`Error::EntryTooLarge`] and, once the values are discarded, [`Error::TransactionEnded`].
    /// After [`Error::TransactionTooLarge`] the write **is** stored: the caller undoes it with
    /// the stage it belongs to. [`MemBuffer::try_set`] checks before it writes.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.set_with_flags(key, value, &[])
    }

    /// Writes a value and applies `ops` to the key's flags (client-go: `SetWithFlags`). Fails as
    /// [`MemBuffer::set`].
    pub fn set_with_flags(&mut self, key: &[u8], value: &[u8], ops: &[FlagOp]) -> Result<()> {
        self.write(key, Change::Value(Source::Borrowed(value)), ops)
    }

    /// As [`MemBuffer::set_with_flags`], but a value of 4 KiB and more is kept instead of copied.
    /// What it is a slice of then lives as long as the buffer.
    pub fn set_shared(&mut self, key: &[u8], value: &Bytes, ops: &[FlagOp]) -> Result<()> {
        self.write(key, Change::Value(Source::Shared(value)), ops)
    }

    /// As [`MemBuffer::set`], but stores nothing after [`Error::TransactionTooLarge`] either.
    pub fn try_set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.check_total(key, value.len())?;
        self.set(key, value)
    }

    /// Deletes a key, which need not be there (client-go: `Delete`). Fails as
    /// [`MemBuffer::set`].
    pub fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.delete_with_flags(key, &[])
    }

    /// Deletes a key and applies `ops` to its flags (client-go: `DeleteWithFlags`). Fails as
    /// [`MemBuffer::set`].
    pub fn delete_with_flags(&mut self, key: &[u8], ops: &[FlagOp]) -> Result<()> {
        self.write(key, Change::Deletion, ops)
    }

    /// As [`MemBuffer::delete`], but stores nothing after [`Error::TransactionTooLarge`] either.
    pub fn try_delete(&mut self, key: &[u8]) -> Result<()> {
        self.check_total(key, 0)?;
        self.delete(key)
    }

    /// Writes a value of a key that is not there yet: TiKV checks that at the latest at prewrite.
    ///
    /// A key that the buffer itself has deleted, without having presumed it absent, is simply
    /// written. Fails as [`MemBuffer::set`], and with [`Error::KeyExists`] if the buffer holds a
    /// value of the key.
    pub fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let presume = [FlagOp::SetPresumeKeyNotExists];
        let ops = match self.entry(key) {
            Some(entry) if entry.is_delete() && !entry.flags().presumes_not_exists() => &[][..],
            Some(entry) if entry.has_value() && !entry.is_delete() => {
                return Err(Error::KeyExists { key: key.into() });
            }
            _ => &presume,
        };
        self.set_with_flags(key, value, ops)
    }

    /// Applies `ops` to the flags of a key, which need not be known before
    /// (client-go: `UpdateFlags`).
    ///
    /// Fails with [`Error::KeyTooLarge`], and with [`Error::TransactionEnded`] once the values
    /// are discarded. The limits do not count here: flags must not get lost.
    pub fn update_flags(&mut self, key: &[u8], ops: &[FlagOp]) -> Result<()> {
        self.write(key, Change::FlagsOnly, ops)
    }

    /// Whether the key is presumed absent (client-go: `HasPresumeKeyNotExists`).
    pub fn presumes_not_exists(&self, key: &[u8]) -> bool {
        self.flags(key).is_some_and(KeyFlags::presumes_not_exists)
    }

    fn write(&mut self, key: &[u8], change: Change<'_>, ops: &[FlagOp]) -> Result<()> {
        self.check_write(key, &change)?;
        let in_stage = !self.stages.is_empty();
        self.write_seq += 1;
        if !in_stage {
            self.dirty = true;
            self.snapshot_seq += 1;
        }

        let id = self.find_or_add(key);
        let slot = self.table.slot_mut(id);
        if slot.is_dead() {
            self.len += 1;
            self.size += slot.key_len();
        }
        let before = match change {
            // A value newly written is checked like any other, unless `ops` say so again.
            Change::Value(_) | Change::Deletion => slot
                .flags()
                .without(KeyFlags::NEED_CONSTRAINT_CHECK_IN_PREWRITE),
            Change::FlagsOnly => slot.flags(),
        };
        let flags = before.apply(ops);
        slot.set_flags(flags);
        if !flags.persistent().is_empty() {
            self.dirty = true;
        }

        match change {
            Change::Value(value) => self.write_value(id, value),
            Change::Deletion => self.write_value(id, Source::Borrowed(&[])),
            Change::FlagsOnly => return Ok(()),
        }
        if self.size > self.total_limit {
            return Err(Error::TransactionTooLarge {
                size: self.size,
                limit: self.total_limit,
            });
        }
        Ok(())
    }

    fn check_write(&self, key: &[u8], change: &Change<'_>) -> Result<()> {
        let value_len = match change {
            Change::Value(value) if value.as_slice().is_empty() => {
                return Err(Error::EmptyValue { key: key.into() });
            }
            Change::Value(value) => Some(value.as_slice().len()),
            Change::Deletion => Some(0),
            Change::FlagsOnly => None,
        };
        self.check_values()?;
        if key.len() > KEY_SIZE_MAX {
            return Err(Error::KeyTooLarge {
                size: key.len(),
                limit: KEY_SIZE_MAX,
            });
        }
        if let Some(value_len) = value_len {
            let size = key.len() + value_len;
            if size > self.entry_limit {
                return Err(Error::EntryTooLarge {
                    size,
                    limit: self.entry_limit,
                });
            }
            if value_len > VALUE_SIZE_MAX {
                return Err(Error::EntryTooLarge {
                    size,
                    limit: VALUE_SIZE_MAX,
                });
            }
        }
        // Numbers of entries and records are 32 bits wide, and the last ones mean "none".
        let most = self.table.len().max(self.log.end() as usize);
        if most >= u32::MAX as usize - 1 {
            return Err(Error::TransactionTooLarge {
                size: self.size,
                limit: self.size,
            });
        }
        Ok(())
    }

    /// Fails if a value of `value_len` bytes for `key` would make the buffer too large.
    fn check_total(&self, key: &[u8], value_len: usize) -> Result<()> {
        let held = self
            .entry(key)
            .map_or(0, |entry| entry.key().len() + entry.value_len());
        let size = self.size - held + key.len() + value_len;
        if size > self.total_limit {
            return Err(Error::TransactionTooLarge {
                size,
                limit: self.total_limit,
            });
        }
        Ok(())
    }

    fn find_or_add(&mut self, key: &[u8]) -> EntryId {
        if let Some(id) = self.last.get(&self.table, key) {
            return id;
        }
        let id = match self.index.locate(&self.table, key) {
            Ok(id) => id,
            Err(place) => {
                let id = self.table.push(key);
                self.index.insert(&self.table, place, id);
                id
            }
        };
        self.last.set(id);
        id
    }

    fn write_value(&mut self, id: EntryId, value: Source<'_>) {
        let len = value.as_slice().len();
        let slot = self.table.slot(id);
        let old = slot.head();
        let old_len = old.map_or(0, |at| self.log.len_at(at));
        match old {
            Some(at) if len > 0 && len == old_len && at >= self.in_place_from() => {
                self.log.overwrite(at, value);
            }
            _ => {
                let at = self.log.push(slot.head, id, value);
                self.table.slot_mut(id).head = at;
                self.size = self.size - old_len + len;
            }
        }
    }
}

/// What a write does to a key besides its flags.
enum Change<'a> {
    Value(Source<'a>),
    Deletion,
    FlagsOnly,
}
