//! Setting a region back to an older version, key by key and as a state of the region.

use bytes::Bytes;
use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::DoPessimisticCheck;
use tikv_proto::kvrpcpb::{
    FlashbackToVersionRequest, PrepareFlashbackToVersionRequest, PrewriteRequest,
};

use super::{Bench, NOW, put};
use crate::cluster::Config;
use crate::cluster::key::Key;
use crate::cluster::mvcc::write_record::WriteKind;

/// Longer than what a lock or a record takes up.
const LONG: [u8; 256] = [b'v'; 256];

/// What is to be set back to which version, and the transaction that does it.
#[derive(Clone, Copy)]
struct Back {
    from: &'static [u8],
    version: u64,
    start_ts: u64,
    commit_ts: u64,
}

/// Sets back everything from `k` on, one timestamp after the other.
fn back(version: u64, start_ts: u64) -> Back {
    Back {
        from: b"k",
        version,
        start_ts,
        commit_ts: start_ts + 1,
    }
}

type Refusal = Option<Box<errorpb::Error>>;

impl Bench {
    fn prepare_back(&mut self, back: Back) -> Refusal {
        let (context, store) = self.to(back.from);
        let request = PrepareFlashbackToVersionRequest {
            context,
            start_key: Bytes::from_static(back.from),
            end_key: "z".into(),
            start_ts: back.start_ts,
            version: back.version,
        };
        let response = self
            .cluster
            .kv_prepare_flashback_to_version(NOW, store, request);
        assert_eq!(response.error, "");
        response.region_error
    }

    fn finish_back(&mut self, back: Back) -> Refusal {
        let (context, store) = self.to(back.from);
        let request = FlashbackToVersionRequest {
            context,
            start_key: Bytes::from_static(back.from),
            end_key: "z".into(),
            start_ts: back.start_ts,
            commit_ts: back.commit_ts,
            version: back.version,
        };
        let response = self.cluster.kv_flashback_to_version(NOW, store, request);
        assert_eq!(response.error, "");
        response.region_error
    }

    fn must_go_back(&mut self, back: Back) {
        assert_eq!(self.prepare_back(back), None);
        assert_eq!(self.finish_back(back), None);
    }

    /// Reads a value, or none.
    fn must_read(&mut self, k: &[u8], version: u64, v: Option<&[u8]>) {
        match v {
            Some(v) => self.must_get(k, version, v),
            None => self.must_get_none(k, version),
        }
    }

    /// How many records a key has.
    fn records(&self, k: &[u8]) -> usize {
        let key = Key::from_user(k);
        let history = self.cluster.engine().history(&key);
        history.map_or(0, |history| history.from(u64::MAX).count())
    }
}

#[test]
fn test_flashback_write_to_version() {
    let mut b = Bench::new();
    let k = b"k";
    b.write(k, b"v1", 1, 2);
    b.must_prewrite_put(k, b"v2", k, 4);
    b.must_rollback(k, 4);
    b.must_prewrite_delete(k, k, 6);
    b.must_rollback(k, 6);
    b.erase(k, 8, 9);
    b.write(k, b"v2", 11, 12);
    let cases: [(u64, Option<&[u8]>); 7] = [
        (1, None),
        (2, Some(b"v1")),
        (5, Some(b"v1")),
        (7, Some(b"v1")),
        (10, None),
        (13, Some(b"v2")),
        // What an earlier one has left is a version like others.
        (27, None),
    ];
    for (turn, (version, expected)) in (0..).zip(cases) {
        let back = back(version, 14 + 3 * turn);
        let before = b.records(k);
        b.must_go_back(back);
        assert_eq!(b.records(k), before + 1);
        b.must_read(k, back.commit_ts + 1, expected);
    }
}

#[test]
fn test_flashback_write_to_version_deleted() {
    let mut b = Bench::new();
    b.write(b"k", b"v", 1, 2);
    b.erase(b"k", 3, 4);
    b.must_go_back(back(1, 5));
    // It was deleted already, and is deleted once more.
    b.must_written(b"k", 5, 6, WriteKind::Delete);
    b.must_get_none(b"k", 6);
}

