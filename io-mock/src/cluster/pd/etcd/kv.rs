//! Reading, writing and forgetting keys. Each request is checked as a whole before any of it is
//! done; [transactions](super::txn) are made of the same two halves.

use bytes::Bytes;
use tikv_proto::meta_storagepb::KeyValue;

use super::messages::{
    CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, Done, PutRequest, PutResponse,
    RangeRequest, RangeResponse, SortOrder, Target,
};
use super::{compacted, future, invalid, no_key, no_lease};
use crate::cluster::failure::GrpcError;
use crate::cluster::pd::Pd;
use crate::cluster::pd::meta_storage::Range;

impl Pd {
    pub(crate) fn etcd_range(
        &mut self,
        now_ms: u64,
        member: usize,
        request: RangeRequest,
    ) -> Result<RangeResponse, GrpcError> {
        check_range(&request)?;
        self.etcd_catch_up(now_ms);
        self.check_revision(&request)?;
        Ok(self.do_range(member, request))
    }

    pub(crate) fn etcd_put(
        &mut self,
        now_ms: u64,
        member: usize,
        request: PutRequest,
    ) -> Result<PutResponse, GrpcError> {
        check_put(&request)?;
        self.etcd_catch_up(now_ms);
        self.check_put_target(&request)?;
        let revision = self.meta.revision() + 1;
        Ok(self.do_put(member, revision, request))
    }

    pub(crate) fn etcd_delete_range(
        &mut self,
        now_ms: u64,
        member: usize,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, GrpcError> {
        check_delete(&request)?;
        self.etcd_catch_up(now_ms);
        let revision = self.meta.revision() + 1;
        Ok(self.do_delete(member, revision, request))
    }

    pub(crate) fn etcd_compact(
        &mut self,
        now_ms: u64,
        member: usize,
        request: CompactionRequest,
    ) -> Result<Done, GrpcError> {
        self.etcd_catch_up(now_ms);
        if request.revision <= self.meta.compacted() {
            return Err(compacted());
        }
        if request.revision > self.meta.revision() {
            return Err(future());
        }
        self.compact_meta(request.revision);
        self.watched += 1;
        let header = self.etcd_header(member);
        Ok(Done { header })
    }

    /// Whether there still, and already, is the revision to read at.
    pub(super) fn check_revision(&self, request: &RangeRequest) -> Result<(), GrpcError> {
        match request.revision {
            ..=0 => Ok(()),
            at if at > self.meta.revision() => Err(future()),
            at if at < self.meta.compacted() => Err(compacted()),
            _ => Ok(()),
        }
    }

    /// Whether there is what a put goes on from.
    pub(super) fn check_put_target(&self, request: &PutRequest) -> Result<(), GrpcError> {
        let keeps = request.ignore_value || request.ignore_lease;
        if keeps && self.meta.get(&request.key).is_none() {
            return Err(invalid("key not found"));
        }
        if request.lease != 0 && !self.meta.leases.knows(request.lease) {
            return Err(no_lease());
        }
        Ok(())
    }

    pub(super) fn do_range(&self, member: usize, request: RangeRequest) -> RangeResponse {
        let range = range(&request.key, &request.range_end);
        let mut kvs = match request.revision {
            ..=0 => self.meta.within(&range).cloned().collect(),
            at => self.meta.within_at(&range, at),
        };
        let count = kvs.len() as i64;
        let within = |at: i64, min: i64, max: i64| at >= min && (max == 0 || at <= max);
        kvs.retain(|kv| {
            let modified = within(
                kv.mod_revision,
                request.min_mod_revision,
                request.max_mod_revision,
            );
            let created = within(
                kv.create_revision,
                request.min_create_revision,
                request.max_create_revision,
            );
            modified && created
        });
        sort(&mut kvs, request.sort_order(), request.sort_target());
        let limit = usize::try_from(request.limit).ok().filter(|&n| n > 0);
        let more = limit.is_some_and(|limit| kvs.len() > limit);
        kvs.truncate(limit.unwrap_or(usize::MAX));
        if request.count_only {
            kvs.clear();
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        RangeResponse {
            header: self.etcd_header(member),
            kvs,
            more: more && !request.count_only,
            count,
        }
    }

    pub(super) fn do_put(
        &mut self,
        member: usize,
        revision: i64,
        request: PutRequest,
    ) -> PutResponse {
        let before = self.meta.get(&request.key);
        let kept = |keep: bool| before.filter(|_| keep);
        let value = kept(request.ignore_value).map_or(request.value, |kv| kv.value.clone());
        let lease = kept(request.ignore_lease).map_or(request.lease, |kv| kv.lease);
        self.etcd_hear(&request.key, Some(&value));
        let before = self.meta.put_at(revision, request.key, value, lease);
        self.watched += 1;
        PutResponse {
            header: self.etcd_header(member),
            prev_kv: before.filter(|_| request.prev_kv),
        }
    }

    pub(super) fn do_delete(
        &mut self,
        member: usize,
        revision: i64,
        request: DeleteRangeRequest,
    ) -> DeleteRangeResponse {
        let range = range(&request.key, &request.range_end);
        let deleted = self.meta.delete_at(revision, &range);
        for kv in &deleted {
            self.etcd_hear(&kv.key, None);
        }
        self.watched += 1;
        DeleteRangeResponse {
            header: self.etcd_header(member),
            deleted: deleted.len() as i64,
            prev_kvs: match request.prev_kv {
                true => deleted,
                false => Vec::new(),
            },
        }
    }
}

pub(super) fn check_range(request: &RangeRequest) -> Result<(), GrpcError> {
    if request.key.is_empty() {
        return Err(no_key());
    }
    let known = SortOrder::try_from(request.sort_order).is_ok()
        && Target::try_from(request.sort_target).is_ok();
    known
        .then_some(())
        .ok_or_else(|| invalid("invalid sort option"))
}

pub(super) fn check_put(request: &PutRequest) -> Result<(), GrpcError> {
    if request.key.is_empty() {
        return Err(no_key());
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(invalid("value is provided"));
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(invalid("lease is provided"));
    }
    Ok(())
}

pub(super) fn check_delete(request: &DeleteRangeRequest) -> Result<(), GrpcError> {
    match request.key.is_empty() {
        true => Err(no_key()),
        false => Ok(()),
    }
}

pub(super) fn range(key: &Bytes, end: &Bytes) -> Range {
    Range {
        start: key.clone(),
        end: end.clone(),
    }
}

/// Sorts keys that are in their own order.
fn sort(kvs: &mut [KeyValue], order: SortOrder, target: Target) {
    match target {
        Target::Key => {}
        Target::Version => kvs.sort_by_key(|kv| kv.version),
        Target::Create => kvs.sort_by_key(|kv| kv.create_revision),
        Target::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
        Target::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if order == SortOrder::Descend {
        kvs.reverse();
    }
}
