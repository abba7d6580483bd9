//! Commands that ask how a transaction stands: CheckTxnStatus, CheckSecondaryLocks, TxnHeartBeat.

use tikv_proto::kvrpcpb::{
    CheckSecondaryLocksRequest, CheckSecondaryLocksResponse, CheckTxnStatusRequest,
    CheckTxnStatusResponse, ExecDetailsV2, TxnHeartBeatRequest, TxnHeartBeatResponse,
};

use super::Cluster;
use super::key::Key;
use super::mvcc::error::MvccError;
use super::mvcc::lock::KeyLock;
use super::mvcc::status::{
    SecondaryStatus, Status, StatusQuery, check_secondary, check_txn_status,
};
use super::proposal::making_room;
use super::region::StoreId;
use super::txn_end::raise_checked;

impl Cluster {
    /// Asks the primary how its transaction stands, and ends the transaction if it is over.
    pub fn kv_check_txn_status(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: CheckTxnStatusRequest,
    ) -> CheckTxnStatusResponse {
        let context = making_room(request.context.clone());
        let key = Key::from_user(&request.primary_key);
        let query = StatusQuery {
            caller_start_ts: request.caller_start_ts,
            current_ts: request.current_ts,
            rollback_if_not_exist: request.rollback_if_not_exist,
            force_sync_commit: request.force_sync_commit,
            resolving_pessimistic: request.resolving_pessimistic_lock,
            verify_is_primary: request.verify_is_primary,
        };
        let others = [request.current_ts, request.caller_start_ts];
        let others = others.into_iter().filter(|&ts| ts != u64::MAX).max();
        let newest = request.lock_ts.max(others.unwrap_or_default());
        let result = self.txn_write(now_ms, store, &context, request.lock_ts, |work, _| {
            raise_checked(work, &context, newest)?;
            Ok(check_txn_status(work, &key, &query)?)
        });
        let details = Some(Box::<ExecDetailsV2>::default());
        match result {
            Ok(Status::Committed(commit_ts)) => {
                self.remember_commit(now_ms, store, request.lock_ts, commit_ts);
                CheckTxnStatusResponse {
                    commit_version: commit_ts,
                    exec_details_v2: details,
                    ..CheckTxnStatusResponse::default()
                }
            }
            Ok(Status::Open(action, lock)) => CheckTxnStatusResponse {
                lock_ttl: lock.as_ref().map_or(0, |lock| lock.lock_ttl),
                action: action.into(),
                lock_info: lock,
                exec_details_v2: details,
                ..CheckTxnStatusResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = failure.split();
                CheckTxnStatusResponse {
                    exec_details_v2: error.is_some().then(Box::default),
                    region_error,
                    error,
                    ..CheckTxnStatusResponse::default()
                }
            }
        }
    }

    /// Asks secondaries of an async-commit transaction whether their locks are there. One that is
    /// not ends the transaction, unless it is committed.
    pub fn kv_check_secondary_locks(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: CheckSecondaryLocksRequest,
    ) -> CheckSecondaryLocksResponse {
        let context = making_room(request.context.clone());
        let start_ts = request.start_version;
        let result = self.txn_write(now_ms, store, &context, start_ts, |work, _| {
            raise_checked(work, &context, start_ts)?;
            let mut locks = Vec::with_capacity(request.keys.len());
            for key in &request.keys {
                match check_secondary(work, &Key::from_user(key))? {
                    SecondaryStatus::Locked(info) => locks.push(info),
                    SecondaryStatus::Committed(commit_ts) => return Ok((Vec::new(), commit_ts)),
                    SecondaryStatus::RolledBack => return Ok((Vec::new(), 0)),
                }
            }
            Ok((locks, 0))
        });
        match result {
            Ok((locks, commit_ts)) => {
                if commit_ts != 0 {
                    self.remember_commit(now_ms, store, start_ts, commit_ts);
                }
                CheckSecondaryLocksResponse {
                    locks,
                    commit_ts,
                    exec_details_v2: Some(Box::default()),
                    ..CheckSecondaryLocksResponse::default()
                }
            }
            Err(failure) => {
                let (region_error, error) = failure.split();
                CheckSecondaryLocksResponse {
                    exec_details_v2: error.is_some().then(Box::default),
                    region_error,
                    error,
                    ..CheckSecondaryLocksResponse::default()
                }
            }
        }
    }

    /// Prolongs the life of a transaction's lock; never shortens it.
    pub fn kv_txn_heart_beat(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: TxnHeartBeatRequest,
    ) -> TxnHeartBeatResponse {
        let context = making_room(request.context.clone());
        let start_ts = request.start_version;
        let key = Key::from_user(&request.primary_lock);
        let result = self.txn_write(now_ms, store, &context, start_ts, |work, _| {
            let mut lock = match work.reader.lock(&key)? {
                Some(KeyLock::Exclusive(lock)) if lock.start_ts == start_ts => lock,
                // A key with shared locks is never a primary.
                Some(KeyLock::Shared(shared)) if shared.members.contains_key(&start_ts) => {
                    return Err(
                        MvccError::PrimaryMismatch(Box::new(shared.info(key.to_user()))).into(),
                    );
                }
                Some(KeyLock::Exclusive(_) | KeyLock::Shared(_)) | None => {
                    return Err(MvccError::TxnNotFound {
                        start_ts,
                        key: key.to_user(),
                    }
                    .into());
                }
            };
            let mut changed = false;
            if lock.ttl < request.advise_lock_ttl {
                lock.ttl = request.advise_lock_ttl;
                changed = true;
            }
            // Only a pipelined transaction lets readers push it through its heartbeat.
            if !lock.async_commit
                && lock.generation > 0
                && lock.min_commit_ts < request.min_commit_ts
            {
                lock.min_commit_ts = request.min_commit_ts;
                changed = true;
            }
            let ttl = lock.ttl;
            if changed {
                work.changes.put_lock(key.clone(), lock);
            }
            Ok(ttl)
        });
        match result {
            Ok(lock_ttl) => TxnHeartBeatResponse {
                lock_ttl,
                exec_details_v2: Some(Box::default()),
                ..TxnHeartBeatResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = failure.split();
                TxnHeartBeatResponse {
                    exec_details_v2: error.is_some().then(Box::default),
                    region_error,
                    error,
                    ..TxnHeartBeatResponse::default()
                }
            }
        }
    }
}
