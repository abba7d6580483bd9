//! More of the vocabulary of the server's tests: requests of several keys, errors by one word.

use bytes::Bytes;
use tikv_proto::kvrpcpb::prewrite_request::{ForUpdateTsConstraint, PessimisticAction};
use tikv_proto::kvrpcpb::{
    self, Assertion, AssertionLevel, Context, KeyError, Mutation, Op, PrewriteRequest,
    PrewriteResponse,
};

use super::{Bench, NOW, mutation, put};
use crate::cluster::key::Key;
use crate::cluster::mvcc::engine::Change;
use crate::cluster::mvcc::lock::{KeyLock, SharedLocks};
use crate::cluster::mvcc::write_record::{WriteKind, WriteRecord};

/// A prewrite under construction.
#[derive(Clone)]
pub(super) struct Pre {
    pub(super) request: PrewriteRequest,
    pub(super) retry: bool,
}

/// A prewrite of a transaction.
pub(super) fn pre(primary: &[u8], start_ts: u64) -> Pre {
    Pre {
        request: PrewriteRequest {
            primary_lock: Bytes::copy_from_slice(primary),
            start_version: start_ts,
            lock_ttl: 100,
            ..Default::default()
        },
        retry: false,
    }
}

impl Pre {
    /// Adds a mutation.
    pub(super) fn with(mut self, m: Mutation) -> Self {
        self.request.mutations.push(m);
        self
    }

    /// Adds puts.
    pub(super) fn put(mut self, keys: &[&[u8]]) -> Self {
        self.request
            .mutations
            .extend(keys.iter().map(|k| put(k, b"v")));
        self
    }

    /// Makes it pessimistic, with one action for each key.
    pub(super) fn pessimistic(mut self, for_update_ts: u64, actions: &[PessimisticAction]) -> Self {
        self.request.for_update_ts = for_update_ts;
        self.request.pessimistic_actions = actions.iter().map(|&a| a.into()).collect();
        self
    }

    /// Lets it commit at once, up to a version.
    pub(super) fn one_pc(mut self, max_commit_ts: u64) -> Self {
        self.request.try_one_pc = true;
        self.request.max_commit_ts = max_commit_ts;
        self
    }

    /// Lets it commit by its locks, up to a version.
    pub(super) fn by_locks(mut self, secondaries: &[&[u8]], max_commit_ts: u64) -> Self {
        self.request.use_async_commit = true;
        let secondaries = secondaries.iter().map(|k| Bytes::copy_from_slice(k));
        self.request.secondaries = secondaries.collect();
        self.request.max_commit_ts = max_commit_ts;
        self
    }

    /// Demands a smallest commit version.
    pub(super) fn min(mut self, min_commit_ts: u64) -> Self {
        self.request.min_commit_ts = min_commit_ts;
        self
    }

    /// Says that it may have run before.
    pub(super) fn again(mut self) -> Self {
        self.retry = true;
        self
    }

    /// Gives every key an assertion.
    pub(super) fn assert(mut self, assertion: Assertion, level: AssertionLevel) -> Self {
        for m in &mut self.request.mutations {
            m.set_assertion(assertion);
        }
        self.request.set_assertion_level(level);
        self
    }

    /// Says at which versions locks must have been granted, by index.
    pub(super) fn granted_at(mut self, versions: &[(u32, u64)]) -> Self {
        let constraint = |&(index, expected_for_update_ts): &(u32, u64)| ForUpdateTsConstraint {
            index,
            expected_for_update_ts,
        };
        self.request.for_update_ts_constraints = versions.iter().map(constraint).collect();
        self
    }
}

/// Makes a state which a case starts from.
pub(super) type Prepare = fn(&mut Bench);

/// A key error as one word; empty for none.
pub(super) fn word(error: Option<&KeyError>) -> &'static str {
    let Some(error) = error else { return "" };
    if error.locked.is_some() {
        return "locked";
    }
    if let Some(conflict) = &error.conflict {
        return conflict.reason().as_str_name();
    }
    let words = [
        (error.already_exist.is_some(), "exists"),
        (error.assertion_failed.is_some(), "assertion"),
        (error.txn_not_found.is_some(), "no transaction"),
        (error.txn_lock_not_found.is_some(), "no lock"),
        (error.commit_ts_expired.is_some(), "expired"),
        (error.primary_mismatch.is_some(), "not the primary"),
        (
            error.abort.contains("PessimisticLockNotFound"),
            "lock missing",
        ),
    ];
    let found = words.iter().find(|(holds, _)| *holds);
    found.map_or("abort", |(_, word)| word)
}

/// The conflicts' words.
pub(super) const OPTIMISTIC: &str = "Optimistic";
/// A newer version than the request has read at.
pub(super) const RETRY: &str = "PessimisticRetry";
/// The transaction's own rollback.
pub(super) const SELF: &str = "SelfRolledBack";

impl Bench {
    /// Raises what every store has served.
    pub(super) fn max_ts(&mut self, ts: u64) {
        let stores: Vec<_> = self.cluster.store_ids().collect();
        for store in stores {
            assert_eq!(self.cluster.raise_max_ts(NOW, store, ts), Ok(()));
        }
    }

    /// What the leader of a key's region has served.
    pub(super) fn served(&self, k: &[u8]) -> u64 {
        let (_, store) = self.to(k);
        self.cluster.store(store).expect("a store").max_ts.get()
    }

