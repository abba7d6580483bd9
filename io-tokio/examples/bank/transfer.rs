//! One client: transfers between random accounts, each in a transaction, tried again until it
//! commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tikv_io_tokio::Result;

use crate::report::Report;
use crate::{Bank, account, balance};

/// Transfers until told to stop.
pub(crate) async fn run(bank: Bank, seed: u64, stop: Arc<AtomicBool>) -> Report {
    let mut chance = oorandom::Rand64::new(u128::from(seed));
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) {
        let from = chance.rand_range(0..bank.accounts);
        // Another one than `from`.
        let to = (from + chance.rand_range(1..bank.accounts)) % bank.accounts;
        let amount = chance.rand_range(1..100);
        let began = Instant::now();
        loop {
            match transfer(&bank, from, to, amount).await {
                Ok(()) => {
                    report.commits += 1;
                    report.latencies.record(began.elapsed());
                }
                Err(error) if error.is_conflict() => {
                    report.conflicts += 1;
                    continue;
                }
                Err(error) if error.is_retryable() => {
                    report.retries += 1;
                    continue;
                }
                // It is in or it is not: either way the total holds. To do it again would be
                // wrong for somebody.
                Err(error) if error.is_undetermined() => report.undetermined += 1,
                Err(error) => {
                    report.fail(error);
                    // Whatever is wrong, it is not for want of asking.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            break;
        }
    }
    report
}

/// Moves an amount, if it is there.
async fn transfer(bank: &Bank, from: u64, to: u64, amount: u64) -> Result<()> {
    let txn = bank.client.begin().await?;
    let found = txn.batch_get([account(from), account(to)]).await?;
    let [from_balance, to_balance] =
        [&found[0], &found[1]].map(|value| value.as_deref().map_or(Ok(0), balance));
    let (from_balance, to_balance) = (from_balance?, to_balance?);
    let Some(left) = from_balance.checked_sub(amount) else {
        return txn.rollback().await;
    };
    txn.put(account(from), left.to_string()).await?;
    txn.put(account(to), (to_balance + amount).to_string())
        .await?;
    txn.commit().await?;
    Ok(())
}
