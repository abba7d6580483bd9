//! How long to wait before trying again, and when to give up.
//!
//! A [`Backoffer`] belongs to one operation of a user. Whatever goes wrong on the way is put to
//! [`Backoffer::next`], which answers with a pause or, once the budget is used up or the caller's
//! deadline has passed, with the error to give the caller. The only thing here that waits is
//! [`Backoffer::wait`], three lines over that decision. No clock, no chance but the seed. What is
//! deliberately absent: a flag that kills an operation from outside. Dropping it does.
//! (client-go: `retry.Backoffer`)

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use oorandom::Rand64;
use smallvec::SmallVec;

use crate::error::{DeadlineExceeded, Error, Exhausted, Result};
use crate::operation::Io;
use crate::time::Instant;
use crate::why::{BackoffKind, Why};

/// How long the operations may wait in all, in milliseconds, before weights.
pub(crate) mod budget {
    /// One prewrite of all regions, and the commit of the primary.
    pub(crate) const PREWRITE_MS: u32 = 40_000;
    /// See [`PREWRITE_MS`].
    pub(crate) const COMMIT_PRIMARY_MS: u32 = 40_000;
    /// The commit of the secondaries, which nobody waits for.
    pub(crate) const COMMIT_SECONDARIES_MS: u32 = 41_000;
    pub(crate) const PESSIMISTIC_LOCK_MS: u32 = 20_000;
    pub(crate) const PESSIMISTIC_ROLLBACK_MS: u32 = 20_000;
    pub(crate) const CLEANUP_MS: u32 = 20_000;
    pub(crate) const HEARTBEAT_MS: u32 = 20_000;
    /// A get, a batch get, one step of a scan.
    pub(crate) const READ_MS: u32 = 20_000;
    pub(crate) const TSO_MS: u32 = 15_000;
    pub(crate) const FLUSH_MS: u32 = 20_000;
    pub(crate) const FLUSHED_COMMIT_MS: u32 = 41_000;
    pub(crate) const FLUSHED_ROLLBACK_MS: u32 = 20_000;
    /// Errors of a broadcast are ignored.
    pub(crate) const BROADCAST_MS: u32 = 10_000;
    pub(crate) const TXN_STATUS_MS: u32 = 20_000;
    pub(crate) const ASYNC_RESOLVE_MS: u32 = 40_000;
    /// The locks of one region, on behalf of garbage collection.
    pub(crate) const GC_RESOLVE_MS: u32 = 100_000;
    /// One look-up of a region by a task over a range.
    pub(crate) const LOCATE_MS: u32 = 20_000;
    pub(crate) const DELETE_RANGE_MS: u32 = 100_000;
    pub(crate) const RAW_MS: u32 = 20_000;
    pub(crate) const SPLIT_PER_KEY_MS: u32 = 20_000;
    pub(crate) const SPLIT_MS_MAX: u32 = 120_000;
    pub(crate) const SCATTER_MS: u32 = 120_000;
    pub(crate) const REGION_REFRESH_MS: u32 = 20_000;
    /// So large that no weight applies: for ever.
    pub(crate) const FOREVER_MS: u32 = i32::MAX as u32;
}

/// By what a budget is multiplied unless the caller says otherwise.
pub(crate) const WEIGHT_DEFAULT: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);

/// The budgets and pauses of one operation. (client-go: `retry.Backoffer`)
#[derive(Debug)]
pub(crate) struct Backoffer {
    /// 0 for no limit.
    budget_ms: u64,
    weight: NonZeroU32,
    excluded_ms_max: u64,
    lock_fast_base_ms: u32,
    deadline: Option<Instant>,
    never_waits: bool,
    /// Pauses of each kind that ran to their end since the last reset.
    completed: [u8; BackoffKind::COUNT],
    rng: Rand64,
    lineage: Lineage,
    /// Nothing is allocated before the first failure.
    history: Option<Box<History>>,
}

impl Backoffer {
    /// May wait `budget_ms` times `weight` in all (`0`: for ever). Draws its jitter from `seed`,
    /// which also tells it from the backoffers of other operations.
    pub(crate) fn new(budget_ms: u32, weight: NonZeroU32, seed: u64) -> Self {
        Backoffer {
            budget_ms: weighted(budget_ms, weight),
            weight,
            excluded_ms_max: EXCLUDED_MS_MAX,
            lock_fast_base_ms: LOCK_FAST_BASE_MS,
            deadline: None,
            never_waits: false,
            completed: [0; BackoffKind::COUNT],
            rng: Rand64::new(u128::from(seed)),
            lineage: Lineage::root(seed),
            history: None,
        }
    }

