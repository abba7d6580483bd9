//! The processes of a cluster and where they listen.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tikv_proto::metapb::StoreState;

use crate::cluster::Cluster;
use crate::cluster::store::Store;

/// A process that serves requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Node {
    /// A store, by its id.
    Store(u64),
    /// A member of PD, counted from 0.
    Pd(usize),
}

impl Node {
    /// A number that no other node has.
    pub(crate) fn number(self) -> u64 {
        match self {
            Node::Store(id) => id << 1,
            Node::Pd(member) => (member as u64) << 1 | 1,
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Store(id) => write!(f, "s{id}"),
            Node::Pd(member) => write!(f, "pd{member}"),
        }
    }
}

/// Who listens where: addresses of stores, URLs of members of PD.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nodes {
    by_address: BTreeMap<Arc<str>, Node>,
}

impl Nodes {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let stores = cluster.store_ids().filter_map(|id| {
            // Where a store listened that is gone for good, another one may.
            let alive = |store: &&Store| store.meta.state() != StoreState::Tombstone;
            let store = cluster.store(id).filter(alive)?;
            Some((Arc::from(store.meta.address.as_str()), Node::Store(id)))
        });
        let members = cluster
            .pd()
            .members()
            .iter()
            .enumerate()
            .flat_map(|(member, known)| {
                known
                    .client_urls
                    .iter()
                    .map(move |url| (Arc::from(url.as_str()), Node::Pd(member)))
            });
        Nodes {
            by_address: stores.chain(members).collect(),
        }
    }

    pub(crate) fn find(&self, address: &str) -> Option<Node> {
        self.by_address.get(address).copied()
    }

    /// What to give a client that is to find this cluster.
    pub(crate) fn pd_endpoints(&self) -> Vec<String> {
        self.by_address
            .iter()
            .filter(|(_, node)| matches!(node, Node::Pd(_)))
            .map(|(url, _)| url.to_string())
            .collect()
    }
}
