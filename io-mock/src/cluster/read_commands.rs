//! Reads at a version: Get, BatchGet, Scan, BufferBatchGet.
//!
//! What a store checks in memory comes before the region: a read first raises the greatest
//! timestamp and looks for locks under way, then asks whether the region may serve it.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{
    BatchGetRequest, BatchGetResponse, BufferBatchGetRequest, BufferBatchGetResponse, Context,
    ExecDetailsV2, GetRequest, GetResponse, IsolationLevel, KeyError, KvPair, ScanRequest,
    ScanResponse,
};

use super::Cluster;
use super::api_version::{ApiCheck, Mode};
use super::failure::Failure;
use super::key::Key;
use super::mvcc::error::MvccError;
use super::mvcc::lock::ReadRules;
use super::mvcc::read::{Entry, Row, ScanRange, Wanted, get, get_flushed, scan};
use super::mvcc::reader::Reader;
use super::region::StoreId;
use super::region_checks::Access;

/// A read's way to its data.
pub(super) struct ReadPlan<'a> {
    pub(super) context: &'a Context,
    pub(super) command: &'static str,
    pub(super) ts: u64,
    pub(super) bypass: &'a [u64],
}

impl<'a> ReadPlan<'a> {
    pub(super) fn rules(&self, access: &'a [u64]) -> ReadRules<'a> {
        ReadRules {
            ts: self.ts,
            isolation: self.context.isolation_level(),
            bypass: self.bypass,
            access,
            replica: false,
        }
    }
}

impl Cluster {
    /// Reads one key.
    pub fn kv_get(&mut self, now_ms: u64, store: StoreId, request: GetRequest) -> GetResponse {
        let context = request.context.clone().unwrap_or_default();
        let key = Key::from_user(&request.key);
        let wanted = Wanted {
            commit_ts: request.need_commit_ts,
            ..Wanted::default()
        };
        let plan = ReadPlan {
            context: &context,
            command: "get",
            ts: request.version,
            bypass: &context.resolved_locks,
        };
        let result = self.read_keys(now_ms, store, &plan, &[key], |reader, keys| {
            let key = &keys[0];
            get(reader, key, &plan.rules(&context.committed_locks), wanted)
        });
        let details = Some(Box::<ExecDetailsV2>::default());
        match result.and_then(|entry| entry.map_err(Failure::from)) {
            Ok(Some(entry)) => GetResponse {
                value: entry.value,
                commit_ts: entry.commit_ts,
                exec_details_v2: details,
                ..GetResponse::default()
            },
            Ok(None) => GetResponse {
                not_found: true,
                exec_details_v2: details,
                ..GetResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = failure.split();
                GetResponse {
                    region_error,
                    error,
                    ..GetResponse::default()
                }
            }
        }
    }

    /// Reads several keys. A key's error takes the place of its pair; what fails before the first
    /// key is looked at fails all.
    pub fn kv_batch_get(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: BatchGetRequest,
    ) -> BatchGetResponse {
        let context = request.context.clone().unwrap_or_default();
        let keys: Vec<Key> = request.keys.iter().map(|key| Key::from_user(key)).collect();
        let wanted = Wanted {
            commit_ts: request.need_commit_ts,
            ..Wanted::default()
        };
        let plan = ReadPlan {
            context: &context,
            command: "batch_get",
            ts: request.version,
            bypass: &context.resolved_locks,
        };
        let result = self.read_keys(now_ms, store, &plan, &keys, |reader, keys| {
            let rules = plan.rules(&context.committed_locks);
            keys.iter()
                .filter_map(|key| match get(reader, key, &rules, wanted) {
                    Ok(None) => None,
                    Ok(Some(Entry { value, commit_ts })) => Some(KvPair {
                        key: key.to_user(),
                        value,
                        commit_ts,
                        ..KvPair::default()
                    }),
                    Err(error) => Some(error_pair(Box::new(error.to_key_error()))),
                })
                .collect()
        });
        match result {
            Ok(pairs) => BatchGetResponse {
                pairs,
                exec_details_v2: Some(Box::default()),
                ..BatchGetResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = failure.split();
                BatchGetResponse {
                    region_error,
                    pairs: error.clone().map(error_pair).into_iter().collect(),
                    error,
                    ..BatchGetResponse::default()
                }
            }
        }
    }

