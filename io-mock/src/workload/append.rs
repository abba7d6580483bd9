//! Lists that only grow: a transaction reads some of them and appends to some. What a reader saw
//! of a list tells which transactions came before it and in which order, so dependencies between
//! transactions can be told from the history alone, without the truth.

use bytes::Bytes;
use tikv_core::{Key, KeyRange, Result, wire};

use super::session::{RecordedTransaction, Session};
use super::{CLEANED_UP, under_faults};
use crate::check::{Verdict, append};
use crate::sim::{Mark, Sim};

const LISTS_MAX: u64 = 12;

fn list(number: u64) -> Key {
    Key::from(format!("list/{number:02}"))
}

fn lists() -> KeyRange {
    KeyRange::prefix("list/")
}

/// Where regions may begin.
pub(super) fn split_keys() -> Vec<Bytes> {
    (0..LISTS_MAX)
        .map(|number| wire::encode(&list(number)))
        .collect()
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Size {
    lists: u64,
    steps: u64,
    clients: u32,
    calls: u64,
}

/// Runs the workload and all its checks.
///
/// # Errors
///
/// The first violation.
pub async fn run(sim: Sim) -> Verdict {
    let chance = &mut sim.chance("append");
    let size = Size {
        lists: chance.magnitude(1..=LISTS_MAX),
        steps: chance.within(1..=6),
        clients: sim.at_most_clients(chance.within(1..=6) as u32),
        calls: sim.at_most_operations(chance.magnitude(6..=40)),
    };
    under_faults(&sim, size.clients, |number| {
        client(Session::new(&sim, number), size)
    })
    .await?;

    let mut auditor = Session::patient(&sim, size.clients + 1);
    auditor.clean_up(&lists()).await?;
    // Whatever still comes late has come by now.
    sim.sleep(CLEANED_UP).await;
    auditor.clean_up(&lists()).await?;
    let check = sim.check();
    check.manners()?;
    if append::dependencies(&sim.history().lock())? == append::Skew::Found {
        sim.mark(Mark::WriteSkew);
    }
    check.transactions()
}

async fn client(mut session: Session, size: Size) -> Verdict {
    let mut counted = 0;
    for _ in 0..size.calls {
        let counted = &mut counted;
        session
            .once(async |session: &mut Session| {
                // What fails has failed; the next call tries something else.
                let _ = transaction(session, size, counted).await;
            })
            .await;
        session.pause().await;
    }
    session.recover(|session| Box::pin(read_all(session))).await
}

async fn read_all(session: &mut Session) -> Result<()> {
    let txn = session.begin().await?;
    txn.scan(&lists(), usize::MAX, session.chance.coin(), 3)
        .await?;
    txn.commit().await
}

async fn transaction(session: &mut Session, size: Size, counted: &mut u64) -> Result<()> {
    let steps = session.chance.within(1..=size.steps);
    let sim = session.sim().clone();
    let txn = session.begin().await?;
    for _ in 0..steps {
        let key = list(session.chance.below(size.lists));
        let appends = session.chance.below(5) < 3;
        let step = async {
            if !appends {
                return txn.get(&key).await.map(|_| ());
            }
            *counted += 1;
            append_one(&txn, &key, format!("{}.{counted}", session.number())).await
        };
        match sim.may_cancel(step).await {
            Some(result) => result?,
            None => continue,
        }
        if session.chance.below(4) == 0 {
            session.pause().await;
        }
    }
    txn.commit().await
}

async fn append_one(txn: &RecordedTransaction, key: &Key, element: String) -> Result<()> {
    let longer = match txn.get(key).await? {
        None => element,
        Some(value) => format!("{} {element}", String::from_utf8_lossy(&value)),
    };
    txn.put(key, longer.into()).await
}
