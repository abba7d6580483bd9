//! Requests that travel alone: from the moment a client sends one until it is answered, given up
//! or lost. What a unary call is over gRPC.
//!
//! A flight is known as long as some event names it: its arrival, its answer, the end of its wait for
//! a lock, or the moment its client stops waiting.
//!
//! A duplicate is a flight that nobody waits for. One that writes is served only if the first one
//! was, and took effect: a client that was told that a write was refused may rely on it, since no
//! connection delivers anything twice by itself.

use std::collections::BTreeSet;

use tikv_core::driver::{ActionId, Instant, Reply, Rpc, TransportError};
use tikv_core::wire::Response;

use super::manners::{Asking, Named};
use super::marks::Mark;
use super::network::{ClientId, Journey};
use super::observe::Asked;
use super::ops::OpKey;
use super::waits::WayBack;
use super::world::{Event, Served, World};
use crate::dispatch;
use crate::node::Node;

/// Names a request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlightKey(u32);

/// A request under way.
struct Flight {
    /// Who waits; nobody does once it is answered, or for a duplicate.
    waiter: Option<(OpKey, ActionId)>,
    client: ClientId,
    node: Node,
    rpc: Rpc,
    /// When the client asked for it.
    sent: Instant,
    /// When its bytes leave the client.
    departs: Instant,
    deadline: Instant,
    /// It will not arrive.
    lost: bool,
    /// An [`Event::Expire`] is scheduled.
    expires: bool,
    /// The number that it shares with its duplicate, if there is one.
    pair: Option<u64>,
    /// It is the duplicate of the two.
    is_twin: bool,
    reply: Option<Reply>,
    /// Scheduled events that name it, a wait for a lock among them. At none it is forgotten.
    events: u8,
}

/// All requests under way by themselves.
#[derive(Default)]
pub(super) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<u32>,
    pairs: u64,
    /// Pairs whose first flight took effect.
    effective: BTreeSet<u64>,
}

impl World {
    /// Sends a request by itself.
    pub(super) fn send(
        &mut self,
        client: ClientId,
        node: Node,
        waiter: (OpKey, ActionId),
        rpc: Rpc,
    ) {
        let deadline = rpc.deadline;
        let journey = self
            .network
            .request(self.now, client, node, &mut self.strikes);
        let mut flight = Flight {
            waiter: Some(waiter),
            client,
            node,
            rpc,
            sent: self.now,
            departs: Instant::FAR_FUTURE,
            deadline: deadline.max(self.now),
            lost: false,
            expires: false,
            pair: None,
            is_twin: false,
            reply: None,
            events: 0,
        };
        match journey {
            Journey::Refused(at) => {
                self.audit.mark(Mark::ConnectionRefused);
                let address = flight.rpc.endpoint.address().clone();
                let message = "connection refused".into();
                let error = TransportError::Connect { address, message };
                flight.reply = Some(Reply::Response(Err(error)));
                let key = self.flights.insert(flight);
                self.answer_at(key, at);
            }
            Journey::Sent {
                departs,
                arrives,
                again,
            } => {
                flight.departs = departs;
                let never = departs >= flight.deadline;
                if again.is_some() {
                    self.flights.pairs += 1;
                    flight.pair = Some(self.flights.pairs);
                }
                let twin = again.filter(|_| !never).map(|at| (at, flight.twin()));
                let key = self.flights.insert(flight);
                match arrives {
                    Some(at) if !never => {
                        self.push_flight(at, key, Event::Arrive(key));
                        if at >= deadline {
                            self.expire(key);
                        }
                    }
                    Some(_) | None => self.expire(key),
                }
                if let Some((at, twin)) = twin {
                    let key = self.flights.insert(twin);
                    self.push_flight(at, key, Event::Arrive(key));
                }
            }
        }
    }

    fn push_flight(&mut self, at: Instant, key: FlightKey, event: Event) {
        if let Some(flight) = self.flights.get(key) {
            flight.events += 1;
            self.queue.push(at, event);
        }
    }

