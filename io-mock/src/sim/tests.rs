//! The simulator alone, with plain operations instead of a client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tikv_core::Key;
use tikv_core::driver::{Driver, Io, Operation, Why};

use super::plain::Plain;
use super::{Failure, FailureKind, Fault, Faults, Marks, Report, Sim, Simulation};
use crate::check::Violation;

/// Clients that put and get a few keys, all checks at the end.
async fn registers(sim: Sim) -> Result<(), Violation> {
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let sim = sim.clone();
            async move {
                let mut chance = sim.chance(&format!("client {client}"));
                let (driver, plain) = (sim.driver(), Plain::new(&sim));
                for n in 0..30 {
                    let key = Key::from(format!("k{}", chance.below(5)));
                    let invoked = sim.now();
                    if chance.coin() {
                        let value = format!("{client}.{n}").into();
                        let put = plain.put(key.clone(), Clone::clone(&value));
                        let id = sim
                            .history()
                            .lock()
                            .raw_write(client, invoked, key, Some(value));
                        if sim.may_cancel(driver.run(put)).await.is_some() {
                            sim.history().lock().raw_written(id, sim.now());
                        }
                    } else if let Some(value) =
                        sim.may_cancel(driver.run(plain.get(key.clone()))).await
                    {
                        sim.history()
                            .lock()
                            .raw_read(client, invoked, sim.now(), key, value);
                    }
                    sim.sleep(chance.time(Duration::ZERO..=Duration::from_millis(40)))
                        .await;
                }
            }
        })
        .map(|client| sim.spawn(client))
        .collect();
    for client in clients {
        client.await;
    }
    sim.check().raw_calls()
}

fn run(seed: u64) -> Result<Report, Box<Failure>> {
    let keys = (0..5).map(|n| format!("k{n}").into());
    Simulation::seed(seed)
        .faults(Faults::all())
        .split_keys(keys)
        .try_run(registers)
}

#[test]
fn one_seed_is_one_run() {
    for seed in 0..10 {
        let (first, second) = (run(seed).unwrap(), run(seed).unwrap());
        assert_eq!(first, second);
    }
    assert_ne!(run(1).unwrap().digest, run(2).unwrap().digest);
}

#[test]
fn registers_hold_under_every_fault() {
    let mut marks = Marks::default();
    for seed in 0..100 {
        let report = run(seed).unwrap_or_else(|failure| panic!("{failure}"));
        marks = marks.union(report.marks);
    }
    let missing: Vec<_> = marks.missing().map(|mark| mark.name()).collect();
    // What needs transactions is missed here; the network and the regions are not.
    for reached in [
        "reply lost",
        "never sent",
        "epoch not match",
        "store restarted",
    ] {
        assert!(!missing.contains(&reached), "{missing:?}");
    }
}

#[test]
fn time_is_virtual() {
    let started = std::time::Instant::now();
    let report = Simulation::seed(1).run(async |sim| {
        let nap = sim.spawn({
            let sim = sim.clone();
            async move { sim.sleep(Duration::from_secs(7_200)).await }
        });
        sim.sleep(Duration::from_secs(3_600)).await;
        nap.await;
        assert_eq!(sim.now().as_millis(), 7_200_000);
        Ok(())
    });
    assert_eq!(report.virtual_ms, 7_200_000);
    assert!(started.elapsed() < Duration::from_secs(60));
}

fn failure_of<F>(body: F) -> FailureKind
where
    F: AsyncFnOnce(Sim) -> Result<(), Violation>,
{
    Simulation::seed(3).try_run(body).unwrap_err().kind
}

