//! Requests that wait for a lock at their store: they have arrived and are not answered. Their
//! answers go back the way the requests came, alone or in a frame, and may be lost like others.
//!
//! When a wait ends is decided by the [cluster](crate::cluster::lock_wait). Here it is asked after
//! every event, and an event is scheduled for when something is due. A request goes on waiting when
//! its client has gone or its connection broke, as at TiKV; it may get the lock then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tikv_core::driver::Instant;
use tikv_core::wire::{Command, Response};
use tikv_proto::kvrpcpb::Context;

use super::flights::FlightKey;
use super::marks::Mark;
use super::network::ClientId;
use super::observe::Asked;
use super::streams::Unanswered;
use super::world::{Event, World};
use crate::cluster::lock_wait::Ticket;
use crate::dispatch;
use crate::node::Node;

/// All requests that wait for a lock.
#[derive(Default)]
pub(super) struct Waits {
    parked: BTreeMap<Ticket, Parked>,
    /// When the next event is scheduled.
    alarm: Option<Instant>,
}

/// A request that waits.
struct Parked {
    client: ClientId,
    node: Node,
    address: Arc<str>,
    context: Option<Box<Context>>,
    command: Command,
    /// Unknown until the request has been served to its end.
    way: Option<WayBack>,
}

/// How an answer goes back.
pub(super) enum WayBack {
    /// Alone.
    Flight(FlightKey),
    /// In a frame.
    Frame(Unanswered),
}

impl World {
    /// A request waits at its store.
    pub(super) fn park(
        &mut self,
        ticket: Ticket,
        client: ClientId,
        node: Node,
        asked: Asked<'_>,
        address: &Arc<str>,
    ) {
        self.audit.mark(Mark::WaitedForLock);
        self.audit.note(self.now, || {
            format!("{client} {node} {} waits", asked.command.label())
        });
        let parked = Parked {
            client,
            node,
            address: address.clone(),
            context: asked.context.cloned().map(Box::new),
            command: asked.command.clone(),
            way: None,
        };
        self.waits.parked.insert(ticket, parked);
    }

    /// Where to send the answer of a request that waits.
    pub(super) fn parked_by(&mut self, ticket: Ticket, way: WayBack) {
        if let Some(parked) = self.waits.parked.get_mut(&ticket) {
            parked.way = Some(way);
        }
    }

    /// Sends the answers of all who have stopped waiting.
    pub(super) fn settle_waits(&mut self) {
        let now_ms = self.now_ms();
        for (ticket, answer) in dispatch::take_woken(&mut self.cluster, now_ms) {
            let Some(parked) = self.waits.parked.remove(&ticket) else {
                continue;
            };
            let (client, node) = (parked.client, parked.node);
            let asked = Asked {
                context: parked.context.as_deref(),
                command: &parked.command,
            };
            let result = answer.map_err(|error| dispatch::status(&parked.address, error));
            self.audit.served(self.now, client, node, asked, &result);
            match parked.way {
                Some(WayBack::Flight(key)) => self.served_flight(key, result),
                Some(WayBack::Frame(place)) => {
                    if let Ok(response) = &result {
                        self.answer_late(place, Response::encode(response));
                    }
                }
                None => {}
            }
        }
        let Some(next_ms) = self.cluster.next_wake_ms() else {
            return;
        };
        let since = Duration::from_millis(next_ms.saturating_sub(self.epoch_ms));
        let next = (Instant::ZERO + since).max(self.now);
        if self.waits.alarm.is_none_or(|alarm| next < alarm) {
            self.waits.alarm = Some(next);
            self.queue.push(next, Event::EndWaits);
        }
    }

    /// The alarm went off; what is due is done after every event.
    pub(super) fn end_waits(&mut self) {
        if self.waits.alarm.is_some_and(|alarm| alarm <= self.now) {
            self.waits.alarm = None;
        }
    }
}
