//! Carries out a two-phase commit: feeds [`Phase`] with what happens, and does what it says.
//!
//! The whole of it runs as an operation of its own, so that a caller who leaves can't stop it
//! half way. What is left once the caller has its answer (the other keys, or the removal of
//! locks) runs on behind its back. (client-go: `twoPhaseCommitter.execute`)

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tikv_proto::kvrpcpb;

use super::heartbeat::Heartbeat;
use super::mutation::Mutations;
use super::phase::{Event, Phase, Step};
use super::prewrite::{self, Terms, Verdict};
use super::ttl::lock_ttl_ms;
use crate::backoff::{Backoffer, budget};
use crate::command::{Call, RegionResponse};
use crate::error::{Error, Result};
use crate::operation::{Io, Operation};
use crate::region::Region;
use crate::rpc::batch::{Batch, cut, primary_first};
use crate::rpc::cluster::Cluster;
use crate::rpc::send::{Outcome, SendOptions};
use crate::time::{Instant, Timestamp};
use crate::txn::key_error::KeyFailure;
use crate::txn::lock::Lock;
use crate::txn::lock::resolver::LockResolver;
use crate::txn::lock::verdict::{Caller, Ending};
use crate::txn::snapshot::locked;
use crate::why::BackoffKind;

/// What a commit is given.
pub(crate) struct CommitInput {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) resolver: Arc<LockResolver>,
    pub(crate) mutations: Mutations,
    pub(crate) start_ts: Timestamp,
    /// When the transaction began, on the driver's clock.
    pub(crate) began: Instant,
    pub(crate) deadline: Option<Instant>,
}

/// Commits; the commit timestamp, or `None` if nothing was to be written after all.
pub(crate) async fn commit(io: &Io, input: CommitInput) -> Result<Option<Timestamp>> {
    let committer = Arc::new(Committer {
        cluster: input.cluster,
        resolver: input.resolver,
        start_ts: input.start_ts,
        deadline: input.deadline,
    });
    committer
        .execute(io, Arc::new(input.mutations), input.began)
        .await
}

struct Committer {
    cluster: Arc<Cluster>,
    resolver: Arc<LockResolver>,
    start_ts: Timestamp,
    deadline: Option<Instant>,
}

impl Committer {
    async fn execute(
        self: &Arc<Self>,
        io: &Io,
        all: Arc<Mutations>,
        began: Instant,
    ) -> Result<Option<Timestamp>> {
        let to_commit = all.to_commit().map(Arc::new);
        let primary = all.primary_key();
        let mut phase = Phase::Prewriting;
        let mut step = |event| {
            phase.on(event, &primary, self.start_ts).map_err(|refused| {
                Error::protocol(format!("commit of {}: {refused:?}", self.start_ts))
            })
        };

        let (prewritten, _heartbeat) = self.prewrite_all(io, &all, began).await;
        let mut next = step(match prewritten {
            Ok(()) => Event::Prewritten,
            Err(error) => Event::PrewriteFailed(error),
        })?;
        let Some(to_commit) = to_commit else {
            // Keys were only checked. There is nothing to commit, and locks there are none.
            return match next {
                Step::RollBack(error) | Step::LeaveUndetermined(error) => Err(error),
                Step::FetchTimestamp | Step::CommitPrimary(_) | Step::Finish(_) => Ok(None),
            };
        };
        loop {
            next = match next {
                Step::FetchTimestamp => step(match self.commit_ts(io).await {
                    Ok(ts) => Event::Dated(ts),
                    Err(error) => Event::NotDated(error),
                })?,
                Step::CommitPrimary(commit_ts) => {
                    #[cfg(feature = "mutations")]
                    if crate::mutation::is(crate::mutation::Mutation::CommitSecondariesFirst) {
                        self.end_others_first(io, &to_commit, commit_ts).await;
                    }
                    #[cfg(feature = "mutations")]
                    if crate::mutation::is(crate::mutation::Mutation::AcknowledgeBeforeCommit) {
                        self.commit_everything_later(io, to_commit, commit_ts);
                        return Ok(Some(commit_ts));
                    }
                    step(self.commit_primary(io, &to_commit, commit_ts).await)?
                }
                Step::Finish(commit_ts) => {
                    self.commit_others_later(io, to_commit, commit_ts);
                    return Ok(Some(commit_ts));
                }
                Step::RollBack(error) => {
                    self.roll_back_later(io, all);
                    return Err(error);
                }
                Step::LeaveUndetermined(error) => {
                    #[cfg(feature = "mutations")]
                    if crate::mutation::is(crate::mutation::Mutation::FailAfterLostCommit) {
                        return Err(Error::Restart {
                            message: "the answer was lost".into(),
                        });
                    }
                    #[cfg(feature = "mutations")]
                    if crate::mutation::is(crate::mutation::Mutation::SucceedAfterLostCommit) {
                        return Ok(Some(self.start_ts.next()));
                    }
                    return Err(error);
                }
            };
        }
    }

