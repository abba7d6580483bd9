//! Regions: what is known of who serves which keys, and what a region's refusal means.
//!
//! [`RegionCache`] holds [`Region`]s and is asked for every request. It is a hint: the server's
//! check of the epoch is the truth. Nothing here asks PD (the loader does, and inserts), sends, or
//! waits; the time is passed in.
//!
//! | file | holds |
//! |---|---|
//! | `mod` | one region: what is fixed about it, and what changes under its readers |
//! | `build` | a region from what PD says |
//! | `buckets` | finer cuts inside a region |
//! | `tree` | the ordered index, made for few cache misses |
//! | `index` | which region replaces which |
//! | `cache` | the index behind its lock: look-ups, insertion, garbage collection |
//! | `ranges` | arithmetic of ranges for loading many regions |
//! | `verdict` | region and transport errors, and what to do about each |
//!
//! (client-go: `internal/locate`)

mod bench;
mod buckets;
mod build;
mod cache;
mod index;
mod ranges;
#[cfg(test)]
mod tests;
mod tree;
mod verdict;

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tikv_proto::metapb;

pub use bench::RegionTable;
pub(crate) use buckets::Buckets;
pub(crate) use build::{BuildError, RegionData};
pub(crate) use cache::{
    Cover, GC_REGIONS, Group, Grouped, Lookup, MissReason, RegionCache, Relocated,
};
pub(crate) use index::{InsertMode, Inserted};
pub(crate) use ranges::{covers, merge, remaining};
pub(crate) use verdict::{
    Effect, Hint, RegionError, ReplicaFlag, Route, Then, Verdict, judge, judge_probe,
    transport_verdict,
};

use crate::key::{Key, KeyRange};
use crate::store::Store;
use crate::time::Instant;

/// A region at one moment of its history: the same object in the cache only if all three match.
/// (client-go: `RegionVerID`)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RegionVerId {
    pub(crate) id: u64,
    pub(crate) conf_ver: u64,
    pub(crate) ver: u64,
}

impl RegionVerId {
    /// Whether either counter is behind the other's.
    pub(crate) fn is_behind(self, other: RegionVerId) -> bool {
        self.ver < other.ver || self.conf_ver < other.conf_ver
    }

    /// The id and epoch of a region on the wire.
    pub(crate) fn of(meta: &metapb::Region) -> Self {
        let epoch = meta.region_epoch.unwrap_or_default();
        RegionVerId {
            id: meta.id,
            conf_ver: epoch.conf_ver,
            ver: epoch.version,
        }
    }

    /// The epoch for a request's context.
    pub(crate) fn epoch(self) -> metapb::RegionEpoch {
        metapb::RegionEpoch {
            conf_ver: self.conf_ver,
            version: self.ver,
        }
    }
}

impl fmt::Display for RegionVerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "region {} (conf_ver {}, version {})",
            self.id, self.conf_ver, self.ver
        )
    }
}

/// A cached region. Id, range and peers never change; leader, age and flags do, under its
/// readers, so a request that holds one sees what others learn. (client-go: `Region`)
#[derive(Debug)]
#[repr(C)] // What every look-up touches stands together, beside the reference count.
pub(crate) struct Region {
    /// Nanoseconds on the driver's clock after which it must be loaded again; 0 once invalid.
    expires: AtomicU64,
    /// Place in `peers`.
    leader: AtomicU32,
    flags: AtomicU8,
    reason: AtomicU8,
    end: ShortKey,
    ttl: Ttl,
    ver_id: RegionVerId,
    range: KeyRange,
    peers: Box<[RegionPeer]>,
    other_peers: Box<[OtherPeer]>,
    pending: Box<[u64]>,
    /// Voters and learners of the region, usable or not.
    replica_number: u8,
    /// Nanoseconds on the driver's clock.
    invalidated_at: AtomicU64,
    buckets: Mutex<Option<Arc<Buckets>>>,
}

/// A peer that requests can go to.
#[derive(Debug)]
pub(crate) struct RegionPeer {
    pub(crate) peer: metapb::Peer,
    pub(crate) store: Arc<Store>,
    /// The store's fail epoch when this peer was last known to be good.
    epoch: AtomicU32,
}

