//! Timestamps: the streams between each client and each member of PD, with the same batching as on
//! a real stream. Wishes that come while a batch is under way go out together in the next one; a
//! stream that breaks fails every wish that was on it.
//!
//! [`TsoBatcher`] decides which wish goes into which batch, and refuses timestamps that go back.
//! Here stands what it leaves to a driver. Wishes that are not framed ask one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use tikv_core::Timestamp;
use tikv_core::driver::{ActionId, Instant, Reply, TransportError, TsoRequest};
use tikv_core::tso::{TsoBatcher, TsoConfig, TsoDone, TsoGrant, TsoRejected, TsoTicket};

use super::chance::Chance;
use super::marks::Mark;
use super::network::{Carried, ClientId, Way};
use super::ops::{OpKey, Seat};
use super::plan::Plan;
use super::world::{Event, World};
use crate::dispatch;
use crate::node::Node;

/// All streams of timestamps.
pub(super) struct Oracles {
    config: TsoConfig,
    by_link: BTreeMap<(ClientId, Node), usize>,
    /// A stream whose client is gone leaves its place empty.
    oracles: Vec<Option<Oracle>>,
    places: BTreeMap<u64, Place>,
    counted: u64,
}

/// The stream between one client and one member of PD.
struct Oracle {
    client: ClientId,
    node: Node,
    /// What goes into each batch but the count.
    request: TsoRequest,
    batcher: TsoBatcher<u64>,
    state: State,
    /// Events of an earlier life change nothing.
    life: u32,
    /// A frame was lost. A stream keeps order and leaves nothing out, so nothing behind that frame
    /// arrives either, until the stream is found dead.
    mute: bool,
    last_there: Instant,
    last_back: Instant,
    check: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down,
    Connecting,
    Up,
}

/// Who waits for a timestamp.
struct Place {
    waiter: (OpKey, ActionId),
    oracle: usize,
    ticket: TsoTicket,
}

/// Something that happens on a stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum OracleEvent {
    /// The stream stands.
    Connected { oracle: usize, life: u32 },
    /// It can't be opened.
    NotConnected { oracle: usize, life: u32 },
    /// A batch of wishes reaches PD.
    Wishes {
        oracle: usize,
        life: u32,
        count: u32,
    },
    /// Its timestamps reach the client; the last of them.
    Grant {
        oracle: usize,
        life: u32,
        count: u32,
        last: Timestamp,
    },
    /// The stream breaks.
    Broken { oracle: usize, life: u32 },
    /// The oldest batch may have been unanswered for too long.
    Check { oracle: usize },
    /// A wish's time is over.
    Expire { place: u64 },
}

impl Oracles {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut chance = Chance::stream(plan.seed, "oracle");
        let one_by_one = !plan.framed;
        let config = TsoConfig {
            batch_max: if one_by_one { 1 } else { 20_000 },
            outstanding_max: if one_by_one {
                usize::MAX
            } else {
                chance.magnitude(1..=16) as usize
            },
            ..TsoConfig::default()
        };
        Oracles {
            config,
            by_link: BTreeMap::new(),
            oracles: Vec::new(),
            places: BTreeMap::new(),
            counted: 0,
        }
    }

    fn open(&mut self, client: ClientId, node: Node, request: &TsoRequest) -> usize {
        *self.by_link.entry((client, node)).or_insert_with(|| {
            self.oracles.push(Some(Oracle {
                client,
                node,
                batcher: TsoBatcher::new(request.url.clone(), self.config.clone()),
                request: request.clone(),
                state: State::Down,
                life: 0,
                mute: false,
                last_there: Instant::ZERO,
                last_back: Instant::ZERO,
                check: Instant::FAR_FUTURE,
            }));
            self.oracles.len() - 1
        })
    }

    fn oracle(&mut self, oracle: usize) -> Option<&mut Oracle> {
        self.oracles.get_mut(oracle)?.as_mut()
    }

    /// The stream, if this is its present life.
    fn live(&mut self, oracle: usize, life: u32) -> Option<&mut Oracle> {
        self.oracle(oracle).filter(|open| open.life == life)
    }

    /// Drops the streams of a client that is gone.
    pub(super) fn forget(&mut self, client: ClientId) {
        let owned = |(owner, _): &(ClientId, Node)| *owner == client;
        let gone: Vec<usize> = self
            .by_link
            .iter()
            .filter(|(link, _)| owned(link))
            .map(|(_, oracle)| *oracle)
            .collect();
        self.by_link.retain(|link, _| !owned(link));
        for oracle in gone {
            self.oracles[oracle] = None;
            self.places.retain(|_, place| place.oracle != oracle);
        }
    }
}

