//! Gets past locks: asks how their transactions stand, cleans up what has ended, and tells the
//! caller whether to go on, look past them, or wait.
//!
//! What is decided stands in `verdict`. A reader's clean-up runs behind its back, a writer waits
//! for its own. (client-go: `LockResolver`)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tikv_proto::kvrpcpb;

use super::status::{StatusCache, TxnStatus};
use super::verdict::{Caller, Cleanup, Ending, LowResolution, Passage, judge};
use super::{Lock, LockKind};
use crate::backoff::{Backoffer, budget};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::operation::{Io, Operation};
use crate::rpc::cluster::Cluster;
use crate::rpc::send::{Outcome, SendOptions};
use crate::time::Timestamp;
use crate::txn::key_error::KeyFailure;
use crate::why::BackoffKind;

/// The way past locks, shared by all transactions and snapshots of a client.
pub(crate) struct LockResolver {
    cluster: Arc<Cluster>,
    ended: Mutex<StatusCache>,
}

/// What came of resolving the locks that a request met.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// How many milliseconds to wait before trying again; `None`: try at once.
    pub(crate) wait_ms: Option<u64>,
    /// Transactions whose locks a reader may look past.
    pub(crate) ignore: Vec<Timestamp>,
    /// Transactions whose locks a reader may read through.
    pub(crate) access: Vec<Timestamp>,
}

impl Resolved {
    fn add(&mut self, txn: Timestamp, passage: Passage) {
        match passage {
            Passage::Cleared => {}
            Passage::Ignore => self.ignore.push(txn),
            Passage::Access => self.access.push(txn),
            Passage::Wait(ms) => {
                self.wait_ms = Some(self.wait_ms.map_or(ms, |least| least.min(ms)));
            }
        }
    }
}

/// What there is to clean up, gathered so that one request does for many locks.
#[derive(Default)]
struct Chores {
    keys: BTreeMap<Timestamp, (Ending, Vec<Key>)>,
    regions: Vec<(Timestamp, Ending, Key)>,
    pessimistic: Vec<Lock>,
}

impl Chores {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.regions.is_empty() && self.pessimistic.is_empty()
    }

    fn add_key(&mut self, txn: Timestamp, ending: Ending, key: Key) {
        self.keys
            .entry(txn)
            .or_insert_with(|| (ending, Vec::new()))
            .1
            .push(key);
    }
}

