//! Where a two-phase commit stands, and what follows from each thing that can happen.
//!
//! A table without I/O: the committer feeds it events and does what it answers. What a later phase
//! knows does not exist in an earlier one.
//!
//! ```text
//!  Prewriting ──all prewritten──► Dating ──timestamp──► CommittingPrimary ──ok──► Done
//!      │                            │  ▲                    │    │
//!      │ a prewrite failed          │  └── commit ts expired┘    │ answer lost
//!      ▼                            ▼                           ▼
//!    Failed  ◄───────────────── no timestamp              Undetermined
//! ```
//!
//! (client-go: `twoPhaseCommitter.execute`, `setUndeterminedErr`)

use crate::error::{Error, Undetermined};
use crate::key::Key;
use crate::time::{LOGICAL_BITS, Timestamp};
use crate::txn::key_error::KeyFailure;

/// By how much the lowest commit timestamp that TiKV demands may lie above the one it refused.
/// More is no clock's doing.
const MAX_COMMIT_TS_GAP: u64 = 3_600_000 << LOGICAL_BITS;

/// The state of one commit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    /// Locks are being written.
    Prewriting,
    /// Every key is locked; a commit timestamp is being fetched.
    Dating,
    /// The primary is being committed: the moment of decision.
    CommittingPrimary {
        /// The timestamp in the request that is under way.
        commit_ts: Timestamp,
    },
    /// Nothing more can change.
    Ended,
}

/// What can happen to a commit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// All locks are written.
    Prewritten,
    /// Some lock could not be written. Without async commit that is a definite failure whatever
    /// answers were lost: nothing commits without the primary's commit.
    PrewriteFailed(Error),
    /// A timestamp has come.
    Dated(Timestamp),
    /// No timestamp, or no permission to use it.
    NotDated(Error),
    /// The primary is committed.
    PrimaryCommitted,
    /// The primary's store refused: a definite answer.
    PrimaryRefused(KeyFailure),
    /// The request to commit the primary ended without an answer.
    PrimaryUnanswered {
        /// Why.
        error: Error,
        /// Whether a store may have executed it.
        may_be_applied: bool,
    },
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Fetch a commit timestamp.
    FetchTimestamp,
    /// Commit the primary with it.
    CommitPrimary(Timestamp),
    /// Tell the caller that it is committed, and commit the other keys behind its back.
    Finish(Timestamp),
    /// Tell the caller, and remove the locks behind its back.
    RollBack(Error),
    /// Tell the caller that nobody knows, and touch nothing.
    LeaveUndetermined(Error),
}

/// An event that can't happen in a phase.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refused;

impl Phase {
    /// Goes on by one event. `primary` and `start_ts` are those of the transaction.
    pub(crate) fn on(
        &mut self,
        event: Event,
        primary: &Key,
        start_ts: Timestamp,
    ) -> Result<Step, Refused> {
        let (next, step) = match (&*self, event) {
            (Phase::Prewriting, Event::Prewritten) => (Phase::Dating, Step::FetchTimestamp),
            (Phase::Prewriting, Event::PrewriteFailed(error))
            | (Phase::Dating, Event::NotDated(error)) => (Phase::Ended, Step::RollBack(error)),
            (Phase::Dating, Event::Dated(commit_ts)) => (
                Phase::CommittingPrimary { commit_ts },
                Step::CommitPrimary(commit_ts),
            ),
            (Phase::CommittingPrimary { commit_ts }, Event::PrimaryCommitted) => {
                (Phase::Ended, Step::Finish(*commit_ts))
            }
            (Phase::CommittingPrimary { .. }, Event::PrimaryRefused(failure)) => {
                refused(failure, primary)
            }
            (
                Phase::CommittingPrimary { commit_ts },
                Event::PrimaryUnanswered {
                    error,
                    may_be_applied,
                },
            ) => (
                Phase::Ended,
                unanswered(start_ts, *commit_ts, error, may_be_applied),
            ),
            _ => return Err(Refused),
        };
        *self = next;
        Ok(step)
    }
}

