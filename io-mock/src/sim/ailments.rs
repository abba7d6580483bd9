//! What ails single stores, and PD's clock: stores that are slow, busy, out of room, or die over a
//! write; peers that come and go; timestamps that jump. The rest of what changes the cluster is in
//! [`chaos`](super::chaos), which lets these strike.
//!
//! It draws from a stream of its own, so that runs without these faults are what they were before
//! there were any.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use tikv_core::driver::Instant;
use tikv_core::wire::Command;
use tikv_proto::metapb::PeerRole;
use tikv_proto::pdpb;

use super::chance::Chance;
use super::chaos::Change;
use super::faults::{Drawn, Fault};
use super::further::Later;
use super::marks::Mark;
use super::plan::Plan;
use super::world::{Event, Phase, World};
use crate::cluster::load::Load;
use crate::cluster::region::{RegionId, StoreId};
use crate::cluster::store::Disk;
use crate::dispatch;
use crate::node::Node;

/// What a seed drew of this, and what stores suffer from now.
pub(super) struct Ailments {
    chance: Chance,
    drawn: Drawn,
    /// Until when a store has too much to do.
    busy: BTreeMap<StoreId, Instant>,
    /// Until when a store's disk is full.
    full: BTreeMap<StoreId, Instant>,
}

/// When a store dies over a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// Before the write is proposed, or with it: it never happens.
    Before,
    /// After it was applied, before it was answered.
    Unanswered,
    /// Right after it was answered.
    After,
}

const SLOW: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5);
/// A slow store takes up to so many milliseconds longer for everything.
const SLOWER_MS: RangeInclusive<u64> = 1..=800;
const BUSY: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(2);
/// A busy store asks to be left alone for so long, if it does.
const BACKOFF_MS: RangeInclusive<u64> = 1..=500;
/// A busy store lets requests wait for so long, longer than some may take.
const WAIT_MS: RangeInclusive<u64> = 1_000..=60_000;
const FULL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3);
const JUMP: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(30);
/// An answer has left the store when it dies after it.
const ANSWERED: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(50);
/// More timestamps than one millisecond has.
const OVERFLOWING: u32 = (1 << 18) - 1;

impl Ailments {
    pub(super) fn new(plan: &Plan) -> Self {
        Ailments {
            chance: Chance::stream(plan.seed, "ailments"),
            drawn: plan.faults.clone(),
            busy: BTreeMap::new(),
            full: BTreeMap::new(),
        }
    }

    /// When a fault strikes next that comes again and again.
    pub(super) fn after(&mut self, mean: Duration) -> Duration {
        self.chance.around(mean)
    }
}

impl World {
    /// A fault of this kind strikes.
    pub(super) fn ail(&mut self, fault: Fault) {
        let stores: Vec<StoreId> = self.cluster.store_ids().collect();
        let Some(&store) = self.ailments.chance.pick(&stores) else {
            return;
        };
        let now = self.now;
        let chance = &mut self.ailments.chance;
        match fault {
            Fault::SlowStore => {
                let (until, more) = (now + chance.time(SLOW), chance.magnitude(SLOWER_MS));
                self.audit.note(now, || {
                    format!(
                        "s{store} is slower by up to {more} ms until {} ms",
                        until.as_millis()
                    )
                });
                self.network
                    .slow_down(Node::Store(store), until, Duration::from_millis(more));
            }
            Fault::BusyStore => self.overload(store),
            Fault::DiskFull => self.fill_disk(store),
            Fault::MovePeer => self.move_some_peer(),
            Fault::JumpTso => self.jump_tso(),
            _ => {}
        }
    }

    /// A region loses a follower, or gets one.
    fn move_some_peer(&mut self) {
        let now_ms = self.now_ms();
        let alive = self.alive();
        let chance = &mut self.ailments.chance;
        let regions: Vec<RegionId> = self.cluster.regions().ids().collect();
        let Some(&id) = chance.pick(&regions) else {
            return;
        };
        let Some(region) = self.cluster.region(id) else {
            return;
        };
        let (with, without): (Vec<StoreId>, Vec<StoreId>) = alive
            .into_iter()
            .partition(|&store| region.peer_on(store).is_some());
        let followers: Vec<StoreId> = with
            .into_iter()
            .filter(|&store| region.leader.is_some_and(|leader| leader != store))
            .collect();
        let gets = chance.coin();
        let (from, what) = match gets {
            true => (without, "gets a peer on"),
            false => (followers, "loses its peer on"),
        };
        let Some(&store) = chance.pick(&from) else {
            return;
        };
        let done = match gets {
            true => self.cluster.add_peer(now_ms, id, store, PeerRole::Voter) != 0,
            false => self.cluster.remove_peer(now_ms, id, store),
        };
        if done {
            self.audit
                .note(self.now, || format!("r{id} {what} s{store}"));
            self.audit.mark(Mark::PeerMoved);
            self.changed(&[id]);
        }
    }

