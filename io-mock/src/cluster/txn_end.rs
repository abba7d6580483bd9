//! Commands that end transactions: Commit, Cleanup, BatchRollback, PessimisticRollback and
//! ResolveLock.

use std::collections::BTreeMap;

use bytes::Bytes;
use tikv_proto::kvrpcpb::{
    BatchRollbackRequest, BatchRollbackResponse, CleanupRequest, CleanupResponse, CommitRequest,
    CommitResponse, CommitRole, Context, PessimisticRollbackRequest, PessimisticRollbackResponse,
    RequestOrigin, ResolveLockRequest, ResolveLockResponse,
};

use super::Cluster;
use super::failure::Failure;
use super::key::Key;
use super::mvcc::changes::Work;
use super::mvcc::ending::{cleanup, commit};
use super::mvcc::error::MvccError;
use super::mvcc::lock::{KeyLock, Lock};
use super::proposal::{making_room, system};
use super::region::StoreId;

/// How many locks of a region one entry of the log resolves.
const RESOLVED_AT_ONCE: usize = 256;

impl Cluster {
    /// Commits the keys of one region.
    pub fn kv_commit(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: CommitRequest,
    ) -> CommitResponse {
        let context = making_room(request.context.clone());
        let (start_ts, commit_ts) = (request.start_version, request.commit_version);
        let secondary = request.commit_role() == CommitRole::Secondary;
        let result = self.txn_write(now_ms, store, &context, start_ts, |work, _| {
            if commit_ts <= start_ts {
                return Err(MvccError::invalid_txn_tso(start_ts, commit_ts).into());
            }
            for key in &request.keys {
                commit(work, &Key::from_user(key), commit_ts, secondary)?;
            }
            Ok(())
        });
        match result {
            Ok(()) => {
                self.remember_commit(now_ms, store, start_ts, commit_ts);
                CommitResponse {
                    commit_version: commit_ts,
                    exec_details_v2: Some(Box::default()),
                    ..CommitResponse::default()
                }
            }
            Err(failure) => {
                let (region_error, error) = failure.split();
                CommitResponse {
                    exec_details_v2: error.is_some().then(Box::default),
                    region_error,
                    error,
                    ..CommitResponse::default()
                }
            }
        }
    }

    /// Rolls one key back if its lock has expired or is missing.
    pub fn kv_cleanup(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: CleanupRequest,
    ) -> CleanupResponse {
        let context = making_room(request.context.clone());
        let start_ts = request.start_version;
        let key = Key::from_user(&request.key);
        let result = self.txn_write(now_ms, store, &context, start_ts, |work, _| {
            raise_checked(work, &context, start_ts)?;
            cleanup(work, &key, request.current_ts, true)?;
            Ok(())
        });
        match result {
            Ok(()) => CleanupResponse::default(),
            // Committed is an answer here, not a failure.
            Err(Failure::Key(MvccError::Committed { commit_ts, .. })) => CleanupResponse {
                commit_version: commit_ts,
                ..CleanupResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = failure.split();
                CleanupResponse {
                    region_error,
                    error,
                    ..CleanupResponse::default()
                }
            }
        }
    }

    /// Rolls the keys of one region back, alive or not.
    pub fn kv_batch_rollback(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: BatchRollbackRequest,
    ) -> BatchRollbackResponse {
        let context = making_room(request.context.clone());
        let result = self.txn_write(now_ms, store, &context, request.start_version, |work, _| {
            for key in &request.keys {
                cleanup(work, &Key::from_user(key), 0, false)?;
            }
            Ok(())
        });
        let (region_error, error) = split(result);
        BatchRollbackResponse {
            exec_details_v2: region_error.is_none().then(Box::default),
            region_error,
            error,
        }
    }

    /// Removes a transaction's pessimistic locks, of the given keys or of the whole region.
    pub fn kv_pessimistic_rollback(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: PessimisticRollbackRequest,
    ) -> PessimisticRollbackResponse {
        let context = making_room(request.context.clone());
        let start_ts = request.start_version;
        let goes = |lock: &Lock| {
            lock.start_ts == start_ts
                && lock.is_pessimistic()
                && lock.for_update_ts <= request.for_update_ts
        };
        let result = self.txn_write(now_ms, store, &context, start_ts, |work, _| {
            let keys: Vec<Key> = if request.keys.is_empty() {
                let all = Bytes::new();
                let (locks, _) = work.reader.scan_locks(&all, &all, 0, goes);
                locks.into_iter().map(|(key, _)| key).collect()
            } else {
                request.keys.iter().map(|key| Key::from_user(key)).collect()
            };
            for key in keys {
                match work.reader.lock(&key)? {
                    Some(KeyLock::Exclusive(lock)) if goes(&lock) => work.unlock(key, 0, true),
                    Some(KeyLock::Shared(mut shared))
                        if shared.members.get(&start_ts).is_some_and(goes) =>
                    {
                        shared.members.remove(&start_ts);
                        work.changes.put_remaining(key, shared, start_ts, 0);
                    }
                    Some(KeyLock::Exclusive(_) | KeyLock::Shared(_)) | None => {}
                }
            }
            Ok(())
        });
        let (region_error, error) = split(result);
        PessimisticRollbackResponse {
            exec_details_v2: region_error.is_none().then(Box::default),
            region_error,
            errors: error.map(|error| *error).into_iter().collect(),
        }
    }

