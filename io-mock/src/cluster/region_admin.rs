//! How regions change: split, merge, transfer of leadership, peers coming and going.
//!
//! Each change happens at once on all peers and keeps the server's rules for epochs. PD hears of it
//! at once or when it is told, as the configuration says.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{SplitRegionRequest, SplitRegionResponse};
use tikv_proto::{errorpb, metapb};

use super::Cluster;
use super::key;
use super::mvcc::engine::Change;
use super::mvcc::lock::KeyLock;
use super::proposal::making_room;
use super::region::{Buckets, PeerId, PeerState, Region, RegionId, StoreId};
use super::region_checks::{Access, RegionError};
use super::region_errors::key_not_in_region;

/// The term of a region right after a split.
const TERM_AFTER_SPLIT: u64 = 5;

impl Cluster {
    /// Splits a region at encoded keys and returns the parts in the order of their keys. The
    /// rightmost part keeps the region's id; keys that are not inside are ignored.
    pub fn split(&mut self, now_ms: u64, id: RegionId, keys: &[Bytes]) -> Vec<RegionId> {
        let Some(region) = self.regions.get(id) else {
            return Vec::new();
        };
        let mut cuts: Vec<Bytes> = keys
            .iter()
            .filter(|key| region.contains(key) && **key != region.meta.start_key)
            .cloned()
            .collect();
        cuts.sort();
        cuts.dedup();
        if cuts.is_empty() {
            return vec![id];
        }
        self.apply_held(now_ms, id);
        let Some(mut rest) = self.regions.remove(id) else {
            return Vec::new();
        };
        let mut epoch = rest.epoch();
        epoch.version += cuts.len() as u64;
        rest.meta.region_epoch = Some(epoch);
        let mut parts = Vec::with_capacity(cuts.len() + 1);
        for cut in cuts {
            let mut left = Region {
                meta: metapb::Region {
                    id: self.pd.alloc_id(),
                    start_key: std::mem::replace(&mut rest.meta.start_key, cut.clone()),
                    end_key: cut.clone(),
                    ..rest.meta.clone()
                },
                leader: rest.leader,
                term: TERM_AFTER_SPLIT,
                max_ts_synced: rest.max_ts_synced,
                safe_ts: rest.safe_ts,
                peer_states: rest.peer_states.clone(),
                ..Region::default()
            };
            for peer in &mut left.meta.peers {
                peer.id = self.pd.alloc_id();
            }
            // Locks in memory go with their keys.
            let kept = rest.memory_locks.split_off(&key::Key::from_encoded(cut));
            left.memory_locks = std::mem::replace(&mut rest.memory_locks, kept);
            parts.push(left.meta.id);
            self.regions.insert(left);
        }
        parts.push(id);
        rest.buckets = None;
        self.regions.insert(rest);
        self.note_regions(now_ms, &parts);
        parts
    }

    /// Merges a region into its right or left neighbour, which keeps its id. `false` if they are
    /// no neighbours, if their peers stand on different stores, or if the other is about to be merged
    /// itself.
    pub fn merge(&mut self, now_ms: u64, source: RegionId, target: RegionId) -> bool {
        let (Some(a), Some(b)) = (self.regions.get(source), self.regions.get(target)) else {
            return false;
        };
        let source_is_left = !a.meta.end_key.is_empty() && a.meta.end_key == b.meta.start_key;
        let source_is_right = !b.meta.end_key.is_empty() && b.meta.end_key == a.meta.start_key;
        let same_stores = a
            .meta
            .peers
            .iter()
            .all(|peer| b.peer_on(peer.store_id).is_some())
            && a.meta.peers.len() == b.meta.peers.len();
        let neighbours = source_is_left || source_is_right;
        if source == target || !same_stores || !neighbours || b.merging {
            return false;
        }
        self.apply_held(now_ms, source);
        self.apply_held(now_ms, target);
        self.catch_up_for_merge(source, target);
        let (Some(source), Some(mut merged)) =
            (self.regions.remove(source), self.regions.remove(target))
        else {
            return false;
        };
        let mut epoch = merged.epoch();
        let prepared = source.prepared_to_merge().region_epoch;
        let source_version = prepared.map_or(0, |epoch| epoch.version);
        epoch.version = epoch.version.max(source_version) + 1;
        merged.meta.region_epoch = Some(epoch);
        if source_is_left {
            merged.meta.start_key = source.meta.start_key;
        } else {
            merged.meta.end_key = source.meta.end_key;
        }
        merged.safe_ts = merged.safe_ts.min(source.safe_ts);
        merged.confirmed_ts.clear();
        merged.merging = false;
        merged.buckets = None;
        // The source proposes its locks before it goes.
        for (key, lock) in source.memory_locks {
            self.engine
                .apply(Change::PutLock(key, KeyLock::Exclusive(lock)));
        }
        let target = merged.meta.id;
        self.regions.insert(merged);
        // The source's leader may have served something newer.
        self.forget_max_ts(now_ms, target);
        self.note_regions(now_ms, &[target]);
        true
    }