    /// Timestamps leap ahead, or one millisecond runs out of them.
    fn jump_tso(&mut self) {
        let now_ms = self.now_ms();
        let chance = &mut self.ailments.chance;
        let (overflows, far) = (chance.coin(), chance.time(JUMP));
        let Some(leader) = self.cluster.pd().leader() else {
            return;
        };
        self.audit.mark(Mark::TimestampsJumped);
        if overflows {
            self.audit.note(self.now, || {
                "PD runs out of timestamps for this millisecond".into()
            });
            let header = pdpb::RequestHeader {
                cluster_id: self.cluster.config().cluster_id,
                ..Default::default()
            };
            let request = pdpb::TsoRequest {
                header: Some(header),
                count: OVERFLOWING,
                ..Default::default()
            };
            // Whoever asked for them never comes to know.
            let _ = self.cluster.pd_mut().tso(now_ms, leader, request);
        } else {
            self.audit.note(self.now, || {
                format!("timestamps jump by {} ms", far.as_millis())
            });
            let to_ms = now_ms + far.as_millis() as u64;
            self.cluster.pd_mut().jump_tso(to_ms);
        }
    }

    /// A store has too much to do, or somebody wants it to do less: what it then refuses, and how,
    /// is its own affair.
    fn overload(&mut self, store: StoreId) {
        let chance = &mut self.ailments.chance;
        let until = self.now + chance.time(BUSY);
        let wait_ms = chance.magnitude(WAIT_MS) as u32;
        let load = match chance.below(4) {
            0 => Load {
                scheduler_full: true,
                ..Load::default()
            },
            1 => Load {
                raftstore_full: true,
                ..Load::default()
            },
            2 => Load {
                observer_delay_ms: chance.magnitude(BACKOFF_MS),
                ..Load::default()
            },
            _ => Load {
                read_wait_ms: wait_ms,
                write_wait_ms: wait_ms,
                ..Load::default()
            },
        };
        self.audit.note(self.now, || {
            format!("s{store} has too much to do until {} ms", until.as_millis())
        });
        self.ailments.busy.insert(store, until);
        if let Some(busy) = self.cluster.store_mut(store) {
            let closing = busy.load.closing;
            busy.load = Load { closing, ..load };
        }
        let end = Event::Change(Change::Later(Later::CalmDown(store)));
        self.queue.push(until, end);
    }

    pub(super) fn calm_down(&mut self, store: StoreId) {
        let until = self.ailments.busy.get(&store);
        if until.is_some_and(|&until| until <= self.now)
            && let Some(busy) = self.cluster.store_mut(store)
        {
            let closing = busy.load.closing;
            busy.load = Load {
                closing,
                ..Load::default()
            };
        }
    }

    /// A store's disk fills up, wholly or almost.
    fn fill_disk(&mut self, store: StoreId) {
        let chance = &mut self.ailments.chance;
        let until = self.now + chance.time(FULL);
        let disk = match chance.coin() {
            true => Disk::AlmostFull,
            false => Disk::AlreadyFull,
        };
        self.audit.note(self.now, || {
            format!(
                "the disk of s{store} is {disk:?} until {} ms",
                until.as_millis()
            )
        });
        self.ailments.full.insert(store, until);
        if let Some(full) = self.cluster.store_mut(store) {
            full.disk = disk;
        }
        let end = Event::Change(Change::Later(Later::MakeRoom(store)));
        self.queue.push(until, end);
    }

    pub(super) fn make_room(&mut self, store: StoreId) {
        let until = self.ailments.full.get(&store);
        if until.is_some_and(|&until| until <= self.now)
            && let Some(full) = self.cluster.store_mut(store)
        {
            full.disk = Disk::Normal;
        }
    }

    /// All stores are well again.
    pub(super) fn heal(&mut self) {
        self.ailments.busy.clear();
        self.ailments.full.clear();
        let stores: Vec<StoreId> = self.cluster.store_ids().collect();
        for store in stores {
            if let Some(store) = self.cluster.store_mut(store) {
                store.load = Load::default();
                store.disk = Disk::Normal;
                store.ends_write = None;
            }
        }
    }

    /// Whether a store dies over this request, and when.
    pub(super) fn death(&mut self, node: Node, command: &Command) -> Option<Death> {
        let Node::Store(store) = node else {
            return None;
        };
        if self.phase != Phase::Faulty || !dispatch::is_write(command) {
            return None;
        }
        let share = self.ailments.drawn.share(Fault::DieInWrite);
        let drawn = self.ailments.chance.hits(share);
        let deaths = [Death::Before, Death::Unanswered, Death::After];
        let death = drawn.then(|| deaths[self.ailments.chance.index(deaths.len())])?;
        let strikes = self.may_stop(store) && self.strikes.lands(self.now, Fault::DieInWrite, true);
        strikes.then(|| {
            self.audit.mark(Mark::DiedInWrite);
            death
        })
    }

    /// A store dies over a write that it has answered.
    pub(super) fn die_after(&mut self, store: StoreId) {
        let after = self.ailments.chance.time(ANSWERED);
        self.schedule(after, Event::Change(Change::StopStore(store)));
    }
}
