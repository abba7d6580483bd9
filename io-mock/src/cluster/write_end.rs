//! Stores that die, and leaders that are deposed, in the middle of a write.
//!
//! A write is proposed, appended to the log, committed by a majority, applied and answered. What a
//! client may conclude from silence, or from an answer that tells it nothing, depends on how far the
//! write got, so a store can be told where to end it.

use super::Cluster;
use super::region::StoreId;

/// How far a write gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritePoint {
    /// It is not proposed: it never happens.
    BeforePropose,
    /// It is proposed and not applied: whether it happens depends on which store is elected next.
    Proposed {
        /// The next leader has the entry.
        survives: bool,
    },
    /// It is applied and not answered.
    Applied,
    /// It is answered.
    Answered,
}

/// What ends a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The store dies. Its state is then as after [`stop_store`](Cluster::stop_store).
    Crash,
    /// The region's leader is deposed. Its state is then as after
    /// [`depose_leader`](Cluster::depose_leader), and the client is told that its command is stale.
    StepDown,
}

/// A write that is being ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// What is proposed now is lost.
    loses: bool,
    /// Something has been proposed.
    proposed: bool,
}

impl Cluster {
    /// Has a store end the next write that it is asked for at this point.
    pub fn end_next_write(&mut self, store: StoreId, end: End, point: WritePoint) {
        if let Some(store) = self.stores.get_mut(&store) {
            store.ends_write = Some((end, point));
        }
    }

    /// What is to end the write that a store is asked for now, and where.
    pub(crate) fn take_write_end(&mut self, store: StoreId) -> Option<(End, WritePoint)> {
        let store = self.stores.get_mut(&store).filter(|store| store.up)?;
        let (end, point) = store.ends_write.take()?;
        store.ending = Some(Ending {
            loses: point == WritePoint::Proposed { survives: false },
            proposed: false,
        });
        Some((end, point))
    }

    /// The write has been ended; whether the store had proposed anything.
    pub(crate) fn write_has_ended(&mut self, store: StoreId) -> bool {
        let store = self.stores.get_mut(&store);
        let ending = store.and_then(|store| store.ending.take());
        ending.is_some_and(|ending| ending.proposed)
    }

    /// Notes that a store proposes something; whether it is lost.
    pub(super) fn note_proposal(&mut self, store: StoreId) -> bool {
        let store = self.stores.get_mut(&store);
        let Some(ending) = store.and_then(|store| store.ending.as_mut()) else {
            return false;
        };
        ending.proposed = true;
        ending.loses
    }

    /// Whether what a store proposes now does not survive it.
    pub(super) fn loses_proposals(&self, store: StoreId) -> bool {
        let store = self.stores.get(&store);
        let ending = store.and_then(|store| store.ending);
        ending.is_some_and(|ending| ending.loses)
    }
}

#[cfg(test)]
mod tests;
