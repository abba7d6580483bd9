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
mod tests {
    use super::*;

    fn pd_store(id: u64, address: &str, labels: &[(&str, &str)]) -> metapb::Store {
        metapb::Store {
            id,
            address: address.into(),
            labels: labels
                .iter()
                .map(|(key, value)| metapb::StoreLabel {
                    key: (*key).into(),
                    value: (*value).into(),
                })
                .collect(),
            ..Default::default()
        }
    }

    fn tombstone(id: u64) -> metapb::Store {
        metapb::Store {
            state: metapb::StoreState::Tombstone.into(),
            ..pd_store(id, "a", &[])
        }
    }

    fn label(key: &str, value: &str) -> Label {
        Label {
            key: key.into(),
            value: value.into(),
        }
    }

    const NOW: Instant = Instant::from_millis(1_000);

    #[test]
    fn resolve_state_transition() {
        use Resolution::{Changed, Confirmed, NoAddress, Removed};
        use ResolveState::{NeedCheck, Resolved, Tombstone, Unresolved};

        let up = pd_store(1, "a", &[]);
        let moved = pd_store(1, "b", &[("zone", "z1")]);
        let nowhere = pd_store(1, "", &[]);
        let dead = tombstone(1);
        let table: [(&[Option<&metapb::Store>], Resolution, ResolveState, u32); 10] = [
            (&[Some(&up)], Changed, Resolved, 0),
            (&[Some(&nowhere)], NoAddress, Unresolved, 0),
            (&[None], Removed, Tombstone, 0),
            (&[Some(&dead)], Removed, Tombstone, 0),
            (&[Some(&dead), Some(&dead)], Confirmed, Tombstone, 0),
            (&[Some(&up), Some(&up)], Confirmed, Resolved, 0),
            (&[Some(&up), Some(&moved)], Changed, Resolved, 0),
            (&[Some(&up), Some(&nowhere)], NoAddress, Resolved, 0),
            (&[Some(&up), Some(&dead)], Removed, Tombstone, 1),
            // PD's leader reports it Up again.
            (&[Some(&up), None, Some(&up)], Changed, Resolved, 1),
        ];
        for (answers, last, state, fail_epoch) in table {
            let stores = StoreTable::new();
            let store = stores.get_or_add(1);
            assert_eq!((store.resolve_state(), store.address()), (Unresolved, None));
            let resolution = answers
                .iter()
                .map(|answer| stores.resolve(1, *answer))
                .last();
            assert_eq!(resolution, Some(last), "{answers:?}");
            assert_eq!(store.resolve_state(), state, "{answers:?}");
            assert_eq!(store.fail_epoch(), fail_epoch, "{answers:?}");
            assert_eq!(store.address().is_some(), state == Resolved, "{answers:?}");
        }

        let stores = StoreTable::new();
        assert!(!stores.get_or_add(1).mark_need_check());
        stores.resolve(1, Some(&up));
        let store = stores.get(1).unwrap();
        assert!(store.mark_need_check());
        assert!(!store.mark_need_check());
        assert_eq!(
            (store.resolve_state(), store.address()),
            (NeedCheck, Some("a".into()))
        );
        assert_eq!(stores.need_check().len(), 1);
        assert!(stores.resolved().is_empty());
        assert_eq!(stores.resolve(1, Some(&up)), Confirmed);
        assert_eq!(store.resolve_state(), Resolved);
    }

    #[test]
    fn a_new_address_is_seen_by_whoever_holds_the_store() {
        let stores = StoreTable::new();
        stores.resolve(1, Some(&pd_store(1, "a", &[("zone", "z1")])));
        let held = stores.get(1).unwrap();
        stores.resolve(1, Some(&pd_store(1, "b", &[("zone", "z2")])));
        assert_eq!(held.address(), Some("b".into()));
        assert!(held.has_labels(&[label("zone", "z2")]));
        assert!(Arc::ptr_eq(&held, &stores.get(1).unwrap()));
    }

