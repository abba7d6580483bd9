//! Prewrites that are answered before they are applied, and reads that come too late.

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::{
    DoPessimisticCheck, SkipPessimisticCheck,
};
use tikv_proto::kvrpcpb::{BatchGetRequest, Context, GetRequest};

use super::vocabulary::{Pre, pre};
use super::{Bench, NOW};
use crate::cluster::load::Load;
use crate::cluster::region::RegionId;

const K: &[u8] = b"key";

impl Bench {
    /// Has what is proposed from now on wait to be applied.
    fn hold(&mut self) -> RegionId {
        let id = self.to(K).0.expect("a context").region_id;
        self.cluster.hold_writes(id);
        id
    }

    /// A read meets a lock that nobody has stored yet.
    fn must_meet_lock(&mut self, version: u64, start_ts: u64) {
        let locked = self.must_get_err(K, version).locked.expect("locked");
        assert_eq!(locked.lock_version, start_ts);
        assert_eq!(self.lock_of(K), None, "it is in memory only");
    }
}

/// A prewrite of the key, optimistic or pessimistic, of a key that has been locked or not.
fn one(b: &mut Bench, start_ts: u64, pessimistic: bool, locked: bool) -> Pre {
    if locked {
        b.must_lock(K, K, start_ts, start_ts);
    }
    let action = if locked {
        DoPessimisticCheck
    } else {
        SkipPessimisticCheck
    };
    let one = pre(K, start_ts).put(&[K]);
    match pessimistic {
        true => one.pessimistic(start_ts, &[action]),
        false => one,
    }
}

#[test]
fn test_async_apply_prewrite() {
    let mut b = Bench::new();
    for (start_ts, pessimistic, locked) in [(10, false, false), (20, true, false)] {
        let id = b.hold();
        let request = one(&mut b, start_ts, pessimistic, locked).by_locks(&[], 0);
        let min_commit_ts = b.must_run(request).min_commit_ts;
        assert!(min_commit_ts > start_ts);
        b.must_meet_lock(min_commit_ts + 1, start_ts);
        // A commit comes behind it.
        b.must_commit(K, start_ts, min_commit_ts);
        b.cluster.release_writes(NOW, id);
        b.must_get(K, min_commit_ts + 1, b"v");
    }
    let request = one(&mut b, 30, true, true).by_locks(&[], 0);
    let id = b.hold();
    let min_commit_ts = b.must_run(request).min_commit_ts;
    assert!(min_commit_ts > 30);
    let locked = b.must_get_err(K, min_commit_ts + 1).locked;
    assert_eq!(locked.expect("locked").lock_version, 30);
    b.must_commit(K, 30, min_commit_ts);
    b.cluster.release_writes(NOW, id);
    b.must_get(K, min_commit_ts + 1, b"v");
    // Any other prewrite leaves nothing in memory, and is not answered before it is applied.
    for (start_ts, pessimistic, locked) in [(40, false, false), (50, true, false), (60, true, true)]
    {
        let request = one(&mut b, start_ts, pessimistic, locked);
        let id = b.hold();
        assert_eq!(b.must_run(request).min_commit_ts, 0);
        assert!(b.get(K, start_ts + 5).error.is_none());
        b.cluster.release_writes(NOW, id);
        b.must_commit(K, start_ts, start_ts + 5);
        b.must_get(K, start_ts + 6, b"v");
    }
}

#[test]
fn test_async_apply_prewrite_1pc() {
    let mut b = Bench::new();
    let id = b.hold();
    let request = one(&mut b, 10, false, false).one_pc(0);
    let commit_ts = b.must_run(request).one_pc_commit_ts;
    assert!(commit_ts > 10);
    b.must_meet_lock(commit_ts + 1, 10);
    b.cluster.release_writes(NOW, id);
    b.must_get(K, commit_ts + 1, b"v");

    let request = one(&mut b, 20, true, true).one_pc(0);
    let id = b.hold();
    let commit_ts = b.must_run(request).one_pc_commit_ts;
    assert!(commit_ts > 20);
    let locked = b.must_get_err(K, commit_ts + 1).locked;
    assert_eq!(locked.expect("locked").lock_version, 20);
    b.cluster.release_writes(NOW, id);
    b.must_get(K, commit_ts + 1, b"v");
    b.must_unlocked(K);
}

#[test]
fn test_async_apply_prewrite_fallback() {
    let mut b = Bench::new();
    let id = b.hold();
    let request = one(&mut b, 10, false, false).by_locks(&[], 0);
    // The answer is the same when it comes after the write has been applied.
    let min_commit_ts = b.must_run(request).min_commit_ts;
    b.cluster.release_writes(NOW, id);
    assert!(min_commit_ts > 10);
    assert_eq!(b.must_locked(K, 10).min_commit_ts, min_commit_ts);
    let store = b.to(K).1;
    let store = b.cluster.store(store).expect("a store");
    assert!(store.memory_locks.is_empty());
    b.must_commit(K, 10, min_commit_ts);
    b.must_get(K, min_commit_ts, b"v");
}

#[test]
fn test_deadline_exceeded_on_get_and_batch_get() {
    let mut b = Bench::new();
    b.write(b"a", b"v", 1, 2);
    b.cluster.store_mut(1).expect("a store").load = Load {
        read_wait_ms: 100,
        ..Load::default()
    };
    for (limit, exceeded) in [(20, true), (100, false), (0, false)] {
        let (context, store) = b.to(b"a");
        let context = context.map(|context| {
            Box::new(Context {
                max_execution_duration_ms: limit,
                ..*context
            })
        });
        let get = GetRequest {
            context: context.clone(),
            key: "a".into(),
            version: 5,
            need_commit_ts: false,
        };
        let batch_get = BatchGetRequest {
            context,
            keys: vec!["a".into()],
            version: 5,
            need_commit_ts: false,
        };
        let one = b.cluster.kv_get(NOW, store, get);
        let many = b.cluster.kv_batch_get(NOW, store, batch_get);
        assert_eq!(
            (one.value == "v", many.pairs.len() == 1),
            (!exceeded, !exceeded)
        );
        for error in [one.region_error, many.region_error] {
            let busy = error.and_then(|error| error.server_is_busy);
            let reason = busy.map(|busy| busy.reason);
            assert_eq!(reason.is_some(), exceeded, "{limit}");
            assert!(reason.is_none_or(|reason| reason == "deadline is exceeded"));
        }
    }
}
