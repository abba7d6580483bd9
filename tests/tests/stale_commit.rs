//! What a client makes of a commit that a leader calls stale. A leader that steps down says so of
//! everything it has proposed, and the next one may have it: whoever stops asking then does not know
//! whether the transaction is committed.

use std::time::Duration;

use bytes::Bytes;
use tikv_io_mock::cluster::injection::Injection;
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
            let all = Bytes::new();
            while sim.cluster(|cluster| cluster.engine().locks(&all, &all).next().is_none()) {
                sim.sleep(Duration::from_millis(1)).await;
            }
            // The next write is the primary's commit, after which nobody leads for longer than the
            // transaction waits.
            let (region, leader) = sim.cluster(|cluster| {
                let region = cluster.regions().iter().next().expect("there is one");
                let (id, leader) = (region.meta.id, region.leader.expect("it is led"));
                cluster.end_next_write(leader, End::StepDown, point);
                (id, leader)
            });
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
