//! The faults that change the cluster: when they strike and what they do. The world calls it and
//! keeps the time.
//!
//! Every fault ends by itself or is mended when the time of faults is over. Of the stores, fewer
//! than half are down at a time, so that a quorum stands; a single store may go down as well.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use tikv_core::wire::Command;

use super::ailments::Ailments;
use super::chance::{Chance, Ppm};
use super::faults::{Drawn, Fault, Faults};
use super::further::{Further, Later};
use super::marks::Mark;
use super::network::Down;
use super::observe::{self, Asked};
use super::plan::Plan;
use super::world::{Event, Phase, World};
use crate::cluster::key;
use crate::cluster::mvcc::engine::ColumnFamily;
use crate::cluster::region::{RegionId, StoreId};
use crate::node::Node;

/// What a seed drew of this.
pub(super) struct Chaos {
    chance: Chance,
    drawn: Drawn,
}

/// Something that ends or follows a fault.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// A store starts again.
    StartStore(StoreId),
    /// A store stops, having answered a write.
    StopStore(StoreId),
    /// A region without a leader elects one.
    Elect(RegionId),
    /// A prepared merge is carried out, or given up.
    EndMerge {
        source: RegionId,
        target: RegionId,
        done: bool,
    },
    /// PD hears of a region.
    Heartbeat(RegionId),
    /// PD has a leader again.
    PdElected(usize),
    /// PD can be reached again.
    PdUp,
    /// What the second half of the menu did.
    Later(Later),
}

/// What happens to a region around the very request that is being served.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Aimed {
    pub(super) before: Option<Fault>,
    pub(super) after: Option<Fault>,
}

/// There are never more regions than this by chance.
pub(super) const REGIONS_MAX: usize = 64;
const STORE_DOWN: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(8);
const ELECTION: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(4);
const MERGE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(500);
pub(super) const HEARTBEAT: RangeInclusive<Duration> =
    Duration::from_millis(5)..=Duration::from_secs(4);
const PD_DOWN: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(5);
const CUT: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(6);

impl Chaos {
    pub(super) fn new(plan: &Plan) -> Self {
        Chaos {
            chance: Chance::stream(plan.seed, "chaos"),
            drawn: plan.faults.clone(),
        }
    }

    /// Which faults strike by themselves, and when for the first time.
    pub(super) fn begin(
        &mut self,
        ailments: &mut Ailments,
        further: &mut Further,
    ) -> Vec<(Fault, Duration)> {
        let recurring: Vec<_> = self.drawn.recurring().collect();
        recurring
            .into_iter()
            .map(|(fault, mean)| (fault, self.after(fault, mean, ailments, further)))
            .collect()
    }

    fn next(
        &mut self,
        fault: Fault,
        ailments: &mut Ailments,
        further: &mut Further,
    ) -> Option<Duration> {
        let (_, mean) = self.drawn.recurring().find(|(other, _)| *other == fault)?;
        Some(self.after(fault, mean, ailments, further))
    }

    /// What ails stores comes by chances of its own, and so does the rest of the menu.
    fn after(
        &mut self,
        fault: Fault,
        mean: Duration,
        ailments: &mut Ailments,
        further: &mut Further,
    ) -> Duration {
        if Faults::first_menu().contains(fault) {
            self.chance.around(mean)
        } else if Faults::second_menu().contains(fault) {
            ailments.after(mean)
        } else {
            further.after(mean)
        }
    }

    pub(super) fn coin(&mut self) -> bool {
        self.chance.coin()
    }

    fn share(&self, fault: Fault) -> Ppm {
        self.drawn.share(fault)
    }

    /// How a node that goes down looks from outside.
    fn down(&mut self) -> Down {
        if self.chance.coin() {
            Down::Refusing
        } else {
            Down::Silent
        }
    }
}

