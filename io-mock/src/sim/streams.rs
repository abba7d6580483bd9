//! Requests that travel in frames: the streams between each client and each store, with the same
//! multiplexer and the same bytes as on a real connection. A stream that breaks takes every
//! request with it that was on it; one that is delayed delays what comes behind.
//!
//! The multiplexer ([`Mux`]) decides what goes into which frame and whose an answer is. Here stands
//! what its contract leaves to a driver: opening connections, writing frames when it says so,
//! handing in what comes back, watching deadlines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tikv_core::driver::{ActionId, Instant, Reply, Rpc, TransportError};
use tikv_core::rpc::frame::{self, SplitFrame};
use tikv_core::rpc::mux::{Done, Entry, Link, Mux, MuxConfig, Rejected, Ticket};
use tikv_core::wire::Command;

use super::chance::Chance;
use super::flights::took_effect;
use super::manners::{Asking, Named};
use super::marks::Mark;
use super::network::{Carried, ClientId, Way};
use super::observe::Asked;
use super::ops::{OpKey, Seat};
use super::plan::Plan;
use super::waits::WayBack;
use super::world::{Event, Served, World};
use crate::dispatch;
use crate::node::Node;

/// All streams of frames.
pub(super) struct Streams {
    chance: Chance,
    config: MuxConfig,
    by_link: BTreeMap<(ClientId, Node), usize>,
    /// A stream whose client is gone leaves its place empty.
    streams: Vec<Option<Stream>>,
    places: BTreeMap<u64, Place>,
    /// Requests that took effect and will arrive a second time, by stream and number.
    effective: BTreeSet<(usize, u64)>,
    frames: BTreeMap<u64, Frame>,
    counted: u64,
}

/// The streams between one client and one store.
struct Stream {
    client: ClientId,
    node: Node,
    address: Arc<str>,
    mux: Mux<u64>,
    connections: Vec<Connection>,
    /// When the next tick is scheduled.
    tick: Instant,
}

#[derive(Clone, Copy, Default)]
struct Connection {
    /// Its present life, while it is up.
    link: Option<Link>,
    last_there: Instant,
    last_back: Instant,
}

/// Who waits for an answer.
struct Place {
    waiter: (OpKey, ActionId),
    stream: usize,
    ticket: Ticket,
    command: Arc<Command>,
    asked: Asking,
}

/// Bytes on their way.
struct Frame {
    stream: usize,
    client: ClientId,
    node: Node,
    address: Arc<str>,
    link: Link,
    bytes: Bytes,
    lost: bool,
    /// It arrives twice; of the second arrival nobody waits for answers.
    arrivals: Arrivals,
}

/// How often a frame arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrivals {
    Once,
    FirstOfTwo,
    SecondOfTwo,
}

/// A request of a frame that is not answered with the others.
pub(super) struct Unanswered {
    /// What its answer will go in.
    frame: Frame,
    id: u64,
    arm: u32,
}

/// Something that happens on a stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum StreamEvent {
    /// A connection stands.
    Connected { stream: usize, link: Link },
    /// A connection can't be made.
    NotConnected { stream: usize, link: Link },
    /// A connection's writer gets its turn.
    Write { stream: usize, link: Link },
    /// A frame of requests reaches its store.
    Requests { frame: u64 },
    /// A frame of answers reaches its client.
    Answers { frame: u64 },
    /// A connection breaks.
    Broken { stream: usize, link: Link },
    /// The multiplexer wanted to be called.
    Tick { stream: usize },
    /// A request's time is over.
    Expire { place: u64 },
}

/// Writers get their turn so much later than they are woken.
const WRITER: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_micros(100);

