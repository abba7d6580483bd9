//! The configuration, stores and regions, saved and loaded.

use std::collections::BTreeMap;

use tikv_proto::kvrpcpb::ApiVersion;

use super::SnapshotError;
use super::data::{load_exclusive, save_exclusive};
use super::{trouble, wire};
use crate::cluster::Config;
use crate::cluster::key::Key;
use crate::cluster::mvcc::lock::Lock;
use crate::cluster::mvcc::max_ts::{InvalidMaxTs, MaxTs};
use crate::cluster::region::{Buckets, Region};
use crate::cluster::store::{CommittedCache, Store};

pub(super) fn save_config(config: &Config) -> wire::Config {
    wire::Config {
        cluster_id: config.cluster_id,
        stores: config.stores,
        pd_members: config.pd_members,
        api_version: config.api_version.into(),
        allow_invalid_max_ts: config.invalid_max_ts == InvalidMaxTs::Allow,
        max_ts_drift_ms: config.max_ts_drift_ms,
        in_memory_pessimistic_locks: config.in_memory_pessimistic_locks,
        sync_max_ts_at_once: config.sync_max_ts_at_once,
        heartbeat_at_once: config.heartbeat_at_once,
        operator_ms: config.operator_ms,
        keep_truth: config.keep_truth,
        store_version: config.store_version.clone(),
        refuse_reads_of_garbage: config.refuse_reads_of_garbage,
        keep_mistakes: config.keep_mistakes,
    }
}

pub(super) fn load_config(saved: wire::Config) -> Result<Config, SnapshotError> {
    let api_version = ApiVersion::try_from(saved.api_version);
    // What a later version can be told beside this is at its default.
    Ok(Config {
        cluster_id: saved.cluster_id,
        stores: saved.stores,
        pd_members: saved.pd_members,
        api_version: api_version.map_err(|_| SnapshotError::impossible("API version"))?,
        invalid_max_ts: invalid_max_ts(saved.allow_invalid_max_ts),
        max_ts_drift_ms: saved.max_ts_drift_ms,
        in_memory_pessimistic_locks: saved.in_memory_pessimistic_locks,
        sync_max_ts_at_once: saved.sync_max_ts_at_once,
        heartbeat_at_once: saved.heartbeat_at_once,
        operator_ms: saved.operator_ms,
        keep_truth: saved.keep_truth,
        store_version: saved.store_version,
        refuse_reads_of_garbage: saved.refuse_reads_of_garbage,
        keep_mistakes: saved.keep_mistakes,
        // Code is not saved.
        extension: None,
    })
}

fn invalid_max_ts(allow: bool) -> InvalidMaxTs {
    match allow {
        true => InvalidMaxTs::Allow,
        false => InvalidMaxTs::Refuse,
    }
}

pub(super) fn save_store(store: &Store) -> wire::Store {
    wire::Store {
        meta: Some(store.meta.clone()),
        up: store.up,
        max_ts: store.max_ts.get(),
        max_ts_limit: store.max_ts.limit,
        max_ts_tso: store.max_ts.tso,
        max_ts_allow: store.max_ts.action == InvalidMaxTs::Allow,
        memory_locks: save_memory(&store.memory_locks),
        committed: store
            .committed
            .iter()
            .map(|(start_ts, commit_ts, at_ms)| wire::Committed {
                start_ts,
                commit_ts,
                at_ms,
            })
            .collect(),
        slow_score: store.slow_score,
        feedback_seq_no: store.feedback_seq_no,
        load: trouble::save_load(store.load),
        disk: trouble::save_disk(store.disk),
        ends_write: store.ends_write.map(trouble::save_end),
        behind: store.behind.values().map(trouble::save_behind).collect(),
        // Beside the data.
        past: None,
    }
}

pub(super) fn load_store(saved: wire::Store) -> Result<Store, SnapshotError> {
    let mut max_ts = MaxTs::default();
    max_ts.limit = saved.max_ts;
    // It is not above the limit, so it is not refused.
    let _ = max_ts.raise(saved.max_ts);
    max_ts.limit = saved.max_ts_limit;
    max_ts.tso = saved.max_ts_tso;
    max_ts.action = invalid_max_ts(saved.max_ts_allow);
    let mut committed = CommittedCache::default();
    for one in saved.committed {
        committed.insert(one.at_ms, one.start_ts, one.commit_ts);
    }
    // What a later version of a store knows beside this is as after its first start.
    let mut store = Store {
        meta: saved.meta.unwrap_or_default(),
        max_ts,
        committed,
        ..Store::default()
    };
    store.up = saved.up;
    store.memory_locks = load_memory(saved.memory_locks)?;
    store.slow_score = saved.slow_score;
    store.feedback_seq_no = saved.feedback_seq_no;
    store.load = trouble::load_load(saved.load);
    store.disk = trouble::load_disk(saved.disk)?;
    store.ends_write = saved.ends_write.map(trouble::load_end).transpose()?;
    for behind in saved.behind {
        let behind = trouble::load_behind(behind)?;
        store.behind.insert(behind.region.meta.id, behind);
    }
    Ok(store)
}

pub(super) fn save_region(region: &Region) -> wire::Region {
    wire::Region {
        meta: Some(region.meta.clone()),
        leader: region.leader,
        term: region.term,
        max_ts_synced: region.max_ts_synced,
        merging: region.merging,
        safe_ts: region.safe_ts,
        memory_locks: save_memory(&region.memory_locks),
        splitting: region.splitting,
        transferring: region.transferring,
        recovering: region.recovering,
        confirmed_ts: region.confirmed_ts.clone(),
        bucket_keys: region
            .buckets
            .as_ref()
            .map(|buckets| buckets.keys.clone())
            .unwrap_or_default(),
        buckets_version: region.buckets_version,
        peer_states: region
            .peer_states
            .iter()
            .map(|(store, state)| (*store, trouble::save_peer_state(state)))
            .collect(),
    }
}

pub(super) fn load_region(saved: wire::Region) -> Result<Region, SnapshotError> {
    let mut region = Region {
        meta: saved.meta.unwrap_or_default(),
        memory_locks: load_memory(saved.memory_locks)?.into_iter().collect(),
        ..Region::default()
    };
    region.leader = saved.leader;
    region.term = saved.term;
    region.max_ts_synced = saved.max_ts_synced;
    region.merging = saved.merging;
    region.safe_ts = saved.safe_ts;
    region.splitting = saved.splitting;
    region.transferring = saved.transferring;
    region.recovering = saved.recovering;
    region.confirmed_ts = saved.confirmed_ts;
    region.buckets_version = saved.buckets_version;
    if !saved.bucket_keys.is_empty() {
        region.buckets = Some(Buckets {
            version: saved.buckets_version,
            keys: saved.bucket_keys,
        });
    }
    for (store, state) in saved.peer_states {
        region.set_peer_state(store, trouble::load_peer_state(state));
    }
    Ok(region)
}

fn save_memory(locks: &BTreeMap<Key, Lock>) -> Vec<wire::KeyLock> {
    let locks = locks.iter();
    locks.map(|(key, lock)| save_exclusive(key, lock)).collect()
}

fn load_memory(saved: Vec<wire::KeyLock>) -> Result<BTreeMap<Key, Lock>, SnapshotError> {
    saved.into_iter().map(load_exclusive).collect()
}
