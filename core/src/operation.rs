//! One call of a user, running: a future whose only waits are actions.
//!
//! The inside of an operation is an `async fn` over an [`Io`]; the outside is a machine that a
//! driver turns. Nothing else connects the two, so whatever an operation does can be seen at this
//! door. See [`Driver`](crate::driver::Driver) for the whole loop.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;

use crate::action::{Action, ActionId, ActionKind, Reply, Rpc, TsoRequest};
use crate::command::Response;
use crate::error::TransportError;
use crate::time::{Instant, Timestamp};
use crate::why::Why;

/// One call, running.
///
/// > **Contract.** Turn it like this, for as long as it is not done:
/// >
/// > 1. [`poll`](Operation::poll) it with the time. `Ready` is its end: what it still waits for
/// >    no longer matters.
/// > 2. `Pending`: take [`next_action`](Operation::next_action) until it answers `None`, and start
/// >    each. Then the operation is drained: it wants nothing more before its waker is called.
/// > 3. When something comes of an action, [`complete`](Operation::complete) it. That calls the
/// >    waker given to the last `poll`, as another operation may do too (one that loaded what both
/// >    need). Go to 1.
///
/// Dropping it cancels it: replies that come later go nowhere, and nothing it had not yet asked
/// for is asked. Work that must not end half way is never in the dropped part; the operation
/// spawned it.
pub struct Operation<T> {
    label: &'static str,
    port: Arc<Port>,
    future: Pin<Box<dyn Future<Output = T> + Send>>,
}

impl<T> Operation<T> {
    /// Makes an operation of an async function. Nothing runs before the first `poll`.
    ///
    /// ```
    /// use tikv_core::driver::{Io, Operation};
    ///
    /// let operation = Operation::new("what_time_is_it", |io: Io| async move { io.now() });
    /// ```
    pub fn new<F, Fut>(label: &'static str, body: F) -> Self
    where
        F: FnOnce(Io) -> Fut,
        Fut: Future<Output = T> + Send + 'static,
    {
        let port = Arc::new(Port::default());
        let future = Box::pin(body(Io { port: port.clone() }));
        Operation {
            label,
            port,
            future,
        }
    }

    /// What the operation is called in logs.
    pub fn label(&self) -> &'static str {
        self.label
    }

    /// Goes on as far as it can without an answer. `now` must not go back.
    pub fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<T> {
        self.port.lock().now = now;
        self.future.as_mut().poll(cx)
    }

    /// What to do next, in the order asked; `None` when there is nothing more to start.
    pub fn next_action(&mut self) -> Option<(ActionId, Action)> {
        self.port.lock().next_action()
    }

    /// Hands in what came of an action.
    ///
    /// A reply to an action that the operation waits for no longer is
    /// [late](Completed::Late): a no-op.
    ///
    /// # Errors
    ///
    /// A reply that no correct driver gives: to an action that was never asked for, a second one
    /// to the same action, or one of the wrong kind. The operation is not touched by it.
    pub fn complete(&mut self, id: ActionId, reply: Reply) -> Result<Completed, ImpossibleReply> {
        self.port.complete(id, reply)
    }
}

impl<T> fmt::Debug for Operation<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Operation({})", self.label)
    }
}

/// What became of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// The operation waited for it; its waker was called.
    Awaited,
    /// The operation waits for it no longer.
    Late,
}

/// A reply that no correct driver gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImpossibleReply {
    /// The operation never asked for such an action.
    #[error("no action {0:?} was ever asked for")]
    NeverAsked(ActionId),
    /// The action has been answered before.
    #[error("action {0:?} has been answered already")]
    Twice(ActionId),
    /// A sleep was answered by a response, or the like.
    #[error("action {0:?} was answered by a reply of another kind")]
    WrongKind(ActionId),
}

/// The inside of the door: how the protocol's async functions reach the world.
#[derive(Clone)]
pub struct Io {
    port: Arc<Port>,
}