impl Streams {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut chance = Chance::stream(plan.seed, "streams");
        let config = MuxConfig {
            connections: chance.within(1..=4) as usize,
            frame_entries_max: chance.magnitude(1..=128) as usize,
            in_flight_max: if chance.coin() {
                usize::MAX
            } else {
                chance.magnitude(1..=64) as usize
            },
            ..MuxConfig::default()
        };
        Streams {
            chance,
            config,
            by_link: BTreeMap::new(),
            streams: Vec::new(),
            places: BTreeMap::new(),
            effective: BTreeSet::new(),
            frames: BTreeMap::new(),
            counted: 0,
        }
    }

    fn open(&mut self, client: ClientId, node: Node, address: &Arc<str>) -> usize {
        *self.by_link.entry((client, node)).or_insert_with(|| {
            self.streams.push(Some(Stream {
                client,
                node,
                address: address.clone(),
                mux: Mux::new(address.clone(), self.config.clone()),
                connections: vec![Connection::default(); self.config.connections],
                tick: Instant::FAR_FUTURE,
            }));
            self.streams.len() - 1
        })
    }

    fn stream(&mut self, stream: usize) -> Option<&mut Stream> {
        self.streams.get_mut(stream)?.as_mut()
    }

    fn count(&mut self) -> u64 {
        self.counted += 1;
        self.counted
    }

    /// Drops the streams of a client that is gone. What is on its way arrives all the same.
    pub(super) fn forget(&mut self, client: ClientId) {
        let gone: Vec<usize> = self
            .by_link
            .iter()
            .filter(|((owner, _), _)| *owner == client)
            .map(|(_, stream)| *stream)
            .collect();
        self.by_link.retain(|(owner, _), _| *owner != client);
        for stream in gone {
            self.streams[stream] = None;
            self.places.retain(|_, place| place.stream != stream);
        }
    }

    /// Loses every frame that is on its way to or from a node.
    pub(super) fn lose(&mut self, node: Node) {
        let frames = self.frames.values_mut();
        frames
            .filter(|frame| frame.node == node)
            .for_each(|frame| frame.lost = true);
    }
}

impl Frame {
    /// A frame of answers to this one.
    fn to_answer(&self, bytes: Bytes) -> Frame {
        Frame {
            address: self.address.clone(),
            bytes,
            ..*self
        }
    }
}

impl Stream {
    /// Whether a connection's life is still the present one.
    fn is_live(&self, link: Link) -> bool {
        self.connections
            .get(link.connection())
            .is_some_and(|connection| connection.link == Some(link))
    }

    fn live_links(&self) -> Vec<Link> {
        let links = self.connections.iter();
        links.filter_map(|connection| connection.link).collect()
    }
}

impl World {
    /// Sends a request as a part of a frame.
    pub(super) fn send_framed(
        &mut self,
        client: ClientId,
        node: Node,
        waiter: (OpKey, ActionId),
        rpc: Rpc,
        part: Bytes,
    ) {
        let Rpc {
            endpoint,
            context,
            command,
            deadline,
        } = rpc;
        let asked = Asking {
            op: waiter.0.number(),
            sent: self.now,
            named: Named::by(context.as_deref()),
        };
        let stream = self.streams.open(client, node, endpoint.address());
        let place = self.streams.count();
        let now = self.now;
        let Some(open) = self.streams.stream(stream) else {
            return;
        };
        let entry = Entry {
            part,
            priority: 0,
            deadline,
            completion: place,
        };
        match open.mux.push(now, entry) {
            Ok(ticket) => {
                let taken = Place {
                    waiter,
                    stream,
                    ticket,
                    command,
                    asked,
                };
                self.streams.places.insert(place, taken);
                self.ops.sit(waiter.0, Seat::Framed(place));
                if deadline != Instant::FAR_FUTURE {
                    let expire = StreamEvent::Expire { place };
                    self.queue.push(deadline.max(now), Event::Stream(expire));
                }
            }
            Err(rejected) => {
                let address = open.address.clone();
                let error = match rejected {
                    Rejected::Failed(_, error) => error,
                    Rejected::Full(_) => TransportError::Deadline {
                        address,
                        sent: false,
                    },
                };
                self.audit.mark(Mark::NeverSent);
                self.deliver(waiter, Reply::Response(Err(error)));
            }
        }
        self.drain_stream(stream, Vec::new());
    }

    /// An operation that has ended takes its request back.
    pub(super) fn cancel_framed(&mut self, place: u64) {
        let now = self.now;
        if let Some(Place { stream, ticket, .. }) = self.streams.places.remove(&place)
            && let Some(open) = self.streams.stream(stream)
        {
            open.mux.cancel(now, ticket);
            self.drain_stream(stream, Vec::new());
        }
    }

