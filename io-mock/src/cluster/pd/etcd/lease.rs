//! Leases: keys that hang on one go when nobody has renewed it for as long as it lives.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::messages::{
    Done, LeaseGrantRequest, LeaseLeasesRequest, LeaseLeasesResponse, LeaseLife, LeaseRequest,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use super::{failed, no_lease};
use crate::cluster::failure::{GrpcCode, GrpcError};
use crate::cluster::pd::Pd;
use crate::cluster::pd::meta_storage::Range;

/// No lease is granted for longer.
const TTL_MAX: i64 = 9_000_000_000;
/// Shorter ones would end before etcd could elect another leader: one and a half elections of PD's
/// three seconds, rounded up.
const TTL_MIN: i64 = 5;

/// All leases.
#[derive(Clone, Debug, Default)]
pub(in crate::cluster::pd) struct Leases {
    pub(in crate::cluster::pd) by_id: BTreeMap<i64, Lease>,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::cluster::pd) struct Lease {
    pub(in crate::cluster::pd) ttl_s: i64,
    pub(in crate::cluster::pd) ends_at_ms: u64,
}

impl Lease {
    fn new(now_ms: u64, ttl_s: i64) -> Self {
        let ttl_ms = ttl_s.unsigned_abs().saturating_mul(1_000);
        Lease {
            ttl_s,
            ends_at_ms: now_ms.saturating_add(ttl_ms),
        }
    }

    fn left_s(&self, now_ms: u64) -> i64 {
        let left = self.ends_at_ms.saturating_sub(now_ms) / 1_000;
        i64::try_from(left).unwrap_or(i64::MAX)
    }
}

impl Leases {
    pub(in crate::cluster::pd) fn knows(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }
}

impl Pd {
    pub(crate) fn etcd_lease_grant(
        &mut self,
        now_ms: u64,
        member: usize,
        request: LeaseGrantRequest,
    ) -> Result<LeaseLife, GrpcError> {
        self.etcd_catch_up(now_ms);
        let leases = &mut self.meta.leases;
        if request.ttl > TTL_MAX {
            return Err(failed(GrpcCode::OutOfRange, "too large lease TTL"));
        }
        if leases.knows(request.id) {
            let message = "lease already exists";
            return Err(failed(GrpcCode::FailedPrecondition, message));
        }
        let last = leases.by_id.keys().next_back();
        let id = match request.id {
            0 => last.map_or(1, |last| last.saturating_add(1)),
            wanted => wanted,
        };
        let lease = Lease::new(now_ms, request.ttl.max(TTL_MIN));
        leases.by_id.insert(id, lease);
        Ok(LeaseLife {
            header: self.etcd_header(member),
            id,
            ttl: lease.ttl_s,
        })
    }

    pub(crate) fn etcd_lease_revoke(
        &mut self,
        now_ms: u64,
        member: usize,
        request: LeaseRequest,
    ) -> Result<Done, GrpcError> {
        self.etcd_catch_up(now_ms);
        if !self.meta.leases.knows(request.id) {
            return Err(no_lease());
        }
        self.end_lease(request.id);
        let header = self.etcd_header(member);
        Ok(Done { header })
    }

    /// A sign of life. A lease that is not there lives for 0 seconds.
    pub(crate) fn etcd_lease_keep_alive(
        &mut self,
        now_ms: u64,
        member: usize,
        request: LeaseRequest,
    ) -> Result<LeaseLife, GrpcError> {
        self.etcd_catch_up(now_ms);
        let renewed = self.meta.leases.by_id.get_mut(&request.id).map(|lease| {
            *lease = Lease::new(now_ms, lease.ttl_s);
            lease.ttl_s
        });
        Ok(LeaseLife {
            header: self.etcd_header(member),
            id: request.id,
            ttl: renewed.unwrap_or(0),
        })
    }

    pub(crate) fn etcd_lease_time_to_live(
        &mut self,
        now_ms: u64,
        member: usize,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, GrpcError> {
        self.etcd_catch_up(now_ms);
        let lease = self.meta.leases.by_id.get(&request.id);
        let keys = match request.keys && lease.is_some() {
            true => self.keys_of(request.id),
            false => Vec::new(),
        };
        Ok(LeaseTimeToLiveResponse {
            header: self.etcd_header(member),
            id: request.id,
            ttl: lease.map_or(-1, |lease| lease.left_s(now_ms)),
            granted_ttl: lease.map_or(0, |lease| lease.ttl_s),
            keys,
        })
    }

    pub(crate) fn etcd_leases(
        &mut self,
        now_ms: u64,
        member: usize,
        _: LeaseLeasesRequest,
    ) -> Result<LeaseLeasesResponse, GrpcError> {
        self.etcd_catch_up(now_ms);
        let ids = self.meta.leases.by_id.keys();
        Ok(LeaseLeasesResponse {
            header: self.etcd_header(member),
            leases: ids.map(|id| LeaseRequest { id: *id }).collect(),
        })
    }

    /// Whether there is a lease.
    pub(crate) fn etcd_has_leases(&self) -> bool {
        !self.meta.leases.by_id.is_empty()
    }

    /// Ends the leases whose time is over.
    pub(crate) fn etcd_end_leases(&mut self, now_ms: u64) {
        let leases = self.meta.leases.by_id.iter();
        let over: Vec<i64> = leases
            .filter(|(_, lease)| lease.ends_at_ms <= now_ms)
            .map(|(id, _)| *id)
            .collect();
        over.into_iter().for_each(|id| self.end_lease(id));
    }

    /// Forgets a lease, and all that hangs on it at one revision.
    fn end_lease(&mut self, id: i64) {
        let keys = self.keys_of(id);
        self.meta.leases.by_id.remove(&id);
        let revision = self.meta.revision() + 1;
        for start in keys {
            self.etcd_hear(&start, None);
            let end = Bytes::new();
            self.meta.delete_at(revision, &Range { start, end });
            self.watched += 1;
        }
    }

    fn keys_of(&self, lease: i64) -> Vec<Bytes> {
        let hang = self.meta.entries.values().filter(|kv| kv.lease == lease);
        hang.map(|kv| kv.key.clone()).collect()
    }
}
