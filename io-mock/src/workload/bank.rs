//! A bank: clients move money between accounts and count the total, while regions split and
//! leaders move. Whatever goes wrong, no money may appear or disappear.

use bytes::Bytes;
use tikv_core::{Error, Key, KeyRange, Result, wire};

use super::session::Session;
use super::{CLEANED_UP, under_faults};
use crate::check::{Verdict, Violation, sum};
use crate::sim::Sim;

const ACCOUNTS_MAX: u64 = 24;
const BALANCE: u64 = 100;

fn account(number: u64) -> Key {
    Key::from(format!("account/{number:03}"))
}

fn accounts() -> KeyRange {
    KeyRange::prefix("account/")
}

/// Where regions may begin.
pub(super) fn split_keys() -> Vec<Bytes> {
    (0..ACCOUNTS_MAX)
        .map(|number| wire::encode(&account(number)))
        .collect()
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Size {
    accounts: u64,
    clients: u32,
    calls: u64,
}

/// Runs the bank and all its checks.
///
/// # Errors
///
/// The first violation.
pub async fn run(sim: Sim) -> Verdict {
    let chance = &mut sim.chance("bank");
    let size = Size {
        accounts: chance.magnitude(2..=ACCOUNTS_MAX),
        clients: sim.at_most_clients(chance.within(1..=6) as u32),
        calls: sim.at_most_operations(chance.magnitude(8..=40)),
    };
    let total = size.accounts * BALANCE;
    open(&sim, size).await?;

    under_faults(&sim, size.clients, |number| {
        client(Session::new(&sim, number), size)
    })
    .await?;

    let mut auditor = Session::patient(&sim, size.clients + 1);
    auditor.clean_up(&accounts()).await?;
    // Whatever still comes late has come by now.
    sim.sleep(CLEANED_UP).await;
    auditor.clean_up(&accounts()).await?;
    let check = sim.check();
    check.manners()?;
    check.transactions()?;
    check.constant_sum(&accounts(), total)
}

/// Opens the accounts, before anything goes wrong.
async fn open(sim: &Sim, size: Size) -> Result<(), Violation> {
    let mut session = Session::patient(sim, 0);
    let txn = session.begin().await?;
    for number in 0..size.accounts {
        txn.put(&account(number), BALANCE.to_string().into())
            .await?;
    }
    txn.commit().await?;
    Ok(())
}

async fn client(mut session: Session, size: Size) -> Verdict {
    for _ in 0..size.calls {
        session
            .once(async |session: &mut Session| {
                // What fails has failed; the next call tries something else.
                let _ = if session.chance.below(4) == 0 {
                    count(session).await
                } else {
                    transfer(session, size).await
                };
            })
            .await;
        session.pause().await;
    }
    session.recover(|session| Box::pin(count(session))).await?;
    session
        .recover(|session| Box::pin(transfer(session, size)))
        .await
}

/// Moves some money from one account to another.
async fn transfer(session: &mut Session, size: Size) -> Result<()> {
    let from = session.chance.below(size.accounts);
    let to = (from + 1 + session.chance.below(size.accounts - 1)) % size.accounts;
    let amount = session.chance.within(1..=BALANCE / 2);
    let (from, to) = (account(from), account(to));
    let at_once = session.chance.coin();
    let sim = session.sim().clone();
    let txn = session.begin().await?;
    let reading = async {
        if at_once {
            return txn.batch_get(&[from.clone(), to.clone()]).await;
        }
        Ok(vec![txn.get(&from).await?, txn.get(&to).await?])
    };
    let Some(balances) = sim.may_cancel(reading).await else {
        return txn.rollback().await;
    };
    let balances: Vec<u64> = balances?.iter().flatten().filter_map(sum::number).collect();
    let [from_balance, to_balance] = balances[..] else {
        return Err(Error::protocol("an account is gone"));
    };
    if from_balance < amount {
        return txn.rollback().await;
    }
    txn.put(&from, (from_balance - amount).to_string().into())
        .await?;
    txn.put(&to, (to_balance + amount).to_string().into())
        .await?;
    txn.commit().await
}

/// Reads all accounts.
async fn count(session: &mut Session) -> Result<()> {
    let (reverse, page) = (
        session.chance.coin(),
        session.chance.magnitude(1..=32) as u32,
    );
    let sim = session.sim().clone();
    let txn = session.begin().await?;
    match sim
        .may_cancel(txn.scan(&accounts(), usize::MAX, reverse, page))
        .await
    {
        None => Ok(()),
        Some(rows) => rows.map(|_| ()),
    }
}
