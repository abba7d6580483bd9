//! From a command to its effects: check the region, let the command decide, check the size of what
//! it decided, apply.
//!
//! A write passes four points: proposed, appended, committed, applied. Here they are usually one; a
//! simulator that wants to lose a request or a reply does so before or after the call. What happens
//! in between is the subject of [`held_writes`](super::held_writes) and [`write_end`](super::write_end).

use tikv_proto::kvrpcpb::Context;

use super::Cluster;
use super::failure::Failure;
use super::key::Key;
use super::memory_locks;
use super::mvcc::changes::{Changes, Work};
use super::mvcc::engine::Change;
use super::mvcc::error::MvccError;
use super::mvcc::lock::{KeyLock, Lock};
use super::mvcc::reader::Reader;
use super::mvcc::write_record::WriteRecord;
use super::proposal::pair_size;
use super::region::{Region, RegionId, StoreId};
use super::region_checks::Access;
use super::region_errors;

/// How much of a region's pessimistic locks its leader keeps in memory only.
const MEMORY_LOCKS_MAX: usize = 512 * 1024;

/// A write record at the moment it was applied.
#[derive(Clone, Debug, PartialEq)]
pub struct AppliedWrite {
    /// When.
    pub at_ms: u64,
    /// Where.
    pub key: Key,
    /// At which commit version.
    pub commit_ts: u64,
    /// What.
    pub record: WriteRecord,
}

impl Cluster {
    /// A store's view of one region.
    pub(super) fn reader<'a>(&'a self, store: StoreId, region: &'a Region) -> Reader<'a> {
        Reader {
            engine: self.engine.on(store),
            memory: &region.memory_locks,
            region_id: region.meta.id,
            start: &region.meta.start_key,
            end: &region.meta.end_key,
        }
    }

    /// Tells a store what PD has given out, so that it can refuse what PD has not.
    pub(super) fn refresh_max_ts(&mut self, now_ms: u64, store: StoreId) {
        let tso = self.pd.tso_bound(now_ms);
        let limit = tso.saturating_add(self.config.max_ts_drift_ms << 18);
        if let Some(store) = self.stores.get_mut(&store) {
            store.max_ts.tso = tso;
            store.max_ts.limit = limit;
            store.max_ts.action = self.config.invalid_max_ts;
        }
    }

    /// Raises a store's greatest timestamp for a read.
    pub(super) fn raise_max_ts(
        &mut self,
        now_ms: u64,
        store: StoreId,
        ts: u64,
    ) -> Result<(), MvccError> {
        self.refresh_max_ts(now_ms, store);
        match self.stores.get_mut(&store) {
            Some(store) => store.max_ts.raise(ts),
            None => Ok(()),
        }
    }