    /// Sets a region apart for a merge: nothing may be proposed to it until the merge is done or
    /// given up.
    pub fn prepare_merge(&mut self, now_ms: u64, id: RegionId) -> bool {
        self.change_epoch(now_ms, id, |region, epoch| {
            region.merging = true;
            region.confirmed_ts.clear();
            epoch.version += 1;
            epoch.conf_ver += 1;
        })
    }

    /// Gives a prepared merge up.
    pub fn rollback_merge(&mut self, now_ms: u64, id: RegionId) -> bool {
        self.change_epoch(now_ms, id, |region, epoch| {
            region.merging = false;
            epoch.version += 1;
        })
    }

    /// Moves leadership on request: what the leader holds in memory is handed over. `false` if the
    /// store has no peer that could lead.
    pub fn transfer_leader(&mut self, now_ms: u64, id: RegionId, to: StoreId) -> bool {
        self.apply_held(now_ms, id);
        let Some(region) = self.regions.get_mut(id) else {
            return false;
        };
        if !can_lead(region, to) {
            return false;
        }
        if region.leader == Some(to) {
            return true;
        }
        region.leader = Some(to);
        region.term += 1;
        region.transferring = false;
        // Handing over means proposing the locks, so they are stored from now on.
        for (key, lock) in std::mem::take(&mut region.memory_locks) {
            self.engine
                .apply(Change::PutLock(key, KeyLock::Exclusive(lock)));
        }
        self.learn_leading(id, to);
        self.forget_max_ts(now_ms, id);
        self.note_regions(now_ms, &[id]);
        true
    }

    /// Makes a store the leader after the old one is gone: what it held in memory is lost. Writes
    /// proposed before, if they have not been [lost](Cluster::lose_held_writes), are applied.
    pub fn elect(&mut self, now_ms: u64, id: RegionId, to: StoreId) -> bool {
        self.apply_held(now_ms, id);
        let Some(region) = self.regions.get_mut(id) else {
            return false;
        };
        if !can_lead(region, to) {
            return false;
        }
        region.leader = Some(to);
        region.term += 1;
        region.transferring = false;
        region.memory_locks.clear();
        self.learn_leading(id, to);
        self.forget_max_ts(now_ms, id);
        self.note_regions(now_ms, &[id]);
        true
    }

    /// Who leads has applied everything before it serves.
    fn learn_leading(&mut self, id: RegionId, store: StoreId) {
        self.catch_up_around(id, store);
        if let Some(region) = self.regions.get_mut(id) {
            region.peer_states.remove(&store);
            // Where the region may be cut it works out anew.
            region.buckets = None;
        }
    }

    /// Says whether a leader is about to hand over, so that it takes no proposals and knows no
    /// successor yet. A transfer or an election ends it.
    pub fn set_transferring(&mut self, id: RegionId, transferring: bool) {
        if let Some(region) = self.regions.get_mut(id) {
            region.transferring = transferring;
        }
    }

    /// Says whether a region has a split under way, so that replicas can't ask the leader where it
    /// stands.
    pub fn set_splitting(&mut self, id: RegionId, splitting: bool) {
        if let Some(region) = self.regions.get_mut(id) {
            region.splitting = splitting;
        }
    }

    /// Says whether a region's leader has been forced upon it after the loss of a majority.
    pub fn set_recovering(&mut self, id: RegionId, recovering: bool) {
        if let Some(region) = self.regions.get_mut(id) {
            region.recovering = recovering;
        }
    }

