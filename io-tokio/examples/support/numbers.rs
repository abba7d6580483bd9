//! Latencies and processor time.

use std::time::Duration;

use hdrhistogram::Histogram;

/// How long calls took, to three digits.
#[derive(Clone)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> Self {
        // Beyond ten minutes it does not matter how long exactly.
        Latencies(Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("bounds that are valid"))
    }

    /// Adds one.
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_nanos() as u64);
    }

    /// Adds those of another set.
    pub(crate) fn add(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("sets of the same bounds");
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that so many of a hundred do not exceed.
    pub(crate) fn percentile(&self, percent: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_percentile(percent))
    }

    /// The longest.
    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }
}

/// The processor time this process has used, all threads together. `None` where the system does
/// not tell.
pub(crate) fn processor_time() -> Option<Duration> {
    // Fields 14 and 15, counted after the name, which is the only one that may contain blanks.
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let user: u64 = fields.get(11)?.parse().ok()?;
    let system: u64 = fields.get(12)?.parse().ok()?;
    // Linux counts these in hundredths of a second on every architecture.
    Some(Duration::from_millis((user + system) * 10))
}
