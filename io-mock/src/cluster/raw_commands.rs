//! Raw commands on keys: values without versions, alive until they are deleted or expire.
//!
//! Stored keys are plain in API v1 and memcomparable in API v2, where a deletion leaves a mark. The
//! encodings of values with an expiry or a mark exist only as fields, because no client sees them.
//! API v2's order by causal timestamps is the order of the calls.

use bytes::Bytes;
use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{
    ApiVersion, Context, KvPair, RawBatchDeleteRequest, RawBatchDeleteResponse, RawBatchGetRequest,
    RawBatchGetResponse, RawBatchPutRequest, RawBatchPutResponse, RawCasRequest, RawCasResponse,
    RawDeleteRangeRequest, RawDeleteRangeResponse, RawDeleteRequest, RawDeleteResponse,
    RawGetKeyTtlRequest, RawGetKeyTtlResponse, RawGetRequest, RawGetResponse, RawPutRequest,
    RawPutResponse,
};

use super::Cluster;
use super::api_version::{ApiCheck, Mode, check_key_len};
use super::failure::Failure;
use super::held_writes::RawChange;
use super::key;
use super::mvcc::engine::{ColumnFamily, RawValue};
use super::mvcc::error::MvccError;
use super::proposal::{making_room, pair_size};
use super::region::{Region, StoreId};
use super::region_checks::{Access, RegionError};
use super::region_errors::{key_not_in_region, max_ts_not_synced};

/// How raw data of this cluster is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    version: ApiVersion,
}

impl Format {
    pub(super) fn stored(self, user: &[u8]) -> Bytes {
        match self.version {
            ApiVersion::V2 => key::encode(user),
            ApiVersion::V1 | ApiVersion::V1ttl | ApiVersion::V3 => Bytes::copy_from_slice(user),
        }
    }

    /// An end that is not given stays open, though the empty key has an encoding.
    pub(super) fn stored_end(self, user: &[u8]) -> Bytes {
        if user.is_empty() {
            Bytes::new()
        } else {
            self.stored(user)
        }
    }

    pub(super) fn user(self, stored: &Bytes) -> Bytes {
        match self.version {
            ApiVersion::V2 => key::decode(stored).unwrap_or_else(|| stored.clone()),
            ApiVersion::V1 | ApiVersion::V1ttl | ApiVersion::V3 => stored.clone(),
        }
    }

    fn has_ttl(self) -> bool {
        matches!(self.version, ApiVersion::V1ttl | ApiVersion::V2)
    }

    pub(super) fn cf(self, name: &str) -> Result<ColumnFamily, Failure> {
        match (self.version, name) {
            (_, "") => Ok(ColumnFamily::Default),
            (ApiVersion::V2, _) => {
                Err(text(format!("cf is deprecated in API V2, cf name: {name}")))
            }
            (_, "default") => Ok(ColumnFamily::Default),
            (_, "lock") => Ok(ColumnFamily::Lock),
            (_, "write") => Ok(ColumnFamily::Write),
            (_, _) => Err(text(format!("invalid cf name: {name}"))),
        }
    }
}

pub(super) fn text(text: impl Into<String>) -> Failure {
    Failure::Key(MvccError::Abort(text.into()))
}

pub(super) fn is_alive(value: &RawValue, now_ms: u64) -> bool {
    !value.deleted && (value.expires_at == 0 || value.expires_at > now_ms / 1000)
}

fn expiry(now_ms: u64, ttl: u64) -> u64 {
    if ttl == 0 {
        0
    } else {
        (now_ms / 1000).saturating_add(ttl)
    }
}

impl Cluster {
    pub(super) fn raw_format(&self) -> Format {
        Format {
            version: self.config().api_version,
        }
    }

