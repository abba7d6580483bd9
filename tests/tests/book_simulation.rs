//! The application of the book's chapter on simulation, which includes it from here, and its tests
//! in process and under simulation.

// ANCHOR: application
use tikv_core::driver::Driver;
use tikv_core::{Error, KeyRange, Result, Transaction, TransactionClient};

/// Moves one coin, if there is one.
async fn pay<D: Driver>(client: &TransactionClient<D>, from: &str, to: &str) -> Result<()> {
    client
        .transact(async |txn| {
            let (payer, payee) = (coins(&txn, from).await?, coins(&txn, to).await?);
            if payer > 0 && from != to {
                txn.put(from, (payer - 1).to_string()).await?;
                txn.put(to, (payee + 1).to_string()).await?;
            }
            Ok::<_, Error>(())
        })
        .await
}

async fn coins<D: Driver>(txn: &Transaction<D>, who: &str) -> Result<u64> {
    Ok(txn.get(who).await?.map_or(0, |coins| number(&coins)))
}

/// All coins, as they are now.
async fn total<D: Driver>(client: &TransactionClient<D>) -> Result<u64> {
    let rows = client
        .snapshot()
        .await?
        .scan(KeyRange::prefix("purse/"))
        .into_vec()
        .await?;
    Ok(rows.iter().map(|row| number(row.value())).sum())
}

fn number(value: &[u8]) -> u64 {
    String::from_utf8_lossy(value)
        .parse()
        .expect("a purse holds a number")
}
// ANCHOR_END: application

/// Gives four people ten coins each.
async fn open<D: Driver>(client: &TransactionClient<D>) -> Result<()> {
    client
        .transact(async |txn| {
            for who in PEOPLE {
                txn.put(who, "10").await?;
            }
            Ok::<_, Error>(())
        })
        .await
}

const PEOPLE: [&str; 4] = ["purse/ann", "purse/bob", "purse/eve", "purse/joe"];

// ANCHOR: in_process
use tikv_io_mock::LocalCluster;

#[test]
fn a_payment_moves_one_coin() {
    let cluster = LocalCluster::builder()
        .stores(3)
        .regions(["purse/c"])
        .start();
    pollster::block_on(async {
        let client = cluster.transaction_client().await?;
        open(&client).await?;
        pay(&client, "purse/ann", "purse/joe").await?;
        let joe = client.snapshot().await?.get("purse/joe").await?;
        assert_eq!(joe.as_deref(), Some(&b"11"[..]));
        assert_eq!(total(&client).await?, 40);
        Ok::<_, Error>(())
    })
    .unwrap();
}
// ANCHOR_END: in_process

// ANCHOR: simulation
use std::time::Duration;
use tikv_io_mock::check::Violation;
use tikv_io_mock::{Faults, Simulation};

#[test]
fn no_coin_is_lost_or_made() {
    for seed in 0..20 {
        Simulation::seed(seed)
            .faults(Faults::all())
            .calm()
            .run(async |sim| {
                let client = sim.client().await?.with_timeout(Duration::from_secs(20));
                open(&client).await?;
                sim.begin_faults();

                let payers: Vec<_> = (0..3)
                    .map(|number| {
                        let (sim, client) = (sim.clone(), client.clone());
                        let mut chance = sim.chance(&format!("payer {number}"));
                        let shared = sim.clone();
                        shared.spawn(async move {
                            for _ in 0..10 {
                                let from = PEOPLE[chance.index(PEOPLE.len())];
                                let to = PEOPLE[chance.index(PEOPLE.len())];
                                // Dropped half way, perhaps. It may fail, or nobody may know whether
                                // it happened; but never by half.
                                let _ = sim.may_cancel(pay(&client, from, to)).await;
                            }
                        })
                    })
                    .collect();
                for payer in payers {
                    payer.await;
                }

                sim.end_faults();
                match total(&client).await? {
                    40 => Ok(()),
                    other => Err(Violation::new("the total is 40", format!("it is {other}"))),
                }
            });
    }
}
// ANCHOR_END: simulation
