//! A client of the wire: it speaks requests that the client library does not, or not yet. Small
//! and plain, for the sake of what the cluster answers and not of its own speed.
//!
//! | module | holds |
//! |---|---|
//! | [`region`] | the way to a region: what is remembered of it, one attempt at a time |
//! | [`cleanup`] | locks of other transactions: whose they are, and how to get rid of them |
//! | [`pessimistic`] | locks that are taken before the commit |
//! | [`commit`] | the end of such a transaction: in two phases, asynchronous, or in one |
//! | [`pipelined`] | a transaction that writes its locks as it goes |
//!
//! All of it runs in operations of the core, over the same doorway as the library. What such an
//! operation does to a [`Speaker`] it does when it has ended: it may be dropped at any await.

pub(super) mod cleanup;
pub(super) mod commit;
pub(super) mod pessimistic;
pub(super) mod pipelined;
pub(crate) mod region;

use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tikv_core::driver::{BackoffKind, Driver, Instant, Io, Operation, Why};

use tikv_core::KeyRange;

use self::commit::Ended;
use self::region::Wire;
use crate::check::Violation;
use crate::history::{Outcome, TxnId};
use crate::sim::{Chance, Fault, Mark, Sim, SimDriver};

/// How long one operation goes on trying.
const PATIENCE: Duration = Duration::from_secs(20);
const TTL_MAX: Duration = Duration::from_secs(4);
/// Some clients are impatient.
const IMPATIENCE_MS: RangeInclusive<u64> = 50..=3_000;
/// A client that dies is polled at most so often before.
const POLLS_BEFORE_CRASH: u64 = 60;

/// So often it is looked for locks, which is longer than any of them lives.
const LOOKS_MAX: u32 = 200;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Why an operation has come to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// No useful answer came in time.
    Late,
    /// A transaction that is alive holds the lock.
    Blocked,
    /// It waited for somebody who waits for it.
    Deadlock,
    /// The transaction has to be begun again, for this reason.
    Over(String),
    /// A store has answered what no store should.
    Absurd(String),
}

impl Stop {
    /// What a store has said of a key, if it says that the transaction has to be begun again.
    fn refused(error: &tikv_proto::kvrpcpb::KeyError) -> Stop {
        let text = match (&error.conflict, error.abort.is_empty()) {
            (Some(conflict), _) => format!("{:?}", conflict.reason()),
            (None, false) => error.abort.clone(),
            (None, true) => format!("{error:?}"),
        };
        let known = error.conflict.is_some()
            || error.already_exist.is_some()
            || error.assertion_failed.is_some()
            || error.txn_not_found.is_some()
            || error.txn_lock_not_found.is_some()
            // What has been committed long ago leaves no trace.
            || !error.retryable.is_empty()
            || [
                "PessimisticLockNotFound",
                "PessimisticLockRolledBack",
                "LockTypeNotMatch",
                "up to which garbage has been collected",
            ]
            .iter()
            .any(|known| error.abort.contains(known));
        match known {
            true => Stop::Over(text),
            false => Stop::Absurd(text),
        }
    }

    /// The violation that this is, if it is one.
    pub(super) fn check(&self) -> Result<(), Violation> {
        match self {
            Stop::Absurd(what) => Err(Violation::new("stores make sense", what.clone())),
            _ => Ok(()),
        }
    }
}

/// One running operation.
#[derive(Clone)]
pub(crate) struct Task {
    io: Io,
    wire: Arc<Wire>,
    patience: Duration,
    until: Instant,
}

impl Task {
    /// The same operation with all its time before it.
    pub(crate) fn again(&self) -> Task {
        Task {
            until: self.io.now() + self.patience,
            ..self.clone()
        }
    }

    /// Does something in the background.
    pub(super) fn behind<F, Fut>(&self, label: &'static str, body: F)
    where
        F: FnOnce(Task) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let wire = self.wire.clone();
        self.io.spawn(operation(label, wire, body));
    }

    /// Waits a little, unless the operation's time is over.
    pub(super) async fn nap(&self, ms: u64) -> Result<(), Stop> {
        let later = self.io.now() + Duration::from_millis(ms);
        if later > self.until {
            return Err(Stop::Late);
        }
        let why = Why::Backoff(BackoffKind::RegionMiss);
        self.io.sleep_until(later, why).await;
        Ok(())
    }
}

/// What a crash takes from a client.
struct Life {
    driver: SimDriver,
    wire: Arc<Wire>,
}

impl Life {
    fn new(sim: &Sim) -> Self {
        Life {
            driver: sim.driver(),
            wire: Arc::new(Wire::new(sim)),
        }
    }
}

fn lock(life: &Mutex<Life>) -> MutexGuard<'_, Life> {
    life.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One client of a workload that speaks the wire: it survives its own crashes as another client.
pub(crate) struct Speaker {
    sim: Sim,
    life: Arc<Mutex<Life>>,
    /// How long it goes on trying.
    patience: Duration,
    /// Its number.
    pub(crate) number: u32,
    /// What the client does is drawn from here.
    pub(crate) chance: Chance,
}

