//! The cluster as a program meets it: addresses to connect to, and a hand on what happens there.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;

use super::builder::ServedClusterBuilder;
use super::impairment::Condition;
use super::listener::{Listener, Service};
use super::pd::PdServer;
use super::store::StoreServer;
use super::tls::Tls;
use super::world::World;
use crate::cluster::region::{RegionId, StoreId};
use crate::cluster::{Cluster, key};
use crate::control::ControlServer;
use crate::node::Node;

/// A simulated cluster behind real gRPC on loopback, in real time.
///
/// A clone is another hand on the same cluster; when the last one is dropped, its servers stop.
///
/// ```no_run
/// use tikv_io_mock::serve::ServedCluster;
///
/// # async fn example() -> std::io::Result<()> {
/// let cluster = ServedCluster::builder().stores(3).regions(["g", "p"]).start().await?;
/// println!("PD listens at {}", cluster.pd_address());
/// cluster.stop_store(1).await;
/// cluster.start_store(1).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ServedCluster {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    world: Arc<World>,
    pd_address: SocketAddr,
    pd: Vec<Server<PdServer>>,
    stores: Mutex<Stores>,
    tls: Option<Tls>,
    control: Mutex<Option<Server<ControlServer>>>,
}

type Stores = BTreeMap<StoreId, Server<StoreServer>>;

/// One server: its address, and what answers there.
#[derive(Debug)]
pub(super) struct Server<S> {
    listener: Arc<Listener>,
    service: Arc<S>,
}

impl<S> Clone for Server<S> {
    fn clone(&self) -> Self {
        Server {
            listener: self.listener.clone(),
            service: self.service.clone(),
        }
    }
}

impl<S: Service> Server<S> {
    pub(super) async fn bind(
        address: SocketAddr,
        tls: Option<Tls>,
        service: S,
    ) -> io::Result<(Self, TcpListener)> {
        let (listener, socket) = Listener::bind(address, tls).await?;
        let server = Server {
            listener: Arc::new(listener),
            service: Arc::new(service),
        };
        Ok((server, socket))
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    pub(super) fn serve(&self, socket: TcpListener) {
        self.listener.serve(socket, self.service.clone());
    }

    async fn reopen(&self) -> io::Result<()> {
        self.listener.reopen(self.service.clone()).await
    }
}

impl ServedCluster {
    /// A cluster of three stores and one region, at ports that are free.
    pub fn builder() -> ServedClusterBuilder {
        ServedClusterBuilder::default()
    }

    pub(super) fn new(
        world: Arc<World>,
        pd_address: SocketAddr,
        pd: Vec<Server<PdServer>>,
        stores: Stores,
        tls: Option<Tls>,
    ) -> Self {
        let stores = Mutex::new(stores);
        ServedCluster {
            shared: Arc::new(Shared {
                world,
                pd_address,
                pd,
                stores,
                tls,
                control: Mutex::default(),
            }),
        }
    }

    /// Opens an address at which the cluster is [controlled](crate::control) over HTTP, and returns
    /// it; port 0 is a free one. An address opened before is closed.
    ///
    /// # Errors
    ///
    /// The port can't be bound.
    pub async fn serve_control(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        // The cluster holds its servers, so this one must not hold the cluster.
        let service = ControlServer::new(Arc::downgrade(&self.shared));
        let (server, socket) = Server::bind(address, None, service).await?;
        let address = server.address();
        server.serve(socket);
        *lock(&self.shared.control) = Some(server);
        Ok(address)
    }

    pub(crate) fn upgrade(shared: &Weak<Shared>) -> Option<Self> {
        shared.upgrade().map(|shared| ServedCluster { shared })
    }

    /// Where PD's first member listens.
    pub fn pd_address(&self) -> SocketAddr {
        self.shared.pd_address
    }

    /// Where the members of PD listen: what a client connects with.
    pub fn pd_endpoints(&self) -> Vec<String> {
        let members = self.shared.pd.iter();
        members.map(|server| server.address().to_string()).collect()
    }

    /// The stores and where they listen, whether or not they do so now.
    pub fn stores(&self) -> impl Iterator<Item = (StoreId, SocketAddr)> {
        let stores: Vec<_> = self
            .servers()
            .iter()
            .map(|(id, server)| (*id, server.address()))
            .collect();
        stores.into_iter()
    }

    /// Has something done to the cluster, or looks at it, at the present time in milliseconds
    /// since the Unix epoch. No request is answered meanwhile.
    pub fn with<R>(&self, change: impl FnOnce(&mut Cluster, u64) -> R) -> R {
        self.shared.world.with(change)
    }

