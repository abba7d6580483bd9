//! What a transaction's buffer becomes on the wire: which operation for which entry, and which
//! key is the primary. (client-go: `twoPhaseCommitter.initKeysAndMutations`)

use bytes::Bytes;
use tikv_proto::kvrpcpb::{self, Op};

use crate::error::{Error, Result};
use crate::key::Key;
use crate::txn::buffer::{Assertion, KeyFlags, MemBuffer};

/// The writes of a transaction in the order of their keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mutations {
    items: Vec<kvrpcpb::Mutation>,
    primary: usize,
    /// Bytes of all keys and values.
    size: usize,
}

impl Mutations {
    /// Takes the writes out of a buffer; `None` if there is nothing to commit.
    ///
    /// # Errors
    ///
    /// There are locks in share mode only, of which none can be the primary.
    pub(crate) fn collect(buffer: &MemBuffer, pessimistic: bool) -> Result<Option<Mutations>> {
        let mut items = Vec::with_capacity(buffer.len());
        let mut size = 0;
        for entry in buffer.iter_with_flags(..) {
            let written = entry.has_value().then(|| entry.is_delete());
            let Some(op) = operation(written, entry.flags(), pessimistic) else {
                continue;
            };
            let value = match op {
                Op::Put | Op::Insert => entry.to_value().unwrap_or_default(),
                _ => Bytes::new(),
            };
            let key = entry.to_key().into_bytes();
            size += key.len() + value.len();
            let assertion = assertion(entry.flags()).into();
            items.push(kvrpcpb::Mutation {
                op: op.into(),
                key,
                value,
                assertion,
            });
        }
        if items.is_empty() {
            return Ok(None);
        }
        let primary = items
            .iter()
            .position(|item| !matches!(item.op(), Op::CheckNotExists | Op::SharedLock))
            // With nothing but checks nothing is locked, and any key serves to name the request's.
            .or_else(|| {
                items
                    .iter()
                    .position(|item| item.op() == Op::CheckNotExists)
            })
            .ok_or_else(|| {
                Error::invalid_argument("a key locked in share mode cannot be primary")
            })?;
        Ok(Some(Mutations {
            items,
            primary,
            size,
        }))
    }

    pub(crate) fn items(&self) -> &[kvrpcpb::Mutation] {
        &self.items
    }

    /// The place of the primary in [`Mutations::items`].
    pub(crate) fn primary(&self) -> usize {
        self.primary
    }

    pub(crate) fn primary_key(&self) -> Key {
        self.items
            .get(self.primary)
            .map(|item| item.key.clone().into())
            .unwrap_or_default()
    }

    /// Bytes of all keys and values.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Without the keys whose absence was only to be checked: what there is to commit. `None` if
    /// that is nothing.
    pub(crate) fn to_commit(&self) -> Option<Mutations> {
        let checked_only = |item: &kvrpcpb::Mutation| item.op() == Op::CheckNotExists;
        if self.items.get(self.primary).is_none_or(checked_only) {
            return None;
        }
        let before = self.items[..self.primary]
            .iter()
            .filter(|item| checked_only(item))
            .count();
        let items = self
            .items
            .iter()
            .filter(|item| !checked_only(item))
            .cloned()
            .collect();
        Some(Mutations {
            items,
            primary: self.primary - before,
            size: self.size,
        })
    }
}

/// The operation for an entry, `None` if it needs none. `written` is `Some(true)` for a deletion,
/// `Some(false)` for a value, `None` if only flags are known of the key.
fn operation(written: Option<bool>, flags: KeyFlags, pessimistic: bool) -> Option<Op> {
    let lock = || {
        flags
            .is_locked()
            .then(|| match flags.is_locked_in_share_mode() {
                true => Op::SharedLock,
                false => Op::Lock,
            })
    };
    #[cfg(feature = "mutations")]
    match written {
        None if crate::mutation::is(crate::mutation::Mutation::ForgetLockedKeys) => return None,
        Some(false) if crate::mutation::is(crate::mutation::Mutation::ForgetInsert) => {
            return Some(Op::Put);
        }
        Some(true) if crate::mutation::is(crate::mutation::Mutation::ForgetDeletes) => return None,
        _ => {}
    }
    match written {
        None => lock(),
        Some(false) if flags.presumes_not_exists() => Some(Op::Insert),
        Some(false) => Some(Op::Put),
        Some(true) if !pessimistic && flags.presumes_not_exists() => Some(Op::CheckNotExists),
        Some(true) if flags.contains(KeyFlags::NEWLY_INSERTED) => lock(),
        Some(true) => Some(Op::Del),
    }
}

fn assertion(flags: KeyFlags) -> kvrpcpb::Assertion {
    match flags.assertion() {
        Assertion::Exists => kvrpcpb::Assertion::Exist,
        Assertion::NotExists => kvrpcpb::Assertion::NotExist,
        Assertion::None | Assertion::Unknown => kvrpcpb::Assertion::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn::buffer::FlagOp;

    #[test]
    fn every_kind_of_entry_has_its_operation() {
        let none = KeyFlags::EMPTY;
        let locked = KeyFlags::LOCKED;
        let shared = locked.union(KeyFlags::LOCKED_IN_SHARE_MODE);
        let presumed = KeyFlags::PRESUME_NOT_EXISTS;
        let new = KeyFlags::NEWLY_INSERTED;
        for (written, flags, optimistic, pessimistic) in [
            (None, none, None, None),
            (None, locked, Some(Op::Lock), Some(Op::Lock)),
            (None, shared, Some(Op::SharedLock), Some(Op::SharedLock)),
            (Some(false), none, Some(Op::Put), Some(Op::Put)),
            (Some(false), locked, Some(Op::Put), Some(Op::Put)),
            (Some(false), presumed, Some(Op::Insert), Some(Op::Insert)),
            (Some(true), none, Some(Op::Del), Some(Op::Del)),
            (Some(true), locked, Some(Op::Del), Some(Op::Del)),
            (
                Some(true),
                presumed,
                Some(Op::CheckNotExists),
                Some(Op::Del),
            ),
            (Some(true), new, None, None),
            (
                Some(true),
                new.union(locked),
                Some(Op::Lock),
                Some(Op::Lock),
            ),
        ] {
            assert_eq!(
                operation(written, flags, false),
                optimistic,
                "{written:?} {flags:?}"
            );
            assert_eq!(
                operation(written, flags, true),
                pessimistic,
                "{written:?} {flags:?}"
            );
        }
    }

    #[test]
    fn the_primary_is_the_first_key_that_is_really_locked() {
        let mut buffer = MemBuffer::new();
        assert_eq!(Mutations::collect(&buffer, false), Ok(None));
        buffer
            .delete_with_flags(b"a", &[FlagOp::SetPresumeKeyNotExists])
            .unwrap();
        let only_checks = Mutations::collect(&buffer, false).unwrap().unwrap();
        assert_eq!((only_checks.primary(), only_checks.to_commit()), (0, None));

        buffer.set(b"b", b"value").unwrap();
        buffer.delete(b"c").unwrap();
        let all = Mutations::collect(&buffer, false).unwrap().unwrap();
        assert_eq!(
            (all.len(), all.size(), all.primary_key()),
            (3, 8, "b".into())
        );
        let commit = all.to_commit().unwrap();
        assert_eq!((commit.len(), commit.primary_key()), (2, "b".into()));
    }
}
