//! Collects wishes for timestamps into batches for PD's oracle and shares out what it grants.
//! Called by the driver's task that owns the TSO stream and by those that wait for a timestamp,
//! behind one short lock. (client-go: `tsoDispatcher` and `tsoStream` of PD's Go client)
//!
//! Deliberately absent: the stream, the clock, PD's messages, finding PD's leader, and a timer per
//! wish: whoever waits watches its own deadline and [cancels](TsoBatcher::cancel).
//!
//! # Pull, not push
//!
//! The stream's writer asks for a batch ([`TsoBatcher::poll_batch`]) whenever it can write. While
//! as many batches are outstanding as may be, wishes pile up and go out as one.
//!
//! # What is checked
//!
//! A timestamp handed out twice, or smaller than one that was seen before, breaks snapshot
//! isolation silently. So a batch remembers the largest timestamp known when it began; an oracle
//! that answers with one that is not larger is never listened to again ([`TsoError::NotMonotonic`]).
//! An answer that fits no batch only ends the stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::error::TransportError;
use crate::time::{Instant, LOGICAL_BITS, Timestamp};

/// The wishes for timestamps of one member of PD. `T` is what the driver wakes the waiting task
/// with; it is handed back with the timestamp.
#[derive(Debug)]
pub struct TsoBatcher<T> {
    address: Arc<str>,
    config: TsoConfig,
    waiting: VecDeque<Wish<T>>,
    outstanding: VecDeque<Batch<T>>,
    /// Memory of a batch that is over, for the next one.
    spare: VecDeque<Wish<T>>,
    next_ticket: u64,
    largest: Timestamp,
    end: Option<TransportError>,
}

/// The bounds of a [`TsoBatcher`].
#[derive(Clone, Debug)]
pub struct TsoConfig {
    /// Wishes that may wait to be sent. Default 20000.
    pub queue_max: usize,
    /// Wishes in one batch, at least 1. Default 20000.
    pub batch_max: u32,
    /// Batches sent and not answered, at least 1. Default 1, so that batches grow with load
    /// (client-go: `tso-client-rpc-concurrency`; PD's client goes up to 64).
    pub outstanding_max: usize,
    /// How long a batch may stay unanswered before its stream is given up. Default 3 s.
    pub batch_timeout: Duration,
}

impl Default for TsoConfig {
    fn default() -> Self {
        TsoConfig {
            queue_max: 20_000,
            batch_max: 20_000,
            outstanding_max: 1,
            batch_timeout: Duration::from_secs(3),
        }
    }
}

/// Names a wish, to cancel it. Names nothing once the wish has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TsoTicket(u64);

/// A wish that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TsoRejected<T> {
    /// Too many are waiting: push again when [`TsoBatcher::has_room`] says so.
    Full(T),
    /// The batcher is closed, or the oracle can't be trusted.
    Failed(T, TransportError),
}

/// A batch to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TsoBatch {
    /// How many timestamps to ask for.
    pub count: u32,
}

/// A wish that has come to its end.
#[derive(Debug, PartialEq, Eq)]
pub struct TsoDone<T> {
    /// What was pushed.
    pub completion: T,
    /// The timestamp, or why there is none.
    pub result: Result<Timestamp, TransportError>,
}

/// What an oracle granted: the last of `count` timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TsoGrant {
    /// Milliseconds since the Unix epoch.
    pub physical: i64,
    /// The counter of the last timestamp.
    pub logical: i64,
    /// How many timestamps.
    pub count: u32,
    /// How many low bits of the counter are not counted with. 0 from every PD of today.
    pub suffix_bits: u32,
}

/// An answer that no correct oracle gives. The stream that brought it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TsoError {
    /// Nothing had been asked.
    #[error("PD granted {count} timestamps that nobody asked for")]
    Unasked {
        /// How many.
        count: u32,
    },
    /// More or fewer than asked for.
    #[error("PD granted {granted} timestamps where {asked} were asked for")]
    Count {
        /// How many were asked for.
        asked: u32,
        /// How many were granted.
        granted: u32,
    },
    /// No timestamps.
    #[error("PD granted impossible timestamps, up to {physical} ms and {logical}")]
    Impossible {
        /// The milliseconds.
        physical: i64,
        /// The counter.
        logical: i64,
    },
    /// The oracle went back. Never to be trusted again.
    #[error("PD granted timestamp {first} though {largest} had been given out before")]
    NotMonotonic {
        /// The first timestamp granted.
        first: Timestamp,
        /// The largest one known when it was asked for.
        largest: Timestamp,
    },
}

