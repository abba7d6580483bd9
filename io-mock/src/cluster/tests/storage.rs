//! Commands end to end: reads among locks, ends of transactions, and what a store remembers.

use bytes::Bytes;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::{
    DoPessimisticCheck, SkipPessimisticCheck,
};
use tikv_proto::kvrpcpb::{
    BatchGetRequest, CheckSecondaryLocksRequest, CheckTxnStatusRequest, LockInfo, Op,
    PessimisticLockRequest, ResolveLockRequest, ScanLockRequest,
};

use super::looks::{Look, at, row, text};
use super::vocabulary::{pre, word};
use super::{Bench, NOW, mutation, ts};
use crate::cluster::Config;
use crate::cluster::key::Key;
use crate::cluster::mvcc::lock::{Lock, LockKind};
use crate::cluster::mvcc::write_record::WriteKind;

#[test]
fn test_prewrite_blocks_read() {
    let mut b = Bench::new();
    // A prewrite that has published its smallest commit version and is not applied yet.
    let (_, store) = b.to(b"x");
    let under_way = Lock {
        async_commit: true,
        min_commit_ts: 11,
        ..Lock::new(LockKind::Put, "x".into(), 10, 100)
    };
    let served = b.cluster.store_mut(store).expect("a store");
    served.memory_locks.insert(Key::from_user(b"x"), under_way);
    assert_eq!(b.see(b"x", &at(100)), "!locked");
    assert_eq!(b.see(b"x", &at(10)), "", "below what it can commit at");
}

fn see_all(b: &mut Bench, keys: &[&str], look: &Look) -> Vec<String> {
    keys.iter().map(|k| b.see(k.as_bytes(), look)).collect()
}

#[test]
fn test_batch_get_command() {
    // Reads which came together are answered each for itself.
    let mut b = Bench::new();
    let keys: [&[u8]; 3] = [b"a", b"b", b"c"];
    b.must_run(pre(b"a", 1).put(&keys));
    assert_eq!(see_all(&mut b, &["c", "d"], &at(2)), ["!locked", ""]);
    for k in keys {
        b.must_commit(k, 1, 2);
    }
    let seen = see_all(&mut b, &["c", "x", "a", "b"], &at(5));
    assert_eq!(seen, ["v", "", "v", "v"]);
}

#[test]
fn test_batch_get_command_need_commit_ts() {
    let mut b = Bench::new();
    b.write(b"c", b"cc", 10, 20);
    b.must_prewrite_put(b"l", b"ll", b"l", 50);
    let committed = b.entry(b"c", &at(100).with_commit_ts());
    assert_eq!(committed, Ok(Some(("cc".into(), 20))));
    let through = at(60).access(&[50]);
    assert_eq!(b.entry(b"l", &through), Ok(Some(("ll".into(), 0))));
    assert_eq!(b.entry(b"l", &through.with_commit_ts()), Err("locked"));
}

#[test]
fn test_cleanup_check_ttl() {
    let mut b = Bench::new();
    let k = b"x";
    b.must_run(pre(k, ts(110, 0)).put(&[k]));
    let alive = b.cleanup(k, ts(110, 0), ts(120, 0)).error;
    let lock = alive.and_then(|error| error.locked).expect("alive");
    assert_eq!(lock.lock_ttl, 100);
    b.must_cleanup(k, ts(110, 0), ts(220, 0));
    b.must_get_none(k, ts(230, 0));
}

fn scan_lock(b: &mut Bench, max_version: u64) -> Vec<LockInfo> {
    let (context, store) = b.to(b"");
    let request = ScanLockRequest {
        context,
        max_version,
        limit: 10,
        ..Default::default()
    };
    let response = b.cluster.kv_scan_lock(NOW, store, request);
    assert_eq!((response.region_error, response.error), (None, None));
    response.locks
}

