//! Raw commands that read keys: values without versions, alive until they are deleted or expire.

use tikv_proto::kvrpcpb::{
    KvPair, RawBatchGetRequest, RawBatchGetResponse, RawGetKeyTtlRequest, RawGetKeyTtlResponse,
    RawGetRequest, RawGetResponse,
};

use super::Cluster;
use super::failure::Failure;
use super::mvcc::error::MvccError;
use super::raw_format::{answer, pairs};
use super::region::StoreId;

impl Cluster {
    /// Reads one key.
    pub fn raw_get(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawGetRequest,
    ) -> RawGetResponse {
        answer(self.try_raw_get(now_ms, store, &request))
    }

    fn try_raw_get(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &RawGetRequest,
    ) -> Result<RawGetResponse, Failure> {
        let context = request.context.clone().unwrap_or_default();
        self.raw_check(&context, "raw_get")
            .keys([request.key.as_ref()])?;
        self.get_ready_for_raw(store, &context)?;
        let region = self.raw_region(store, &context)?;
        let format = self.raw_format();
        let cf = format.cf(&request.cf)?;
        let found = self.raw_alive(now_ms, store, region, cf, &format.stored(&request.key))?;
        Ok(RawGetResponse {
            not_found: found.is_none(),
            value: found.map(|found| found.value.clone()).unwrap_or_default(),
            ..RawGetResponse::default()
        })
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
        answer(self.try_raw_ttl(now_ms, store, &request))
    }

    fn try_raw_ttl(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &RawGetKeyTtlRequest,
    ) -> Result<RawGetKeyTtlResponse, Failure> {
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
        let found = self.engine.on(store).raw(cf, &stored);
        let left = found.and_then(|value| match value.expires_at {
            // A deletion mark never expires, and the server takes it for a value here.
            0 => Some(0),
            at => at.checked_sub(now_ms / 1000).filter(|&left| left > 0),
        });
        Ok(RawGetKeyTtlResponse {
            not_found: left.is_none(),
            ttl: left.unwrap_or_default(),
            ..RawGetKeyTtlResponse::default()
        })
    }
}