impl Io {
    /// The time at which the operation was last turned.
    pub fn now(&self) -> Instant {
        self.port.lock().now
    }

    /// Sends one request and waits for its answer.
    pub async fn send(&self, rpc: Rpc) -> Result<Response, TransportError> {
        match self.perform(Action::Send(rpc), ActionKind::Send).await {
            Reply::Response(result) => result,
            other => Err(wrong_kind(&other)),
        }
    }

    /// Asks the oracle for a timestamp.
    pub async fn timestamp(&self, request: TsoRequest) -> Result<Timestamp, TransportError> {
        match self
            .perform(Action::Timestamp(request), ActionKind::Timestamp)
            .await
        {
            Reply::Timestamp(result) => result,
            other => Err(wrong_kind(&other)),
        }
    }

    /// Waits until a point in time.
    pub async fn sleep_until(&self, until: Instant, why: Why) {
        self.perform(Action::Sleep { until, why }, ActionKind::Sleep)
            .await;
    }

    /// Has another operation run to its end, whatever becomes of this one.
    pub fn spawn(&self, operation: Operation<()>) {
        self.port.lock().ask(Action::Spawn(operation), None);
    }

    /// Asks for the action at once; the future only waits for its reply.
    fn perform(&self, action: Action, kind: ActionKind) -> Perform<'_> {
        let id = self.port.lock().ask(action, Some(kind));
        Perform {
            port: &self.port,
            id,
            done: false,
        }
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Io")
    }
}

/// [`Port::complete`] lets no reply of the wrong kind in; were it to, the request counts as one
/// whose answer can't be read.
fn wrong_kind(reply: &Reply) -> TransportError {
    TransportError::Decode {
        address: Arc::from("the driver"),
        message: format!("a reply of the wrong kind: {reply:?}").into(),
    }
}

/// Waits for the reply to one action. Dropped before that, it takes back an action that the
/// driver has not seen yet, and makes the reply to one that it has seen late.
struct Perform<'a> {
    port: &'a Port,
    id: ActionId,
    done: bool,
}

impl Future for Perform<'_> {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let polled = self.port.lock().take_reply(self.id, cx.waker());
        self.done |= polled.is_ready();
        polled
    }
}

impl Drop for Perform<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.port.lock().abandon(self.id);
        }
    }
}

/// Where the two sides of the door meet. Never locked across a call into either.
#[derive(Default)]
struct Port {
    state: Mutex<PortState>,
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, PortState> {
        // Nothing under the lock can panic half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, id: ActionId, reply: Reply) -> Result<Completed, ImpossibleReply> {
        let waker = self.lock().put_reply(id, reply)?;
        Ok(match waker {
            Some(waker) => {
                waker.wake();
                Completed::Awaited
            }
            None => Completed::Late,
        })
    }
}

#[derive(Default)]
struct PortState {
    now: Instant,
    /// How many actions were ever asked for; the upper half of an [`ActionId`].
    asked: u32,
    /// Most operations ask for one thing at a time, which then needs no allocation.
    first_action: Option<(ActionId, Action)>,
    more_actions: VecDeque<(ActionId, Action)>,
    /// A slot for each awaited action; the lower half of its [`ActionId`] is the index.
    slots: SmallVec<[Slot; 1]>,
    free: SmallVec<[u32; 4]>,
}

struct Slot {
    /// Whose it is, [`NOBODY`] if it is free.
    asked: u32,
    kind: ActionKind,
    state: SlotState,
}

#[allow(
    clippy::large_enum_variant,
    reason = "a slot of its own size would cost an allocation"
)]
enum SlotState {
    Waiting(Option<Waker>),
    Replied(Reply),
}

/// No action has this number: they are counted from 1.
const NOBODY: u32 = 0;
/// The index of an action that is not answered.
const NO_SLOT: u32 = u32::MAX;

