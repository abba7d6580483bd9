//! Checkers: pure functions that hold what clients saw ([`History`]) against what happened
//! ([`Truth`]).
//!
//! | checker | what must hold |
//! |---|---|
//! | [`outcome::atomicity`] | a transaction is there with all its writes at one timestamp, or not at all |
//! | [`outcome::no_lost_commit`] | what was acknowledged is there, at the timestamp that was told |
//! | [`outcome::no_false_failure`] | what was reported as failed is not there |
//! | [`outcome::inserts_were_new`] | what was inserted was not there |
//! | [`isolation::snapshot`] | a read sees exactly the commits at or below its timestamp, and its own writes |
//! | [`isolation::first_committer_wins`] | two transactions that write one key do not overlap |
//! | [`isolation::real_time`] | who begins or commits after a commit was acknowledged is above it |
//! | [`append::dependencies`] | no cycle of dependencies but write skew, told from what clients saw alone |
//! | [`locks::none_left`] | no lock outlives its time once the system is quiet and somebody has read |
//! | [`queue::in_order`] | every queue gives what was put into it, once and in that order |
//! | [`sum::constant`] | every snapshot of a closed economy holds the same total |
//! | [`raw::current`] | a raw read returns a value that was current while it ran |
//! | [`raw::no_lost_write`] | an acknowledged raw write was made while its call ran |
//! | [`raw::linearizable`] | raw calls on one key could have happened one after the other |
//!
//! Allowed, and reported as a mark only: write skew. Snapshot isolation does not exclude it.

pub mod append;
pub mod isolation;
pub mod linearizable;
pub mod locks;
pub mod outcome;
pub mod queue;
pub mod raw;
pub mod skew;
pub mod sum;
mod truth;

use std::fmt;

use tikv_core::Value;

pub use self::truth::{LeftLock, RawWrite, Truth, Version, What};
use crate::history::History;

/// Something that must not be.
///
/// Any error becomes one, so that an application under simulation can use `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule was broken.
    pub rule: &'static str,
    /// How.
    pub detail: String,
}

impl Violation {
    /// A rule was broken.
    pub fn new(rule: &'static str, detail: impl Into<String>) -> Self {
        Violation {
            rule,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.detail)
    }
}

impl<E: std::error::Error> From<E> for Violation {
    fn from(error: E) -> Self {
        Violation::new("the application failed", error.to_string())
    }
}

/// A value as it stands in a violation: long ones by their beginning.
fn show(value: Option<&Value>) -> String {
    const SHOWN: usize = 24;
    match value {
        None => "nothing".to_owned(),
        Some(value) if value.len() <= SHOWN => format!("{value:?}"),
        Some(value) => {
            let start = Value::from(value.as_bytes().slice(..SHOWN));
            format!("{start:?}… ({} bytes)", value.len())
        }
    }
}

/// The result of a checker.
pub type Verdict = Result<(), Violation>;

/// Everything that must hold of transactions at any time.
///
/// # Errors
///
/// The first violation.
pub fn transactions(history: &History, truth: &Truth) -> Verdict {
    outcome::atomicity(history, truth)?;
    outcome::no_lost_commit(history, truth)?;
    outcome::no_false_failure(history, truth)?;
    outcome::inserts_were_new(history, truth)?;
    isolation::snapshot(history, truth)?;
    isolation::first_committer_wins(history, truth)?;
    isolation::real_time(history)
}

/// Everything that must hold of raw calls.
///
/// # Errors
///
/// The first violation.
pub fn raw_calls(history: &History, truth: &Truth) -> Verdict {
    raw::no_lost_write(history, truth)?;
    raw::current(history, truth)?;
    raw::linearizable(history, truth)
}
