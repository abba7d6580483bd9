//! Reads of one version: point reads, batches, and scans page by page, past the locks in the way.
//!
//! What a read learns of others' transactions helps all later reads of the same snapshot: it is
//! sent along, and TiKV then looks past, or through, their locks by itself.
//! (client-go: `KVSnapshot`, `Scanner`)

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tikv_proto::kvrpcpb;

use crate::backoff::{Backoffer, budget};
use crate::error::{Error, Result};
use crate::key::{Key, KeyRange};
use crate::operation::Io;
use crate::region::Region;
use crate::rpc::cluster::Cluster;
use crate::rpc::page::Page;
use crate::rpc::send::{Outcome, SendOptions};
use crate::time::{Instant, Timestamp};
use crate::txn::key_error::KeyFailure;
use crate::txn::lock::Lock;
use crate::txn::lock::resolver::LockResolver;
use crate::txn::lock::verdict::Caller;
use crate::why::BackoffKind;

/// How many keys one batch request asks for (client-go: `batchGetSize`).
const BATCH_GET_SIZE: usize = 5120;

/// One version of the data.
pub(crate) struct Reads {
    cluster: Arc<Cluster>,
    resolver: Arc<LockResolver>,
    version: Timestamp,
    known: Mutex<KnownLocks>,
}

/// Transactions whose locks are known not to matter to this version.
#[derive(Default)]
struct KnownLocks {
    ignore: BTreeSet<Timestamp>,
    access: BTreeSet<Timestamp>,
}

impl KnownLocks {
    fn count(&self) -> usize {
        self.ignore.len() + self.access.len()
    }
}

/// A value and, if it was asked for, when it was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) key: Key,
    pub(crate) value: Bytes,
    pub(crate) commit_ts: Timestamp,
}

/// What of a read is the caller's choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ReadOptions {
    pub(crate) deadline: Option<Instant>,
    pub(crate) need_commit_ts: bool,
    pub(crate) not_fill_cache: bool,
    pub(crate) priority: kvrpcpb::CommandPri,
}

/// Where a scan stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScanCursor {
    /// What has not been read yet.
    pub(crate) rest: KeyRange,
    pub(crate) reverse: bool,
    pub(crate) keys_only: bool,
    /// Whether all of it has been read.
    pub(crate) done: bool,
}

impl ScanCursor {
    pub(crate) fn new(range: KeyRange, reverse: bool, keys_only: bool) -> Self {
        let done = range.is_empty();
        ScanCursor {
            rest: range,
            reverse,
            keys_only,
            done,
        }
    }

    /// The part of what is left that `region` holds.
    fn part(&self, region: &KeyRange) -> KeyRange {
        self.rest.intersect(region)
    }

    /// Moves on past a page of `part`: to its last key if it was full, else to the part's end.
    fn advance(&mut self, part: &KeyRange, last: Option<Key>, full: bool) {
        let (start, end) = (self.rest.start().clone(), self.rest.end().cloned());
        #[cfg(feature = "mutations")]
        let full = full && !crate::mutation::is(crate::mutation::Mutation::OnePageARegion);
        self.rest = match (self.reverse, last.filter(|_| full)) {
            (false, Some(last)) => KeyRange::new(last.next(), end),
            (true, Some(last)) => KeyRange::new(start, Some(last)),
            (true, None) => KeyRange::new(start, Some(part.start().clone())),
            (false, None) => match part.end() {
                Some(part_end) => KeyRange::new(part_end.clone(), end),
                None => {
                    self.done = true;
                    return;
                }
            },
        };
        self.done = self.rest.is_empty();
    }
}

