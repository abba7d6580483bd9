//! The simulated cluster in this process, in real time, by function call.
//!
//! For tests of applications that need no faults: it starts in microseconds and needs no port. It
//! needs no runtime either: its futures are woken by a thread of their own, so they run wherever a
//! future can be awaited.
//!
//! ```
//! use tikv_io_mock::LocalCluster;
//!
//! let cluster = LocalCluster::builder().stores(3).regions(["g", "p"]).start();
//! assert_eq!(cluster.with(|cluster, _| cluster.regions().len()), 3);
//!
//! # let example = async {
//! let client = cluster.transaction_client().await?;
//! let txn = client.begin().await?;
//! txn.put("key", "value").await?;
//! txn.commit().await?;
//! let found = client.snapshot().await?.get("key").await?;
//! assert_eq!(found.as_deref(), Some(&b"value"[..]));
//! # Ok::<_, tikv_core::Error>(())
//! # };
//! # pollster::block_on(example)?;
//! # Ok::<_, tikv_core::Error>(())
//! ```
//!
//! Deliberately absent: a network. Requests arrive at once and are answered at once; what happens
//! when they are not is the subject of [`sim`](crate::sim).

mod background;
mod driver;

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tikv_core::driver::{Instant, Reply, Rpc, TransportError, TsoRequest};
use tikv_core::{Config, Endpoints, Key, RawClient, Result, TransactionClient, wire};

pub use self::driver::LocalDriver;

use crate::cluster::lock_wait::{Answer, Ticket};
use crate::cluster::{self, Cluster};
use crate::dispatch;
use crate::node::{Node, Nodes};
use crate::sim::Chance;

/// A simulated cluster in this process. A clone is the same cluster.
#[derive(Clone)]
pub struct LocalCluster {
    world: Arc<World>,
}

/// What the drivers of one cluster share.
struct World {
    inner: Mutex<Inner>,
    nodes: Nodes,
    started: std::time::Instant,
    /// The wall clock at the start: the cluster's clock goes on from here and never back.
    started_ms: u64,
    seeds: Mutex<Chance>,
}

struct Inner {
    cluster: Cluster,
    /// Requests that wait for a lock.
    parked: BTreeMap<Ticket, Parked>,
    /// When the first of them is to be looked after, as their tasks know it.
    alarm_ms: Option<u64>,
}

/// A request that waits for a lock.
struct Parked {
    /// Where it was sent.
    address: Arc<str>,
    /// Whom to tell that it is answered.
    waker: Waker,
    answer: Option<Reply>,
}

/// What a request comes to at once.
enum Served {
    Answered(Reply),
    Waits(Ticket),
}

/// How a [`LocalCluster`] is to be.
#[derive(Clone, Debug)]
#[must_use = "nothing starts before `start`"]
pub struct LocalClusterBuilder {
    config: cluster::Config,
    split_keys: Vec<Bytes>,
    from: Option<Box<Cluster>>,
    seed: Option<u64>,
}

impl LocalCluster {
    /// A cluster to be configured.
    pub fn builder() -> LocalClusterBuilder {
        LocalClusterBuilder {
            config: cluster::Config::default(),
            split_keys: Vec::new(),
            from: None,
            seed: None,
        }
    }

    /// The driver of a new client, with a thread of its own for timers and background work.
    pub fn driver(&self) -> LocalDriver {
        LocalDriver::new(self.world.clone())
    }

    /// A new client of transactions.
    ///
    /// # Errors
    ///
    /// The cluster has been broken on purpose.
    pub async fn transaction_client(&self) -> Result<TransactionClient<LocalDriver>> {
        TransactionClient::with_driver(self.driver(), self.endpoints(), Config::default()).await
    }

    /// A new client of raw data.
    ///
    /// # Errors
    ///
    /// The cluster has been broken on purpose.
    pub async fn raw_client(&self) -> Result<RawClient<LocalDriver>> {
        RawClient::with_driver(self.driver(), self.endpoints(), Config::default()).await
    }

    fn endpoints(&self) -> Endpoints {
        Endpoints::new(self.pd_endpoints(), false)
    }

    /// Where a client finds PD.
    pub fn pd_endpoints(&self) -> Vec<String> {
        self.world.nodes.pd_endpoints()
    }

    /// Looks at the cluster or changes it: regions split, leaders move, stores stop. The second
    /// argument is the cluster's time in milliseconds, which most changes want to know.
    pub fn with<T>(&self, act: impl FnOnce(&mut Cluster, u64) -> T) -> T {
        let now_ms = self.world.now_ms();
        let mut inner = self.world.lock();
        let result = act(&mut inner.cluster, now_ms);
        inner.settle(now_ms);
        result
    }
}

impl LocalClusterBuilder {
    /// How many stores. Default 3.
    pub fn stores(mut self, stores: u64) -> Self {
        self.config.stores = stores;
        self
    }

    /// How many members PD has. Default 1.
    pub fn pd_members(mut self, members: u64) -> Self {
        self.config.pd_members = members;
        self
    }