    /// The regions, in the order of their keys.
    pub fn regions(&self) -> Vec<RegionId> {
        self.with(|cluster, _| {
            cluster
                .regions()
                .iter()
                .map(|region| region.meta.id)
                .collect()
        })
    }

    /// Splits the region that holds this key of a transaction, so that one begins with it.
    pub fn split(&self, user_key: &[u8]) {
        self.with(|cluster, now_ms| split_at(cluster, now_ms, &[key::encode(user_key)]));
    }

    /// Splits the region that holds this raw key, so that one begins with it.
    pub fn split_raw(&self, key: &[u8]) {
        let key = Bytes::copy_from_slice(key);
        self.with(|cluster, now_ms| split_at(cluster, now_ms, &[key]));
    }

    /// Has a region led by another store. `false` if the store has no peer that could lead.
    pub fn transfer_leader(&self, region: RegionId, to: StoreId) -> bool {
        self.with(|cluster, now_ms| cluster.transfer_leader(now_ms, region, to))
    }

    /// Adds an empty store at a free port, and returns its id.
    ///
    /// # Errors
    ///
    /// No port can be bound.
    pub async fn add_store(&self) -> io::Result<StoreId> {
        let world = &self.shared.world;
        let id = self.with(|cluster, now_ms| cluster.add_store(now_ms));
        let address = SocketAddr::new(self.pd_address().ip(), 0);
        let service = StoreServer::new(world.clone(), id);
        let (server, socket) = Server::bind(address, self.shared.tls.clone(), service).await?;
        tell_address(world, id, server.address());
        server.serve(socket);
        self.servers().insert(id, server);
        Ok(id)
    }

    /// Stops a store: its port closes, its connections are cut, what it held in memory is lost.
    /// Regions it led have no leader until it starts again or [others take
    /// over](Self::fail_over). Returns when all of that has happened.
    pub async fn stop_store(&self, id: StoreId) {
        self.with(|cluster, _| cluster.stop_store(id));
        if let Some(server) = self.server(id) {
            server.listener.shut().await;
        }
    }

    /// Starts a stopped store at the address it had.
    ///
    /// # Errors
    ///
    /// The port has been taken by another process.
    pub async fn start_store(&self, id: StoreId) -> io::Result<()> {
        if let Some(server) = self.server(id) {
            self.with(|cluster, now_ms| cluster.start_store(now_ms, id));
            server.reopen().await?;
        }
        Ok(())
    }

    /// Has the regions of a stopped store elect other leaders, as a real cluster does after some
    /// seconds. Returns how many have one now.
    pub fn fail_over(&self, from: StoreId) -> usize {
        self.with(|cluster, now_ms| {
            let led: Vec<_> = cluster
                .regions()
                .iter()
                .filter(|region| region.leader == Some(from))
                .map(|region| region.meta.id)
                .collect();
            let others: Vec<_> = cluster
                .store_ids()
                .filter(|id| *id != from && cluster.is_up(*id))
                .collect();
            let elected = led.into_iter().enumerate().filter(|(turn, region)| {
                let count = others.len();
                (0..count).any(|step| cluster.elect(now_ms, *region, others[(turn + step) % count]))
            });
            elected.count()
        })
    }

    /// A store looks at no request from now on, though it keeps its connections, until it
    /// [resumes](Self::resume_store).
    pub fn pause_store(&self, id: StoreId) {
        self.impair(Node::Store(id), true);
    }

    /// A paused store goes on with everything that has arrived.
    pub fn resume_store(&self, id: StoreId) {
        self.impair(Node::Store(id), false);
    }

    fn impair(&self, node: Node, paused: bool) {
        self.shared.world.impairment(node).pause(paused);
    }

    /// A store takes this much longer for every request. Zero makes it quick again.
    pub fn slow_store(&self, id: StoreId, delay: Duration) {
        self.shared
            .world
            .impairment(Node::Store(id))
            .slow_down(delay);
    }

    /// The next `count` requests to a store take effect, and their replies are lost.
    pub fn drop_replies(&self, id: StoreId, count: u64) {
        self.shared
            .world
            .impairment(Node::Store(id))
            .lose_replies(count);
    }

    /// A store answers the requests of a frame in another order than theirs, from now on or no
    /// more.
    pub fn shuffle_replies(&self, id: StoreId, shuffled: bool) {
        self.shared
            .world
            .impairment(Node::Store(id))
            .shuffle(shuffled);
    }

    /// What keeps a store from its work now.
    pub fn condition(&self, id: StoreId) -> Condition {
        self.shared.world.impairment(Node::Store(id)).condition()
    }

