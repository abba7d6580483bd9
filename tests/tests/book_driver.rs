//! The driver of the book's chapter on drivers, which includes it from here: each operation on a
//! thread, over the simulated cluster as a function call.

use std::collections::BTreeSet;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::UNIX_EPOCH;

use tikv_core::driver::{
    Action, Driver, Endpoint, Instant, Operation, Reply, Rpc, TransportError, TsoRequest,
};
use tikv_core::wire::Response;
use tikv_core::{Config, Endpoints, RawClient, Timestamp, TransactionClient};
use tikv_io_mock::cluster::{self, Cluster};
use tikv_io_mock::dispatch;
use tikv_tests::conformance;

// ANCHOR: driver
#[derive(Clone)]
struct Threads(Arc<World>);

/// Wakes the thread that turns an operation.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Threads {
    /// Turns an operation on this thread until it is done.
    fn turn<T>(&self, mut operation: Operation<T>) -> T {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut sleeps = BTreeSet::new();
        loop {
            let polled = operation.poll(&mut Context::from_waker(&waker), self.now());
            while let Some((id, action)) = operation.next_action() {
                let reply = match action {
                    Action::Send(rpc) => Reply::Response(self.0.answer(&rpc)),
                    Action::Timestamp(wish) => Reply::Timestamp(self.0.timestamp(&wish)),
                    Action::Sleep { until, .. } if until > self.now() => {
                        sleeps.insert((until, id));
                        continue;
                    }
                    Action::Sleep { .. } => Reply::Woke,
                    // Also after `Ready`: the last thing an operation does may be to spawn.
                    Action::Spawn(child) => {
                        self.spawn(child);
                        continue;
                    }
                };
                operation
                    .complete(id, reply)
                    .expect("answered once, in kind");
            }
            if let Poll::Ready(output) = polled {
                return output;
            }
            // What was completed above has unparked this thread: then none of this waits.
            match sleeps.first().copied() {
                None => thread::park(),
                Some((until, _)) if until > self.now() => thread::park_timeout(until - self.now()),
                Some((until, id)) => {
                    sleeps.remove(&(until, id));
                    operation
                        .complete(id, Reply::Woke)
                        .expect("a sleep ends once");
                }
            }
        }
    }
}

impl Driver for Threads {
    type Run<T: Send + 'static> = Ready<T>;

    fn run<T: Send + 'static>(&self, operation: Operation<T>) -> Ready<T> {
        ready(self.turn(operation))
    }

    fn spawn(&self, operation: Operation<()>) {
        let driver = self.clone();
        thread::spawn(move || driver.turn(operation));
    }

    fn now(&self) -> Instant {
        Instant::ZERO + self.0.started.elapsed()
    }

    fn seed(&self) -> u64 {
        7 // A real driver asks the system.
    }
}
// ANCHOR_END: driver

// ANCHOR: world
/// The simulated cluster, and when the driver started.
struct World {
    cluster: Mutex<Cluster>,
    started: std::time::Instant,
}

impl World {
    fn answer(&self, rpc: &Rpc) -> Result<Response, TransportError> {
        // The context of an attempt travels beside the body, which all attempts share.
        let mut command = (*rpc.command).clone();
        if let Some(context) = &rpc.context {
            command.set_context(context.clone());
        }
        let mut cluster = self.cluster.lock().unwrap();
        let answer = match &rpc.endpoint {
            Endpoint::Store { id, .. } => dispatch::store(&mut cluster, now_ms(), *id, command),
            _ => dispatch::pd(&mut cluster, now_ms(), 0, command),
        };
        answer.map_err(|error| TransportError::Status {
            address: rpc.endpoint.address().clone(),
            code: 2,
            message: error.message.into(),
        })
    }

    fn timestamp(&self, _: &TsoRequest) -> Result<Timestamp, TransportError> {
        Ok(self
            .cluster
            .lock()
            .unwrap()
            .pd_mut()
            .next_tso(now_ms())
            .into())
    }
}
// ANCHOR_END: world

fn now_ms() -> u64 {
    UNIX_EPOCH.elapsed().unwrap().as_millis() as u64
}

fn driver() -> (Threads, Endpoints) {
    let cluster = Cluster::new(cluster::Config::default(), now_ms());
    let urls: Vec<String> = cluster
        .pd()
        .members()
        .iter()
        .flat_map(|member| member.client_urls.clone())
        .collect();
    let world = World {
        cluster: Mutex::new(cluster),
        started: std::time::Instant::now(),
    };
    (Threads(Arc::new(world)), Endpoints::new(urls, false))
}

// ANCHOR: conformance
#[test]
fn the_driver_of_the_book_passes_the_suite_of_all_drivers() {
    let (driver, endpoints) = driver();
    pollster::block_on(async {
        let client = TransactionClient::with_driver(driver, endpoints, Config::default()).await?;
        conformance::transactions(&client).await
    })
    .unwrap();
}
// ANCHOR_END: conformance

#[test]
fn raw_calls_pass_as_well() {
    let (driver, endpoints) = driver();
    pollster::block_on(async {
        let client = RawClient::with_driver(driver, endpoints, Config::default()).await?;
        conformance::raw(&client).await
    })
    .unwrap();
}
