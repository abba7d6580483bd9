//! What is known of a key besides its value: 16 bits, and the operations that change them.
//!
//! Flags belong to the key, not to one of its values, so stages and checkpoints do not roll them
//! back, except when a key's first value is undone: then only [the persistent
//! ones](KeyFlags::persistent) stay. Which combination makes sense is the caller's business; no
//! operation fails. (client-go: `kv.KeyFlags`, `kv.FlagsOp`)

use std::fmt;

/// The flags of one key (client-go: `kv.KeyFlags`).
///
/// The bits are client-go's, for traces and tools that know them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct KeyFlags(u16);

impl KeyFlags {
    /// No flag.
    pub const EMPTY: KeyFlags = KeyFlags(0);

    /// The key is presumed absent, the check is left to the lock or prewrite request.
    pub const PRESUME_NOT_EXISTS: KeyFlags = KeyFlags(1 << 0);
    /// The key holds a lock, or in an optimistic transaction wants one. Persistent.
    pub const LOCKED: KeyFlags = KeyFlags(1 << 1);
    /// The caller says that the key will need a lock.
    pub const NEED_LOCKED: KeyFlags = KeyFlags(1 << 2);
    /// The key had a value when it was locked. Persistent.
    pub const LOCKED_VALUE_EXISTS: KeyFlags = KeyFlags(1 << 3);
    /// A later lock of this key, locked already and existing, fails with "key exists".
    pub const NEED_CHECK_EXISTS: KeyFlags = KeyFlags(1 << 4);
    /// The key takes part in prewrite but not in commit.
    pub const PREWRITE_ONLY: KeyFlags = KeyFlags(1 << 5);
    /// The caller's filter leaves the key out of two-phase commit.
    pub const IGNORED_IN_2PC: KeyFlags = KeyFlags(1 << 6);
    /// The caller may read the key although it is locked by others.
    pub const READABLE: KeyFlags = KeyFlags(1 << 7);
    /// The key was inserted by this transaction; deleting it leaves a lock or nothing.
    pub const NEWLY_INSERTED: KeyFlags = KeyFlags(1 << 8);
    /// One half of the assertion state, see [`KeyFlags::assertion`].
    pub const ASSERT_EXIST: KeyFlags = KeyFlags(1 << 9);
    /// The other half of the assertion state, see [`KeyFlags::assertion`].
    pub const ASSERT_NOT_EXIST: KeyFlags = KeyFlags(1 << 10);
    /// A pessimistic transaction checks the key for conflicts at prewrite only. Persistent, and
    /// cleared by every write of a value.
    pub const NEED_CONSTRAINT_CHECK_IN_PREWRITE: KeyFlags = KeyFlags(1 << 11);
    /// An earlier, finished statement presumed the key absent.
    pub const PREVIOUS_PRESUME_NOT_EXISTS: KeyFlags = KeyFlags(1 << 12);
    /// The lock is a shared one; says something only together with [`KeyFlags::LOCKED`].
    /// Persistent.
    pub const LOCKED_IN_SHARE_MODE: KeyFlags = KeyFlags(1 << 13);

    /// The flags that stay when the key's first value is undone.
    const PERSISTENT: KeyFlags = Self::LOCKED
        .union(Self::LOCKED_VALUE_EXISTS)
        .union(Self::NEED_CONSTRAINT_CHECK_IN_PREWRITE)
        .union(Self::LOCKED_IN_SHARE_MODE);

    /// The bits. Bits 14 and 15 are never set.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The flags with these bits; those that mean nothing are dropped.
    pub const fn from_bits(bits: u16) -> Self {
        KeyFlags(bits & 0x3FFF)
    }

    /// Whether all of `flags` are set.
    pub const fn contains(self, flags: KeyFlags) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The flags that are set here or there.
    #[must_use]
    pub const fn union(self, other: KeyFlags) -> Self {
        KeyFlags(self.0 | other.0)
    }

