//! What is left of a write that was ended.

use tikv_core::wire::Command;
use tikv_proto::kvrpcpb;

use super::{End, WritePoint};
use crate::cluster::failure::GrpcCode;
use crate::cluster::tests::{Bench, NOW, put};
use crate::dispatch;

const POINTS: [(WritePoint, bool, bool); 5] = [
    (WritePoint::BeforePropose, false, false),
    (WritePoint::Proposed { survives: false }, false, false),
    (WritePoint::Proposed { survives: true }, true, false),
    (WritePoint::Applied, true, false),
    (WritePoint::Answered, true, true),
];

#[test]
fn a_write_is_as_far_as_it_got() {
    for (point, happened, answered) in POINTS {
        let mut b = Bench::new();
        let request = kvrpcpb::PrewriteRequest {
            context: b.to(b"k").0,
            mutations: vec![put(b"k", b"v")],
            primary_lock: "k".into(),
            start_version: 5,
            ..Default::default()
        };
        b.cluster.end_next_write(1, End::Crash, point);
        let get = kvrpcpb::GetRequest {
            context: b.to(b"k").0,
            version: 3,
            ..Default::default()
        };
        dispatch::store(&mut b.cluster, NOW, 1, get.into()).expect("a read does not kill it");
        let answer = dispatch::store(&mut b.cluster, NOW, 1, Command::from(request));
        assert_eq!(answer.is_ok(), answered, "{point:?}");
        if let Err(error) = answer {
            assert_eq!(error.code, GrpcCode::Unavailable);
        }
        assert!(!b.cluster.is_up(1));
        let id = b.to(b"k").0.expect("a context").region_id;
        assert!(b.cluster.elect(NOW, id, 2));
        assert_eq!(b.lock_of(b"k").is_some(), happened, "{point:?}");
        // Once is enough.
        b.cluster.start_store(NOW, 1);
        b.cluster.transfer_leader(NOW, id, 1);
        b.must_prewrite_put(b"l", b"v", b"l", 7);
        b.must_locked(b"l", 7);
    }
}

#[test]
fn raw_writes_and_deletions_are_lost_alike() {
    let requests: [fn(&Bench) -> Command; 4] = [
        |b| {
            let request = kvrpcpb::RawPutRequest {
                context: b.to(b"k").0,
                key: "k".into(),
                value: "new".into(),
                ..Default::default()
            };
            request.into()
        },
        |b| {
            let request = kvrpcpb::RawDeleteRequest {
                context: b.to(b"k").0,
                key: "k".into(),
                ..Default::default()
            };
            request.into()
        },
        |b| {
            let request = kvrpcpb::RawCasRequest {
                context: b.to(b"k").0,
                key: "k".into(),
                previous_value: "old".into(),
                value: "new".into(),
                ..Default::default()
            };
            request.into()
        },
        |b| {
            let request = kvrpcpb::RawDeleteRangeRequest {
                context: b.to(b"k").0,
                start_key: "k".into(),
                end_key: "l".into(),
                ..Default::default()
            };
            request.into()
        },
    ];
    for request in requests {
        for survives in [false, true] {
            let mut b = Bench::new();
            let old = kvrpcpb::RawPutRequest {
                context: b.to(b"k").0,
                key: "k".into(),
                value: "old".into(),
                ..Default::default()
            };
            b.cluster.raw_put(NOW, 1, old);
            let command = request(&b);
            let label = command.label();
            b.cluster
                .end_next_write(1, End::Crash, WritePoint::Proposed { survives });
            assert!(dispatch::store(&mut b.cluster, NOW, 1, command).is_err());
            b.cluster.start_store(NOW, 1);
            let get = kvrpcpb::RawGetRequest {
                context: b.to(b"k").0,
                key: "k".into(),
                ..Default::default()
            };
            let value = b.cluster.raw_get(NOW, 1, get).value;
            assert_eq!(value != "old", survives, "{label}");
        }
    }
}

#[test]
fn what_a_store_remembers_dies_with_it() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 5, 5);
    b.cluster
        .set_safe_ts(b.to(b"k").0.expect("a context").region_id, 3);
    let before = b.cluster.next_health_feedback(1).expect("a store");
    b.cluster.stop_store(1);
    b.cluster.start_store(NOW + 10_000, 1);
    b.must_unlocked(b"k");
    let after = b.cluster.next_health_feedback(1).expect("a store");
    assert!(after.feedback_seq_no >= before.feedback_seq_no + 10_000);
}

#[test]
fn a_leader_deposed_in_a_write_says_nothing_of_it() {
    for (point, happened, answered) in POINTS {
        let mut b = Bench::new();
        let request = kvrpcpb::PrewriteRequest {
            context: b.to(b"k").0,
            mutations: vec![put(b"k", b"v")],
            primary_lock: "k".into(),
            start_version: 5,
            ..Default::default()
        };
        b.cluster.end_next_write(1, End::StepDown, point);
        let answer = dispatch::store(&mut b.cluster, NOW, 1, Command::from(request));
        let answer = answer.expect("the store lives");
        let error = dispatch::region_error(&answer).cloned();
        assert_eq!(error.is_none(), answered, "{point:?}");
        if let Some(error) = error {
            let early = point == WritePoint::BeforePropose;
            assert_eq!(error.not_leader.is_some(), early, "{error:?}");
            assert_eq!(error.stale_command.is_some(), !early, "{error:?}");
        }
        let region = b.cluster.regions().iter().next().expect("a region");
        let id = region.meta.id;
        assert_eq!(region.leader, None);
        assert!(b.cluster.elect(NOW, id, 2));
        assert_eq!(b.lock_of(b"k").is_some(), happened, "{point:?}");
    }
}

#[test]
fn a_write_that_proposes_nothing_is_answered_before_the_end() {
    let mut b = Bench::new();
    b.must_prewrite_put(b"k", b"v", b"k", 5);
    b.must_commit(b"k", 5, 8);
    let request = kvrpcpb::PrewriteRequest {
        context: b.to(b"k").0,
        mutations: vec![put(b"k", b"v")],
        primary_lock: "k".into(),
        start_version: 6,
        ..Default::default()
    };
    b.cluster
        .end_next_write(1, End::StepDown, WritePoint::Applied);
    let answer = dispatch::store(&mut b.cluster, NOW, 1, Command::from(request));
    let answer = answer.expect("an answer");
    assert_eq!(dispatch::region_error(&answer), None, "it is a conflict");
}

#[test]
fn a_restarted_store_does_not_know_how_far_stale_reads_go() {
    let mut b = Bench::new();
    let id = b.to(b"k").0.expect("a context").region_id;
    b.cluster.set_safe_ts(id, 10);
    b.cluster.stop_store(2);
    b.cluster.start_store(NOW, 2);
    let known = |b: &Bench, store| b.cluster.region(id).expect("a region").safe_ts_on(store);
    assert_eq!((known(&b, 2), known(&b, 3)), (0, 10));
    b.cluster.set_safe_ts(id, 11);
    assert_eq!((known(&b, 2), known(&b, 3)), (11, 11));
}
