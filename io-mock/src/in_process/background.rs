//! One thread for a client's timers and background work: a heap of wakers and a queue of tasks.
//!
//! It stops when it is told, drops what is left, and then nothing of the client remains.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::Instant;

type Future = Pin<Box<dyn std::future::Future<Output = ()> + Send>>;

/// The queue of a thread that runs background work.
#[derive(Default)]
pub(super) struct Background {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    ready: VecDeque<Arc<Task>>,
    /// All that have not ended, so that they can be dropped.
    tasks: BTreeMap<u64, Arc<Task>>,
    started: u64,
    timers: BinaryHeap<Reverse<Timer>>,
    timers_set: u64,
}

struct Task {
    id: u64,
    future: Mutex<Option<Future>>,
    queued: AtomicBool,
    background: Weak<Background>,
}

struct Timer {
    at: Instant,
    number: u64,
    waker: Waker,
}

impl Background {
    /// Starts the thread.
    pub(super) fn start() -> (Arc<Background>, JoinHandle<()>) {
        let background = Arc::new(Background::default());
        let run = background.clone();
        let thread = thread::Builder::new()
            .name("tikv-local".to_owned())
            .spawn(move || run.run())
            .expect("the system can start a thread");
        (background, thread)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task on the thread, or drops it if that has been stopped.
    pub(super) fn spawn(self: &Arc<Self>, future: Future) {
        let mut state = self.lock();
        if state.stopped {
            drop(state);
            drop(future);
            return;
        }
        state.started += 1;
        let task = Arc::new(Task {
            id: state.started,
            future: Mutex::new(Some(future)),
            queued: AtomicBool::new(true),
            background: Arc::downgrade(self),
        });
        state.tasks.insert(task.id, task.clone());
        state.ready.push_back(task);
        drop(state);
        self.changed.notify_one();
    }

    /// Calls a waker when the time has come.
    pub(super) fn wake_at(&self, at: Instant, waker: Waker) {
        let mut state = self.lock();
        state.timers_set += 1;
        let number = state.timers_set;
        state.timers.push(Reverse(Timer { at, number, waker }));
        drop(state);
        self.changed.notify_one();
    }

    /// Tells the thread to stop. It drops every task before it ends.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_one();
    }

    fn run(self: Arc<Self>) {
        while let Some(work) = self.next() {
            match work {
                Work::Poll(task) => self.poll(&task),
                Work::Wake(waker) => waker.wake(),
            }
        }
        let (tasks, timers, ready) = {
            let mut state = self.lock();
            (
                std::mem::take(&mut state.tasks),
                std::mem::take(&mut state.timers),
                std::mem::take(&mut state.ready),
            )
        };
        for task in tasks.values() {
            let future = task.lock().take();
            drop(future);
        }
        drop((tasks, timers, ready));
    }

    /// What to do next, after waiting for it; `None` once stopped.
    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(task) = state.ready.pop_front() {
                return Some(Work::Poll(task));
            }
            let now = Instant::now();
            let next = state.timers.peek().map(|Reverse(timer)| timer.at);
            state = match next {
                Some(at) if at <= now => {
                    return state
                        .timers
                        .pop()
                        .map(|Reverse(timer)| Work::Wake(timer.waker));
                }
                Some(at) => {
                    let waited = self.changed.wait_timeout(state, at - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn poll(&self, task: &Arc<Task>) {
        task.queued.store(false, Ordering::Release);
        let mut place = task.lock();
        let Some(future) = place.as_mut() else { return };
        let waker = Waker::from(task.clone());
        let mut context = Context::from_waker(&waker);
        // A task that panics ends alone, as on any runtime; the others still need their timers.
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        if !matches!(polled, Ok(Poll::Pending)) {
            let future = place.take();
            drop(place);
            drop(future);
            self.lock().tasks.remove(&task.id);
        }
    }
}

enum Work {
    Poll(Arc<Task>),
    Wake(Waker),
}

impl Task {
    fn lock(&self) -> MutexGuard<'_, Option<Future>> {
        self.future.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(background) = self.background.upgrade() {
            background.lock().ready.push_back(self);
            background.changed.notify_one();
        }
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