    /// The flags that are set here and not there.
    #[must_use]
    pub const fn without(self, other: KeyFlags) -> Self {
        KeyFlags(self.0 & !other.0)
    }

    /// Only the flags that outlive the key's values (client-go: `AndPersistent`).
    #[must_use]
    pub const fn persistent(self) -> Self {
        KeyFlags(self.0 & Self::PERSISTENT.0)
    }

    /// Whether this statement or an earlier one presumed the key absent
    /// (client-go: `HasPresumeKeyNotExists`).
    pub const fn presumes_not_exists(self) -> bool {
        self.0 & (Self::PRESUME_NOT_EXISTS.0 | Self::PREVIOUS_PRESUME_NOT_EXISTS.0) != 0
    }

    /// Whether the key is locked, in whatever mode (client-go: `HasLocked`).
    pub const fn is_locked(self) -> bool {
        self.contains(Self::LOCKED)
    }

    /// Whether the key is locked in share mode (client-go: `HasLockedInShareMode`).
    pub const fn is_locked_in_share_mode(self) -> bool {
        self.contains(Self::LOCKED.union(Self::LOCKED_IN_SHARE_MODE))
    }

    /// What the transaction asserts about the key.
    pub const fn assertion(self) -> Assertion {
        match (
            self.contains(Self::ASSERT_EXIST),
            self.contains(Self::ASSERT_NOT_EXIST),
        ) {
            (false, false) => Assertion::None,
            (true, false) => Assertion::Exists,
            (false, true) => Assertion::NotExists,
            (true, true) => Assertion::Unknown,
        }
    }

    /// Whether an assertion was made, be it "unknown" (client-go: `HasAssertionFlags`).
    pub const fn has_assertion(self) -> bool {
        self.0 & (Self::ASSERT_EXIST.0 | Self::ASSERT_NOT_EXIST.0) != 0
    }

    /// The flags after `ops`, applied in their order (client-go: `ApplyFlagsOps`).
    #[must_use]
    pub const fn apply(self, ops: &[FlagOp]) -> Self {
        let mut flags = self;
        let mut rest = ops;
        while let [op, tail @ ..] = rest {
            let (clear, set) = op.effect();
            flags = flags.without(clear).union(set);
            rest = tail;
        }
        flags
    }
}

/// The names of the flags that are set, in the order of their bits.
impl fmt::Debug for KeyFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut set = f.debug_set();
        for (flag, name) in NAMES {
            if self.contains(flag) {
                set.entry(&format_args!("{name}"));
            }
        }
        set.finish()
    }
}

/// What a transaction says about a key before its writes; TiKV checks it at prewrite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Assertion {
    /// Nothing was said.
    #[default]
    None,
    /// The key exists.
    Exists,
    /// The key does not exist.
    NotExists,
    /// It was said that nothing is known.
    Unknown,
}

/// One change of a key's flags (client-go: `kv.FlagsOp`).
///
/// There is none that clears `PREWRITE_ONLY`, `IGNORED_IN_2PC`, `READABLE`, `NEWLY_INSERTED` or
/// `PREVIOUS_PRESUME_NOT_EXISTS`: they last as long as the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlagOp {
    /// Presume the key absent, and check that when it is locked.
    SetPresumeKeyNotExists,
    /// Take that back.
    DelPresumeKeyNotExists,
    /// The key is locked.
    SetKeyLocked,
    /// The key is not locked.
    DelKeyLocked,
    /// The key will need a lock.
    SetNeedLocked,
    /// The key needs no lock.
    DelNeedLocked,
    /// The locked key has a value. No constraint is left to be checked at prewrite.
    SetKeyLockedValueExists,
    /// The locked key has no value. No constraint is left to be checked at prewrite.
    SetKeyLockedValueNotExists,
    /// A later lock does not check whether the key exists.
    DelNeedCheckExists,
    /// Prewrite the key without committing it.
    SetPrewriteOnly,
    /// Leave the key out of two-phase commit.
    SetIgnoredIn2PC,
    /// The key may be read.
    SetReadable,
    /// The transaction inserted the key.
    SetNewlyInserted,
    /// Assert that the key exists.
    SetAssertExist,
    /// Assert that the key does not exist.
    SetAssertNotExist,
    /// Assert that nothing is known.
    SetAssertUnknown,
    /// Assert nothing.
    SetAssertNone,
    /// Check the key for conflicts at prewrite.
    SetNeedConstraintCheckInPrewrite,
    /// Take that back.
    DelNeedConstraintCheckInPrewrite,
    /// A finished statement presumed the key absent.
    SetPreviousPresumeKeyNotExists,
    /// The lock is a shared one.
    SetKeyLockedInShareMode,
    /// The lock is an exclusive one.
    SetKeyLockedInExclusiveMode,
}

