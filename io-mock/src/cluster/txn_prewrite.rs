//! Prewrite and Flush: the keys of one request together.
//!
//! Locks of others are collected over all keys and nothing is written then; a transaction that has
//! been committed already succeeds again; what cannot commit by its locks or at once falls back to
//! two phases in the middle of the request.

use std::mem::take;

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction;
use tikv_proto::kvrpcpb::{
    self, Context, FlushRequest, FlushResponse, KeyError, Op, PrewriteRequest, PrewriteResponse,
};

use super::Cluster;
use super::api_version::{ApiCheck, Mode, check_key_len};
use super::failure::Failure;
use super::key::Key;
use super::mvcc::changes::Work;
use super::mvcc::error::MvccError;
use super::mvcc::lock::LockKind;
use super::mvcc::prewrite::{CommitKind, Mutation, Prewritten, Properties, prewrite};
use super::mvcc::read::has_versions;
use super::mvcc::reader::CommitRecord;
use super::mvcc::write_record::{WriteKind, WriteRecord};
use super::proposal::taking_room;
use super::region::StoreId;
use super::region_errors;

/// From this many keys on, a request over a range without versions skips looking at each.
const EMPTY_RANGE_CHECK_ABOVE: usize = 12;

/// What a prewrite of several keys comes to.
#[derive(Debug, Default)]
struct Outcome {
    locked: Vec<MvccError>,
    min_commit_ts: u64,
    one_pc_commit_ts: u64,
}

impl Cluster {
    /// Prewrites the keys of one region.
    pub fn kv_prewrite(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: PrewriteRequest,
    ) -> PrewriteResponse {
        match self.try_prewrite(now_ms, store, request) {
            Ok(outcome) => PrewriteResponse {
                errors: outcome.locked.iter().map(MvccError::to_key_error).collect(),
                min_commit_ts: outcome.min_commit_ts,
                one_pc_commit_ts: outcome.one_pc_commit_ts,
                exec_details_v2: Some(Box::default()),
                ..PrewriteResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = failure.split();
                PrewriteResponse {
                    exec_details_v2: error.is_some().then(Box::default),
                    region_error,
                    errors: error.map(|error| *error).into_iter().collect(),
                    ..PrewriteResponse::default()
                }
            }
        }
    }

    fn try_prewrite(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: PrewriteRequest,
    ) -> Result<Outcome, Failure> {
        let context = request.context.clone().unwrap_or_default();
        let mut mutations = prewrite_mutations(&request)?;
        self.check_mutations(&context, "prewrite", &mutations)?;
        let start_ts = request.start_version;
        let pessimistic = request.for_update_ts != 0;
        // A store that knows the transaction as committed treats the request as a repetition.
        let committed = self
            .store(store)
            .and_then(|store| store.committed.get(start_ts));
        let is_retry = context.is_retry_request || (pessimistic && committed.is_some());
        let commit = match (request.try_one_pc, request.use_async_commit) {
            (true, _) => CommitKind::OnePhase(request.max_commit_ts),
            (false, true) => CommitKind::Async(request.max_commit_ts),
            (false, false) => CommitKind::TwoPhase,
        };
        let mut props = Properties {
            primary: request.primary_lock.clone(),
            for_update_ts: request.for_update_ts,
            skip_constraint_check: request.skip_constraint_check,
            commit,
            txn_size: request.txn_size,
            lock_ttl: request.lock_ttl,
            min_commit_ts: request.min_commit_ts,
            is_retry,
            assertion_level: request.assertion_level(),
            txn_source: context.txn_source,
            generation: 0,
        };
        let asynchronous = request.use_async_commit;
        let outcome = self.txn_write(now_ms, store, &context, start_ts, |work, region| {
            if pessimistic {
                constrain(&request, &mut mutations)?;
            } else if mutations.len() > EMPTY_RANGE_CHECK_ABOVE {
                mutations.sort_by(|a, b| a.key.cmp(&b.key));
                if let (Some(first), Some(last)) = (mutations.first(), mutations.last())
                    && !has_versions(&work.reader, &first.key, &last.key)
                {
                    props.skip_constraint_check = true;
                }
            }
            if commit != CommitKind::TwoPhase && !region.max_ts_synced {
                return Err(region_errors::max_ts_not_synced().into());
            }
            Ok(prewrite_all(work, props, mutations, asynchronous)?)
        })?;
        if outcome.one_pc_commit_ts != 0 {
            self.remember_commit(now_ms, store, start_ts, outcome.one_pc_commit_ts);
        }
        Ok(outcome)
    }

    fn check_mutations(
        &self,
        context: &Context,
        command: &'static str,
        mutations: &[Mutation],
    ) -> Result<(), Failure> {
        let check = ApiCheck {
            storage: self.config().api_version,
            context,
            command,
            mode: Mode::Txn,
        };
        check.keys(mutations.iter().map(|m| m.key.encoded().as_ref()))?;
        for mutation in mutations {
            check_key_len(mutation.key.encoded())?;
        }
        Ok(())
    }

