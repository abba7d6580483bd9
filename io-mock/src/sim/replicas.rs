//! What peers are, and what they know: leaders that hand over or are cut off, peers that lag
//! behind or have not applied what is committed, learners, witnesses, leaders by force.
//!
//! A region has one leader at any time. One that is cut off serves reads as long as its lease lasts,
//! and nobody else is elected before that; its writes reach no majority, so they never happen and
//! are never answered.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use tikv_core::driver::Instant;
use tikv_core::wire::{Command, Response};
use tikv_proto::errorpb;
use tikv_proto::metapb::{self, PeerRole};

use super::chance::Chance;
use super::chaos::{Change, REGIONS_MAX};
use super::faults::{Drawn, Fault};
use super::further::Later;
use super::marks::Mark;
use super::observe::{self, Asked};
use super::plan::Plan;
use super::world::{Event, Phase, World};
use crate::cluster::key;
use crate::cluster::peer_changes::PeerChange;
use crate::cluster::region::{Region, RegionId, StoreId};
use crate::cluster::region_errors::{region_not_found, show_epoch, stale_command};
use crate::dispatch;
use crate::node::Node;

/// What a seed drew of this, and what is so now.
pub(super) struct Replicas {
    chance: Chance,
    drawn: Drawn,
    /// Stores that hear from no other one.
    isolated: BTreeSet<StoreId>,
    unapplied: BTreeMap<(StoreId, RegionId), Unapplied>,
}

/// What a peer has not applied.
#[derive(Debug)]
struct Unapplied {
    until: Instant,
    /// The version that it will have.
    version: u64,
    /// The region as it was; absent if it was none.
    before: Option<metapb::Region>,
}

const HAND_OVER: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(800);
const RECOVERY: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(3);
const ISOLATED: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(8);
const LEASE: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(3);
const LAG: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(6);
const UNAPPLIED: RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(2);
const ROLES: RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(3);
const PIECES: RangeInclusive<u64> = 3..=16;

impl Replicas {
    pub(super) fn new(plan: &Plan) -> Self {
        Replicas {
            chance: Chance::stream(plan.seed, "replicas"),
            drawn: plan.faults.clone(),
            isolated: BTreeSet::new(),
            unapplied: BTreeMap::new(),
        }
    }
}

impl World {
    pub(super) fn trouble_replicas(&mut self, fault: Fault) {
        let regions: Vec<RegionId> = self.cluster.regions().ids().collect();
        let Some(&region) = self.further.replicas.chance.pick(&regions) else {
            return;
        };
        match fault {
            Fault::HandOver => self.begin_hand_over(region),
            Fault::Recovery => self.force_leader(region),
            Fault::Isolate => self.isolate_some_store(),
            Fault::Lag => self.fall_behind(),
            Fault::LateApply => self.apply_split_late(region),
            Fault::Shatter => self.shatter(region),
            Fault::Roles => self.change_roles(region),
            _ => {}
        }
    }

    /// Whether a store could lead a region now.
    pub(super) fn could_lead(&self, region: &Region, store: StoreId) -> bool {
        let may = |peer: &metapb::Peer| {
            let votes = matches!(peer.role(), PeerRole::Voter | PeerRole::IncomingVoter);
            votes && !peer.is_witness
        };
        self.cluster.is_up(store)
            && !self.further.replicas.isolated.contains(&store)
            && region.peer_on(store).is_some_and(may)
    }

    /// The stores other than its leader's that could lead a region.
    fn heirs(&self, region: &Region) -> Vec<StoreId> {
        let stores = region.meta.peers.iter().map(|peer| peer.store_id);
        stores
            .filter(|&store| region.leader != Some(store) && self.could_lead(region, store))
            .collect()
    }

