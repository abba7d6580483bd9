//! Tests of regions: a small cluster to build them in, and one file per subject.

mod cache;
mod model;
mod verdict;

use super::*;
use crate::store::StoreTable;

/// Stores 1 to 4; the last one is a TiFlash store.
fn stores() -> StoreTable {
    let stores = StoreTable::new();
    let listed: Vec<metapb::Store> = (1..=4)
        .map(|id| metapb::Store {
            id,
            address: format!("store-{id}:20160"),
            labels: match id {
                4 => vec![metapb::StoreLabel {
                    key: "engine".into(),
                    value: "tiflash".into(),
                }],
                _ => vec![],
            },
            ..Default::default()
        })
        .collect();
    stores.update(&listed);
    stores
}

fn peer(region: u64, store_id: u64) -> metapb::Peer {
    metapb::Peer {
        id: region * 10 + store_id,
        store_id,
        ..Default::default()
    }
}

/// A region with peers on stores 1 to 3, the first of which leads. An empty end is no end.
fn data(id: u64, start: &str, end: &str, conf_ver: u64, version: u64) -> RegionData {
    RegionData {
        meta: metapb::Region {
            id,
            region_epoch: Some(metapb::RegionEpoch { conf_ver, version }),
            peers: (1..=3).map(|store| peer(id, store)).collect(),
            ..Default::default()
        },
        range: KeyRange::new(start, Some(end.into()).filter(|end: &Key| !end.is_empty())),
        leader: Some(peer(id, 1)),
        ..Default::default()
    }
}

const TTL: Ttl = Ttl {
    base_ms: 10_000,
    jitter_ms: 0,
    seed: 7,
};

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn build(data: RegionData, stores: &StoreTable) -> Arc<Region> {
    Region::build(data, stores, TTL, at(0)).unwrap()
}

const REPLACE: InsertMode = InsertMode {
    invalidate_old: true,
    from_pd_leader: true,
};
const KEEP: InsertMode = InsertMode {
    invalidate_old: false,
    from_pd_leader: false,
};