    /// The reply of a flight arrives then, or its client stops waiting before.
    fn answer_at(&mut self, key: FlightKey, at: Instant) {
        let Some(flight) = self.flights.get(key) else {
            return;
        };
        if at < flight.deadline {
            self.push_flight(at, key, Event::Answer(key));
        } else {
            flight.reply = None;
            self.expire(key);
        }
    }

    fn expire(&mut self, key: FlightKey) {
        let Some(flight) = self.flights.get(key) else {
            return;
        };
        let waits = flight.waiter.is_some() && flight.deadline != Instant::FAR_FUTURE;
        if waits && !std::mem::replace(&mut flight.expires, true) {
            let deadline = flight.deadline;
            self.push_flight(deadline, key, Event::Expire(key));
        }
    }

    /// A request reaches its node.
    pub(super) fn arrive(&mut self, key: FlightKey) {
        let Some(flight) = self.flights.land(key) else {
            return;
        };
        let (client, node) = (flight.client, flight.node);
        if flight.lost || !self.network.is_up(node) {
            self.expire(key);
            self.flights.release(key);
            return;
        }
        let (pair, is_twin) = (flight.pair, flight.is_twin);
        let late = flight.waiter.is_none() || self.now >= flight.deadline;
        let rpc = flight.rpc.clone();
        let was_done = pair.is_some_and(|pair| self.flights.effective.remove(&pair));
        if is_twin && dispatch::is_write(&rpc.command) && !was_done {
            self.flights.release(key);
            return;
        }
        if late {
            self.audit.mark(Mark::ServedLate);
        }
        let asked = Asked {
            context: rpc.context.as_deref(),
            command: &rpc.command,
        };
        let whole = dispatch::whole(&rpc);
        let address = rpc.endpoint.address();
        match self.serve(client, node, asked, whole, address) {
            Served::Now(result) => {
                self.note_effect(pair, &result);
                self.reply_to(key, client, node, result);
            }
            Served::Never => self.expire(key),
            Served::Later(ticket) => {
                if let Some(flight) = self.flights.get(key) {
                    flight.events += 1;
                }
                self.parked_by(ticket, WayBack::Flight(key));
                self.expire(key);
            }
        }
        self.flights.release(key);
    }

    /// A request that has waited at its node is answered.
    pub(super) fn served_flight(
        &mut self,
        key: FlightKey,
        result: Result<Response, TransportError>,
    ) {
        let Some(flight) = self.flights.land(key) else {
            return;
        };
        let (lost, pair) = (flight.lost, flight.pair);
        let (client, node) = (flight.client, flight.node);
        self.note_effect(pair, &result);
        if !lost {
            self.reply_to(key, client, node, result);
        }
        self.flights.release(key);
    }

    /// Lets the duplicate of a request that took effect be served.
    fn note_effect(&mut self, pair: Option<u64>, result: &Result<Response, TransportError>) {
        if let Some(pair) = pair
            && took_effect(result)
        {
            self.flights.effective.insert(pair);
        }
    }

    /// Puts a reply on its way, if somebody waits for it.
    fn reply_to(
        &mut self,
        key: FlightKey,
        client: ClientId,
        node: Node,
        result: Result<Response, TransportError>,
    ) {
        // The request may have been the store's last.
        let arrives = match self.network.is_up(node) {
            true => self
                .network
                .reply(self.now, client, node, &mut self.strikes),
            false => None,
        };
        if let Some(flight) = self
            .flights
            .get(key)
            .filter(|flight| flight.waiter.is_some())
        {
            flight.reply = Some(Reply::Response(result));
            match arrives {
                Some(at) => self.answer_at(key, at),
                None => {
                    self.audit.mark(Mark::ReplyLost);
                    self.answer_at(key, Instant::FAR_FUTURE);
                }
            }
        }
    }