    /// Writes one generation of a pipelined transaction's keys.
    pub fn kv_flush(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: FlushRequest,
    ) -> FlushResponse {
        match self.try_flush(now_ms, store, request) {
            Ok(errors) => FlushResponse {
                errors,
                ..FlushResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = failure.split();
                FlushResponse {
                    region_error,
                    errors: error.map(|error| *error).into_iter().collect(),
                    ..FlushResponse::default()
                }
            }
        }
    }

    fn try_flush(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: FlushRequest,
    ) -> Result<Vec<KeyError>, Failure> {
        let context = taking_room(request.context.clone());
        let mutations = request
            .mutations
            .iter()
            .map(|m| mutation(m, PessimisticAction::SkipPessimisticCheck))
            .collect::<Result<Vec<_>, _>>()?;
        self.check_mutations(&context, "flush", &mutations)?;
        let start_ts = request.start_ts;
        let props = Properties {
            primary: request.primary_key.clone(),
            for_update_ts: 0,
            skip_constraint_check: false,
            commit: CommitKind::TwoPhase,
            // The client does not know yet how many keys there will be.
            txn_size: u64::MAX,
            lock_ttl: request.lock_ttl,
            // Not zero, so that readers may push it.
            min_commit_ts: start_ts.saturating_add(1),
            is_retry: context.is_retry_request,
            assertion_level: request.assertion_level(),
            txn_source: context.txn_source,
            generation: request.generation,
        };
        self.txn_write(now_ms, store, &context, start_ts, |work, _| {
            if props.generation == 0 {
                return Err(MvccError::txn(
                    "Other(\"generation should be greater than 0 for Flush requests\")",
                )
                .into());
            }
            let locked = flush_all(work, &props, &mutations)?;
            Ok(locked.iter().map(MvccError::to_key_error).collect())
        })
    }
}

fn prewrite_mutations(request: &PrewriteRequest) -> Result<Vec<Mutation>, MvccError> {
    let optimistic = request.for_update_ts == 0;
    let mut actions = request.pessimistic_actions();
    let mut mutations = Vec::with_capacity(request.mutations.len());
    for m in &request.mutations {
        let action = match actions.next() {
            _ if optimistic => PessimisticAction::SkipPessimisticCheck,
            Some(action) => action,
            // The server takes the two lists together as far as the shorter one goes, without a
            // word about the mutations that are left.
            None => break,
        };
        let mut mutation = mutation(m, action)?;
        if request.use_async_commit {
            let is_primary = m.key == request.primary_lock;
            mutation.secondaries = Some(if is_primary {
                request.secondaries.clone()
            } else {
                Vec::new()
            });
        }
        mutations.push(mutation);
    }
    Ok(mutations)
}

/// Tells mutations which version their pessimistic locks must have been granted at.
fn constrain(request: &PrewriteRequest, mutations: &mut [Mutation]) -> Result<(), MvccError> {
    let count = mutations.len();
    for constraint in &request.for_update_ts_constraints {
        let Some(mutation) = mutations.get_mut(constraint.index as usize) else {
            return Err(MvccError::txn(format_args!(
                "Other(\"prewrite request invalid: for_update_ts constraint set for index {} while \
                 {count} mutations were given\")",
                constraint.index
            )));
        };
        mutation.expected_for_update_ts = Some(constraint.expected_for_update_ts);
    }
    Ok(())
}

fn mutation(m: &kvrpcpb::Mutation, action: PessimisticAction) -> Result<Mutation, MvccError> {
    let op = m.op();
    match op {
        Op::Put | Op::Del | Op::Lock | Op::SharedLock | Op::Insert | Op::CheckNotExists => {}
        Op::Rollback | Op::PessimisticLock | Op::SharedPessimisticLock => {
            return Err(MvccError::crash(format_args!(
                "mismatch Op in prewrite mutations: {op:?}"
            )));
        }
    }
    Ok(Mutation {
        op,
        key: Key::from_user(&m.key),
        value: m.value.clone(),
        assertion: m.assertion(),
        action,
        expected_for_update_ts: None,
        secondaries: None,
    })
}

