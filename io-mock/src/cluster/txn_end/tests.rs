//! Ending many transactions at once.

use tikv_proto::kvrpcpb::{self, TxnInfo};

use super::RESOLVED_AT_ONCE;
use crate::cluster::mvcc::write_record::WriteKind;
use crate::cluster::tests::{Bench, NOW, put};

#[test]
fn a_region_with_more_locks_than_fit_into_an_entry_is_resolved_in_one_call() {
    let mut b = Bench::new();
    let keys: Vec<Vec<u8>> = (0..2 * RESOLVED_AT_ONCE + 7)
        .map(|i| format!("k{i:04}").into_bytes())
        .collect();
    for (start_ts, turn) in [(5, 0), (6, 1)] {
        let (context, store) = b.to(b"k");
        let own = keys.iter().skip(turn).step_by(2);
        let request = kvrpcpb::PrewriteRequest {
            context,
            mutations: own.map(|k| put(k, b"v")).collect(),
            primary_lock: keys[turn].clone().into(),
            start_version: start_ts,
            ..Default::default()
        };
        assert_eq!(b.cluster.kv_prewrite(NOW, store, request).errors, []);
    }
    let (context, store) = b.to(b"k");
    let request = kvrpcpb::ResolveLockRequest {
        context,
        txn_infos: vec![
            TxnInfo {
                txn: 5,
                status: 9,
                ..Default::default()
            },
            TxnInfo {
                txn: 6,
                status: 0,
                ..Default::default()
            },
        ],
        ..Default::default()
    };
    let response = b.cluster.kv_resolve_lock(NOW, store, request);
    assert_eq!((response.region_error, response.error), (None, None));
    for (turn, k) in keys.iter().enumerate() {
        b.must_unlocked(k);
        match turn % 2 {
            0 => b.must_written(k, 5, 9, WriteKind::Put),
            _ => b.must_written(k, 6, 6, WriteKind::Rollback),
        };
    }
}
