//! Commit, cleanup, rollback and heartbeat of one key.

use bytes::Bytes;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::{
    DoPessimisticCheck, SkipPessimisticCheck,
};
use tikv_proto::kvrpcpb::{
    CheckTxnStatusRequest, CommitRequest, CommitRole, Context, KeyError, Op,
    PessimisticRollbackRequest, PrewriteRequest, TxnHeartBeatRequest,
};

use super::vocabulary::{pre, word};
use super::{Bench, NOW, mutation, put, ts};
use crate::cluster::mvcc::lock::LockKind;
use crate::cluster::mvcc::write_record::WriteKind;

fn commit_as(
    b: &mut Bench,
    k: &[u8],
    start: u64,
    commit: u64,
    role: CommitRole,
) -> Option<KeyError> {
    let (context, store) = b.to(k);
    let mut request = CommitRequest {
        context,
        start_version: start,
        commit_version: commit,
        keys: vec![Bytes::copy_from_slice(k)],
        ..Default::default()
    };
    request.set_commit_role(role);
    let response = b.cluster.kv_commit(NOW, store, request);
    response.error.map(|error| *error)
}

#[test]
fn test_min_commit_ts() {
    let mut b = Bench::new();
    let (k, k2) = (b"k", b"k2");
    let push = |b: &mut Bench, start: u64, caller: u64, min: u64| {
        let query = CheckTxnStatusRequest {
            caller_start_ts: caller,
            current_ts: caller,
            rollback_if_not_exist: true,
            ..Default::default()
        };
        let info = b.check_status(k, start, query).lock_info.expect("alive");
        assert_eq!((info.lock_ttl, info.min_commit_ts), (100, min));
    };
    b.must_run(pre(k, ts(10, 0)).put(&[k]).min(ts(10, 1)));
    b.must_run(pre(k, ts(10, 0)).put(&[k2]).min(ts(20, 1)));
    push(&mut b, ts(10, 0), ts(20, 0), ts(20, 1));
    // The primary may have been pushed; on another key it is worth a closer look.
    for (key, commit, role, looks) in [
        (&k[..], ts(15, 0), CommitRole::Unknown, false),
        (k2, ts(15, 0), CommitRole::Secondary, true),
        (k2, ts(20, 0), CommitRole::Unknown, true),
    ] {
        let error = commit_as(&mut b, key, ts(10, 0), commit, role).expect("too early");
        let expired = error.commit_ts_expired.expect("expired");
        let told = (expired.start_ts, expired.attempted_commit_ts);
        assert_eq!(told, (ts(10, 0), commit));
        assert_eq!((expired.min_commit_ts, &expired.key[..]), (ts(20, 1), key));
        let debug = error.debug_info.is_some_and(|d| !d.mvcc_info.is_empty());
        assert_eq!(debug, looks);
    }
    b.must_commit(k, ts(10, 0), ts(20, 1));
    b.must_run(pre(k, ts(30, 0)).put(&[k]).min(ts(30, 1)));
    push(&mut b, ts(30, 0), ts(40, 0), ts(40, 1));
    b.must_commit(k, ts(30, 0), ts(50, 0));
    // What a pessimistic lock was pushed to is kept when it is prewritten.
    let request = tikv_proto::kvrpcpb::PessimisticLockRequest {
        lock_ttl: 100,
        min_commit_ts: ts(60, 1),
        ..Default::default()
    };
    b.lock_one(request, k, k, ts(60, 0), ts(60, 0));
    push(&mut b, ts(60, 0), ts(70, 0), ts(70, 1));
    let mut one = pre(k, ts(60, 0)).put(&[k]).min(ts(60, 1));
    one.request.lock_ttl = 50;
    b.must_run(one.pessimistic(ts(60, 0), &[DoPessimisticCheck]));
    let lock = b.must_locked(k, ts(60, 0));
    assert_eq!((lock.ttl, lock.min_commit_ts), (100, ts(70, 1)));
    let early = b.commit(k, ts(60, 0), ts(65, 0));
    assert_eq!(word(early.as_ref()), "expired");
    b.must_commit(k, ts(60, 0), ts(80, 0));
}

