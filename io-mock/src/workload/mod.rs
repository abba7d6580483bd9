//! What clients do in a simulation: workloads that are easy to check and hard to survive.
//!
//! | workload | does | must hold |
//! |---|---|---|
//! | [`bank`] | transfers between accounts, reads of the total | the total; everything of transactions |
//! | [`mixed`] | all kinds of reads and writes on few keys | everything of transactions |
//! | [`register`] | raw reads, writes, deletions | everything of raw calls |
//!
//! Each client is one task that does one thing after the other. Between two of them it may die, and
//! any call may be dropped half way, as the seed draws.

pub mod bank;
pub mod mixed;
pub mod register;
mod session;

use std::fmt;
use std::io::Write;
use std::str::FromStr;

pub use self::session::{RecordedTransaction, Session, Work};

use crate::check::Verdict;
use crate::sim::{Failure, Faults, Report, Sim, Simulation};

/// A workload by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Workload {
    /// See [`bank`].
    Bank,
    /// See [`mixed`].
    Mixed,
    /// See [`register`].
    Register,
}

impl Workload {
    /// Every workload.
    pub const ALL: [Workload; 3] = [Workload::Bank, Workload::Mixed, Workload::Register];

    /// The name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Workload::Bank => "bank",
            Workload::Mixed => "mixed",
            Workload::Register => "register",
        }
    }

    /// One run: what the seed draws, this workload, all its checks.
    ///
    /// # Errors
    ///
    /// What went wrong.
    pub fn run(
        self,
        seed: u64,
        faults: Faults,
        timeline: Option<Box<dyn Write + Send>>,
    ) -> Result<Report, Box<Failure>> {
        let keys = match self {
            Workload::Bank => bank::split_keys(),
            Workload::Mixed => mixed::split_keys(),
            Workload::Register => register::split_keys(),
        };
        let replay = format!(
            "cargo run --release -p tikv-tests --bin sim -- --seed {seed} --workload {self}"
        );
        let mut simulation = Simulation::seed(seed)
            .faults(faults)
            .calm()
            .split_keys(keys)
            .replay(replay);
        if let Some(timeline) = timeline {
            simulation = simulation.timeline(timeline);
        }
        simulation.try_run(async |sim| self.work(sim).await)
    }

    async fn work(self, sim: Sim) -> Verdict {
        match self {
            Workload::Bank => bank::run(sim).await,
            Workload::Mixed => mixed::run(sim).await,
            Workload::Register => register::run(sim).await,
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Workload::ALL
            .into_iter()
            .find(|workload| workload.name() == name)
            .ok_or_else(|| format!("no workload is called {name:?}"))
    }
}
