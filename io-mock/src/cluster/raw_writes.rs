//! Raw commands that write: keys, ranges of them, and a key that is as expected.

use bytes::Bytes;
use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{
    ApiVersion, Context, RawBatchDeleteRequest, RawBatchDeleteResponse, RawBatchPutRequest,
    RawBatchPutResponse, RawCasRequest, RawCasResponse, RawDeleteRangeRequest,
    RawDeleteRangeResponse, RawDeleteRequest, RawDeleteResponse, RawPutRequest, RawPutResponse,
};

use super::Cluster;
use super::api_version::check_key_len;
use super::failure::Failure;
use super::held_writes::RawChange;
use super::mvcc::engine::RawValue;
use super::proposal::{making_room, pair_size};
use super::raw_format::{answer, expiry, text};
use super::region::{Region, StoreId};
use super::region_checks::{Access, RegionError};
use super::region_errors::{key_not_in_region, max_ts_not_synced};

/// What requests that write keys have in common. They pass a disk that is almost full.
struct RawWrite<'a> {
    command: &'static str,
    context: Option<Box<Context>>,
    cf: &'a str,
    /// Nothing may come between what it reads and what it writes.
    atomic: bool,
}

/// A value and how long it lives; 0 is for ever.
type NewValue = (Bytes, u64);

impl Cluster {
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

    /// Writes one key.
    pub fn raw_put(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawPutRequest,
    ) -> RawPutResponse {
        let write = RawWrite {
            command: "raw_put",
            context: request.context,
            cf: &request.cf,
            atomic: request.for_cas,
        };
        let keys = vec![(request.key, Some((request.value, request.ttl)))];
        let done = self.raw_write(now_ms, store, write, keys);
        answer(done.map(|()| RawPutResponse::default()))
    }

    /// Writes several keys.
    pub fn raw_batch_put(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawBatchPutRequest,
    ) -> RawBatchPutResponse {
        let done = self.batch_ttls(&request).and_then(|ttls| {
            let write = RawWrite {
                command: "raw_batch_put",
                context: request.context,
                cf: &request.cf,
                atomic: request.for_cas,
            };
            let pairs = request.pairs.into_iter().zip(ttls);
            let keys = pairs.map(|(pair, ttl)| (pair.key, Some((pair.value, ttl))));
            self.raw_write(now_ms, store, write, keys.collect())
        });
        answer(done.map(|()| RawBatchPutResponse::default()))
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

    /// Deletes one key.
    pub fn raw_delete(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawDeleteRequest,
    ) -> RawDeleteResponse {
        let write = RawWrite {
            command: "raw_delete",
            context: request.context,
            cf: &request.cf,
            atomic: request.for_cas,
        };
        let done = self.raw_write(now_ms, store, write, vec![(request.key, None)]);
        answer(done.map(|()| RawDeleteResponse::default()))
    }

    /// Deletes several keys.
    pub fn raw_batch_delete(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawBatchDeleteRequest,
    ) -> RawBatchDeleteResponse {
        let write = RawWrite {
            command: "raw_batch_delete",
            context: request.context,
            cf: &request.cf,
            atomic: request.for_cas,
        };
        let keys = request.keys.into_iter().map(|key| (key, None));
        let done = self.raw_write(now_ms, store, write, keys.collect());
        answer(done.map(|()| RawBatchDeleteResponse::default()))
    }

    /// Writes keys, or deletes those without a value.
    fn raw_write(
        &mut self,
        now_ms: u64,
        store: StoreId,
        write: RawWrite<'_>,
        keys: Vec<(Bytes, Option<NewValue>)>,
    ) -> Result<(), Failure> {
        let context = making_room(write.context);
        self.raw_check(&context, write.command)
            .keys(keys.iter().map(|(key, _)| key.as_ref()))?;
        let format = self.raw_format();
        // The server does not look at how long the keys of an atomic write are.
        for (key, _) in keys.iter().filter(|_| !write.atomic) {
            check_key_len(key)?;
        }
        let expires = |value: &Option<NewValue>| value.as_ref().is_some_and(|(_, ttl)| *ttl != 0);
        if !format.has_ttl() && keys.iter().any(|(_, value)| expires(value)) {
            return Err(text("ttl is not enabled, but get put request with ttl"));
        }
        let cf = format.cf(write.cf)?;
        if keys.is_empty() && !write.atomic {
            return Err(self.nothing_to_write(store, &context));
        }
        let len = |value: &Option<NewValue>| value.as_ref().map_or(0, |(value, _)| value.len());
        let sizes = keys.iter();
        let size = sizes.map(|(key, value)| pair_size(key.len(), len(value)));
        let region = self.raw_written_region(store, &context, size.sum())?;
        for (key, _) in &keys {
            check_applied_key(region, &format.stored(key))?;
        }
        let id = region.meta.id;
        let changes = keys.into_iter().map(|(key, value)| RawChange {
            cf,
            key: format.stored(&key),
            value: match value {
                Some((value, ttl)) => Some(alive(now_ms, value, ttl)),
                None => self.deletion(),
            },
        });
        let changes = changes.collect();
        self.propose_raw(now_ms, store, id, write.atomic, changes);
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
        answer(self.try_raw_delete_range(store, &request))
    }

    fn try_raw_delete_range(
        &mut self,
        store: StoreId,
        request: &RawDeleteRangeRequest,
    ) -> Result<RawDeleteRangeResponse, Failure> {
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
            return Ok(RawDeleteRangeResponse::default());
        }
        self.note_entry(context.region_id);
        self.engine.delete_raw_range(cf, &start, &end);
        Ok(RawDeleteRangeResponse::default())
    }

    /// Writes or deletes one key if it has the expected value.
    pub fn raw_compare_and_swap(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawCasRequest,
    ) -> RawCasResponse {
        answer(self.try_raw_cas(now_ms, store, &request))
    }

    fn try_raw_cas(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &RawCasRequest,
    ) -> Result<RawCasResponse, Failure> {
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
            return Ok(swapped(previous, false));
        }
        if request.delete && previous.is_none() {
            return Ok(swapped(previous, true));
        }
        let size = pair_size(stored.len(), request.value.len());
        self.check_proposal(store, &context, region, size)?;
        let value = match request.delete {
            true => self.deletion(),
            false => Some(alive(now_ms, request.value.clone(), request.ttl)),
        };
        let change = RawChange {
            cf,
            key: stored,
            value,
        };
        self.propose_raw(now_ms, store, id, true, vec![change]);
        Ok(swapped(previous, true))
    }
}

fn alive(now_ms: u64, value: Bytes, ttl: u64) -> RawValue {
    RawValue {
        value,
        expires_at: expiry(now_ms, ttl),
        deleted: false,
    }
}

fn swapped(previous: Option<Bytes>, succeed: bool) -> RawCasResponse {
    RawCasResponse {
        succeed,
        previous_not_exist: previous.is_none(),
        previous_value: previous.unwrap_or_default(),
        ..RawCasResponse::default()
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

#[cfg(test)]
mod tests;