#[test]
fn test_2pc_with_txn_source() {
    for txn_source in [0x1, 0x85] {
        let mut b = Bench::new();
        let k = b"k";
        let (context, store) = b.to(k);
        let context = context.map(|context| {
            Box::new(Context {
                txn_source,
                ..*context
            })
        });
        let request = PrewriteRequest {
            context,
            mutations: vec![put(k, b"v2")],
            primary_lock: Bytes::from_static(k),
            start_version: 25,
            ..Default::default()
        };
        assert_eq!(b.cluster.kv_prewrite(NOW, store, request).errors, []);
        assert_eq!(b.must_locked(k, 25).txn_source, txn_source);
        b.must_commit(k, 25, 30);
        let write = b.must_written(k, 25, 30, WriteKind::Put);
        assert_eq!(write.txn_source, txn_source);
    }
}

#[test]
fn test_commit_rollback_pessimistic_lock() {
    let mut b = Bench::new();
    for k in [b"k1", b"k2"] {
        b.must_lock(k, b"k1", 10, 10);
    }
    let one = pre(b"k1", 10).put(&[b"k1"]);
    b.must_run(one.pessimistic(10, &[DoPessimisticCheck]));
    for k in [b"k1", b"k2"] {
        b.must_commit(k, 10, 20);
        b.must_unlocked(k);
    }
    b.must_written(b"k1", 10, 20, WriteKind::Put);
    assert_eq!(b.seek(b"k2", u64::MAX), None, "never prewritten");
}

#[test]
fn test_commit_txn_lock_not_found() {
    let mut b = Bench::new();
    for k in [b"k1", b"k2"] {
        b.must_prewrite_put(k, b"v", b"k1", 10);
        b.must_rollback(k, 10);
    }
    b.must_prewrite_put(b"k4", b"v4", b"k1", 11);
    let mut ask = |k: &[u8], role| {
        let error = commit_as(&mut b, k, 10, 20, role).expect("no lock");
        assert_eq!(error.txn_lock_not_found.expect("no lock").key, k);
        error.debug_info.map(|debug| debug.mvcc_info)
    };
    assert_eq!(ask(b"k1", CommitRole::Primary), None);
    assert_eq!(ask(b"k2", CommitRole::Unknown), None);
    assert_eq!(ask(b"k3", CommitRole::Unknown), None);
    // Rolled back, nothing at all, another transaction's lock.
    for (k, locked, writes) in [(b"k2", false, 1), (b"k3", false, 0), (b"k4", true, 0)] {
        let told = ask(k, CommitRole::Secondary).expect("worth a closer look");
        let info = told[0].mvcc.clone().expect("its versions");
        assert_eq!(&told[0].key[..], k);
        assert_eq!((info.lock.is_some(), info.writes.len()), (locked, writes));
    }
}

/// Joins a key's shared locks and prewrites there.
fn share_and_prewrite(b: &mut Bench, k: &[u8], pk: &[u8], start: u64, for_update: u64) {
    b.must_share(k, pk, start, for_update);
    let one = pre(pk, start).with(mutation(Op::SharedLock, k, b""));
    b.must_run(one.pessimistic(for_update, &[DoPessimisticCheck]));
}

fn members(b: &Bench, k: &[u8]) -> Vec<u64> {
    b.shared(k).members.into_keys().collect()
}

#[test]
fn test_commit_shared_lock_keeps_remaining_entries() {
    let mut b = Bench::new();
    let k = b"shared";
    share_and_prewrite(&mut b, k, b"pk1", 10, 15);
    share_and_prewrite(&mut b, k, b"pk2", 20, 25);
    b.must_commit(k, 10, 30);
    b.must_written(k, 10, 30, WriteKind::Lock);
    assert_eq!(members(&b, k), [20]);
    b.must_commit(k, 20, 40);
    b.must_written(k, 20, 40, WriteKind::Lock);
    b.must_unlocked(k);
    b.must_prewrite_put(k, b"v", k, 50);
}