    pub(super) fn raw_check<'a>(
        &self,
        context: &'a Context,
        command: &'static str,
    ) -> ApiCheck<'a> {
        ApiCheck {
            storage: self.config().api_version,
            context,
            command,
            mode: Mode::Raw,
        }
    }

    /// Has the peer that a raw read is for get ready to serve it.
    pub(super) fn get_ready_for_raw(
        &mut self,
        store: StoreId,
        context: &Context,
    ) -> Result<(), Failure> {
        self.check_read_load(store, context)?;
        Ok(self.get_ready(store, context)?)
    }

    /// The region for a raw read, after its peer got ready.
    pub(super) fn raw_region(
        &self,
        store: StoreId,
        context: &Context,
    ) -> Result<&Region, RegionError> {
        self.check_region(store, context, Access::Read(None))
    }

    /// The region for a raw write of a size. A raw write passes a disk that is almost full.
    fn raw_written_region(
        &self,
        store: StoreId,
        context: &Context,
        size: usize,
    ) -> Result<&Region, Failure> {
        self.check_write_load(store, context)?;
        let region = self.check_region(store, context, Access::Write)?;
        self.check_causal(region)?;
        self.check_proposal(store, context, region, size)?;
        Ok(region)
    }

    /// Raw data of API v2 is ordered by PD's timestamps, so the leader must have caught up.
    fn check_causal(&self, region: &Region) -> Result<(), RegionError> {
        if self.config().api_version == ApiVersion::V2 && !region.max_ts_synced {
            return Err(errorpb::Error {
                message: "the leader has not caught up with PD's timestamps".to_owned(),
                ..max_ts_not_synced()
            }
            .into());
        }
        Ok(())
    }

    /// Reads a raw value of a region.
    fn raw_alive(
        &self,
        now_ms: u64,
        store: StoreId,
        region: &Region,
        cf: ColumnFamily,
        stored: &Bytes,
    ) -> Result<Option<&RawValue>, Failure> {
        if !region.contains(stored) {
            let outside = self.reader(store, region).outside(stored);
            return Err(text(format!("unknown error \"{outside}\"")));
        }
        Ok(self
            .engine
            .on(store)
            .raw(cf, stored)
            .filter(|value| is_alive(value, now_ms)))
    }

    /// Reads one key.
    pub fn raw_get(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawGetRequest,
    ) -> RawGetResponse {
        match self.try_raw_get(now_ms, store, &request) {
            Ok(Some(value)) => RawGetResponse {
                value,
                ..RawGetResponse::default()
            },
            Ok(None) => RawGetResponse {
                not_found: true,
                ..RawGetResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = texts(failure);
                RawGetResponse {
                    region_error,
                    error,
                    ..RawGetResponse::default()
                }
            }
        }
    }

    fn try_raw_get(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &RawGetRequest,
    ) -> Result<Option<Bytes>, Failure> {
        let context = request.context.clone().unwrap_or_default();
        self.raw_check(&context, "raw_get")
            .keys([request.key.as_ref()])?;
        self.get_ready_for_raw(store, &context)?;
        let region = self.raw_region(store, &context)?;
        let format = self.raw_format();
        let cf = format.cf(&request.cf)?;
        let value = self.raw_alive(now_ms, store, region, cf, &format.stored(&request.key))?;
        Ok(value.map(|value| value.value.clone()))
    }

    /// Reads several keys; those without a value are left out.
    pub fn raw_batch_get(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawBatchGetRequest,
    ) -> RawBatchGetResponse {
        let (region_error, pairs) = pairs(self.try_raw_batch_get(now_ms, store, &request));
        RawBatchGetResponse {
            region_error,
            pairs,
        }
    }

    fn try_raw_batch_get(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &RawBatchGetRequest,
    ) -> Result<Vec<KvPair>, Failure> {
        let context = request.context.clone().unwrap_or_default();
        self.raw_check(&context, "raw_batch_get")
            .keys(request.keys.iter().map(AsRef::as_ref))?;
        self.get_ready_for_raw(store, &context)?;
        let region = self.raw_region(store, &context)?;
        let format = self.raw_format();
        let cf = format.cf(&request.cf)?;
        let mut pairs = Vec::new();
        for key in &request.keys {
            match self.raw_alive(now_ms, store, region, cf, &format.stored(key)) {
                Ok(None) => {}
                Ok(Some(found)) => pairs.push(KvPair {
                    key: key.clone(),
                    value: found.value.clone(),
                    ..KvPair::default()
                }),
                Err(failure) => {
                    let (_, error) = failure.split();
                    pairs.push(KvPair {
                        error,
                        ..KvPair::default()
                    });
                }
            }
        }
        Ok(pairs)
    }

    /// Asks how many seconds a key has to live; 0 is for ever.
    pub fn raw_get_key_ttl(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawGetKeyTtlRequest,
    ) -> RawGetKeyTtlResponse {
        match self.try_raw_ttl(now_ms, store, &request) {
            Ok(Some(ttl)) => RawGetKeyTtlResponse {
                ttl,
                ..RawGetKeyTtlResponse::default()
            },
            Ok(None) => RawGetKeyTtlResponse {
                not_found: true,
                ..RawGetKeyTtlResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = texts(failure);
                RawGetKeyTtlResponse {
                    region_error,
                    error,
                    ..RawGetKeyTtlResponse::default()
                }
            }
        }
    }

    fn try_raw_ttl(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &RawGetKeyTtlRequest,
    ) -> Result<Option<u64>, Failure> {
        let context = request.context.clone().unwrap_or_default();
        self.raw_check(&context, "raw_get_key_ttl")
            .keys([request.key.as_ref()])?;
        self.get_ready_for_raw(store, &context)?;
        let region = self.raw_region(store, &context)?;
        let format = self.raw_format();
        let cf = format.cf(&request.cf)?;
        if !format.has_ttl() {
            return Err(Failure::Key(MvccError::crash(
                "a store without TTL was asked for one",
            )));
        }
        let stored = format.stored(&request.key);
        self.raw_alive(now_ms, store, region, cf, &stored)?;
        Ok(self
            .engine
            .on(store)
            .raw(cf, &stored)
            .and_then(|value| match value.expires_at {
                // A deletion mark never expires, and the server takes it for a value here.
                0 => Some(0),
                at => at.checked_sub(now_ms / 1000).filter(|&left| left > 0),
            }))
    }

    /// Writes one key.
    pub fn raw_put(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawPutRequest,
    ) -> RawPutResponse {
        let context = making_room(request.context.clone());
        let pairs = [(request.key, request.value, request.ttl)];
        let result = self.raw_write(
            now_ms,
            store,
            &context,
            "raw_put",
            &request.cf,
            request.for_cas,
            &pairs,
        );
        let (region_error, error) = result.map_or_else(texts, |()| (None, String::new()));
        RawPutResponse {
            region_error,
            error,
        }
    }

    /// Writes several keys.
    pub fn raw_batch_put(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawBatchPutRequest,
    ) -> RawBatchPutResponse {
        let context = making_room(request.context.clone());
        let result = self.batch_ttls(&request).and_then(|ttls| {
            let pairs: Vec<(Bytes, Bytes, u64)> = request
                .pairs
                .iter()
                .zip(ttls)
                .map(|(pair, ttl)| (pair.key.clone(), pair.value.clone(), ttl))
                .collect();
            self.raw_write(
                now_ms,
                store,
                &context,
                "raw_batch_put",
                &request.cf,
                request.for_cas,
                &pairs,
            )
        });
        let (region_error, error) = result.map_or_else(texts, |()| (None, String::new()));
        RawBatchPutResponse {
            region_error,
            error,
        }
    }

    /// How long each pair is to live. A store without TTL minds only those that are not zero, and
    /// not how many there are.
    fn batch_ttls(&self, request: &RawBatchPutRequest) -> Result<Vec<u64>, Failure> {
        let count = request.pairs.len();
        let ttls = match request.ttls.as_slice() {
            [] => vec![0; count],
            [one] => vec![*one; count],
            many => many.to_vec(),
        };
        if !self.raw_format().has_ttl() {
            return match ttls.iter().all(|&ttl| ttl == 0) {
                true => Ok(ttls),
                false => Err(text("ttl is not enabled, but get put request with ttl")),
            };
        }
        match ttls.len() == count {
            true => Ok(ttls),
            false => Err(text(
                "The length of ttls does not equal to the length of pairs",
            )),
        }
    }

    #[allow(clippy::too_many_arguments)] // Two requests of the same fields share it.
    fn raw_write(
        &mut self,
        now_ms: u64,
        store: StoreId,
        context: &Context,
        command: &'static str,
        cf: &str,
        atomic: bool,
        pairs: &[(Bytes, Bytes, u64)],
    ) -> Result<(), Failure> {
        self.raw_check(context, command)
            .keys(pairs.iter().map(|(key, _, _)| key.as_ref()))?;
        let format = self.raw_format();
        // The server does not look at how long the keys of an atomic write are.
        for (key, _, _) in pairs.iter().filter(|_| !atomic) {
            check_key_len(key)?;
        }
        if !format.has_ttl() && pairs.iter().any(|(_, _, ttl)| *ttl != 0) {
            return Err(text("ttl is not enabled, but get put request with ttl"));
        }
        let cf = format.cf(cf)?;
        if pairs.is_empty() && !atomic {
            return Err(self.nothing_to_write(store, context));
        }
        let size = pairs
            .iter()
            .map(|(key, value, _)| pair_size(key.len(), value.len()))
            .sum();
        let region = self.raw_written_region(store, context, size)?;
        for (key, _, _) in pairs {
            check_applied_key(region, &format.stored(key))?;
        }
        let id = region.meta.id;
        let changes = pairs.iter().map(|(key, value, ttl)| RawChange {
            cf,
            key: format.stored(key),
            value: Some(RawValue {
                value: value.clone(),
                expires_at: expiry(now_ms, *ttl),
                deleted: false,
            }),
        });
        self.propose_raw(now_ms, store, id, atomic, changes.collect());
        Ok(())
    }

    /// Deletes one key.
    pub fn raw_delete(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawDeleteRequest,
    ) -> RawDeleteResponse {
        let context = making_room(request.context.clone());
        let keys = [request.key];
        let result = self.raw_remove(
            now_ms,
            store,
            &context,
            "raw_delete",
            &request.cf,
            request.for_cas,
            &keys,
        );
        let (region_error, error) = result.map_or_else(texts, |()| (None, String::new()));
        RawDeleteResponse {
            region_error,
            error,
        }
    }

    /// Deletes several keys.
    pub fn raw_batch_delete(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawBatchDeleteRequest,
    ) -> RawBatchDeleteResponse {
        let context = making_room(request.context.clone());
        let result = self.raw_remove(
            now_ms,
            store,
            &context,
            "raw_batch_delete",
            &request.cf,
            request.for_cas,
            &request.keys,
        );
        let (region_error, error) = result.map_or_else(texts, |()| (None, String::new()));
        RawBatchDeleteResponse {
            region_error,
            error,
        }
    }

    #[allow(clippy::too_many_arguments)] // Two requests of the same fields share it.
    fn raw_remove(
        &mut self,
        now_ms: u64,
        store: StoreId,
        context: &Context,
        command: &'static str,
        cf: &str,
        atomic: bool,
        keys: &[Bytes],
    ) -> Result<(), Failure> {
        self.raw_check(context, command)
            .keys(keys.iter().map(AsRef::as_ref))?;
        for key in keys.iter().filter(|_| !atomic) {
            check_key_len(key)?;
        }
        let format = self.raw_format();
        let cf = format.cf(cf)?;
        if keys.is_empty() && !atomic {
            return Err(self.nothing_to_write(store, context));
        }
        let size = keys.iter().map(|key| pair_size(key.len(), 0)).sum();
        let region = self.raw_written_region(store, context, size)?;
        for key in keys {
            check_applied_key(region, &format.stored(key))?;
        }
        let id = region.meta.id;
        let changes = keys.iter().map(|key| RawChange {
            cf,
            key: format.stored(key),
            value: self.deletion(),
        });
        let changes = changes.collect();
        self.propose_raw(now_ms, store, id, atomic, changes);
        Ok(())
    }

    /// The answer to a write of nothing, which is refused where it would be proposed: in API v2 the
    /// region has been asked before.
    fn nothing_to_write(&self, store: StoreId, context: &Context) -> Failure {
        if self.config().api_version == ApiVersion::V2
            && let Err(failure) = self.raw_written_region(store, context, 0)
        {
            return failure;
        }
        text("an empty request")
    }

    /// What stands in the place of a deleted value.
    fn deletion(&self) -> Option<RawValue> {
        match self.config().api_version {
            ApiVersion::V2 => Some(RawValue {
                value: Bytes::new(),
                expires_at: 0,
                deleted: true,
            }),
            ApiVersion::V1 | ApiVersion::V1ttl | ApiVersion::V3 => None,
        }
    }

    /// Deletes a range within the region.
    pub fn raw_delete_range(
        &mut self,
        _now_ms: u64,
        store: StoreId,
        request: RawDeleteRangeRequest,
    ) -> RawDeleteRangeResponse {
        let result = self.try_raw_delete_range(store, &request);
        let (region_error, error) = result.map_or_else(texts, |()| (None, String::new()));
        RawDeleteRangeResponse {
            region_error,
            error,
        }
    }

    fn try_raw_delete_range(
        &mut self,
        store: StoreId,
        request: &RawDeleteRangeRequest,
    ) -> Result<(), Failure> {
        let context = making_room(request.context.clone());
        check_key_len(&request.start_key)?;
        check_key_len(&request.end_key)?;
        let check = self.raw_check(&context, "raw_delete_range");
        check.range(&request.start_key, &request.end_key)?;
        let format = self.raw_format();
        let cf = format.cf(&request.cf)?;
        let start = format.stored(&request.start_key);
        let end = format.stored_end(&request.end_key);
        // A range is deleted without a timestamp, so the leader need not have caught up.
        self.check_write_load(store, &context)?;
        let region = self.check_region(store, &context, Access::Write)?;
        self.check_proposal(store, &context, region, pair_size(start.len(), end.len()))?;
        check_deleted_range(region, &start, &end)?;
        if self.note_proposal(store) {
            return Ok(());
        }
        self.note_entry(context.region_id);
        self.engine.delete_raw_range(cf, &start, &end);
        Ok(())
    }

    /// Writes or deletes one key if it has the expected value.
    pub fn raw_compare_and_swap(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawCasRequest,
    ) -> RawCasResponse {
        match self.try_raw_cas(now_ms, store, &request) {
            Ok((previous, succeed)) => RawCasResponse {
                succeed,
                previous_not_exist: previous.is_none(),
                previous_value: previous.unwrap_or_default(),
                ..RawCasResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = texts(failure);
                RawCasResponse {
                    region_error,
                    error,
                    ..RawCasResponse::default()
                }
            }
        }
    }

    fn try_raw_cas(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &RawCasRequest,
    ) -> Result<(Option<Bytes>, bool), Failure> {
        let context = making_room(request.context.clone());
        let check = self.raw_check(&context, "raw_compare_and_swap");
        check.keys([request.key.as_ref()])?;
        let format = self.raw_format();
        let cf = format.cf(&request.cf)?;
        if !format.has_ttl() && request.ttl != 0 {
            return Err(text("ttl is not enabled, but get put request with ttl"));
        }
        self.check_write_load(store, &context)?;
        let id = self.check_region(store, &context, Access::Write)?.meta.id;
        self.apply_held(now_ms, id);
        let region = self.check_region(store, &context, Access::Write)?;
        self.check_causal(region)?;
        let stored = format.stored(&request.key);
        let found = self.raw_alive(now_ms, store, region, cf, &stored)?;
        let previous = found.map(|value| value.value.clone());
        let expected = (!request.previous_not_exist).then_some(&request.previous_value);
        if previous.as_ref() != expected {
            return Ok((previous, false));
        }
        if request.delete && previous.is_none() {
            return Ok((previous, true));
        }
        let size = pair_size(stored.len(), request.value.len());
        self.check_proposal(store, &context, region, size)?;
        let value = match request.delete {
            true => self.deletion(),
            false => Some(RawValue {
                value: request.value.clone(),
                expires_at: expiry(now_ms, request.ttl),
                deleted: false,
            }),
        };
        let change = RawChange {
            cf,
            key: stored,
            value,
        };
        self.propose_raw(now_ms, store, id, true, vec![change]);
        Ok((previous, true))
    }
}