impl FlagOp {
    /// The bits it clears, then the bits it sets.
    const fn effect(self) -> (KeyFlags, KeyFlags) {
        use KeyFlags as F;
        const PRESUME: KeyFlags = F::PRESUME_NOT_EXISTS.union(F::NEED_CHECK_EXISTS);
        const ASSERT: KeyFlags = F::ASSERT_EXIST.union(F::ASSERT_NOT_EXIST);
        const CONSTRAINT: KeyFlags = F::NEED_CONSTRAINT_CHECK_IN_PREWRITE;
        match self {
            FlagOp::SetPresumeKeyNotExists => (F::EMPTY, PRESUME),
            FlagOp::DelPresumeKeyNotExists => (PRESUME, F::EMPTY),
            FlagOp::SetKeyLocked => (F::EMPTY, F::LOCKED),
            FlagOp::DelKeyLocked => (F::LOCKED, F::EMPTY),
            FlagOp::SetNeedLocked => (F::EMPTY, F::NEED_LOCKED),
            FlagOp::DelNeedLocked => (F::NEED_LOCKED, F::EMPTY),
            FlagOp::SetKeyLockedValueExists => (CONSTRAINT, F::LOCKED_VALUE_EXISTS),
            FlagOp::SetKeyLockedValueNotExists => {
                (CONSTRAINT.union(F::LOCKED_VALUE_EXISTS), F::EMPTY)
            }
            FlagOp::DelNeedCheckExists => (F::NEED_CHECK_EXISTS, F::EMPTY),
            FlagOp::SetPrewriteOnly => (F::EMPTY, F::PREWRITE_ONLY),
            FlagOp::SetIgnoredIn2PC => (F::EMPTY, F::IGNORED_IN_2PC),
            FlagOp::SetReadable => (F::EMPTY, F::READABLE),
            FlagOp::SetNewlyInserted => (F::EMPTY, F::NEWLY_INSERTED),
            FlagOp::SetAssertExist => (ASSERT, F::ASSERT_EXIST),
            FlagOp::SetAssertNotExist => (ASSERT, F::ASSERT_NOT_EXIST),
            FlagOp::SetAssertUnknown => (F::EMPTY, ASSERT),
            FlagOp::SetAssertNone => (ASSERT, F::EMPTY),
            FlagOp::SetNeedConstraintCheckInPrewrite => (F::EMPTY, CONSTRAINT),
            FlagOp::DelNeedConstraintCheckInPrewrite => (CONSTRAINT, F::EMPTY),
            FlagOp::SetPreviousPresumeKeyNotExists => (F::EMPTY, F::PREVIOUS_PRESUME_NOT_EXISTS),
            FlagOp::SetKeyLockedInShareMode => (F::EMPTY, F::LOCKED_IN_SHARE_MODE),
            FlagOp::SetKeyLockedInExclusiveMode => (F::LOCKED_IN_SHARE_MODE, F::EMPTY),
        }
    }
}