    /// Runs a write command for one transaction on one region and applies what it decides.
    pub(super) fn txn_write<R>(
        &mut self,
        now_ms: u64,
        store: StoreId,
        context: &Context,
        start_ts: u64,
        command: impl FnOnce(&mut Work<'_>, &Region) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        self.txn_write_with(now_ms, store, context, Access::Write, start_ts, command)
    }

    /// The same for commands that a region in an unusual state accepts too.
    pub(super) fn txn_write_with<R>(
        &mut self,
        now_ms: u64,
        store: StoreId,
        context: &Context,
        access: Access,
        start_ts: u64,
        command: impl FnOnce(&mut Work<'_>, &Region) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        self.check_write_load(store, context)?;
        let region_id = self.check_region(store, context, access)?.meta.id;
        // What has been proposed before comes first.
        self.apply_held(now_ms, region_id);
        self.refresh_max_ts(now_ms, store);
        let (Some(region), Some(served)) =
            (self.regions.get(region_id), self.stores.get_mut(&store))
        else {
            return Err(region_errors::region_not_found(region_id).into());
        };
        let mut work = Work {
            reader: Reader {
                engine: self.engine.on(store),
                memory: &region.memory_locks,
                region_id,
                start: &region.meta.start_key,
                end: &region.meta.end_key,
            },
            start_ts,
            changes: Changes::default(),
            max_ts: &mut served.max_ts,
        };
        let result = command(&mut work, region)?;
        let changes = work.changes;
        if !changes.list.is_empty() {
            let size = changes.list.iter().map(change_size).sum();
            self.check_proposed(store, context, region_id, size)?;
        }
        self.propose(now_ms, store, region_id, changes);
        Ok(result)
    }

    fn check_proposed(
        &self,
        store: StoreId,
        context: &Context,
        region_id: RegionId,
        size: usize,
    ) -> Result<(), Failure> {
        let Some(region) = self.regions.get(region_id) else {
            return Err(region_errors::region_not_found(region_id).into());
        };
        Ok(self.check_proposal(store, context, region, size)?)
    }

    /// Applies changes to one region and wakes those who waited for what they release.
    pub(super) fn apply_and_wake(
        &mut self,
        now_ms: u64,
        store: StoreId,
        region_id: RegionId,
        changes: Changes,
    ) {
        let locked = self.waited_for(store, region_id, &changes);
        let released = changes.released.clone();
        self.apply(now_ms, region_id, changes);
        self.note_new_locks(now_ms, store, locked);
        self.wake(now_ms, store, released);
    }

    /// The locks to be put onto free keys that somebody waits for.
    fn waited_for(
        &self,
        store: StoreId,
        region_id: RegionId,
        changes: &Changes,
    ) -> Vec<(Key, KeyLock)> {
        let memory = self.regions.get(region_id).map(|it| &it.memory_locks);
        let is_free = |key: &Key| {
            self.engine.lock(key).is_none() && memory.is_none_or(|locks| !locks.contains_key(key))
        };
        let puts = changes.list.iter().filter_map(|change| match change {
            Change::PutLock(key, lock) => Some((key, lock.clone())),
            Change::PutPessimisticLock(key, lock) => Some((key, KeyLock::Exclusive(lock.clone()))),
            Change::DeleteLock(_)
            | Change::PutWrite(..)
            | Change::DeleteWrite(..)
            | Change::PutValue(..)
            | Change::DeleteValue(..) => None,
        });
        puts.filter(|(key, _)| self.lock_waits.has_queue(store, key) && is_free(key))
            .map(|(key, lock)| (key.clone(), lock))
            .collect()
    }

    /// Applies changes to one region.
    pub(super) fn apply(&mut self, now_ms: u64, region_id: RegionId, changes: Changes) {
        let in_memory = self.config.in_memory_pessimistic_locks
            && !changes.stores_locks
            && changes
                .list
                .iter()
                .all(|c| matches!(c, Change::PutPessimisticLock(..)))
            && self.fits_in_memory(region_id, &changes);
        if !in_memory && !changes.list.is_empty() {
            self.note_entry(region_id);
        }
        let Some(region) = self.regions.get_mut(region_id) else {
            return;
        };
        for change in changes.list {
            match change {
                Change::PutPessimisticLock(key, lock) if in_memory => {
                    region.memory_locks.insert(key, lock);
                    continue;
                }
                Change::PutLock(ref key, _) | Change::DeleteLock(ref key) => {
                    region.memory_locks.remove(key);
                }

                Change::PutWrite(ref key, commit_ts, ref record) if self.config.keep_truth => {
                    self.truth.push(AppliedWrite {
                        at_ms: now_ms,
                        key: key.clone(),
                        commit_ts,
                        record: record.clone(),
                    });
                }
                // A lock that is in memory stays there and hides the one that is stored now: the
                // server looks for those to remove among other changes.
                Change::PutPessimisticLock(..)
                | Change::PutWrite(..)
                | Change::DeleteWrite(..)
                | Change::PutValue(..)
                | Change::DeleteValue(..) => {}
            }
            self.engine.apply(change);
        }
    }

    /// Whether a region's leader has room for more locks that only it holds; otherwise all of a
    /// command's locks are stored.
    fn fits_in_memory(&self, region_id: RegionId, changes: &Changes) -> bool {
        let Some(region) = self.regions.get(region_id) else {
            return false;
        };
        let more: usize = changes
            .list
            .iter()
            .map(|change| match change {
                Change::PutPessimisticLock(key, lock) => memory_locks::size(key, lock),
                _ => 0,
            })
            .sum();
        region.memory_locks.size() + more <= MEMORY_LOCKS_MAX
    }

    /// Remembers on a store that a transaction has committed.
    pub(super) fn remember_commit(
        &mut self,
        now_ms: u64,
        store: StoreId,
        start_ts: u64,
        commit_ts: u64,
    ) {
        if let Some(store) = self.stores.get_mut(&store) {
            store.committed.insert(now_ms, start_ts, commit_ts);
        }
    }
}

fn change_size(change: &Change) -> usize {
    let (key, value) = match change {
        Change::PutLock(key, KeyLock::Exclusive(lock)) | Change::PutPessimisticLock(key, lock) => {
            (key, lock_size(lock))
        }
        Change::PutLock(key, KeyLock::Shared(shared)) => {
            (key, shared.members.values().map(lock_size).sum())
        }
        Change::PutWrite(key, _, write) => (
            key,
            8 + write.short_value.as_ref().map_or(0, bytes::Bytes::len),
        ),
        Change::PutValue(key, _, value) => (key, 8 + value.len()),
        Change::DeleteLock(key) => (key, 0),
        Change::DeleteWrite(key, _) | Change::DeleteValue(key, _) => (key, 8),
    };
    pair_size(key.encoded().len(), value)
}

fn lock_size(lock: &Lock) -> usize {
    let short = lock.short_value.as_ref().map_or(0, bytes::Bytes::len);
    let secondaries: usize = lock.secondaries.iter().map(|key| key.len() + 1).sum();
    lock.primary.len() + short + secondaries + 24
}
