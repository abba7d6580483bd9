//! The time between a write's proposal and its being applied.
//!
//! Usually there is none: a write has been applied when its call returns. A region can be told to
//! hold its writes. What others meet meanwhile is what they meet at a real leader: the data as it
//! was, and in the store's memory the locks of prewrites that have computed their commit version.
//!
//! Another write to the region waits for those before it, so a call that writes releases them
//! first. So does everything that puts an entry behind them into the log: splits, merges, transfers.
//!
//! Raw writes are held if they are to be atomic: compare-and-swap and those that say so. Plain ones
//! wait for nobody, as in a real store: one may come between what a compare-and-swap has read and
//! what it writes.

use bytes::Bytes;

use super::Cluster;
use super::key::Key;
use super::mvcc::changes::Changes;
use super::mvcc::engine::{Change, ColumnFamily, RawValue};
use super::region::{RegionId, StoreId};

/// A write that has been proposed.
#[derive(Clone, Debug)]
pub struct HeldWrite {
    store: StoreId,
    changes: Changes,
    raw: Vec<RawChange>,
}

/// A change of a raw value.
#[derive(Clone, Debug)]
pub(super) struct RawChange {
    pub(super) cf: ColumnFamily,
    /// The stored key.
    pub(super) key: Bytes,
    /// The new value, if there is one.
    pub(super) value: Option<RawValue>,
}

impl Cluster {
    /// Has a region hold the writes of transactions, and atomic raw ones, from now on, until they are
    /// [released](Cluster::release_writes). Their replies are returned at once; whoever calls keeps
    /// them back until then.
    pub fn hold_writes(&mut self, id: RegionId) {
        if let Some(region) = self.regions.get_mut(id) {
            region.holds_writes = true;
        }
    }

    /// Has a region hold no more writes. Those that it holds are applied with the next one, or when
    /// they are [released](Cluster::release_writes).
    pub fn stop_holding(&mut self, id: RegionId) {
        if let Some(region) = self.regions.get_mut(id) {
            region.holds_writes = false;
        }
    }

    /// Applies what a region holds; it holds nothing from now on.
    pub fn release_writes(&mut self, now_ms: u64, id: RegionId) {
        self.apply_held(now_ms, id);
        if let Some(region) = self.regions.get_mut(id) {
            region.holds_writes = false;
        }
    }

    /// Proposes changes: applies them, or keeps them to be applied.
    pub(super) fn propose(&mut self, now_ms: u64, store: StoreId, id: RegionId, changes: Changes) {
        if self.note_proposal(store) {
            return;
        }
        // What only the leader's memory holds is proposed by nobody.
        let proposed = |change: &Change| !matches!(change, Change::PutPessimisticLock(..));
        let holds = self
            .regions
            .get(id)
            .is_some_and(|region| region.holds_writes);
        if !holds || !changes.list.iter().any(proposed) {
            self.apply_and_wake(now_ms, store, id, changes);
            return;
        }
        if let Some(store) = self.stores.get_mut(&store) {
            let published = changes.published.iter().cloned();
            store.memory_locks.extend(published);
        }
        if let Some(region) = self.regions.get_mut(id) {
            let raw = Vec::new();
            region.held_writes.push(HeldWrite {
                store,
                changes,
                raw,
            });
        }
    }

    /// Proposes changes of raw values.
    pub(super) fn propose_raw(
        &mut self,
        now_ms: u64,
        store: StoreId,
        id: RegionId,
        atomic: bool,
        changes: Vec<RawChange>,
    ) {
        if self.note_proposal(store) {
            return;
        }
        if atomic {
            self.apply_held(now_ms, id);
            if let Some(region) = self.regions.get_mut(id)
                && region.holds_writes
            {
                region.held_writes.push(HeldWrite {
                    store,
                    changes: Changes::default(),
                    raw: changes,
                });
                return;
            }
        }
        self.apply_raw(id, changes);
    }

    fn apply_raw(&mut self, id: RegionId, changes: Vec<RawChange>) {
        if !changes.is_empty() {
            self.note_entry(id);
        }
        for RawChange { cf, key, value } in changes {
            match value {
                Some(value) => self.engine.put_raw(cf, key, value),
                None => self.engine.delete_raw(cf, &key),
            }
        }
    }

    /// Applies what a region holds; later writes are held again.
    pub(super) fn apply_held(&mut self, now_ms: u64, id: RegionId) {
        let Some(region) = self.regions.get_mut(id) else {
            return;
        };
        let held = std::mem::take(&mut region.held_writes);
        for HeldWrite {
            store,
            changes,
            raw,
        } in held
        {
            let published: Vec<Key> = changes
                .published
                .iter()
                .map(|(key, _)| key.clone())
                .collect();
            self.apply_and_wake(now_ms, store, id, changes);
            self.apply_raw(id, raw);
            if let Some(store) = self.stores.get_mut(&store) {
                for key in &published {
                    store.memory_locks.remove(key);
                }
            }
        }
    }

    /// Loses what a region holds, as when its leader dies and none of those who elect the next one
    /// has the entries.
    pub fn lose_held_writes(&mut self, id: RegionId) {
        let Some(region) = self.regions.get_mut(id) else {
            return;
        };
        for HeldWrite { store, changes, .. } in std::mem::take(&mut region.held_writes) {
            if let Some(store) = self.stores.get_mut(&store) {
                for (key, _) in &changes.published {
                    store.memory_locks.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