#[test]
fn test_scan_lock_with_memory_lock() {
    for in_memory in [false, true] {
        let mut b = Bench::with(Config {
            in_memory_pessimistic_locks: in_memory,
            ..Default::default()
        });
        let request = PessimisticLockRequest {
            mutations: ["a", "b"]
                .map(|k| mutation(Op::PessimisticLock, k.as_bytes(), b""))
                .into(),
            lock_ttl: 3000,
            min_commit_ts: 21,
            ..Default::default()
        };
        assert_eq!(b.lock_one(request, b"a", b"a", 20, 20).errors, []);
        b.must_run(pre(b"x", 10).put(&[b"x", b"y"]));
        let kept_in_memory = b.cluster.engine().lock(&Key::from_user(b"a")).is_none();
        assert_eq!(kept_in_memory, in_memory);
        let mut expected = LockInfo {
            primary_lock: "a".into(),
            lock_version: 20,
            lock_for_update_ts: 20,
            min_commit_ts: 21,
            lock_ttl: 3000,
            key: "a".into(),
            ..Default::default()
        };
        expected.set_lock_type(Op::PessimisticLock);
        let locks = scan_lock(&mut b, 101);
        let keys: Vec<String> = locks.iter().map(|lock| text(&lock.key)).collect();
        assert_eq!(keys, ["a", "b", "x", "y"]);
        assert_eq!(locks[0], expected);
        assert_eq!((locks[2].lock_version, locks[2].lock_type()), (10, Op::Put));
    }
}

#[test]
fn test_scan_lock_with_shared_lock() {
    let mut b = Bench::new();
    let k = b"shared";
    b.must_share(k, b"pk1", 10, 11);
    b.must_share(k, b"pk2", 20, 21);
    let one = pre(b"pk2", 20).with(mutation(Op::SharedLock, k, b""));
    b.must_run(one.pessimistic(21, &[DoPessimisticCheck]));
    let locks = scan_lock(&mut b, 30);
    assert_eq!(locks.len(), 1);
    assert_eq!(locks[0].lock_type(), Op::SharedLock);
    let member = |lock: &LockInfo| {
        let primary = text(&lock.primary_lock);
        let (kind, key) = (lock.lock_type(), text(&lock.key));
        (
            lock.lock_version,
            lock.lock_for_update_ts,
            primary,
            kind,
            key,
        )
    };
    let mut members: Vec<_> = locks[0].shared_lock_infos.iter().map(member).collect();
    members.sort_by_key(|member| member.0);
    let expected = |start: u64, primary: &str, kind| {
        let key = "shared".to_owned();
        (start, start + 1, primary.to_owned(), kind, key)
    };
    let first = expected(10, "pk1", Op::PessimisticLock);
    assert_eq!(members, [first, expected(20, "pk2", Op::Lock)]);
}

fn resolve_lite(b: &mut Bench, start: u64, commit: u64, keys: &[&str]) {
    let (context, store) = b.to(b"");
    let request = ResolveLockRequest {
        context,
        start_version: start,
        commit_version: commit,
        keys: keys.iter().map(|k| Bytes::from((*k).to_owned())).collect(),
        ..Default::default()
    };
    let response = b.cluster.kv_resolve_lock(NOW, store, request);
    assert_eq!((response.region_error, response.error), (None, None));
}

#[test]
fn test_resolve_lock_lite() {
    let mut b = Bench::new();
    for (start, commit) in [(99, 0), (101, 102)] {
        b.must_run(pre(b"c", start).put(&[b"a", b"b", b"c"]));
        resolve_lite(&mut b, start, commit, &["b", "c"]);
        let left = scan_lock(&mut b, start);
        assert_eq!(left.len(), 1, "only the keys which were named");
        assert_eq!(left[0].key, "a");
        resolve_lite(&mut b, start, commit, &["a"]);
        assert_eq!(scan_lock(&mut b, start), []);
    }
    assert_eq!(b.rows(&at(200), ("", "")), "a=v b=v c=v");
}

fn check_secondaries(b: &mut Bench, keys: &[&str], start: u64) -> (Vec<String>, u64) {
    let (context, store) = b.to(b"");
    let request = CheckSecondaryLocksRequest {
        context,
        keys: keys.iter().map(|k| Bytes::from((*k).to_owned())).collect(),
        start_version: start,
    };
    let response = b.cluster.kv_check_secondary_locks(NOW, store, request);
    assert_eq!((response.region_error, response.error), (None, None));
    let locks = response.locks.iter().map(|lock| text(&lock.key)).collect();
    (locks, response.commit_ts)
}

