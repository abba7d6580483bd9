//! Setting a region back to an older version: PrepareFlashbackToVersion and FlashbackToVersion.
//!
//! A region is set back in two requests. The first closes it for everything newer, rolls back all
//! locks and locks its first key, so that no stale read gets past the version at which the second
//! one will write. The second writes the old values again, above everything, commits the first key
//! and opens the region.

use std::cell::RefCell;

use bytes::Bytes;
use tikv_proto::kvrpcpb::{
    Context, FlashbackToVersionRequest, FlashbackToVersionResponse,
    PrepareFlashbackToVersionRequest, PrepareFlashbackToVersionResponse,
};

use super::Cluster;
use super::failure::Failure;
use super::key::Key;
use super::mvcc::changes::Work;
use super::mvcc::ending::rollback_lock;
use super::mvcc::engine::History;
use super::mvcc::error::MvccError;
use super::mvcc::lock::{KeyLock, Lock, LockKind};
use super::mvcc::reader::CommitRecord;
use super::mvcc::write_record::{WriteKind, WriteRecord};
use super::range_commands::stored_bound;
use super::region::{RegionId, StoreId};
use super::region_checks::Access;
use super::region_errors::flashback_not_prepared;

/// How many keys one entry of the log takes.
const BATCH: usize = 256;
/// Records count although a rollback may have made them garbage.
const ANY_FENCE: u64 = 0;

/// What is to be set back, to where, and how.
struct Flashback {
    context: Context,
    start: Bytes,
    end: Bytes,
    version: u64,
    start_ts: u64,
}

impl Cluster {
    /// Closes a region and makes it ready for being set back.
    pub fn kv_prepare_flashback_to_version(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: PrepareFlashbackToVersionRequest,
    ) -> PrepareFlashbackToVersionResponse {
        let flashback = Flashback {
            context: *request.context.unwrap_or_default(),
            start: stored_bound(&request.start_key),
            end: stored_bound(&request.end_key),
            version: request.version,
            start_ts: request.start_ts,
        };
        match self.prepare_flashback(now_ms, store, &flashback) {
            Ok(()) => PrepareFlashbackToVersionResponse::default(),
            Err(Failure::Region(error)) => PrepareFlashbackToVersionResponse {
                region_error: Some(error),
                ..PrepareFlashbackToVersionResponse::default()
            },
            Err(Failure::Key(error)) => PrepareFlashbackToVersionResponse {
                error: text(&error),
                ..PrepareFlashbackToVersionResponse::default()
            },
        }
    }

    /// Sets a region back that is ready for it, and opens it.
    pub fn kv_flashback_to_version(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: FlashbackToVersionRequest,
    ) -> FlashbackToVersionResponse {
        let flashback = Flashback {
            context: *request.context.unwrap_or_default(),
            start: stored_bound(&request.start_key),
            end: stored_bound(&request.end_key),
            version: request.version,
            start_ts: request.start_ts,
        };
        match self.flash_back(now_ms, store, &flashback, request.commit_ts) {
            Ok(()) => FlashbackToVersionResponse::default(),
            Err(Failure::Region(error)) => FlashbackToVersionResponse {
                region_error: Some(error),
                ..FlashbackToVersionResponse::default()
            },
            Err(Failure::Key(error)) => FlashbackToVersionResponse {
                error: text(&error),
                ..FlashbackToVersionResponse::default()
            },
        }
    }

    fn prepare_flashback(
        &mut self,
        now_ms: u64,
        store: StoreId,
        flashback: &Flashback,
    ) -> Result<(), Failure> {
        let region = self.check_region(store, &flashback.context, Access::Flashback)?;
        self.check_proposal(store, &flashback.context, region, 0)?;
        let id = region.meta.id;
        self.apply_held(now_ms, id);
        self.set_flashback(id, Some(flashback.start_ts));
        loop {
            let done = self.flashback_write(now_ms, store, flashback, |work, flashback| {
                roll_back_locks(work, flashback)
            })?;
            if done || self.loses_proposals(store) {
                break;
            }
        }
        self.flashback_write(now_ms, store, flashback, lock_first_key)
    }

