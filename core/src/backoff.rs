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

    /// How long to wait because of `cause`, at most `cap` and not past the deadline. The pause
    /// counts once [`slept`](Backoffer::slept) says that it is over.
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
            pause = pause.min(cap);
        }
        if let Some(deadline) = self.deadline {
            pause = pause.min(deadline - now);
        }
        Ok(pause)
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
mod tests {
    use super::*;
    use crate::driver::{Action, Reply};
    use crate::operation::Operation;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::task::{Context, Poll, Waker};

    use BackoffKind::{
        IsWitness, RegionMiss, RegionNotInitialized, RegionRecoveryInProgress, TikvRpc,
        TikvServerBusy, TxnLockFast, TxnNotFound,
    };

    const ONE: NonZeroU32 = NonZeroU32::MIN;

    fn cause() -> Error {
        Error::protocol("test")
    }

    fn pause(backoffer: &mut Backoffer, kind: BackoffKind) -> Result<Duration> {
        let pause = backoffer.next(kind, cause(), None, Instant::ZERO)?;
        backoffer.slept(kind, pause);
        Ok(pause)
    }

    fn dominant(error: Error) -> BackoffKind {
        match error {
            Error::Exhausted(exhausted) => exhausted.kind,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn backoff_with_max() {
        let mut backoffer = Backoffer::new(10, WEIGHT_DEFAULT, 7);
        let cap = Some(Duration::from_millis(5));
        for _ in 0..4 {
            let pause = backoffer
                .next(TxnLockFast, cause(), cap, Instant::ZERO)
                .unwrap();
            assert_eq!(pause, Duration::from_millis(5));
            backoffer.slept(TxnLockFast, pause);
        }
        assert_eq!(backoffer.waited(), Duration::from_millis(20));
        assert!(
            backoffer
                .next(TxnLockFast, cause(), cap, Instant::ZERO)
                .is_err()
        );
    }

    #[test]
    fn backoff_error_type() {
        let mut backoffer = Backoffer::new(800, WEIGHT_DEFAULT, 7);
        let ms = |range: std::ops::RangeInclusive<u64>, pause: Duration| {
            assert!(range.contains(&(pause.as_millis() as u64)), "{pause:?}");
        };
        ms(2..=2, pause(&mut backoffer, RegionMiss).unwrap());
        ms(2..=2, pause(&mut backoffer, RegionNotInitialized).unwrap());
        ms(4..=4, pause(&mut backoffer, RegionNotInitialized).unwrap());
        ms(
            50..=99,
            pause(&mut backoffer, RegionRecoveryInProgress).unwrap(),
        );
        // Waited, but not charged.
        ms(
            1_000..=1_999,
            pause(&mut backoffer, TikvServerBusy).unwrap(),
        );
        ms(500..=999, pause(&mut backoffer, IsWitness).unwrap());
        let error = (0..15)
            .find_map(|_| pause(&mut backoffer, TxnNotFound).err())
            .unwrap();
        let blamed = dominant(error);
        let (_, by_probe) = backoffer.waited_for(TxnNotFound);
        let (_, by_witness) = backoffer.waited_for(IsWitness);
        assert_eq!(
            blamed,
            if by_probe > by_witness {
                TxnNotFound
            } else {
                IsWitness
            }
        );
    }

    #[test]
    fn backoff_deep_copy() {
        let mut backoffer = Backoffer::new(4, WEIGHT_DEFAULT, 7);
        let exhausted = std::iter::repeat_with(|| pause(&mut backoffer, RegionMiss));
        assert_eq!(exhausted.take_while(Result::is_ok).count(), 3);
        let mut fork = backoffer.fork();
        assert_eq!(fork.waited(), backoffer.waited());
        assert_eq!(fork.failures(), 3);
        // The fork inherits the blame, whatever it is about to wait for.
        assert_eq!(dominant(pause(&mut fork, TikvRpc).unwrap_err()), RegionMiss);
    }

    #[test]
    fn backoff_update_using_fork() {
        let mut parent = Backoffer::new(2_000, WEIGHT_DEFAULT, 7);
        pause(&mut parent, RegionMiss).unwrap();
        let mut fork = parent.fork();
        // Each kind begins at its base again.
        assert_eq!(
            pause(&mut fork, RegionMiss).unwrap(),
            Duration::from_millis(2)
        );
        let mut grandchild = fork.fork();
        pause(&mut grandchild, TikvRpc).unwrap();
        parent.merge(&fork);
        assert_eq!((parent.waited(), parent.failures()), (fork.waited(), 2));
        parent.merge(&grandchild);
        assert_eq!(parent.waited(), grandchild.waited());
        // Neither a child nor a stranger takes over anything.
        let waited = fork.waited();
        fork.merge(&parent);
        let stranger = Backoffer::new(2_000, WEIGHT_DEFAULT, 8).fork();
        fork.merge(&stranger);
        assert_eq!(fork.waited(), waited);
    }

    #[test]
    fn backoff_with_max_excluded_exceed() {
        let mut backoffer = Backoffer::new(1, ONE, 7);
        backoffer.excluded_ms_max = 1;
        pause(&mut backoffer, TikvServerBusy).unwrap();
        let error = pause(&mut backoffer, TikvServerBusy).unwrap_err();
        assert_eq!(dominant(error), TikvServerBusy);
        // Anything else is still affordable.
        assert!(pause(&mut backoffer, RegionMiss).is_ok());
    }

    #[test]
    fn pauses_double_up_to_their_cap() {
        let mut backoffer = Backoffer::new(0, ONE, 7);
        let mut ms = || pause(&mut backoffer, RegionMiss).unwrap().as_millis();
        let pauses: Vec<u128> = std::iter::repeat_with(&mut ms).take(11).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 500, 500, 500]);
        for _ in 0..1_000 {
            assert_eq!(ms(), 500);
        }
        let rpc = std::iter::repeat_with(|| pause(&mut backoffer, TikvRpc).unwrap());
        for (place, pause) in rpc.take(8).enumerate() {
            let whole = Duration::from_millis((100 << place).min(2_000));
            assert!(
                pause >= whole / 2 && pause < whole,
                "{pause:?} of {whole:?}"
            );
        }
    }

