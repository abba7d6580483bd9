//! How a served cluster is to be, and its start.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tikv_proto::kvrpcpb::ApiVersion;

use super::pd::PdServer;
use super::served::{self, ServedCluster, Server};
use super::store::StoreServer;
use super::tls;
use super::world::World;
use crate::cluster::pd::keyspaces::DEFAULT_NAME;
use crate::cluster::region::StoreId;
use crate::cluster::snapshot::SnapshotError;
use crate::cluster::{Cluster, Config, key};

/// Builds a [`ServedCluster`].
#[derive(Clone, Debug)]
#[must_use = "nothing starts before `start`"]
pub struct ServedClusterBuilder {
    config: Config,
    from: Option<Box<Cluster>>,
    even_regions: usize,
    split_keys: Vec<Bytes>,
    keyspaces: Vec<String>,
    pd_address: SocketAddr,
    tls: Option<PathBuf>,
    safe_ts_every: Option<Duration>,
}

impl Default for ServedClusterBuilder {
    fn default() -> Self {
        ServedClusterBuilder {
            config: Config::default(),
            from: None,
            even_regions: 1,
            split_keys: Vec::new(),
            keyspaces: Vec::new(),
            pd_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls: None,
            safe_ts_every: None,
        }
    }
}

impl ServedClusterBuilder {
    /// How many stores. Default 3.
    pub fn stores(mut self, stores: u64) -> Self {
        self.config.stores = stores.max(1);
        self
    }

    /// How many members PD has, each with a port of its own. Default 1.
    pub fn pd_members(mut self, members: u64) -> Self {
        self.config.pd_members = members.max(1);
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

    /// Names of keyspaces that there are from the start, besides the default one.
    pub fn keyspaces<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.keyspaces.extend(names.into_iter().map(Into::into));
        self
    }

    /// Where PD's first member listens. Default a free port of the loopback address.
    pub fn pd_address(mut self, address: SocketAddr) -> Self {
        self.pd_address = address;
        self
    }

    /// All connections are encrypted. The directory holds the certificate, `cert.pem`, and its
    /// key, `key.pem`; if it holds neither, both are made and written there.
    pub fn tls(mut self, directory: impl Into<PathBuf>) -> Self {
        self.tls = Some(directory.into());
        self
    }

    /// Stale reads become possible by themselves: leaders work out at the start, and then after
    /// each such time, up to where they are complete. Without it only
    /// [`Cluster::advance_safe_ts`] does that. Zero is the same as without.
    pub fn safe_ts_every(mut self, every: Duration) -> Self {
        self.safe_ts_every = Some(every).filter(|every| !every.is_zero());
        self
    }

    /// Every choice of the cluster.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Goes on from this cluster instead of an empty one, with its stores and members of PD. Only
    /// the addresses are new.
    pub fn from_cluster(mut self, cluster: Cluster) -> Self {
        self.from = Some(Box::new(cluster));
        self
    }

    /// Goes on from a [saved](ServedCluster::save) cluster instead of an empty one.
    ///
    /// # Errors
    ///
    /// The file can't be read, or holds no saved cluster: the error is a [`SnapshotError`] then.
    pub fn load(self, file: impl AsRef<Path>) -> io::Result<Self> {
        let bytes = std::fs::read(file)?;
        let cluster = Cluster::load(&bytes)
            .map_err(|error: SnapshotError| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(self.from_cluster(cluster))
    }

    /// Binds the ports and begins to answer.
    ///
    /// # Errors
    ///
    /// A port can't be bound, the certificate can't be read, or a keyspace can't have its name.
    pub async fn start(mut self) -> io::Result<ServedCluster> {
        let tls = self.tls.as_deref().map(tls::acceptor).transpose()?;
        let from = self.from.take();
        let fresh = from.is_none();
        let config = self.config.clone();
        let world = World::new(|now_ms| match from {
            Some(cluster) => *cluster,
            None => Cluster::new(config, now_ms),
        });
        let (members, ids): (usize, Vec<StoreId>) = world.with(|cluster, _| {
            let members = cluster.pd().members().len();
            (members, cluster.store_ids().collect())
        });
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (mut pd, mut pd_sockets) = (Vec::new(), Vec::new());
        for member in 0..members {
            let address = match member {
                0 => self.pd_address,
                _ => SocketAddr::new(self.pd_address.ip(), 0),
            };
            let service = PdServer::new(world.clone(), member);
            let (server, socket) = Server::bind(address, tls.clone(), service).await?;
            let url = format!("{scheme}://{}", server.address());
            world.with(|cluster, _| cluster.pd_mut().set_client_urls(member, vec![url]));
            pd.push(server);
            pd_sockets.push(socket);
        }
        let (mut stores, mut store_sockets) = (BTreeMap::new(), Vec::new());
        for id in ids {
            let address = SocketAddr::new(self.pd_address.ip(), 0);
            let service = StoreServer::new(world.clone(), id);
            let (server, socket) = Server::bind(address, tls.clone(), service).await?;
            served::tell_address(&world, id, server.address());
            stores.insert(id, server);
            store_sockets.push((id, socket));
        }
        self.split_keys.extend(even_splits(self.even_regions));
        let created = world.with(|cluster, now_ms| {
            served::split_at(cluster, now_ms, &self.split_keys);
            if fresh {
                served::lead_by_turns(cluster, now_ms);
            }
            // With API v2 even the keys of nobody in particular are in a keyspace.
            let default = (cluster.config().api_version == ApiVersion::V2).then_some(DEFAULT_NAME);
            default
                .into_iter()
                .chain(self.keyspaces.iter().map(String::as_str))
                .try_for_each(|name| served::ensure_keyspace(cluster, now_ms, name))
        });
        created.map_err(|message| io::Error::new(io::ErrorKind::InvalidInput, message))?;

        // Everything stands; from here on it is seen.
        for (id, socket) in store_sockets {
            // A store that was down when the cluster was saved stays down.
            if let Some(server) = stores.get(&id)
                && world.with(|cluster, _| cluster.is_up(id))
            {
                server.serve(socket);
            }
        }
        for (server, socket) in pd.iter().zip(pd_sockets) {
            server.serve(socket);
        }
        if let Some(every) = self.safe_ts_every {
            world.advance_safe_ts(every);
        }
        let pd_address = pd.first().map_or(self.pd_address, Server::address);
        Ok(ServedCluster::new(world, pd_address, pd, stores, tls))
    }
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
