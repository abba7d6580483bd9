//! Commands over ranges and for debugging: ScanLock, DeleteRange, UnsafeDestroyRange, the MVCC
//! look-ups and BroadcastTxnStatus.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{
    BroadcastTxnStatusRequest, BroadcastTxnStatusResponse, DeleteRangeRequest, DeleteRangeResponse,
    LockInfo, MvccGetByKeyRequest, MvccGetByKeyResponse, MvccGetByStartTsRequest,
    MvccGetByStartTsResponse, RequestOrigin, ScanLockRequest, ScanLockResponse,
    UnsafeDestroyRangeRequest, UnsafeDestroyRangeResponse,
};

use super::Cluster;
use super::api_version::{ApiCheck, Mode};
use super::failure::Failure;
use super::key::{self, Key};
use super::mvcc::debug;
use super::mvcc::error::MvccError;
use super::proposal::{making_room, pair_size};
use super::raw_writes::check_deleted_range;
use super::region::StoreId;
use super::region_checks::Access;
use super::store::LargeTxn;

impl Cluster {
    /// Lists the locks of a range up to a version.
    pub fn kv_scan_lock(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: ScanLockRequest,
    ) -> ScanLockResponse {
        match self.try_scan_lock(now_ms, store, &request) {
            Ok(locks) => ScanLockResponse {
                locks,
                ..ScanLockResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = failure.split();
                ScanLockResponse {
                    region_error,
                    error,
                    ..ScanLockResponse::default()
                }
            }
        }
    }

    fn try_scan_lock(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &ScanLockRequest,
    ) -> Result<Vec<LockInfo>, Failure> {
        let context = request.context.clone().unwrap_or_default();
        let start = stored_bound(&request.start_key);
        let end = stored_bound(&request.end_key);
        self.refresh_max_ts(now_ms, store);
        if let Some(served) = self.stores.get_mut(&store) {
            if context.request_origin() == RequestOrigin::TiDb {
                served.max_ts.raise(request.max_version)?;
            } else {
                served.max_ts.raise_exact(request.max_version)?;
            }
            let from = Key::from_encoded(start.clone());
            for (key, lock) in served.memory_locks.range(from..) {
                if !end.is_empty() && *key.encoded() >= end {
                    break;
                }
                if lock.start_ts <= request.max_version {
                    return Err(MvccError::KeyIsLocked(Box::new(lock.info(key.to_user()))).into());
                }
            }
        }
        let region = self.check_region(store, &context, Access::ReadLeader)?;
        if !start.is_empty() {
            self.reader(store, region).check_seek(&start)?;
        }
        let (locks, _) =
            self.reader(store, region)
                .scan_locks(&start, &end, request.limit as usize, |lock| {
                    lock.start_ts <= request.max_version
                });
        Ok(locks
            .into_iter()
            .map(|(key, lock)| lock.info(key.to_user()))
            .collect())
    }

    /// Deletes everything in a range of the region, versions and locks alike.
    pub fn kv_delete_range(
        &mut self,
        _now_ms: u64,
        store: StoreId,
        request: DeleteRangeRequest,
    ) -> DeleteRangeResponse {
        match self.try_delete_range(store, &request) {
            Ok(()) => DeleteRangeResponse::default(),
            Err(Failure::Region(error)) => DeleteRangeResponse {
                region_error: Some(error),
                ..Default::default()
            },
            Err(Failure::Key(error)) => DeleteRangeResponse {
                error: error.to_key_error().abort,
                ..Default::default()
            },
        }
    }

    fn try_delete_range(
        &mut self,
        store: StoreId,
        request: &DeleteRangeRequest,
    ) -> Result<(), Failure> {
        let context = making_room(request.context.clone());
        // The empty key is a key here, not the lack of a bound.
        let start = key::encode(&request.start_key);
        let end = key::encode(&request.end_key);
        let check = ApiCheck {
            storage: self.config().api_version,
            context: &context,
            command: "delete_range",
            mode: Mode::Txn,
        };
        check.range(&start, &end)?;
        self.check_write_load(store, &context)?;
        let region = self.check_region(store, &context, Access::Write)?;
        self.check_proposal(store, &context, region, pair_size(start.len(), end.len()))?;
        check_deleted_range(region, &start, &end)?;
        if request.notify_only || self.note_proposal(store) {
            return Ok(());
        }
        self.note_entry(context.region_id);
        // Locks that only the leader holds are out of reach of a range deletion.
        self.engine.delete_range(&start, &end);
        Ok(())
    }

