//! What a client knows of its cluster, and how it finds out more: regions, stores, PD, time.
//!
//! Look-ups answer from the cache and go to PD when they must, once for all who miss the same at
//! the same time. Sending stands in `send`. (client-go: `RegionCache`, `KVStore`)

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::background::Background;
use crate::backoff::{Backoffer, budget};
use crate::config::Config;
use crate::error::{Error, Result, TransportError};
use crate::flight::{Flights, until};
use crate::key::{Key, KeyRange};
use crate::keyspace::KeyMode;
use crate::operation::{Io, Operation};
use crate::pd::{Pd, PdRegion};
use crate::region::{
    BuildError, Flag, GC_REGIONS, InsertMode, Lookup, Region, RegionCache, RegionData, RegionVerId,
    Ttl,
};
use crate::store::{Liveness, ResolveState, StoreTable};
use crate::time::{Instant, Timestamp};
use crate::why::{BackoffKind, Why};

/// What one client knows of its cluster.
pub(crate) struct Cluster {
    pd: Arc<Pd>,
    regions: RegionCache,
    stores: StoreTable,
    config: Arc<Config>,
    mode: KeyMode,
    region_loads: Arc<Flights<LoadOf, Arc<Region>>>,
    store_loads: Arc<Flights<u64, ()>>,
    probes: Arc<Flights<u64, Liveness>>,
    /// The newest timestamp that was heard of, and when.
    heard: Mutex<(Timestamp, Instant)>,
    /// Seeds the random choices of each operation in turn.
    next_seed: AtomicU64,
    background: Arc<Background>,
    /// Up to where the cache has been swept.
    swept: Mutex<Key>,
}

/// What a region is loaded for; equal ones are loaded once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LoadOf {
    /// A part of the keys about which nothing usable is known.
    Part(Wanted),
    /// Whatever became of a region that must not be used any more.
    Successor(RegionVerId),
}

/// Which region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    /// The one that holds a key.
    Holding(Key),
    /// The one in which a range ends, `None` being the end of all keys.
    Ending(Option<Key>),
}

