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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Instant = Instant::from_millis(1_000);
    const FAR: Instant = Instant::FAR_FUTURE;

    fn batcher(config: TsoConfig) -> TsoBatcher<u32> {
        TsoBatcher::new("pd".into(), config)
    }

    fn grant(physical: i64, logical: i64, count: u32) -> TsoGrant {
        TsoGrant {
            physical,
            logical,
            count,
            suffix_bits: 0,
        }
    }

    fn broken() -> TransportError {
        TransportError::Broken {
            address: "pd".into(),
            message: "EOF".into(),
            sent: true,
        }
    }

    /// Takes what is done so far: completions with timestamps, as (physical, logical).
    fn granted(done: &mut Vec<TsoDone<u32>>) -> Vec<(u32, (u64, u64))> {
        done.drain(..)
            .map(|done| {
                let ts = done.result.unwrap();
                (done.completion, (ts.physical_ms(), ts.logical()))
            })
            .collect()
    }

    /// Takes what is done so far: completions with errors.
    fn failed(done: &mut Vec<TsoDone<u32>>) -> Vec<(u32, TransportError)> {
        done.drain(..)
            .map(|done| (done.completion, done.result.unwrap_err()))
            .collect()
    }

    #[test]
    fn a_batch_is_shared_out_in_the_order_asked() {
        let mut batcher = batcher(TsoConfig::default());
        let mut done = Vec::new();
        assert_eq!(batcher.poll_batch(NOW, &mut done), None);
        for i in 0..3 {
            assert!(batcher.push(FAR, i).is_ok());
        }
        assert_eq!(
            batcher.poll_batch(NOW, &mut done),
            Some(TsoBatch { count: 3 })
        );
        // One batch at a time: what comes now waits, and goes out as one.
        for i in 3..5 {
            batcher.push(FAR, i).unwrap();
        }
        assert!(!batcher.is_ready());
        assert_eq!(batcher.poll_batch(NOW, &mut done), None);
        batcher.on_reply(grant(9, 10, 3), &mut done).unwrap();
        assert_eq!(granted(&mut done), [(0, (9, 8)), (1, (9, 9)), (2, (9, 10))]);
        assert!(batcher.is_ready());
        assert_eq!(
            batcher.poll_batch(NOW, &mut done),
            Some(TsoBatch { count: 2 })
        );
        batcher.on_reply(grant(9, 12, 2), &mut done).unwrap();
        assert_eq!(granted(&mut done), [(3, (9, 11)), (4, (9, 12))]);
        assert_eq!(batcher.largest(), Timestamp::new(9, 12));
    }

    #[test]
    fn batches_queue_and_outstanding_ones_are_bounded() {
        let mut batcher = batcher(TsoConfig {
            queue_max: 5,
            batch_max: 2,
            outstanding_max: 2,
            ..Default::default()
        });
        let mut done = Vec::new();
        for i in 0..5 {
            batcher.push(FAR, i).unwrap();
        }
        assert_eq!(batcher.push(FAR, 9), Err(TsoRejected::Full(9)));
        for _ in 0..2 {
            assert_eq!(
                batcher.poll_batch(NOW, &mut done),
                Some(TsoBatch { count: 2 })
            );
        }
        assert_eq!(batcher.poll_batch(NOW, &mut done), None);
        assert_eq!((batcher.queued(), batcher.outstanding()), (1, 2));
        assert!(batcher.has_room());
        // Answers come in the order of the batches.
        batcher.on_reply(grant(1, 2, 2), &mut done).unwrap();
        assert_eq!(
            batcher.poll_batch(NOW, &mut done),
            Some(TsoBatch { count: 1 })
        );
        batcher.on_reply(grant(1, 4, 2), &mut done).unwrap();
        batcher.on_reply(grant(2, 0, 1), &mut done).unwrap();
        let expected = [
            (0, (1, 1)),
            (1, (1, 2)),
            (2, (1, 3)),
            (3, (1, 4)),
            (4, (2, 0)),
        ];
        assert_eq!(granted(&mut done), expected);
    }

    #[test]
    fn suffix_bits_are_not_counted_with() {
        let mut batcher = batcher(TsoConfig::default());
        let mut done = Vec::new();
        for i in 0..3 {
            batcher.push(FAR, i).unwrap();
        }
        batcher.poll_batch(NOW, &mut done).unwrap();
        let answer = TsoGrant {
            suffix_bits: 3,
            ..grant(9, 21, 3)
        };
        batcher.on_reply(answer, &mut done).unwrap();
        assert_eq!(
            granted(&mut done),
            [(0, (9, 5)), (1, (9, 13)), (2, (9, 21))]
        );
    }

    #[test]
    fn an_answer_that_does_not_fit_ends_the_stream_but_not_the_queue() {
        let impossible = |physical, logical| TsoError::Impossible { physical, logical };
        let count = |granted| TsoError::Count { asked: 2, granted };
        let table = [
            (grant(5, 5, 1), count(1)),
            (grant(5, 5, 3), count(3)),
            (grant(5, 5, 0), count(0)),
            (grant(5, 0, 2), impossible(5, 0)),
            (grant(5, -1, 2), impossible(5, -1)),
            (grant(-5, 5, 2), impossible(-5, 5)),
            (grant(1 << 46, 5, 2), impossible(1 << 46, 5)),
            (grant(5, 1 << 18, 2), impossible(5, 1 << 18)),
            (grant(i64::MAX, i64::MAX, 2), impossible(i64::MAX, i64::MAX)),
            (
                TsoGrant {
                    suffix_bits: 5,
                    ..grant(5, 31, 2)
                },
                impossible(5, 31),
            ),
            (
                TsoGrant {
                    suffix_bits: u32::MAX,
                    ..grant(5, 31, 2)
                },
                impossible(5, 31),
            ),
        ];
        for (answer, error) in table {
            let mut batcher = batcher(TsoConfig {
                batch_max: 2,
                outstanding_max: 2,
                ..Default::default()
            });
            let mut done = Vec::new();
            for i in 0..5 {
                batcher.push(FAR, i).unwrap();
            }
            batcher.poll_batch(NOW, &mut done).unwrap();
            batcher.poll_batch(NOW, &mut done).unwrap();
            assert_eq!(batcher.on_reply(answer, &mut done), Err(error));
            let failure = TransportError::Decode {
                address: "pd".into(),
                message: error.to_string().into(),
            };
            let expected: Vec<_> = (0..4).map(|i| (i, failure.clone())).collect();
            assert_eq!(failed(&mut done), expected, "{answer:?}");
            // Everything else goes on, with the next stream.
            assert_eq!(
                batcher.poll_batch(NOW, &mut done),
                Some(TsoBatch { count: 1 })
            );
            batcher.on_reply(grant(5, 5, 1), &mut done).unwrap();
            assert_eq!(granted(&mut done), [(4, (5, 5))]);
            let unasked = TsoError::Unasked { count: 1 };
            assert_eq!(batcher.on_reply(grant(5, 6, 1), &mut done), Err(unasked));
        }
    }

    #[test]
    fn an_oracle_that_goes_back_is_never_trusted_again() {
        // What is granted after (7, 7) was, and the first timestamp of it if that is an error.
        let table = [
            (grant(7, 9, 2), None),
            (grant(8, 1, 2), None),
            (grant(7, 8, 2), Some((7, 7))),
            (grant(7, 7, 2), Some((7, 6))),
            (grant(6, 100, 2), Some((6, 99))),
        ];
        for (answer, first) in table {
            let mut batcher = batcher(TsoConfig {
                batch_max: 2,
                ..Default::default()
            });
            let mut done = Vec::new();
            batcher.observe(Timestamp::new(7, 7));
            batcher.observe(Timestamp::new(7, 5));
            for i in 0..3 {
                batcher.push(FAR, i).unwrap();
            }
            batcher.poll_batch(NOW, &mut done).unwrap();
            let result = batcher.on_reply(answer, &mut done);
            let Some((physical, logical)) = first else {
                assert_eq!(result, Ok(()), "{answer:?}");
                continue;
            };
            let error = TsoError::NotMonotonic {
                first: Timestamp::new(physical, logical),
                largest: Timestamp::new(7, 7),
            };
            assert_eq!(result, Err(error));
            let ended = failed(&mut done);
            assert_eq!(ended.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [0, 1, 2]);
            let again = batcher.push(FAR, 3);
            assert_eq!(again, Err(TsoRejected::Failed(3, ended[0].1.clone())));
            // Not even by closing it.
            batcher.close(&mut done);
            assert_eq!(batcher.push(FAR, 3), again);
            assert_eq!(done, []);
        }
    }

    #[test]
    fn overlapping_batches_need_not_be_in_order() {
        let mut batcher = batcher(TsoConfig {
            outstanding_max: 2,
            ..Default::default()
        });
        let mut done = Vec::new();
        for i in 0..2 {
            batcher.push(FAR, i).unwrap();
            batcher.poll_batch(NOW, &mut done).unwrap();
        }
        batcher.on_reply(grant(5, 5, 1), &mut done).unwrap();
        // This one began before the other was answered; the next one did not.
        batcher.push(FAR, 2).unwrap();
        batcher.poll_batch(NOW, &mut done).unwrap();
        batcher.on_reply(grant(5, 4, 1), &mut done).unwrap();
        assert_eq!(granted(&mut done), [(0, (5, 5)), (1, (5, 4))]);
        let error = TsoError::NotMonotonic {
            first: Timestamp::new(5, 5),
            largest: Timestamp::new(5, 5),
        };
        assert_eq!(batcher.on_reply(grant(5, 5, 1), &mut done), Err(error));
    }

    #[test]
    fn a_broken_stream_fails_what_was_sent_on_it() {
        let mut batcher = batcher(TsoConfig {
            batch_max: 1,
            ..Default::default()
        });
        let mut done = Vec::new();
        for i in 0..2 {
            batcher.push(FAR, i).unwrap();
        }
        batcher.poll_batch(NOW, &mut done).unwrap();
        assert_eq!(batcher.next_deadline(), Some(NOW + Duration::from_secs(3)));
        batcher.on_broken(&broken(), &mut done);
        assert_eq!(failed(&mut done), [(0, broken())]);
        assert_eq!(batcher.next_deadline(), None);
        // No stream can be had.
        batcher.on_connect_failed(&"refused".into(), &mut done);
        let refused = TransportError::Connect {
            address: "pd".into(),
            message: "refused".into(),
        };
        assert_eq!(failed(&mut done), [(1, refused)]);
        // That is no reason to give up.
        batcher.push(FAR, 2).unwrap();
        batcher.poll_batch(NOW, &mut done).unwrap();
        batcher.on_reply(grant(1, 1, 1), &mut done).unwrap();
        assert_eq!(granted(&mut done), [(2, (1, 1))]);
    }

    #[test]
    fn a_cancelled_wish_costs_nobody_anything() {
        let mut batcher = batcher(TsoConfig::default());
        let mut done = Vec::new();
        let tickets: Vec<_> = (0..5).map(|i| batcher.push(FAR, i).unwrap()).collect();
        assert_eq!(batcher.cancel(tickets[1]), Some(1));
        assert_eq!(batcher.cancel(tickets[1]), None);
        assert_eq!(
            batcher.poll_batch(NOW, &mut done),
            Some(TsoBatch { count: 4 })
        );
        let late = batcher.push(FAR, 5).unwrap();
        // Its timestamp is thrown away.
        assert_eq!(batcher.cancel(tickets[2]), Some(2));
        assert_eq!(batcher.cancel(tickets[2]), None);
        batcher.on_reply(grant(1, 4, 4), &mut done).unwrap();
        assert_eq!(granted(&mut done), [(0, (1, 1)), (3, (1, 3)), (4, (1, 4))]);
        for ticket in tickets {
            assert_eq!(batcher.cancel(ticket), None);
        }
        assert_eq!(batcher.cancel(late), Some(5));
        assert_eq!(batcher.poll_batch(NOW, &mut done), None);
        assert_eq!((batcher.queued(), batcher.outstanding()), (0, 0));
    }

    #[test]
    fn an_expired_wish_is_not_sent() {
        let mut batcher = batcher(TsoConfig::default());
        let mut done = Vec::new();
        let second = NOW + Duration::from_secs(1);
        batcher.push(NOW, 0).unwrap();
        batcher.push(second, 1).unwrap();
        assert_eq!(
            batcher.poll_batch(NOW, &mut done),
            Some(TsoBatch { count: 1 })
        );
        let expired = TransportError::Deadline {
            address: "pd".into(),
            sent: false,
        };
        assert_eq!(failed(&mut done), [(0, expired.clone())]);
        // Once sent, it is the waiting task that watches the deadline.
        batcher.on_reply(grant(1, 1, 1), &mut done).unwrap();
        assert_eq!(granted(&mut done), [(1, (1, 1))]);
        batcher.push(second, 2).unwrap();
        assert_eq!(batcher.poll_batch(second, &mut done), None);
        assert_eq!(failed(&mut done), [(2, expired)]);
        assert_eq!(batcher.outstanding(), 0);
    }

    #[test]
    fn close_ends_every_stage() {
        let mut batcher = batcher(TsoConfig::default());
        let mut done = Vec::new();
        batcher.push(FAR, 0).unwrap();
        batcher.poll_batch(NOW, &mut done).unwrap();
        batcher.push(FAR, 1).unwrap();
        batcher.close(&mut done);
        let closed = |sent| TransportError::Closed { sent };
        assert_eq!(failed(&mut done), [(0, closed(true)), (1, closed(false))]);
        batcher.close(&mut done);
        assert_eq!(batcher.poll_batch(NOW, &mut done), None);
        assert!(batcher.on_reply(grant(1, 1, 1), &mut done).is_err());
        assert_eq!(done, []);
        let rejected = TsoRejected::Failed(2, closed(false));
        assert_eq!(batcher.push(FAR, 2), Err(rejected));
    }

    #[derive(Clone, Debug)]
    enum Event {
        Push {
            ttl: u64,
        },
        Cancel(prop::sample::Index),
        Advance(u64),
        Send,
        /// The oracle answers; its clock moves on by so many milliseconds.
        Answer(i64),
        WrongCount(u32),
        Break,
        ConnectFailed,
        Close,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            60 => prop_oneof![3 => Just(1_000_000u64), 1 => 0u64..50]
                .prop_map(|ttl| Event::Push { ttl }),
            10 => any::<prop::sample::Index>().prop_map(Event::Cancel),
            10 => (0u64..30).prop_map(Event::Advance),
            40 => Just(Event::Send),
            30 => (0i64..3).prop_map(Event::Answer),
            1 => (0u32..5).prop_map(Event::WrongCount),
            3 => Just(Event::Break),
            2 => Just(Event::ConnectFailed),
            1 => Just(Event::Close),
        ]
    }

    proptest! {
        /// Everyone gets one timestamp or one error; timestamps are distinct and increase in the
        /// order they were asked for; nobody is forgotten.
        #[test]
        fn everyone_gets_one_timestamp_or_one_error(
            batch_max in 1u32..6,
            outstanding_max in 1usize..4,
            queue_max in 1usize..20,
            events in prop::collection::vec(event(), 0..300),
        ) {
            let mut batcher = batcher(TsoConfig {
                queue_max,
                batch_max,
                outstanding_max,
                ..Default::default()
            });
            let mut now = NOW;
            // An honest oracle, and what it was asked on the stream that stands.
            let (mut physical, mut logical) = (1i64, 0i64);
            let mut asked = VecDeque::new();
            let mut tickets = Vec::new();
            let mut ended = Vec::new();
            let mut last = Timestamp::ZERO;
            let tail = std::iter::repeat_n([Event::Send, Event::Answer(0)], 40).flatten();
            for event in events.into_iter().chain(tail) {
                let mut done = Vec::new();
                match event {
                    Event::Push { ttl } => {
                        let completion = tickets.len() as u32;
                        let is_full = batcher.queued() >= queue_max;
                        match batcher.push(now + Duration::from_millis(ttl), completion) {
                            Ok(ticket) => {
                                prop_assert!(!is_full);
                                tickets.push(ticket);
                                ended.push(false);
                            }
                            Err(TsoRejected::Full(_)) => prop_assert!(is_full),
                            Err(TsoRejected::Failed(..)) => {}
                        }
                    }
                    Event::Cancel(index) if !tickets.is_empty() => {
                        let index = index.index(tickets.len());
                        let cancelled = batcher.cancel(tickets[index]);
                        prop_assert_eq!(cancelled, (!ended[index]).then_some(index as u32));
                        ended[index] = true;
                    }
                    Event::Cancel(_) => {}
                    Event::Advance(millis) => now = now + Duration::from_millis(millis),
                    Event::Send => {
                        if let Some(batch) = batcher.poll_batch(now, &mut done) {
                            prop_assert!((1..=batch_max).contains(&batch.count));
                            asked.push_back(batch.count);
                        }
                        prop_assert!(asked.len() <= outstanding_max);
                    }
                    Event::Answer(millis) => {
                        if millis > 0 {
                            (physical, logical) = (physical + millis, 0);
                        }
                        if let Some(count) = asked.pop_front() {
                            logical += i64::from(count);
                            let answer = grant(physical, logical, count);
                            prop_assert_eq!(batcher.on_reply(answer, &mut done), Ok(()));
                        }
                    }
                    Event::WrongCount(count) => {
                        if asked.front() != Some(&count) {
                            batcher
                                .on_reply(grant(physical + 1, 9, count), &mut done)
                                .unwrap_err();
                            prop_assert!(done.iter().all(|done| done.result.is_err()));
                            asked.clear();
                        }
                    }
                    Event::Break => {
                        batcher.on_broken(&broken(), &mut done);
                        asked.clear();
                    }
                    Event::ConnectFailed => {
                        batcher.on_connect_failed(&"refused".into(), &mut done);
                        prop_assert_eq!(batcher.queued(), 0);
                    }
                    Event::Close => {
                        batcher.close(&mut done);
                        asked.clear();
                    }
                }
                prop_assert_eq!(batcher.outstanding(), asked.len());
                for done in done {
                    let index = done.completion as usize;
                    prop_assert!(!std::mem::replace(&mut ended[index], true));
                    if let Ok(timestamp) = done.result {
                        prop_assert!(timestamp > last);
                        last = timestamp;
                    }
                }
            }
            prop_assert!(ended.iter().all(|ended| *ended));
            prop_assert_eq!(batcher.queued(), 0);
        }
    }
}