impl RegionPeer {
    fn new(peer: metapb::Peer, store: Arc<Store>) -> Self {
        RegionPeer {
            peer,
            epoch: AtomicU32::new(store.fail_epoch()),
            store,
        }
    }

    /// The store's fail epoch when this peer was last known to be good.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether the store has failed since.
    pub(crate) fn is_stale(&self) -> bool {
        self.epoch() != self.store.fail_epoch()
    }

    fn trust(&self) {
        self.epoch.store(self.store.fail_epoch(), Ordering::Release);
    }
}

/// A peer on a store that is no TiKV store: never asked for keys, kept for whoever speaks to it.
#[derive(Debug)]
pub(crate) struct OtherPeer {
    pub(crate) peer: metapb::Peer,
    pub(crate) store: Arc<Store>,
}

/// How long a region stays cached without being used. (client-go: `RegionCacheTTL`)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ttl {
    /// Milliseconds that are certain.
    pub(crate) base_ms: u32,
    /// Up to so many more, so that regions loaded together are not all reloaded together.
    pub(crate) jitter_ms: u32,
    /// Seeds the jitter.
    pub(crate) seed: u32,
}

impl Ttl {
    /// 600 s and up to 60 s more.
    pub(crate) const fn new(seed: u32) -> Self {
        Ttl {
            base_ms: 600_000,
            jitter_ms: 60_000,
            seed,
        }
    }

    fn base_nanos(self) -> u64 {
        u64::from(self.base_ms) * 1_000_000
    }

    /// A function of region and time: readers share no generator, and so no lock.
    fn fresh(self, region: u64, now: Instant) -> Instant {
        let draw = mix(region ^ now.as_nanos() ^ (u64::from(self.seed) << 32));
        let jitter = (u64::from(self.jitter_ms) * (draw >> 32)) >> 32;
        now + Duration::from_nanos(self.base_nanos()) + Duration::from_millis(jitter)
    }
}

/// Why a cached region must not be used any more. (client-go: `InvalidReason`)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum InvalidReason {
    NoLeader = 1,
    EpochNotMatch = 2,
    StoreNotFound = 3,
    Other = 4,
}

impl Region {
    pub(crate) fn ver_id(&self) -> RegionVerId {
        self.ver_id
    }

    pub(crate) fn id(&self) -> u64 {
        self.ver_id.id
    }

    /// Its keys, as the caller names keys.
    pub(crate) fn range(&self) -> &KeyRange {
        &self.range
    }

    pub(crate) fn start(&self) -> &Key {
        self.range.start()
    }

    /// `None` for the last region.
    pub(crate) fn end(&self) -> Option<&Key> {
        self.range.end()
    }

