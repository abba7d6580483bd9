//! Old versions that go, and regions that are closed to be set back.
//!
//! Garbage is collected as far as no transaction can need it that may still commit: clients give up
//! transactions of a certain age, and no lock is older than what is collected. A reader that is
//! older is refused. What a region is set back to is what it holds: it is closed for a while and
//! loses nothing.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use tikv_core::wire::Response;
use tikv_proto::kvrpcpb;

use super::chance::Chance;
use super::chaos::Change;
use super::further::Later;
use super::marks::Mark;
use super::plan::Plan;
use super::world::{EPOCH_MS, Event, World};
use crate::cluster::mvcc::lock::KeyLock;
use crate::cluster::region::{RegionId, StoreId};
use crate::dispatch;

/// What a seed drew of this.
pub(super) struct Garbage {
    chance: Chance,
}

/// In runs with garbage collection, clients give up transactions of this age.
pub(super) const AGE_MAX: Duration = Duration::from_secs(600);
/// So much later is it when garbage is collected.
const LEAP: RangeInclusive<Duration> = Duration::from_secs(594)..=Duration::from_secs(610);
const CLOSED: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(2);
const TRY_AGAIN: Duration = Duration::from_millis(50);

impl Garbage {
    pub(super) fn new(plan: &Plan) -> Self {
        Garbage {
            chance: Chance::stream(plan.seed, "garbage"),
        }
    }
}

impl World {
    /// The clocks of the cluster leap, so that what is going on is old, and what is older still goes.
    pub(super) fn collect_garbage(&mut self) {
        let leap = self.further.garbage.chance.time(LEAP);
        self.epoch_ms += leap.as_millis() as u64;
        let now_ms = self.now_ms();
        let regions: Vec<RegionId> = self.cluster.regions().ids().collect();
        for region in regions {
            self.cluster.release_writes(now_ms, region);
        }
        let newest = self.cluster.pd_mut().next_tso(now_ms);
        let oldest_lock = self.oldest_lock().unwrap_or(u64::MAX);
        let old = newest.saturating_sub((AGE_MAX.as_millis() as u64) << 18);
        let safe_point = old.min(oldest_lock.saturating_sub(1));
        let pd = self.cluster.pd_mut();
        let reached = pd.advance_safe_points(now_ms, safe_point).unwrap_or(0);
        self.cluster.collect_to_safe_points();
        self.audit
            .note(self.now, || format!("garbage goes up to {reached}"));
        if reached > EPOCH_MS << 18 {
            self.audit.mark(Mark::GarbageGone);
        }
    }

    fn oldest_lock(&self) -> Option<u64> {
        let everything = Bytes::new();
        let locks = self.cluster.engine().locks(&everything, &everything);
        let starts = locks.flat_map(|(_, lock)| match lock {
            KeyLock::Exclusive(lock) => vec![lock.start_ts],
            KeyLock::Shared(shared) => shared.members.keys().copied().collect(),
        });
        starts.min()
    }

    /// Closes a region without locks.
    pub(super) fn close_for_flashback(&mut self) {
        let now_ms = self.now_ms();
        let regions: Vec<RegionId> = self.cluster.regions().ids().collect();
        let Some(&id) = self.further.garbage.chance.pick(&regions) else {
            return;
        };
        let after = self.further.garbage.chance.time(CLOSED);
        let Some(region) = self.cluster.region(id) else {
            return;
        };
        let (start, end) = (region.meta.start_key.clone(), region.meta.end_key.clone());
        let is_free = self.cluster.engine().locks(&start, &end).next().is_none()
            && region.held_writes.is_empty()
            && !region.merging;
        let Some((store, context)) = self.leader_and_context(id).filter(|_| is_free) else {
            return;
        };
        let version = self.cluster.pd_mut().next_tso(now_ms);
        let prepare = kvrpcpb::PrepareFlashbackToVersionRequest {
            context: Some(context),
            start_key: Bytes::new(),
            end_key: Bytes::new(),
            start_ts: self.cluster.pd_mut().next_tso(now_ms),
            version,
        };
        let asked = dispatch::store(&mut self.cluster, now_ms, store, prepare.into());
        let is_closed = |region: &crate::cluster::region::Region| region.meta.is_in_flashback;
        if asked.is_ok() && self.cluster.region(id).is_some_and(is_closed) {
            self.audit.note(self.now, || format!("r{id} is closed"));
            self.audit.mark(Mark::RegionClosed);
            let end = Later::Reopen(id);
            self.schedule(after, Event::Change(Change::Later(end)));
        }
    }

    fn leader_and_context(&self, id: RegionId) -> Option<(StoreId, Box<kvrpcpb::Context>)> {
        let region = self.cluster.region(id)?;
        let peer = *region.leader_peer()?;
        let context = kvrpcpb::Context {
            region_id: id,
            region_epoch: region.meta.region_epoch,
            peer: Some(peer),
            ..Default::default()
        };
        Some((peer.store_id, Box::new(context)))
    }

    /// Sets a region back to what it holds, which opens it.
    pub(super) fn reopen(&mut self, id: RegionId) {
        let now_ms = self.now_ms();
        let Some(region) = self.cluster.region(id).filter(|it| it.meta.is_in_flashback) else {
            return;
        };
        let start_ts = region.meta.flashback_start_ts;
        let asked = self.leader_and_context(id).and_then(|(store, context)| {
            let commit_ts = self.cluster.pd_mut().next_tso(now_ms);
            let request = kvrpcpb::FlashbackToVersionRequest {
                context: Some(context),
                version: start_ts - 1,
                start_key: Bytes::new(),
                end_key: Bytes::new(),
                start_ts,
                commit_ts,
            };
            dispatch::store(&mut self.cluster, now_ms, store, request.into()).ok()
        });
        let done = asked.is_some_and(|response| match &response {
            Response::FlashbackToVersion(reply) => {
                reply.region_error.is_none() && reply.error.is_empty()
            }
            _ => false,
        });
        if done {
            self.audit.note(self.now, || format!("r{id} is open"));
            self.changed(&[id]);
        } else {
            self.schedule(TRY_AGAIN, Event::Change(Change::Later(Later::Reopen(id))));
        }
    }

    pub(super) fn reopen_all(&mut self) {
        let regions = self.cluster.regions().iter();
        let closed = regions.filter(|region| region.meta.is_in_flashback);
        let closed: Vec<RegionId> = closed.map(|region| region.meta.id).collect();
        for region in closed {
            self.reopen(region);
        }
    }
}
