//! The deterministic simulator: one thread, one seed, virtual time.
//!
//! [`Simulation`] draws a cluster, a network and faults from a seed, runs an application against
//! them and tells how it went. Everything an application does through a [`SimDriver`] or a [`Sim`]
//! happens in virtual time; a run of minutes takes milliseconds and, with the same seed, is the
//! same every time.
//!
//! ```
//! use std::time::Duration;
//! use tikv_io_mock::sim::{Faults, Simulation};
//!
//! let report = Simulation::seed(7).faults(Faults::all()).run(async |sim| {
//!     sim.sleep(Duration::from_secs(3600)).await;
//!     Ok(())
//! });
//! assert!(report.virtual_ms >= 3_600_000);
//! ```
//!
//! # Two phases
//!
//! While faults happen, nothing may be *wrong*. Then they end, what they broke is mended, and
//! everything that is still pending must *end* within a budget of virtual time. A run in which
//! nothing can go on any more is a failure as well, not a hang.
//!
//! # What decides
//!
//! | choice | by |
//! |---|---|
//! | which task runs next, of those that can | the seed's stream `scheduler` |
//! | how long messages take, which are lost, late or doubled | `network` |
//! | when the cluster changes, and how | `chaos` |
//! | which stores are slow, busy, full or die over writes, which peers move | `ailments`, `slow nodes` |
//! | the second half of the menu | `further faults`, and one for each of its parts |
//! | the cluster, the latencies, which faults are on and how strong | `plan`, `faults` |
//! | what each client's own random choices begin with | `clients` |
//! | events of one instant | the order in which they were scheduled |
//! | everything else | nothing: no clock, no thread, no hash map whose order could be seen |
//!
//! A digest over all events proves it: one seed, two runs, equal digests.

mod ailments;
mod audit;
mod bounds;
mod chance;
mod chaos;
mod digest;
mod drawing;
mod driver;
mod executor;
mod faults;
mod flights;
mod further;
mod garbage;
mod handle;
mod links;
mod manners;
mod marks;
mod network;
mod observe;
mod ops;
mod oracle;
mod pd_trouble;
mod placement;
#[cfg(test)]
mod plain;
mod plan;
mod queue;
mod replicas;
mod report;
mod shared;
mod strangers;
mod streams;
mod strikes;
#[cfg(test)]
mod tests;
mod waits;
mod world;
mod write_ends;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bytes::Bytes;

pub use self::audit::Stats;
pub use self::bounds::{Bounds, Shrunk, shrink};
pub use self::chance::Chance;
pub use self::digest::Digest;
pub use self::driver::SimDriver;
pub use self::faults::{Drawn, Fault, Faults, Strength};
pub use self::handle::{Checks, Sim, TaskHandle};
pub use self::marks::{Mark, Marks};
pub use self::network::ClientId;
pub use self::plan::{Latency, Plan};
pub use self::report::{Failure, FailureKind, Report};
pub use self::strikes::Strike;

use self::audit::Audit;
use self::drawing::Drawing;
use self::executor::Executor;
use self::shared::Shared;
use self::world::{EPOCH_MS, World};
use crate::check::Violation;
use crate::cluster::extension::Extended;
use crate::cluster::{self, Cluster};

/// One run to be made.
#[must_use = "nothing happens before `run`"]
pub struct Simulation {
    plan: Plan,
    split_keys: Vec<Bytes>,
    calm: bool,
    timeline: Option<Box<dyn Write + Send>>,
    drawing: Option<Box<dyn Write + Send>>,
    replay: Option<String>,
    extension: Option<Extended>,
}

impl Simulation {
    /// The run that a seed stands for, without faults.
    pub fn seed(seed: u64) -> Self {
        Simulation {
            plan: Plan::of(seed, Faults::none()),
            split_keys: Vec::new(),
            calm: false,
            timeline: None,
            drawing: None,
            replay: None,
            extension: None,
        }
    }

    /// Lets the seed draw from these faults.
    pub fn faults(mut self, allowed: Faults) -> Self {
        self.plan = Plan::of(self.plan.seed, allowed);
        self
    }

    /// Confines the run.
    pub fn bounds(mut self, bounds: &Bounds) -> Self {
        self.plan = bounds.plan(self.plan.seed);
        self
    }

    /// Changes what the seed drew.
    pub fn plan(mut self, change: impl FnOnce(&mut Plan)) -> Self {
        change(&mut self.plan);
        self
    }

    /// Keys at which regions may be split at the start, in the form in which regions are bounded
    /// by them. As many of them are taken as the seed has drawn regions.
    pub fn split_keys(mut self, keys: impl IntoIterator<Item = Bytes>) -> Self {
        self.split_keys = keys.into_iter().collect();
        self
    }

    /// Leaves it to the application to let the faults begin ([`Sim::begin_faults`]). Otherwise
    /// they begin with the run.
    pub fn calm(mut self) -> Self {
        self.calm = true;
        self
    }

    /// Writes what happens, line by line.
    pub fn timeline(mut self, into: impl Write + Send + 'static) -> Self {
        self.timeline = Some(Box::new(into));
        self
    }

