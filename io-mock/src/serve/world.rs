//! The one cluster behind all servers, and the time it lives in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;

use super::waits::{Counter, Waits};
use crate::cluster::{Cluster, Config};

/// The cluster and its clock.
#[derive(Debug)]
pub(super) struct World {
    inner: Mutex<Inner>,
    epoch_ms: u64,
    start: Instant,
    /// Where timers run.
    runtime: Handle,
    /// Timers do not keep it.
    this: Weak<World>,
}

#[derive(Debug)]
struct Inner {
    cluster: Cluster,
    waits: Waits,
}

impl World {
    /// A new cluster, on the runtime that this is called on.
    pub(super) fn new(config: Config) -> Arc<Self> {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let epoch_ms = since_epoch.as_millis() as u64;
        Arc::new_cyclic(|this| World {
            inner: Mutex::new(Inner {
                cluster: Cluster::new(config, epoch_ms),
                waits: Waits::default(),
            }),
            epoch_ms,
            start: Instant::now(),
            runtime: Handle::current(),
            this: this.clone(),
        })
    }

    /// Has something done to the cluster, at the present time.
    pub(super) fn with<R>(&self, change: impl FnOnce(&mut Cluster, u64) -> R) -> R {
        self.serve(|counter| change(counter.cluster, counter.now_ms))
    }

    /// Has stores answer requests, at the present time.
    pub(super) fn serve<R>(&self, ask: impl FnOnce(&mut Counter<'_>) -> R) -> R {
        let now_ms = self.now_ms();
        let mut inner = self.lock();
        let Inner { cluster, waits } = &mut *inner;
        cluster.end_waits(now_ms);
        let result = ask(&mut Counter {
            cluster: &mut *cluster,
            waits: &mut *waits,
            now_ms,
        });
        if let Some(at_ms) = waits.settle(cluster, now_ms) {
            self.set_timer(now_ms, at_ms);
        }
        result
    }

    fn set_timer(&self, now_ms: u64, at_ms: u64) {
        let time = Duration::from_millis(at_ms.saturating_sub(now_ms));
        let this = self.this.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(time).await;
            if let Some(world) = this.upgrade() {
                world.serve(|counter| counter.waits.went_off(at_ms));
            }
        });
    }

    /// Milliseconds since the Unix epoch. It never goes back, whatever becomes of the wall clock.
    fn now_ms(&self) -> u64 {
        self.epoch_ms + self.start.elapsed().as_millis() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A request that panics half way is a defect of the cluster; the others are still served.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
