//! The cluster as a program meets it: addresses to connect to, and a hand on what happens there.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;

use super::listener::Listener;
use super::pd::PdServer;
use super::store::StoreServer;
use super::world::World;
use crate::cluster::key;
use crate::cluster::region::{RegionId, StoreId};
use crate::cluster::{Cluster, Config};

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
struct Shared {
    world: Arc<World>,
    pd: Server<PdServer>,
    stores: BTreeMap<StoreId, Server<StoreServer>>,
}

#[derive(Debug)]
struct Server<S> {
    listener: Listener,
    service: Arc<S>,
}

/// Builds a [`ServedCluster`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ServedClusterBuilder {
    config: Config,
    even_regions: usize,
    split_keys: Vec<Bytes>,
    pd_address: SocketAddr,
}

impl ServedCluster {
    /// A cluster of three stores and one region, at ports that are free.
    pub fn builder() -> ServedClusterBuilder {
        ServedClusterBuilder {
            config: Config::default(),
            even_regions: 1,
            split_keys: Vec::new(),
            pd_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        }
    }

    /// Where PD listens.
    pub fn pd_address(&self) -> SocketAddr {
        self.shared.pd.listener.address()
    }

    /// What a client connects with.
    pub fn pd_endpoints(&self) -> Vec<String> {
        vec![self.pd_address().to_string()]
    }

    /// The stores and where they listen, whether or not they do so now.
    pub fn stores(&self) -> impl Iterator<Item = (StoreId, SocketAddr)> {
        self.shared
            .stores
            .iter()
            .map(|(id, server)| (*id, server.listener.address()))
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
        split_at(self, vec![key::encode(user_key)]);
    }

    /// Splits the region that holds this raw key, so that one begins with it.
    pub fn split_raw(&self, key: &[u8]) {
        split_at(self, vec![Bytes::copy_from_slice(key)]);
    }

    /// Has a region led by another store. `false` if the store has no peer that could lead.
    pub fn transfer_leader(&self, region: RegionId, to: StoreId) -> bool {
        self.with(|cluster, now_ms| cluster.transfer_leader(now_ms, region, to))
    }

    /// Stops a store: its port closes, its connections are cut, what it held in memory is lost.
    /// Regions it led have no leader until it starts again or [others take
    /// over](Self::fail_over). Returns when all of that has happened.
    pub async fn stop_store(&self, id: StoreId) {
        self.with(|cluster, _| cluster.stop_store(id));
        if let Some(server) = self.shared.stores.get(&id) {
            server.listener.shut().await;
        }
    }

