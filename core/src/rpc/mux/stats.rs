//! What a multiplexer tells about itself.

use std::time::Duration;

/// What a [`Mux`](super::Mux) has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MuxStats {
    /// Frames handed to writers.
    pub frames: u64,
    /// Requests in them.
    pub sent: u64,
    /// Answers handed out.
    pub completed: u64,
    /// Answers to requests that had been cancelled.
    pub discarded: u64,
    /// Answers to requests that are not known (any more).
    pub outdated: u64,
    /// Sent requests that ended by a broken stream, a failed write or close.
    pub failed: u64,
    /// Cancelled requests whose answer was waited for long enough.
    pub abandoned: u64,
    /// Requests that ended without being sent, for whatever reason.
    pub unsent: u64,
}

/// The requests that have waited long for an answer. (client-go: `inspectPendingBatchRequests`)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Id and waiting time of the one sent first.
    pub oldest: Option<(u64, Duration)>,
    /// Sent 30 s ago or longer.
    pub slow: usize,
    /// Of these, those later than every answer: the server may never have seen them.
    pub slow_unconfirmed: usize,
    /// Sent 90 s ago or longer.
    pub hanging: usize,
    /// Of these, those later than every answer.
    pub hanging_unconfirmed: usize,
}
