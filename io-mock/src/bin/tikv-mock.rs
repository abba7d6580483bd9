//! The simulated cluster as a program: PD and stores on loopback until Ctrl-C.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use tikv_io_mock::serve::ServedCluster;

/// A simulated TiKV cluster with its PD, served over gRPC. Its data is gone when it ends.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// How many stores.
    #[arg(long, default_value_t = 3)]
    stores: u64,
    /// Into how many regions the key space is cut, evenly by the first two bytes.
    #[arg(long, default_value_t = 1)]
    regions: usize,
    /// Where PD listens. The stores listen at free ports of the same host.
    #[arg(long, default_value = "127.0.0.1:0")]
    pd_addr: SocketAddr,
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

async fn serve(args: Args) -> std::io::Result<()> {
    let cluster = ServedCluster::builder()
        .stores(args.stores)
        .even_regions(args.regions)
        .pd_address(args.pd_addr)
        .start()
        .await?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "listening pd={} stores={}",
        cluster.pd_address(),
        cluster.stores().count()
    )?;
    // Whoever started this reads the line through a pipe, which would keep it.
    out.flush()?;
    tokio::signal::ctrl_c().await?;
    cluster.stop().await;
    Ok(())
}
