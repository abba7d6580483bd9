//! Servers that are not there, do not answer, or go away.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::*;
use tikv_core::driver::{Driver, TransportError};
use tikv_core::wire::Response;
use tikv_io_tokio::{IoConfig, TokioDriver};
use tokio::task::JoinSet;

#[tokio::test]
async fn an_address_where_nobody_listens_is_an_error_at_once() {
    let driver = driver();
    let nowhere = nowhere().await;
    let began = Instant::now();
    let deadline = within(&driver, 10_000);
    for operation in [
        to_address(&nowhere, deadline),
        to_pd(&nowhere, get_members(), deadline),
    ] {
        let error = driver.run(send(operation)).await.unwrap_err();
        assert!(matches!(error, TransportError::Connect { .. }), "{error:?}");
        assert!(!error.may_have_been_sent());
        assert!(error.to_string().contains(&nowhere), "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
    }
    let error = driver.run(timestamp(&nowhere, deadline)).await.unwrap_err();
    assert!(matches!(error, TransportError::Connect { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn what_is_no_address_is_an_error_that_says_so() {
    let driver = driver();
    for nonsense in ["", "a b", "http://"] {
        let rpc = to_pd(nonsense, get_members(), within(&driver, 10_000));
        let error = driver.run(send(rpc)).await.unwrap_err();
        assert!(matches!(error, TransportError::Connect { .. }), "{error:?}");
    }
    let rpc = to_pd(
        "https://127.0.0.1:1",
        get_members(),
        within(&driver, 10_000),
    );
    let error = driver.run(send(rpc)).await.unwrap_err();
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_costs_no_more_than_the_deadline() {
    let driver = driver();
    let (mute, _task) = mute().await;
    let began = Instant::now();
    let deadline = within(&driver, 100);
    let (store, pd, oracle) = tokio::join!(
        driver.run(send(to_address(&mute, deadline))),
        driver.run(send(to_pd(&mute, get_members(), deadline))),
        driver.run(timestamp(&mute, deadline)),
    );
    for error in [store.unwrap_err(), pd.unwrap_err(), oracle.unwrap_err()] {
        assert!(
            matches!(error, TransportError::Deadline { sent: true, .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(&mute), "{error}");
    }
    let took = began.elapsed();
    assert!(
        (Duration::from_millis(100)..Duration::from_secs(2)).contains(&took),
        "{took:?}"
    );
    assert_eq!(driver.stats().queued, 0);
}

#[tokio::test]
async fn a_deadline_that_has_passed_sends_nothing() {
    let cluster = serve().await;
    let driver = driver();
    let rpc = to_leader(&cluster, raw_put("k", "v"), driver.now());
    let error = driver.run(send(rpc)).await.unwrap_err();
    assert!(
        matches!(error, TransportError::Deadline { sent: false, .. }),
        "{error:?}"
    );
    assert_eq!(driver.stats().requests, 0);
}

#[tokio::test]
async fn later_deadlines_do_not_hide_earlier_ones() {
    let driver = driver();
    let (mute, _task) = mute().await;
    let mut all = JoinSet::new();
    for millis in [400, 50, 300, 100, 200] {
        let (driver, mute) = (driver.clone(), mute.clone());
        all.spawn(async move {
            let deadline = within(&driver, millis);
            driver
                .run(send(to_address(&mute, deadline)))
                .await
                .unwrap_err();
            let late = driver.now() - deadline;
            assert!(
                late < Duration::from_millis(500),
                "{late:?} after {millis} ms"
            );
            millis
        });
    }
    assert_eq!(all.join_all().await, [50, 100, 200, 300, 400]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_killed_and_comes_back_is_found_again() {
    let cluster = serve().await;
    let driver = driver();
    let (stop, succeeded, failed) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut callers = JoinSet::new();
    for _ in 0..64 {
        let (cluster, driver) = (cluster.clone(), driver.clone());
        let (stop, succeeded, failed) = (stop.clone(), succeeded.clone(), failed.clone());
        callers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let rpc = to_leader(&cluster, raw_get("k"), within(&driver, 5_000));
                match driver.run(send(rpc)).await {
                    Ok(Response::RawGet(_)) => succeeded.fetch_add(1, Ordering::Relaxed),
                    Ok(other) => panic!("{other:?}"),
                    Err(TransportError::Deadline { .. }) => panic!("a broken stream fails at once"),
                    Err(_) => {
                        // What the core does, too: it waits before it tries again.
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        failed.fetch_add(1, Ordering::Relaxed)
                    }
                };
            }
        });
    }
    let progress = |counter: &Arc<AtomicUsize>| {
        let (counter, goal) = (counter.clone(), counter.load(Ordering::Relaxed) + 200);
        move || counter.load(Ordering::Relaxed) >= goal
    };
    for _ in 0..3 {
        eventually("requests are answered", progress(&succeeded)).await;
        cluster.stop_store(1).await;
        eventually("requests fail", progress(&failed)).await;
        cluster.start_store(1).await.unwrap();
        eventually("requests are answered again", progress(&succeeded)).await;
    }
    stop.store(true, Ordering::Relaxed);
    callers.join_all().await;
    let stats = driver.stats();
    assert_eq!((stats.queued, stats.in_flight), (0, 0), "{stats:?}");
}

#[tokio::test]
async fn an_oracle_that_is_killed_and_comes_back_is_found_again() {
    let cluster = serve().await;
    let driver = driver();
    let url = cluster.pd_address().to_string();
    let first = driver
        .run(timestamp(&url, within(&driver, 5_000)))
        .await
        .unwrap();
    cluster.stop_pd().await;
    let error = driver
        .run(timestamp(&url, within(&driver, 5_000)))
        .await
        .unwrap_err();
    assert!(
        !matches!(error, TransportError::Deadline { .. }),
        "{error:?}"
    );
    cluster.start_pd().await.unwrap();
    let second = driver
        .run(timestamp(&url, within(&driver, 5_000)))
        .await
        .unwrap();
    assert!(second > first);
}

#[tokio::test]
async fn idle_connections_close_and_open_again() {
    let cluster = serve().await;
    let mut config = IoConfig::default();
    config.idle_timeout = Duration::from_millis(20);
    let driver = TokioDriver::new(config).unwrap();
    let url = cluster.pd_address().to_string();
    for _ in 0..3 {
        let deadline = within(&driver, 5_000);
        let get = to_leader(&cluster, raw_get("k"), deadline);
        assert_eq!(value(driver.run(send(get)).await), None);
        driver.run(timestamp(&url, deadline)).await.unwrap();
        assert!(driver.stats().tasks > 0);
        eventually("nothing is left open", || {
            let stats = driver.stats();
            stats.stores == 0 && stats.tasks == 0
        })
        .await;
    }
}
