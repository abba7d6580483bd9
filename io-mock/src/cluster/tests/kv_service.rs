//! Requests as they come in from clients: what the service checks itself, and the commands together.

use bytes::Bytes;
use tikv_core::wire::{Command, Response};
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::{
    DoPessimisticCheck, SkipPessimisticCheck,
};
use tikv_proto::kvrpcpb::{
    self, Action, ApiVersion, BatchGetRequest, BatchRollbackRequest, BufferBatchGetRequest,
    CheckTxnStatusRequest, Context, GetHealthFeedbackRequest, GetRequest, LockInfo, Op,
    PessimisticRollbackRequest, PrewriteRequest, ScanLockRequest,
};

use super::looks::{at, row, text};
use super::vocabulary::{pre, word};
use super::{Bench, NOW, mutation, put};
use crate::cluster::Config;
use crate::cluster::failure::GrpcCode;
use crate::cluster::key::Key;
use crate::dispatch;

#[test]
fn test_check_txn_status_with_max_ts() {
    let mut b = Bench::new();
    let k = b"key";
    let mut one = pre(k, 10).put(&[k]);
    one.request.lock_ttl = 3000;
    b.must_run(one);
    let query = CheckTxnStatusRequest {
        caller_start_ts: u64::MAX,
        current_ts: 11,
        ..Default::default()
    };
    let status = b.check_status(k, 10, query);
    let told = (status.lock_ttl, status.action());
    assert_eq!(told, (3000, Action::MinCommitTsPushed));
    b.must_commit(k, 10, 11);
}

#[test]
fn test_explicit_get_health_feedback() {
    let mut b = Bench::new();
    let mut last = 0;
    for _ in 0..2 {
        let command = Command::GetHealthFeedback(GetHealthFeedbackRequest::default());
        let answer = dispatch::store(&mut b.cluster, NOW, 1, command).expect("an answer");
        let Response::GetHealthFeedback(answer) = answer else {
            panic!("another answer: {answer:?}");
        };
        let feedback = answer.health_feedback.expect("its health");
        assert_eq!(feedback.store_id, 1);
        assert!(last == 0 || feedback.feedback_seq_no == last + 1);
        last = feedback.feedback_seq_no;
    }
}

#[test]
fn test_check_cluster_id() {
    let mut b = Bench::new();
    b.write(b"k1", b"v1", 1, 2);
    let mut ask = |cluster_id: u64, version: u64| {
        let (context, store) = b.to(b"k1");
        let context = context.map(|context| {
            Box::new(Context {
                cluster_id,
                ..*context
            })
        });
        let request = GetRequest {
            context,
            key: "k1".into(),
            version,
            need_commit_ts: false,
        };
        let answer = dispatch::store(&mut b.cluster, NOW, store, request.into());
        (answer, b.served(b"k1"))
    };
    for unset_or_right in [0, 1] {
        match ask(unset_or_right, 10).0 {
            Ok(Response::Get(response)) => assert_eq!(response.value, "v1"),
            other => panic!("no value: {other:?}"),
        }
    }
    let (answer, served) = ask(2, 20);
    assert_eq!(answer.expect_err("refused").code, GrpcCode::InvalidArgument);
    assert_eq!(served, 10, "refused before anything is done");
}

#[test]
fn test_txn_api_version() {
    use ApiVersion::{V1, V1ttl, V2};
    for (storage, asked, k, refusal) in [
        (V1, V1, "t_a", ""),
        (V1, V1, "x\0a", ""),
        (V1, V1, "r\0a", ""),
        (V1ttl, V1, "x\0a", "ApiVersionNotMatched"),
        (V1, V2, "t_a", "ApiVersionNotMatched"),
        (V2, V1, "t_a", ""),
        (V2, V1, "x\0a", "InvalidKeyMode"),
        (V2, V1, "r\0a", "InvalidKeyMode"),
        (V2, V2, "x\0a", ""),
        (V2, V2, "r\0a", "InvalidKeyMode"),
        (V2, V2, "t_a", "InvalidKeyMode"),
    ] {
        let mut b = Bench::with(Config {
            api_version: storage,
            ..Default::default()
        });
        b.asked_under = Some(asked);
        let k = k.as_bytes();
        let optimistic = b.run(pre(k, 1).put(&[k])).errors;
        let lock = b.lock_one(Default::default(), k, k, 3, 3).errors;
        if refusal.is_empty() {
            assert_eq!(optimistic, []);
            assert_eq!(word(lock.first()), "locked");
            b.must_commit(k, 1, 4);
            b.must_get(k, 5, b"v");
            b.must_lock(k, k, 6, 6);
            let one = pre(k, 6).put(&[k]);
            b.must_run(one.pessimistic(6, &[DoPessimisticCheck]));
            continue;
        }
        let late = pre(k, 2).put(&[k]).pessimistic(2, &[SkipPessimisticCheck]);
        let pessimistic = b.run(late).errors;
        for errors in [optimistic, pessimistic, lock] {
            let error = errors.first().map(|error| error.abort.as_str());
            let expected = format!("Error({refusal}");
            assert!(error.is_some_and(|abort| abort.starts_with(&expected)));
        }
    }
}

