//! How a run went.

use std::any::Any;
use std::fmt;

use tikv_core::driver::Instant;

use super::audit::Stats;
use super::digest::Digest;
use super::executor::Halt;
use super::marks::Marks;
use super::plan::Plan;
use super::strikes::Strike;
use super::world::World;
use crate::check::Violation;

/// A run that went well.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What the seed drew.
    pub plan: Plan,
    /// The hash of everything that happened.
    pub digest: Digest,
    /// Counts.
    pub stats: Stats,
    /// How many transactions have committed something.
    pub commits: u64,
    /// How long the run took in its own time.
    pub virtual_ms: u64,
    /// Which interesting states were reached.
    pub marks: Marks,
}

impl Report {
    pub(super) fn of(world: &World) -> Self {
        Report {
            plan: world.plan.clone(),
            digest: world.audit.digest,
            stats: world.audit.stats,
            commits: world.truth().committed(),
            virtual_ms: world.now.as_millis(),
            marks: world.audit.marks,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {} ok digest={} rpcs={} commits={} virtual_ms={}",
            self.plan.seed, self.digest, self.stats.rpcs, self.commits, self.virtual_ms
        )
    }
}

/// A run that went wrong.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// What went wrong.
    pub kind: FailureKind,
    /// How far the run had come.
    pub report: Report,
    /// When, in the run's own time.
    pub at: Instant,
    /// What had not ended, and what it was waiting for.
    pub pending: Vec<String>,
    /// The strikes of faults that happened before, and when.
    pub strikes: Vec<(Instant, Strike)>,
    replay: Option<String>,
}

/// What went wrong in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// A rule was broken.
    Violation(Violation),
    /// Something panicked.
    Panicked(String),
    /// Something was pending, nothing could go on, and nothing would ever happen.
    Stuck,
    /// Something was still pending long after the faults had ended.
    NeverEnds,
    /// Tasks woke each other without end while no time passed.
    Spins,
}

impl FailureKind {
    pub(super) fn panicked(panic: &(dyn Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        FailureKind::Panicked(text.unwrap_or_else(|| "of unknown content".to_owned()))
    }
}

impl FailureKind {
    /// The rule that was broken, in a few words.
    pub fn rule(&self) -> &'static str {
        match self {
            FailureKind::Violation(violation) => violation.rule,
            FailureKind::Panicked(_) => "no panic",
            FailureKind::Stuck => "never stuck",
            FailureKind::NeverEnds => "ends once faults have ended",
            FailureKind::Spins => "no spinning",
        }
    }
}

impl From<Halt> for FailureKind {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Stuck => FailureKind::Stuck,
            Halt::Impatient => FailureKind::NeverEnds,
            Halt::Spinning => FailureKind::Spins,
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FailureKind::Violation(violation) => violation.fmt(f),
            FailureKind::Panicked(text) => write!(f, "panic: {text}"),
            FailureKind::Stuck => write!(f, "stuck: nothing can go on, nothing will happen"),
            FailureKind::NeverEnds => write!(f, "faults have ended, but not what is pending"),
            FailureKind::Spins => write!(f, "tasks wake each other without end"),
        }
    }
}

/// More pending operations than this only repeat each other.
const PENDING_SHOWN: usize = 20;

impl Failure {
    pub(super) fn of(world: &World, kind: FailureKind, replay: Option<String>) -> Self {
        let pending = world.ops.pending();
        Failure {
            kind,
            report: Report::of(world),
            at: world.now,
            pending: pending
                .iter()
                .take(PENDING_SHOWN)
                .map(ToString::to_string)
                .collect(),
            strikes: world.strikes.landed().to_vec(),
            replay,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.report.plan;
        writeln!(f, "seed {}: {}", plan.seed, self.kind)?;
        writeln!(f, "  at {} ms", self.at.as_millis())?;
        for line in plan.to_string().lines() {
            writeln!(f, "  {line}")?;
        }
        let pends = matches!(
            self.kind,
            FailureKind::Stuck | FailureKind::NeverEnds | FailureKind::Spins
        );
        for pending in self.pending.iter().filter(|_| pends) {
            writeln!(f, "  pending: {pending}")?;
        }
        // All of them would say little; the few of a run that was made smaller say all.
        for (at, strike) in self.strikes.iter().filter(|_| plan.strikes.is_some()) {
            writeln!(f, "  {strike} at {} ms", at.as_millis())?;
        }
        match &self.replay {
            Some(command) => write!(f, "  replay: {command}"),
            None => write!(f, "  replay: Simulation::seed({})", plan.seed),
        }
    }
}
