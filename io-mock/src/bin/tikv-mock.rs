//! The simulated cluster as a program: PD and stores on loopback until Ctrl-C.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tikv_io_mock::cluster::Config;
use tikv_io_mock::serve::{ServedCluster, ServedClusterBuilder};
use tikv_proto::kvrpcpb::ApiVersion;

/// A simulated TiKV cluster with its PD, served over gRPC.
///
/// The first line it prints says where PD listens. Its data is gone when it ends, unless it is told
/// to save them.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// How many stores.
    #[arg(long, default_value_t = 3, conflicts_with = "load")]
    stores: u64,
    /// Into how many regions the key space is cut, evenly by the first two bytes.
    #[arg(long, default_value_t = 1)]
    regions: usize,
    /// Where PD listens. Its other members and the stores listen at free ports of the same host.
    #[arg(long, default_value = "127.0.0.1:0")]
    pd_addr: SocketAddr,
    /// How many members PD has; the first one leads.
    #[arg(long, default_value_t = 1, conflicts_with = "load")]
    pd_members: u64,
    /// How the stores keep keys. Default v1, or v2 with a keyspace.
    #[arg(long, value_enum, conflicts_with = "load")]
    api_version: Option<Api>,
    /// A keyspace to create; may be given several times.
    #[arg(long, value_name = "NAME")]
    keyspace: Vec<String>,
    /// Encrypt all connections with DIR/cert.pem and DIR/key.pem, which are made if neither is
    /// there.
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// Serve the control verbs over HTTP, at a free port unless an address is given; printed on the
    /// second line.
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "127.0.0.1:0")]
    control: Option<SocketAddr>,
    /// After how many milliseconds stale reads may be newer again, as TiKV's
    /// `resolved-ts.advance-ts-interval`; 0 is never.
    #[arg(long, value_name = "MS", default_value_t = 20_000)]
    safe_ts_every: u64,
    /// Save the whole cluster to a file at the end.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Go on from a saved cluster.
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
}

/// How the stores keep keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Api {
    /// As they are, without lifetimes.
    V1,
    /// As they are, raw values with lifetimes.
    V1ttl,
    /// In keyspaces.
    V2,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match serve(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tikv-mock: {error}");
            ExitCode::FAILURE
        }
    }
}

fn builder(args: &Args) -> io::Result<ServedClusterBuilder> {
    let default = match args.keyspace.is_empty() {
        true => Api::V1,
        false => Api::V2,
    };
    let api_version = match args.api_version.unwrap_or(default) {
        Api::V1 => ApiVersion::V1,
        Api::V1ttl => ApiVersion::V1ttl,
        Api::V2 => ApiVersion::V2,
    };
    let config = Config {
        api_version,
        stores: args.stores.max(1),
        pd_members: args.pd_members.max(1),
        ..Config::default()
    };
    let mut builder = ServedCluster::builder()
        .config(config)
        .even_regions(args.regions)
        .keyspaces(&args.keyspace)
        .pd_address(args.pd_addr)
        .safe_ts_every(Duration::from_millis(args.safe_ts_every));
    if let Some(file) = &args.load {
        builder = builder.load(file)?;
    }
    if let Some(directory) = &args.tls {
        builder = builder.tls(directory);
    }
    Ok(builder)
}

async fn serve(args: Args) -> io::Result<()> {
    let cluster = builder(&args)?.start().await?;
    // Whoever reads the first line may end the program at once, and it still ends in order.
    let ending = ending()?;
    let mut out = io::stdout();
    writeln!(
        out,
        "listening pd={} stores={}",
        cluster.pd_address(),
        cluster.stores().count()
    )?;
    if let Some(address) = args.control {
        let address = cluster.serve_control(address).await?;
        writeln!(out, "control={address}")?;
    }
    // Whoever started this reads the lines through a pipe, which would keep them.
    out.flush()?;
    ending.await?;
    cluster.stop().await;
    if let Some(file) = &args.save {
        cluster.save(file)?;
    }
    Ok(())
}

/// Begins to listen for the wish that the program end: Ctrl-C, or as a service manager says it.
#[cfg(unix)]
fn ending() -> io::Result<impl Future<Output = io::Result<()>>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

/// Begins to listen for the wish that the program end: Ctrl-C.
#[cfg(not(unix))]
fn ending() -> io::Result<impl Future<Output = io::Result<()>>> {
    Ok(tokio::signal::ctrl_c())
}