impl<T> TsoBatcher<T> {
    /// A batcher for the oracle at `address`.
    pub fn new(address: Arc<str>, config: TsoConfig) -> Self {
        TsoBatcher {
            address,
            config,
            waiting: VecDeque::new(),
            outstanding: VecDeque::new(),
            spare: VecDeque::new(),
            next_ticket: 0,
            largest: Timestamp::ZERO,
            end: None,
        }
    }

    /// Makes known a timestamp that the oracle gave out elsewhere, for instance when another
    /// member of PD served it. Every batch that begins from now on must get larger ones.
    pub fn observe(&mut self, timestamp: Timestamp) {
        self.largest = self.largest.max(timestamp);
    }

    /// The largest timestamp known.
    pub fn largest(&self) -> Timestamp {
        self.largest
    }

    /// Queues a wish.
    ///
    /// # Errors
    ///
    /// Gives `completion` back; see [`TsoRejected`].
    pub fn push(&mut self, deadline: Instant, completion: T) -> Result<TsoTicket, TsoRejected<T>> {
        if let Some(error) = &self.end {
            return Err(TsoRejected::Failed(completion, error.clone()));
        }
        if !self.has_room() {
            return Err(TsoRejected::Full(completion));
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.push_back(Wish {
            ticket,
            deadline,
            completion: Some(completion),
        });
        Ok(TsoTicket(ticket))
    }

    /// Whether another wish is taken.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < self.config.queue_max.max(1)
    }

    /// Takes a wish back. `None` if it has come to its end. A timestamp that was already asked
    /// for is dropped when it comes; that is always safe.
    pub fn cancel(&mut self, ticket: TsoTicket) -> Option<T> {
        if let Some(index) = position(&self.waiting, ticket) {
            return self.waiting.remove(index)?.completion;
        }
        let batch = self.outstanding.iter_mut().find(|batch| {
            let last = batch.wishes.back();
            last.is_some_and(|wish| wish.ticket >= ticket.0)
        })?;
        let index = position(&batch.wishes, ticket)?;
        batch.wishes.get_mut(index)?.completion.take()
    }

    /// Whether [`TsoBatcher::poll_batch`] has something to say: what to wake the stream's writer
    /// for.
    pub fn is_ready(&self) -> bool {
        !self.waiting.is_empty() && self.outstanding.len() < self.config.outstanding_max.max(1)
    }

    /// The next batch to write, in the order pushed. `None` if nobody waits or as many batches are
    /// outstanding as may be.
    ///
    /// From here on the batch is outstanding. Wishes whose deadline has passed are left out; they
    /// end up in `done`.
    pub fn poll_batch(&mut self, now: Instant, done: &mut Vec<TsoDone<T>>) -> Option<TsoBatch> {
        if !self.is_ready() {
            return None;
        }
        let wishes = self.take_wishes(now, done);
        let count = u32::try_from(wishes.len()).ok().filter(|count| *count > 0);
        let Some(count) = count else {
            self.spare = wishes;
            return None;
        };
        self.outstanding.push_back(Batch {
            wishes,
            count,
            largest: self.largest,
            began: now,
        });
        Some(TsoBatch { count })
    }

    /// Shares out what the oracle granted to the oldest outstanding batch.
    ///
    /// # Errors
    ///
    /// The answer is wrong. Every outstanding wish has failed, and the driver drops the stream. If
    /// the oracle [went back](TsoError::NotMonotonic), the waiting ones have failed too and the
    /// batcher takes no more.
    pub fn on_reply(
        &mut self,
        grant: TsoGrant,
        done: &mut Vec<TsoDone<T>>,
    ) -> Result<(), TsoError> {
        let batch = self.outstanding.front();
        let first = match batch.map_or_else(
            || Err(TsoError::Unasked { count: grant.count }),
            |batch| batch.check(&grant),
        ) {
            Ok(first) => first,
            Err(error) => {
                self.on_wrong_answer(error, done);
                return Err(error);
            }
        };
        let Some(batch) = self.outstanding.pop_front() else {
            return Ok(());
        };
        let mut wishes = batch.wishes;
        let step = 1 << grant.suffix_bits;
        let mut timestamp = first.as_u64();
        for wish in wishes.drain(..) {
            self.largest = self.largest.max(Timestamp::from_u64(timestamp));
            if let Some(completion) = wish.completion {
                done.push(TsoDone {
                    completion,
                    result: Ok(Timestamp::from_u64(timestamp)),
                });
            }
            timestamp += step;
        }
        self.spare = wishes;
        Ok(())
    }

    /// The stream is over. Fails what was sent on it; what waits goes out on the next one.
    pub fn on_broken(&mut self, error: &TransportError, done: &mut Vec<TsoDone<T>>) {
        for batch in self.outstanding.drain(..) {
            fail(batch.wishes, error, done);
        }
    }

