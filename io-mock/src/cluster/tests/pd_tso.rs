//! Timestamps as PD gives them out.

use tikv_proto::pdpb::{RequestHeader, TsoRequest};

use super::{Bench, NOW};
use crate::cluster::Config;

fn header() -> Option<RequestHeader> {
    Some(RequestHeader {
        cluster_id: 1,
        ..Default::default()
    })
}

/// The last of `count` timestamps from a member, as physical and logical part.
fn next(b: &mut Bench, now_ms: u64, member: usize, count: u32) -> Result<(i64, i64), String> {
    let request = TsoRequest {
        header: header(),
        count,
        ..Default::default()
    };
    let answer = b.cluster.pd_mut().tso(now_ms, member, request);
    let answer = answer.map_err(|error| error.message)?;
    assert_eq!(answer.count, count);
    let ts = answer.timestamp.ok_or("no timestamp")?;
    Ok((ts.physical, ts.logical))
}

#[test]
fn test_logical_overflow() {
    let mut b = Bench::new();
    let count = (1 << 18) / 10;
    let mut last = (0, 0);
    for _ in 0..20 {
        let ts = next(&mut b, NOW, 0, count).expect("timestamps");
        // The first of the batch lies above the last of the one before.
        assert!(
            (ts.0, ts.1 - i64::from(count)) >= last,
            "{ts:?} after {last:?}"
        );
        assert!(ts.1 < 1 << 18);
        last = ts;
    }
    assert!(last.0 > NOW as i64, "more than fit into one millisecond");
}

#[test]
fn test_request_follower() {
    let mut b = Bench::with(Config {
        pd_members: 2,
        ..Default::default()
    });
    let refused = next(&mut b, NOW, 1, 1).expect_err("a follower");
    assert!(refused.contains("generate timestamp failed"), "{refused}");
}

#[test]
fn test_zero_tso_count() {
    let mut b = Bench::new();
    let refused = next(&mut b, NOW, 0, 0).expect_err("no timestamp was asked for");
    assert!(
        refused.contains("tso count should be positive"),
        "{refused}"
    );
}

#[test]
fn test_tso_not_leader_when_rebase_err() {
    let mut b = Bench::with(Config {
        pd_members: 2,
        ..Default::default()
    });
    let before = next(&mut b, NOW, 0, 1).expect("a timestamp");
    b.cluster.pd_mut().set_leader(NOW, None);
    for member in [0, 1] {
        let refused = next(&mut b, NOW, member, 1).expect_err("nobody leads");
        assert!(refused.contains("not leader"), "{refused}");
    }
    b.cluster.pd_mut().set_leader(NOW, Some(0));
    assert!(next(&mut b, NOW, 0, 1).expect("again") > before);
}

#[test]
fn test_fallback_tso_consistency() {
    let mut b = Bench::new();
    let mut last = next(&mut b, NOW, 0, 1).expect("a timestamp");
    // A clock which falls back and comes near again.
    for offset in [0, -10_000, -9_000, -1, 0, 1, -60_000, 5] {
        let now_ms = NOW.saturating_add_signed(offset);
        let ts = next(&mut b, now_ms, 0, 1).expect("a timestamp");
        assert!(ts > last, "{ts:?} after {last:?}");
        last = ts;
    }
}
