//! A TiKV cluster with its PD as one deterministic state machine.
//!
//! [`Cluster`] holds stores, regions, data and PD. Every request is a plain function call with the
//! current time as an argument: it returns the reply and has been applied when it returns. The one
//! kind that may wait, for a lock, says so and is answered later ([`lock_wait`]). There is no clock,
//! no thread, no chance, and no map whose order depends on anything but its contents.
//!
//! Deliberately absent: delivery. Whether a request arrives, how long that takes, and whether its
//! reply is lost, is decided by whoever calls. A request that is dropped is not called; a reply
//! that is lost is dropped after the call.
//!
//! | subject | where |
//! |---|---|
//! | keys | [`key`] |
//! | versions, locks and their rules | [`mvcc`] |
//! | regions, who may serve a request, and how regions change | [`region`], [`memory_locks`], [`region_checks`], [`region_errors`], [`region_admin`], [`peer_changes`] |
//! | what else keeps a store or a peer from serving | [`load`], [`replica`], [`lag`], [`injection`] |
//! | where in its life a write is when something happens | [`held_writes`], [`write_end`] |
//! | transactional commands | [`txn_prewrite`], [`txn_lock`], [`lock_wait`], [`txn_end`], [`txn_status`], [`read_commands`], [`range_commands`], [`flashback`] |
//! | raw commands | [`raw_reads`], [`raw_scan`], [`raw_writes`] |
//! | what stores leave to others | [`coprocessor`], [`extension`] |
//! | what clients must not do | [`mistakes`] |
//! | PD | [`pd`] |
//! | the whole as bytes | [`snapshot`] |
//!
//! Times are milliseconds since the Unix epoch; they are the physical part of PD's timestamps, the
//! measure of lock life and, in seconds, of raw values' life.

pub mod api_version;
mod checksum;
pub mod coprocessor;
pub mod extension;
pub mod failure;
pub mod flashback;
mod garbage;
pub mod held_writes;
pub mod injection;
pub mod key;
pub mod lag;
pub mod load;
pub mod lock_wait;
pub mod memory_locks;
pub mod mistakes;
pub mod mvcc;
pub mod pd;
pub mod peer_changes;
mod proposal;
pub mod range_commands;
mod raw_format;
pub mod raw_reads;
pub mod raw_scan;
pub mod raw_writes;
pub mod read_commands;
pub mod region;
pub mod region_admin;
pub mod region_checks;
pub mod region_errors;
pub mod replica;
mod resolved_ts;
pub mod snapshot;
pub mod store;
pub mod store_admin;
pub mod txn_end;
pub mod txn_lock;
pub mod txn_prewrite;
pub mod txn_status;
pub mod write_end;
mod write_path;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use tikv_proto::kvrpcpb::ApiVersion;
use tikv_proto::metapb;

use self::extension::Extended;
use self::injection::Injection;
use self::lag::StalledReads;
use self::lock_wait::LockWaits;
use self::lock_wait::waking::Woken;
use self::mistakes::Mistake;
use self::mvcc::engine::Engine;
use self::mvcc::max_ts::InvalidMaxTs;
use self::pd::Pd;
use self::region::{Region, RegionId, RegionMap, StoreId};
use self::store::Store;
use self::write_path::AppliedWrite;

/// How a cluster is built and which of a server's choices it makes.
#[derive(Clone, Debug)]
pub struct Config {
    /// The id every request to PD must carry.
    pub cluster_id: u64,
    /// How many TiKV stores; their ids start at 1.
    pub stores: u64,
    /// How many PD members; the first leads.
    pub pd_members: u64,
    /// How the stores keep keys.
    pub api_version: ApiVersion,
    /// What a timestamp beyond PD's does.
    pub invalid_max_ts: InvalidMaxTs,
    /// How far a read may be ahead of PD.
    pub max_ts_drift_ms: u64,
    /// Pessimistic locks stay in the leader's memory where the server would keep them there.
    pub in_memory_pessimistic_locks: bool,
    /// A new leader knows PD's timestamps at once; otherwise `sync_max_ts` must be called.
    pub sync_max_ts_at_once: bool,
    /// PD learns of every change of a region at once; otherwise `pd_heartbeat` must be called.
    pub heartbeat_at_once: bool,
    /// How long PD takes to do with a region what it is asked to, as it says.
    pub operator_ms: u64,
    /// Keep every write record ever applied for checkers to read.
    pub keep_truth: bool,
    /// What stores say their version is.
    pub store_version: String,
    /// A read below the version up to which garbage has been collected fails. A real server answers
    /// it as if what was collected had never been.
    pub refuse_reads_of_garbage: bool,
    /// Keep the requests that would have ended a real server's process.
    pub keep_mistakes: bool,
    /// Who answers what stores leave to others.
    pub extension: Option<Extended>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            cluster_id: 1,
            stores: 3,
            pd_members: 1,
            api_version: ApiVersion::V1,
            invalid_max_ts: InvalidMaxTs::Refuse,
            max_ts_drift_ms: 60_000,
            in_memory_pessimistic_locks: true,
            sync_max_ts_at_once: true,
            heartbeat_at_once: true,
            operator_ms: 0,
            keep_truth: false,
            store_version: "9.0.0-beta.2".to_owned(),
            refuse_reads_of_garbage: false,
            keep_mistakes: false,
            extension: None,
        }
    }
}

