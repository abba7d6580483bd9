//! The safe points: up to where transactions are ended and old versions removed, and who holds
//! that back.
//!
//! One state for the whole cluster; keyspaces with garbage collection of their own are absent.

use std::collections::BTreeMap;

use tikv_proto::pdpb::{
    AdvanceGcSafePointRequest, AdvanceGcSafePointResponse, AdvanceTxnSafePointRequest,
    AdvanceTxnSafePointResponse, DeleteGcBarrierRequest, DeleteGcBarrierResponse, ErrorType,
    GcBarrierInfo, GetGcSafePointRequest, GetGcSafePointResponse, GetGcStateRequest,
    GetGcStateResponse, KeyspaceScope, SetGcBarrierRequest, SetGcBarrierResponse,
    UpdateGcSafePointRequest, UpdateGcSafePointResponse, UpdateServiceGcSafePointRequest,
    UpdateServiceGcSafePointResponse, keyspace_scope,
};

use super::Pd;
use crate::cluster::failure::GrpcError;

/// The id that stands for no keyspace.
const NULL_KEYSPACE: u32 = u32::MAX;
/// The service that moves the safe point itself.
const GC_WORKER: &str = "gc_worker";

/// The safe points and what holds them back.
#[derive(Clone, Debug, Default)]
pub struct GcState {
    /// Transactions older than this are ended.
    pub txn_safe_point: u64,
    /// Versions older than this are removed.
    pub gc_safe_point: u64,
    barriers: BTreeMap<String, Barrier>,
}

#[derive(Clone, Copy, Debug)]
struct Barrier {
    ts: u64,
    /// `None` is never.
    expires_at_ms: Option<u64>,
}

impl GcState {
    fn least_barrier(&mut self, now_ms: u64) -> Option<(&str, u64)> {
        self.barriers
            .retain(|_, b| b.expires_at_ms.is_none_or(|at| at > now_ms));
        self.barriers
            .iter()
            .map(|(id, b)| (id.as_str(), b.ts))
            .min_by_key(|(_, ts)| *ts)
    }

    fn set_barrier(&mut self, now_ms: u64, id: &str, ts: u64, ttl_seconds: i64) {
        let ttl_ms = u64::try_from(ttl_seconds)
            .ok()
            .and_then(|ttl| ttl.checked_mul(1000));
        let expires_at_ms = match ttl_ms {
            Some(ms) if ttl_seconds != i64::MAX => now_ms.checked_add(ms),
            _ => None,
        };
        self.barriers
            .insert(id.to_owned(), Barrier { ts, expires_at_ms });
    }

    /// Moves the point for transactions as far as barriers allow; `Err` says why not at all.
    fn advance_txn(&mut self, now_ms: u64, target: u64) -> Result<(u64, u64, String), String> {
        let old = self.txn_safe_point;
        if target < old {
            return Err(format!(
                "trying to update txn safe point to a smaller value, current value: {old}, given: {target}"
            ));
        }
        let blocker = self
            .least_barrier(now_ms)
            .map(|(id, ts)| (id.to_owned(), ts));
        let (new, description) = match blocker {
            Some((id, ts)) if ts < target => {
                (ts.max(old), format!("BarrierID: {id}, BarrierTS: {ts}"))
            }
            _ => (target, String::new()),
        };
        self.txn_safe_point = new;
        Ok((old, new, description))
    }
}

fn null_keyspace() -> Option<KeyspaceScope> {
    Some(KeyspaceScope {
        keyspace: Some(keyspace_scope::Keyspace::KeyspaceId(NULL_KEYSPACE)),
    })
}

impl Pd {
    /// The safe points.
    pub fn gc(&self) -> &GcState {
        &self.gc
    }

    /// The safe points, to change them directly.
    pub fn gc_mut(&mut self) -> &mut GcState {
        &mut self.gc
    }