    /// Reads a pipelined transaction's own flushed keys, sorted and each once.
    pub fn kv_buffer_batch_get(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: BufferBatchGetRequest,
    ) -> BufferBatchGetResponse {
        let context = request.context.clone().unwrap_or_default();
        let mut keys: Vec<Key> = request.keys.iter().map(|key| Key::from_user(key)).collect();
        keys.sort();
        keys.dedup();
        let plan = ReadPlan {
            context: &context,
            command: "buffer_batch_get",
            ts: request.version,
            bypass: &[],
        };
        let result = self.read_keys(now_ms, store, &plan, &keys, |reader, keys| {
            keys.iter()
                .filter_map(|key| match get_flushed(reader, key, request.version) {
                    Ok(None) => None,
                    Ok(Some(value)) => Some(KvPair {
                        key: key.to_user(),
                        value,
                        ..KvPair::default()
                    }),
                    Err(error) => Some(error_pair(Box::new(error.to_key_error()))),
                })
                .collect()
        });
        match result {
            Ok(pairs) => BufferBatchGetResponse {
                pairs,
                exec_details_v2: Some(Box::default()),
                ..BufferBatchGetResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = failure.split();
                BufferBatchGetResponse {
                    region_error,
                    error,
                    ..BufferBatchGetResponse::default()
                }
            }
        }
    }