    /// Whether `key` is one of its keys.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        key >= &**self.start() && self.ends_after(key)
    }

    /// Whether `end` can be the end of a range in this region, `None` being the end of all keys.
    pub(crate) fn contains_by_end(&self, end: Option<&[u8]>) -> bool {
        match end {
            None => self.end().is_none(),
            Some(end) => end > &**self.start() && self.end().is_none_or(|own| end <= &**own),
        }
    }

    /// For a key known to be at or after the start.
    fn ends_after(&self, key: &[u8]) -> bool {
        match self.end.is_after(key) {
            Some(after) => after,
            None => self.end().is_none_or(|end| key < &**end),
        }
    }

    /// The TiKV peers that requests can go to; at least one.
    pub(crate) fn peers(&self) -> &[RegionPeer] {
        &self.peers
    }

    /// Peers on stores of another kind.
    pub(crate) fn other_peers(&self) -> &[OtherPeer] {
        &self.other_peers
    }

    /// Whether PD reported this peer as behind.
    pub(crate) fn is_pending(&self, peer_id: u64) -> bool {
        self.pending.contains(&peer_id)
    }

    /// How many voters and learners the region has, usable or not.
    pub(crate) fn replica_number(&self) -> u8 {
        self.replica_number
    }

    /// Where in [`peers`](Region::peers) the leader stands, as far as is known.
    pub(crate) fn leader_place(&self) -> usize {
        self.leader.load(Ordering::Acquire) as usize
    }

    /// Whether PD named a leader. Without one the first peer is tried as such.
    pub(crate) fn has_leader(&self) -> bool {
        !self.has_flag(Flag::Leaderless)
    }

    /// Where a peer stands, if requests can go to it. It is the same only on the same store.
    pub(crate) fn place_of(&self, peer: &metapb::Peer) -> Option<usize> {
        self.peers
            .iter()
            .position(|own| own.peer.id == peer.id && own.peer.store_id == peer.store_id)
    }

    /// Someone learned that the peer at `place` leads; it is trusted from now on.
    /// (client-go: `switchWorkLeaderToPeer`)
    pub(crate) fn switch_leader(&self, place: usize) {
        let Some(peer) = self.peers.get(place) else {
            return;
        };
        if self.leader_place() != place {
            peer.trust();
            self.leader.store(place as u32, Ordering::Release);
        }
        self.clear_flag(Flag::Leaderless);
    }

    /// Whether it may be used; asking keeps it in the cache.
    pub(crate) fn is_valid(&self, now: Instant) -> bool {
        !self.has_flag(Flag::ReloadOnAccess) && self.touch(now)
    }

    /// Whether its time is over; asking changes nothing.
    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        let expires = self.expires.load(Ordering::Acquire);
        expires == INVALID || now.as_nanos() > expires
    }

    /// Whether its time is not over; asking gives it a new term.
    pub(crate) fn touch(&self, now: Instant) -> bool {
        let expires = self.expires.load(Ordering::Acquire);
        if expires == INVALID || now.as_nanos() > expires {
            return false;
        }
        // Inside the jitter the term is left alone, so readers seldom write.
        let inside_jitter = expires - now.as_nanos() > self.ttl.base_nanos();
        if !inside_jitter && !self.has_flag(Flag::ExpireAfterTtl) {
            let fresh = self.ttl.fresh(self.id(), now).as_nanos();
            // Lost to an invalidation or to a reader that did the same.
            let _ =
                self.expires
                    .compare_exchange(expires, fresh, Ordering::AcqRel, Ordering::Relaxed);
        }
        true
    }

    /// Must not be used any more. The first reason stays. (client-go: `Region.invalidate`)
    pub(crate) fn invalidate(&self, reason: InvalidReason, now: Instant) {
        let first = self
            .reason
            .compare_exchange(
                REASON_NONE,
                reason as u8,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok();
        if first {
            self.invalidated_at.store(now.as_nanos(), Ordering::Release);
        }
        self.expires.store(INVALID, Ordering::Release);
    }

    /// Why it must not be used, `None` if nothing is known against it.
    pub(crate) fn invalid_reason(&self) -> Option<InvalidReason> {
        [
            InvalidReason::NoLeader,
            InvalidReason::EpochNotMatch,
            InvalidReason::StoreNotFound,
            InvalidReason::Other,
        ]
        .into_iter()
        .find(|reason| *reason as u8 == self.reason.load(Ordering::Acquire))
    }

    /// How long it has been invalid.
    fn invalid_for(&self, now: Instant) -> Option<Duration> {
        self.invalid_reason()?;
        let since = Instant::from_nanos(self.invalidated_at.load(Ordering::Acquire));
        Some(now.since(since))
    }

    pub(crate) fn has_flag(&self, flag: Flag) -> bool {
        self.flags.load(Ordering::Acquire) & flag as u8 != 0
    }

    pub(crate) fn set_flag(&self, flag: Flag) {
        self.flags.fetch_or(flag as u8, Ordering::AcqRel);
    }

    fn clear_flag(&self, flag: Flag) {
        if self.has_flag(flag) {
            self.flags.fetch_and(!(flag as u8), Ordering::AcqRel);
        }
    }

    /// Takes the wish for a reload; of many callers one gets it. `Some(true)` if the region must
    /// not be used before.
    fn take_reload(&self) -> Option<bool> {
        const WISHES: u8 = Flag::ReloadOnAccess as u8 | Flag::DelayedReady as u8;
        if self.flags.load(Ordering::Acquire) & WISHES == 0 {
            return None;
        }
        let before = self.flags.fetch_and(!WISHES, Ordering::AcqRel);
        (before & WISHES != 0).then_some(before & Flag::ReloadOnAccess as u8 != 0)
    }

    /// The finer cuts, if any are known.
    pub(crate) fn buckets(&self) -> Option<Arc<Buckets>> {
        self.lock_buckets().clone()
    }

    /// Takes over newer cuts; older ones are ignored.
    pub(crate) fn update_buckets(&self, newer: Arc<Buckets>) {
        let mut own = self.lock_buckets();
        if own
            .as_ref()
            .is_none_or(|own| own.version() < newer.version())
        {
            *own = Some(newer);
        }
    }

    /// The range of the bucket that holds `key`: the whole region where nothing finer is known,
    /// `None` for a key of another region.
    pub(crate) fn bucket_of(&self, key: &[u8]) -> Option<KeyRange> {
        let inside = self.contains(key);
        inside.then(|| match self.buckets() {
            Some(buckets) => buckets.around(key, &self.range),
            None => self.range.clone(),
        })
    }

    fn lock_buckets(&self) -> MutexGuard<'_, Option<Arc<Buckets>>> {
        // Nothing under the lock can panic half way through a change.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same peers on the same stores, in whatever order.
    fn has_peers_of(&self, other: &Region) -> bool {
        self.peers.len() == other.peers.len()
            && self.other_peers.len() == other.other_peers.len()
            && self
                .peers
                .iter()
                .all(|own| other.peers.iter().any(|peer| own.peer == peer.peer))
    }

    /// PD said the same again, with perhaps another leader and other cuts. Requests under way
    /// keep their object.
    fn renew_from(&self, newer: &Region, now: Instant) {
        if newer.has_leader() {
            let leader = &newer.peers[newer.leader_place()].peer;
            if let Some(place) = self.place_of(leader) {
                self.switch_leader(place);
            }
        }
        for peer in &self.peers {
            peer.trust();
        }
        if let Some(buckets) = newer.buckets() {
            self.update_buckets(buckets);
        }
        let leaderless = self.flags.load(Ordering::Acquire) & Flag::Leaderless as u8;
        let newer_flags = newer.flags.load(Ordering::Acquire) & !(Flag::Leaderless as u8);
        self.flags
            .store(newer_flags | leaderless, Ordering::Release);
        let expires = self.expires.load(Ordering::Acquire);
        if expires != INVALID {
            let fresh = self.ttl.fresh(self.id(), now).as_nanos();
            let _ =
                self.expires
                    .compare_exchange(expires, fresh, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// What is to happen with a region that is still valid. (client-go: `syncFlags`)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flag {
    /// The next look-up loads it again, and must.
    ReloadOnAccess = 1,
    /// Use does not prolong its term.
    ExpireAfterTtl = 2,
    /// It should be loaded again, without hurry: garbage collection will pass by.
    DelayedPending = 4,
    /// The next look-up loads it again; until then it serves.
    DelayedReady = 8,
    /// PD knew no leader.
    Leaderless = 16,
}

/// The first bytes of a region's end: enough for most keys to be told inside without another
/// trip to memory.
#[derive(Debug)]
struct ShortKey {
    len: u8,
    bytes: [u8; SHORT_LEN],
}

impl ShortKey {
    fn new(key: Option<&Key>) -> Self {
        let mut bytes = [0; SHORT_LEN];
        let len = match key {
            None => UNBOUNDED,
            Some(key) => {
                let kept = key.len().min(SHORT_LEN);
                bytes[..kept].copy_from_slice(&key[..kept]);
                u8::try_from(key.len()).map_or(LONG, |len| len.min(LONG))
            }
        };
        ShortKey { len, bytes }
    }

    /// Whether the whole key comes after `key`; `None` if these bytes do not tell.
    fn is_after(&self, key: &[u8]) -> Option<bool> {
        let kept = usize::from(self.len);
        if kept <= SHORT_LEN {
            return Some(key < &self.bytes[..kept]);
        }
        if self.len == UNBOUNDED {
            return Some(true);
        }
        match key[..key.len().min(SHORT_LEN)].cmp(&self.bytes[..]) {
            std::cmp::Ordering::Less => Some(true),
            std::cmp::Ordering::Greater => Some(false),
            std::cmp::Ordering::Equal => None,
        }
    }
}

/// Spreads a number over all bits.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Before every time, so an invalid region is an expired one.
const INVALID: u64 = 0;
const REASON_NONE: u8 = 0;
const SHORT_LEN: usize = 23;
const LONG: u8 = 254;
const UNBOUNDED: u8 = 255;