    /// Tells the safe points and what holds them back.
    pub fn get_gc_state(
        &self,
        now_ms: u64,
        member: usize,
        request: GetGcStateRequest,
    ) -> Result<GetGcStateResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let gc_barriers = self
            .gc
            .barriers
            .iter()
            .filter(|_| !request.exclude_gc_barriers)
            .map(|(id, barrier)| barrier_info(now_ms, id, *barrier))
            .collect();
        let state = tikv_proto::pdpb::GcState {
            keyspace_scope: null_keyspace(),
            is_keyspace_level_gc: false,
            txn_safe_point: self.gc.txn_safe_point,
            gc_safe_point: self.gc.gc_safe_point,
            gc_barriers,
        };
        Ok(GetGcStateResponse {
            header: self.header(),
            gc_state: Some(state),
            ..GetGcStateResponse::default()
        })
    }

    /// Moves the point below which transactions are ended.
    pub fn advance_txn_safe_point(
        &mut self,
        now_ms: u64,
        member: usize,
        request: AdvanceTxnSafePointRequest,
    ) -> Result<AdvanceTxnSafePointResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        Ok(match self.gc.advance_txn(now_ms, request.target) {
            Ok((old, new, description)) => AdvanceTxnSafePointResponse {
                header: self.header(),
                old_txn_safe_point: old,
                new_txn_safe_point: new,
                blocker_description: description,
            },
            Err(message) => AdvanceTxnSafePointResponse {
                header: self.error_header(ErrorType::Unknown, message),
                ..AdvanceTxnSafePointResponse::default()
            },
        })
    }

    /// Moves the point below which versions are removed; it stays behind the other one.
    pub fn advance_gc_safe_point(
        &mut self,
        member: usize,
        request: AdvanceGcSafePointRequest,
    ) -> Result<AdvanceGcSafePointResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let old = self.gc.gc_safe_point;
        if request.target < old || request.target > self.gc.txn_safe_point {
            let message = format!(
                "cannot move the gc safe point from {old} to {}, txn safe point {}",
                request.target, self.gc.txn_safe_point
            );
            let header = self.error_header(ErrorType::Unknown, message);
            return Ok(AdvanceGcSafePointResponse {
                header,
                ..AdvanceGcSafePointResponse::default()
            });
        }
        self.gc.gc_safe_point = request.target;
        Ok(AdvanceGcSafePointResponse {
            header: self.header(),
            old_gc_safe_point: old,
            new_gc_safe_point: request.target,
        })
    }

    /// Holds the safe points back.
    pub fn set_gc_barrier(
        &mut self,
        now_ms: u64,
        member: usize,
        request: SetGcBarrierRequest,
    ) -> Result<SetGcBarrierResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let refused = if request.barrier_id.is_empty() || request.barrier_id == GC_WORKER {
            Some("invalid barrier id")
        } else if request.ttl_seconds <= 0 {
            Some("the ttl of a barrier must be positive")
        } else if request.barrier_ts < self.gc.txn_safe_point {
            Some("trying to set a GC barrier on a ts behind the txn safe point")
        } else {
            None
        };
        if let Some(message) = refused {
            let header = self.error_header(ErrorType::Unknown, message);
            return Ok(SetGcBarrierResponse {
                header,
                ..SetGcBarrierResponse::default()
            });
        }
        self.gc.set_barrier(
            now_ms,
            &request.barrier_id,
            request.barrier_ts,
            request.ttl_seconds,
        );
        Ok(SetGcBarrierResponse {
            header: self.header(),
            new_barrier_info: Some(GcBarrierInfo {
                barrier_id: request.barrier_id,
                barrier_ts: request.barrier_ts,
                ttl_seconds: request.ttl_seconds,
            }),
        })
    }

    /// Stops holding the safe points back.
    pub fn delete_gc_barrier(
        &mut self,
        now_ms: u64,
        member: usize,
        request: DeleteGcBarrierRequest,
    ) -> Result<DeleteGcBarrierResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let deleted = self.gc.barriers.remove(&request.barrier_id);
        Ok(DeleteGcBarrierResponse {
            header: self.header(),
            deleted_barrier_info: deleted.map(|b| barrier_info(now_ms, &request.barrier_id, b)),
        })
    }

    /// The point below which versions are removed.
    pub fn get_gc_safe_point(
        &self,
        member: usize,
        request: GetGcSafePointRequest,
    ) -> Result<GetGcSafePointResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        Ok(GetGcSafePointResponse {
            header: self.header(),
            safe_point: self.gc.gc_safe_point,
        })
    }

    /// Moves that point in the old way: a smaller target changes nothing and is no error.
    pub fn update_gc_safe_point(
        &mut self,
        member: usize,
        request: UpdateGcSafePointRequest,
    ) -> Result<UpdateGcSafePointResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let target = request.safe_point.min(self.gc.txn_safe_point);
        self.gc.gc_safe_point = self.gc.gc_safe_point.max(target);
        Ok(UpdateGcSafePointResponse {
            header: self.header(),
            new_safe_point: self.gc.gc_safe_point,
        })
    }

    /// Holds the safe points back in the old way, or moves them if the service is the one that
    /// collects. Too old is no error: the answer says where the safe point is.
    pub fn update_service_gc_safe_point(
        &mut self,
        now_ms: u64,
        member: usize,
        request: UpdateServiceGcSafePointRequest,
    ) -> Result<UpdateServiceGcSafePointResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let id = String::from_utf8_lossy(&request.service_id).into_owned();
        if id == GC_WORKER {
            if request.ttl != i64::MAX {
                let header =
                    self.error_header(ErrorType::Unknown, "the ttl of gc_worker must be infinite");
                return Ok(UpdateServiceGcSafePointResponse {
                    header,
                    ..UpdateServiceGcSafePointResponse::default()
                });
            }
            // A target below the current point only asks where it is.
            let _ = self.gc.advance_txn(now_ms, request.safe_point);
        } else if request.ttl <= 0 {
            self.gc.barriers.remove(&id);
        } else if request.safe_point >= self.gc.txn_safe_point {
            self.gc
                .set_barrier(now_ms, &id, request.safe_point, request.ttl);
        }
        let txn_safe_point = self.gc.txn_safe_point;
        let (holder, least) = match self.gc.least_barrier(now_ms) {
            Some((holder, ts)) if ts < txn_safe_point => (holder.to_owned(), ts),
            _ => (GC_WORKER.to_owned(), txn_safe_point),
        };
        Ok(UpdateServiceGcSafePointResponse {
            header: self.header(),
            service_id: holder.into(),
            ttl: i64::MAX,
            min_safe_point: least,
        })
    }
}

fn barrier_info(now_ms: u64, id: &str, barrier: Barrier) -> GcBarrierInfo {
    let ttl_seconds = match barrier.expires_at_ms {
        None => i64::MAX,
        Some(at) => i64::try_from(at.saturating_sub(now_ms) / 1000).unwrap_or(i64::MAX),
    };
    GcBarrierInfo {
        barrier_id: id.to_owned(),
        barrier_ts: barrier.ts,
        ttl_seconds,
    }
}
