//! Prewriting one key: which locks and versions forbid it, what the lock will say, and the smallest
//! version the transaction may commit at.
//!
//! The request level (several keys, falling back to two phases, one-phase commit) is in
//! `txn_prewrite`; this file knows one key only.

use bytes::Bytes;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction;
use tikv_proto::kvrpcpb::write_conflict::Reason;
use tikv_proto::kvrpcpb::{Assertion, AssertionLevel, Op};

use super::changes::Work;
use super::error::{LockMissing, MvccError};
use super::last_change::LastChange;
use super::lock::{KeyLock, Lock, LockKind, SharedLocks};
use super::write_record::{WriteKind, WriteRecord};
use crate::cluster::key::Key;
#[cfg(feature = "mutations")]
use crate::mutation::{self, Mutation as Mistake};

/// The longest value that a lock and a write record carry themselves.
pub const SHORT_VALUE_MAX: usize = 255;

/// What holds for all keys of a request.
#[derive(Clone, Debug)]
pub struct Properties {
    /// User key of the primary.
    pub primary: Bytes,
    /// 0 for an optimistic transaction.
    pub for_update_ts: u64,
    /// Optimistic only: nothing can conflict, as the client or an empty range says.
    pub skip_constraint_check: bool,
    /// How the transaction means to commit.
    pub commit: CommitKind,
    /// Keys in the transaction.
    pub txn_size: u64,
    /// Time to live of the locks.
    pub lock_ttl: u64,
    /// What the client demands.
    pub min_commit_ts: u64,
    /// The request may have run before.
    pub is_retry: bool,
    /// How hard assertions are checked.
    pub assertion_level: AssertionLevel,
    /// Copied to the lock.
    pub txn_source: u64,
    /// Which flush of a pipelined transaction; 0 for a plain prewrite.
    pub generation: u64,
}

/// How a transaction means to commit. The number is the greatest version allowed, 0 for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitKind {
    /// Two phases.
    TwoPhase,
    /// By its locks alone.
    Async(u64),
    /// At once.
    OnePhase(u64),
}

/// One key of a request.
#[derive(Clone, Debug)]
pub struct Mutation {
    /// The operation.
    pub op: Op,
    /// Encoded key.
    pub key: Key,
    /// The value of a put or insert.
    pub value: Bytes,
    /// What the client believes of the previous version.
    pub assertion: Assertion,
    /// How this key of a pessimistic transaction is checked.
    pub action: PessimisticAction,
    /// The version the pessimistic lock must have been granted at.
    pub expected_for_update_ts: Option<u64>,
    /// User keys of the secondaries if this lock is to say that the transaction commits by its
    /// locks; empty except on the primary.
    pub secondaries: Option<Vec<Bytes>>,
}

/// What a prewrite leaves, beside the changes, for the request level.
#[derive(Debug, Default)]
pub struct Prewritten {
    /// Locks of a one-phase commit, not yet changes: whether they replace a pessimistic lock.
    pub one_pc_locks: Vec<(Key, Lock, bool)>,
    /// Locks published in memory until the command has been applied.
    pub memory_locks: Vec<(Key, Lock)>,
}

/// How the key stands with respect to this transaction's own lock.
enum OwnLock {
    /// Prewritten before; the smallest commit version of an async-commit lock, else 0.
    Prewritten(u64),
    /// Locked pessimistically at this version.
    Pessimistic(u64),
    None,
}

struct Step<'a> {
    props: &'a Properties,
    mutation: &'a Mutation,
    start_ts: u64,
    lock_ttl: u64,
    min_commit_ts: u64,
    last_change: LastChange,
}

