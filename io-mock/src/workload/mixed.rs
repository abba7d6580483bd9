//! Few keys, many kinds of calls: gets, batch gets, scans in both directions with limits, puts,
//! inserts, deletions, savepoints, in transactions of any size. Long values stand beside short
//! ones, since TiKV keeps them in different places.

use bytes::Bytes;
use tikv_core::{Key, KeyRange, Result, Value, wire};

use super::session::{RecordedTransaction, Session};
use super::{CLEANED_UP, under_faults};
use crate::check::Verdict;
use crate::sim::{Chance, Sim};

const KEYS: u64 = 40;

fn key(number: u64) -> Key {
    Key::from(format!("mixed/{number:02}"))
}

/// Where regions may begin.
pub(super) fn split_keys() -> Vec<Bytes> {
    (0..KEYS).map(|number| wire::encode(&key(number))).collect()
}

/// How much is done, and where.
#[derive(Clone, Copy, Debug)]
struct Size {
    clients: u32,
    calls: u64,
    /// Most calls touch so many keys only.
    hot: u64,
    /// Calls in one transaction.
    steps: u64,
}

/// Runs the workload and all its checks.
///
/// # Errors
///
/// The first violation.
pub async fn run(sim: Sim) -> Verdict {
    let chance = &mut sim.chance("mixed");
    let size = Size {
        clients: sim.at_most_clients(chance.within(1..=6) as u32),
        calls: sim.at_most_operations(chance.magnitude(5..=30)),
        hot: chance.magnitude(1..=KEYS),
        steps: chance.magnitude(1..=16),
    };
    sim.let_strangers_write();
    under_faults(&sim, size.clients, |number| {
        client(Session::new(&sim, number), size)
    })
    .await?;

    let mut auditor = Session::patient(&sim, size.clients + 1);
    auditor.clean_up(&KeyRange::all()).await?;
    // Whatever still comes late has come by now.
    sim.sleep(CLEANED_UP).await;
    auditor.clean_up(&KeyRange::all()).await?;
    let check = sim.check();
    check.manners()?;
    check.transactions()
}

async fn client(mut session: Session, size: Size) -> Verdict {
    for _ in 0..size.calls {
        session
            .once(async |session: &mut Session| {
                // What fails has failed; the next call tries something else.
                let _ = transaction(session, size).await;
            })
            .await;
        session.pause().await;
    }
    session
        .recover(|session| Box::pin(write_some(session)))
        .await
}

/// Reads everything and writes some keys, blindly.
async fn write_some(session: &mut Session) -> Result<()> {
    let txn = session.begin().await?;
    txn.scan(&KeyRange::all(), usize::MAX, session.chance.coin(), 16)
        .await?;
    for _ in 0..5 {
        let key = key(session.chance.below(KEYS));
        txn.put(&key, some_value(&mut session.chance)).await?;
    }
    txn.commit().await
}

async fn transaction(session: &mut Session, size: Size) -> Result<()> {
    let steps = session.chance.within(1..=size.steps);
    let sim = session.sim().clone();
    let txn = session.begin().await?;
    for _ in 0..steps {
        let step = step(&txn, &mut session.chance, size);
        match sim.may_cancel(step).await {
            Some(result) => result?,
            // A dropped read is harmless; a dropped write is not tried.
            None => continue,
        }
        if session.chance.below(4) == 0 {
            session.pause().await;
        }
    }
    match session.chance.below(8) {
        0 => txn.rollback().await,
        _ => txn.commit().await,
    }
}

async fn step(txn: &RecordedTransaction, chance: &mut Chance, size: Size) -> Result<()> {
    let some_key = |chance: &mut Chance| {
        let among = if chance.below(8) == 0 { KEYS } else { size.hot };
        key(chance.below(among))
    };
    match chance.below(10) {
        0 | 1 => txn.get(&some_key(chance)).await.map(|_| ()),
        2 => {
            let keys: Vec<Key> = (0..chance.magnitude(1..=16))
                .map(|_| some_key(chance))
                .collect();
            txn.batch_get(&keys).await.map(|_| ())
        }
        3 => {
            let (first, second) = (some_key(chance), some_key(chance));
            let range = KeyRange::from(first.clone().min(second.clone())..=first.max(second));
            let limit = match chance.below(3) {
                0 => usize::MAX,
                _ => chance.magnitude(1..=20) as usize,
            };
            let page = chance.magnitude(1..=16) as u32;
            txn.scan(&range, limit, chance.coin(), page)
                .await
                .map(|_| ())
        }
        4 => txn.delete(&some_key(chance)).await,
        5 => txn.insert(&some_key(chance), some_value(chance)).await,
        _ => txn.put(&some_key(chance), some_value(chance)).await,
    }
}

fn some_value(chance: &mut Chance) -> Value {
    let mut value = chance.number().to_string();
    if chance.below(6) == 0 {
        // Longer than what fits into a write record.
        value = value.repeat(chance.within(10..=40) as usize);
    }
    value.into()
}
