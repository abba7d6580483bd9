//! Decides which request goes into which frame of which connection to one store, and whose answer
//! a slice of a received frame is. Called by the driver's tasks that own the BatchCommands streams
//! and by the tasks that wait for answers, behind one short lock. (client-go: `batchConn`,
//! `batchCommandsClient` and `batchCommandsBuilder`)
//!
//! Deliberately absent: sockets, tasks, the clock, messages (a part is opaque, an answer a slice),
//! retries (a request goes out once, or not at all), and timers per request: whoever waits watches
//! its own deadline and [cancels](Mux::cancel).
//!
//! # Pull, not push
//!
//! Nothing here starts a frame. A connection's writer, whenever it can write, asks for one
//! ([`Mux::poll_frame`]) and gets what has piled up. So frames grow with load by themselves, no
//! request waits for a timer, and a connection that is stalled stalls nobody else.
//!
//! # The life of a connection
//!
//! ```text
//!            poll_connect              on_connected
//!    Down ─────────────────▶ Connecting ─────────────▶ Up
//!     ▲  ▲   on_connect_failed   │                      │
//!     │  └───────────────────────┘       on_broken      │
//!     └─────────────────────────────────────────────────┘
//! ```
//!
//! Connecting is an event like others: requests queue meanwhile, each under its own deadline. They
//! fail together when an attempt ends badly and no other connection is up. A break fails what was
//! sent on that connection, and nothing else.
//!
//! # The contract
//!
//! > After **any** call, drain, in any order: what is in `done` (release the lock first, store the
//! > frame's health feedback, then wake), [`Mux::poll_connect`] (start opening what it names) and
//! > [`Mux::poll_wake`] (wake the writers it names). Then sleep no longer than
//! > [`Mux::next_deadline`]; when that has come, call [`Mux::tick`].
//! >
//! > A writer asks for frames until it gets `None`, first when its connection came up and again
//! > when `poll_wake` names it.
//!
//! # Forwarding
//!
//! A host reached through a proxy store has streams of its own, which differ from direct ones by
//! a header. It gets a `Mux` of its own too, on the same connections: ids need to be unique per
//! stream only, and what breaks fails together.

mod config;
mod connection;
mod queue;
mod request;
mod slab;
mod stats;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry as MapEntry;

pub use self::config::MuxConfig;
pub use self::request::{Cancelled, Done, Entry, PRIORITY_HIGH, Rejected, Ticket};
pub use self::stats::{MuxStats, Pending};

use self::connection::{Connection, State, Writer};
use self::queue::{Queue, level};
use self::request::Request;
use self::slab::Slab;
use super::frame::{Answer, RequestFrame, SplitFrame};
use crate::error::TransportError;
use crate::time::Instant;

/// The multiplexer of one store address. `T` is what the driver wakes the waiting task with; it is
/// handed back with the result, so that no lookup is needed.
#[derive(Debug)]
pub struct Mux<T> {
    address: Arc<str>,
    config: MuxConfig,
    requests: Slab<Request<T>>,
    queue: Queue,
    connections: Vec<Connection>,
    /// Every request that was sent and not answered, cancelled ones too.
    by_id: HashMap<u64, u32, FixedState>,
    next_id: u64,
    /// The connection woken last.
    turn: usize,
    /// Why the last attempt to connect, or the last stream, failed.
    last_failure: Arc<str>,
    last_used: Instant,
    load: Option<(Instant, u64)>,
    stats: MuxStats,
    closed: bool,
}

/// One life of one connection. Events of an earlier life change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    connection: usize,
    life: u32,
}

impl Link {
    /// Which of the connections, counted from 0.
    pub const fn connection(self) -> usize {
        self.connection
    }
}

impl<T> Mux<T> {
    /// A multiplexer for `address`, with no connection open yet.
    pub fn new(address: Arc<str>, config: MuxConfig) -> Self {
        let connections = (0..config.connections.max(1))
            .map(|_| Connection::new())
            .collect();
        Mux {
            address,
            config,
            requests: Slab::new(),
            queue: Queue::new(),
            connections,
            by_id: HashMap::with_hasher(FixedState::default()),
            next_id: 1,
            turn: 0,
            last_failure: Arc::from(""),
            last_used: Instant::ZERO,
            load: None,
            stats: MuxStats::default(),
            closed: false,
        }
    }

