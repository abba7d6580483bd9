//! What a busy store answers.

use tikv_proto::kvrpcpb::{self, CommandPri, Context};

use super::Load;
use crate::cluster::tests::{Bench, NOW, put};

fn read(b: &mut Bench, change: impl FnOnce(&mut Context)) -> Option<tikv_proto::errorpb::Error> {
    let (mut context, store) = b.to(b"k");
    change(context.as_mut().expect("a context"));
    let request = kvrpcpb::GetRequest {
        context,
        key: "k".into(),
        version: 5,
        need_commit_ts: false,
    };
    let error = b.cluster.kv_get(NOW, store, request).region_error;
    error.map(|error| *error)
}

fn write(b: &mut Bench, change: impl FnOnce(&mut Context)) -> Option<tikv_proto::errorpb::Error> {
    let (mut context, _) = b.to(b"k");
    change(context.as_mut().expect("a context"));
    let request = kvrpcpb::PrewriteRequest {
        context,
        mutations: vec![put(b"k", b"v")],
        primary_lock: "k".into(),
        start_version: 5,
        ..Default::default()
    };
    let error = b.cluster.kv_prewrite(NOW, 1, request).region_error;
    error.map(|error| *error)
}

fn loaded(load: Load) -> Bench {
    let mut b = Bench::new();
    b.cluster.store_mut(1).expect("store 1").load = load;
    b
}

#[test]
fn a_long_queue_refuses_reads_that_could_go_elsewhere() {
    let mut b = loaded(Load {
        read_wait_ms: 30,
        ..Load::default()
    });
    for (threshold, refused) in [(0, false), (30, false), (29, true)] {
        let error = read(&mut b, |context| context.busy_threshold_ms = threshold);
        assert_eq!(error.is_some(), refused, "{threshold}");
        if let Some(busy) = error.and_then(|error| error.server_is_busy) {
            assert_eq!(busy.reason, "estimated wait time exceeds threshold");
            assert_eq!(busy.estimated_wait_ms, 30);
        }
    }
    assert_eq!(write(&mut b, |context| context.busy_threshold_ms = 1), None);
}

#[test]
fn a_wait_beyond_the_deadline_is_an_answer() {
    let mut b = loaded(Load {
        read_wait_ms: 30,
        write_wait_ms: 10,
        ..Load::default()
    });
    let limit = |ms| move |context: &mut Context| context.max_execution_duration_ms = ms;
    assert_eq!(read(&mut b, limit(30)), None);
    let error = read(&mut b, limit(20)).expect("too late");
    assert_eq!(error.message, "Deadline is exceeded");
    let busy = error.server_is_busy.expect("its detail");
    assert_eq!(busy.reason, "deadline is exceeded");
    assert_eq!(write(&mut b, limit(10)), None);
    assert!(write(&mut b, limit(9)).is_some());
}

#[test]
fn a_full_scheduler_takes_urgent_writes() {
    let mut b = loaded(Load {
        scheduler_full: true,
        ..Load::default()
    });
    assert_eq!(read(&mut b, |_| {}), None);
    let busy = write(&mut b, |_| {}).and_then(|error| error.server_is_busy);
    assert_eq!(busy.expect("full").reason, "scheduler is busy");
    let urgent = |context: &mut Context| context.set_priority(CommandPri::High);
    assert_eq!(write(&mut b, urgent), None);
    // Resolving a lock always is.
    let (context, store) = b.to(b"k");
    let request = kvrpcpb::ResolveLockRequest {
        context,
        start_version: 5,
        ..Default::default()
    };
    let response = b.cluster.kv_resolve_lock(NOW, store, request);
    assert_eq!(response.region_error, None);
    b.must_unlocked(b"k");
}

#[test]
fn nothing_is_proposed_to_a_raftstore_that_is_full_or_delayed() {
    let mut b = loaded(Load {
        raftstore_full: true,
        ..Load::default()
    });
    assert_eq!(read(&mut b, |_| {}), None);
    let busy = write(&mut b, |_| {}).and_then(|error| error.server_is_busy);
    assert_eq!(busy.expect("full").reason, "raftstore is busy");
    b.must_unlocked(b"k");
    let mut b = loaded(Load {
        observer_delay_ms: 70,
        ..Load::default()
    });
    let busy = write(&mut b, |_| {}).and_then(|error| error.server_is_busy);
    assert_eq!(busy.expect("delayed").backoff_ms, 70);
    // A command that changes nothing proposes nothing.
    assert_eq!(b.rollback(b"k", 5), None);
}

#[test]
fn a_busy_collector_destroys_no_more_ranges() {
    let mut b = loaded(Load {
        gc_worker_full: true,
        ..Load::default()
    });
    let request = kvrpcpb::UnsafeDestroyRangeRequest {
        start_key: "a".into(),
        end_key: "z".into(),
        ..Default::default()
    };
    let response = b.cluster.unsafe_destroy_range(NOW, 1, request.clone());
    let busy = response.region_error.and_then(|error| error.server_is_busy);
    assert_eq!(busy.expect("busy").reason, "gc worker is busy");
    let response = b.cluster.unsafe_destroy_range(NOW, 2, request);
    assert_eq!(response, Default::default());
}

#[test]
fn a_store_that_is_closing_says_only_that() {
    let mut b = loaded(Load {
        closing: true,
        ..Load::default()
    });
    for error in [read(&mut b, |_| {}), write(&mut b, |_| {})] {
        let expected = tikv_proto::errorpb::Error {
            message: "TiKV is Closing".to_owned(),
            ..Default::default()
        };
        assert_eq!(error, Some(expected));
    }
    b.cluster.stop_store(1);
    b.cluster.start_store(NOW, 1);
    assert_eq!(read(&mut b, |_| {}), None);
}
