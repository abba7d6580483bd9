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

fn raw_get(b: &mut Bench) -> String {
    let (context, store) = b.to(b"k");
    let request = kvrpcpb::RawGetRequest {
        context,
        key: "k".into(),
        ..Default::default()
    };
    let value = b.cluster.raw_get(NOW, store, request).value;
    String::from_utf8(value.to_vec()).expect("text")
}

fn raw_put(b: &mut Bench, value: &'static str, for_cas: bool) {
    let (context, store) = b.to(b"k");
    let request = kvrpcpb::RawPutRequest {
        context,
        key: "k".into(),
        value: value.into(),
        for_cas,
        ..Default::default()
    };
    assert_eq!(b.cluster.raw_put(NOW, store, request), Default::default());
}

fn swap(b: &mut Bench, previous: &'static str, value: &'static str) -> bool {
    let (context, store) = b.to(b"k");
    let request = kvrpcpb::RawCasRequest {
        context,
        key: "k".into(),
        previous_value: previous.into(),
        value: value.into(),
        ..Default::default()
    };
    b.cluster.raw_compare_and_swap(NOW, store, request).succeed
}

#[test]
fn a_plain_put_may_come_between_what_a_swap_reads_and_writes() {
    let (mut b, id) = holding();
    raw_put(&mut b, "a", false);
    assert_eq!(raw_get(&mut b), "a");
    assert!(swap(&mut b, "a", "b"));
    raw_put(&mut b, "lost", false);
    assert_eq!(raw_get(&mut b), "lost");
    b.cluster.release_writes(NOW, id);
    assert_eq!(raw_get(&mut b), "b");
}

#[test]
fn an_atomic_put_waits_for_a_swap() {
    let (mut b, id) = holding();
    raw_put(&mut b, "a", false);
    assert!(swap(&mut b, "a", "b"));
    raw_put(&mut b, "c", true);
    assert_eq!(raw_get(&mut b), "b", "the swap is done, the put is held");
    assert!(swap(&mut b, "c", "d"));
    b.cluster.release_writes(NOW, id);
    assert_eq!(raw_get(&mut b), "d");
}
