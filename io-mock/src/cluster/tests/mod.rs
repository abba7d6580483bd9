//! The cluster against the cases of the server's own tests, over its entry points.
//!
//! [`Bench`] speaks the vocabulary of those tests, so that a case reads as it does there.

mod async_apply;
mod backward_scanner;
mod deadlocks;
mod disks;
mod end_actions;
mod ending;
mod flashback;
mod flushing;
mod forward_scanner;
mod greatest_timestamp;
mod kv_service;
mod lagging;
mod lagging_anyhow;
mod last_change;
mod lock_actions;
mod lock_conflict;
mod lock_queue;
mod locking;
mod looks;
mod mvcc_shown;
mod mvcc_txn;
mod odd_raw_requests;
mod odd_requests;
mod pd;
mod pd_buckets;
mod pd_gc;
mod pd_regions;
mod pd_tso;
mod pd_tso_service;
mod point_getter;
mod prewrite_actions;
mod prewrite_commands;
mod prewriting;
mod raftstore;
mod raw;
mod reader;
mod reading;
mod replica_reads;
mod resolving;
mod routing;
mod scanner;
mod status_actions;
mod status_cache;
mod storage;
mod storage_raw;
mod transitions;
mod txn_types;
mod vocabulary;
mod waiting;

use bytes::Bytes;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction;
use tikv_proto::kvrpcpb::{self, ApiVersion, Context, KeyError, Mutation, Op};

use super::key::Key;
use super::mvcc::lock::{KeyLock, Lock};
use super::mvcc::max_ts::InvalidMaxTs;
use super::mvcc::write_record::{WriteKind, WriteRecord};
use super::region::StoreId;
use super::{Cluster, Config};

/// Some time in 2023; only its being later than the small timestamps of the cases matters.
pub(super) const NOW: u64 = 1_700_000_000_000;

/// A timestamp of a physical and a logical part.
pub(super) fn ts(physical: u64, logical: u64) -> u64 {
    physical << 18 | logical
}

/// Puts a value.
pub(super) fn put(key: &[u8], value: &[u8]) -> Mutation {
    mutation(Op::Put, key, value)
}

/// Any mutation.
pub(super) fn mutation(op: Op, key: &[u8], value: &[u8]) -> Mutation {
    Mutation {
        op: op.into(),
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        ..Mutation::default()
    }
}

