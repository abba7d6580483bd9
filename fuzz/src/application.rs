//! An application: a few calls of the public client, as the first bytes of the input say. What
//! comes of them does not matter; that they end, without a panic, does.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tikv_core::{Config, Endpoints, KeyRange, RawClient, Result, TransactionClient};

use crate::script::Script;
use crate::server::KEYS;
use crate::world::World;

/// So many bytes of the input say what the application does.
const HEAD: usize = 16;
/// How long some applications wait for a call. The others leave it to the budgets of the protocol.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the application and the world that the input stands for.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let mut plan = script.split_off_head(HEAD);
    let world = World::new(script);
    let flags = plan.byte_or_zero();
    if flags & 1 == 1 {
        // Some runs meet their first fault before they are connected.
        world.begin_faults();
    }
    let timeout = (flags & 4 == 4).then_some(PATIENCE);
    let endpoints = Endpoints::new(world.pd(), false);
    if flags & 2 == 2 {
        let raw = RawClient::with_driver(world.clone(), endpoints, config());
        if let Ok(client) = world.block_on(raw) {
            world.begin_faults();
            let client = timeout.map_or(client.clone(), |timeout| client.with_timeout(timeout));
            world.block_on(raw_calls(client, plan));
        }
    } else {
        let connected = TransactionClient::with_driver(world.clone(), endpoints, config());
        if let Ok(client) = world.block_on(connected) {
            world.begin_faults();
            let client = timeout.map_or(client.clone(), |timeout| client.with_timeout(timeout));
            world.block_on(transactional_calls(client, plan));
        }
    }
}

/// Small batches and pages, so that a few keys make many requests.
fn config() -> Config {
    let mut config = Config::default();
    config.commit_batch_bytes = 3;
    config.scan_page_size = 2;
    config
}

type Client = TransactionClient<World>;

async fn transactional_calls(client: Client, mut plan: Script) {
    while let Some(call) = plan.byte() {
        let patience = match call >> 6 {
            3 => u64::from(plan.byte_or_zero()) % 24,
            _ => u64::MAX,
        };
        let outcome = match call % 8 {
            0 => cancelled_after(patience, transaction(&client, &mut plan)).await,
            1 => {
                // Two at the same time, over the same keys.
                let mut other = plan.split_off_head(6);
                let pair = both(
                    transaction(&client, &mut plan),
                    transaction(&client, &mut other),
                );
                cancelled_after(patience, pair).await
            }
            2 => cancelled_after(patience, transfer(&client)).await,
            3 => cancelled_after(patience, reads(&client, &mut plan)).await,
            4 => cancelled_after(patience, scans(&client, &mut plan)).await,
            5 => {
                let warm = async { client.warm_up("a".."e").await.map(drop) };
                cancelled_after(patience, warm).await
            }
            6 => cancelled_after(patience, client.ready(Duration::from_secs(5))).await,
            _ => {
                let at = async { client.current_timestamp().await.map(drop) };
                cancelled_after(patience, at).await
            }
        };
        look_at(outcome);
    }
    let closed = client.close(Duration::from_secs(120)).await;
    let _ = format!("{closed:?}");
}

async fn transaction(client: &Client, plan: &mut Script) -> Result<()> {
    let txn = client.begin().await?;
    let savepoint = txn.savepoint();
    for _ in 0..plan.byte_or_zero() % 6 {
        let key = *plan.pick(&KEYS);
        match plan.byte_or_zero() % 8 {
            0..=2 => txn.put(key, "value").await?,
            3 => txn.insert(key, "value").await?,
            4 => txn.delete(key).await?,
            5 => drop(txn.get_for_update(key).await?),
            6 => txn.lock_keys([key]).await?,
            _ => txn.rollback_to(savepoint)?,
        }
    }
    match plan.byte_or_zero() % 4 {
        0 => txn.rollback().await,
        _ => txn.commit().await.map(drop),
    }
}

async fn transfer(client: &Client) -> Result<()> {
    // It is repeated for ever on conflicts, and an oracle that lies can make all of them conflict.
    let client = client.with_timeout(PATIENCE);
    client
        .transact(async |txn| {
            let from = txn.get("a").await?;
            txn.put("a", from.as_deref().unwrap_or(b"1")).await?;
            txn.put("e", "2").await
        })
        .await
}

async fn reads(client: &Client, plan: &mut Script) -> Result<()> {
    let snapshot = client.snapshot().await?;
    let keys: Vec<&str> = (0..plan.byte_or_zero() % 5)
        .map(|_| *plan.pick(&KEYS))
        .collect();
    let asked = keys.len();
    let values = snapshot.batch_get(keys).await?;
    assert_eq!(values.len(), asked, "an answer per key");
    snapshot.get(*plan.pick(&KEYS)).await.map(drop)
}

async fn scans(client: &Client, plan: &mut Script) -> Result<()> {
    let txn = client.begin().await?;
    txn.put(*plan.pick(&KEYS), "own").await?;
    let limit = usize::from(plan.byte_or_zero()) % 8;
    let is_reverse = plan.byte_or_zero() & 1 == 1;
    let scan = txn.scan(KeyRange::all()).limit(limit);
    let scan = if is_reverse { scan.reverse() } else { scan };
    let rows = scan.into_vec().await?;
    assert!(rows.len() <= limit);
    Ok(())
}

async fn raw_calls(client: RawClient<World>, mut plan: Script) {
    while let Some(call) = plan.byte() {
        let key = *plan.pick(&KEYS);
        let patience = match call >> 6 {
            3 => u64::from(plan.byte_or_zero()) % 24,
            _ => u64::MAX,
        };
        let call = async {
            match call % 8 {
                0 => client.put(key, "value").await,
                1 => client.get(key).await.map(drop),
                2 => client.delete(key).await,
                3 => client.batch_put(KEYS.map(|key| (key, "value"))).await,
                4 => client
                    .batch_get(KEYS)
                    .await
                    .map(|values| assert_eq!(values.len(), KEYS.len())),
                5 => client
                    .scan("a".."e", 5)
                    .await
                    .map(|rows| assert!(rows.len() <= 5)),
                6 => client.scan_reverse(key.., 3).await.map(drop),
                _ => client.delete_range("b"..).await,
            }
        };
        let outcome = cancelled_after(patience, call).await;
        look_at(outcome);
    }
    client.close(Duration::from_secs(120)).await;
}

/// Runs two calls at the same time; the first error of the two.
async fn both(
    first: impl Future<Output = Result<()>>,
    second: impl Future<Output = Result<()>>,
) -> Result<()> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut of_first, mut of_second) = (None, None);
    poll_fn(|cx| {
        if of_first.is_none()
            && let Poll::Ready(result) = first.as_mut().poll(cx)
        {
            of_first = Some(result);
        }
        if of_second.is_none()
            && let Poll::Ready(result) = second.as_mut().poll(cx)
        {
            of_second = Some(result);
        }
        match (&of_first, &of_second) {
            (Some(first), Some(second)) => Poll::Ready(first.clone().and(second.clone())),
            _ => Poll::Pending,
        }
    })
    .await
}

/// Drops a call that is still pending after having been polled so often.
async fn cancelled_after<T>(polls: u64, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(|cx| match call.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// An error can be shown, and does not say two things at once.
fn look_at(outcome: Option<Result<()>>) {
    if let Some(Err(error)) = outcome {
        assert!(!error.to_string().is_empty());
        assert!(!(error.is_retryable() && error.is_undetermined()));
        let _ = (error.kind(), format!("{error:?}"));
    }
}
