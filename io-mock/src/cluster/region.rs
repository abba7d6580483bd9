//! Regions and their map: who holds which range, at which epoch, and who leads it.
//!
//! One view for all stores: a change of a region is known to each of its peers at once, unless one has
//! [fallen behind](super::lag). What PD believes is another matter and lives in `pd`.

use std::collections::BTreeMap;

use bytes::Bytes;
use tikv_proto::metapb;

use super::held_writes::HeldWrite;
use super::memory_locks::MemoryLocks;

/// Id of a store.
pub type StoreId = u64;
/// Id of a region.
pub type RegionId = u64;
/// Id of a peer.
pub type PeerId = u64;

/// One region.
#[derive(Clone, Debug, Default)]
pub struct Region {
    /// Id, encoded bounds, epoch and peers.
    pub meta: metapb::Region,
    /// Store of the leader; `None` during an election.
    pub leader: Option<StoreId>,
    /// Raft term.
    pub term: u64,
    /// The leader's store has caught up with PD's timestamps since it became leader.
    pub max_ts_synced: bool,
    /// A merge has been prepared: nothing may be proposed.
    pub merging: bool,
    /// A split has been proposed: replicas can't ask the leader where it stands.
    pub splitting: bool,
    /// The leader is handing over: nothing may be proposed.
    pub transferring: bool,
    /// A majority was lost and operators have forced a leader: nothing is served until they are
    /// done.
    pub recovering: bool,
    /// Timestamp up to which followers answer stale reads.
    pub safe_ts: u64,
    /// Up to where a follower knows from the leader's answer to an earlier read that it has it all,
    /// by its store.
    pub confirmed_ts: BTreeMap<StoreId, u64>,
    /// Parts of the region that coprocessor requests may be cut at, as its leader knows them.
    pub buckets: Option<Buckets>,
    /// The last version that buckets had.
    pub buckets_version: u64,
    /// What is out of the ordinary about peers, by their stores.
    pub peer_states: BTreeMap<StoreId, PeerState>,
    /// Writes are kept from being applied.
    pub holds_writes: bool,
    /// Writes that have been proposed and not applied yet, in their order.
    pub held_writes: Vec<HeldWrite>,
    /// Pessimistic locks that only the leader holds.
    pub memory_locks: MemoryLocks,
}

/// What may be out of the ordinary about one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// Its timestamp for stale reads stands still here while others go on.
    pub safe_ts_stuck: Option<u64>,
    /// Its store has been started since it last heard how far stale reads may go.
    pub safe_ts_forgotten: bool,
    /// It has heard of the region and has no data yet.
    pub uninitialized: bool,
    /// It is taking over a copy of all data.
    pub applying_snapshot: bool,
    /// It was a witness and has not got the data yet.
    pub waits_for_data: bool,
    /// Its leader has not heard of it for so long that it says so to PD.
    pub down: bool,
}

impl PeerState {
    /// Its leader says to PD that it has to get a copy before it can follow.
    pub fn is_pending(&self) -> bool {
        self.uninitialized || self.applying_snapshot
    }
}

/// Where a region may be cut without being split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    /// Grows with the leader's term and with every change.
    pub version: u64,
    /// Encoded keys, both bounds of the region included.
    pub keys: Vec<Bytes>,
}

impl Region {
    /// The region's epoch; every region has one.
    pub fn epoch(&self) -> metapb::RegionEpoch {
        self.meta.region_epoch.unwrap_or_default()
    }

    /// The peer on a store.
    pub fn peer_on(&self, store: StoreId) -> Option<&metapb::Peer> {
        self.meta.peers.iter().find(|peer| peer.store_id == store)
    }

    /// The leader's peer.
    pub fn leader_peer(&self) -> Option<&metapb::Peer> {
        self.peer_on(self.leader?)
    }

    /// What is out of the ordinary about the peer on a store.
    pub fn peer_state(&self, store: StoreId) -> PeerState {
        self.peer_states.get(&store).cloned().unwrap_or_default()
    }

    pub(super) fn set_peer_state(&mut self, store: StoreId, state: PeerState) {
        match state == PeerState::default() {
            true => self.peer_states.remove(&store),
            false => self.peer_states.insert(store, state),
        };
    }