    fn begin_hand_over(&mut self, id: RegionId) {
        let Some(region) = self.cluster.region(id) else {
            return;
        };
        let heirs = self.heirs(region);
        let leads = region.leader.is_some();
        let Some(&to) = self.further.replicas.chance.pick(&heirs).filter(|_| leads) else {
            return;
        };
        let after = self.further.replicas.chance.time(HAND_OVER);
        self.cluster.set_transferring(id, true);
        self.audit
            .note(self.now, || format!("r{id} is being handed over to s{to}"));
        self.audit.mark(Mark::HandedOver);
        let end = Later::HandOver { region: id, to };
        self.schedule(after, Event::Change(Change::Later(end)));
    }

    pub(super) fn end_hand_over(&mut self, id: RegionId, to: StoreId) {
        let now_ms = self.now_ms();
        let Some(region) = self.cluster.region(id).filter(|region| region.transferring) else {
            return;
        };
        if self.could_lead(region, to) && self.cluster.transfer_leader(now_ms, id, to) {
            self.audit.mark(Mark::LeaderMoved);
            self.audit
                .note(self.now, || format!("r{id} is led by s{to}"));
            self.changed(&[id]);
        }
        self.cluster.set_transferring(id, false);
    }

    fn force_leader(&mut self, id: RegionId) {
        let after = self.further.replicas.chance.time(RECOVERY);
        self.audit
            .note(self.now, || format!("r{id} has a leader by force"));
        self.cluster.set_recovering(id, true);
        let end = Later::Recovered(id);
        self.schedule(after, Event::Change(Change::Later(end)));
    }

    fn isolate_some_store(&mut self) {
        let stores: Vec<StoreId> = self.cluster.store_ids().collect();
        let Some(&store) = self.further.replicas.chance.pick(&stores) else {
            return;
        };
        if stores.len() == 1 || !self.may_stop(store) || self.is_isolated(store) {
            return;
        }
        let until = self.further.replicas.chance.time(ISOLATED);
        self.audit
            .note(self.now, || format!("s{store} is cut off from the others"));
        self.further.replicas.isolated.insert(store);
        let end = Later::Rejoin(store);
        self.schedule(until, Event::Change(Change::Later(end)));
        let led = self.cluster.regions().iter();
        let led = led.filter(|region| region.leader == Some(store));
        let led: Vec<RegionId> = led.map(|region| region.meta.id).collect();
        for region in led {
            let after = self.further.replicas.chance.time(LEASE);
            let end = Later::LeaseOver { region, store };
            self.schedule(after, Event::Change(Change::Later(end)));
        }
    }

    pub(super) fn is_isolated(&self, store: StoreId) -> bool {
        self.further.replicas.isolated.contains(&store)
    }

    /// The others elect somebody else, if they can.
    pub(super) fn end_lease(&mut self, id: RegionId, store: StoreId) {
        let Some(region) = self.cluster.region(id) else {
            return;
        };
        let is_cut_off = region.leader == Some(store) && self.is_isolated(store);
        if is_cut_off && !self.heirs(region).is_empty() {
            self.cluster.depose_leader(id);
            self.elect(id);
        }
    }

    pub(super) fn rejoin(&mut self, store: StoreId) {
        if self.further.replicas.isolated.remove(&store) {
            self.audit
                .note(self.now, || format!("s{store} hears the others again"));
        }
    }

    /// Whether a store that is cut off leaves a request without any answer.
    pub(super) fn swallows(&mut self, node: Node, asked: Asked<'_>) -> bool {
        let (Node::Store(store), Some(context)) = (node, asked.context) else {
            return false;
        };
        if !self.is_isolated(store) {
            return false;
        }
        let Some(region) = self.cluster.region(context.region_id) else {
            return false;
        };
        let votes = |peer: &&metapb::Peer| peer.role() != PeerRole::Learner;
        let is_alone = region.meta.peers.iter().filter(votes).count() <= 1;
        let reads =
            !dispatch::is_write(asked.command) && !matches!(asked.command, Command::SplitRegion(_));
        let has_lease = reads && region.leader == Some(store);
        let swallows = !is_alone && !has_lease;
        if swallows {
            self.audit.mark(Mark::NoMajority);
        }
        swallows
    }

