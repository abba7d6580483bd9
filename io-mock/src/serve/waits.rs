//! Requests that wait for a lock behind real connections, and the timer that ends their waits.
//!
//! A request goes on waiting when its call or its stream has ended, as at TiKV: then nobody hears
//! the answer.

use std::collections::BTreeMap;
use std::fmt;

use tikv_core::wire::{Command, Response};
use tokio::sync::oneshot;

use crate::cluster::Cluster;
use crate::cluster::failure::{GrpcCode, GrpcError};
use crate::cluster::lock_wait::{Answer, Ticket};
use crate::cluster::region::StoreId;
use crate::dispatch;

type Answered = Result<Response, GrpcError>;

/// Those who wait.
#[derive(Default)]
pub(super) struct Waits {
    parked: BTreeMap<Ticket, oneshot::Sender<Answered>>,
    /// When the timer goes off.
    alarm_ms: Option<u64>,
}

/// A store, ready to be asked.
pub(super) struct Counter<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) waits: &'a mut Waits,
    pub(super) now_ms: u64,
}

/// What a request comes to at once.
pub(super) enum Asked {
    Answered(Response),
    Waits(oneshot::Receiver<Answered>),
}

impl Counter<'_> {
    /// Has a store answer a request, or take it in to wait.
    ///
    /// # Errors
    ///
    /// A failure below the level of replies.
    pub(super) fn ask(&mut self, store: StoreId, command: Command) -> Result<Asked, GrpcError> {
        let begun = dispatch::begin(self.cluster, self.now_ms, store, command)?;
        Ok(match begun {
            Answer::Now(response) => Asked::Answered(response),
            Answer::Later(ticket) => {
                let (answered, waits) = oneshot::channel();
                self.waits.parked.insert(ticket, answered);
                Asked::Waits(waits)
            }
        })
    }
}

impl Asked {
    /// The answer, when it comes.
    pub(super) async fn answer(self) -> Answered {
        match self {
            Asked::Answered(response) => Ok(response),
            Asked::Waits(waits) => waits.await.unwrap_or_else(|_| {
                Err(GrpcError::new(GrpcCode::Unavailable, "the server is gone"))
            }),
        }
    }
}

impl Waits {
    /// Hands out the answers of those who have stopped waiting. If the timer has to be set, tells
    /// for when.
    pub(super) fn settle(&mut self, cluster: &mut Cluster, now_ms: u64) -> Option<u64> {
        for (ticket, answer) in dispatch::take_woken(cluster, now_ms) {
            if let Some(waiting) = self.parked.remove(&ticket) {
                // A call that has ended does not want its answer.
                let _ = waiting.send(answer);
            }
        }
        let next_ms = cluster.next_wake_ms()?;
        if self.alarm_ms.is_some_and(|alarm| alarm <= next_ms) {
            return None;
        }
        self.alarm_ms = Some(next_ms);
        Some(next_ms)
    }

    /// A timer has gone off; one that was set before another may do so after it.
    pub(super) fn went_off(&mut self, at_ms: u64) {
        if self.alarm_ms == Some(at_ms) {
            self.alarm_ms = None;
        }
    }
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Waits({})", self.parked.len())
    }
}