impl World {
    /// A fault strikes, and will again.
    pub(super) fn strike(&mut self, fault: Fault) {
        if self.phase != Phase::Faulty {
            return;
        }
        let next = self
            .chaos
            .next(fault, &mut self.ailments, &mut self.further);
        if let Some(after) = next {
            self.schedule(after, Event::Strike(fault));
        }
        if !self.strikes.lands(self.now, fault, true) {
            return;
        }
        match fault {
            Fault::Reset => {
                if let Some(&(client, node)) = self.chaos.chance.pick(&self.network.links()) {
                    self.note(|| format!("reset {client} {node}"));
                    self.reset_link(client, node);
                }
            }
            Fault::Cut => {
                if let Some(&(client, node)) = self.chaos.chance.pick(&self.network.links()) {
                    let until = self.now + self.chaos.chance.time(CUT);
                    self.note(|| format!("cut {client} {node} until {} ms", until.as_millis()));
                    self.network.cut(client, node, until);
                }
            }
            Fault::StopStore => self.stop_some_store(),
            Fault::Split | Fault::Merge | Fault::TransferLeader | Fault::LoseLeader => {
                let regions: Vec<RegionId> = self.cluster.regions().ids().collect();
                if let Some(&region) = self.chaos.chance.pick(&regions) {
                    self.change_region(fault, region, None);
                }
            }
            Fault::PdLeaderChange => {
                let members = self.cluster.pd().members().len();
                let next = self.chaos.chance.index(members);
                let after = self.chaos.chance.time(PD_DOWN);
                let now_ms = self.now_ms();
                self.note(|| "PD loses its leader".into());
                self.cluster.pd_mut().set_leader(now_ms, None);
                self.schedule(after, Event::Change(Change::PdElected(next)));
            }
            Fault::PdOutage => {
                let after = self.chaos.chance.time(PD_DOWN);
                let down = self.chaos.down();
                self.note(|| format!("PD goes down, {down:?}"));
                for member in 0..self.cluster.pd().members().len() {
                    self.take_down(Node::Pd(member), down);
                }
                self.schedule(after, Event::Change(Change::PdUp));
            }
            Fault::SlowStore
            | Fault::BusyStore
            | Fault::DiskFull
            | Fault::MovePeer
            | Fault::JumpTso => self.ail(fault),
            // These strike messages and calls, not by themselves.
            Fault::DropRequest
            | Fault::LoseReply
            | Fault::Delay
            | Fault::Duplicate
            | Fault::Aim
            | Fault::StalePd
            | Fault::SlowTso
            | Fault::Cancel
            | Fault::Crash
            | Fault::DieInWrite => {}
            further => self.strike_further(further),
        }
    }

    /// What a fault did ends.
    pub(super) fn change(&mut self, change: Change) {
        let now_ms = self.now_ms();
        match change {
            Change::StartStore(store) => self.start_store(store),
            Change::StopStore(store) => {
                if self.phase == Phase::Faulty && self.may_stop(store) {
                    self.stop_store(store);
                }
            }
            Change::Elect(region) => self.elect(region),
            Change::EndMerge {
                source,
                target,
                done,
            } => self.end_merge(source, target, done),
            Change::Heartbeat(region) => self.heartbeat(region),
            Change::PdElected(member) => {
                if self.cluster.pd().leader().is_none() {
                    self.note(|| format!("pd{member} leads"));
                    self.cluster.pd_mut().set_leader(now_ms, Some(member));
                }
            }
            Change::PdUp => self.bring_pd_up(),
            Change::Later(later) => self.later(later),
        }
    }

    /// Mends everything that faults have done.
    pub(super) fn mend(&mut self) {
        let now_ms = self.now_ms();
        self.heal();
        self.mend_further();
        for store in self.alive() {
            self.start_store(store);
        }
        if self.cluster.pd().leader().is_none() {
            self.cluster.pd_mut().set_leader(now_ms, Some(0));
        }
        self.bring_pd_up();
        let regions: Vec<RegionId> = self.cluster.regions().ids().collect();
        for region in regions {
            if self
                .cluster
                .region(region)
                .is_some_and(|region| region.merging)
            {
                self.cluster.rollback_merge(now_ms, region);
            }
            self.elect(region);
            self.heartbeat(region);
        }
        self.reopen_all();
        self.dismiss_strangers();
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        self.audit.note(self.now, text);
    }

    /// Whether a quorum stands without this store, or it is the only one.
    pub(super) fn may_stop(&self, store: StoreId) -> bool {
        let alive = self.alive();
        let stores = alive.len();
        let is_out = |store: &&StoreId| !self.cluster.is_up(**store) || self.is_isolated(**store);
        let down = alive.iter().filter(is_out).count();
        self.cluster.is_up(store) && (stores == 1 || (down + 1) * 2 <= stores)
    }

    fn stop_some_store(&mut self) {
        let up: Vec<StoreId> = self
            .cluster
            .store_ids()
            .filter(|&store| self.cluster.is_up(store))
            .collect();
        if !up.first().is_some_and(|&store| self.may_stop(store)) {
            return;
        }
        if let Some(&store) = self.chaos.chance.pick(&up) {
            self.stop_store(store);
        }
    }

    /// A store stops, and comes back later.
    pub(super) fn stop_store(&mut self, store: StoreId) {
        let how = self.chaos.down();
        self.note(|| format!("s{store} stops, {how:?}"));
        let led: Vec<RegionId> = self
            .cluster
            .regions()
            .iter()
            .filter(|region| region.leader == Some(store))
            .map(|region| region.meta.id)
            .collect();
        self.cluster.stop_store(store);
        self.take_down(Node::Store(store), how);
        let after = self.chaos.chance.time(STORE_DOWN);
        self.schedule(after, Event::Change(Change::StartStore(store)));
        for region in led {
            self.elect_later(region);
        }
    }

