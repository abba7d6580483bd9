//! What TiKV says is wrong with a key, sorted into the one thing each error means.
//!
//! A server may fill several fields of one `KeyError` (a conflict comes with a text, too); the
//! order of the questions here decides. (client-go: `ExtractKeyErr`)

use tikv_proto::kvrpcpb::{self, write_conflict::Reason};

use super::lock::Lock;
use crate::error::{AssertionFailed, ConflictReason, Deadlock, Error, WriteConflict};
use crate::key::Key;
use crate::time::Timestamp;

/// One key's failure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum KeyFailure {
    /// Another transaction holds a lock, or several share one.
    Locked(Vec<Lock>),
    /// A key that must not exist does.
    AlreadyExists(Key),
    /// A commit must take a higher timestamp.
    CommitTsExpired {
        key: Key,
        attempted: Timestamp,
        min_commit_ts: Timestamp,
    },
    /// What was asked about is not the primary of its transaction.
    PrimaryMismatch(Option<Box<Lock>>),
    /// A transaction was not found, and its absence was not to be made final.
    TxnNotFound,
    /// Nothing but to give up.
    Fatal(Error),
}

impl From<kvrpcpb::KeyError> for KeyFailure {
    fn from(error: kvrpcpb::KeyError) -> Self {
        if let Some(info) = error.locked {
            return KeyFailure::Locked(Lock::expand(*info));
        }
        if let Some(exists) = error.already_exist {
            return KeyFailure::AlreadyExists(exists.key.into());
        }
        if let Some(expired) = error.commit_ts_expired {
            return KeyFailure::CommitTsExpired {
                key: expired.key.into(),
                attempted: expired.attempted_commit_ts.into(),
                min_commit_ts: expired.min_commit_ts.into(),
            };
        }
        if let Some(mismatch) = error.primary_mismatch {
            return KeyFailure::PrimaryMismatch(
                mismatch.lock_info.map(|info| Box::new(Lock::from(*info))),
            );
        }
        if error.txn_not_found.is_some() {
            return KeyFailure::TxnNotFound;
        }
        KeyFailure::Fatal(fatal(error))
    }
}

impl KeyFailure {
    /// The failure as an error, where nothing can be done about it.
    pub(crate) fn into_error(self) -> Error {
        match self {
            KeyFailure::Fatal(error) => error,
            KeyFailure::AlreadyExists(key) => Error::KeyExists { key },
            KeyFailure::Locked(locks) => Error::protocol(format!(
                "a lock where none can be: {:?}",
                locks.first().map(|lock| &lock.key)
            )),
            KeyFailure::CommitTsExpired {
                key,
                attempted,
                min_commit_ts,
            } => Error::protocol(format!(
                "key {key} must be committed above {min_commit_ts}, not at {attempted}"
            )),
            KeyFailure::PrimaryMismatch(_) => {
                Error::protocol("the lock's primary is not its transaction's")
            }
            KeyFailure::TxnNotFound => Error::protocol("the lock's transaction was not found"),
        }
    }
}

fn fatal(error: kvrpcpb::KeyError) -> Error {
    if let Some(conflict) = error.conflict {
        let reason = reason(conflict.reason());
        return Error::WriteConflict(Box::new(WriteConflict {
            key: conflict.key.into(),
            primary: conflict.primary.into(),
            start_ts: conflict.start_ts.into(),
            conflict_start_ts: conflict.conflict_ts.into(),
            conflict_commit_ts: conflict.conflict_commit_ts.into(),
            reason,
        }));
    }
    if let Some(deadlock) = error.deadlock {
        let cycle = deadlock
            .wait_chain
            .iter()
            .map(|wait| (wait.txn.into(), wait.wait_for_txn.into()))
            .collect();
        let lock_ts = deadlock.lock_ts.into();
        return Error::Deadlock(Box::new(Deadlock::new(
            deadlock.lock_key.into(),
            lock_ts,
            cycle,
        )));
    }
    if !error.retryable.is_empty() {
        return Error::Restart {
            message: error.retryable.into(),
        };
    }
    if let Some(failed) = error.assertion_failed {
        let asserted_exists = failed.assertion() == kvrpcpb::Assertion::Exist;
        let key = failed.key.into();
        return Error::AssertionFailed(Box::new(AssertionFailed {
            existing_start_ts: failed.existing_start_ts.into(),
            existing_commit_ts: failed.existing_commit_ts.into(),
            ..AssertionFailed::new(key, failed.start_ts.into(), asserted_exists)
        }));
    }
    if !error.abort.is_empty() {
        return Error::Aborted {
            message: error.abort.into(),
        };
    }
    if let Some(too_large) = error.commit_ts_too_large {
        let message = format!("commit timestamp {} is too large", too_large.commit_ts);
        return Error::Aborted {
            message: message.into(),
        };
    }
    Error::protocol(format!("a key error that says nothing known: {error:?}"))
}

fn reason(reason: Reason) -> ConflictReason {
    match reason {
        Reason::Unknown | Reason::NotLockedKeyConflict => ConflictReason::Unknown,
        Reason::Optimistic => ConflictReason::Optimistic,
        Reason::PessimisticRetry => ConflictReason::PessimisticRetry,
        Reason::SelfRolledBack => ConflictReason::SelfRolledBack,
        Reason::RcCheckTs => ConflictReason::ReadCommittedCheck,
        Reason::LazyUniquenessCheck => ConflictReason::LazyUniquenessCheck,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tikv_proto::kvrpcpb::{KeyError, LockInfo};

    #[test]
    fn the_telling_field_wins_over_the_text_beside_it() {
        let text = || "debug text".to_string();
        let conflict = KeyError {
            conflict: Some(kvrpcpb::WriteConflict {
                key: "k".into(),
                reason: Reason::Optimistic.into(),
                ..Default::default()
            }),
            retryable: text(),
            ..Default::default()
        };
        let KeyFailure::Fatal(Error::WriteConflict(conflict)) = conflict.into() else {
            panic!("no conflict");
        };
        assert_eq!(conflict.reason, ConflictReason::Optimistic);

        let lost = KeyError {
            retryable: text(),
            txn_lock_not_found: Some(Default::default()),
            ..Default::default()
        };
        assert_eq!(
            KeyFailure::from(lost),
            KeyFailure::Fatal(Error::Restart {
                message: "debug text".into()
            })
        );
        let refused = KeyError {
            abort: text(),
            ..Default::default()
        };
        assert!(matches!(
            KeyFailure::from(refused).into_error(),
            Error::Aborted { .. }
        ));
        let nothing = KeyFailure::from(KeyError::default());
        assert!(matches!(nothing.into_error(), Error::Protocol { .. }));
    }

    #[test]
    fn a_shared_lock_is_the_locks_of_its_members() {
        let member = |txn| LockInfo {
            lock_version: txn,
            ..Default::default()
        };
        let shared = KeyError {
            locked: Some(Box::new(LockInfo {
                key: "k".into(),
                shared_lock_infos: vec![member(5), member(6)],
                ..Default::default()
            })),
            ..Default::default()
        };
        let KeyFailure::Locked(locks) = shared.into() else {
            panic!("no locks")
        };
        let found: Vec<_> = locks
            .iter()
            .map(|lock| (lock.key.clone(), lock.txn))
            .collect();
        assert_eq!(found, [("k".into(), 5.into()), ("k".into(), 6.into())]);
    }
}