/// A raw write meets its keys only when it is applied.
fn check_applied_key(region: &Region, stored: &Bytes) -> Result<(), RegionError> {
    if region.contains(stored) {
        Ok(())
    } else {
        Err(key_not_in_region(&region.meta, stored).into())
    }
}

/// The end of a deleted range may be the end of the region.
pub(super) fn check_deleted_range(
    region: &Region,
    start: &Bytes,
    end: &Bytes,
) -> Result<(), RegionError> {
    if !end.is_empty() && start >= end {
        return Err(errorpb::Error {
            message: format!(
                "invalid delete range command, start_key: {start:?}, end_key: {end:?}"
            ),
            ..errorpb::Error::default()
        }
        .into());
    }
    check_applied_key(region, start)?;
    let beyond = !region.meta.end_key.is_empty() && (end.is_empty() || *end > region.meta.end_key);
    if beyond {
        return Err(key_not_in_region(&region.meta, end).into());
    }
    Ok(())
}

/// Raw replies carry a key's failure as text.
pub(super) fn texts(failure: Failure) -> (Option<Box<errorpb::Error>>, String) {
    match failure {
        Failure::Region(error) => (Some(error), String::new()),
        Failure::Key(error) => (None, error.to_key_error().abort),
    }
}

/// Replies with pairs carry a failure in a pair of its own.
pub(super) fn pairs(
    result: Result<Vec<KvPair>, Failure>,
) -> (Option<Box<errorpb::Error>>, Vec<KvPair>) {
    match result {
        Ok(pairs) => (None, pairs),
        Err(Failure::Region(error)) => (Some(error), Vec::new()),
        Err(Failure::Key(error)) => {
            let error = Some(Box::new(error.to_key_error()));
            (
                None,
                vec![KvPair {
                    error,
                    ..KvPair::default()
                }],
            )
        }
    }
}

#[cfg(test)]
mod tests;