#[test]
fn test_flashback_write_to_version_pessimistic() {
    for in_memory_pessimistic_locks in [false, true] {
        let mut b = Bench::with(Config {
            in_memory_pessimistic_locks,
            ..Default::default()
        });
        b.write(b"k", b"v1", 10, 15);
        b.write(b"k", b"v2", 20, 25);
        b.must_lock(b"k", b"k", 30, 30);
        b.must_pessimistic_locked(b"k", 30, 30);
        b.must_go_back(back(17, 35));
        b.must_unlocked(b"k");
        // A lock that is stored leaves a rollback of its own transaction.
        if in_memory_pessimistic_locks {
            assert_eq!(b.written(b"k", 30), None);
        } else {
            b.must_rolled_back(b"k", 30, true);
        }
        let error = b.pessimistic_prewrite(put(b"k", b"v3"), b"k", 30, 30, DoPessimisticCheck);
        assert!(error.is_some());
        b.must_get(b"k", 45, b"v1");
    }
}

#[test]
fn test_duplicated_flashback_write_to_version() {
    let mut b = Bench::new();
    b.write(b"k", b"v", 1, 2);
    b.write(b"l", b"v", 1, 2);
    b.must_go_back(back(1, 3));
    let before = [b"k", b"l"].map(|k| b.records(k));
    assert_eq!(b.finish_back(back(1, 3)), None);
    assert_eq!([b"k", b"l"].map(|k| b.records(k)), before);
    b.must_get_none(b"l", 4);
}

#[test]
fn test_duplicated_prewrite_flashback_key() {
    let mut b = Bench::new();
    b.write(b"k", &LONG, 1, 2);
    b.write(b"k", b"v", 3, 4);
    assert_eq!(b.prepare_back(back(2, 5)), None);
    let lock = b.must_locked(b"k", 5);
    assert_eq!(lock.short_value, None);
    assert_eq!(b.prepare_back(back(2, 5)), None);
    assert_eq!(b.must_locked(b"k", 5), lock);
    assert_eq!(b.finish_back(back(2, 5)), None);
    b.must_get(b"k", 6, &LONG);
}

#[test]
fn test_prewrite_with_special_key() {
    let mut b = Bench::new();
    b.write(b"b", b"val", 1, 2);
    b.write(b"c", b"val", 3, 4);
    // The range begins before every key: the first key in it is locked.
    let before = Back {
        from: b"a",
        ..back(0, 5)
    };
    assert_eq!(b.prepare_back(before), None);
    b.must_locked(b"b", 5);
    b.must_unlocked(b"a");
    b.must_unlocked(b"c");
    assert_eq!(b.finish_back(before), None);
    b.must_get_none(b"b", 6);
    b.must_get_none(b"c", 6);
    // It begins behind them: there is nothing to do.
    let behind = Back {
        from: b"d",
        ..back(0, 7)
    };
    b.must_go_back(behind);
    assert_eq!((b.records(b"b"), b.records(b"c")), (2, 2));
    // Only a key with something newer is locked.
    let later = Back {
        from: b"a",
        ..back(6, 9)
    };
    b.write(b"c", b"new", 7, 8);
    assert_eq!(b.prepare_back(later), None);
    b.must_unlocked(b"b");
    b.must_locked(b"c", 9);
}

#[test]
fn test_flashback_write_to_version_rollback_shared_locks() {
    let mut b = Bench::new();
    b.write(b"k", b"v1", 10, 15);
    b.write(b"k", b"v2", 20, 25);
    b.must_share(b"k", b"pk1", 30, 30);
    b.must_share(b"k", b"pk2", 35, 35);
    b.must_go_back(back(17, 40));
    for start_ts in [30, 35] {
        b.must_rolled_back(b"k", start_ts, false);
    }
    b.must_get(b"k", 50, b"v1");
}

#[test]
fn test_flashback_to_version() {
    let mut b = Bench::new();
    let values: [Option<&[u8]>; 7] = [
        Some(b"v@1"),
        Some(b"v@3"),
        Some(b"v@5"),
        Some(b"v@7"),
        None,
        Some(b"v@11"),
        Some(&LONG),
    ];
    for (start_ts, value) in (1..).step_by(2).zip(values) {
        match value {
            Some(value) => b.write(b"k", value, start_ts, start_ts + 1),
            None => b.erase(b"k", start_ts, start_ts + 1),
        }
        b.must_read(b"k", start_ts + 1, value);
    }
    for (turn, value) in (0..).zip(values) {
        let back = back(2 * turn + 2, 15 + 2 * turn);
        b.must_go_back(back);
        b.must_read(b"k", back.commit_ts, value);
    }
}

#[test]
fn test_flashback_to_version_deleted_key() {
    let mut b = Bench::new();
    b.write(b"k", b"v", 1, 2);
    b.erase(b"k", 3, 4);
    b.must_get_none(b"k", 4);
    b.must_go_back(back(1, 5));
    b.must_get_none(b"k", 6);
}