    /// Where the connections go.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Queues a request.
    ///
    /// # Errors
    ///
    /// Gives the entry back; see [`Rejected`].
    pub fn push(&mut self, now: Instant, entry: Entry<T>) -> Result<Ticket, Rejected<T>> {
        if self.closed {
            return Err(Rejected::Failed(
                entry,
                TransportError::Closed { sent: false },
            ));
        }
        if self.connections.iter().all(|c| c.must_wait(now)) {
            return Err(Rejected::Failed(entry, self.connect_error()));
        }
        if !self.has_room(entry.part.len()) {
            return Err(Rejected::Full(entry));
        }
        self.last_used = now;
        let level = level(entry.priority);
        let part_len = entry.part.len();
        let handle = self.requests.insert(Request::Queued {
            completion: entry.completion,
            part: entry.part,
            level,
            deadline: entry.deadline,
        });
        self.queue
            .push(&mut self.requests, handle.index, level, part_len);
        Ok(Ticket(handle))
    }

    /// Whether the queue takes another request of this many bytes.
    pub fn has_room(&self, part_len: usize) -> bool {
        self.queue.len == 0
            || (self.queue.len < self.config.queue_entries_max
                && self.queue.bytes.saturating_add(part_len) <= self.config.queue_bytes_max)
    }

    /// Takes a request back. `None` if it has completed.
    ///
    /// There is no way to tell the store. If the request was sent, its id stays known until the
    /// answer comes, the connection breaks or [`MuxConfig::abandoned_ttl`] has passed.
    pub fn cancel(&mut self, now: Instant, ticket: Ticket) -> Option<Cancelled<T>> {
        let index = self.requests.resolve(ticket.0)?;
        match self.requests.take(index)? {
            Request::Queued {
                completion,
                part,
                level,
                ..
            } => {
                self.queue
                    .unlink(&mut self.requests, index, level, part.len());
                self.requests.free(index);
                self.stats.unsent += 1;
                Some(Cancelled {
                    completion,
                    sent: false,
                })
            }
            Request::Sent {
                completion,
                id,
                connection,
                ..
            } => {
                let abandoned = Request::Abandoned {
                    id,
                    connection,
                    at: now,
                };
                self.requests.replace(index, abandoned);
                let connection = &mut self.connections[connection];
                self.requests.unlink(&mut connection.sent, index);
                self.requests.push_back(&mut connection.abandoned, index);
                Some(Cancelled {
                    completion,
                    sent: true,
                })
            }
            abandoned @ Request::Abandoned { .. } => {
                self.requests.replace(index, abandoned);
                None
            }
        }
    }

    /// A connection to start opening, at most once per attempt. Connections are opened when there
    /// is something to send, and again only then.
    pub fn poll_connect(&mut self, now: Instant) -> Option<Link> {
        if self.queue.len == 0 {
            return None;
        }
        let is_due =
            |c: &Connection| matches!(c.state, State::Down { retry_at } if retry_at <= now);
        let connection = self.connections.iter().position(is_due)?;
        let life = self.connections[connection].begin();
        Some(Link { connection, life })
    }

    /// The connection is open, as far as the transport knows: a server may send its first header
    /// with its first answer, so no driver waits for that.
    pub fn on_connected(&mut self, link: Link) {
        if let Some(connection) = self.live(link)
            && matches!(connection.state, State::Connecting)
        {
            connection.state = State::Up(Writer::Awake);
        }
    }

    /// The attempt to open the connection came to nothing. When no other one is up, that is the
    /// end of all that is queued: what fails for one connection to an address fails for the
    /// others, and nobody is to wait for a row of attempts.
    pub fn on_connect_failed(
        &mut self,
        now: Instant,
        link: Link,
        message: &Arc<str>,
        done: &mut Vec<Done<T>>,
    ) {
        let Some(connection) = self.live(link) else {
            return;
        };
        if !matches!(connection.state, State::Connecting) {
            return;
        }
        connection.fail(now);
        self.last_failure = message.clone();
        let is_up = |c: &Connection| matches!(c.state, State::Up(_));
        if !self.connections.iter().any(is_up) {
            let error = self.connect_error();
            self.fail_queue(&error, done);
        }
    }

    /// The stream is over: by an error, by the server's will, or because what it brought was no
    /// frame. Fails what was sent on it with `error`; what is queued stays.
    pub fn on_broken(
        &mut self,
        now: Instant,
        link: Link,
        error: &TransportError,
        done: &mut Vec<Done<T>>,
    ) {
        let Some(connection) = self.live(link) else {
            return;
        };
        if matches!(connection.state, State::Connecting) {
            return self.on_connect_failed(now, link, &error.to_string().into(), done);
        }
        if connection.heard {
            connection.failures = 0;
            connection.state = State::Down { retry_at: now };
        } else {
            connection.fail(now);
        }
        self.last_failure = error.to_string().into();
        self.fail_sent(link.connection, &as_sent(error), done);
    }

