//! What an application under simulation holds in its hand.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tikv_core::driver::{Instant, Io, Operation, Why};
use tikv_core::{Config, Endpoints, KeyRange, RawClient, Result, TransactionClient};

use super::chance::Chance;
use super::driver::{Run, SimDriver};
use super::faults::Fault;
use super::garbage::AGE_MAX;
use super::marks::Mark;
use super::network::ClientId;
use super::ops::Kind;
use super::plan::Plan;
use super::shared::Shared;
use super::world::Phase;
use crate::check::{self, Truth, Verdict};
use crate::cluster::Cluster;
use crate::history::Recorder;
use crate::node::Nodes;

/// A simulation that is running. A clone is another handle of the same.
#[derive(Clone)]
pub struct Sim {
    shared: Arc<Shared>,
    recorder: Recorder,
    /// Chance of the application's own calls: whether they are dropped, whether clients die.
    chance: Arc<Mutex<Chance>>,
}

/// The application's own sleeps belong to nobody.
const APPLICATION: ClientId = ClientId(u32::MAX);

/// How often it is looked whether faults have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A call is dropped at one of its first awaits, or after one of them.
const POLLS_BEFORE_CANCEL: u64 = 12;

impl Sim {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let seed = shared.lock().plan.seed;
        Sim {
            shared,
            recorder: Recorder::default(),
            chance: Arc::new(Mutex::new(Chance::stream(seed, "application"))),
        }
    }

    /// The driver of a new client.
    pub fn driver(&self) -> SimDriver {
        SimDriver::new(self.shared.clone())
    }

    /// A new client of transactions.
    ///
    /// # Errors
    ///
    /// PD did not answer within the time for connecting.
    pub async fn client(&self) -> Result<TransactionClient<SimDriver>> {
        let (endpoints, config) = self.connection();
        TransactionClient::with_driver(self.driver(), endpoints, config).await
    }

    /// A new client of raw data.
    ///
    /// # Errors
    ///
    /// PD did not answer within the time for connecting.
    pub async fn raw_client(&self) -> Result<RawClient<SimDriver>> {
        let (endpoints, config) = self.connection();
        RawClient::with_driver(self.driver(), endpoints, config).await
    }

    fn connection(&self) -> (Endpoints, Config) {
        let plan = self.plan();
        let mut config = Config::default();
        config.commit_batch_bytes = plan.commit_batch_bytes;
        config.scan_page_size = plan.scan_page_size;
        config.managed_lock_ttl = plan.managed_lock_ttl;
        config.heartbeat_bytes = plan.heartbeat_bytes;
        if plan.faults.strength(Fault::Garbage).is_some() {
            config.max_transaction_age = AGE_MAX;
        }
        (Endpoints::new(self.pd_endpoints(), false), config)
    }

    /// Where a client finds PD.
    pub fn pd_endpoints(&self) -> Vec<String> {
        Nodes::of(&self.shared.lock().cluster).pd_endpoints()
    }

    /// What the seed drew.
    pub fn plan(&self) -> Plan {
        self.shared.lock().plan.clone()
    }

    /// Virtual time.
    pub fn now(&self) -> Instant {
        self.shared.lock().now
    }

    /// Waits in virtual time.
    pub async fn sleep(&self, time: Duration) {
        let until = self.now() + time;
        let nap = Operation::new("sleep", move |io: Io| async move {
            io.sleep_until(until, Why::CallerDeadline).await;
        });
        Run::new(self.shared.clone(), APPLICATION, Kind::Background, nap).await;
    }

    /// Runs a task beside the others. Dropping the handle does not stop it.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> TaskHandle<T> {
        let place = Arc::new(Mutex::new(Place {
            result: None,
            waker: None,
        }));
        let handle = TaskHandle {
            place: place.clone(),
        };
        self.shared.lock().spawn_task(Box::pin(async move {
            let result = task.await;
            let waker = {
                let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
                place.result = Some(result);
                place.waker.take()
            };
            waker.into_iter().for_each(Waker::wake);
        }));
        handle
    }

    /// As many clients as a workload has drawn, or fewer if the plan says so.
    pub fn at_most_clients(&self, drawn: u32) -> u32 {
        self.plan().clients_max.map_or(drawn, |max| drawn.min(max))
    }

    /// As many operations of each client as a workload has drawn, or fewer if the plan says so.
    pub fn at_most_operations(&self, drawn: u64) -> u64 {
        self.plan()
            .operations_max
            .map_or(drawn, |max| drawn.min(max))
    }

    /// A stream of random numbers of the application's own.
    pub fn chance(&self, name: &str) -> Chance {
        Chance::stream(self.plan().seed, name)
    }

    /// Lets strangers write values of their own ([`Fault::Strangers`]): for applications whose values
    /// mean nothing. Otherwise they write what is there.
    pub fn let_strangers_write(&self) {
        self.shared.lock().further.strangers.write_freely = true;
    }

    /// Lets faults happen from now on, as long as the seed drew.
    pub fn begin_faults(&self) {
        self.shared.lock().begin_faults();
    }

    /// Ends and mends all faults. From now on everything that is pending must end in time.
    pub fn end_faults(&self) {
        self.shared.lock().end_faults();
    }

    /// Waits until no faults happen any more, if any do, and until the clock has caught up with
    /// timestamps: each change of PD's leader puts them ahead by up to 5 s, and as long as they
    /// are, no lock gets older.
    pub async fn quiet(&self) {
        while self.is_faulty() || self.shared.lock().is_ahead() {
            self.sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether faults may happen now.
    pub fn is_faulty(&self) -> bool {
        self.shared.lock().phase == Phase::Faulty
    }

    /// Whether a fault that strikes calls strikes now. For applications that crash clients.
    pub fn strikes(&self, fault: Fault) -> bool {
        let mut world = self.shared.lock();
        let share = match world.phase {
            Phase::Faulty => world.plan.faults.share(fault),
            Phase::Calm | Phase::Quiet(_) => 0,
        };
        let (now, drawn) = (world.now, self.lock_chance().hits(share));
        world.strikes.lands(now, fault, drawn)
    }

    fn lock_chance(&self) -> std::sync::MutexGuard<'_, Chance> {
        self.chance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call that is dropped at one of its awaits if [`Fault::Cancel`] strikes; `None` if
    /// it was.
    pub async fn may_cancel<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        if !self.strikes(Fault::Cancel) {
            return Some(call.await);
        }
        let polls = self.lock_chance().below(POLLS_BEFORE_CANCEL);
        let result = self.cancel_after(polls, call).await;
        if result.is_none() {
            self.mark(Mark::CallCancelled);
        }
        result
    }

    /// Makes a call and drops it when it is still pending after having been polled `polls` times
    /// more than once.
    pub async fn cancel_after<T>(&self, polls: u64, call: impl Future<Output = T>) -> Option<T> {
        let mut call = pin!(call);
        let mut left = polls;
        std::future::poll_fn(|cx| match call.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => {
                left -= 1;
                Poll::Pending
            }
        })
        .await
    }

    /// An interesting state was reached.
    pub fn mark(&self, mark: Mark) {
        self.shared.lock().audit.mark(mark);
    }

    /// Writes a line into the timeline, if there is one.
    pub fn note(&self, text: impl FnOnce() -> String) {
        let mut world = self.shared.lock();
        let now = world.now;
        world.audit.note(now, text);
    }

    /// Looks at the cluster, or changes it.
    pub fn cluster<T>(&self, act: impl FnOnce(&mut Cluster) -> T) -> T {
        let mut world = self.shared.lock();
        let result = act(&mut world.cluster);
        world.settle_waits();
        result
    }

    /// What clients saw, as far as the application writes it down.
    pub fn history(&self) -> &Recorder {
        &self.recorder
    }

    /// What has happened so far.
    pub fn truth(&self) -> Truth {
        self.shared.lock().truth()
    }

    /// Holds what clients saw against what happened.
    pub fn check(&self) -> Checks<'_> {
        Checks {
            sim: self,
            truth: self.truth(),
        }
    }
}

