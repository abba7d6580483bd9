//! Decides about one lock, once the status of its transaction is known: how to clean it up, and
//! whether whoever met it may go on. No I/O, no clock.
//! (client-go: `LockResolver.resolve` and `resolveLocks`)

use super::status::TxnStatus;
use super::{Lock, LockKind};
use crate::time::Timestamp;

/// From how many keys in one region on a transaction is cleaned up by region instead of by key
/// (client-go: `bigTxnThreshold`, `liteResolveLocksThreshold`).
const LITE_THRESHOLD: u64 = 512;

/// Who met the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A read of the version `ts`.
    Reader {
        /// The version.
        ts: Timestamp,
        /// Whether only the locks that were met are worth cleaning up.
        lite: bool,
    },
    /// A write of the transaction that began at `start_ts`.
    Writer {
        /// When it began.
        start_ts: Timestamp,
    },
}

impl Caller {
    /// The timestamp that a live transaction is asked to commit after.
    pub(crate) fn start_ts(self) -> Timestamp {
        match self {
            Caller::Reader { ts, .. } => ts,
            Caller::Writer { start_ts } => start_ts,
        }
    }

    pub(crate) fn is_reader(self) -> bool {
        matches!(self, Caller::Reader { .. })
    }
}

/// How to get rid of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cleanup {
    /// Leave it alone.
    Nothing,
    /// End this key as its transaction ended.
    Key(Ending),
    /// End every key of its transaction in this region.
    Region(Ending),
    /// Take the pessimistic lock away.
    PessimisticRollback,
    /// Ask the secondaries how the transaction ended, then end all its keys.
    AskSecondaries,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Committed(Timestamp),
    RolledBack,
}

impl Ending {
    /// As requests have it, where zero means a rollback.
    pub(crate) fn commit_version(self) -> u64 {
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::RollBackCommitted) {
            return 0;
        }
        match self {
            Ending::Committed(ts) => ts.as_u64(),
            Ending::RolledBack => 0,
        }
    }

    pub(crate) fn status(self) -> TxnStatus {
        match self {
            Ending::Committed(ts) => TxnStatus::Committed(ts),
            Ending::RolledBack => TxnStatus::RolledBack,
        }
    }
}

/// Whether the caller may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// Once the lock is cleaned up.
    Cleared,
    /// At once, as if the lock were not there (`resolved_locks`).
    Ignore,
    /// At once, reading what the lock holds (`committed_locks`).
    Access,
    /// Not before the transaction ends or its lock expires, which takes this many milliseconds
    /// from now by the cached timestamp.
    Wait(u64),
}

/// By what a lock's age is measured: the oracle's time as last heard of, in milliseconds.
/// It may lag, so a lock may be found expired late, but never early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LowResolution(pub(crate) u64);

impl LowResolution {
    /// Milliseconds until a lock of `txn` with this TTL expires; zero if it has.
    pub(crate) fn until_expired(self, txn: Timestamp, ttl_ms: u64) -> u64 {
        txn.physical_ms()
            .saturating_add(ttl_ms)
            .saturating_sub(self.0)
    }
}

/// What to do about a lock whose transaction stands at `status`. `async_commit_ended` says that
/// its secondaries have been asked, so that an async-commit primary counts like any other.
pub(crate) fn judge(
    lock: &Lock,
    status: &TxnStatus,
    caller: Caller,
    now: LowResolution,
    async_commit_ended: bool,
) -> (Cleanup, Passage) {
    let ending = match status {
        TxnStatus::Alive {
            ttl_ms,
            pushed,
            primary,
        } => {
            let wait = now.until_expired(lock.txn, *ttl_ms);
            let is_async = primary
                .as_ref()
                .is_some_and(|primary| primary.use_async_commit);
            if is_async && !async_commit_ended && wait == 0 {
                return (Cleanup::AskSecondaries, Passage::Cleared);
            }
            return match caller {
                Caller::Reader { .. } if *pushed => (Cleanup::Nothing, Passage::Ignore),
                Caller::Reader { .. } | Caller::Writer { .. } => {
                    (Cleanup::Nothing, Passage::Wait(wait))
                }
            };
        }
        TxnStatus::Unknown => return (Cleanup::PessimisticRollback, Passage::Cleared),
        TxnStatus::Committed(ts) => Ending::Committed(*ts),
        TxnStatus::RolledBack => Ending::RolledBack,
    };
    (cleanup(lock, ending, caller), passage(ending, caller))
}

fn cleanup(lock: &Lock, ending: Ending, caller: Caller) -> Cleanup {
    let lite = matches!(caller, Caller::Reader { lite: true, .. });
    match lock.kind {
        LockKind::Pessimistic => Cleanup::PessimisticRollback,
        LockKind::Prewrite if lite || lock.txn_size < LITE_THRESHOLD => Cleanup::Key(ending),
        LockKind::Prewrite => Cleanup::Region(ending),
    }
}

