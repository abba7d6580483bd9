//! Locks: what a transaction leaves on a key until it ends, and when a read minds it.
//!
//! A key holds either one exclusive lock or a set of shared ones.

use std::collections::BTreeMap;

use bytes::Bytes;
use tikv_proto::kvrpcpb::{self, IsolationLevel, LockInfo};

use super::error::MvccError;
use super::last_change::LastChange;
use super::shared_order::listed;
use crate::cluster::key::Key;

/// What a lock will become when it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// A value.
    Put,
    /// A deletion.
    Delete,
    /// Only the fact of the lock.
    Lock,
    /// Nothing: it holds the key for a later prewrite.
    Pessimistic,
}

impl LockKind {
    fn op(self) -> kvrpcpb::Op {
        match self {
            LockKind::Put => kvrpcpb::Op::Put,
            LockKind::Delete => kvrpcpb::Op::Del,
            LockKind::Lock => kvrpcpb::Op::Lock,
            LockKind::Pessimistic => kvrpcpb::Op::PessimisticLock,
        }
    }
}

/// One transaction's lock on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// What it will become.
    pub kind: LockKind,
    /// User key of the transaction's primary.
    pub primary: Bytes,
    /// The transaction.
    pub start_ts: u64,
    /// Milliseconds after the physical part of `start_ts` during which it is alive.
    pub ttl: u64,
    /// A value of at most 255 bytes.
    pub short_value: Option<Bytes>,
    /// Non-zero for every lock of a pessimistic transaction.
    pub for_update_ts: u64,
    /// Keys in the transaction, as the client said.
    pub txn_size: u64,
    /// The commit version may not be lower; 0 means it may not be pushed.
    pub min_commit_ts: u64,
    /// The transaction commits by its locks alone.
    pub async_commit: bool,
    /// Only in the memory lock table: makes a read at the greatest version respect it.
    pub one_pc: bool,
    /// User keys of the secondaries; on an async-commit primary only.
    pub secondaries: Vec<Bytes>,
    /// Protected rollbacks that a calculated commit version might hit.
    pub rollback_ts: Vec<u64>,
    /// Copied to the write record.
    pub txn_source: u64,
    /// Granted above a newer version than the request knew.
    pub locked_with_conflict: bool,
    /// Which flush of a pipelined transaction wrote it; 0 for others.
    pub generation: u64,
    /// Where the newest data of the key stands; kept by locks without data only.
    pub last_change: LastChange,
}

impl Lock {
    /// A lock with the mandatory fields; the rest is absent.
    pub fn new(kind: LockKind, primary: Bytes, start_ts: u64, ttl: u64) -> Self {
        Lock {
            kind,
            primary,
            start_ts,
            ttl,
            short_value: None,
            for_update_ts: 0,
            txn_size: 0,
            min_commit_ts: 0,
            async_commit: false,
            one_pc: false,
            secondaries: Vec::new(),
            rollback_ts: Vec::new(),
            txn_source: 0,
            locked_with_conflict: false,
            generation: 0,
            last_change: LastChange::Unknown,
        }
    }

    /// Whether it only holds the key for a later prewrite.
    pub fn is_pessimistic(&self) -> bool {
        self.kind == LockKind::Pessimistic
    }

    /// Whether its time to live has passed at `current_ts`. The last millisecond still counts. The
    /// server's sum wraps, so a lock that is to live for ever has died long ago.
    pub fn is_expired(&self, current_ts: u64) -> bool {
        physical(self.start_ts).wrapping_add(self.ttl) < physical(current_ts)
    }

    /// As clients see it.
    pub fn info(&self, user_key: Bytes) -> LockInfo {
        LockInfo {
            primary_lock: self.primary.clone(),
            lock_version: self.start_ts,
            key: user_key,
            lock_ttl: self.ttl,
            txn_size: self.txn_size,
            lock_type: self.kind.op().into(),
            lock_for_update_ts: self.for_update_ts,
            use_async_commit: self.async_commit,
            min_commit_ts: self.min_commit_ts,
            secondaries: self.secondaries.clone(),
            ..LockInfo::default()
        }
    }

