//! Requests that no careful client sends: lists that do not fit together, versions out of order,
//! keys that belong elsewhere.

use bytes::Bytes;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::{
    DoPessimisticCheck, SkipPessimisticCheck,
};
use tikv_proto::kvrpcpb::{self, ApiVersion, IsolationLevel, Op};

use super::vocabulary::{pre, word};
use super::{Bench, NOW, mutation, put};
use crate::cluster::Config;
use crate::cluster::mvcc::write_record::WriteKind;

impl Bench {
    /// Ends a transaction on one key, as a resolving request does.
    fn resolve_key(&mut self, k: &[u8], start: u64, commit: u64) -> &'static str {
        let (context, store) = self.to(k);
        let request = kvrpcpb::ResolveLockRequest {
            context,
            start_version: start,
            commit_version: commit,
            keys: vec![Bytes::copy_from_slice(k)],
            ..Default::default()
        };
        let response = self.cluster.kv_resolve_lock(NOW, store, request);
        assert_eq!(response.region_error, None);
        word(response.error.as_deref())
    }
}

#[test]
fn mutations_without_a_pessimistic_action_are_dropped() {
    let mut b = Bench::new();
    let request = pre(b"a", 5).put(&[b"a", b"b", b"c"]);
    b.must_run(request.pessimistic(5, &[SkipPessimisticCheck; 2]));
    b.must_locked(b"a", 5);
    b.must_locked(b"b", 5);
    b.must_unlocked(b"c");
    // One action too many is for nobody.
    let request = pre(b"d", 6).put(&[b"d"]);
    b.must_run(request.pessimistic(6, &[SkipPessimisticCheck; 2]));
    b.must_locked(b"d", 6);
}

#[test]
fn the_region_is_looked_at_before_the_constraints_of_a_prewrite() {
    let mut b = Bench::new();
    let request = pre(b"a", 5).put(&[b"a"]);
    let request = request.pessimistic(5, &[DoPessimisticCheck]);
    let request = request.granted_at(&[(1, 5)]);
    assert_eq!(b.try_run(request.clone()), "abort");
    let (context, store) = b.to(b"a");
    let context = context.map(|context| {
        Box::new(kvrpcpb::Context {
            region_id: 77,
            ..*context
        })
    });
    let request = kvrpcpb::PrewriteRequest {
        context,
        ..request.request
    };
    let response = b.cluster.kv_prewrite(NOW, store, request);
    assert_eq!(response.errors, []);
    let error = response.region_error.expect("there is no such region");
    assert!(error.region_not_found.is_some());
}

#[test]
fn one_transaction_to_resolve_goes_before_a_list() {
    let mut b = Bench::new();
    b.must_prewrite_put(b"a", b"v", b"a", 5);
    b.must_prewrite_put(b"b", b"v", b"b", 6);
    let (context, store) = b.to(b"a");
    let info = kvrpcpb::TxnInfo {
        txn: 6,
        ..Default::default()
    };
    let request = kvrpcpb::ResolveLockRequest {
        context,
        start_version: 5,
        commit_version: 8,
        txn_infos: vec![info],
        ..Default::default()
    };
    let response = b.cluster.kv_resolve_lock(NOW, store, request);
    assert_eq!((response.region_error, response.error), (None, None));
    b.must_get(b"a", 9, b"v");
    b.must_locked(b"b", 6);
    // Keys without a transaction end a real server.
    assert_eq!(b.resolve_key(b"b", 0, 8), "abort");
    b.must_locked(b"b", 6);
}

#[test]
fn a_record_below_its_transaction_s_start_is_known_as_its_own() {
    for commit in [5, 3] {
        let mut b = Bench::new();
        b.must_prewrite_put(b"k", b"v", b"k", 5);
        assert_eq!(b.resolve_key(b"k", 5, commit), "");
        b.must_written(b"k", 5, commit, WriteKind::Put);
        b.must_get(b"k", 4 + commit, b"v");
        // It is committed, whoever asks.
        assert_eq!(b.commit(b"k", 5, 8), None);
        assert_eq!(word(b.rollback(b"k", 5).as_ref()), "abort");
        assert_eq!(b.cleanup(b"k", 5, 0).commit_version, commit);
        assert_eq!(b.check_secondary(b"k", 5), (commit, false));
        b.must_written(b"k", 5, commit, WriteKind::Put);
    }
}

