//! The doorway: everything between the protocol and the world. Whoever has read this module can
//! write a driver.
//!
//! The core never opens a socket, reads a clock or starts a thread. A call is an [`Operation`]
//! that asks for [`Action`]s and goes on when it is given [`Reply`]s. A [`Driver`] turns
//! operations, and is the only one to do anything.
//!
//! # The whole loop
//!
//! A driver over a server that answers every request by a function call, with a clock that jumps
//! to the next wake-up. Real ones differ in what stands behind `answer` and in not blocking.
//!
//! ```
//! use std::cell::Cell;
//! use std::future::{Ready, ready};
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use std::task::{Context, Poll, Waker};
//! use tikv_core::driver::{Action, Driver, Instant, Io, Operation, Reply, Rpc, Why};
//! use tikv_core::wire::{Command, Response};
//! # use tikv_core::Timestamp;
//!
//! #[derive(Clone, Default)]
//! struct Toy {
//!     clock: Arc<AtomicU64>,
//! }
//!
//! fn answer(rpc: Rpc) -> Response {
//!     match &*rpc.command {
//!         Command::GetMembers(_) => Response::GetMembers(Default::default()),
//!         other => unimplemented!("{other:?}"),
//!     }
//! }
//!
//! impl Driver for Toy {
//!     type Run<T: Send + 'static> = Ready<T>;
//!
//!     fn run<T: Send + 'static>(&self, mut operation: Operation<T>) -> Ready<T> {
//!         let mut cx = Context::from_waker(Waker::noop());
//!         loop {
//!             if let Poll::Ready(result) = operation.poll(&mut cx, self.now()) {
//!                 return ready(result);
//!             }
//!             let mut replies = Vec::new();
//!             while let Some((id, action)) = operation.next_action() {
//!                 replies.push((id, match action {
//!                     Action::Send(rpc) => Reply::Response(Ok(answer(rpc))),
//!                     Action::Timestamp(_) => Reply::Timestamp(Ok(Timestamp::new(1, 0))),
//!                     Action::Sleep { until, why: _ } => {
//!                         self.clock.fetch_max(until.as_nanos(), Ordering::Relaxed);
//!                         Reply::Woke
//!                     }
//!                     Action::Spawn(child) => {
//!                         self.spawn(child);
//!                         continue;
//!                     }
//!                 }));
//!             }
//!             assert!(!replies.is_empty(), "drained, and nothing will ever happen");
//!             for (id, reply) in replies {
//!                 operation.complete(id, reply).expect("this driver answers each action once");
//!             }
//!         }
//!     }
//!
//!     fn spawn(&self, operation: Operation<()>) {
//!         drop(self.run(operation));
//!     }
//!
//!     fn now(&self) -> Instant {
//!         Instant::from_nanos(self.clock.load(Ordering::Relaxed))
//!     }
//!
//!     fn seed(&self) -> u64 {
//!         7
//!     }
//! }
//!
//! let driver = Toy::default();
//! let nap = Operation::new("nap", |io: Io| async move {
//!     io.sleep_until(Instant::from_millis(5), Why::CallerDeadline).await;
//!     io.now()
//! });
//! # fn block_on<F: Future>(future: F) -> F::Output {
//! #     let mut future = std::pin::pin!(future);
//! #     match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
//! #         Poll::Ready(output) => output,
//! #         Poll::Pending => unreachable!(),
//! #     }
//! # }
//! assert_eq!(block_on(driver.run(nap)), Instant::from_millis(5));
//! ```

use std::future::Future;

pub use crate::action::{Action, ActionId, Endpoint, Reply, Rpc, TsoRequest};
pub use crate::error::TransportError;
pub use crate::operation::{Completed, ImpossibleReply, Io, Operation};
pub use crate::time::Instant;
pub use crate::why::{BackoffKind, Why};

/// Runs operations: owns the sockets, the clock, the tasks and the seed.
///
/// A clone drives the same world. When the last clone is dropped, everything it spawned stops.
pub trait Driver: Clone + Send + Sync + 'static {
    /// An operation being run. It holds what it needs of the driver: a future that borrowed the
    /// driver could not be moved into a task of its own.
    type Run<T: Send + 'static>: Future<Output = T> + Send;

    /// Runs an operation to its end.
    ///
    /// # Dropping the future
    ///
    /// Drops the operation with it, which cancels it; see [`Operation`].
    fn run<T: Send + 'static>(&self, operation: Operation<T>) -> Self::Run<T>;

    /// Runs an operation to its end in the background, until the driver is closed.
    fn spawn(&self, operation: Operation<()>);

    /// The time, which never goes back.
    fn now(&self) -> Instant;

    /// The root of every random choice of a client. Asked once per client; two clients must get
    /// different answers, two simulations of one seed the same.
    fn seed(&self) -> u64;
}