    /// Judges this lock for a read.
    pub fn check_read(&self, key: &Key, read: &ReadRules<'_>) -> Result<(), MvccError> {
        if matches!(self.kind, LockKind::Lock | LockKind::Pessimistic) {
            return Ok(());
        }
        match read.isolation {
            IsolationLevel::Rc => Ok(()),
            IsolationLevel::RcCheckTs => {
                if read.bypass.contains(&self.start_ts) {
                    return Ok(());
                }
                Err(MvccError::WriteConflict {
                    start_ts: read.ts,
                    conflict_start_ts: self.start_ts,
                    conflict_commit_ts: 0,
                    key: key.to_user(),
                    primary: self.primary.clone(),
                    reason: kvrpcpb::write_conflict::Reason::RcCheckTs,
                })
            }
            IsolationLevel::Si => {
                if self.start_ts > read.ts
                    || self.min_commit_ts > read.ts
                    || read.bypass.contains(&self.start_ts)
                {
                    return Ok(());
                }
                // The newest committed version of the primary itself: a plain 2PC lock there
                // proves that nothing is committed yet. A replica cannot know that.
                if read.ts == u64::MAX
                    && !read.replica
                    && !self.async_commit
                    && !self.one_pc
                    && key.is_user(&self.primary)
                {
                    return Ok(());
                }
                Err(MvccError::KeyIsLocked(Box::new(self.info(key.to_user()))))
            }
        }
    }
}

/// What a read brings to the judgement of a lock.
#[derive(Clone, Copy, Debug)]
pub struct ReadRules<'a> {
    /// The version read.
    pub ts: u64,
    /// The isolation level.
    pub isolation: IsolationLevel,
    /// Transactions whose locks do not hinder this read.
    pub bypass: &'a [u64],
    /// Transactions known to be committed at or below the version read.
    pub access: &'a [u64],
    /// The read is served by a follower.
    pub replica: bool,
}

/// The locks of several transactions that share one key. Members are pessimistic or lock-only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedLocks {
    /// No new member may join: an exclusive request is waiting.
    pub shrink_only: bool,
    /// By start version.
    pub members: BTreeMap<u64, Lock>,
    /// The start versions in the order in which they stand in the data.
    pub written: Vec<u64>,
}

impl SharedLocks {
    /// The start versions in the order in which the server lists them.
    pub fn listed(&self) -> Vec<u64> {
        let joined = self.members.keys().copied();
        let joined: Vec<u64> = joined.filter(|ts| !self.written.contains(ts)).collect();
        let mut listed = listed(&self.written, &joined);
        listed.retain(|start_ts| self.members.contains_key(start_ts));
        listed
    }

    /// The members in that order.
    pub fn listed_members(&self) -> impl Iterator<Item = &Lock> {
        let listed = self.listed().into_iter();
        listed.filter_map(|start_ts| self.members.get(&start_ts))
    }

    /// As clients see it: a wrapper that names every member.
    pub fn info(&self, user_key: Bytes) -> LockInfo {
        LockInfo {
            shared_lock_infos: self
                .listed_members()
                .map(|m| m.info(user_key.clone()))
                .collect(),
            lock_type: kvrpcpb::Op::SharedLock.into(),
            key: user_key,
            ..LockInfo::default()
        }
    }
}

/// What stands in the lock column family at one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyLock {
    /// One transaction's lock.
    Exclusive(Lock),
    /// Several transactions' locks.
    Shared(SharedLocks),
}

impl KeyLock {
    /// As clients see it.
    pub fn info(&self, user_key: Bytes) -> LockInfo {
        match self {
            KeyLock::Exclusive(lock) => lock.info(user_key),
            KeyLock::Shared(shared) => shared.info(user_key),
        }
    }

    /// The exclusive lock, if it is one.
    pub fn exclusive(self) -> Option<Lock> {
        match self {
            KeyLock::Exclusive(lock) => Some(lock),
            KeyLock::Shared(_) => None,
        }
    }
}

/// The physical part of a timestamp, in milliseconds.
pub fn physical(ts: u64) -> u64 {
    ts >> 18
}