fn prewrite_all(
    work: &mut Work<'_>,
    mut props: Properties,
    mutations: Vec<Mutation>,
    mut asynchronous: bool,
) -> Result<Outcome, MvccError> {
    let mut out = Prewritten::default();
    let mut outcome = Outcome::default();
    let mut min_commit_ts = 0;
    let mut assertion_failure = None;
    for mut mutation in mutations {
        if !asynchronous {
            mutation.secondaries = None;
        }
        let needs_ts = props.commit != CommitKind::TwoPhase;
        let result = prewrite(work, &mut out, &props, &mutation);
        let fall_back = match result {
            Ok(0) if needs_ts => true,
            Ok(ts) => {
                if needs_ts {
                    min_commit_ts = ts.max(min_commit_ts);
                }
                false
            }
            Err(error @ MvccError::AssertionFailed { .. }) => {
                assertion_failure.get_or_insert(error);
                false
            }
            Err(error) => {
                let recoverable = match &error {
                    MvccError::WriteConflict {
                        start_ts,
                        conflict_commit_ts,
                        ..
                    } => conflict_commit_ts > start_ts,
                    MvccError::PessimisticLockNotFound { .. }
                    | MvccError::CommitTsTooLarge { .. }
                    | MvccError::KeyIsLocked(_) => true,
                    _ => false,
                };
                if recoverable && let Some(commit_ts) = own_commit(work, &mutation.key)? {
                    // Committed already: nothing to do, and the reply says where.
                    work.changes.clear();
                    out = Prewritten::default();
                    outcome.locked.clear();
                    min_commit_ts = commit_ts;
                    assertion_failure = None;
                    break;
                }
                match error {
                    MvccError::CommitTsTooLarge { .. } => true,
                    MvccError::KeyIsLocked(_) => {
                        outcome.locked.push(error);
                        false
                    }
                    other => return Err(other),
                }
            }
        };
        if fall_back {
            props.commit = CommitKind::TwoPhase;
            asynchronous = false;
            for (key, mut lock, _) in take(&mut out.one_pc_locks) {
                lock.one_pc = false;
                work.changes.put_lock(key, lock);
            }
            out.memory_locks.clear();
            min_commit_ts = 0;
        }
    }
    if let Some(error) = assertion_failure {
        return Err(error);
    }
    if asynchronous {
        outcome.min_commit_ts = min_commit_ts;
    }
    if !outcome.locked.is_empty() {
        work.changes.clear();
        return Ok(outcome);
    }
    work.changes.published = take(&mut out.memory_locks);
    if matches!(props.commit, CommitKind::OnePhase(_)) {
        outcome.one_pc_commit_ts = min_commit_ts;
        commit_at_once(work, out, min_commit_ts);
    }
    Ok(outcome)
}

/// Turns the locks of a one-phase commit into write records.
fn commit_at_once(work: &mut Work<'_>, out: Prewritten, commit_ts: u64) {
    for (key, lock, was_locked) in out.one_pc_locks {
        let kind = match lock.kind {
            LockKind::Put => WriteKind::Put,
            LockKind::Delete => WriteKind::Delete,
            // A prewrite never makes a pessimistic lock; a record without data is the safe reading.
            LockKind::Lock | LockKind::Pessimistic => WriteKind::Lock,
        };
        let write = WriteRecord {
            txn_source: lock.txn_source,
            last_change: lock.last_change,
            ..WriteRecord::new(kind, work.start_ts, lock.short_value)
        };
        work.changes.put_write(key.clone(), commit_ts, write);
        if was_locked {
            work.unlock(key, commit_ts, true);
        }
    }
}

/// Where this transaction has committed on a key, if it has.
fn own_commit(work: &Work<'_>, key: &Key) -> Result<Option<u64>, MvccError> {
    Ok(match work.reader.commit_record(key, work.start_ts)? {
        CommitRecord::Single { commit_ts, write } if write.kind != WriteKind::Rollback => {
            Some(commit_ts)
        }
        CommitRecord::Single { .. }
        | CommitRecord::OverlappedRollback
        | CommitRecord::None { .. } => None,
    })
}

fn flush_all(
    work: &mut Work<'_>,
    props: &Properties,
    mutations: &[Mutation],
) -> Result<Vec<MvccError>, MvccError> {
    let mut out = Prewritten::default();
    let mut locked = Vec::new();
    let mut assertion_failure = None;
    for mutation in mutations {
        let Err(error) = prewrite(work, &mut out, props, mutation) else {
            continue;
        };
        match error {
            // An older flush that came late; the newer one stands.
            MvccError::GenerationOutOfOrder => {}
            MvccError::AssertionFailed { .. } => {
                assertion_failure.get_or_insert(error);
            }
            MvccError::KeyIsLocked(_) | MvccError::WriteConflict { .. } => {
                let newer = match &error {
                    MvccError::WriteConflict {
                        start_ts,
                        conflict_commit_ts,
                        ..
                    } => conflict_commit_ts > start_ts,
                    _ => true,
                };
                if newer && own_commit(work, &mutation.key)?.is_some() {
                    work.changes.clear();
                    return Ok(Vec::new());
                }
                if !matches!(error, MvccError::KeyIsLocked(_)) {
                    return Err(error);
                }
                locked.push(error);
            }
            other => return Err(other),
        }
    }
    match assertion_failure {
        Some(error) => Err(error),
        None => Ok(locked),
    }
}