impl PortState {
    fn ask(&mut self, action: Action, kind: Option<ActionKind>) -> ActionId {
        self.asked = self.asked.checked_add(1).unwrap_or(1);
        let index = kind.map_or(NO_SLOT, |kind| self.occupy(kind));
        let id = ActionId(u64::from(self.asked) << 32 | u64::from(index));
        if self.first_action.is_none() && self.more_actions.is_empty() {
            self.first_action = Some((id, action));
        } else {
            self.more_actions.push_back((id, action));
        }
        id
    }

    fn occupy(&mut self, kind: ActionKind) -> u32 {
        let slot = Slot {
            asked: self.asked,
            kind,
            state: SlotState::Waiting(None),
        };
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        }
    }

    /// The slot of an action, if it is still waited for.
    fn slot(&mut self, id: ActionId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(index_of(id))?;
        (slot.asked == number_of(id)).then_some(slot)
    }

    fn release(&mut self, id: ActionId) {
        if let Some(slot) = self.slot(id) {
            slot.asked = NOBODY;
            slot.state = SlotState::Waiting(None);
            self.free.push(index_of(id) as u32);
        }
    }

    fn take_reply(&mut self, id: ActionId, waker: &Waker) -> Poll<Reply> {
        let Some(slot) = self.slot(id) else {
            return Poll::Pending;
        };
        match std::mem::replace(&mut slot.state, SlotState::Waiting(None)) {
            SlotState::Replied(reply) => {
                self.release(id);
                Poll::Ready(reply)
            }
            SlotState::Waiting(_) => {
                slot.state = SlotState::Waiting(Some(waker.clone()));
                Poll::Pending
            }
        }
    }

    /// Stores a reply; the waker to call, `None` if nobody waits for it.
    fn put_reply(&mut self, id: ActionId, reply: Reply) -> Result<Option<Waker>, ImpossibleReply> {
        if number_of(id) > self.asked || number_of(id) == NOBODY || index_of(id) == NO_SLOT as usize
        {
            return Err(ImpossibleReply::NeverAsked(id));
        }
        let Some(slot) = self.slot(id) else {
            return Ok(None);
        };
        if slot.kind != reply.kind() {
            return Err(ImpossibleReply::WrongKind(id));
        }
        match &mut slot.state {
            SlotState::Replied(_) => Err(ImpossibleReply::Twice(id)),
            SlotState::Waiting(waker) => {
                let waker = waker.take();
                slot.state = SlotState::Replied(reply);
                // Asked for but not polled yet: the next poll finds it without being woken.
                Ok(Some(waker.unwrap_or_else(|| Waker::noop().clone())))
            }
        }
    }

    fn abandon(&mut self, id: ActionId) {
        self.release(id);
        if self
            .first_action
            .as_ref()
            .is_some_and(|(first, _)| *first == id)
        {
            self.first_action = self.more_actions.pop_front();
        } else {
            self.more_actions.retain(|(other, _)| *other != id);
        }
    }

    fn next_action(&mut self) -> Option<(ActionId, Action)> {
        let next = self.first_action.take();
        self.first_action = self.more_actions.pop_front();
        next
    }
}

const fn number_of(id: ActionId) -> u32 {
    (id.0 >> 32) as u32
}

