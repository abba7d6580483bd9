//! The second half of the menu: which file has which fault, what ends each, and how all are mended.
//!
//! | faults | where |
//! |---|---|
//! | what peers are, know and have applied | [`replicas`](super::replicas) |
//! | which stores there are, where they listen and what stands on them | [`placement`](super::placement) |
//! | what ends in the middle of a request | [`write_ends`](super::write_ends) |
//! | streams that end, answers that stay away, clients that stand still | [`links`](super::links) |
//! | PD | [`pd_trouble`](super::pd_trouble) |
//! | other clients' transactions, and what only they can see | [`strangers`](super::strangers) |
//! | old versions that go, regions that are set back | [`garbage`](super::garbage) |
//!
//! Each part draws from a stream of its own, as does the time at which these faults strike: a run
//! that does not allow them is what it was before there were any.

use std::time::Duration;

use super::chance::Chance;
use super::faults::Fault;
use super::garbage::Garbage;
use super::links::Links;
use super::network::ClientId;
use super::pd_trouble::PdTrouble;
use super::placement::Placement;
use super::plan::Plan;
use super::replicas::Replicas;
use super::strangers::Strangers;
use super::world::World;
use super::write_ends::WriteEnds;
use crate::cluster::region::{RegionId, StoreId};

/// What a seed drew of these faults, and what they have done.
pub(super) struct Further {
    timing: Chance,
    pub(super) replicas: Replicas,
    pub(super) placement: Placement,
    pub(super) write_ends: WriteEnds,
    pub(super) links: Links,
    pub(super) pd: PdTrouble,
    pub(super) strangers: Strangers,
    pub(super) garbage: Garbage,
}

/// Something that ends or follows one of these faults.
#[derive(Clone, Copy, Debug)]
pub(super) enum Later {
    /// A region's leader hands over, or stays.
    HandOver { region: RegionId, to: StoreId },
    /// Operators are done with a region.
    Recovered(RegionId),
    /// The lease of a leader that is cut off is over.
    LeaseOver { region: RegionId, store: StoreId },
    /// A store hears from the others again.
    Rejoin(StoreId),
    /// The peers on a store know what there is to know.
    CatchUp(StoreId),
    /// A region's peers become what they are to be next.
    Roles { region: RegionId, store: StoreId },
    /// A region that was to be set back is open again.
    Reopen(RegionId),
    /// A store has too much to do no more.
    CalmDown(StoreId),
    /// A store's disk has room again.
    MakeRoom(StoreId),
    /// A store that is ending stops.
    Close(StoreId),
    /// A store that is leaving is gone for good.
    Bury(StoreId),
    /// PD forgets who is gone for good.
    ForgetBuried,
    /// A client's process goes on.
    Thaw(ClientId),
    /// A leader has learned up to where reads were served.
    SyncMaxTs(RegionId),
    /// A stranger's next step.
    Stranger(usize),
    /// A region applies what it has kept back.
    Apply(RegionId),
}

impl Further {
    pub(super) fn new(plan: &Plan) -> Self {
        Further {
            timing: Chance::stream(plan.seed, "further faults"),
            replicas: Replicas::new(plan),
            placement: Placement::new(plan),
            write_ends: WriteEnds::new(plan),
            links: Links::new(plan),
            pd: PdTrouble::new(plan),
            strangers: Strangers::new(plan),
            garbage: Garbage::new(plan),
        }
    }

    /// When a fault strikes next that comes again and again.
    pub(super) fn after(&mut self, mean: Duration) -> Duration {
        self.timing.around(mean)
    }
}

impl World {
    /// One of these faults strikes.
    pub(super) fn strike_further(&mut self, fault: Fault) {
        match fault {
            Fault::HandOver
            | Fault::Recovery
            | Fault::Isolate
            | Fault::Lag
            | Fault::LateApply
            | Fault::Shatter
            | Fault::Roles => self.trouble_replicas(fault),
            Fault::MoveRegion | Fault::NewAddress | Fault::ComeAndGo | Fault::CloseStore => {
                self.trouble_stores(fault);
            }
            Fault::CloseStream | Fault::HalfOpen | Fault::Freeze => self.trouble_links(fault),
            Fault::PdBusy | Fault::PdStarting | Fault::PdForgets | Fault::PdMembers => {
                self.trouble_pd(fault);
            }
            Fault::Strangers => self.meet_stranger(),
            Fault::Flashback => self.close_for_flashback(),
            Fault::Garbage => self.collect_garbage(),
            _ => {}
        }
    }

    /// What one of these faults did ends.
    pub(super) fn later(&mut self, later: Later) {
        match later {
            Later::HandOver { region, to } => self.end_hand_over(region, to),
            Later::Recovered(region) => self.cluster.set_recovering(region, false),
            Later::LeaseOver { region, store } => self.end_lease(region, store),
            Later::Rejoin(store) => self.rejoin(store),
            Later::CatchUp(store) => self.cluster.catch_up(store),
            Later::Roles { region, store } => self.settle_roles(region, store),
            Later::Reopen(region) => self.reopen(region),
            Later::CalmDown(store) => self.calm_down(store),
            Later::MakeRoom(store) => self.make_room(store),
            Later::Close(store) => self.close_store(store),
            Later::Bury(store) => self.bury(store),
            Later::ForgetBuried => self.forget_buried(),
            Later::Thaw(client) => self.thaw(client),
            Later::SyncMaxTs(region) => self.sync_max_ts(region),
            Later::Stranger(stranger) => self.go_on(stranger),
            Later::Apply(region) => self.apply_late(region),
        }
    }

    /// Mends what these faults have done, before stores are started and leaders elected. What takes
    /// a leader is mended after that.
    pub(super) fn mend_further(&mut self) {
        self.mend_stores();
        self.mend_links();
        self.mend_pd();
        self.mend_replicas();
    }
}