    /// Never waits: whatever goes wrong goes to the caller. (client-go: `NewNoopBackoff`)
    pub(crate) fn never() -> Self {
        let mut backoffer = Backoffer::new(0, NonZeroU32::MIN, 0);
        backoffer.never_waits = true;
        backoffer
    }

    /// Gives up at the caller's deadline, budget or not.
    pub(crate) fn with_deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    /// The first pause of a reader that meets a live lock. (client-go: `Variables.BackoffLockFast`)
    pub(crate) fn with_lock_fast_base_ms(mut self, base_ms: u32) -> Self {
        self.lock_fast_base_ms = base_ms;
        self
    }

    /// The caller's deadline.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// When to give up one request that may take `timeout`: no later than the caller does.
    pub(crate) fn request_deadline(&self, now: Instant, timeout: Duration) -> Instant {
        (now + timeout).min(self.deadline.unwrap_or(Instant::FAR_FUTURE))
    }

    /// Whether there is still time to ask for something, after `last` went wrong.
    ///
    /// # Errors
    ///
    /// The deadline has passed.
    pub(crate) fn check(&self, now: Instant, last: Option<&Error>) -> Result<()> {
        match self.is_past_deadline(now) {
            false => Ok(()),
            true => Err(Error::DeadlineExceeded(Box::new(DeadlineExceeded::new(
                Why::Response,
                self.failures(),
                last.cloned(),
            )))),
        }
    }

    /// How long to wait because of `cause`, at most `cap` (which grows with each pause) and not past
    /// the deadline. The pause counts once [`slept`](Backoffer::slept) says that it is over.
    ///
    /// # Errors
    ///
    /// The budget is used up, or the deadline has passed.
    pub(crate) fn next(
        &mut self,
        kind: BackoffKind,
        cause: Error,
        cap: Option<Duration>,
        now: Instant,
    ) -> Result<Duration> {
        if self.never_waits || matches!(cause, Error::ClusterIdMismatch { .. }) {
            return Err(cause);
        }
        if self.is_past_deadline(now) {
            return Err(self.deadline_exceeded(kind, Some(cause)));
        }
        if self.is_exhausted(kind) {
            return Err(self.exhausted(kind, cause));
        }
        self.history.get_or_insert_default().remember(cause, now);
        let mut pause = Duration::from_millis(self.draw_ms(kind));
        if let Some(cap) = cap {
            pause = pause.min(cap.max(self.least_cap(kind)));
        }
        if let Some(deadline) = self.deadline {
            pause = pause.min(deadline - now);
        }
        Ok(pause)
    }

    /// What caps a pause is time by the oracle's clock, which may stand still for long after it has
    /// leapt ahead. So a cap counts for less with each pause: it would be asked without end.
    fn least_cap(&self, kind: BackoffKind) -> Duration {
        match self.completed[kind as usize] {
            0 => Duration::ZERO,
            completed => Duration::from_millis(1 << (completed - 1).min(12)),
        }
    }

    /// A pause that [`next`](Backoffer::next) granted ran to its end.
    pub(crate) fn slept(&mut self, kind: BackoffKind, pause: Duration) {
        let completed = &mut self.completed[kind as usize];
        *completed = completed.saturating_add(1);
        let history = self.history.get_or_insert_default();
        history.total += pause;
        if is_excluded(kind) {
            history.excluded += pause;
        }
        let of_kind = &mut history.kinds[kind as usize];
        of_kind.count += 1;
        of_kind.stage += pause;
        of_kind.life += pause;
    }

    /// Waits because of `cause`.
    ///
    /// # Errors
    ///
    /// Those of [`Backoffer::next`]; also when the deadline came during the pause, since nothing
    /// that is tried afterwards can be in time.
    pub(crate) async fn wait(&mut self, io: &Io, kind: BackoffKind, cause: Error) -> Result<()> {
        self.wait_capped(io, kind, cause, None).await
    }

