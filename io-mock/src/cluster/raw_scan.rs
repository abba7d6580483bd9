//! Raw commands that read ranges: scans in either direction, and the checksum.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{
    KeyRange, KvPair, RawBatchScanRequest, RawBatchScanResponse, RawChecksumRequest,
    RawChecksumResponse, RawScanRequest, RawScanResponse,
};

use super::Cluster;
use super::checksum::crc64;
use super::failure::Failure;
use super::mvcc::engine::{ColumnFamily, RawValue};
use super::mvcc::reader::Reader;
use super::raw_format::{answer, is_alive, pairs, text};
use super::region::StoreId;

/// A range of stored keys to scan, and what is wanted of it.
struct RawRange {
    cf: ColumnFamily,
    start: Bytes,
    end: Bytes,
    reverse: bool,
    limit: usize,
    key_only: bool,
}

impl Cluster {
    /// Scans a range of the region.
    pub fn raw_scan(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawScanRequest,
    ) -> RawScanResponse {
        let (region_error, kvs) = pairs(self.try_raw_scan(now_ms, store, &request));
        RawScanResponse { region_error, kvs }
    }

    fn try_raw_scan(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &RawScanRequest,
    ) -> Result<Vec<KvPair>, Failure> {
        let context = request.context.clone().unwrap_or_default();
        let check = self.raw_check(&context, "raw_scan");
        check.range(&request.start_key, &request.end_key)?;
        self.get_ready_for_raw(store, &context)?;
        let region = self.raw_region(store, &context)?;
        let format = self.raw_format();
        let range = RawRange {
            cf: format.cf(&request.cf)?,
            start: format.stored(&request.start_key),
            end: format.stored_end(&request.end_key),
            reverse: request.reverse,
            limit: request.limit as usize,
            key_only: request.key_only,
        };
        self.scan_raw(now_ms, &self.reader(store, region), &range)
    }

    fn scan_raw(
        &self,
        now_ms: u64,
        reader: &Reader<'_>,
        range: &RawRange,
    ) -> Result<Vec<KvPair>, Failure> {
        let limit = range.limit;
        if limit == 0 {
            return Ok(Vec::new());
        }
        let format = self.raw_format();
        let pair = |(key, value): (&Bytes, &RawValue)| KvPair {
            key: format.user(key),
            value: match range.key_only {
                true => Bytes::new(),
                false => value.value.clone(),
            },
            ..KvPair::default()
        };
        let alive = |(_, value): &(&Bytes, &RawValue)| is_alive(value, now_ms);
        reader.check_seek(&range.start)?;
        if !range.reverse {
            let (start, end) = reader.clip(&range.start, &range.end);
            let found = reader.engine.raw_range(range.cf, &start, &end);
            return Ok(found.filter(alive).take(limit).map(pair).collect());
        }
        // Downwards from an empty key there is nothing, unlike upwards to one.
        if range.start.is_empty() {
            return Ok(Vec::new());
        }
        let (start, end) = reader.clip(&range.end, &range.start);
        let found = reader.engine.raw_range(range.cf, &start, &end);
        Ok(found.rev().filter(alive).take(limit).map(pair).collect())
    }

    /// Scans several ranges of the region; one without an end goes up to the next one's start.
    pub fn raw_batch_scan(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawBatchScanRequest,
    ) -> RawBatchScanResponse {
        let (region_error, kvs) = pairs(self.try_raw_batch_scan(now_ms, store, &request));
        RawBatchScanResponse { region_error, kvs }
    }

    fn try_raw_batch_scan(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &RawBatchScanRequest,
    ) -> Result<Vec<KvPair>, Failure> {
        let context = request.context.clone().unwrap_or_default();
        let check = self.raw_check(&context, "raw_batch_scan");
        check.keys(std::iter::empty())?;
        for range in &request.ranges {
            check.range(&range.start_key, &range.end_key)?;
        }
        self.get_ready_for_raw(store, &context)?;
        let region = self.raw_region(store, &context)?;
        let format = self.raw_format();
        let cf = format.cf(&request.cf)?;
        let ranges = complete_ranges(&request.ranges);
        let ordered = ranges.iter().all(|(start, end)| {
            end.is_empty()
                || if request.reverse {
                    start > end
                } else {
                    start < end
                }
        });
        if !ordered {
            return Err(text("Error(Other(\"Invalid KeyRanges\"))"));
        }
        let mut found = Vec::new();
        let reader = self.reader(store, region);
        for (start, end) in ranges {
            let range = RawRange {
                cf,
                start: format.stored(&start),
                end: format.stored_end(&end),
                reverse: request.reverse,
                limit: request.each_limit as usize,
                key_only: request.key_only,
            };
            found.extend(self.scan_raw(now_ms, &reader, &range)?);
        }
        Ok(found)
    }

    /// Sums up the pairs of ranges.
    pub fn raw_checksum(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawChecksumRequest,
    ) -> RawChecksumResponse {
        answer(self.try_raw_checksum(now_ms, store, &request))
    }

    fn try_raw_checksum(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &RawChecksumRequest,
    ) -> Result<RawChecksumResponse, Failure> {
        let context = request.context.clone().unwrap_or_default();
        // There is one algorithm, and the server takes a number it does not know for it.
        let check = self.raw_check(&context, "raw_checksum");
        check.keys(std::iter::empty())?;
        for range in &request.ranges {
            check.range(&range.start_key, &range.end_key)?;
        }
        self.get_ready_for_raw(store, &context)?;
        let region = self.raw_region(store, &context)?;
        let format = self.raw_format();
        let reader = self.reader(store, region);
        let mut response = RawChecksumResponse::default();
        for range in &request.ranges {
            let range = RawRange {
                cf: ColumnFamily::Default,
                start: format.stored(&range.start_key),
                end: format.stored_end(&range.end_key),
                reverse: false,
                limit: usize::MAX,
                key_only: false,
            };
            for pair in self.scan_raw(now_ms, &reader, &range)? {
                response.checksum ^= crc64(&[&pair.key, &pair.value]);
                response.total_kvs += 1;
                response.total_bytes += (pair.key.len() + pair.value.len()) as u64;
            }
        }
        Ok(response)
    }
}

fn complete_ranges(ranges: &[KeyRange]) -> Vec<(Bytes, Bytes)> {
    let next_starts = ranges.iter().skip(1).map(|range| &range.start_key);
    let ends = next_starts.map(Some).chain(std::iter::once(None));
    ranges
        .iter()
        .zip(ends)
        .map(|(range, next)| {
            let end = if range.end_key.is_empty() {
                next.cloned().unwrap_or_default()
            } else {
                range.end_key.clone()
            };
            (range.start_key.clone(), end)
        })
        .collect()
}