#[test]
fn test_commit_shared_lock_reads_pending_lock_bytes() {
    // Two members in one command: the second sees what the first has left.
    let mut b = Bench::new();
    let k = b"shared";
    share_and_prewrite(&mut b, k, b"pk1", 10, 15);
    share_and_prewrite(&mut b, k, b"pk2", 20, 25);
    b.resolve_all(&[(10, 30), (20, 40)]);
    b.must_written(k, 10, 30, WriteKind::Lock);
    b.must_written(k, 20, 40, WriteKind::Lock);
    b.must_prewrite_put(k, b"v", k, 50);
}

#[test]
fn test_commit_stale_pessimistic_lock_preserves_other_shared_locks() {
    let mut b = Bench::new();
    let k = b"shared";
    b.must_share(k, b"pk1", 10, 11);
    share_and_prewrite(&mut b, k, b"pk2", 20, 25);
    b.must_commit(k, 10, 30);
    assert_eq!(members(&b, k), [20]);
    assert_eq!(b.written(k, 30), None);
}

#[test]
fn test_must_cleanup_with_gc_fence() {
    let mut b = Bench::new();
    let k = b"k";
    b.write(k, b"v", 10, 20);
    b.write(k, b"v2", 25, 30);
    b.must_cleanup(k, 20, 0);
    let write = b.must_written(k, 10, 20, WriteKind::Put);
    assert_eq!(
        (write.overlapped_rollback, write.gc_fence),
        (true, Some(30))
    );
}

#[test]
fn test_cleanup_shared_lock() {
    let mut b = Bench::new();
    let k = b"shared";
    b.must_share(k, b"pk", ts(20, 0), ts(25, 0));
    let alive = b.cleanup(k, ts(20, 0), ts(2020, 0)).error;
    assert_eq!(word(alive.as_deref()), "locked");
    b.must_cleanup(k, ts(20, 0), ts(2021, 0));
    b.must_rolled_back(k, ts(20, 0), false);
    share_and_prewrite(&mut b, k, b"pk", ts(30, 0), ts(35, 0));
    assert_eq!(b.shared(k).members[&ts(30, 0)].kind, LockKind::Lock);
    let alive = b.cleanup(k, ts(30, 0), ts(2030, 0)).error;
    assert_eq!(word(alive.as_deref()), "locked");
    b.must_cleanup(k, ts(30, 0), ts(2035, 0));
    b.must_rolled_back(k, ts(30, 0), false);
    b.must_unlocked(k);
}

#[test]
fn test_cleanup_shared_lock_reads_pending_lock_bytes() {
    let mut b = Bench::new();
    let k = b"shared";
    share_and_prewrite(&mut b, k, b"pk1", 10, 15);
    share_and_prewrite(&mut b, k, b"pk2", 20, 25);
    b.resolve_all(&[(10, 0), (20, 0)]);
    for start in [10, 20] {
        b.must_written(k, start, start, WriteKind::Rollback);
    }
    b.must_prewrite_put(k, b"v", k, 50);
}

#[test]
fn test_cleanup_shared_lock_returns_released_lock() {
    let mut b = Bench::new();
    let k = b"shared";
    b.must_share(k, b"pk", ts(40, 0), ts(45, 0));
    b.must_share(k, b"pk", ts(50, 0), ts(55, 0));
    b.must_cleanup(k, ts(40, 0), ts(9000, 0));
    b.must_rolled_back(k, ts(40, 0), false);
    assert_eq!(
        word(Some(&b.must_lock_err(k, k, ts(60, 0), ts(60, 0)))),
        "locked"
    );
    // Only the last one who leaves frees the key.
    b.must_cleanup(k, ts(50, 0), ts(9000, 0));
    b.must_rolled_back(k, ts(50, 0), false);
    b.must_lock(k, k, ts(60, 0), ts(60, 0));
}

