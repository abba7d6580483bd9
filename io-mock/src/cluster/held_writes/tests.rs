//! What others meet between a write's proposal and its being applied.

use tikv_proto::kvrpcpb::{self, KeyError};

use crate::cluster::key;
use crate::cluster::region::RegionId;
use crate::cluster::tests::{Bench, NOW, put};

fn holding() -> (Bench, RegionId) {
    let mut b = Bench::new();
    let id = b.to(b"").0.expect("a context").region_id;
    b.cluster.hold_writes(id);
    (b, id)
}

fn one_pc(b: &mut Bench, k: &[u8], start_ts: u64) -> u64 {
    let response = b.prewrite(kvrpcpb::PrewriteRequest {
        mutations: vec![put(k, b"v")],
        primary_lock: k.to_vec().into(),
        start_version: start_ts,
        try_one_pc: true,
        ..Default::default()
    });
    assert_eq!((response.region_error, response.errors), (None, vec![]));
    response.one_pc_commit_ts
}

#[test]
fn a_commit_under_way_is_a_lock_for_readers_who_could_see_it() {
    let (mut b, id) = holding();
    let commit_ts = one_pc(&mut b, b"k", 10);
    assert_eq!(commit_ts, 11);
    b.must_get_none(b"k", 10);
    for version in [11, 20, u64::MAX] {
        let KeyError { locked, .. } = b.must_get_err(b"k", version);
        assert_eq!(
            locked.expect("it is under way").lock_version,
            10,
            "{version}"
        );
    }
    b.cluster.release_writes(NOW, id);
    b.must_get_none(b"k", 10);
    b.must_get(b"k", 11, b"v");
    // Nothing is held any more.
    one_pc(&mut b, b"l", 30);
    b.must_get(b"l", 40, b"v");
}

#[test]
fn a_plain_lock_is_not_seen_before_it_is_there() {
    let (mut b, id) = holding();
    b.must_prewrite_put(b"k", b"v", b"k", 5);
    b.must_get_none(b"k", 9);
    b.cluster.release_writes(NOW, id);
    assert!(b.must_get_err(b"k", 9).locked.is_some());
}

#[test]
fn the_next_write_waits_for_those_before_it() {
    let (mut b, _) = holding();
    b.must_prewrite_put(b"k", b"v", b"k", 5);
    b.must_commit(b"k", 5, 6);
    assert!(
        b.must_get_err(b"k", 9).locked.is_some(),
        "the commit is held"
    );
    b.must_rollback(b"other", 5);
    b.must_get(b"k", 9, b"v");
}

#[test]
fn a_new_leader_has_what_was_proposed_or_has_it_not() {
    for survives in [true, false] {
        let (mut b, id) = holding();
        let commit_ts = one_pc(&mut b, b"k", 10);
        if !survives {
            b.cluster.lose_held_writes(id);
        }
        b.cluster.stop_store(1);
        b.cluster.elect(NOW, id, 2);
        match survives {
            true => b.must_get(b"k", commit_ts, b"v"),
            false => b.must_get_none(b"k", commit_ts),
        }
    }
}

#[test]
fn changes_of_the_region_come_behind_it() {
    let (mut b, id) = holding();
    one_pc(&mut b, b"k", 10);
    b.cluster.split(NOW, id, &[key::encode(b"g")]);
    b.must_get(b"k", 20, b"v");
    one_pc(&mut b, b"l", 30);
    b.cluster.transfer_leader(NOW, id, 2);
    b.must_get(b"l", 40, b"v");
}

#[test]
fn what_the_leader_keeps_in_memory_is_there_at_once() {
    let (b, _) = &mut holding();
    b.must_lock(b"k", b"k", 5, 5);
    b.must_pessimistic_locked(b"k", 5, 5);
}