    /// Cuts a region into buckets at encoded keys, under a new version. No keys: no buckets. PD hears
    /// of them from the leader, and of their lack never.
    pub fn set_buckets(&mut self, id: RegionId, keys: &[Bytes]) {
        let Some(region) = self.regions.get_mut(id) else {
            return;
        };
        if keys.is_empty() {
            region.buckets = None;
            return;
        }
        // The term in front, so that a new leader's first version is higher.
        let version = match region.buckets_version >> 32 == region.term {
            true => region.buckets_version + 1,
            false => region.term << 32,
        };
        let mut inside: Vec<Bytes> = keys
            .iter()
            .filter(|key| region.contains(key) && **key != region.meta.start_key)
            .cloned()
            .collect();
        inside.sort();
        inside.dedup();
        let mut keys = vec![region.meta.start_key.clone()];
        keys.append(&mut inside);
        keys.push(region.meta.end_key.clone());
        region.buckets_version = version;
        region.buckets = Some(Buckets { version, keys });
        if self.config.heartbeat_at_once {
            self.pd_heartbeat(id);
        }
    }

    /// Leaves a region without a leader until the next election.
    pub fn depose_leader(&mut self, id: RegionId) {
        if let Some(region) = self.regions.get_mut(id) {
            region.leader = None;
            region.memory_locks.clear();
        }
    }

    /// Brings a leader's store up to PD's timestamps, so that it may compute commit versions.
    pub fn sync_max_ts(&mut self, now_ms: u64, id: RegionId) {
        let Some(leader) = self.regions.get(id).and_then(|region| region.leader) else {
            return;
        };
        let tso = self.pd.next_tso(now_ms);
        self.refresh_max_ts(now_ms, leader);
        if let Some(store) = self.stores.get_mut(&leader) {
            // A timestamp of PD's own is never refused.
            let _ = store.max_ts.raise(tso);
        }
        if let Some(region) = self.regions.get_mut(id) {
            region.max_ts_synced = true;
        }
    }

    fn forget_max_ts(&mut self, now_ms: u64, id: RegionId) {
        if let Some(region) = self.regions.get_mut(id) {
            region.max_ts_synced = false;
        }
        if self.config.sync_max_ts_at_once {
            self.sync_max_ts(now_ms, id);
        }
    }

    /// Adds a peer on a store and returns its id; 0 if that cannot be.
    pub fn add_peer(
        &mut self,
        now_ms: u64,
        id: RegionId,
        store_id: StoreId,
        role: metapb::PeerRole,
    ) -> PeerId {
        let known = self.stores.contains_key(&store_id);
        let free = self
            .regions
            .get(id)
            .is_some_and(|region| region.peer_on(store_id).is_none());
        if !known || !free {
            return 0;
        }
        let peer_id = self.pd.alloc_id();
        self.change_epoch(now_ms, id, |region, epoch| {
            let role = role.into();
            region.meta.peers.push(metapb::Peer {
                id: peer_id,
                store_id,
                role,
                is_witness: false,
            });
            epoch.conf_ver += 1;
        });
        self.catch_up_around(id, store_id);
        peer_id
    }

    /// Removes the peer on a store. The leader's peer goes only after another one leads.
    pub fn remove_peer(&mut self, now_ms: u64, id: RegionId, store_id: StoreId) -> bool {
        let Some(region) = self.regions.get(id) else {
            return false;
        };
        if region.leader == Some(store_id) || region.peer_on(store_id).is_none() {
            return false;
        }
        self.change_epoch(now_ms, id, |region, epoch| {
            region.meta.peers.retain(|peer| peer.store_id != store_id);
            epoch.conf_ver += 1;
        })
    }

    /// Makes a learner a voter.
    pub fn promote_peer(&mut self, now_ms: u64, id: RegionId, store_id: StoreId) -> bool {
        self.change_epoch(now_ms, id, |region, epoch| {
            let learner =
                region.meta.peers.iter_mut().find(|peer| {
                    peer.store_id == store_id && peer.role() == metapb::PeerRole::Learner
                });
            if let Some(peer) = learner {
                peer.set_role(metapb::PeerRole::Voter);
                epoch.conf_ver += 1;
            }
        })
    }

    /// Makes a peer a witness, which has no data, or takes that back. A leader stays what it is.
    pub fn set_witness(
        &mut self,
        now_ms: u64,
        id: RegionId,
        store_id: StoreId,
        witness: bool,
    ) -> bool {
        let can_change = self.regions.get(id).is_some_and(|region| {
            region.leader != Some(store_id) && region.peer_on(store_id).is_some()
        });
        can_change
            && self.change_epoch(now_ms, id, |region, epoch| {
                let mut peers = region.meta.peers.iter_mut();
                if let Some(peer) = peers.find(|peer| peer.store_id == store_id) {
                    peer.is_witness = witness;
                    epoch.conf_ver += 1;
                }
            })
    }

