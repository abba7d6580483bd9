//! Locks and records, with everything that may be in them, survive being saved.

use std::collections::BTreeMap;

use prost::Message;

use super::*;

/// As it is when it has been written and read back.
fn again<M: Message + Default>(saved: &M) -> M {
    M::decode(&saved.encode_to_vec()[..]).expect("just written")
}

/// The same engine, saved and loaded.
fn reloaded(engine: &Engine) -> Engine {
    let locks = save_locks(engine).iter().map(again).collect();
    let histories = save_histories(engine).iter().map(again).collect();
    load_engine(locks, histories, Vec::new()).expect("just saved")
}

fn locks() -> Vec<Lock> {
    let plain = |kind| Lock::new(kind, "pk".into(), 1, 10);
    let put = plain(LockKind::Put);
    let short = Some(Bytes::from_static(b"short"));
    let mut locks: Vec<Lock> = LOCK_KINDS.into_iter().map(plain).collect();
    locks.extend([
        Lock {
            short_value: short.clone(),
            ..put.clone()
        },
        Lock {
            // There is one, and it is empty.
            short_value: Some(Bytes::new()),
            ..put.clone()
        },
        Lock {
            for_update_ts: 10,
            ..put.clone()
        },
        Lock {
            txn_size: 16,
            min_commit_ts: 8,
            ..put.clone()
        },
        Lock {
            async_commit: true,
            secondaries: vec!["sec1".into(), Bytes::new(), "sec2".into()],
            ..put.clone()
        },
        Lock {
            one_pc: true,
            rollback_ts: vec![12, 24, 13],
            ..put.clone()
        },
        Lock {
            txn_source: 1,
            locked_with_conflict: true,
            generation: 10,
            ..put.clone()
        },
        Lock {
            short_value: short,
            for_update_ts: u64::MAX,
            ttl: u64::MAX,
            txn_size: u64::MAX,
            ..plain(LockKind::Delete)
        },
    ]);
    locks
}

#[test]
fn test_lock() {
    for lock in locks() {
        let key = Key::from_user(b"k");
        let saved = again(&save_exclusive(&key, &lock));
        assert_eq!(load_exclusive(saved).ok(), Some((key, lock)));
    }
    // Beside others, a single one as well.
    for shrink_only in [false, true] {
        for count in [1, locks().len()] {
            let members = (1..).zip(locks()).take(count);
            let members = members.map(|(start_ts, lock)| (start_ts, Lock { start_ts, ..lock }));
            let members: BTreeMap<u64, Lock> = members.collect();
            let shared = KeyLock::Shared(SharedLocks {
                shrink_only,
                written: members.keys().rev().copied().collect(),
                members,
            });
            let mut engine = Engine::default();
            let key = Key::from_user(b"k");
            engine.apply(Change::PutLock(key.clone(), shared.clone()));
            assert_eq!(reloaded(&engine).lock(&key), Some(&shared));
        }
    }
    // What nobody can have written is refused.
    let nobody = wire::KeyLock::default();
    assert!(load_exclusive(nobody).is_err());
    let mut strange = save_exclusive(&Key::from_user(b"k"), &locks()[0]);
    strange.locks[0].kind = 99;
    assert!(load_exclusive(strange).is_err());
}

#[test]
fn test_write() {
    let short = Some(Bytes::from_static(b"short"));
    let plain = |kind| WriteRecord::new(kind, 5, None);
    let put = plain(WriteKind::Put);
    let mut records: Vec<WriteRecord> = WRITE_KINDS.into_iter().map(plain).collect();
    records.extend([
        WriteRecord::new(WriteKind::Put, u64::MAX, short.clone()),
        WriteRecord::new(WriteKind::Put, 0, Some(Bytes::new())),
        WriteRecord {
            overlapped_rollback: true,
            ..put.clone()
        },
        WriteRecord {
            overlapped_rollback: true,
            // None was newer, which is not the same as not to know.
            gc_fence: Some(0),
            ..put.clone()
        },
        WriteRecord {
            short_value: short,
            overlapped_rollback: true,
            gc_fence: Some(421_397_468_076_048_385),
            ..put.clone()
        },
        WriteRecord {
            txn_source: 1,
            ..put
        },
    ]);
    let key = Key::from_user(b"k");
    let mut engine = Engine::default();
    for (commit_ts, record) in (10..).zip(records.clone()) {
        assert_eq!(
            load_write(again(&save_write(commit_ts, &record))).ok(),
            Some((commit_ts, record.clone()))
        );
        engine.apply(Change::PutWrite(key.clone(), commit_ts, record));
    }
    engine.apply(Change::PutValue(key.clone(), 5, "long".into()));
    let loaded = reloaded(&engine);
    let history = loaded.history(&key).expect("records");
    let found: Vec<_> = history.from(u64::MAX).collect();
    let expected: Vec<_> = (10..).zip(&records).collect();
    assert!(found.into_iter().rev().eq(expected));
    assert_eq!(history.value(5), Some(&Bytes::from_static(b"long")));
    let mut strange = save_write(7, &records[0]);
    strange.kind = 99;
    assert!(load_write(strange).is_err());
}
