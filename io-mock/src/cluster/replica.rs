//! What a peer that does not lead may serve.
//!
//! Stale reads are served up to the peer's own timestamp; other reads once the leader has said
//! where it stands and the peer has applied that much. A peer that [lags](super::lag) catches up for
//! that at once, unless it is told not to, or is so far behind that it says so.

use tikv_proto::kvrpcpb::{Context, IsolationLevel};
use tikv_proto::metapb;

use super::Cluster;
use super::failure::Failure;
use super::key::Key;
use super::mvcc::error::MvccError;
use super::mvcc::lock::ReadRules;
use super::read_commands::ReadPlan;
use super::region::{PeerState, Region, RegionId, StoreId};
use super::region_checks::{Access, RegionError};
use super::region_errors::{
    data_is_not_ready, disk_full, is_witness, not_leader, read_index_not_ready,
    region_not_initialized, unknown_leader,
};
use super::store::Disk;

impl Cluster {
    /// Whether a replica can find out where the leader stands.
    pub(super) fn check_read_index(
        &self,
        store: StoreId,
        known: &Region,
    ) -> Result<(), RegionError> {
        let id = known.meta.id;
        // The leader answers for the region as it is now; one that has been merged has none.
        let region = self.regions.get(id);
        if region.is_some_and(|region| region.splitting) {
            return Err(read_index_not_ready(id, "can not read index due to split").into());
        }
        if known.merging || region.is_some_and(|region| region.merging) {
            return Err(read_index_not_ready(id, "can not read index due to merge").into());
        }
        let disk = self.stores.get(&store).map(|store| store.disk);
        if disk.is_some_and(|disk| disk != Disk::Normal) {
            let reason = "reject follower read request when self disk is full".to_owned();
            return Err(disk_full(vec![store], reason).into());
        }
        if region.is_none_or(|region| region.leader.is_none()) {
            return Err(unknown_leader(id).into());
        }
        Ok(())
    }