/// A cluster with the vocabulary of the server's tests.
#[derive(Clone)]
pub(super) struct Bench {
    pub(super) cluster: Cluster,
    /// The API that requests speak, if it is not the stores' own.
    pub(super) asked_under: Option<ApiVersion>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Bench::with(Config::default())
    }

    pub(super) fn with(config: Config) -> Self {
        let config = Config {
            invalid_max_ts: InvalidMaxTs::Allow,
            ..config
        };
        Bench {
            cluster: Cluster::new(config, NOW),
            asked_under: None,
        }
    }

    /// The context and store for an encoded key, as a client with a fresh cache sends it.
    pub(super) fn route(&self, encoded: &[u8]) -> (Context, StoreId) {
        let region = self
            .cluster
            .regions()
            .find(encoded)
            .expect("ranges cover all keys");
        let peer = region.leader_peer().copied().expect("there is a leader");
        let context = Context {
            region_id: region.meta.id,
            region_epoch: region.meta.region_epoch,
            peer: Some(peer),
            api_version: match (self.asked_under, self.cluster.config().api_version) {
                (Some(asked), _) => asked.into(),
                (None, ApiVersion::V1ttl) => ApiVersion::V1.into(),
                (None, own) => own.into(),
            },
            ..Context::default()
        };
        (context, peer.store_id)
    }

    pub(super) fn to(&self, key: &[u8]) -> (Option<Box<Context>>, StoreId) {
        let (context, store) = self.route(Key::from_user(key).encoded());
        (Some(Box::new(context)), store)
    }

    pub(super) fn prewrite(
        &mut self,
        request: kvrpcpb::PrewriteRequest,
    ) -> kvrpcpb::PrewriteResponse {
        let first = request
            .mutations
            .first()
            .map(|m| m.key.clone())
            .unwrap_or_default();
        let (context, store) = self.to(&first);
        self.cluster
            .kv_prewrite(NOW, store, kvrpcpb::PrewriteRequest { context, ..request })
    }

    /// Prewrites one key of an optimistic transaction.
    pub(super) fn prewrite_one(
        &mut self,
        mutation: Mutation,
        primary: &[u8],
        start_ts: u64,
    ) -> Option<KeyError> {
        let response = self.prewrite(kvrpcpb::PrewriteRequest {
            mutations: vec![mutation],
            primary_lock: Bytes::copy_from_slice(primary),
            start_version: start_ts,
            ..Default::default()
        });
        assert_eq!(response.region_error, None);
        response.errors.into_iter().next()
    }

    pub(super) fn must_prewrite_put(&mut self, k: &[u8], v: &[u8], pk: &[u8], start_ts: u64) {
        assert_eq!(self.prewrite_one(put(k, v), pk, start_ts), None);
    }

    pub(super) fn must_prewrite_lock(&mut self, k: &[u8], pk: &[u8], start_ts: u64) {
        assert_eq!(
            self.prewrite_one(mutation(Op::Lock, k, b""), pk, start_ts),
            None
        );
    }

    pub(super) fn must_prewrite_delete(&mut self, k: &[u8], pk: &[u8], start_ts: u64) {
        assert_eq!(
            self.prewrite_one(mutation(Op::Del, k, b""), pk, start_ts),
            None
        );
    }

    pub(super) fn must_prewrite_err(&mut self, m: Mutation, pk: &[u8], start_ts: u64) -> KeyError {
        self.prewrite_one(m, pk, start_ts)
            .expect("the prewrite must fail")
    }

    /// Prewrites one key that commits by its locks; the answer is its smallest commit version.
    pub(super) fn must_prewrite_async(
        &mut self,
        m: Mutation,
        pk: &[u8],
        secondaries: &[&[u8]],
        start_ts: u64,
        min_commit_ts: u64,
    ) -> u64 {
        let response = self.prewrite(kvrpcpb::PrewriteRequest {
            mutations: vec![m],
            primary_lock: Bytes::copy_from_slice(pk),
            start_version: start_ts,
            min_commit_ts,
            use_async_commit: true,
            secondaries: secondaries
                .iter()
                .map(|k| Bytes::copy_from_slice(k))
                .collect(),
            ..Default::default()
        });
        assert_eq!(response.errors, []);
        response.min_commit_ts
    }

    /// Prewrites one key of a pessimistic transaction.
    pub(super) fn pessimistic_prewrite(
        &mut self,
        m: Mutation,
        pk: &[u8],
        start_ts: u64,
        for_update_ts: u64,
        action: PessimisticAction,
    ) -> Option<KeyError> {
        let response = self.prewrite(kvrpcpb::PrewriteRequest {
            mutations: vec![m],
            primary_lock: Bytes::copy_from_slice(pk),
            start_version: start_ts,
            for_update_ts,
            pessimistic_actions: vec![action.into()],
            ..Default::default()
        });
        assert_eq!(response.region_error, None);
        response.errors.into_iter().next()
    }

    pub(super) fn lock_one(
        &mut self,
        request: kvrpcpb::PessimisticLockRequest,
        k: &[u8],
        pk: &[u8],
        start_ts: u64,
        for_update_ts: u64,
    ) -> kvrpcpb::PessimisticLockResponse {
        let (context, store) = self.to(k);
        let mutations = if request.mutations.is_empty() {
            vec![mutation(Op::PessimisticLock, k, b"")]
        } else {
            request.mutations.clone()
        };
        self.cluster.kv_pessimistic_lock(
            NOW,
            store,
            kvrpcpb::PessimisticLockRequest {
                context,
                mutations,
                primary_lock: Bytes::copy_from_slice(pk),
                start_version: start_ts,
                for_update_ts,
                wait_timeout: -1,
                ..request
            },
        )
    }

    pub(super) fn must_lock(&mut self, k: &[u8], pk: &[u8], start_ts: u64, for_update_ts: u64) {
        let response = self.lock_one(Default::default(), k, pk, start_ts, for_update_ts);
        assert_eq!((response.region_error, response.errors), (None, vec![]));
    }

    pub(super) fn must_lock_err(
        &mut self,
        k: &[u8],
        pk: &[u8],
        start_ts: u64,
        for_update_ts: u64,
    ) -> KeyError {
        let response = self.lock_one(Default::default(), k, pk, start_ts, for_update_ts);
        response
            .errors
            .into_iter()
            .next()
            .expect("the lock must fail")
    }

    pub(super) fn commit(&mut self, k: &[u8], start: u64, commit: u64) -> Option<KeyError> {
        let (context, store) = self.to(k);
        let response = self.cluster.kv_commit(
            NOW,
            store,
            kvrpcpb::CommitRequest {
                context,
                start_version: start,
                commit_version: commit,
                keys: vec![Bytes::copy_from_slice(k)],
                ..Default::default()
            },
        );
        assert_eq!(response.region_error, None);
        response.error.map(|error| *error)
    }

    pub(super) fn must_commit(&mut self, k: &[u8], start: u64, commit: u64) {
        assert_eq!(self.commit(k, start, commit), None);
    }

    pub(super) fn rollback(&mut self, k: &[u8], start_ts: u64) -> Option<KeyError> {
        let (context, store) = self.to(k);
        let response = self.cluster.kv_batch_rollback(
            NOW,
            store,
            kvrpcpb::BatchRollbackRequest {
                context,
                start_version: start_ts,
                keys: vec![Bytes::copy_from_slice(k)],
                ..Default::default()
            },
        );
        response.error.map(|error| *error)
    }

    pub(super) fn must_rollback(&mut self, k: &[u8], start_ts: u64) {
        assert_eq!(self.rollback(k, start_ts), None);
    }

    pub(super) fn cleanup(
        &mut self,
        k: &[u8],
        start_ts: u64,
        current_ts: u64,
    ) -> kvrpcpb::CleanupResponse {
        let (context, store) = self.to(k);
        self.cluster.kv_cleanup(
            NOW,
            store,
            kvrpcpb::CleanupRequest {
                context,
                key: Bytes::copy_from_slice(k),
                start_version: start_ts,
                current_ts,
            },
        )
    }

    pub(super) fn must_cleanup(&mut self, k: &[u8], start_ts: u64, current_ts: u64) {
        assert_eq!(self.cleanup(k, start_ts, current_ts), Default::default());
    }

    pub(super) fn pessimistic_rollback(&mut self, k: &[u8], start_ts: u64, for_update_ts: u64) {
        let (context, store) = self.to(k);
        let response = self.cluster.kv_pessimistic_rollback(
            NOW,
            store,
            kvrpcpb::PessimisticRollbackRequest {
                context,
                start_version: start_ts,
                for_update_ts,
                keys: vec![Bytes::copy_from_slice(k)],
            },
        );
        assert_eq!((response.region_error, response.errors), (None, vec![]));
    }

    pub(super) fn heart_beat(
        &mut self,
        k: &[u8],
        start_ts: u64,
        ttl: u64,
    ) -> kvrpcpb::TxnHeartBeatResponse {
        let (context, store) = self.to(k);
        self.cluster.kv_txn_heart_beat(
            NOW,
            store,
            kvrpcpb::TxnHeartBeatRequest {
                context,
                primary_lock: Bytes::copy_from_slice(k),
                start_version: start_ts,
                advise_lock_ttl: ttl,
                ..Default::default()
            },
        )
    }

    pub(super) fn check_status(
        &mut self,
        k: &[u8],
        lock_ts: u64,
        query: kvrpcpb::CheckTxnStatusRequest,
    ) -> kvrpcpb::CheckTxnStatusResponse {
        let (context, store) = self.to(k);
        self.cluster.kv_check_txn_status(
            NOW,
            store,
            kvrpcpb::CheckTxnStatusRequest {
                context,
                primary_key: Bytes::copy_from_slice(k),
                lock_ts,
                ..query
            },
        )
    }

    /// The commit version and whether the lock is there.
    pub(super) fn check_secondary(&mut self, k: &[u8], start_ts: u64) -> (u64, bool) {
        let (context, store) = self.to(k);
        let response = self.cluster.kv_check_secondary_locks(
            NOW,
            store,
            kvrpcpb::CheckSecondaryLocksRequest {
                context,
                keys: vec![Bytes::copy_from_slice(k)],
                start_version: start_ts,
            },
        );
        assert_eq!((response.region_error, response.error), (None, None));
        (response.commit_ts, !response.locks.is_empty())
    }

    pub(super) fn get(&mut self, k: &[u8], version: u64) -> kvrpcpb::GetResponse {
        let (context, store) = self.to(k);
        let key = Bytes::copy_from_slice(k);
        let request = kvrpcpb::GetRequest {
            context,
            key,
            version,
            need_commit_ts: false,
        };
        self.cluster.kv_get(NOW, store, request)
    }

    pub(super) fn must_get(&mut self, k: &[u8], version: u64, v: &[u8]) {
        let response = self.get(k, version);
        assert_eq!((response.error, response.not_found), (None, false));
        assert_eq!(response.value, v);
    }

    pub(super) fn must_get_none(&mut self, k: &[u8], version: u64) {
        let response = self.get(k, version);
        assert_eq!((response.error, response.not_found), (None, true));
    }

    pub(super) fn must_get_err(&mut self, k: &[u8], version: u64) -> KeyError {
        *self.get(k, version).error.expect("the read must fail")
    }

    pub(super) fn lock_of(&self, k: &[u8]) -> Option<Lock> {
        let key = Key::from_user(k);
        let region = self
            .cluster
            .regions()
            .find(key.encoded())
            .expect("ranges cover all keys");
        match region.memory_locks.get(&key) {
            Some(lock) => Some(lock.clone()),
            None => self
                .cluster
                .engine()
                .lock(&key)
                .cloned()
                .and_then(KeyLock::exclusive),
        }
    }

    pub(super) fn must_locked(&self, k: &[u8], start_ts: u64) -> Lock {
        let lock = self.lock_of(k).expect("the key must be locked");
        assert!(!lock.is_pessimistic(), "{lock:?}");
        assert_eq!(lock.start_ts, start_ts);
        lock
    }

    pub(super) fn must_pessimistic_locked(&self, k: &[u8], start_ts: u64, for_update_ts: u64) {
        let lock = self.lock_of(k).expect("the key must be locked");
        assert!(lock.is_pessimistic(), "{lock:?}");
        assert_eq!(
            (lock.start_ts, lock.for_update_ts),
            (start_ts, for_update_ts)
        );
    }

    pub(super) fn must_unlocked(&self, k: &[u8]) {
        assert_eq!(self.lock_of(k), None);
    }

    pub(super) fn written(&self, k: &[u8], commit_ts: u64) -> Option<WriteRecord> {
        let key = Key::from_user(k);
        let (at, write) = self.cluster.engine().history(&key)?.seek(commit_ts)?;
        (at == commit_ts).then(|| write.clone())
    }

    pub(super) fn must_written(
        &self,
        k: &[u8],
        start: u64,
        commit: u64,
        kind: WriteKind,
    ) -> WriteRecord {
        let write = self.written(k, commit).expect("there must be a record");
        assert_eq!((write.start_ts, write.kind), (start, kind));
        write
    }

    pub(super) fn must_rolled_back(&self, k: &[u8], start_ts: u64, protected: bool) {
        let write = self.must_written(k, start_ts, start_ts, WriteKind::Rollback);
        assert_eq!(write.is_protected(), protected);
    }
}