    /// Sends a prewrite.
    pub(super) fn run(&mut self, pre: Pre) -> PrewriteResponse {
        let first = pre.request.mutations.first().map(|m| m.key.clone());
        let (context, store) = self.to(&first.unwrap_or_default());
        let context = context.map(|context| {
            Box::new(Context {
                is_retry_request: pre.retry,
                ..*context
            })
        });
        let request = PrewriteRequest {
            context,
            ..pre.request
        };
        let response = self.cluster.kv_prewrite(NOW, store, request);
        assert_eq!(response.region_error, None);
        response
    }

    /// Sends a prewrite and tells its first error by one word.
    pub(super) fn try_run(&mut self, pre: Pre) -> &'static str {
        word(self.run(pre).errors.first())
    }

    /// Sends a prewrite of which nothing may fail.
    pub(super) fn must_run(&mut self, pre: Pre) -> PrewriteResponse {
        let response = self.run(pre);
        assert_eq!(response.errors, []);
        response
    }

    /// Puts and commits.
    pub(super) fn write(&mut self, k: &[u8], v: &[u8], start_ts: u64, commit_ts: u64) {
        self.must_prewrite_put(k, v, k, start_ts);
        self.must_commit(k, start_ts, commit_ts);
    }

    /// Leaves a deletion.
    pub(super) fn erase(&mut self, k: &[u8], start_ts: u64, commit_ts: u64) {
        self.must_prewrite_delete(k, k, start_ts);
        self.must_commit(k, start_ts, commit_ts);
    }

    /// Leaves a record without data.
    pub(super) fn touch(&mut self, k: &[u8], start_ts: u64, commit_ts: u64) {
        self.must_prewrite_lock(k, k, start_ts);
        self.must_commit(k, start_ts, commit_ts);
    }

    /// Locks a key together with others.
    pub(super) fn share(
        &mut self,
        k: &[u8],
        pk: &[u8],
        start_ts: u64,
        for_update_ts: u64,
    ) -> kvrpcpb::PessimisticLockResponse {
        let request = kvrpcpb::PessimisticLockRequest {
            mutations: vec![mutation(Op::SharedPessimisticLock, k, b"")],
            lock_ttl: 2000,
            ..Default::default()
        };
        self.lock_one(request, k, pk, start_ts, for_update_ts)
    }

    /// Locks a key together with others; must succeed.
    pub(super) fn must_share(&mut self, k: &[u8], pk: &[u8], start_ts: u64, for_update_ts: u64) {
        let response = self.share(k, pk, start_ts, for_update_ts);
        assert_eq!((response.region_error, response.errors), (None, vec![]));
    }

    /// The shared locks of a key.
    pub(super) fn shared(&self, k: &[u8]) -> SharedLocks {
        match self.cluster.engine().lock(&Key::from_user(k)) {
            Some(KeyLock::Shared(shared)) => shared.clone(),
            other => panic!("no shared locks: {other:?}"),
        }
    }

    /// Sets shared locks as no command would leave them.
    pub(super) fn set_shared(&mut self, k: &[u8], mut shared: SharedLocks) {
        shared.written = shared.listed();
        let change = Change::PutLock(Key::from_user(k), KeyLock::Shared(shared));
        self.cluster.engine.apply(change);
    }

    /// Ends transactions on the whole region of the first key: start and commit versions, where a
    /// commit version of 0 means a rollback.
    pub(super) fn resolve_all(&mut self, fates: &[(u64, u64)]) {
        let (context, store) = self.to(b"");
        let info = |&(txn, status): &(u64, u64)| kvrpcpb::TxnInfo {
            txn,
            status,
            ..Default::default()
        };
        let request = kvrpcpb::ResolveLockRequest {
            context,
            txn_infos: fates.iter().map(info).collect(),
            ..Default::default()
        };
        let response = self.cluster.kv_resolve_lock(NOW, store, request);
        assert_eq!((response.region_error, response.error), (None, None));
    }

    /// Writes one key of a pipelined transaction and tells the error by one word.
    pub(super) fn flush(&mut self, start_ts: u64, generation: u64, m: Mutation) -> &'static str {
        let (context, store) = self.to(&m.key);
        let request = kvrpcpb::FlushRequest {
            context,
            primary_key: m.key.clone(),
            mutations: vec![m],
            start_ts,
            generation,
            assertion_level: AssertionLevel::Strict.into(),
            lock_ttl: 100,
            min_commit_ts: 0,
        };
        let response = self.cluster.kv_flush(NOW, store, request);
        assert_eq!(response.region_error, None);
        word(response.errors.first())
    }

    /// Marks a record as overlapped by a rollback that saw a newer version at `fence`.
    pub(super) fn fence(&mut self, k: &[u8], commit_ts: u64, fence: u64) {
        let record = self.written(k, commit_ts).expect("there must be a record");
        let record = WriteRecord {
            overlapped_rollback: true,
            gc_fence: Some(fence),
            ..record
        };
        let change = Change::PutWrite(Key::from_user(k), commit_ts, record);
        self.cluster.engine.apply(change);
    }

    /// The commit version of the newest record at or below `ts`, its start version and kind.
    pub(super) fn seek(&self, k: &[u8], ts: u64) -> Option<(u64, u64, WriteKind)> {
        let key = Key::from_user(k);
        let (commit_ts, write) = self.cluster.engine().history(&key)?.seek(ts)?;
        Some((commit_ts, write.start_ts, write.kind))
    }

    /// Where a transaction has committed on a key.
    pub(super) fn commit_of(&self, k: &[u8], start_ts: u64) -> Option<u64> {
        let key = Key::from_user(k);
        let history = self.cluster.engine().history(&key)?;
        let mut records = history.from(u64::MAX);
        let own = records.find(|(_, w)| w.start_ts == start_ts && w.kind != WriteKind::Rollback);
        own.map(|(commit_ts, _)| commit_ts)
    }
}
