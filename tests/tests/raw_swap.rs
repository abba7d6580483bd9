//! Raw compare-and-swap: what it does, and that it is never done twice.

use std::time::Duration;

use tikv_core::{ErrorKind, Result};
use tikv_io_mock::LocalCluster;
use tikv_io_mock::cluster::write_end::{End, WritePoint};
use tikv_io_mock::sim::Simulation;

#[test]
fn test_compare_and_swap() -> Result<()> {
    let cluster = LocalCluster::builder().raw_regions(["b"]).start();
    pollster::block_on(async {
        let plain = cluster.raw_client().await?;
        let refused = plain.compare_and_swap("a", Some("1"), "2").await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);

        let raw = plain.with_atomic();
        raw.put("a", "1").await?;
        let swap = raw.compare_and_swap("a", Some("9"), "2").await?;
        assert!(!swap.swapped);
        assert_eq!(swap.previous.as_deref(), Some(&b"1"[..]));
        assert_eq!(raw.get("a").await?.as_deref(), Some(&b"1"[..]));
        let swap = raw.compare_and_swap("a", Some("1"), "2").await?;
        assert!(swap.swapped);
        assert_eq!(swap.previous.as_deref(), Some(&b"1"[..]));
        assert_eq!(raw.get("a").await?.as_deref(), Some(&b"2"[..]));

        // An empty value is not the absence of one.
        assert!(!raw.compare_and_swap("z", Some(""), "1").await?.swapped);
        let swap = raw.compare_and_swap("z", None, "").await?;
        assert_eq!((swap.swapped, swap.previous), (true, None));
        assert!(!raw.compare_and_swap("z", None, "1").await?.swapped);
        let swap = raw.compare_and_swap("z", Some(""), "1").await?;
        assert_eq!((swap.swapped, swap.previous), (true, Some("".into())));
        Ok(())
    })
}

/// Wherever the leader stops, the client says either that nothing happened or that it does not know,
/// and the value was not swapped twice.
#[test]
fn a_swap_whose_answer_is_lost_is_undetermined_and_not_repeated() {
    let lost = WritePoint::Proposed { survives: false };
    for (end, point, outcome, held) in [
        (End::Crash, WritePoint::Applied, None, "2"),
        (End::Crash, lost, None, "1"),
        (End::StepDown, WritePoint::Applied, None, "2"),
        (End::StepDown, lost, None, "1"),
        (End::StepDown, WritePoint::BeforePropose, Some(true), "2"),
    ] {
        Simulation::seed(1).calm().run(async |sim| {
            let raw = sim.raw_client().await.expect("all is well").with_atomic();
            raw.put("a", "1").await.expect("all is well");
            let leader = sim.cluster(|cluster| {
                let region = cluster.regions().iter().next().expect("there is one");
                let (id, leader) = (region.meta.id, region.leader.expect("it is led"));
                cluster.end_next_write(leader, end, point);
                (id, leader)
            });
            let swap = sim.spawn({
                let raw = raw.with_timeout(Duration::from_secs(20));
                async move { raw.compare_and_swap("a", Some("1"), "2").await }
            });
            sim.sleep(Duration::from_secs(5)).await;
            let now_ms = sim.now().as_millis();
            sim.cluster(|cluster| {
                cluster.start_store(now_ms, leader.1);
                cluster.elect(now_ms, leader.0, leader.1);
                cluster.pd_heartbeat(leader.0);
            });
            match (swap.await, outcome) {
                (Ok(swap), Some(swapped)) => assert_eq!(swap.swapped, swapped),
                (Err(error), None) => {
                    assert!(error.is_undetermined(), "{end:?} {point:?}: {error}")
                }
                (result, _) => panic!("{end:?} {point:?}: {result:?}"),
            }
            let value = raw.get("a").await.expect("all is well again");
            assert_eq!(value.as_deref(), Some(held.as_bytes()), "{end:?} {point:?}");
            Ok(())
        });
    }
}
