//! Two clients that wait for each other, while nothing goes wrong: one is told so, and the other
//! gets its lock as soon as the first gives up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tikv_core::Key;

use crate::check::{Verdict, Violation};
use crate::sim::Sim;
use crate::workload::wire::pessimistic::{Held, Manner};
use crate::workload::wire::{Speaker, Stop, Task};

/// How long they would wait, which is as long as a store has anybody wait.
const WAIT: Duration = Duration::from_secs(1);
/// Where a message may take longer than this, the wait may be over before the circle is closed.
const LATENCY_MAX: Duration = Duration::from_millis(20);
/// Longer than any wait or clean-up here.
const TTL: Duration = Duration::from_secs(60);

/// Has them wait, each with a lock that the other one wants.
///
/// # Errors
///
/// Nobody was told, or the other one was not woken.
pub(super) async fn run(sim: &Sim, keys: [Key; 2]) -> Verdict {
    if sim.plan().latency.max > LATENCY_MAX {
        return Ok(());
    }
    let ready = Arc::new(AtomicU32::new(0));
    let [one, other] = keys;
    let both = [[one.clone(), other.clone()], [other, one]];
    let tasks = [(0, 101), (1, 102)].map(|(half, number)| {
        let (sim, ready, keys) = (sim.clone(), ready.clone(), both[half].clone());
        let shared = sim.clone();
        shared.spawn(async move { half_of(&Speaker::patient(&sim, number), keys, &ready).await })
    });
    let mut ended = Vec::new();
    for task in tasks {
        ended.push(task.await?);
    }
    let told = ended.iter().filter(|one| matches!(one, Ended::Refused));
    let told = told.count();
    if told != 1 {
        let detail = format!("of two that wait for each other, {told} were told");
        return Err(Violation::new("deadlocks are found", detail));
    }
    for one in ended {
        if let Ended::Locked(after) = one
            && after > WAIT * 9 / 10
        {
            let detail = format!("a lock that was given back was got {after:?} later");
            return Err(Violation::new("who waits is woken", detail));
        }
    }
    Ok(())
}

enum Ended {
    /// It was told that they wait for each other.
    Refused,
    /// It gave in.
    Blocked,
    /// It got its second lock, so long after it had asked.
    Locked(Duration),
}

async fn half_of(speaker: &Speaker, keys: [Key; 2], ready: &AtomicU32) -> Result<Ended, Violation> {
    let unexpected = |what: &str, stop: Stop| {
        Violation::new(
            "recovery",
            format!("{what} though nothing goes wrong: {stop:?}"),
        )
    };
    let begun = speaker.run("begin", |task: Task| async move { task.timestamp().await });
    let start_ts = begun
        .await
        .map_err(|stop| unexpected("no timestamp", stop))?;
    let mut held = Held::new(speaker, start_ts, TTL);
    let manner = Manner {
        force: start_ts.as_u64().is_multiple_of(2),
        wait_ms: WAIT.as_millis() as i64,
        values: false,
        existence: false,
        only_if_exists: false,
        must_be_new: false,
    };
    let [first, second] = keys;
    if let Some(Err(stop)) = held.lock(speaker, &[first], manner).await {
        return Err(unexpected("no first lock", stop));
    }
    ready.fetch_add(1, Ordering::Relaxed);
    while ready.load(Ordering::Relaxed) < 2 {
        speaker.sim().sleep(Duration::from_millis(1)).await;
    }
    let asked = speaker.sim().now();
    let ended = match held.lock(speaker, &[second], manner).await {
        Some(Err(Stop::Deadlock)) => Ok(Ended::Refused),
        Some(Err(Stop::Blocked)) => Ok(Ended::Blocked),
        Some(Err(stop)) => Err(unexpected("no second lock", stop)),
        Some(Ok(_)) | None => Ok(Ended::Locked(speaker.sim().now().since(asked))),
    };
    let back = held.roll_back(speaker).await;
    back.map_err(|stop| unexpected("a lock is not given back", stop))?;
    ended
}