#[test]
fn test_check_secondary_locks() {
    let mut b = Bench::new();
    for k in [b"k1", b"k2"] {
        b.must_prewrite_lock(k, b"k", 10);
    }
    let all = vec!["k1".to_owned(), "k2".to_owned()];
    assert_eq!(check_secondaries(&mut b, &["k1", "k2"], 10), (all, 0));
    assert_eq!(b.served(b"k"), 10, "a late lock cannot commit below that");
    b.must_commit(b"k1", 10, 20);
    let found = check_secondaries(&mut b, &["k1", "k2"], 10);
    assert_eq!(found, (vec![], 20));
    // One of them has never come.
    b.must_prewrite_lock(b"k3", b"k", 30);
    assert_eq!(check_secondaries(&mut b, &["k3", "k4"], 30), (vec![], 0));
    b.must_rolled_back(b"k4", 30, true);
}

#[test]
fn test_read_access_locks() {
    let mut b = Bench::new();
    b.must_prewrite_put(b"k1", b"v1", b"k1", 100);
    b.must_prewrite_put(b"k2", b"v2", b"k1", 100);
    let look = at(110).access(&[100]);
    assert_eq!(b.see(b"k1", &look), "v1");
    let (context, store) = b.to(b"k1");
    let request = BatchGetRequest {
        context: look.context(context),
        keys: vec!["k1".into(), "k2".into()],
        version: 110,
        need_commit_ts: false,
    };
    let pairs = b.cluster.kv_batch_get(NOW, store, request).pairs;
    let pairs: Vec<String> = pairs.iter().map(row).collect();
    assert_eq!(pairs, ["k1=v1", "k2=v2"]);
    assert_eq!(b.rows(&look, ("", "")), "k1=v1 k2=v2");
    assert_eq!(b.rows_down(&look, ("", "")), "k2=v2 k1=v1");
}

#[test]
fn test_async_commit_prewrite() {
    let mut b = Bench::new();
    b.max_ts(10);
    let optimistic = pre(b"c", 100).put(&[b"a", b"b", b"c"]);
    let answer = b.must_run(optimistic.by_locks(&[b"a", b"b"], 0));
    assert_eq!(answer.min_commit_ts, 101);
    for k in [b"d", b"e"] {
        b.must_lock(k, b"d", 200, 300);
    }
    b.max_ts(1000);
    let one = pre(b"d", 200).put(&[b"d", b"e"]).by_locks(&[b"e"], 0);
    let one = one.min(401);
    let answer = b.must_run(one.pessimistic(400, &[DoPessimisticCheck; 2]));
    assert_eq!(answer.min_commit_ts, 1001);
}

#[test]
fn test_overlapped_ts_rollback_before_prewrite() {
    let mut b = Bench::new();
    let (k1, k2) = (b"key1", b"key2");
    b.must_lock(k1, k1, 1, 3);
    b.must_lock(k2, k2, 10, 15);
    let mut short = pre(k2, 10).put(&[k2]);
    short.request.lock_ttl = 0;
    b.must_run(short.pessimistic(15, &[DoPessimisticCheck]));
    // Another transaction finds it expired, and in passing raises what has been served.
    let late = (1 << 18) + 8;
    let query = CheckTxnStatusRequest {
        caller_start_ts: late,
        current_ts: late,
        rollback_if_not_exist: true,
        ..Default::default()
    };
    b.check_status(k2, 10, query);
    b.must_unlocked(k2);
    b.must_written(k2, 10, 10, WriteKind::Rollback);
    let first = pre(k1, 1).put(&[k1, k2]).by_locks(&[k2], 1 << 19);
    b.must_run(first.pessimistic(3, &[DoPessimisticCheck, SkipPessimisticCheck]));
    let least = [k1, k2].map(|k| b.must_locked(k, 1).min_commit_ts);
    assert!(least.into_iter().max() > Some(10), "above the rollback");
}

