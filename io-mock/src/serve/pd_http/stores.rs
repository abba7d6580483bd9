//! Stores: as PD knows them, with how many regions each has.

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tikv_proto::metapb;

use super::{Answer, Asked, ok, wrong};
use crate::cluster::Cluster;
use crate::cluster::region::StoreId;

/// How large disks are said to be.
const CAPACITY: &str = "1TiB";

pub(super) fn answer(asked: Asked<'_>) -> Option<Answer> {
    let path = &asked.path[1..];
    match (&asked.method, path) {
        (&Method::GET, ["stores"]) => {
            let wanted = states(&asked);
            let ids: Vec<StoreId> = asked.cluster.store_ids().collect();
            let stores = ids.into_iter().filter_map(|id| {
                let state = asked.cluster.store(id)?.meta.state();
                let wanted = match wanted.is_empty() {
                    true => state != metapb::StoreState::Tombstone,
                    false => wanted.contains(&(state as i32)),
                };
                wanted.then(|| store(asked.cluster, id)).flatten()
            });
            let stores: Vec<Value> = stores.collect();
            ok(json!({ "count": stores.len(), "stores": stores }))
        }
        (&Method::GET, ["store", id]) => {
            let Ok(id) = id.parse() else {
                return wrong(StatusCode::BAD_REQUEST, "the id is no number");
            };
            match store(asked.cluster, id) {
                Some(store) => ok(store),
                None => {
                    let why = format!("[PD:core:ErrStoreNotFound]store {id} not found");
                    wrong(StatusCode::NOT_FOUND, why)
                }
            }
        }
        _ => None,
    }
}

/// The states that are asked for, as numbers; none for those that are not tombstones.
fn states(asked: &Asked<'_>) -> Vec<i32> {
    let states = asked.query.all("state");
    let states = states.filter_map(|state| std::str::from_utf8(state).ok()?.parse().ok());
    states.collect()
}

/// One store.
fn store(cluster: &Cluster, id: StoreId) -> Option<Value> {
    let store = cluster.store(id)?;
    let (mut leaders, mut peers) = (0, 0);
    for region in cluster.regions().iter() {
        leaders += usize::from(region.leader == Some(id));
        peers += usize::from(region.peer_on(id).is_some());
    }
    let name = match store.meta.state() {
        metapb::StoreState::Up if !store.up => "Disconnected",
        metapb::StoreState::Up => "Up",
        metapb::StoreState::Offline => "Offline",
        metapb::StoreState::Tombstone => "Tombstone",
    };
    let mut meta = Map::from_iter([
        ("id".to_owned(), json!(id)),
        ("address".to_owned(), json!(store.meta.address)),
        ("version".to_owned(), json!(store.meta.version)),
        (
            "status_address".to_owned(),
            json!(store.meta.status_address),
        ),
        ("state_name".to_owned(), json!(name)),
    ]);
    // What has the value of nothing is left out.
    if store.meta.state != 0 {
        meta.insert("state".to_owned(), json!(store.meta.state));
    }
    if store.meta.node_state != 0 {
        meta.insert("node_state".to_owned(), json!(store.meta.node_state));
    }
    if !store.meta.labels.is_empty() {
        let labels = store.meta.labels.iter();
        let labels = labels.map(|label| json!({ "key": label.key, "value": label.value }));
        meta.insert("labels".to_owned(), labels.collect());
    }
    Some(json!({
        "store": meta,
        "status": {
            "capacity": CAPACITY,
            "available": CAPACITY,
            "used_size": "0B",
            "leader_count": leaders,
            "leader_weight": 1,
            "leader_score": leaders,
            "leader_size": leaders,
            "region_count": peers,
            "region_weight": 1,
            "region_score": peers,
            "region_size": peers,
            "slow_score": store.slow_score,
        },
    }))
}
