//! Every call ends by itself: where nothing answers for ever, the budget of its pauses is used up
//! and the error says by what.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tikv_core::{KeyRange, RawClient, Result, TransactionClient, wire};
use tikv_io_mock::sim::{Sim, SimDriver, Simulation};

type Raw = RawClient<SimDriver>;
type Transactional = TransactionClient<SimDriver>;
type Ends = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// What can be done, by name.
type Named<F> = (&'static str, F);
type Call<C> = fn(C) -> Ends;

/// More than any call may wait: a commit may try its prewrite and then its rollback.
const LONGEST: Duration = Duration::from_secs(300);

const RAW_CALLS: [Named<Call<Raw>>; 9] = [
    ("get", |raw| {
        Box::pin(async move { raw.get("a").await.map(drop) })
    }),
    ("put", |raw| {
        Box::pin(async move { raw.put("a", "1").await })
    }),
    ("delete", |raw| {
        Box::pin(async move { raw.delete("a").await })
    }),
    ("batch get", |raw| {
        Box::pin(async move { raw.batch_get(["a", "x"]).await.map(drop) })
    }),
    ("batch put", |raw| {
        Box::pin(async move { raw.batch_put([("a", "1"), ("x", "2")]).await })
    }),
    ("batch delete", |raw| {
        Box::pin(async move { raw.batch_delete(["a", "x"]).await })
    }),
    ("scan", |raw| {
        Box::pin(async move { raw.scan(KeyRange::all(), 9).await.map(drop) })
    }),
    ("scan reverse", |raw| {
        Box::pin(async move { raw.scan_reverse(KeyRange::all(), 9).await.map(drop) })
    }),
    ("delete range", |raw| {
        Box::pin(async move { raw.delete_range(KeyRange::all()).await })
    }),
];

const TRANSACTIONAL_CALLS: [Named<Call<Transactional>>; 5] = [
    ("get", |client| {
        Box::pin(async move { client.snapshot().await?.get("a").await.map(drop) })
    }),
    ("batch get", |client| {
        Box::pin(async move {
            let snapshot = client.snapshot().await?;
            snapshot.batch_get(["a", "x"]).await.map(drop)
        })
    }),
    ("scan", |client| {
        Box::pin(async move {
            let snapshot = client.snapshot().await?;
            snapshot.scan(KeyRange::all()).into_vec().await.map(drop)
        })
    }),
    ("scan reverse", |client| {
        Box::pin(async move {
            let snapshot = client.snapshot().await?;
            let scan = snapshot.scan(KeyRange::all()).reverse();
            scan.into_vec().await.map(drop)
        })
    }),
    ("commit", |client| {
        Box::pin(async move {
            let txn = client.begin().await?;
            txn.put("a", "1").await?;
            txn.put("x", "2").await?;
            txn.commit().await.map(drop)
        })
    }),
];

/// What breaks the cluster for good, PD excepted.
const DISASTERS: [Named<fn(&Sim)>; 2] = [
    ("no store is up", |sim| {
        sim.cluster(|cluster| {
            for store in 1..=3 {
                cluster.stop_store(store);
            }
        });
    }),
    ("no region has a leader", |sim| {
        sim.cluster(|cluster| {
            for region in cluster
                .regions()
                .iter()
                .map(|region| region.meta.id)
                .collect::<Vec<_>>()
            {
                cluster.depose_leader(region);
            }
        });
    }),
];

/// What a call comes to, if it ends in time.
async fn within(sim: &Sim, mut call: Ends) -> Option<Result<()>> {
    let mut limit = pin!(sim.sleep(LONGEST));
    poll_fn(|cx| match call.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending => limit.as_mut().poll(cx).map(|()| None),
    })
    .await
}

fn each<C: Clone + 'static>(
    calls: &[Named<Call<C>>],
    split_key: Bytes,
    connect: impl AsyncFn(&Sim) -> Result<C>,
    warm_up: impl AsyncFn(&C) -> Result<()>,
) {
    for (disaster, strike) in DISASTERS {
        for &(name, call) in calls {
            Simulation::seed(1)
                // Nobody repairs what is broken before there were faults.
                .calm()
                .split_keys([split_key.clone()])
                .plan(|plan| plan.stores = 3)
                .run(async |sim| {
                    let client = connect(&sim).await.expect("all is well");
                    warm_up(&client).await.expect("all is well");
                    strike(&sim);
                    let outcome = within(&sim, call(client)).await;
                    let outcome = outcome.unwrap_or_else(|| panic!("{name} while {disaster}"));
                    let error = outcome.expect_err("nothing can answer");
                    assert!(!error.to_string().is_empty());
                    Ok(())
                });
        }
    }
}

#[test]
fn raw_calls_end_when_nothing_ever_answers() {
    each(
        &RAW_CALLS,
        "m".into(),
        async |sim| sim.raw_client().await,
        async |raw| raw.get("a").await.map(drop),
    );
}

#[test]
fn transactional_calls_end_when_nothing_ever_answers() {
    each(
        &TRANSACTIONAL_CALLS,
        wire::encode(b"m"),
        async |sim| sim.client().await,
        async |client| client.warm_up(KeyRange::all()).await.map(drop),
    );
}