impl World {
    /// Asks for a timestamp.
    pub(super) fn wish(
        &mut self,
        client: ClientId,
        node: Node,
        waiter: (OpKey, ActionId),
        request: TsoRequest,
    ) {
        let deadline = request.deadline;
        let oracle = self.oracles.open(client, node, &request);
        self.oracles.counted += 1;
        let place = self.oracles.counted;
        let Some(open) = self.oracles.oracle(oracle) else {
            return;
        };
        match open.batcher.push(deadline, place) {
            Ok(ticket) => {
                let taken = Place {
                    waiter,
                    oracle,
                    ticket,
                };
                self.oracles.places.insert(place, taken);
                self.ops.sit(waiter.0, Seat::Wish(place));
                if deadline != Instant::FAR_FUTURE {
                    let expire = OracleEvent::Expire { place };
                    self.queue
                        .push(deadline.max(self.now), Event::Oracle(expire));
                }
            }
            Err(TsoRejected::Failed(_, error)) => {
                self.deliver(waiter, Reply::Timestamp(Err(error)));
            }
            Err(TsoRejected::Full(_)) => {
                let address = request.url;
                let error = TransportError::Deadline {
                    address,
                    sent: false,
                };
                self.deliver(waiter, Reply::Timestamp(Err(error)));
            }
        }
        self.drain_oracle(oracle, Vec::new());
    }

    /// An operation that has ended takes its wish back.
    pub(super) fn cancel_wish(&mut self, place: u64) {
        if let Some(Place { oracle, ticket, .. }) = self.oracles.places.remove(&place)
            && let Some(open) = self.oracles.oracle(oracle)
        {
            open.batcher.cancel(ticket);
        }
    }

    /// Breaks the stream between a client and a node.
    /// `false` if there is none.
    pub(super) fn break_oracle(&mut self, client: ClientId, node: Node) -> bool {
        if let Some(&oracle) = self.oracles.by_link.get(&(client, node))
            && let Some(open) = self.oracles.oracle(oracle)
            && open.state == State::Up
        {
            let error = broken(&open.request.url);
            self.end_oracle(oracle, &error);
            return true;
        }
        false
    }

    pub(super) fn oracle_event(&mut self, event: OracleEvent) {
        match event {
            OracleEvent::Connected { oracle, life } => {
                if let Some(open) = self.oracles.live(oracle, life) {
                    open.state = State::Up;
                    self.drain_oracle(oracle, Vec::new());
                }
            }
            OracleEvent::NotConnected { oracle, life } => {
                let mut done = Vec::new();
                if let Some(open) = self.oracles.live(oracle, life) {
                    open.state = State::Down;
                    open.life += 1;
                    let refused = "connection refused".into();
                    open.batcher.on_connect_failed(&refused, &mut done);
                    self.audit.mark(Mark::ConnectionRefused);
                    self.drain_oracle(oracle, done);
                }
            }
            OracleEvent::Wishes {
                oracle,
                life,
                count,
            } => self.grant(oracle, life, count),
            OracleEvent::Grant {
                oracle,
                life,
                count,
                last,
            } => self.take_grant(oracle, life, count, last),
            OracleEvent::Broken { oracle, life } => {
                if let Some(open) = self.oracles.live(oracle, life) {
                    let error = broken(&open.request.url);
                    self.end_oracle(oracle, &error);
                }
            }
            OracleEvent::Check { oracle } => {
                let now = self.now;
                let Some(open) = self.oracles.oracle(oracle) else {
                    return;
                };
                open.check = Instant::FAR_FUTURE;
                if open.batcher.next_deadline().is_some_and(|at| at <= now) {
                    let address = open.request.url.clone();
                    let error = TransportError::Deadline {
                        address,
                        sent: true,
                    };
                    self.end_oracle(oracle, &error);
                } else {
                    self.drain_oracle(oracle, Vec::new());
                }
            }
            OracleEvent::Expire { place } => self.expire_wish(place),
        }
    }

    /// PD answers a batch.
    fn grant(&mut self, oracle: usize, life: u32, count: u32) {
        let Some(open) = self.oracles.live(oracle, life) else {
            return;
        };
        let (client, node, request) = (open.client, open.node, open.request.clone());
        if !self.network.is_up(node) {
            open.mute = true;
        }
        if open.mute {
            return;
        }
        let now_ms = self.now_ms();
        let result = dispatch::timestamp(&mut self.cluster, now_ms, node, &request, count);
        #[cfg(feature = "mutations")]
        let result = result.map(|last| crate::mutation::bend_timestamp(client.0, last));
        self.audit.timestamp(self.now, client, node, count, &result);
        let last = match result {
            Ok(last) => last,
            // The stream ends with a status.
            Err(error) => return self.end_oracle(oracle, &error),
        };
        let delay = self.network.timestamp_delay(self.now, &mut self.strikes);
        let now = self.now + delay;
        let Some(open) = self.oracles.oracle(oracle) else {
            return;
        };
        let tail = &mut open.last_back;
        let (at, event) =
            match self
                .network
                .carry(now, client, node, tail, Way::Back, &mut self.strikes)
            {
                Carried::Arrives(at) => {
                    let event = OracleEvent::Grant {
                        oracle,
                        life,
                        count,
                        last,
                    };
                    (at, event)
                }
                Carried::Breaks(at) => (at, OracleEvent::Broken { oracle, life }),
                Carried::Lost => {
                    open.mute = true;
                    return;
                }
            };
        self.queue.push(at, Event::Oracle(event));
    }

