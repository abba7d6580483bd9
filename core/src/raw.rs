//! Raw key-value: single keys and batches without transactions.
//!
//! One request for one key, one for each region of a scan, many at once for a batch. A raw client
//! sees no versions and takes no locks. (client-go: `rawkv.Client`)

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use tikv_proto::kvrpcpb;

use crate::backoff::{Backoffer, budget};
use crate::command::{Call, RegionResponse};
use crate::error::{Error, Result, Undetermined};
use crate::key::{Key, KeyRange, KvPair, Value};
use crate::operation::Io;
use crate::region::Region;
use crate::rpc::batch::cut;
use crate::rpc::cluster::Cluster;
use crate::rpc::page::Page;
use crate::rpc::send::{Outcome, SendOptions};
use crate::time::{Instant, Timestamp};

/// How many keys travel in one batch request (client-go: `rawBatchPairCount`).
const BATCH_KEYS: usize = 512;
/// From how many bytes on a batch of pairs is sent (client-go: `rawBatchPutSize`).
const BATCH_BYTES: usize = 16 * 1024;
/// The most rows of one scan (client-go: `MaxRawKVScanLimit`).
pub(crate) const SCAN_LIMIT_MAX: u32 = 10_240;

/// What came of a compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swap {
    /// Whether the key held what was expected, and holds the new value now.
    pub swapped: bool,
    /// What the key held before, `None` if it was not there.
    pub previous: Option<Bytes>,
}

/// What of a raw call is the caller's choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RawOptions {
    /// Empty for the default one.
    pub(crate) column_family: String,
    /// Whether writes are to be atomic with compare-and-swap.
    pub(crate) atomic: bool,
    pub(crate) deadline: Option<Instant>,
}

/// The raw operations of one client.
pub(crate) struct Raw {
    cluster: Arc<Cluster>,
}

