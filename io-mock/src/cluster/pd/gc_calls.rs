//! The requests that read, move and hold back the safe points.

use tikv_proto::pdpb::{
    AdvanceGcSafePointRequest, AdvanceGcSafePointResponse, AdvanceTxnSafePointRequest,
    AdvanceTxnSafePointResponse, DeleteGcBarrierRequest, DeleteGcBarrierResponse,
    DeleteGlobalGcBarrierRequest, DeleteGlobalGcBarrierResponse, ErrorType, GcBarrierInfo,
    GetAllKeyspacesGcStatesRequest, GetAllKeyspacesGcStatesResponse, GetGcStateRequest,
    GetGcStateResponse, GlobalGcBarrierInfo, GlobalGcBarriersInfo, KeyspaceScope,
    SetGcBarrierRequest, SetGcBarrierResponse, SetGlobalGcBarrierRequest,
    SetGlobalGcBarrierResponse, keyspace_scope,
};

use super::Pd;
use super::gc::{Barrier, GC_WORKER, GcState, NULL_KEYSPACE};
use super::keyspaces::{gc_is_own, is_enabled};
use crate::cluster::failure::GrpcError;

impl Pd {
    /// Tells the safe points of a keyspace and what holds them back.
    pub fn get_gc_state(
        &self,
        now_ms: u64,
        member: usize,
        request: GetGcStateRequest,
    ) -> Result<GetGcStateResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let keyspace = match self.gc_scope(request.keyspace_scope.as_ref(), false) {
            Ok(keyspace) => keyspace,
            Err(message) => {
                return Ok(GetGcStateResponse {
                    header: self.error_header(ErrorType::Unknown, message),
                    ..GetGcStateResponse::default()
                });
            }
        };
        let global_gc_barriers = request
            .include_global_gc_barriers
            .then(|| GlobalGcBarriersInfo {
                barriers: self.global_barriers(now_ms),
            });
        Ok(GetGcStateResponse {
            header: self.header(),
            gc_state: Some(self.told(now_ms, keyspace, !request.exclude_gc_barriers)),
            global_gc_barriers,
        })
    }

    /// Tells the safe points of all keyspaces that are enabled. Those that share the points of no
    /// keyspace only say so.
    pub fn get_all_keyspaces_gc_states(
        &self,
        now_ms: u64,
        member: usize,
        request: GetAllKeyspacesGcStatesRequest,
    ) -> Result<GetAllKeyspacesGcStatesResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let barriers = !request.exclude_gc_barriers;
        let mut gc_states = vec![self.told(now_ms, NULL_KEYSPACE, barriers)];
        for (id, meta) in self.keyspaces().filter(|(_, meta)| is_enabled(meta)) {
            gc_states.push(if gc_is_own(meta) {
                self.told(now_ms, id, barriers)
            } else {
                tikv_proto::pdpb::GcState {
                    keyspace_scope: scope(id),
                    ..Default::default()
                }
            });
        }
        let global_gc_barriers = if request.exclude_global_gc_barriers {
            Vec::new()
        } else {
            self.global_barriers(now_ms)
        };
        Ok(GetAllKeyspacesGcStatesResponse {
            header: self.header(),
            gc_states,
            global_gc_barriers,
        })
    }

    fn told(&self, now_ms: u64, keyspace: u32, barriers: bool) -> tikv_proto::pdpb::GcState {
        let untouched = GcState::default();
        let state = self.gc.of(keyspace).unwrap_or(&untouched);
        let gc_barriers = state
            .barriers
            .iter()
            .filter(|_| barriers)
            .map(|(id, barrier)| barrier_info(now_ms, id, *barrier))
            .collect();
        tikv_proto::pdpb::GcState {
            keyspace_scope: scope(keyspace),
            is_keyspace_level_gc: keyspace != NULL_KEYSPACE,
            txn_safe_point: state.txn_safe_point,
            gc_safe_point: state.gc_safe_point,
            gc_barriers,
        }
    }

    fn global_barriers(&self, now_ms: u64) -> Vec<GlobalGcBarrierInfo> {
        let barriers = self.gc.global.iter();
        barriers
            .map(|(id, barrier)| global_info(now_ms, id, *barrier))
            .collect()
    }

    /// Moves the point below which transactions are ended.
    pub fn advance_txn_safe_point(
        &mut self,
        now_ms: u64,
        member: usize,
        request: AdvanceTxnSafePointRequest,
    ) -> Result<AdvanceTxnSafePointResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let advanced = self
            .gc_scope(request.keyspace_scope.as_ref(), true)
            .and_then(|keyspace| self.gc.advance_txn(now_ms, keyspace, request.target));
        Ok(match advanced {
            Ok(advance) => AdvanceTxnSafePointResponse {
                header: self.header(),
                old_txn_safe_point: advance.old,
                new_txn_safe_point: advance.new,
                blocker_description: advance.blocker.map(|(_, text)| text).unwrap_or_default(),
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
        let advanced = self
            .gc_scope(request.keyspace_scope.as_ref(), true)
            .and_then(|keyspace| self.gc.advance_gc(keyspace, request.target));
        Ok(match advanced {
            Ok((old, new)) => AdvanceGcSafePointResponse {
                header: self.header(),
                old_gc_safe_point: old,
                new_gc_safe_point: new,
            },
            Err(message) => AdvanceGcSafePointResponse {
                header: self.error_header(ErrorType::Unknown, message),
                ..AdvanceGcSafePointResponse::default()
            },
        })
    }

    /// Holds the safe points of a keyspace back.
    pub fn set_gc_barrier(
        &mut self,
        now_ms: u64,
        member: usize,
        request: SetGcBarrierRequest,
    ) -> Result<SetGcBarrierResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let barrier = Barrier::new(now_ms, request.barrier_ts, request.ttl_seconds);
        let set = positive(request.ttl_seconds)
            .and_then(|()| self.gc_scope(request.keyspace_scope.as_ref(), false))
            .and_then(|keyspace| self.put_barrier(keyspace, &request.barrier_id, barrier));
        Ok(match set {
            Ok(()) => SetGcBarrierResponse {
                header: self.header(),
                new_barrier_info: Some(barrier_info(now_ms, &request.barrier_id, barrier)),
            },
            Err(message) => SetGcBarrierResponse {
                header: self.error_header(ErrorType::Unknown, message),
                ..SetGcBarrierResponse::default()
            },
        })
    }

    pub(super) fn put_barrier(
        &mut self,
        keyspace: u32,
        id: &str,
        barrier: Barrier,
    ) -> Result<(), String> {
        barrier_id(id)?;
        let state = self.gc.of_mut(keyspace);
        behind(barrier, state.txn_safe_point, "GCBarrier", "GC barrier")?;
        state.barriers.insert(id.to_owned(), barrier);
        Ok(())
    }

    /// Stops holding the safe points of a keyspace back.
    pub fn delete_gc_barrier(
        &mut self,
        now_ms: u64,
        member: usize,
        request: DeleteGcBarrierRequest,
    ) -> Result<DeleteGcBarrierResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let id = &request.barrier_id;
        let deleted = self
            .gc_scope(request.keyspace_scope.as_ref(), false)
            .and_then(|keyspace| {
                barrier_id(id)?;
                Ok(self.gc.of_mut(keyspace).barriers.remove(id))
            });
        Ok(match deleted {
            Ok(deleted) => DeleteGcBarrierResponse {
                header: self.header(),
                deleted_barrier_info: deleted.map(|barrier| barrier_info(now_ms, id, barrier)),
            },
            Err(message) => DeleteGcBarrierResponse {
                header: self.error_header(ErrorType::Unknown, message),
                ..DeleteGcBarrierResponse::default()
            },
        })
    }

    /// Holds the safe points of all keyspaces back.
    pub fn set_global_gc_barrier(
        &mut self,
        now_ms: u64,
        member: usize,
        request: SetGlobalGcBarrierRequest,
    ) -> Result<SetGlobalGcBarrierResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let barrier = Barrier::new(now_ms, request.barrier_ts, request.ttl_seconds);
        let set = positive(request.ttl_seconds)
            .and_then(|()| named(&request.barrier_id))
            .and_then(|()| self.put_global_barrier(&request.barrier_id, barrier));
        Ok(match set {
            Ok(()) => SetGlobalGcBarrierResponse {
                header: self.header(),
                new_barrier_info: Some(global_info(now_ms, &request.barrier_id, barrier)),
            },
            Err(message) => SetGlobalGcBarrierResponse {
                header: self.error_header(ErrorType::Unknown, message),
                ..SetGlobalGcBarrierResponse::default()
            },
        })
    }

    pub(super) fn put_global_barrier(&mut self, id: &str, barrier: Barrier) -> Result<(), String> {
        let bound = self.gc.txn_safe_point_max();
        behind(barrier, bound, "GlobalGCBarrier", "global GC barrier")?;
        self.gc.global.insert(id.to_owned(), barrier);
        Ok(())
    }

    /// Stops holding the safe points of all keyspaces back.
    pub fn delete_global_gc_barrier(
        &mut self,
        now_ms: u64,
        member: usize,
        request: DeleteGlobalGcBarrierRequest,
    ) -> Result<DeleteGlobalGcBarrierResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let id = &request.barrier_id;
        Ok(match named(id) {
            Ok(()) => DeleteGlobalGcBarrierResponse {
                deleted_barrier_info: self
                    .gc
                    .global
                    .remove(id)
                    .map(|barrier| global_info(now_ms, id, barrier)),
                header: self.header(),
            },
            Err(message) => DeleteGlobalGcBarrierResponse {
                header: self.error_header(ErrorType::Unknown, message),
                ..DeleteGlobalGcBarrierResponse::default()
            },
        })
    }
}

