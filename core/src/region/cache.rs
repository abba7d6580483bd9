//! The region cache: the index behind its one lock.
//!
//! A look-up takes the lock shared, clones one `Arc` and lets go; nothing that waits is done under it.
//! What is missing the cache says, as a value; loading it is the loader's affair, as is calling
//! [`RegionCache::collect`] from time to time. (client-go: `RegionCache`)

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tikv_proto::metapb;

use crate::key::{Key, KeyRange};
use crate::region::index::RegionIndex;
use crate::region::{
    BuildError, Flag, InsertMode, Inserted, InvalidReason, Region, RegionData, RegionVerId, Ttl,
};
use crate::store::{Liveness, StoreTable};
use crate::time::Instant;

/// All cached regions. (client-go: `RegionCache`)
#[derive(Debug)]
pub(crate) struct RegionCache {
    index: RwLock<RegionIndex>,
    ttl: Ttl,
}

/// What the cache knows of a key.
#[derive(Clone, Debug)]
pub(crate) enum Lookup {
    /// This region holds it.
    Hit(Arc<Region>),
    /// This region holds it and should be loaded again, by key, by whoever is told so: nobody
    /// else is. If that fails, [`Region::set_flag`] with `ReloadOnAccess` and use this one.
    Reload {
        /// What is cached.
        region: Arc<Region>,
        /// Whether the loaded region takes the place of this one for requests under way
        /// ([`InsertMode::invalidate_old`]).
        replace: bool,
    },
    /// It must be loaded.
    Miss(MissReason),
}

/// Why a region must be loaded. (client-go: `LoadRegionReason`)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MissReason {
    /// Nothing is cached.
    Missing,
    /// Nobody asked for it for a long time.
    Expired,
    /// Its term was not to be prolonged.
    Frozen,
    /// It turned out wrong.
    Invalid(InvalidReason),
}

/// Keys of one region.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// The region.
    pub(crate) region: Arc<Region>,
    /// Which of the keys.
    pub(crate) keys: Range<usize>,
}

/// Keys by region, as far as the regions are cached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grouped {
    /// In the order of the keys.
    pub(crate) groups: Vec<Group>,
    /// The first key whose region must be loaded; nothing from it on is grouped.
    pub(crate) missing: Option<usize>,
}

/// Ranges by region, as far as the regions are cached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cover {
    /// Cached, in order.
    pub(crate) regions: Vec<Arc<Region>>,
    /// To be loaded, in order.
    pub(crate) holes: Vec<KeyRange>,
}

/// What became of the regions in an epoch error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relocated {
    /// The regions that the server named and that are cached now.
    pub(crate) regions: Vec<Arc<Region>>,
}

impl RegionCache {
    /// An empty cache whose regions live for `ttl`.
    pub(crate) fn new(ttl: Ttl) -> Self {
        RegionCache {
            index: RwLock::default(),
            ttl,
        }
    }

    /// How long regions live.
    pub(crate) fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// How many regions are cached, usable or not.
    pub(crate) fn len(&self) -> usize {
        self.read().len()
    }

    /// The region of `key`. (client-go: `LocateKey`)
    pub(crate) fn lookup(&self, key: &[u8], now: Instant) -> Lookup {
        judge_found(self.read().at(key), now)
    }

    /// Whatever is cached of the region of `key`, usable or not.
    pub(crate) fn covering(&self, key: &[u8]) -> Option<Arc<Region>> {
        self.read().at(key).cloned()
    }

    /// The region in which a range that ends at `end` ends, `None` being the end of all keys.
    /// (client-go: `LocateEndKey`)
    pub(crate) fn lookup_end(&self, end: Option<&[u8]>, now: Instant) -> Lookup {
        judge_found(self.read().before(end), now)
    }

    /// The region of this id. (client-go: `LocateRegionByID`)
    pub(crate) fn lookup_id(&self, id: u64, now: Instant) -> Lookup {
        judge_found(self.read().by_id(id), now)
    }

    /// The region of `key` if it is usable as it is; nothing is owed to anybody.
    /// (client-go: `TryLocateKey`)
    pub(crate) fn peek(&self, key: &[u8], now: Instant) -> Option<Arc<Region>> {
        let region = self.read().at(key).cloned()?;
        is_usable(&region, now).then_some(region)
    }

    /// The region of this id and epoch, whatever its state.
    pub(crate) fn get(&self, ver_id: RegionVerId) -> Option<Arc<Region>> {
        self.read().by_ver_id(ver_id).cloned()
    }

