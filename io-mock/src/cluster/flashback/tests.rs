//! Setting regions back, after the cases of the server's own tests.

use bytes::Bytes;
use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{
    self, FlashbackToVersionRequest, FlashbackToVersionResponse, Op,
    PrepareFlashbackToVersionRequest, PrepareFlashbackToVersionResponse,
};

use super::BATCH;
use crate::cluster::key;
use crate::cluster::mvcc::write_record::WriteKind;
use crate::cluster::tests::{Bench, NOW, mutation, put};

const END: &[u8] = b"z";

fn prepare(b: &mut Bench, version: u64, start_ts: u64) -> PrepareFlashbackToVersionResponse {
    let (context, store) = b.to(b"a");
    let request = PrepareFlashbackToVersionRequest {
        context,
        start_key: "a".into(),
        end_key: Bytes::from_static(END),
        start_ts,
        version,
    };
    b.cluster
        .kv_prepare_flashback_to_version(NOW, store, request)
}

fn finish(
    b: &mut Bench,
    version: u64,
    start_ts: u64,
    commit_ts: u64,
) -> FlashbackToVersionResponse {
    let (context, store) = b.to(b"a");
    let request = FlashbackToVersionRequest {
        context,
        version,
        start_key: "a".into(),
        end_key: Bytes::from_static(END),
        start_ts,
        commit_ts,
    };
    b.cluster.kv_flashback_to_version(NOW, store, request)
}

fn must_flash_back(b: &mut Bench, version: u64, start_ts: u64, commit_ts: u64) {
    assert_eq!(prepare(b, version, start_ts), Default::default());
    assert_eq!(finish(b, version, start_ts, commit_ts), Default::default());
}

fn must_put(b: &mut Bench, k: &[u8], v: &[u8], start_ts: u64) {
    b.must_prewrite_put(k, v, k, start_ts);
    b.must_commit(k, start_ts, start_ts + 1);
}

#[test]
fn long_values_and_many_keys_are_set_back() {
    let mut b = Bench::new();
    let long = vec![7; 300];
    let keys: Vec<Vec<u8>> = (0..2 * BATCH + 5)
        .map(|i| format!("k{i:04}").into_bytes())
        .collect();
    let commit_all = |b: &mut Bench, value: &[u8], start_ts: u64| {
        let (context, store) = b.to(b"k");
        let request = kvrpcpb::PrewriteRequest {
            context: context.clone(),
            mutations: keys.iter().map(|k| put(k, value)).collect(),
            primary_lock: keys[0].clone().into(),
            start_version: start_ts,
            ..Default::default()
        };
        assert_eq!(b.cluster.kv_prewrite(NOW, store, request).errors, []);
        let request = kvrpcpb::CommitRequest {
            context,
            start_version: start_ts,
            commit_version: start_ts + 1,
            keys: keys.iter().map(|k| k.clone().into()).collect(),
            ..Default::default()
        };
        assert_eq!(b.cluster.kv_commit(NOW, store, request).error, None);
    };
    commit_all(&mut b, &long, 1);
    commit_all(&mut b, b"new", 5);
    must_put(&mut b, b"later", b"v", 8);
    must_flash_back(&mut b, 3, 10, 11);
    for k in &keys {
        b.must_get(k, 20, &long);
        b.must_get(k, 10, b"new");
    }
    b.must_get_none(b"later", 20);
}

#[test]
fn what_was_older_is_not_written_again() {
    let mut b = Bench::new();
    must_put(&mut b, b"a", b"v", 1);
    must_put(&mut b, b"new", b"v", 5);
    must_put(&mut b, b"old", b"v", 1);
    // Nothing but a record without data is newer here.
    b.must_prewrite_lock(b"old", b"old", 6);
    b.must_commit(b"old", 6, 7);
    must_put(&mut b, b"too", b"v", 5);
    must_flash_back(&mut b, 3, 10, 11);
    assert_eq!((b.written(b"a", 11), b.written(b"old", 11)), (None, None));
    b.must_written(b"new", 10, 11, WriteKind::Delete);
    b.must_written(b"too", 10, 11, WriteKind::Delete);
    b.must_unlocked(b"new");
}

