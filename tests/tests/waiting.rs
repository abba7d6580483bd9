//! Requests that wait for a lock, over everything that delivers requests to the simulated cluster:
//! the driver in process, the simulator, and gRPC. The same scene is played on each.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use tikv_core::driver::{Driver, Endpoint, Instant, Io, Operation, Rpc, TransportError, Why};
use tikv_core::wire::{Command, Response};
use tikv_io_mock::LocalCluster;
use tikv_io_mock::cluster::Cluster;
use tikv_io_mock::cluster::lock_wait::WAIT_MS_MAX;
use tikv_io_mock::in_process::LocalDriver;
use tikv_io_mock::serve::ServedCluster;
use tikv_io_mock::sim::{Faults, Latency, Mark, Marks, Report, Sim, SimDriver, Simulation};
use tikv_io_tokio::{IoConfig, TokioDriver};
use tikv_proto::kvrpcpb::{
    self, GetLockWaitInfoRequest, Mutation, Op, PessimisticLockResponse, PessimisticLockWakeUpMode,
    PessimisticRollbackRequest,
};

/// How long a request may take in all.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a wish for a lock ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// It has the lock.
    Granted,
    /// Somebody else has it.
    Locked(u64),
    /// Somebody has released it.
    Released(u64),
    Deadlock,
}

fn lock(key: &'static str, start_ts: u64, wait_ms: i64) -> kvrpcpb::PessimisticLockRequest {
    kvrpcpb::PessimisticLockRequest {
        mutations: vec![Mutation {
            op: Op::PessimisticLock.into(),
            key: key.into(),
            ..Default::default()
        }],
        primary_lock: key.into(),
        start_version: start_ts,
        for_update_ts: start_ts,
        lock_ttl: 60_000,
        wait_timeout: wait_ms,
        ..Default::default()
    }
}

fn forced(key: &'static str, start_ts: u64) -> kvrpcpb::PessimisticLockRequest {
    kvrpcpb::PessimisticLockRequest {
        wake_up_mode: PessimisticLockWakeUpMode::WakeUpModeForceLock.into(),
        ..lock(key, start_ts, 0)
    }
}

fn release(key: &'static str, start_ts: u64) -> PessimisticRollbackRequest {
    PessimisticRollbackRequest {
        keys: vec![key.into()],
        start_version: start_ts,
        for_update_ts: start_ts,
        ..Default::default()
    }
}

/// Brings a request to the store that leads the first region; `None` while there is none.
fn to_leader(cluster: &Cluster, command: Command, deadline: Instant) -> Option<Rpc> {
    let region = cluster.regions().find(b"")?;
    let peer = *region.leader_peer()?;
    let store = cluster.store(peer.store_id)?;
    let context = kvrpcpb::Context {
        region_id: region.meta.id,
        region_epoch: region.meta.region_epoch,
        peer: Some(peer),
        ..Default::default()
    };
    Some(Rpc {
        endpoint: Endpoint::Store {
            id: peer.store_id,
            address: store.meta.address.as_str().into(),
        },
        context: Some(Box::new(context)),
        command: Arc::new(command),
        deadline,
    })
}

fn told(answer: &PessimisticLockResponse) -> Told {
    assert_eq!(answer.region_error, None);
    let Some(error) = answer.errors.first() else {
        return Told::Granted;
    };
    if let Some(lock) = &error.locked {
        return Told::Locked(lock.lock_version);
    }
    if error.deadlock.is_some() {
        return Told::Deadlock;
    }
    let conflict = error.conflict.as_ref().expect("a conflict");
    Told::Released(conflict.conflict_ts)
}

/// A driver, and a hand on the cluster behind it.
trait Stage {
    type Driver: Driver;

    fn driver(&self) -> &Self::Driver;

    fn with<T>(&self, look: impl FnOnce(&mut Cluster) -> T) -> T;

    async fn ask(&self, command: impl Into<Command>) -> Result<Response, TransportError> {
        let deadline = self.driver().now() + PATIENCE;
        let rpc = self.with(|cluster| to_leader(cluster, command.into(), deadline));
        let rpc = rpc.ok_or(TransportError::Closed { sent: false })?;
        let ask = Operation::new("ask", |io: Io| async move { io.send(rpc).await });
        self.driver().run(ask).await
    }