    /// Waits because of `cause`, at most `cap`.
    ///
    /// # Errors
    ///
    /// As [`Backoffer::wait`].
    pub(crate) async fn wait_capped(
        &mut self,
        io: &Io,
        kind: BackoffKind,
        cause: Error,
        cap: Option<Duration>,
    ) -> Result<()> {
        let now = io.now();
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::NeverBackOff) {
            let moment = Duration::from_micros(50);
            io.sleep_until(now + moment, Why::Backoff(kind)).await;
            return Ok(());
        }
        let pause = self.next(kind, cause, cap, now)?;
        if !pause.is_zero() {
            io.sleep_until(now + pause, Why::Backoff(kind)).await;
        }
        self.slept(kind, pause);
        if self.is_past_deadline(io.now()) {
            return Err(self.deadline_exceeded(kind, None));
        }
        Ok(())
    }

    /// A backoffer for one of several branches: knows what was waited so far, but begins each
    /// kind at its base again. (client-go: `Backoffer.Fork`)
    pub(crate) fn fork(&mut self) -> Backoffer {
        Backoffer {
            completed: [0; BackoffKind::COUNT],
            rng: Rand64::new(u128::from(self.rng.rand_u64())),
            lineage: self.lineage.child(),
            history: self.history.clone(),
            ..*self
        }
    }

    /// Takes over what a fork, or a fork of a fork, has waited. Of several branches adopt the
    /// last to end, so that a budget bounds the slowest branch and not their sum. Another
    /// operation's backoffer is ignored. (client-go: `Backoffer.UpdateUsingForked`)
    pub(crate) fn merge(&mut self, fork: &Backoffer) {
        if self.lineage.is_ancestor_of(&fork.lineage) {
            self.history.clone_from(&fork.history);
        }
    }

    /// Begins a new stage with the whole budget. (client-go: `Backoffer.Reset`)
    pub(crate) fn reset(&mut self) {
        self.completed = [0; BackoffKind::COUNT];
        if let Some(history) = &mut self.history {
            history.total = Duration::ZERO;
            history.excluded = Duration::ZERO;
            for kind in &mut history.kinds {
                kind.stage = Duration::ZERO;
            }
        }
    }

    /// Begins a new stage with another budget. (client-go: `Backoffer.ResetMaxSleep`)
    pub(crate) fn reset_budget(&mut self, budget_ms: u32) {
        self.reset();
        self.budget_ms = weighted(budget_ms, self.weight);
    }

    /// How long was waited in this stage, for whatever reason.
    pub(crate) fn waited(&self) -> Duration {
        self.history.as_ref().map_or(Duration::ZERO, |h| h.total)
    }

    /// How often something went wrong.
    pub(crate) fn failures(&self) -> u32 {
        self.history.as_ref().map_or(0, |h| h.failures)
    }

    /// How often and how long was waited for `kind`, over all stages.
    pub(crate) fn waited_for(&self, kind: BackoffKind) -> (u32, Duration) {
        self.history
            .as_ref()
            .map(|history| &history.kinds[kind as usize])
            .map_or((0, Duration::ZERO), |of_kind| (of_kind.count, of_kind.life))
    }

    fn is_past_deadline(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Tested before a pause, so the last one may overshoot the budget.
    fn is_exhausted(&self, kind: BackoffKind) -> bool {
        let Some(history) = self.history.as_ref().filter(|_| self.budget_ms > 0) else {
            return false;
        };
        let budget = Duration::from_millis(self.budget_ms);
        let excluded_max = Duration::from_millis(self.excluded_ms_max).max(budget);
        history.total - history.excluded >= budget
            || is_excluded(kind) && history.excluded >= excluded_max
    }

    fn draw_ms(&mut self, kind: BackoffKind) -> u64 {
        let Spec {
            base_ms,
            cap_ms,
            jitter,
        } = spec(kind);
        let base_ms = match kind {
            BackoffKind::TxnLockFast => self.lock_fast_base_ms,
            _ => base_ms,
        };
        let doublings = u32::from(self.completed[kind as usize]).min(31);
        let ms = (u64::from(base_ms.max(BASE_MS_MIN)) << doublings).min(u64::from(cap_ms));
        match jitter {
            Jitter::None => ms,
            Jitter::Equal if ms < 2 => ms / 2,
            Jitter::Equal => ms / 2 + self.rng.rand_range(0..ms / 2),
        }
    }

    fn exhausted(&self, kind: BackoffKind, last: Error) -> Error {
        let history = self.history.as_deref();
        // The excluded kind is blamed only if nothing else was ever waited for.
        let dominant = BackoffKind::ALL
            .into_iter()
            .filter(|kind| !is_excluded(*kind))
            .map(|kind| {
                (
                    history.map_or(Duration::ZERO, |h| h.kinds[kind as usize].stage),
                    kind,
                )
            })
            .filter(|(waited, _)| !waited.is_zero())
            .reduce(|most, other| if other.0 > most.0 { other } else { most })
            .map_or(kind, |(_, kind)| kind);
        Error::Exhausted(Box::new(Exhausted::new(
            dominant,
            self.failures(),
            self.waited(),
            last,
            history.map(History::recent).unwrap_or_default(),
        )))
    }

    fn deadline_exceeded(&self, kind: BackoffKind, cause: Option<Error>) -> Error {
        let last = cause.or_else(|| {
            self.history
                .as_ref()?
                .causes
                .last()
                .map(|c| c.error.clone())
        });
        let why = Why::Backoff(kind);
        Error::DeadlineExceeded(Box::new(DeadlineExceeded::new(why, self.failures(), last)))
    }
}