fn scope(keyspace: u32) -> Option<KeyspaceScope> {
    Some(KeyspaceScope {
        keyspace: Some(keyspace_scope::Keyspace::KeyspaceId(keyspace)),
    })
}

fn positive(ttl_seconds: i64) -> Result<(), String> {
    match ttl_seconds > 0 {
        true => Ok(()),
        false => Err(format!(
            "[PD:common:ErrInvalidArgument]invalid argument, ttl: {ttl_seconds}s"
        )),
    }
}

fn named(id: &str) -> Result<(), String> {
    match id.is_empty() {
        true => Err("[PD:common:ErrInvalidArgument]invalid argument, barrierID: ".to_owned()),
        false => Ok(()),
    }
}

fn barrier_id(id: &str) -> Result<(), String> {
    if id == GC_WORKER {
        return Err(format!(
            "[PD:gc:ErrReservedGCBarrierID]trying to set a GC barrier with reserved barrier ID {id}"
        ));
    }
    named(id)
}

fn behind(barrier: Barrier, txn_safe_point: u64, code: &str, what: &str) -> Result<(), String> {
    if barrier.ts >= txn_safe_point {
        return Ok(());
    }
    Err(format!(
        "[PD:gc:Err{code}TSBehindTxnSafePoint]trying to set a {what} on ts {} which is already behind \
         the txn safe point {txn_safe_point}",
        barrier.ts
    ))
}