impl Reads {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        resolver: Arc<LockResolver>,
        version: Timestamp,
    ) -> Self {
        Reads {
            cluster,
            resolver,
            version,
            known: Mutex::default(),
        }
    }

    /// How many rows a page has if the caller does not say.
    pub(crate) fn page_size(&self) -> u32 {
        self.cluster.config().scan_page_size
    }

    pub(crate) fn version(&self) -> Timestamp {
        self.version
    }

    fn known(&self) -> MutexGuard<'_, KnownLocks> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn options(&self, options: &ReadOptions, timeout: Duration) -> SendOptions {
        let known = self.known();
        SendOptions {
            priority: options.priority,
            not_fill_cache: options.not_fill_cache,
            resolved_locks: known.ignore.iter().map(|ts| ts.as_u64()).collect(),
            committed_locks: known.access.iter().map(|ts| ts.as_u64()).collect(),
            ..SendOptions::read(timeout)
        }
    }

    /// The value of a key, `None` if it has none.
    pub(crate) async fn get(
        &self,
        io: &Io,
        key: &Key,
        options: &ReadOptions,
    ) -> Result<Option<Found>> {
        let mut backoff = self.cluster.backoff(budget::READ_MS, options.deadline);
        let mut first_lock = None;
        loop {
            let request = kvrpcpb::GetRequest {
                key: key.as_bytes().clone(),
                version: self.version.as_u64(),
                need_commit_ts: options.need_commit_ts,
                ..Default::default()
            };
            let send_options = self.options(options, self.cluster.config().request_timeout);
            let reply = self
                .cluster
                .send_to_key(io, &mut backoff, key, request, &send_options)
                .await?;
            let Some(error) = reply.error else {
                // Transactions store no empty value, so an empty one is none.
                let is_there = !reply.not_found && !reply.value.is_empty();
                return Ok(is_there.then(|| Found {
                    key: key.clone(),
                    value: reply.value,
                    commit_ts: reply.commit_ts.into(),
                }));
            };
            let locks = met(KeyFailure::from(*error))?;
            Box::pin(self.pass(io, &mut backoff, locks, true, &mut first_lock)).await?;
        }
    }

    /// Gets past locks, or waits for them.
    async fn pass(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        mut locks: Vec<Lock>,
        lite: bool,
        first_lock: &mut Option<Timestamp>,
    ) -> Result<()> {
        let before = self.known().count();
        if self.version == Timestamp::MAX {
            // A read of the latest version is delayed by the first transaction it meets, no
            // matter how many others come after that.
            let first = *first_lock.get_or_insert(locks.first().map_or(Timestamp::ZERO, |l| l.txn));
            let mut known = self.known();
            locks.retain(|lock| {
                let wait = lock.txn == first;
                if !wait {
                    known.ignore.insert(lock.txn);
                }
                wait
            });
        }
        let caller = Caller::Reader {
            ts: self.version,
            lite,
        };
        let cause = locks.first().map_or(Error::Closed, locked);
        let resolved = self.resolver.resolve(io, backoff, caller, locks).await?;
        let wait_ms = resolved.wait_ms;
        let learned = {
            let mut known = self.known();
            known.ignore.extend(resolved.ignore);
            known.access.extend(resolved.access);
            known.count() > before
        };
        let cap = match wait_ms {
            Some(ms) => Some(Duration::from_millis(ms)),
            None if learned => return Ok(()),
            // What the store is told already has not helped. The lock is about to be cleaned up,
            // but not sooner for being met again and again.
            None => None,
        };
        backoff
            .wait_capped(io, BackoffKind::TxnLockFast, cause, cap)
            .await
    }

    /// The values of those of `keys` that have one, in no order. The keys are sorted and distinct.
    pub(crate) async fn batch_get(
        &self,
        io: &Io,
        keys: Vec<Key>,
        options: &ReadOptions,
    ) -> Result<Vec<Found>> {
        let mut backoff = self.cluster.backoff(budget::READ_MS, options.deadline);
        let mut batches: FuturesUnordered<_> = self
            .cut(io, &mut backoff, &keys)
            .await?
            .into_iter()
            .map(|batch| self.get_moving_batch(io, backoff.fork(), batch, options))
            .collect();
        let mut found = Vec::new();
        while let Some(pairs) = batches.next().await {
            found.extend(pairs?);
        }
        Ok(found)
    }

    /// Some keys of one region each, few enough for one request.
    async fn cut(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        keys: &[Key],
    ) -> Result<Vec<(Arc<Region>, Vec<Key>)>> {
        let groups = self.cluster.group(io, backoff, keys).await?;
        let batches = groups.into_iter().flat_map(|(region, places)| {
            let keys = keys.get(places).unwrap_or_default();
            keys.chunks(BATCH_GET_SIZE)
                .map(move |keys| (region.clone(), keys.to_vec()))
        });
        Ok(batches.collect())
    }

    /// What was found of a batch of keys, wherever they move meanwhile.
    async fn get_moving_batch(
        &self,
        io: &Io,
        mut backoff: Backoffer,
        batch: (Arc<Region>, Vec<Key>),
        options: &ReadOptions,
    ) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        let mut waiting = vec![batch];
        while let Some((region, keys)) = waiting.pop() {
            let (pairs, left) = self
                .get_batch(io, &mut backoff, &region, keys, options)
                .await?;
            found.extend(pairs);
            waiting.extend(self.cut(io, &mut backoff, &left).await?);
        }
        Ok(found)
    }

    /// Sorted keys of one region: what was found, and the keys that must be located again.
    async fn get_batch(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        region: &Arc<Region>,
        mut keys: Vec<Key>,
        options: &ReadOptions,
    ) -> Result<(Vec<Found>, Vec<Key>)> {
        let mut found = Vec::new();
        let mut first_lock = None;
        loop {
            let request = kvrpcpb::BatchGetRequest {
                keys: keys.iter().map(|key| key.as_bytes().clone()).collect(),
                version: self.version.as_u64(),
                need_commit_ts: options.need_commit_ts,
                ..Default::default()
            };
            let send_options = self.options(options, self.cluster.config().range_timeout);
            let sent = self
                .cluster
                .send(io, backoff, region, request, &send_options)
                .await;
            let reply = match sent.outcome? {
                Outcome::Answer(reply) => reply,
                Outcome::Relocate(relocate) => {
                    relocate.back_off(io, backoff).await?;
                    #[cfg(feature = "mutations")]
                    if crate::mutation::is(crate::mutation::Mutation::ForgetMovedKeys) {
                        keys.clear();
                    }
                    return Ok((found, keys));
                }
            };
            let mut locks = Vec::new();
            if let Some(error) = reply.error {
                // The answer's pairs are worth nothing: all keys are asked for again.
                locks.extend(met(KeyFailure::from(*error))?);
            } else {
                let mut again = Vec::new();
                for pair in reply.pairs {
                    match pair.error {
                        None if pair.value.is_empty() => {}
                        None => found.push(Found {
                            key: pair.key.into(),
                            value: pair.value,
                            commit_ts: pair.commit_ts.into(),
                        }),
                        Some(error) => {
                            let met = met(KeyFailure::from(*error))?;
                            again.extend(met.iter().map(|lock| lock.key.clone()));
                            locks.extend(met);
                        }
                    }
                }
                again.sort();
                keys = again;
            }
            if locks.is_empty() {
                return Ok((found, Vec::new()));
            }
            self.pass(io, backoff, locks, false, &mut first_lock)
                .await?;
        }
    }

    /// The next rows of a scan, `limit` at most; moves the cursor past them. A page may be empty
    /// although the scan is not done.
    pub(crate) async fn scan_page(
        &self,
        io: &Io,
        cursor: &mut ScanCursor,
        limit: u32,
        options: &ReadOptions,
    ) -> Result<Vec<Found>> {
        if cursor.done || limit == 0 {
            return Ok(Vec::new());
        }
        let mut backoff = self.cluster.backoff(budget::READ_MS, options.deadline);
        let mut first_lock = None;
        loop {
            let region = if cursor.reverse {
                self.cluster
                    .locate_end(io, &mut backoff, cursor.rest.end())
                    .await?
            } else {
                self.cluster
                    .locate(io, &mut backoff, cursor.rest.start())
                    .await?
            };
            let part = cursor.part(region.range());
            let (start_key, end_key) = part.wire_bounds(cursor.reverse);
            let request = kvrpcpb::ScanRequest {
                start_key,
                end_key,
                limit,
                version: self.version.as_u64(),
                key_only: cursor.keys_only,
                reverse: cursor.reverse,
                ..Default::default()
            };
            let send_options = self.options(options, self.cluster.config().range_timeout);
            let sent = self
                .cluster
                .send(io, &mut backoff, &region, request, &send_options)
                .await;
            let reply = match sent.outcome? {
                Outcome::Answer(reply) => reply,
                Outcome::Relocate(relocate) => {
                    relocate.back_off(io, &mut backoff).await?;
                    continue;
                }
            };
            if let Some(error) = reply.error {
                let locks = met(KeyFailure::from(*error))?;
                self.pass(io, &mut backoff, locks, false, &mut first_lock)
                    .await?;
                continue;
            }
            let full = reply.pairs.len() >= limit as usize;
            let page = Page::new(&part, cursor.reverse, limit);
            let (rows, last) = self.rows(io, page, reply.pairs, options).await?;
            #[cfg(feature = "mutations")]
            let last = last.map(|last| {
                let repeats = crate::mutation::is(crate::mutation::Mutation::RepeatRowsInReverse);
                // A page of one row would repeat it for ever.
                match repeats && cursor.reverse && rows.len() > 1 {
                    true => last.next(),
                    false => last,
                }
            });
            cursor.advance(&part, last, full);
            return Ok(rows);
        }
    }

    /// The rows of a page, and its last key. A row that is locked is read by itself.
    async fn rows(
        &self,
        io: &Io,
        mut page: Page<'_>,
        pairs: Vec<kvrpcpb::KvPair>,
        options: &ReadOptions,
    ) -> Result<(Vec<Found>, Option<Key>)> {
        let mut rows = Vec::with_capacity(pairs.len());
        let mut last: Option<Key> = None;
        for pair in pairs {
            let key = match pair.error {
                None => {
                    let key = Key::from(pair.key);
                    page.admit(last.as_ref(), &key)?;
                    rows.push(Found {
                        key: key.clone(),
                        value: pair.value,
                        commit_ts: pair.commit_ts.into(),
                    });
                    key
                }
                Some(error) => {
                    let locks = met(KeyFailure::from(*error))?;
                    let lock_key = locks
                        .first()
                        .map(|lock| lock.key.clone())
                        .unwrap_or_default();
                    let key = if pair.key.is_empty() {
                        lock_key
                    } else {
                        pair.key.into()
                    };
                    page.admit(last.as_ref(), &key)?;
                    // The read meets the lock again and deals with it.
                    let row = self.get(io, &key, options).await?;
                    #[cfg(feature = "mutations")]
                    let row = row.filter(|_| {
                        !crate::mutation::is(crate::mutation::Mutation::SkipLockedRows)
                    });
                    rows.extend(row);
                    key
                }
            };
            last = Some(key);
        }
        Ok((rows, last))
    }
}