impl LockResolver {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        LockResolver {
            cluster,
            ended: Mutex::new(StatusCache::default()),
        }
    }

    fn ended(&self) -> MutexGuard<'_, StatusCache> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves the locks that `caller` met.
    ///
    /// # Errors
    ///
    /// Statuses could not be asked within the budget; for writers also: clean-up failed.
    pub(crate) async fn resolve(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        caller: Caller,
        locks: Vec<Lock>,
    ) -> Result<Resolved> {
        let mut resolved = Resolved::default();
        if locks.is_empty() {
            return Ok(resolved);
        }
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::SkipLockResolution) && caller.is_reader()
        {
            resolved.ignore.extend(locks.iter().map(|lock| lock.txn));
            return Ok(resolved);
        }
        let mut chores = Chores::default();
        for lock in locks {
            let passage = self
                .judge_one(io, backoff, caller, &lock, &mut chores)
                .await?;
            resolved.add(lock.txn, passage);
        }
        if chores.is_empty() {
            return Ok(resolved);
        }
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::NeverCleanUp) && caller.is_reader() {
            return Ok(resolved);
        }
        if caller.is_reader() {
            let resolver = self.clone();
            io.spawn(Operation::new("resolve_locks", |io: Io| async move {
                let mut backoff = resolver.cluster.backoff(budget::ASYNC_RESOLVE_MS, None);
                // Best effort: whoever meets these locks next does it again.
                let _ = resolver.clean_up(&io, &mut backoff, chores).await;
            }));
        } else {
            self.clean_up(io, backoff, chores).await?;
        }
        Ok(resolved)
    }

    async fn judge_one(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        caller: Caller,
        lock: &Lock,
        chores: &mut Chores,
    ) -> Result<Passage> {
        let now = self.cluster.low_resolution(io, backoff).await?;
        let mut status = self.status_of(io, backoff, lock, caller, false).await?;
        let low = LowResolution(now.physical_ms());
        let mut judged = judge(lock, &status, caller, low, false);
        if judged.0 == Cleanup::AskSecondaries {
            status = self
                .end_async_commit(io, backoff, lock, &status, caller, chores)
                .await?;
            judged = judge(lock, &status, caller, low, true);
        }
        let (cleanup, passage) = judged;
        if passage == Passage::Wait(0) {
            // Expired by the timestamp that was heard last, but not by TiKV's stricter rule. Asked
            // again with the same timestamp it would say the same again.
            self.cluster.timestamp(io, backoff).await?;
        }
        match cleanup {
            Cleanup::Nothing | Cleanup::AskSecondaries => {}
            // Asking about the primary has cleaned it up.
            Cleanup::Key(_) | Cleanup::PessimisticRollback if lock.key == lock.primary => {}
            Cleanup::Key(ending) => chores.add_key(lock.txn, ending, lock.key.clone()),
            Cleanup::Region(ending) => chores.regions.push((lock.txn, ending, lock.key.clone())),
            Cleanup::PessimisticRollback => chores.pessimistic.push(lock.clone()),
        }
        Ok(passage)
    }

    /// How the transaction of a lock stands, by its primary.
    async fn status_of(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        lock: &Lock,
        caller: Caller,
        force_sync_commit: bool,
    ) -> Result<TxnStatus> {
        let mut rollback_if_not_exist = false;
        loop {
            if let Some(status) = self.ended().get(lock.txn) {
                return Ok(status.clone());
            }
            let now = self.cluster.low_resolution(io, backoff).await?;
            #[cfg(feature = "mutations")]
            if crate::mutation::is(crate::mutation::Mutation::ExpiredIsRolledBack)
                && LowResolution(now.physical_ms()).until_expired(lock.txn, lock.ttl_ms) == 0
            {
                return Ok(TxnStatus::RolledBack);
            }
            let current_ts = if lock.ttl_ms == 0 {
                Timestamp::MAX
            } else {
                now
            };
            let request = kvrpcpb::CheckTxnStatusRequest {
                primary_key: lock.primary.as_bytes().clone(),
                lock_ts: lock.txn.as_u64(),
                caller_start_ts: caller.start_ts().as_u64(),
                current_ts: current_ts.as_u64(),
                rollback_if_not_exist,
                force_sync_commit,
                resolving_pessimistic_lock: lock.kind == LockKind::Pessimistic,
                verify_is_primary: true,
                ..Default::default()
            };
            let options = SendOptions::write(self.cluster.config());
            let mut reply = self
                .cluster
                .send_to_key(io, backoff, &lock.primary, request, &options)
                .await?;
            match reply.error.take().map(|error| KeyFailure::from(*error)) {
                None => {
                    let status = TxnStatus::from_reply(reply)?;
                    self.ended().put(lock.txn, &status)?;
                    return Ok(status);
                }
                // The primary is not there: not yet, or never. Its absence may only be made final
                // once it is certain that nobody is about to write it.
                Some(KeyFailure::TxnNotFound) if rollback_if_not_exist => {
                    return Err(Error::protocol(format!(
                        "transaction {} is neither found nor rolled back for good",
                        lock.txn
                    )));
                }
                Some(KeyFailure::TxnNotFound) => {
                    let now = LowResolution(now.physical_ms());
                    if now.until_expired(lock.txn, lock.ttl_ms) == 0 {
                        rollback_if_not_exist = true;
                    } else if lock.kind == LockKind::Pessimistic {
                        let ttl_ms = lock.ttl_ms;
                        return Ok(TxnStatus::Alive {
                            ttl_ms,
                            pushed: false,
                            primary: None,
                        });
                    } else {
                        let cause = KeyFailure::TxnNotFound.into_error();
                        backoff.wait(io, BackoffKind::TxnNotFound, cause).await?;
                    }
                }
                // The owner chose another primary; this lock is a left-over.
                Some(KeyFailure::PrimaryMismatch(_)) if lock.kind == LockKind::Pessimistic => {
                    return Ok(TxnStatus::Unknown);
                }
                Some(failure) => return Err(failure.into_error()),
            }
        }
    }

    /// Finds out how a transaction with async commit ended whose primary has expired: by its
    /// secondaries. All its keys become chores.
    async fn end_async_commit(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        lock: &Lock,
        status: &TxnStatus,
        caller: Caller,
        chores: &mut Chores,
    ) -> Result<TxnStatus> {
        let TxnStatus::Alive {
            primary: Some(primary),
            ..
        } = status
        else {
            return Ok(status.clone());
        };
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::RollBackByPrimary) {
            chores.add_key(lock.txn, Ending::RolledBack, lock.primary.clone());
            return Ok(TxnStatus::RolledBack);
        }
        match self.ask_secondaries(io, backoff, primary).await? {
            Some((ending, keys)) => {
                let status = ending.status();
                self.ended().put(lock.txn, &status)?;
                for key in keys.into_iter().chain([lock.primary.clone()]) {
                    chores.add_key(lock.txn, ending, key);
                }
                Ok(status)
            }
            // A secondary was prewritten without async commit, so the primary decides after all.
            None => self.status_of(io, backoff, lock, caller, true).await,
        }
    }

    /// How the secondaries of `primary` say that their transaction ended, with the keys that are
    /// still locked. `None` if one of them knows nothing of async commit.
    async fn ask_secondaries(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        primary: &Lock,
    ) -> Result<Option<(Ending, Vec<Key>)>> {
        let mut secondaries = Secondaries::new(primary.min_commit_ts);
        let mut waiting: Vec<Key> = primary.secondaries.clone();
        waiting.sort();
        let options = SendOptions::write(self.cluster.config());
        while !waiting.is_empty() {
            let (region, items) = self.cluster.first_group(io, backoff, &waiting).await?;
            let keys = &waiting[..items];
            let request = kvrpcpb::CheckSecondaryLocksRequest {
                keys: keys.iter().map(|key| key.as_bytes().clone()).collect(),
                start_version: primary.txn.as_u64(),
                ..Default::default()
            };
            let sent = self
                .cluster
                .send(io, backoff, &region, request, &options)
                .await;
            match sent.outcome? {
                Outcome::Relocate(relocate) => {
                    relocate.back_off(io, backoff).await?;
                    continue;
                }
                Outcome::Answer(mut reply) => {
                    if let Some(error) = reply.error.take() {
                        return Err(KeyFailure::from(*error).into_error());
                    }
                    let locks = reply.locks.into_iter().map(Lock::from).collect();
                    if !secondaries.add(primary.txn, items, locks, reply.commit_ts.into())? {
                        return Ok(None);
                    }
                }
            }
            waiting.drain(..items);
        }
        Ok(Some(secondaries.end()))
    }

    async fn clean_up(&self, io: &Io, backoff: &mut Backoffer, chores: Chores) -> Result<()> {
        for (txn, (ending, keys)) in chores.keys {
            self.resolve_keys(io, backoff, txn, ending, keys).await?;
        }
        let mut done = BTreeSet::new();
        for (txn, ending, key) in chores.regions {
            let region = self.cluster.locate(io, backoff, &key).await?;
            if done.insert((txn, region.ver_id())) {
                self.resolve_region(io, backoff, txn, ending, key).await?;
            }
        }
        for lock in chores.pessimistic {
            self.roll_back_pessimistic(io, backoff, lock).await?;
        }
        Ok(())
    }

    /// Ends some keys of a transaction, one request for each region.
    async fn resolve_keys(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        txn: Timestamp,
        ending: Ending,
        mut keys: Vec<Key>,
    ) -> Result<()> {
        keys.sort();
        keys.dedup();
        while !keys.is_empty() {
            let (region, items) = self.cluster.first_group(io, backoff, &keys).await?;
            let request = kvrpcpb::ResolveLockRequest {
                start_version: txn.as_u64(),
                commit_version: ending.commit_version(),
                keys: keys[..items]
                    .iter()
                    .map(|key| key.as_bytes().clone())
                    .collect(),
                ..Default::default()
            };
            let options = SendOptions::write(self.cluster.config());
            let sent = self
                .cluster
                .send(io, backoff, &region, request, &options)
                .await;
            match sent.outcome? {
                Outcome::Relocate(relocate) => relocate.back_off(io, backoff).await?,
                Outcome::Answer(reply) => {
                    if let Some(error) = reply.error {
                        return Err(KeyFailure::from(*error).into_error());
                    }
                    keys.drain(..items);
                }
            }
        }
        Ok(())
    }

    /// Ends every key of a transaction in the region that holds `key`.
    async fn resolve_region(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        txn: Timestamp,
        ending: Ending,
        key: Key,
    ) -> Result<()> {
        let request = kvrpcpb::ResolveLockRequest {
            start_version: txn.as_u64(),
            commit_version: ending.commit_version(),
            ..Default::default()
        };
        let options = SendOptions::write(self.cluster.config());
        let reply = self
            .cluster
            .send_to_key(io, backoff, &key, request, &options)
            .await?;
        match reply.error {
            Some(error) => Err(KeyFailure::from(*error).into_error()),
            None => Ok(()),
        }
    }

    async fn roll_back_pessimistic(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        lock: Lock,
    ) -> Result<()> {
        let for_update_ts = if lock.for_update_ts.is_zero() {
            Timestamp::MAX
        } else {
            lock.for_update_ts
        };
        let request = kvrpcpb::PessimisticRollbackRequest {
            start_version: lock.txn.as_u64(),
            for_update_ts: for_update_ts.as_u64(),
            keys: vec![lock.key.as_bytes().clone()],
            ..Default::default()
        };
        let options = SendOptions::write(self.cluster.config());
        let reply = self
            .cluster
            .send_to_key(io, backoff, &lock.key, request, &options)
            .await?;
        match reply.errors.into_iter().next() {
            Some(error) => Err(KeyFailure::from(error).into_error()),
            None => Ok(()),
        }
    }
}

