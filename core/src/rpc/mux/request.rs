//! A request of the multiplexer: what it is pushed as, what names it meanwhile, what it ends in, and
//! the stages between.

use bytes::Bytes;

#[cfg(doc)]
use super::Mux;
use super::slab::Handle;
use crate::error::TransportError;
use crate::rpc::frame::Answer;
use crate::time::Instant;

/// A request to be sent. (client-go: `batchCommandsEntry`)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<T> {
    /// The [encoded](crate::rpc::frame::encode_part) item.
    pub part: Bytes,
    /// Higher goes first; from [`PRIORITY_HIGH`] on also beyond the limit of requests in flight.
    /// All from 16 on are equal. (client-go: `override_priority`)
    pub priority: u32,
    /// From when on it is of no use to send the request.
    pub deadline: Instant,
    /// Comes back with the result.
    pub completion: T,
}

/// From this priority on a request does not wait for others' answers.
pub const PRIORITY_HIGH: u32 = 10;

/// Names a request of a [`Mux`], to cancel it. Names nothing once the request has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub(super) Handle);

/// A request that was not taken.
#[derive(Debug)]
pub enum Rejected<T> {
    /// The queue is full: push again when [`Mux::has_room`] says so.
    Full(Entry<T>),
    /// There is no way to send it: every connection is down and none may be tried again yet, or
    /// the multiplexer is closed.
    Failed(Entry<T>, TransportError),
}

/// A request that has come to its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Done<T> {
    /// What was pushed with it.
    pub completion: T,
    /// The answer, or why there is none.
    pub result: Result<Answer, TransportError>,
}

/// A request that was cancelled.
#[derive(Debug, PartialEq, Eq)]
pub struct Cancelled<T> {
    /// What was pushed with it.
    pub completion: T,
    /// Whether it may have been sent: `false` proves that the store never saw it.
    pub sent: bool,
}

impl<T> Rejected<T> {
    /// The entry, to push it again or to let it go.
    pub fn into_entry(self) -> Entry<T> {
        match self {
            Rejected::Full(entry) | Rejected::Failed(entry, _) => entry,
        }
    }
}

/// A request from push to its end.
#[derive(Debug)]
pub(super) enum Request<T> {
    Queued {
        completion: T,
        part: Bytes,
        level: usize,
        deadline: Instant,
    },
    Sent {
        completion: T,
        id: u64,
        connection: usize,
        at: Instant,
    },
    /// Cancelled after it was sent, at `at`.
    Abandoned {
        id: u64,
        connection: usize,
        at: Instant,
    },
}