#[test]
fn a_status_check_of_no_transaction_says_nothing_of_the_time() {
    let mut b = Bench::new();
    let query = kvrpcpb::CheckTxnStatusRequest {
        caller_start_ts: 20,
        current_ts: 30,
        ..Default::default()
    };
    b.check_status(b"k", u64::MAX, query.clone());
    assert_eq!(b.served(b"k"), 0);
    b.check_status(b"k", 5, query);
    assert_eq!(b.served(b"k"), 30);
}

#[test]
fn a_lock_that_is_to_live_for_ever_has_died_long_ago() {
    let mut b = Bench::new();
    let mut request = pre(b"k", super::ts(10, 0)).put(&[b"k"]);
    request.request.lock_ttl = u64::MAX;
    b.must_run(request);
    b.must_cleanup(b"k", super::ts(10, 0), super::ts(10, 0));
    b.must_unlocked(b"k");
}

#[test]
fn a_buffered_read_that_fails_as_a_whole_has_no_pairs() {
    let mut b = Bench::with(Config {
        api_version: ApiVersion::V2,
        ..Config::default()
    });
    let (context, store) = b.to(b"x");
    let request = kvrpcpb::BufferBatchGetRequest {
        context,
        keys: vec!["r".into()],
        version: 5,
    };
    let response = b.cluster.kv_buffer_batch_get(NOW, store, request);
    let expected = kvrpcpb::BufferBatchGetResponse {
        error: response.error.clone(),
        ..Default::default()
    };
    assert!(response.error.is_some());
    assert_eq!(response, expected);
}

#[test]
fn details_of_the_execution_come_with_what_has_been_read() {
    let mut b = Bench::new();
    assert!(b.get(b"k", 9).exec_details_v2.is_some());
    b.must_prewrite_put(b"k", b"v", b"k", 5);
    let response = b.get(b"k", 9);
    assert!(response.error.is_some());
    assert_eq!(response.exec_details_v2, None);
}

/// The version that is in the way of a scan under isolation RCCheckTS.
fn conflict(b: &mut Bench, version: u64, reverse: bool) -> Option<u64> {
    let (context, store) = b.to(b"k");
    let context = context.map(|context| {
        Box::new(kvrpcpb::Context {
            isolation_level: IsolationLevel::RcCheckTs.into(),
            ..*context
        })
    });
    let (start_key, end_key) = match reverse {
        true => ("l".into(), "k".into()),
        false => ("k".into(), "l".into()),
    };
    let request = kvrpcpb::ScanRequest {
        context,
        start_key,
        end_key,
        limit: 10,
        version,
        reverse,
        ..Default::default()
    };
    let error = b.cluster.kv_scan(NOW, store, request).error?;
    error.conflict.map(|conflict| conflict.conflict_commit_ts)
}

#[test]
fn a_scan_downwards_meets_the_oldest_of_the_newer_versions() {
    let mut b = Bench::new();
    for start in (10..50).step_by(10) {
        b.write(b"k", b"v", start, start + 1);
    }
    assert_eq!(conflict(&mut b, 25, false), Some(41));
    assert_eq!(conflict(&mut b, 25, true), Some(31));
    for reverse in [false, true] {
        assert_eq!(conflict(&mut b, 41, reverse), None);
    }
}

#[test]
fn a_scan_downwards_meets_nothing_newer_behind_many_versions() {
    let mut b = Bench::new();
    for start in (10..170).step_by(10) {
        b.write(b"k", b"v", start, start + 1);
    }
    // Fifteen versions are walked past, sixteen are not.
    assert_eq!(conflict(&mut b, 155, true), Some(161));
    b.write(b"k", b"new", 200, 201);
    assert_eq!(conflict(&mut b, 165, false), Some(201));
    assert_eq!(conflict(&mut b, 165, true), None);
}

#[test]
fn only_the_data_that_a_scan_downwards_comes_by_can_be_fenced() {
    let mut b = Bench::new();
    b.write(b"k", b"v", 5, 10);
    b.touch(b"k", 15, 20);
    b.fence(b"k", 20, 30);
    // The version that the fence stands for has been collected.
    let pairs = |b: &mut Bench, reverse| {
        let (context, store) = b.to(b"k");
        let (start_key, end_key) = match reverse {
            true => ("l".into(), "k".into()),
            false => ("k".into(), "l".into()),
        };
        let request = kvrpcpb::ScanRequest {
            context,
            start_key,
            end_key,
            limit: 10,
            version: 40,
            reverse,
            ..Default::default()
        };
        b.cluster.kv_scan(NOW, store, request).pairs.len()
    };
    b.must_get_none(b"k", 40);
    assert_eq!(pairs(&mut b, false), 0);
    assert_eq!(pairs(&mut b, true), 1);
}

