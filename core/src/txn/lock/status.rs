//! What is known of a transaction whose lock was met, and the cache of what can never change.
//! (client-go: `txnlock.TxnStatus`, `LockResolver.getResolved`)

use std::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use tikv_proto::kvrpcpb::{Action, CheckTxnStatusResponse};

use super::Lock;
use crate::error::{Error, Result};
use crate::time::Timestamp;

/// How a transaction stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TxnStatus {
    /// It committed. For ever.
    Committed(Timestamp),
    /// It was rolled back. For ever.
    RolledBack,
    /// Its primary holds a lock that has not expired.
    Alive {
        /// Milliseconds.
        ttl_ms: u64,
        /// Whether it can only commit after the reader's timestamp, so that the reader may look
        /// past its locks.
        pushed: bool,
        /// The lock on the primary.
        primary: Option<Box<Lock>>,
    },
    /// Nothing was found, and nothing is decided: its pessimistic primary is gone, and it may
    /// choose another.
    Unknown,
}

impl TxnStatus {
    /// Whether it can never change.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, TxnStatus::Committed(_) | TxnStatus::RolledBack)
    }

    /// Reads the answer of the store that holds the primary. The table of what action, TTL and
    /// commit version mean together.
    pub(crate) fn from_reply(reply: CheckTxnStatusResponse) -> Result<TxnStatus> {
        let action = Action::try_from(reply.action).map_err(|_| {
            Error::protocol(format!("unknown action {} of CheckTxnStatus", reply.action))
        })?;
        if reply.commit_version > 0 {
            return Ok(TxnStatus::Committed(reply.commit_version.into()));
        }
        Ok(match (action, reply.lock_ttl) {
            (Action::NoAction | Action::MinCommitTsPushed, ttl_ms) if ttl_ms > 0 => {
                TxnStatus::Alive {
                    ttl_ms,
                    pushed: action == Action::MinCommitTsPushed,
                    primary: reply.lock_info.map(|info| Box::new(Lock::from(*info))),
                }
            }
            (
                Action::NoAction
                | Action::MinCommitTsPushed
                | Action::LockNotExistRollback
                | Action::TtlExpireRollback,
                _,
            ) => TxnStatus::RolledBack,
            (Action::LockNotExistDoNothing | Action::TtlExpirePessimisticRollback, _) => {
                TxnStatus::Unknown
            }
        })
    }
}

/// How many transactions are remembered (client-go: `resolvedCacheSize`).
const CACHE_SIZE: usize = 2048;

/// Transactions that have ended, the first to be learned the first to be forgotten.
#[derive(Default)]
pub(crate) struct StatusCache {
    ended: HashMap<Timestamp, TxnStatus, FixedState>,
    order: VecDeque<Timestamp>,
}

impl StatusCache {
    pub(crate) fn get(&self, txn: Timestamp) -> Option<&TxnStatus> {
        self.ended.get(&txn)
    }

    /// Remembers an end. What is not final is not remembered.
    ///
    /// # Errors
    ///
    /// It is known to have ended otherwise, which no honest server says.
    pub(crate) fn put(&mut self, txn: Timestamp, status: &TxnStatus) -> Result<()> {
        if !status.is_final() {
            return Ok(());
        }
        if let Some(known) = self.ended.get(&txn) {
            return match known == status {
                true => Ok(()),
                false => Err(Error::protocol(format!(
                    "transaction {txn} has two ends: {known:?} and {status:?}"
                ))),
            };
        }
        if self.order.len() == CACHE_SIZE
            && let Some(oldest) = self.order.pop_front()
        {
            self.ended.remove(&oldest);
        }
        self.order.push_back(txn);
        self.ended.insert(txn, status.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tikv_proto::kvrpcpb::LockInfo;

    #[test]
    fn every_answer_has_one_meaning() {
        use Action::*;
        let alive = |pushed| TxnStatus::Alive {
            ttl_ms: 9,
            pushed,
            primary: None,
        };
        for (action, ttl, commit, expected) in [
            (NoAction, 0, 7, TxnStatus::Committed(7.into())),
            (NoAction, 0, 0, TxnStatus::RolledBack),
            (NoAction, 9, 0, alive(false)),
            (MinCommitTsPushed, 9, 0, alive(true)),
            (TtlExpireRollback, 0, 0, TxnStatus::RolledBack),
            (LockNotExistRollback, 0, 0, TxnStatus::RolledBack),
            (LockNotExistDoNothing, 0, 0, TxnStatus::Unknown),
            (TtlExpirePessimisticRollback, 0, 0, TxnStatus::Unknown),
        ] {
            let reply = CheckTxnStatusResponse {
                action: action.into(),
                lock_ttl: ttl,
                commit_version: commit,
                ..Default::default()
            };
            assert_eq!(
                TxnStatus::from_reply(reply),
                Ok(expected),
                "{action:?} {ttl} {commit}"
            );
        }
        let reply = CheckTxnStatusResponse {
            action: 77,
            ..Default::default()
        };
        assert!(matches!(
            TxnStatus::from_reply(reply),
            Err(Error::Protocol { .. })
        ));
    }

    #[test]
    fn the_primary_lock_travels_with_a_live_status() {
        let reply = CheckTxnStatusResponse {
            lock_ttl: 9,
            lock_info: Some(Box::new(LockInfo {
                lock_version: 5,
                ..Default::default()
            })),
            ..Default::default()
        };
        let Ok(TxnStatus::Alive {
            primary: Some(primary),
            ..
        }) = TxnStatus::from_reply(reply)
        else {
            panic!("no primary");
        };
        assert_eq!(primary.txn, Timestamp::from(5));
    }

    #[test]
    fn the_cache_keeps_ends_only_and_forgets_the_oldest() {
        let mut cache = StatusCache::default();
        let committed = |ts: u64| TxnStatus::Committed(ts.into());
        assert_eq!(cache.put(1.into(), &TxnStatus::Unknown), Ok(()));
        assert_eq!(cache.get(1.into()), None);
        for n in 0..=CACHE_SIZE as u64 {
            assert_eq!(cache.put(n.into(), &committed(n + 1)), Ok(()));
            // Learning it again does not make it younger.
            assert_eq!(cache.put(0.into(), &committed(1)), Ok(()));
        }
        assert_eq!(cache.ended.len(), CACHE_SIZE);
        assert!(cache.get((CACHE_SIZE as u64).into()).is_some());
    }

    #[test]
    fn a_transaction_does_not_end_twice() {
        let mut cache = StatusCache::default();
        let ended = TxnStatus::Committed(9.into());
        assert_eq!(cache.put(1.into(), &ended), Ok(()));
        for other in [TxnStatus::RolledBack, TxnStatus::Committed(8.into())] {
            let refused = cache.put(1.into(), &other);
            assert!(matches!(refused, Err(Error::Protocol { .. })), "{other:?}");
        }
        assert_eq!(cache.get(1.into()), Some(&ended));
    }
}