const NAMES: [(KeyFlags, &str); 14] = [
    (KeyFlags::PRESUME_NOT_EXISTS, "PresumeNotExists"),
    (KeyFlags::LOCKED, "Locked"),
    (KeyFlags::NEED_LOCKED, "NeedLocked"),
    (KeyFlags::LOCKED_VALUE_EXISTS, "LockedValueExists"),
    (KeyFlags::NEED_CHECK_EXISTS, "NeedCheckExists"),
    (KeyFlags::PREWRITE_ONLY, "PrewriteOnly"),
    (KeyFlags::IGNORED_IN_2PC, "IgnoredIn2PC"),
    (KeyFlags::READABLE, "Readable"),
    (KeyFlags::NEWLY_INSERTED, "NewlyInserted"),
    (KeyFlags::ASSERT_EXIST, "AssertExist"),
    (KeyFlags::ASSERT_NOT_EXIST, "AssertNotExist"),
    (
        KeyFlags::NEED_CONSTRAINT_CHECK_IN_PREWRITE,
        "NeedConstraintCheckInPrewrite",
    ),
    (
        KeyFlags::PREVIOUS_PRESUME_NOT_EXISTS,
        "PreviousPresumeNotExists",
    ),
    (KeyFlags::LOCKED_IN_SHARE_MODE, "LockedInShareMode"),
];

#[cfg(test)]
pub(super) const ALL_OPS: [FlagOp; 22] = [
    FlagOp::SetPresumeKeyNotExists,
    FlagOp::DelPresumeKeyNotExists,
    FlagOp::SetKeyLocked,
    FlagOp::DelKeyLocked,
    FlagOp::SetNeedLocked,
    FlagOp::DelNeedLocked,
    FlagOp::SetKeyLockedValueExists,
    FlagOp::SetKeyLockedValueNotExists,
    FlagOp::DelNeedCheckExists,
    FlagOp::SetPrewriteOnly,
    FlagOp::SetIgnoredIn2PC,
    FlagOp::SetReadable,
    FlagOp::SetNewlyInserted,
    FlagOp::SetAssertExist,
    FlagOp::SetAssertNotExist,
    FlagOp::SetAssertUnknown,
    FlagOp::SetAssertNone,
    FlagOp::SetNeedConstraintCheckInPrewrite,
    FlagOp::DelNeedConstraintCheckInPrewrite,
    FlagOp::SetPreviousPresumeKeyNotExists,
    FlagOp::SetKeyLockedInShareMode,
    FlagOp::SetKeyLockedInExclusiveMode,
];

#[cfg(test)]
mod tests {
    use super::FlagOp::*;
    use super::*;
    use quickcheck::quickcheck;

    /// Each operation on no flags and on all flags, as bits.
    #[test]
    fn every_operation_sets_and_clears_exactly_its_bits() {
        let table: [(FlagOp, u16, u16); 22] = [
            (SetPresumeKeyNotExists, 0b1_0001, 0),
            (DelPresumeKeyNotExists, 0, 0b1_0001),
            (SetKeyLocked, 1 << 1, 0),
            (DelKeyLocked, 0, 1 << 1),
            (SetNeedLocked, 1 << 2, 0),
            (DelNeedLocked, 0, 1 << 2),
            (SetKeyLockedValueExists, 1 << 3, 1 << 11),
            (SetKeyLockedValueNotExists, 0, 1 << 3 | 1 << 11),
            (DelNeedCheckExists, 0, 1 << 4),
            (SetPrewriteOnly, 1 << 5, 0),
            (SetIgnoredIn2PC, 1 << 6, 0),
            (SetReadable, 1 << 7, 0),
            (SetNewlyInserted, 1 << 8, 0),
            (SetAssertExist, 1 << 9, 1 << 10),
            (SetAssertNotExist, 1 << 10, 1 << 9),
            (SetAssertUnknown, 1 << 9 | 1 << 10, 0),
            (SetAssertNone, 0, 1 << 9 | 1 << 10),
            (SetNeedConstraintCheckInPrewrite, 1 << 11, 0),
            (DelNeedConstraintCheckInPrewrite, 0, 1 << 11),
            (SetPreviousPresumeKeyNotExists, 1 << 12, 0),
            (SetKeyLockedInShareMode, 1 << 13, 0),
            (SetKeyLockedInExclusiveMode, 0, 1 << 13),
        ];
        assert_eq!(table.map(|(op, ..)| op), ALL_OPS);
        for (op, set, cleared) in table {
            assert_eq!(KeyFlags::EMPTY.apply(&[op]).bits(), set, "{op:?} on none");
            let all = KeyFlags::from_bits(u16::MAX);
            assert_eq!(
                all.apply(&[op]).bits(),
                0x3FFF & !cleared,
                "{op:?} on every flag"
            );
        }
    }

