//! The life of a store as PD sees it: it joins, is labelled, goes offline and comes back, or is
//! emptied, buried and forgotten.
//!
//! Deliberately absent: time. Whoever drives the cluster says when the next step is taken.

use tikv_proto::metapb::{self, NodeState, StoreState};
use tikv_proto::pdpb::{ErrorType, PutStoreRequest, PutStoreResponse};

use crate::cluster::Cluster;
use crate::cluster::failure::GrpcError;
use crate::cluster::region::{RegionId, StoreId};
use crate::cluster::store_admin::new_store;

impl Cluster {
    /// Registers a store, or tells what has changed about it. One that is new here is served by
    /// somebody else.
    pub fn pd_put_store(
        &mut self,
        now_ms: u64,
        member: usize,
        request: PutStoreRequest,
    ) -> Result<PutStoreResponse, GrpcError> {
        self.pd.check(member, request.header.as_ref())?;
        let put = self.put_store(now_ms, request.store.map(|store| *store));
        Ok(PutStoreResponse {
            header: match put {
                Ok(()) => self.pd.header(),
                Err((kind, message)) => self.pd.error_header(kind, message),
            },
            replication_status: None,
        })
    }

    fn put_store(
        &mut self,
        now_ms: u64,
        store: Option<metapb::Store>,
    ) -> Result<(), (ErrorType, String)> {
        let Some(put) = store.filter(|store| store.id != 0) else {
            return Err((ErrorType::Unknown, "invalid put store".to_owned()));
        };
        let known = self.stores.get(&put.id);
        if known.is_some_and(|known| known.meta.state() == StoreState::Tombstone) {
            let message = format!("store {} is tombstone", put.id);
            return Err((ErrorType::StoreTombstone, message));
        }
        let taken = self.stores.values().find(|other| {
            other.meta.id != put.id
                && other.meta.address == put.address
                && other.meta.state() != StoreState::Tombstone
        });
        if let Some(other) = taken {
            let message = format!(
                "duplicated store address: {}, already registered by store {}",
                put.address, other.meta.id
            );
            return Err((ErrorType::Unknown, message));
        }
        self.pd.last_id = self.pd.last_id.max(put.id);
        let config = &self.config;
        let store = self.stores.entry(put.id).or_insert_with(|| {
            let mut foreign = new_store(config, put.id, now_ms);
            foreign.up = false;
            foreign
        });
        store.meta = metapb::Store {
            // What a store says of its own state is not believed.
            state: store.meta.state,
            node_state: store.meta.node_state,
            ..put
        };
        Ok(())
    }

