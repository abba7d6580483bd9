//! What goes wrong with PD beside losing its leader: it refuses requests because there are too many,
//! a new leader has not loaded the cluster or not heard who leads which region, members come and
//! move, and of a split it hears in parts.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use tikv_core::driver::{Instant, TransportError};
use tikv_core::wire::{Command, Response};
use tikv_proto::pdpb::{self, ErrorType};

use super::chance::Chance;
use super::chaos::{Change, HEARTBEAT};
use super::faults::{Drawn, Fault};
use super::marks::Mark;
use super::plan::Plan;
use super::world::{Event, Phase, World};
use crate::cluster::region::RegionId;
use crate::node::Node;

/// What a seed drew of this, and what is so now.
pub(super) struct PdTrouble {
    chance: Chance,
    drawn: Drawn,
    /// Until when some requests are refused.
    busy: Instant,
    /// Until when nothing is known of the cluster.
    starting: Instant,
    /// Regions whose leader has not been heard of.
    leaderless: BTreeSet<RegionId>,
    /// Until when at most.
    forgetful: Instant,
    /// A member has moved; who moves all of them at a time loses its clients.
    has_moved: bool,
}

const BUSY: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(3);
const STARTING: RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(1);
const FORGETFUL: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(4);
const MEMBERS_MAX: usize = 5;
/// gRPC's code for too many requests.
const RESOURCE_EXHAUSTED: u32 = 8;

impl PdTrouble {
    pub(super) fn new(plan: &Plan) -> Self {
        PdTrouble {
            chance: Chance::stream(plan.seed, "PD trouble"),
            drawn: plan.faults.clone(),
            busy: Instant::ZERO,
            starting: Instant::ZERO,
            leaderless: BTreeSet::new(),
            forgetful: Instant::ZERO,
            has_moved: false,
        }
    }
}

impl World {
    pub(super) fn trouble_pd(&mut self, fault: Fault) {
        let now = self.now;
        let trouble = &mut self.further.pd;
        match fault {
            Fault::PdBusy => {
                trouble.busy = now + trouble.chance.time(BUSY);
                self.audit.note(now, || "PD is asked too much".into());
            }
            Fault::PdStarting => {
                trouble.starting = now + trouble.chance.time(STARTING);
                self.audit
                    .note(now, || "PD's leader loads the cluster".into());
            }
            Fault::PdForgets => {
                trouble.forgetful = now + trouble.chance.time(FORGETFUL);
                trouble.leaderless = self.cluster.regions().ids().collect();
                self.audit
                    .note(now, || "PD has not heard from any leader".into());
            }
            Fault::PdMembers => self.change_members(),
            _ => {}
        }
    }

    /// A member joins, or one that does not lead moves. Two that every client knows stay where they
    /// are.
    fn change_members(&mut self) {
        let members = self.cluster.pd().members().len();
        let leader = self.cluster.pd().leader();
        let trouble = &mut self.further.pd;
        let joins = trouble.chance.coin();
        let moving = trouble.chance.index(members);
        if joins && members < MEMBERS_MAX {
            let member = self.cluster.pd_mut().add_member();
            self.audit.note(self.now, || format!("pd{member} joins"));
        } else if !trouble.has_moved
            && self.plan.pd_members > 1
            && (moving as u64) < self.plan.pd_members
            && leader != Some(moving)
        {
            trouble.has_moved = true;
            let url = format!("http://127.0.0.1:{}", 12_379 + 10 * moving);
            self.audit
                .note(self.now, || format!("pd{moving} moves to {url}"));
            self.cluster.pd_mut().set_client_urls(moving, vec![url]);
            self.reset_node(Node::Pd(moving));
        } else {
            return;
        }
        self.audit.mark(Mark::PdMembersChanged);
        self.know_addresses();
    }