    /// Has the peer that a read is for get ready to serve it. A replica that does not know whether
    /// it has everything asks its leader, where the read leaves its version and must meet none of
    /// the locks under way, and then applies what the leader has.
    pub(super) fn get_ready_to_read(
        &mut self,
        now_ms: u64,
        store: StoreId,
        plan: &ReadPlan<'_>,
        meets_lock: impl FnOnce(&Self, StoreId, &ReadRules<'_>) -> Result<(), MvccError>,
    ) -> Result<(), Failure> {
        if !plan.context.replica_read {
            return Ok(());
        }
        let access = Access::Read(Some(plan.ts));
        let region = self.check_region(store, plan.context, access)?;
        if !must_ask(store, plan.context, region, Some(plan.ts)) {
            return Ok(());
        }
        let id = region.meta.id;
        let leader = self.regions.get(id).and_then(|region| region.leader);
        // A read that minds no locks has nothing to ask but how far to apply.
        let minds_locks = plan.context.isolation_level() == IsolationLevel::Si;
        if let Some(leader) = leader.filter(|_| minds_locks) {
            self.raise_max_ts(now_ms, leader, plan.ts)?;
            meets_lock(self, leader, &leader_rules(plan))?;
            self.note_confirmed(leader, store, id, plan.ts);
        }
        Ok(self.apply_up_to_leader(store, id)?)
    }

    /// The same for a read that names no version.
    pub(super) fn get_ready(
        &mut self,
        store: StoreId,
        context: &Context,
    ) -> Result<(), RegionError> {
        if !context.replica_read {
            return Ok(());
        }
        let region = self.check_region(store, context, Access::Read(None))?;
        if !must_ask(store, context, region, None) {
            return Ok(());
        }
        let id = region.meta.id;
        self.apply_up_to_leader(store, id)
    }

    /// A leader has confirmed a replica's read at a version. If it knew of no lock under way in the
    /// whole region, and the replica need not catch up, that has everything up to there.
    fn note_confirmed(&mut self, leader: StoreId, store: StoreId, id: RegionId, ts: u64) {
        if ts == u64::MAX || self.is_behind(store, id) {
            return;
        }
        let Some(region) = self.regions.get(id).filter(|region| !region.merging) else {
            return;
        };
        let start = Key::from_encoded(region.meta.start_key.clone());
        let mut locks = self
            .store(leader)
            .into_iter()
            .flat_map(|leader| leader.memory_locks.range(start.clone()..));
        if locks.any(|(key, _)| region.contains(key.encoded())) {
            return;
        }
        if let Some(region) = self.regions.get_mut(id) {
            let confirmed = region.confirmed_ts.entry(store).or_default();
            *confirmed = ts.max(*confirmed);
        }
    }

    /// Changes what is out of the ordinary about the peer of a region on a store. `false` if there
    /// is no such peer. What concerns PD it hears with the next heartbeat.
    pub fn set_peer_state(
        &mut self,
        id: RegionId,
        store: StoreId,
        change: impl FnOnce(&mut PeerState),
    ) -> bool {
        let Some(region) = self.regions.get_mut(id) else {
            return false;
        };
        if region.peer_on(store).is_none() {
            return false;
        }
        let mut state = region.peer_state(store);
        let was_whole = !state.applying_snapshot;
        let told = (state.down, state.is_pending());
        change(&mut state);
        let is_news = told != (state.down, state.is_pending()) && region.leader.is_some();
        if was_whole == state.applying_snapshot {
            region.confirmed_ts.remove(&store);
        }
        region.set_peer_state(store, state.clone());
        if let Some(behind) = self.behind_mut(store, id) {
            behind.region.set_peer_state(store, state);
        }
        if is_news && self.config.heartbeat_at_once {
            self.pd_heartbeat(id);
        }
        true
    }
}

/// Whether a read says that it may be stale. One that says that it reads no version may not.
fn is_stale(context: &Context, ts: Option<u64>) -> bool {
    context.stale_read && ts != Some(0)
}

/// Whether a peer that does not lead serves a read from what it has, without asking anybody. A stale
/// read that it is not ready for is refused at once.
pub(super) fn serves_alone(
    store: StoreId,
    region: &Region,
    peer: &metapb::Peer,
    context: &Context,
    access: Access,
) -> Result<bool, RegionError> {
    let Access::Read(ts) = access else {
        return Ok(false);
    };
    let stale = is_stale(context, ts);
    let asked = stale || context.replica_read;
    if !asked || region.peer_state(store).uninitialized {
        return Ok(false);
    }
    match ts {
        Some(ts) if region.is_complete_on(store, ts) => Ok(true),
        Some(_) if stale => {
            let safe_ts = region.safe_ts_on(store);
            Err(data_is_not_ready(region.meta.id, peer.id, safe_ts).into())
        }
        // Where there are no versions any data is old enough.
        None if stale => Ok(true),
        Some(_) | None => Ok(false),
    }
}

/// Whether a peer that does not lead may look at a request any further.
pub(super) fn check_replica(
    store: StoreId,
    region: &Region,
    peer: &metapb::Peer,
    context: &Context,
    access: Access,
) -> Result<(), RegionError> {
    let asked = match access {
        Access::Read(ts) => is_stale(context, ts) || context.replica_read,
        Access::ReadLeader | Access::Write | Access::Flashback | Access::Admin => false,
    };
    if !asked {
        return Err(not_leader(region).into());
    }
    check_has_data(store, region, peer)?;
    let state = region.peer_state(store);
    if state.uninitialized {
        return Err(region_not_initialized(region.meta.id).into());
    }
    if state.applying_snapshot {
        return Err(applying_snapshot(peer).into());
    }
    Ok(())
}

/// Whether a peer has data at all.
pub(super) fn check_has_data(
    store: StoreId,
    region: &Region,
    peer: &metapb::Peer,
) -> Result<(), RegionError> {
    if peer.is_witness || region.peer_state(store).waits_for_data {
        return Err(is_witness(region.meta.id).into());
    }
    Ok(())
}

/// Whether a replica must ask its leader before it serves a read, because it does not know whether
/// it has everything.
fn must_ask(store: StoreId, context: &Context, region: &Region, ts: Option<u64>) -> bool {
    let stale = is_stale(context, ts);
    let complete = ts.is_some_and(|ts| region.is_complete_on(store, ts));
    context.replica_read && !stale && !complete && region.leader != Some(store)
}

/// A leader knows neither the locks that a replica's read may bypass nor whether the key is a
/// primary.
fn leader_rules<'a>(plan: &ReadPlan<'a>) -> ReadRules<'a> {
    ReadRules {
        ts: plan.ts,
        isolation: IsolationLevel::Si,
        bypass: &[],
        access: &[],
        replica: true,
    }
}

fn applying_snapshot(peer: &metapb::Peer) -> tikv_proto::errorpb::Error {
    tikv_proto::errorpb::Error {
        message: format!("{} is applying snapshot", peer.id),
        ..tikv_proto::errorpb::Error::default()
    }
}

#[cfg(test)]
mod tests;