    /// The region as it is when it has been prepared for being merged into another.
    pub(super) fn prepared_to_merge(&self) -> metapb::Region {
        let mut epoch = self.epoch();
        if !self.merging {
            epoch.version += 1;
            epoch.conf_ver += 1;
        }
        metapb::Region {
            region_epoch: Some(epoch),
            ..self.meta.clone()
        }
    }

    /// Timestamp up to which the peer on a store answers stale reads. A peer that is taking over a
    /// copy knows of none.
    pub fn safe_ts_on(&self, store: StoreId) -> u64 {
        let state = self.peer_states.get(&store);
        match state {
            Some(state) if state.safe_ts_forgotten || state.applying_snapshot => 0,
            Some(state) => state
                .safe_ts_stuck
                .map_or(self.safe_ts, |ts| ts.min(self.safe_ts)),
            None => self.safe_ts,
        }
    }

    /// Whether the peer on a store has everything that a read at a version can see, so that it need
    /// not ask the leader.
    pub fn is_complete_on(&self, store: StoreId, ts: u64) -> bool {
        let confirmed = self.confirmed_ts.get(&store).copied().unwrap_or_default();
        ts != 0 && ts <= self.safe_ts_on(store).max(confirmed)
    }

    /// Whether an encoded key lies inside.
    pub fn contains(&self, encoded: &[u8]) -> bool {
        encoded >= self.meta.start_key.as_ref()
            && (self.meta.end_key.is_empty() || encoded < self.meta.end_key.as_ref())
    }
}

/// All regions, by id and by start key. Their ranges cover the key space without overlap.
#[derive(Clone, Debug, Default)]
pub struct RegionMap {
    by_id: BTreeMap<RegionId, Region>,
    by_start: BTreeMap<Bytes, RegionId>,
}

impl RegionMap {
    /// The region with an id.
    pub fn get(&self, id: RegionId) -> Option<&Region> {
        self.by_id.get(&id)
    }

    /// The region with an id, to change anything but its range.
    pub fn get_mut(&mut self, id: RegionId) -> Option<&mut Region> {
        self.by_id.get_mut(&id)
    }

    /// The region that holds an encoded key.
    pub fn find(&self, encoded: &[u8]) -> Option<&Region> {
        let (_, id) = self
            .by_start
            .range::<[u8], _>((
                std::ops::Bound::Unbounded,
                std::ops::Bound::Included(encoded),
            ))
            .next_back()?;
        self.by_id.get(id).filter(|region| region.contains(encoded))
    }

    /// Regions from the one that starts at or after an encoded key.
    pub fn starting_at(&self, encoded: &[u8]) -> impl Iterator<Item = &Region> {
        let bounds = (
            std::ops::Bound::Included(encoded),
            std::ops::Bound::Unbounded,
        );
        self.by_start
            .range::<[u8], _>(bounds)
            .filter_map(|(_, id)| self.by_id.get(id))
    }

    /// Regions that start below an encoded key, the nearest first.
    pub fn before(&self, encoded: &[u8]) -> impl Iterator<Item = &Region> {
        let bounds = (
            std::ops::Bound::Unbounded,
            std::ops::Bound::Excluded(encoded),
        );
        self.by_start
            .range::<[u8], _>(bounds)
            .rev()
            .filter_map(|(_, id)| self.by_id.get(id))
    }

    /// All regions in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.by_start.values().filter_map(|id| self.by_id.get(id))
    }

    /// All region ids in the order of their ids.
    pub fn ids(&self) -> impl Iterator<Item = RegionId> {
        self.by_id.keys().copied()
    }

    /// How many regions there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Puts a region in, replacing the one with its id.
    pub fn insert(&mut self, region: Region) {
        self.remove(region.meta.id);
        self.by_start
            .insert(region.meta.start_key.clone(), region.meta.id);
        self.by_id.insert(region.meta.id, region);
    }

    /// Takes a region out.
    pub fn remove(&mut self, id: RegionId) -> Option<Region> {
        let region = self.by_id.remove(&id)?;
        if self.by_start.get(&region.meta.start_key) == Some(&id) {
            self.by_start.remove(&region.meta.start_key);
        }
        Some(region)
    }
}