    /// What PD says instead of serving a request.
    pub(super) fn pd_refusal(
        &mut self,
        node: Node,
        command: &Command,
        address: &std::sync::Arc<str>,
    ) -> Option<Result<Response, TransportError>> {
        let Node::Pd(member) = node else {
            return None;
        };
        let now = self.now;
        if now < self.further.pd.busy && self.further.pd.chance.coin() {
            self.audit.mark(Mark::PdBusy);
            return Some(Err(TransportError::Status {
                address: address.clone(),
                code: RESOURCE_EXHAUSTED,
                message: "rate limit exceeded".into(),
            }));
        }
        if now < self.further.pd.starting && self.cluster.pd().leader() == Some(member) {
            let response = not_bootstrapped(self.cluster.config().cluster_id, command)?;
            self.audit.mark(Mark::PdStarting);
            return Some(Ok(response));
        }
        None
    }

    /// PD's answer, with what it has not heard left out.
    pub(super) fn forget_leaders(&mut self, node: Node, response: &mut Response) {
        let trouble = &self.further.pd;
        if self.now >= trouble.forgetful || matches!(node, Node::Store(_)) {
            return;
        }
        let unknown =
            |region: Option<u64>| region.is_some_and(|region| trouble.leaderless.contains(&region));
        let mut forgot = false;
        match response {
            Response::GetRegion(reply)
            | Response::GetPrevRegion(reply)
            | Response::GetRegionById(reply)
                if unknown(reply.region.as_ref().map(|region| region.id)) =>
            {
                forgot = reply.leader.take().is_some();
            }
            Response::BatchScanRegions(reply) => {
                for found in &mut reply.regions {
                    if unknown(found.region.as_ref().map(|region| region.id)) {
                        forgot |= found.leader.take().is_some();
                    }
                }
            }
            _ => {}
        }
        if forgot {
            self.audit.mark(Mark::PdKnowsNoLeader);
        }
    }

    /// PD has heard from a region's leader.
    pub(super) fn heard_of(&mut self, region: RegionId) {
        self.further.pd.leaderless.remove(&region);
    }

    /// Whether PD hears of one part of a split only, the others coming late.
    pub(super) fn hears_in_parts(&mut self, regions: &[RegionId]) -> bool {
        if regions.len() < 2 || self.phase != Phase::Faulty {
            return false;
        }
        let trouble = &mut self.further.pd;
        let drawn = trouble.chance.hits(trouble.drawn.share(Fault::PdHole));
        if !self.strikes.lands(self.now, Fault::PdHole, drawn) {
            return false;
        }
        self.audit.mark(Mark::PdHeardInParts);
        let first = self.further.pd.chance.index(regions.len());
        for (place, &region) in regions.iter().enumerate() {
            if place == first {
                self.heartbeat(region);
            } else {
                let after = self.further.pd.chance.time(HEARTBEAT);
                self.schedule(after, Event::Change(Change::Heartbeat(region)));
            }
        }
        true
    }

    pub(super) fn mend_pd(&mut self) {
        let trouble = &mut self.further.pd;
        trouble.busy = Instant::ZERO;
        trouble.starting = Instant::ZERO;
        trouble.forgetful = Instant::ZERO;
        trouble.leaderless.clear();
    }
}

/// What a leader says that has not loaded the cluster, to those who ask about regions or stores.
fn not_bootstrapped(cluster_id: u64, command: &Command) -> Option<Response> {
    let header = Some(pdpb::ResponseHeader {
        cluster_id,
        error: Some(pdpb::Error {
            r#type: ErrorType::NotBootstrapped.into(),
            message: "cluster is not bootstrapped".to_owned(),
        }),
    });
    let region = |header| pdpb::GetRegionResponse {
        header,
        ..Default::default()
    };
    Some(match command {
        Command::GetRegion(_) => Response::GetRegion(region(header)),
        Command::GetPrevRegion(_) => Response::GetPrevRegion(region(header)),
        Command::GetRegionById(_) => Response::GetRegionById(region(header)),
        Command::BatchScanRegions(_) => {
            Response::BatchScanRegions(pdpb::BatchScanRegionsResponse {
                header,
                ..Default::default()
            })
        }
        Command::GetStore(_) => Response::GetStore(pdpb::GetStoreResponse {
            header,
            ..Default::default()
        }),
        Command::GetAllStores(_) => Response::GetAllStores(pdpb::GetAllStoresResponse {
            header,
            ..Default::default()
        }),
        _ => return None,
    })
}