    /// Sets the timestamp up to which a region's followers answer stale reads; it never falls. While a
    /// merge is prepared it stands.
    pub fn set_safe_ts(&mut self, id: RegionId, safe_ts: u64) {
        if let Some(region) = self.regions.get_mut(id).filter(|region| !region.merging) {
            region.safe_ts = region.safe_ts.max(safe_ts);
            for state in region.peer_states.values_mut() {
                state.safe_ts_forgotten = false;
            }
            region
                .peer_states
                .retain(|_, state| *state != PeerState::default());
        }
    }

    /// Lets PD hear from a region's leader, if it has one.
    pub fn pd_heartbeat(&mut self, id: RegionId) -> bool {
        self.regions
            .get(id)
            .is_some_and(|region| self.pd.heartbeat(region))
    }

    pub(super) fn change_epoch(
        &mut self,
        now_ms: u64,
        id: RegionId,
        change: impl FnOnce(&mut Region, &mut metapb::RegionEpoch),
    ) -> bool {
        let Some(region) = self.regions.get_mut(id) else {
            return false;
        };
        let mut epoch = region.epoch();
        change(region, &mut epoch);
        region.meta.region_epoch = Some(epoch);
        self.note_regions(now_ms, &[id]);
        true
    }

    fn note_regions(&mut self, _now_ms: u64, ids: &[RegionId]) {
        for &id in ids {
            self.note_entry(id);
        }
        if self.config.heartbeat_at_once {
            for &id in ids {
                self.pd_heartbeat(id);
            }
        }
    }

    /// Splits a region as a client asks: user keys, unless they are raw.
    #[allow(deprecated)] // Older clients read the two parts from fields of their own.
    pub fn split_region(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: SplitRegionRequest,
    ) -> SplitRegionResponse {
        match self.try_split(now_ms, store, &request) {
            Ok(regions) => {
                let (left, right) = match regions.as_slice() {
                    [left, right] => (Some(left.clone()), Some(right.clone())),
                    _ => (None, None),
                };
                SplitRegionResponse {
                    left: left.map(Box::new),
                    right: right.map(Box::new),
                    regions,
                    ..SplitRegionResponse::default()
                }
            }
            Err(error) => SplitRegionResponse {
                region_error: Some(error),
                ..SplitRegionResponse::default()
            },
        }
    }

    #[allow(deprecated)] // Older clients send a single key.
    fn try_split(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &SplitRegionRequest,
    ) -> Result<Vec<metapb::Region>, RegionError> {
        // Changes of regions pass a disk that is almost full.
        let context = making_room(request.context.clone());
        let message = |message: String| {
            Box::new(errorpb::Error {
                message,
                ..errorpb::Error::default()
            })
        };
        let mut keys: Vec<Bytes> = if request.split_keys.is_empty() {
            [&request.split_key]
                .into_iter()
                .filter(|key| !key.is_empty())
                .cloned()
                .collect()
        } else {
            request.split_keys.clone()
        };
        if !request.is_raw_kv {
            keys = keys.iter().map(|key| key::encode(key)).collect();
        }
        keys.sort();
        let region = self.check_region(store, &context, Access::Admin)?;
        self.check_proposal(store, &context, region, 0)?;
        let id = region.meta.id;
        if keys.is_empty() {
            let peer = region.leader_peer().map_or(0, |peer| peer.id);
            return Err(message(format!(
                "\"[region {id}] {peer} no split key is specified.\""
            )));
        }
        if let Some(outside) = keys.iter().find(|key| !region.contains(key)) {
            return Err(key_not_in_region(&region.meta, outside).into());
        }
        if keys.iter().all(|key| *key == region.meta.start_key) {
            return Err(message(
                "Coprocessor no valid key found for split.".to_owned(),
            ));
        }
        let parts = self.split(now_ms, id, &keys);
        Ok(parts
            .into_iter()
            .filter_map(|id| self.regions.get(id).map(|region| region.meta.clone()))
            .collect())
    }
}

fn can_lead(region: &Region, store: StoreId) -> bool {
    region.peer_on(store).is_some_and(|peer| {
        !peer.is_witness
            && matches!(
                peer.role(),
                metapb::PeerRole::Voter | metapb::PeerRole::IncomingVoter
            )
    })
}
