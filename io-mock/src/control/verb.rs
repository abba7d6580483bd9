//! The verbs, and what comes of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::key_text::KeyText;
use super::state::State;
use super::trouble::{Cause, Progress, RegionError, Room};
use crate::cluster::region::{RegionId, StoreId};

/// Something that is done to a cluster. In JSON, the verb in small letters with its arguments:
/// `{"transfer_leader": {"region": 4, "store": 2}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Verb {
    /// Tells what there is: members of PD, stores, regions, keyspaces.
    Describe {},
    /// Splits regions so that one begins with each of these keys.
    Split {
        /// The keys, of transactions unless they are said to be raw.
        keys: Vec<KeyText>,
        /// The keys are raw ones.
        #[serde(default)]
        raw: bool,
    },
    /// Merges a region into a neighbour, which keeps its id.
    Merge {
        /// The region that goes.
        source: RegionId,
        /// The region that stays.
        target: RegionId,
    },
    /// Has a region led by the peer on another store.
    TransferLeader {
        /// The region.
        region: RegionId,
        /// The store.
        store: StoreId,
    },
    /// Takes a region's leader away, until the next election.
    DeposeLeader {
        /// The region.
        region: RegionId,
    },
    /// Spreads the leaders of regions over the stores.
    Scatter {
        /// The regions; none means all.
        #[serde(default)]
        regions: Vec<RegionId>,
    },
    /// Adds a peer to a region.
    AddPeer {
        /// The region.
        region: RegionId,
        /// Where the peer is to be.
        store: StoreId,
        /// It only listens.
        #[serde(default)]
        learner: bool,
    },
    /// Removes a peer from a region. A leader's peer can't go.
    RemovePeer {
        /// The region.
        region: RegionId,
        /// Where the peer is.
        store: StoreId,
    },
    /// Adds an empty store.
    AddStore {},
    /// Stops a store: its port closes, and what it held in memory is lost.
    Stop {
        /// The store.
        store: StoreId,
    },
    /// Starts a stopped store.
    Start {
        /// The store.
        store: StoreId,
    },
    /// Stops a store and starts it again.
    Restart {
        /// The store.
        store: StoreId,
    },
    /// Has others lead the regions that a store led, as after an election.
    FailOver {
        /// The store.
        store: StoreId,
    },
    /// Has a store look at no request until it resumes; its connections stay.
    Pause {
        /// The store.
        store: StoreId,
    },
    /// Has a paused store go on.
    Resume {
        /// The store.
        store: StoreId,
    },
    /// Has a store take longer for every request.
    Slow {
        /// The store.
        store: StoreId,
        /// By how much; 0 makes it quick again.
        delay_ms: u64,
    },
    /// Has the next requests to a store take effect, and their replies lost.
    DropReplies {
        /// The store.
        store: StoreId,
        /// How many; 0 ends it.
        count: u64,
    },
    /// Has a store answer the requests of a frame in another order than theirs, or no more.
    ShuffleReplies {
        /// The store.
        store: StoreId,
        /// Whether it does.
        on: bool,
    },
    /// Has a store say how slow it is.
    SlowScore {
        /// The store.
        store: StoreId,
        /// From 1, healthy, to 100.
        score: i32,
    },
    /// Sets how much room a store's disk has.
    Disk {
        /// The store.
        store: StoreId,
        /// How much.
        room: Room,
    },
    /// Has a store refuse what it has no time for. What is left out is as it should be.
    Load {
        /// The store.
        store: StoreId,
        /// How long a read would wait, as the store estimates.
        #[serde(default)]
        read_wait_ms: u32,
        /// How long a write waits.
        #[serde(default)]
        write_wait_ms: u32,
        /// It takes only urgent writes.
        #[serde(default)]
        scheduler_full: bool,
        /// It proposes nothing.
        #[serde(default)]
        raftstore_full: bool,
        /// It is about to end.
        #[serde(default)]
        closing: bool,
    },
    /// Ends the next write that a store is asked for.
    EndWrite {
        /// The store.
        store: StoreId,
        /// By what.
        cause: Cause,
        /// How far it gets before.
        progress: Progress,
    },
    /// Has the next requests answered with a region error.
    Refuse {
        /// The error.
        error: RegionError,
        /// Only requests to this store.
        #[serde(default)]
        store: Option<StoreId>,
        /// Only requests to this region.
        #[serde(default)]
        region: Option<RegionId>,
        /// How many; 0 takes back everything that has not been answered yet.
        count: u32,
    },
    /// Has a replica know its region, and have its data, as they are now, whatever becomes of them. A
    /// read that the leader has to confirm makes it catch up.
    FallBehind {
        /// The region.
        region: RegionId,
        /// Where the replica is; not where the leader is.
        store: StoreId,
        /// So many entries of the log that change nothing pass it by at once; from 100 on it says
        /// that it is too far behind.
        #[serde(default)]
        entries: u64,
        /// Nobody makes it catch up: who asks for such a read waits.
        #[serde(default)]
        stuck: bool,
    },
    /// Has replicas on a store catch up.
    CatchUp {
        /// The store.
        store: StoreId,
        /// Only that of this region.
        #[serde(default)]
        region: Option<RegionId>,
    },
    /// Has a region's leader work out up to where stale reads are complete, and tell its followers.
    AdvanceSafeTs {
        /// The region.
        region: RegionId,
    },
    /// Labels a store.
    Label {
        /// The store.
        store: StoreId,
        /// The label.
        key: String,
        /// Its value; empty removes the label.
        value: String,
    },
    /// Takes a store out of service.
    Offline {
        /// The store.
        store: StoreId,
    },
    /// Takes a store into service again.
    Online {
        /// The store.
        store: StoreId,
    },
    /// Empties an offline store, stops it and makes it a tombstone.
    Bury {
        /// The store.
        store: StoreId,
    },
    /// Forgets the stores that have been buried.
    ForgetTombstones {},
    /// Moves the safe points, as far as barriers allow. Older versions stay where they are.
    AdvanceGc {
        /// Where to, as a timestamp; nothing means the present.
        #[serde(default)]
        safe_point: Option<u64>,
    },
    /// Removes older versions as far as the safe points allow.
    CollectGarbage {},
    /// Lets the timestamps of PD jump forwards.
    JumpTso {
        /// By how much.
        by_ms: u64,
    },
    /// Moves the leadership of PD.
    LeadPd {
        /// The member that is to lead, counted from 0; nobody leads if it is left out.
        #[serde(default)]
        member: Option<usize>,
    },
    /// Has timestamps given out by a service of its own, `tsopb.TSO`, at the addresses of PD, or by PD
    /// again.
    TsoService {
        /// Whether it is to be a service of its own.
        on: bool,
        /// The server that gives them out, counted from 0; nobody does if it is left out.
        #[serde(default)]
        primary: Option<usize>,
    },
    /// Has the members of PD that do not lead know the regions as they are known now, or keep up.
    LagPd {
        /// Whether they lag.
        on: bool,
    },
    /// Has PD refuse requests as if there had been too many.
    RefusePd {
        /// How many; 0 takes back those that have not been refused yet.
        count: u32,
    },
    /// Has a member of PD look at no request, or go on.
    PausePd {
        /// The member, counted from 0.
        member: usize,
        /// Whether it is paused.
        on: bool,
    },
    /// Stops a member of PD; another one leads if it did.
    StopPd {
        /// The member, counted from 0.
        member: usize,
    },
    /// Starts a stopped member of PD.
    StartPd {
        /// The member, counted from 0.
        member: usize,
    },
    /// Creates a keyspace with regions of its own.
    CreateKeyspace {
        /// Its name.
        name: String,
        /// Its configuration.
        #[serde(default)]
        config: BTreeMap<String, String>,
    },
    /// Saves the whole cluster to a file, for a later start.
    Save {
        /// The file, as the serving process finds it.
        file: PathBuf,
    },
}

/// What came of a verb. In JSON `"done"`, or what there is to tell: `{"regions": [4, 8]}`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// It is done.
    Done,
    /// The regions that are new, or have another leader now.
    Regions(Vec<RegionId>),
    /// The store that is new.
    Store(StoreId),
    /// The keyspace that is new.
    Keyspace(u32),
    /// Where the safe point is now.
    SafePoint(u64),
    /// Up to where stale reads are complete; 0 if nobody leads.
    SafeTs(u64),
    /// What there is.
    State(Box<State>),
}

/// Why a verb was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// There is no such store.
    #[error("there is no store {0}")]
    NoStore(StoreId),
    /// There is no such region.
    #[error("there is no region {0}")]
    NoRegion(RegionId),
    /// PD has no such member.
    #[error("PD has no member {0}")]
    NoMember(usize),
    /// A key is not written as one.
    #[error("{0:?} is no key")]
    NoKey(KeyText),
    /// The cluster's rules forbid it.
    #[error("{0}")]
    Forbidden(String),
    /// The system did not let it.
    #[error("{0}")]
    Failed(String),
}
