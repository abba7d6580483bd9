//! What has been made to go wrong, saved and loaded: stores that have no time or no room, peers that
//! are not what they should be, and errors on demand.

use super::SnapshotError;
use super::data::{
    known, load_history, load_key_lock, load_raw_value, number, save_history, save_key_lock,
    save_raw_value,
};
use super::parts::{load_region, save_region};
use super::wire;
use crate::cluster::injection::Injection;
use crate::cluster::key::Key;
use crate::cluster::lag::Behind;
use crate::cluster::load::Load;
use crate::cluster::mvcc::engine::RawValue;
use crate::cluster::mvcc::past::Past;
use crate::cluster::region::PeerState;
use crate::cluster::store::Disk;
use crate::cluster::write_end::{End, WritePoint};

/// By the number that stands for it.
const DISKS: [Disk; 3] = [Disk::Normal, Disk::AlmostFull, Disk::AlreadyFull];
/// By the number that stands for it.
const ENDS: [End; 2] = [End::Crash, End::StepDown];
/// By the number that stands for it.
const POINTS: [WritePoint; 5] = [
    WritePoint::BeforePropose,
    WritePoint::Proposed { survives: false },
    WritePoint::Proposed { survives: true },
    WritePoint::Applied,
    WritePoint::Answered,
];

pub(super) fn save_load(load: Load) -> Option<wire::Load> {
    (load != Load::default()).then_some(wire::Load {
        read_wait_ms: load.read_wait_ms,
        write_wait_ms: load.write_wait_ms,
        scheduler_full: load.scheduler_full,
        raftstore_full: load.raftstore_full,
        gc_worker_full: load.gc_worker_full,
        observer_delay_ms: load.observer_delay_ms,
        closing: load.closing,
    })
}

pub(super) fn load_load(saved: Option<wire::Load>) -> Load {
    let saved = saved.unwrap_or_default();
    Load {
        read_wait_ms: saved.read_wait_ms,
        write_wait_ms: saved.write_wait_ms,
        scheduler_full: saved.scheduler_full,
        raftstore_full: saved.raftstore_full,
        gc_worker_full: saved.gc_worker_full,
        observer_delay_ms: saved.observer_delay_ms,
        closing: saved.closing,
    }
}

pub(super) fn save_disk(disk: Disk) -> i32 {
    number(&DISKS, disk)
}

pub(super) fn load_disk(saved: i32) -> Result<Disk, SnapshotError> {
    known(&DISKS, saved.into(), "disk")
}

pub(super) fn save_end((end, point): (End, WritePoint)) -> wire::EndsWrite {
    wire::EndsWrite {
        end: number(&ENDS, end),
        point: number(&POINTS, point),
    }
}

pub(super) fn load_end(saved: wire::EndsWrite) -> Result<(End, WritePoint), SnapshotError> {
    let end = known(&ENDS, saved.end.into(), "end of a write")?;
    let point = known(&POINTS, saved.point.into(), "point of a write")?;
    Ok((end, point))
}

pub(super) fn save_peer_state(state: &PeerState) -> wire::PeerState {
    wire::PeerState {
        safe_ts_stuck: state.safe_ts_stuck,
        safe_ts_forgotten: state.safe_ts_forgotten,
        uninitialized: state.uninitialized,
        applying_snapshot: state.applying_snapshot,
        waits_for_data: state.waits_for_data,
        down: state.down,
    }
}

pub(super) fn load_peer_state(saved: wire::PeerState) -> PeerState {
    PeerState {
        safe_ts_stuck: saved.safe_ts_stuck,
        safe_ts_forgotten: saved.safe_ts_forgotten,
        uninitialized: saved.uninitialized,
        applying_snapshot: saved.applying_snapshot,
        waits_for_data: saved.waits_for_data,
        down: saved.down,
    }
}

pub(super) fn save_behind(behind: &Behind) -> wire::Behind {
    wire::Behind {
        region: Some(save_region(&behind.region)),
        entries: behind.entries,
        stuck: behind.stuck,
    }
}

pub(super) fn load_behind(saved: wire::Behind) -> Result<Behind, SnapshotError> {
    Ok(Behind {
        region: load_region(saved.region.unwrap_or_default())?,
        entries: saved.entries,
        stuck: saved.stuck,
    })
}

pub(super) fn save_past(past: &Past) -> wire::Past {
    let locks = past.locks.iter().map(|(key, lock)| match lock {
        Some(lock) => save_key_lock(key, lock),
        None => wire::KeyLock {
            key: key.encoded().clone(),
            ..wire::KeyLock::default()
        },
    });
    let histories = past.histories.iter().map(|(key, history)| match history {
        Some(history) => save_history(key, history),
        None => wire::History {
            key: key.encoded().clone(),
            ..wire::History::default()
        },
    });
    let raw = past.raw.iter().enumerate().flat_map(|(cf, before)| {
        before.iter().map(move |(key, value)| {
            let nothing = RawValue {
                value: bytes::Bytes::new(),
                expires_at: 0,
                deleted: false,
            };
            wire::RawBefore {
                value: Some(save_raw_value(cf, key, value.as_ref().unwrap_or(&nothing))),
                absent: value.is_none(),
            }
        })
    });
    wire::Past {
        locks: locks.collect(),
        histories: histories.collect(),
        raw: raw.collect(),
    }
}

/// Puts back what a store had not applied, after its ranges stand still again.
pub(super) fn load_past(saved: wire::Past, past: &mut Past) -> Result<(), SnapshotError> {
    for lock in saved.locks {
        let (key, lock) = match lock.locks.is_empty() {
            true => (Key::from_encoded(lock.key), None),
            false => load_key_lock(lock).map(|(key, lock)| (key, Some(lock)))?,
        };
        past.locks.insert(key, lock);
    }
    for history in saved.histories {
        let absent = history.writes.is_empty() && history.values.is_empty();
        let (key, history) = load_history(history)?;
        past.histories.insert(key, (!absent).then_some(history));
    }
    for one in saved.raw {
        let (cf, key, value) = load_raw_value(one.value.unwrap_or_default())?;
        past.raw[cf as usize].insert(key, (!one.absent).then_some(value));
    }
    Ok(())
}

/// An error for requests of one name is not saved: the name is that of code.
pub(super) fn save_injection(injection: &Injection) -> Option<wire::Injection> {
    injection.command.is_none().then(|| wire::Injection {
        store: injection.store,
        region: injection.region,
        error: Some(injection.error.clone()),
        times: injection.times,
    })
}

pub(super) fn load_injection(saved: wire::Injection) -> Injection {
    Injection {
        store: saved.store,
        region: saved.region,
        command: None,
        error: saved.error.unwrap_or_default(),
        times: saved.times,
    }
}
