//! What a client makes of a commit that a leader calls stale. A leader that steps down says so of
//! everything it has proposed, and the next one may have it: whoever stops asking then does not know
//! whether the transaction is committed.

use std::time::Duration;

use tikv_io_mock::cluster::injection::Injection;
use tikv_io_mock::cluster::region_errors::stale_command;
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
