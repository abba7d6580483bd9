//! Which region replaces which: the cache without its lock.
//!
//! Two views of the same regions, by start key and by id; each region is in both or in neither.
//! Ranges are disjoint and no id is there twice. Answers of PD come late, out of order, and from
//! followers that lag; the rules here keep them from undoing what is known better.
//! (client-go: `regionIndexMu`)

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::key::{Key, KeyRange};
#[cfg(feature = "mutations")]
use crate::mutation::Mutation;
use crate::region::tree::{KeyTree, Keyed};
use crate::region::{InvalidReason, Region, RegionVerId};
use crate::time::Instant;

impl Keyed for Arc<Region> {
    fn key(&self) -> &Key {
        self.start()
    }
}

/// Regions by start key and by id.
#[derive(Debug, Default)]
pub(crate) struct RegionIndex {
    sorted: KeyTree<Arc<Region>>,
    by_id: HashMap<u64, Arc<Region>, FixedState>,
}

/// How an insertion treats what it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InsertMode {
    /// Whether requests under way on a replaced region must stop using it. Loads of many regions
    /// leave them alone.
    pub(crate) invalidate_old: bool,
    /// Whether the region comes from PD's leader, which is believed over what has been invalid
    /// for a while.
    pub(crate) from_pd_leader: bool,
}

/// What became of an insertion.
#[derive(Clone, Debug)]
pub(crate) enum Inserted {
    /// It is in the cache now.
    Added(Arc<Region>),
    /// The same region was there already and goes on, with what is new about it.
    Kept(Arc<Region>),
    /// Something newer is there. The region is usable for the request that loaded it, at worst a
    /// server refuses it.
    Stale(Arc<Region>),
}

impl Inserted {
    /// The region to use.
    pub(crate) fn region(&self) -> &Arc<Region> {
        match self {
            Inserted::Added(region) | Inserted::Kept(region) | Inserted::Stale(region) => region,
        }
    }

    pub(crate) fn is_stale(&self) -> bool {
        matches!(self, Inserted::Stale(_))
    }
}

impl RegionIndex {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The region that holds `key`, whatever its state.
    pub(crate) fn at(&self, key: &[u8]) -> Option<&Arc<Region>> {
        let region = self.sorted.floor(key)?;
        region.ends_after(key).then_some(region)
    }

    /// The region whose keys end at or after `end` and begin before it; `None` is the end of all
    /// keys.
    pub(crate) fn before(&self, end: Option<&[u8]>) -> Option<&Arc<Region>> {
        let last = match end {
            None => self.sorted.last(),
            Some(end) => self.sorted.below(end),
        };
        last.filter(|region| region.contains_by_end(end))
    }

    /// The region of this id, whatever its state.
    pub(crate) fn by_id(&self, id: u64) -> Option<&Arc<Region>> {
        self.by_id.get(&id)
    }

    /// The region of this id and epoch, whatever its state.
    pub(crate) fn by_ver_id(&self, ver_id: RegionVerId) -> Option<&Arc<Region>> {
        self.by_id(ver_id.id).filter(|r| r.ver_id() == ver_id)
    }

    /// The regions that have keys in `range`, in order.
    pub(crate) fn overlapping<'a>(
        &'a self,
        range: &'a KeyRange,
    ) -> impl Iterator<Item = &'a Arc<Region>> {
        let first = self
            .sorted
            .floor(range.start())
            .filter(|region| region.start() < range.start() && region.ends_after(range.start()));
        first.into_iter().chain(
            self.from(range.start())
                .take_while(|region| range.end().is_none_or(|end| region.start() < end)),
        )
    }

    /// The regions that begin at or after `key`, in order.
    pub(crate) fn from<'a>(
        &'a self,
        key: &[u8],
    ) -> impl Iterator<Item = &'a Arc<Region>> + use<'a> {
        self.sorted.from(key)
    }

    /// Puts a region in, unless something newer is there.
    pub(crate) fn insert(&mut self, new: Arc<Region>, mode: InsertMode, now: Instant) -> Inserted {
        let counts = |old: &Region| {
            let doubted = old
                .invalid_for(now)
                .is_some_and(|age| age >= BELIEVE_PD_AFTER);
            let counts = !(mode.from_pd_leader && doubted);
            #[cfg(feature = "mutations")]
            let counts = counts && !crate::mutation::is(Mutation::BelieveOlderRegions);
            counts
        };
        let same_id = self.by_id.get(&new.id()).cloned();
        if let Some(old) = &same_id {
            if new.ver_id().is_behind(old.ver_id()) && counts(old) {
                return Inserted::Stale(new);
            }
            if old.ver_id() == new.ver_id() && !old.is_expired(now) && old.has_peers_of(&new) {
                old.renew_from(&new, now);
                return Inserted::Kept(old.clone());
            }
        }
        let mut replaced: SmallVec<[Arc<Region>; 4]> = SmallVec::new();
        replaced.extend(self.overlapping(new.range()).cloned());
        let is_newer = |old: &Arc<Region>| old.ver_id().ver > new.ver_id().ver && counts(old);
        if replaced.iter().any(is_newer) {
            return Inserted::Stale(new);
        }
        // An id that moved away from its old range has left it for good.
        if let Some(old) = &same_id {
            inherit(&new, old);
            if replaced.iter().all(|region| region.id() != new.id()) {
                replaced.push(old.clone());
            }
        }
        for old in &replaced {
            self.remove(old);
            if mode.invalidate_old {
                old.invalidate(InvalidReason::Other, now);
            }
        }
        self.by_id.insert(new.id(), new.clone());
        self.sorted.insert(new.clone());
        Inserted::Added(new)
    }

    /// Takes a region out, unless another object has taken its place meanwhile.
    pub(crate) fn remove(&mut self, region: &Arc<Region>) {
        let same = |there: &Arc<Region>| Arc::ptr_eq(there, region);
        if self.sorted.get(region.start()).is_some_and(same) {
            self.sorted.remove(region.start());
        }
        if self.by_id.get(&region.id()).is_some_and(same) {
            self.by_id.remove(&region.id());
        }
    }
}

/// What a region keeps across its versions.
fn inherit(new: &Region, old: &Region) {
    if old.invalid_reason() == Some(InvalidReason::NoLeader) {
        // PD may still name the peer that has stepped down: try the one after it.
        let next = (old.leader_place() + 1) % new.peers().len();
        new.leader.store(next as u32, Ordering::Release);
    }
    if let Some(buckets) = old.buckets() {
        new.update_buckets(buckets);
    }
}

/// For how long a newer region that turned out wrong still keeps PD's word out.
const BELIEVE_PD_AFTER: Duration = Duration::from_secs(2);