    /// A member of PD looks at no request from now on, or goes on.
    pub fn pause_pd(&self, member: usize, paused: bool) {
        self.impair(Node::Pd(member), paused);
    }

    /// Moves the leadership of PD to a member, counted from 0, or has none lead.
    pub fn lead_pd(&self, member: Option<usize>) {
        self.with(|cluster, now_ms| cluster.pd_mut().set_leader(now_ms, member));
    }

    /// Stops a member of PD. If it leads, another one that is still there takes over.
    pub async fn stop_pd_member(&self, member: usize) {
        if let Some(server) = self.shared.pd.get(member) {
            server.service.impairment.stop(true);
            server.listener.shut().await;
            let led = self.with(|cluster, _| cluster.pd().leader() == Some(member));
            if led {
                let mut others = self.shared.pd.iter();
                self.lead_pd(others.position(|server| server.listener.is_open()));
            }
        }
    }

    /// Starts a member of PD at the address it had. It leads if none does.
    ///
    /// # Errors
    ///
    /// The port has been taken by another process.
    pub async fn start_pd_member(&self, member: usize) -> io::Result<()> {
        if let Some(server) = self.shared.pd.get(member) {
            server.reopen().await?;
            server.service.impairment.stop(false);
            if self.with(|cluster, _| cluster.pd().leader().is_none()) {
                self.lead_pd(Some(member));
            }
        }
        Ok(())
    }

    /// Stops PD, all its members: ports close and connections are cut. Who led still leads.
    pub async fn stop_pd(&self) {
        for server in &self.shared.pd {
            server.service.impairment.stop(true);
            server.listener.shut().await;
        }
    }

    /// Starts PD at the addresses it had.
    ///
    /// # Errors
    ///
    /// A port has been taken by another process.
    pub async fn start_pd(&self) -> io::Result<()> {
        for server in &self.shared.pd {
            server.reopen().await?;
            server.service.impairment.stop(false);
        }
        Ok(())
    }

    /// Saves the whole cluster to a file, from which [another one](ServedClusterBuilder::load) goes
    /// on. The file is replaced at once or not at all.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn save(&self, file: impl AsRef<Path>) -> io::Result<()> {
        let bytes = self.with(|cluster, _| cluster.save());
        let file = file.as_ref();
        let mut beside = file.as_os_str().to_owned();
        beside.push(".new");
        std::fs::write(&beside, bytes)?;
        std::fs::rename(&beside, file)
    }

    /// Stops all servers. Returns when every port is closed.
    pub async fn stop(&self) {
        let control = lock(&self.shared.control).take();
        if let Some(control) = control {
            control.listener.shut().await;
        }
        self.stop_pd().await;
        let stores: Vec<_> = self.servers().values().cloned().collect();
        for server in stores {
            server.listener.shut().await;
        }
    }

    fn server(&self, id: StoreId) -> Option<Server<StoreServer>> {
        self.servers().get(&id).cloned()
    }

    fn servers(&self) -> MutexGuard<'_, Stores> {
        lock(&self.shared.stores)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells PD where a store listens.
pub(super) fn tell_address(world: &World, id: StoreId, address: SocketAddr) {
    world.with(|cluster, _| {
        if let Some(store) = cluster.store_mut(id) {
            store.meta.address = address.to_string();
            store.meta.status_address = address.to_string();
        }
    });
}

/// Splits every region that one of these encoded keys is in.
pub(super) fn split_at(cluster: &mut Cluster, now_ms: u64, keys: &[Bytes]) {
    let regions: Vec<_> = cluster.regions().ids().collect();
    for region in regions {
        cluster.split(now_ms, region, keys);
    }
}

/// Has the stores lead the regions by turns.
pub(super) fn lead_by_turns(cluster: &mut Cluster, now_ms: u64) {
    let ids: Vec<StoreId> = cluster.store_ids().collect();
    let regions: Vec<RegionId> = cluster.regions().iter().map(|r| r.meta.id).collect();
    for (region, to) in regions.into_iter().zip(ids.into_iter().cycle()) {
        cluster.transfer_leader(now_ms, region, to);
    }
}

/// Creates a keyspace unless there is one of this name.
pub(super) fn ensure_keyspace(
    cluster: &mut Cluster,
    now_ms: u64,
    name: &str,
) -> Result<(), String> {
    let known = cluster.pd().keyspaces().find(|(_, meta)| meta.name == name);
    match known.map(|(id, _)| id) {
        Some(id) => cluster.split_keyspace(now_ms, id),
        None => {
            cluster.create_keyspace(now_ms, name, BTreeMap::new())?;
        }
    }
    Ok(())
}