    fn flash_back(
        &mut self,
        now_ms: u64,
        store: StoreId,
        flashback: &Flashback,
        commit_ts: u64,
    ) -> Result<(), Failure> {
        let region = self.check_region(store, &flashback.context, Access::Flashback)?;
        let id = region.meta.id;
        if commit_ts <= flashback.start_ts {
            return Err(MvccError::invalid_txn_tso(flashback.start_ts, commit_ts).into());
        }
        self.apply_held(now_ms, id);
        let mut next = flashback.start.clone();
        while let Some(first) =
            self.flashback_write(now_ms, store, flashback, |work, flashback| match first_key(
                work, flashback,
            ) {
                Some(first) => {
                    Ok((!is_committed(work, id, &first, flashback, commit_ts)?).then_some(first))
                }
                None => Ok(None),
            })?
        {
            let from = RefCell::new(std::mem::take(&mut next));
            let more = self.flashback_write(now_ms, store, flashback, |work, flashback| {
                let mut from = from.borrow_mut();
                write_old_versions(work, flashback, &first, &mut from, commit_ts)
            })?;
            next = from.into_inner();
            if !more {
                self.flashback_write(now_ms, store, flashback, |work, _| {
                    commit_first_key(work, &first, commit_ts)
                })?;
                break;
            }
        }
        self.apply_held(now_ms, id);
        self.set_flashback(id, None);
        Ok(())
    }

