//! Coprocessor, CoprocessorStream and RawCoprocessor: what a store checks before it runs a plan. Running it
//! is up to an [`Extension`](super::extension::Extension); without one a store says that it can't.

use tikv_proto::coprocessor::{
    KeyRange, Request, Response, StoreBatchTask, StoreBatchTaskResponse,
};
use tikv_proto::kvrpcpb::{ApiVersion, Context, RawCoprocessorRequest, RawCoprocessorResponse};

use super::Cluster;
use super::failure::Failure;
use super::key;
use super::mvcc::error::MvccError;
use super::mvcc::lock::KeyLock;
use super::mvcc::read::ScanRange;
use super::raw_format::text;
use super::read_commands::ReadPlan;
use super::region::StoreId;
use super::region_checks::Access;
use super::region_errors::bucket_version_not_match;

impl Cluster {
    /// Runs a plan over ranges of a region, and over those of other regions on this store that the
    /// request brings along.
    pub fn coprocessor(&mut self, now_ms: u64, store: StoreId, request: Request) -> Response {
        let mut response = self.coprocessor_task(now_ms, store, &request);
        for task in &request.tasks {
            let answer = self.coprocessor_task(now_ms, store, &alone(&request, task));
            response.batch_responses.push(StoreBatchTaskResponse {
                data: answer.data,
                region_error: answer.region_error,
                locked: answer.locked,
                other_error: answer.other_error,
                task_id: task.task_id,
                exec_details_v2: answer.exec_details_v2,
                data_merged_into_response: false,
            });
        }
        response
    }

    /// Runs a plan over ranges of a region and answers piece by piece.
    pub fn coprocessor_stream(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &Request,
    ) -> Vec<Response> {
        let version = match self.check_coprocessor(now_ms, store, request) {
            Ok(version) => version,
            Err(failure) => return vec![failed(failure)],
        };
        if let Err(failure) = self.check_stored_locks(store, request) {
            return vec![failed(failure)];
        }
        let pieces = self.extended(now_ms, store, |extension, asked| {
            extension.coprocessor_stream(asked, request)
        });
        let mut pieces = pieces.unwrap_or_else(|| vec![unsupported(request)]);
        for piece in &mut pieces {
            piece.latest_buckets_version = version;
        }
        pieces
    }

    fn coprocessor_task(&mut self, now_ms: u64, store: StoreId, request: &Request) -> Response {
        let version = match self.check_coprocessor(now_ms, store, request) {
            Ok(version) => version,
            Err(failure) => return failed(failure),
        };
        let answer = match self.check_stored_locks(store, request) {
            Err(failure) => Some(failed(failure)),
            Ok(()) => self.extended(now_ms, store, |extension, asked| {
                extension.coprocessor(asked, request)
            }),
        };
        let mut answer = answer.unwrap_or_else(|| unsupported(request));
        answer.latest_buckets_version = version;
        answer.exec_details_v2.get_or_insert_default();
        answer
    }

    /// Everything that comes before the data; the version of the region's buckets.
    fn check_coprocessor(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &Request,
    ) -> Result<u64, Failure> {
        let context = request.context.clone().unwrap_or_default();
        if context.api_version() == ApiVersion::V3 {
            return Err(text("the coprocessor does not serve API V3"));
        }
        self.check_read_load(store, &context)?;
        let plan = read_plan(&context, request);
        self.raise_for_read(now_ms, store, &plan)?;
        let ranges: Vec<ScanRange> = request.ranges.iter().map(scanned).collect();
        for range in &ranges {
            self.check_memory_range(store, range, &plan.rules(&[]))?;
        }
        self.get_ready_to_read(now_ms, store, &plan, |cluster, leader, rules| {
            ranges
                .iter()
                .try_for_each(|range| cluster.check_memory_range(leader, range, rules))
        })?;
        let region = self.check_region(store, &context, Access::Read(Some(plan.ts)))?;
        // Replicas know of no buckets.
        let buckets = region.buckets.as_ref();
        let known = buckets.filter(|_| region.leader == Some(store));
        let version = known.map_or(0, |buckets| buckets.version);
        if let Some(buckets) = known.filter(|_| context.buckets_version != 0)
            && context.buckets_version < version
        {
            return Err(bucket_version_not_match(buckets).into());
        }
        Ok(version)
    }