fn passage(ending: Ending, caller: Caller) -> Passage {
    #[cfg(feature = "mutations")]
    match (caller, ending) {
        (Caller::Reader { .. }, Ending::Committed(_))
            if crate::mutation::is(crate::mutation::Mutation::ReadTheFuture) =>
        {
            return Passage::Access;
        }
        (Caller::Reader { .. }, Ending::Committed(_))
            if crate::mutation::is(crate::mutation::Mutation::PassCommittedLocks) =>
        {
            return Passage::Ignore;
        }
        _ => {}
    }
    match (caller, ending) {
        (Caller::Writer { .. }, _) => Passage::Cleared,
        (Caller::Reader { ts, .. }, Ending::Committed(commit_ts)) if commit_ts <= ts => {
            Passage::Access
        }
        (Caller::Reader { .. }, _) => Passage::Ignore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(kind: LockKind, txn_size: u64) -> Lock {
        Lock {
            key: "k".into(),
            primary: "p".into(),
            txn: Timestamp::new(1000, 0),
            ttl_ms: 50,
            txn_size,
            kind,
            use_async_commit: false,
            for_update_ts: Timestamp::ZERO,
            min_commit_ts: Timestamp::ZERO,
            secondaries: vec![],
        }
    }

    fn alive(ttl_ms: u64, pushed: bool, use_async_commit: bool) -> TxnStatus {
        let primary = Lock {
            use_async_commit,
            ..lock(LockKind::Prewrite, 1)
        };
        TxnStatus::Alive {
            ttl_ms,
            pushed,
            primary: Some(Box::new(primary)),
        }
    }

    #[test]
    fn the_table_of_locks() {
        use Cleanup::{AskSecondaries, Key, Nothing, PessimisticRollback, Region};
        use Passage::{Access, Cleared, Ignore, Wait};
        let small = lock(LockKind::Prewrite, 1);
        let big = lock(LockKind::Prewrite, LITE_THRESHOLD);
        let pessimistic = lock(LockKind::Pessimistic, 0);
        let at = |physical| Timestamp::new(physical, 0);
        let committed = |physical| TxnStatus::Committed(at(physical));
        let ended = |physical| Ending::Committed(at(physical));
        let reader = Caller::Reader {
            ts: at(1100),
            lite: false,
        };
        let lite = Caller::Reader {
            ts: at(1100),
            lite: true,
        };
        let writer = Caller::Writer { start_ts: at(1100) };
        let rolled_back = TxnStatus::RolledBack;
        for (lock, status, caller, now, expected) in [
            // Alive: a reader passes only a lock that can't commit below its version.
            (
                &small,
                alive(50, false, false),
                reader,
                1040,
                (Nothing, Wait(10)),
            ),
            (
                &small,
                alive(50, true, false),
                reader,
                1040,
                (Nothing, Ignore),
            ),
            (
                &small,
                alive(50, true, false),
                writer,
                1040,
                (Nothing, Wait(10)),
            ),
            (
                &small,
                alive(50, false, false),
                writer,
                2000,
                (Nothing, Wait(0)),
            ),
            // Alive, but an async commit that expired: only its secondaries know.
            (
                &small,
                alive(50, false, true),
                reader,
                1050,
                (AskSecondaries, Cleared),
            ),
            (
                &small,
                alive(50, false, true),
                reader,
                1049,
                (Nothing, Wait(1)),
            ),
            // Committed: below the version it is read, above it ignored.
            (
                &small,
                committed(1100),
                reader,
                0,
                (Key(ended(1100)), Access),
            ),
            (
                &small,
                committed(1101),
                reader,
                0,
                (Key(ended(1101)), Ignore),
            ),
            (
                &small,
                committed(1100),
                writer,
                0,
                (Key(ended(1100)), Cleared),
            ),
            (
                &big,
                committed(1100),
                reader,
                0,
                (Region(ended(1100)), Access),
            ),
            (&big, committed(1100), lite, 0, (Key(ended(1100)), Access)),
            // Rolled back.
            (
                &small,
                rolled_back.clone(),
                reader,
                0,
                (Key(Ending::RolledBack), Ignore),
            ),
            (
                &big,
                rolled_back.clone(),
                writer,
                0,
                (Region(Ending::RolledBack), Cleared),
            ),
            // Pessimistic locks are only ever taken away.
            (
                &pessimistic,
                rolled_back,
                writer,
                0,
                (PessimisticRollback, Cleared),
            ),
            (
                &pessimistic,
                TxnStatus::Unknown,
                writer,
                0,
                (PessimisticRollback, Cleared),
            ),
        ] {
            let got = judge(lock, &status, caller, LowResolution(now), false);
            assert_eq!(got, expected, "{lock:?} {status:?} {caller:?} at {now}");
        }
        let asked = judge(
            &small,
            &alive(50, false, true),
            writer,
            LowResolution(1050),
            true,
        );
        assert_eq!(asked, (Nothing, Wait(0)));
    }
}
