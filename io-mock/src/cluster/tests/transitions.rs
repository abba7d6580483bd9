//! Commands around a change of a region: of its leader, its range, its neighbours.
//!
//! Where the servers' tests stop a command in the middle, it comes before the change here, and
//! after it.

use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{
    CleanupRequest, Context, GetRequest, Op, PessimisticLockRequest, PessimisticLockResponse,
    PrewriteRequest,
};

use super::looks::at;
use super::vocabulary::{pre, word};
use super::{Bench, NOW, mutation, put};
use crate::cluster::Config;
use crate::cluster::key::{self, Key};
use crate::cluster::region::{RegionId, StoreId};

const K: &[u8] = b"key";

fn region_of(b: &Bench, k: &[u8]) -> RegionId {
    b.to(k).0.expect("a context").region_id
}

/// Locks a key under a context taken earlier.
fn lock_under(
    b: &mut Bench,
    k: &[u8],
    context: &Context,
    store: StoreId,
) -> PessimisticLockResponse {
    let request = PessimisticLockRequest {
        context: Some(Box::new(context.clone())),
        mutations: vec![mutation(Op::PessimisticLock, k, b"")],
        primary_lock: k.to_vec().into(),
        start_version: 10,
        for_update_ts: 10,
        lock_ttl: 3000,
        wait_timeout: -1,
        ..Default::default()
    };
    b.cluster.kv_pessimistic_lock(NOW, store, request)
}

fn refusal(response: PessimisticLockResponse) -> errorpb::Error {
    *response.region_error.expect("refused")
}

#[test]
fn test_pessimistic_lock_check_epoch() {
    let mut b = Bench::new();
    let id = region_of(&b, K);
    let context = Context {
        term: b.cluster.region(id).expect("a region").term,
        ..*b.to(K).0.expect("a context")
    };
    // Away and back again: the same leader, in another term.
    assert!(b.cluster.transfer_leader(NOW, id, 2));
    assert!(b.cluster.transfer_leader(NOW, id, 1));
    assert!(
        refusal(lock_under(&mut b, K, &context, 1))
            .stale_command
            .is_some()
    );
    b.must_unlocked(K);
}

#[test]
fn test_concurrent_write_after_transfer_leader_invalidates_locks() {
    let mut b = Bench::new();
    let request = PessimisticLockRequest {
        lock_ttl: 3000,
        min_commit_ts: 30,
        ..Default::default()
    };
    assert_eq!(b.lock_one(request, K, K, 10, 20).errors, []);
    let mut conflict = |moved: bool| {
        let stored = b.cluster.engine().lock(&Key::from_user(K)).is_some();
        assert_eq!(stored, moved, "handed over by being stored");
        let error = b.must_prewrite_err(put(K, b"v"), K, 20);
        let id = region_of(&b, K);
        b.cluster.transfer_leader(NOW, id, 2);
        error.locked.expect("locked")
    };
    // The lock is seen by others before and after it has been handed over, and it is the same.
    let before = conflict(false);
    let times = (
        before.lock_version,
        before.lock_for_update_ts,
        before.min_commit_ts,
    );
    assert_eq!(times, (10, 20, 30));
    assert_eq!(conflict(true), before);
}

#[test]
fn test_atomic_getting_max_ts_and_storing_memory_lock() {
    let mut b = Bench::new();
    let answer = b.must_run(pre(b"k", 40).put(&[b"k"]).by_locks(&[], 0));
    assert_eq!(answer.min_commit_ts, 41);
    let lock = b.must_get_err(b"k", 100).locked.expect("locked");
    assert_eq!(lock.min_commit_ts, 41);
    assert_eq!(b.served(b"k"), 100, "what follows commits above the read");
}

#[test]
fn test_snapshot_must_be_later_than_updating_max_ts() {
    for read_first in [true, false] {
        let mut b = Bench::new();
        let one = pre(b"j", 10).put(&[b"j"]).by_locks(&[], 0);
        if read_first {
            assert_eq!(b.see(b"j", &at(20)), "");
            assert!(b.must_run(one).min_commit_ts > 20);
        } else {
            b.must_run(one);
            assert_eq!(b.see(b"j", &at(20)), "!locked");
        }
    }
}

#[test]
fn test_exceed_max_commit_ts_in_the_middle_of_prewrite() {
    let mut b = Bench::new();
    b.max_ts(40);
    b.must_run(pre(b"k1", 10).put(&[b"k1"]).by_locks(&[], 50).min(11));
    // A read comes in between the two keys.
    b.max_ts(51);
    for _ in 0..2 {
        let both = pre(b"k1", 10).put(&[b"k1", b"k2"]).by_locks(&[], 50);
        let answer = b.must_run(both.min(11));
        let versions = (answer.min_commit_ts, answer.one_pc_commit_ts);
        assert_eq!(versions, (0, 0), "in two phases after all");
        let first = b.must_locked(b"k1", 10);
        assert_eq!((first.async_commit, first.min_commit_ts), (true, 41));
        assert!(!b.must_locked(b"k2", 10).async_commit);
    }
}

fn cleanup(b: &mut Bench) {
    let (context, store) = b.to(K);
    let request = CleanupRequest {
        context,
        key: K.into(),
        start_version: 10,
        current_ts: u64::MAX,
    };
    let response = b.cluster.kv_cleanup(NOW, store, request);
    assert_eq!((response.region_error, response.error), (None, None));
}

