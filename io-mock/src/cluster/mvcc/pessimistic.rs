//! Locking one key pessimistically, and reading it on the way.
//!
//! Waiting for a lock in the way is not here: the caller gets [`MvccError::KeyIsLocked`].

use bytes::Bytes;
use tikv_proto::kvrpcpb::write_conflict::Reason;

use super::changes::Work;
use super::error::MvccError;
use super::last_change::LastChange;
use super::lock::{KeyLock, Lock, LockKind, SharedLocks};
use super::prewrite::check_absent;
use super::write_record::{WriteKind, WriteRecord};
use crate::cluster::key::Key;
#[cfg(feature = "mutations")]
use crate::mutation::{self, Mutation};

/// What a lock request asks, for each of its keys.
#[derive(Clone, Debug)]
pub struct LockRequest {
    /// User key of the primary.
    pub primary: Bytes,
    /// Time to live of the lock.
    pub ttl: u64,
    /// The version the transaction has read at.
    pub for_update_ts: u64,
    /// What the lock is to carry.
    pub min_commit_ts: u64,
    /// Return the value.
    pub need_value: bool,
    /// Return whether there is a value.
    pub need_existence: bool,
    /// Lock nothing where there is no value.
    pub only_if_exists: bool,
    /// Lock even if there is a newer version than the transaction has read.
    pub allow_conflict: bool,
}

/// A granted lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// The value, or an empty one that says it exists; `None` if there is none or it was not asked.
    pub value: Option<Bytes>,
    /// The newer version it was granted at.
    pub conflict_ts: Option<u64>,
}

/// Locks one key.
pub fn acquire(
    work: &mut Work<'_>,
    request: &LockRequest,
    key: &Key,
    should_not_exist: bool,
    shared_request: bool,
) -> Result<Granted, MvccError> {
    if request.only_if_exists && !request.need_value {
        return Err(MvccError::mvcc(format_args!(
            "LockIfExistsFailed {{ start_ts: TimeStamp({}), key: {:?} }}",
            work.start_ts,
            key.to_user().to_vec()
        )));
    }
    if should_not_exist || request.need_value || request.need_existence {
        work.max_ts.raise(request.for_update_ts)?;
    }
    let mut shared = None;
    match work.reader.lock(key)? {
        #[cfg(feature = "mutations")]
        Some(KeyLock::Exclusive(lock))
            if lock.start_ts != work.start_ts
                && lock.is_pessimistic()
                && mutation::is(Mutation::GrantTwice) => {}
        Some(KeyLock::Exclusive(lock)) if shared_request || lock.start_ts != work.start_ts => {
            return Err(MvccError::KeyIsLocked(Box::new(lock.info(key.to_user()))));
        }
        Some(KeyLock::Exclusive(lock)) => {
            return relock(work, request, key, should_not_exist, &lock);
        }
        Some(KeyLock::Shared(held)) if !shared_request => {
            if held.shrink_only {
                return Err(MvccError::KeyIsLocked(Box::new(held.info(key.to_user()))));
            }
            return Err(MvccError::NotShrinkOnly(held));
        }
        Some(KeyLock::Shared(held)) => {
            if held.members.contains_key(&work.start_ts) {
                return Ok(rejoin(work, request, key, held));
            }
            if held.shrink_only {
                return Err(MvccError::KeyIsLocked(Box::new(held.info(key.to_user()))));
            }
            shared = Some(held);
        }
        None => {}
    }
    let newest = work
        .reader
        .seek_write(key, u64::MAX)?
        .map(|(ts, write)| (ts, write.clone()));
    let mut granted = Granted::default();
    let mut for_update_ts = request.for_update_ts;
    let mut conflict = None;
    let above = newest.as_ref().map(|(ts, write)| (*ts, write));
    let last_change = LastChange::above(&work.reader, key, above, work.start_ts)?;
    if let Some((commit_ts, write)) = newest {
        #[cfg(feature = "mutations")]
        let is_newer = commit_ts > for_update_ts && !mutation::is(Mutation::GrantOverNewer);
        #[cfg(not(feature = "mutations"))]
        let is_newer = commit_ts > for_update_ts;
        if is_newer {
            let error = conflict_error(work, request, key, commit_ts, &write);
            if !request.allow_conflict {
                return Err(error);
            }
            conflict = Some(error);
            granted.conflict_ts = Some(commit_ts);
            for_update_ts = commit_ts;
        }
        check_not_rolled_back(work, key, commit_ts, &write)?;
        if let Err(error) = check_absent(work, key, should_not_exist, commit_ts, &write) {
            return Err(match (&error, conflict) {
                (MvccError::AlreadyExist { .. }, Some(conflict)) => conflict,
                _ => error,
            });
        }
        if request.need_value || request.need_existence || conflict.is_some() {
            let load = request.need_value || conflict.is_some();
            granted.value = newest_value(work, key, commit_ts, &write, load)?;
        }
    }
    let lock = Lock {
        last_change,
        ..new_lock(work, request, for_update_ts, conflict.is_some())
    };
    if shared_request {
        let mut shared = shared.unwrap_or_default();
        shared.members.insert(work.start_ts, lock);
        work.changes.put_shared(key.clone(), shared);
    } else if !request.only_if_exists || granted.value.is_some() {
        work.changes.put_pessimistic(key.clone(), lock);
    } else if let Some(conflict) = conflict {
        return Err(conflict);
    }
    Ok(granted)
}

