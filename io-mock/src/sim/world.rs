//! The world of one run: its clock, the events to come, the clients, and the cluster with
//! everything that is under way to it and back.
//!
//! Everything here is plain data under one lock. No future is polled and no waker called; who is
//! to be woken is collected for the executor.
//!
//! How a request travels is the subject of [`flights`](super::flights) if it goes alone, of
//! [`streams`](super::streams) if it goes in frames, and of [`oracle`](super::oracle) if it asks
//! for timestamps; what goes wrong by itself, of [`chaos`](super::chaos).

use std::pin::Pin;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use tikv_core::driver::{
    Action, ActionId, Endpoint, Instant, Operation, Reply, Rpc, TransportError,
};
use tikv_core::rpc::frame::encode_part;
use tikv_core::wire::{Command, Response};
use tikv_core::{Key, Timestamp};

use super::ailments::{Ailments, Death};
use super::audit::Audit;
use super::chance::Chance;
use super::chaos::{Change, Chaos};
use super::faults::Fault;
use super::flights::{FlightKey, Flights};
use super::further::Further;
use super::manners::Manners;
use super::network::{ClientId, Down, Network};
use super::observe::{self, Asked};
use super::ops::{OpKey, Ops, Seat, Waiting};
use super::oracle::{OracleEvent, Oracles};
use super::plan::Plan;
use super::queue::Queue;
use super::streams::{StreamEvent, Streams};
use super::strikes::Strikes;
use super::waits::Waits;
use crate::check::{RawWrite, Truth};
use crate::cluster::Cluster;
use crate::cluster::lock_wait::{Answer, Ticket};
use crate::dispatch;
#[cfg(feature = "mutations")]
use crate::mutation;
use crate::node::{Node, Nodes};

/// What can go wrong now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing yet.
    Calm,
    /// What the seed drew.
    Faulty,
    /// Nothing any more, since then.
    Quiet(Instant),
}

/// Everything that is shared by the tasks of one run.
pub(super) struct World {
    pub(super) now: Instant,
    /// Where the cluster's clock would have stood when the run began.
    pub(super) epoch_ms: u64,
    pub(super) plan: Plan,
    pub(super) phase: Phase,
    pub(super) ops: Ops,
    pub(super) cluster: Cluster,
    pub(super) network: Network,
    pub(super) chaos: Chaos,
    pub(super) ailments: Ailments,
    pub(super) further: Further,
    pub(super) audit: Audit,
    pub(super) manners: Manners,
    pub(super) strikes: Strikes,
    /// To be called by the executor.
    pub(super) wakers: Vec<Waker>,
    pub(super) queue: Queue<Event>,
    pub(super) flights: Flights,
    pub(super) streams: Streams,
    pub(super) oracles: Oracles,
    pub(super) waits: Waits,
    pub(super) nodes: Nodes,
    /// When to look again whether something takes too long.
    next_look: Instant,
    clients: Clients,
    spawned: Vec<Spawned>,
    /// Raw writes in the order in which they took effect.
    raw_writes: Vec<(Key, RawWrite)>,
}

/// A task to be started.
pub(super) enum Spawned {
    /// Background work of a client.
    Operation(ClientId, Operation<()>),
    /// A task of the application.
    Task(Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// What will happen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A request reaches its node.
    Arrive(FlightKey),
    /// A reply, or the news of a failure, reaches its client.
    Answer(FlightKey),
    /// A client stops waiting for a reply.
    Expire(FlightKey),
    /// Something happens on a stream of frames.
    Stream(StreamEvent),
    /// Something happens on a stream of timestamps.
    Oracle(OracleEvent),
    /// Requests may have waited long enough for a lock.
    EndWaits,
    /// An operation's sleep is over.
    Wake(OpKey, ActionId),
    /// A fault that comes by itself.
    Strike(Fault),
    /// Something that a fault did ends.
    Change(Change),
    /// The time of faults is over.
    EndFaults,
}

struct Clients {
    chance: Chance,
    open: Vec<bool>,
    /// Whose tasks the executor has to stop.
    closed: Vec<ClientId>,
}

/// What comes of a request that reaches its node.
pub(super) enum Served {
    /// It is answered.
    Now(Result<Response, TransportError>),
    /// It waits for a lock.
    Later(Ticket),
    /// There will be no answer.
    Never,
}

/// Where the clock of the cluster stands when a run begins.
pub(super) const EPOCH_MS: u64 = 1_700_000_000_000;

/// How often it is looked whether something takes too long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl World {
    pub(super) fn new(plan: Plan, cluster: Cluster, audit: Audit) -> Self {
        let nodes = Nodes::of(&cluster);
        World {
            now: Instant::ZERO,
            epoch_ms: EPOCH_MS,
            phase: Phase::Calm,
            ops: Ops::default(),
            network: Network::new(&plan),
            chaos: Chaos::new(&plan),
            ailments: Ailments::new(&plan),
            further: Further::new(&plan),
            audit,
            manners: Manners::default(),
            strikes: Strikes::new(plan.strikes.clone()),
            wakers: Vec::new(),
            queue: Queue::default(),
            flights: Flights::default(),
            streams: Streams::new(&plan),
            oracles: Oracles::new(&plan),
            waits: Waits::default(),
            nodes,
            next_look: Instant::ZERO,
            clients: Clients {
                chance: Chance::stream(plan.seed, "clients"),
                open: Vec::new(),
                closed: Vec::new(),
            },
            spawned: Vec::new(),
            raw_writes: Vec::new(),
            cluster,
            plan,
        }
    }

