//! What clients do in a simulation: workloads that are easy to check and hard to survive.
//!
//! | workload | does | must hold |
//! |---|---|---|
//! | [`append`] | reads of lists, appends to them | no cycle of dependencies but write skew |
//! | [`bank`] | transfers between accounts, reads of the total | the total; everything of transactions |
//! | [`bulk`] | large transactions that write locks as they go, beside small ones | everything of transactions |
//! | [`mixed`] | all kinds of reads and writes on few keys | everything of transactions |
//! | [`queues`] | items put in and taken out, under locks | each is given once, in its order; everything of transactions |
//! | [`register`] | raw reads, writes, deletions | everything of raw calls |
//! | [`scans`] | scans of all kinds under writers | everything of transactions |
//! | [`skew`] | switches one of two lamps | never both off where the other is locked |
//!
//! Each client is one task that does one thing after the other. Between two of them it may die, and
//! any call may be dropped half way, as the seed draws.

pub mod append;
pub mod bank;
pub mod bulk;
pub mod mixed;
pub mod queues;
pub mod register;
pub mod scans;
mod session;
pub mod skew;
pub(crate) mod wire;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;

pub use self::session::{RecordedTransaction, Session, Work};

use crate::check::Verdict;
use crate::sim::{Bounds, Failure, Fault, Faults, Report, Sim, Simulation};

macro_rules! workloads {
    ($( $workload:ident = $module:ident, )*) => {
        /// A workload by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Workload {
            $(
                #[doc = concat!("See [`", stringify!($module), "`].")]
                $workload,
            )*
        }

        impl Workload {
            /// Every workload.
            pub const ALL: &[Workload] = &[$( Workload::$workload, )*];

            /// The name on a command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Workload::$workload => stringify!($module), )*
                }
            }

            fn split_keys(self) -> Vec<Bytes> {
                match self {
                    $( Workload::$workload => $module::split_keys(), )*
                }
            }

            async fn work(self, sim: Sim) -> Verdict {
                match self {
                    $( Workload::$workload => $module::run(sim).await, )*
                }
            }
        }
    };
}

workloads! {
    Bank = bank,
    Mixed = mixed,
    Register = register,
    Append = append,
    Skew = skew,
    Scans = scans,
    Queues = queues,
    Bulk = bulk,
}

/// A message is never later than this.
const CLEANED_UP: Duration = Duration::from_secs(90);

/// Has clients, numbered from 1, do their work at the same time, while things go wrong.
async fn under_faults<F>(sim: &Sim, clients: u32, client: impl Fn(u32) -> F) -> Verdict
where
    F: Future<Output = Verdict> + Send + 'static,
{
    sim.begin_faults();
    let clients: Vec<_> = (1..=clients)
        .map(|number| sim.spawn(client(number)))
        .collect();
    for client in clients {
        client.await?;
    }
    sim.end_faults();
    Ok(())
}

impl Workload {
    /// The run of a seed in these bounds, to be made by [`try_run`](Workload::try_run).
    pub fn simulation(self, seed: u64, bounds: &Bounds) -> Simulation {
        let replay = format!(
            "cargo run --release -p tikv-tests --bin sim -- --seed {seed} --workload {self}{bounds}"
        );
        let bounds = Bounds {
            faults: self.survives(bounds.faults),
            ..bounds.clone()
        };
        Simulation::seed(seed)
            .bounds(&bounds)
            .calm()
            .split_keys(self.split_keys())
            .replay(replay)
    }

    /// What of these faults may be drawn.
    fn survives(self, faults: Faults) -> Faults {
        match self {
            // Commits whose timestamps stores choose are not too old for any of them. A real cluster
            // collects no garbage that is newer than the oldest transaction it is told of; these
            // clients tell nobody. And the lock of a queue guards its items, but not from strangers,
            // who do not take it.
            Workload::Queues => faults.without(Fault::Garbage).without(Fault::Strangers),
            _ => faults,
        }
    }

    /// Makes a run: what the seed draws, this workload, all its checks.
    ///
    /// # Errors
    ///
    /// What went wrong.
    pub fn try_run(self, simulation: Simulation) -> Result<Report, Box<Failure>> {
        simulation.try_run(async |sim| self.work(sim).await)
    }

    /// The run of a seed in these bounds.
    ///
    /// # Errors
    ///
    /// What went wrong.
    pub fn run(self, seed: u64, bounds: &Bounds) -> Result<Report, Box<Failure>> {
        self.try_run(self.simulation(seed, bounds))
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
            .iter()
            .copied()
            .find(|workload| workload.name() == name)
            .ok_or_else(|| format!("no workload is called {name:?}"))
    }
}