#[test]
fn test_flashback_to_version_in_multi_batch() {
    // More than two entries of the log take of locks, and of records.
    let each = 515;
    let mut b = Bench::new();
    let key = |i: u64| format!("k{i}").into_bytes();
    for i in 1..=each {
        b.must_prewrite_put(&key(i), b"v", &key(i), i);
        assert!(b.must_get_err(&key(i), i).locked.is_some());
    }
    for i in each + 1..=2 * each {
        b.write(&key(i), b"v", 2 * i, 2 * i + 1);
        b.must_get(&key(i), 2 * i + 1, b"v");
    }
    for _ in 0..3 {
        b.must_go_back(back(0, 10_000));
        for i in 1..=2 * each {
            b.must_get_none(&key(i), 10_001);
        }
    }
}

#[test]
fn test_flashback_to_version_lock() {
    let mut b = Bench::new();
    b.write(b"k", b"v@1", 1, 2);
    b.must_prewrite_put(b"k", b"v@3", b"k", 3);
    assert!(b.must_get_err(b"k", 4).locked.is_some());
    b.must_go_back(back(2, 5));
    b.must_get(b"k", 6, b"v@1");
    b.must_go_back(back(1, 7));
    b.must_get_none(b"k", 8);
}

#[test]
fn test_mvcc_flashback_retry_prepare() {
    let mut b = Bench::new();
    b.write(b"k", b"v@1", 1, 2);
    assert_eq!(b.prepare_back(back(0, 3)), None);
    b.must_go_back(back(0, 3));
    b.must_get_none(b"k", 4);
}

fn in_progress(refusal: Refusal) -> Option<u64> {
    Some(refusal?.flashback_in_progress?.flashback_start_ts)
}

#[test]
fn test_flashback_for_read() {
    let mut b = Bench::new();
    b.must_get_none(b"k", 5);
    assert_eq!(b.prepare_back(back(0, 10)), None);
    assert_eq!(in_progress(b.get(b"k", 10).region_error), Some(10));
    assert_eq!(in_progress(b.get(b"k", 0).region_error), Some(10));
    // What is older may be read.
    b.must_get_none(b"k", 9);
    assert_eq!(b.finish_back(back(0, 10)), None);
    b.must_get_none(b"k", 20);
}

#[test]
fn test_flashback_for_write() {
    let mut b = Bench::new();
    let prewrite = |b: &mut Bench, k: &[u8]| {
        let response = b.prewrite(PrewriteRequest {
            mutations: vec![put(k, b"v")],
            primary_lock: Bytes::copy_from_slice(k),
            start_version: 20,
            ..Default::default()
        });
        response.region_error
    };
    b.write(b"k", b"v", 5, 6);
    assert_eq!(b.prepare_back(back(0, 10)), None);
    assert_eq!(in_progress(prewrite(&mut b, b"l")), Some(10));
    // It writes itself.
    assert_eq!(b.finish_back(back(0, 10)), None);
    b.must_written(b"k", 10, 11, WriteKind::Delete);
    assert_eq!(prewrite(&mut b, b"l"), None);
}

#[test]
fn test_flashback_unprepared() {
    let mut b = Bench::new();
    b.write(b"k", b"v", 5, 6);
    let refusal = b.finish_back(back(0, 10)).expect("not prepared");
    assert!(refusal.flashback_not_prepared.is_some(), "{refusal:?}");
    b.must_get(b"k", 20, b"v");
}

#[test]
fn test_flashback_with_in_memory_pessimistic_locks() {
    let mut b = Bench::new();
    let held = |b: &Bench| {
        let regions = b.cluster.regions();
        let region = regions.find(&[]).expect("a region");
        region.memory_locks.len()
    };
    let lock = |b: &mut Bench, start_ts| {
        b.lock_one(Default::default(), b"k", b"k", start_ts, start_ts)
            .region_error
    };
    assert_eq!(lock(&mut b, 5), None);
    assert_eq!(held(&b), 1);
    assert_eq!(b.prepare_back(back(0, 10)), None);
    assert_eq!(held(&b), 0);
    assert_eq!(in_progress(lock(&mut b, 20)), Some(10));
    assert_eq!(b.finish_back(back(0, 10)), None);
    assert_eq!((lock(&mut b, 20), held(&b)), (None, 1));
    b.must_pessimistic_locked(b"k", 20, 20);
}
