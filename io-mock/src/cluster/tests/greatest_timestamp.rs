//! How far the greatest timestamp of a store may run ahead of PD.

use tikv_proto::kvrpcpb::{CheckTxnStatusRequest, Context, RequestOrigin};

use super::{Bench, NOW};
use crate::cluster::Cluster;

/// A cluster that refuses timestamps which PD cannot have given out.
fn strict() -> Bench {
    Bench {
        cluster: Cluster::new(Default::default(), NOW),
        asked_under: None,
    }
}

/// Asks for a transaction at a time before or after now.
fn ask(b: &mut Bench, origin: RequestOrigin, offset_ms: i64) -> Result<(), String> {
    let ts = NOW.saturating_add_signed(offset_ms) << 18;
    let (context, store) = b.to(b"k");
    let context = context.map(|context| {
        Box::new(Context {
            request_origin: origin.into(),
            ..*context
        })
    });
    let request = CheckTxnStatusRequest {
        context,
        primary_key: "k".into(),
        lock_ts: ts,
        caller_start_ts: ts,
        current_ts: ts,
        rollback_if_not_exist: true,
        ..Default::default()
    };
    let response = b.cluster.kv_check_txn_status(NOW, store, request);
    match response.region_error {
        Some(error) => Err(error.message),
        None => Ok(()),
    }
}

#[test]
fn test_max_ts_limit_edge_cases() {
    let mut b = strict();
    let late = (NOW + 50_000) << 18;
    b.must_get_none(b"k", late);
    // The clock of the caller has no say once PD is ahead of it, and the greatest possible version
    // is no timestamp.
    b.cluster.pd_mut().jump_tso(NOW + 100_000);
    b.must_get_none(b"k", (NOW + 150_000) << 18);
    b.must_get_none(b"k", u64::MAX);
    assert_eq!(b.served(b"k"), (NOW + 150_000) << 18);
    let beyond = b.get(b"k", (NOW + 170_000) << 18).region_error;
    assert!(beyond.is_some_and(|error| error.message.contains("invalid max_ts update")));
    assert_eq!(b.served(b"k"), (NOW + 150_000) << 18, "never down");
}

#[test]
fn test_update_max_ts_exact_limit_accepts_fresh_tso_for_non_tidb_origin() {
    let mut b = strict();
    b.cluster.pd_mut().jump_tso(NOW + 60);
    assert_eq!(ask(&mut b, RequestOrigin::Unknown, 50), Ok(()));
    assert_eq!(b.served(b"k"), (NOW + 50) << 18);
}

#[test]
fn test_update_max_ts_exact_limit_fetches_for_non_tidb_origin_when_limit_uninitialized() {
    let mut b = strict();
    // A store that has just started and has seen no timestamp yet.
    assert_eq!(b.served(b"k"), 0);
    assert_eq!(ask(&mut b, RequestOrigin::Unknown, -10), Ok(()));
    assert_eq!(b.served(b"k"), (NOW - 10) << 18);
}

#[test]
fn test_update_max_ts_exact_limit_rejects_non_tidb_origin_values_within_drift() {
    let mut b = strict();
    assert_eq!(ask(&mut b, RequestOrigin::TiDb, 50), Ok(()));
    assert_eq!(b.served(b"k"), (NOW + 50) << 18);
    let refused = ask(&mut b, RequestOrigin::Unknown, 51);
    assert!(refused.is_err_and(|message| message.contains("invalid max_ts update")));
    assert_eq!(b.served(b"k"), (NOW + 50) << 18);
}
