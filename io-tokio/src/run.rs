//! Turns one operation in the task that waits for it.
//!
//! Batched requests and timestamps are *flights*: they are handed to a connection, and their
//! replies arrive in the [`Inbox`], at one wake-up each. Everything rarer (unary calls, sleeps) is
//! an *errand*, a boxed future polled here.
//!
//! Dropping a run cancels its operation: what is still in the air is called back, so that no
//! connection keeps anything of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use smallvec::SmallVec;
use tikv_core::driver::{Action, ActionId, Endpoint, Instant, Operation, Reply, Rpc};
use tikv_core::rpc::frame;
use tikv_core::wire::Command;

use crate::driver::Inner;
use crate::inbox::{Arrival, Inbox};
use crate::oracle::{Oracle, OracleTicket};
use crate::pool::{Parcel, Pool, PoolTicket};

/// What takes longer than a batched request, each with the action it answers.
type Errands = FuturesUnordered<BoxFuture<'static, (ActionId, Reply)>>;

/// One operation, running.
pub struct Run<T> {
    inner: Arc<Inner>,
    operation: Operation<T>,
    inbox: Arc<Inbox>,
    /// The inbox as the waker of the operation.
    waker: Waker,
    flights: Flights,
    errands: Option<Box<Errands>>,
}

impl<T> Run<T> {
    pub(crate) fn new(inner: Arc<Inner>, operation: Operation<T>) -> Self {
        let inbox = Arc::new(Inbox::new());
        Run {
            inner,
            operation,
            waker: Waker::from(inbox.clone()),
            inbox,
            flights: Flights::default(),
            errands: None,
        }
    }

    /// Hands a reply to the operation.
    fn complete(&mut self, id: ActionId, reply: Reply) {
        let completed = self.operation.complete(id, reply);
        debug_assert!(
            completed.is_ok(),
            "each action is answered once: {completed:?}"
        );
    }

    fn land(&mut self, flight: u32, arrival: Arrival) {
        let Some(flight) = self.flights.remove(flight) else {
            debug_assert!(false, "an arrival without a flight: {arrival:?}");
            return;
        };
        let reply = match (flight.way, arrival) {
            (Way::Batched { pool, command, .. }, Arrival::Answer(answer)) => {
                Reply::Response(answer.and_then(|answer| answer.decode(&command, pool.address())))
            }
            (Way::Timestamp { .. }, Arrival::Timestamp(timestamp)) => Reply::Timestamp(timestamp),
            (_, arrival) => {
                debug_assert!(false, "an arrival of the wrong kind: {arrival:?}");
                return;
            }
        };
        self.complete(flight.id, reply);
    }

    fn start(&mut self, now: Instant, id: ActionId, action: Action) {
        match action {
            Action::Send(rpc) => self.send(now, id, rpc),
            Action::Timestamp(request) => {
                let flight = self.flights.next();
                match self.inner.timestamp(&request, &self.inbox, flight) {
                    Ok((oracle, ticket)) => {
                        self.flights.insert(Flight {
                            id,
                            way: Way::Timestamp { oracle, ticket },
                        });
                    }
                    Err(error) => self.complete(id, Reply::Timestamp(Err(error))),
                }
            }
            Action::Sleep { until, why: _ } => {
                let until = self.inner.clock.to_tokio(until);
                self.errand(async move {
                    tokio::time::sleep_until(until).await;
                    (id, Reply::Woke)
                });
            }
            Action::Spawn(operation) => self.inner.spawn(operation),
        }
    }

    fn send(&mut self, now: Instant, id: ActionId, rpc: Rpc) {
        if let Endpoint::Store { address, .. } = &rpc.endpoint
            && let Some(part) = frame::encode_part(rpc.context.as_deref(), &rpc.command)
        {
            let flight = self.flights.next();
            let parcel = Parcel {
                part,
                deadline: rpc.deadline,
                inbox: self.inbox.clone(),
                flight,
            };
            match self.inner.push(now, address, parcel) {
                Ok((pool, ticket)) => {
                    let way = Way::Batched {
                        pool,
                        ticket,
                        command: rpc.command,
                    };
                    self.flights.insert(Flight { id, way });
                }
                Err(error) => self.complete(id, Reply::Response(Err(error))),
            }
        } else {
            let inner = self.inner.clone();
            self.errand(async move { (id, Reply::Response(inner.unary(rpc).await)) });
        }
    }