    /// Breaks every connection between a client and a node.
    pub(super) fn break_streams(&mut self, client: ClientId, node: Node) {
        let Some(&stream) = self.streams.by_link.get(&(client, node)) else {
            return;
        };
        let links = self.streams.stream(stream).map(|open| open.live_links());
        for link in links.unwrap_or_default() {
            self.break_stream(stream, link);
        }
    }

    /// Breaks one of the connections between a client and a node; `false` if there is none.
    pub(super) fn break_one_stream(&mut self, client: ClientId, node: Node, pick: u64) -> bool {
        let Some(&stream) = self.streams.by_link.get(&(client, node)) else {
            return false;
        };
        let links = self.streams.stream(stream).map(|open| open.live_links());
        let links = links.unwrap_or_default();
        let Some(place) = pick.checked_rem(links.len() as u64) else {
            return false;
        };
        self.break_stream(stream, links[place as usize]);
        true
    }

    pub(super) fn stream_event(&mut self, event: StreamEvent) {
        let now = self.now;
        let mut done = Vec::new();
        match event {
            StreamEvent::Connected { stream, link } => {
                let Some(open) = self.streams.stream(stream) else {
                    return;
                };
                open.mux.on_connected(link);
                open.connections[link.connection()].link = Some(link);
                self.write(stream, link);
            }
            StreamEvent::NotConnected { stream, link } => {
                let Some(open) = self.streams.stream(stream) else {
                    return;
                };
                let refused = "connection refused".into();
                open.mux.on_connect_failed(now, link, &refused, &mut done);
                self.audit.mark(Mark::ConnectionRefused);
                self.drain_stream(stream, done);
            }
            StreamEvent::Write { stream, link } => self.write(stream, link),
            StreamEvent::Requests { frame } => self.serve_frame(frame),
            StreamEvent::Answers { frame } => self.take_answers(frame),
            StreamEvent::Broken { stream, link } => self.break_stream(stream, link),
            StreamEvent::Tick { stream } => {
                if let Some(open) = self.streams.stream(stream) {
                    open.tick = Instant::FAR_FUTURE;
                    open.mux.tick(now);
                    self.drain_stream(stream, done);
                }
            }
            StreamEvent::Expire { place } => self.expire_place(place),
        }
    }

    /// Writes all frames that a connection may write.
    fn write(&mut self, stream: usize, link: Link) {
        let now = self.now;
        let mut done = Vec::new();
        let Some(open) = self.streams.stream(stream) else {
            return;
        };
        let mut frames = Vec::new();
        while let Some(frame) = open.mux.poll_frame(now, link, &mut done) {
            frames.push(frame.to_bytes(0));
        }
        let (client, node, address) = (open.client, open.node, open.address.clone());
        for bytes in frames {
            let again = self.network.again(now, &mut self.strikes);
            let frame = Frame {
                stream,
                client,
                node,
                address: address.clone(),
                link,
                bytes,
                lost: false,
                arrivals: match again {
                    Some(_) => Arrivals::FirstOfTwo,
                    None => Arrivals::Once,
                },
            };
            if let Some(later) = again {
                let twin = Frame {
                    address: address.clone(),
                    bytes: frame.bytes.clone(),
                    arrivals: Arrivals::SecondOfTwo,
                    ..frame
                };
                let twin = self.put_frame(twin);
                self.schedule(later, Event::Stream(StreamEvent::Requests { frame: twin }));
            }
            self.carry(frame, Way::There);
        }
        self.drain_stream(stream, done);
    }

    fn put_frame(&mut self, frame: Frame) -> u64 {
        let key = self.streams.count();
        self.streams.frames.insert(key, frame);
        key
    }

    /// Puts a frame on its way.
    fn carry(&mut self, frame: Frame, way: Way) {
        let now = self.now;
        let (stream, link) = (frame.stream, frame.link);
        let Some(open) = self.streams.stream(stream) else {
            return;
        };
        let connection = &mut open.connections[link.connection()];
        let last = match way {
            Way::There => &mut connection.last_there,
            Way::Back => &mut connection.last_back,
        };
        match self
            .network
            .carry(now, frame.client, frame.node, last, way, &mut self.strikes)
        {
            Carried::Arrives(at) => {
                let frame = self.put_frame(frame);
                let event = match way {
                    Way::There => StreamEvent::Requests { frame },
                    Way::Back => StreamEvent::Answers { frame },
                };
                self.queue.push(at, Event::Stream(event));
            }
            Carried::Lost => {}
            Carried::Breaks(at) => {
                self.audit.mark(Mark::FrameLost);
                let event = StreamEvent::Broken { stream, link };
                self.queue.push(at, Event::Stream(event));
            }
        }
    }