#[test]
fn rollback_lock_with_existing_rollback() {
    let mut b = Bench::new();
    b.must_lock(b"k1", b"k1", 10, 10);
    b.must_rollback(b"k1", 10);
    b.must_rollback(b"k2", 10);
    // A prewrite that comes late and skips the check finds no rollback in its way.
    let late = pre(b"k1", 10).put(&[b"k2"]);
    b.must_run(late.pessimistic(10, &[SkipPessimisticCheck]));
    b.must_rollback(b"k2", 10);
    b.must_unlocked(b"k2");
}

#[test]
fn rollback_shared_lock() {
    let mut b = Bench::new();
    let k = b"shared";
    b.must_share(k, b"pk1", 10, 30);
    b.must_share(k, b"pk2", 20, 40);
    b.must_rollback(k, 10);
    b.must_rolled_back(k, 10, false);
    assert_eq!(members(&b, k), [20]);
    b.must_rollback(k, 20);
    b.must_rolled_back(k, 20, false);
    b.must_prewrite_put(k, b"v", k, 50);
}

#[test]
fn test_pessimistic_rollback() {
    let mut b = Bench::new();
    let k = b"k1";
    b.must_lock(k, k, 1, 1);
    for _ in 0..2 {
        b.pessimistic_rollback(k, 1, 1);
        b.must_unlocked(k);
        assert_eq!(b.seek(k, u64::MAX), None, "it leaves no mark");
    }
    b.pessimistic_rollback(k, 2, 2);
    b.must_lock(k, k, 2, 3);
    for (start, for_update) in [(1, 1), (1, 2), (1, 3), (1, 4), (3, 3), (4, 4), (2, 2)] {
        b.pessimistic_rollback(k, start, for_update);
        b.must_pessimistic_locked(k, 2, 3);
    }
    b.pessimistic_rollback(k, 2, 4);
    b.must_unlocked(k);
    b.must_prewrite_put(k, b"v1", k, 3);
    for (start, for_update) in [(3, 3), (2, 2), (2, 3), (2, 4), (4, 4)] {
        b.pessimistic_rollback(k, start, for_update);
        b.must_locked(k, 3);
    }
    b.must_commit(k, 3, 4);
    for for_update in [3, 4, 5] {
        b.pessimistic_rollback(k, 3, for_update);
    }
    assert_eq!(b.commit_of(k, 3), Some(4));
}

#[test]
fn test_rollback_shared_pessimistic_lock() {
    let mut b = Bench::new();
    let k = b"shared";
    b.must_share(k, b"pk1", 10, 30);
    b.must_share(k, b"pk2", 20, 20);
    b.pessimistic_rollback(k, 10, 30);
    assert_eq!(members(&b, k), [20]);
    b.pessimistic_rollback(k, 20, 20);
    b.must_prewrite_put(k, b"v", k, 50);
}

/// Removes a transaction's pessimistic locks of the whole region.
fn pessimistic_rollback_all(b: &mut Bench, start_version: u64, for_update_ts: u64) {
    let (context, store) = b.to(b"");
    let request = PessimisticRollbackRequest {
        context,
        start_version,
        for_update_ts,
        keys: vec![],
    };
    let response = b.cluster.kv_pessimistic_rollback(NOW, store, request);
    assert_eq!((response.region_error, response.errors), (None, vec![]));
}

#[test]
fn test_read_shared_pessimistic_lock() {
    let mut b = Bench::new();
    let k = b"shared";
    b.must_share(k, b"pk1", 10, 30);
    share_and_prewrite(&mut b, k, b"pk2", 20, 30);
    // An older version, another transaction, a prewritten member: nothing.
    for (start, for_update) in [(10, 20), (30, 40), (20, 40)] {
        pessimistic_rollback_all(&mut b, start, for_update);
        assert_eq!(members(&b, k), [10, 20]);
    }
    pessimistic_rollback_all(&mut b, 10, 30);
    assert_eq!(members(&b, k), [20]);
}