#[test]
fn what_never_ends_is_a_failure() {
    let stuck = failure_of(async |sim| {
        std::future::pending::<()>().await;
        drop(sim);
        Ok(())
    });
    assert_eq!(stuck, FailureKind::Stuck);
    let a_call = failure_of(async |sim| {
        let call = Operation::new("call", |io: Io| async move {
            loop {
                io.sleep_until(io.now() + Duration::from_secs(1), Why::Readiness)
                    .await;
            }
        });
        sim.driver().run(call).await
    });
    assert_eq!(a_call, FailureKind::NeverEnds);
    let the_application = failure_of(async |sim| {
        loop {
            sim.sleep(Duration::from_secs(10)).await;
        }
    });
    assert_eq!(the_application, FailureKind::NeverEnds);
    let spins = failure_of(async |_| {
        std::future::poll_fn::<(), _>(|cx| {
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
        Ok(())
    });
    assert_eq!(spins, FailureKind::Spins);
}

#[test]
fn what_goes_wrong_inside_is_a_failure_that_says_how_to_repeat_it() {
    let panicked = failure_of(async |_| panic!("at the {}th", 3));
    assert_eq!(panicked, FailureKind::Panicked("at the 3th".into()));
    let failure = Simulation::seed(5)
        .faults(Faults::all())
        .replay("just replay 5")
        .try_run(async |_| Err(Violation::new("rule", "broken")))
        .unwrap_err();
    let text = failure.to_string();
    for part in [
        "seed 5: rule: broken",
        "stores",
        "latency",
        "replay: just replay 5",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn background_work_ends_with_its_client() {
    Simulation::seed(1).run(async |sim| {
        let ticks = Arc::new(AtomicU64::new(0));
        let driver = sim.driver();
        let counted = ticks.clone();
        driver.spawn(Operation::new("ticks", move |io: Io| async move {
            loop {
                io.sleep_until(io.now() + Duration::from_millis(10), Why::Heartbeat)
                    .await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }));
        sim.sleep(Duration::from_millis(105)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 10);
        let clone = driver.clone();
        drop(driver);
        sim.sleep(Duration::from_millis(100)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 20);
        drop(clone);
        sim.sleep(Duration::from_millis(100)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 20);
        Ok(())
    });
}

#[test]
fn what_is_spawned_at_the_very_end_runs() {
    Simulation::seed(1).run(async |sim| {
        let ran = Arc::new(AtomicU64::new(0));
        let (driver, counted) = (sim.driver(), ran.clone());
        let parent = Operation::new("parent", |io: Io| async move {
            io.spawn(Operation::new("child", move |_| async move {
                counted.fetch_add(1, Ordering::Relaxed);
            }));
        });
        driver.run(parent).await;
        sim.sleep(Duration::from_millis(1)).await;
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        Ok(())
    });
}

#[test]
fn a_crashed_client_does_nothing_more() {
    Simulation::seed(1).run(async |sim| {
        let (driver, plain) = (sim.driver(), Plain::new(&sim));
        driver.run(plain.put("k".into(), "1".into())).await;
        driver.spawn(plain.put("k".into(), "2".into()));
        driver.crash();
        sim.sleep(Duration::from_secs(5)).await;
        let reader = sim.driver();
        assert_eq!(reader.run(plain.get("k".into())).await, Some("1".into()));
        Ok(())
    });
}

#[test]
fn a_call_can_be_dropped_at_any_await() {
    for polls in 0..6 {
        Simulation::seed(1).run(async |sim| {
            let (driver, plain) = (sim.driver(), Plain::new(&sim));
            let put = driver.run(plain.put("k".into(), "1".into()));
            let ended = sim.cancel_after(polls, put).await.is_some();
            // A put takes three requests.
            assert_eq!(ended, polls >= 3);
            Ok(())
        });
    }
}

#[test]
fn only_allowed_faults_happen() {
    for seed in 0..20 {
        let only = Faults::none().with(Fault::Split);
        let report = Simulation::seed(seed).faults(only).run(registers);
        assert!(!report.marks.has(super::Mark::ReplyLost));
        assert!(!report.marks.has(super::Mark::LeaderMoved));
    }
}
