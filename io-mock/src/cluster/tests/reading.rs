//! Reads at a version, lock scans, range deletion.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{self, Context, IsolationLevel, KvPair, Op, ScanRequest};

use super::{Bench, NOW, mutation, put};
use crate::cluster::key::Key;
use crate::cluster::mvcc::lock::{Lock, LockKind};

fn scan(b: &mut Bench, request: ScanRequest) -> Vec<KvPair> {
    let (context, store) = b.to(b"");
    let given = request.context.clone().unwrap_or_default();
    let context = context.map(|route| {
        Box::new(Context {
            isolation_level: given.isolation_level,
            resolved_locks: given.resolved_locks,
            committed_locks: given.committed_locks,
            ..*route
        })
    });
    let response = b
        .cluster
        .kv_scan(NOW, store, ScanRequest { context, ..request });
    assert_eq!(response.region_error, None);
    response.pairs
}

fn keys(pairs: &[KvPair]) -> Vec<&[u8]> {
    pairs.iter().map(|pair| pair.key.as_ref()).collect()
}

fn filled(count: u8) -> Bench {
    let mut b = Bench::new();
    for i in 0..count {
        let k = [b'a' + i];
        b.must_prewrite_put(&k, &[b'0' + i], &k, 10);
        b.must_commit(&k, 10, 20);
    }
    b
}

#[test]
fn test_scan() {
    let mut b = filled(4);
    let whole = ScanRequest {
        version: 30,
        limit: 10,
        ..Default::default()
    };
    assert_eq!(keys(&scan(&mut b, whole.clone())), [b"a", b"b", b"c", b"d"]);
    let part = ScanRequest {
        start_key: "b".into(),
        end_key: "d".into(),
        ..whole.clone()
    };
    assert_eq!(keys(&scan(&mut b, part.clone())), [b"b", b"c"]);
    assert_eq!(
        keys(&scan(
            &mut b,
            ScanRequest {
                limit: 1,
                ..part.clone()
            }
        )),
        [b"b"]
    );
    assert_eq!(
        scan(
            &mut b,
            ScanRequest {
                limit: 0,
                ..part.clone()
            }
        ),
        []
    );
    assert_eq!(
        scan(
            &mut b,
            ScanRequest {
                version: 15,
                ..whole.clone()
            }
        ),
        []
    );
    // Downwards: from the start, exclusive, to the end, inclusive.
    let down = ScanRequest {
        reverse: true,
        start_key: "d".into(),
        end_key: "b".into(),
        ..whole.clone()
    };
    assert_eq!(keys(&scan(&mut b, down)), [b"c", b"b"]);
    let sampled = scan(
        &mut b,
        ScanRequest {
            sample_step: 2,
            ..whole
        },
    );
    assert_eq!(keys(&sampled), [b"a", b"c"]);
}

#[test]
fn test_scan_with_key_only() {
    let mut b = filled(2);
    let request = ScanRequest {
        version: 30,
        limit: 10,
        key_only: true,
        ..Default::default()
    };
    let pairs = scan(&mut b, request.clone());
    assert_eq!(keys(&pairs), [b"a", b"b"]);
    assert!(pairs.iter().all(|pair| pair.value.is_empty()));
    // A lock is minded all the same.
    b.must_prewrite_put(b"a", b"v", b"a", 25);
    assert!(scan(&mut b, request)[0].error.is_some());
}