fn new_lock(work: &Work<'_>, request: &LockRequest, for_update_ts: u64, conflict: bool) -> Lock {
    Lock {
        for_update_ts,
        min_commit_ts: request.min_commit_ts,
        locked_with_conflict: conflict,
        ..Lock::new(
            LockKind::Pessimistic,
            request.primary.clone(),
            work.start_ts,
            request.ttl,
        )
    }
}

fn conflict_error(
    work: &Work<'_>,
    request: &LockRequest,
    key: &Key,
    commit_ts: u64,
    write: &WriteRecord,
) -> MvccError {
    MvccError::WriteConflict {
        start_ts: work.start_ts,
        conflict_start_ts: write.start_ts,
        conflict_commit_ts: commit_ts,
        key: key.to_user(),
        primary: request.primary.clone(),
        reason: Reason::PessimisticRetry,
    }
}

fn check_not_rolled_back(
    work: &Work<'_>,
    key: &Key,
    commit_ts: u64,
    write: &WriteRecord,
) -> Result<(), MvccError> {
    let rolled_back = if commit_ts > work.start_ts {
        work.reader
            .seek_write(key, work.start_ts)?
            .is_some_and(|(ts, older)| ts == work.start_ts && older.rolls_back_at())
    } else {
        commit_ts == work.start_ts && write.rolls_back_at()
    };
    if !rolled_back {
        return Ok(());
    }
    Err(MvccError::mvcc(format_args!(
        "PessimisticLockRolledBack {{ start_ts: TimeStamp({}), key: {:?} }}",
        work.start_ts,
        key.to_user().to_vec()
    )))
}

/// The value as of the newest record; empty when only its existence is wanted.
fn newest_value(
    work: &Work<'_>,
    key: &Key,
    commit_ts: u64,
    write: &WriteRecord,
    load: bool,
) -> Result<Option<Bytes>, MvccError> {
    let found = match write.kind {
        WriteKind::Put if write.passes_gc_fence(work.start_ts) => Some(write.clone()),
        WriteKind::Put | WriteKind::Delete => None,
        WriteKind::Lock | WriteKind::Rollback => match commit_ts.checked_sub(1) {
            Some(older) => work
                .reader
                .get_write(key, older, work.start_ts)?
                .map(|(_, write)| write.clone()),
            None => None,
        },
    };
    let Some(found) = found else { return Ok(None) };
    if load {
        work.reader.load_value(key, &found).map(Some)
    } else {
        Ok(Some(Bytes::new()))
    }
}

/// The key is locked by this transaction already. No newer version can be in the way, so none is
/// looked for.
fn relock(
    work: &mut Work<'_>,
    request: &LockRequest,
    key: &Key,
    should_not_exist: bool,
    lock: &Lock,
) -> Result<Granted, MvccError> {
    if !lock.is_pessimistic() {
        return Err(MvccError::lock_type_not_match(
            work.start_ts,
            &key.to_user(),
            false,
        ));
    }
    let raised = request.allow_conflict && request.for_update_ts < lock.for_update_ts;
    let for_update_ts = if raised {
        lock.for_update_ts
    } else {
        request.for_update_ts
    };
    let mut granted = Granted {
        conflict_ts: raised.then_some(for_update_ts),
        ..Granted::default()
    };
    let load = request.need_value || raised;
    if load || request.need_existence || should_not_exist {
        let found = work.reader.get_write(key, for_update_ts, work.start_ts)?;
        if let Some((commit_ts, write)) = found {
            let write = write.clone();
            if let Err(error) = check_absent(work, key, should_not_exist, commit_ts, &write) {
                let exists = matches!(error, MvccError::AlreadyExist { .. });
                if exists && commit_ts > request.for_update_ts {
                    return Err(conflict_error(work, request, key, commit_ts, &write));
                }
                return Err(error);
            }
            if load {
                granted.value = Some(work.reader.load_value(key, &write)?);
            } else if request.need_existence {
                granted.value = Some(Bytes::new());
            }
        }
    }
    if for_update_ts > lock.for_update_ts {
        let lock = Lock {
            last_change: lock.last_change,
            ..new_lock(work, request, for_update_ts, lock.locked_with_conflict)
        };
        work.changes.put_pessimistic(key.clone(), lock);
    }
    Ok(granted)
}

/// This transaction is a member already. Shared locks never return a value here.
fn rejoin(work: &mut Work<'_>, request: &LockRequest, key: &Key, mut held: SharedLocks) -> Granted {
    if let Some(member) = held.members.get(&work.start_ts)
        && request.for_update_ts > member.for_update_ts
    {
        let conflict = member.locked_with_conflict;
        let lock = Lock {
            last_change: member.last_change,
            ..new_lock(work, request, request.for_update_ts, conflict)
        };
        held.members.insert(work.start_ts, lock);
        work.changes.put_shared(key.clone(), held);
    }
    Granted::default()
}
