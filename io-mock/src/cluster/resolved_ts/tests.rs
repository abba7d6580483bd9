//! What holds the timestamp of stale reads back.

use tikv_proto::kvrpcpb::{self, CheckLeaderRequest, LeaderInfo, TxnStatus};

use crate::cluster::key;
use crate::cluster::tests::{Bench, NOW, put};

fn advance(b: &mut Bench, k: &[u8]) -> u64 {
    let (context, _) = b.route(&key::encode(k));
    b.cluster.advance_safe_ts(NOW, context.region_id)
}

#[test]
fn locks_with_data_hold_it_back_until_they_are_gone() {
    let mut b = Bench::new();
    let free = advance(&mut b, b"k");
    assert!(free >= NOW << 18, "without locks it is PD's timestamp");

    let start = free + 10;
    b.must_prewrite_put(b"k", b"v", b"k", start);
    b.must_prewrite_lock(b"l", b"l", free + 2);
    b.must_lock(b"m", b"m", free + 3, free + 3);
    let later = NOW + 1_000;
    let (context, _) = b.route(&key::encode(b"k"));
    let id = context.region_id;
    assert_eq!(b.cluster.advance_safe_ts(later, id), start);
    b.must_commit(b"k", start, start + 1);
    assert!(b.cluster.advance_safe_ts(later, id) >= later << 18);
}

#[test]
fn it_never_falls_and_is_the_regions_own() {
    let mut b = Bench::new();
    let (context, _) = b.route(&key::encode(b"k"));
    let right = context.region_id;
    let left = b.cluster.split(NOW, right, &[key::encode(b"g")])[0];
    b.must_prewrite_put(b"a", b"v", b"a", 5);
    assert_eq!(b.cluster.advance_safe_ts(NOW, left), 5);
    let ahead = b.cluster.advance_safe_ts(NOW, right);
    assert!(ahead > 5);
    b.must_prewrite_put(b"k", b"v", b"k", 7);
    b.cluster.advance_safe_ts(NOW, right);
    assert_eq!(b.cluster.region(right).expect("a region").safe_ts, ahead);
    b.cluster.depose_leader(right);
    assert_eq!(b.cluster.advance_safe_ts(NOW, right), 0);
}

#[test]
fn a_large_transaction_counts_with_what_it_announced() {
    let mut b = Bench::new();
    let (context, store) = b.to(b"k");
    let request = kvrpcpb::FlushRequest {
        context,
        mutations: vec![put(b"k", b"v")],
        primary_key: "k".into(),
        start_ts: 5,
        generation: 1,
        ..Default::default()
    };
    let response = b.cluster.kv_flush(NOW, store, request);
    assert_eq!((response.region_error, response.errors), (None, vec![]));
    assert_eq!(advance(&mut b, b"k"), 5);
    let tell = |b: &mut Bench, status: TxnStatus| {
        let request = kvrpcpb::BroadcastTxnStatusRequest {
            txn_status: vec![TxnStatus {
                start_ts: 5,
                ..status
            }],
            ..Default::default()
        };
        b.cluster.broadcast_txn_status(NOW, 1, request);
    };
    let announced = TxnStatus {
        min_commit_ts: 50,
        ..TxnStatus::default()
    };
    tell(&mut b, announced);
    assert_eq!(advance(&mut b, b"k"), 49);
    let over = TxnStatus {
        rolled_back: true,
        ..TxnStatus::default()
    };
    tell(&mut b, over);
    assert!(advance(&mut b, b"k") >= NOW << 18);
}

#[test]
fn stores_agree_on_leaders_they_know() {
    let mut b = Bench::new();
    let (context, _) = b.route(&key::encode(b"k"));
    let id = context.region_id;
    let region = b.cluster.region(id).expect("a region");
    let info = LeaderInfo {
        region_id: id,
        peer_id: region.leader_peer().expect("a leader").id,
        term: region.term,
        region_epoch: region.meta.region_epoch,
        read_state: None,
    };
    let ask = |b: &mut Bench, info: &LeaderInfo| {
        let request = CheckLeaderRequest {
            regions: vec![*info],
            ts: 9,
        };
        let response = b.cluster.check_leader(NOW, 2, request);
        assert_eq!(response.ts, 9);
        !response.regions.is_empty()
    };
    assert!(ask(&mut b, &info));
    b.cluster.fall_behind(id, 2);
    b.cluster.transfer_leader(NOW, id, 3);
    assert!(ask(&mut b, &info), "it has not heard of the new one");
    b.cluster.catch_up(2);
    assert!(!ask(&mut b, &info));
    let strange = LeaderInfo {
        region_id: 999,
        ..info
    };
    assert!(!ask(&mut b, &strange));
}