    fn fall_behind(&mut self) {
        let stores: Vec<StoreId> = self.cluster.store_ids().collect();
        let Some(&store) = self.further.replicas.chance.pick(&stores) else {
            return;
        };
        let regions: Vec<RegionId> = self.cluster.regions().ids().collect();
        let mut count = 0;
        for region in regions {
            let lags = self.further.replicas.chance.coin();
            count += u32::from(lags && self.cluster.fall_behind(region, store));
        }
        let after = self.further.replicas.chance.time(LAG);
        self.audit.note(self.now, || {
            format!("{count} regions stand still on s{store}")
        });
        let end = Later::CatchUp(store);
        self.schedule(after, Event::Change(Change::Later(end)));
    }

    /// A region splits and moves to a leader that has not applied the split.
    fn apply_split_late(&mut self, id: RegionId) {
        let now_ms = self.now_ms();
        let keys = self.keys_of(id);
        let Some(region) = self.cluster.region(id) else {
            return;
        };
        let heirs = self.heirs(region);
        let (before, leads) = (region.meta.clone(), region.leader.is_some());
        let chance = &mut self.further.replicas.chance;
        let (to, at) = (chance.pick(&heirs).copied(), chance.pick(&keys).cloned());
        let until = self.now + chance.time(UNAPPLIED);
        let (Some(to), Some(at)) = (to, at) else {
            return;
        };
        if !leads || !self.may_split(id) {
            return;
        }
        let parts = self.cluster.split(now_ms, id, std::slice::from_ref(&at));
        if parts.len() < 2 {
            return;
        }
        self.cluster.transfer_leader(now_ms, id, to);
        for &part in &parts {
            let version = self.cluster.region(part).map(|part| part.epoch().version);
            let unapplied = Unapplied {
                until,
                version: version.unwrap_or_default(),
                before: (part == id).then(|| before.clone()),
            };
            let unapplied_on = &mut self.further.replicas.unapplied;
            unapplied_on.insert((to, part), unapplied);
        }
        self.audit.mark(Mark::Split);
        self.audit.mark(Mark::LeaderMoved);
        self.audit.note(self.now, || {
            format!("r{id} splits into {parts:?}, and s{to} leads and has not applied it")
        });
        self.changed(&parts);
    }

    /// What a peer says that has not applied what its region went through.
    pub(super) fn refuses_unapplied(&mut self, node: Node, asked: Asked<'_>) -> Option<Response> {
        let (Node::Store(store), Some(context)) = (node, asked.context) else {
            return None;
        };
        if self.further.replicas.unapplied.is_empty() {
            return None;
        }
        let id = context.region_id;
        let unapplied = self.further.replicas.unapplied.get(&(store, id))?;
        let region = self.cluster.region(id)?;
        let sent = context.region_epoch.unwrap_or_default();
        let is_late = self.now < unapplied.until
            && region.epoch().version == unapplied.version
            && sent.version == unapplied.version
            && context.peer.is_some_and(|peer| peer.store_id == store);
        if !is_late {
            return None;
        }
        let error = match &unapplied.before {
            None => region_not_found(id),
            Some(_) if region.leader != Some(store) => return None,
            Some(before) => {
                let epoch = before.region_epoch.unwrap_or_default();
                errorpb::Error {
                    message: format!(
                        "EpochNotMatch current epoch of region {id} is {}, but you sent {}",
                        show_epoch(&epoch),
                        show_epoch(&sent)
                    ),
                    epoch_not_match: Some(errorpb::EpochNotMatch {
                        current_regions: vec![before.clone()],
                    }),
                    ..Default::default()
                }
            }
        };
        let older = error.epoch_not_match.is_some();
        let response = dispatch::refusal(asked.command, error)?;
        if older {
            self.audit.mark(Mark::OlderRegions);
        }
        Some(response)
    }