    /// Makes a region of PD's word and puts it in.
    ///
    /// # Errors
    ///
    /// See [`Region::build`].
    pub(crate) fn load(
        &self,
        data: RegionData,
        stores: &StoreTable,
        mode: InsertMode,
        now: Instant,
    ) -> Result<Inserted, BuildError> {
        let region = Region::build(data, stores, self.ttl, now)?;
        Ok(self.insert(region, mode, now))
    }

    /// Puts a region in, unless something newer is there.
    pub(crate) fn insert(&self, region: Arc<Region>, mode: InsertMode, now: Instant) -> Inserted {
        self.write().insert(region, mode, now)
    }

    /// Puts many regions in. The lock is let go between them.
    pub(crate) fn insert_all(
        &self,
        regions: impl IntoIterator<Item = Arc<Region>>,
        mode: InsertMode,
        now: Instant,
    ) -> Vec<Inserted> {
        let insert = |region| self.insert(region, mode, now);
        regions.into_iter().map(insert).collect()
    }

    /// The region must not be used any more.
    pub(crate) fn invalidate(&self, ver_id: RegionVerId, reason: InvalidReason, now: Instant) {
        if let Some(region) = self.get(ver_id) {
            region.invalidate(reason, now);
        }
    }

    /// A server named what became of a region: its parts, or its next epoch. The leader that was
    /// known is kept where it is still a peer, else the store that answered is tried first.
    /// (client-go: `OnRegionEpochNotMatch`)
    pub(crate) fn on_epoch_not_match(
        &self,
        old: &Arc<Region>,
        current: Vec<RegionData>,
        answered_by: u64,
        stores: &StoreTable,
        now: Instant,
    ) -> Relocated {
        let same_epoch = |data: &RegionData| RegionVerId::of(&data.meta) == old.ver_id();
        if !current.iter().any(same_epoch) {
            old.invalidate(InvalidReason::EpochNotMatch, now);
        }
        let old_leader = old.peers()[old.leader_place()].peer;
        let buckets = old.buckets();
        let mode = InsertMode {
            invalidate_old: true,
            from_pd_leader: false,
        };
        let mut relocated = Relocated::default();
        for mut data in current {
            data.leader = guess_leader(&data.meta, &old_leader, answered_by);
            data.buckets = buckets.as_ref().map(|b| b.clamped(&data.range));
            // A region that can't be built is one that will be asked for again.
            if let Ok(inserted) = self.load(data, stores, mode, now) {
                relocated.regions.push(inserted.region().clone());
            }
        }
        relocated
    }

    /// Groups keys by region, run by run: with sorted keys each region comes once. Stops at the
    /// first key whose region must be loaded. (client-go: `GroupKeysByRegion`)
    pub(crate) fn group<K: AsRef<[u8]>>(&self, keys: &[K], now: Instant) -> Grouped {
        let mut grouped = Grouped::default();
        for (place, key) in keys.iter().enumerate() {
            let key = key.as_ref();
            if let Some(group) = grouped.groups.last_mut().filter(|g| g.region.contains(key)) {
                group.keys.end = place + 1;
                continue;
            }
            let Some(region) = self.peek(key, now) else {
                grouped.missing = Some(place);
                break;
            };
            let keys = place..place + 1;
            grouped.groups.push(Group { region, keys });
        }
        grouped
    }

    /// What is cached of sorted, disjoint ranges, and what is not.
    /// (client-go: `BatchLocateKeyRanges`, its first step)
    pub(crate) fn cover(&self, ranges: &[KeyRange], now: Instant) -> Cover {
        let mut cover = Cover::default();
        for range in ranges {
            self.cover_one(range, now, &mut cover);
        }
        cover
    }

    fn cover_one(&self, range: &KeyRange, now: Instant, cover: &mut Cover) {
        let covered = cover.regions.last().map(|last| last.range().clone());
        let mut rest = match covered.filter(|last| last.contains(range.start())) {
            Some(last) => match after(range, last.end()) {
                Some(rest) => rest,
                None => return,
            },
            None => range.clone(),
        };
        while !rest.is_empty() {
            let page = self.page(&rest);
            let is_last = page.len() < PAGE;
            let mut reached = None;
            for region in page {
                if region.start() > rest.start() {
                    let hole = KeyRange::new(rest.start().clone(), Some(region.start().clone()));
                    push_hole(&mut cover.holes, hole);
                }
                let part = region.range().intersect(&rest);
                match is_usable(&region, now) {
                    true => cover.regions.push(region.clone()),
                    false => push_hole(&mut cover.holes, part),
                }
                reached = Some(region.end().cloned());
                match after(&rest, region.end()) {
                    Some(remaining) => rest = remaining,
                    None => return,
                }
            }
            if is_last || reached.is_none() {
                push_hole(&mut cover.holes, rest);
                return;
            }
        }
    }

