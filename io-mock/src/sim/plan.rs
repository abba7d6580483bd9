//! What a seed draws before anything runs: the cluster, the network, the faults. A run prints it
//! first, and the same seed always draws the same.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::chance::{Chance, Ppm};
use super::faults::{Drawn, Faults};
use super::strikes::Strike;

/// The whole configuration of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it was drawn from.
    pub seed: u64,
    /// How many stores.
    pub stores: u64,
    /// How many members of PD.
    pub pd_members: u64,
    /// Into how many regions the data is split at the start.
    pub regions: u64,
    /// How long messages take.
    pub latency: Latency,
    /// Whether messages between a client and a node keep their order.
    pub ordered: bool,
    /// Whether requests that can share a stream do, in frames; otherwise each goes alone.
    pub framed: bool,
    /// Up to which size of keys and values a client's mutations travel together.
    pub commit_batch_bytes: usize,
    /// How many rows a client's scans fetch at a time.
    pub scan_page_size: u32,
    /// How long a client's locks live that it keeps alive.
    pub managed_lock_ttl: Duration,
    /// From which size on a transaction is kept alive.
    pub heartbeat_bytes: usize,
    /// How long faults happen, counted from their beginning.
    pub fault_time: Duration,
    /// How long a call may take once no more faults happen.
    pub patience: Duration,
    /// How long the run may go on once no more faults happen.
    pub time_limit: Duration,
    /// No more clients than this, if a smaller run is wanted than the workload draws.
    pub clients_max: Option<u32>,
    /// No more operations of each client than this.
    pub operations_max: Option<u64>,
    /// Only these strikes of faults, if not all.
    pub strikes: Option<BTreeSet<Strike>>,
    /// What goes wrong.
    pub faults: Drawn,
}

/// How long a message takes in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// At least.
    pub min: Duration,
    /// Usually at most.
    pub usual: Duration,
    /// The share of messages that take longer, in millionths.
    pub slow: Ppm,
    /// At most.
    pub max: Duration,
}

impl Latency {
    pub(super) fn draw(&self, chance: &mut Chance) -> Duration {
        if chance.hits(self.slow) {
            return chance.time(self.usual..=self.max);
        }
        chance.time(self.min..=self.usual)
    }
}

/// Longer than every budget of waiting of a client put together.
const PATIENCE: Duration = Duration::from_secs(180);
const TIME_LIMIT: Duration = Duration::from_secs(24 * 3_600);

impl Plan {
    /// What a seed draws. Faults outside of `allowed` are off.
    pub fn of(seed: u64, allowed: Faults) -> Self {
        let chance = &mut Chance::stream(seed, "plan");
        let min = Duration::from_micros(chance.magnitude(50..=5_000));
        let usual = min * chance.within(1..=10) as u32;
        Plan {
            seed,
            stores: chance.within(1..=5),
            pd_members: if chance.coin() { 3 } else { 1 },
            regions: chance.magnitude(1..=16),
            latency: Latency {
                min,
                usual,
                slow: chance.magnitude(100..=20_000) as Ppm,
                max: usual * chance.within(2..=20) as u32,
            },
            ordered: chance.coin(),
            framed: chance.coin(),
            commit_batch_bytes: chance.magnitude(1..=16_384) as usize,
            scan_page_size: chance.magnitude(1..=256) as u32,
            managed_lock_ttl: Duration::from_millis(chance.magnitude(200..=20_000)),
            heartbeat_bytes: Chance::stream(seed, "heartbeats").magnitude(1..=1_000_000) as usize,
            fault_time: Duration::from_millis(chance.magnitude(500..=8_000)),
            patience: PATIENCE,
            time_limit: TIME_LIMIT,
            clients_max: None,
            operations_max: None,
            strikes: None,
            faults: Drawn::draw(allowed, &mut Chance::stream(seed, "faults")),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency {
            min,
            usual,
            slow,
            max,
        } = self.latency;
        writeln!(
            f,
            "{} stores · {} PD · {} regions · latency {min:?}–{usual:?}, {}.{:02} % up to {max:?} \
             · {} · {} · commits by {} bytes, scans by {} rows, locks for {:?} · heartbeats from {} bytes \
             · faults for {:?}",
            self.stores,
            self.pd_members,
            self.regions,
            slow / 10_000,
            slow / 100 % 100,
            if self.ordered {
                "in order"
            } else {
                "reordered"
            },
            if self.framed { "framed" } else { "one by one" },
            self.commit_batch_bytes,
            self.scan_page_size,
            self.managed_lock_ttl,
            self.heartbeat_bytes,
            self.fault_time,
        )?;
        write!(f, "{}", self.faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_draws_the_same() {
        for seed in 0..20 {
            assert_eq!(Plan::of(seed, Faults::all()), Plan::of(seed, Faults::all()));
        }
    }

    #[test]
    fn forbidding_faults_changes_nothing_else() {
        for seed in 0..20 {
            let all = Plan::of(seed, Faults::all());
            let none = Plan::of(seed, Faults::none());
            assert_eq!(
                Plan {
                    faults: none.faults.clone(),
                    ..all
                },
                none
            );
        }
    }
}