    fn take_grant(&mut self, oracle: usize, life: u32, count: u32, last: Timestamp) {
        let mut done = Vec::new();
        let Some(open) = self.oracles.live(oracle, life) else {
            self.audit.mark(Mark::ReplyLost);
            return;
        };
        let grant = TsoGrant {
            physical: last.physical_ms() as i64,
            logical: last.logical() as i64,
            count,
            suffix_bits: 0,
        };
        let taken = open.batcher.on_reply(grant, &mut done);
        taken.expect("PD's answers are right and come in order");
        self.drain_oracle(oracle, done);
    }

    /// The stream is over, for this reason.
    fn end_oracle(&mut self, oracle: usize, error: &TransportError) {
        let mut done = Vec::new();
        if let Some(open) = self.oracles.oracle(oracle) {
            open.state = State::Down;
            open.life += 1;
            open.mute = false;
            (open.last_there, open.last_back) = (Instant::ZERO, Instant::ZERO);
            open.batcher.on_broken(error, &mut done);
        }
        self.drain_oracle(oracle, done);
    }

    fn expire_wish(&mut self, place: u64) {
        let Some(taken) = self.oracles.places.remove(&place) else {
            return;
        };
        let Some(open) = self.oracles.oracle(taken.oracle) else {
            return;
        };
        open.batcher.cancel(taken.ticket);
        let (client, node, address) = (open.client, open.node, open.request.url.clone());
        self.audit
            .note(self.now, || format!("{client} gives up Tso to {node}"));
        self.audit.mark(Mark::DeadlinePassed);
        // A wish does nothing at PD, so nobody minds whether it was sent.
        let error = TransportError::Deadline {
            address,
            sent: true,
        };
        self.hand_timestamp(place, &taken, Err(error));
    }

    fn hand_timestamp(
        &mut self,
        place: u64,
        taken: &Place,
        result: Result<Timestamp, TransportError>,
    ) {
        self.ops.rise(taken.waiter.0, Seat::Wish(place));
        self.audit.answered(self.now, taken.waiter.0.number());
        self.deliver(taken.waiter, Reply::Timestamp(result));
    }

    /// Does what the batcher leaves to a driver after every call.
    fn drain_oracle(&mut self, oracle: usize, done: Vec<TsoDone<u64>>) {
        let now = self.now;
        for TsoDone { completion, result } in done {
            if let Some(taken) = self.oracles.places.remove(&completion) {
                self.hand_timestamp(completion, &taken, result);
            }
        }
        let Some(open) = self.oracles.oracle(oracle) else {
            return;
        };
        let (client, node) = (open.client, open.node);
        if open.state == State::Down && open.batcher.queued() > 0 {
            open.state = State::Connecting;
            let life = open.life;
            let (at, event) = match self.network.connect(now, client, node) {
                Ok(at) => (at, OracleEvent::Connected { oracle, life }),
                Err(at) => (at, OracleEvent::NotConnected { oracle, life }),
            };
            self.queue.push(at, Event::Oracle(event));
        }
        let mut late = Vec::new();
        while let Some(open) = self.oracles.oracle(oracle)
            && open.state == State::Up
            && let Some(batch) = open.batcher.poll_batch(now, &mut late)
        {
            if open.mute {
                continue;
            }
            let (life, count) = (open.life, batch.count);
            let tail = &mut open.last_there;
            let (at, event) =
                match self
                    .network
                    .carry(now, client, node, tail, Way::There, &mut self.strikes)
                {
                    Carried::Arrives(at) => {
                        let event = OracleEvent::Wishes {
                            oracle,
                            life,
                            count,
                        };
                        (at, event)
                    }
                    Carried::Breaks(at) => (at, OracleEvent::Broken { oracle, life }),
                    // Noticed when the batch has been unanswered for too long.
                    Carried::Lost => {
                        open.mute = true;
                        continue;
                    }
                };
            self.queue.push(at, Event::Oracle(event));
        }
        // What nobody waits for in time has an event of its own.
        drop(late);
        if let Some(open) = self.oracles.oracle(oracle)
            && let Some(at) = open.batcher.next_deadline()
            && at < open.check
        {
            open.check = at;
            self.queue
                .push(at.max(now), Event::Oracle(OracleEvent::Check { oracle }));
        }
    }
}

fn broken(url: &Arc<str>) -> TransportError {
    TransportError::Broken {
        address: url.clone(),
        message: "stream reset".into(),
        sent: true,
    }
}