/// What the secondaries of an async commit have said so far.
/// (client-go: `asyncResolveData`)
struct Secondaries {
    commit_ts: Timestamp,
    /// Set once a lock was missing: from then on the answer is settled, and all must agree.
    missing: bool,
    locked: Vec<Key>,
}

impl Secondaries {
    fn new(min_commit_ts: Timestamp) -> Self {
        Secondaries {
            commit_ts: min_commit_ts,
            missing: false,
            locked: Vec::new(),
        }
    }

    /// Takes in the answer about `asked` keys. `false`: a lock is not of an async commit.
    fn add(
        &mut self,
        txn: Timestamp,
        asked: usize,
        locks: Vec<Lock>,
        commit_ts: Timestamp,
    ) -> Result<bool> {
        if locks.len() < asked {
            if self.missing && self.commit_ts != commit_ts {
                return Err(Error::protocol(format!(
                    "secondaries of transaction {txn} disagree: committed at {} and at {commit_ts}",
                    self.commit_ts
                )));
            }
            if !commit_ts.is_zero() && commit_ts < self.commit_ts && !self.missing {
                return Err(Error::protocol(format!(
                    "transaction {txn} committed at {commit_ts}, below its lowest possible {}",
                    self.commit_ts
                )));
            }
            self.missing = true;
            self.commit_ts = commit_ts;
            return Ok(true);
        }
        for lock in locks {
            if lock.txn != txn {
                return Err(Error::protocol(format!(
                    "asked for the locks of transaction {txn}, got one of {}",
                    lock.txn
                )));
            }
            if !lock.use_async_commit {
                return Ok(false);
            }
            if !self.missing {
                self.commit_ts = self.commit_ts.max(lock.min_commit_ts);
            }
            self.locked.push(lock.key);
        }
        Ok(true)
    }

