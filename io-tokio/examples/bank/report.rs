//! What happened, in numbers.

use std::fmt;
use std::time::Duration;

use tikv_io_tokio::Error;

use crate::chaos::Shaken;
use crate::support::numbers::Latencies;

/// What one client, or all of them, did.
pub(crate) struct Report {
    pub(crate) commits: u64,
    /// Attempts that met another transaction.
    pub(crate) conflicts: u64,
    /// Attempts that failed otherwise and could be repeated.
    pub(crate) retries: u64,
    pub(crate) undetermined: u64,
    failures: u64,
    last_failure: Option<Error>,
    /// From the first attempt to the commit.
    pub(crate) latencies: Latencies,
    pub(crate) elapsed: Duration,
    pub(crate) chaos: Option<Shaken>,
}

impl Default for Report {
    fn default() -> Self {
        Report {
            commits: 0,
            conflicts: 0,
            retries: 0,
            undetermined: 0,
            failures: 0,
            last_failure: None,
            latencies: Latencies::new(),
            elapsed: Duration::ZERO,
            chaos: None,
        }
    }
}

impl Report {
    /// Counts a transfer that was given up.
    pub(crate) fn fail(&mut self, error: Error) {
        self.failures += 1;
        self.last_failure = Some(error);
    }

    /// Adds what another client did.
    pub(crate) fn add(&mut self, other: Report) {
        self.commits += other.commits;
        self.conflicts += other.conflicts;
        self.retries += other.retries;
        self.undetermined += other.undetermined;
        self.failures += other.failures;
        self.last_failure = other.last_failure.or(self.last_failure.take());
        self.latencies.add(&other.latencies);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(chaos) = &self.chaos {
            writeln!(f, "meanwhile: {chaos}")?;
        }
        writeln!(f, "commits       {:>10}", self.commits)?;
        writeln!(f, "conflicts     {:>10}", self.conflicts)?;
        writeln!(f, "retries       {:>10}", self.retries)?;
        writeln!(f, "undetermined  {:>10}", self.undetermined)?;
        writeln!(f, "failures      {:>10}", self.failures)?;
        if let Some(error) = &self.last_failure {
            writeln!(f, "  the last one: {error}")?;
        }
        let rate = self.commits as f64 / self.elapsed.as_secs_f64();
        writeln!(f, "throughput    {rate:>10.0} transfers/s")?;
        writeln!(f, "latency of a transfer, repetitions included")?;
        for percent in [50.0, 90.0, 99.0, 99.9] {
            let latency = self.latencies.percentile(percent);
            writeln!(
                f,
                "  p{percent:<11} {:>10.2} ms",
                latency.as_secs_f64() * 1e3
            )?;
        }
        write!(
            f,
            "  {:<12} {:>10.2} ms",
            "max",
            self.latencies.max().as_secs_f64() * 1e3
        )
    }
}
