//! Regions as somebody knows them: by id and by range. Not all of the key space need be covered, and
//! nothing is twice.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};

use bytes::Bytes;
use tikv_proto::metapb;

use crate::cluster::region::RegionId;

/// A region as PD knows it.
#[derive(Clone, Debug)]
pub struct KnownRegion {
    /// Id, bounds, epoch, peers.
    pub meta: metapb::Region,
    /// The leader that sent the last heartbeat.
    pub leader: Option<metapb::Peer>,
    /// Its term.
    pub term: u64,
    /// Peers that the leader has not heard of for long.
    pub down: Vec<metapb::Peer>,
    /// Peers that have to get a copy before they can follow.
    pub pending: Vec<metapb::Peer>,
    /// Where it may be cut, as a leader has reported it.
    pub buckets: Option<Box<metapb::Buckets>>,
}

/// The regions that PD knows, or one of its members.
#[derive(Clone, Debug, Default)]
pub struct KnownRegions {
    by_id: BTreeMap<RegionId, KnownRegion>,
    by_start: BTreeMap<Bytes, RegionId>,
}

impl KnownRegions {
    /// A region by its id.
    pub fn get(&self, id: RegionId) -> Option<&KnownRegion> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: RegionId) -> Option<&mut KnownRegion> {
        self.by_id.get_mut(&id)
    }

    /// All of them, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &KnownRegion> {
        self.by_id.values()
    }

    /// Whether a region starts at an encoded key.
    pub fn has_start(&self, encoded: &Bytes) -> bool {
        self.by_start.contains_key(encoded)
    }

    pub(super) fn insert(&mut self, known: KnownRegion) {
        let id = known.meta.id;
        self.by_start.insert(known.meta.start_key.clone(), id);
        self.by_id.insert(id, known);
    }

    pub(super) fn remove(&mut self, id: RegionId) -> Option<KnownRegion> {
        let known = self.by_id.remove(&id)?;
        if self.by_start.get(&known.meta.start_key) == Some(&id) {
            self.by_start.remove(&known.meta.start_key);
        }
        Some(known)
    }

    /// The regions that share a part of an encoded range.
    pub(super) fn overlapping(&self, start: &Bytes, end: &Bytes) -> Vec<RegionId> {
        let first = self.containing(start).map(|known| known.meta.id);
        let following = self
            .from(start)
            .take_while(|known| end.is_empty() || known.meta.start_key < *end)
            .map(|known| known.meta.id);
        let mut ids: Vec<RegionId> = first.into_iter().chain(following).collect();
        ids.dedup();
        ids
    }

    /// The region that holds an encoded key.
    pub fn containing(&self, encoded: &[u8]) -> Option<&KnownRegion> {
        let (_, id) = self
            .by_start
            .range::<[u8], _>((Unbounded, Included(encoded)))
            .next_back()?;
        self.by_id
            .get(id)
            .filter(|known| known.meta.end_key.is_empty() || encoded < known.meta.end_key.as_ref())
    }

    /// Regions that start at or after an encoded key.
    pub(super) fn from(&self, encoded: &[u8]) -> impl Iterator<Item = &KnownRegion> {
        self.by_start
            .range::<[u8], _>((Included(encoded), Unbounded))
            .filter_map(|(_, id)| self.by_id.get(id))
    }

    /// The region before the one that holds an encoded key, if both touch.
    pub(super) fn before(&self, key: &Bytes) -> Option<&KnownRegion> {
        let start = &self.containing(key)?.meta.start_key;
        let (_, id) = self
            .by_start
            .range::<Bytes, _>((Unbounded, Excluded(start)))
            .next_back()?;
        self.by_id
            .get(id)
            .filter(|known| known.meta.end_key == *start)
    }

    /// From the region that holds an encoded key, or the next one, up to another key; to the last
    /// one if that is empty.
    pub fn in_range<'a>(
        &'a self,
        start: &'a Bytes,
        end: &'a Bytes,
    ) -> impl Iterator<Item = &'a KnownRegion> {
        let first = self
            .containing(start)
            .filter(|known| known.meta.start_key < *start);
        first
            .into_iter()
            .chain(self.from(start))
            .take_while(move |known| end.is_empty() || known.meta.start_key < *end)
            .filter(move |_| end.is_empty() || start < end)
    }
}
