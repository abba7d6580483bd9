//! Readers that scan: up and down, by pages of every size, whole ranges and parts, the same part
//! again after a while, under writers that put and delete all the time.

use std::time::Duration;

use bytes::Bytes;
use tikv_core::{Key, KeyRange, Result, wire};

use super::session::Session;
use super::{CLEANED_UP, under_faults};
use crate::check::Verdict;
use crate::sim::Sim;

const KEYS: u64 = 60;
/// How long a reader stays at its version between two scans.
const LINGER: Duration = Duration::from_secs(2);

fn key(number: u64) -> Key {
    Key::from(format!("row/{number:02}"))
}

/// Where regions may begin.
pub(super) fn split_keys() -> Vec<Bytes> {
    (0..KEYS).map(|number| wire::encode(&key(number))).collect()
}

/// Runs the workload and all its checks.
///
/// # Errors
///
/// The first violation.
pub async fn run(sim: Sim) -> Verdict {
    let chance = &mut sim.chance("scans");
    let clients = sim.at_most_clients(chance.within(2..=6) as u32);
    let calls = sim.at_most_operations(chance.magnitude(4..=20));
    sim.let_strangers_write();
    under_faults(&sim, clients, |number| {
        client(Session::new(&sim, number), number % 3 == 1, calls)
    })
    .await?;

    let mut auditor = Session::patient(&sim, clients + 1);
    auditor.clean_up(&KeyRange::all()).await?;
    // Whatever still comes late has come by now.
    sim.sleep(CLEANED_UP).await;
    auditor.clean_up(&KeyRange::all()).await?;
    let check = sim.check();
    check.manners()?;
    check.transactions()
}

async fn client(mut session: Session, writes: bool, calls: u64) -> Verdict {
    for _ in 0..calls {
        session
            .once(async |session: &mut Session| {
                // What fails has failed; the next call tries something else.
                let _ = match writes {
                    true => write(session).await,
                    false => read(session).await,
                };
            })
            .await;
        session.pause().await;
    }
    session.recover(|session| Box::pin(read(session))).await
}

/// Writes a run of neighbours, some of them deletions.
async fn write(session: &mut Session) -> Result<()> {
    let (first, count) = (session.chance.below(KEYS), session.chance.within(1..=20));
    let txn = session.begin().await?;
    for number in first..first + count {
        let key = key(number % KEYS);
        match session.chance.below(4) {
            0 => txn.delete(&key).await?,
            _ => {
                let value = session.chance.number().to_string();
                txn.put(&key, value.into()).await?;
            }
        }
    }
    txn.commit().await
}

/// Reads parts of the data at one version, some of them twice.
async fn read(session: &mut Session) -> Result<()> {
    let sim = session.sim().clone();
    let txn = session.begin().await?;
    for _ in 0..session.chance.within(1..=4) {
        let chance = &mut session.chance;
        let (from, to) = (chance.below(KEYS), chance.below(KEYS));
        let range = match chance.below(4) {
            0 => KeyRange::all(),
            1 => KeyRange::from(key(from)..),
            2 => KeyRange::from(..key(to)),
            _ => KeyRange::from(key(from.min(to))..key(from.max(to))),
        };
        let limit = match chance.coin() {
            true => usize::MAX,
            false => chance.magnitude(1..=KEYS) as usize,
        };
        let page = chance.magnitude(1..=80) as u32;
        let reverse = chance.coin();
        for _ in 0..chance.within(1..=2) {
            match sim.may_cancel(txn.scan(&range, limit, reverse, page)).await {
                Some(rows) => drop(rows?),
                None => continue,
            }
            if chance.below(4) == 0 {
                let linger = chance.time(Duration::ZERO..=LINGER);
                sim.sleep(linger).await;
            }
        }
    }
    txn.commit().await
}
