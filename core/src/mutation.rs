//! Deliberate mistakes in the protocol, to prove that the simulation notices them.
//!
//! Only there with the feature `mutations`, which no release build has. What is set holds for the
//! current thread, so simulations that run side by side do not disturb each other.

use std::fmt;
use std::str::FromStr;

/// Defines `Mutation`, an enum of mistakes, and `set` and `is`, which tell the current thread's.
#[doc(hidden)]
#[macro_export]
macro_rules! mutations {
    ($( $(#[doc = $doc:literal])* $mutation:ident = $name:literal, )*) => {
        /// One mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Mutation {
            $( $(#[doc = $doc])* $mutation, )*
        }

        impl Mutation {
            /// Every mistake.
            pub const ALL: &[Mutation] = &[$( Mutation::$mutation, )*];

            /// The name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Mutation::$mutation => $name, )*
                }
            }

            /// What is broken.
            pub fn what(self) -> &'static str {
                match self {
                    $( Mutation::$mutation => concat!($( $doc ),*).trim(), )*
                }
            }
        }

        thread_local! {
            static ACTIVE: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
        }

        /// Makes this mistake from now on, or none.
        pub fn set(mutation: Option<Mutation>) {
            ACTIVE.set(mutation);
        }

        /// Whether this mistake is to be made.
        pub(crate) fn is(mutation: Mutation) -> bool {
            ACTIVE.get() == Some(mutation)
        }
    };
}

mutations! {
    /// Commits all other keys before the primary.
    CommitSecondariesFirst = "commit-secondaries-first",
    /// Reports a plain failure when the answer to the primary's commit was lost.
    FailAfterLostCommit = "fail-after-lost-commit",
    /// Reports success when the answer to the primary's commit was lost.
    SucceedAfterLostCommit = "succeed-after-lost-commit",
    /// Reports success once all keys are locked, and commits behind the caller's back.
    AcknowledgeBeforeCommit = "acknowledge-before-commit",
    /// Commits right above the start instead of at a new timestamp.
    CommitWithoutTimestamp = "commit-without-timestamp",
    /// Commits the other keys right above the primary's timestamp.
    SecondariesAtAnotherTime = "secondaries-at-another-time",
    /// Takes a prewrite that met a newer commit for done.
    IgnoreWriteConflict = "ignore-write-conflict",
    /// Takes an insertion of a key that is there for done.
    IgnoreKeyExists = "ignore-key-exists",
    /// Writes an inserted key whether it is there or not.
    ForgetInsert = "forget-insert",
    /// Leaves deletions out of a commit.
    ForgetDeletes = "forget-deletes",
    /// Leaves keys that were only locked out of a commit.
    ForgetLockedKeys = "forget-locked-keys",
    /// Looks past every lock as if its transaction did not matter.
    SkipLockResolution = "skip-lock-resolution",
    /// Reads past the lock of a transaction that has committed before the read.
    PassCommittedLocks = "pass-committed-locks",
    /// Reads what a transaction has committed after the read.
    ReadTheFuture = "read-the-future",
    /// Takes a transaction whose lock seems too old for rolled back, without asking.
    ExpiredIsRolledBack = "expired-is-rolled-back",
    /// Rolls back what is left of a committed transaction.
    RollBackCommitted = "roll-back-committed",
    /// Leaves the locks that a read has met.
    NeverCleanUp = "never-clean-up",
    /// Takes the cached timestamp for the beginning of a transaction.
    BeginInThePast = "begin-in-the-past",
    /// Does not see the transaction's own writes.
    BlindToOwnWrites = "blind-to-own-writes",
    /// Goes on with the next region after one page of a scan.
    OnePageARegion = "one-page-a-region",
    /// Begins a page of a reverse scan with the last row of the one before.
    RepeatRowsInReverse = "repeat-rows-in-reverse",
    /// Leaves locked rows out of a scan.
    SkipLockedRows = "skip-locked-rows",
    /// Leaves keys whose region has moved out of a batch of reads.
    ForgetMovedKeys = "forget-moved-keys",
    /// Goes on with a region whose epoch a server refused.
    IgnoreEpochChange = "ignore-epoch-change",
    /// Puts regions into its cache that are older than what it knows.
    BelieveOlderRegions = "believe-older-regions",
    /// Asks the wrong store again where PD would know better.
    ForgetMovedStores = "forget-moved-stores",
    /// Takes a command that a leader called stale for one that was not done.
    StaleIsRefused = "stale-is-refused",
    /// Rolls back an expired transaction that commits by its locks without asking for them.
    RollBackByPrimary = "roll-back-by-primary",
    /// Waits only for a moment before it tries again, for ever.
    NeverBackOff = "never-back-off",
    /// Reports a raw write as done that failed.
    RawWriteAlwaysDone = "raw-write-always-done",
    /// Leaves raw pairs whose region has moved out of a batch.
    ForgetMovedPairs = "forget-moved-pairs",
    /// Sends a raw compare-and-swap again that may have been executed.
    RepeatSwaps = "repeat-swaps",
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Mutation::ALL
            .iter()
            .copied()
            .find(|mutation| mutation.name() == name)
            .ok_or_else(|| format!("no mutation is called {name:?}"))
    }
}