fn refused(failure: KeyFailure, primary: &Key) -> (Phase, Step) {
    match failure {
        KeyFailure::CommitTsExpired {
            key,
            attempted,
            min_commit_ts,
        } if key == *primary
            && min_commit_ts.as_u64().saturating_sub(attempted.as_u64()) <= MAX_COMMIT_TS_GAP =>
        {
            (Phase::Dating, Step::FetchTimestamp)
        }
        other => (Phase::Ended, Step::RollBack(other.into_error())),
    }
}

fn unanswered(
    start_ts: Timestamp,
    commit_ts: Timestamp,
    error: Error,
    may_be_applied: bool,
) -> Step {
    if may_be_applied {
        Step::LeaveUndetermined(Error::Undetermined(Box::new(Undetermined::new(
            start_ts, commit_ts, error,
        ))))
    } else {
        Step::RollBack(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_u64(10);
    const TS: Timestamp = Timestamp::from_u64(20);

    fn committing() -> Phase {
        Phase::CommittingPrimary { commit_ts: TS }
    }

    fn expired(key: &str, min_commit_ts: u64) -> Event {
        Event::PrimaryRefused(KeyFailure::CommitTsExpired {
            key: key.into(),
            attempted: TS,
            min_commit_ts: min_commit_ts.into(),
        })
    }

    fn undetermined(cause: Error) -> Error {
        Error::Undetermined(Box::new(Undetermined::new(START, TS, cause)))
    }

    #[test]
    fn the_table_of_transitions() {
        let lost = |may_be_applied| Event::PrimaryUnanswered {
            error: Error::Closed,
            may_be_applied,
        };
        let restart = || Error::Restart {
            message: "lock not found".into(),
        };
        for (phase, event, next, step) in [
            (
                Phase::Prewriting,
                Event::Prewritten,
                Phase::Dating,
                Step::FetchTimestamp,
            ),
            (
                Phase::Prewriting,
                Event::PrewriteFailed(Error::Closed),
                Phase::Ended,
                Step::RollBack(Error::Closed),
            ),
            (
                Phase::Dating,
                Event::Dated(TS),
                committing(),
                Step::CommitPrimary(TS),
            ),
            (
                Phase::Dating,
                Event::NotDated(Error::Closed),
                Phase::Ended,
                Step::RollBack(Error::Closed),
            ),
            (
                committing(),
                Event::PrimaryCommitted,
                Phase::Ended,
                Step::Finish(TS),
            ),
            (
                committing(),
                expired("p", 30),
                Phase::Dating,
                Step::FetchTimestamp,
            ),
            (
                committing(),
                Event::PrimaryRefused(KeyFailure::Fatal(restart())),
                Phase::Ended,
                Step::RollBack(restart()),
            ),
            (
                committing(),
                lost(true),
                Phase::Ended,
                Step::LeaveUndetermined(undetermined(Error::Closed)),
            ),
            (
                committing(),
                lost(false),
                Phase::Ended,
                Step::RollBack(Error::Closed),
            ),
        ] {
            let mut at = phase.clone();
            let got = at.on(event.clone(), &"p".into(), START);
            assert_eq!((got, at), (Ok(step), next), "{phase:?} {event:?}");
        }
    }

    #[test]
    fn a_demand_that_no_honest_server_makes_ends_the_commit() {
        for event in [
            expired("another", 30),
            expired("p", TS.as_u64() + MAX_COMMIT_TS_GAP + 1),
        ] {
            let step = committing().on(event.clone(), &"p".into(), START);
            assert!(
                matches!(step, Ok(Step::RollBack(Error::Protocol { .. }))),
                "{event:?} {step:?}"
            );
        }
    }

    #[test]
    fn what_cannot_happen_is_refused_and_changes_nothing() {
        for (phase, event) in [
            (Phase::Prewriting, Event::PrimaryCommitted),
            (Phase::Dating, Event::Prewritten),
            (committing(), Event::Dated(TS)),
            (Phase::Ended, Event::PrimaryCommitted),
        ] {
            let mut at = phase.clone();
            assert_eq!(at.on(event, &"p".into(), START), Err(Refused));
            assert_eq!(at, phase);
        }
    }
}
