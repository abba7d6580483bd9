//! Shakes the embedded cluster: regions split, leaders move, stores die and come back.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tikv_io_mock::serve::ServedCluster;

use crate::account;

/// What was done to the cluster.
#[derive(Default)]
pub(crate) struct Shaken {
    splits: u64,
    moves: u64,
    restarts: u64,
    regions: usize,
}

impl fmt::Display for Shaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} splits (now {} regions), {} leaders moved, {} stores killed and restarted",
            self.splits, self.regions, self.moves, self.restarts
        )
    }
}

/// More regions than this make no further difference.
const REGIONS_MAX: usize = 64;

/// Shakes until told to stop. Every store is up at the end.
pub(crate) async fn run(
    cluster: ServedCluster,
    accounts: u64,
    stop: Arc<AtomicBool>,
) -> io::Result<Shaken> {
    let mut chance = oorandom::Rand64::new(7);
    let mut shaken = Shaken::default();
    let stores: Vec<_> = cluster.stores().map(|(id, _)| id).collect();
    let any_store =
        |chance: &mut oorandom::Rand64| stores[chance.rand_range(0..stores.len() as u64) as usize];
    for round in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let regions = cluster.regions();
        shaken.regions = regions.len();
        if regions.len() < REGIONS_MAX && round % 4 == 0 {
            cluster.split(account(chance.rand_range(0..accounts)).as_bytes());
            shaken.splits += 1;
        }
        let region = regions[chance.rand_range(0..regions.len() as u64) as usize];
        if cluster.transfer_leader(region, any_store(&mut chance)) {
            shaken.moves += 1;
        }
        if round % 40 == 0 {
            let store = any_store(&mut chance);
            cluster.stop_store(store).await;
            // As in a real cluster, the others take over only after a while.
            tokio::time::sleep(Duration::from_millis(200)).await;
            cluster.fail_over(store);
            tokio::time::sleep(Duration::from_millis(200)).await;
            cluster.start_store(store).await?;
            shaken.restarts += 1;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    Ok(shaken)
}
