//! The message that a cluster is saved as. A number, once given to a field, is never given to
//! another.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use tikv_proto::{errorpb, keyspacepb, meta_storagepb, metapb, pdpb, resource_manager};

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Snapshot {
    #[prost(message, optional, tag = "1")]
    pub(crate) config: Option<Config>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) stores: Vec<Store>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) regions: Vec<Region>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) locks: Vec<KeyLock>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) histories: Vec<History>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) raw: Vec<RawValue>,
    #[prost(message, optional, tag = "7")]
    pub(crate) pd: Option<Pd>,
    #[prost(message, repeated, tag = "8")]
    pub(crate) truth: Vec<Applied>,
    #[prost(uint64, tag = "9")]
    pub(crate) collected: u64,
    #[prost(message, repeated, tag = "10")]
    pub(crate) injections: Vec<Injection>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Config {
    #[prost(uint64, tag = "1")]
    pub(crate) cluster_id: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) stores: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) pd_members: u64,
    #[prost(int32, tag = "4")]
    pub(crate) api_version: i32,
    #[prost(bool, tag = "5")]
    pub(crate) allow_invalid_max_ts: bool,
    #[prost(uint64, tag = "6")]
    pub(crate) max_ts_drift_ms: u64,
    #[prost(bool, tag = "7")]
    pub(crate) in_memory_pessimistic_locks: bool,
    #[prost(bool, tag = "8")]
    pub(crate) sync_max_ts_at_once: bool,
    #[prost(bool, tag = "9")]
    pub(crate) heartbeat_at_once: bool,
    #[prost(uint64, tag = "10")]
    pub(crate) operator_ms: u64,
    #[prost(bool, tag = "11")]
    pub(crate) keep_truth: bool,
    #[prost(string, tag = "12")]
    pub(crate) store_version: String,
    #[prost(bool, tag = "13")]
    pub(crate) refuse_reads_of_garbage: bool,
    #[prost(bool, tag = "14")]
    pub(crate) keep_mistakes: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Store {
    #[prost(message, optional, tag = "1")]
    pub(crate) meta: Option<metapb::Store>,
    #[prost(bool, tag = "2")]
    pub(crate) up: bool,
    #[prost(uint64, tag = "3")]
    pub(crate) max_ts: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) max_ts_limit: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) max_ts_tso: u64,
    #[prost(bool, tag = "6")]
    pub(crate) max_ts_allow: bool,
    #[prost(message, repeated, tag = "7")]
    pub(crate) memory_locks: Vec<KeyLock>,
    #[prost(message, repeated, tag = "8")]
    pub(crate) committed: Vec<Committed>,
    #[prost(int32, tag = "9")]
    pub(crate) slow_score: i32,
    #[prost(uint64, tag = "10")]
    pub(crate) feedback_seq_no: u64,
    #[prost(message, optional, tag = "11")]
    pub(crate) load: Option<Load>,
    /// 0, 1, 2: normal, almost full, full.
    #[prost(int32, tag = "12")]
    pub(crate) disk: i32,
    #[prost(message, optional, tag = "13")]
    pub(crate) ends_write: Option<EndsWrite>,
    #[prost(message, repeated, tag = "14")]
    pub(crate) behind: Vec<Behind>,
    #[prost(message, optional, tag = "15")]
    pub(crate) past: Option<Past>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Load {
    #[prost(uint32, tag = "1")]
    pub(crate) read_wait_ms: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) write_wait_ms: u32,
    #[prost(bool, tag = "3")]
    pub(crate) scheduler_full: bool,
    #[prost(bool, tag = "4")]
    pub(crate) raftstore_full: bool,
    #[prost(bool, tag = "5")]
    pub(crate) gc_worker_full: bool,
    #[prost(uint64, tag = "6")]
    pub(crate) observer_delay_ms: u64,
    #[prost(bool, tag = "7")]
    pub(crate) closing: bool,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct EndsWrite {
    /// 0, 1: crash, step down.
    #[prost(int32, tag = "1")]
    pub(crate) end: i32,
    /// The points in their order, with the entry that does not survive first.
    #[prost(int32, tag = "2")]
    pub(crate) point: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Behind {
    #[prost(message, optional, tag = "1")]
    pub(crate) region: Option<Region>,
    #[prost(uint64, tag = "2")]
    pub(crate) entries: u64,
    #[prost(bool, tag = "3")]
    pub(crate) stuck: bool,
}

/// What a store has not applied, as it was. What was not there has a key and nothing else.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Past {
    #[prost(message, repeated, tag = "1")]
    pub(crate) locks: Vec<KeyLock>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) histories: Vec<History>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) raw: Vec<RawBefore>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RawBefore {
    #[prost(message, optional, tag = "1")]
    pub(crate) value: Option<RawValue>,
    #[prost(bool, tag = "2")]
    pub(crate) absent: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Injection {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) store: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) region: Option<u64>,
    #[prost(message, optional, tag = "3")]
    pub(crate) error: Option<errorpb::Error>,
    #[prost(uint32, tag = "4")]
    pub(crate) times: u32,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Committed {
    #[prost(uint64, tag = "1")]
    pub(crate) start_ts: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) commit_ts: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) at_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Region {
    #[prost(message, optional, tag = "1")]
    pub(crate) meta: Option<metapb::Region>,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) leader: Option<u64>,
    #[prost(uint64, tag = "3")]
    pub(crate) term: u64,
    #[prost(bool, tag = "4")]
    pub(crate) max_ts_synced: bool,
    #[prost(bool, tag = "5")]
    pub(crate) merging: bool,
    #[prost(uint64, tag = "6")]
    pub(crate) safe_ts: u64,
    #[prost(message, repeated, tag = "7")]
    pub(crate) memory_locks: Vec<KeyLock>,
    #[prost(bool, tag = "8")]
    pub(crate) splitting: bool,
    #[prost(bool, tag = "9")]
    pub(crate) transferring: bool,
    #[prost(bool, tag = "10")]
    pub(crate) recovering: bool,
    #[prost(btree_map = "uint64, uint64", tag = "11")]
    pub(crate) confirmed_ts: BTreeMap<u64, u64>,
    #[prost(bytes = "bytes", repeated, tag = "12")]
    pub(crate) bucket_keys: Vec<Bytes>,
    #[prost(uint64, tag = "13")]
    pub(crate) buckets_version: u64,
    #[prost(btree_map = "uint64, message", tag = "14")]
    pub(crate) peer_states: BTreeMap<u64, PeerState>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct PeerState {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) safe_ts_stuck: Option<u64>,
    #[prost(bool, tag = "2")]
    pub(crate) safe_ts_forgotten: bool,
    #[prost(bool, tag = "3")]
    pub(crate) uninitialized: bool,
    #[prost(bool, tag = "4")]
    pub(crate) applying_snapshot: bool,
    #[prost(bool, tag = "5")]
    pub(crate) waits_for_data: bool,
    #[prost(bool, tag = "6")]
    pub(crate) down: bool,
}

