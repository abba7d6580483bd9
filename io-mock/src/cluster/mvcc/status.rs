//! Telling the state of a transaction from its primary or its secondaries, and ending it if it is
//! over.

use tikv_proto::kvrpcpb::{Action, LockInfo};

use super::changes::Work;
use super::ending::{
    IfMissing, Missing, collapse_previous, put_rollback, remember_rollback, resolve_missing,
    rollback_lock,
};
use super::error::MvccError;
use super::lock::{KeyLock, Lock};
use super::reader::{CommitRecord, Overlapped};
use super::write_record::WriteKind;
use crate::cluster::key::Key;

/// What a status check asks.
#[derive(Clone, Copy, Debug)]
pub struct StatusQuery {
    /// The reader in the way of which the lock stands; 0 for none.
    pub caller_start_ts: u64,
    /// Now.
    pub current_ts: u64,
    /// End the transaction if nothing is known of it.
    pub rollback_if_not_exist: bool,
    /// Treat an async-commit lock as a plain one.
    pub force_sync_commit: bool,
    /// The lock that led here is pessimistic.
    pub resolving_pessimistic: bool,
    /// The lock must name the key as its primary.
    pub verify_is_primary: bool,
}

/// The state of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// Committed at this version.
    Committed(u64),
    /// Not committed: what was done, and the lock if it is alive.
    Open(Action, Option<Box<LockInfo>>),
}

/// Checks the primary.
pub fn check_txn_status(
    work: &mut Work<'_>,
    key: &Key,
    query: &StatusQuery,
) -> Result<Status, MvccError> {
    match work.reader.lock(key)? {
        Some(KeyLock::Exclusive(lock)) if lock.start_ts == work.start_ts => {
            status_of_lock(work, key, lock, query)
        }
        // A key with shared locks is never a primary.
        Some(KeyLock::Shared(shared)) => Err(MvccError::PrimaryMismatch(Box::new(
            shared.info(key.to_user()),
        ))),
        other => {
            let foreign = other.and_then(KeyLock::exclusive);
            status_without_lock(work, key, foreign, query)
        }
    }
}

fn status_without_lock(
    work: &mut Work<'_>,
    key: &Key,
    foreign: Option<Lock>,
    query: &StatusQuery,
) -> Result<Status, MvccError> {
    let action = if query.rollback_if_not_exist {
        IfMissing::ProtectedRollback
    } else {
        IfMissing::Fail
    };
    let missing = resolve_missing(work, key, foreign, action, query.resolving_pessimistic)?;
    Ok(match missing {
        Missing::Committed(commit_ts) => Status::Committed(commit_ts),
        Missing::RolledBack => Status::Open(Action::NoAction, None),
        Missing::NowRolledBack => Status::Open(Action::LockNotExistRollback, None),
        Missing::NothingDone => Status::Open(Action::LockNotExistDoNothing, None),
    })
}

fn status_of_lock(
    work: &mut Work<'_>,
    key: &Key,
    mut lock: Lock,
    query: &StatusQuery,
) -> Result<Status, MvccError> {
    if query.verify_is_primary && !key.is_user(&lock.primary) {
        if query.resolving_pessimistic || !lock.is_pessimistic() {
            return Err(MvccError::PrimaryMismatch(Box::new(
                lock.info(key.to_user()),
            )));
        }
        // The lock that led here is prewritten, so its primary is right and this one is stale.
        let status = status_without_lock(work, key, None, query)?;
        work.unlock(key.clone(), 0, true);
        return Ok(status);
    }
    if lock.async_commit && !query.force_sync_commit {
        return Ok(alive(&lock, Action::NoAction));
    }
    let expired = lock.is_expired(query.current_ts);
    if lock.is_pessimistic() {
        if lock.locked_with_conflict
            && let Some(status) = recorded_status(work, key)?
        {
            work.unlock(key.clone(), 0, true);
            return Ok(status);
        }
        if expired && query.resolving_pessimistic {
            work.unlock(key.clone(), 0, true);
            return Ok(Status::Open(Action::TtlExpirePessimisticRollback, None));
        }
    }
    if expired {
        rollback_lock(work, key, &lock, None, true)?;
        return Ok(Status::Open(Action::TtlExpireRollback, None));
    }
    let caller = query.caller_start_ts;
    if lock.min_commit_ts != 0 && caller != u64::MAX && caller >= lock.min_commit_ts {
        lock.min_commit_ts = (caller + 1).max(query.current_ts);
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::ForgetPush) {
            return Ok(alive(&lock, Action::MinCommitTsPushed));
        }
        work.changes.put_lock(key.clone(), lock.clone());
    }
    let pushed = caller == u64::MAX || (caller != 0 && lock.min_commit_ts > caller);
    Ok(alive(
        &lock,
        if pushed {
            Action::MinCommitTsPushed
        } else {
            Action::NoAction
        },
    ))
}

