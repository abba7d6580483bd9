//! Locks of other transactions: whose they are, and how to get rid of them.
//!
//! A lock's primary says how its transaction stands; an asynchronous commit is told by all its
//! locks together. What is asked here with rollback in mind may only be made final when the lock's
//! time is over.

use tikv_core::{KeyRange, Timestamp};
use tikv_proto::kvrpcpb::{self, KeyError, LockInfo, Op};

use super::{Stop, Task};

/// What came of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// It is gone.
    Gone,
    /// Its transaction is alive.
    Stays,
}

/// How a transaction stands.
enum Status {
    Alive,
    /// An asynchronous commit whose time is over: its primary, with the other keys.
    Asynchronous(Box<LockInfo>),
    /// Committed then; rolled back if zero.
    Ended(u64),
    /// The lock's primary belongs to nobody: only a pessimistic lock can be left over so.
    Stale,
}

impl Task {
    /// Gets rid of a lock that was met, if its transaction is over.
    pub(super) async fn resolve(&self, lock: &LockInfo, caller: Timestamp) -> Result<Lock, Stop> {
        if let Some(member) = lock.shared_lock_infos.first() {
            return Err(Stop::Absurd(format!(
                "nobody shares locks here: {member:?}"
            )));
        }
        let commit_version = match self.status(lock, caller, false).await? {
            Status::Alive => return Ok(Lock::Stays),
            Status::Ended(commit_version) => commit_version,
            Status::Stale => return self.take_away(lock).await,
            Status::Asynchronous(primary) => match self.ask_all(&primary).await? {
                Some(commit_version) => {
                    let mut keys = primary.secondaries.clone();
                    keys.push(lock.primary_lock.clone());
                    self.end_keys(lock.lock_version, commit_version, keys)
                        .await?;
                    return Ok(Lock::Gone);
                }
                None => match self.status(lock, caller, true).await? {
                    Status::Ended(commit_version) => commit_version,
                    _ => return Ok(Lock::Stays),
                },
            },
        };
        if lock.lock_type() == Op::PessimisticLock {
            return self.take_away(lock).await;
        }
        let keys = vec![lock.key.clone()];
        self.end_keys(lock.lock_version, commit_version, keys)
            .await?;
        Ok(Lock::Gone)
    }

    async fn status(
        &self,
        lock: &LockInfo,
        caller: Timestamp,
        force_sync_commit: bool,
    ) -> Result<Status, Stop> {
        let pessimistic = lock.lock_type() == Op::PessimisticLock;
        let mut rollback_if_not_exist = false;
        loop {
            let now = self.timestamp().await?;
            let expired = |ttl: u64| {
                Timestamp::from_u64(lock.lock_version).physical_ms() + ttl < now.physical_ms()
            };
            let request = kvrpcpb::CheckTxnStatusRequest {
                primary_key: lock.primary_lock.clone(),
                lock_ts: lock.lock_version,
                caller_start_ts: caller.as_u64(),
                current_ts: now.as_u64(),
                rollback_if_not_exist,
                force_sync_commit,
                resolving_pessimistic_lock: pessimistic,
                verify_is_primary: true,
                ..Default::default()
            };
            let answer = self.call(&lock.primary_lock, request).await?;
            match answer.error {
                None => {}
                Some(error) if error.txn_not_found.is_some() => {
                    if expired(lock.lock_ttl) {
                        rollback_if_not_exist = true;
                        continue;
                    }
                    return Ok(Status::Alive);
                }
                Some(error) if error.primary_mismatch.is_some() && pessimistic => {
                    return Ok(Status::Stale);
                }
                Some(error) => return Err(Stop::Absurd(format!("{error:?} of {lock:?}"))),
            }
            return Ok(match (answer.lock_ttl, answer.lock_info) {
                (0, _) => Status::Ended(answer.commit_version),
                (ttl, Some(primary))
                    if primary.use_async_commit && !force_sync_commit && expired(ttl) =>
                {
                    Status::Asynchronous(primary)
                }
                (_, _) => Status::Alive,
            });
        }
    }

    /// How all locks of an asynchronous commit say that it ended; `None` if one of them is not
    /// asynchronous, and the primary alone decides.
    async fn ask_all(&self, primary: &LockInfo) -> Result<Option<u64>, Stop> {
        let mut left = primary.secondaries.clone();
        let mut commit_version = primary.min_commit_ts;
        while !left.is_empty() {
            let (route, keys) = self.first_region(&mut left, |key| key).await?;
            let request = kvrpcpb::CheckSecondaryLocksRequest {
                keys: keys.clone(),
                start_version: primary.lock_version,
                ..Default::default()
            };
            let Ok(answer) = self.send(&route, request, false).await? else {
                left.extend(keys);
                continue;
            };
            if let Some(error) = answer.error {
                return Err(Stop::Absurd(format!("{error:?} of {primary:?}")));
            }
            if answer.locks.len() < keys.len() {
                return Ok(Some(answer.commit_ts));
            }
            if answer.locks.iter().any(|lock| !lock.use_async_commit) {
                return Ok(None);
            }
            let least = answer.locks.iter().map(|lock| lock.min_commit_ts).max();
            commit_version = commit_version.max(least.unwrap_or(0));
        }
        Ok(Some(commit_version))
    }

    /// Ends keys as their transaction ended.
    pub(super) async fn end_keys(
        &self,
        start_version: u64,
        commit_version: u64,
        keys: Vec<bytes::Bytes>,
    ) -> Result<(), Stop> {
        let request = |keys| kvrpcpb::ResolveLockRequest {
            start_version,
            commit_version,
            keys,
            ..Default::default()
        };
        // What has been committed long ago may have left no trace.
        let gone = |error: &KeyError| error.txn_lock_not_found.is_some();
        self.for_parts(keys, request, |answer| {
            match answer.error.filter(|error| !gone(error)) {
                None => Ok(()),
                Some(error) => Err(Stop::Absurd(format!(
                    "{error:?}: {start_version} was to end at {commit_version}"
                ))),
            }
        })
        .await
    }

    /// Takes a pessimistic lock away.
    async fn take_away(&self, lock: &LockInfo) -> Result<Lock, Stop> {
        let request = kvrpcpb::PessimisticRollbackRequest {
            start_version: lock.lock_version,
            for_update_ts: lock.lock_for_update_ts,
            keys: vec![lock.key.clone()],
            ..Default::default()
        };
        let answer = self.call(&lock.key, request).await?;
        match answer.errors.first() {
            None => Ok(Lock::Gone),
            Some(error) => Err(Stop::Absurd(format!("{error:?}"))),
        }
    }

    /// Looks for locks of all kinds in a range and gets rid of those whose transactions are over;
    /// how many there were.
    pub(super) async fn sweep_locks(&self, range: &KeyRange) -> Result<usize, Stop> {
        let max_version = self.timestamp().await?.as_u64();
        let scan = |start: &bytes::Bytes, end: &bytes::Bytes| kvrpcpb::ScanLockRequest {
            max_version,
            start_key: start.clone(),
            end_key: end.clone(),
            ..Default::default()
        };
        let mut met = 0;
        for answer in self.sweep(range, scan).await? {
            // A lock that is about to be written is met as an error.
            met += usize::from(answer.error.is_some());
            for lock in answer.locks {
                met += 1;
                self.resolve(&lock, Timestamp::ZERO).await?;
            }
        }
        Ok(met)
    }
}