impl Cluster {
    pub(crate) fn new(
        endpoints: impl IntoIterator<Item = String>,
        tls: bool,
        mode: KeyMode,
        config: Config,
        seed: u64,
    ) -> Result<Self> {
        config.validate()?;
        let config = Arc::new(config);
        let ttl = Ttl {
            base_ms: to_ms(config.region_cache_ttl),
            jitter_ms: to_ms(config.region_cache_jitter),
            seed: seed as u32,
        };
        Ok(Cluster {
            pd: Arc::new(Pd::new(endpoints, tls, mode, config.clone())?),
            regions: RegionCache::new(ttl),
            stores: StoreTable::new(),
            config,
            mode,
            region_loads: Arc::default(),
            store_loads: Arc::default(),
            probes: Arc::default(),
            heard: Mutex::new((Timestamp::ZERO, Instant::ZERO)),
            next_seed: AtomicU64::new(seed),
            background: Arc::default(),
            swept: Mutex::new(Key::EMPTY),
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }

    pub(crate) fn regions(&self) -> &RegionCache {
        &self.regions
    }

    pub(crate) fn stores(&self) -> &StoreTable {
        &self.stores
    }

    /// The work that goes on behind callers' backs.
    pub(crate) fn background(&self) -> &Arc<Background> {
        &self.background
    }

    /// A seed that no other operation of this client gets.
    pub(crate) fn seed(&self) -> u64 {
        // Weyl's sequence and a mix (SplitMix64): neighbours have nothing in common.
        let mut z = self
            .next_seed
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The budget of one operation.
    pub(crate) fn backoff(&self, budget_ms: u32, deadline: Option<Instant>) -> Backoffer {
        Backoffer::new(budget_ms, self.config.backoff_weight, self.seed()).with_deadline(deadline)
    }

    /// The region that holds `key`, from the cache if it is there.
    pub(crate) async fn locate(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        key: &Key,
    ) -> Result<Arc<Region>> {
        match self.regions.lookup(key, io.now()) {
            Lookup::Hit(region) => Ok(region),
            // Rare, and its future is large: the callers' stays small without it.
            found => Box::pin(self.locate_anew(io, backoff, key, found)).await,
        }
    }

    async fn locate_anew(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        key: &Key,
        mut found: Lookup,
    ) -> Result<Arc<Region>> {
        loop {
            let wanted = Wanted::Holding(key.clone());
            let region = match found {
                Lookup::Hit(region) => return Ok(region),
                Lookup::Reload { region, replace } => {
                    self.reload(io, backoff, wanted, region, replace).await
                }
                Lookup::Miss(_) => {
                    let of = match self.regions.covering(key) {
                        Some(dead) => LoadOf::Successor(dead.ver_id()),
                        None => LoadOf::Part(wanted.clone()),
                    };
                    self.load(io, backoff, of, wanted, true).await?
                }
            };
            // Who waited for the successor of a region that was split may have got the other part.
            if region.contains(key) {
                return Ok(region);
            }
            backoff
                .wait(io, BackoffKind::RegionMiss, elsewhere(&region))
                .await?;
            found = self.regions.lookup(key, io.now());
        }
    }

    /// The region in which a range that ends before `end` ends; the last one for `None`.
    pub(crate) async fn locate_end(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        end: Option<&Key>,
    ) -> Result<Arc<Region>> {
        let wanted = Wanted::Ending(end.cloned());
        let bound = end.map(|end| &**end);
        loop {
            let region = match self.regions.lookup_end(bound, io.now()) {
                Lookup::Hit(region) => return Ok(region),
                Lookup::Reload { region, replace } => {
                    self.reload(io, backoff, wanted.clone(), region, replace)
                        .await
                }
                Lookup::Miss(_) => {
                    let of = LoadOf::Part(wanted.clone());
                    self.load(io, backoff, of, wanted.clone(), true).await?
                }
            };
            // PD is asked twice for it, and a split or a merge may come in between. What is before
            // such a region would be taken for all there is.
            if region.contains_by_end(bound) {
                return Ok(region);
            }
            backoff
                .wait(io, BackoffKind::RegionMiss, elsewhere(&region))
                .await?;
        }
    }

    /// Loads again what may still be used: if that fails, it is.
    async fn reload(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        wanted: Wanted,
        region: Arc<Region>,
        replace: bool,
    ) -> Arc<Region> {
        let of = LoadOf::Part(wanted.clone());
        match self.load(io, backoff, of, wanted, replace).await {
            Ok(loaded) => loaded,
            Err(_) => {
                region.set_flag(Flag::ReloadOnAccess);
                region
            }
        }
    }

    /// Sorted keys by region: each region with the places of its keys.
    pub(crate) async fn group<K: AsRef<[u8]>>(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        keys: &[K],
    ) -> Result<Vec<(Arc<Region>, Range<usize>)>> {
        let mut groups: Vec<(Arc<Region>, Range<usize>)> = Vec::new();
        let mut done = 0;
        while done < keys.len() {
            let cached = self.regions.group(&keys[done..], io.now());
            let missing = cached.missing;
            groups.extend(
                cached
                    .groups
                    .into_iter()
                    .map(|group| (group.region, group.keys.start + done..group.keys.end + done)),
            );
            let Some(missing) = missing else { break };
            done += missing;
            let region = self
                .locate(io, backoff, &Key::from(keys[done].as_ref()))
                .await?;
            let end = keys[done..]
                .iter()
                .position(|key| !region.contains(key.as_ref()))
                .map_or(keys.len(), |more| done + more);
            if end == done {
                return Err(Error::protocol(
                    "PD answered with a region that lacks the key",
                ));
            }
            groups.push((region, done..end));
            done = end;
        }
        Ok(groups)
    }

    /// The region of the first of some sorted keys, and how many of them it holds.
    pub(crate) async fn first_group(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        keys: &[Key],
    ) -> Result<(Arc<Region>, usize)> {
        let Some(first) = keys.first() else {
            return Err(Error::invalid_argument("no keys"));
        };
        let region = self.locate(io, backoff, first).await?;
        let count = keys.iter().take_while(|key| region.contains(key)).count();
        Ok((region, count.max(1)))
    }

    async fn load(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        of: LoadOf,
        wanted: Wanted,
        replace: bool,
    ) -> Result<Arc<Region>> {
        let cluster = self.clone();
        // The load is everybody's, so it has a budget of its own; the caller's deadline bounds
        // only the caller's wait.
        let load = self
            .region_loads
            .join(io, "load_region", of, |io| async move {
                let mut backoff = cluster.backoff(budget::LOCATE_MS, None);
                cluster.load_now(&io, &mut backoff, &wanted, replace).await
            });
        until(
            io,
            backoff.deadline(),
            Why::Backoff(BackoffKind::RegionMiss),
            load,
        )
        .await?
    }

    async fn load_now(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        wanted: &Wanted,
        replace: bool,
    ) -> Result<Arc<Region>> {
        loop {
            let found = match wanted {
                Wanted::Holding(key) => self.pd.region_by_key(io, backoff, key).await?,
                Wanted::Ending(end) => self.pd.region_by_end(io, backoff, end.as_ref()).await?,
            };
            let mode = InsertMode {
                invalidate_old: replace,
                from_pd_leader: true,
            };
            match self.take_in(io, backoff, found, mode).await? {
                Ok(region) => {
                    self.sweep(io.now());
                    return Ok(region);
                }
                Err(unusable) => {
                    let cause = Error::Pd {
                        call: "GetRegion",
                        message: unusable.to_string().into(),
                    };
                    backoff.wait(io, BackoffKind::PdRpc, cause).await?;
                }
            }
        }
    }

    /// Looks at the next few regions of the cache and throws out those that are of no more use.
    /// Done whenever one is loaded, so a cache that changes is swept and one that does not needs
    /// no upkeep.
    fn sweep(&self, now: Instant) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.regions.collect(&swept, GC_REGIONS, now);
        *swept = next;
    }

    /// Puts what PD said of a region into the cache, with what its stores are.
    async fn take_in(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        found: PdRegion,
        mode: InsertMode,
    ) -> Result<std::result::Result<Arc<Region>, BuildError>> {
        let data = self.decode(found)?;
        self.resolve_stores(io, data.unresolved_stores(&self.stores))
            .await;
        match self.regions.load(data, &self.stores, mode, io.now()) {
            Ok(inserted) => Ok(Ok(inserted.region().clone())),
            Err(error @ BuildError::Unresolved { .. }) => {
                let cause = Error::Pd {
                    call: "GetStore",
                    message: error.to_string().into(),
                };
                backoff.wait(io, BackoffKind::PdRpc, cause).await?;
                Ok(Err(error))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    /// What PD, or a store, said of a region, with the bounds that callers know.
    pub(crate) fn decode(&self, found: PdRegion) -> Result<RegionData> {
        let range = self
            .mode
            .decode_range(&found.region.start_key, &found.region.end_key)?;
        Ok(RegionData {
            meta: found.region,
            range,
            leader: found.leader,
            down: found.down,
            pending: found.pending,
            buckets: None,
        })
    }

    /// Asks PD about stores that nothing is known of, all at once. What can't be found out now is
    /// left for the next time.
    pub(crate) async fn resolve_stores(self: &Arc<Self>, io: &Io, ids: Vec<u64>) {
        futures_util::future::join_all(ids.into_iter().map(|id| self.resolve_store(io, id))).await;
    }

    async fn resolve_store(self: &Arc<Self>, io: &Io, id: u64) {
        let cluster = self.clone();
        let _ = self
            .store_loads
            .join(io, "load_store", id, |io| async move {
                let mut backoff = cluster.backoff(budget::LOCATE_MS, None);
                let found = cluster.pd.store(&io, &mut backoff, id).await?;
                cluster.stores.resolve(id, found.as_ref());
                Ok(())
            })
            .await;
    }

    /// Asks PD about stores without waiting for the answer.
    pub(crate) fn resolve_stores_later(self: &Arc<Self>, io: &Io, ids: Vec<u64>) {
        if !ids.is_empty() {
            let cluster = self.clone();
            io.spawn(Operation::new("resolve_stores", |io: Io| async move {
                cluster.resolve_stores(&io, ids).await;
            }));
        }
    }

    /// Looks again at stores that a failure made doubtful, without waiting for the answer.
    pub(crate) fn recheck_stores(self: &Arc<Self>, io: &Io) {
        let doubtful = self
            .stores
            .need_check()
            .into_iter()
            .map(|store| store.id())
            .collect();
        self.resolve_stores_later(io, doubtful);
    }

    /// Loads the regions of a range into the cache.
    pub(crate) async fn warm_up(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        range: &KeyRange,
    ) -> Result<usize> {
        let mode = InsertMode {
            invalidate_old: false,
            from_pd_leader: true,
        };
        let mut rest = range.clone();
        let mut count = 0;
        while !rest.is_empty() {
            let page = self
                .pd
                .scan_regions(io, backoff, &rest, REGIONS_PER_SCAN)
                .await?;
            let mut end = None;
            for found in page {
                let data = self.decode(found)?;
                end = Some(data.range.end().cloned());
                self.resolve_stores(io, data.unresolved_stores(&self.stores))
                    .await;
                // A region that can't be built is loaded when it is asked for.
                if self
                    .regions
                    .load(data, &self.stores, mode, io.now())
                    .is_ok()
                {
                    count += 1;
                }
            }
            match end {
                Some(Some(end)) if end > *rest.start() => {
                    rest = KeyRange::new(end, range.end().cloned());
                }
                _ => break,
            }
        }
        Ok(count)
    }

    /// A new timestamp from PD.
    pub(crate) async fn timestamp(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
    ) -> Result<Timestamp> {
        let ts = self.pd.timestamp(io, backoff).await?;
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if ts > heard.0 {
            *heard = (ts, io.now());
        }
        Ok(ts)
    }

    /// A timestamp that PD gave out not long ago. The age of locks is measured by it: it lags, so
    /// a lock may be found expired late, but never early. (client-go: `GetLowResolutionTimestamp`)
    pub(crate) async fn low_resolution(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
    ) -> Result<Timestamp> {
        let (ts, at) = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if !ts.is_zero() && io.now().since(at) < self.config.low_resolution_interval {
            return Ok(ts);
        }
        self.timestamp(io, backoff).await
    }

    /// Says that a store does not answer.
    pub(crate) fn no_answer(&self, id: u64) -> TransportError {
        let address = self.stores.get(id).and_then(|store| store.address());
        TransportError::Connect {
            address: address.unwrap_or_else(|| format!("store {id}").into()),
            message: "the store does not answer".into(),
        }
    }

    /// The probes of stores that are under way.
    pub(super) fn probes(&self) -> &Arc<Flights<u64, Liveness>> {
        &self.probes
    }

    /// Whether a store's address is known.
    pub(crate) fn is_resolved(&self, id: u64) -> bool {
        self.stores
            .get(id)
            .is_some_and(|store| store.resolve_state() == ResolveState::Resolved)
    }
}

/// How many regions are asked for at once (client-go: `defaultRegionsPerBatch`).
const REGIONS_PER_SCAN: u32 = 128;

/// A region was loaded that does not hold what it was loaded for.
fn elsewhere(region: &Region) -> Error {
    let message = format!("{} does not hold what was looked up", region.ver_id());
    Error::Pd {
        call: "GetRegion",
        message: message.into(),
    }
}

fn to_ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
