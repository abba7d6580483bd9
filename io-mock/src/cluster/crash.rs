//! Stores that die in the middle of a write.
//!
//! A write is proposed, appended to the log, committed by a majority, applied and answered. What a
//! client may conclude from silence depends on how far it got, so a store can be told where to die.

use super::Cluster;
use super::region::StoreId;

/// Where in the life of a write its store dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritePoint {
    /// Before it was proposed: it never happens.
    BeforePropose,
    /// After it was proposed, before it was applied: whether it happens depends on which store is
    /// elected next.
    Proposed {
        /// The next leader has the entry.
        survives: bool,
    },
    /// After it was applied, before it was answered.
    Applied,
    /// After it was answered.
    Answered,
}

impl Cluster {
    /// Has a store die at this point of the next write that it is asked for. Its state is then as
    /// after [`stop_store`](Cluster::stop_store).
    pub fn crash_at(&mut self, store: StoreId, point: WritePoint) {
        if let Some(store) = self.stores.get_mut(&store) {
            store.crash_at = Some(point);
        }
    }

    /// Where a store is to die, which it will now.
    pub(crate) fn take_crash(&mut self, store: StoreId) -> Option<WritePoint> {
        let store = self.stores.get_mut(&store).filter(|store| store.up)?;
        let point = store.crash_at.take();
        store.loses_proposals = point == Some(WritePoint::Proposed { survives: false });
        point
    }

    /// Whether what a store proposes now does not survive it.
    pub(super) fn loses_proposals(&self, store: StoreId) -> bool {
        let store = self.stores.get(&store);
        store.is_some_and(|store| store.loses_proposals)
    }
}

#[cfg(test)]
mod tests;
