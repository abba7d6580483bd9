//! The connections to one store, and the requests on them.
//!
//! What goes where is decided by [`Mux`]; this file gives it a lock, a clock and tasks. The tasks
//! that wait push and cancel, those of the connections (see [`stream`](crate::stream)) pull frames
//! and hand answers in, and one housekeeper watches deadlines and idleness.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use smallvec::SmallVec;
use tikv_core::driver::{Instant, TransportError};
use tikv_core::rpc::frame::{RequestFrame, SplitFrame};
use tikv_core::rpc::mux::{Done, Entry, Link, Mux, MuxConfig, MuxStats, Rejected, Ticket};
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::config::IoConfig;
use crate::connect::Connector;
use crate::deadlines::Deadlines;
use crate::inbox::{Arrival, Inbox};
use crate::stream;
use crate::tasks::Tasks;
use crate::writer::Writer;

/// The connections to one store.
#[derive(Debug)]
pub(crate) struct Pool {
    address: Arc<str>,
    connector: Arc<Connector>,
    clock: Clock,
    born: Instant,
    /// Stops with the pool.
    tasks: Tasks,
    state: Mutex<State>,
    /// Rung when a deadline is earlier than the housekeeper knows.
    alarm: Notify,
}

#[derive(Debug)]
struct State {
    mux: Mux<Seat>,
    deadlines: Deadlines<Ticket>,
    /// One per connection.
    writers: Box<[Arc<Writer>]>,
    /// When the housekeeper wakes by itself.
    alarm_at: Instant,
    /// Nothing is taken any more: idle for too long, or closed.
    retired: bool,
}

/// A request to be sent.
#[derive(Debug)]
pub(crate) struct Parcel {
    /// The encoded item of a frame.
    pub(crate) part: Bytes,
    pub(crate) deadline: Instant,
    /// Where what comes of it goes, and as what.
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) flight: u32,
}

/// Who waits for an answer.
#[derive(Debug)]
pub(crate) struct Seat {
    inbox: Arc<Inbox>,
    flight: u32,
    /// Its place among the deadlines.
    slot: u32,
}

/// Names a request in a pool, to cancel it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolTicket {
    ticket: Ticket,
}

/// Why a request was not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The pool has retired; another one takes it.
    Retired(Parcel),
    /// It can't be sent.
    Failed(TransportError),
}

/// What is to be done once the lock is released.
#[derive(Default)]
struct Chores {
    connect: SmallVec<[Link; 4]>,
    wake: SmallVec<[Arc<Writer>; 4]>,
    alarm: bool,
}

/// Requests that have ended, to be handed out once the lock is released.
pub(crate) type Ended = Vec<Done<Seat>>;

impl Pool {
    /// A pool with no connection yet. Its housekeeper is to be [run](Self::keep_house).
    pub(crate) fn new(
        address: Arc<str>,
        config: &IoConfig,
        connector: Arc<Connector>,
        clock: Clock,
        tasks: Tasks,
    ) -> Arc<Self> {
        let mux = MuxConfig {
            connections: config.grpc_connection_count,
            // Each queued request has a task that waits for it and does nothing else, so callers
            // are held back without a bound of the queue's own.
            queue_entries_max: usize::MAX,
            queue_bytes_max: usize::MAX,
            ..MuxConfig::default()
        };
        Arc::new(Pool {
            state: Mutex::new(State {
                writers: (0..mux.connections).map(|_| Arc::default()).collect(),
                mux: Mux::new(address.clone(), mux),
                deadlines: Deadlines::new(),
                alarm_at: Instant::FAR_FUTURE,
                retired: false,
            }),
            address,
            connector,
            born: clock.now(),
            clock,
            tasks,
            alarm: Notify::new(),
        })
    }