    /// The cluster's clock.
    pub(super) fn now_ms(&self) -> u64 {
        self.epoch_ms + self.now.as_millis()
    }

    /// What has happened so far.
    pub(super) fn truth(&self) -> Truth {
        let mut truth = Truth::of(&self.cluster);
        for (key, write) in &self.raw_writes {
            truth.insert_raw(key.clone(), write.clone());
        }
        truth
    }

    /// A new client and its seed.
    pub(super) fn open_client(&mut self) -> (ClientId, u64) {
        let id = ClientId(self.clients.open.len() as u32);
        self.clients.open.push(true);
        (id, self.clients.chance.number())
    }

    pub(super) fn close_client(&mut self, id: ClientId) {
        if let Some(open) = self.clients.open.get_mut(id.0 as usize)
            && std::mem::take(open)
        {
            self.clients.closed.push(id);
            self.network.forget(id);
            self.streams.forget(id);
            self.oracles.forget(id);
        }
    }

    fn is_open(&self, id: ClientId) -> bool {
        self.clients
            .open
            .get(id.0 as usize)
            .copied()
            .unwrap_or(false)
    }

    /// Has background work started; gives it back if its client is gone.
    pub(super) fn spawn(&mut self, id: ClientId, work: Operation<()>) -> Option<Operation<()>> {
        if !self.is_open(id) {
            return Some(work);
        }
        self.spawned.push(Spawned::Operation(id, work));
        None
    }

    pub(super) fn spawn_task(&mut self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.spawned.push(Spawned::Task(task));
    }

    /// What to start and whom to stop since the last call.
    pub(super) fn take_changes(&mut self) -> (Vec<Spawned>, Vec<ClientId>) {
        (
            std::mem::take(&mut self.spawned),
            std::mem::take(&mut self.clients.closed),
        )
    }

    pub(super) fn schedule(&mut self, after: Duration, event: Event) {
        self.queue.push(self.now + after, event);
    }

    /// From now on what the seed drew goes wrong.
    pub(super) fn begin_faults(&mut self) {
        if self.phase != Phase::Calm {
            return;
        }
        self.phase = Phase::Faulty;
        self.audit.note(self.now, || "faults begin".into());
        self.network.begin_faults();
        for (fault, after) in self.chaos.begin(&mut self.ailments, &mut self.further) {
            self.schedule(after, Event::Strike(fault));
        }
        self.schedule(self.plan.fault_time, Event::EndFaults);
    }

    /// From now on nothing goes wrong any more, and what did is mended.
    pub(super) fn end_faults(&mut self) {
        if matches!(self.phase, Phase::Quiet(_)) {
            return;
        }
        self.phase = Phase::Quiet(self.now);
        self.audit.note(self.now, || "faults end".into());
        self.mend();
        self.network.end_faults();
        self.keep_buried_down();
    }

    /// Whether PD has given out timestamps of the future.
    pub(super) fn is_ahead(&self) -> bool {
        let now_ms = self.now_ms();
        Timestamp::from_u64(self.cluster.pd().tso_bound(now_ms)).physical_ms() > now_ms
    }

    /// Whether some call has had all the time it may take, or the whole run has.
    pub(super) fn is_out_of_patience(&mut self) -> bool {
        let Phase::Quiet(quiet) = self.phase else {
            return false;
        };
        if self.now < self.next_look {
            return false;
        }
        self.next_look = self.now + LOOK_EVERY;
        let oldest = self.ops.oldest_call();
        let late = oldest.is_some_and(|since| self.now > since.max(quiet) + self.plan.patience);
        late || self.now > quiet + self.plan.time_limit
    }

