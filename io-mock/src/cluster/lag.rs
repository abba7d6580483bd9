//! Peers that have fallen behind: they know their regions, and have the data, as of then.
//!
//! What a lagging peer has not applied it does not see: a value or a lock that is not there yet, a
//! lock that is still there. It answers stale reads up to the timestamp it knew then, which are
//! complete there. Who asks it for a [read at the leader's index](super::replica) makes it catch up,
//! because that read waits until it has; a peer that is [stuck](Cluster::stall) lets it wait.
//!
//! Whatever needs a peer to have applied everything has it catch up: leading, being the source of a
//! merge, making room for a copy. Parts of a region that a peer has not split yet are not born on its
//! store.
//!
//! For faults in a simulation: [`Cluster::fall_behind`], and [`Cluster::catch_up`] when it ends.
//! Neither asks for anything else to be undone, and whatever happens to the region meanwhile may.

use bytes::Bytes;
use tikv_core::wire::Command;

use super::Cluster;
use super::lock_wait::Ticket;
use super::region::{Region, RegionId, StoreId};
use super::region_checks::RegionError;
use super::region_errors::{deadline_exceeded, read_index_not_ready};

/// From this many entries on, a replica says that it is behind instead of waiting.
const LOG_GAP_MAX: u64 = 100;

/// A peer that has fallen behind.
#[derive(Clone, Debug)]
pub struct Behind {
    /// The region as the peer knows it.
    pub region: Region,
    /// How many entries of the log it has not applied.
    pub entries: u64,
    /// It applies nothing, whoever waits for it.
    pub stuck: bool,
}

/// Reads that wait for their peers to catch up.
#[derive(Clone, Debug, Default)]
pub(super) struct StalledReads {
    /// How many peers are stuck.
    stuck: usize,
    /// The request at hand has met a peer that is stuck.
    met: bool,
    parked: Vec<StalledRead>,
}

/// A read that waits for its peer to catch up.
#[derive(Clone, Debug)]
pub(crate) struct StalledRead {
    pub(crate) ticket: Ticket,
    pub(crate) store: StoreId,
    region: RegionId,
    /// When it came.
    pub(crate) since_ms: u64,
    pub(crate) command: Command,
}

impl Cluster {
    /// Has the peer on a store fall behind: it knows the region, its leader, its timestamp for stale
    /// reads and the data as they are now, until it catches up. `false` if the store has no such
    /// peer, or if it leads: a leader knows what it did.
    ///
    /// As a fault it is sound at any time and for any number of peers; [`catch_up`](Self::catch_up)
    /// ends it. Reads that it may serve stay correct, only older.
    pub fn fall_behind(&mut self, id: RegionId, store: StoreId) -> bool {
        let Some(region) = self.region_on(store, id) else {
            return false;
        };
        if self.is_behind(store, id) {
            return true;
        }
        if region.leader == Some(store) || region.peer_on(store).is_none() {
            return false;
        }
        let region = region.clone();
        self.stand_still(store, region);
        true
    }

    /// The same, and it does not catch up because a read waits for it: the read waits on, and is
    /// answered by [`dispatch::take_woken`](crate::dispatch::take_woken) after it has been told to
    /// catch up, has become the leader, or its store has stopped. Who can't wait is told that the
    /// deadline has passed.
    pub fn stall(&mut self, id: RegionId, store: StoreId) -> bool {
        let behind = self.fall_behind(id, store);
        if let Some(behind) = self.behind_mut(store, id)
            && !std::mem::replace(&mut behind.stuck, true)
        {
            self.stalled_reads.stuck += 1;
        }
        behind
    }

    /// Has a peer fall behind, if it has not, and miss that many more entries of the log, which
    /// change nothing. `false` as for [`fall_behind`](Self::fall_behind).
    pub fn lengthen_lag(&mut self, id: RegionId, store: StoreId, entries: u64) -> bool {
        let behind = self.fall_behind(id, store);
        if let Some(behind) = self.behind_mut(store, id) {
            behind.entries += entries;
        }
        behind
    }