    /// Where the connections go.
    pub(crate) fn address(&self) -> &Arc<str> {
        &self.address
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Queues a request. What comes of it arrives in the inbox, at the latest at its deadline.
    pub(crate) fn push(
        self: &Arc<Self>,
        now: Instant,
        parcel: Parcel,
    ) -> Result<PoolTicket, Refused> {
        let deadline = parcel.deadline;
        let (pushed, chores) = {
            let mut state = self.lock();
            if state.retired {
                return Err(Refused::Retired(parcel));
            }
            let entry = Entry {
                part: parcel.part,
                priority: 0,
                deadline,
                completion: Seat {
                    inbox: parcel.inbox,
                    flight: parcel.flight,
                    slot: state.deadlines.next_slot(),
                },
            };
            let pushed = state.mux.push(now, entry);
            if let Ok(ticket) = &pushed {
                state.deadlines.insert(deadline, *ticket);
            }
            (pushed, state.chores(now))
        };
        self.see_to(chores);
        match pushed {
            Ok(ticket) => Ok(PoolTicket { ticket }),
            Err(Rejected::Failed(_, error)) => Err(Refused::Failed(error)),
            Err(Rejected::Full(_)) => Err(Refused::Failed(TransportError::Deadline {
                address: self.address.clone(),
                sent: false,
            })),
        }
    }

    /// Takes a request back that nobody waits for any more.
    pub(crate) fn cancel(&self, ticket: PoolTicket) {
        let now = self.clock.now();
        let mut state = self.lock();
        let cancelled = state.mux.cancel(now, ticket.ticket);
        if let Some(cancelled) = &cancelled {
            state.deadlines.remove(cancelled.completion.slot);
        }
        drop(state);
        // An inbox is not dropped under the lock.
        drop(cancelled);
    }

    /// The next frame for the writer of a connection.
    pub(crate) fn poll_frame(self: &Arc<Self>, link: Link) -> Option<RequestFrame> {
        self.change(&mut Vec::new(), |mux, now, ended| {
            mux.poll_frame(now, link, ended)
        })
    }

    /// Hands out the answers of a frame. `ended` is memory to be used again.
    pub(crate) fn receive(self: &Arc<Self>, link: Link, frame: &mut SplitFrame, ended: &mut Ended) {
        self.change(ended, |mux, now, ended| {
            mux.handle_frame(now, link, frame, ended)
        });
    }

    /// The connection is open; `writer` is woken when it is its turn to send.
    pub(crate) fn on_connected(self: &Arc<Self>, link: Link, writer: Arc<Writer>) {
        self.lock().writers[link.connection()] = writer;
        self.change(&mut Vec::new(), |mux, _, _| mux.on_connected(link));
    }

    pub(crate) fn on_connect_failed(self: &Arc<Self>, link: Link, message: &Arc<str>) {
        self.change(&mut Vec::new(), |mux, now, ended| {
            mux.on_connect_failed(now, link, message, ended);
        });
    }

    pub(crate) fn on_broken(self: &Arc<Self>, link: Link, error: &TransportError) {
        self.change(&mut Vec::new(), |mux, now, ended| {
            mux.on_broken(now, link, error, ended)
        });
    }

    /// Ends everything that is waited for, and the tasks.
    pub(crate) fn close(&self) {
        let mut ended = Vec::new();
        {
            let mut state = self.lock();
            state.retired = true;
            state.mux.close(&mut ended);
        }
        self.tasks.stop();
        deliver(&mut ended);
    }

    /// Watches deadlines until the pool has been idle for `idle_timeout`, and has then retired.
    pub(crate) async fn keep_house(self: &Arc<Self>, idle_timeout: std::time::Duration) {
        loop {
            let now = self.clock.now();
            let wake_at = {
                let mut state = self.lock();
                let idle_at = state.mux.idle_since();
                let idle_at = idle_at.map(|since| since.max(self.born) + idle_timeout);
                if idle_at.is_some_and(|at| at <= now) {
                    state.retired = true;
                    break;
                }
                // While requests are in flight it looks again after as long as it takes to be
                // idle: more often is of no use.
                let look_at = idle_at.unwrap_or(now + idle_timeout);
                state.alarm_at = state.next_deadline().min(look_at);
                state.alarm_at
            };
            tokio::select! {
                () = self.alarm.notified() => {}
                () = tokio::time::sleep_until(self.clock.to_tokio(wake_at)) => {}
            }
            self.expire();
        }
        self.tasks.stop();
    }

    /// Ends what has passed its deadline.
    fn expire(self: &Arc<Self>) {
        let now = self.clock.now();
        let mut late = Vec::new();
        let chores = {
            let mut state = self.lock();
            state.mux.tick(now);
            for ticket in state.deadlines.passed(now) {
                if let Some(cancelled) = state.mux.cancel(now, ticket) {
                    state.deadlines.remove(cancelled.completion.slot);
                    late.push(cancelled);
                }
            }
            state.chores(now)
        };
        self.see_to(chores);
        for cancelled in late {
            let address = self.address.clone();
            let error = TransportError::Deadline {
                address,
                sent: cancelled.sent,
            };
            cancelled.completion.answer(Err(error));
        }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let state = self.lock();
        PoolStats {
            mux: *state.mux.stats(),
            queued: state.mux.queued(),
            in_flight: state.mux.in_flight(),
        }
    }

    /// Changes the multiplexer and does what follows from it.
    fn change<R>(
        self: &Arc<Self>,
        ended: &mut Ended,
        change: impl FnOnce(&mut Mux<Seat>, Instant, &mut Ended) -> R,
    ) -> R {
        let now = self.clock.now();
        let (result, chores) = {
            let mut state = self.lock();
            let result = change(&mut state.mux, now, ended);
            for done in ended.iter() {
                state.deadlines.remove(done.completion.slot);
            }
            (result, state.chores(now))
        };
        self.see_to(chores);
        deliver(ended);
        result
    }

    fn see_to(self: &Arc<Self>, chores: Chores) {
        for writer in chores.wake {
            writer.wake();
        }
        for link in chores.connect {
            self.tasks.spawn(stream::run(self.clone(), link));
        }
        if chores.alarm {
            self.alarm.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The multiplexer has no panic in it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn chores(&mut self, now: Instant) -> Chores {
        let mut chores = Chores::default();
        while let Some(link) = self.mux.poll_connect(now) {
            chores.connect.push(link);
        }
        while let Some(link) = self.mux.poll_wake() {
            chores.wake.push(self.writers[link.connection()].clone());
        }
        let next = self.next_deadline();
        if next < self.alarm_at {
            self.alarm_at = next;
            chores.alarm = true;
        }
        chores
    }

    fn next_deadline(&self) -> Instant {
        self.mux
            .next_deadline()
            .unwrap_or(Instant::FAR_FUTURE)
            .min(self.deadlines.first())
    }
}

impl Seat {
    fn answer(self, result: Result<tikv_core::rpc::frame::Answer, TransportError>) {
        self.inbox.deliver(self.flight, Arrival::Answer(result));
    }
}

fn deliver(ended: &mut Ended) {
    for done in ended.drain(..) {
        done.completion.answer(done.result);
    }
}

/// What a pool holds and has done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PoolStats {
    pub(crate) mux: MuxStats,
    pub(crate) queued: usize,
    pub(crate) in_flight: usize,
}