/// Checkers over one simulation; see [`check`](crate::check).
pub struct Checks<'a> {
    sim: &'a Sim,
    truth: Truth,
}

impl Checks<'_> {
    /// Everything that must hold of transactions at any time: atomicity, snapshot isolation, no
    /// lost commit, no false failure, order in real time.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn transactions(&self) -> Verdict {
        check::transactions(&self.sim.recorder.lock(), &self.truth)?;
        self.sim.shared.lock().strangers_are_whole(&self.truth)
    }

    /// Every read sees exactly the commits at or below its timestamp.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn snapshot_isolation(&self) -> Verdict {
        let history = self.sim.recorder.lock();
        check::isolation::snapshot(&history, &self.truth)?;
        check::isolation::first_committer_wins(&history, &self.truth)
    }

    /// Everything that must hold of raw calls.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn raw_calls(&self) -> Verdict {
        check::raw_calls(&self.sim.recorder.lock(), &self.truth)
    }

    /// What happened.
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// Every client has believed what stores told it of regions, and no operation has sent
    /// requests without end.
    ///
    /// # Errors
    ///
    /// The first offence.
    pub fn manners(&self) -> Verdict {
        self.sim.shared.lock().manners.verdict()
    }

    /// No lock stands in a range.
    ///
    /// # Errors
    ///
    /// The first lock.
    pub fn no_lock_left(&self, range: &KeyRange) -> Verdict {
        check::locks::none_left(&self.truth, range)
    }

    /// Every snapshot of a range adds up to the same.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn constant_sum(&self, range: &KeyRange, total: u64) -> Verdict {
        check::sum::constant(&self.sim.recorder.lock(), range, total)
    }
}

struct Place<T> {
    result: Option<T>,
    waker: Option<Waker>,
}

/// A task that was [spawned](Sim::spawn); wait for its result by awaiting it.
pub struct TaskHandle<T> {
    place: Arc<Mutex<Place<T>>>,
}

impl<T> Future for TaskHandle<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        match place.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                place.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
