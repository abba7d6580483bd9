//! The one cluster behind all servers, and the time it lives in.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::cluster::{Cluster, Config};

/// The cluster and its clock.
#[derive(Debug)]
pub(super) struct World {
    cluster: Mutex<Cluster>,
    epoch_ms: u64,
    start: Instant,
}

impl World {
    pub(super) fn new(config: Config) -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let epoch_ms = since_epoch.as_millis() as u64;
        World {
            cluster: Mutex::new(Cluster::new(config, epoch_ms)),
            epoch_ms,
            start: Instant::now(),
        }
    }

    /// Has something done to the cluster, at the present time.
    pub(super) fn with<R>(&self, change: impl FnOnce(&mut Cluster, u64) -> R) -> R {
        let now_ms = self.now_ms();
        change(&mut self.lock(), now_ms)
    }

    /// Milliseconds since the Unix epoch. It never goes back, whatever becomes of the wall clock.
    fn now_ms(&self) -> u64 {
        self.epoch_ms + self.start.elapsed().as_millis() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Cluster> {
        // A request that panics half way is a defect of the cluster; the others are still served.
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