    async fn lock(&self, request: kvrpcpb::PessimisticLockRequest) -> Told {
        match self.ask(request).await {
            Ok(Response::PessimisticLock(answer)) => told(&answer),
            other => panic!("no answer to a lock: {other:?}"),
        }
    }

    async fn release(&self, key: &'static str, start_ts: u64) {
        let answer = self.ask(release(key, start_ts)).await;
        assert!(matches!(answer, Ok(Response::PessimisticRollback(_))));
    }

    async fn nap(&self, time: Duration) {
        let nap = Operation::new("nap", move |io: Io| async move {
            let until = io.now() + time;
            io.sleep_until(until, Why::Readiness).await;
        });
        self.driver().run(nap).await;
    }

    /// Returns when so many wait.
    async fn crowd(&self, size: usize) {
        loop {
            let waiting = self.with(|cluster| {
                let request = GetLockWaitInfoRequest::default();
                let told = cluster.get_lock_wait_info(0, 1, request);
                told.entries.len()
            });
            if waiting == size {
                return;
            }
            self.nap(Duration::from_millis(1)).await;
        }
    }
}

/// Several transactions want one lock.
async fn contend(stage: &impl Stage) {
    assert_eq!(stage.lock(lock("k", 10, 0)).await, Told::Granted);
    let waiting = future::join5(
        stage.lock(lock("k", 30, 0)),
        stage.lock(lock("k", 20, 0)),
        async {
            let told = stage.lock(forced("k", 40)).await;
            stage.release("k", 40).await;
            told
        },
        stage.lock(forced("k", 50)),
        async {
            stage.crowd(4).await;
            // Nobody else is held up.
            assert_eq!(stage.lock(lock("other", 60, 0)).await, Told::Granted);
            stage.release("k", 10).await;
        },
    );
    let (thirty, twenty, forty, fifty, ()) = waiting.await;
    // The first is told at once, the second a little later, and then the third has its lock, and passes it on.
    assert_eq!((twenty, thirty), (Told::Released(10), Told::Released(10)));
    assert_eq!((forty, fifty), (Told::Granted, Told::Granted));
    stage.release("k", 50).await;
    stage.release("other", 60).await;
}

/// Time passes, and nothing happens.
async fn run_out_of_time(stage: &impl Stage) {
    assert_eq!(stage.lock(lock("k", 110, 0)).await, Told::Granted);
    assert_eq!(stage.lock(lock("k", 120, -1)).await, Told::Locked(110));
    let begun = stage.driver().now();
    assert_eq!(stage.lock(lock("k", 120, 60)).await, Told::Locked(110));
    let waited = stage.driver().now().since(begun);
    // The cluster counts whole milliseconds.
    assert!(waited > Duration::from_millis(59), "{waited:?}");
    stage.release("k", 110).await;
}

/// Two transactions want each other's lock.
async fn close_a_circle(stage: &impl Stage) {
    assert_eq!(stage.lock(lock("a", 210, 0)).await, Told::Granted);
    assert_eq!(stage.lock(lock("b", 220, 0)).await, Told::Granted);
    let (first, ()) = future::join(stage.lock(lock("b", 210, 0)), async {
        stage.crowd(1).await;
        assert_eq!(stage.lock(lock("a", 220, 0)).await, Told::Deadlock);
        stage.release("b", 220).await;
    })
    .await;
    assert_eq!(first, Told::Released(220));
    stage.release("a", 210).await;
}

/// A client goes away while it waits: its request waits on, and gets the lock.
async fn go_away(stage: &impl Stage) {
    assert_eq!(stage.lock(lock("k", 310, 0)).await, Told::Granted);
    let gone = stage.lock(forced("k", 320));
    let left = future::select(Box::pin(gone), Box::pin(stage.crowd(1)));
    drop(left.await);
    stage.crowd(1).await;
    stage.release("k", 310).await;
    assert_eq!(stage.lock(lock("k", 330, -1)).await, Told::Locked(320));
    stage.release("k", 320).await;
}

async fn play(stage: &impl Stage) {
    contend(stage).await;
    run_out_of_time(stage).await;
    close_a_circle(stage).await;
    go_away(stage).await;
}

