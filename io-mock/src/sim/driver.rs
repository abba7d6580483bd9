//! The driver that runs operations in virtual time, and the future of one running operation.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tikv_core::driver::{Action, ActionId, Driver, Instant, Operation, Reply};

use super::network::ClientId;
use super::ops::{Kind, OpKey};
use super::shared::Shared;

/// Runs the operations of one client of a [`Simulation`](super::Simulation).
///
/// A clone belongs to the same client. When the last one is dropped, everything the client had
/// running in the background stops.
#[derive(Clone)]
pub struct SimDriver {
    client: Arc<Client>,
}

/// One client's life.
struct Client {
    shared: Arc<Shared>,
    id: ClientId,
    seed: u64,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.lock().close_client(self.id);
    }
}

impl SimDriver {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let (id, seed) = shared.lock().open_client();
        SimDriver {
            client: Arc::new(Client { shared, id, seed }),
        }
    }

    /// Which client of the run this drives.
    pub fn client_id(&self) -> ClientId {
        self.client.id
    }

    /// Kills the client as a crash does: its background work stops where it is, and nothing it
    /// asks for from now on is done.
    pub fn crash(&self) {
        self.client.shared.lock().close_client(self.client.id);
    }
}

impl Driver for SimDriver {
    type Run<T: Send + 'static> = Run<T>;

    fn run<T: Send + 'static>(&self, operation: Operation<T>) -> Run<T> {
        Run::new(
            self.client.shared.clone(),
            self.client.id,
            Kind::Call,
            operation,
        )
    }

    fn spawn(&self, operation: Operation<()>) {
        let refused = self.client.shared.lock().spawn(self.client.id, operation);
        // Out of the lock: what is in an operation may do anything when it is dropped.
        drop(refused);
    }

    fn now(&self) -> Instant {
        self.client.shared.lock().now
    }

    fn seed(&self) -> u64 {
        self.client.seed
    }
}

impl fmt::Debug for SimDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDriver({})", self.client.id)
    }
}

/// One running operation. It holds the world but not its client, so that a client can end while
/// work of its own is still running.
pub struct Run<T> {
    shared: Arc<Shared>,
    client: ClientId,
    kind: Kind,
    operation: Operation<T>,
    started: Option<(OpKey, Waker)>,
    replies: Vec<(ActionId, Reply)>,
    actions: Vec<(ActionId, Action)>,
}

impl<T> Run<T> {
    pub(super) fn new(
        shared: Arc<Shared>,
        client: ClientId,
        kind: Kind,
        operation: Operation<T>,
    ) -> Self {
        Run {
            shared,
            client,
            kind,
            operation,
            started: None,
            replies: Vec::new(),
            actions: Vec::new(),
        }
    }
}

impl<T> Future for Run<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let run = &mut *self;
        let (key, waker, now, reason) = {
            let mut world = run.shared.lock();
            let now = world.now;
            let (key, waker) = run.started.get_or_insert_with(|| {
                let label = run.operation.label();
                world
                    .ops
                    .start(run.shared.weak(), label, run.client, run.kind, now)
            });
            (
                *key,
                waker.clone(),
                now,
                world.ops.take(*key, &mut run.replies),
            )
        };
        let mut polled = Poll::Pending;
        if reason {
            if !run.replies.is_empty() {
                for (id, reply) in run.replies.drain(..) {
                    let taken = run.operation.complete(id, reply);
                    taken.expect("each action is answered once, in kind");
                }
                // That called the waker for what the poll below is going to see.
                run.shared.lock().ops.calm(key);
            }
            polled = run.operation.poll(&mut Context::from_waker(&waker), now);
            while let Some((id, action)) = run.operation.next_action() {
                // What an operation spawned just before its end is still to be run.
                if polled.is_pending() || matches!(action, Action::Spawn(_)) {
                    run.actions.push((id, action));
                }
            }
        }
        let mut world = run.shared.lock();
        let mut refused = Vec::new();
        for (id, action) in run.actions.drain(..) {
            refused.extend(world.perform(run.client, key, id, action));
        }
        if polled.is_ready() {
            drop(world);
            return polled;
        }
        let again = world.ops.park(key, cx.waker());
        drop(world);
        drop(refused);
        if let Some(waker) = again {
            waker.wake();
        }
        Poll::Pending
    }
}

impl<T> Drop for Run<T> {
    fn drop(&mut self) {
        if let Some((key, _)) = self.started.take() {
            self.shared.lock().end(key);
        }
    }
}