    fn errand(&mut self, errand: impl Future<Output = (ActionId, Reply)> + Send + 'static) {
        self.errands.get_or_insert_default().push(Box::pin(errand));
    }

    /// Completes the errands that are done; whether there were any.
    fn run_errands(&mut self, cx: &mut Context<'_>) -> bool {
        // Timers belong to the driver's runtime, whichever executor polls this.
        let inner = self.errands.is_some().then(|| self.inner.clone());
        let _runtime = inner.as_ref().map(|inner| inner.runtime.enter());
        let mut ended = false;
        while let Some(errands) = &mut self.errands
            && let Poll::Ready(Some((id, reply))) = Pin::new(&mut **errands).poll_next(cx)
        {
            self.complete(id, reply);
            ended = true;
        }
        ended
    }

    /// Polls the operation and starts what it asks for.
    fn turn(&mut self) -> Poll<T> {
        let now = self.inner.clock.now();
        let mut cx = Context::from_waker(&self.waker);
        let polled = self.operation.poll(&mut cx, now);
        while let Some((id, action)) = self.operation.next_action() {
            // What an operation spawned just before its end is still to be run.
            if polled.is_pending() || matches!(action, Action::Spawn(_)) {
                self.start(now, id, action);
            }
        }
        polled
    }
}

impl<T> Future for Run<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let run = self.get_mut();
        loop {
            let (arrivals, mut turn) = run.inbox.look();
            let landed = !arrivals.is_empty();
            for (flight, arrival) in arrivals {
                run.land(flight, arrival);
            }
            let ended = run.run_errands(cx);
            if landed || ended {
                turn |= run.inbox.take_turn();
            }
            if turn && let Poll::Ready(output) = run.turn() {
                return Poll::Ready(output);
            }
            // What was started just now may have ended just now; errands must be polled once to
            // know their waker.
            let ended = turn && run.run_errands(cx);
            if !ended && run.inbox.rest(cx.waker()) {
                return Poll::Pending;
            }
        }
    }
}

impl<T> Drop for Run<T> {
    fn drop(&mut self) {
        if self.flights.is_empty() {
            return;
        }
        for flight in self.flights.drain() {
            match flight.way {
                Way::Batched { pool, ticket, .. } => pool.cancel(ticket),
                Way::Timestamp { oracle, ticket } => oracle.cancel(ticket),
            }
        }
    }
}

struct Flight {
    id: ActionId,
    way: Way,
}

enum Way {
    Batched {
        pool: Arc<Pool>,
        ticket: PoolTicket,
        command: Arc<Command>,
    },
    Timestamp {
        oracle: Arc<Oracle>,
        ticket: OracleTicket,
    },
}

/// The flights of one run. Most operations have one at a time, which needs no allocation.
#[derive(Default)]
struct Flights {
    slots: SmallVec<[Option<Flight>; 1]>,
    free: SmallVec<[u32; 4]>,
}

impl Flights {
    /// The number that the flight inserted next will have.
    fn next(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.slots.len() as u32)
    }

    fn insert(&mut self, flight: Flight) {
        match self.free.pop() {
            Some(number) => self.slots[number as usize] = Some(flight),
            None => self.slots.push(Some(flight)),
        }
    }

    fn remove(&mut self, number: u32) -> Option<Flight> {
        let flight = self.slots.get_mut(number as usize)?.take();
        if flight.is_some() {
            self.free.push(number);
        }
        flight
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    fn drain(&mut self) -> impl Iterator<Item = Flight> {
        self.free.clear();
        std::mem::take(&mut self.slots).into_iter().flatten()
    }
}
