//! Futures dropped at any point, drivers closed and dropped: nothing is left behind.

mod common;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use common::*;
use futures_util::future::join_all;
use tikv_core::driver::{Driver, Io, Operation, TransportError, Why};
use tikv_io_tokio::TokioDriver;

/// Polls a future so often, then drops it.
async fn poll_and_drop<F: Future>(times: usize, future: F) {
    let mut future = Box::pin(future);
    for _ in 0..times {
        let over = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await;
        if over {
            return;
        }
        tokio::task::yield_now().await;
    }
}

fn is_quiet(driver: &TokioDriver) -> bool {
    let stats = driver.stats();
    (
        stats.queued,
        stats.in_flight,
        stats.timestamps_pending,
        stats.background,
    ) == (0, 0, 0, 0)
}

#[tokio::test]
async fn a_future_dropped_at_any_point_leaves_nothing() {
    let cluster = serve().await;
    let driver = driver();
    let url = cluster.pd_address().to_string();
    for polls in 0..200 {
        let deadline = within(&driver, 10_000);
        let gets: Vec<_> = (0..3)
            .map(|_| to_leader(&cluster, raw_get("k"), deadline))
            .collect();
        let members = to_pd(&url, get_members(), deadline);
        let request = url.clone();
        let until = within(&driver, 1);
        let all = Operation::new("all", |io: Io| async move {
            join_all(gets.into_iter().map(|rpc| io.send(rpc))).await;
            let request = tikv_core::driver::TsoRequest {
                url: request.into(),
                cluster_id: 1,
                deadline,
            };
            io.timestamp(request).await.unwrap();
            io.sleep_until(until, Why::CallerDeadline).await;
            io.send(members).await.unwrap();
        });
        poll_and_drop(polls, driver.run(all)).await;
    }
    eventually("nothing is queued or in flight", || is_quiet(&driver)).await;
    let get = to_leader(&cluster, raw_get("k"), within(&driver, 10_000));
    assert_eq!(value(driver.run(send(get)).await), None);
}

#[tokio::test]
async fn what_was_not_sent_is_taken_back() {
    let driver = driver();
    let (mute, _task) = mute().await;
    for polls in 0..4 {
        let rpc = to_address(&mute, within(&driver, 60_000));
        poll_and_drop(polls, driver.run(send(rpc))).await;
    }
    let stats = driver.stats();
    assert_eq!(stats.queued, 0, "{stats:?}");
}

#[tokio::test]
async fn close_waits_for_the_background_and_then_for_nothing() {
    let cluster = serve().await;
    let driver = driver();
    let ended = Arc::new(AtomicUsize::new(0));
    for millis in [10, 60_000] {
        let (ended, until) = (ended.clone(), within(&driver, millis));
        driver.spawn(Operation::new("sleeper", move |io: Io| async move {
            io.sleep_until(until, Why::Heartbeat).await;
            ended.fetch_add(1, Ordering::Relaxed);
        }));
    }
    let get = to_leader(&cluster, raw_get("k"), within(&driver, 10_000));
    assert_eq!(value(driver.run(send(get)).await), None);

    assert_eq!(driver.close(Duration::from_millis(100)).await, 1);
    assert_eq!(ended.load(Ordering::Relaxed), 1);
    let stats = driver.stats();
    assert_eq!(
        (stats.stores, stats.tasks, stats.background),
        (0, 0, 0),
        "{stats:?}"
    );

    let deadline = within(&driver, 10_000);
    let url = cluster.pd_address().to_string();
    let unsent = TransportError::Closed { sent: false };
    let get = to_leader(&cluster, raw_get("k"), deadline);
    assert_eq!(driver.run(send(get)).await.unwrap_err(), unsent);
    let members = to_pd(&url, get_members(), deadline);
    assert_eq!(driver.run(send(members)).await.unwrap_err(), unsent);
    assert_eq!(
        driver.run(timestamp(&url, deadline)).await.unwrap_err(),
        unsent
    );
    assert_eq!(
        driver.close(Duration::from_secs(60)).await,
        0,
        "closing again is nothing"
    );
}

#[tokio::test]
async fn close_fails_what_is_in_flight() {
    let driver = driver();
    let (mute, _task) = mute().await;
    let waiting: Vec<_> = (0..3)
        .map(|n| {
            let driver = driver.clone();
            let mute = mute.clone();
            tokio::spawn(async move {
                let deadline = within(&driver, 60_000);
                match n {
                    0 => driver
                        .run(send(to_address(&mute, deadline)))
                        .await
                        .map(drop),
                    1 => driver.run(timestamp(&mute, deadline)).await.map(drop),
                    _ => driver
                        .run(send(to_pd(&mute, get_members(), deadline)))
                        .await
                        .map(drop),
                }
            })
        })
        .collect();
    eventually("both are under way", || {
        let stats = driver.stats();
        stats.in_flight == 1 && stats.timestamps_pending == 1
    })
    .await;
    driver.close(Duration::ZERO).await;
    for waiting in waiting {
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error, TransportError::Closed { sent: true });
    }
}

#[tokio::test]
async fn when_the_last_clone_is_dropped_every_task_stops() {
    let cluster = serve().await;
    let get = |driver: &TokioDriver| to_leader(&cluster, raw_get("k"), within(driver, 10_000));
    let alive = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = alive();
    let driver = driver();
    driver.run(send(get(&driver))).await.unwrap();
    driver
        .run(timestamp(
            &cluster.pd_address().to_string(),
            within(&driver, 10_000),
        ))
        .await
        .unwrap();
    let until = within(&driver, 60_000);
    driver.spawn(Operation::new("sleeper", move |io: Io| async move {
        io.sleep_until(until, Why::Heartbeat).await;
    }));
    let clone = driver.clone();
    drop(driver);
    clone.run(send(get(&clone))).await.unwrap();
    assert!(alive() > before);
    drop(clone);
    eventually("no task of the driver is left", || alive() == before).await;
}
