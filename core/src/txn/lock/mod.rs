//! Locks of other transactions: what they mean, whose they are, and how to get past them.
//!
//! `status` holds what is known of a transaction and the cache of it, `verdict` decides about one
//! lock, `resolver` asks and acts. (client-go: `txnlock`)

pub(crate) mod resolver;
pub(crate) mod status;
pub(crate) mod verdict;

use tikv_proto::kvrpcpb;

use crate::key::Key;
use crate::time::Timestamp;

/// A lock, as a server reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    pub(crate) key: Key,
    pub(crate) primary: Key,
    /// The transaction: its start timestamp.
    pub(crate) txn: Timestamp,
    /// Milliseconds. Zero tells a writer to resolve the lock whatever its age.
    pub(crate) ttl_ms: u64,
    /// How many keys the transaction locks in this region, as far as it told.
    pub(crate) txn_size: u64,
    pub(crate) kind: LockKind,
    pub(crate) use_async_commit: bool,
    pub(crate) for_update_ts: Timestamp,
    pub(crate) min_commit_ts: Timestamp,
    pub(crate) secondaries: Vec<Key>,
}

/// What differs in how a lock is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockKind {
    /// Written by a prewrite: it holds a value, a deletion or a mere lock.
    Prewrite,
    /// Taken before the commit. It never blocks a reader.
    Pessimistic,
}

impl Lock {
    /// Reads a lock; a shared lock stands for those of its members.
    pub(crate) fn expand(info: kvrpcpb::LockInfo) -> Vec<Lock> {
        if info.shared_lock_infos.is_empty() {
            return vec![Lock::from(info)];
        }
        let key = info.key;
        info.shared_lock_infos
            .into_iter()
            .map(|mut member| {
                if member.key.is_empty() {
                    member.key = key.clone();
                }
                Lock::from(member)
            })
            .collect()
    }
}

impl From<kvrpcpb::LockInfo> for Lock {
    fn from(info: kvrpcpb::LockInfo) -> Self {
        let kind = match info.lock_type() {
            kvrpcpb::Op::PessimisticLock | kvrpcpb::Op::SharedPessimisticLock => {
                LockKind::Pessimistic
            }
            _ => LockKind::Prewrite,
        };
        Lock {
            key: info.key.into(),
            primary: info.primary_lock.into(),
            txn: info.lock_version.into(),
            ttl_ms: info.lock_ttl,
            txn_size: info.txn_size,
            kind,
            use_async_commit: info.use_async_commit,
            for_update_ts: info.lock_for_update_ts.into(),
            min_commit_ts: info.min_commit_ts.into(),
            secondaries: info.secondaries.into_iter().map(Key::from).collect(),
        }
    }
}
