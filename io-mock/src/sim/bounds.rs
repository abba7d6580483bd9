//! What a run is confined to, and the search for the narrowest bounds in which a failing run still
//! fails: the fewest faults, clients and operations, then the fewest single strikes of faults.
//!
//! A narrower run is another run: it fails the same way if it breaks the same rule, and is then as
//! good. Nothing is said about the bounds that were not tried.

use std::collections::BTreeSet;
use std::fmt;

use super::faults::{Fault, Faults};
use super::plan::Plan;
use super::report::Failure;
use super::strikes::Strike;

/// What a run is confined to. The default is nothing: every fault may happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Which faults may be drawn.
    pub faults: Faults,
    /// No more clients than this.
    pub clients: Option<u32>,
    /// No more operations of each client than this.
    pub operations: Option<u64>,
    /// Only these strikes of faults.
    pub strikes: Option<BTreeSet<Strike>>,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds::faults(Faults::all())
    }
}

impl Bounds {
    /// Only these faults.
    pub fn faults(faults: Faults) -> Self {
        Bounds {
            faults,
            clients: None,
            operations: None,
            strikes: None,
        }
    }

    fn without_faults(&self) -> Bounds {
        Bounds {
            faults: Faults::none(),
            strikes: None,
            ..self.clone()
        }
    }

    /// What a seed draws in these bounds.
    pub fn plan(&self, seed: u64) -> Plan {
        Plan {
            clients_max: self.clients,
            operations_max: self.operations,
            strikes: self.strikes.clone(),
            ..Plan::of(seed, self.faults)
        }
    }
}

/// As arguments of a command: nothing if nothing is confined.
impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.faults != Faults::all() {
            write!(f, " --faults {}", self.faults)?;
        }
        if let Some(clients) = self.clients {
            write!(f, " --clients {clients}")?;
        }
        if let Some(operations) = self.operations {
            write!(f, " --operations {operations}")?;
        }
        if let Some(strikes) = &self.strikes {
            let names: Vec<String> = strikes.iter().map(Strike::to_string).collect();
            let names = names.join(",");
            write!(
                f,
                " --strikes {}",
                if names.is_empty() { "none" } else { &names }
            )?;
        }
        Ok(())
    }
}

/// A failing run that was made smaller.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The narrowest bounds that were found.
    pub bounds: Bounds,
    /// How the run fails in them.
    pub failure: Box<Failure>,
    /// How many runs it took to find them.
    pub runs: u32,
}

/// Narrows the bounds of a failing run as long as it breaks the same rule. `run` makes a run.
pub fn shrink(
    bounds: Bounds,
    failure: Box<Failure>,
    run: impl FnMut(&Bounds) -> Option<Box<Failure>>,
) -> Shrunk {
    let mut search = Search {
        rule: failure.kind.rule(),
        run,
        best: Shrunk {
            bounds,
            failure,
            runs: 0,
        },
    };
    loop {
        let before = search.best.bounds.clone();
        search.clients();
        search.operations();
        search.faults();
        search.strikes();
        if search.best.bounds == before || search.best.runs >= RUNS_MAX {
            return search.best;
        }
    }
}

/// A search ends after so many runs, which take milliseconds each.
const RUNS_MAX: u32 = 3_000;

struct Search<R> {
    rule: &'static str,
    run: R,
    best: Shrunk,
}

impl<R: FnMut(&Bounds) -> Option<Box<Failure>>> Search<R> {
    /// Takes narrower bounds if the run still fails in them.
    fn narrow(&mut self, change: impl FnOnce(&mut Bounds)) -> bool {
        let mut bounds = self.best.bounds.clone();
        change(&mut bounds);
        if bounds == self.best.bounds || self.best.runs >= RUNS_MAX {
            return false;
        }
        self.best.runs += 1;
        let failure = (self.run)(&bounds).filter(|failure| failure.kind.rule() == self.rule);
        let Some(failure) = failure else {
            return false;
        };
        self.best = Shrunk {
            bounds,
            failure,
            ..self.best
        };
        true
    }

    /// What struck in the narrowest run so far.
    fn struck(&self) -> BTreeSet<Strike> {
        let strikes = self.best.failure.strikes.iter();
        strikes.map(|(_, strike)| *strike).collect()
    }

