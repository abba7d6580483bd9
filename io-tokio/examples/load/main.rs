//! A load of one kind of operation, and what it costs.
//!
//! ```text
//! cargo run --release -p tikv-io-tokio --example load -- \
//!     --pd 127.0.0.1:2379 --op get --concurrency 256 --seconds 10
//! ```
//!
//! Fills its keys first. The processor time is that of this process: with an embedded cluster (no
//! `--pd`) it includes the servers.

mod ops;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use tikv_io_tokio::{Connect, RawClient, Result, TransactionClient};

use ops::{Keys, Worker};
use support::Target;
use support::numbers::{Latencies, processor_time};

/// Runs one kind of operation again and again.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// Addresses of PD. Without any, an embedded cluster is started.
    #[arg(long, value_delimiter = ',')]
    pd: Vec<String>,
    /// What to do.
    #[arg(long, value_enum, default_value_t = Op::Get)]
    op: Op,
    /// How many callers there are, each with one operation at a time.
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// For how long.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How many keys there are.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// How large each value is.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4_000_000))]
    value_bytes: u64,
    /// How many keys a batch-get asks for, and how many rows a scan reads.
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// Spread the keys evenly over the whole key space, instead of under one prefix.
    #[arg(long)]
    spread: bool,
    /// How many connections are kept to each store.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Op {
    /// One key of a snapshot.
    Get,
    /// A transaction that writes one key.
    Put,
    /// Many keys of a snapshot.
    BatchGet,
    /// Many rows of a snapshot.
    Scan,
    /// A transaction that reads two keys and writes both.
    Txn,
    /// One raw key.
    RawGet,
    /// A raw write.
    RawPut,
    /// A timestamp.
    Tso,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let target = match args.pd.is_empty() && args.json {
        // Nothing but JSON on the output.
        true => {
            let cluster = tikv_io_mock::serve::ServedCluster::builder()
                .start()
                .await?;
            Target {
                pd: cluster.pd_endpoints(),
                embedded: Some(cluster),
            }
        }
        false => Target::new(args.pd.clone()).await?,
    };
    let client = TransactionClient::builder()
        .pd(target.pd.clone())
        .grpc_connection_count(args.connections)
        .connect()
        .await?;
    let raw = RawClient::builder()
        .pd(target.pd.clone())
        .driver(client.driver().clone())
        .connect()
        .await?;
    let keys = Keys::new(&args);
    ops::fill(&args, &keys, &client, &raw).await?;
    let worker = Worker::new(&args, keys, &client, &raw).await?;
    // What is loaded on first use is loaded by now.
    measure(&args, &worker, args.seconds.min(1.0)).await?;
    let measured = measure(&args, &worker, args.seconds).await?;
    measured.print(&args);
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

/// What was measured.
struct Measured {
    latencies: Latencies,
    elapsed: Duration,
    processor: Option<Duration>,
}

async fn measure(args: &Args, worker: &Worker, seconds: f64) -> Result<Measured> {
    let processor_before = processor_time();
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    let callers: Vec<_> = (0..args.concurrency.max(1))
        .map(|caller| {
            let worker = worker.clone();
            tokio::spawn(async move {
                let mut chance = oorandom::Rand64::new(caller as u128);
                let mut latencies = Latencies::new();
                let mut at = Instant::now();
                while at < end {
                    worker.run(&mut chance).await?;
                    let now = Instant::now();
                    latencies.record(now - at);
                    at = now;
                }
                Ok::<_, tikv_io_tokio::Error>(latencies)
            })
        })
        .collect();
    let mut latencies = Latencies::new();
    for caller in callers {
        latencies.add(&caller.await.expect("no caller panics")?);
    }
    let elapsed = began.elapsed();
    let processor = processor_before
        .zip(processor_time())
        .map(|(before, after)| after - before);
    Ok(Measured {
        latencies,
        elapsed,
        processor,
    })
}

impl Measured {
    fn print(&self, args: &Args) {
        let count = self.latencies.count();
        let rate = count as f64 / self.elapsed.as_secs_f64();
        let micros = |latency: Duration| latency.as_nanos() as f64 / 1e3;
        let [p50, p99, p999] =
            [50.0, 99.0, 99.9].map(|percent| micros(self.latencies.percentile(percent)));
        let processor = self
            .processor
            .map(|time| micros(time) / count.max(1) as f64);
        let op = args
            .op
            .to_possible_value()
            .map(|op| op.get_name().to_owned())
            .unwrap_or_default();
        if args.json {
            let line = serde_json::json!({
                "op": op,
                "concurrency": args.concurrency,
                "seconds": self.elapsed.as_secs_f64(),
                "operations": count,
                "ops_per_second": rate,
                "p50_us": p50,
                "p99_us": p99,
                "p999_us": p999,
                "cpu_us_per_op": processor,
            });
            println!("{line}");
            return;
        }
        println!(
            "{op} by {} callers for {:.1?}",
            args.concurrency, self.elapsed
        );
        println!("  {rate:>12.0} ops/s");
        for (name, value) in [("p50", p50), ("p99", p99), ("p99.9", p999)] {
            println!("  {value:>12.1} us {name}");
        }
        match processor {
            Some(processor) => println!("  {processor:>12.2} us of processor time per op"),
            None => println!("  processor time is not known on this system"),
        }
    }
}