    #[test]
    fn store_labels() {
        let stores = StoreTable::new();
        let labels = [("zone", "z1"), ("disk", "ssd")];
        stores.resolve(1, Some(&pd_store(1, "a", &labels)));
        let store = stores.get(1).unwrap();
        for (wanted, matches) in [
            (vec![], true),
            (vec![label("zone", "z1")], true),
            (vec![label("disk", "ssd"), label("zone", "z1")], true),
            (vec![label("zone", "z2")], false),
            (vec![label("zone", "z1"), label("rack", "1")], false),
        ] {
            assert_eq!(store.has_labels(&wanted), matches, "{wanted:?}");
        }
    }

    #[test]
    fn labels_tell_the_kind_of_a_store() {
        for (labels, kind) in [
            (vec![], StoreKind::Tikv),
            (vec![("zone", "tiflash")], StoreKind::Tikv),
            (vec![("engine", "tiflash")], StoreKind::Tiflash),
            (
                vec![("zone", "z"), ("engine", "tiflash_compute")],
                StoreKind::TiflashCompute,
            ),
            (vec![("engine", "tikv")], StoreKind::Tikv),
        ] {
            let stores = StoreTable::new();
            stores.resolve(1, Some(&pd_store(1, "a", &labels)));
            assert_eq!(stores.get(1).unwrap().kind(), kind, "{labels:?}");
            assert_eq!(
                stores.tikv_stores().len(),
                usize::from(kind == StoreKind::Tikv)
            );
        }
    }

    #[test]
    fn a_listing_adds_updates_revives_and_notes_who_is_missing() {
        let stores = StoreTable::new();
        stores.update(&[pd_store(1, "a", &[]), pd_store(2, "b", &[]), tombstone(9)]);
        assert!(stores.get(9).is_none());
        stores.resolve(2, None);
        stores.get(1).unwrap().mark_need_check();
        let listing = stores.update(&[pd_store(2, "b", &[]), pd_store(3, "c", &[])]);
        assert_eq!((listing.changed, listing.missing), (vec![2, 3], vec![1]));
        assert_eq!(
            stores.get(2).unwrap().resolve_state(),
            ResolveState::Resolved
        );
        assert_eq!(
            stores.get(1).unwrap().resolve_state(),
            ResolveState::NeedCheck
        );
        let ids: Vec<u64> = stores.resolved().iter().map(|store| store.id()).collect();
        assert_eq!(ids, [2, 3]);
    }

    #[test]
    fn failures_at_one_time_count_once() {
        let stores = StoreTable::new();
        stores.resolve(1, Some(&pd_store(1, "a", &[])));
        let store = stores.get(1).unwrap();
        assert!(store.fail(0, NOW));
        assert!(!store.fail(0, NOW));
        assert_eq!(store.fail_epoch(), 1);
        assert_eq!(store.resolve_state(), ResolveState::NeedCheck);
        assert!(store.is_slow(NOW));
        assert!(!store.is_slow(NOW + SLOW_MARK));
    }

    #[test]
    fn one_caller_watches_for_the_return_of_a_lost_store() {
        let store = Store::new(1);
        assert!(!store.lose(Liveness::Reachable));
        assert!(store.lose(Liveness::Unknown));
        assert!(!store.lose(Liveness::Unreachable));
        assert_eq!(store.liveness(), Liveness::Unknown);
        // A request's own probe does not bring it back, the watcher does.
        assert!(!store.lose(Liveness::Reachable));
        assert_eq!(store.liveness(), Liveness::Unknown);
        store.set_liveness(Liveness::Reachable);
        assert_eq!(store.liveness(), Liveness::Reachable);
    }

    #[test]
    fn an_estimated_wait_runs_off() {
        let store = Store::new(1);
        assert_eq!(store.estimated_wait(NOW), Duration::ZERO);
        store.set_estimated_wait(Duration::from_millis(30), NOW);
        let later = NOW + Duration::from_millis(20);
        assert_eq!(store.estimated_wait(later), Duration::from_millis(10));
        assert_eq!(
            store.estimated_wait(later + Duration::from_secs(1)),
            Duration::ZERO
        );
    }
}
