//! The driver in process: polls an operation inside its caller's future and answers requests on
//! the spot. Only sleeps need the background thread.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};

use tikv_core::driver::{Action, ActionId, Driver, Instant, Operation, Reply};

use super::background::Background;
use super::{Served, World};
use crate::cluster::lock_wait::Ticket;

/// Runs the operations of one client of a [`LocalCluster`](super::LocalCluster), on any runtime or
/// none.
///
/// A clone belongs to the same client. When the last one is dropped, the client's background work
/// is dropped and its thread ends.
#[derive(Clone)]
pub struct LocalDriver {
    client: Arc<Client>,
}

/// One client's life.
struct Client {
    world: Arc<World>,
    background: Arc<Background>,
    thread: Option<JoinHandle<()>>,
    seed: u64,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.background.stop();
        if let Some(thread) = self.thread.take()
            // Background work may hold the last clone; its thread can't wait for itself.
            && thread.thread().id() != thread::current().id()
        {
            // It ended by a panic of some task: nothing of the client is left either way.
            let _ = thread.join();
        }
    }
}

impl LocalDriver {
    pub(super) fn new(world: Arc<World>) -> Self {
        let (background, thread) = Background::start();
        let seed = world.next_seed();
        LocalDriver {
            client: Arc::new(Client {
                world,
                background,
                thread: Some(thread),
                seed,
            }),
        }
    }
}

impl Driver for LocalDriver {
    type Run<T: Send + 'static> = Run<T>;

    fn run<T: Send + 'static>(&self, operation: Operation<T>) -> Run<T> {
        let Client {
            world, background, ..
        } = &*self.client;
        Run::new(
            world.clone(),
            background.clone(),
            Some(self.client.clone()),
            operation,
        )
    }

    fn spawn(&self, operation: Operation<()>) {
        let Client {
            world, background, ..
        } = &*self.client;
        spawn(world, background, operation);
    }

    fn now(&self) -> Instant {
        self.client.world.now()
    }

    fn seed(&self) -> u64 {
        self.client.seed
    }
}

impl fmt::Debug for LocalDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LocalDriver")
    }
}

/// Background work does not keep its client: it ends with it.
fn spawn(world: &Arc<World>, background: &Arc<Background>, operation: Operation<()>) {
    background.spawn(Box::pin(Run::new(
        world.clone(),
        background.clone(),
        None,
        operation,
    )));
}

/// One running operation.
pub struct Run<T> {
    world: Arc<World>,
    background: Arc<Background>,
    /// A call keeps its client, whose thread it may need.
    _client: Option<Arc<Client>>,
    operation: Operation<T>,
    sleeps: BTreeSet<(Instant, ActionId)>,
    /// Requests that wait for a lock.
    parked: Vec<(Ticket, ActionId)>,
    bell: Arc<Bell>,
}

impl<T> Run<T> {
    fn new(
        world: Arc<World>,
        background: Arc<Background>,
        client: Option<Arc<Client>>,
        operation: Operation<T>,
    ) -> Self {
        Run {
            world,
            background,
            _client: client,
            operation,
            sleeps: BTreeSet::new(),
            parked: Vec::new(),
            bell: Arc::default(),
        }
    }

    /// Hands in the end of every sleep that is over.
    fn wake_sleepers(&mut self, now: Instant) {
        while let Some(&(until, id)) = self.sleeps.first()
            && until <= now
        {
            self.sleeps.pop_first();
            complete(&mut self.operation, id, Reply::Woke);
        }
    }

    /// Hands in the answers of requests that have stopped waiting.
    fn collect_parked(&mut self) {
        if self.parked.is_empty() {
            return;
        }
        self.world.settle();
        let (world, operation) = (&self.world, &mut self.operation);
        self.parked.retain(|&(ticket, id)| {
            let Some(reply) = world.collect(ticket) else {
                return true;
            };
            complete(operation, id, reply);
            false
        });
    }