#[test]
fn test_pessimistic_rollback_with_scan_first() {
    for in_memory in [false, true] {
        let mut b = Bench::with(crate::cluster::Config {
            in_memory_pessimistic_locks: in_memory,
            ..Default::default()
        });
        let keys: [&[u8]; 3] = [b"k1", b"k2", b"k3"];
        for k in keys {
            b.must_lock(k, b"k1", 10, 10);
        }
        b.must_lock(b"other", b"other", 11, 11);
        b.must_lock(b"k3", b"k1", 10, 20);
        pessimistic_rollback_all(&mut b, 10, 10);
        b.must_unlocked(b"k1");
        b.must_unlocked(b"k2");
        b.must_pessimistic_locked(b"k3", 10, 20);
        b.must_pessimistic_locked(b"other", 11, 11);
    }
}

#[test]
fn test_txn_heart_beat() {
    let mut b = Bench::new();
    let k = b"k1";
    let lost = |b: &mut Bench, start: u64| {
        let error = b.heart_beat(k, start, 150).error;
        assert_eq!(word(error.as_deref()), "no transaction");
    };
    let cases = |b: &mut Bench, start: u64| {
        for (asked, ttl) in [(100, 100), (90, 100), (110, 110), (90, 110)] {
            assert_eq!(b.heart_beat(k, start, asked).lock_ttl, ttl);
        }
        lost(b, start - 1);
        lost(b, start + 1);
        assert_eq!(b.heart_beat(k, start, 90).lock_ttl, 110);
    };
    lost(&mut b, 5);
    b.must_prewrite_put(k, b"v1", k, 5);
    cases(&mut b, 5);
    b.must_locked(k, 5);
    b.must_commit(k, 5, 10);
    lost(&mut b, 5);
    lost(&mut b, 10);
    b.must_lock(k, k, 8, 15);
    cases(&mut b, 8);
    b.must_pessimistic_locked(k, 8, 15);
}

fn beat(b: &mut Bench, k: &[u8], min_commit_ts: u64) -> tikv_proto::kvrpcpb::TxnHeartBeatResponse {
    let (context, store) = b.to(k);
    let request = TxnHeartBeatRequest {
        context,
        primary_lock: Bytes::copy_from_slice(k),
        start_version: 5,
        advise_lock_ttl: 3333,
        min_commit_ts,
        ..Default::default()
    };
    b.cluster.kv_txn_heart_beat(NOW, store, request)
}

#[test]
fn test_heartbeat_piggyback_min_commit_ts() {
    let mut b = Bench::new();
    assert_eq!(b.flush(5, 1, put(b"k1", b"v1")), "");
    assert_eq!(beat(&mut b, b"k1", 10).lock_ttl, 3333);
    let lock = b.must_locked(b"k1", 5);
    assert_eq!((lock.ttl, lock.min_commit_ts), (3333, 10));
    // A lock of another kind is not pushed by its own heartbeat.
    b.must_prewrite_put(b"k2", b"v1", b"k2", 5);
    beat(&mut b, b"k2", 10);
    assert_eq!(b.must_locked(b"k2", 5).min_commit_ts, 0);
}

#[test]
fn test_txn_heartbeat_rejects_shared_lock_key() {
    let mut b = Bench::new();
    let k = b"k1";
    b.must_share(k, b"pk", 5, 5);
    let before = b.shared(k);
    let error = beat(&mut b, k, 0).error;
    assert_eq!(word(error.as_deref()), "not the primary");
    assert_eq!(b.shared(k), before);
}

#[test]
fn test_txn_heartbeat_rejects_shared_lock_with_pipelined_fields() {
    let mut b = Bench::new();
    let k = b"k1";
    b.must_share(k, b"pk", 5, 5);
    let mut before = b.shared(k);
    let member = before.members.get_mut(&5).expect("a member");
    (member.generation, member.min_commit_ts) = (1, 20);
    b.set_shared(k, before.clone());
    let error = beat(&mut b, k, 30).error;
    assert_eq!(word(error.as_deref()), "not the primary");
    assert_eq!(b.shared(k), before);
}
