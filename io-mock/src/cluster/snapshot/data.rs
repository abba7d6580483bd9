//! Locks, versions and raw values, saved and loaded.

use bytes::Bytes;

use super::SnapshotError;
use super::wire;
use crate::cluster::key::Key;
use crate::cluster::mvcc::engine::{Change, ColumnFamily, Engine, History, RawValue};
use crate::cluster::mvcc::last_change::LastChange;
use crate::cluster::mvcc::lock::{KeyLock, Lock, LockKind, SharedLocks};
use crate::cluster::mvcc::write_record::{WriteKind, WriteRecord};
use crate::cluster::write_path::AppliedWrite;

/// By the number that stands for it.
const LOCK_KINDS: [LockKind; 4] = [
    LockKind::Put,
    LockKind::Delete,
    LockKind::Lock,
    LockKind::Pessimistic,
];
/// By the number that stands for it.
const WRITE_KINDS: [WriteKind; 4] = [
    WriteKind::Put,
    WriteKind::Delete,
    WriteKind::Lock,
    WriteKind::Rollback,
];
/// By the number that stands for it.
const COLUMN_FAMILIES: [ColumnFamily; 3] = [
    ColumnFamily::Default,
    ColumnFamily::Lock,
    ColumnFamily::Write,
];

/// What a number stands for in one of the lists above.
pub(super) fn known<T: Copy>(list: &[T], number: i64, what: &str) -> Result<T, SnapshotError> {
    let index = usize::try_from(number).ok();
    let found = index.and_then(|index| list.get(index)).copied();
    found.ok_or_else(|| SnapshotError::impossible(what))
}

/// The number that stands for one of the lists above; every value is in its list.
pub(super) fn number<T: PartialEq>(list: &[T], value: T) -> i32 {
    let index = list.iter().position(|one| *one == value);
    index.map_or(-1, |index| index as i32)
}

pub(super) fn save_locks(engine: &Engine) -> Vec<wire::KeyLock> {
    let locks = engine.locks(&Bytes::new(), &Bytes::new());
    locks.map(|(key, lock)| save_key_lock(key, lock)).collect()
}

pub(super) fn save_key_lock(key: &Key, lock: &KeyLock) -> wire::KeyLock {
    match lock {
        KeyLock::Exclusive(lock) => save_exclusive(key, lock),
        KeyLock::Shared(shared) => wire::KeyLock {
            key: key.encoded().clone(),
            locks: shared
                .written
                .iter()
                .filter_map(|start_ts| shared.members.get(start_ts))
                .map(save_lock)
                .collect(),
            shared: true,
            shrink_only: shared.shrink_only,
        },
    }
}

pub(super) fn load_key_lock(saved: wire::KeyLock) -> Result<(Key, KeyLock), SnapshotError> {
    if !saved.shared {
        let (key, lock) = load_exclusive(saved)?;
        return Ok((key, KeyLock::Exclusive(lock)));
    }
    let written = saved.locks.iter().map(|lock| lock.start_ts).collect();
    let members = saved.locks.into_iter().map(|lock| {
        let lock = load_lock(lock)?;
        Ok((lock.start_ts, lock))
    });
    let shared = SharedLocks {
        shrink_only: saved.shrink_only,
        members: members.collect::<Result<_, SnapshotError>>()?,
        written,
    };
    Ok((Key::from_encoded(saved.key), KeyLock::Shared(shared)))
}

/// A lock that only one transaction holds.
pub(super) fn save_exclusive(key: &Key, lock: &Lock) -> wire::KeyLock {
    wire::KeyLock {
        key: key.encoded().clone(),
        locks: vec![save_lock(lock)],
        ..wire::KeyLock::default()
    }
}

/// A lock that only one transaction holds.
pub(super) fn load_exclusive(saved: wire::KeyLock) -> Result<(Key, Lock), SnapshotError> {
    let lock = saved.locks.into_iter().next();
    let lock = lock.ok_or_else(|| SnapshotError::impossible("lock of nobody"))?;
    Ok((Key::from_encoded(saved.key), load_lock(lock)?))
}

fn save_lock(lock: &Lock) -> wire::Lock {
    let (last_change_ts, last_change_distance) = lock.last_change.to_parts();
    wire::Lock {
        last_change_ts,
        last_change_distance,
        kind: number(&LOCK_KINDS, lock.kind),
        primary: lock.primary.clone(),
        start_ts: lock.start_ts,
        ttl: lock.ttl,
        short_value: lock.short_value.clone(),
        for_update_ts: lock.for_update_ts,
        txn_size: lock.txn_size,
        min_commit_ts: lock.min_commit_ts,
        async_commit: lock.async_commit,
        one_pc: lock.one_pc,
        secondaries: lock.secondaries.clone(),
        rollback_ts: lock.rollback_ts.clone(),
        txn_source: lock.txn_source,
        locked_with_conflict: lock.locked_with_conflict,
        generation: lock.generation,
    }
}

