//! What can go wrong with a key, and how it is told to a client.
//!
//! Region errors are another subject (`region_checks`). Texts of the `abort` kind follow the form
//! of the server's, because people read them; no client may take them apart.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{self, KeyError, LockInfo};

/// Why a pessimistic lock that must exist does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMissing {
    /// Another transaction holds the key.
    LockTsMismatch,
    /// No lock, and the key has changed since the transaction started.
    LockMissingAmendFail,
    /// The lock was granted at another version than the client expects.
    LockForUpdateTsMismatch,
    /// A key that was never locked has changed.
    NonLockKeyConflict,
}

/// A command's failure on a key.
#[derive(Clone, Debug, PartialEq)]
pub enum MvccError {
    /// Another transaction's lock is in the way.
    KeyIsLocked(Box<LockInfo>),
    /// A newer version, or this transaction's own rollback, is in the way.
    WriteConflict {
        /// The transaction that failed.
        start_ts: u64,
        /// Start version of the record in the way.
        conflict_start_ts: u64,
        /// Commit version of the record in the way.
        conflict_commit_ts: u64,
        /// User key.
        key: Bytes,
        /// The primary as the request named it.
        primary: Bytes,
        /// Which rule failed.
        reason: kvrpcpb::write_conflict::Reason,
    },
    /// An insert met a value.
    AlreadyExist {
        /// User key.
        key: Bytes,
    },
    /// A commit found neither its lock nor its commit record.
    TxnLockNotFound {
        /// The transaction.
        start_ts: u64,
        /// The version it wanted to commit at.
        commit_ts: u64,
        /// User key.
        key: Bytes,
        /// Versions of the key, when the case is unexpected.
        mvcc: Option<Box<kvrpcpb::MvccInfo>>,
    },
    /// Nothing is known of the transaction.
    TxnNotFound {
        /// The transaction.
        start_ts: u64,
        /// User key.
        key: Bytes,
    },
    /// The commit version is below the lock's minimum.
    CommitTsExpired {
        /// The transaction.
        start_ts: u64,
        /// The version it wanted to commit at.
        commit_ts: u64,
        /// User key.
        key: Bytes,
        /// The lock's minimum.
        min_commit_ts: u64,
        /// Versions of the key, when the case is unexpected.
        mvcc: Option<Box<kvrpcpb::MvccInfo>>,
    },
    /// The calculated commit version is above the request's maximum.
    CommitTsTooLarge {
        /// The calculated version.
        min_commit_ts: u64,
    },
    /// The client's belief about the previous version is wrong.
    AssertionFailed {
        /// The transaction.
        start_ts: u64,
        /// User key.
        key: Bytes,
        /// What was believed.
        assertion: kvrpcpb::Assertion,
        /// Start version of the previous version, 0 if none.
        existing_start_ts: u64,
        /// Commit version of the previous version, 0 if none.
        existing_commit_ts: u64,
    },
    /// The lock names another primary than the request.
    PrimaryMismatch(Box<LockInfo>),
    /// A pessimistic lock that must exist does not.
    PessimisticLockNotFound {
        /// The transaction.
        start_ts: u64,
        /// User key.
        key: Bytes,
        /// Why.
        reason: LockMissing,
    },
    /// A rollback met a committed transaction.
    Committed {
        /// The transaction.
        start_ts: u64,
        /// Its commit version.
        commit_ts: u64,
        /// User key.
        key: Bytes,
    },
    /// A late flush; the mutation is skipped and no client sees this.
    GenerationOutOfOrder,
    /// An exclusive request met shared locks that still admit members; no client sees this.
    NotShrinkOnly(super::lock::SharedLocks),
    /// The wait for this key would close a circle.
    Deadlock(Box<kvrpcpb::Deadlock>),
    /// A version beyond what PD has given out; becomes a region error of a message alone.
    InvalidMaxTs(String),
    /// Anything else: told as text.
    Abort(String),
}

impl MvccError {
    /// An abort below the MVCC layer, in the server's form.
    pub fn mvcc(inner: impl std::fmt::Display) -> Self {
        MvccError::Abort(format!("Error(Txn(Error(Mvcc(Error({inner})))))"))
    }

    /// An abort of the transaction layer, in the server's form.
    pub fn txn(inner: impl std::fmt::Display) -> Self {
        MvccError::Abort(format!("Error(Txn(Error({inner})))"))
    }

    /// What a request that crashes a real server gets here.
    pub fn crash(what: impl std::fmt::Display) -> Self {
        MvccError::Abort(format!("a real server would crash: {what}"))
    }

    /// A commit version that is not above the start version.
    pub fn invalid_txn_tso(start_ts: u64, commit_ts: u64) -> Self {
        MvccError::txn(format_args!(
            "InvalidTxnTso {{ start_ts: TimeStamp({start_ts}), commit_ts: TimeStamp({commit_ts}) }}"
        ))
    }

    /// A lock of the wrong kind for the command.
    pub fn lock_type_not_match(start_ts: u64, key: &Bytes, pessimistic: bool) -> Self {
        MvccError::mvcc(format_args!(
            "LockTypeNotMatch {{ start_ts: TimeStamp({start_ts}), key: {}, pessimistic: {pessimistic} }}",
            list(key)
        ))
    }