    /// One frame could not be written, though the stream still stands. Fails the requests in it
    /// with `error`, in which the driver says whether they may have left the process.
    pub fn on_write_failed(
        &mut self,
        link: Link,
        ids: Range<u64>,
        error: &TransportError,
        done: &mut Vec<Done<T>>,
    ) {
        if self.live(link).is_none() {
            return;
        }
        for id in ids {
            match self.retire(link.connection, id) {
                Some(Some(completion)) => {
                    self.stats.failed += 1;
                    done.push(Done {
                        completion,
                        result: Err(error.clone()),
                    });
                }
                Some(None) => self.stats.abandoned += 1,
                None => {}
            }
        }
    }

    /// A writer to wake, since there is something that it may send. Successive calls name
    /// successive connections, and no more of them than there are full frames waiting.
    pub fn poll_wake(&mut self) -> Option<Link> {
        let highest = self.queue.highest()?;
        let is_woken = |c: &&Connection| matches!(c.state, State::Up(Writer::Woken));
        let woken = self.connections.iter().filter(is_woken).count();
        if self.queue.len <= woken.saturating_mul(self.config.frame_entries_max) {
            return None;
        }
        let count = self.connections.len();
        for step in 1..=count {
            let index = (self.turn + step) % count;
            let in_flight_max = self.config.in_flight_max;
            let connection = &mut self.connections[index];
            if matches!(connection.state, State::Up(Writer::Parked))
                && (highest >= level(PRIORITY_HIGH) || connection.available(in_flight_max) > 0)
            {
                connection.state = State::Up(Writer::Woken);
                self.turn = index;
                return Some(Link {
                    connection: index,
                    life: connection.life,
                });
            }
        }
        None
    }

    /// What the connection's writer is to write next: highest priority first, then in the order
    /// pushed. `None` if there is nothing: the writer sleeps until [`Mux::poll_wake`] names it.
    ///
    /// From here on the requests count as sent. Those whose deadline has passed are not; they end
    /// up in `done`. A writer that asks again at once may have the next frame, too: it is awake,
    /// and waking another one would cost more.
    pub fn poll_frame(
        &mut self,
        now: Instant,
        link: Link,
        done: &mut Vec<Done<T>>,
    ) -> Option<RequestFrame> {
        // A policy that waits for more requests (client-go: `turboBatchTrigger`) would answer
        // `None` here, and `next_deadline` and `poll_wake` would say when the wait is over.
        let in_flight_max = self.config.in_flight_max;
        let connection = self.live(link)?;
        if !matches!(connection.state, State::Up(_)) {
            return None;
        }
        let available = connection.available(in_flight_max);
        let parts = self.take_parts(now, link.connection, available, done);
        let connection = &mut self.connections[link.connection];
        if parts.is_empty() {
            connection.state = State::Up(Writer::Parked);
            return None;
        }
        connection.state = State::Up(Writer::Awake);
        let first_id = self.next_id;
        self.next_id += parts.len() as u64;
        self.stats.frames += 1;
        self.stats.sent += parts.len() as u64;
        Some(RequestFrame::new(first_id, parts))
    }