    /// Transactional keys at which regions begin, beside the first. Default none: one region.
    pub fn regions<K: Into<Key>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.split_keys
            .extend(keys.into_iter().map(|key| wire::encode(&key.into())));
        self
    }

    /// Raw keys at which regions begin. A cluster that serves raw and transactional data at once
    /// keeps them in the same regions, which are bounded by encoded and by raw keys alike.
    pub fn raw_regions<K: Into<Key>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.split_keys
            .extend(keys.into_iter().map(|key| key.into().into_bytes()));
        self
    }

    /// Goes on from this cluster instead of an empty one: [loaded](Cluster::load) from the bytes of
    /// one that was prepared before, or a copy of one that other tests use too. Its stores, members
    /// of PD and configuration are its own.
    pub fn from_cluster(mut self, cluster: Cluster) -> Self {
        self.from = Some(Box::new(cluster));
        self
    }

    /// What the random choices of clients begin with. Default: another number in every process.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Everything else about the cluster.
    pub fn config(mut self, change: impl FnOnce(&mut cluster::Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Starts the cluster.
    pub fn start(self) -> LocalCluster {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let started_ms = u64::try_from(since_epoch.as_millis()).unwrap_or_default();
        let fresh = self.from.is_none();
        let mut cluster = match self.from {
            Some(cluster) => *cluster,
            None => Cluster::new(self.config, started_ms),
        };
        let first: Vec<_> = cluster.regions().ids().collect();
        for region in first {
            cluster.split(started_ms, region, &self.split_keys);
        }
        let regions: Vec<_> = cluster.regions().ids().collect();
        let stores: Vec<_> = cluster.store_ids().collect();
        let turns = regions.into_iter().zip(stores.into_iter().cycle());
        for (region, store) in turns.filter(|_| fresh) {
            cluster.transfer_leader(started_ms, region, store);
        }
        let seed = self
            .seed
            .unwrap_or_else(|| RandomState::new().build_hasher().finish());
        LocalCluster {
            world: Arc::new(World {
                nodes: Nodes::of(&cluster),
                inner: Mutex::new(Inner {
                    cluster,
                    parked: BTreeMap::new(),
                    alarm_ms: None,
                }),
                started: std::time::Instant::now(),
                started_ms,
                seeds: Mutex::new(Chance::stream(seed, "clients")),
            }),
        }
    }
}

impl World {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Instant {
        let elapsed = self.started.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    fn now_ms(&self) -> u64 {
        self.started_ms + self.now().as_millis()
    }

    fn next_seed(&self) -> u64 {
        self.seeds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .number()
    }

    /// Answers a request, or has it wait; the waker is called when it need not any more.
    fn serve(&self, rpc: &Rpc, waker: &Waker) -> Served {
        let now_ms = self.now_ms();
        let address = rpc.endpoint.address();
        let answer = self.reach(address, |inner, node| {
            let whole = dispatch::whole(rpc);
            let answer = dispatch::call(&mut inner.cluster, now_ms, node, whole, address)?;
            if let Answer::Later(ticket) = answer {
                let parked = Parked {
                    address: address.clone(),
                    waker: waker.clone(),
                    answer: None,
                };
                inner.parked.insert(ticket, parked);
            }
            inner.settle(now_ms);
            Ok(answer)
        });
        match answer {
            Ok(Answer::Now(response)) => Served::Answered(Reply::Response(Ok(response))),
            Ok(Answer::Later(ticket)) => Served::Waits(ticket),
            Err(error) => Served::Answered(Reply::Response(Err(error))),
        }
    }

    /// Has those answered whose time has come.
    fn settle(&self) {
        let now_ms = self.now_ms();
        self.lock().settle(now_ms);
    }

    /// The answer to a request that has waited, once there is one.
    fn collect(&self, ticket: Ticket) -> Option<Reply> {
        let mut inner = self.lock();
        inner.parked.get(&ticket)?.answer.as_ref()?;
        inner.parked.remove(&ticket)?.answer
    }

    /// Nobody wants the answer any more.
    fn leave(&self, ticket: Ticket) {
        self.lock().parked.remove(&ticket);
    }

    /// When [`settle`](Self::settle) has something to do.
    fn next_wake(&self) -> Option<Instant> {
        let at_ms = self.lock().cluster.next_wake_ms()?;
        let after = at_ms.saturating_sub(self.started_ms);
        Some(Instant::ZERO + Duration::from_millis(after))
    }

    /// Gives a timestamp out.
    fn timestamp(&self, request: &TsoRequest) -> Reply {
        let now_ms = self.now_ms();
        let answer = self.reach(&request.url, |inner, node| {
            dispatch::timestamp(&mut inner.cluster, now_ms, node, request, 1)
        });
        Reply::Timestamp(answer)
    }

    fn reach<T>(
        &self,
        address: &Arc<str>,
        act: impl FnOnce(&mut Inner, Node) -> Result<T, TransportError>,
    ) -> Result<T, TransportError> {
        let refused = |message: &str| TransportError::Connect {
            address: address.clone(),
            message: message.into(),
        };
        let node = self
            .nodes
            .find(address)
            .ok_or_else(|| refused("no such host"))?;
        let mut inner = self.lock();
        match node {
            Node::Store(id) if !inner.cluster.is_up(id) => Err(refused("connection refused")),
            node => act(&mut inner, node),
        }
    }
}

impl Inner {
    /// Hands out the answers of those who have stopped waiting.
    fn settle(&mut self, now_ms: u64) {
        for (ticket, answer) in dispatch::take_woken(&mut self.cluster, now_ms) {
            if let Some(parked) = self.parked.get_mut(&ticket) {
                let answer = answer.map_err(|error| dispatch::status(&parked.address, error));
                parked.answer = Some(Reply::Response(answer));
                parked.waker.wake_by_ref();
            }
        }
        // A release brings something forward for which the tasks of others have set no alarm.
        let next_ms = self.cluster.next_wake_ms();
        let before = std::mem::replace(&mut self.alarm_ms, next_ms);
        if before.is_some() && next_ms < before {
            let waiting = self.parked.values().filter(|one| one.answer.is_none());
            waiting.for_each(|one| one.waker.wake_by_ref());
        }
    }
}
