//! Prewriting one key: bounds of the commit version, fences, assertions, shared locks.

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::{
    DoConstraintCheck, DoPessimisticCheck, SkipPessimisticCheck,
};
use tikv_proto::kvrpcpb::{Assertion, AssertionLevel, Op};

use super::vocabulary::{SELF, pre, word};
use super::{Bench, mutation, put};
use crate::cluster::mvcc::lock::{Lock, LockKind};
use crate::cluster::mvcc::write_record::WriteKind;

/// Keys over which seven histories with fenced records lie; the flag says whether the newest
/// value still counts.
pub(super) fn fenced() -> (Bench, [(&'static [u8], bool); 7]) {
    let mut b = Bench::new();
    b.write(b"k1", b"v1", 10, 30);
    b.fence(b"k1", 30, 40);
    b.write(b"k2", b"v2", 11, 30);
    b.fence(b"k2", 30, 0);
    b.write(b"k3", b"v3", 12, 30);
    b.touch(b"k3", 37, 38);
    b.fence(b"k3", 30, 40);
    b.touch(b"k3", 42, 43);
    b.write(b"k4", b"v4", 13, 30);
    b.touch(b"k4", 37, 38);
    b.touch(b"k4", 42, 43);
    b.fence(b"k4", 30, 0);
    b.write(b"k5", b"v5", 14, 20);
    b.write(b"k5", b"v5x", 21, 30);
    b.fence(b"k5", 20, 30);
    b.fence(b"k5", 30, 40);
    b.write(b"k6", b"v6", 15, 20);
    b.write(b"k6", b"v6x", 22, 30);
    b.fence(b"k6", 20, 30);
    b.fence(b"k6", 30, 0);
    b.write(b"k7", b"v7", 16, 30);
    b.touch(b"k7", 37, 38);
    b.fence(b"k7", 30, 40);
    let counts = [
        (&b"k1"[..], false),
        (b"k2", true),
        (b"k3", false),
        (b"k4", true),
        (b"k5", false),
        (b"k6", true),
        (b"k7", false),
    ];
    (b, counts)
}

#[test]
fn test_async_commit_prewrite_check_max_commit_ts() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k1", b"k2");
    b.max_ts(42);
    let first = pre(k1, 10).put(&[k1]).by_locks(&[k2], 50);
    assert_eq!(b.must_run(first).min_commit_ts, 43);
    b.max_ts(60);
    let second = pre(k1, 10).put(&[k2]).by_locks(&[], 50);
    assert_eq!(b.must_run(second).min_commit_ts, 0);
    // What was written before keeps its promise; what comes too late makes none.
    assert!(b.must_locked(k1, 10).async_commit);
    assert!(!b.must_locked(k2, 10).async_commit);
}

#[test]
fn test_1pc_check_max_commit_ts() {
    let mut b = Bench::new();
    b.max_ts(60);
    let response = b.must_run(pre(b"k1", 10).put(&[b"k1", b"k2"]).one_pc(50));
    assert_eq!((response.one_pc_commit_ts, response.min_commit_ts), (0, 0));
    for k in [b"k1", b"k2"] {
        let lock = b.must_locked(k, 10);
        assert!(!lock.async_commit && !lock.one_pc);
    }
}

#[test]
fn test_async_commit_pessimistic_prewrite_check_max_commit_ts() {
    let mut b = Bench::new();
    b.max_ts(42);
    for k in [b"k1", b"k2"] {
        b.must_lock(k, b"k1", 10, 10);
    }
    let one = |k: &[u8], secondaries: &[&[u8]]| {
        let one = pre(b"k1", 10).put(&[k]).by_locks(secondaries, 50);
        one.pessimistic(20, &[DoPessimisticCheck])
    };
    assert_eq!(b.must_run(one(b"k1", &[b"k2"])).min_commit_ts, 43);
    b.max_ts(60);
    assert_eq!(b.must_run(one(b"k2", &[])).min_commit_ts, 0);
    assert!(!b.must_locked(b"k2", 10).async_commit);
}

#[test]
fn test_1pc_pessimistic_prewrite_check_max_commit_ts() {
    let mut b = Bench::new();
    b.max_ts(60);
    for k in [b"k1", b"k2"] {
        b.must_lock(k, b"k1", 10, 10);
    }
    let both = pre(b"k1", 10).put(&[b"k1", b"k2"]).one_pc(50);
    let both = both.pessimistic(20, &[DoPessimisticCheck; 2]);
    assert_eq!(b.must_run(both).one_pc_commit_ts, 0);
    for k in [b"k1", b"k2"] {
        assert!(!b.must_locked(k, 10).one_pc);
    }
}

#[test]
fn test_async_commit_prewrite_min_commit_ts() {
    let mut b = Bench::new();
    b.max_ts(41);
    let absent = |k: &[u8], start: u64| pre(k, start).with(mutation(Op::CheckNotExists, k, b""));
    // What writes nothing need not lie above what has been read,
    let response = b.must_run(absent(b"k0", 10).by_locks(&[], 50).min(11));
    assert_eq!(response.min_commit_ts, 11);
    // but it is a read itself.
    b.must_run(absent(b"k0", 42).min(43));
    assert_eq!(b.served(b"k0"), 42);
    let plain = pre(b"k1", 10).put(&[b"k1"]).by_locks(&[b"k2"], 50);
    assert_eq!(b.must_run(plain).min_commit_ts, 43);
    for checks in [false, true] {
        let one = |k: &[u8]| {
            let one = match checks {
                true => absent(k, 44),
                false => pre(k, 44).put(&[k]),
            };
            one.by_locks(&[b"k4"], 50)
        };
        assert_eq!(b.must_run(one(b"k3")).min_commit_ts, 45, "above the start");
        if !checks {
            let one = one(b"k5").pessimistic(45, &[SkipPessimisticCheck]);
            assert_eq!(b.must_run(one).min_commit_ts, 46, "above the lock version");
            b.must_rollback(b"k3", 44);
        }
        let asked = b.must_run(one(b"k7").min(47)).min_commit_ts;
        assert_eq!(asked, 47, "not below what is asked");
        b.must_rollback(b"k7", 44);
        b.must_rollback(b"k5", 44);
        if !checks {
            // The marks would be in the way of the second round.
            b = Bench::new();
            b.max_ts(42);
        }
    }
}

#[test]
fn test_prewrite_check_gc_fence() {
    let (mut b, cases) = fenced();
    for (k, counts) in cases {
        let expected = if counts { "exists" } else { "" };
        for op in [Op::CheckNotExists, Op::Insert] {
            let one = pre(b"k1", 50).with(mutation(op, k, b"value"));
            assert_eq!(b.try_run(one), expected, "{op:?} {k:?}");
        }
    }
}

#[test]
fn test_resend_prewrite_non_pessimistic_lock() {
    let mut b = Bench::new();
    let one = |k: &[u8], start: u64, for_update: u64, action, min: u64| {
        let one = pre(b"k1", start).put(&[k]).min(min);
        one.pessimistic(for_update, &[action])
    };
    b.must_lock(b"k1", b"k1", 10, 10);
    b.must_run(one(b"k1", 10, 10, DoPessimisticCheck, 15).by_locks(&[b"k2"], 0));
    b.must_run(one(b"k2", 10, 10, SkipPessimisticCheck, 15).by_locks(&[], 0));
    let commit_both = |b: &mut Bench, start: u64, commit: u64| {
        b.must_commit(b"k1", start, commit);
        b.must_commit(b"k2", start, commit);
    };
    commit_both(&mut b, 10, 20);
    // Again, and committing again: no effect.
    let skipped = one(b"k2", 10, 10, SkipPessimisticCheck, 15).again();
    b.must_run(skipped.clone().by_locks(&[], 0));
    commit_both(&mut b, 10, 25);
    for k in [b"k1", b"k2"] {
        assert_eq!(b.seek(k, 30), Some((20, 10, WriteKind::Put)));
    }
    for k in [b"k1", b"k2"] {
        b.must_prewrite_put(k, b"newer", b"k1", 35);
    }
    commit_both(&mut b, 35, 40);
    b.must_run(skipped.clone().by_locks(&[], 0));
    b.must_run(skipped);
    b.must_unlocked(b"k2");
    b.must_commit(b"k2", 10, 25);
    // A transaction that has not been committed finds the newer version, if it is told to look.
    let other =
        |start: u64, for_update: u64| one(b"k2", start, for_update, SkipPessimisticCheck, 0);
    assert_eq!(b.try_run(other(11, 11).again()), "lock missing");
    b.must_unlocked(b"k2");
    b.must_run(other(12, 12));
    b.must_locked(b"k2", 12);
    b.must_rollback(b"k2", 12);
    b.must_run(other(13, 55).again());
    b.must_locked(b"k2", 13);
    b.must_rollback(b"k2", 13);
    // Its own rollback is in the way, a newer one of another is not.
    b.must_rollback(b"k2", 50);
    assert_eq!(b.try_run(other(50, 50).again()), SELF);
    b.must_run(other(48, 48).again());
    b.must_locked(b"k2", 48);
}

#[test]
fn test_prewrite_with_assertion() {
    let prepare: [fn(&mut Bench, &[u8]); 5] = [
        |_, _| {},
        |b, k| b.must_cleanup(k, 3, 0),
        |b, k| b.touch(k, 3, 5),
        |b, k| {
            b.write(k, b"deleted", 3, 5);
            b.erase(k, 7, 9);
        },
        |b, k| {
            b.write(k, b"deleted", 3, 5);
            b.fence(k, 5, 7);
        },
    ];
    use Assertion::{Exist, NotExist};
    for prepare in prepare {
        for level in [
            AssertionLevel::Off,
            AssertionLevel::Fast,
            AssertionLevel::Strict,
        ] {
            let mut b = Bench::new();
            let (k1, k2, k3, k4) = (b"k1", b"k2", b"k3", b"k4");
            for k in [k1, k2, k3, k4] {
                prepare(&mut b, k);
            }
            let optimistic = |b: &mut Bench, k: &[u8], start: u64, assertion| {
                b.try_run(pre(k, start).put(&[k]).assert(assertion, level))
            };
            let pessimistic = |b: &mut Bench, k: &[u8], start: u64, assertion, action| {
                let one = pre(k, start).put(&[k]).pessimistic(start + 1, &[action]);
                b.try_run(one.assert(assertion, level))
            };
            assert_eq!(optimistic(&mut b, k1, 10, NotExist), "");
            b.must_commit(k1, 10, 15);
            assert_eq!(optimistic(&mut b, k1, 20, Exist), "");
            b.must_commit(k1, 20, 25);
            assert_eq!(
                pessimistic(&mut b, k2, 10, NotExist, DoPessimisticCheck),
                ""
            );
            b.must_commit(k2, 10, 15);
            assert_eq!(pessimistic(&mut b, k2, 20, Exist, DoPessimisticCheck), "");
            b.must_commit(k2, 20, 25);
            // Where the newest version is loaded anyway, it is checked from Fast on.
            let fails = |fails: bool| if fails { "assertion" } else { "" };
            let fast = fails(level != AssertionLevel::Off);
            let strict = fails(level == AssertionLevel::Strict);
            assert_eq!(optimistic(&mut b, k1, 30, NotExist), fast);
            assert_eq!(optimistic(&mut b, k3, 30, Exist), fast);
            let amend = DoPessimisticCheck;
            assert_eq!(pessimistic(&mut b, k2, 30, NotExist, amend), fast);
            assert_eq!(pessimistic(&mut b, k4, 30, Exist, amend), fast);
            for k in [k1, k2, k3, k4] {
                b.must_cleanup(k, 30, 0);
            }
            // Else only Strict does.
            let skip = SkipPessimisticCheck;
            assert_eq!(pessimistic(&mut b, k1, 40, NotExist, skip), strict);
            assert_eq!(pessimistic(&mut b, k3, 40, Exist, skip), strict);
            b.must_lock(k2, k2, 40, 41);
            b.must_lock(k4, k4, 40, 41);
            let locked = DoPessimisticCheck;
            assert_eq!(pessimistic(&mut b, k2, 40, NotExist, locked), strict);
            assert_eq!(pessimistic(&mut b, k4, 40, Exist, locked), strict);
        }
    }
}

#[test]
fn test_pessimistic_prewrite_check_for_update_ts() {
    let mut b = Bench::new();
    let k = b"k";
    let ask = |b: &mut Bench, start: u64, for_update: u64, expected: u64| {
        let one = pre(k, start).put(&[k]).granted_at(&[(0, expected)]);
        b.try_run(one.pessimistic(for_update, &[DoPessimisticCheck]))
    };
    for (start, locked_at, for_update, expected, commit) in [
        (10, 10, 10, 10, Some(19)),
        (20, 20, 20, 24, None),
        (30, 35, 30, 35, Some(39)),
        (40, 45, 40, 40, None),
        (50, 55, 56, 51, None),
    ] {
        b.must_lock(k, k, start, locked_at);
        let Some(commit) = commit else {
            assert_eq!(ask(&mut b, start, for_update, expected), "lock missing");
            b.must_pessimistic_locked(k, start, locked_at);
            b.pessimistic_rollback(k, start, locked_at);
            b.must_unlocked(k);
            continue;
        };
        for _ in 0..2 {
            assert_eq!(ask(&mut b, start, for_update, expected), "");
            assert!(b.must_locked(k, start).for_update_ts >= locked_at);
        }
        b.must_commit(k, start, commit);
    }
    // A lock that is as good as held has no version to compare.
    assert_eq!(ask(&mut b, 100, 105, 102), "");
    b.must_commit(k, 100, 125);
    assert_eq!(ask(&mut b, 120, 120, 120), "lock missing");
    assert_eq!(ask(&mut b, 120, 130, 130), "lock missing");
    b.must_unlocked(k);
}

#[test]
fn test_deferred_constraint_check() {
    let mut b = Bench::new();
    let insert = |b: &mut Bench, k: &[u8], ts: u64, action| {
        let m = mutation(Op::Insert, k, b"value");
        b.try_run(pre(b"key", ts).with(m).pessimistic(ts, &[action]))
    };
    b.write(b"key", b"value", 1, 5);
    assert_eq!(insert(&mut b, b"key2", 3, SkipPessimisticCheck), "");
    let lazy = insert(&mut b, b"key", 3, DoConstraintCheck);
    assert_eq!(lazy, "LazyUniquenessCheck");
    b.write(b"key", b"value", 11, 12);
    assert_eq!(insert(&mut b, b"key", 13, DoConstraintCheck), "exists");
    b.erase(b"key", 21, 22);
    assert_eq!(insert(&mut b, b"key", 23, DoConstraintCheck), "");
}

#[test]
fn test_1pc_set_lock_use_one_pc() {
    // While it is being applied, the lock of a one-phase commit is seen by a read at the
    // greatest version, which would pass the lock of a primary.
    let mut b = Bench::new();
    let k = b"k1";
    let (_, store) = b.to(k);
    for one_pc in [false, true] {
        let lock = Lock {
            one_pc,
            ..Lock::new(LockKind::Put, "k1".into(), 10, 100)
        };
        let served = b.cluster.store_mut(store).expect("a store");
        served
            .memory_locks
            .insert(crate::cluster::key::Key::from_user(k), lock);
        assert_eq!(b.get(k, u64::MAX).error.is_some(), one_pc);
    }
}

#[test]
fn test_prewrite_shared_lock_merges_sub_lock() {
    let mut b = Bench::new();
    let (k, pk) = (b"shared", b"pk");
    b.must_share(k, pk, 10, 20);
    assert_eq!(b.shared(k).members[&10].kind, LockKind::Pessimistic);
    let one = pre(pk, 10).with(mutation(Op::SharedLock, k, b""));
    let response = b.must_run(one.pessimistic(20, &[DoPessimisticCheck]));
    assert_eq!(response.min_commit_ts, 0);
    let shared = b.shared(k);
    assert_eq!(shared.members.len(), 1);
    let lock = &shared.members[&10];
    assert_eq!(
        (lock.kind, &lock.primary[..], lock.for_update_ts, lock.ttl),
        (LockKind::Lock, &pk[..], 20, 2000)
    );
}

#[test]
fn test_prewrite_shared_lock_rejects_async_commit_and_one_pc() {
    let mut b = Bench::new();
    let (k, pk) = (b"shared", b"pk");
    b.must_share(k, pk, 10, 20);
    let one = pre(pk, 10).with(mutation(Op::SharedLock, k, b""));
    let one = one.pessimistic(20, &[DoPessimisticCheck]);
    assert_eq!(b.try_run(one.clone().one_pc(50)), "abort");
    assert_eq!(b.try_run(one.by_locks(&[b"s"], 50)), "abort");
    assert!(b.shared(k).members[&10].is_pessimistic());
}

#[test]
fn test_prewrite_shared_lock_rejects_generation() {
    let mut b = Bench::new();
    let k = b"shared";
    b.must_share(k, b"pk", 10, 20);
    let (context, store) = b.to(k);
    let request = tikv_proto::kvrpcpb::FlushRequest {
        context,
        mutations: vec![mutation(Op::SharedLock, k, b"")],
        primary_key: "pk".into(),
        start_ts: 10,
        generation: 1,
        ..Default::default()
    };
    let response = b.cluster.kv_flush(super::NOW, store, request);
    assert_eq!(word(response.errors.first()), "abort");
    assert!(b.shared(k).members[&10].is_pessimistic());
}

#[test]
fn test_prewrite_shared_lock_invalid_mutations() {
    let mut b = Bench::new();
    let k = b"shared";
    b.must_share(k, b"pk", 10, 20);
    for op in [Op::Put, Op::Del, Op::Lock, Op::Insert, Op::CheckNotExists] {
        let one = pre(b"pk", 10).with(mutation(op, k, b""));
        let refused = b.try_run(one.pessimistic(20, &[DoPessimisticCheck]));
        assert_eq!(refused, "abort", "{op:?}");
    }
}

#[test]
fn test_prewrite_shared_lock_rejects_optimistic_prewrite() {
    let mut b = Bench::new();
    let k = b"shared";
    b.must_share(k, b"pk", 10, 20);
    let alone = |start: u64| pre(b"pk", start).with(mutation(Op::Lock, k, b""));
    assert_eq!(b.try_run(alone(20)), "locked");
    let together = pre(b"pk", 10).with(mutation(Op::SharedLock, k, b""));
    b.must_run(together.pessimistic(20, &[DoPessimisticCheck]));
    assert_eq!(b.try_run(alone(30)), "locked");
    assert_eq!(b.try_run(pre(b"pk", 30).with(put(k, b"v"))), "locked");
}
