//! Point gets over loopback gRPC: how much of a bare BatchCommands stream's throughput is left
//! once the driver, and then the whole client, stand on it. All are measured in one run against
//! the same served cluster.
//!
//! ```text
//! cargo bench -p tikv-io-tokio --bench throughput
//! cargo bench -p tikv-io-tokio --bench throughput -- --seconds 5 --callers 256
//! ```

mod bare;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use tikv_core::Timestamp;
use tikv_core::driver::{Driver, Endpoint, Io, Operation, Rpc, TsoRequest};
use tikv_core::wire::{Command, Response};
use tikv_io_mock::serve::ServedCluster;
use tikv_io_tokio::{Connect, IoConfig, TokioDriver, TransactionClient};
use tikv_proto::kvrpcpb;

const SERVER: &str = "server";
const CLIENT: &str = "client";
const KEYS: usize = 1000;
const VALUE_BYTES: usize = 64;

#[derive(Debug, Parser)]
struct Args {
    /// How long each measurement takes.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How many callers there are at once.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    callers: Vec<usize>,
    /// How many connections the driver keeps to the store.
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    connections: Vec<usize>,
    /// What to measure.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "bare,driver,whole"
    )]
    clients: Vec<Client>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A way to get a key.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Client {
    /// A bare BatchCommands stream.
    Bare,
    /// The driver, without the protocol.
    Driver,
    /// The whole client.
    Whole,
}

/// What all clients ask for.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: Arc<str>,
    pub(crate) context: kvrpcpb::Context,
    pub(crate) version: u64,
}

impl Target {
    /// The n-th request.
    pub(crate) fn get(&self, n: usize) -> Command {
        let key = key(n % KEYS).into();
        kvrpcpb::GetRequest {
            key,
            version: self.version,
            ..Default::default()
        }
        .into()
    }
}

fn main() {
    let args = Args::parse();
    // The server runs beside the client, not within: each has its own threads.
    let serving = runtime(SERVER);
    let cluster = serving
        .block_on(ServedCluster::builder().stores(1).start())
        .unwrap();
    // On a worker, as the callers are: what the main thread does is not counted.
    let client = runtime(CLIENT);
    client
        .block_on(client.spawn(async move { measure_all(&args, &cluster).await }))
        .unwrap();
}

fn runtime(name: &str) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name(name)
        .enable_all()
        .build()
        .unwrap()
}

/// The processor time of all threads of this name so far. Zero where the system does not tell.
fn processor_time(name: &str) -> Duration {
    let of_thread = |thread: PathBuf| {
        let its_name = std::fs::read_to_string(thread.join("comm")).ok()?;
        let times = std::fs::read_to_string(thread.join("schedstat")).ok()?;
        let nanos = times.split_whitespace().next()?.parse().ok()?;
        (its_name.trim_end() == name).then_some(Duration::from_nanos(nanos))
    };
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return Duration::ZERO;
    };
    threads
        .filter_map(|thread| of_thread(thread.ok()?.path()))
        .sum()
}

async fn measure_all(args: &Args, cluster: &ServedCluster) {
    let loader = TokioDriver::new(IoConfig::default()).unwrap();
    let target = load(cluster, &loader).await;
    println!(
        "{:<24} {:>8} {:>10} {:>8} {:>14} {:>8} {:>14}",
        "client", "callers", "gets/s", "of bare", "client us/get", "of bare", "server us/get"
    );
    for &callers in &args.callers {
        // What the others are held against is the first line: one bare stream.
        let mut reference = None;
        for &client in &args.clients {
            for &connections in &args.connections {
                let measured = match client {
                    Client::Bare => measure_bare(args, callers, connections, &target).await,
                    Client::Driver => measure_driver(args, callers, connections, &target).await,
                    Client::Whole => measure_whole(args, callers, connections, cluster).await,
                };
                let reference = reference.get_or_insert(measured);
                report(client, connections, callers, measured, *reference);
            }
        }
    }
}

/// Callers, one queue, and a stream.
async fn measure_bare(
    args: &Args,
    callers: usize,
    connections: usize,
    target: &Target,
) -> Measured {
    let bare = Arc::new(bare::Bare::connect(target, connections).await);
    let get = move |n| {
        let bare = bare.clone();
        async move { bare.get(n).await }
    };
    measure(args, callers, get).await
}

/// Operations that do nothing but send one request.
async fn measure_driver(
    args: &Args,
    callers: usize,
    connections: usize,
    target: &Target,
) -> Measured {
    let driver = TokioDriver::new(io_config(connections)).unwrap();
    let target = target.clone();
    let get = move |n| {
        let (driver, target) = (driver.clone(), target.clone());
        async move { get(&driver, &target, n).await }
    };
    measure(args, callers, get).await
}

/// Snapshot reads, as applications make them.
async fn measure_whole(
    args: &Args,
    callers: usize,
    connections: usize,
    cluster: &ServedCluster,
) -> Measured {
    let client = TransactionClient::builder()
        .pd(cluster.pd_endpoints())
        .io_config(io_config(connections))
        .connect()
        .await
        .unwrap();
    let snapshot = client.snapshot().await.unwrap();
    let get = move |n| {
        let snapshot = snapshot.clone();
        async move {
            let value = snapshot.get(key(n % KEYS)).await.unwrap();
            assert_eq!(value.map(|value| value.len()), Some(VALUE_BYTES));
        }
    };
    measure(args, callers, get).await
}