    /// Starts what the operation asks for; whether something was answered at once.
    fn start_actions(&mut self, waker: &Waker) -> bool {
        let mut answered = false;
        while let Some((id, action)) = self.operation.next_action() {
            let reply = match action {
                Action::Send(rpc) => match self.world.serve(&rpc, waker) {
                    Served::Answered(reply) => reply,
                    Served::Waits(ticket) => {
                        self.parked.push((ticket, id));
                        continue;
                    }
                },
                Action::Timestamp(request) => self.world.timestamp(&request),
                Action::Sleep { until, why: _ } => {
                    self.sleeps.insert((until, id));
                    continue;
                }
                Action::Spawn(work) => {
                    spawn(&self.world, &self.background, work);
                    continue;
                }
            };
            complete(&mut self.operation, id, reply);
            answered = true;
        }
        answered
    }

    /// What an operation spawned just before its end is still to be run; nothing else of it is.
    fn start_spawned(&mut self) {
        while let Some((_, action)) = self.operation.next_action() {
            if let Action::Spawn(work) = action {
                spawn(&self.world, &self.background, work);
            }
        }
    }

    /// Has the task woken when the next sleep is over, or a wait.
    fn set_alarm(&self, now: Instant) {
        let waits = !self.parked.is_empty();
        let wake = waits.then(|| self.world.next_wake()).flatten();
        let sleep = self.sleeps.first().map(|(until, _)| *until);
        if let Some(until) = wake.into_iter().chain(sleep).min()
            && let Some(at) = std::time::Instant::now().checked_add(until.since(now))
            && until != Instant::FAR_FUTURE
        {
            self.background.wake_at(at, Waker::from(self.bell.clone()));
        }
    }
}

impl<T> Drop for Run<T> {
    fn drop(&mut self) {
        for (ticket, _) in &self.parked {
            self.world.leave(*ticket);
        }
    }
}

fn complete<T>(operation: &mut Operation<T>, id: ActionId, reply: Reply) {
    operation
        .complete(id, reply)
        .expect("each action is answered once, in kind");
}

impl<T> Future for Run<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let run = &mut *self;
        let waker = Waker::from(run.bell.clone());
        loop {
            let now = run.world.now();
            run.wake_sleepers(now);
            run.bell.silence();
            // Whose answer is missed here rings the bell.
            run.collect_parked();
            if let Poll::Ready(result) = run.operation.poll(&mut Context::from_waker(&waker), now) {
                run.start_spawned();
                return Poll::Ready(result);
            }
            if run.start_actions(&waker) {
                continue;
            }
            if run.bell.connect(cx.waker()) {
                run.set_alarm(now);
                return Poll::Pending;
            }
        }
    }
}

/// The waker that operations get. While the task is being polled it only remembers that it was
/// called: an answer on the spot is no reason to schedule the task again.
#[derive(Default)]
struct Bell {
    state: Mutex<BellState>,
}

#[derive(Default)]
struct BellState {
    rung: bool,
    task: Option<Waker>,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, BellState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whatever it was rung for, the operation is about to be polled.
    fn silence(&self) {
        *self.lock() = BellState::default();
    }

