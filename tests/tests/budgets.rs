//! Every call ends by itself: where nothing answers for ever, the budget of its pauses is used up
//! and the error says by what.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tikv_core::{KeyRange, RawClient, Result, TransactionClient, wire};
use tikv_io_mock::cluster::Cluster;
use tikv_io_mock::cluster::injection::Injection;
use tikv_io_mock::sim::{Sim, SimDriver, Simulation};
use tikv_proto::{errorpb, metapb};

type Raw = RawClient<SimDriver>;
type Transactional = TransactionClient<SimDriver>;
type Ends = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// What can be done, by name.
type Named<F> = (&'static str, F);
type Call<C> = fn(C) -> Ends;

/// More than any call may wait: for busy stores ten minutes, and a commit may try its prewrite and
/// then its rollback.
const LONGEST: Duration = Duration::from_secs(1_500);

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

type Strike = Box<dyn Fn(&mut Cluster)>;

/// What breaks the cluster for good, PD excepted.
fn disasters() -> Vec<(String, Strike)> {
    let mut disasters: Vec<(String, Strike)> = vec![
        (
            "no store is up".into(),
            Box::new(|cluster| (1..=3).for_each(|store| cluster.stop_store(store))),
        ),
        (
            "no region has a leader".into(),
            Box::new(|cluster| {
                let regions: Vec<_> = cluster.regions().ids().collect();
                for region in regions {
                    cluster.depose_leader(region);
                }
            }),
        ),
    ];
    for refuse in REFUSALS {
        let said = format!("{:?}", refuse(&metapb::Region::default()));
        let name = format!("every store says {}", said.replace("None", "-"));
        let strike: Strike = Box::new(move |cluster| {
            let regions: Vec<_> = cluster.regions().iter().map(|r| r.meta.clone()).collect();
            for meta in regions {
                cluster.inject(Injection {
                    region: Some(meta.id),
                    times: u32::MAX,
                    ..Injection::once(refuse(&meta))
                });
            }
        });
        disasters.push((name, strike));
    }
    disasters
}

/// What stores may say of a region, each true for a moment and none for ever.
const REFUSALS: &[fn(&metapb::Region) -> errorpb::Error] = &[
    |region| errorpb::Error {
        epoch_not_match: Some(errorpb::EpochNotMatch {
            current_regions: vec![region.clone()],
        }),
        ..Default::default()
    },
    |region| errorpb::Error {
        epoch_not_match: Some(errorpb::EpochNotMatch {
            current_regions: vec![metapb::Region {
                region_epoch: region.region_epoch.map(|epoch| metapb::RegionEpoch {
                    version: epoch.version + 1,
                    ..epoch
                }),
                ..region.clone()
            }],
        }),
        ..Default::default()
    },
    |region| errorpb::Error {
        epoch_not_match: Some(errorpb::EpochNotMatch {
            current_regions: vec![metapb::Region {
                region_epoch: Some(metapb::RegionEpoch::default()),
                ..region.clone()
            }],
        }),
        ..Default::default()
    },
    |region| errorpb::Error {
        epoch_not_match: Some(errorpb::EpochNotMatch {
            current_regions: vec![metapb::Region {
                id: region.id + 1_000,
                ..region.clone()
            }],
        }),
        ..Default::default()
    },
    |_| errorpb::Error {
        epoch_not_match: Some(Default::default()),
        ..Default::default()
    },
    |region| errorpb::Error {
        not_leader: Some(errorpb::NotLeader {
            region_id: region.id,
            leader: region.peers.last().copied(),
        }),
        ..Default::default()
    },
    |_| errorpb::Error {
        not_leader: Some(Default::default()),
        ..Default::default()
    },
    |region| errorpb::Error {
        region_not_found: Some(errorpb::RegionNotFound {
            region_id: region.id,
        }),
        ..Default::default()
    },
    |_| errorpb::Error {
        key_not_in_region: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        server_is_busy: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        server_is_busy: Some(errorpb::ServerIsBusy {
            estimated_wait_ms: 1,
            ..Default::default()
        }),
        ..Default::default()
    },
    |_| errorpb::Error {
        server_is_busy: Some(errorpb::ServerIsBusy {
            reason: "deadline is exceeded".into(),
            ..Default::default()
        }),
        ..Default::default()
    },
    |_| errorpb::Error {
        stale_command: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        store_not_match: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        raft_entry_too_large: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        max_timestamp_not_synced: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        read_index_not_ready: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        proposal_in_merging_mode: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        data_is_not_ready: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        region_not_initialized: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        disk_full: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        recovery_in_progress: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        flashback_in_progress: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        flashback_not_prepared: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        is_witness: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        mismatch_peer_id: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        bucket_version_not_match: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        undetermined_result: Some(Default::default()),
        ..Default::default()
    },
    |_| errorpb::Error {
        message: "Deadline is exceeded".into(),
        ..Default::default()
    },
    |_| errorpb::Error {
        message: "what no client knows".into(),
        ..Default::default()
    },
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
    for (disaster, strike) in disasters() {
        for &(name, call) in calls {
            let report = Simulation::seed(1)
                // Nobody repairs what is broken before there were faults.
                .calm()
                .split_keys([split_key.clone()])
                .plan(|plan| plan.stores = 3)
                .run(async |sim| {
                    let client = connect(&sim).await.expect("all is well");
                    warm_up(&client).await.expect("all is well");
                    sim.cluster(&strike);
                    let outcome = within(&sim, call(client)).await;
                    let outcome = outcome.unwrap_or_else(|| panic!("{name} while {disaster}"));
                    let Err(error) = outcome else {
                        panic!("{name} succeeds while {disaster}");
                    };
                    assert!(!error.to_string().is_empty());
                    Ok(())
                });
            let requests = report.stats.rpcs;
            assert!(requests < 3_000, "{requests} for {name} while {disaster}");
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
