//! Every kind of action against the served cluster.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use futures_util::future::join_all;
use tikv_core::driver::{Driver, Io, Operation, TransportError, Why};
use tikv_core::wire::{Command, Response};
use tikv_proto::kvrpcpb;

#[tokio::test]
async fn what_was_put_is_read_through_frames() {
    let cluster = serve().await;
    let driver = driver();
    let deadline = within(&driver, 10_000);
    let put = to_leader(&cluster, raw_put("k", "v"), deadline);
    assert!(matches!(
        driver.run(send(put)).await,
        Ok(Response::RawPut(_))
    ));
    let get = |key| driver.run(send(to_leader(&cluster, raw_get(key), deadline)));
    assert_eq!(value(get("k").await).as_deref(), Some("v"));
    assert_eq!(value(get("other").await), None);
    let stats = driver.stats();
    assert_eq!(
        (stats.requests, stats.answers, stats.in_flight, stats.queued),
        (3, 3, 0, 0)
    );
}

#[tokio::test]
async fn what_has_no_place_in_a_frame_goes_alone() {
    let cluster = serve().await;
    let driver = driver();
    let deadline = within(&driver, 10_000);
    let swap = kvrpcpb::RawCasRequest {
        key: "k".into(),
        value: "v".into(),
        previous_not_exist: true,
        ..Default::default()
    };
    let answer = driver
        .run(send(to_leader(&cluster, Command::from(swap), deadline)))
        .await;
    let Ok(Response::RawCompareAndSwap(answer)) = answer else {
        panic!("{answer:?}")
    };
    assert!(answer.succeed);
    let get = to_leader(&cluster, raw_get("k"), deadline);
    assert_eq!(value(driver.run(send(get)).await).as_deref(), Some("v"));

    for url in [
        cluster.pd_address().to_string(),
        format!("http://{}", cluster.pd_address()),
    ] {
        let answer = driver.run(send(to_pd(&url, get_members(), deadline))).await;
        let Ok(Response::GetMembers(answer)) = answer else {
            panic!("{answer:?}")
        };
        let urls = &answer.leader.unwrap().client_urls;
        assert_eq!(*urls, [format!("http://{}", cluster.pd_address())]);
    }
}

#[tokio::test]
async fn one_operation_may_have_many_requests_in_flight() {
    let cluster = serve().await;
    let driver = driver();
    let deadline = within(&driver, 10_000);
    let puts: Vec<_> = (0..1000)
        .map(|n| {
            to_leader(
                &cluster,
                raw_put(&format!("k{n}"), &format!("v{n}")),
                deadline,
            )
        })
        .collect();
    let gets: Vec<_> = (0..1000)
        .map(|n| to_leader(&cluster, raw_get(&format!("k{n}")), deadline))
        .collect();
    let all = Operation::new("all", |io: Io| async move {
        for answer in join_all(puts.into_iter().map(|rpc| io.send(rpc))).await {
            assert!(matches!(answer, Ok(Response::RawPut(_))), "{answer:?}");
        }
        join_all(gets.into_iter().map(|rpc| io.send(rpc))).await
    });
    for (n, answer) in driver.run(all).await.into_iter().enumerate() {
        assert_eq!(value(answer), Some(format!("v{n}")));
    }
    let stats = driver.stats();
    assert!(
        stats.frames < stats.requests / 4,
        "frames grow under load: {stats:?}"
    );
}

#[tokio::test]
async fn timestamps_grow_and_none_is_given_twice() {
    let cluster = serve().await;
    let driver = driver();
    let url = cluster.pd_address().to_string();
    let deadline = within(&driver, 10_000);
    let many = || join_all((0..200).map(|_| driver.run(timestamp(&url, deadline))));
    let first: BTreeSet<_> = many().await.into_iter().map(Result::unwrap).collect();
    let second: BTreeSet<_> = many().await.into_iter().map(Result::unwrap).collect();
    assert_eq!((first.len(), second.len()), (200, 200));
    assert!(first.last() < second.first());
    assert_eq!(driver.stats().timestamps_pending, 0);
}

#[tokio::test]
async fn sleeps_take_their_time_and_spawned_work_goes_on() {
    let driver = driver();
    let done = Arc::new(AtomicBool::new(false));
    let until = within(&driver, 20);
    let seen = done.clone();
    let nap = Operation::new("nap", move |io: Io| async move {
        io.spawn(Operation::new("child", move |io: Io| async move {
            io.sleep_until(until, Why::CallerDeadline).await;
            seen.store(true, Ordering::Release);
        }));
    });
    driver.run(nap).await;
    assert!(!done.load(Ordering::Acquire));
    assert_eq!(driver.stats().background, 1);
    eventually("the spawned operation ends", || {
        done.load(Ordering::Acquire)
    })
    .await;
    assert!(driver.now() >= until);
    eventually("and is forgotten", || driver.stats().background == 0).await;
}

#[tokio::test]
async fn a_server_that_knows_no_such_call_says_so() {
    let cluster = serve().await;
    let driver = driver();
    // A store's address taken for one of PD.
    let rpc = to_pd(
        &address(&cluster, 1),
        get_members(),
        within(&driver, 10_000),
    );
    let error = driver.run(send(rpc)).await.unwrap_err();
    assert!(
        matches!(error, TransportError::Status { code: 12, .. }),
        "{error}"
    );
}

#[test]
fn any_executor_may_poll_what_a_driver_runs() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let (cluster, driver) = runtime.block_on(async { (serve().await, driver()) });
    let deadline = driver.now() + Duration::from_secs(10);
    let url = cluster.pd_address().to_string();
    let get = to_leader(&cluster, raw_get("k"), deadline);
    let until = driver.now() + Duration::from_millis(2);
    let all = Operation::new("all", |io: Io| async move {
        io.sleep_until(until, Why::CallerDeadline).await;
        io.send(to_pd(&url, get_members(), deadline)).await?;
        io.send(get).await
    });
    assert_eq!(value(futures_executor::block_on(driver.run(all))), None);
}