    /// From now on it wakes the task; `false` if it has been rung meanwhile.
    fn connect(&self, task: &Waker) -> bool {
        let mut state = self.lock();
        if state.rung {
            return false;
        }
        state.task = Some(task.clone());
        true
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let task = {
            let mut state = self.lock();
            state.rung = true;
            state.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::LocalCluster;
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;
    use tikv_core::driver::{Endpoint, Io, Rpc, TransportError, TsoRequest, Why};
    use tikv_core::wire::{Command, Response};

    fn nap(millis: u64) -> Operation<u64> {
        Operation::new("nap", move |io: Io| async move {
            let from = io.now();
            io.sleep_until(from + Duration::from_millis(millis), Why::Readiness)
                .await;
            io.now().since(from).as_millis() as u64
        })
    }

    #[test]
    fn sleeps_take_their_time_and_run_side_by_side() {
        let driver = LocalCluster::builder().start().driver();
        let naps = futures_util::future::join_all([30, 10, 20].map(|ms| driver.run(nap(ms))));
        let slept = pollster::block_on(naps);
        assert!(
            slept
                .iter()
                .zip([30, 10, 20])
                .all(|(slept, asked)| *slept >= asked),
            "{slept:?}"
        );
    }

    #[test]
    fn requests_are_answered_on_the_spot() {
        let cluster = LocalCluster::builder().stores(1).start();
        let url: Arc<str> = cluster.pd_endpoints()[0].as_str().into();
        let asking = Operation::new("ask", move |io: Io| async move {
            let deadline = Instant::FAR_FUTURE;
            let command = Arc::new(Command::GetMembers(Default::default()));
            let endpoint = Endpoint::Pd { url: url.clone() };
            let rpc = Rpc {
                endpoint,
                context: None,
                command,
                deadline,
            };
            let members = io.send(rpc.clone()).await;
            assert!(matches!(members, Ok(Response::GetMembers(_))));
            let nowhere = Endpoint::Store {
                id: 9,
                address: "nowhere:1".into(),
            };
            let lost = io
                .send(Rpc {
                    endpoint: nowhere,
                    ..rpc
                })
                .await;
            assert!(matches!(lost, Err(TransportError::Connect { .. })));
            let request = TsoRequest {
                url,
                cluster_id: 1,
                deadline,
            };
            io.timestamp(request).await
        });
        assert!(pollster::block_on(cluster.driver().run(asking)).is_ok());
    }

    #[test]
    fn background_work_ends_with_the_last_clone() {
        struct Told(mpsc::Sender<()>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.send(()).expect("the test is waiting");
            }
        }
        let (told, ended) = mpsc::channel();
        let ticks = Arc::new(AtomicU64::new(0));
        let driver = LocalCluster::builder().start().driver();
        let (told, counted) = (Told(told), ticks.clone());
        driver.spawn(Operation::new("ticks", move |io: Io| async move {
            let _told = told;
            loop {
                io.sleep_until(io.now() + Duration::from_millis(1), Why::Heartbeat)
                    .await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }));
        let clone = driver.clone();
        drop(driver);
        while ticks.load(Ordering::Relaxed) < 3 {
            thread::sleep(Duration::from_millis(1));
        }
        drop(clone);
        assert_eq!(ended.try_recv(), Ok(()), "the thread has been waited for");
    }

    #[test]
    fn background_work_may_hold_the_last_clone() {
        let (told, ended) = mpsc::channel();
        let driver = LocalCluster::builder().start().driver();
        let own = driver.clone();
        driver.spawn(Operation::new("last", move |io: Io| async move {
            io.sleep_until(io.now() + Duration::from_millis(20), Why::Heartbeat)
                .await;
            drop(own);
            told.send(()).expect("the test is waiting");
        }));
        drop(driver);
        assert!(ended.recv_timeout(Duration::from_secs(20)).is_ok());
    }

    #[test]
    fn what_is_spawned_at_the_very_end_runs() {
        let (told, ended) = mpsc::channel();
        let driver = LocalCluster::builder().start().driver();
        let parent = Operation::new("parent", move |io: Io| async move {
            io.spawn(Operation::new("child", move |_| async move {
                told.send(()).expect("the test is waiting");
            }));
        });
        pollster::block_on(driver.run(parent));
        assert!(ended.recv_timeout(Duration::from_secs(20)).is_ok());
    }

    #[test]
    fn clients_have_seeds_of_their_own() {
        let cluster = LocalCluster::builder().seed(7).start();
        let (first, second) = (cluster.driver().seed(), cluster.driver().seed());
        assert_ne!(first, second);
        let again = LocalCluster::builder().seed(7).start();
        assert_eq!(again.driver().seed(), first);
    }
}