#[test]
fn test_scan_with_lock() {
    for reverse in [false, true] {
        let mut b = filled(5);
        b.must_prewrite_put(b"b", b"new", b"b", 25);
        b.must_prewrite_lock(b"c", b"c", 25);
        b.must_lock(b"d", b"d", 25, 25);
        b.must_prewrite_delete(b"e", b"e", 25);
        let (start_key, end_key) = if reverse { ("z", "a") } else { ("a", "z") };
        let request = ScanRequest {
            version: 30,
            limit: 10,
            reverse,
            start_key: start_key.into(),
            end_key: end_key.into(),
            ..Default::default()
        };
        let context = |context: Context| ScanRequest {
            context: Some(Box::new(context)),
            ..request.clone()
        };
        let locked = |pairs: &[KvPair]| -> Vec<Option<Bytes>> {
            let of = |pair: &KvPair| pair.error.as_ref()?.locked.as_ref().map(|l| l.key.clone());
            let mut all: Vec<_> = pairs.iter().map(of).collect();
            if reverse {
                all.reverse();
            }
            all
        };
        let expected = [None, Some("b".into()), None, None, Some("e".into())];
        assert_eq!(locked(&scan(&mut b, request.clone())), expected);
        // Below the locks nothing hinders.
        let below = ScanRequest {
            version: 24,
            ..request.clone()
        };
        assert_eq!(scan(&mut b, below).len(), 5);
        // RC does not look; a resolved lock is passed, a committed one read through.
        let rc = Context {
            isolation_level: IsolationLevel::Rc.into(),
            ..Context::default()
        };
        assert_eq!(locked(&scan(&mut b, context(rc))), vec![None; 5]);
        let bypass = Context {
            resolved_locks: vec![25],
            ..Context::default()
        };
        assert_eq!(scan(&mut b, context(bypass)).len(), 5);
        let access = Context {
            committed_locks: vec![25],
            ..Context::default()
        };
        let mut pairs = scan(&mut b, context(access));
        if reverse {
            pairs.reverse();
        }
        assert_eq!(keys(&pairs), [b"a", b"b", b"c", b"d"]);
        assert_eq!(pairs[1].value, "new");
    }
}

#[test]
fn test_rc_read_check_ts() {
    let mut b = filled(2);
    let context = Context {
        isolation_level: IsolationLevel::RcCheckTs.into(),
        ..Context::default()
    };
    let request = |version: u64| ScanRequest {
        context: Some(Box::new(context.clone())),
        version,
        limit: 10,
        ..Default::default()
    };
    assert_eq!(scan(&mut b, request(20)).len(), 2);
    // A newer version fails the whole scan, and so does a lock of any age.
    let pairs = scan(&mut b, request(19));
    let conflict = pairs[0]
        .error
        .as_ref()
        .and_then(|e| e.conflict.clone())
        .expect("newer");
    assert_eq!((conflict.conflict_commit_ts, conflict.conflict_ts), (20, 0));
    assert_eq!(conflict.key, Key::from_user(b"a").with_ts(20));
    b.must_prewrite_put(b"b", b"v", b"b", 40);
    let pairs = scan(&mut b, request(30));
    let conflict = pairs[0]
        .error
        .as_ref()
        .and_then(|e| e.conflict.clone())
        .expect("locked");
    assert_eq!((conflict.conflict_ts, &conflict.key[..]), (40, &b"b"[..]));
}

#[test]
fn test_get_latest_version_passes_the_primary_lock() {
    let mut b = filled(2);
    b.must_prewrite_put(b"a", b"v", b"a", 30);
    b.must_prewrite_put(b"b", b"v", b"a", 30);
    b.must_get(b"a", u64::MAX, b"0");
    b.must_get_err(b"b", u64::MAX);
    b.must_commit(b"a", 30, 40);
    b.must_prewrite_async(put(b"a", b"w"), b"a", &[], 50, 0);
    b.must_get_err(b"a", u64::MAX);
}

#[test]
fn test_batch_get() {
    let mut b = filled(3);
    b.must_prewrite_put(b"c", b"new", b"c", 30);
    let (context, store) = b.to(b"");
    let request = kvrpcpb::BatchGetRequest {
        context,
        keys: ["b", "x", "c", "b"].map(Bytes::from).into(),
        version: 40,
        need_commit_ts: true,
    };
    let response = b.cluster.kv_batch_get(NOW, store, request);
    assert_eq!(response.error, None);
    let found: Vec<(&[u8], u64, bool)> = response
        .pairs
        .iter()
        .map(|pair| (pair.key.as_ref(), pair.commit_ts, pair.error.is_some()))
        .collect();
    let empty: &[u8] = b"";
    assert_eq!(
        found,
        [
            (&b"b"[..], 20, false),
            (empty, 0, true),
            (&b"b"[..], 20, false)
        ]
    );
}