    /// A region splits, or changes its leader, under a write that has begun: its locks in memory
    /// have moved when it looks at them, so it goes back, and is told nothing about the region.
    pub(super) fn move_locks(&mut self, node: Node, asked: Asked<'_>) -> Option<Response> {
        let (Node::Store(store), Some(context)) = (node, asked.context) else {
            return None;
        };
        let raw = observe::is_raw(asked.command);
        if self.phase != Phase::Faulty || raw || !dispatch::is_write(asked.command) {
            return None;
        }
        let share = self.further.replicas.drawn.share(Fault::MovedLocks);
        let drawn = self.further.replicas.chance.hits(share);
        if !self.strikes.lands(self.now, Fault::MovedLocks, drawn) {
            return None;
        }
        let (id, now_ms) = (context.region_id, self.now_ms());
        let sent = context.region_epoch.unwrap_or_default();
        let region = self.cluster.region(id)?;
        if region.leader != Some(store) || region.epoch().version != sent.version {
            return None;
        }
        let heirs = self.heirs(region);
        let (keys, _) = observe::keys(asked.command);
        let chance = &mut self.further.replicas.chance;
        let (splits, to) = (chance.coin(), chance.pick(&heirs).copied());
        let at = chance.pick(&keys).map(|key| key::encode(key));
        let error = if splits {
            let at = at.filter(|_| self.may_split(id))?;
            let parts = self.cluster.split(now_ms, id, std::slice::from_ref(&at));
            if parts.len() < 2 {
                return None;
            }
            self.audit.mark(Mark::Split);
            self.changed(&parts);
            errorpb::Error {
                epoch_not_match: Some(errorpb::EpochNotMatch::default()),
                ..Default::default()
            }
        } else {
            if !self.cluster.transfer_leader(now_ms, id, to?) {
                return None;
            }
            self.audit.mark(Mark::LeaderMoved);
            self.changed(&[id]);
            stale_command()
        };
        let what = if splits { "splits" } else { "has a new leader" };
        self.audit
            .note(self.now, || format!("r{id} {what} under a write"));
        self.audit.mark(Mark::LocksMoved);
        dispatch::refusal(asked.command, error)
    }

    /// Whether a region may be split: there are not too many, and it is not closed.
    pub(super) fn may_split(&self, id: RegionId) -> bool {
        let region = self.cluster.region(id);
        self.cluster.regions().len() < REGIONS_MAX
            && region.is_some_and(|region| !region.meta.is_in_flashback && !region.merging)
    }

    fn shatter(&mut self, id: RegionId) {
        let now_ms = self.now_ms();
        let mut keys = self.keys_of(id);
        keys.dedup();
        let room = REGIONS_MAX.saturating_sub(self.cluster.regions().len());
        let chance = &mut self.further.replicas.chance;
        let pieces = (chance.within(PIECES) as usize).min(room);
        let mut at: Vec<Bytes> = Vec::new();
        while at.len() < pieces && !keys.is_empty() {
            at.push(keys.swap_remove(chance.index(keys.len())));
        }
        if !self.may_split(id) {
            return;
        }
        let parts = self.cluster.split(now_ms, id, &at);
        if parts.len() > 2 {
            self.audit
                .note(self.now, || format!("r{id} splits into {parts:?}"));
            self.audit.mark(Mark::SplitToPieces);
            self.changed(&parts);
        }
    }

