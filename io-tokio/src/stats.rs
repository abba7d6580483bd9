//! What a driver holds and has done, in numbers.

use crate::pool::PoolStats;

/// What a [`TokioDriver`](crate::TokioDriver) holds right now, and has done so far on the
/// connections that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoStats {
    /// Stores with connections.
    pub stores: usize,
    /// Requests that wait to be sent to a store.
    pub queued: usize,
    /// Requests sent to a store and not answered, cancelled ones too.
    pub in_flight: usize,
    /// Wishes for timestamps and batches of them that are not answered.
    pub timestamps_pending: usize,
    /// Operations that run in the background.
    pub background: usize,
    /// Tasks that own connections and streams.
    pub tasks: usize,
    /// Frames sent to stores.
    pub frames: u64,
    /// Requests in those frames.
    pub requests: u64,
    /// Answers that were waited for.
    pub answers: u64,
}

impl IoStats {
    pub(crate) fn collect(
        pools: impl Iterator<Item = PoolStats>,
        timestamps: impl Iterator<Item = usize>,
        background: usize,
        tasks: usize,
    ) -> Self {
        let mut stats = IoStats {
            timestamps_pending: timestamps.sum(),
            background,
            tasks,
            ..IoStats::default()
        };
        for pool in pools {
            stats.stores += 1;
            stats.queued += pool.queued;
            stats.in_flight += pool.in_flight;
            stats.frames += pool.mux.frames;
            stats.requests += pool.mux.sent;
            stats.answers += pool.mux.completed;
        }
        stats
    }
}
