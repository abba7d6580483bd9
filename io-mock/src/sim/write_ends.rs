//! Requests in the middle of which leadership ends.
//!
//! A write that was proposed and has not been answered when its leader steps down may be kept or
//! lost, depending on who is elected next; its client is told that its command is stale, which says
//! nothing. So is one whose store dies over it, only that nobody tells. A read that meets a new term
//! is stale as well.

use tikv_core::driver::TransportError;
use tikv_core::wire::Response;

use super::chance::Chance;
use super::faults::{Drawn, Fault};
use super::marks::Mark;
use super::observe::{self, Asked};
use super::plan::Plan;
use super::world::{Phase, World};
use crate::cluster::lock_wait::Answer;
use crate::cluster::region::{RegionId, StoreId};
use crate::cluster::region_errors::stale_command;
use crate::cluster::write_end::{End, WritePoint};
use crate::dispatch;
use crate::node::Node;

/// What a seed drew of this.
pub(super) struct WriteEnds {
    chance: Chance,
    drawn: Drawn,
}

/// How leadership ends over a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stepping {
    store: StoreId,
    region: RegionId,
    /// What was proposed is kept.
    survives: bool,
    /// The cluster itself ends the write.
    by_cluster: bool,
}

impl WriteEnds {
    pub(super) fn new(plan: &Plan) -> Self {
        WriteEnds {
            chance: Chance::stream(plan.seed, "write ends"),
            drawn: plan.faults.clone(),
        }
    }
}

impl World {
    /// Whether leadership ends over this request, and how.
    pub(super) fn step_down(&mut self, node: Node, asked: Asked<'_>) -> Option<Stepping> {
        let (Node::Store(store), Some(context)) = (node, asked.context) else {
            return None;
        };
        if self.phase != Phase::Faulty {
            return None;
        }
        let ends = &mut self.further.write_ends;
        let drawn = ends.chance.hits(ends.drawn.share(Fault::StepDown));
        if !self.strikes.lands(self.now, Fault::StepDown, drawn) {
            return None;
        }
        let region = context.region_id;
        let leads = self
            .cluster
            .region(region)
            .is_some_and(|region| region.leader == Some(store));
        let chance = &mut self.further.write_ends.chance;
        let (survives, dies) = (chance.coin(), chance.below(4) == 0);
        if !leads {
            return None;
        }
        let raw = observe::is_raw(asked.command);
        let writes = dispatch::is_write(asked.command);
        // What a raw write that is kept did is seen in its answer, so it is served to its end.
        let by_cluster = writes && !(raw && survives);
        if by_cluster {
            let end = match dies && self.may_stop(store) {
                true => End::Crash,
                false => End::StepDown,
            };
            let point = WritePoint::Proposed { survives };
            self.cluster.end_next_write(store, end, point);
        }
        Some(Stepping {
            store,
            region,
            survives,
            by_cluster,
        })
    }

    /// What becomes of the answer to a request over which leadership has ended.
    pub(super) fn stepped_down(
        &mut self,
        stepping: Stepping,
        asked: Asked<'_>,
        result: Result<Answer<Response>, TransportError>,
    ) -> Result<Answer<Response>, TransportError> {
        let Stepping {
            store,
            region,
            survives,
            by_cluster,
        } = stepping;
        if !self.cluster.is_up(store) {
            let what = if survives { "kept" } else { "lost" };
            self.audit.note(self.now, || {
                format!("s{store} dies over a write, which is {what}")
            });
            self.audit.mark(Mark::DiedInWrite);
            self.stop_store(store);
            return result;
        }
        if !by_cluster && let Ok(Answer::Now(response)) = &result {
            let had_effect = dispatch::region_error(response).is_none();
            if !had_effect {
                return result;
            }
            self.cluster.depose_leader(region);
        }
        let lost = self
            .cluster
            .region(region)
            .is_some_and(|region| region.leader.is_none());
        if !lost {
            return result;
        }
        self.audit.note(self.now, || {
            let what = if survives { "kept" } else { "lost" };
            format!("s{store} steps down from r{region}; what it proposed is {what}")
        });
        self.audit.mark(Mark::SteppedDown);
        self.elect_later(region);
        match result {
            Ok(Answer::Now(_)) if !by_cluster => {
                match dispatch::refusal(asked.command, stale_command()) {
                    Some(stale) => Ok(Answer::Now(stale)),
                    None => result,
                }
            }
            other => other,
        }
    }
}
