//! What a client makes of a commit that a leader calls stale. A leader that steps down says so of
//! everything it has proposed, and the next one may have it: whoever stops asking then does not know
//! whether the transaction is committed.

use std::time::Duration;

use bytes::Bytes;
use tikv_io_mock::cluster::injection::Injection;
use tikv_io_mock::cluster::region::{RegionId, StoreId};
use tikv_io_mock::cluster::region_errors::stale_command;
use tikv_io_mock::cluster::write_end::{End, WritePoint};
use tikv_io_mock::sim::{Sim, Simulation};

/// Has every request of this name called stale, and commits with less patience than that takes.
async fn commit_under(sim: &Sim, command: &'static str) -> tikv_core::Error {
    let client = sim.client().await.expect("all is well");
    let client = client.with_timeout(Duration::from_secs(2));
    let txn = client.begin().await.expect("all is well");
    txn.put("k", "v").await.expect("nothing is sent");
    sim.cluster(|cluster| {
        cluster.inject(Injection {
            command: Some(command),
            times: u32::MAX,
            ..Injection::once(stale_command())
        });
    });
    txn.commit().await.expect_err("nobody takes it")
}

#[test]
fn a_commit_that_stays_stale_is_undetermined() {
    Simulation::seed(1).calm().run(async |sim| {
        let error = commit_under(&sim, "Commit").await;
        assert!(error.is_undetermined(), "{error}");
        Ok(())
    });
}

#[test]
fn a_prewrite_that_stays_stale_is_a_failure() {
    Simulation::seed(1).calm().run(async |sim| {
        let error = commit_under(&sim, "Prewrite").await;
        assert!(!error.is_undetermined(), "{error}");
        Ok(())
    });
}

/// Has the leader of the first region step down over the commit of the transaction that is about to
/// lock its keys.
async fn end_the_commit(sim: &Sim, point: WritePoint) -> (RegionId, StoreId) {
    let all = Bytes::new();
    while sim.cluster(|cluster| cluster.engine().locks(&all, &all).next().is_none()) {
        sim.sleep(Duration::from_millis(1)).await;
    }
    sim.cluster(|cluster| {
        let region = cluster.regions().iter().next().expect("there is one");
        let (id, leader) = (region.meta.id, region.leader.expect("it is led"));
        cluster.end_next_write(leader, End::StepDown, point);
        (id, leader)
    })
}

#[test]
fn a_commit_that_a_deposed_leader_called_stale_is_undetermined_without_another_answer() {
    for (point, held) in [
        (WritePoint::Applied, Some("1")),
        (WritePoint::Proposed { survives: true }, Some("1")),
        (WritePoint::Proposed { survives: false }, None),
    ] {
        Simulation::seed(1).calm().run(async |sim| {
            let client = sim.client().await.expect("all is well");
            let txn = client.begin().await.expect("all is well");
            txn.set_timeout(Duration::from_secs(10));
            txn.put("a", "1").await.expect("it is only buffered");
            let commit = sim.spawn(txn.commit());
            // After that nobody leads for longer than the transaction waits.
            let (region, leader) = end_the_commit(&sim, point).await;
            let error = commit.await.expect_err("there is no answer");
            assert!(error.is_undetermined(), "{point:?}: {error}");

            let now_ms = sim.now().as_millis();
            sim.cluster(|cluster| {
                cluster.elect(now_ms, region, leader);
                cluster.pd_heartbeat(region);
            });
            let snapshot = client.snapshot().await.expect("all is well again");
            let value = snapshot.get("a").await.expect("all is well again");
            assert_eq!(value.as_deref(), held.map(str::as_bytes), "{point:?}");
            Ok(())
        });
    }
}

/// The commit is done and its answer lost. Then so much time passes that what it wrote is collected as
/// garbage, and its repetition is refused.
#[test]
fn a_commit_whose_trace_is_gone_is_undetermined() {
    Simulation::seed(1).calm().run(async |sim| {
        let client = sim.client().await.expect("all is well");
        let txn = client.begin().await.expect("all is well");
        txn.delete("a").await.expect("it is only buffered");
        let commit = sim.spawn(txn.commit());
        let (region, leader) = end_the_commit(&sim, WritePoint::Applied).await;
        let is_led = |sim: &Sim| {
            sim.cluster(|cluster| cluster.region(region).is_some_and(|it| it.leader.is_some()))
        };
        while is_led(&sim) {
            sim.sleep(Duration::from_millis(1)).await;
        }
        let now_ms = sim.now().as_millis();
        sim.cluster(|cluster| {
            let pd = cluster.pd_mut();
            let longer = tikv_core::Config::default().max_transaction_age * 2;
            let physical_ms = pd.next_tso(now_ms) >> 18;
            pd.jump_tso(physical_ms + longer.as_millis() as u64);
            let newest = pd.next_tso(now_ms);
            let reached = pd.advance_safe_points(now_ms, newest);
            assert_eq!(reached, Ok(newest));
            cluster.collect_to_safe_points();
            cluster.elect(now_ms, region, leader);
            cluster.pd_heartbeat(region);
        });
        let error = commit.await.expect_err("its trace is gone");
        assert!(error.is_undetermined(), "{error}");
        Ok(())
    });
}