    /// Has all peers on a store apply what they have missed.
    pub fn catch_up(&mut self, store: StoreId) {
        while let Some(id) = self.first_behind(store) {
            self.release_peer(store, id);
        }
    }

    /// Has the peer of a region on a store apply what it has missed, and others there that stand in its
    /// way: parts that have been merged into it, or from which it was split.
    pub fn catch_up_peer(&mut self, id: RegionId, store: StoreId) {
        if self.is_behind(store, id) {
            self.catch_up_around(id, store);
        }
    }

    /// The peers that have fallen behind, and how many entries each has not applied.
    pub fn lagging(&self) -> impl Iterator<Item = (RegionId, StoreId, u64)> {
        self.stores.iter().flat_map(|(&store, it)| {
            let behind = it.behind.iter();
            behind.map(move |(&id, behind)| (id, store, behind.entries))
        })
    }

    /// Has a store's peer know the region as it is, and everything around that is in its way.
    pub(super) fn catch_up_around(&mut self, id: RegionId, store: StoreId) {
        if !self.engine.stands_still_anywhere() {
            return;
        }
        let mut to_do = vec![id];
        while let Some(id) = to_do.pop() {
            let old = self.release_peer(store, id);
            // What has been merged is gone when its successor has caught up, too.
            let start = old.map(|old| old.meta.start_key);
            let successor = || self.regions.find(start.as_ref()?);
            let Some(region) = self.regions.get(id).or_else(successor) else {
                continue;
            };
            let (id, meta) = (region.meta.id, &region.meta);
            let behind = self.store(store).into_iter().flat_map(|it| &it.behind);
            let in_the_way = behind.filter(|(other, behind)| {
                **other == id || overlap(&behind.region, &meta.start_key, &meta.end_key)
            });
            to_do.extend(in_the_way.map(|(id, _)| *id));
        }
    }

    /// Before a region is merged into another: every peer of the source has applied everything,
    /// unless that of the target can't take it over yet. Then it waits, set apart.
    pub(super) fn catch_up_for_merge(&mut self, source: RegionId, target: RegionId) {
        if !self.engine.stands_still_anywhere() {
            return;
        }
        let Some(region) = self.regions.get(source) else {
            return;
        };
        let stores: Vec<StoreId> = region.meta.peers.iter().map(|peer| peer.store_id).collect();
        let prepared = Region {
            meta: region.prepared_to_merge(),
            merging: true,
            // Whoever led it serves nothing more by that: its successor takes writes at once.
            leader: None,
            ..region.clone()
        };
        for store in stores {
            if !self.is_behind(store, target) {
                self.catch_up_around(target, store);
                self.catch_up_around(source, store);
                continue;
            }
            // One that is not born there needs no peer set apart.
            let keeps_up =
                !self.is_behind(store, source) && self.region_on(store, source).is_some();
            if keeps_up {
                self.stand_still(store, prepared.clone());
            }
        }
    }

    /// An entry has been appended to a region's log and applied by those who keep up.
    pub(super) fn note_entry(&mut self, id: RegionId) {
        if !self.engine.stands_still_anywhere() {
            return;
        }
        for store in self.stores.values_mut() {
            if let Some(behind) = store.behind.get_mut(&id) {
                behind.entries += 1;
            }
        }
    }

    /// The region as the peer on a store knows it.
    pub(super) fn region_on(&self, store: StoreId, id: RegionId) -> Option<&Region> {
        if !self.engine.stands_still_anywhere() {
            return self.regions.get(id);
        }
        if let Some(behind) = self.stores.get(&store)?.behind.get(&id) {
            return Some(&behind.region);
        }
        let region = self.regions.get(id)?;
        // Born of one that has not split here yet.
        let unborn = self.engine.stands_still(store, &region.meta.start_key);
        (!unborn).then_some(region)
    }

    /// Whether the peer on a store has fallen behind.
    pub(super) fn is_behind(&self, store: StoreId, id: RegionId) -> bool {
        let store = self.stores.get(&store);
        store.is_some_and(|store| store.behind.contains_key(&id))
    }

    pub(super) fn behind_mut(&mut self, store: StoreId, id: RegionId) -> Option<&mut Behind> {
        self.stores.get_mut(&store)?.behind.get_mut(&id)
    }