    /// Confines the run to those strikes that are wanted. Whole faults are left out in this way,
    /// too: a fault that may not be drawn at all changes more of the run than one held back.
    fn keep(&mut self, wanted: impl Fn(&Strike) -> bool) -> bool {
        let left = self.struck().into_iter().filter(wanted).collect();
        self.narrow(|bounds| bounds.strikes = Some(left))
    }

    fn clients(&mut self) {
        let most = self.best.bounds.clients.unwrap_or(CLIENTS_MAX);
        for clients in 1..most {
            if self.narrow(|bounds| bounds.clients = Some(clients)) {
                return;
            }
        }
    }

    fn operations(&mut self) {
        let most = self.best.bounds.operations.unwrap_or(OPERATIONS_MAX);
        for operations in 0..most {
            if self.narrow(|bounds| bounds.operations = Some(operations)) {
                return;
            }
        }
    }

    fn faults(&mut self) {
        if self.best.bounds.faults == Faults::none() {
            return;
        }
        // The same run: what has not struck was not needed.
        self.keep(|_| true);
        let kinds: BTreeSet<Fault> = self.struck().iter().map(|strike| strike.fault).collect();
        for kind in kinds {
            self.keep(|strike| strike.fault != kind);
        }
    }

    /// Leaves out ever smaller parts of the strikes (Zeller's delta debugging).
    fn strikes(&mut self) {
        let mut parts = 1;
        loop {
            let left: Vec<Strike> = self.struck().into_iter().collect();
            if left.is_empty() {
                self.narrow(|bounds| *bounds = bounds.without_faults());
                return;
            }
            let size = left.len().div_ceil(parts);
            let smaller = left
                .chunks(size)
                .any(|part| self.keep(|strike| !part.contains(strike)));
            if smaller {
                parts = (parts - 1).max(1);
            } else if size == 1 {
                return;
            } else {
                parts = (parts * 2).min(left.len());
            }
        }
    }
}

/// As many as any workload has.
const CLIENTS_MAX: u32 = 7;
/// More operations of one client are not tried.
const OPERATIONS_MAX: u64 = 80;

#[cfg(test)]
mod tests {
    use super::super::{Sim, Simulation};
    use super::*;
    use crate::check::Violation;

    /// Fails if at least two operations of some client are struck.
    async fn two_strikes(sim: Sim) -> Result<(), Violation> {
        let mut struck = 0;
        for _ in 0..sim.at_most_clients(4) {
            for _ in 0..sim.at_most_operations(20) {
                struck += u32::from(sim.strikes(Fault::Cancel));
                sim.strikes(Fault::Crash);
            }
        }
        match struck {
            0 | 1 => Ok(()),
            _ => Err(Violation::new("fewer than two", struck.to_string())),
        }
    }

    fn run(bounds: &Bounds) -> Option<Box<Failure>> {
        let often = |plan: &mut Plan| *plan = bounds.plan(plan.seed);
        let simulation = Simulation::seed(SEED).plan(often);
        simulation.try_run(two_strikes).err()
    }

    /// One that draws both faults, and strong ones.
    const SEED: u64 = 6;

    #[test]
    fn a_failing_run_is_made_as_small_as_can_be() {
        let everything = Bounds::default();
        let failure = run(&everything).expect("it fails");
        let shrunk = shrink(everything, failure, run);
        assert!(shrunk.bounds.clients.is_some() && shrunk.bounds.operations.is_some());
        let struck = shrunk.failure.strikes.iter();
        let kinds: Vec<Fault> = struck.map(|(_, strike)| strike.fault).collect();
        assert_eq!(kinds, [Fault::Cancel, Fault::Cancel], "{}", shrunk.failure);
        let again = run(&shrunk.bounds).expect("it still fails");
        assert_eq!(again.report, shrunk.failure.report);
    }

    #[test]
    fn bounds_are_written_as_arguments() {
        assert_eq!(Bounds::default().to_string(), "");
        let bounds = Bounds {
            faults: Faults::none().with(Fault::LoseReply).with(Fault::Cut),
            clients: Some(2),
            operations: Some(3),
            strikes: Some(
                ["lose-reply:4", "cut:17"]
                    .map(|it| it.parse().unwrap())
                    .into(),
            ),
        };
        let text = " --faults lose-reply,cut --clients 2 --operations 3 \
                    --strikes lose-reply:4,cut:17";
        assert_eq!(bounds.to_string(), text);
        let none = Bounds::faults(Faults::none());
        assert_eq!(none.to_string(), " --faults none");
    }
}
