//! Deliberate mistakes in the protocol, to prove that the simulation notices them.
//!
//! Only there with the feature `mutations`, which no release build has. What is set holds for the
//! current thread, so simulations that run side by side do not disturb each other.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mutation {
    /// Commits all other keys before the primary.
    CommitSecondariesFirst,
    /// Reports a plain failure when the answer to the primary's commit was lost.
    FailAfterLostCommit,
    /// Looks past every lock as if its transaction did not matter.
    SkipLockResolution,
    /// Goes on with a region whose epoch a server refused.
    IgnoreEpochChange,
}

impl Mutation {
    /// Every mistake.
    pub const ALL: [Mutation; 4] = [
        Mutation::CommitSecondariesFirst,
        Mutation::FailAfterLostCommit,
        Mutation::SkipLockResolution,
        Mutation::IgnoreEpochChange,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Mutation::CommitSecondariesFirst => "commit-secondaries-first",
            Mutation::FailAfterLostCommit => "fail-after-lost-commit",
            Mutation::SkipLockResolution => "skip-lock-resolution",
            Mutation::IgnoreEpochChange => "ignore-epoch-change",
        }
    }
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
            .into_iter()
            .find(|mutation| mutation.name() == name)
            .ok_or_else(|| format!("no mutation is called {name:?}"))
    }
}

thread_local! {
    static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Makes this mistake from now on, or none.
pub fn set(mutation: Option<Mutation>) {
    ACTIVE.set(mutation);
}

/// Whether this mistake is to be made.
pub(crate) fn is(mutation: Mutation) -> bool {
    ACTIVE.get() == Some(mutation)
}