    /// A follower becomes a witness or a learner, or a region gets a learner.
    fn change_roles(&mut self, id: RegionId) {
        let now_ms = self.now_ms();
        let Some(region) = self.cluster.region(id) else {
            return;
        };
        let followers = self.heirs(region);
        let others = self.alive();
        let others: Vec<StoreId> = others
            .into_iter()
            .filter(|&store| region.peer_on(store).is_none())
            .collect();
        let leads = region.leader.is_some();
        let chance = &mut self.further.replicas.chance;
        let (follower, other) = (
            chance.pick(&followers).copied(),
            chance.pick(&others).copied(),
        );
        let kind = chance.below(4);
        let after = chance.time(ROLES);
        let (store, done) = match (kind, follower, other) {
            _ if !leads => return,
            (0, Some(store), _) => (store, self.cluster.set_witness(now_ms, id, store, true)),
            (1, Some(store), _) => {
                let demote = [PeerChange::AddLearner(store)];
                (store, self.cluster.enter_joint(now_ms, id, &demote))
            }
            (2, Some(store), Some(other)) => {
                let swap = [PeerChange::AddVoter(other), PeerChange::AddLearner(store)];
                (store, self.cluster.enter_joint(now_ms, id, &swap))
            }
            (_, _, Some(store)) => {
                let added = self.cluster.add_peer(now_ms, id, store, PeerRole::Learner);
                (store, added != 0)
            }
            _ => return,
        };
        if done {
            self.audit
                .note(self.now, || format!("r{id} changes its peer on s{store}"));
            self.audit.mark(Mark::RoleChanged);
            self.changed(&[id]);
            let next = Later::Roles { region: id, store };
            self.schedule(after, Event::Change(Change::Later(next)));
        }
    }

    /// One step from what a peer was made to what it is to be in the end.
    pub(super) fn settle_roles(&mut self, id: RegionId, store: StoreId) {
        let now_ms = self.now_ms();
        let Some(region) = self.cluster.region(id) else {
            return;
        };
        let waits = region.peer_state(store).waits_for_data;
        let Some(&peer) = region.peer_on(store) else {
            return;
        };
        let chance = &mut self.further.replicas.chance;
        let (after, stays) = (chance.time(ROLES), chance.coin());
        let more = if peer.is_witness {
            self.cluster.set_witness(now_ms, id, store, false);
            let waiting = |peer: &mut crate::cluster::region::PeerState| peer.waits_for_data = true;
            self.cluster.set_peer_state(id, store, waiting)
        } else if waits {
            self.cluster
                .set_peer_state(id, store, |peer| peer.waits_for_data = false);
            false
        } else if self.cluster.leave_joint(now_ms, id) {
            true
        } else if peer.role() == PeerRole::Learner && stays {
            self.cluster.promote_peer(now_ms, id, store);
            false
        } else if peer.role() == PeerRole::Learner {
            self.cluster.remove_peer(now_ms, id, store);
            false
        } else {
            false
        };
        self.changed(&[id]);
        if more {
            let next = Later::Roles { region: id, store };
            self.schedule(after, Event::Change(Change::Later(next)));
        }
    }

    pub(super) fn mend_replicas(&mut self) {
        let now_ms = self.now_ms();
        self.further.replicas.isolated.clear();
        self.further.replicas.unapplied.clear();
        let stores: Vec<StoreId> = self.cluster.store_ids().collect();
        for store in stores {
            self.cluster.catch_up(store);
        }
        let regions: Vec<RegionId> = self.cluster.regions().ids().collect();
        for id in regions {
            self.cluster.set_recovering(id, false);
            self.cluster.set_transferring(id, false);
            self.cluster.leave_joint(now_ms, id);
            let Some(region) = self.cluster.region(id) else {
                continue;
            };
            let peers = region.meta.peers.clone();
            for peer in peers {
                let store = peer.store_id;
                if peer.is_witness {
                    self.cluster.set_witness(now_ms, id, store, false);
                }
                self.cluster
                    .set_peer_state(id, store, |peer| peer.waits_for_data = false);
                if peer.role() == PeerRole::Learner {
                    self.cluster.promote_peer(now_ms, id, store);
                }
            }
        }
    }
}