    /// A new timestamp, if the transaction is not too old for one.
    async fn commit_ts(&self, io: &Io) -> Result<Timestamp> {
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::CommitWithoutTimestamp) {
            return Ok(self.start_ts.next());
        }
        let mut backoff = self.cluster.backoff(budget::TSO_MS, self.deadline);
        let ts = self.cluster.timestamp(io, &mut backoff).await?;
        let (age, limit) = (self.age_at(ts), self.cluster.config().max_transaction_age);
        if age > limit {
            return Err(Error::TransactionTooOld { age, limit });
        }
        Ok(ts)
    }

    async fn prewrite_all(
        self: &Arc<Self>,
        io: &Io,
        all: &Arc<Mutations>,
        began: Instant,
    ) -> (Result<()>, Option<Heartbeat>) {
        let config = self.cluster.config();
        let elapsed = io.now().since(began);
        let terms = Terms {
            start_ts: self.start_ts,
            lock_ttl_ms: lock_ttl_ms(all.size(), elapsed, config.managed_lock_ttl),
        };
        let heartbeat = OnceLock::new();
        let mut backoff = self.cluster.backoff(budget::PREWRITE_MS, self.deadline);
        let prewritten = self
            .prewrite(io, &mut backoff, all, 0..all.len(), terms, &heartbeat)
            .await;
        (prewritten, heartbeat.into_inner())
    }

    /// Locks the mutations at `items`, all batches at once. The first error stops the others.
    async fn prewrite(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        all: &Mutations,
        items: Range<usize>,
        terms: Terms,
        heartbeat: &OnceLock<Heartbeat>,
    ) -> Result<()> {
        let batches = self.batches(io, backoff, all, items, written_len).await?;
        let concurrency = self.cluster.config().commit_concurrency;
        let mut sent = stream::iter(batches)
            .map(|batch| {
                let fork = backoff.fork();
                async move {
                    self.prewrite_batch(io, fork, all, batch, terms, heartbeat)
                        .await
                }
            })
            .buffer_unordered(concurrency);
        while let Some(result) = sent.next().await {
            result?;
        }
        Ok(())
    }

    async fn prewrite_batch(
        &self,
        io: &Io,
        mut backoff: Backoffer,
        all: &Mutations,
        batch: Batch<Region>,
        terms: Terms,
        heartbeat: &OnceLock<Heartbeat>,
    ) -> Result<()> {
        // Parts of a region that was split: as many keys as there may be.
        let mut waiting = vec![(batch.region, batch.items, batch.region_items as u64)];
        let mut is_retry = false;
        let mut met_before: Vec<Lock> = Vec::new();
        while let Some((region, items, txn_size)) = waiting.pop() {
            let request = prewrite::request(all, items.clone(), terms, txn_size);
            let mut options = SendOptions::write(self.cluster.config());
            options.is_retry = is_retry;
            let sent = self
                .cluster
                .send(io, &mut backoff, &region, request, &options)
                .await;
            is_retry |= sent.sends > 1 || sent.may_be_applied;
            match sent.outcome? {
                Outcome::Relocate(relocate) => {
                    relocate.back_off(io, &mut backoff).await?;
                    let parts = self
                        .batches(io, &mut backoff, all, items, written_len)
                        .await?;
                    waiting.extend(
                        parts
                            .into_iter()
                            .map(|part| (part.region, part.items, u64::MAX)),
                    );
                }
                Outcome::Answer(reply) => match prewrite::judge(reply.errors, self.start_ts) {
                    // A heartbeat before that would find no lock, and end.
                    Verdict::Locked if items.contains(&all.primary()) => {
                        if all.size() > self.cluster.config().heartbeat_bytes {
                            heartbeat.get_or_init(|| self.heartbeat(io, all));
                        }
                    }
                    Verdict::Locked => {}
                    Verdict::Fail(error) => return Err(error),
                    Verdict::Resolve(locks) => {
                        let cause = locks.first().map_or(Error::Closed, locked);
                        let caller = Caller::Writer {
                            start_ts: self.start_ts,
                        };
                        // A lock that is there again did not go, whatever the store said.
                        let stuck = locks == met_before;
                        met_before.clone_from(&locks);
                        let resolved = self
                            .resolver
                            .resolve(io, &mut backoff, caller, locks)
                            .await?;
                        let cap = resolved.wait_ms.map(Duration::from_millis);
                        if cap.is_some() || stuck {
                            let kind = BackoffKind::TxnLock;
                            backoff.wait_capped(io, kind, cause, cap).await?;
                        }
                        waiting.push((region, items, txn_size));
                    }
                },
            }
        }
        Ok(())
    }

    fn heartbeat(&self, io: &Io, all: &Mutations) -> Heartbeat {
        Heartbeat::start(io, self.cluster.clone(), all.primary_key(), self.start_ts)
    }

    /// Commits the batch that holds the primary: what becomes of the transaction.
    async fn commit_primary(&self, io: &Io, mutations: &Mutations, commit_ts: Timestamp) -> Event {
        let mut backoff = self
            .cluster
            .backoff(budget::COMMIT_PRIMARY_MS, self.deadline);
        let mut may_be_applied = false;
        let unanswered = |error, may_be_applied| Event::PrimaryUnanswered {
            error,
            may_be_applied,
        };
        loop {
            let batch = match self.primary_batch(io, &mut backoff, mutations).await {
                Ok(batch) => batch,
                Err(error) => return unanswered(error, may_be_applied),
            };
            let request = self.commit_request(mutations, batch.items.clone(), commit_ts, true);
            let options = SendOptions::commit(self.cluster.config());
            let sent = self
                .cluster
                .send(io, &mut backoff, &batch.region, request, &options)
                .await;
            may_be_applied |= sent.may_be_applied;
            match sent.outcome {
                // An answer of the region settles what became of the attempts before it: a commit
                // that was applied is confirmed when it is repeated, as long as its trace is there.
                Ok(Outcome::Answer(reply)) => match reply.error {
                    None => return Event::PrimaryCommitted,
                    Some(error) => {
                        let refusal = KeyFailure::from(*error);
                        if may_be_applied && Box::pin(self.may_be_garbage(io)).await {
                            return unanswered(refusal.into_error(), may_be_applied);
                        }
                        return Event::PrimaryRefused(refusal);
                    }
                },
                Ok(Outcome::Relocate(relocate)) => {
                    if let Err(error) = relocate.back_off(io, &mut backoff).await {
                        return unanswered(error, may_be_applied);
                    }
                }
                Err(error) => return unanswered(error, may_be_applied),
            }
        }
    }

    /// Whether what the transaction has written may have been collected as garbage. That takes much
    /// longer than a commit, unless PD's clock leaps.
    async fn may_be_garbage(&self, io: &Io) -> bool {
        let mut backoff = self.cluster.backoff(budget::TSO_MS, self.deadline);
        match self.cluster.timestamp(io, &mut backoff).await {
            Ok(now) => self.age_at(now) > self.cluster.config().max_transaction_age,
            Err(_) => true,
        }
    }

    fn age_at(&self, now: Timestamp) -> Duration {
        let age = now.physical_ms();
        Duration::from_millis(age.saturating_sub(self.start_ts.physical_ms()))
    }

    async fn primary_batch(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        mutations: &Mutations,
    ) -> Result<Batch<Region>> {
        let primary = mutations.primary();
        let region = self
            .cluster
            .locate(io, backoff, &mutations.primary_key())
            .await?;
        // The keys around the primary that its region holds and that fit travel with it.
        let items = mutations.items();
        let from = items[..primary].partition_point(|item| !region.contains(&item.key));
        let to = primary + items[primary..].partition_point(|item| region.contains(&item.key));
        let limit = self.cluster.config().commit_batch_bytes;
        let mut batches = cut([(region, from..to)], limit, |item| items[item].key.len());
        if !primary_first(&mut batches, primary) {
            return Err(Error::protocol(
                "the primary's region does not hold the primary",
            ));
        }
        Ok(batches.swap_remove(0))
    }

    fn commit_request(
        &self,
        mutations: &Mutations,
        items: Range<usize>,
        commit_ts: Timestamp,
        primary: bool,
    ) -> kvrpcpb::CommitRequest {
        let role = match primary {
            true => kvrpcpb::CommitRole::Primary,
            false => kvrpcpb::CommitRole::Secondary,
        };
        let keys = mutations.items().get(items).unwrap_or_default();
        kvrpcpb::CommitRequest {
            start_version: self.start_ts.as_u64(),
            keys: keys.iter().map(|item| item.key.clone()).collect(),
            commit_version: commit_ts.as_u64(),
            commit_role: role.into(),
            primary_key: mutations.primary_key().into_bytes(),
            ..Default::default()
        }
    }

    /// Commits all keys but those of the primary's batch, of which it does not matter that they
    /// are committed twice.
    fn commit_others_later(
        self: &Arc<Self>,
        io: &Io,
        mutations: Arc<Mutations>,
        commit_ts: Timestamp,
    ) {
        if mutations.len() == 1 {
            return;
        }
        #[cfg(feature = "mutations")]
        let commit_ts =
            match crate::mutation::is(crate::mutation::Mutation::SecondariesAtAnotherTime) {
                true => commit_ts.next(),
                false => commit_ts,
            };
        // Whoever meets a lock that is left sees at the primary that it is committed.
        self.end_later(
            io,
            "commit_secondaries",
            mutations,
            Ending::Committed(commit_ts),
        );
    }

    /// Removes whatever locks were written. Whoever meets one that is left finds at its primary
    /// that it is rolled back, or rolls it back once it has expired.
    fn roll_back_later(self: &Arc<Self>, io: &Io, mutations: Arc<Mutations>) {
        self.end_later(io, "roll_back", mutations, Ending::RolledBack);
    }

    fn end_later(
        self: &Arc<Self>,
        io: &Io,
        label: &'static str,
        mutations: Arc<Mutations>,
        ending: Ending,
    ) {
        let committer = self.clone();
        let running = self.cluster.background().enter();
        io.spawn(Operation::new(label, |io: Io| async move {
            let _running = running;
            // There is nobody left to tell.
            let _ = committer.end_all(&io, &mutations, ending).await;
        }));
    }

    /// Ends every key, the primary's batch first. An error there ends it all, an error elsewhere
    /// only its own batch.
    async fn end_all(&self, io: &Io, mutations: &Mutations, ending: Ending) -> Result<()> {
        let mut backoff = match ending {
            Ending::Committed(_) => self.cluster.backoff(budget::COMMIT_SECONDARIES_MS, None),
            Ending::RolledBack => self.cluster.backoff(budget::CLEANUP_MS, None),
        };
        let everything = 0..mutations.len();
        let mut batches = self
            .batches(io, &mut backoff, mutations, everything, key_len)
            .await?;
        primary_first(&mut batches, mutations.primary());
        let mut batches = batches.into_iter();
        if let Some(primary) = batches.next() {
            self.end_batch(io, backoff.fork(), mutations, primary, ending)
                .await?;
        }
        let mut first_error = None;
        let mut ended = stream::iter(batches)
            .map(|batch| self.end_batch(io, backoff.fork(), mutations, batch, ending))
            .buffer_unordered(self.cluster.config().commit_concurrency);
        while let Some(result) = ended.next().await {
            if let Err(error) = result {
                first_error = first_error.or(Some(error));
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Ends the keys of a batch, wherever they have moved.
    async fn end_batch(
        &self,
        io: &Io,
        mut backoff: Backoffer,
        mutations: &Mutations,
        batch: Batch<Region>,
        ending: Ending,
    ) -> Result<()> {
        let mut waiting = vec![batch];
        while let Some(batch) = waiting.pop() {
            let items = batch.items.clone();
            let moved = match ending {
                Ending::Committed(commit_ts) => {
                    let request = self.commit_request(mutations, items, commit_ts, false);
                    self.end_keys(io, &mut backoff, &batch.region, request)
                        .await?
                }
                Ending::RolledBack => {
                    let request = self.rollback_request(mutations, items);
                    self.end_keys(io, &mut backoff, &batch.region, request)
                        .await?
                }
            };
            if moved {
                let parts = self
                    .batches(io, &mut backoff, mutations, batch.items, key_len)
                    .await?;
                waiting.extend(parts);
            }
        }
        Ok(())
    }

    /// Whether the keys must be located again.
    async fn end_keys<C>(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        region: &Arc<Region>,
        request: C,
    ) -> Result<bool>
    where
        C: Call,
        C::Response: RegionResponse + HasKeyError,
    {
        let options = SendOptions::commit(self.cluster.config());
        let sent = self
            .cluster
            .send(io, backoff, region, request, &options)
            .await;
        match sent.outcome? {
            Outcome::Relocate(relocate) => {
                relocate.back_off(io, backoff).await?;
                Ok(true)
            }
            Outcome::Answer(reply) => match reply.into_key_error() {
                None => Ok(false),
                Some(error) => Err(KeyFailure::from(error).into_error()),
            },
        }
    }

    fn rollback_request(
        &self,
        mutations: &Mutations,
        items: Range<usize>,
    ) -> kvrpcpb::BatchRollbackRequest {
        let keys = mutations.items().get(items).unwrap_or_default();
        kvrpcpb::BatchRollbackRequest {
            start_version: self.start_ts.as_u64(),
            keys: keys.iter().map(|item| item.key.clone()).collect(),
            ..Default::default()
        }
    }

    #[cfg(feature = "mutations")]
    fn commit_everything_later(
        self: &Arc<Self>,
        io: &Io,
        mutations: Arc<Mutations>,
        commit_ts: Timestamp,
    ) {
        self.end_later(io, "commit_all", mutations, Ending::Committed(commit_ts));
    }

    #[cfg(feature = "mutations")]
    async fn end_others_first(&self, io: &Io, mutations: &Mutations, commit_ts: Timestamp) {
        let mut backoff = self.cluster.backoff(budget::COMMIT_SECONDARIES_MS, None);
        let primary = mutations.primary();
        for others in [0..primary, primary + 1..mutations.len()] {
            if let Ok(batches) = self
                .batches(io, &mut backoff, mutations, others, key_len)
                .await
            {
                for batch in batches {
                    let ending = Ending::Committed(commit_ts);
                    let _ = self
                        .end_batch(io, backoff.fork(), mutations, batch, ending)
                        .await;
                }
            }
        }
    }

    async fn batches(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        mutations: &Mutations,
        items: Range<usize>,
        size_of: impl Fn(&kvrpcpb::Mutation) -> usize,
    ) -> Result<Vec<Batch<Region>>> {
        let all = mutations.items();
        let keys: Vec<&[u8]> = all
            .get(items.clone())
            .unwrap_or_default()
            .iter()
            .map(|item| &*item.key)
            .collect();
        let groups = self.cluster.group(io, backoff, &keys).await?;
        let groups = groups
            .into_iter()
            .map(|(region, places)| (region, places.start + items.start..places.end + items.start));
        let limit = self.cluster.config().commit_batch_bytes;
        Ok(cut(groups, limit, |item| size_of(&all[item])))
    }
}

/// Prewrites are cut by what they write, all that follows by what it names.
fn written_len(mutation: &kvrpcpb::Mutation) -> usize {
    mutation.key.len() + mutation.value.len()
}

fn key_len(mutation: &kvrpcpb::Mutation) -> usize {
    mutation.key.len()
}

/// The two answers that end keys.
trait HasKeyError {
    fn into_key_error(self) -> Option<kvrpcpb::KeyError>;
}

impl HasKeyError for kvrpcpb::CommitResponse {
    fn into_key_error(self) -> Option<kvrpcpb::KeyError> {
        self.error.map(|error| *error)
    }
}

impl HasKeyError for kvrpcpb::BatchRollbackResponse {
    fn into_key_error(self) -> Option<kvrpcpb::KeyError> {
        self.error.map(|error| *error)
    }
}