fn alive(lock: &Lock, action: Action) -> Status {
    // The server fills the key of the answer with the lock's primary.
    Status::Open(action, Some(Box::new(lock.info(lock.primary.clone()))))
}

fn recorded_status(work: &Work<'_>, key: &Key) -> Result<Option<Status>, MvccError> {
    Ok(match work.reader.commit_record(key, work.start_ts)? {
        CommitRecord::Single { commit_ts, write } if write.kind != WriteKind::Rollback => {
            Some(Status::Committed(commit_ts))
        }
        CommitRecord::Single { .. } | CommitRecord::OverlappedRollback => {
            Some(Status::Open(Action::NoAction, None))
        }
        CommitRecord::None { .. } => None,
    })
}

/// The state of one secondary of an async-commit transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum SecondaryStatus {
    /// Its lock is there.
    Locked(LockInfo),
    /// The transaction committed at this version.
    Committed(u64),
    /// The transaction can never commit.
    RolledBack,
}

/// Checks one secondary and makes sure that a missing lock stays missing.
pub fn check_secondary(work: &mut Work<'_>, key: &Key) -> Result<SecondaryStatus, MvccError> {
    let mut foreign = None;
    match work.reader.lock(key)? {
        Some(KeyLock::Exclusive(lock)) if lock.start_ts == work.start_ts => {
            if !lock.is_pessimistic() {
                return Ok(SecondaryStatus::Locked(lock.info(key.to_user())));
            }
            work.unlock(key.clone(), 0, true);
            if !lock.locked_with_conflict {
                let overlapped = match work.reader.commit_record(key, work.start_ts)? {
                    CommitRecord::None { overlapped } => overlapped,
                    CommitRecord::Single { .. } | CommitRecord::OverlappedRollback => {
                        return Err(MvccError::crash(format_args!(
                            "a pessimistic lock of transaction {} stands beside its record",
                            work.start_ts
                        )));
                    }
                };
                return roll_secondary_back(work, key, None, overlapped);
            }
        }
        // Async commit never writes shared locks, so an own member counts as no lock.
        Some(KeyLock::Shared(_)) | None => {}
        Some(KeyLock::Exclusive(lock)) => foreign = Some(lock),
    }
    match work.reader.commit_record(key, work.start_ts)? {
        CommitRecord::Single { commit_ts, write } if write.kind != WriteKind::Rollback => {
            Ok(SecondaryStatus::Committed(commit_ts))
        }
        CommitRecord::Single { .. } | CommitRecord::OverlappedRollback => {
            Ok(SecondaryStatus::RolledBack)
        }
        CommitRecord::None { overlapped } => roll_secondary_back(work, key, foreign, overlapped),
    }
}

fn roll_secondary_back(
    work: &mut Work<'_>,
    key: &Key,
    foreign: Option<Lock>,
    overlapped: Option<Overlapped>,
) -> Result<SecondaryStatus, MvccError> {
    if let Some(foreign) = foreign {
        remember_rollback(work, key, foreign);
    }
    put_rollback(work, key, true, overlapped);
    collapse_previous(work, key)?;
    Ok(SecondaryStatus::RolledBack)
}