/// What has happened to an operation so far. A fork has a copy.
#[derive(Clone, Debug, Default)]
struct History {
    total: Duration,
    excluded: Duration,
    failures: u32,
    /// The last ones, oldest first.
    causes: SmallVec<[Cause; CAUSES_KEPT]>,
    kinds: [KindHistory; BackoffKind::COUNT],
}

#[derive(Clone, Debug)]
struct Cause {
    at: Instant,
    error: Error,
}

#[derive(Clone, Debug, Default)]
struct KindHistory {
    count: u32,
    /// Since the last reset; decides who is blamed.
    stage: Duration,
    /// Since the beginning; for statistics.
    life: Duration,
}

impl History {
    fn remember(&mut self, error: Error, at: Instant) {
        if self.causes.len() == CAUSES_KEPT {
            self.causes.remove(0);
        }
        self.causes.push(Cause { at, error });
        self.failures = self.failures.saturating_add(1);
    }

    fn recent(&self) -> Vec<Arc<str>> {
        self.causes
            .iter()
            .map(|cause| format!("at {} ms: {}", cause.at.as_millis(), cause.error).into())
            .collect()
    }
}

/// Which operation a backoffer belongs to, and by which forks it came to be.
#[derive(Debug)]
struct Lineage {
    root: u64,
    path: SmallVec<[u32; 4]>,
    children: u32,
}

impl Lineage {
    fn root(root: u64) -> Self {
        Lineage {
            root,
            path: SmallVec::new(),
            children: 0,
        }
    }

    fn child(&mut self) -> Lineage {
        let mut path = self.path.clone();
        path.push(self.children);
        self.children += 1;
        Lineage {
            root: self.root,
            path,
            children: 0,
        }
    }

    fn is_ancestor_of(&self, other: &Lineage) -> bool {
        self.root == other.root
            && self.path.len() < other.path.len()
            && other.path.starts_with(&self.path)
    }
}

/// The table's first pause of a kind, in milliseconds. Of several pauses that are due, the one
/// with the largest is taken.
pub(crate) const fn base_ms(kind: BackoffKind) -> u32 {
    spec(kind).base_ms
}

/// Whether pauses of this kind are not charged to the budget.
const fn is_excluded(kind: BackoffKind) -> bool {
    matches!(kind, BackoffKind::TikvServerBusy)
}

struct Spec {
    base_ms: u32,
    cap_ms: u32,
    jitter: Jitter,
}

/// client-go knows "full" and "decorrelated" too, which no kind uses.
enum Jitter {
    None,
    /// Half is certain, the other half is drawn.
    Equal,
}

/// Pause n (from 0) of a kind is its base doubled n times, at most its cap, and jittered.
const fn spec(kind: BackoffKind) -> Spec {
    use Jitter::{Equal, None};
    let (base_ms, cap_ms, jitter) = match kind {
        BackoffKind::TikvRpc => (100, 2_000, Equal),
        BackoffKind::TiflashRpc => (100, 2_000, Equal),
        BackoffKind::TxnLock => (100, 3_000, Equal),
        BackoffKind::TxnLockFast => (2, 3_000, Equal),
        BackoffKind::PdRpc => (500, 3_000, Equal),
        BackoffKind::RegionMiss => (2, 500, None),
        BackoffKind::RegionScheduling => (2, 500, None),
        BackoffKind::TikvServerBusy => (2_000, 10_000, Equal),
        BackoffKind::TiflashServerBusy => (2_000, 10_000, Equal),
        BackoffKind::TikvDiskFull => (500, 5_000, None),
        BackoffKind::RegionRecoveryInProgress => (100, 10_000, Equal),
        BackoffKind::TxnNotFound => (2, 500, None),
        BackoffKind::StaleCommand => (2, 1_000, None),
        BackoffKind::MaxTsNotSynced => (2, 500, None),
        BackoffKind::CommitTsLag => (2, 500, None),
        BackoffKind::RegionNotInitialized => (2, 1_000, None),
        BackoffKind::IsWitness => (1_000, 10_000, Equal),
    };
    Spec {
        base_ms,
        cap_ms,
        jitter,
    }
}

/// The weight applies to whatever does not grow beyond what client-go can count.
fn weighted(budget_ms: u32, weight: NonZeroU32) -> u64 {
    let limit = i32::MAX as u32;
    if limit / weight >= budget_ms {
        u64::from(budget_ms) * u64::from(weight.get())
    } else {
        u64::from(budget_ms)
    }
}

const BASE_MS_MIN: u32 = 2;
const LOCK_FAST_BASE_MS: u32 = 10;
const EXCLUDED_MS_MAX: u64 = 600_000;
const CAUSES_KEPT: usize = 3;

#[cfg(test)]
mod tests;