    fn flashback_write<R>(
        &mut self,
        now_ms: u64,
        store: StoreId,
        flashback: &Flashback,
        command: impl FnOnce(&mut Work<'_>, &Flashback) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let (context, start_ts) = (&flashback.context, flashback.start_ts);
        self.txn_write_with(
            now_ms,
            store,
            context,
            Access::Flashback,
            start_ts,
            |work, _| {
                let result = command(work, flashback)?;
                // Whoever waits for a lock here is not told.
                work.changes.released.clear();
                Ok(result)
            },
        )
    }

    fn set_flashback(&mut self, id: RegionId, start_ts: Option<u64>) {
        if let Some(region) = self.regions.get_mut(id) {
            region.meta.is_in_flashback = start_ts.is_some();
            region.meta.flashback_start_ts = start_ts.unwrap_or_default();
            // What only the leader holds is gone, without a trace.
            region.memory_locks.clear();
        }
        self.note_entry(id);
        if self.config.heartbeat_at_once {
            self.pd_heartbeat(id);
        }
    }
}

/// Rolls back the locks of all others, some at a time; whether there are none left.
fn roll_back_locks(work: &mut Work<'_>, flashback: &Flashback) -> Result<bool, Failure> {
    let own = flashback.start_ts;
    let (start, end) = (&flashback.start, &flashback.end);
    let (locks, more) = work
        .reader
        .scan_locks(start, end, BATCH, |lock| lock.start_ts != own);
    for (key, lock) in locks {
        match lock {
            KeyLock::Exclusive(lock) => {
                work.start_ts = lock.start_ts;
                rollback_lock(work, &key, &lock, None, true)?;
            }
            KeyLock::Shared(members) => {
                for start_ts in &members.listed() {
                    let Some(KeyLock::Shared(mut rest)) = work.current_lock(&key)? else {
                        break;
                    };
                    if let Some(lock) = rest.members.remove(start_ts) {
                        work.start_ts = *start_ts;
                        rollback_lock(work, &key, &lock, Some(rest), true)?;
                    }
                }
            }
        }
    }
    Ok(!more)
}

/// The first key of the range with data that is to be set back.
fn first_key(work: &Work<'_>, flashback: &Flashback) -> Option<Key> {
    let (start, end) = work.reader.clip(&flashback.start, &flashback.end);
    let mut histories = work.reader.engine.histories(&start, &end);
    histories
        .find(|(_, history)| newest_data(history) > flashback.version)
        .map(|(key, _)| key.clone())
}

/// Where the newest value or deletion of a key stands; 0 if there is none.
fn newest_data(history: &History) -> u64 {
    let mut records = history.from(u64::MAX);
    let data = records.find(|(_, write)| matches!(write.kind, WriteKind::Put | WriteKind::Delete));
    data.map_or(0, |(commit_ts, _)| commit_ts)
}

/// Locks the first key with the value that it will have, unless an earlier request has done so.
fn lock_first_key(work: &mut Work<'_>, flashback: &Flashback) -> Result<(), Failure> {
    let Some(key) = first_key(work, flashback) else {
        return Ok(());
    };
    if work.reader.lock(&key)?.is_some() {
        return Ok(());
    }
    let (version, start_ts) = (flashback.version, flashback.start_ts);
    let old = work.reader.get_write(&key, version, ANY_FENCE)?;
    let old = old.map(|(_, write)| write.clone());
    let kind = match &old {
        Some(_) => LockKind::Put,
        None => LockKind::Delete,
    };
    if let Some(write) = old.as_ref().filter(|write| write.short_value.is_none()) {
        let value = work.reader.load_value(&key, write)?;
        work.changes.put_value(key.clone(), start_ts, value);
    }
    let lock = Lock {
        short_value: old.and_then(|write| write.short_value),
        txn_size: 1,
        // The server names the stored key where the user's is meant.
        ..Lock::new(kind, key.encoded().clone(), start_ts, 0)
    };
    work.changes.put_lock(key, lock);
    Ok(())
}

/// Whether an earlier request has done all of it.
fn is_committed(
    work: &Work<'_>,
    id: RegionId,
    first: &Key,
    flashback: &Flashback,
    commit_ts: u64,
) -> Result<bool, Failure> {
    match work.reader.lock(first)? {
        Some(KeyLock::Exclusive(lock)) if lock.start_ts == flashback.start_ts => return Ok(false),
        Some(KeyLock::Exclusive(_) | KeyLock::Shared(_)) => {}
        None => {
            let record = work.reader.commit_record(first, flashback.start_ts)?;
            if let CommitRecord::Single { commit_ts: at, .. } = record
                && at == commit_ts
            {
                return Ok(true);
            }
        }
    }
    Err(flashback_not_prepared(id).into())
}

/// Writes old versions on top, some at a time, from an encoded key on; whether there are more.
fn write_old_versions(
    work: &mut Work<'_>,
    flashback: &Flashback,
    first: &Key,
    from: &mut Bytes,
    commit_ts: u64,
) -> Result<bool, Failure> {
    let (version, start_ts) = (flashback.version, flashback.start_ts);
    let (start, end) = work.reader.clip(from, &flashback.end);
    let newer: Vec<Key> = work
        .reader
        .engine
        .histories(&start, &end)
        .filter(|(key, history)| {
            let newest = newest_data(history);
            *key != first && newest > version && newest < commit_ts
        })
        .map(|(key, _)| key.clone())
        .take(BATCH + 1)
        .collect();
    let next = newer.get(BATCH).map(|key| key.encoded().clone());
    for key in newer.into_iter().take(BATCH) {
        let old = work.reader.get_write(&key, version, ANY_FENCE)?;
        let (kind, short_value) = match old {
            Some((_, write)) => {
                if write.short_value.is_none() {
                    let value = work.reader.load_value(&key, write)?;
                    work.changes.put_value(key.clone(), start_ts, value);
                }
                (WriteKind::Put, write.short_value.clone())
            }
            None => (WriteKind::Delete, None),
        };
        let write = WriteRecord::new(kind, start_ts, short_value);
        work.changes.put_write(key, commit_ts, write);
    }
    *from = next.clone().unwrap_or_default();
    Ok(next.is_some())
}

fn commit_first_key(work: &mut Work<'_>, first: &Key, commit_ts: u64) -> Result<(), Failure> {
    let Some(KeyLock::Exclusive(lock)) = work.reader.lock(first)? else {
        return Ok(());
    };
    let kind = match lock.kind {
        LockKind::Put => WriteKind::Put,
        LockKind::Delete => WriteKind::Delete,
        LockKind::Lock | LockKind::Pessimistic => WriteKind::Lock,
    };
    let write = WriteRecord::new(kind, lock.start_ts, lock.short_value);
    work.changes.put_write(first.clone(), commit_ts, write);
    work.unlock(first.clone(), commit_ts, false);
    Ok(())
}

fn text(error: &MvccError) -> String {
    let error = error.to_key_error();
    match error.abort.is_empty() {
        true => format!("{error:?}"),
        false => error.abort,
    }
}

#[cfg(test)]
mod tests;