    fn end(self) -> (Ending, Vec<Key>) {
        let ending = if self.commit_ts.is_zero() {
            Ending::RolledBack
        } else {
            Ending::Committed(self.commit_ts)
        };
        (ending, self.locked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(key: &str, min_commit_ts: u64, use_async_commit: bool) -> Lock {
        Lock {
            key: key.into(),
            primary: "p".into(),
            txn: 5.into(),
            ttl_ms: 1,
            txn_size: 1,
            kind: LockKind::Prewrite,
            use_async_commit,
            for_update_ts: Timestamp::ZERO,
            min_commit_ts: min_commit_ts.into(),
            secondaries: vec![],
        }
    }

    #[test]
    fn all_locks_there_commit_at_the_highest_minimum() {
        let mut said = Secondaries::new(7.into());
        let locks = vec![lock("a", 6, true), lock("b", 9, true)];
        assert_eq!(said.add(5.into(), 2, locks, Timestamp::ZERO), Ok(true));
        assert_eq!(
            said.end(),
            (Ending::Committed(9.into()), vec!["a".into(), "b".into()])
        );
    }

    #[test]
    fn a_missing_lock_settles_it_and_the_others_must_agree() {
        for (commit_ts, ending) in [(8, Ending::Committed(8.into())), (0, Ending::RolledBack)] {
            let mut said = Secondaries::new(7.into());
            assert_eq!(
                said.add(5.into(), 2, vec![lock("a", 99, true)], commit_ts.into()),
                Ok(true)
            );
            assert_eq!(
                said.add(5.into(), 1, vec![lock("b", 99, true)], 0.into()),
                Ok(true)
            );
            assert!(said.add(5.into(), 1, vec![], 77.into()).is_err());
            assert_eq!(said.end(), (ending, vec!["b".into()]));
        }
        let mut said = Secondaries::new(7.into());
        assert!(said.add(5.into(), 1, vec![], 6.into()).is_err());
    }

    #[test]
    fn a_plain_lock_among_them_leaves_it_to_the_primary() {
        let mut said = Secondaries::new(7.into());
        assert_eq!(
            said.add(5.into(), 1, vec![lock("a", 0, false)], 0.into()),
            Ok(false)
        );
        let mut other = lock("a", 0, true);
        other.txn = 6.into();
        assert!(said.add(5.into(), 1, vec![other], 0.into()).is_err());
    }
}