fn load_lock(saved: wire::Lock) -> Result<Lock, SnapshotError> {
    let kind = known(&LOCK_KINDS, saved.kind.into(), "kind of lock")?;
    Ok(Lock {
        short_value: saved.short_value,
        for_update_ts: saved.for_update_ts,
        txn_size: saved.txn_size,
        min_commit_ts: saved.min_commit_ts,
        async_commit: saved.async_commit,
        one_pc: saved.one_pc,
        secondaries: saved.secondaries,
        rollback_ts: saved.rollback_ts,
        txn_source: saved.txn_source,
        locked_with_conflict: saved.locked_with_conflict,
        generation: saved.generation,
        last_change: LastChange::from_parts(saved.last_change_ts, saved.last_change_distance),
        ..Lock::new(kind, saved.primary, saved.start_ts, saved.ttl)
    })
}

pub(super) fn save_histories(engine: &Engine) -> Vec<wire::History> {
    let histories = engine.histories(&Bytes::new(), &Bytes::new());
    histories
        .map(|(key, history)| save_history(key, history))
        .collect()
}

pub(super) fn save_history(key: &Key, history: &History) -> wire::History {
    wire::History {
        key: key.encoded().clone(),
        writes: history
            .from(u64::MAX)
            .map(|(commit_ts, record)| save_write(commit_ts, record))
            .collect(),
        values: history
            .values()
            .map(|(start_ts, value)| wire::Value {
                start_ts,
                value: value.clone(),
            })
            .collect(),
    }
}

pub(super) fn load_history(saved: wire::History) -> Result<(Key, History), SnapshotError> {
    let mut history = History::default();
    for write in saved.writes {
        let (commit_ts, record) = load_write(write)?;
        history.put_write(commit_ts, record);
    }
    for value in saved.values {
        history.put_value(value.start_ts, value.value);
    }
    Ok((Key::from_encoded(saved.key), history))
}

fn save_write(commit_ts: u64, record: &WriteRecord) -> wire::Write {
    let (last_change_ts, last_change_distance) = record.last_change.to_parts();
    wire::Write {
        last_change_ts,
        last_change_distance,
        commit_ts,
        kind: number(&WRITE_KINDS, record.kind),
        start_ts: record.start_ts,
        short_value: record.short_value.clone(),
        overlapped_rollback: record.overlapped_rollback,
        gc_fence: record.gc_fence,
        txn_source: record.txn_source,
    }
}

fn load_write(saved: wire::Write) -> Result<(u64, WriteRecord), SnapshotError> {
    let kind = known(&WRITE_KINDS, saved.kind.into(), "kind of write")?;
    let record = WriteRecord {
        overlapped_rollback: saved.overlapped_rollback,
        gc_fence: saved.gc_fence,
        txn_source: saved.txn_source,
        last_change: LastChange::from_parts(saved.last_change_ts, saved.last_change_distance),
        ..WriteRecord::new(kind, saved.start_ts, saved.short_value)
    };
    Ok((saved.commit_ts, record))
}

pub(super) fn save_raw(engine: &Engine) -> Vec<wire::RawValue> {
    let empty = Bytes::new();
    let mut saved = Vec::new();
    for cf in COLUMN_FAMILIES {
        let values = engine.raw_range(cf, &empty, &empty);
        saved.extend(values.map(|(key, raw)| save_raw_value(cf as usize, key, raw)));
    }
    saved
}

pub(super) fn save_raw_value(cf: usize, key: &Bytes, raw: &RawValue) -> wire::RawValue {
    wire::RawValue {
        cf: cf as u32,
        key: key.clone(),
        value: raw.value.clone(),
        expires_at: raw.expires_at,
        deleted: raw.deleted,
    }
}

pub(super) fn load_raw_value(
    saved: wire::RawValue,
) -> Result<(ColumnFamily, Bytes, RawValue), SnapshotError> {
    let cf = known(&COLUMN_FAMILIES, saved.cf.into(), "column family")?;
    let value = RawValue {
        value: saved.value,
        expires_at: saved.expires_at,
        deleted: saved.deleted,
    };
    Ok((cf, saved.key, value))
}

pub(super) fn load_engine(
    locks: Vec<wire::KeyLock>,
    histories: Vec<wire::History>,
    raw: Vec<wire::RawValue>,
) -> Result<Engine, SnapshotError> {
    let mut engine = Engine::default();
    for saved in locks {
        let (key, lock) = load_key_lock(saved)?;
        engine.apply(Change::PutLock(key, lock));
    }
    for saved in histories {
        let (key, history) = load_history(saved)?;
        engine.put_history(key, history);
    }
    for saved in raw {
        let (cf, key, value) = load_raw_value(saved)?;
        engine.put_raw(cf, key, value);
    }
    Ok(engine)
}

pub(super) fn save_truth(applied: &AppliedWrite) -> wire::Applied {
    wire::Applied {
        at_ms: applied.at_ms,
        key: applied.key.encoded().clone(),
        write: Some(save_write(applied.commit_ts, &applied.record)),
    }
}

pub(super) fn load_truth(saved: wire::Applied) -> Result<AppliedWrite, SnapshotError> {
    let (commit_ts, record) = load_write(saved.write.unwrap_or_default())?;
    Ok(AppliedWrite {
        at_ms: saved.at_ms,
        key: Key::from_encoded(saved.key),
        commit_ts,
        record,
    })
}

#[cfg(test)]
mod tests;