impl Raw {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Raw { cluster }
    }

    fn backoff(&self, options: &RawOptions) -> Backoffer {
        self.cluster.backoff(budget::RAW_MS, options.deadline)
    }

    fn read(&self) -> SendOptions {
        let timeout = self.cluster.config().request_timeout;
        SendOptions::read(timeout)
    }

    fn write(&self) -> SendOptions {
        SendOptions::write(self.cluster.config())
    }

    fn write_once(&self) -> SendOptions {
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::RepeatSwaps) {
            return self.write();
        }
        SendOptions::write_once(self.cluster.config())
    }

    pub(crate) async fn get(
        &self,
        io: &Io,
        key: Key,
        options: &RawOptions,
    ) -> Result<Option<Bytes>> {
        let request = kvrpcpb::RawGetRequest {
            key: key.as_bytes().clone(),
            cf: options.column_family.clone(),
            ..Default::default()
        };
        let mut backoff = self.backoff(options);
        let reply = self
            .cluster
            .send_to_key(io, &mut backoff, &key, request, &self.read())
            .await?;
        refused(reply.error)?;
        Ok((!reply.not_found).then_some(reply.value))
    }

    pub(crate) async fn put(
        &self,
        io: &Io,
        key: Key,
        value: Value,
        ttl_secs: u64,
        options: &RawOptions,
    ) -> Result<()> {
        let request = kvrpcpb::RawPutRequest {
            key: key.as_bytes().clone(),
            value: value.into(),
            cf: options.column_family.clone(),
            ttl: ttl_secs,
            for_cas: options.atomic,
            ..Default::default()
        };
        let mut backoff = self.backoff(options);
        let sent = self
            .cluster
            .send_to_key(io, &mut backoff, &key, request, &self.write())
            .await;
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::RawWriteAlwaysDone) {
            return Ok(());
        }
        refused(sent?.error)
    }

    pub(crate) async fn delete(&self, io: &Io, key: Key, options: &RawOptions) -> Result<()> {
        let request = kvrpcpb::RawDeleteRequest {
            key: key.as_bytes().clone(),
            cf: options.column_family.clone(),
            for_cas: options.atomic,
            ..Default::default()
        };
        let mut backoff = self.backoff(options);
        let reply = self
            .cluster
            .send_to_key(io, &mut backoff, &key, request, &self.write())
            .await?;
        refused(reply.error)
    }

    /// Writes a value if the key holds `previous`.
    pub(crate) async fn compare_and_swap(
        &self,
        io: &Io,
        key: Key,
        previous: Option<Value>,
        value: Value,
        options: &RawOptions,
    ) -> Result<Swap> {
        if !options.atomic {
            return Err(Error::invalid_argument(
                "compare-and-swap needs a client of `with_atomic`, which all writers of the key \
                 must be",
            ));
        }
        let request = kvrpcpb::RawCasRequest {
            key: key.as_bytes().clone(),
            value: value.into(),
            previous_not_exist: previous.is_none(),
            previous_value: previous.map(Into::into).unwrap_or_default(),
            cf: options.column_family.clone(),
            ..Default::default()
        };
        let send = self.write_once();
        let mut backoff = self.backoff(options);
        loop {
            let region = self.cluster.locate(io, &mut backoff, &key).await?;
            let sent = self
                .cluster
                .send(io, &mut backoff, &region, request.clone(), &send)
                .await;
            let unknown = sent.may_be_applied && send.once;
            match sent.outcome {
                Ok(Outcome::Answer(reply)) => {
                    refused(reply.error)?;
                    return Ok(Swap {
                        swapped: reply.succeed,
                        previous: (!reply.previous_not_exist).then_some(reply.previous_value),
                    });
                }
                Ok(Outcome::Relocate(relocate)) if !unknown => {
                    relocate.back_off(io, &mut backoff).await?;
                }
                Ok(Outcome::Relocate(relocate)) => return Err(undetermined(relocate.into_cause())),
                Err(error) if unknown => return Err(undetermined(error)),
                Err(error) => return Err(error),
            }
        }
    }

    /// The values of those of `keys` that have one, by key.
    pub(crate) async fn batch_get(
        &self,
        io: &Io,
        keys: &[Key],
        options: &RawOptions,
    ) -> Result<BTreeMap<Key, Bytes>> {
        let mut wanted = keys.to_vec();
        wanted.sort();
        wanted.dedup();
        let request = |keys: &[Key]| kvrpcpb::RawBatchGetRequest {
            keys: to_bytes(keys),
            cf: options.column_family.clone(),
            ..Default::default()
        };
        let replies = self
            .in_batches(io, &wanted, Cut::Keys, options, self.read(), request)
            .await?;
        let mut found = BTreeMap::new();
        for pair in replies.into_iter().flat_map(|reply| reply.pairs) {
            if let Some(error) = pair.error {
                return Err(pair_error(*error));
            }
            found.insert(pair.key.into(), pair.value);
        }
        Ok(found)
    }

    /// Writes many pairs; of several for one key the last wins. Each region's part is applied or
    /// not by itself.
    pub(crate) async fn batch_put(
        &self,
        io: &Io,
        pairs: Vec<(Key, Value)>,
        ttl_secs: u64,
        options: &RawOptions,
    ) -> Result<()> {
        let pairs: BTreeMap<Key, Value> = pairs.into_iter().collect();
        let pairs: Vec<Pair> = pairs
            .into_iter()
            .map(|(key, value)| Pair { key, value })
            .collect();
        let request = |pairs: &[Pair]| kvrpcpb::RawBatchPutRequest {
            pairs: pairs
                .iter()
                .map(|pair| kvrpcpb::KvPair {
                    key: pair.key.as_bytes().clone(),
                    value: pair.value.as_bytes().clone(),
                    ..Default::default()
                })
                .collect(),
            cf: options.column_family.clone(),
            ttls: vec![ttl_secs; pairs.len()],
            for_cas: options.atomic,
            ..Default::default()
        };
        let replies = self
            .in_batches(io, &pairs, Cut::Bytes, options, self.write(), request)
            .await?;
        replies
            .into_iter()
            .try_for_each(|reply| refused(reply.error))
    }

    /// Deletes many keys. Each region's part is applied or not by itself.
    pub(crate) async fn batch_delete(
        &self,
        io: &Io,
        mut keys: Vec<Key>,
        options: &RawOptions,
    ) -> Result<()> {
        keys.sort();
        keys.dedup();
        let request = |keys: &[Key]| kvrpcpb::RawBatchDeleteRequest {
            keys: to_bytes(keys),
            cf: options.column_family.clone(),
            for_cas: options.atomic,
            ..Default::default()
        };
        let replies = self
            .in_batches(io, &keys, Cut::Keys, options, self.write(), request)
            .await?;
        replies
            .into_iter()
            .try_for_each(|reply| refused(reply.error))
    }

    /// Rows of a range, `limit` at most, upwards or downwards.
    pub(crate) async fn scan(
        &self,
        io: &Io,
        range: KeyRange,
        limit: u32,
        keys_only: bool,
        reverse: bool,
        options: &RawOptions,
    ) -> Result<Vec<KvPair>> {
        if limit > SCAN_LIMIT_MAX {
            return Err(Error::invalid_argument(format!(
                "a raw scan returns {SCAN_LIMIT_MAX} rows at most, not {limit}"
            )));
        }
        let mut rows = Vec::new();
        let mut rest = range;
        while !rest.is_empty() && rows.len() < limit as usize {
            let mut backoff = self.backoff(options);
            let (part, pairs) = self
                .scan_region(
                    io,
                    &mut backoff,
                    &rest,
                    limit - rows.len() as u32,
                    reverse,
                    |request| {
                        request.key_only = keys_only;
                        request.cf.clone_from(&options.column_family);
                    },
                )
                .await?;
            rows.extend(pairs);
            rest = match (reverse, part.end()) {
                (true, _) => KeyRange::new(rest.start().clone(), Some(part.start().clone())),
                (false, Some(end)) => KeyRange::new(end.clone(), rest.end().cloned()),
                (false, None) => break,
            };
        }
        Ok(rows)
    }

    /// The rows of the first (or last) region of `rest`, and the part of `rest` it holds.
    async fn scan_region(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        rest: &KeyRange,
        limit: u32,
        reverse: bool,
        fill: impl Fn(&mut kvrpcpb::RawScanRequest),
    ) -> Result<(KeyRange, Vec<KvPair>)> {
        loop {
            let region = if reverse {
                self.cluster.locate_end(io, backoff, rest.end()).await?
            } else {
                self.cluster.locate(io, backoff, rest.start()).await?
            };
            let part = rest.intersect(region.range());
            let (start_key, end_key) = part.wire_bounds(reverse);
            let mut request = kvrpcpb::RawScanRequest {
                start_key,
                end_key,
                limit,
                reverse,
                ..Default::default()
            };
            fill(&mut request);
            let sent = self
                .cluster
                .send(io, backoff, &region, request, &self.read())
                .await;
            match sent.outcome? {
                Outcome::Relocate(relocate) => relocate.back_off(io, backoff).await?,
                Outcome::Answer(reply) => {
                    let mut rows: Vec<KvPair> = Vec::with_capacity(reply.kvs.len());
                    let mut page = Page::new(&part, reverse, limit);
                    for pair in reply.kvs {
                        if let Some(error) = pair.error {
                            return Err(pair_error(*error));
                        }
                        let row = KvPair::new(pair.key, pair.value);
                        page.admit(rows.last().map(KvPair::key), row.key())?;
                        rows.push(row);
                    }
                    return Ok((part, rows));
                }
            }
        }
    }

    /// Deletes every key of a range, region by region. After an error a part may be deleted.
    pub(crate) async fn delete_range(
        &self,
        io: &Io,
        range: KeyRange,
        options: &RawOptions,
    ) -> Result<()> {
        let mut rest = range;
        let mut backoff = self.backoff(options);
        while !rest.is_empty() {
            let region = self.cluster.locate(io, &mut backoff, rest.start()).await?;
            let part = rest.intersect(region.range());
            let request = kvrpcpb::RawDeleteRangeRequest {
                start_key: part.start().as_bytes().clone(),
                end_key: part.wire_end().into_bytes(),
                cf: options.column_family.clone(),
                ..Default::default()
            };
            let sent = self
                .cluster
                .send(io, &mut backoff, &region, request, &self.write())
                .await;
            match sent.outcome? {
                Outcome::Relocate(relocate) => relocate.back_off(io, &mut backoff).await?,
                Outcome::Answer(reply) => {
                    refused(reply.error)?;
                    match part.end() {
                        Some(end) => rest = KeyRange::new(end.clone(), rest.end().cloned()),
                        None => break,
                    }
                    // Each region has a budget of its own, however often it must be asked.
                    backoff = self.backoff(options);
                }
            }
        }
        Ok(())
    }

    /// Sends sorted items in batches, some at once, and gathers the answers. The first error
    /// stops what has not been sent.
    async fn in_batches<T, C>(
        &self,
        io: &Io,
        items: &[T],
        limit: Cut,
        options: &RawOptions,
        send: SendOptions,
        request: impl Fn(&[T]) -> C + Sync,
    ) -> Result<Vec<C::Response>>
    where
        T: AsRef<[u8]> + Weight + Sync,
        C: Call,
        C::Response: RegionResponse + Send,
    {
        let mut backoff = self.backoff(options);
        let everything = 0..items.len();
        let batches = self.cut(io, &mut backoff, items, everything, limit).await?;
        let (send, request) = (&send, &request);
        let mut sent = stream::iter(batches)
            .map(|(region, places)| {
                let mut backoff = backoff.fork();
                async move {
                    let mut replies = Vec::with_capacity(1);
                    let mut waiting = vec![(region, places)];
                    while let Some((region, places)) = waiting.pop() {
                        let body = request(items.get(places.clone()).unwrap_or_default());
                        let sent = self
                            .cluster
                            .send(io, &mut backoff, &region, body, send)
                            .await;
                        match sent.outcome? {
                            Outcome::Answer(reply) => replies.push(reply),
                            Outcome::Relocate(relocate) => {
                                relocate.back_off(io, &mut backoff).await?;
                                #[cfg(feature = "mutations")]
                                if crate::mutation::is(crate::mutation::Mutation::ForgetMovedPairs)
                                {
                                    continue;
                                }
                                let parts =
                                    self.cut(io, &mut backoff, items, places, limit).await?;
                                waiting.extend(parts);
                            }
                        }
                    }
                    Ok(replies)
                }
            })
            .buffer_unordered(self.cluster.config().raw_concurrency);
        let mut replies = Vec::new();
        while let Some(result) = sent.next().await {
            let result: Result<Vec<C::Response>> = result;
            replies.extend(result?);
        }
        Ok(replies)
    }

    async fn cut<T: AsRef<[u8]> + Weight>(
        &self,
        io: &Io,
        backoff: &mut Backoffer,
        items: &[T],
        places: Range<usize>,
        limit: Cut,
    ) -> Result<Vec<(Arc<Region>, Range<usize>)>> {
        let part = items.get(places.clone()).unwrap_or_default();
        let groups = self.cluster.group(io, backoff, part).await?;
        let groups = groups
            .into_iter()
            .map(|(region, found)| (region, found.start + places.start..found.end + places.start));
        let batches = match limit {
            Cut::Keys => cut(groups, BATCH_KEYS, |_| 1),
            Cut::Bytes => cut(groups, BATCH_BYTES, |item| items[item].weight()),
        };
        Ok(batches
            .into_iter()
            .map(|batch| (batch.region, batch.items))
            .collect())
    }
}

