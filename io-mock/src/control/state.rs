//! What there is in a cluster, for people and scripts.

use std::collections::BTreeMap;

use serde::Serialize;

use super::key_text::KeyText;
use crate::cluster::region::{Region, RegionId, StoreId};
use crate::cluster::{Cluster, key};
use crate::serve::ServedCluster;

/// What there is in a cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct State {
    /// PD.
    pub pd: PdState,
    /// The stores.
    pub stores: Vec<StoreState>,
    /// The regions, in the order of their keys.
    pub regions: Vec<RegionState>,
    /// The keyspaces.
    pub keyspaces: Vec<KeyspaceState>,
}

/// PD.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PdState {
    /// Its members.
    pub members: Vec<MemberState>,
    /// The member that leads, counted from 0.
    pub leader: Option<usize>,
    /// A timestamp of the present.
    pub timestamp: u64,
    /// Transactions older than this are ended.
    pub txn_safe_point: u64,
    /// Versions older than this may be gone.
    pub gc_safe_point: u64,
}

/// A member of PD.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MemberState {
    /// Its name.
    pub name: String,
    /// Where clients find it.
    pub urls: Vec<String>,
}

/// A store.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StoreState {
    /// Its id.
    pub id: StoreId,
    /// Where it listens.
    pub address: String,
    /// It answers.
    pub up: bool,
    /// `Up`, `Offline` or `Tombstone`.
    pub state: &'static str,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How many regions it leads.
    pub leads: usize,
    /// It looks at no request.
    pub paused: bool,
    /// Every request takes this much longer.
    pub delay_ms: u64,
    /// So many replies are still to be lost.
    pub replies_to_drop: u64,
}

/// A region.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RegionState {
    /// Its id.
    pub id: RegionId,
    /// Its first key: of transactions if it is the encoding of one, otherwise raw.
    pub start: KeyText,
    /// The key before which it ends; empty means never.
    pub end: KeyText,
    /// The store that leads it.
    pub leader: Option<StoreId>,
    /// The stores of its peers.
    pub stores: Vec<StoreId>,
    /// The stores of peers that have fallen behind, and how many entries of the log each has not
    /// applied.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub lagging: BTreeMap<StoreId, u64>,
    /// How often its range has changed.
    pub version: u64,
    /// How often its peers have changed.
    pub conf_ver: u64,
}

/// A keyspace.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KeyspaceState {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// `ENABLED`, `DISABLED`, `ARCHIVED` or `TOMBSTONE`.
    pub state: &'static str,
}

impl State {
    pub(super) fn of(served: &ServedCluster) -> Self {
        let mut state = served.with(|cluster, now_ms| State {
            pd: PdState {
                members: members(cluster),
                leader: cluster.pd().leader(),
                timestamp: cluster.pd_mut().next_tso(now_ms),
                txn_safe_point: cluster.pd().gc().txn_safe_point,
                gc_safe_point: cluster.pd().gc().gc_safe_point,
            },
            stores: stores(cluster),
            regions: regions(cluster),
            keyspaces: cluster
                .pd()
                .keyspaces()
                .map(|(id, meta)| KeyspaceState {
                    id,
                    name: meta.name.clone(),
                    state: meta.state().as_str_name(),
                })
                .collect(),
        });
        for store in &mut state.stores {
            let condition = served.condition(store.id);
            store.paused = condition.paused;
            store.delay_ms = u64::try_from(condition.delay.as_millis()).unwrap_or(u64::MAX);
            store.replies_to_drop = condition.replies_to_drop;
        }
        state
    }
}

fn members(cluster: &Cluster) -> Vec<MemberState> {
    let members = cluster.pd().members().iter();
    members
        .map(|member| MemberState {
            name: member.name.clone(),
            urls: member.client_urls.clone(),
        })
        .collect()
}

fn stores(cluster: &Cluster) -> Vec<StoreState> {
    let mut leads: BTreeMap<StoreId, usize> = BTreeMap::new();
    for leader in cluster.regions().iter().filter_map(|region| region.leader) {
        *leads.entry(leader).or_default() += 1;
    }
    let stores = cluster.store_ids().filter_map(|id| cluster.store(id));
    stores
        .map(|store| StoreState {
            id: store.meta.id,
            address: store.meta.address.clone(),
            up: store.up,
            state: store.meta.state().as_str_name(),
            labels: store
                .meta
                .labels
                .iter()
                .map(|label| (label.key.clone(), label.value.clone()))
                .collect(),
            leads: leads.get(&store.meta.id).copied().unwrap_or_default(),
            paused: false,
            delay_ms: 0,
            replies_to_drop: 0,
        })
        .collect()
}

fn regions(cluster: &Cluster) -> Vec<RegionState> {
    let mut lagging: BTreeMap<RegionId, BTreeMap<StoreId, u64>> = BTreeMap::new();
    for (id, store, entries) in cluster.lagging() {
        lagging.entry(id).or_default().insert(store, entries);
    }
    let regions = cluster.regions().iter();
    let described = regions.map(|it| RegionState {
        lagging: lagging.remove(&it.meta.id).unwrap_or_default(),
        ..region(it)
    });
    described.collect()
}

fn region(region: &Region) -> RegionState {
    let text = |bound: &bytes::Bytes| match key::decode(bound) {
        Some(user) => KeyText::of(&user),
        None => KeyText::of(bound),
    };
    let epoch = region.epoch();
    RegionState {
        id: region.meta.id,
        start: text(&region.meta.start_key),
        end: text(&region.meta.end_key),
        leader: region.leader,
        stores: region.meta.peers.iter().map(|peer| peer.store_id).collect(),
        lagging: BTreeMap::new(),
        version: epoch.version,
        conf_ver: epoch.conf_ver,
    }
}