fn barrier_info(now_ms: u64, id: &str, barrier: Barrier) -> GcBarrierInfo {
    GcBarrierInfo {
        barrier_id: id.to_owned(),
        barrier_ts: barrier.ts,
        ttl_seconds: barrier.ttl_seconds(now_ms),
    }
}

fn global_info(now_ms: u64, id: &str, barrier: Barrier) -> GlobalGcBarrierInfo {
    GlobalGcBarrierInfo {
        barrier_id: id.to_owned(),
        barrier_ts: barrier.ts,
        ttl_seconds: barrier.ttl_seconds(now_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::pd::testing::{header, message, pd};

    fn of(keyspace: u32) -> Option<KeyspaceScope> {
        scope(keyspace)
    }

    #[test]
    fn keyspaces_share_the_points_unless_they_collect_for_themselves() {
        let mut pd = pd();
        let shares = pd.add_keyspace(1, "shares", Default::default()).unwrap();
        let config = [("gc_management_type".to_owned(), "keyspace_level".to_owned())];
        let own = pd.add_keyspace(1, "own", config.into()).unwrap();
        let mut advance = |keyspace, target| {
            let request = AdvanceTxnSafePointRequest {
                header: header(),
                keyspace_scope: of(keyspace),
                target,
            };
            pd.advance_txn_safe_point(1, 0, request).unwrap()
        };
        assert_eq!(advance(own, 20).new_txn_safe_point, 20);
        assert_eq!(advance(NULL_KEYSPACE, 10).new_txn_safe_point, 10);
        assert!(message(&advance(shares, 30).header).contains("not enabled"));
        assert!(message(&advance(99, 30).header).contains("does not exist"));
        let state = |keyspace| {
            let request = GetGcStateRequest {
                header: header(),
                keyspace_scope: of(keyspace),
                ..Default::default()
            };
            let state = pd.get_gc_state(1, 0, request).unwrap().gc_state.unwrap();
            (state.is_keyspace_level_gc, state.txn_safe_point)
        };
        assert_eq!(state(own), (true, 20));
        assert_eq!(state(shares), (false, 10));
        let all = GetAllKeyspacesGcStatesRequest {
            header: header(),
            ..Default::default()
        };
        let all = pd.get_all_keyspaces_gc_states(1, 0, all).unwrap().gc_states;
        let points: Vec<_> = all.iter().map(|state| state.txn_safe_point).collect();
        assert_eq!(points, [10, 0, 0, 20], "none, DEFAULT, shares, own");
    }

    #[test]
    fn a_global_barrier_holds_every_keyspace_back() {
        let mut pd = pd();
        let set = |pd: &mut Pd, barrier_ts| {
            let request = SetGlobalGcBarrierRequest {
                header: header(),
                barrier_id: "br".to_owned(),
                barrier_ts,
                ttl_seconds: 60,
            };
            pd.set_global_gc_barrier(1, 0, request).unwrap()
        };
        assert_eq!(set(&mut pd, 15).new_barrier_info.unwrap().ttl_seconds, 60);
        let request = AdvanceTxnSafePointRequest {
            header: header(),
            target: 30,
            ..Default::default()
        };
        let advanced = pd.advance_txn_safe_point(1, 0, request).unwrap();
        assert_eq!(advanced.new_txn_safe_point, 15);
        assert!(advanced.blocker_description.contains("GlobalGCBarrier"));
        assert!(message(&set(&mut pd, 14).header).contains("behind"));
        let request = DeleteGlobalGcBarrierRequest {
            header: header(),
            barrier_id: "br".to_owned(),
        };
        let mut delete = || {
            let deleted = pd.delete_global_gc_barrier(1, 0, request.clone()).unwrap();
            deleted.deleted_barrier_info.map(|info| info.barrier_ts)
        };
        assert_eq!((delete(), delete()), (Some(15), None));
    }

    #[test]
    fn a_barrier_needs_a_name_a_life_and_a_place_ahead() {
        let mut pd = pd();
        pd.gc_mut().txn_safe_point = 10;
        let cases = [
            ("", 20, 1, "barrierID"),
            ("gc_worker", 20, 1, "reserved"),
            ("b", 20, 0, "ttl"),
            ("b", 9, 1, "behind"),
        ];
        for (barrier_id, barrier_ts, ttl_seconds, why) in cases {
            let request = SetGcBarrierRequest {
                header: header(),
                barrier_id: barrier_id.to_owned(),
                barrier_ts,
                ttl_seconds,
                ..Default::default()
            };
            let refused = pd.set_gc_barrier(1, 0, request).unwrap();
            assert!(
                message(&refused.header).contains(why),
                "{barrier_id:?} {refused:?}"
            );
        }
        assert!(pd.gc().barriers.is_empty());
    }
}