    /// Ends transactions whose fate is known, on the given keys or on all stored locks of the
    /// region.
    pub fn kv_resolve_lock(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: ResolveLockRequest,
    ) -> ResolveLockResponse {
        let result = if request.keys.is_empty() {
            self.resolve_region(now_ms, store, &request)
        } else {
            self.resolve_keys(now_ms, store, &request)
        };
        let (region_error, error) = split(result);
        ResolveLockResponse {
            exec_details_v2: region_error.is_none().then(Box::default),
            region_error,
            error,
        }
    }

    fn resolve_keys(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &ResolveLockRequest,
    ) -> Result<(), Failure> {
        let context = system(request.context.clone());
        let (start_ts, commit_ts) = (request.start_version, request.commit_version);
        if start_ts == 0 {
            return Err(MvccError::crash("keys to resolve without a transaction").into());
        }
        self.txn_write(now_ms, store, &context, start_ts, |work, _| {
            for key in &request.keys {
                let key = Key::from_user(key);
                if commit_ts == 0 {
                    cleanup(work, &key, 0, false)?;
                } else {
                    commit(work, &key, commit_ts, false)?;
                }
            }
            Ok(())
        })?;
        if commit_ts != 0 {
            self.remember_commit(now_ms, store, start_ts, commit_ts);
        }
        Ok(())
    }

    fn resolve_region(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &ResolveLockRequest,
    ) -> Result<(), Failure> {
        let context = system(request.context.clone());
        let fates: BTreeMap<u64, u64> = if request.start_version > 0 {
            [(request.start_version, request.commit_version)].into()
        } else {
            request
                .txn_infos
                .iter()
                .map(|info| (info.txn, info.status))
                .collect()
        };
        let mut from = Bytes::new();
        loop {
            let (committed, next) = self.txn_write(now_ms, store, &context, 0, |work, _| {
                resolve_batch(work, &fates, &from)
            })?;
            for (start_ts, commit_ts) in committed {
                self.remember_commit(now_ms, store, start_ts, commit_ts);
            }
            match next {
                // What is lost is found again for ever.
                Some(next) if !self.loses_proposals(store) => from = next,
                Some(_) | None => return Ok(()),
            }
        }
    }
}

/// Transactions that have committed, with their commit versions.
type Committed = Vec<(u64, u64)>;

/// Ends the transactions of some locks from an encoded key on; those known to be committed, and
/// where the next locks begin.
fn resolve_batch(
    work: &mut Work<'_>,
    fates: &BTreeMap<u64, u64>,
    from: &Bytes,
) -> Result<(Committed, Option<Bytes>), Failure> {
    let wanted = |lock: &Lock| fates.contains_key(&lock.start_ts);
    let open = Bytes::new();
    let (locks, more) = work
        .reader
        .scan_stored_locks(from, &open, RESOLVED_AT_ONCE, wanted);
    // The last key may have shared locks that were cut off: it comes again, once, without these.
    let next = locks.last().map(|(key, _)| {
        let mut next = key.encoded().to_vec();
        if *from == next {
            next.push(0);
        }
        Bytes::from(next)
    });
    let mut committed = Vec::new();
    for (key, lock) in locks {
        let members: Vec<Lock> = match lock {
            KeyLock::Exclusive(lock) => vec![lock],
            KeyLock::Shared(shared) => shared.listed_members().cloned().collect(),
        };
        for lock in members {
            let Some(&commit_ts) = fates.get(&lock.start_ts) else {
                continue;
            };
            if resolve_one(work, &key, &lock, commit_ts)? {
                committed.push((lock.start_ts, commit_ts));
            }
        }
    }
    Ok((committed, next.filter(|_| more)))
}

/// Ends one lock found by a scan; `true` if its transaction is known to be committed.
fn resolve_one(
    work: &mut Work<'_>,
    key: &Key,
    lock: &Lock,
    commit_ts: u64,
) -> Result<bool, MvccError> {
    work.start_ts = lock.start_ts;
    if commit_ts == 0 {
        cleanup(work, key, 0, false)?;
        return Ok(false);
    }
    if commit_ts <= lock.start_ts {
        return Err(MvccError::invalid_txn_tso(lock.start_ts, commit_ts));
    }
    match commit(work, key, commit_ts, false) {
        Ok(()) => Ok(true),
        // Left over from a lock request that the transaction did not need.
        Err(MvccError::TxnLockNotFound { .. }) if lock.is_pessimistic() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Raises the store's greatest timestamp for a request that must not run ahead of PD, unless it
/// comes from where that is not checked.
pub(super) fn raise_checked(
    work: &mut Work<'_>,
    context: &Context,
    ts: u64,
) -> Result<(), MvccError> {
    if context.request_origin() == RequestOrigin::TiDb {
        work.max_ts.raise(ts)
    } else {
        work.max_ts.raise_exact(ts)
    }
}

/// Both kinds of error of a reply that carries nothing else.
fn split(
    result: Result<(), Failure>,
) -> (
    Option<Box<tikv_proto::errorpb::Error>>,
    Option<Box<tikv_proto::kvrpcpb::KeyError>>,
) {
    match result {
        Ok(()) => (None, None),
        Err(failure) => failure.split(),
    }
}

#[cfg(test)]
mod tests;
