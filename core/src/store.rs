//! What is known of the stores: where each listens, whether it answers, how busy it is.
//!
//! One [`Store`] per id for the life of the client, shared by every region that has a peer there;
//! an address or label that changes is seen at once by requests under way. Nothing here asks PD
//! or probes a store: the loader and the upkeep tasks do, and tell the outcome.
//! (client-go: `Store`, `storeCache`)

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tikv_proto::metapb;

use crate::time::Instant;

/// One store. (client-go: `Store`)
#[derive(Debug)]
pub(crate) struct Store {
    id: u64,
    fail_epoch: AtomicU32,
    liveness: AtomicU8,
    /// Nanoseconds on the driver's clock until which the store counts as slow.
    slow_until: AtomicU64,
    /// Nanoseconds on the driver's clock at which the store said its queue would be empty.
    busy_until: AtomicU64,
    record: RwLock<Record>,
}

#[derive(Debug)]
struct Record {
    state: ResolveState,
    meta: Arc<StoreMeta>,
}

/// What PD says of a store.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct StoreMeta {
    /// Where it serves requests.
    pub(crate) address: Arc<str>,
    /// Where its status server listens.
    pub(crate) status_address: Arc<str>,
    /// Labels, as PD orders them.
    pub(crate) labels: Vec<Label>,
    /// What sort of store it is.
    pub(crate) kind: StoreKind,
}

/// A label of a store, or one that is wanted of a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Label {
    pub(crate) key: Arc<str>,
    pub(crate) value: Arc<str>,
}

/// What sort of store it is, which its labels tell. (client-go: `tikvrpc.EndpointType`)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum StoreKind {
    #[default]
    Tikv,
    Tiflash,
    TiflashCompute,
}

/// How far PD's word on a store can be relied on. (client-go: `resolveState`)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ResolveState {
    /// PD has not been asked yet.
    Unresolved,
    /// PD's word holds.
    Resolved,
    /// A request failed there: use the old address, but ask PD again.
    NeedCheck,
    /// Removed from the cluster.
    Tombstone,
}

/// Whether a store answers. (client-go: `livenessState`)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Liveness {
    Reachable,
    Unreachable,
    Unknown,
}

impl Store {
    fn new(id: u64) -> Self {
        Store {
            id,
            fail_epoch: AtomicU32::new(0),
            liveness: AtomicU8::new(Liveness::Reachable as u8),
            slow_until: AtomicU64::new(0),
            busy_until: AtomicU64::new(0),
            record: RwLock::new(Record {
                state: ResolveState::Unresolved,
                meta: Arc::default(),
            }),
        }
    }

    /// Its id.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Where to send requests, `None` if the store is not resolved, removed, or without an
    /// address.
    pub(crate) fn address(&self) -> Option<Arc<str>> {
        let record = self.read();
        match record.state {
            ResolveState::Unresolved | ResolveState::Tombstone => None,
            ResolveState::Resolved | ResolveState::NeedCheck => {
                Some(record.meta.address.clone()).filter(|address| !address.is_empty())
            }
        }
    }

    /// What PD says of it.
    pub(crate) fn meta(&self) -> Arc<StoreMeta> {
        self.read().meta.clone()
    }

    /// What sort of store it is.
    pub(crate) fn kind(&self) -> StoreKind {
        self.read().meta.kind
    }

    /// How far PD's word can be relied on.
    pub(crate) fn resolve_state(&self) -> ResolveState {
        self.read().state
    }

    /// Whether the store has every one of these labels.
    pub(crate) fn has_labels(&self, wanted: &[Label]) -> bool {
        wanted.is_empty() || self.read().meta.has_labels(wanted)
    }

    /// How often the store has failed. A region that was built at another count does not trust
    /// its peer there any more.
    pub(crate) fn fail_epoch(&self) -> u32 {
        self.fail_epoch.load(Ordering::Acquire)
    }