/// Stores, regions, data and PD.
#[derive(Clone, Debug)]
pub struct Cluster {
    config: Config,
    stores: BTreeMap<StoreId, Store>,
    regions: RegionMap,
    engine: Engine,
    pd: Pd,
    truth: Vec<AppliedWrite>,
    lock_waits: LockWaits,
    /// Answers of requests that have stopped waiting, to be taken.
    woken: Vec<Woken>,
    injections: Vec<Injection>,
    mistakes: Vec<Mistake>,
    /// Garbage has been collected up to here.
    collected: u64,
    /// Reads that wait for their peers to catch up.
    stalled_reads: StalledReads,
}

impl Cluster {
    /// A cluster with one region over the whole key space, a peer on each store, led by store 1.
    pub fn new(config: Config, now_ms: u64) -> Self {
        let mut pd = Pd::new(&config);
        let mut stores = BTreeMap::new();
        for _ in 0..config.stores.max(1) {
            let id = pd.alloc_id();
            stores.insert(id, store_admin::new_store(&config, id, now_ms));
        }
        let region_id = pd.alloc_id();
        let peers = stores
            .keys()
            .map(|&store_id| metapb::Peer {
                id: pd.alloc_id(),
                store_id,
                ..Default::default()
            })
            .collect();
        let region = Region {
            meta: metapb::Region {
                id: region_id,
                region_epoch: Some(metapb::RegionEpoch {
                    conf_ver: config.stores.max(1),
                    version: 1,
                }),
                peers,
                ..Default::default()
            },
            leader: stores.keys().next().copied(),
            // What a bootstrapped region has after its first election.
            term: 6,
            max_ts_synced: true,
            ..Region::default()
        };
        pd.heartbeat(&region);
        let mut regions = RegionMap::default();
        regions.insert(region);
        Cluster {
            config,
            stores,
            regions,
            engine: Engine::default(),
            pd,
            truth: Vec::new(),
            lock_waits: LockWaits::default(),
            woken: Vec::new(),
            injections: Vec::new(),
            mistakes: Vec::new(),
            collected: 0,
            stalled_reads: StalledReads::default(),
        }
    }

    /// How the cluster was built.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The stores' ids.
    pub fn store_ids(&self) -> impl Iterator<Item = StoreId> {
        self.stores.keys().copied()
    }

    /// A store.
    pub fn store(&self, id: StoreId) -> Option<&Store> {
        self.stores.get(&id)
    }

    /// A store, to change how it behaves.
    pub fn store_mut(&mut self, id: StoreId) -> Option<&mut Store> {
        self.stores.get_mut(&id)
    }

    /// The regions as they are, whatever PD believes.
    pub fn regions(&self) -> &RegionMap {
        &self.regions
    }

    /// A region as it is.
    pub fn region(&self, id: RegionId) -> Option<&Region> {
        self.regions.get(id)
    }

    /// The data, for checkers.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Every write record applied since the start, in the order of application; only kept if the
    /// configuration says so.
    pub fn truth(&self) -> &[AppliedWrite] {
        &self.truth
    }

    /// PD.
    pub fn pd(&self) -> &Pd {
        &self.pd
    }

    /// PD, to change how it behaves.
    pub fn pd_mut(&mut self) -> &mut Pd {
        &mut self.pd
    }
}
