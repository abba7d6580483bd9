//! Where the replies to one running operation arrive, and what wakes its task.
//!
//! Connections deliver into it from their own tasks. One delivery costs one short lock and one
//! wake-up of the waiting task; no future stands behind a request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use smallvec::SmallVec;
use tikv_core::Timestamp;
use tikv_core::driver::TransportError;
use tikv_core::rpc::frame::Answer;

/// What came for one flight.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// An answer out of a frame, still encoded: the waiting task decodes it.
    Answer(Result<Answer, TransportError>),
    /// A timestamp.
    Timestamp(Result<Timestamp, TransportError>),
}

/// What arrived, with the flight it is for.
pub(crate) type Arrivals = SmallVec<[(u32, Arrival); 2]>;

/// The inbox of one run. As a waker it is the one that the operation is polled with, so that a
/// reply handed in by the run itself wakes nobody.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    arrived: Arrivals,
    /// The operation's waker was called since it was last polled.
    turn: bool,
    /// The task is looking at the inbox and will see what arrives without being woken.
    looking: bool,
    task: Option<Waker>,
}

impl Inbox {
    /// An empty inbox of an operation that has not been polled yet.
    pub(crate) fn new() -> Self {
        Inbox {
            state: Mutex::new(State {
                arrived: SmallVec::new(),
                turn: true,
                looking: true,
                task: None,
            }),
        }
    }

    /// Puts in what came for `flight`.
    pub(crate) fn deliver(&self, flight: u32, arrival: Arrival) {
        let task = {
            let mut state = self.lock();
            state.arrived.push((flight, arrival));
            state.task_to_wake()
        };
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Takes what arrived, and whether the operation wants to be polled.
    pub(crate) fn look(&self) -> (Arrivals, bool) {
        let mut state = self.lock();
        state.looking = true;
        let turn = std::mem::take(&mut state.turn);
        (std::mem::take(&mut state.arrived), turn)
    }

    /// Whether the operation wants to be polled, since the last look.
    pub(crate) fn take_turn(&self) -> bool {
        std::mem::take(&mut self.lock().turn)
    }

    /// Sleeps until something arrives: `false` if it has already.
    pub(crate) fn rest(&self, task: &Waker) -> bool {
        let mut state = self.lock();
        if state.turn || !state.arrived.is_empty() {
            return false;
        }
        state.looking = false;
        match &mut state.task {
            Some(known) => known.clone_from(task),
            none => *none = Some(task.clone()),
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The task, once: it is awake until it rests again.
    fn task_to_wake(&mut self) -> Option<Waker> {
        if self.looking {
            return None;
        }
        self.looking = true;
        self.task.clone()
    }
}

impl Wake for Inbox {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let task = {
            let mut state = self.lock();
            state.turn = true;
            state.task_to_wake()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn timestamp() -> Arrival {
        Arrival::Timestamp(Ok(Timestamp::ZERO))
    }

    #[test]
    fn a_resting_task_is_woken_once() {
        let inbox = Arc::new(Inbox::new());
        let count = Arc::new(Count::default());
        let task = Waker::from(count.clone());
        let woken = || count.0.load(Ordering::Relaxed);

        assert!(!inbox.rest(&task));
        assert!(inbox.take_turn());
        assert!(inbox.rest(&task));
        inbox.deliver(0, timestamp());
        inbox.deliver(1, timestamp());
        Waker::from(inbox.clone()).wake();
        assert_eq!(woken(), 1);

        let (arrived, turn) = inbox.look();
        assert!(turn);
        assert_eq!(
            arrived
                .iter()
                .map(|(flight, _)| *flight)
                .collect::<Vec<_>>(),
            [0, 1]
        );
    }

    #[test]
    fn what_happens_while_the_task_looks_is_seen_without_a_wake() {
        let inbox = Arc::new(Inbox::new());
        let count = Arc::new(Count::default());
        let task = Waker::from(count.clone());

        assert!(inbox.take_turn());
        Waker::from(inbox.clone()).wake_by_ref();
        assert!(!inbox.rest(&task));
        assert!(inbox.take_turn());
        inbox.deliver(7, timestamp());
        assert!(!inbox.rest(&task));
        assert_eq!(inbox.look().0.len(), 1);
        assert!(inbox.rest(&task));
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
    }
}
