//! What keeps a store from answering at once: queues, and its own end. How long anything takes is
//! scripted, not modelled, because time passes only between calls here.

use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{CommandPri, Context};

use super::Cluster;
use super::region::StoreId;
use super::region_checks::RegionError;
use super::region_errors::deadline_exceeded;

/// What a store has to do beside the request at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// How long a read would wait for its turn, as the store estimates.
    pub read_wait_ms: u32,
    /// How long a write waits for its turn.
    pub write_wait_ms: u32,
    /// Too many writes are pending: only urgent ones are taken.
    pub scheduler_full: bool,
    /// Too many messages are pending below: nothing is proposed.
    pub raftstore_full: bool,
    /// Too many ranges are pending to be destroyed.
    pub gc_worker_full: bool,
    /// Something beside the store wants proposals to come this much later; 0 if nothing does.
    pub observer_delay_ms: u64,
    /// The process is ending.
    pub closing: bool,
}

impl Cluster {
    /// What comes before a read is looked at: whether it would have to wait for too long.
    pub(super) fn check_read_load(
        &self,
        store: StoreId,
        context: &Context,
    ) -> Result<(), RegionError> {
        let load = self.load_of(store);
        let threshold = context.busy_threshold_ms;
        if threshold != 0 && load.read_wait_ms > threshold {
            return Err(busy(errorpb::ServerIsBusy {
                reason: "estimated wait time exceeds threshold".to_owned(),
                estimated_wait_ms: load.read_wait_ms,
                ..errorpb::ServerIsBusy::default()
            })
            .into());
        }
        check_deadline(context, load.read_wait_ms)?;
        check_closing(load)
    }

    /// What comes before a write is looked at. Urgent ones pass a full queue.
    pub(super) fn check_write_load(
        &self,
        store: StoreId,
        context: &Context,
    ) -> Result<(), RegionError> {
        let load = self.load_of(store);
        if load.scheduler_full && context.priority() != CommandPri::High {
            return Err(busy_because("scheduler is busy").into());
        }
        check_deadline(context, load.write_wait_ms)?;
        check_closing(load)
    }

    /// Whether there is room for a proposal in the queue to those who make them.
    pub(super) fn check_queue(&self, store: StoreId) -> Result<(), RegionError> {
        if self.load_of(store).raftstore_full {
            return Err(errorpb::Error {
                message: "Discard due to Full".to_owned(),
                ..busy_because("raftstore is busy")
            }
            .into());
        }
        Ok(())
    }

    /// Whether something beside the store wants a proposal to come later.
    pub(super) fn check_observers(&self, store: StoreId) -> Result<(), RegionError> {
        let backoff_ms = self.load_of(store).observer_delay_ms;
        if backoff_ms == 0 {
            return Ok(());
        }
        Err(busy(errorpb::ServerIsBusy {
            reason: "an observer asks for a delay".to_owned(),
            backoff_ms,
            ..errorpb::ServerIsBusy::default()
        })
        .into())
    }

    /// What comes before a range is destroyed.
    pub(super) fn check_gc_load(&self, store: StoreId) -> Result<(), RegionError> {
        match self.load_of(store).gc_worker_full {
            true => Err(busy_because("gc worker is busy").into()),
            false => Ok(()),
        }
    }

    fn load_of(&self, store: StoreId) -> Load {
        self.store(store)
            .map(|store| store.load)
            .unwrap_or_default()
    }
}

fn check_deadline(context: &Context, wait_ms: u32) -> Result<(), RegionError> {
    let limit = context.max_execution_duration_ms;
    if limit == 0 || u64::from(wait_ms) <= limit {
        return Ok(());
    }
    Err(deadline_exceeded().into())
}

fn check_closing(load: Load) -> Result<(), RegionError> {
    if !load.closing {
        return Ok(());
    }
    Err(errorpb::Error {
        message: "TiKV is Closing".to_owned(),
        ..errorpb::Error::default()
    }
    .into())
}

fn busy_because(reason: &str) -> errorpb::Error {
    busy(errorpb::ServerIsBusy {
        reason: reason.to_owned(),
        ..errorpb::ServerIsBusy::default()
    })
}

fn busy(detail: errorpb::ServerIsBusy) -> errorpb::Error {
    errorpb::Error {
        server_is_busy: Some(detail),
        ..errorpb::Error::default()
    }
}

#[cfg(test)]
mod tests;
