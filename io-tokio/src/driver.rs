//! The driver: what all clients of one world share, and the door through which the core reaches
//! it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use foldhash::fast::FixedState;
use tikv_core::Result;
use tikv_core::driver::{Driver, Instant, Operation, Rpc, TransportError, TsoRequest};
use tikv_core::wire::Response;
use tokio::runtime::Handle;

use crate::clock::Clock;
use crate::config::IoConfig;
use crate::connect::Connector;
use crate::inbox::Inbox;
use crate::line::Line;
use crate::oracle::{Oracle, OracleTicket};
use crate::pool::{Parcel, Pool, PoolTicket, Refused};
use crate::run::Run;
use crate::stats::IoStats;
use crate::tasks::Tasks;

/// Runs the protocol on tokio: sockets, timers, tasks.
///
/// A clone drives the same world. When the last clone is dropped, or the driver is
/// [closed](Self::close), everything it has spawned stops.
///
/// The futures it makes may be polled by any executor; the sockets live on the tokio runtime that
/// the driver was made in.
#[derive(Clone, Debug)]
pub struct TokioDriver {
    handle: Arc<DriverHandle>,
}

/// What there is one of per key.
type Shelf<K, V> = RwLock<hashbrown::HashMap<K, Arc<V>, FixedState>>;

/// What clones share. Nothing but clones holds one, so that the last one can tell.
#[derive(Debug)]
struct DriverHandle {
    inner: Arc<Inner>,
}

/// What everything that runs shares.
#[derive(Debug)]
pub(crate) struct Inner {
    config: IoConfig,
    connector: Arc<Connector>,
    pub(crate) runtime: Handle,
    pub(crate) clock: Clock,
    seed: u64,
    /// Connections and streams.
    io: Tasks,
    /// Operations that were spawned.
    background: Tasks,
    pools: Shelf<Arc<str>, Pool>,
    lines: Shelf<Arc<str>, Line>,
    oracles: Shelf<(Arc<str>, u64), Oracle>,
    closed: AtomicBool,
}

impl TokioDriver {
    /// A driver on the current tokio runtime, with no connection yet.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`](tikv_core::Error::InvalidArgument) for a configuration that
    /// makes no sense.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(config: IoConfig) -> Result<Self> {
        Self::on(Handle::current(), config)
    }

    /// A driver on this runtime.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn on(runtime: Handle, config: IoConfig) -> Result<Self> {
        config.validate()?;
        let io = Tasks::new(runtime.clone());
        let inner = Inner {
            connector: Arc::new(Connector::new(config.clone())),
            config,
            background: io.child(),
            io,
            runtime,
            clock: Clock::start(),
            seed: random_seed(),
            pools: RwLock::default(),
            lines: RwLock::default(),
            oracles: RwLock::default(),
            closed: AtomicBool::new(false),
        };
        Ok(TokioDriver {
            handle: Arc::new(DriverHandle {
                inner: Arc::new(inner),
            }),
        })
    }

    /// Waits up to `grace` for what runs in the background to end, then closes every connection.
    /// Requests that are waited for, and all later ones, fail with
    /// [`TransportError::Closed`](tikv_core::driver::TransportError::Closed).
    ///
    /// Returns how many background operations were cut off.
    ///
    /// # Cancellation
    ///
    /// Dropping the future leaves the driver open.
    pub async fn close(&self, grace: Duration) -> usize {
        let inner = &self.handle.inner;
        let ended = {
            let _runtime = inner.runtime.enter();
            tokio::time::timeout(grace, inner.background.wait())
        };
        let left = match ended.await {
            Ok(()) => 0,
            Err(_) => inner.background.len(),
        };
        inner.close();
        inner.background.wait().await;
        inner.io.wait().await;
        left
    }

    /// Whether connections are made with TLS.
    pub fn is_encrypted(&self) -> bool {
        self.handle.inner.config.security.is_some()
    }

    /// What the driver holds right now, and has done so far.
    pub fn stats(&self) -> IoStats {
        self.handle.inner.stats()
    }
}

impl Driver for TokioDriver {
    type Run<T: Send + 'static> = Run<T>;

    fn run<T: Send + 'static>(&self, operation: Operation<T>) -> Run<T> {
        Run::new(self.handle.inner.clone(), operation)
    }

    fn spawn(&self, operation: Operation<()>) {
        self.handle.inner.spawn(operation);
    }

    fn now(&self) -> Instant {
        self.handle.inner.clock.now()
    }

    fn seed(&self) -> u64 {
        self.handle.inner.seed
    }
}

impl Drop for DriverHandle {
    fn drop(&mut self) {
        self.inner.close();
    }
}