#[test]
fn who_begins_a_walk_outside_the_region_is_refused() {
    let mut b = Bench::new();
    let id = b.to(b"a").0.expect("a context").region_id;
    let middle = crate::cluster::key::encode(b"m");
    b.cluster.split(NOW, id, &[middle]);
    // A context for the keys from "m" on.
    let (context, store) = b.to(b"m");
    let scan_lock = |b: &mut Bench, start: &'static str| {
        let request = kvrpcpb::ScanLockRequest {
            context: context.clone(),
            start_key: start.into(),
            max_version: 9,
            ..Default::default()
        };
        let response = b.cluster.kv_scan_lock(NOW, store, request);
        assert_eq!(response.region_error, None);
        word(response.error.as_deref())
    };
    assert_eq!(scan_lock(&mut b, "l"), "abort");
    assert_eq!(scan_lock(&mut b, "m"), "");
    assert_eq!(scan_lock(&mut b, ""), "");
    let (context, store) = b.to(b"a");
    let scan = |b: &mut Bench, start: &'static str, reverse| {
        let request = kvrpcpb::ScanRequest {
            context: context.clone(),
            start_key: start.into(),
            limit: 10,
            version: 9,
            reverse,
            ..Default::default()
        };
        let response = b.cluster.kv_scan(NOW, store, request);
        word(response.error.as_deref())
    };
    // The end of the region is as good as its keys.
    assert_eq!(scan(&mut b, "m", false), "");
    assert_eq!(scan(&mut b, "n", false), "abort");
    assert_eq!(scan(&mut b, "m", true), "");
}

#[test]
fn a_range_is_destroyed_by_the_user_s_keys() {
    let mut b = Bench::new();
    for k in ["a", "b", "c"].map(str::as_bytes) {
        b.write(k, b"v", 5, 6);
    }
    let request = kvrpcpb::UnsafeDestroyRangeRequest {
        start_key: "a\0".into(),
        end_key: "c".into(),
        ..Default::default()
    };
    b.cluster.unsafe_destroy_range(NOW, 1, request);
    b.must_get(b"a", 9, b"v");
    b.must_get_none(b"b", 9);
    b.must_get(b"c", 9, b"v");
}

#[test]
fn a_key_twice_in_one_request_is_judged_by_what_was_there_before() {
    let mut b = Bench::new();
    b.must_run(pre(b"k", 5).with(put(b"k", b"1")).with(put(b"k", b"2")));
    let (context, store) = b.to(b"k");
    let request = kvrpcpb::CommitRequest {
        context: context.clone(),
        start_version: 5,
        commit_version: 8,
        keys: vec!["k".into(), "k".into()],
        ..Default::default()
    };
    // Its lock has gone with the first, and the record is not there yet.
    let response = b.cluster.kv_commit(NOW, store, request);
    let error = response.error.expect("the second has no lock");
    assert!(error.txn_lock_not_found.is_some());
    b.must_commit(b"k", 5, 8);
    b.must_get(b"k", 9, b"2");
    // A rollback of both leaves the second's mark, which does not stay.
    b.must_prewrite_put(b"k", b"3", b"k", 10);
    let request = kvrpcpb::BatchRollbackRequest {
        context,
        start_version: 10,
        keys: vec!["k".into(), "k".into()],
        ..Default::default()
    };
    let response = b.cluster.kv_batch_rollback(NOW, store, request);
    assert_eq!(response.error, None);
    b.must_rolled_back(b"k", 10, false);
    b.must_prewrite_lock(b"k", b"k", 12);
    assert_eq!(
        b.must_locked(b"k", 12).kind,
        crate::cluster::mvcc::lock::LockKind::Lock
    );
    let refused = b.must_prewrite_err(mutation(Op::SharedLock, b"k", b""), b"k", 12);
    assert!(refused.locked.is_some(), "even by one's own lock");
}
