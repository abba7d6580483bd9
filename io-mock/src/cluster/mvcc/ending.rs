//! Ending a transaction on one key: commit, rollback, and what happens when the lock is not there.

use super::changes::Work;
use super::error::MvccError;
use super::lock::{KeyLock, Lock, LockKind, SharedLocks};
use super::reader::{CommitRecord, Overlapped};
use super::write_record::{WriteKind, WriteRecord};
use crate::cluster::key::Key;
#[cfg(feature = "mutations")]
use crate::mutation::{self, Mutation};

/// What a missing lock turned out to mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The transaction committed.
    Committed(u64),
    /// It was rolled back before.
    RolledBack,
    /// It is rolled back now.
    NowRolledBack,
    /// It may still be running; nothing was done.
    NothingDone,
}

/// What to do when neither a lock nor a record of the transaction is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMissing {
    /// Leave a mark that later rollbacks may collapse.
    Rollback,
    /// Leave a mark that stays.
    ProtectedRollback,
    /// Say so.
    Fail,
}

/// Commits one key. `secondary` says that the client believes the primary is committed, so that a
/// missing lock is worth a closer look.
pub fn commit(
    work: &mut Work<'_>,
    key: &Key,
    commit_ts: u64,
    secondary: bool,
) -> Result<(), MvccError> {
    let start_ts = work.start_ts;
    let (lock, rest) = match work.current_lock(key)? {
        #[cfg(feature = "mutations")]
        Some(KeyLock::Exclusive(lock)) if mutation::is(Mutation::CommitAnyLock) => (lock, None),
        Some(KeyLock::Exclusive(lock)) if lock.start_ts == start_ts => (lock, None),
        Some(KeyLock::Shared(mut shared)) => match shared.members.remove(&start_ts) {
            Some(lock) => (lock, Some(shared)),
            None => return commit_without_lock(work, key, commit_ts, secondary),
        },
        Some(KeyLock::Exclusive(_)) | None => {
            return commit_without_lock(work, key, commit_ts, secondary);
        }
    };
    #[cfg(feature = "mutations")]
    let commit_ts_floor = match mutation::is(Mutation::CommitBelowPush) {
        true => 0,
        false => lock.min_commit_ts,
    };
    #[cfg(not(feature = "mutations"))]
    let commit_ts_floor = lock.min_commit_ts;
    if commit_ts < commit_ts_floor {
        // Only the primary may be pushed; on another key it is worth a closer look.
        let mvcc = (!key.is_user(&lock.primary)).then(|| super::debug::info(&work.reader, key));
        return Err(MvccError::CommitTsExpired {
            start_ts,
            commit_ts,
            key: key.to_user(),
            min_commit_ts: lock.min_commit_ts,
            mvcc: mvcc.map(Box::new),
        });
    }
    let kind = match lock.kind {
        LockKind::Put => WriteKind::Put,
        LockKind::Delete => WriteKind::Delete,
        LockKind::Lock => WriteKind::Lock,
        // A lock request that came late; the transaction did not need it.
        LockKind::Pessimistic => {
            release(work, key, &lock, rest, 0);
            return Ok(());
        }
    };
    let overlapped = lock.rollback_ts.contains(&commit_ts);
    let write = WriteRecord {
        overlapped_rollback: overlapped,
        txn_source: lock.txn_source,
        last_change: lock.last_change,
        ..WriteRecord::new(kind, start_ts, lock.short_value.clone())
    };
    work.changes.put_write(key.clone(), commit_ts, write);
    release(work, key, &lock, rest, commit_ts);
    Ok(())
}

fn release(work: &mut Work<'_>, key: &Key, lock: &Lock, rest: Option<SharedLocks>, commit_ts: u64) {
    match rest {
        Some(rest) => work
            .changes
            .put_remaining(key.clone(), rest, work.start_ts, commit_ts),
        None => work.unlock(key.clone(), commit_ts, lock.for_update_ts != 0),
    }
}

fn commit_without_lock(
    work: &Work<'_>,
    key: &Key,
    commit_ts: u64,
    secondary: bool,
) -> Result<(), MvccError> {
    if let CommitRecord::Single { write, .. } = work.reader.commit_record(key, work.start_ts)?
        && write.kind != WriteKind::Rollback
    {
        return Ok(());
    }
    Err(MvccError::TxnLockNotFound {
        start_ts: work.start_ts,
        commit_ts,
        key: key.to_user(),
        mvcc: secondary.then(|| Box::new(super::debug::info(&work.reader, key))),
    })
}