impl Inner {
    pub(crate) fn spawn(self: &Arc<Self>, operation: Operation<()>) {
        self.background.spawn(Run::new(self.clone(), operation));
    }

    /// Sends a request in a frame to a store.
    pub(crate) fn push(
        self: &Arc<Self>,
        now: Instant,
        address: &Arc<str>,
        mut parcel: Parcel,
    ) -> Result<(Arc<Pool>, PoolTicket), TransportError> {
        loop {
            let pool = self.pool(address)?;
            match pool.push(now, parcel) {
                Ok(ticket) => return Ok((pool, ticket)),
                Err(Refused::Failed(error)) => return Err(error),
                Err(Refused::Retired(same)) => {
                    self.forget_pool(&pool);
                    parcel = same;
                }
            }
        }
    }

    /// Asks PD for a timestamp.
    pub(crate) fn timestamp(
        &self,
        request: &TsoRequest,
        inbox: &Arc<Inbox>,
        flight: u32,
    ) -> Result<(Arc<Oracle>, OracleTicket), TransportError> {
        let oracle = self.oracle(&request.url, request.cluster_id)?;
        let ticket = oracle.push(request, inbox.clone(), flight)?;
        Ok((oracle, ticket))
    }

    /// Sends a request that goes alone.
    pub(crate) async fn unary(&self, rpc: Rpc) -> Result<Response, TransportError> {
        self.line(rpc.endpoint.address())?
            .call(&rpc, self.clock, &self.io)
            .await
    }

    fn pool(self: &Arc<Self>, address: &Arc<str>) -> Result<Arc<Pool>, TransportError> {
        self.get_or_make(&self.pools, address, || {
            let pool = Pool::new(
                address.clone(),
                &self.config,
                self.connector.clone(),
                self.clock,
                self.io.child(),
            );
            let (inner, kept) = (Arc::downgrade(self), pool.clone());
            let idle_timeout = self.config.idle_timeout;
            self.io.spawn(async move {
                kept.keep_house(idle_timeout).await;
                if let Some(inner) = inner.upgrade() {
                    inner.forget_pool(&kept);
                }
            });
            pool
        })
    }

    fn line(&self, address: &Arc<str>) -> Result<Arc<Line>, TransportError> {
        self.get_or_make(&self.lines, address, || {
            Arc::new(Line::new(address.clone(), self.connector.clone()))
        })
    }

    fn oracle(&self, url: &Arc<str>, cluster_id: u64) -> Result<Arc<Oracle>, TransportError> {
        let line = self.line(url)?;
        self.get_or_make(&self.oracles, &(url.clone(), cluster_id), || {
            let idle_timeout = self.config.idle_timeout;
            Oracle::new(line, cluster_id, self.clock, self.io.clone(), idle_timeout)
        })
    }

    /// Looks up what there is one of per address, and makes it on first use.
    fn get_or_make<K: Clone + Eq + std::hash::Hash, V>(
        &self,
        map: &Shelf<K, V>,
        key: &K,
        make: impl FnOnce() -> Arc<V>,
    ) -> Result<Arc<V>, TransportError> {
        let closed = || self.closed.load(Ordering::Acquire);
        if let Some(found) = map.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            return Ok(found.clone());
        }
        let mut map = map.write().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock that `close` takes, so that nothing is made behind its back.
        if closed() {
            return Err(TransportError::Closed { sent: false });
        }
        Ok(map.entry(key.clone()).or_insert_with(make).clone())
    }

    /// Makes room for another pool of the same address.
    fn forget_pool(&self, pool: &Arc<Pool>) {
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        if pools
            .get(pool.address())
            .is_some_and(|current| Arc::ptr_eq(current, pool))
        {
            pools.remove(pool.address());
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let pools =
            std::mem::take(&mut *self.pools.write().unwrap_or_else(PoisonError::into_inner));
        let oracles =
            std::mem::take(&mut *self.oracles.write().unwrap_or_else(PoisonError::into_inner));
        self.lines
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.io.stop();
        // Whoever waits is told after the tasks were stopped, and outside of every lock.
        for pool in pools.into_values() {
            pool.close();
        }
        for oracle in oracles.into_values() {
            oracle.close();
        }
    }

    fn stats(&self) -> IoStats {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let oracles = self.oracles.read().unwrap_or_else(PoisonError::into_inner);
        IoStats::collect(
            pools.values().map(|pool| pool.stats()),
            oracles.values().map(|oracle| oracle.pending()),
            self.background.len(),
            self.io.len(),
        )
    }
}

/// A seed no other driver has. Without the system's randomness, the place of a fresh allocation
/// and the time must do.
fn random_seed() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let place = Box::new(0_u8);
        now.unwrap_or_default().as_nanos() as u64 ^ (&raw const *place as u64).rotate_left(32)
    })
}