struct InProcess {
    cluster: LocalCluster,
    driver: LocalDriver,
}

impl Stage for InProcess {
    type Driver = LocalDriver;

    fn driver(&self) -> &Self::Driver {
        &self.driver
    }

    fn with<T>(&self, look: impl FnOnce(&mut Cluster) -> T) -> T {
        self.cluster.with(|cluster, _| look(cluster))
    }
}

#[test]
fn in_process() {
    let cluster = LocalCluster::builder().stores(1).start();
    let driver = cluster.driver();
    pollster::block_on(play(&InProcess { cluster, driver }));
}

struct Simulated {
    sim: Sim,
    driver: SimDriver,
}

impl Stage for Simulated {
    type Driver = SimDriver;

    fn driver(&self) -> &Self::Driver {
        &self.driver
    }

    fn with<T>(&self, look: impl FnOnce(&mut Cluster) -> T) -> T {
        self.sim.cluster(look)
    }
}

fn simulate(seed: u64, framed: bool) -> Report {
    let simulation = Simulation::seed(seed).calm().plan(|plan| {
        plan.stores = 1;
        plan.framed = framed;
        plan.latency = Latency {
            min: Duration::from_micros(100),
            usual: Duration::from_millis(5),
            slow: 0,
            max: Duration::from_millis(5),
        };
    });
    simulation.run(async |sim| {
        let driver = sim.driver();
        play(&Simulated { sim, driver }).await;
        Ok(())
    })
}

#[test]
fn simulated() {
    for seed in 0..20 {
        for framed in [false, true] {
            assert_eq!(simulate(seed, framed), simulate(seed, framed));
        }
    }
}

/// Some of three keys are locked and released, whatever comes of it.
async fn scramble(sim: Sim, client: u64) {
    let mut chance = sim.chance(&format!("client {client}"));
    let driver = sim.driver();
    let stage = Simulated { sim, driver };
    for round in 1..=15 {
        let start_ts = round * 10 + client;
        let mut keys = ["a", "b", "c"].map(|key| chance.coin().then_some(key));
        if chance.coin() {
            keys.reverse();
        }
        for key in keys.into_iter().flatten() {
            let wish = match chance.coin() {
                true => forced(key, start_ts),
                false => lock(key, start_ts, 0),
            };
            // A request that goes away waits on at its store.
            drop(stage.sim.may_cancel(stage.ask(wish)).await);
        }
        for key in keys.into_iter().flatten() {
            drop(stage.ask(release(key, start_ts)).await);
        }
    }
}

fn scrambled(seed: u64) -> Report {
    let simulation = Simulation::seed(seed).faults(Faults::all());
    simulation.run(async |sim| {
        let clients = (1..=4).map(|client| sim.spawn(scramble(sim.clone(), client)));
        let clients: Vec<_> = clients.collect();
        for client in clients {
            client.await;
        }
        sim.quiet().await;
        sim.sleep(Duration::from_millis(WAIT_MS_MAX)).await;
        assert_eq!(sim.cluster(|cluster| cluster.next_wake_ms()), None);
        Ok(())
    })
}

#[test]
fn no_fault_keeps_a_request_waiting() {
    let mut marks = Marks::default();
    for seed in 0..60 {
        let report = scrambled(seed);
        marks = marks.union(report.marks);
        if seed < 10 {
            assert_eq!(report, scrambled(seed));
        }
    }
    assert!(marks.has(Mark::WaitedForLock) && marks.has(Mark::Deadlock));
}

struct Served {
    cluster: ServedCluster,
    driver: TokioDriver,
}

impl Stage for Served {
    type Driver = TokioDriver;

    fn driver(&self) -> &Self::Driver {
        &self.driver
    }

    fn with<T>(&self, look: impl FnOnce(&mut Cluster) -> T) -> T {
        self.cluster.with(|cluster, _| look(cluster))
    }
}

/// All requests go over one stream.
#[tokio::test]
async fn served() {
    let cluster = ServedCluster::builder().stores(1).start().await.unwrap();
    let mut config = IoConfig::default();
    config.grpc_connection_count = 1;
    let driver = TokioDriver::new(config).unwrap();
    play(&Served { cluster, driver }).await;
}
