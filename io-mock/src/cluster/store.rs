//! What one store keeps to itself: its timestamps, the locks it holds in memory while a command is
//! under way, what it remembers of finished transactions, and its place in the cluster.
//!
//! A restart loses all of it except the place and the state of the disk.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use tikv_proto::metapb;

use super::key::Key;
use super::lag::Behind;
use super::load::Load;
use super::mvcc::lock::Lock;
use super::mvcc::max_ts::MaxTs;
use super::region::RegionId;
use super::write_end::{End, Ending, WritePoint};

/// One store.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// As PD describes it.
    pub meta: metapb::Store,
    /// It answers requests.
    pub up: bool,
    /// The greatest timestamp it has served.
    pub max_ts: MaxTs,
    /// Locks of prewrites that have computed their commit version and are not applied yet.
    pub memory_locks: BTreeMap<Key, Lock>,
    /// Commit versions of transactions that ended here.
    pub committed: CommittedCache,
    /// What it has been told of large transactions that are not complete.
    pub large_txns: BTreeMap<u64, LargeTxn>,
    /// 1 is healthy, 100 the slowest.
    pub slow_score: i32,
    /// Last sequence number of health feedback.
    pub feedback_seq_no: u64,
    /// What keeps it from answering at once.
    pub load: Load,
    /// How, and where, its next write ends.
    pub ends_write: Option<(End, WritePoint)>,
    /// The write that is being ended.
    pub ending: Option<Ending>,
    /// How full its disk is.
    pub disk: Disk,
    /// Peers here that have fallen behind.
    pub behind: BTreeMap<RegionId, Behind>,
}

/// What a store has been told of a large transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LargeTxn {
    /// It will not commit below.
    pub min_commit_ts: u64,
    /// It will not commit at all.
    pub rolled_back: bool,
    /// When the store was told.
    pub since_ms: u64,
}

/// How long a store remembers what it was told of a large transaction.
const LARGE_KEPT_MS: u64 = 30_000;

/// How full a disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disk {
    /// There is room.
    #[default]
    Normal,
    /// Only what makes room or ends transactions is written.
    AlmostFull,
    /// Nothing is written.
    AlreadyFull,
}

impl Store {
    /// Loses what a restart loses. Feedback goes on from the time of the start, so it is higher
    /// than before.
    pub fn restart(&mut self, now_ms: u64) {
        self.up = true;
        self.max_ts = MaxTs::default();
        self.memory_locks.clear();
        self.committed = CommittedCache::default();
        self.large_txns.clear();
        self.load = Load::default();
        self.slow_score = 1;
        self.ends_write = None;
        self.ending = None;
        self.feedback_seq_no = self.feedback_seq_no.max(now_ms);
    }
}

impl Store {
    /// Is told of a large transaction that is not complete; what it was told too long ago of others
    /// is forgotten. A commit version does not fall, and who was rolled back stays so.
    pub(super) fn note_large(&mut self, start_ts: u64, told: LargeTxn) {
        let now_ms = told.since_ms;
        self.large_txns
            .retain(|_, large| large.since_ms.saturating_add(LARGE_KEPT_MS) >= now_ms);
        let known = self.large_txns.entry(start_ts).or_default();
        if !known.rolled_back && (told.rolled_back || told.min_commit_ts > known.min_commit_ts) {
            *known = told;
        }
    }
}

/// How long a store remembers a finished transaction at least.
const COMMITTED_KEPT_MS: u64 = 30_000;

/// Commit versions of finished transactions, for telling a late prewrite from a first one.
#[derive(Clone, Debug, Default)]
pub struct CommittedCache {
    /// `None` if the transaction was rolled back.
    by_start: BTreeMap<u64, Option<u64>>,
    /// When each was remembered, and its start version.
    by_age: BTreeSet<(u64, u64)>,
}

impl CommittedCache {
    /// Where a transaction committed.
    pub fn get(&self, start_ts: u64) -> Option<u64> {
        self.by_start.get(&start_ts).copied().flatten()
    }

    /// What is remembered, the oldest first: start version, commit version, and since when.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.by_age.iter().filter_map(|&(at_ms, start_ts)| {
            let commit_ts = self.get(start_ts)?;
            Some((start_ts, commit_ts, at_ms))
        })
    }

    /// Remembers a commit.
    pub fn insert(&mut self, now_ms: u64, start_ts: u64, commit_ts: u64) {
        self.remember(now_ms, start_ts, Some(commit_ts));
    }

    /// Remembers a rollback; the store then takes no commit of the transaction for true.
    pub fn insert_rolled_back(&mut self, now_ms: u64, start_ts: u64) {
        self.remember(now_ms, start_ts, None);
    }

    /// What is said first is what counts, and being told again does not make a memory younger.
    /// Those that have had their time are forgotten.
    fn remember(&mut self, now_ms: u64, start_ts: u64, commit_ts: Option<u64>) {
        if let Entry::Vacant(place) = self.by_start.entry(start_ts) {
            place.insert(commit_ts);
            self.by_age.insert((now_ms, start_ts));
        }
        while let Some(&(since_ms, oldest)) = self.by_age.first()
            && since_ms.saturating_add(COMMITTED_KEPT_MS) < now_ms
        {
            self.by_age.pop_first();
            self.by_start.remove(&oldest);
        }
    }
}