/// Reads a transaction's own flushed keys.
fn buffered(b: &mut Bench, version: u64, keys: &[&str]) -> String {
    let (context, store) = b.to(b"");
    let request = BufferBatchGetRequest {
        context,
        keys: keys.iter().map(|k| Bytes::from((*k).to_owned())).collect(),
        version,
    };
    let response = b.cluster.kv_buffer_batch_get(NOW, store, request);
    assert_eq!((response.region_error, response.error), (None, None));
    let rows: Vec<String> = response.pairs.iter().map(row).collect();
    rows.join(" ")
}

#[test]
fn test_pipelined_dml_flush() {
    let mut b = Bench::new();
    for m in [
        put(b"primary", b"value"),
        put(b"key", b"value"),
        mutation(Op::Del, b"key2", b""),
    ] {
        assert_eq!(b.flush(1, 1, m), "");
    }
    let seen = buffered(&mut b, 1, &["key", "key2", "key3"]);
    assert_eq!(seen, "key=value key2=", "a deletion is an empty value");
    for k in [&b"primary"[..], b"key"] {
        b.must_commit(k, 1, 2);
    }
    b.must_get(b"key", 10, b"value");
}

#[test]
fn test_pipelined_dml_write_conflict() {
    let mut b = Bench::new();
    let k = b"key";
    assert_eq!(b.flush(1, 1, put(k, b"v")), "");
    assert_eq!(b.flush(2, 2, put(k, b"v")), "locked");
    assert_eq!(b.try_run(pre(k, 2).put(&[k])), "locked");
    assert_eq!(word(Some(&b.must_lock_err(k, k, 2, 2))), "locked");
    b.must_prewrite_put(b"key2", b"v", b"key2", 1);
    b.must_lock(b"key3", b"key3", 1, 1);
    for k in [b"key2", b"key3"] {
        assert_eq!(b.flush(2, 3, put(k, b"v")), "locked");
    }
}

#[test]
fn test_pipelined_dml_read_write_conflict() {
    let mut b = Bench::new();
    let k = b"key";
    assert_eq!(b.flush(1, 1, put(k, b"v")), "");
    assert_eq!(b.see(k, &at(2)), "!locked");
    let query = CheckTxnStatusRequest {
        caller_start_ts: 2,
        current_ts: 2,
        ..Default::default()
    };
    let status = b.check_status(k, 1, query);
    assert_eq!(status.action(), Action::MinCommitTsPushed);
    assert_eq!(b.see(k, &at(2)), "", "pushed beyond the read");
}

#[test]
fn test_pipelined_dml_buffer_get_other_key() {
    let mut b = Bench::new();
    b.must_lock(b"key", b"key", 1, 1);
    assert_eq!(buffered(&mut b, 2, &["key"]), "");
}

#[test]
fn test_pipelined_dml_buffer_get_unordered_keys() {
    let mut b = Bench::new();
    for k in ["k1", "k2", "k3"] {
        assert_eq!(b.flush(1, 1, put(k.as_bytes(), k.as_bytes())), "");
    }
    for keys in [
        &["k1", "k2", "k3"][..],
        &["k3", "k2", "k1"],
        &["k1", "k1", "k2", "k2", "k3", "k3"],
    ] {
        assert_eq!(buffered(&mut b, 1, keys), "k1=k1 k2=k2 k3=k3");
    }
}

#[test]
fn test_get_with_need_commit_ts() {
    let mut b = Bench::new();
    let k = b"k1";
    b.write(k, b"v1", 101, 102);
    let entry = b.entry(k, &at(103).with_commit_ts());
    assert_eq!(entry, Ok(Some(("v1".into(), 102))));
    b.must_prewrite_put(k, b"v1", k, 1000);
    let through = at(1010).access(&[1000]).with_commit_ts();
    assert_eq!(b.entry(k, &through), Err("locked"));
}