    /// Starts a stopped store at the address it had.
    ///
    /// # Errors
    ///
    /// The port has been taken by another process.
    pub async fn start_store(&self, id: StoreId) -> io::Result<()> {
        if let Some(server) = self.shared.stores.get(&id) {
            self.with(|cluster, now_ms| cluster.start_store(now_ms, id));
            server.listener.reopen(server.service.clone()).await?;
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

    /// Stops PD: its port closes and its connections are cut.
    pub async fn stop_pd(&self) {
        self.shared.pd.listener.shut().await;
    }

    /// Starts PD at the address it had.
    ///
    /// # Errors
    ///
    /// The port has been taken by another process.
    pub async fn start_pd(&self) -> io::Result<()> {
        let pd = &self.shared.pd;
        pd.listener.reopen(pd.service.clone()).await
    }

    /// Stops all servers. Returns when every port is closed.
    pub async fn stop(&self) {
        self.stop_pd().await;
        for server in self.shared.stores.values() {
            server.listener.shut().await;
        }
    }
}

impl ServedClusterBuilder {
    /// How many stores. Default 3.
    pub fn stores(mut self, stores: u64) -> Self {
        self.config.stores = stores.max(1);
        self
    }

    /// Into how many regions the whole key space is cut, evenly by the first two bytes of the key.
    /// Default 1. The stores lead them by turns.
    pub fn even_regions(mut self, regions: usize) -> Self {
        self.even_regions = regions.clamp(1, 1 << 16);
        self
    }

    /// The keys of transactions at which regions begin, besides the first one's.
    pub fn regions<K: AsRef<[u8]>>(mut self, user_keys: impl IntoIterator<Item = K>) -> Self {
        let keys = user_keys.into_iter().map(|key| key::encode(key.as_ref()));
        self.split_keys.extend(keys);
        self
    }

    /// The raw keys at which regions begin, besides the first one's.
    pub fn raw_regions<K: AsRef<[u8]>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        let keys = keys
            .into_iter()
            .map(|key| Bytes::copy_from_slice(key.as_ref()));
        self.split_keys.extend(keys);
        self
    }

    /// Where PD listens. Default a free port of the loopback address.
    pub fn pd_address(mut self, address: SocketAddr) -> Self {
        self.pd_address = address;
        self
    }

    /// Every choice of the cluster. The number of members of PD is 1 all the same.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Binds the ports and begins to answer.
    ///
    /// # Errors
    ///
    /// A port can't be bound.
    pub async fn start(mut self) -> io::Result<ServedCluster> {
        self.config.pd_members = 1;
        let world = World::new(self.config);
        let (pd_listener, pd_socket) = Listener::bind(self.pd_address).await?;
        let ids: Vec<StoreId> = world.with(|cluster, _| cluster.store_ids().collect());
        let mut stores = BTreeMap::new();
        let mut sockets = Vec::new();
        for id in ids {
            let address = SocketAddr::new(pd_listener.address().ip(), 0);
            let (listener, socket) = Listener::bind(address).await?;
            let service = Arc::new(StoreServer {
                world: world.clone(),
                id,
            });
            sockets.push((id, socket));
            stores.insert(id, Server { listener, service });
        }
        world.with(|cluster, _| {
            let url = format!("http://{}", pd_listener.address());
            cluster.pd_mut().set_client_urls(0, vec![url]);
            for (id, server) in &stores {
                if let Some(store) = cluster.store_mut(*id) {
                    store.meta.address = server.listener.address().to_string();
                }
            }
        });
        let service = Arc::new(PdServer {
            world: world.clone(),
            member: 0,
        });
        let pd = Server {
            listener: pd_listener,
            service,
        };
        let served = ServedCluster {
            shared: Arc::new(Shared { world, pd, stores }),
        };
        self.split_keys.extend(even_splits(self.even_regions));
        split_at(&served, self.split_keys);
        served.lead_by_turns();

        // Everything stands; from here on it is seen.
        let Shared { pd, stores, .. } = &*served.shared;
        for (id, socket) in sockets {
            if let Some(server) = stores.get(&id) {
                server.listener.serve(socket, server.service.clone());
            }
        }
        pd.listener.serve(pd_socket, pd.service.clone());
        Ok(served)
    }
}

impl ServedCluster {
    fn lead_by_turns(&self) {
        let ids: Vec<StoreId> = self.shared.stores.keys().copied().collect();
        for (region, to) in self.regions().into_iter().zip(ids.into_iter().cycle()) {
            self.transfer_leader(region, to);
        }
    }
}

/// Splits every region that one of these encoded keys is in.
fn split_at(cluster: &ServedCluster, keys: Vec<Bytes>) {
    cluster.with(|cluster, now_ms| {
        let regions: Vec<_> = cluster
            .regions()
            .iter()
            .map(|region| region.meta.id)
            .collect();
        for region in regions {
            cluster.split(now_ms, region, &keys);
        }
    });
}

/// The keys that cut the key space into this many even parts.
fn even_splits(regions: usize) -> impl Iterator<Item = Bytes> {
    (1..regions).map(move |part| {
        let prefix = ((part << 16) / regions) as u16;
        key::encode(&prefix.to_be_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_even_and_distinct() {
        assert_eq!(even_splits(1).count(), 0);
        let halves: Vec<_> = even_splits(2).collect();
        assert_eq!(halves, [key::encode(&[0x80, 0])]);
        let mut many: Vec<_> = even_splits(1000).collect();
        many.dedup();
        assert_eq!(many.len(), 999);
        assert!(many.is_sorted());
    }
}