    /// No stream could be opened. Fails what waits for one.
    pub fn on_connect_failed(&mut self, message: &Arc<str>, done: &mut Vec<TsoDone<T>>) {
        let error = TransportError::Connect {
            address: self.address.clone(),
            message: message.clone(),
        };
        fail(self.waiting.drain(..), &error, done);
    }

    /// When the oldest batch has been unanswered for too long. The driver then drops the stream
    /// and says so with [`TsoBatcher::on_broken`].
    pub fn next_deadline(&self) -> Option<Instant> {
        let oldest = self.outstanding.front()?;
        Some(oldest.began + self.config.batch_timeout)
    }

    /// How many wishes wait to be sent.
    pub fn queued(&self) -> usize {
        self.waiting.len()
    }

    /// How many batches were sent and not answered.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Ends everything, in whatever stage. Nothing completes afterwards.
    pub fn close(&mut self, done: &mut Vec<TsoDone<T>>) {
        let unsent = TransportError::Closed { sent: false };
        self.on_broken(&TransportError::Closed { sent: true }, done);
        fail(self.waiting.drain(..), &unsent, done);
        self.end.get_or_insert(unsent);
    }

    fn take_wishes(&mut self, now: Instant, done: &mut Vec<TsoDone<T>>) -> VecDeque<Wish<T>> {
        let mut wishes = std::mem::take(&mut self.spare);
        let batch_max = self.config.batch_max.max(1) as usize;
        while wishes.len() < batch_max
            && let Some(wish) = self.waiting.pop_front()
        {
            match wish.completion {
                Some(completion) if wish.deadline <= now => done.push(TsoDone {
                    completion,
                    result: Err(TransportError::Deadline {
                        address: self.address.clone(),
                        sent: false,
                    }),
                }),
                _ => wishes.push_back(wish),
            }
        }
        wishes
    }

    fn on_wrong_answer(&mut self, error: TsoError, done: &mut Vec<TsoDone<T>>) {
        let failure = TransportError::Decode {
            address: self.address.clone(),
            message: error.to_string().into(),
        };
        self.on_broken(&failure, done);
        if matches!(error, TsoError::NotMonotonic { .. }) {
            fail(self.waiting.drain(..), &failure, done);
            self.end.get_or_insert(failure);
        }
    }
}

/// One timestamp wanted.
#[derive(Debug)]
struct Wish<T> {
    ticket: u64,
    deadline: Instant,
    /// `None` once it was cancelled with its batch under way.
    completion: Option<T>,
}

#[derive(Debug)]
struct Batch<T> {
    wishes: VecDeque<Wish<T>>,
    count: u32,
    /// The largest timestamp known when the batch began.
    largest: Timestamp,
    began: Instant,
}

impl<T> Batch<T> {
    /// The first of the granted timestamps, if they answer this batch.
    fn check(&self, grant: &TsoGrant) -> Result<Timestamp, TsoError> {
        if grant.count != self.count {
            return Err(TsoError::Count {
                asked: self.count,
                granted: grant.count,
            });
        }
        let impossible = TsoError::Impossible {
            physical: grant.physical,
            logical: grant.logical,
        };
        let first = first_of(grant).ok_or(impossible)?;
        if first <= self.largest {
            return Err(TsoError::NotMonotonic {
                first,
                largest: self.largest,
            });
        }
        Ok(first)
    }
}

/// The first of the granted timestamps; `None` if any of them is none.
fn first_of(grant: &TsoGrant) -> Option<Timestamp> {
    let physical = u64::try_from(grant.physical).ok()?;
    let last = u64::try_from(grant.logical).ok()?;
    if physical >> (u64::BITS - LOGICAL_BITS) != 0 || last >> LOGICAL_BITS != 0 {
        return None;
    }
    let before = u64::from(grant.count.checked_sub(1)?);
    // The counter has 18 bits, so more than that many suffix bits leave room for one timestamp.
    let before = match grant.suffix_bits {
        bits if bits < LOGICAL_BITS => before << bits,
        _ => return None,
    };
    Some(Timestamp::new(physical, last.checked_sub(before)?))
}

/// Where a wish stands among others, which are in the order of their tickets.
fn position<T>(wishes: &VecDeque<Wish<T>>, ticket: TsoTicket) -> Option<usize> {
    wishes
        .binary_search_by_key(&ticket.0, |wish| wish.ticket)
        .ok()
}

fn fail<T>(
    wishes: impl IntoIterator<Item = Wish<T>>,
    error: &TransportError,
    done: &mut Vec<TsoDone<T>>,
) {
    for wish in wishes {
        if let Some(completion) = wish.completion {
            done.push(TsoDone {
                completion,
                result: Err(error.clone()),
            });
        }
    }
}

#[cfg(test)]
mod tests;