    /// A reply reaches its client.
    pub(super) fn answer(&mut self, key: FlightKey) {
        let Some(flight) = self.flights.land(key) else {
            return;
        };
        // Without a reply it was taken back: the client will notice when its deadline passes.
        if let Some(reply) = flight.reply.take()
            && let Some(waiter) = flight.waiter.take()
        {
            if let Reply::Response(Ok(response)) = &reply {
                let asked = Asking {
                    op: waiter.0.number(),
                    sent: flight.sent,
                    named: Named::by(flight.rpc.context.as_deref()),
                };
                self.manners.hears(self.now, flight.client, asked, response);
            }
            self.audit.answered(self.now, waiter.0.number());
            self.deliver(waiter, reply);
        }
        self.flights.release(key);
    }

    /// A client stops waiting for a reply.
    pub(super) fn give_up(&mut self, key: FlightKey) {
        let now = self.now;
        let Some(flight) = self.flights.land(key) else {
            return;
        };
        if let Some(waiter) = flight.waiter.take() {
            let address = flight.rpc.endpoint.address().clone();
            let sent = flight.departs <= now;
            let reply = Reply::Response(Err(TransportError::Deadline { address, sent }));
            let (client, node, label) = (flight.client, flight.node, flight.rpc.command.label());
            self.audit.mark(if sent {
                Mark::DeadlinePassed
            } else {
                Mark::NeverSent
            });
            self.audit
                .note(now, || format!("{client} gives up {label} to {node}"));
            self.audit.answered(now, waiter.0.number());
            self.deliver(waiter, reply);
        }
        self.flights.release(key);
    }

    /// A connection is gone, and with it what is under way on it.
    pub(super) fn break_flights(&mut self, client: ClientId, node: Node) {
        let now = self.now;
        for index in 0..self.flights.slots.len() {
            let Some(flight) = &mut self.flights.slots[index] else {
                continue;
            };
            if (flight.client, flight.node) != (client, node) {
                continue;
            }
            let sent = flight.departs <= now;
            // What has left may still arrive, or be lost with the connection.
            if !sent || self.chaos.coin() {
                flight.lost = true;
            }
            flight.reply = None;
            let Some(waiter) = flight.waiter.take() else {
                continue;
            };
            let address = flight.rpc.endpoint.address().clone();
            let message = "connection reset".into();
            let error = TransportError::Broken {
                address,
                message,
                sent,
            };
            let reply = Reply::Response(Err(error));
            self.audit.mark(if sent {
                Mark::BrokenInFlight
            } else {
                Mark::NeverSent
            });
            self.audit.answered(now, waiter.0.number());
            self.deliver(waiter, reply);
        }
    }

    /// A node has stopped answering, and nobody is told.
    pub(super) fn lose_flights(&mut self, node: Node) {
        for index in 0..self.flights.slots.len() {
            if let Some(flight) = &mut self.flights.slots[index]
                && flight.node == node
            {
                flight.lost = true;
                flight.reply = None;
                self.expire(FlightKey(index as u32));
            }
        }
    }
}

/// Whether a request was done, as far as its client can know.
pub(super) fn took_effect(result: &Result<Response, TransportError>) -> bool {
    result
        .as_ref()
        .is_ok_and(|response| dispatch::region_error(response).is_none())
}

impl Flight {
    /// The same request once more, whose answer nobody waits for.
    fn twin(&self) -> Flight {
        Flight {
            waiter: None,
            is_twin: true,
            rpc: self.rpc.clone(),
            reply: None,
            lost: false,
            expires: false,
            events: 0,
            ..*self
        }
    }
}

impl Flights {
    fn insert(&mut self, flight: Flight) -> FlightKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[index as usize] = Some(flight);
        FlightKey(index)
    }

    fn get(&mut self, key: FlightKey) -> Option<&mut Flight> {
        self.slots.get_mut(key.0 as usize)?.as_mut()
    }

    /// One of its events happens.
    fn land(&mut self, key: FlightKey) -> Option<&mut Flight> {
        let flight = self.get(key)?;
        flight.events -= 1;
        Some(flight)
    }

    /// Forgets a flight that no event names any more.
    fn release(&mut self, key: FlightKey) {
        if self.get(key).is_some_and(|flight| flight.events == 0) {
            self.slots[key.0 as usize] = None;
            self.free.push(key.0);
        }
    }
}
