//! The lock and the versions of a key as debugging requests show them.

use tikv_proto::kvrpcpb::{MvccInfo, MvccLock, MvccValue, MvccWrite};

use super::lock::{KeyLock, Lock};
use super::reader::Reader;
use crate::cluster::key::Key;

/// Everything known of one key.
pub fn info(reader: &Reader<'_>, key: &Key) -> MvccInfo {
    let stored = || reader.engine.lock(key).and_then(shown);
    let lock = reader.memory.get(key).or_else(stored);
    let mut out = MvccInfo {
        lock: lock.map(show_lock),
        ..MvccInfo::default()
    };
    let Some(history) = reader.engine.history(key) else {
        return out;
    };
    for (commit_ts, write) in history.from(u64::MAX) {
        out.writes.push(MvccWrite {
            r#type: write.kind.op().into(),
            start_ts: write.start_ts,
            commit_ts,
            short_value: write.short_value.clone().unwrap_or_default(),
            has_overlapped_rollback: write.overlapped_rollback,
            has_gc_fence: write.gc_fence.is_some(),
            gc_fence: write.gc_fence.unwrap_or_default(),
            ..MvccWrite::default()
        });
    }
    for (start_ts, value) in history.values().rev() {
        out.values.push(MvccValue {
            start_ts,
            value: value.clone(),
        });
    }
    out
}

/// Of shared locks only one member is shown.
fn shown(lock: &KeyLock) -> Option<&Lock> {
    match lock {
        KeyLock::Exclusive(lock) => Some(lock),
        KeyLock::Shared(shared) => shared.listed_members().next(),
    }
}

/// The server shows only these fields.
fn show_lock(lock: &Lock) -> MvccLock {
    let op = lock.info(bytes::Bytes::new()).lock_type;
    let (last_change_ts, versions_to_last_change) = lock.last_change.to_parts();
    MvccLock {
        r#type: op,
        start_ts: lock.start_ts,
        primary: lock.primary.clone(),
        short_value: lock.short_value.clone().unwrap_or_default(),
        last_change_ts,
        versions_to_last_change,
        ..MvccLock::default()
    }
}
