//! Cases about the note of where the newest data of a key stands, and what becomes of a read that
//! believes a wrong one.

use tikv_proto::kvrpcpb::Op;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction;

use super::vocabulary::pre;
use super::{Bench, mutation};
use crate::cluster::key::Key;
use crate::cluster::mvcc::engine::Change;
use crate::cluster::mvcc::last_change::LastChange;
use crate::cluster::mvcc::write_record::{WriteKind, WriteRecord};

const DO: PessimisticAction = PessimisticAction::DoPessimisticCheck;

fn at(commit_ts: u64, distance: u64) -> LastChange {
    LastChange::At {
        commit_ts,
        distance,
    }
}

impl Bench {
    /// Puts a record where no transaction would have left it.
    fn put_record(&mut self, kind: WriteKind, start_ts: u64, commit_ts: u64, note: LastChange) {
        let value = (kind == WriteKind::Put).then(|| "v".into());
        let write = WriteRecord {
            last_change: note,
            ..WriteRecord::new(kind, start_ts, value)
        };
        let change = Change::PutWrite(Key::from_user(b"k"), commit_ts, write);
        self.cluster.engine.apply(change);
    }

    /// The note on a pessimistic lock of a key, which is gone again afterwards.
    fn locked_note(&mut self, k: &[u8], start_ts: u64, for_update_ts: u64) -> LastChange {
        self.must_lock(k, k, start_ts, for_update_ts);
        let lock = self.lock_of(k).expect("it is locked");
        self.pessimistic_rollback(k, start_ts, for_update_ts);
        lock.last_change
    }
}

#[test]
fn test_calculate_last_change_ts() {
    let mut b = Bench::new();
    let unknown = LastChange::Unknown;
    b.put_record(WriteKind::Put, 15, 20, unknown);
    assert_eq!(b.locked_note(b"k", 10, 30), at(20, 1));
    b.put_record(WriteKind::Delete, 40, 50, unknown);
    assert_eq!(b.locked_note(b"k", 60, 70), at(50, 1));
    b.put_record(WriteKind::Lock, 70, 75, unknown);
    assert_eq!(b.locked_note(b"k", 80, 80), LastChange::None);
    b.put_record(WriteKind::Lock, 90, 90, unknown);
    assert_eq!(b.locked_note(b"k", 95, 95), LastChange::None);
    b.put_record(WriteKind::Lock, 100, 110, at(40, 4));
    assert_eq!(b.locked_note(b"k", 120, 130), at(40, 5));
    b.put_record(WriteKind::Rollback, 120, 120, at(40, 5));
    assert_eq!(b.locked_note(b"k", 140, 140), at(40, 6));
    assert_eq!(b.locked_note(b"k2", 150, 150), LastChange::None);
}

/// The cases of both tests that follow, which differ in how the key is prewritten.
fn prewritten_notes(prewrite: impl Fn(&mut Bench, Op, u64)) {
    let mut b = Bench::new();
    let unknown = LastChange::Unknown;
    let records = [
        (None, Op::Lock, 2, LastChange::None),
        (
            Some((WriteKind::Put, 15, 20, unknown)),
            Op::Put,
            25,
            unknown,
        ),
        (
            Some((WriteKind::Put, 30, 35, unknown)),
            Op::Lock,
            40,
            at(35, 1),
        ),
        (
            Some((WriteKind::Delete, 45, 50, unknown)),
            Op::Lock,
            55,
            at(50, 1),
        ),
        (
            Some((WriteKind::Lock, 60, 65, unknown)),
            Op::Lock,
            70,
            LastChange::None,
        ),
        (
            Some((WriteKind::Rollback, 75, 80, unknown)),
            Op::Lock,
            85,
            LastChange::None,
        ),
        (
            Some((WriteKind::Lock, 90, 95, at(20, 6))),
            Op::Lock,
            100,
            at(20, 7),
        ),
        (
            Some((WriteKind::Lock, 105, 110, at(20, 8))),
            Op::Lock,
            120,
            at(20, 9),
        ),
    ];
    for (record, op, start_ts, expected) in records {
        if let Some((kind, start, commit, note)) = record {
            b.put_record(kind, start, commit, note);
        }
        prewrite(&mut b, op, start_ts);
        assert_eq!(
            b.must_locked(b"k", start_ts).last_change,
            expected,
            "{start_ts}"
        );
        b.must_rollback(b"k", start_ts);
    }
}

#[test]
fn test_optimistic_txn_calculate_last_change_ts() {
    prewritten_notes(|b, op, start_ts| {
        assert_eq!(
            b.prewrite_one(mutation(op, b"k", b"v"), b"k", start_ts),
            None
        );
    });
}

#[test]
fn test_pessimistic_amend_txn_calculate_last_change_ts() {
    prewritten_notes(|b, op, start_ts| {
        let m = mutation(op, b"k", b"v");
        assert_eq!(
            b.pessimistic_prewrite(m, b"k", start_ts, start_ts, DO),
            None
        );
    });
}