    /// Whether a stored lock is in the way of the plan.
    fn check_stored_locks(&self, store: StoreId, request: &Request) -> Result<(), Failure> {
        let context = request.context.as_deref().cloned().unwrap_or_default();
        let plan = read_plan(&context, request);
        let region = self.check_region(store, &context, Access::Read(Some(plan.ts)))?;
        let reader = self.reader(store, region);
        let rules = plan.rules(&[]);
        for range in request.ranges.iter().map(scanned) {
            let (start, end) = reader.clip(
                &range.lower.clone().unwrap_or_default(),
                &range.upper.clone().unwrap_or_default(),
            );
            for (key, lock) in reader.engine.locks(&start, &end) {
                if let KeyLock::Exclusive(lock) = lock
                    && !context.committed_locks.contains(&lock.start_ts)
                {
                    lock.check_read(key, &rules)?;
                }
            }
        }
        Ok(())
    }

    /// Runs a plugin over raw data.
    pub fn raw_coprocessor(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: RawCoprocessorRequest,
    ) -> RawCoprocessorResponse {
        let context = request.context.clone().unwrap_or_default();
        let ready = self.get_ready(store, &context);
        let access = Access::Read(None);
        if let Err(error) =
            ready.and_then(|()| self.check_region(store, &context, access).map(|_| ()))
        {
            return RawCoprocessorResponse {
                region_error: Some(error),
                ..RawCoprocessorResponse::default()
            };
        }
        let answer = self.extended(now_ms, store, |extension, asked| {
            extension.raw_coprocessor(asked, &request)
        });
        let unknown = || {
            Err(format!(
                "no registered coprocessor with the name '{}'",
                request.copr_name
            ))
        };
        match answer.unwrap_or_else(unknown) {
            Ok(data) => RawCoprocessorResponse {
                data,
                ..RawCoprocessorResponse::default()
            },
            Err(error) => RawCoprocessorResponse {
                error,
                ..RawCoprocessorResponse::default()
            },
        }
    }
}

/// A request for one of the other regions that a request brings along.
fn alone(request: &Request, task: &StoreBatchTask) -> Request {
    let context = Context {
        region_id: task.region_id,
        region_epoch: task.region_epoch,
        peer: task.peer,
        buckets_version: task.buckets_version,
        // It was the term of another region.
        term: 0,
        ..request.context.as_deref().cloned().unwrap_or_default()
    };
    Request {
        context: Some(Box::new(context)),
        ranges: task.ranges.clone(),
        versioned_ranges: task.versioned_ranges.clone(),
        tasks: Vec::new(),
        ..request.clone()
    }
}

fn read_plan<'a>(context: &'a Context, request: &Request) -> ReadPlan<'a> {
    ReadPlan {
        context,
        command: "coprocessor",
        ts: request.start_ts,
        bypass: &context.resolved_locks,
    }
}

fn scanned(range: &KeyRange) -> ScanRange {
    ScanRange {
        lower: Some(key::encode(&range.start)),
        upper: (!range.end.is_empty()).then(|| key::encode(&range.end)),
        reverse: false,
        limit: usize::MAX,
        sample_step: 0,
    }
}

fn unsupported(request: &Request) -> Response {
    Response {
        other_error: format!("unsupported tp {}", request.tp),
        ..Response::default()
    }
}

fn failed(failure: Failure) -> Response {
    match failure {
        Failure::Region(error) => Response {
            region_error: Some(error),
            ..Response::default()
        },
        Failure::Key(MvccError::KeyIsLocked(lock)) => Response {
            locked: Some(lock),
            ..Response::default()
        },
        Failure::Key(other) => {
            let error = other.to_key_error();
            Response {
                other_error: match error.abort.is_empty() {
                    true => error.retryable,
                    false => error.abort,
                },
                ..Response::default()
            }
        }
    }
}

#[cfg(test)]
mod tests;