#[test]
fn test_check_memory_locks() {
    let mut b = filled(1);
    let (context, store) = b.to(b"a");
    let lock = Lock {
        min_commit_ts: 60,
        ..Lock::new(LockKind::Put, "a".into(), 50, 100)
    };
    let served = b.cluster.store_mut(store).expect("a store");
    served.memory_locks.insert(Key::from_user(b"a"), lock);
    b.must_get(b"a", 59, b"0");
    assert!(b.must_get_err(b"a", 60).locked.is_some());
    let request = kvrpcpb::BatchGetRequest {
        context: context.clone(),
        keys: vec!["a".into()],
        version: 60,
        need_commit_ts: false,
    };
    let response = b.cluster.kv_batch_get(NOW, store, request);
    assert!(
        response.error.is_some() && response.pairs.len() == 1,
        "all fail at once"
    );
    let scanned = scan(
        &mut b,
        ScanRequest {
            version: 70,
            limit: 1,
            ..Default::default()
        },
    );
    assert!(scanned[0].error.is_some());
    let request = kvrpcpb::ScanLockRequest {
        context,
        max_version: 50,
        ..Default::default()
    };
    let response = b.cluster.kv_scan_lock(NOW, store, request);
    assert!(response.error.expect("under way").locked.is_some());
}

#[test]
fn test_scan_lock() {
    let mut b = Bench::new();
    for (k, start_ts) in [(b"a", 100), (b"b", 105), (b"c", 90)] {
        b.must_prewrite_put(k, b"v", k, start_ts);
    }
    b.must_lock(b"d", b"d", 80, 80);
    let mut found = |max_version: u64, start: &str, end: &str, limit: u32| {
        let (context, store) = b.to(b"");
        let request = kvrpcpb::ScanLockRequest {
            context,
            max_version,
            start_key: start.to_owned().into(),
            end_key: end.to_owned().into(),
            limit,
        };
        let response = b.cluster.kv_scan_lock(NOW, store, request);
        assert_eq!((response.region_error, response.error), (None, None));
        response
            .locks
            .iter()
            .map(|l| String::from_utf8_lossy(&l.key).into_owned())
            .collect::<String>()
    };
    assert_eq!(found(99, "", "", 0), "cd");
    assert_eq!(found(100, "", "", 0), "acd");
    assert_eq!(found(u64::MAX, "b", "d", 0), "bc");
    assert_eq!(found(u64::MAX, "", "", 2), "ab");
}

#[test]
fn test_delete_range() {
    let mut b = filled(4);
    let (context, store) = b.to(b"");
    let mut request = kvrpcpb::DeleteRangeRequest {
        context,
        start_key: "b".into(),
        end_key: "d".into(),
        notify_only: true,
    };
    assert_eq!(
        b.cluster.kv_delete_range(NOW, store, request.clone()),
        Default::default()
    );
    b.must_get(b"b", 30, b"1");
    request.notify_only = false;
    assert_eq!(
        b.cluster.kv_delete_range(NOW, store, request),
        Default::default()
    );
    for (k, there) in [(b"a", true), (b"b", false), (b"c", false), (b"d", true)] {
        assert_eq!(!b.get(k, 30).not_found, there);
    }
}

#[test]
fn test_mvcc_look_ups() {
    let mut b = filled(1);
    assert_eq!(
        b.prewrite_one(mutation(Op::Put, b"a", &[7; 300]), b"a", 30),
        None
    );
    let (context, store) = b.to(b"a");
    let request = kvrpcpb::MvccGetByKeyRequest {
        context: context.clone(),
        key: "a".into(),
    };
    let info = b
        .cluster
        .mvcc_get_by_key(NOW, store, request)
        .info
        .expect("known");
    assert_eq!(info.lock.expect("locked").start_ts, 30);
    assert_eq!((info.writes.len(), info.values.len()), (1, 1));
    let request = kvrpcpb::MvccGetByStartTsRequest {
        context,
        start_ts: 10,
    };
    assert_eq!(b.cluster.mvcc_get_by_start_ts(NOW, store, request).key, "a");
}
