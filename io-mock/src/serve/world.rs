//! The one cluster behind all servers, the time it lives in, and word of its changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tonic::Status;

use super::grpc::{self, Messages};
use super::impairment::Impairment;
use super::pd_http::checkers::Checkers;
use super::waits::{Counter, Waits};
use crate::cluster::Cluster;
use crate::cluster::region::RegionId;
use crate::node::Node;

/// How often leases are looked at, as in etcd.
const LEASES_EVERY: Duration = Duration::from_millis(500);
/// Of so many regions it is worked out under one lock up to where they are complete.
const REGIONS_AT_ONCE: usize = 1_024;

/// The cluster and its clock.
#[derive(Debug)]
pub(super) struct World {
    inner: Mutex<Inner>,
    epoch_ms: u64,
    start: Instant,
    /// Tells watchers that there is something to look at.
    changed: watch::Sender<()>,
    impairments: Mutex<BTreeMap<Node, Arc<Impairment>>>,
    /// What PD says of its checkers.
    pub(super) checkers: Checkers,
    /// Somebody looks at leases until there are none.
    looks_at_leases: AtomicBool,
    /// Where timers run.
    runtime: Handle,
    /// Timers do not keep it.
    this: Weak<World>,
}

#[derive(Debug)]
struct Inner {
    cluster: Cluster,
    waits: Waits,
    /// How many changes watchers have been told of.
    told: u64,
}

impl World {
    /// The world of a cluster that is built with the present time, in milliseconds since the Unix
    /// epoch. Its timers run on the runtime that this is called on.
    pub(super) fn new(build: impl FnOnce(u64) -> Cluster) -> Arc<Self> {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let epoch_ms = since_epoch.as_millis() as u64;
        let cluster = build(epoch_ms);
        Arc::new_cyclic(|this| World {
            changed: watch::Sender::new(()),
            inner: Mutex::new(Inner {
                told: cluster.pd().watched_changes(),
                cluster,
                waits: Waits::default(),
            }),
            epoch_ms,
            start: Instant::now(),
            impairments: Mutex::default(),
            checkers: Checkers::default(),
            looks_at_leases: AtomicBool::new(false),
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
        let mut inner = lock(&self.inner);
        let Inner {
            cluster,
            waits,
            told,
        } = &mut *inner;
        cluster.end_waits(now_ms);
        let result = ask(&mut Counter {
            cluster: &mut *cluster,
            waits: &mut *waits,
            now_ms,
        });
        let timer = waits.settle(cluster, now_ms);
        let changes = cluster.pd().watched_changes();
        let is_news = std::mem::replace(told, changes) != changes;
        drop(inner);
        if let Some(at_ms) = timer {
            self.set_timer(now_ms, at_ms);
        }
        if is_news {
            self.changed.send_replace(());
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

    /// Has the leases of etcd end when their time is over, whether or not anybody asks then. To be
    /// called when there may be one.
    pub(super) fn end_leases_in_time(&self) {
        if self.looks_at_leases.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.this.clone();
        self.runtime.spawn(async move {
            while let Some(world) = this.upgrade() {
                let is_over = world.with(|cluster, now_ms| {
                    cluster.pd_mut().etcd_end_leases(now_ms);
                    let is_over = !cluster.pd().etcd_has_leases();
                    // Under the lock: who grants one from now on begins anew.
                    world.looks_at_leases.store(!is_over, Ordering::Release);
                    is_over
                });
                if is_over {
                    return;
                }
                drop(world);
                tokio::time::sleep(LEASES_EVERY).await;
            }
        });
    }

    /// Has leaders work out now, and then again and again, up to where stale reads are complete, as
    /// stores do by themselves.
    pub(super) fn advance_safe_ts(&self, every: Duration) {
        let this = self.this.clone();
        self.runtime.spawn(async move {
            loop {
                let Some(world) = this.upgrade() else {
                    return;
                };
                let regions: Vec<RegionId> =
                    world.with(|cluster, _| cluster.regions().ids().collect());
                for some in regions.chunks(REGIONS_AT_ONCE) {
                    world.with(|cluster, now_ms| {
                        for region in some {
                            cluster.advance_safe_ts(now_ms, *region);
                        }
                    });
                    tokio::task::yield_now().await;
                }
                drop(world);
                tokio::time::sleep(every).await;
            }
        });
    }

    /// Word of changes, from now on.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What keeps a server from its work.
    pub(super) fn impairment(&self, node: Node) -> Arc<Impairment> {
        lock(&self.impairments).entry(node).or_default().clone()
    }

    /// The messages to a watcher: whatever `next` finds now and after every change, until it fails.
    pub(super) fn watch<F>(self: Arc<Self>, next: F) -> Messages
    where
        F: FnMut(&Cluster) -> Result<Option<Bytes>, Status> + Send + 'static,
    {
        let seen = self.changed.subscribe();
        grpc::unfold(
            (self, seen, next),
            |(world, mut seen, mut next)| async move {
                loop {
                    seen.mark_unchanged();
                    if let Some(message) = world.with(|cluster, _| next(cluster))? {
                        return Ok(Some((message, (world, seen, next))));
                    }
                    if seen.changed().await.is_err() {
                        return Ok(None);
                    }
                }
            },
        )
    }

    /// Milliseconds since the Unix epoch. It never goes back, whatever becomes of the wall clock.
    pub(super) fn now_ms(&self) -> u64 {
        self.epoch_ms + self.start.elapsed().as_millis() as u64
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A request that panics half way is a defect of the cluster; the others are still served.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