    /// A frame of requests reaches its store, which answers them in any order, alone or together.
    fn serve_frame(&mut self, frame: u64) {
        let Some(frame) = self.streams.frames.remove(&frame) else {
            return;
        };
        if frame.lost || !self.network.is_up(frame.node) {
            return;
        }
        self.audit.frame(self.now, &frame.bytes);
        let is_second = frame.arrivals == Arrivals::SecondOfTwo;
        if is_second {
            self.audit.mark(Mark::ServedLate);
        }
        let split = frame::split_request(frame.bytes.clone());
        let mut items = split.expect("the client's own frames can be read").items;
        let mut answers = Vec::with_capacity(items.len());
        while !items.is_empty() {
            let next = self.streams.chance.index(items.len());
            let item = items.swap_remove(next);
            let Some(Ok(command)) = Command::decode_batched(item.arm, item.body) else {
                continue;
            };
            let name = (frame.stream, item.id);
            if is_second && dispatch::is_write(&command) && !self.streams.effective.remove(&name) {
                continue;
            }
            let asked = Asked {
                context: dispatch::context(&command),
                command: &command,
            };
            let whole = command.clone();
            let result = self.serve(frame.client, frame.node, asked, whole, &frame.address);
            if frame.arrivals == Arrivals::FirstOfTwo {
                // What waits for a lock has had none so far.
                match matches!(&result, Served::Now(result) if took_effect(result)) {
                    true => self.streams.effective.insert(name),
                    // Numbers are used again; the one before may have been lost with its store.
                    false => self.streams.effective.remove(&name),
                };
            }
            // The request may have been the store's last.
            if !self.network.is_up(frame.node) {
                return;
            }
            match result {
                Served::Now(Ok(response)) => {
                    answers.push((item.id, item.arm, response.encode()));
                }
                // A failure below the level of replies is not answered at all.
                Served::Now(Err(_)) | Served::Never => {}
                // The others in the frame do not wait with it.
                Served::Later(ticket) => {
                    let (id, arm) = (item.id, item.arm);
                    let frame = frame.to_answer(Bytes::new());
                    let way = WayBack::Frame(Unanswered { frame, id, arm });
                    self.parked_by(ticket, way);
                }
            }
        }
        if is_second {
            return;
        }
        let together = self.streams.chance.coin();
        let groups: Vec<&[(u64, u32, Bytes)]> = if together {
            vec![answers.as_slice()]
        } else {
            answers.chunks(1).collect()
        };
        for group in groups.into_iter().filter(|group| !group.is_empty()) {
            self.send_answers(frame.to_answer(frame::build_response(group)));
        }
    }

    /// A request of a frame that has waited at its store is answered, after the others.
    pub(super) fn answer_late(&mut self, place: Unanswered, body: Bytes) {
        let Unanswered { frame, id, arm } = place;
        if frame.arrivals != Arrivals::SecondOfTwo && self.network.is_up(frame.node) {
            let bytes = frame::build_response(&[(id, arm, body)]);
            self.send_answers(Frame { bytes, ..frame });
        }
    }

    /// Puts a frame of answers on its way, unless its connection is gone.
    fn send_answers(&mut self, answers: Frame) {
        let live = self.streams.stream(answers.stream);
        if live.is_some_and(|open| open.is_live(answers.link)) {
            self.carry(answers, Way::Back);
        } else {
            self.audit.mark(Mark::ReplyLost);
        }
    }

    /// A frame of answers reaches its client.
    fn take_answers(&mut self, frame: u64) {
        let now = self.now;
        let Some(frame) = self.streams.frames.remove(&frame) else {
            return;
        };
        let Some(open) = self.streams.stream(frame.stream) else {
            return;
        };
        if frame.lost || !open.is_live(frame.link) {
            self.audit.mark(Mark::ReplyLost);
            return;
        }
        let mut done = Vec::new();
        let mut split = SplitFrame::default();
        let read = split.read(frame.bytes.clone());
        read.expect("the server's own frames can be read");
        open.mux
            .handle_frame(now, frame.link, &mut split, &mut done);
        self.audit.frame(now, &frame.bytes);
        self.drain_stream(frame.stream, done);
    }