    /// An operation has ended or was dropped: what it still waits for goes nowhere.
    pub(super) fn end(&mut self, key: OpKey) {
        for seat in self.ops.end(key) {
            match seat {
                Seat::Framed(seat) => self.cancel_framed(seat),
                Seat::Wish(seat) => self.cancel_wish(seat),
            }
        }
    }

    /// Starts what an operation asked for; gives background work back that can't be started.
    pub(super) fn perform(
        &mut self,
        client: ClientId,
        key: OpKey,
        id: ActionId,
        action: Action,
    ) -> Option<Operation<()>> {
        if matches!(action, Action::Send(_) | Action::Timestamp(_)) {
            let (requests, label) = self.ops.asks(key);
            self.manners.asks(client, requests, label);
        }
        match action {
            Action::Send(rpc) => {
                let failure = |error| Reply::Response(Err(error));
                if let Some(node) = self.reach(client, (key, id), rpc.endpoint.address(), failure) {
                    self.ops.waits(
                        key,
                        Waiting::Answer {
                            label: rpc.command.label(),
                            from: node,
                        },
                    );
                    if let Some(drawing) = &mut self.audit.drawing {
                        let asked = Asked {
                            context: rpc.context.as_deref(),
                            command: &rpc.command,
                        };
                        drawing.asks(self.now, client, node, (key, id), asked);
                    }
                    match self.part(&rpc) {
                        Some(part) => self.send_framed(client, node, (key, id), rpc, part),
                        None => self.send(client, node, (key, id), rpc),
                    }
                }
            }
            Action::Timestamp(request) => {
                let failure = |error| Reply::Timestamp(Err(error));
                if let Some(node) = self.reach(client, (key, id), &request.url, failure) {
                    self.ops.waits(key, Waiting::Timestamp);
                    if let Some(drawing) = &mut self.audit.drawing {
                        drawing.wishes(self.now, client, node, (key, id));
                    }
                    self.wish(client, node, (key, id), request);
                }
            }
            Action::Sleep { until, why } => {
                self.ops.waits(key, Waiting::Time { until, why });
                if until != Instant::FAR_FUTURE {
                    self.queue.push(until.max(self.now), Event::Wake(key, id));
                }
            }
            Action::Spawn(work) => return self.spawn(client, work),
        }
        None
    }

    /// The node that listens at an address, if the client may ask anybody anything.
    fn reach(
        &mut self,
        client: ClientId,
        waiter: (OpKey, ActionId),
        address: &Arc<str>,
        failure: impl FnOnce(TransportError) -> Reply,
    ) -> Option<Node> {
        self.audit.stats.rpcs += 1;
        if !self.is_open(client) {
            self.deliver(waiter, failure(TransportError::Closed { sent: false }));
            return None;
        }
        let node = self.nodes.find(address);
        if node.is_none() {
            let address = address.clone();
            let message = "no such host".into();
            self.deliver(
                waiter,
                failure(TransportError::Connect { address, message }),
            );
        }
        node
    }

    /// The request as a part of a frame, if it is to go in one.
    fn part(&self, rpc: &Rpc) -> Option<Bytes> {
        let framed = self.plan.framed && matches!(rpc.endpoint, Endpoint::Store { .. });
        framed
            .then(|| encode_part(rpc.context.as_deref(), &rpc.command))
            .flatten()
    }

    /// Lets the next event happen; `false` if there is none.
    pub(super) fn step(&mut self) -> bool {
        let Some((at, event)) = self.queue.pop() else {
            return false;
        };
        self.now = self.now.max(at);
        match event {
            Event::Arrive(key) => self.arrive(key),
            Event::Answer(key) => self.answer(key),
            Event::Expire(key) => self.give_up(key),
            Event::Stream(event) => self.stream_event(event),
            Event::Oracle(event) => self.oracle_event(event),
            Event::EndWaits => self.end_waits(),
            Event::Wake(op, id) => {
                self.audit.woke(self.now, op.number());
                self.deliver((op, id), Reply::Woke);
            }
            Event::Strike(fault) => self.strike(fault),
            Event::Change(change) => self.change(change),
            Event::EndFaults => self.end_faults(),
        }
        self.settle_waits();
        true
    }

    pub(super) fn deliver(&mut self, waiter: (OpKey, ActionId), reply: Reply) {
        let Some(((op, id), reply)) = self.keeps_back(waiter, reply) else {
            return;
        };
        if let Some(drawing) = &mut self.audit.drawing {
            drawing.answered(self.now, (op, id), &reply);
        }
        let waker = self.ops.put(op, id, reply);
        self.wakers.extend(waker);
    }