#[test]
fn test_inherit_last_change_ts_from_pessimistic_lock() {
    for (op, expected) in [
        (Op::Lock, at(10, 1)),
        (Op::Put, LastChange::Unknown),
        (Op::Del, LastChange::Unknown),
    ] {
        let mut b = Bench::new();
        b.write(b"k", b"v", 5, 10);
        b.must_lock(b"k", b"k", 20, 20);
        let m = mutation(op, b"k", b"v");
        assert_eq!(b.pessimistic_prewrite(m, b"k", 20, 20, DO), None);
        assert_eq!(b.must_locked(b"k", 20).last_change, expected);
    }
}

#[test]
fn test_inherit_last_change_info_from_lock() {
    let mut b = Bench::new();
    b.write(b"k", b"v1", 5, 10);
    b.must_prewrite_lock(b"k", b"k", 15);
    b.must_commit(b"k", 15, 20);
    let write = b.must_written(b"k", 15, 20, WriteKind::Lock);
    assert_eq!(write.last_change, at(10, 1));
    b.write(b"k", b"v2", 25, 30);
    let write = b.must_written(b"k", 25, 30, WriteKind::Put);
    assert_eq!(write.last_change, LastChange::Unknown);
}

#[test]
fn test_1pc_calculate_last_change_ts() {
    let mut b = Bench::new();
    b.write(b"k", b"v", 10, 20);
    for (op, start_ts, expected) in [
        (Op::Lock, 30, at(20, 1)),
        (Op::Lock, 50, at(20, 2)),
        (Op::Put, 70, LastChange::Unknown),
    ] {
        let run = pre(b"k", start_ts).with(mutation(op, b"k", b"v2"));
        let commit_ts = b.must_run(run.one_pc(start_ts + 10)).one_pc_commit_ts;
        let write = b.written(b"k", commit_ts).expect("it is committed");
        assert_eq!(write.last_change, expected);
    }
}

#[test]
fn test_pessimistic_1pc_calculate_last_change_ts() {
    let mut b = Bench::new();
    b.write(b"k", b"v", 10, 20);
    for (op, start_ts, expected) in [
        (Op::Lock, 30, at(20, 1)),
        (Op::Lock, 50, at(20, 2)),
        (Op::Put, 70, LastChange::Unknown),
    ] {
        b.must_lock(b"k", b"k", start_ts, start_ts);
        let run = pre(b"k", start_ts).with(mutation(op, b"k", b"v2"));
        let run = run.pessimistic(start_ts, &[DO]).one_pc(start_ts + 10);
        let commit_ts = b.must_run(run).one_pc_commit_ts;
        let write = b.written(b"k", commit_ts).expect("it is committed");
        assert_eq!(write.last_change, expected);
    }
}

#[test]
fn test_rollback_calculate_last_change_info() {
    let mut b = Bench::new();
    b.write(b"k", b"v1", 5, 6);
    b.must_prewrite_put(b"k", b"v2", b"k", 7);
    b.must_cleanup(b"k", 10, 0);
    b.must_commit(b"k", 7, 8);
    let rollback = b.must_written(b"k", 10, 10, WriteKind::Rollback);
    assert_eq!(rollback.last_change, LastChange::Unknown);
}

#[test]
fn test_skip_lock_after_upgrade_6_5() {
    let mut b = Bench::new();
    b.put_record(WriteKind::Put, 1, 2, LastChange::Unknown);
    for start_ts in (6..30).step_by(2) {
        b.put_record(WriteKind::Lock, start_ts, start_ts + 1, LastChange::Unknown);
    }
    b.touch(b"k", 30, 31);
    let note = b.must_written(b"k", 30, 31, WriteKind::Lock).last_change;
    assert_eq!(note, at(2, 13));
    b.must_get(b"k", 100, b"v");
}

#[test]
fn test_point_get_non_exist_skip_lock() {
    let mut b = Bench::new();
    for start_ts in (1..30).step_by(2) {
        b.touch(b"k", start_ts, start_ts + 1);
        let write = b.must_written(b"k", start_ts, start_ts + 1, WriteKind::Lock);
        assert_eq!(write.last_change, LastChange::None);
    }
    b.must_get_none(b"k", 40);
}

#[test]
fn a_transaction_that_commits_below_what_it_has_seen_hides_older_values() {
    let mut b = Bench::new();
    b.write(b"k", b"old", 5, 10);
    b.erase(b"k", 20, 30);
    b.must_cleanup(b"k", 35, 0);
    // Nothing is there when the key is locked, and that is what the lock says.
    b.must_lock(b"k", b"k", 8, 40);
    let m = mutation(Op::Lock, b"k", b"");
    assert_eq!(b.pessimistic_prewrite(m, b"k", 8, 40, DO), None);
    b.must_get(b"k", 25, b"old");
    b.must_commit(b"k", 8, 15);
    b.must_get_none(b"k", 25);
    b.must_get(b"k", 14, b"old");
}