const fn index_of(id: ActionId) -> usize {
    (id.0 & 0xFFFF_FFFF) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use futures_util::future::{Either, join_all, select};
    use std::pin::pin;
    use std::time::Duration;

    fn sleep(io: &Io, millis: u64) -> impl Future<Output = ()> {
        io.sleep_until(Instant::from_millis(millis), Why::Heartbeat)
    }

    fn poll<T>(operation: &mut Operation<T>) -> Poll<T> {
        operation.poll(&mut Context::from_waker(Waker::noop()), Instant::ZERO)
    }

    fn drain<T>(operation: &mut Operation<T>) -> Vec<ActionId> {
        std::iter::from_fn(|| operation.next_action())
            .map(|(id, _)| id)
            .collect()
    }

    #[test]
    fn an_operation_asks_waits_and_ends() {
        let mut operation = Operation::new("test", |io| async move {
            sleep(&io, 1).await;
            io.now()
        });
        assert!(poll(&mut operation).is_pending());
        let (id, action) = operation.next_action().unwrap();
        assert!(matches!(
            action,
            Action::Sleep {
                why: Why::Heartbeat,
                ..
            }
        ));
        assert!(operation.next_action().is_none());
        assert_eq!(operation.complete(id, Reply::Woke), Ok(Completed::Awaited));
        let now = Instant::ZERO + Duration::from_millis(1);
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(operation.poll(&mut cx, now), Poll::Ready(now));
    }

    #[test]
    fn actions_come_in_the_order_asked_and_replies_in_any() {
        let mut operation = Operation::new("test", |io| async move {
            join_all((1..=5).map(|n| {
                let io = io.clone();
                async move {
                    sleep(&io, n).await;
                    n
                }
            }))
            .await
        });
        assert!(poll(&mut operation).is_pending());
        let ids = drain(&mut operation);
        assert_eq!(ids.len(), 5);
        for id in ids.iter().rev() {
            assert!(poll(&mut operation).is_pending());
            assert_eq!(operation.complete(*id, Reply::Woke), Ok(Completed::Awaited));
        }
        assert_eq!(poll(&mut operation), Poll::Ready(vec![1, 2, 3, 4, 5]));
    }

    #[test]
    fn a_late_reply_is_a_no_op_and_an_impossible_one_an_error() {
        let mut operation = Operation::new("test", |io| async move {
            {
                let first = pin!(sleep(&io, 1));
                let second = pin!(sleep(&io, 2));
                assert!(matches!(select(first, second).await, Either::Left(_)));
            }
            sleep(&io, 3).await;
        });
        assert!(poll(&mut operation).is_pending());
        let ids = drain(&mut operation);
        let wrong = Reply::Timestamp(Ok(Timestamp::ZERO));
        assert_eq!(
            operation.complete(ids[0], wrong),
            Err(ImpossibleReply::WrongKind(ids[0]))
        );
        let never = ActionId(77 << 32);
        assert_eq!(
            operation.complete(never, Reply::Woke),
            Err(ImpossibleReply::NeverAsked(never))
        );
        assert_eq!(
            operation.complete(ids[0], Reply::Woke),
            Ok(Completed::Awaited)
        );
        assert_eq!(
            operation.complete(ids[0], Reply::Woke),
            Err(ImpossibleReply::Twice(ids[0]))
        );
        assert!(poll(&mut operation).is_pending());
        assert_eq!(operation.complete(ids[1], Reply::Woke), Ok(Completed::Late));
        // The slot of an ended action serves the next one; an old name does not reach it.
        let third = drain(&mut operation)[0];
        assert_eq!(operation.complete(ids[0], Reply::Woke), Ok(Completed::Late));
        assert_eq!(
            operation.complete(third, Reply::Woke),
            Ok(Completed::Awaited)
        );
        assert!(poll(&mut operation).is_ready());
    }

    #[test]
    fn what_is_no_longer_wanted_is_not_asked_for() {
        let mut operation = Operation::new("test", |io| async move {
            {
                let mut asked = pin!(sleep(&io, 1));
                assert!(asked.as_mut().now_or_never().is_none());
            }
            sleep(&io, 2).await;
        });
        assert!(poll(&mut operation).is_pending());
        assert_eq!(drain(&mut operation).len(), 1);
    }

    #[test]
    fn spawned_work_outlives_its_operation() {
        let mut operation = Operation::new("parent", |io| async move {
            io.spawn(Operation::new("child", |_| async {}));
        });
        assert!(poll(&mut operation).is_ready());
        let (_, action) = operation.next_action().unwrap();
        let Action::Spawn(mut child) = action else {
            panic!("{action:?}")
        };
        drop(operation);
        assert_eq!(child.label(), "child");
        assert!(poll(&mut child).is_ready());
    }
}