    /// Draws the run, as an HTML page that needs nothing else: a lane for each client, store and
    /// member of PD, a line for each message, a colour for each transaction. It is written when
    /// the run ends, however it does.
    pub fn drawing(mut self, into: impl Write + Send + 'static) -> Self {
        self.drawing = Some(Box::new(into));
        self
    }

    /// The command that a failure names to repeat the run.
    pub fn replay(mut self, command: impl Into<String>) -> Self {
        self.replay = Some(command.into());
        self
    }

    /// Who answers what stores leave to others, as deterministically as everything else.
    pub fn extension(mut self, extension: impl Into<Extended>) -> Self {
        self.extension = Some(extension.into());
        self
    }

    /// What the run is going to be.
    pub fn drawn(&self) -> &Plan {
        &self.plan
    }

    /// Runs `body`, and whatever it starts, to its end.
    ///
    /// # Panics
    ///
    /// If the run fails; the message holds the seed, what it drew and what went wrong. See
    /// [`Simulation::try_run`].
    pub fn run<F>(self, body: F) -> Report
    where
        F: AsyncFnOnce(Sim) -> Result<(), Violation>,
    {
        match self.try_run(body) {
            Ok(report) => report,
            Err(failure) => panic!("{failure}"),
        }
    }

    /// Runs `body`, and whatever it starts, to its end.
    ///
    /// # Errors
    ///
    /// What went wrong: `body` found a violation or panicked, or did not end.
    pub fn try_run<F>(self, body: F) -> Result<Report, Box<Failure>>
    where
        F: AsyncFnOnce(Sim) -> Result<(), Violation>,
    {
        let plan = self.plan;
        let mut cluster = Cluster::new(
            cluster::Config {
                stores: plan.stores,
                pd_members: plan.pd_members,
                heartbeat_at_once: false,
                keep_truth: true,
                keep_mistakes: true,
                sync_max_ts_at_once: plan.faults.strength(Fault::LateSync).is_none(),
                refuse_reads_of_garbage: plan.faults.strength(Fault::Garbage).is_some(),
                extension: self.extension,
                ..cluster::Config::default()
            },
            EPOCH_MS,
        );
        split(&mut cluster, &plan, self.split_keys);
        let mut audit = Audit::new(self.timeline);
        audit.drawing = self.drawing.is_some().then(Drawing::default);
        let shared = Shared::new(World::new(plan, cluster, audit));
        let mut executor = Executor::new(shared.clone());
        if !self.calm {
            shared.lock().begin_faults();
        }
        let sim = Sim::new(shared.clone());
        // The world is only looked at after a panic, never run on.
        let ended = catch_unwind(AssertUnwindSafe(|| executor.run(body(sim))));
        let result = match ended {
            Ok(Ok(Ok(()))) => {
                let world = shared.lock();
                match mistake(&world.cluster) {
                    None => Ok(Report::of(&world)),
                    Some(violation) => Err(FailureKind::Violation(violation)),
                }
            }
            Ok(Ok(Err(violation))) => Err(FailureKind::Violation(violation)),
            Ok(Err(halt)) => Err(halt.into()),
            Err(panic) => Err(FailureKind::panicked(panic.as_ref())),
        };
        let result =
            result.map_err(|kind| Box::new(Failure::of(&shared.lock(), kind, self.replay)));
        if let (Some(mut out), Some(drawing)) = (self.drawing, &shared.lock().audit.drawing) {
            let title = match &result {
                Ok(report) => format!("{report}\n{}", report.plan),
                Err(failure) => failure.to_string(),
            };
            // A drawing that can't be written is no reason to lose the report.
            let _ = drawing.write(&mut out, &title).and_then(|()| out.flush());
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| executor.clear())) {
            // A second panic while the tasks of a failed run are dropped says nothing new.
            if result.is_ok() {
                resume_unwind(panic);
            }
        }
        result
    }
}

/// The first request of a client that would have ended a real server's process.
fn mistake(cluster: &Cluster) -> Option<Violation> {
    let mistake = cluster.mistakes().first()?;
    let detail = format!(
        "s{} got a {} at {} ms: {}",
        mistake.store, mistake.command, mistake.at_ms, mistake.text
    );
    Some(Violation::new("no request crashes a server", detail))
}

/// Splits the first region and spreads the leaders, as far as the plan says.
fn split(cluster: &mut Cluster, plan: &Plan, mut keys: Vec<Bytes>) {
    let mut chance = Chance::stream(plan.seed, "regions");
    while keys.len() as u64 >= plan.regions.max(1) {
        keys.swap_remove(chance.index(keys.len()));
    }
    let regions: Vec<_> = cluster.regions().ids().collect();
    for region in regions {
        cluster.split(EPOCH_MS, region, &keys);
    }
    let stores: Vec<_> = cluster.store_ids().collect();
    let regions: Vec<_> = cluster.regions().ids().collect();
    for region in regions {
        if let Some(&store) = chance.pick(&stores) {
            cluster.transfer_leader(EPOCH_MS, region, store);
        }
        // Nobody has read anything yet.
        if cluster.region(region).is_some_and(|it| !it.max_ts_synced) {
            cluster.sync_max_ts(EPOCH_MS, region);
        }
        cluster.pd_heartbeat(region);
    }
}