#[test]
fn test_batch_get_with_need_commit_ts() {
    let mut b = Bench::new();
    b.write(b"k1", b"v1", 101, 102);
    b.write(b"k2", b"v2", 201, 202);
    b.write(b"k3", b"v3", 301, 302);
    b.must_prewrite_put(b"k3", b"v33", b"k3", 1000);
    let mut read = |need_commit_ts: bool| {
        let (context, store) = b.to(b"k1");
        let request = BatchGetRequest {
            context: at(5000).access(&[1000]).context(context),
            keys: ["k1", "k2", "k3", "k4"].map(Bytes::from).into(),
            version: 5000,
            need_commit_ts,
        };
        let response = b.cluster.kv_batch_get(NOW, store, request);
        assert_eq!((response.region_error, response.error), (None, None));
        let pairs: Vec<_> = response
            .pairs
            .iter()
            .map(|p| (row(p), p.commit_ts))
            .collect();
        pairs
    };
    let pair = |row: &str, commit_ts: u64| (row.to_owned(), commit_ts);
    let locked = pair("k3!locked", 0);
    assert_eq!(read(true), [pair("k1=v1", 102), pair("k2=v2", 202), locked]);
    let through = pair("k3=v33", 0);
    assert_eq!(read(false), [pair("k1=v1", 0), pair("k2=v2", 0), through]);
}

/// A raw bench's context for the one key of these tests.
fn raw_bench(api_version: ApiVersion) -> (Bench, Option<Box<Context>>) {
    let b = Bench::with(Config {
        api_version,
        ..Default::default()
    });
    let (context, _) = b.route(b"key");
    (b, Some(Box::new(context)))
}

fn raw_get(b: &mut Bench, now_ms: u64, context: &Option<Box<Context>>) -> Option<String> {
    let request = kvrpcpb::RawGetRequest {
        context: context.clone(),
        key: "key".into(),
        ..Default::default()
    };
    let response = b.cluster.raw_get(now_ms, 1, request);
    assert_eq!(
        (response.region_error, response.error),
        (None, String::new())
    );
    (!response.not_found).then(|| text(&response.value))
}

fn raw_cas(
    b: &mut Bench,
    context: &Option<Box<Context>>,
    from: Option<&str>,
    to: &str,
    ttl: u64,
) -> bool {
    let request = kvrpcpb::RawCasRequest {
        context: context.clone(),
        key: "key".into(),
        value: to.to_owned().into(),
        previous_not_exist: from.is_none(),
        previous_value: from.unwrap_or_default().to_owned().into(),
        ttl,
        ..Default::default()
    };
    let response = b.cluster.raw_compare_and_swap(NOW, 1, request);
    assert_eq!(
        (response.region_error, response.error),
        (None, String::new())
    );
    response.succeed
}

fn raw_put(b: &mut Bench, context: &Option<Box<Context>>, v: &str, ttl: u64) -> String {
    let request = kvrpcpb::RawPutRequest {
        context: context.clone(),
        key: "key".into(),
        value: v.to_owned().into(),
        ttl,
        ..Default::default()
    };
    b.cluster.raw_put(NOW, 1, request).error
}

fn raw_scan(b: &mut Bench, context: &Option<Box<Context>>) -> String {
    let request = kvrpcpb::RawScanRequest {
        context: context.clone(),
        start_key: "key".into(),
        limit: 1,
        ..Default::default()
    };
    let kvs = b.cluster.raw_scan(NOW, 1, request).kvs;
    kvs.iter().map(row).collect()
}

fn raw_delete(b: &mut Bench, context: &Option<Box<Context>>) {
    let request = kvrpcpb::RawDeleteRequest {
        context: context.clone(),
        key: "key".into(),
        ..Default::default()
    };
    let response = b.cluster.raw_delete(NOW, 1, request);
    assert_eq!(response, Default::default());
}

#[test]
fn test_rawkv() {
    let (mut b, context) = raw_bench(ApiVersion::V1);
    assert!(!raw_cas(&mut b, &context, Some("v1"), "v0", 0));
    assert!(raw_cas(&mut b, &context, None, "v0", 0));
    assert_eq!(raw_get(&mut b, NOW, &context).as_deref(), Some("v0"));
    assert!(raw_cas(&mut b, &context, Some("v0"), "v1", 0));
    assert_eq!(raw_get(&mut b, NOW, &context).as_deref(), Some("v1"));
    assert_eq!(raw_put(&mut b, &context, "v2", 0), "");
    assert_eq!(raw_scan(&mut b, &context), "key=v2");
    raw_delete(&mut b, &context);
    assert_eq!(raw_get(&mut b, NOW, &context), None);
    // A store which does not know of expiry says so.
    assert!(raw_put(&mut b, &context, "v", 100).contains("ttl is not enabled"));
}