/// The error of a raw operation of which nobody knows whether it took effect.
fn undetermined(cause: Error) -> Error {
    let nothing = Timestamp::ZERO;
    Error::Undetermined(Box::new(Undetermined::new(nothing, nothing, cause)))
}

/// Where a batch ends.
#[derive(Clone, Copy)]
enum Cut {
    Keys,
    Bytes,
}

/// What an item adds to the size of its batch.
trait Weight {
    fn weight(&self) -> usize;
}

impl Weight for Key {
    fn weight(&self) -> usize {
        self.len()
    }
}

struct Pair {
    key: Key,
    value: Value,
}

impl AsRef<[u8]> for Pair {
    fn as_ref(&self) -> &[u8] {
        &self.key
    }
}

impl Weight for Pair {
    fn weight(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

fn to_bytes(keys: &[Key]) -> Vec<Bytes> {
    keys.iter().map(|key| key.as_bytes().clone()).collect()
}

/// Raw commands report failures as a text.
fn refused(error: String) -> Result<()> {
    if error.is_empty() {
        Ok(())
    } else {
        Err(Error::Aborted {
            message: error.into(),
        })
    }
}

fn pair_error(error: kvrpcpb::KeyError) -> Error {
    let message = match error.abort.is_empty() {
        true => format!("{error:?}"),
        false => error.abort,
    };
    Error::Aborted {
        message: message.into(),
    }
}
