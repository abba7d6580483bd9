//! The scheduler: one thread, tasks, and a seeded choice among those that can run.
//!
//! Virtual time passes only when no task can run; then it jumps to the next event.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tikv_core::driver::Instant;

use super::chance::Chance;
use super::driver::Run;
use super::network::ClientId;
use super::ops::Kind;
use super::shared::Shared;
use super::world::Spawned;

/// Why a run came to no end of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// Nothing can run and nothing will ever happen.
    Stuck,
    /// Faults have ended long ago, and something is still pending.
    Impatient,
    /// Tasks wake each other without end while no time passes.
    Spinning,
}

/// The tasks of one run.
pub(super) struct Executor {
    shared: Arc<Shared>,
    ready: Arc<Ready>,
    chance: Chance,
    tasks: Vec<Option<Task>>,
    free: Vec<usize>,
    started: u64,
}

struct Task {
    id: u64,
    /// Whose background work it is; the application's own tasks are nobody's.
    client: Option<ClientId>,
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    waker: Arc<TaskWaker>,
}

/// More polls than this without any time passing are no progress.
const POLLS_PER_INSTANT: u64 = 1_000_000;
/// The place of the root task, which is not in the table.
const ROOT: usize = usize::MAX;

impl Executor {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let seed = shared.lock().plan.seed;
        Executor {
            shared,
            ready: Arc::default(),
            chance: Chance::stream(seed, "scheduler"),
            tasks: Vec::new(),
            free: Vec::new(),
            started: 0,
        }
    }

    /// Runs everything until `root` ends.
    pub(super) fn run<T>(&mut self, root: impl Future<Output = T>) -> Result<T, Halt> {
        let mut root = std::pin::pin!(root);
        let root_waker = self.new_waker(ROOT);
        let waker = Waker::from(root_waker.clone());
        self.ready.push(ROOT, root_waker.id);
        let mut instant = Instant::ZERO;
        let mut polls = 0;
        loop {
            self.take_in();
            while let Some((index, id)) = self.next_ready() {
                self.shared.lock().audit.polled(id);
                polls += 1;
                if polls > POLLS_PER_INSTANT {
                    return Err(Halt::Spinning);
                }
                if index == ROOT {
                    root_waker.queued.store(false, Ordering::Relaxed);
                    if let Poll::Ready(result) =
                        root.as_mut().poll(&mut Context::from_waker(&waker))
                    {
                        return Ok(result);
                    }
                } else {
                    self.poll(index, id);
                }
                self.take_in();
            }
            let mut world = self.shared.lock();
            if world.is_out_of_patience() {
                return Err(Halt::Impatient);
            }
            if !world.step() {
                return Err(Halt::Stuck);
            }
            if world.now != instant {
                (instant, polls) = (world.now, 0);
            }
            let mut wakers = std::mem::take(&mut world.wakers);
            drop(world);
            wakers.drain(..).for_each(Waker::wake);
            self.shared.lock().wakers = wakers;
        }
    }

    /// Drops every task, as the end of the process would.
    pub(super) fn clear(&mut self) {
        // Dropping one task may close a client or spawn another task; go on until all are gone.
        loop {
            self.take_in();
            let tasks = std::mem::take(&mut self.tasks);
            self.free.clear();
            if tasks.iter().all(Option::is_none) {
                return;
            }
            drop(tasks);
        }
    }

    fn next_ready(&mut self) -> Option<(usize, u64)> {
        self.ready.take(&mut self.chance)
    }

    fn poll(&mut self, index: usize, id: u64) {
        let Some(Some(task)) = self.tasks.get_mut(index) else {
            return;
        };
        if task.id != id {
            return;
        }
        task.waker.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(task.waker.clone());
        if task
            .future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready()
        {
            self.remove(index);
        }
    }

    fn remove(&mut self, index: usize) {
        let gone = self.tasks[index].take();
        self.free.push(index);
        drop(gone);
    }

    /// Starts what was spawned, stops what belongs to clients that are gone.
    fn take_in(&mut self) {
        loop {
            let (spawned, closed) = self.shared.lock().take_changes();
            if spawned.is_empty() && closed.is_empty() {
                return;
            }
            for spawned in spawned {
                self.start(spawned);
            }
            for client in closed {
                for index in 0..self.tasks.len() {
                    let task = &self.tasks[index];
                    if task
                        .as_ref()
                        .is_some_and(|task| task.client == Some(client))
                    {
                        self.remove(index);
                    }
                }
            }
        }
    }

    fn start(&mut self, spawned: Spawned) {
        let (client, future): (_, Pin<Box<dyn Future<Output = ()> + Send>>) = match spawned {
            Spawned::Operation(client, operation) => {
                let shared = self.shared.clone();
                (
                    Some(client),
                    Box::pin(Run::new(shared, client, Kind::Background, operation)),
                )
            }
            Spawned::Task(future) => (None, future),
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.tasks.push(None);
            self.tasks.len() - 1
        });
        let waker = self.new_waker(index);
        let id = waker.id;
        self.tasks[index] = Some(Task {
            id,
            client,
            future,
            waker,
        });
        self.ready.push(index, id);
    }

    fn new_waker(&mut self, index: usize) -> Arc<TaskWaker> {
        self.started += 1;
        Arc::new(TaskWaker {
            ready: self.ready.clone(),
            index,
            id: self.started,
            queued: AtomicBool::new(true),
        })
    }
}

/// Tasks that can run, each once.
#[derive(Default)]
struct Ready {
    tasks: Mutex<Vec<(usize, u64)>>,
}

impl Ready {
    fn push(&self, index: usize, id: u64) {
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((index, id));
    }

    fn take(&self, chance: &mut Chance) -> Option<(usize, u64)> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        match tasks.len() {
            0 | 1 => tasks.pop(),
            more => Some(tasks.swap_remove(chance.index(more))),
        }
    }
}

struct TaskWaker {
    ready: Arc<Ready>,
    index: usize,
    id: u64,
    queued: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.push(self.index, self.id);
        }
    }
}