    /// The value of a write record is missing.
    pub fn default_not_found(key: &Bytes) -> Self {
        MvccError::mvcc(format_args!("DefaultNotFound {{ key: {} }}", list(key)))
    }

    /// The error as the reply carries it.
    pub fn to_key_error(&self) -> KeyError {
        let mut out = KeyError::default();
        match self {
            MvccError::KeyIsLocked(info) => out.locked = Some(info.clone()),
            MvccError::WriteConflict {
                start_ts,
                conflict_start_ts,
                conflict_commit_ts,
                key,
                primary,
                reason,
            } => {
                out.conflict = Some(kvrpcpb::WriteConflict {
                    start_ts: *start_ts,
                    conflict_ts: *conflict_start_ts,
                    conflict_commit_ts: *conflict_commit_ts,
                    key: key.clone(),
                    primary: primary.clone(),
                    reason: (*reason).into(),
                });
                out.retryable = format!(
                    "Error(Txn(Error(Mvcc(Error(WriteConflict {{ start_ts: TimeStamp({start_ts}), \
                     conflict_start_ts: TimeStamp({conflict_start_ts}), \
                     conflict_commit_ts: TimeStamp({conflict_commit_ts}), key: {}, primary: {}, \
                     reason: {reason:?} }})))))",
                    list(key),
                    list(primary)
                );
            }
            MvccError::AlreadyExist { key } => {
                out.already_exist = Some(kvrpcpb::AlreadyExist { key: key.clone() });
            }
            MvccError::TxnLockNotFound {
                start_ts,
                commit_ts,
                key,
                mvcc,
            } => {
                out.retryable = format!(
                    "Error(Txn(Error(Mvcc(Error(TxnLockNotFound {{ start_ts: TimeStamp({start_ts}), \
                     commit_ts: TimeStamp({commit_ts}), key: {}, mvcc_info: None }})))))",
                    list(key)
                );
                out.txn_lock_not_found = Some(kvrpcpb::TxnLockNotFound { key: key.clone() });
                out.debug_info = debug_info(key, mvcc);
            }
            MvccError::TxnNotFound { start_ts, key } => {
                out.txn_not_found = Some(kvrpcpb::TxnNotFound {
                    start_ts: *start_ts,
                    primary_key: key.clone(),
                });
            }
            MvccError::CommitTsExpired {
                start_ts,
                commit_ts,
                key,
                min_commit_ts,
                mvcc,
            } => {
                out.commit_ts_expired = Some(kvrpcpb::CommitTsExpired {
                    start_ts: *start_ts,
                    attempted_commit_ts: *commit_ts,
                    key: key.clone(),
                    min_commit_ts: *min_commit_ts,
                });
                out.debug_info = debug_info(key, mvcc);
            }
            MvccError::CommitTsTooLarge { min_commit_ts } => {
                out.commit_ts_too_large = Some(kvrpcpb::CommitTsTooLarge {
                    commit_ts: *min_commit_ts,
                });
            }
            MvccError::AssertionFailed {
                start_ts,
                key,
                assertion,
                existing_start_ts,
                existing_commit_ts,
            } => {
                out.assertion_failed = Some(kvrpcpb::AssertionFailed {
                    start_ts: *start_ts,
                    key: key.clone(),
                    assertion: (*assertion).into(),
                    existing_start_ts: *existing_start_ts,
                    existing_commit_ts: *existing_commit_ts,
                });
            }
            MvccError::PrimaryMismatch(info) => {
                out.primary_mismatch = Some(kvrpcpb::PrimaryMismatch {
                    lock_info: Some(info.clone()),
                });
            }
            MvccError::Deadlock(deadlock) => out.deadlock = Some((**deadlock).clone()),
            MvccError::PessimisticLockNotFound {
                start_ts,
                key,
                reason,
            } => {
                out.abort = format!(
                    "Error(Txn(Error(Mvcc(Error(PessimisticLockNotFound {{ start_ts: \
                     TimeStamp({start_ts}), key: {}, reason: {reason:?} }})))))",
                    list(key)
                );
            }
            MvccError::Committed {
                start_ts,
                commit_ts,
                key,
            } => {
                out.abort = format!(
                    "Error(Txn(Error(Mvcc(Error(Committed {{ start_ts: TimeStamp({start_ts}), \
                     commit_ts: TimeStamp({commit_ts}), key: {} }})))))",
                    list(key)
                );
            }
            MvccError::GenerationOutOfOrder => out.abort = "generation out of order".to_owned(),
            MvccError::NotShrinkOnly(_) => out.abort = "shared locks admit members".to_owned(),
            MvccError::InvalidMaxTs(text) | MvccError::Abort(text) => out.abort = text.clone(),
        }
        out
    }
}

/// Bytes as the server's debug output lists them.
pub fn list(bytes: &[u8]) -> String {
    format!("{bytes:?}")
}

fn debug_info(key: &Bytes, mvcc: &Option<Box<kvrpcpb::MvccInfo>>) -> Option<kvrpcpb::DebugInfo> {
    // Long values are left out here.
    let mvcc = kvrpcpb::MvccInfo {
        values: Vec::new(),
        ..mvcc.as_deref()?.clone()
    };
    Some(kvrpcpb::DebugInfo {
        mvcc_info: vec![kvrpcpb::MvccDebugInfo {
            key: key.clone(),
            mvcc: Some(Box::new(mvcc)),
        }],
    })
}
