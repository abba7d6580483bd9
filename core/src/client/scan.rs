//! The rows of a range as a stream: the next page is fetched when the last row of the one before
//! has been taken.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;

use super::shared::deadline;
use crate::driver::Driver;
use crate::error::Result;
use crate::key::{Key, KeyRange, KvPair};
use crate::operation::{Io, Operation};
use crate::txn::buffer::merge::{Row, merge};
use crate::txn::buffer::{Buffered, Direction, MemBuffer};
use crate::txn::snapshot::{Found, ReadOptions, Reads, ScanCursor};

/// The rows of a range.
///
/// A [`Stream`] of rows; who has no use for streams calls [`try_next`](Scan::try_next) or
/// [`into_vec`](Scan::into_vec). What is to be read is set before the first row is taken.
///
/// # Dropping
///
/// Ends the scan; a page on its way is dropped with it.
#[must_use = "a scan reads nothing before rows are taken from it"]
pub struct Scan<D> {
    driver: D,
    source: Source,
    cursor: ScanCursor,
    left: usize,
    page_size: Option<u32>,
    timeout: Option<Duration>,
    rows: VecDeque<KvPair>,
    page: Option<Page>,
}

/// A page on its way: where the scan stands after it, and its rows.
type Page = Pin<Box<dyn Future<Output = (ScanCursor, Result<Vec<KvPair>>)> + Send>>;

/// Where rows come from: a snapshot, under the writes of a transaction if there is one.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) reads: Arc<Reads>,
    pub(super) buffer: Option<Arc<Mutex<MemBuffer>>>,
}

impl<D: Driver> Scan<D> {
    pub(super) fn new(
        driver: D,
        source: Source,
        range: KeyRange,
        timeout: Option<Duration>,
    ) -> Self {
        Scan {
            driver,
            source,
            cursor: ScanCursor::new(range, false, false),
            left: usize::MAX,
            page_size: None,
            timeout,
            rows: VecDeque::new(),
            page: None,
        }
    }

    /// Ends after so many rows.
    pub fn limit(mut self, rows: usize) -> Self {
        self.left = rows;
        self
    }

    /// From the last key to the first.
    pub fn reverse(mut self) -> Self {
        self.cursor.reverse = true;
        self
    }

    /// Without the values, which come back empty.
    pub fn keys_only(mut self) -> Self {
        self.cursor.keys_only = true;
        self
    }

    /// Fetches so many rows at a time, instead of what the client's options say.
    pub fn page_size(mut self, rows: u32) -> Self {
        self.page_size = Some(rows.max(1));
        self
    }

    /// The next row, `None` after the last.
    ///
    /// # Errors
    ///
    /// The region was not available within the budget, or a lock could not be resolved. The scan
    /// stands where it stood, and may be tried again.
    ///
    /// # Dropping the future
    ///
    /// Loses no row.
    pub async fn try_next(&mut self) -> Result<Option<KvPair>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
            .await
            .transpose()
    }

    /// All rows.
    ///
    /// # Errors
    ///
    /// As [`try_next`](Self::try_next).
    pub async fn into_vec(mut self) -> Result<Vec<KvPair>> {
        let mut rows = Vec::new();
        while let Some(row) = self.try_next().await? {
            rows.push(row);
        }
        Ok(rows)
    }

    fn fetch(&self) -> Page {
        let page_size = self.page_size.unwrap_or(self.source.reads.page_size());
        let limit = u32::try_from(self.left).unwrap_or(u32::MAX).min(page_size);
        let options = ReadOptions {
            deadline: deadline(&self.driver, self.timeout),
            ..ReadOptions::default()
        };
        let (driver, source, before) = (
            self.driver.clone(),
            self.source.clone(),
            self.cursor.clone(),
        );
        Box::pin(async move {
            let operation = Operation::new("scan", move |io: Io| async move {
                let mut cursor = before.clone();
                match source
                    .reads
                    .scan_page(&io, &mut cursor, limit, &options)
                    .await
                {
                    Ok(rows) => {
                        let rows = source.overlay(&before, &cursor, rows);
                        (cursor, Ok(rows))
                    }
                    Err(error) => (before, Err(error)),
                }
            });
            driver.run(operation).await
        })
    }
}

impl Source {
    /// What is visible of a page under the transaction's own writes in the part it covers.
    fn overlay(&self, before: &ScanCursor, after: &ScanCursor, rows: Vec<Found>) -> Vec<KvPair> {
        let pair = |found: Found| {
            let value = if before.keys_only {
                Bytes::new()
            } else {
                found.value
            };
            KvPair::new(found.key, value)
        };
        let Some(buffer) = &self.buffer else {
            return rows.into_iter().map(pair).collect();
        };
        let direction = if before.reverse {
            Direction::Reverse
        } else {
            Direction::Forward
        };
        let mut written: Vec<Buffered> = {
            let buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
            buffer
                .iter(covered(before, after))
                .filter_map(|entry| {
                    Some(Buffered {
                        key: entry.to_key(),
                        value: entry.to_value()?,
                    })
                })
                .collect()
        };
        if before.reverse {
            written.reverse();
        }
        merge(written, rows, direction).map(pair).collect()
    }
}

/// What a page took off what was left.
fn covered(before: &ScanCursor, after: &ScanCursor) -> KeyRange {
    let (start, end) = (before.rest.start().clone(), before.rest.end().cloned());
    match (after.done, before.reverse) {
        (true, _) => KeyRange::new(start, end),
        (false, false) => KeyRange::new(start, Some(after.rest.start().clone())),
        (false, true) => KeyRange::new(after.rest.wire_end(), end),
    }
}

impl Row for Found {
    fn key(&self) -> &[u8] {
        &self.key
    }

    fn from_buffer(key: Key, value: Bytes) -> Self {
        Found {
            key,
            value,
            commit_ts: crate::time::Timestamp::ZERO,
        }
    }
}

/// Nothing in a scan is ever pinned in place: the one future in it is boxed.
impl<D> Unpin for Scan<D> {}

impl<D: Driver> Stream for Scan<D> {
    type Item = Result<KvPair>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<KvPair>>> {
        let this = &mut *self;
        loop {
            if this.left == 0 {
                return Poll::Ready(None);
            }
            if let Some(row) = this.rows.pop_front() {
                this.left -= 1;
                return Poll::Ready(Some(Ok(row)));
            }
            if this.page.is_none() && this.cursor.done {
                return Poll::Ready(None);
            }
            if this.page.is_none() {
                this.page = Some(this.fetch());
            }
            let Some(page) = &mut this.page else { continue };
            let (cursor, rows) = ready!(page.as_mut().poll(cx));
            this.page = None;
            this.cursor = cursor;
            match rows {
                Ok(rows) => this.rows.extend(rows),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

impl<D> fmt::Debug for Scan<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scan({:?} left)", self.cursor.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_covers_what_it_took_off_the_rest() {
        let before = |reverse| ScanCursor::new(KeyRange::from("b".."y"), reverse, false);
        let after = |rest: KeyRange, reverse, done| ScanCursor {
            rest,
            done,
            ..before(reverse)
        };
        for (reverse, rest, done, expected) in [
            (
                false,
                KeyRange::from("m".."y"),
                false,
                KeyRange::from("b".."m"),
            ),
            (
                true,
                KeyRange::from("b".."m"),
                false,
                KeyRange::from("m".."y"),
            ),
            (
                false,
                KeyRange::from("y".."y"),
                true,
                KeyRange::from("b".."y"),
            ),
        ] {
            assert_eq!(
                covered(&before(reverse), &after(rest, reverse, done)),
                expected
            );
        }
    }
}