#[test]
fn locks_of_others_are_rolled_back() {
    let mut b = Bench::new();
    must_put(&mut b, b"k", b"v", 1);
    must_put(&mut b, b"k", b"u", 3);
    b.must_prewrite_put(b"k", b"w", b"k", 5);
    b.must_lock(b"m", b"m", 6, 6);
    for start_ts in [7, 8] {
        let request = kvrpcpb::PessimisticLockRequest {
            mutations: vec![mutation(Op::SharedPessimisticLock, b"s", b"")],
            ..Default::default()
        };
        let response = b.lock_one(request, b"s", b"p", start_ts, start_ts);
        assert_eq!(response.errors, []);
    }
    assert_eq!(prepare(&mut b, 3, 10), Default::default());
    b.must_rolled_back(b"k", 5, true);
    b.must_unlocked(b"m");
    let engine = b.cluster.engine();
    let left: Vec<_> = engine.locks(&Bytes::new(), &Bytes::new()).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    b.must_locked(b"k", 10);
    // The first key's lock holds stale reads back.
    let id = b.to(b"k").0.expect("a context").region_id;
    assert_eq!(b.cluster.advance_safe_ts(NOW, id), 10);
    assert_eq!(finish(&mut b, 3, 10, 11), Default::default());
    b.must_get(b"k", 20, b"v");
}

fn in_progress(error: Option<Box<errorpb::Error>>) -> Option<u64> {
    Some(error?.flashback_in_progress?.flashback_start_ts)
}

#[test]
fn a_region_being_set_back_serves_only_what_is_older() {
    let mut b = Bench::new();
    must_put(&mut b, b"k", b"v", 1);
    assert_eq!(prepare(&mut b, 3, 10), Default::default());
    assert_eq!(in_progress(b.get(b"k", 10).region_error), Some(10));
    assert_eq!(in_progress(b.get(b"k", 0).region_error), Some(10));
    b.must_get(b"k", 9, b"v");
    let response = b.prewrite(kvrpcpb::PrewriteRequest {
        mutations: vec![put(b"l", b"v")],
        primary_lock: "l".into(),
        start_version: 12,
        ..Default::default()
    });
    assert_eq!(in_progress(response.region_error), Some(10));
    let (context, store) = b.to(b"k");
    let request = kvrpcpb::SplitRegionRequest {
        context,
        split_keys: vec!["m".into()],
        ..Default::default()
    };
    let response = b.cluster.split_region(NOW, store, request);
    assert_eq!(in_progress(response.region_error), Some(10));
    assert_eq!(finish(&mut b, 3, 10, 11), Default::default());
    b.must_get(b"k", 20, b"v");
    b.must_prewrite_put(b"l", b"v", b"l", 12);
}

#[test]
fn both_requests_may_be_repeated() {
    let mut b = Bench::new();
    must_put(&mut b, b"k", b"v", 1);
    must_put(&mut b, b"k", b"w", 5);
    assert_eq!(prepare(&mut b, 3, 10), Default::default());
    assert_eq!(prepare(&mut b, 3, 10), Default::default());
    assert_eq!(finish(&mut b, 3, 10, 11), Default::default());
    assert_eq!(finish(&mut b, 3, 10, 11), Default::default());
    b.must_get(b"k", 20, b"v");
    // Preparing again after the end closes the region again.
    assert_eq!(prepare(&mut b, 3, 10), Default::default());
    assert!(in_progress(b.get(b"k", 20).region_error).is_some());
}

#[test]
fn a_region_that_is_not_ready_is_not_set_back() {
    let mut b = Bench::new();
    // Where nothing is, nothing is to be done.
    assert_eq!(finish(&mut b, 3, 10, 11), Default::default());
    must_put(&mut b, b"k", b"v", 4);
    let error = finish(&mut b, 3, 10, 11)
        .region_error
        .expect("not prepared");
    let id = b.to(b"k").0.expect("a context").region_id;
    assert_eq!(
        error.flashback_not_prepared.expect("its detail").region_id,
        id
    );
    assert!(finish(&mut b, 3, 10, 10).error.contains("InvalidTxnTso"));
    b.must_get(b"k", 20, b"v");
}

#[test]
fn a_region_of_another_shape_is_not_closed() {
    let mut b = Bench::new();
    let (mut context, store) = b.to(b"k");
    let epoch = context
        .as_mut()
        .and_then(|context| context.region_epoch.as_mut());
    epoch.expect("an epoch").conf_ver -= 1;
    let request = PrepareFlashbackToVersionRequest {
        context,
        start_ts: 10,
        version: 3,
        end_key: Bytes::from_static(END),
        ..Default::default()
    };
    let response = b
        .cluster
        .kv_prepare_flashback_to_version(NOW, store, request);
    assert!(
        response
            .region_error
            .expect("peers matter")
            .epoch_not_match
            .is_some()
    );
    b.must_get_none(b"k", 20);
    let id = b.to(b"k").0.expect("a context").region_id;
    b.cluster.split(NOW, id, &[key::encode(b"g")]);
    must_put(&mut b, b"k", b"v", 20);
    assert_eq!(prepare(&mut b, 3, 30), Default::default());
    b.must_get(b"k", 40, b"v");
}