/// Prewrites one key and returns the smallest commit version it demands, 0 if it demands none.
pub fn prewrite(
    work: &mut Work<'_>,
    out: &mut Prewritten,
    props: &Properties,
    mutation: &Mutation,
) -> Result<u64, MvccError> {
    let mut step = Step {
        props,
        mutation,
        start_ts: work.start_ts,
        lock_ttl: props.lock_ttl,
        min_commit_ts: props.min_commit_ts,
        last_change: LastChange::Unknown,
    };
    if step.is_pessimistic() && mutation.op == Op::CheckNotExists {
        return Err(MvccError::mvcc(
            "Other(\"cannot handle checkNotExists in pessimistic prewrite\")",
        ));
    }
    // The answer to an insert depends on what is there now, as a read's does.
    if step.should_not_exist() {
        work.max_ts.raise(step.start_ts)?;
    }

    let mut amended = false;
    let (shared, own) = match work.reader.lock(&mutation.key)? {
        Some(KeyLock::Exclusive(lock)) => {
            if mutation.op == Op::SharedLock {
                return Err(MvccError::KeyIsLocked(Box::new(
                    lock.info(mutation.key.to_user()),
                )));
            }
            (None, step.judge_lock(&lock)?)
        }
        Some(KeyLock::Shared(shared)) => match shared.members.get(&step.start_ts) {
            Some(_) if mutation.op != Op::SharedLock => {
                return Err(MvccError::mvcc(
                    "Other(\"use Op::SharedLock to prewrite on a shared lock\")",
                ));
            }
            Some(member) => {
                let own = step.judge_lock(&member.clone())?;
                (Some(shared), own)
            }
            None if mutation.op == Op::SharedLock => {
                return Err(step.lock_missing(LockMissing::LockMissingAmendFail));
            }
            None => {
                return Err(MvccError::KeyIsLocked(Box::new(
                    shared.info(mutation.key.to_user()),
                )));
            }
        },
        None if mutation.action == PessimisticAction::DoPessimisticCheck => {
            if mutation.op == Op::SharedLock {
                return Err(step.lock_missing(LockMissing::LockMissingAmendFail));
            }
            step.amend(work)?;
            amended = true;
            (None, OwnLock::None)
        }
        None => (None, OwnLock::None),
    };
    if let (OwnLock::Prewritten(min_commit_ts), 0) = (&own, props.generation) {
        return Ok(*min_commit_ts);
    }

    let checked = if step.skips_constraint_check() {
        None
    } else {
        let checked = step.check_newer_versions(work)?;
        let newest = work.reader.seek_write(&mutation.key, u64::MAX)?;
        step.last_change = LastChange::above(&work.reader, &mutation.key, newest, step.start_ts)?;
        Some(checked)
    };
    let flushed_before = props.generation > 0 && matches!(own, OwnLock::Prewritten(_));
    if !amended && !flushed_before {
        step.check_assertion(work, checked)?;
    }

    if mutation.op == Op::CheckNotExists {
        work.max_ts.raise(step.start_ts)?;
        return Ok(match props.commit {
            CommitKind::TwoPhase => 0,
            CommitKind::Async(_) | CommitKind::OnePhase(_) => {
                props.min_commit_ts.max(step.start_ts.saturating_add(1))
            }
        });
    }
    step.write_lock(work, out, own, shared)
}