#[test]
fn test_rawkv_ttl() {
    let (mut b, context) = raw_bench(ApiVersion::V1ttl);
    let ttl = |b: &mut Bench| {
        let request = kvrpcpb::RawGetKeyTtlRequest {
            context: context.clone(),
            key: "key".into(),
            ..Default::default()
        };
        let response = b.cluster.raw_get_key_ttl(NOW, 1, request);
        assert_eq!(response.error, "");
        (!response.not_found).then_some(response.ttl)
    };
    assert!(!raw_cas(&mut b, &context, Some("v1"), "v0", 0));
    assert!(raw_cas(&mut b, &context, None, "v0", 100));
    assert!(raw_cas(&mut b, &context, Some("v0"), "v1", 140));
    assert_eq!(raw_get(&mut b, NOW, &context).as_deref(), Some("v1"));
    assert_eq!(ttl(&mut b), Some(140));
    raw_delete(&mut b, &context);
    assert_eq!(ttl(&mut b), None);
    assert_eq!(raw_put(&mut b, &context, "v", 100), "");
    assert_eq!(raw_scan(&mut b, &context), "key=v");
    assert_eq!(ttl(&mut b), Some(100));
    assert_eq!(raw_put(&mut b, &context, "v", 1), "");
    assert_eq!(raw_get(&mut b, NOW + 1_000, &context), None);
    // Where raw values expire there are no transactions.
    let request = PrewriteRequest {
        context: context.clone(),
        ..Default::default()
    };
    assert_ne!(b.cluster.kv_prewrite(NOW, 1, request).errors, []);
}

fn scan_lock(b: &mut Bench, max_version: u64, limit: usize) -> Vec<LockInfo> {
    let (context, store) = b.to(b"");
    let request = ScanLockRequest {
        context,
        max_version,
        limit: u32::try_from(limit).expect("a small limit"),
        ..Default::default()
    };
    let response = b.cluster.kv_scan_lock(NOW, store, request);
    assert_eq!((response.region_error, response.error), (None, None));
    response.locks
}

#[test]
fn test_mvcc_scan_memory_and_cf_locks() {
    let mut b = Bench::new();
    // Locks in turn of two kinds, more than a leader keeps in memory.
    let count = 1040;
    let keys: Vec<Vec<u8>> = (0..count)
        .map(|i| format!("{}{i:04}", "k".repeat(1024)).into_bytes())
        .collect();
    let (locked, prewritten): (Vec<_>, Vec<_>) =
        keys.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    for (_, k) in &locked {
        b.must_lock(k, k, 11, 11);
    }
    for (_, k) in &prewritten {
        b.must_prewrite_put(k, b"value", b"prewrite_primary", 10);
    }
    let stored = |b: &Bench, i: usize| {
        let key = Key::from_user(&keys[i]);
        b.cluster.engine().lock(&key).is_some()
    };
    assert!(!stored(&b, 0), "in memory");
    assert!(stored(&b, count - 2), "there was no more room");
    for limit in [0, 128, 512, count, count * 2] {
        let found = scan_lock(&mut b, 20, limit);
        let expected = if limit == 0 { count } else { limit.min(count) };
        assert_eq!(found.len(), expected);
        for (i, (lock, k)) in found.iter().zip(&keys).enumerate() {
            let kind = match i % 2 {
                0 => (Op::PessimisticLock, 11),
                _ => (Op::Put, 10),
            };
            assert_eq!(
                (&lock.key[..], lock.lock_type(), lock.lock_version),
                (&k[..], kind.0, kind.1)
            );
        }
    }
    assert_eq!(scan_lock(&mut b, 9, 0), []);
    let bytes =
        |of: &[(usize, &Vec<u8>)]| of.iter().map(|(_, k)| Bytes::copy_from_slice(k)).collect();
    let (context, store) = b.to(b"");
    let request = BatchRollbackRequest {
        context: context.clone(),
        start_version: 10,
        keys: bytes(&prewritten),
        ..Default::default()
    };
    assert_eq!(b.cluster.kv_batch_rollback(NOW, store, request).error, None);
    let left = scan_lock(&mut b, 12, 0);
    assert_eq!(left.len(), count / 2);
    assert!(
        left.iter()
            .all(|lock| lock.lock_type() == Op::PessimisticLock)
    );
    let request = PessimisticRollbackRequest {
        context,
        start_version: 11,
        for_update_ts: 11,
        keys: bytes(&locked),
    };
    assert_eq!(
        b.cluster
            .kv_pessimistic_rollback(NOW, store, request)
            .errors,
        []
    );
    assert_eq!(scan_lock(&mut b, 12, 0), []);
}