/// Exclusive if it is no shared one, which may have a single member too.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyLock {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub(crate) locks: Vec<Lock>,
    #[prost(bool, tag = "3")]
    pub(crate) shared: bool,
    #[prost(bool, tag = "4")]
    pub(crate) shrink_only: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Lock {
    #[prost(int32, tag = "1")]
    pub(crate) kind: i32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) primary: Bytes,
    #[prost(uint64, tag = "3")]
    pub(crate) start_ts: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) ttl: u64,
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub(crate) short_value: Option<Bytes>,
    #[prost(uint64, tag = "6")]
    pub(crate) for_update_ts: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) txn_size: u64,
    #[prost(uint64, tag = "8")]
    pub(crate) min_commit_ts: u64,
    #[prost(bool, tag = "9")]
    pub(crate) async_commit: bool,
    #[prost(bool, tag = "10")]
    pub(crate) one_pc: bool,
    #[prost(bytes = "bytes", repeated, tag = "11")]
    pub(crate) secondaries: Vec<Bytes>,
    #[prost(uint64, repeated, tag = "12")]
    pub(crate) rollback_ts: Vec<u64>,
    #[prost(uint64, tag = "13")]
    pub(crate) txn_source: u64,
    #[prost(bool, tag = "14")]
    pub(crate) locked_with_conflict: bool,
    #[prost(uint64, tag = "15")]
    pub(crate) generation: u64,
    #[prost(uint64, tag = "16")]
    pub(crate) last_change_ts: u64,
    #[prost(uint64, tag = "17")]
    pub(crate) last_change_distance: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct History {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub(crate) writes: Vec<Write>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) values: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Write {
    #[prost(uint64, tag = "1")]
    pub(crate) commit_ts: u64,
    #[prost(int32, tag = "2")]
    pub(crate) kind: i32,
    #[prost(uint64, tag = "3")]
    pub(crate) start_ts: u64,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(crate) short_value: Option<Bytes>,
    #[prost(bool, tag = "5")]
    pub(crate) overlapped_rollback: bool,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) gc_fence: Option<u64>,
    #[prost(uint64, tag = "7")]
    pub(crate) txn_source: u64,
    #[prost(uint64, tag = "8")]
    pub(crate) last_change_ts: u64,
    #[prost(uint64, tag = "9")]
    pub(crate) last_change_distance: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Value {
    #[prost(uint64, tag = "1")]
    pub(crate) start_ts: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RawValue {
    /// 0, 1, 2: default, lock, write.
    #[prost(uint32, tag = "1")]
    pub(crate) cf: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) value: Bytes,
    #[prost(uint64, tag = "4")]
    pub(crate) expires_at: u64,
    #[prost(bool, tag = "5")]
    pub(crate) deleted: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Applied {
    #[prost(uint64, tag = "1")]
    pub(crate) at_ms: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) key: Bytes,
    #[prost(message, optional, tag = "3")]
    pub(crate) write: Option<Write>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Pd {
    #[prost(message, repeated, tag = "1")]
    pub(crate) members: Vec<pdpb::Member>,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) leader: Option<u64>,
    #[prost(bool, tag = "3")]
    pub(crate) follower_handles: bool,
    #[prost(uint64, tag = "4")]
    pub(crate) last_id: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) tso_physical: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) tso_logical: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) tso_saved: u64,
    #[prost(message, repeated, tag = "8")]
    pub(crate) regions: Vec<KnownRegion>,
    #[prost(message, repeated, tag = "9")]
    pub(crate) gc: Vec<Gc>,
    #[prost(message, repeated, tag = "10")]
    pub(crate) global_barriers: Vec<Barrier>,
    #[prost(message, repeated, tag = "11")]
    pub(crate) keyspaces: Vec<keyspacepb::KeyspaceMeta>,
    #[prost(uint32, repeated, tag = "12")]
    pub(crate) keyspace_changes: Vec<u32>,
    #[prost(int64, tag = "13")]
    pub(crate) meta_revision: i64,
    #[prost(int64, tag = "14")]
    pub(crate) meta_compacted: i64,
    #[prost(message, repeated, tag = "15")]
    pub(crate) meta_entries: Vec<meta_storagepb::KeyValue>,
    #[prost(message, repeated, tag = "16")]
    pub(crate) meta_events: Vec<meta_storagepb::Event>,
    #[prost(message, repeated, tag = "17")]
    pub(crate) resource_groups: Vec<ResourceGroup>,
    #[prost(message, repeated, tag = "18")]
    pub(crate) operators: Vec<Operator>,
    #[prost(uint64, tag = "19")]
    pub(crate) external_ts: u64,
    #[prost(uint64, tag = "20")]
    pub(crate) watched: u64,
    #[prost(message, optional, tag = "21")]
    pub(crate) tso_service: Option<TsoService>,
    #[prost(uint64, tag = "22")]
    pub(crate) tso_changes: u64,
    #[prost(uint32, tag = "23")]
    pub(crate) too_many: u32,
    #[prost(message, optional, tag = "24")]
    pub(crate) followers_know: Option<KnownRegions>,
    #[prost(message, repeated, tag = "30")]
    pub(crate) meta_leases: Vec<Lease>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KnownRegions {
    #[prost(message, repeated, tag = "1")]
    pub(crate) regions: Vec<KnownRegion>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct TsoService {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) primary: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Lease {
    #[prost(int64, tag = "1")]
    pub(crate) id: i64,
    #[prost(int64, tag = "2")]
    pub(crate) ttl_s: i64,
    #[prost(uint64, tag = "3")]
    pub(crate) ends_at_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KnownRegion {
    #[prost(message, optional, tag = "1")]
    pub(crate) meta: Option<metapb::Region>,
    #[prost(message, optional, tag = "2")]
    pub(crate) leader: Option<metapb::Peer>,
    #[prost(uint64, tag = "3")]
    pub(crate) term: u64,
    #[prost(message, optional, tag = "4")]
    pub(crate) buckets: Option<metapb::Buckets>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) down: Vec<metapb::Peer>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) pending: Vec<metapb::Peer>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Gc {
    #[prost(uint32, tag = "1")]
    pub(crate) keyspace: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) txn_safe_point: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) gc_safe_point: u64,
    #[prost(message, repeated, tag = "4")]
    pub(crate) barriers: Vec<Barrier>,
    #[prost(btree_map = "string, uint64", tag = "5")]
    pub(crate) min_start_ts: BTreeMap<String, u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Barrier {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(uint64, tag = "2")]
    pub(crate) ts: u64,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) expires_at_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResourceGroup {
    #[prost(message, optional, tag = "1")]
    pub(crate) group: Option<resource_manager::ResourceGroup>,
    #[prost(message, optional, tag = "2")]
    pub(crate) settings: Option<resource_manager::TokenLimitSettings>,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) filled_ms: Option<u64>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) slots: Vec<Slot>,
    #[prost(fixed64, tag = "5")]
    pub(crate) given_bits: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Slot {
    #[prost(uint64, tag = "1")]
    pub(crate) client: u64,
    /// The bits of the number, so that it comes back exactly.
    #[prost(fixed64, tag = "2")]
    pub(crate) token_bits: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) asked_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Operator {
    #[prost(uint64, tag = "1")]
    pub(crate) region: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) done_at_ms: u64,
}
