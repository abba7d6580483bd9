//! What strangers leave behind, and what leaders learn late: how it is put right, and whether every
//! stranger's transaction is whole in the end.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use tikv_proto::kvrpcpb;

use crate::check::{Truth, Verdict, Violation};
use crate::cluster::region::{Region, RegionId};
use crate::sim::chaos::Change;
use crate::sim::faults::Fault;
use crate::sim::further::Later;
use crate::sim::marks::Mark;
use crate::sim::world::{Event, Phase, World};

const SYNC: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(1);

impl World {
    /// Once nothing goes wrong any more, strangers are gone, and so is what no reader meets: their
    /// pessimistic locks.
    pub(in crate::sim) fn dismiss_strangers(&mut self) {
        let now_ms = self.now_ms();
        let regions: Vec<RegionId> = self.cluster.regions().ids().collect();
        for region in regions {
            self.cluster.release_writes(now_ms, region);
            self.watch_max_ts(region);
        }
        for number in 0..self.further.strangers.all.len() {
            let stranger = &mut self.further.strangers.all[number];
            stranger.is_over = true;
            let (keys, start_ts) = (stranger.keys.clone(), stranger.start_ts);
            for key in &keys {
                let unlock = kvrpcpb::PessimisticRollbackRequest {
                    start_version: start_ts,
                    for_update_ts: u64::MAX,
                    keys: vec![key.clone()],
                    ..Default::default()
                };
                self.ask_leader(key, |context| {
                    let context = Some(context);
                    kvrpcpb::PessimisticRollbackRequest { context, ..unlock }.into()
                });
            }
        }
    }

    /// Every stranger has committed all it wrote at one timestamp, or nothing; and what was certain
    /// to be committed is.
    pub(in crate::sim) fn strangers_are_whole(&self, truth: &Truth) -> Verdict {
        for stranger in &self.further.strangers.all {
            let start_ts = stranger.start_ts.into();
            let commits = truth.commits(start_ts);
            let decided = stranger.decided.map(tikv_core::Timestamp::from);
            let first = commits.first().map(|(_, commit_ts)| *commit_ts);
            let Some(commit_ts) = decided.or(first) else {
                continue;
            };
            let is_there = |key: &Bytes| {
                let is_key = |other: &tikv_core::Key| other.as_bytes() == key;
                let committed = commits
                    .iter()
                    .any(|(other, at)| is_key(other) && *at == commit_ts);
                let mut locks = truth.locks.iter();
                committed || locks.any(|lock| is_key(&lock.key) && lock.start_ts == start_ts)
            };
            let missing = stranger.keys.iter().find(|key| !is_there(key));
            if let Some(key) = missing {
                let detail = format!(
                    "the stranger of {start_ts} is committed at {commit_ts}, but {key:?} is not: {commits:?}"
                );
                return Err(Violation::new("strangers are whole", detail));
            }
        }
        Ok(())
    }

    /// A region applies what it has kept back.
    pub(in crate::sim) fn apply_late(&mut self, region: RegionId) {
        let now_ms = self.now_ms();
        self.cluster.release_writes(now_ms, region);
    }

    /// A region has changed: its leader may not know up to where reads were served.
    pub(in crate::sim) fn watch_max_ts(&mut self, id: RegionId) {
        let is_synced = |region: &Region| region.max_ts_synced;
        if self.cluster.region(id).is_none_or(is_synced) {
            return;
        }
        let strangers = &mut self.further.strangers;
        let drawn = strangers
            .chance
            .hits(strangers.drawn.share(Fault::LateSync));
        let late = self.phase == Phase::Faulty;
        if late && self.strikes.lands(self.now, Fault::LateSync, drawn) {
            let after = self.further.strangers.chance.time(SYNC);
            self.audit.mark(Mark::SyncedLate);
            let end = Later::SyncMaxTs(id);
            self.schedule(after, Event::Change(Change::Later(end)));
        } else {
            self.sync_max_ts(id);
        }
    }

    pub(in crate::sim) fn sync_max_ts(&mut self, id: RegionId) {
        let now_ms = self.now_ms();
        self.cluster.sync_max_ts(now_ms, id);
    }
}