impl Step<'_> {
    fn is_pessimistic(&self) -> bool {
        self.props.for_update_ts != 0
    }

    fn should_not_exist(&self) -> bool {
        matches!(self.mutation.op, Op::Insert | Op::CheckNotExists)
    }

    fn user_key(&self) -> Bytes {
        self.mutation.key.to_user()
    }

    fn lock_missing(&self, reason: LockMissing) -> MvccError {
        MvccError::PessimisticLockNotFound {
            start_ts: self.start_ts,
            key: self.user_key(),
            reason,
        }
    }

    fn conflict(&self, commit_ts: u64, write: &WriteRecord, reason: Reason) -> MvccError {
        MvccError::WriteConflict {
            start_ts: self.start_ts,
            conflict_start_ts: write.start_ts,
            conflict_commit_ts: commit_ts,
            key: self.user_key(),
            primary: self.props.primary.clone(),
            reason,
        }
    }

    fn skips_constraint_check(&self) -> bool {
        if !self.is_pessimistic() {
            return self.props.skip_constraint_check;
        }
        match self.mutation.action {
            PessimisticAction::DoPessimisticCheck => true,
            // A repeated request must find out that it has been committed meanwhile.
            PessimisticAction::SkipPessimisticCheck => !self.props.is_retry,
            PessimisticAction::DoConstraintCheck => false,
        }
    }

    fn judge_lock(&mut self, lock: &Lock) -> Result<OwnLock, MvccError> {
        if lock.start_ts != self.start_ts {
            if self.mutation.action == PessimisticAction::DoPessimisticCheck {
                return Err(self.lock_missing(LockMissing::LockTsMismatch));
            }
            let mut info = lock.info(self.user_key());
            // The pessimistic locks already guarantee isolation; whoever holds a key that was
            // never locked is to be resolved at once.
            if self.is_pessimistic() {
                info.lock_ttl = 0;
            }
            return Err(MvccError::KeyIsLocked(Box::new(info)));
        }
        self.last_change = lock.last_change;
        if lock.is_pessimistic() {
            if !self.is_pessimistic() {
                return Err(MvccError::lock_type_not_match(
                    self.start_ts,
                    &self.user_key(),
                    true,
                ));
            }
            if self
                .mutation
                .expected_for_update_ts
                .is_some_and(|ts| ts != lock.for_update_ts)
            {
                return Err(self.lock_missing(LockMissing::LockForUpdateTsMismatch));
            }
            self.lock_ttl = self.lock_ttl.max(lock.ttl);
            self.min_commit_ts = self.min_commit_ts.max(lock.min_commit_ts);
            return Ok(OwnLock::Pessimistic(lock.for_update_ts));
        }
        let generation = self.props.generation;
        if generation > 0 && lock.generation >= generation {
            return Err(MvccError::GenerationOutOfOrder);
        }
        if lock.generation > 0 && self.should_not_exist() && lock.kind == LockKind::Put {
            return Err(MvccError::AlreadyExist {
                key: self.user_key(),
            });
        }
        Ok(OwnLock::Prewritten(if lock.async_commit {
            lock.min_commit_ts
        } else {
            0
        }))
    }

    /// A pessimistic lock is gone, but if the key has not changed since the transaction started it
    /// was as good as held.
    fn amend(&mut self, work: &Work<'_>) -> Result<(), MvccError> {
        let newest = work.reader.seek_write(&self.mutation.key, u64::MAX)?;
        if newest.is_some_and(|(commit_ts, _)| commit_ts >= self.start_ts) {
            return Err(self.lock_missing(LockMissing::LockMissingAmendFail));
        }
        let (reader, key) = (&work.reader, &self.mutation.key);
        self.last_change = LastChange::above(reader, key, newest, self.start_ts)?;
        self.check_assertion(work, Some(newest))
    }

    /// Looks for versions that this transaction may not overwrite, and returns the newest one that
    /// counts.
    fn check_newer_versions<'w>(
        &self,
        work: &Work<'w>,
    ) -> Result<Option<(u64, &'w WriteRecord)>, MvccError> {
        let key = &self.mutation.key;
        let mut seek_ts = u64::MAX;
        while let Some((commit_ts, write)) = work.reader.seek_write(key, seek_ts)? {
            if commit_ts == self.start_ts && write.rolls_back_at() {
                return Err(self.conflict(commit_ts, write, Reason::SelfRolledBack));
            }
            if !self.is_pessimistic() {
                if commit_ts > self.start_ts {
                    return Err(self.conflict(commit_ts, write, Reason::Optimistic));
                }
            } else {
                if self.mutation.action == PessimisticAction::DoConstraintCheck
                    && commit_ts > self.start_ts
                {
                    return Err(self.conflict(commit_ts, write, Reason::LazyUniquenessCheck));
                }
                if commit_ts > self.props.for_update_ts {
                    // A newer rollback says nothing of the value; look below it.
                    if write.kind == WriteKind::Rollback {
                        let Some(older) = commit_ts.checked_sub(1) else {
                            break;
                        };
                        seek_ts = older;
                        continue;
                    }
                    return Err(self.lock_missing(LockMissing::NonLockKeyConflict));
                }
            }
            check_absent(work, key, self.should_not_exist(), commit_ts, write)?;
            return Ok(Some((commit_ts, write)));
        }
        Ok(None)
    }

    /// Holds the client's belief against the newest put or delete. `checked` is the newest record
    /// if the constraint check has loaded it.
    fn check_assertion(
        &self,
        work: &Work<'_>,
        checked: Option<Option<(u64, &WriteRecord)>>,
    ) -> Result<(), MvccError> {
        if self.mutation.assertion == Assertion::None
            || self.props.assertion_level == AssertionLevel::Off
            || (self.props.assertion_level != AssertionLevel::Strict && checked.is_none())
        {
            return Ok(());
        }
        let loaded = checked.map(|newest| newest.filter(|(_, write)| !write.is_fenced()));
        let key = &self.mutation.key;
        let previous = match loaded {
            Some(Some((ts, write)))
                if matches!(write.kind, WriteKind::Lock | WriteKind::Rollback) =>
            {
                work.reader.get_write(key, ts, self.start_ts)?
            }
            Some(newest) => newest,
            None => work.reader.get_write(key, u64::MAX, self.start_ts)?,
        };
        let failed = match (self.mutation.assertion, previous) {
            (Assertion::Exist, None) => Some((0, 0)),
            (Assertion::Exist, Some((ts, write))) if write.kind == WriteKind::Delete => {
                Some((write.start_ts, ts))
            }
            (Assertion::NotExist, Some((ts, write))) if write.kind == WriteKind::Put => {
                Some((write.start_ts, ts))
            }
            (Assertion::None | Assertion::Exist | Assertion::NotExist, _) => None,
        };
        let Some((existing_start_ts, existing_commit_ts)) = failed else {
            return Ok(());
        };
        // The belief may be wrong because of a rollback or a conflict, which is the better news.
        if self.skips_constraint_check() {
            self.check_newer_versions(work)?;
        }
        Err(MvccError::AssertionFailed {
            start_ts: self.start_ts,
            key: self.user_key(),
            assertion: self.mutation.assertion,
            existing_start_ts,
            existing_commit_ts,
        })
    }

    fn write_lock(
        &self,
        work: &mut Work<'_>,
        out: &mut Prewritten,
        own: OwnLock,
        shared: Option<SharedLocks>,
    ) -> Result<u64, MvccError> {
        let key = &self.mutation.key;
        let (kind, value) = match self.mutation.op {
            Op::Put | Op::Insert => (LockKind::Put, Some(&self.mutation.value)),
            Op::Del => (LockKind::Delete, None),
            Op::Lock | Op::SharedLock => (LockKind::Lock, None),
            other @ (Op::Rollback
            | Op::PessimisticLock
            | Op::CheckNotExists
            | Op::SharedPessimisticLock) => {
                return Err(MvccError::crash(format_args!(
                    "mismatch Op in prewrite: {other:?}"
                )));
            }
        };
        let held_for = match own {
            OwnLock::Pessimistic(for_update_ts) => for_update_ts,
            OwnLock::Prewritten(_) | OwnLock::None => 0,
        };
        let mut lock = Lock {
            for_update_ts: self.props.for_update_ts.max(held_for),
            txn_size: self.props.txn_size,
            min_commit_ts: self.min_commit_ts,
            txn_source: self.props.txn_source,
            generation: self.props.generation,
            ..Lock::new(
                kind,
                self.props.primary.clone(),
                self.start_ts,
                self.lock_ttl,
            )
        };
        if kind == LockKind::Lock {
            lock.last_change = self.last_change;
        }
        if let Some(value) = value {
            if value.len() <= SHORT_VALUE_MAX {
                lock.short_value = Some(value.clone());
            } else {
                work.changes
                    .put_value(key.clone(), self.start_ts, value.clone());
            }
        }
        let mut one_pc = matches!(self.props.commit, CommitKind::OnePhase(_));
        if let Some(secondaries) = &self.mutation.secondaries {
            lock.async_commit = true;
            lock.secondaries = secondaries.clone();
        } else {
            lock.one_pc = one_pc;
        }
        let outcome = if lock.async_commit || one_pc {
            self.publish(work, out, &mut lock)
        } else {
            Ok(0)
        };
        if outcome.is_err() {
            one_pc = false;
            lock.one_pc = false;
            lock.async_commit = false;
            lock.secondaries.clear();
        }
        if let Some(mut shared) = shared {
            let refused = if self.props.generation > 0 {
                Some("shared lock prewrite does not support non-zero generation")
            } else if one_pc {
                Some("shared lock prewrite is incompatible with one-phase commit")
            } else if lock.async_commit {
                Some("shared lock prewrite cannot use async-commit, falling back to 2PC")
            } else {
                None
            };
            if let Some(text) = refused {
                return Err(MvccError::mvcc(format_args!("Other(\"{text}\")")));
            }
            shared.members.insert(self.start_ts, lock);
            work.changes.put_shared(key.clone(), shared);
        } else if one_pc {
            out.one_pc_locks
                .push((key.clone(), lock, matches!(own, OwnLock::Pessimistic(_))));
        } else {
            work.changes.put_lock(key.clone(), lock);
        }
        outcome
    }

    /// Computes the smallest commit version and shows the lock to readers in one step: a reader
    /// either raised the greatest timestamp before, or will see the lock.
    fn publish(
        &self,
        work: &Work<'_>,
        out: &mut Prewritten,
        lock: &mut Lock,
    ) -> Result<u64, MvccError> {
        let limit = match self.props.commit {
            CommitKind::TwoPhase => 0,
            CommitKind::Async(max) | CommitKind::OnePhase(max) => max,
        };
        let floor = work
            .max_ts
            .get()
            .max(self.start_ts)
            .max(self.props.for_update_ts);
        #[cfg(feature = "mutations")]
        let floor = match mutation::is(Mistake::ForgetReads) {
            true => self.start_ts.max(self.props.for_update_ts),
            false => floor,
        };
        let min_commit_ts = lock.min_commit_ts.max(floor.saturating_add(1));
        if limit != 0 && min_commit_ts > limit {
            return Err(MvccError::CommitTsTooLarge { min_commit_ts });
        }
        lock.min_commit_ts = min_commit_ts;
        out.memory_locks
            .push((self.mutation.key.clone(), lock.clone()));
        Ok(min_commit_ts)
    }
}

/// Fails if the key must not exist and does. `write` is its newest version, at `commit_ts`.
pub fn check_absent(
    work: &Work<'_>,
    key: &Key,
    should_not_exist: bool,
    commit_ts: u64,
    write: &WriteRecord,
) -> Result<(), MvccError> {
    if !should_not_exist || write.kind == WriteKind::Delete || write.is_fenced() {
        return Ok(());
    }
    let exists = match write.kind {
        WriteKind::Put => true,
        WriteKind::Delete => false,
        WriteKind::Lock | WriteKind::Rollback => match commit_ts.checked_sub(1) {
            Some(older) => work.reader.get_write(key, older, work.start_ts)?.is_some(),
            None => false,
        },
    };
    if exists {
        return Err(MvccError::AlreadyExist { key: key.to_user() });
    }
    Ok(())
}
