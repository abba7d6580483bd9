//! A driver in virtual time whose requests are answered by a [`Server`].
//!
//! Everything happens in one order, given by the input: answers come after as many milliseconds as
//! the script says, sleeps end on time, and nothing else makes time pass. What is pending when
//! nothing can happen any more hangs, which is a panic here.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tikv_core::driver::{Action, ActionId, Driver, Instant, Operation, Reply};

use crate::script::Script;
use crate::server::Server;

/// So many things may happen in one run. An honest end takes a small part of it: every wait of the
/// protocol has a budget.
const EVENTS_MAX: u64 = 300_000;
/// So many of the last ones are named in the panic.
const LATELY: u64 = 60;

/// The driver. A clone drives the same world.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
}

struct State {
    now: Instant,
    server: Server,
    /// By when they happen; what happens at once, in the order in which it was asked for.
    events: BTreeMap<(Instant, u64), Event>,
    happened: u64,
    next_event: u64,
    inboxes: BTreeMap<u64, Inbox>,
    next_inbox: u64,
    spawned: Vec<Operation<()>>,
    /// What was asked for last, once there is reason to think that it never ends.
    lately: Vec<String>,
}

struct Event {
    inbox: u64,
    id: ActionId,
    reply: Reply,
    /// How often a driver that has gone wrong hands the answer in.
    again: bool,
}

#[derive(Default)]
struct Inbox {
    replies: Vec<(ActionId, Reply, bool)>,
    woken: Arc<Flag>,
}

/// Says whether an operation is to be turned.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl World {
    /// A world whose answers are taken from `script`.
    pub fn new(script: Script) -> Self {
        let state = State {
            now: Instant::ZERO,
            server: Server::new(script),
            events: BTreeMap::new(),
            happened: 0,
            next_event: 0,
            inboxes: BTreeMap::new(),
            next_inbox: 0,
            spawned: Vec::new(),
            lately: Vec::new(),
        };
        World {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Where PD is.
    pub fn pd(&self) -> Vec<String> {
        self.lock().server.pd_urls()
    }

    /// From now on the script decides what is answered.
    pub fn begin_faults(&self) {
        self.lock().server.begin_faults();
    }

    /// Runs an application to its end.
    ///
    /// # Panics
    ///
    /// If it never ends.
    pub fn block_on<T>(&self, application: impl Future<Output = T>) -> T {
        let mut application = pin!(application);
        let mut background: Vec<Pin<Box<Run<()>>>> = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(output) = application.as_mut().poll(&mut cx) {
                return output;
            }
            background.retain_mut(|run| run.as_mut().poll(&mut cx).is_pending());
            let spawned = std::mem::take(&mut self.lock().spawned);
            let is_quiet = spawned.is_empty() && !self.lock().is_anyone_woken();
            background.extend(spawned.into_iter().map(|child| Box::pin(self.start(child))));
            if is_quiet {
                self.lock().deliver();
            }
        }
    }

    fn start<T>(&self, operation: Operation<T>) -> Run<T> {
        let (key, woken) = self.lock().open_inbox();
        Run {
            world: self.clone(),
            operation,
            key,
            woken,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for World {
    type Run<T: Send + 'static> = Run<T>;

    fn run<T: Send + 'static>(&self, operation: Operation<T>) -> Run<T> {
        self.start(operation)
    }

    fn spawn(&self, operation: Operation<()>) {
        self.lock().spawned.push(operation);
    }

    fn now(&self) -> Instant {
        self.lock().now
    }

    fn seed(&self) -> u64 {
        7
    }
}

impl State {
    fn open_inbox(&mut self) -> (u64, Arc<Flag>) {
        self.next_inbox += 1;
        let inbox = Inbox::default();
        inbox.woken.0.store(true, Ordering::Relaxed);
        let woken = inbox.woken.clone();
        self.inboxes.insert(self.next_inbox, inbox);
        (self.next_inbox, woken)
    }

    fn is_anyone_woken(&self) -> bool {
        self.inboxes
            .values()
            .any(|inbox| inbox.woken.0.load(Ordering::Relaxed))
    }

    /// Answers an action, or says when its time has come.
    fn perform(&mut self, inbox: u64, id: ActionId, action: Action) {
        if self.happened + LATELY > EVENTS_MAX {
            self.lately.push(match &action {
                Action::Send(rpc) => format!("{} to {}", rpc.command.label(), rpc.endpoint),
                Action::Sleep { why, .. } => format!("sleep for {why}"),
                Action::Spawn(child) => child.label().to_owned(),
                Action::Timestamp(_) => "timestamp".to_owned(),
            });
        }
        let (at, reply) = match action {
            Action::Send(rpc) => {
                let reply = self.server.answer(self.now, &rpc);
                (
                    self.server.arrival(self.now).min(rpc.deadline),
                    Reply::Response(reply),
                )
            }
            Action::Timestamp(wish) => {
                let reply = self.server.timestamp(self.now, &wish);
                (
                    self.server.arrival(self.now).min(wish.deadline),
                    Reply::Timestamp(reply),
                )
            }
            Action::Sleep { until, why: _ } => (until, Reply::Woke),
            Action::Spawn(child) => {
                self.spawned.push(child);
                return;
            }
        };
        self.next_event += 1;
        let again = self.server.answers_twice();
        let event = Event {
            inbox,
            id,
            reply,
            again,
        };
        self.events
            .insert((at.max(self.now), self.next_event), event);
    }

    /// Lets the next thing happen.
    fn deliver(&mut self) {
        let Some(((at, _), event)) = self.events.pop_first() else {
            panic!("something is pending, and nothing will ever happen");
        };
        self.happened += 1;
        if self.happened > EVENTS_MAX {
            panic!(
                "it goes on for ever, at {:?} with {}",
                self.now,
                self.lately.join(", ")
            );
        }
        self.now = self.now.max(at);
        if let Some(inbox) = self.inboxes.get_mut(&event.inbox) {
            inbox.replies.push((event.id, event.reply, event.again));
            inbox.woken.0.store(true, Ordering::Relaxed);
        }
    }
}

/// One running operation.
pub struct Run<T> {
    world: World,
    operation: Operation<T>,
    key: u64,
    woken: Arc<Flag>,
}

impl<T> Future for Run<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        let run = &mut *self;
        if !run.woken.0.swap(false, Ordering::Relaxed) {
            return Poll::Pending;
        }
        let (replies, now) = {
            let mut state = run.world.lock();
            let inbox = state
                .inboxes
                .get_mut(&run.key)
                .expect("open while the run is");
            (std::mem::take(&mut inbox.replies), state.now)
        };
        for (id, reply, again) in replies {
            let copy = again.then_some(Reply::Woke);
            run.operation
                .complete(id, reply)
                .expect("each action is answered once, in kind");
            if let Some(copy) = copy {
                // Impossible, or late if it has been waited for and was taken: never a panic.
                let _ = run.operation.complete(id, copy);
            }
        }
        let waker = Waker::from(run.woken.clone());
        if let Poll::Ready(output) = run.operation.poll(&mut Context::from_waker(&waker), now) {
            while let Some((id, action)) = run.operation.next_action() {
                // What it asked for at its very end: only what it spawned matters.
                if matches!(action, Action::Spawn(_)) {
                    run.world.lock().perform(run.key, id, action);
                }
            }
            return Poll::Ready(output);
        }
        while let Some((id, action)) = run.operation.next_action() {
            run.world.lock().perform(run.key, id, action);
        }
        Poll::Pending
    }
}

impl<T> Drop for Run<T> {
    fn drop(&mut self) {
        self.world.lock().inboxes.remove(&self.key);
    }
}