    /// The regions from a range's start on, a page of them. The lock is held for no longer.
    fn page(&self, range: &KeyRange) -> Vec<Arc<Region>> {
        let index = self.read();
        index.overlapping(range).take(PAGE).cloned().collect()
    }

    /// Looks at `limit` regions from `cursor` on, throws out those that nobody may use, and makes
    /// ready what should be loaded again; returns where to go on next time. Called every second
    /// with [`GC_REGIONS`]. (client-go: `gcRoundFunc`)
    pub(crate) fn collect(&self, cursor: &Key, limit: usize, now: Instant) -> Key {
        let scanned: Vec<Arc<Region>> = self.read().from(cursor).take(limit).cloned().collect();
        let mut dead = Vec::new();
        for region in &scanned {
            if region.is_expired(now) {
                dead.push(region);
            } else {
                age(region);
            }
        }
        if !dead.is_empty() {
            let mut index = self.write();
            for region in dead {
                index.remove(region);
            }
        }
        match scanned.last() {
            Some(last) if scanned.len() == limit => last.start().next(),
            _ => Key::EMPTY,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, RegionIndex> {
        // Nothing under the lock can panic half way through a change.
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, RegionIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads all it needs of the region before it counts a reference: counting first would make memory
/// deliver the region's lines one after the other.
fn judge_found(found: Option<&Arc<Region>>, now: Instant) -> Lookup {
    let Some(region) = found else {
        return Lookup::Miss(MissReason::Missing);
    };
    if !region.touch(now) {
        return Lookup::Miss(match region.invalid_reason() {
            Some(reason) => MissReason::Invalid(reason),
            None if region.has_flag(Flag::ExpireAfterTtl) => MissReason::Frozen,
            None => MissReason::Expired,
        });
    }
    match region.take_reload() {
        Some(replace) => Lookup::Reload {
            region: region.clone(),
            replace,
        },
        None => Lookup::Hit(region.clone()),
    }
}

fn is_usable(region: &Region, now: Instant) -> bool {
    !region.has_flag(Flag::DelayedReady) && region.is_valid(now)
}

/// Step by step a region that should be loaded again comes to be, so that a store's failure does
/// not make all its regions load at once.
fn age(region: &Region) {
    if region.has_flag(Flag::DelayedReady) || region.has_flag(Flag::ExpireAfterTtl) {
        return;
    }
    if region.has_flag(Flag::DelayedPending) {
        region.set_flag(Flag::DelayedReady);
        return;
    }
    let doubtful =
        |peer: &super::RegionPeer| peer.is_stale() || peer.store.liveness() != Liveness::Reachable;
    if region.peers().iter().any(doubtful) {
        region.set_flag(Flag::ExpireAfterTtl);
    }
}

/// What of a range comes at or after `key`, `None` being the end of all keys.
fn after(range: &KeyRange, key: Option<&Key>) -> Option<KeyRange> {
    let rest = KeyRange::new(
        key?.clone().max(range.start().clone()),
        range.end().cloned(),
    );
    (!rest.is_empty()).then_some(rest)
}

/// Neighbouring holes are one.
fn push_hole(holes: &mut Vec<KeyRange>, hole: KeyRange) {
    match holes.last_mut() {
        Some(last) if last.end() == Some(hole.start()) => {
            *last = KeyRange::new(last.start().clone(), hole.end().cloned());
        }
        _ => holes.push(hole),
    }
}

fn guess_leader(
    meta: &metapb::Region,
    old_leader: &metapb::Peer,
    answered_by: u64,
) -> Option<metapb::Peer> {
    let is_old =
        |peer: &&metapb::Peer| peer.id == old_leader.id && peer.store_id == old_leader.store_id;
    let same_store = |peer: &&metapb::Peer| peer.store_id == old_leader.store_id;
    let answered = |peer: &&metapb::Peer| peer.store_id == answered_by;
    let peers = &meta.peers;
    let found = peers
        .iter()
        .find(is_old)
        .or_else(|| peers.iter().find(same_store));
    found.or_else(|| peers.iter().find(answered)).copied()
}

/// How many regions [`RegionCache::collect`] looks at in a second.
pub(crate) const GC_REGIONS: usize = 50;
/// How many regions are fetched under one hold of the lock.
const PAGE: usize = 128;