    fn start_store(&mut self, store: StoreId) {
        if self.cluster.is_up(store) || !self.alive().contains(&store) {
            return;
        }
        self.note(|| format!("s{store} starts"));
        self.audit.mark(Mark::StoreRestarted);
        let now_ms = self.now_ms();
        self.cluster.start_store(now_ms, store);
        self.bring_up(Node::Store(store));
        let led: Vec<RegionId> = self
            .cluster
            .regions()
            .iter()
            .filter(|region| region.leader == Some(store))
            .map(|region| region.meta.id)
            .collect();
        self.changed(&led);
    }

    fn bring_pd_up(&mut self) {
        for member in 0..self.cluster.pd().members().len() {
            if !self.network.is_up(Node::Pd(member)) {
                self.note(|| format!("pd{member} is back"));
                self.bring_up(Node::Pd(member));
            }
        }
    }

    /// A region whose leader is gone gets one of the stores that are up.
    pub(super) fn elect(&mut self, id: RegionId) {
        let now_ms = self.now_ms();
        let Some(region) = self.cluster.region(id) else {
            return;
        };
        if region.leader.is_some_and(|store| self.cluster.is_up(store)) {
            return;
        }
        let candidates: Vec<StoreId> = region
            .meta
            .peers
            .iter()
            .map(|peer| peer.store_id)
            .filter(|&store| self.could_lead(region, store))
            .collect();
        match self.chaos.chance.pick(&candidates).copied() {
            Some(store) => {
                self.note(|| format!("s{store} is elected in r{id}"));
                self.audit.mark(Mark::LeaderMoved);
                self.cluster.elect(now_ms, id, store);
                self.changed(&[id]);
            }
            // The only store is down; it leads again when it comes back.
            None => self.elect_later(id),
        }
    }

    /// A region without a leader elects one after a while.
    pub(super) fn elect_later(&mut self, id: RegionId) {
        let after = self.chaos.chance.time(ELECTION);
        self.schedule(after, Event::Change(Change::Elect(id)));
    }

    fn end_merge(&mut self, source: RegionId, target: RegionId, done: bool) {
        let now_ms = self.now_ms();
        if !self
            .cluster
            .region(source)
            .is_some_and(|region| region.merging)
        {
            return;
        }
        // A closed region takes nobody in.
        let region = self.cluster.region(target);
        let done = done && region.is_none_or(|region| !region.meta.is_in_flashback);
        if done && self.cluster.merge(now_ms, source, target) {
            self.note(|| format!("r{source} is merged into r{target}"));
            self.audit.mark(Mark::Merged);
            self.changed(&[target]);
        } else {
            self.cluster.rollback_merge(now_ms, source);
            self.changed(&[source]);
        }
    }

    /// A fault of the region kind hits one region, at one of `keys` if it is a split.
    fn change_region(&mut self, fault: Fault, id: RegionId, keys: Option<&[Bytes]>) {
        let now_ms = self.now_ms();
        let is_closed = |id: RegionId| {
            let region = self.cluster.region(id);
            region.is_some_and(|region| region.meta.is_in_flashback)
        };
        if matches!(fault, Fault::Split | Fault::Merge) && is_closed(id) {
            return;
        }
        match fault {
            Fault::Split => {
                let at = match keys {
                    Some(keys) => self.chaos.chance.pick(keys).cloned(),
                    None => self.some_key(id),
                };
                if self.cluster.regions().len() >= REGIONS_MAX {
                    return;
                }
                let Some(at) = at else { return };
                let parts = self.cluster.split(now_ms, id, std::slice::from_ref(&at));
                if parts.len() > 1 {
                    self.note(|| format!("r{id} splits at {at:?} into {parts:?}"));
                    self.audit.mark(Mark::Split);
                    self.changed(&parts);
                }
            }
            Fault::Merge => {
                let Some(region) = self.cluster.region(id) else {
                    return;
                };
                let neighbours = self.cluster.regions();
                let right = neighbours
                    .find(&region.meta.end_key)
                    .map(|region| region.meta.id);
                let Some(target) = right.filter(|&right| right != id && !is_closed(right)) else {
                    return;
                };
                if self.chaos.coin() {
                    self.note(|| format!("r{id} is to be merged into r{target}"));
                    self.cluster.prepare_merge(now_ms, id);
                    self.changed(&[id]);
                    let done = self.chaos.coin();
                    let after = self.chaos.chance.time(MERGE);
                    let end = Change::EndMerge {
                        source: id,
                        target,
                        done,
                    };
                    self.schedule(after, Event::Change(end));
                } else if self.cluster.merge(now_ms, id, target) {
                    self.note(|| format!("r{id} is merged into r{target}"));
                    self.audit.mark(Mark::Merged);
                    self.changed(&[target]);
                }
            }
            Fault::TransferLeader => {
                let Some(region) = self.cluster.region(id) else {
                    return;
                };
                let others: Vec<StoreId> = region
                    .meta
                    .peers
                    .iter()
                    .map(|peer| peer.store_id)
                    .filter(|&store| region.leader != Some(store) && self.could_lead(region, store))
                    .collect();
                let Some(&to) = self.chaos.chance.pick(&others) else {
                    return;
                };
                if self.cluster.transfer_leader(now_ms, id, to) {
                    self.note(|| format!("r{id} is led by s{to}"));
                    self.audit.mark(Mark::LeaderMoved);
                    self.changed(&[id]);
                }
            }
            Fault::LoseLeader => {
                self.note(|| format!("r{id} loses its leader"));
                self.cluster.depose_leader(id);
                self.elect_later(id);
            }
            _ => {}
        }
    }