    /// Deletes a range from the whole store, past all regions. The keys are a transaction's, so raw
    /// data of API v1 is met only where its keys look like stored ones.
    pub fn unsafe_destroy_range(
        &mut self,
        _now_ms: u64,
        store: StoreId,
        request: UnsafeDestroyRangeRequest,
    ) -> UnsafeDestroyRangeResponse {
        if let Err(error) = self.check_gc_load(store) {
            return UnsafeDestroyRangeResponse {
                region_error: Some(error),
                ..UnsafeDestroyRangeResponse::default()
            };
        }
        if request.start_key.is_empty() || request.end_key.is_empty() {
            return UnsafeDestroyRangeResponse {
                error: "a real server would crash: unsafe destroy range without both ends"
                    .to_owned(),
                ..UnsafeDestroyRangeResponse::default()
            };
        }
        let start = key::encode(&request.start_key);
        let end = key::encode(&request.end_key);
        self.engine.destroy_range(&start, &end);
        UnsafeDestroyRangeResponse::default()
    }

    /// Shows the lock and all versions of a key.
    pub fn mvcc_get_by_key(
        &mut self,
        _now_ms: u64,
        store: StoreId,
        request: MvccGetByKeyRequest,
    ) -> MvccGetByKeyResponse {
        let context = request.context.clone().unwrap_or_default();
        let key = Key::from_user(&request.key);
        let result = self
            .get_ready(store, &context)
            .and_then(|()| self.check_region(store, &context, Access::Read(None)))
            .map(|region| {
                let reader = self.reader(store, region);
                match reader.contains(key.encoded()) {
                    true => Ok(debug::info(&reader, &key)),
                    false => Err(reader.outside(key.encoded())),
                }
            });
        match result {
            Ok(Ok(info)) => MvccGetByKeyResponse {
                info: Some(Box::new(info)),
                ..MvccGetByKeyResponse::default()
            },
            Ok(Err(error)) => MvccGetByKeyResponse {
                error,
                ..MvccGetByKeyResponse::default()
            },
            Err(error) => MvccGetByKeyResponse {
                region_error: Some(error),
                ..MvccGetByKeyResponse::default()
            },
        }
    }

    /// Shows the first key of the region that a transaction has written.
    pub fn mvcc_get_by_start_ts(
        &mut self,
        _now_ms: u64,
        store: StoreId,
        request: MvccGetByStartTsRequest,
    ) -> MvccGetByStartTsResponse {
        let context = request.context.clone().unwrap_or_default();
        let ready = self.get_ready(store, &context);
        let access = Access::Read(None);
        let region = match ready.and_then(|()| self.check_region(store, &context, access)) {
            Ok(region) => region,
            Err(error) => {
                return MvccGetByStartTsResponse {
                    region_error: Some(error),
                    ..MvccGetByStartTsResponse::default()
                };
            }
        };
        let (start, end) = (&region.meta.start_key, &region.meta.end_key);
        let histories = self.engine.on(store).histories(start, end);
        let found = histories.into_iter().find(|(_, history)| {
            history
                .from(u64::MAX)
                .any(|(_, write)| write.start_ts == request.start_ts)
        });
        match found {
            Some((key, _)) => MvccGetByStartTsResponse {
                key: key.to_user(),
                info: Some(Box::new(debug::info(&self.reader(store, region), key))),
                ..MvccGetByStartTsResponse::default()
            },
            None => MvccGetByStartTsResponse {
                info: Some(Default::default()),
                ..MvccGetByStartTsResponse::default()
            },
        }
    }

    /// Tells a store how transactions have ended; only its memory of them changes.
    pub fn broadcast_txn_status(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: BroadcastTxnStatusRequest,
    ) -> BroadcastTxnStatusResponse {
        for status in &request.txn_status {
            if status.commit_ts != 0 && !status.rolled_back {
                self.remember_commit(now_ms, store, status.start_ts, status.commit_ts);
            }
            let Some(store) = self.stores.get_mut(&store) else {
                continue;
            };
            if status.rolled_back {
                store.committed.insert_rolled_back(now_ms, status.start_ts);
            }
            if status.is_completed {
                store.large_txns.remove(&status.start_ts);
            } else {
                let large = LargeTxn {
                    min_commit_ts: status.min_commit_ts.max(status.commit_ts),
                    rolled_back: status.rolled_back,
                    since_ms: now_ms,
                };
                store.note_large(status.start_ts, large);
            }
        }
        BroadcastTxnStatusResponse::default()
    }
}

/// An empty user key is the lack of a bound.
pub(super) fn stored_bound(user: &[u8]) -> Bytes {
    if user.is_empty() {
        Bytes::new()
    } else {
        key::encode(user)
    }
}