    /// A connection breaks: what was sent on it fails, what is on its way may still arrive.
    fn break_stream(&mut self, stream: usize, link: Link) {
        let now = self.now;
        let Some(open) = self.streams.stream(stream) else {
            return;
        };
        if !open.is_live(link) {
            return;
        }
        open.connections[link.connection()] = Connection::default();
        let error = TransportError::Broken {
            address: open.address.clone(),
            message: "stream reset".into(),
            sent: true,
        };
        let mut done = Vec::new();
        open.mux.on_broken(now, link, &error, &mut done);
        let on_their_way: Vec<u64> = self
            .streams
            .frames
            .iter()
            .filter(|(_, frame)| {
                frame.stream == stream
                    && frame.link == link
                    && frame.arrivals != Arrivals::SecondOfTwo
            })
            .map(|(key, _)| *key)
            .collect();
        for key in on_their_way {
            self.audit.mark(Mark::FrameLost);
            let lost = self.chaos.coin();
            if let Some(frame) = self.streams.frames.get_mut(&key) {
                frame.lost |= lost;
            }
        }
        if !done.is_empty() {
            self.audit.mark(Mark::BrokenInFlight);
        }
        self.drain_stream(stream, done);
    }

    fn expire_place(&mut self, place: u64) {
        let now = self.now;
        let Some(taken) = self.streams.places.remove(&place) else {
            return;
        };
        let Some(open) = self.streams.stream(taken.stream) else {
            return;
        };
        let cancelled = open.mux.cancel(now, taken.ticket);
        let sent = cancelled.is_none_or(|cancelled| cancelled.sent);
        let (client, node, address) = (open.client, open.node, open.address.clone());
        let label = taken.command.label();
        self.audit
            .note(now, || format!("{client} gives up {label} to {node}"));
        self.audit.mark(if sent {
            Mark::DeadlinePassed
        } else {
            Mark::NeverSent
        });
        let error = TransportError::Deadline { address, sent };
        self.hand_over(place, &taken, Reply::Response(Err(error)));
        self.drain_stream(taken.stream, Vec::new());
    }

    fn hand_over(&mut self, place: u64, taken: &Place, reply: Reply) {
        self.ops.rise(taken.waiter.0, Seat::Framed(place));
        self.audit.answered(self.now, taken.waiter.0.number());
        self.deliver(taken.waiter, reply);
    }

    /// Does what the multiplexer's contract asks for after every call.
    fn drain_stream(&mut self, stream: usize, done: Vec<Done<u64>>) {
        let now = self.now;
        for Done { completion, result } in done {
            let Some(taken) = self.streams.places.remove(&completion) else {
                continue;
            };
            let Some(open) = self.streams.stream(stream) else {
                continue;
            };
            let (client, address) = (open.client, open.address.clone());
            let result = result.and_then(|answer| answer.decode(&taken.command, &address));
            if let Ok(response) = &result {
                self.manners.hears(now, client, taken.asked, response);
            }
            self.hand_over(completion, &taken, Reply::Response(result));
        }
        while let Some(open) = self.streams.stream(stream)
            && let Some(link) = open.mux.poll_connect(now)
        {
            let (client, node) = (open.client, open.node);
            let (at, event) = match self.network.connect(now, client, node) {
                Ok(at) => (at, StreamEvent::Connected { stream, link }),
                Err(at) => (at, StreamEvent::NotConnected { stream, link }),
            };
            self.queue.push(at, Event::Stream(event));
        }
        while let Some(open) = self.streams.stream(stream)
            && let Some(link) = open.mux.poll_wake()
        {
            let after = self.streams.chance.time(WRITER);
            self.schedule(after, Event::Stream(StreamEvent::Write { stream, link }));
        }
        if let Some(open) = self.streams.stream(stream)
            && let Some(at) = open.mux.next_deadline()
            && at < open.tick
        {
            open.tick = at;
            self.queue
                .push(at.max(now), Event::Stream(StreamEvent::Tick { stream }));
        }
    }
}