    #[test]
    fn weights_apply_unless_the_budget_is_for_ever() {
        let two = WEIGHT_DEFAULT;
        for (budget, weight, all) in [(0, two, 0), (800, two, 1_600), (800, ONE, 800)] {
            assert_eq!(weighted(budget, weight), all);
        }
        assert_eq!(
            weighted(budget::FOREVER_MS, two),
            u64::from(budget::FOREVER_MS)
        );
    }

    #[test]
    fn a_new_stage_has_the_whole_budget_and_its_own_blame() {
        let mut backoffer = Backoffer::new(100, ONE, 7);
        while pause(&mut backoffer, RegionMiss).is_ok() {}
        backoffer.reset_budget(2);
        assert_eq!(
            pause(&mut backoffer, TxnNotFound).unwrap(),
            Duration::from_millis(2)
        );
        assert_eq!(
            dominant(pause(&mut backoffer, TikvRpc).unwrap_err()),
            TxnNotFound
        );
        assert_eq!(backoffer.waited_for(RegionMiss).0, 6);
    }

    #[test]
    fn whoever_never_waits_gets_the_cause() {
        let mut backoffer = Backoffer::never();
        assert_eq!(pause(&mut backoffer, RegionMiss), Err(cause()));
        assert_eq!(pause(&mut backoffer.fork(), RegionMiss), Err(cause()));
        let foreign = Error::ClusterIdMismatch {
            expected: 1,
            got: 2,
            from: "pd".into(),
        };
        let mut patient = Backoffer::new(0, ONE, 7);
        let got = patient.next(RegionMiss, foreign.clone(), None, Instant::ZERO);
        assert_eq!(got, Err(foreign));
    }

    #[test]
    fn a_deadline_trims_the_pause_and_says_what_was_waited_for() {
        let deadline = Instant::from_millis(30);
        let mut backoffer = Backoffer::new(0, ONE, 7).with_deadline(Some(deadline));
        let pause = backoffer
            .next(TikvRpc, cause(), None, Instant::from_millis(20))
            .unwrap();
        assert_eq!(pause, Duration::from_millis(10));
        let error = backoffer
            .next(TikvRpc, cause(), None, deadline)
            .unwrap_err();
        let Error::DeadlineExceeded(exceeded) = error else {
            panic!("{error}")
        };
        assert_eq!(exceeded.waiting_for, Why::Backoff(TikvRpc));
        assert_eq!((exceeded.attempts, exceeded.last), (1, Some(cause())));
    }

