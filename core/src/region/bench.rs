//! The region cache as a benchmark sees it: many regions in, one look-up out. Not for use.

use std::sync::Arc;

use tikv_proto::metapb;

use crate::key::{Key, KeyRange};
use crate::region::{InsertMode, Lookup, Region, RegionCache, RegionData, Ttl};
use crate::store::StoreTable;
use crate::time::Instant;

/// A region cache filled with neighbouring regions of three peers each.
#[derive(Debug)]
pub struct RegionTable {
    cache: RegionCache,
    stores: StoreTable,
    regions: u64,
}

impl RegionTable {
    /// The regions that these keys cut, in the order given: from each key to the one after it.
    pub fn new(cuts: &[Key]) -> Self {
        let stores = StoreTable::new();
        let listed: Vec<metapb::Store> = (1..=3)
            .map(|id| metapb::Store {
                id,
                address: format!("store-{id}:20160"),
                ..Default::default()
            })
            .collect();
        stores.update(&listed);
        let mut table = RegionTable {
            cache: RegionCache::new(Ttl::new(7)),
            stores,
            regions: 0,
        };
        for (place, cut) in cuts.iter().enumerate() {
            table.insert(KeyRange::new(cut.clone(), cuts.get(place + 1).cloned()), 1);
        }
        table
    }

    /// Whether the region of `key` is cached.
    pub fn lookup(&self, key: &[u8]) -> bool {
        matches!(self.cache.lookup(key, NOW), Lookup::Hit(_))
    }

    /// Cuts the region of `key` in two there, as a split does.
    pub fn split(&mut self, key: Key) {
        if let Lookup::Hit(region) = self.cache.lookup(&key, NOW) {
            let version = region.ver_id().ver + 1;
            let left = KeyRange::new(region.start().clone(), Some(key.clone()));
            let right = KeyRange::new(key, region.end().cloned());
            drop(region);
            self.insert(left, version);
            self.insert(right, version);
        }
    }

    /// How many regions are cached.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether no region is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn insert(&mut self, range: KeyRange, version: u64) {
        self.regions += 1;
        let id = self.regions;
        let peers: Vec<metapb::Peer> = (1..=3)
            .map(|store_id| metapb::Peer {
                id: id * 10 + store_id,
                store_id,
                ..Default::default()
            })
            .collect();
        let data = RegionData {
            leader: peers.first().copied(),
            meta: metapb::Region {
                id,
                region_epoch: Some(metapb::RegionEpoch {
                    conf_ver: 1,
                    version,
                }),
                peers,
                ..Default::default()
            },
            range,
            ..Default::default()
        };
        let mode = InsertMode {
            invalidate_old: false,
            from_pd_leader: true,
        };
        let built: Result<Arc<Region>, _> =
            Region::build(data, &self.stores, self.cache.ttl(), NOW);
        if let Ok(region) = built {
            self.cache.insert(region, mode, NOW);
        }
    }
}

const NOW: Instant = Instant::from_millis(1_000);
