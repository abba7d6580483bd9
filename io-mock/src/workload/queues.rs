//! Queues: clients put items in at the end and take them out at the front, under locks that they
//! take before their commits, while others read and write the same keys optimistically. Each item
//! is given once, in the order in which it came.
//!
//! A queue is two counters, and an item for each number between them. Locks are taken in any order,
//! so that clients wait for each other, some of them in a circle.

mod circle;
mod locker;
mod optimist;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tikv_core::{Key, KeyRange, Value, wire as encoding};

use super::session::Session;
use super::wire::Speaker;
use super::{CLEANED_UP, under_faults};
use crate::check::queue::{Deed, in_order};
use crate::check::{Verdict, Violation};
use crate::sim::Sim;

const QUEUES_MAX: u64 = 3;
/// Regions may begin at so many items of each queue.
const ITEMS_SPLIT: u64 = 24;
/// So many tries in vain are no coincidence.
const TRIES_MAX: u32 = 200;

/// A queue's key.
fn head(queue: usize) -> Key {
    Key::from(format!("queue/{queue}/head"))
}

fn tail(queue: usize) -> Key {
    Key::from(format!("queue/{queue}/tail"))
}

fn item(queue: usize, number: u64) -> Key {
    Key::from(format!("queue/{queue}/item/{number:06}"))
}

fn everything() -> KeyRange {
    KeyRange::prefix("queue/")
}

/// Where regions may begin.
pub(super) fn split_keys() -> Vec<Bytes> {
    (0..QUEUES_MAX as usize)
        .flat_map(|queue| {
            let items = (0..ITEMS_SPLIT).map(move |number| item(queue, number));
            items.chain([head(queue), tail(queue)])
        })
        .map(|key| encoding::encode(&key))
        .collect()
}

/// Everything that was done, for the check at the end.
type Deeds = Arc<Mutex<Vec<Deed>>>;

/// Runs the queues and all their checks.
///
/// # Errors
///
/// The first violation.
pub async fn run(sim: Sim) -> Verdict {
    let chance = &mut sim.chance("queues");
    let queues = chance.within(1..=QUEUES_MAX) as usize;
    let clients = sim.at_most_clients(chance.within(2..=6) as u32);
    let calls = sim.at_most_operations(chance.magnitude(6..=30));
    let optimists = chance.below(3) as u32;
    let deeds = Deeds::default();
    open(&sim, queues).await?;

    under_faults(&sim, clients, |number| {
        let (sim, deeds) = (sim.clone(), deeds.clone());
        async move {
            if number > 1 && number <= optimists.min(clients - 1) + 1 {
                return optimist::run(Session::new(&sim, number), queues, calls, deeds).await;
            }
            locker::run(Speaker::new(&sim, number), queues, calls, deeds).await
        }
    })
    .await?;

    let cleaner = Speaker::patient(&sim, clients + 1);
    cleaner.clean_up(&everything()).await?;
    // Whatever still comes late has come by now.
    sim.sleep(CLEANED_UP).await;
    cleaner.clean_up(&everything()).await?;
    circle::run(&sim, [head(0), tail(0)]).await?;
    let left = what_is_left(&sim, queues).await?;
    let check = sim.check();
    check.manners()?;
    check.transactions()?;
    let deeds = deeds.lock().unwrap_or_else(PoisonError::into_inner);
    in_order(&deeds, &left, check.truth())
}

/// Makes the queues, before anything goes wrong.
async fn open(sim: &Sim, queues: usize) -> Verdict {
    let mut session = Session::patient(sim, 0);
    let txn = session.begin().await?;
    for queue in 0..queues {
        txn.put(&head(queue), "0".into()).await?;
        txn.put(&tail(queue), "0".into()).await?;
    }
    txn.commit().await?;
    Ok(())
}

/// What the queues hold at the end.
async fn what_is_left(sim: &Sim, queues: usize) -> Result<Vec<Vec<Value>>, Violation> {
    let mut session = Session::patient(sim, 0);
    let mut left = Vec::new();
    for queue in 0..queues {
        let txn = session.begin().await?;
        let range = KeyRange::prefix(format!("queue/{queue}/item/"));
        let rows = txn.scan(&range, usize::MAX, false, 64).await?;
        txn.rollback().await?;
        left.push(rows.into_iter().map(|(_, value)| value).collect());
    }
    Ok(left)
}

fn note(deeds: &Deeds, deed: Deed) {
    deeds
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(deed);
}