/// Removes a lock that only the leader holds after leadership has gone a way; there must be none
/// left for any leader.
fn delete_after(way: &[StoreId], rest: &[StoreId]) {
    let mut b = Bench::new();
    b.must_lock(K, K, 10, 10);
    let id = region_of(&b, K);
    let walk = |b: &mut Bench, way: &[StoreId]| {
        for &to in way {
            assert!(b.cluster.transfer_leader(NOW, id, to));
        }
    };
    walk(&mut b, way);
    cleanup(&mut b);
    walk(&mut b, rest);
    b.must_unlocked(K);
    b.must_rolled_back(K, 10, true);
}

#[test]
fn test_delete_lock_proposed_before_proposing_locks() {
    delete_after(&[], &[2]);
}

#[test]
fn test_delete_lock_proposed_after_proposing_locks_1() {
    delete_after(&[2], &[]);
}

#[test]
fn test_delete_lock_proposed_after_proposing_locks_2() {
    delete_after(&[2, 1], &[3]);
}

#[test]
fn test_prewrite_before_max_ts_is_synced() {
    let mut b = Bench::with(Config {
        sync_max_ts_at_once: false,
        ..Default::default()
    });
    let right = region_of(&b, K);
    let left = b.cluster.split(NOW, right, &[key::encode(b"k")])[0];
    assert!(b.cluster.transfer_leader(NOW, left, 2));
    let by_locks = |b: &mut Bench| {
        let (context, store) = b.to(K);
        let request = PrewriteRequest {
            context,
            mutations: vec![put(K, b"value")],
            primary_lock: K.into(),
            start_version: 100,
            use_async_commit: true,
            ..Default::default()
        };
        let error = b.cluster.kv_prewrite(NOW, store, request).region_error;
        error.is_some_and(|error| error.max_timestamp_not_synced.is_some())
    };
    // The other part was led elsewhere: what it has served is unknown here.
    assert!(b.cluster.merge(NOW, left, right));
    assert!(by_locks(&mut b));
    b.cluster.sync_max_ts(NOW, right);
    assert!(!by_locks(&mut b));
}

#[test]
fn test_merge_with_concurrent_pessimistic_locking() {
    let mut b = Bench::new();
    let right = region_of(&b, b"k3");
    let left = b.cluster.split(NOW, right, &[key::encode(b"k2")])[0];
    assert!(b.cluster.transfer_leader(NOW, right, 2));
    b.must_lock(b"k0", b"k0", 10, 20);
    b.must_lock(b"k1", b"k1", 10, 10);
    // Once the merge is prepared there are no new locks.
    assert!(b.cluster.prepare_merge(NOW, left));
    let (context, store) = b.to(b"k11");
    let context = *context.expect("a context");
    let error = refusal(lock_under(&mut b, b"k11", &context, store));
    assert!(error.proposal_in_merging_mode.is_some());
    assert!(b.cluster.merge(NOW, left, right));
    b.must_pessimistic_locked(b"k0", 10, 20);
    b.must_pessimistic_locked(b"k1", 10, 10);
    b.must_unlocked(b"k11");
}

#[test]
fn test_split_with_concurrent_pessimistic_locking() {
    let mut b = Bench::new();
    for cut in [b"a", b"b"] {
        let (context, store) = b.to(K);
        let before = *context.expect("a context");
        b.cluster.split(NOW, before.region_id, &[key::encode(cut)]);
        let error = refusal(lock_under(&mut b, K, &before, store));
        assert!(error.epoch_not_match.is_some());
        b.must_unlocked(K);
    }
}

/// A stale read at a store, as its peer knows the region.
fn stale(
    b: &mut Bench,
    store: StoreId,
    k: &[u8],
    version: u64,
) -> Result<String, Box<errorpb::Error>> {
    let region = b.cluster.region(region_of(b, k)).expect("a region");
    let context = Context {
        region_id: region.meta.id,
        region_epoch: region.meta.region_epoch,
        peer: region.peer_on(store).copied(),
        stale_read: true,
        ..Default::default()
    };
    let request = GetRequest {
        context: Some(Box::new(context)),
        key: k.to_vec().into(),
        version,
        need_commit_ts: false,
    };
    let response = b.cluster.kv_get(NOW, store, request);
    match response.region_error {
        Some(error) => Err(error),
        None => Ok(match response.error {
            Some(error) => format!("!{}", word(Some(&error))),
            None => super::looks::text(&response.value),
        }),
    }
}

#[test]
fn test_stale_read_on_learner() {
    let mut b = Bench::new();
    b.write(b"key1", b"value1", 1, 2);
    let id = region_of(&b, b"key1");
    assert!(b.cluster.remove_peer(NOW, id, 2));
    let learner = tikv_proto::metapb::PeerRole::Learner;
    assert_ne!(b.cluster.add_peer(NOW, id, 2, learner), 0);
    b.cluster.set_safe_ts(id, 10);
    assert_eq!(stale(&mut b, 2, b"key1", 10), Ok("value1".to_owned()));
}

#[test]
fn test_stale_read_future_ts_not_update_max_ts() {
    let mut b = Bench::new();
    b.write(b"key1", b"value1", 1, 2);
    let far = 1000;
    assert_eq!(stale(&mut b, 1, b"key1", far), Ok("value1".to_owned()));
    assert_eq!(b.served(b"key1"), 0, "it does not count as served");
    let answer = b.must_run(pre(b"key2", 10).put(&[b"key2"]).by_locks(&[], 500));
    assert_eq!(answer.min_commit_ts, 11);
    b.must_commit(b"key2", 10, 12);
    assert_eq!(stale(&mut b, 1, b"key2", far), Ok("v".to_owned()));
    let answer = b.must_run(pre(b"key3", 20).put(&[b"key3"]).one_pc(500));
    assert_eq!(answer.one_pc_commit_ts, 21, "at once, not in two phases");
}
