//! Concurrent bank transfers while regions split, leaders move and stores fail: the money must
//! neither grow nor vanish.
//!
//! ```text
//! cargo run --release --example bank                          # on an embedded cluster
//! cargo run --release --example bank -- --pd 127.0.0.1:2379   # on a real one
//! ```
//!
//! Ends with an error if the total is wrong, at the end or in any snapshot on the way.

mod chaos;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod transfer;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tikv_io_tokio::{Connect, Error, Key, KeyRange, Result, TransactionClient};
use tokio::task::JoinSet;

use report::Report;
use support::Target;

/// Moves money between accounts, and counts it.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// Addresses of PD of a real cluster. Without any, an embedded one is started.
    #[arg(long, value_delimiter = ',')]
    pd: Vec<String>,
    /// How many accounts there are.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(2..10_000_000))]
    accounts: u64,
    /// What each account begins with.
    #[arg(long, default_value_t = 1000)]
    balance: u64,
    /// How many transfers run at once.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// How long transfers go on.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Leave the embedded cluster in peace: no splits, no moves, no restarts.
    #[arg(long)]
    calm: bool,
}

/// Where the money is.
#[derive(Clone)]
struct Bank {
    client: TransactionClient,
    accounts: u64,
    balance: u64,
}

const PREFIX: &str = "bank/account/";

fn account(number: u64) -> Key {
    format!("{PREFIX}{number:08}").into()
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bank: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> std::result::Result<bool, Box<dyn std::error::Error>> {
    let target = Target::new(args.pd.clone()).await?;
    let client = TransactionClient::connect(target.pd.clone()).await?;
    client.ready(Duration::from_secs(30)).await?;
    let bank = Bank {
        client,
        accounts: args.accounts,
        balance: args.balance,
    };
    bank.open_accounts().await?;

    let stop = Arc::new(AtomicBool::new(false));
    let chaos = match &target.embedded {
        Some(cluster) if !args.calm => Some(tokio::spawn(chaos::run(
            cluster.clone(),
            args.accounts,
            stop.clone(),
        ))),
        _ => None,
    };
    let auditor = tokio::spawn(audit(bank.clone(), stop.clone()));
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for seed in 0..args.clients {
        clients.spawn(transfer::run(bank.clone(), seed as u64, stop.clone()));
    }
    let bar = progress(args.seconds as u64 * 10, "transferring {bar:40} {elapsed}");
    while began.elapsed().as_secs_f64() < args.seconds && !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bar.inc(1);
    }
    stop.store(true, Ordering::Relaxed);
    bar.finish_and_clear();
    let mut report = Report::default();
    while let Some(part) = clients.join_next().await {
        report.add(part?);
    }
    report.elapsed = began.elapsed();
    let audits = auditor.await?;
    if let Some(chaos) = chaos {
        report.chaos = Some(chaos.await??);
    }

    println!("{report}");
    let total = bank.total().await?;
    let expected = args.accounts * args.balance;
    let wrong = audits.wrong + usize::from(total != expected);
    println!(
        "total {total}, expected {expected}; {} snapshots on the way, {} of them wrong",
        audits.taken, audits.wrong
    );
    let closed = bank.client.close(Duration::from_secs(10)).await;
    if closed.left > 0 {
        println!("{} commits were still under way at the end", closed.left);
    }
    println!(
        "{}",
        if wrong == 0 {
            "the invariant holds"
        } else {
            "THE INVARIANT IS BROKEN"
        }
    );
    Ok(wrong == 0)
}

/// What the snapshots on the way showed.
struct Audits {
    taken: usize,
    wrong: usize,
}

/// Counts the money again and again while it moves.
async fn audit(bank: Bank, stop: Arc<AtomicBool>) -> Audits {
    let mut audits = Audits { taken: 0, wrong: 0 };
    while !stop.load(Ordering::Relaxed) {
        match bank.total().await {
            Ok(total) if total == bank.accounts * bank.balance => audits.taken += 1,
            Ok(total) => {
                eprintln!("a snapshot holds {total}");
                audits.taken += 1;
                audits.wrong += 1;
                stop.store(true, Ordering::Relaxed);
            }
            // The cluster is being shaken; a snapshot that can't be read proves nothing.
            Err(error) => eprintln!("a snapshot could not be read: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    audits
}

impl Bank {
    /// Gives every account the same balance, whatever it had.
    async fn open_accounts(&self) -> Result<()> {
        const BATCH: u64 = 500;
        let bar = progress(self.accounts, "opening accounts {bar:40} {pos}/{len}");
        for first in (0..self.accounts).step_by(BATCH as usize) {
            let last = (first + BATCH).min(self.accounts);
            self.client
                .transact(async |txn| {
                    for number in first..last {
                        txn.put(account(number), self.balance.to_string()).await?;
                    }
                    Ok::<_, Error>(())
                })
                .await?;
            bar.inc(last - first);
        }
        bar.finish_and_clear();
        println!("{} accounts hold {} each", self.accounts, self.balance);
        Ok(())
    }

    /// All the money there is, at one moment.
    async fn total(&self) -> Result<u64> {
        let snapshot = self.client.snapshot().await?;
        let mut rows = snapshot.scan(KeyRange::new(account(0), Some(account(self.accounts))));
        let mut total = 0;
        while let Some(row) = rows.try_next().await? {
            total += balance(row.value())?;
        }
        Ok(total)
    }
}

fn balance(value: &[u8]) -> Result<u64> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::invalid_argument("an account does not hold a number"))
}

fn progress(len: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a template that is valid");
    ProgressBar::new(len).with_style(style)
}