    /// Has a node answer a request, or have it wait.
    pub(super) fn serve(
        &mut self,
        client: ClientId,
        node: Node,
        asked: Asked<'_>,
        whole: Command,
        address: &Arc<str>,
    ) -> Served {
        let now_ms = self.now_ms();
        if self.swallows(node, asked) {
            return Served::Never;
        }
        let death = self.death(node, asked.command);
        if let (Some(Death::Before), Node::Store(store)) = (death, node) {
            self.stop_store(store);
            return Served::Now(Err(died(address)));
        }
        if let Some(result) = self.refusal(node, asked, address) {
            self.audit.served(self.now, client, node, asked, &result);
            return Served::Now(result);
        }
        let aimed = self.aim(asked);
        self.hit(aimed.before, asked, true);
        let stepping = self.step_down(node, asked);
        let mut answer = self.ask(now_ms, node, whole, address);
        if let Ok(Answer::Now(response)) = &mut answer {
            self.forget_leaders(node, response);
            self.note_raw_writes(asked.command, response);
        }
        if let Some(stepping) = stepping {
            answer = self.stepped_down(stepping, asked, answer);
        }
        let result = match answer {
            Ok(Answer::Now(response)) => Ok(response),
            Ok(Answer::Later(ticket)) => {
                self.park(ticket, client, node, asked, address);
                self.hit(aimed.after, asked, false);
                return Served::Later(ticket);
            }
            Err(error) => Err(error),
        };
        self.audit.served(self.now, client, node, asked, &result);
        if matches!(
            asked.command,
            Command::SplitRegion(_) | Command::SplitRegions(_)
        ) {
            let regions: Vec<_> = self.cluster.regions().ids().collect();
            self.changed(&regions);
        }
        self.hit(aimed.after, asked, false);
        match (death, node) {
            (Some(Death::Unanswered), Node::Store(store)) => {
                self.stop_store(store);
                Served::Now(Err(died(address)))
            }
            (Some(Death::After), Node::Store(store)) => {
                self.die_after(store);
                Served::Now(result)
            }
            _ => Served::Now(result),
        }
    }

    /// What a node says instead of serving a request.
    fn refusal(
        &mut self,
        node: Node,
        asked: Asked<'_>,
        address: &Arc<str>,
    ) -> Option<Result<Response, TransportError>> {
        self.pd_refusal(node, asked.command, address)
            .or_else(|| self.refuses_unapplied(node, asked).map(Ok))
            .or_else(|| self.move_locks(node, asked).map(Ok))
    }

    fn note_raw_writes(&mut self, command: &Command, response: &Response) {
        for (key, value) in observe::raw_writes(command, response) {
            let at = self.now;
            self.raw_writes.push((key, RawWrite { at, value }));
        }
    }

    fn ask(
        &mut self,
        now_ms: u64,
        node: Node,
        whole: Command,
        address: &Arc<str>,
    ) -> Result<Answer<Response>, TransportError> {
        #[cfg(feature = "mutations")]
        let whole = match mutation::lie(&whole) {
            Some(lie) => return Ok(Answer::Now(lie)),
            None => mutation::bend(whole),
        };
        let answer = dispatch::call(&mut self.cluster, now_ms, node, whole, address)?;
        #[cfg(feature = "mutations")]
        let answer = match answer {
            Answer::Now(response) => Answer::Now(mutation::bend_answer(response)),
            Answer::Later(ticket) => Answer::Later(ticket),
        };
        Ok(answer)
    }

    /// Breaks the connections between a client and a node: whatever is under way on them fails.
    pub(super) fn reset_link(&mut self, client: ClientId, node: Node) {
        self.network.disconnect(client, node);
        self.break_flights(client, node);
        self.break_streams(client, node);
        self.break_oracle(client, node);
    }

    /// A node stops answering.
    pub(super) fn take_down(&mut self, node: Node, down: Down) {
        self.network.take_down(node, down);
        match down {
            Down::Refusing => self.reset_node(node),
            Down::Silent => {
                self.lose_flights(node);
                self.streams.lose(node);
            }
        }
    }

    /// A node answers again; connections have to be made anew.
    pub(super) fn bring_up(&mut self, node: Node) {
        self.network.bring_up(node);
        self.reset_node(node);
    }

    pub(super) fn reset_node(&mut self, node: Node) {
        for (client, other) in self.network.links() {
            if other == node {
                self.reset_link(client, node);
            }
        }
    }
}

/// Nobody is told this: the store is down by then.
fn died(address: &Arc<str>) -> TransportError {
    TransportError::Broken {
        address: address.clone(),
        message: "the store died".into(),
        sent: true,
    }
}