    /// PD will hear of changed regions: now, or late.
    pub(super) fn changed(&mut self, regions: &[RegionId]) {
        for &region in regions {
            self.watch_max_ts(region);
        }
        if self.hears_in_parts(regions) {
            return;
        }
        for &region in regions {
            let share = self.chaos.share(Fault::StalePd);
            let late = self.phase == Phase::Faulty && self.chaos.chance.hits(share);
            let after = late.then(|| self.chaos.chance.time(HEARTBEAT));
            if let Some(after) = after
                && self.strikes.lands(self.now, Fault::StalePd, true)
            {
                self.schedule(after, Event::Change(Change::Heartbeat(region)));
            } else {
                self.heartbeat(region);
            }
        }
    }

    pub(super) fn heartbeat(&mut self, region: RegionId) {
        if self
            .cluster
            .region(region)
            .is_some_and(|region| region.leader.is_some())
        {
            self.cluster.pd_heartbeat(region);
            self.heard_of(region);
        }
    }

    /// Some key of a region's data, as regions are bounded by it.
    fn some_key(&mut self, id: RegionId) -> Option<Bytes> {
        let keys = self.keys_of(id);
        self.chaos.chance.pick(&keys).cloned()
    }

    /// The keys of a region's data, as regions are bounded by them.
    pub(super) fn keys_of(&self, id: RegionId) -> Vec<Bytes> {
        let Some(region) = self.cluster.region(id) else {
            return Vec::new();
        };
        let meta = &region.meta;
        let engine = self.cluster.engine();
        let (start, end) = (&meta.start_key, &meta.end_key);
        let versions = engine.histories(start, end).map(|(key, _)| key.encoded());
        let raw = engine
            .raw_range(ColumnFamily::Default, start, end)
            .map(|(key, _)| key);
        versions.chain(raw).cloned().collect()
    }

    /// Whether a region changes right before or after a request is served.
    pub(super) fn aim(&mut self, asked: Asked<'_>) -> Aimed {
        let share = self.chaos.share(Fault::Aim);
        if self.phase != Phase::Faulty || asked.context.is_none() {
            return Aimed::default();
        }
        let drawn = self.chaos.chance.hits(share);
        if !self.strikes.lands(self.now, Fault::Aim, drawn) {
            return Aimed::default();
        }
        let regional = [
            Fault::Split,
            Fault::Merge,
            Fault::TransferLeader,
            Fault::LoseLeader,
        ];
        let on: Vec<Fault> = regional
            .into_iter()
            .filter(|&fault| self.chaos.drawn.strength(fault).is_some())
            .collect();
        let fault = self.chaos.chance.pick(&on).copied();
        if self.chaos.coin() {
            Aimed {
                before: fault,
                after: None,
            }
        } else {
            Aimed {
                before: None,
                after: fault,
            }
        }
    }

    /// Lets an aimed fault hit.
    pub(super) fn hit(&mut self, fault: Option<Fault>, asked: Asked<'_>, before: bool) {
        let (Some(fault), Some(context)) = (fault, asked.context) else {
            return;
        };
        let (keys, raw) = observe::keys(asked.command);
        let keys: Vec<Bytes> = if raw {
            keys
        } else {
            keys.iter().map(|key| key::encode(key)).collect()
        };
        self.change_region(fault, context.region_id, Some(&keys));
        let mark = match (asked.command, before) {
            (Command::Prewrite(_), true) => Mark::ChangedBeforePrewrite,
            (Command::Prewrite(_), false) => Mark::ChangedAfterPrewrite,
            (Command::Commit(_), true) => Mark::ChangedBeforeCommit,
            _ => return,
        };
        self.audit.mark(mark);
    }
}