/// Rolls one key back. With `current_ts` a lock that is still alive is an error; a protected
/// rollback leaves a mark that stays.
pub fn cleanup(
    work: &mut Work<'_>,
    key: &Key,
    current_ts: u64,
    protect: bool,
) -> Result<(), MvccError> {
    let alive = |lock: &Lock| current_ts != 0 && !lock.is_expired(current_ts);
    match work.current_lock(key)? {
        Some(KeyLock::Exclusive(lock)) if lock.start_ts == work.start_ts => {
            if alive(&lock) {
                return Err(MvccError::KeyIsLocked(Box::new(lock.info(key.to_user()))));
            }
            rollback_lock(work, key, &lock, None, !protect)
        }
        Some(KeyLock::Shared(mut shared)) if shared.members.contains_key(&work.start_ts) => {
            if shared.members.get(&work.start_ts).is_some_and(alive) {
                return Err(MvccError::KeyIsLocked(Box::new(shared.info(key.to_user()))));
            }
            match shared.members.remove(&work.start_ts) {
                Some(lock) => rollback_lock(work, key, &lock, Some(shared), !protect),
                None => Ok(()),
            }
        }
        other => {
            let foreign = other.and_then(KeyLock::exclusive);
            let action = if protect {
                IfMissing::ProtectedRollback
            } else {
                IfMissing::Rollback
            };
            match resolve_missing(work, key, foreign, action, false)? {
                Missing::Committed(commit_ts) => Err(MvccError::Committed {
                    start_ts: work.start_ts,
                    commit_ts,
                    key: key.to_user(),
                }),
                Missing::RolledBack | Missing::NowRolledBack | Missing::NothingDone => Ok(()),
            }
        }
    }
}

/// Removes this transaction's lock and leaves a rollback mark. `rest` holds the other members if
/// the lock was shared.
pub fn rollback_lock(
    work: &mut Work<'_>,
    key: &Key,
    lock: &Lock,
    rest: Option<SharedLocks>,
    collapse: bool,
) -> Result<(), MvccError> {
    let overlapped = match work.reader.commit_record(key, work.start_ts)? {
        CommitRecord::None { overlapped } => overlapped,
        CommitRecord::Single { write, commit_ts } if write.kind != WriteKind::Rollback => {
            return Err(MvccError::crash(format_args!(
                "a lock of transaction {} stands beside its commit record at {commit_ts}",
                work.start_ts
            )));
        }
        CommitRecord::Single { .. } | CommitRecord::OverlappedRollback => {
            release(work, key, lock, rest, 0);
            return Ok(());
        }
    };
    if lock.kind == LockKind::Put && lock.short_value.is_none() {
        work.changes.delete_value(key.clone(), lock.start_ts);
    }
    // The primary decides the transaction, and a pipelined transaction may flush the key again:
    // both need a mark that stays.
    let protected = rest.is_none() && (key.is_user(&lock.primary) || lock.generation > 0);
    put_rollback(work, key, protected, overlapped);
    if collapse {
        collapse_previous(work, key)?;
    }
    release(work, key, lock, rest, 0);
    Ok(())
}

/// Finds out what became of a transaction whose lock is missing, and ends it if the action says
/// so. `foreign` is another transaction's lock on the key.
pub fn resolve_missing(
    work: &mut Work<'_>,
    key: &Key,
    foreign: Option<Lock>,
    action: IfMissing,
    resolving_pessimistic: bool,
) -> Result<Missing, MvccError> {
    let overlapped = match work.reader.commit_record(key, work.start_ts)? {
        CommitRecord::Single { write, .. } if write.kind == WriteKind::Rollback => {
            return Ok(Missing::RolledBack);
        }
        CommitRecord::Single { commit_ts, .. } => return Ok(Missing::Committed(commit_ts)),
        CommitRecord::OverlappedRollback => return Ok(Missing::RolledBack),
        CommitRecord::None { overlapped } => overlapped,
    };
    if action == IfMissing::Fail {
        return Err(MvccError::TxnNotFound {
            start_ts: work.start_ts,
            key: key.to_user(),
        });
    }
    if resolving_pessimistic {
        return Ok(Missing::NothingDone);
    }
    let protected = action == IfMissing::ProtectedRollback;
    if !protected {
        collapse_previous(work, key)?;
    }
    if protected
        && overlapped.is_none()
        && let Some(foreign) = foreign
    {
        remember_rollback(work, key, foreign);
    }
    put_rollback(work, key, protected, overlapped);
    Ok(Missing::NowRolledBack)
}

/// Leaves a rollback mark, on the record in the way if there is one.
pub fn put_rollback(
    work: &mut Work<'_>,
    key: &Key,
    protected: bool,
    overlapped: Option<Overlapped>,
) {
    #[cfg(feature = "mutations")]
    if mutation::is(Mutation::ForgetRollbacks) {
        return;
    }
    let write = match overlapped {
        Some(Overlapped { write, gc_fence }) if protected => WriteRecord {
            overlapped_rollback: true,
            gc_fence: Some(gc_fence),
            ..write
        },
        // Another transaction's commit record must not be lost for a mark that may be.
        Some(_) => return,
        None => WriteRecord::rollback(work.start_ts, protected),
    };
    work.changes.put_write(key.clone(), work.start_ts, write);
}

/// Deletes the rollback mark directly below, if it may be deleted.
pub fn collapse_previous(work: &mut Work<'_>, key: &Key) -> Result<(), MvccError> {
    if let Some((commit_ts, write)) = work.reader.seek_write(key, work.start_ts)?
        && write.kind == WriteKind::Rollback
        && !write.is_protected()
    {
        work.changes.delete_write(key.clone(), commit_ts);
    }
    Ok(())
}

/// A calculated commit version could land on a protected rollback: the lock remembers it.
pub fn remember_rollback(work: &mut Work<'_>, key: &Key, mut foreign: Lock) {
    if !foreign.async_commit || work.start_ts < foreign.min_commit_ts {
        return;
    }
    foreign.rollback_ts.push(work.start_ts);
    work.changes.put_lock(key.clone(), foreign);
}