impl Speaker {
    /// The client of this number.
    pub(super) fn new(sim: &Sim, number: u32) -> Self {
        let mut chance = sim.chance(&format!("speaker {number}"));
        let patience = match chance.coin() {
            true => PATIENCE,
            false => Duration::from_millis(chance.magnitude(IMPATIENCE_MS)),
        };
        Speaker {
            sim: sim.clone(),
            life: Arc::new(Mutex::new(Life::new(sim))),
            patience,
            number,
            chance,
        }
    }

    /// A client of this number that goes on trying for long.
    pub(super) fn patient(sim: &Sim, number: u32) -> Self {
        Speaker {
            patience: PATIENCE,
            ..Speaker::new(sim, number)
        }
    }

    /// Waits until nothing goes wrong any more; from then on nothing takes long.
    pub(super) async fn recover(&mut self) {
        self.sim.quiet().await;
        self.patience = PATIENCE;
    }

    /// The simulation.
    pub(super) fn sim(&self) -> &Sim {
        &self.sim
    }

    /// An operation of this client, run to its end.
    pub(super) fn run<T, F, Fut>(
        &self,
        label: &'static str,
        body: F,
    ) -> impl Future<Output = T> + Send + use<T, F, Fut>
    where
        T: Send + 'static,
        F: FnOnce(Task) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
    {
        let life = lock(&self.life);
        let (wire, patience) = (life.wire.clone(), self.patience);
        life.driver.run(impatient(label, wire, patience, body))
    }

    /// Does one thing, or a part of it: the client may die over it, and with it all that it had
    /// running.
    pub(super) async fn once<'a, T, F, Fut>(&'a mut self, work: F) -> Option<T>
    where
        F: FnOnce(&'a mut Speaker) -> Fut,
        Fut: Future<Output = T>,
    {
        if !self.sim.strikes(Fault::Crash) {
            return Some(work(self).await);
        }
        let polls = self.chance.below(POLLS_BEFORE_CRASH);
        let (sim, life) = (self.sim.clone(), self.life.clone());
        let ended = sim.cancel_after(polls, work(self)).await;
        let dead = std::mem::replace(&mut *lock(&life), Life::new(&sim)).driver;
        dead.crash();
        sim.mark(Mark::ClientCrashed);
        sim.note(|| format!("{} crashes", dead.client_id()));
        ended
    }

    /// Thinks about it for up to so long, now and then; whether it did.
    pub(super) async fn ponder(&mut self, longest: Duration) -> bool {
        let ponders = self.chance.below(4) == 0;
        if ponders {
            let time = self.chance.time(Duration::ZERO..=longest);
            self.sim.sleep(time).await;
        }
        ponders
    }

    /// Waits a little, as people do between two calls.
    pub(super) async fn pause(&mut self) {
        let time = self.chance.time(Duration::ZERO..=Duration::from_millis(60));
        self.sim.sleep(time).await;
    }
}

impl Speaker {
    /// Gets rid of every lock in a range, once nothing goes wrong any more.
    ///
    /// # Errors
    ///
    /// A lock stays.
    pub(super) async fn clean_up(&self, range: &KeyRange) -> Result<(), Violation> {
        let mut looks = LOOKS_MAX;
        loop {
            let wanted = range.clone();
            let work = self.run("sweep_locks", move |task: Task| async move {
                task.sweep_locks(&wanted).await
            });
            let met = work.await;
            if let Err(stop) = &met {
                stop.check()?;
            }
            if met == Ok(0) || looks == 0 {
                return self.sim.check().no_lock_left(range);
            }
            looks -= 1;
            self.sim.sleep(LOOK_AGAIN).await;
        }
    }
}

/// How long the locks of a transaction live: shorter than the client's own may, so that what a
/// dead client leaves is not in the way for most of a run.
pub(super) fn ttl(sim: &Sim) -> Duration {
    sim.plan().managed_lock_ttl.min(TTL_MAX)
}

/// Writes down how a transaction has ended.
pub(super) fn write_down(sim: &Sim, id: TxnId, ended: Ended) {
    let mut history = sim.history().lock();
    let outcome = match ended {
        Ended::Committed {
            commit_ts,
            calculated,
        } => {
            if calculated {
                history.calculated(id);
            }
            Outcome::Committed(commit_ts)
        }
        Ended::Failed(why) => {
            sim.mark(Mark::CommitFailed);
            Outcome::Failed(why)
        }
        Ended::Unknown => {
            sim.mark(Mark::CommitUndetermined);
            Outcome::Unknown
        }
    };
    history.ended(id, sim.now(), outcome);
}

/// An operation over a wire.
pub(crate) fn operation<T, F, Fut>(label: &'static str, wire: Arc<Wire>, body: F) -> Operation<T>
where
    T: Send + 'static,
    F: FnOnce(Task) -> Fut + Send + 'static,
    Fut: Future<Output = T> + Send + 'static,
{
    impatient(label, wire, PATIENCE, body)
}

/// An operation over a wire that does not go on trying for longer than this.
fn impatient<T, F, Fut>(
    label: &'static str,
    wire: Arc<Wire>,
    patience: Duration,
    body: F,
) -> Operation<T>
where
    T: Send + 'static,
    F: FnOnce(Task) -> Fut + Send + 'static,
    Fut: Future<Output = T> + Send + 'static,
{
    Operation::new(label, move |io: Io| async move {
        let until = io.now() + patience;
        let task = Task {
            io,
            wire,
            patience,
            until,
        };
        body(task).await
    })
}