    /// Checks everything that comes before the data of single keys, then reads.
    fn read_keys<R>(
        &mut self,
        now_ms: u64,
        store: StoreId,
        plan: &ReadPlan<'_>,
        keys: &[Key],
        read: impl FnOnce(&Reader<'_>, &[Key]) -> R,
    ) -> Result<R, Failure> {
        self.check_read_load(store, plan.context)?;
        check_isolation(plan.context)?;
        let check = ApiCheck {
            storage: self.config().api_version,
            context: plan.context,
            command: plan.command,
            mode: Mode::Txn,
        };
        check.keys(keys.iter().map(|key| key.encoded().as_ref()))?;
        self.raise_for_read(now_ms, store, plan)?;
        // Committed transactions have no lock under way, so these are not read through.
        let rules = plan.rules(&[]);
        for key in keys {
            self.check_memory_lock(store, key, &rules)?;
        }
        self.get_ready_to_read(now_ms, store, plan, |cluster, leader, rules| {
            keys.iter()
                .try_for_each(|key| cluster.check_memory_lock(leader, key, rules))
        })?;
        let region = self.check_region(store, plan.context, Access::Read(Some(plan.ts)))?;
        Ok(read(&self.reader(store, region), keys))
    }

    pub(super) fn raise_for_read(
        &mut self,
        now_ms: u64,
        store: StoreId,
        plan: &ReadPlan<'_>,
    ) -> Result<(), Failure> {
        if self.config.refuse_reads_of_garbage && plan.ts < self.collected {
            return Err(MvccError::Abort(format!(
                "a read at {} is below {}, up to which garbage has been collected",
                plan.ts, self.collected
            ))
            .into());
        }
        if !plan.context.stale_read {
            self.raise_max_ts(now_ms, store, plan.ts)?;
        }
        Ok(())
    }

    fn check_memory_lock(
        &self,
        store: StoreId,
        key: &Key,
        rules: &ReadRules<'_>,
    ) -> Result<(), MvccError> {
        let lock = self
            .store(store)
            .and_then(|store| store.memory_locks.get(key));
        lock.map_or(Ok(()), |lock| lock.check_read(key, rules))
    }

    /// Scans a range in either direction.
    pub fn kv_scan(&mut self, now_ms: u64, store: StoreId, request: ScanRequest) -> ScanResponse {
        match self.try_scan(now_ms, store, &request) {
            Ok(rows) => ScanResponse {
                pairs: rows.into_iter().map(row_pair).collect(),
                ..ScanResponse::default()
            },
            Err(failure) => {
                let (region_error, error) = failure.split();
                ScanResponse {
                    region_error,
                    pairs: error.clone().map(error_pair).into_iter().collect(),
                    error,
                }
            }
        }
    }

    fn try_scan(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &ScanRequest,
    ) -> Result<Vec<Row>, Failure> {
        let context = request.context.clone().unwrap_or_default();
        let plan = ReadPlan {
            context: &context,
            command: "scan",
            ts: request.version,
            bypass: &context.resolved_locks,
        };
        self.check_read_load(store, &context)?;
        check_isolation(&context)?;
        let start = Key::from_user(&request.start_key).encoded().clone();
        let end = (!request.end_key.is_empty())
            .then(|| Key::from_user(&request.end_key).encoded().clone());
        let check = ApiCheck {
            storage: self.config().api_version,
            context: &context,
            command: plan.command,
            mode: Mode::Txn,
        };
        let no_end = Bytes::new();
        if request.reverse {
            check.range(end.as_ref().unwrap_or(&no_end), &start)?;
        } else {
            check.range(&start, end.as_ref().unwrap_or(&no_end))?;
        }
        let (lower, upper) = if request.reverse {
            (end, Some(start))
        } else {
            (Some(start), end)
        };
        let range = ScanRange {
            lower,
            upper,
            reverse: request.reverse,
            limit: request.limit as usize,
            sample_step: request.sample_step as usize,
        };
        self.raise_for_read(now_ms, store, &plan)?;
        self.check_memory_range(store, &range, &plan.rules(&[]))?;
        self.get_ready_to_read(now_ms, store, &plan, |cluster, leader, rules| {
            cluster.check_memory_range(leader, &range, rules)
        })?;
        let region = self.check_region(store, &context, Access::Read(Some(plan.ts)))?;
        let wanted = Wanted {
            key_only: request.key_only,
            ..Wanted::default()
        };
        let rules = plan.rules(&context.committed_locks);
        Ok(scan(&self.reader(store, region), &range, &rules, wanted)?)
    }

    pub(super) fn check_memory_range(
        &self,
        store: StoreId,
        range: &ScanRange,
        rules: &ReadRules<'_>,
    ) -> Result<(), MvccError> {
        let Some(store) = self.store(store) else {
            return Ok(());
        };
        let from = Key::from_encoded(range.lower.clone().unwrap_or_default());
        for (key, lock) in store.memory_locks.range(from..) {
            if range
                .upper
                .as_ref()
                .is_some_and(|upper| key.encoded() >= upper)
            {
                break;
            }
            lock.check_read(key, rules)?;
        }
        Ok(())
    }
}

/// A replica can't tell whether there is anything newer.
fn check_isolation(context: &Context) -> Result<(), MvccError> {
    let checks = context.isolation_level() == IsolationLevel::RcCheckTs;
    if context.replica_read && checks {
        return Err(MvccError::txn(
            "Other(\"replica read is not compatible with isolation level RcCheckTs\")",
        ));
    }
    Ok(())
}

fn row_pair(row: Row) -> KvPair {
    match row {
        Ok((key, value)) => KvPair {
            key: key.to_user(),
            value,
            ..KvPair::default()
        },
        Err(error) => error_pair(Box::new(error.to_key_error())),
    }
}

/// A pair that holds only an error; the key is in the error.
fn error_pair(error: Box<KeyError>) -> KvPair {
    KvPair {
        error: Some(error),
        ..KvPair::default()
    }
}

#[cfg(test)]
mod tests;