    /// Has a replica apply what its leader has, because a read waits for that.
    pub(super) fn apply_up_to_leader(
        &mut self,
        store: StoreId,
        id: RegionId,
    ) -> Result<(), RegionError> {
        let Some(behind) = self.behind_mut(store, id) else {
            return Ok(());
        };
        if behind.entries >= LOG_GAP_MAX {
            let reason = "applied index fail behind read index too long";
            return Err(read_index_not_ready(id, reason).into());
        }
        if behind.entries > 0 && behind.stuck {
            self.stalled_reads.met = true;
            return Err(deadline_exceeded().into());
        }
        if !behind.stuck {
            self.catch_up_peer(id, store);
        }
        Ok(())
    }

    /// Whether a request may meet a peer that is stuck.
    pub(crate) fn may_stall(&self) -> bool {
        self.stalled_reads.stuck > 0
    }

    /// Whether the last request has met a peer that is stuck.
    pub(crate) fn take_stalled(&mut self) -> bool {
        std::mem::take(&mut self.stalled_reads.met)
    }

    /// Has a read wait until its peer is not stuck any more.
    pub(crate) fn park_read(
        &mut self,
        now_ms: u64,
        store: StoreId,
        region: RegionId,
        command: Command,
    ) -> Ticket {
        let ticket = self.lock_waits.issue();
        self.stalled_reads.parked.push(StalledRead {
            ticket,
            store,
            region,
            since_ms: now_ms,
            command,
        });
        ticket
    }

    /// Takes the reads that need not wait any more, in the order they came.
    pub(crate) fn take_ready_reads(&mut self) -> Vec<StalledRead> {
        let parked = std::mem::take(&mut self.stalled_reads.parked);
        let (wait, ready) = parked.into_iter().partition(|read| self.waits(read));
        self.stalled_reads.parked = wait;
        ready
    }

    /// Whether a read need not wait any more.
    pub(super) fn has_ready_reads(&self) -> bool {
        let mut parked = self.stalled_reads.parked.iter();
        parked.any(|read| !self.waits(read))
    }

    fn waits(&self, read: &StalledRead) -> bool {
        let Some(store) = self.stores.get(&read.store) else {
            return false;
        };
        let behind = store.behind.get(&read.region);
        store.up && behind.is_some_and(|behind| behind.stuck && behind.entries < LOG_GAP_MAX)
    }

    fn stand_still(&mut self, store: StoreId, mut region: Region) {
        let Some(served) = self.stores.get_mut(&store) else {
            return;
        };
        let (start, end) = (region.meta.start_key.clone(), region.meta.end_key.clone());
        region.memory_locks.clear();
        region.held_writes.clear();
        let behind = Behind {
            entries: 0,
            stuck: false,
            region,
        };
        served.behind.insert(behind.region.meta.id, behind);
        self.engine.hold(store, start, end);
    }

    /// Has the data stand still for the peers that lag, in a cluster whose data is new.
    pub(super) fn stand_still_again(&mut self) {
        for (&store, it) in &self.stores {
            for behind in it.behind.values() {
                self.stalled_reads.stuck += usize::from(behind.stuck);
                let meta = &behind.region.meta;
                let (start, end) = (meta.start_key.clone(), meta.end_key.clone());
                self.engine.hold(store, start, end);
            }
        }
    }

    fn release_peer(&mut self, store: StoreId, id: RegionId) -> Option<Region> {
        let behind = self.stores.get_mut(&store)?.behind.remove(&id)?;
        self.engine.release(store, &behind.region.meta.start_key);
        self.stalled_reads.stuck -= usize::from(behind.stuck);
        Some(behind.region)
    }

    fn first_behind(&self, store: StoreId) -> Option<RegionId> {
        self.store(store)?.behind.keys().next().copied()
    }
}

fn overlap(region: &Region, start: &Bytes, end: &Bytes) -> bool {
    let meta = &region.meta;
    (end.is_empty() || meta.start_key < *end) && (meta.end_key.is_empty() || *start < meta.end_key)
}