fn io_config(connections: usize) -> IoConfig {
    let mut config = IoConfig::default();
    config.grpc_connection_count = connections;
    config
}

/// What one measurement gave.
#[derive(Clone, Copy)]
struct Measured {
    per_second: f64,
    client_us: f64,
    server_us: f64,
}

fn report(client: Client, connections: usize, callers: usize, measured: Measured, bare: Measured) {
    let client = match client {
        Client::Bare => "bare stream",
        Client::Driver => "driver",
        Client::Whole => "whole client",
    };
    let client = format!("{client} x{connections}");
    println!(
        "{client:<24} {callers:>8} {:>10.0} {:>8.2} {:>14.2} {:>8.2} {:>14.2}",
        measured.per_second,
        measured.per_second / bare.per_second,
        measured.client_us,
        measured.client_us / bare.client_us,
        measured.server_us,
    );
}

/// Gets by so many callers, each with one request at a time.
async fn measure<F, Fut>(args: &Args, callers: usize, get: F) -> Measured
where
    F: Fn(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let run = |seconds: f64| {
        let get = get.clone();
        async move {
            let before = [CLIENT, SERVER].map(processor_time);
            let began = Instant::now();
            let end = began + Duration::from_secs_f64(seconds);
            let tasks: Vec<_> = (0..callers)
                .map(|caller| {
                    let get = get.clone();
                    tokio::spawn(async move {
                        let mut done = 0;
                        while Instant::now() < end {
                            get(caller + done * 7).await;
                            done += 1;
                        }
                        done
                    })
                })
                .collect();
            let mut done = 0;
            for task in tasks {
                done += task.await.unwrap();
            }
            let seconds = began.elapsed().as_secs_f64();
            let after = [CLIENT, SERVER].map(processor_time);
            let us_per_get =
                |n: usize| after[n].saturating_sub(before[n]).as_secs_f64() * 1e6 / done as f64;
            Measured {
                per_second: done as f64 / seconds,
                client_us: us_per_get(0),
                server_us: us_per_get(1),
            }
        }
    };
    run(args.seconds / 5.0).await;
    run(args.seconds).await
}

/// One get by an operation that does nothing else.
async fn get(driver: &TokioDriver, target: &Target, n: usize) {
    let rpc = Rpc {
        endpoint: Endpoint::Store {
            id: 1,
            address: target.address.clone(),
        },
        context: Some(Box::new(target.context.clone())),
        command: Arc::new(target.get(n)),
        deadline: driver.now() + Duration::from_secs(30),
    };
    let answer = driver.run(Operation::new(
        "get",
        |io: Io| async move { io.send(rpc).await },
    ));
    check(answer.await.unwrap());
}

pub(crate) fn check(answer: Response) {
    match answer {
        Response::Get(answer) if answer.value.len() == VALUE_BYTES => {}
        other => panic!("{other:?}"),
    }
}

fn key(n: usize) -> String {
    format!("key{n:05}")
}

/// Fills the keys and finds out where they are.
async fn load(cluster: &ServedCluster, driver: &TokioDriver) -> Target {
    let (id, address) = cluster.stores().next().unwrap();
    let context = cluster.with(|cluster, _| {
        let region = cluster.regions().iter().next().unwrap();
        kvrpcpb::Context {
            region_id: region.meta.id,
            region_epoch: region.meta.region_epoch,
            peer: region.meta.peers.first().cloned(),
            ..Default::default()
        }
    });
    let address: Arc<str> = address.to_string().into();
    let deadline = driver.now() + Duration::from_secs(10);
    let send = |command: Command| {
        let rpc = Rpc {
            endpoint: Endpoint::Store {
                id,
                address: address.clone(),
            },
            context: Some(Box::new(context.clone())),
            command: Arc::new(command),
            deadline,
        };
        driver.run(Operation::new("load", |io: Io| async move {
            io.send(rpc).await
        }))
    };
    let start = timestamp(cluster, driver).await;
    let mutations = (0..KEYS)
        .map(|n| kvrpcpb::Mutation {
            key: key(n).into(),
            value: vec![7; VALUE_BYTES].into(),
            ..Default::default()
        })
        .collect();
    let prewrite = kvrpcpb::PrewriteRequest {
        mutations,
        primary_lock: key(0).into(),
        start_version: start.as_u64(),
        lock_ttl: 3000,
        ..Default::default()
    };
    let Ok(Response::Prewrite(prewritten)) = send(prewrite.into()).await else {
        panic!()
    };
    assert_eq!(
        (prewritten.region_error, prewritten.errors.len()),
        (None, 0)
    );
    let commit = kvrpcpb::CommitRequest {
        keys: (0..KEYS).map(|n| key(n).into()).collect(),
        start_version: start.as_u64(),
        commit_version: timestamp(cluster, driver).await.as_u64(),
        ..Default::default()
    };
    let Ok(Response::Commit(committed)) = send(commit.into()).await else {
        panic!()
    };
    assert_eq!((committed.region_error, committed.error), (None, None));
    let version = timestamp(cluster, driver).await.as_u64();
    Target {
        address,
        context,
        version,
    }
}

async fn timestamp(cluster: &ServedCluster, driver: &TokioDriver) -> Timestamp {
    let request = TsoRequest {
        url: cluster.pd_address().to_string().into(),
        cluster_id: 1,
        deadline: driver.now() + Duration::from_secs(10),
    };
    let wish = Operation::new(
        "timestamp",
        |io: Io| async move { io.timestamp(request).await },
    );
    driver.run(wish).await.unwrap()
}