/// The locks of a failure; any other failure is the read's.
fn met(failure: KeyFailure) -> Result<Vec<Lock>> {
    match failure {
        KeyFailure::Locked(locks) => Ok(locks),
        other => Err(other.into_error()),
    }
}

/// The lock of a live transaction, as the cause of a wait.
pub(crate) fn locked(lock: &Lock) -> Error {
    Error::Aborted {
        message: format!(
            "key {} is locked by transaction {} (primary {}, ttl {} ms)",
            lock.key, lock.txn, lock.primary, lock.ttl_ms
        )
        .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_moves_on_by_key_in_a_full_page_and_by_region_in_a_short_one() {
        let range = || KeyRange::from("b".."y");
        let region = |from: &str, to: Option<&str>| KeyRange::new(from, to.map(Key::from));
        for (reverse, region, last, full, rest) in [
            (
                false,
                region("a", Some("m")),
                Some("k"),
                true,
                Some(KeyRange::from("k\0".."y")),
            ),
            (
                false,
                region("a", Some("m")),
                Some("k"),
                false,
                Some(KeyRange::from("m".."y")),
            ),
            (false, region("a", Some("y")), None, false, None),
            (false, region("m", None), None, false, None),
            (
                true,
                region("m", None),
                Some("n"),
                true,
                Some(KeyRange::from("b".."n")),
            ),
            (
                true,
                region("m", None),
                None,
                false,
                Some(KeyRange::from("b".."m")),
            ),
            (true, region("a", Some("m")), None, false, None),
        ] {
            let mut cursor = ScanCursor::new(range(), reverse, false);
            let part = cursor.part(&region);
            cursor.advance(&part, last.map(Key::from), full);
            let what = format!("{reverse} {region:?} {last:?} {full}");
            match rest {
                Some(rest) => assert_eq!((cursor.done, cursor.rest), (false, rest), "{what}"),
                None => assert!(cursor.done, "{what}"),
            }
        }
        let mut all = ScanCursor::new(KeyRange::all(), false, false);
        let part = all.part(&KeyRange::all());
        all.advance(&part, None, false);
        assert!(all.done);
        assert!(ScanCursor::new(KeyRange::from("b".."a"), false, false).done);
    }
}