    /// A request failed that was sent at `seen`. Of several at one time only the first counts,
    /// and is told so by `true`. (client-go: `invalidateReplicaStore`)
    pub(crate) fn fail(&self, seen: u32, now: Instant) -> bool {
        let first = self
            .fail_epoch
            .compare_exchange(
                seen,
                seen.wrapping_add(1),
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok();
        if first {
            self.mark_slow(now);
            self.mark_need_check();
        }
        first
    }

    /// Whether it answers, as far as is known.
    pub(crate) fn liveness(&self) -> Liveness {
        match self.liveness.load(Ordering::Acquire) {
            REACHABLE => Liveness::Reachable,
            UNREACHABLE => Liveness::Unreachable,
            _ => Liveness::Unknown,
        }
    }

    /// A request's probe found the store so. `true` for the one caller that found it lost first
    /// and therefore has to watch for its return; a `Reachable` changes nothing.
    pub(crate) fn lose(&self, found: Liveness) -> bool {
        found != Liveness::Reachable
            && self
                .liveness
                .compare_exchange(REACHABLE, found as u8, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }

    /// Whoever watches for the store's return found it so.
    pub(crate) fn set_liveness(&self, found: Liveness) {
        self.liveness.store(found as u8, Ordering::Release);
    }

    /// Asks for PD to be asked again; `false` if that is no use or has been asked for already.
    pub(crate) fn mark_need_check(&self) -> bool {
        let mut record = self.write();
        let resolved = record.state == ResolveState::Resolved;
        if resolved {
            record.state = ResolveState::NeedCheck;
        }
        resolved
    }

    /// Whether other stores should be preferred.
    pub(crate) fn is_slow(&self, now: Instant) -> bool {
        now.as_nanos() < self.slow_until.load(Ordering::Relaxed)
    }

    /// The store was too busy, or failed: it counts as slow for a while.
    pub(crate) fn mark_slow(&self, now: Instant) {
        let until = (now + SLOW_MARK).as_nanos();
        self.slow_until.fetch_max(until, Ordering::Relaxed);
    }

    /// The store said how long a request would have waited there.
    pub(crate) fn set_estimated_wait(&self, wait: Duration, now: Instant) {
        let until = (now + wait).as_nanos();
        self.busy_until.store(until, Ordering::Relaxed);
    }

    /// How long a request would have to wait there.
    pub(crate) fn estimated_wait(&self, now: Instant) -> Duration {
        Instant::from_nanos(self.busy_until.load(Ordering::Relaxed)).since(now)
    }

    /// What PD answered about the store; `None` if PD does not know it.
    fn resolve(&self, found: Option<&metapb::Store>) -> Resolution {
        let mut record = self.write();
        let alive = found.filter(|store| store.state() != metapb::StoreState::Tombstone);
        let Some(store) = alive else {
            return self.bury(&mut record);
        };
        if store.address.is_empty() {
            return Resolution::NoAddress;
        }
        let meta = StoreMeta::from_pd(store);
        let before = record.state;
        record.state = ResolveState::Resolved;
        if *record.meta == meta && before != ResolveState::Tombstone {
            return Resolution::Confirmed;
        }
        record.meta = Arc::new(meta);
        Resolution::Changed
    }

    fn bury(&self, record: &mut Record) -> Resolution {
        if record.state == ResolveState::Tombstone {
            return Resolution::Confirmed;
        }
        if record.state != ResolveState::Unresolved {
            // Regions that count on the store must stop doing so.
            self.fail_epoch.fetch_add(1, Ordering::AcqRel);
        }
        record.state = ResolveState::Tombstone;
        Resolution::Removed
    }

    fn read(&self) -> RwLockReadGuard<'_, Record> {
        // Nothing under the lock can panic half way through a change.
        self.record.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Record> {
        self.record.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreMeta {
    fn from_pd(store: &metapb::Store) -> Self {
        let labels: Vec<Label> = store
            .labels
            .iter()
            .map(|label| Label {
                key: label.key.as_str().into(),
                value: label.value.as_str().into(),
            })
            .collect();
        StoreMeta {
            address: store.address.as_str().into(),
            status_address: store.status_address.as_str().into(),
            kind: StoreKind::of(&labels),
            labels,
        }
    }

    fn has_labels(&self, wanted: &[Label]) -> bool {
        wanted.iter().all(|label| self.labels.contains(label))
    }
}

impl StoreKind {
    /// client-go: `getStoreTypeByMeta`.
    fn of(labels: &[Label]) -> Self {
        let engine = labels
            .iter()
            .find(|label| &*label.key == "engine")
            .map(|label| &*label.value);
        match engine {
            Some("tiflash") => StoreKind::Tiflash,
            Some("tiflash_compute") => StoreKind::TiflashCompute,
            _ => StoreKind::Tikv,
        }
    }
}

/// What came of asking PD about a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// Address and labels are as they were.
    Confirmed,
    /// The store is new, has come back, or its address or labels changed.
    Changed,
    /// The store has left the cluster.
    Removed,
    /// PD knows the store but no address of it. Nothing was changed.
    NoAddress,
}

/// All stores. (client-go: `storeCache`)
#[derive(Debug, Default)]
pub(crate) struct StoreTable {
    stores: RwLock<BTreeMap<u64, Arc<Store>>>,
}

/// What a list of all stores told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// Stores that are new, have come back, or changed address or labels.
    pub(crate) changed: Vec<u64>,
    /// Stores that were known and are not listed. PD's leader should be asked before that is
    /// believed.
    pub(crate) missing: Vec<u64>,
}

impl StoreTable {
    /// A table that knows no store.
    pub(crate) fn new() -> Self {
        StoreTable::default()
    }

    /// The store, if it is known.
    pub(crate) fn get(&self, id: u64) -> Option<Arc<Store>> {
        self.read().get(&id).cloned()
    }

    /// The store, unresolved if it was not known.
    pub(crate) fn get_or_add(&self, id: u64) -> Arc<Store> {
        if let Some(store) = self.get(id) {
            return store;
        }
        self.write()
            .entry(id)
            .or_insert_with(|| Arc::new(Store::new(id)))
            .clone()
    }

    /// PD's answer about one store; `None` if PD does not know it. Only PD's leader may be
    /// believed when it denies a store.
    pub(crate) fn resolve(&self, id: u64, found: Option<&metapb::Store>) -> Resolution {
        self.get_or_add(id).resolve(found)
    }

    /// PD's list of all stores, with or without tombstones.
    pub(crate) fn update(&self, listed: &[metapb::Store]) -> Listing {
        let mut listing = Listing::default();
        for store in listed {
            let known = self.get(store.id);
            if known.is_none() && store.state() == metapb::StoreState::Tombstone {
                continue;
            }
            if self.resolve(store.id, Some(store)) == Resolution::Changed {
                listing.changed.push(store.id);
            }
        }
        listing.missing = self
            .read()
            .values()
            .filter(|store| store.resolve_state() != ResolveState::Tombstone)
            .map(|store| store.id)
            .filter(|id| listed.iter().all(|store| store.id != *id))
            .collect();
        listing
    }

    /// Every store that PD's word holds for, by id; tombstones and stores under check are left
    /// out.
    pub(crate) fn resolved(&self) -> Vec<Arc<Store>> {
        self.in_state(ResolveState::Resolved)
    }

    /// The TiKV stores among [`resolved`](StoreTable::resolved).
    pub(crate) fn tikv_stores(&self) -> Vec<Arc<Store>> {
        let mut stores = self.resolved();
        stores.retain(|store| store.kind() == StoreKind::Tikv);
        stores
    }

    /// The stores about which PD should be asked again.
    pub(crate) fn need_check(&self) -> Vec<Arc<Store>> {
        self.in_state(ResolveState::NeedCheck)
    }

    fn in_state(&self, state: ResolveState) -> Vec<Arc<Store>> {
        self.read()
            .values()
            .filter(|store| store.resolve_state() == state)
            .cloned()
            .collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Arc<Store>>> {
        self.stores.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Arc<Store>>> {
        self.stores.write().unwrap_or_else(PoisonError::into_inner)
    }
}

const REACHABLE: u8 = Liveness::Reachable as u8;
const UNREACHABLE: u8 = Liveness::Unreachable as u8;
/// A mark lives for one period of client-go's health tick, whatever the traffic.
const SLOW_MARK: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests;