    /// Hands out the answers of a frame that was received, and empties it but for the rest of what
    /// it says. The driver puts the health feedback where readers find it before it wakes whoever
    /// waits for an answer.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        link: Link,
        frame: &mut SplitFrame,
        done: &mut Vec<Done<T>>,
    ) {
        let Some(connection) = self.live(link) else {
            self.stats.outdated += frame.items.len() as u64;
            frame.items.clear();
            return;
        };
        connection.heard = true;
        connection.failures = 0;
        self.last_used = now;
        if frame.transport_layer_load > 0 {
            self.load = Some((now, frame.transport_layer_load));
        }
        for item in frame.items.drain(..) {
            match self.retire(link.connection, item.id) {
                None => self.stats.outdated += 1,
                Some(retired) => {
                    let answered = &mut self.connections[link.connection].highest_answered;
                    *answered = item.id.max(*answered);
                    let Some(completion) = retired else {
                        self.stats.discarded += 1;
                        continue;
                    };
                    self.stats.completed += 1;
                    let result = match item.arm {
                        0 => Err(self.empty_answer()),
                        arm => Ok(Answer {
                            arm,
                            body: item.body,
                        }),
                    };
                    done.push(Done { completion, result });
                }
            }
        }
    }

    /// When to call [`Mux::tick`], if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.queue.len > 0;
        let deadlines = self.connections.iter().filter_map(|c| match c.state {
            State::Down { retry_at } if waiting => Some(retry_at),
            _ => self.abandoned_until(c),
        });
        deadlines.min()
    }

    /// Frees the places of requests that were cancelled long ago.
    pub fn tick(&mut self, now: Instant) {
        for index in 0..self.connections.len() {
            while let connection = &self.connections[index]
                && self.abandoned_until(connection).is_some_and(|at| at <= now)
                && let Some(Request::Abandoned { id, .. }) = connection
                    .abandoned
                    .front()
                    .and_then(|front| self.requests.get(front))
            {
                let id = *id;
                self.retire(index, id);
                self.stats.abandoned += 1;
            }
        }
    }

    /// Ends everything, in whatever stage. Nothing completes afterwards.
    pub fn close(&mut self, done: &mut Vec<Done<T>>) {
        self.closed = true;
        self.fail_queue(&TransportError::Closed { sent: false }, done);
        for index in 0..self.connections.len() {
            self.fail_sent(index, &TransportError::Closed { sent: true }, done);
            // No link names this life, so no later event reaches it.
            self.connections[index].begin();
        }
    }

    /// Since when nothing has been asked of this store; `None` while something is queued or in
    /// flight.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.queue.len == 0 && self.by_id.is_empty()).then_some(self.last_used)
    }

    /// How many requests wait to be sent.
    pub fn queued(&self) -> usize {
        self.queue.len
    }

    /// How many requests were sent and not answered, cancelled ones too.
    pub fn in_flight(&self) -> usize {
        self.by_id.len()
    }

    /// How busy the server said it was, unless that is long ago. Percent of one core, summed over
    /// its transport's threads.
    pub fn load(&self, now: Instant) -> Option<u64> {
        let (at, load) = self.load?;
        (now - at < LOAD_TTL).then_some(load)
    }

    /// What has been done so far.
    pub fn stats(&self) -> &MuxStats {
        &self.stats
    }

    /// Which answers are overdue. Walks everything in flight: for a look once a minute.
    pub fn pending(&self, now: Instant) -> Pending {
        let mut pending = Pending::default();
        for connection in &self.connections {
            for request in self.requests.iter(&connection.sent) {
                let Request::Sent { id, at, .. } = request else {
                    continue;
                };
                let waited = now - *at;
                if waited < SLOW {
                    // Sent in this order, so the others are younger.
                    break;
                }
                if pending.oldest.is_none_or(|(_, longest)| longest < waited) {
                    pending.oldest = Some((*id, waited));
                }
                let unconfirmed = usize::from(*id > connection.highest_answered);
                pending.slow += 1;
                pending.slow_unconfirmed += unconfirmed;
                if waited >= HANGING {
                    pending.hanging += 1;
                    pending.hanging_unconfirmed += unconfirmed;
                }
            }
        }
        pending
    }

    /// The connection, if this is still its life.
    fn live(&mut self, link: Link) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(link.connection)?;
        let is_over = matches!(connection.state, State::Down { .. });
        (connection.life == link.life && !is_over).then_some(connection)
    }

    fn take_parts(
        &mut self,
        now: Instant,
        connection: usize,
        mut available: usize,
        done: &mut Vec<Done<T>>,
    ) -> Vec<Bytes> {
        let count_max = self.config.frame_entries_max.max(1);
        let mut parts = Vec::new();
        let mut bytes = 0;
        while parts.len() < count_max
            && let Some(index) = self.queue.front()
            && let Some(Request::Queued {
                part,
                level: its_level,
                deadline,
                ..
            }) = self.requests.get(index)
        {
            let its_level = *its_level;
            let part_len = part.len();
            let expired = *deadline <= now;
            let is_normal = its_level < level(PRIORITY_HIGH);
            if !expired {
                let too_large = bytes + part_len > self.config.frame_bytes_max;
                if (is_normal && available == 0) || (too_large && !parts.is_empty()) {
                    break;
                }
            }
            self.queue
                .unlink(&mut self.requests, index, its_level, part_len);
            let Some(Request::Queued {
                completion, part, ..
            }) = self.requests.take(index)
            else {
                break;
            };
            if expired {
                self.requests.free(index);
                self.stats.unsent += 1;
                done.push(Done {
                    completion,
                    result: Err(TransportError::Deadline {
                        address: self.address.clone(),
                        sent: false,
                    }),
                });
                continue;
            }
            let id = self.next_id + parts.len() as u64;
            let sent = Request::Sent {
                completion,
                id,
                connection,
                at: now,
            };
            self.requests.replace(index, sent);
            let list = &mut self.connections[connection].sent;
            self.requests.push_back(list, index);
            self.by_id.insert(id, index);
            if is_normal {
                available -= 1;
            }
            if parts.is_empty() {
                parts.reserve(count_max.min(self.queue.len + 1));
            }
            bytes += part_len;
            parts.push(part);
        }
        parts
    }

    /// Forgets a request that was sent on this connection. The inner `None` says that it had been
    /// cancelled, the outer one that there is none.
    fn retire(&mut self, connection: usize, id: u64) -> Option<Option<T>> {
        let MapEntry::Occupied(entry) = self.by_id.entry(id) else {
            return None;
        };
        let index = *entry.get();
        // An id that comes back on a connection it was not sent on proves nothing.
        match self.requests.get(index)? {
            Request::Sent { connection: c, .. } | Request::Abandoned { connection: c, .. }
                if *c == connection => {}
            _ => return None,
        }
        entry.remove();
        let connection = &mut self.connections[connection];
        let completion = match self.requests.take(index)? {
            Request::Sent { completion, .. } => {
                self.requests.unlink(&mut connection.sent, index);
                Some(completion)
            }
            _ => {
                self.requests.unlink(&mut connection.abandoned, index);
                None
            }
        };
        self.requests.free(index);
        Some(completion)
    }

    fn fail_queue(&mut self, error: &TransportError, done: &mut Vec<Done<T>>) {
        while let Some(index) = self.queue.front()
            && let Some(Request::Queued {
                completion,
                part,
                level,
                ..
            }) = self.requests.take(index)
        {
            self.queue
                .unlink(&mut self.requests, index, level, part.len());
            self.requests.free(index);
            self.stats.unsent += 1;
            done.push(Done {
                completion,
                result: Err(error.clone()),
            });
        }
    }

    fn fail_sent(&mut self, connection: usize, error: &TransportError, done: &mut Vec<Done<T>>) {
        let connection = &mut self.connections[connection];
        while let Some(index) = connection.sent.front() {
            self.requests.unlink(&mut connection.sent, index);
            if let Some(Request::Sent { completion, id, .. }) = self.requests.take(index) {
                self.by_id.remove(&id);
                self.stats.failed += 1;
                done.push(Done {
                    completion,
                    result: Err(error.clone()),
                });
            }
            self.requests.free(index);
        }
        while let Some(index) = connection.abandoned.front() {
            self.requests.unlink(&mut connection.abandoned, index);
            if let Some(Request::Abandoned { id, .. }) = self.requests.take(index) {
                self.by_id.remove(&id);
                self.stats.abandoned += 1;
            }
            self.requests.free(index);
        }
    }

    /// When the first of the connection's cancelled requests has been waited for long enough.
    fn abandoned_until(&self, connection: &Connection) -> Option<Instant> {
        match self.requests.get(connection.abandoned.front()?)? {
            Request::Abandoned { at, .. } => Some(*at + self.config.abandoned_ttl),
            _ => None,
        }
    }

    fn connect_error(&self) -> TransportError {
        TransportError::Connect {
            address: self.address.clone(),
            message: self.last_failure.clone(),
        }
    }

    fn empty_answer(&self) -> TransportError {
        TransportError::Decode {
            address: self.address.clone(),
            message: Arc::from("an answer that answers no command"),
        }
    }
}

/// The error of a request that was sent.
fn as_sent(error: &TransportError) -> TransportError {
    let mut error = error.clone();
    match &mut error {
        TransportError::Broken { sent, .. }
        | TransportError::Deadline { sent, .. }
        | TransportError::Closed { sent } => *sent = true,
        // What is only said of requests that were not sent can't be said of these.
        TransportError::Connect { address, message } => {
            return TransportError::Broken {
                address: address.clone(),
                message: message.clone(),
                sent: true,
            };
        }
        TransportError::Status { .. } | TransportError::Decode { .. } => {}
    }
    error
}

/// How long the server's word on its load is believed.
const LOAD_TTL: Duration = Duration::from_secs(10);

const SLOW: Duration = Duration::from_secs(30);
const HANGING: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests;
