//! What a peer that does not lead may serve, and peers that have fallen behind.
//!
//! Stale reads are served up to the peer's own timestamp; other reads once the leader has said
//! where it stands. How long that takes is not here: a peer has either caught up when it is asked,
//! or is so far behind that it says so.

use tikv_proto::kvrpcpb::Context;
use tikv_proto::metapb;

use super::Cluster;
use super::key::Key;
use super::region::{PeerState, Region, RegionId, StoreId};
use super::region_checks::{Access, RegionError};
use super::region_errors::{
    data_is_not_ready, disk_full, not_leader, read_index_not_ready, region_not_initialized,
};
use super::store::Disk;

/// From this many entries on, a replica says that it is behind instead of waiting.
const LOG_GAP_MAX: u64 = 100;

impl Cluster {
    /// The region as the peer on a store knows it.
    pub(super) fn region_on(&self, store: StoreId, id: RegionId) -> Option<&Region> {
        let behind = &self.stores.get(&store)?.behind;
        if behind.is_empty() {
            return self.regions.get(id);
        }
        if let Some(old) = behind.get(&id) {
            return Some(old);
        }
        let region = self.regions.get(id)?;
        if region.leader == Some(store) {
            return Some(region);
        }
        // Born of one that has not split here yet.
        let unborn = behind
            .values()
            .any(|old| old.contains(&region.meta.start_key));
        (!unborn).then_some(region)
    }

    /// A peer that does not lead serves stale reads it is ready for, and replica reads if there is
    /// a leader to ask.
    pub(super) fn check_replica(
        &self,
        store: StoreId,
        region: &Region,
        peer: &metapb::Peer,
        context: &Context,
        access: Access,
    ) -> Result<(), RegionError> {
        let Access::Read(ts) = access else {
            return Err(not_leader(region).into());
        };
        let id = region.meta.id;
        let state = region.peer_state(store);
        // A read that names no version is none that can be stale.
        let stale = context.stale_read && ts != Some(0);
        if !stale && !context.replica_read {
            return Err(not_leader(region).into());
        }
        if state.uninitialized {
            return Err(region_not_initialized(id).into());
        }
        if state.applying_snapshot {
            return Err(applying_snapshot(peer).into());
        }
        if ts.is_some_and(|ts| region.is_complete_on(store, ts)) {
            return Ok(());
        }
        if stale {
            let safe_ts = region.safe_ts_on(store);
            return Err(data_is_not_ready(id, peer.id, safe_ts).into());
        }
        self.check_read_index(store, context, state)
    }

    /// Whether a replica can find out where the leader stands, and gets there.
    fn check_read_index(
        &self,
        store: StoreId,
        context: &Context,
        state: PeerState,
    ) -> Result<(), RegionError> {
        // The leader answers for the region as it is now.
        let Some(region) = self.regions.get(context.region_id) else {
            return Ok(());
        };
        let id = region.meta.id;
        let disk = self.stores.get(&store).map(|store| store.disk);
        if disk.is_some_and(|disk| disk != Disk::Normal) {
            let reason = "read index failed: the disk of the replica is full".to_owned();
            return Err(disk_full(vec![store], reason).into());
        }
        if region.leader.is_none() {
            return Err(not_leader(region).into());
        }
        if region.splitting {
            return Err(read_index_not_ready(id, "can not read index due to split").into());
        }
        if region.merging {
            return Err(read_index_not_ready(id, "can not read index due to merge").into());
        }
        if state.lag >= LOG_GAP_MAX {
            let reason = "applied index fail behind read index too long";
            return Err(read_index_not_ready(id, reason).into());
        }
        let sent = context.region_epoch.unwrap_or_default();
        if self.is_behind(store, id) && sent.version != region.epoch().version {
            // It has applied the region's changes by the time it would answer.
            return Err(self.epoch_not_match(store, region, context).into());
        }
        Ok(())
    }

    /// A leader has confirmed a replica's read at a version. If it knew of no lock under way in the
    /// whole region, and the replica need not catch up, that has everything up to there.
    pub(super) fn note_confirmed(
        &mut self,
        leader: StoreId,
        store: StoreId,
        id: RegionId,
        ts: u64,
    ) {
        if ts == u64::MAX || self.is_behind(store, id) {
            return;
        }
        let keeps_up = |region: &&Region| !region.merging && region.peer_state(store).lag == 0;
        let Some(region) = self.regions.get(id).filter(keeps_up) else {
            return;
        };
        let start = Key::from_encoded(region.meta.start_key.clone());
        let mut locks = self
            .store(leader)
            .into_iter()
            .flat_map(|leader| leader.memory_locks.range(start.clone()..));
        if locks.any(|(key, _)| region.contains(key.encoded())) {
            return;
        }
        if let Some(region) = self.regions.get_mut(id) {
            let confirmed = region.confirmed_ts.entry(store).or_default();
            *confirmed = ts.max(*confirmed);
        }
    }

    fn is_behind(&self, store: StoreId, id: RegionId) -> bool {
        let store = self.stores.get(&store);
        store.is_some_and(|store| store.behind.contains_key(&id))
    }

    /// Has the peer on a store fall behind: it knows the region, its leader and its timestamp for
    /// stale reads as they are now, until it [catches up](Cluster::catch_up). `false` if the store
    /// has no such peer, or if it leads: a leader knows what it did.
    pub fn fall_behind(&mut self, id: RegionId, store: StoreId) -> bool {
        let Some(region) = self.regions.get(id) else {
            return false;
        };
        if region.leader == Some(store) || region.peer_on(store).is_none() {
            return false;
        }
        let mut old = region.clone();
        old.memory_locks.clear();
        old.held_writes.clear();
        match self.stores.get_mut(&store) {
            Some(store) => {
                store.behind.entry(id).or_insert(old);
                true
            }
            None => false,
        }
    }

    /// Has all peers on a store know the regions as they are.
    pub fn catch_up(&mut self, store: StoreId) {
        if let Some(store) = self.stores.get_mut(&store) {
            store.behind.clear();
        }
    }

    /// Changes what is out of the ordinary about the peer of a region on a store. `false` if there
    /// is no such peer.
    pub fn set_peer_state(
        &mut self,
        id: RegionId,
        store: StoreId,
        change: impl FnOnce(&mut PeerState),
    ) -> bool {
        let Some(region) = self.regions.get_mut(id) else {
            return false;
        };
        if region.peer_on(store).is_none() {
            return false;
        }
        let mut state = region.peer_state(store);
        let was_whole = !state.applying_snapshot;
        change(&mut state);
        if was_whole == state.applying_snapshot {
            region.confirmed_ts.remove(&store);
        }
        if state == PeerState::default() {
            region.peer_states.remove(&store);
        } else {
            region.peer_states.insert(store, state);
        }
        true
    }
}

fn applying_snapshot(peer: &metapb::Peer) -> tikv_proto::errorpb::Error {
    tikv_proto::errorpb::Error {
        message: format!("{} is applying snapshot", peer.id),
        ..tikv_proto::errorpb::Error::default()
    }
}

#[cfg(test)]
mod tests;