    #[test]
    fn the_error_tells_the_last_causes() {
        let mut backoffer = Backoffer::new(20, ONE, 7);
        let error = (0..).find_map(|n: u32| {
            let cause = Error::protocol(format!("cause {n}"));
            let now = Instant::from_millis(u64::from(n));
            match backoffer.next(RegionMiss, cause, None, now) {
                Ok(pause) => {
                    backoffer.slept(RegionMiss, pause);
                    None
                }
                Err(error) => Some(error),
            }
        });
        let Some(Error::Exhausted(exhausted)) = error else {
            panic!("{error:?}")
        };
        let recent: Vec<&str> = exhausted.recent.iter().map(|cause| &**cause).collect();
        assert_eq!(
            recent,
            [1, 2, 3].map(|n| format!("at {n} ms: protocol error: cause {n}"))
        );
        assert_eq!(
            (exhausted.attempts, exhausted.waited),
            (4, Duration::from_millis(30))
        );
        assert_eq!(exhausted.last, Error::protocol("cause 4"));
    }

    #[test]
    fn waiting_is_one_sleep_that_says_why() {
        let mut operation = Operation::new("test", |io| async move {
            let deadline = Some(Instant::from_millis(3));
            let mut backoffer = Backoffer::new(0, ONE, 7).with_deadline(deadline);
            let none = Some(Duration::ZERO);
            backoffer
                .wait_capped(&io, TxnNotFound, cause(), none)
                .await
                .unwrap();
            backoffer.wait(&io, RegionMiss, cause()).await.unwrap();
            let late = backoffer.wait(&io, RegionMiss, cause()).await;
            (backoffer.waited(), late.is_err())
        });
        let mut cx = Context::from_waker(Waker::noop());
        let mut now = Instant::ZERO;
        let mut sleeps = Vec::new();
        let result = loop {
            if let Poll::Ready(result) = operation.poll(&mut cx, now) {
                break result;
            }
            let (id, action) = operation.next_action().unwrap();
            let Action::Sleep { until, why } = action else {
                panic!("{action:?}")
            };
            sleeps.push((until.as_millis(), why));
            now = until;
            operation.complete(id, Reply::Woke).unwrap();
        };
        let why = Why::Backoff(RegionMiss);
        assert_eq!(sleeps, [(2, why), (3, why)]);
        assert_eq!(result, (Duration::from_millis(3), true));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Pause(BackoffKind),
        /// Go on in a fork; come back with what it waited, or without.
        Fork,
        Return {
            merges: bool,
        },
        Reset,
    }

    fn steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0..BackoffKind::COUNT).prop_map(|n| Step::Pause(BackoffKind::ALL[n])),
            2 => Just(Step::Fork),
            2 => any::<bool>().prop_map(|merges| Step::Return { merges }),
            1 => Just(Step::Reset),
        ]
    }

    proptest! {
        #[test]
        fn a_budget_is_overshot_by_at_most_one_pause(
            budget_ms in 1..60_000_u32,
            seed: u64,
            steps in vec(steps(), 1..200),
        ) {
            let run = || {
                let mut pauses = Vec::new();
                let mut stack = vec![Backoffer::new(budget_ms, ONE, seed)];
                let longest = Duration::from_secs(10);
                for step in &steps {
                    let last = stack.len() - 1;
                    match *step {
                        Step::Pause(kind) => match pause(&mut stack[last], kind) {
                            Ok(pause) => pauses.push(pause),
                            Err(error) => {
                                let of_stage = |kind: BackoffKind| {
                                    let history = stack[last].history.as_ref();
                                    history.map_or(Duration::ZERO, |h| h.kinds[kind as usize].stage)
                                };
                                let charged = BackoffKind::ALL
                                    .into_iter()
                                    .filter(|kind| *kind != TikvServerBusy);
                                let most = charged.clone().map(of_stage).max();
                                let first = charged.clone().find(|k| Some(of_stage(*k)) == most);
                                assert_eq!(Some(dominant(error)), first);
                            }
                        },
                        Step::Fork => {
                            let fork = stack[last].fork();
                            stack.push(fork);
                        }
                        Step::Return { merges } if last > 0 => {
                            let fork = stack.pop().unwrap();
                            if merges {
                                stack[last - 1].merge(&fork);
                            }
                        }
                        Step::Return { .. } => {}
                        Step::Reset => stack[last].reset(),
                    }
                    let backoffer = &stack[stack.len() - 1];
                    if let Some(history) = &backoffer.history {
                        let budget = Duration::from_millis(budget_ms.into());
                        assert!(history.total - history.excluded < budget + longest);
                        let excluded_max = Duration::from_millis(EXCLUDED_MS_MAX).max(budget);
                        assert!(history.excluded < excluded_max + longest);
                    }
                }
                pauses
            };
            prop_assert_eq!(run(), run());
        }
    }
}
