//! A client of the queues that takes no locks before its commits.

use tikv_core::{Result, Value};

use super::{Deeds, everything, head, item, note, tail};
use crate::check::queue::Deed;
use crate::check::{Verdict, sum};
use crate::workload::session::Session;

/// A client without locks before its commits.
pub(super) async fn run(mut session: Session, queues: usize, calls: u64, deeds: Deeds) -> Verdict {
    for n in 0..calls {
        let deeds = deeds.clone();
        session
            .once(async |session: &mut Session| {
                // What fails has failed; the next call tries something else.
                let _ = if session.chance.below(3) == 0 {
                    look(session).await
                } else {
                    try_luck(session, queues, n, &deeds).await
                };
            })
            .await;
        session.pause().await;
    }
    session.recover(|session| Box::pin(look(session))).await
}

/// Reads everything.
async fn look(session: &mut Session) -> Result<()> {
    let sim = session.sim().clone();
    let txn = session.begin().await?;
    let range = everything();
    match sim
        .may_cancel(txn.scan(&range, usize::MAX, false, 16))
        .await
    {
        None => Ok(()),
        Some(rows) => rows.map(|_| ()),
    }
}

/// Puts an item in or takes one out, if nobody else does meanwhile.
async fn try_luck(session: &mut Session, queues: usize, n: u64, deeds: &Deeds) -> Result<()> {
    let queue = session.chance.index(queues);
    let taking = session.chance.coin();
    let value = Value::from(format!("{}.{n}", session.number()));
    let txn = session.begin().await?;
    let mut deed = Deed {
        start_ts: txn.inner().start_timestamp(),
        ..Deed::default()
    };
    let counters = txn.batch_get(&[head(queue), tail(queue)]).await?;
    let counters: Vec<u64> = counters.iter().flatten().filter_map(sum::number).collect();
    let [first, end] = counters[..] else {
        return txn.rollback().await;
    };
    if taking {
        let Some(value) = txn.get(&item(queue, first)).await? else {
            return txn.rollback().await;
        };
        txn.delete(&item(queue, first)).await?;
        txn.put(&head(queue), (first + 1).to_string().into())
            .await?;
        deed.taken.push((queue, value));
    } else {
        txn.insert(&item(queue, end), value.clone()).await?;
        txn.put(&tail(queue), (end + 1).to_string().into()).await?;
        deed.put.push((queue, value));
    }
    note(deeds, deed);
    txn.commit().await
}