    /// Sets a label of a store; an empty value removes it.
    pub fn label_store(&mut self, id: StoreId, key: &str, value: &str) -> bool {
        let Some(store) = self.stores.get_mut(&id) else {
            return false;
        };
        store.meta.labels.retain(|label| label.key != key);
        if !value.is_empty() {
            store.meta.labels.push(metapb::StoreLabel {
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
        true
    }

    /// Takes a store out of service: it still answers, and no region should stay on it.
    pub fn take_offline(&mut self, id: StoreId) -> bool {
        self.change_state(id, StoreState::Up, StoreState::Offline, NodeState::Removing)
    }

    /// Takes an offline store into service again.
    pub fn take_online(&mut self, id: StoreId) -> bool {
        self.change_state(id, StoreState::Offline, StoreState::Up, NodeState::Serving)
    }

    fn change_state(
        &mut self,
        id: StoreId,
        from: StoreState,
        to: StoreState,
        node: NodeState,
    ) -> bool {
        match self.stores.get_mut(&id) {
            Some(store) if store.meta.state() == from => {
                store.meta.set_state(to);
                store.meta.set_node_state(node);
                true
            }
            _ => false,
        }
    }

    /// Buries an offline store, whose peers are removed. `false` if it is not offline, or a region
    /// has no other peer that could lead.
    pub fn bury_store(&mut self, now_ms: u64, id: StoreId) -> bool {
        let offline = self
            .stores
            .get(&id)
            .is_some_and(|store| store.meta.state() == StoreState::Offline);
        if !offline || !self.empty_store(now_ms, id) {
            return false;
        }
        self.stop_store(id);
        // Its peers are gone, whatever they had missed.
        self.catch_up(id);
        self.change_state(
            id,
            StoreState::Offline,
            StoreState::Tombstone,
            NodeState::Removed,
        )
    }

    fn empty_store(&mut self, now_ms: u64, id: StoreId) -> bool {
        let on_it = self.regions.iter().filter(|r| r.peer_on(id).is_some());
        let regions: Vec<RegionId> = on_it.map(|region| region.meta.id).collect();
        for region in regions {
            let Some(known) = self.regions.get(region) else {
                continue;
            };
            if known.leader == Some(id) || known.leader.is_none() {
                let peers = known.meta.peers.iter().map(|peer| peer.store_id);
                let others: Vec<StoreId> = peers.filter(|store| *store != id).collect();
                let heir = others
                    .into_iter()
                    .find(|to| self.is_up(*to) && self.transfer_leader(now_ms, region, *to));
                if heir.is_none() {
                    return false;
                }
            }
            self.remove_peer(now_ms, region, id);
        }
        true
    }

    /// Forgets the stores that have been buried.
    pub fn forget_tombstones(&mut self) {
        self.stores
            .retain(|_, store| store.meta.state() != StoreState::Tombstone);
    }
}

#[cfg(test)]
mod tests {
    use tikv_proto::pdpb::{GetAllStoresRequest, GetStoreRequest};

    use super::*;
    use crate::cluster::Config;
    use crate::cluster::pd::testing::{header, message};

    fn put(cluster: &mut Cluster, id: StoreId, address: &str) -> String {
        let request = PutStoreRequest {
            header: header(),
            store: Some(Box::new(metapb::Store {
                id,
                address: address.to_owned(),
                ..Default::default()
            })),
        };
        message(&cluster.pd_put_store(1, 0, request).unwrap().header)
    }

    #[test]
    fn a_store_goes_offline_and_back_or_for_good() {
        let mut cluster = Cluster::new(Config::default(), 1);
        assert!(!cluster.bury_store(1, 1), "it is in service");
        assert!(cluster.take_offline(1) && !cluster.take_offline(1));
        assert!(cluster.take_online(1) && cluster.take_offline(1));
        assert!(cluster.bury_store(1, 1));
        assert!(!cluster.take_online(1));
        let region = cluster.regions().iter().next().unwrap();
        assert!(region.peer_on(1).is_none() && region.leader != Some(1));
        let get = |cluster: &Cluster| {
            let request = GetStoreRequest {
                header: header(),
                store_id: 1,
            };
            cluster.pd_get_store(0, request).unwrap()
        };
        let buried = get(&cluster).store.unwrap();
        assert_eq!(
            (buried.state(), buried.node_state()),
            (StoreState::Tombstone, NodeState::Removed)
        );
        let all = |exclude_tombstone_stores| {
            let request = GetAllStoresRequest {
                header: header(),
                exclude_tombstone_stores,
            };
            cluster.pd_get_all_stores(0, request).unwrap().stores.len()
        };
        assert_eq!((all(false), all(true)), (3, 2));
        cluster.forget_tombstones();
        assert!(message(&get(&cluster).header).contains("not found"));
    }

    #[test]
    fn the_last_peer_stays_where_it_is() {
        let config = Config {
            stores: 1,
            ..Config::default()
        };
        let mut cluster = Cluster::new(config, 1);
        cluster.take_offline(1);
        assert!(!cluster.bury_store(1, 1));
        assert!(cluster.is_up(1));
    }

    #[test]
    fn an_address_belongs_to_one_living_store() {
        let mut cluster = Cluster::new(Config::default(), 1);
        let address = cluster.store(1).unwrap().meta.address.clone();
        assert!(put(&mut cluster, 2, &address).contains("duplicated"));
        assert_eq!(put(&mut cluster, 1, "moved:1"), "");
        assert_eq!(cluster.store(1).unwrap().meta.address, "moved:1");
        cluster.take_offline(1);
        assert!(cluster.bury_store(1, 1));
        assert!(put(&mut cluster, 1, "moved:1").contains("tombstone"));
        assert_eq!(
            put(&mut cluster, 50, "moved:1"),
            "",
            "a tombstone's address"
        );
        assert!(cluster.pd_mut().alloc_id() > 50);
        assert!(put(&mut cluster, 0, "x").contains("invalid"));
    }

    #[test]
    fn labels_replace_one_another() {
        let mut cluster = Cluster::new(Config::default(), 1);
        cluster.label_store(1, "zone", "a");
        cluster.label_store(1, "engine", "tiflash");
        cluster.label_store(1, "zone", "b");
        cluster.label_store(1, "engine", "");
        let labels = &cluster.store(1).unwrap().meta.labels;
        assert_eq!((labels.len(), &*labels[0].value), (1, "b"));
        assert!(!cluster.label_store(9, "zone", "a"));
    }
}
