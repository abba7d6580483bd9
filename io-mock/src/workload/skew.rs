//! Pairs of lamps of which one must stay on: whoever sees both on may turn one off. Two that do so
//! at once, each another one, leave both off: write skew, which snapshot isolation allows. Pairs
//! whose switcher also locks the lamp that it leaves on must never end so.

use bytes::Bytes;
use tikv_core::{Key, KeyRange, Result, wire};

use super::session::Session;
use super::{CLEANED_UP, under_faults};
use crate::check::{Verdict, Violation, skew};
use crate::sim::{Mark, Sim};

const PAIRS_MAX: u64 = 6;
const ON: &str = "on";
const OFF: &str = "off";

/// A pair of lamps. Every other one is switched by those who lock what they leave alone.
#[derive(Clone, Copy, Debug)]
struct Pair(u64);

impl Pair {
    fn lamps(self) -> [Key; 2] {
        // Far from each other, so that they often stand in different regions.
        ["left", "right"].map(|side| Key::from(format!("lamp/{side}/{:02}", self.0)))
    }

    fn is_locked(self) -> bool {
        self.0.is_multiple_of(2)
    }
}

fn lamps() -> KeyRange {
    KeyRange::prefix("lamp/")
}

/// Where regions may begin.
pub(super) fn split_keys() -> Vec<Bytes> {
    (0..PAIRS_MAX)
        .flat_map(|number| Pair(number).lamps())
        .map(|key| wire::encode(&key))
        .collect()
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Size {
    pairs: u64,
    clients: u32,
    calls: u64,
}

/// Runs the workload and all its checks.
///
/// # Errors
///
/// The first violation.
pub async fn run(sim: Sim) -> Verdict {
    let chance = &mut sim.chance("skew");
    let size = Size {
        pairs: chance.within(1..=PAIRS_MAX),
        clients: sim.at_most_clients(chance.within(2..=6) as u32),
        calls: sim.at_most_operations(chance.magnitude(8..=40)),
    };
    turn_all_on(&sim, size).await?;
    under_faults(&sim, size.clients, |number| {
        client(Session::new(&sim, number), size)
    })
    .await?;

    let mut auditor = Session::patient(&sim, size.clients + 1);
    auditor
        .recover(|session| Box::pin(lock_all(session, size)))
        .await?;
    // Whatever still comes late has come by now.
    sim.sleep(CLEANED_UP).await;
    auditor
        .recover(|session| Box::pin(lock_all(session, size)))
        .await?;
    auditor.clean_up(&lamps()).await?;
    let check = sim.check();
    check.manners()?;
    check.transactions()?;
    for pair in (0..size.pairs).map(Pair) {
        let both_off = skew::both(check.truth(), &pair.lamps(), &OFF.into());
        match both_off {
            None => {}
            Some(_) if !pair.is_locked() => sim.mark(Mark::WriteSkew),
            Some(ts) => {
                let detail = format!("{:?} are both off at {ts}", pair.lamps());
                return Err(Violation::new("locked keys", detail));
            }
        }
    }
    Ok(())
}

async fn turn_all_on(sim: &Sim, size: Size) -> Verdict {
    let mut session = Session::patient(sim, 0);
    let txn = session.begin().await?;
    for key in (0..size.pairs).flat_map(|number| Pair(number).lamps()) {
        txn.put(&key, ON.into()).await?;
    }
    txn.commit().await?;
    Ok(())
}

/// Meets every lock that is left: readers pass those that protect a key only.
async fn lock_all(session: &mut Session, size: Size) -> Result<()> {
    let txn = session.begin().await?;
    for key in (0..size.pairs).flat_map(|number| Pair(number).lamps()) {
        txn.lock(&key).await?;
    }
    txn.commit().await
}

async fn client(mut session: Session, size: Size) -> Verdict {
    for _ in 0..size.calls {
        session
            .once(async |session: &mut Session| {
                // What fails has failed; the next call tries something else.
                let _ = switch(session, size).await;
            })
            .await;
        session.pause().await;
    }
    session
        .recover(|session| Box::pin(switch(session, size)))
        .await
}

/// Turns one lamp off if both are on, and the dark one on otherwise.
async fn switch(session: &mut Session, size: Size) -> Result<()> {
    let pair = Pair(session.chance.below(size.pairs));
    let first = session.chance.index(2);
    let sim = session.sim().clone();
    let txn = session.begin().await?;
    let lamps = pair.lamps();
    let Some(seen) = sim.may_cancel(txn.batch_get(&lamps)).await else {
        return txn.rollback().await;
    };
    let seen = seen?;
    if session.chance.coin() {
        session.pause().await;
    }
    let dark = seen.iter().position(|lamp| *lamp != Some(ON.into()));
    let (switched, to) = match dark {
        None => (first, OFF),
        Some(dark) => (dark, ON),
    };
    txn.put(&lamps[switched], to.into()).await?;
    if pair.is_locked() {
        txn.lock(&lamps[1 - switched]).await?;
    }
    txn.commit().await
}