#[test]
fn test_write_in_memory_pessimistic_locks() {
    let mut b = Bench::new();
    let k = b"k1";
    let request = PessimisticLockRequest {
        lock_ttl: 3000,
        min_commit_ts: 11,
        ..Default::default()
    };
    assert_eq!(b.lock_one(request, k, k, 10, 10).errors, []);
    let stored = |b: &Bench| b.cluster.engine().lock(&Key::from_user(k)).is_some();
    assert!(!stored(&b), "only the leader knows");
    let lock = b.lock_of(k).expect("a lock in memory");
    let times = (
        lock.start_ts,
        lock.for_update_ts,
        lock.ttl,
        lock.min_commit_ts,
    );
    assert_eq!(times, (10, 10, 3000, 11));
    assert_eq!(word(Some(&b.must_lock_err(k, k, 20, 20))), "locked");
    let one = pre(k, 10).put(&[k]).min(20);
    b.must_run(one.pessimistic(10, &[DoPessimisticCheck]));
    assert!(stored(&b));
    let region = b.cluster.regions().find(Key::from_user(k).encoded());
    assert!(region.is_some_and(|region| region.memory_locks.is_empty()));
}

#[test]
fn test_prewrite_cached_committed_transaction_do_not_skip_constraint_check() {
    let mut b = Bench::new();
    let k = b"k1";
    let one = || {
        let one = pre(b"pk", 10).put(&[k]).by_locks(&[], 0).min(11);
        one.pessimistic(10, &[SkipPessimisticCheck])
    };
    b.max_ts(20);
    assert_eq!(b.must_run(one().again()).min_commit_ts, 21);
    b.must_commit(k, 10, 21);
    b.must_get(k, 30, b"v");
    // It comes once more, without a word of its having come before.
    assert_eq!(b.must_run(one()).min_commit_ts, 21);
    b.must_get(k, 50, b"v");
}

#[test]
fn test_updating_txn_status_cache() {
    let mut b = Bench::new();
    let known = |b: &Bench, start: u64| {
        let store = b.cluster.store(1).expect("a store");
        store.committed.get(start)
    };
    b.must_prewrite_put(b"k1", b"v", b"k1", 10);
    assert_eq!(known(&b, 10), None);
    b.must_commit(b"k1", 10, 20);
    assert_eq!(known(&b, 10), Some(20));
    assert!(b.commit(b"k2", 30, 40).is_some());
    assert_eq!(known(&b, 30), None, "a commit which failed");
    b.max_ts(59);
    b.must_run(pre(b"k3", 50).put(&[b"k3"]).one_pc(0));
    assert_eq!(known(&b, 50), Some(60));
    b.must_prewrite_put(b"k4", b"v", b"pk", 70);
    b.resolve_all(&[(70, 80)]);
    assert_eq!(known(&b, 70), Some(80));
    b.must_prewrite_put(b"k5", b"v", b"pk", 90);
    resolve_lite(&mut b, 90, 100, &["k5"]);
    assert_eq!(known(&b, 90), Some(100));

    // A restart forgets all; asking brings some of it back.
    b.cluster.stop_store(1);
    b.cluster.start_store(NOW, 1);
    assert_eq!(known(&b, 10), None);
    let query = CheckTxnStatusRequest {
        caller_start_ts: 110,
        current_ts: 110,
        rollback_if_not_exist: true,
        ..Default::default()
    };
    b.check_status(b"k1", 9, query.clone());
    b.check_status(b"k1", 10, query);
    assert_eq!((known(&b, 9), known(&b, 10)), (None, Some(20)));
    b.must_run(pre(b"pk", 120).put(&[b"k6"]).by_locks(&[], 0));
    for keys in [&["k6"][..], &["k6", "k7"]] {
        check_secondaries(&mut b, keys, 120);
        assert_eq!(known(&b, 120), None, "locked, then rolled back");
    }
    b.must_run(pre(b"pk", 130).put(&[b"k8", b"k9"]).by_locks(&[], 0));
    let commit = b.must_locked(b"k9", 130).min_commit_ts;
    b.must_commit(b"k9", 130, commit);
    b.cluster.stop_store(1);
    b.cluster.start_store(NOW, 1);
    check_secondaries(&mut b, &["k8", "k9"], 130);
    assert_eq!(known(&b, 130), Some(commit));
}