    #[test]
    fn four_flags_are_persistent() {
        let all = KeyFlags::from_bits(u16::MAX);
        assert_eq!(all.persistent().bits(), 1 << 1 | 1 << 3 | 1 << 11 | 1 << 13);
    }

    #[test]
    fn derived_reads() {
        let table: [(&[FlagOp], bool, Assertion, bool, bool); 9] = [
            (&[], false, Assertion::None, false, false),
            (&[SetAssertExist], false, Assertion::Exists, false, false),
            (
                &[SetAssertNotExist],
                false,
                Assertion::NotExists,
                false,
                false,
            ),
            (&[SetAssertUnknown], false, Assertion::Unknown, false, false),
            (
                &[SetAssertUnknown, SetAssertNone],
                false,
                Assertion::None,
                false,
                false,
            ),
            (
                &[SetPresumeKeyNotExists],
                true,
                Assertion::None,
                false,
                false,
            ),
            // What a finished statement presumed is not taken back.
            (
                &[
                    SetPresumeKeyNotExists,
                    SetPreviousPresumeKeyNotExists,
                    DelPresumeKeyNotExists,
                ],
                true,
                Assertion::None,
                false,
                false,
            ),
            (
                &[SetKeyLockedInShareMode],
                false,
                Assertion::None,
                false,
                false,
            ),
            (
                &[SetKeyLocked, SetKeyLockedInShareMode],
                false,
                Assertion::None,
                true,
                true,
            ),
        ];
        for (ops, presumes, assertion, locked, shared) in table {
            let flags = KeyFlags::EMPTY.apply(ops);
            assert_eq!(flags.presumes_not_exists(), presumes, "{ops:?}");
            assert_eq!(flags.assertion(), assertion, "{ops:?}");
            assert_eq!(
                flags.has_assertion(),
                assertion != Assertion::None,
                "{ops:?}"
            );
            assert_eq!(flags.is_locked(), locked, "{ops:?}");
            assert_eq!(flags.is_locked_in_share_mode(), shared, "{ops:?}");
        }
    }

    #[test]
    fn apply_folds_at_compile_time_and_prints_names() {
        const LOCK: KeyFlags = KeyFlags::EMPTY.apply(&[SetKeyLocked, SetKeyLockedValueExists]);
        assert_eq!(format!("{LOCK:?}"), "{Locked, LockedValueExists}");
        assert_eq!(format!("{:?}", KeyFlags::EMPTY), "{}");
    }

    quickcheck! {
        fn operations_are_idempotent_and_ordered(bits: u16, choice: Vec<usize>) -> bool {
            let ops: Vec<FlagOp> = choice.iter().map(|at| ALL_OPS[at % ALL_OPS.len()]).collect();
            let flags = KeyFlags::from_bits(bits);
            let twice: Vec<FlagOp> = ops.iter().flat_map(|op| [*op, *op]).collect();
            let one_by_one = ops.iter().fold(flags, |flags, op| flags.apply(&[*op]));
            flags.apply(&ops) == flags.apply(&twice) && flags.apply(&ops) == one_by_one
        }
    }
}
