//! What PD's tests of safe points share: keyspaces of every kind, and requests as short words.

use tikv_proto::keyspacepb::update_keyspace_state_request::Keyspace;
use tikv_proto::keyspacepb::{KeyspaceState, UpdateKeyspaceStateRequest};
use tikv_proto::pdpb::{
    self, AdvanceGcSafePointRequest, AdvanceTxnSafePointRequest, DeleteGcBarrierRequest,
    DeleteGlobalGcBarrierRequest, GetAllKeyspacesGcStatesRequest, GetGcSafePointV2Request,
    GetGcStateRequest, KeyspaceScope, SetGcBarrierRequest, SetGlobalGcBarrierRequest,
    UpdateGcSafePointV2Request, UpdateServiceGcSafePointRequest, UpdateServiceSafePointV2Request,
    get_gc_safe_point_v2_request, keyspace_scope, update_gc_safe_point_v2_request,
    update_service_safe_point_v2_request,
};

use crate::cluster::pd::Pd;
pub(super) use crate::cluster::pd::gc::NULL_KEYSPACE;
pub(super) use crate::cluster::pd::testing::header;
use crate::cluster::pd::testing::{message, pd};

pub(super) const HOUR: i64 = 3_600;
pub(super) const NOW_MS: u64 = 1_741_584_577_000;
pub(super) const FOREVER: i64 = i64::MAX;
/// All that may be asked about.
pub(super) const ALL: [u32; 5] = [NULL_KEYSPACE, 0, 1, 2, 3];
/// Those whose points can be moved.
pub(super) const MANAGEABLE: [u32; 2] = [NULL_KEYSPACE, 2];
/// Those that share the points of no keyspace.
pub(super) const UNMANAGEABLE: [u32; 3] = [0, 1, 3];
pub(super) const UNIFIED: [u32; 4] = [NULL_KEYSPACE, 0, 1, 3];
pub(super) const NOT_EXISTING: [u32; 2] = [5, 0xff_ffff];
/// Other names of no keyspace.
pub(super) const NULL_SYNONYMS: [u32; 3] = [NULL_KEYSPACE, 0x100_0000, 0xffff_fffe];

pub(super) struct Bench {
    pub(super) pd: Pd,
    pub(super) now_ms: u64,
}

impl Bench {
    pub(super) fn new() -> Self {
        let mut pd = pd();
        for (name, kind) in [
            ("ks1", Some("global")),
            ("ks2", Some("keyspace_level")),
            ("ks3", None),
            ("ks4", None),
        ] {
            let kind = kind.map(|kind| ("gc_management_type".to_owned(), kind.to_owned()));
            let config = kind.into_iter().collect();
            pd.add_keyspace(NOW_MS, name, config).unwrap();
        }
        let disable = UpdateKeyspaceStateRequest {
            header: header(),
            keyspace: Some(Keyspace::Id(4)),
            state: KeyspaceState::Disabled.into(),
        };
        pd.update_keyspace_state(NOW_MS, 0, disable).unwrap();
        Bench { pd, now_ms: NOW_MS }
    }

    /// Old point, new point, who blocks; or why not.
    pub(super) fn advance_txn(
        &mut self,
        keyspace: u32,
        target: u64,
    ) -> Result<(u64, u64, String), String> {
        let request = AdvanceTxnSafePointRequest {
            header: header(),
            keyspace_scope: scope(keyspace),
            target,
        };
        let told = self
            .pd
            .advance_txn_safe_point(self.now_ms, 0, request)
            .unwrap();
        fine(&told.header)?;
        let (old, new) = (told.old_txn_safe_point, told.new_txn_safe_point);
        Ok((old, new, told.blocker_description))
    }

    /// What the point is after an attempt to move it, and who blocks.
    pub(super) fn advanced(&mut self, keyspace: u32, target: u64) -> (u64, String) {
        let (_, new, blocker) = self.advance_txn(keyspace, target).unwrap();
        assert_eq!(self.state(keyspace).txn_safe_point, new);
        let id = blocker.split('"').nth(1).unwrap_or_default();
        (new, id.to_owned())
    }

    pub(super) fn advance_gc(&mut self, keyspace: u32, target: u64) -> Result<(u64, u64), String> {
        let request = AdvanceGcSafePointRequest {
            header: header(),
            keyspace_scope: scope(keyspace),
            target,
        };
        let told = self.pd.advance_gc_safe_point(0, request).unwrap();
        fine(&told.header)?;
        Ok((told.old_gc_safe_point, told.new_gc_safe_point))
    }

    pub(super) fn get(&self, keyspace: u32) -> Result<pdpb::GcState, String> {
        let request = GetGcStateRequest {
            header: header(),
            keyspace_scope: scope(keyspace),
            ..Default::default()
        };
        let told = self.pd.get_gc_state(self.now_ms, 0, request).unwrap();
        fine(&told.header)?;
        Ok(told.gc_state.unwrap())
    }

    pub(super) fn state(&self, keyspace: u32) -> pdpb::GcState {
        self.get(keyspace).unwrap()
    }

    /// Id and timestamp of all barriers.
    pub(super) fn barriers(&self, keyspace: u32) -> Vec<(String, u64)> {
        let barriers = self.state(keyspace).gc_barriers.into_iter();
        barriers
            .map(|one| (one.barrier_id, one.barrier_ts))
            .collect()
    }

    pub(super) fn global_barriers(&self) -> Vec<(String, u64)> {
        let request = GetAllKeyspacesGcStatesRequest {
            header: header(),
            ..Default::default()
        };
        let told = self.pd.get_all_keyspaces_gc_states(self.now_ms, 0, request);
        let barriers = told.unwrap().global_gc_barriers.into_iter();
        barriers
            .map(|one| (one.barrier_id, one.barrier_ts))
            .collect()
    }

    /// Sets a barrier and returns its seconds to live.
    pub(super) fn set(
        &mut self,
        keyspace: u32,
        id: &str,
        ts: u64,
        ttl: i64,
    ) -> Result<i64, String> {
        let request = SetGcBarrierRequest {
            header: header(),
            keyspace_scope: scope(keyspace),
            barrier_id: id.to_owned(),
            barrier_ts: ts,
            ttl_seconds: ttl,
        };
        let told = self.pd.set_gc_barrier(self.now_ms, 0, request).unwrap();
        fine(&told.header)?;
        let set = told.new_barrier_info.unwrap();
        assert_eq!((&*set.barrier_id, set.barrier_ts), (id, ts));
        Ok(set.ttl_seconds)
    }

    pub(super) fn delete(&mut self, keyspace: u32, id: &str) -> Result<Option<u64>, String> {
        let request = DeleteGcBarrierRequest {
            header: header(),
            keyspace_scope: scope(keyspace),
            barrier_id: id.to_owned(),
        };
        let told = self.pd.delete_gc_barrier(self.now_ms, 0, request).unwrap();
        fine(&told.header)?;
        Ok(told.deleted_barrier_info.map(|one| one.barrier_ts))
    }

    pub(super) fn set_global(&mut self, id: &str, ts: u64, ttl: i64) -> Result<i64, String> {
        let request = SetGlobalGcBarrierRequest {
            header: header(),
            barrier_id: id.to_owned(),
            barrier_ts: ts,
            ttl_seconds: ttl,
        };
        let told = self
            .pd
            .set_global_gc_barrier(self.now_ms, 0, request)
            .unwrap();
        fine(&told.header)?;
        Ok(told.new_barrier_info.unwrap().ttl_seconds)
    }

    pub(super) fn delete_global(&mut self, id: &str) -> Result<Option<u64>, String> {
        let request = DeleteGlobalGcBarrierRequest {
            header: header(),
            barrier_id: id.to_owned(),
        };
        let told = self
            .pd
            .delete_global_gc_barrier(self.now_ms, 0, request)
            .unwrap();
        fine(&told.header)?;
        Ok(told.deleted_barrier_info.map(|one| one.barrier_ts))
    }

    /// The older way: who is least, and where.
    pub(super) fn service(
        &mut self,
        keyspace: u32,
        id: &str,
        ts: u64,
        ttl: i64,
    ) -> Result<(String, u64), String> {
        let service_id = bytes::Bytes::copy_from_slice(id.as_bytes());
        let (header, service, least) = if keyspace == NULL_KEYSPACE {
            let request = UpdateServiceGcSafePointRequest {
                header: header(),
                service_id,
                ttl,
                safe_point: ts,
            };
            let told = self
                .pd
                .update_service_gc_safe_point(self.now_ms, 0, request)
                .unwrap();
            (told.header, told.service_id, told.min_safe_point)
        } else {
            let request = UpdateServiceSafePointV2Request {
                header: header(),
                keyspace: Some(update_service_safe_point_v2_request::Keyspace::KeyspaceId(
                    keyspace,
                )),
                service_id,
                ttl,
                safe_point: ts,
            };
            let told = self
                .pd
                .update_service_safe_point_v2(self.now_ms, 0, request)
                .unwrap();
            (told.header, told.service_id, told.min_safe_point)
        };
        fine(&header)?;
        Ok((String::from_utf8(service.to_vec()).unwrap(), least))
    }

    pub(super) fn update_gc(&mut self, keyspace: u32, safe_point: u64) -> Result<u64, String> {
        let request = UpdateGcSafePointV2Request {
            header: header(),
            keyspace: Some(update_gc_safe_point_v2_request::Keyspace::KeyspaceId(
                keyspace,
            )),
            safe_point,
        };
        let told = self.pd.update_gc_safe_point_v2(0, request).unwrap();
        fine(&told.header)?;
        Ok(told.new_safe_point)
    }

    pub(super) fn load_gc(&self, keyspace: u32) -> Result<u64, String> {
        let request = GetGcSafePointV2Request {
            header: header(),
            keyspace: Some(get_gc_safe_point_v2_request::Keyspace::KeyspaceId(keyspace)),
        };
        let told = self.pd.get_gc_safe_point_v2(0, request).unwrap();
        fine(&told.header)?;
        Ok(told.safe_point)
    }
}

pub(super) fn scope(keyspace: u32) -> Option<KeyspaceScope> {
    Some(KeyspaceScope {
        keyspace: Some(keyspace_scope::Keyspace::KeyspaceId(keyspace)),
    })
}

pub(super) fn fine(header: &Option<pdpb::ResponseHeader>) -> Result<(), String> {
    match message(header) {
        none if none.is_empty() => Ok(()),
        why => Err(why),
    }
}

#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(answer: Result<T, String>, code: &str) {
    let why = answer.expect_err(code);
    assert!(why.contains(code), "{why} is no {code}");
}

pub(super) fn named(pairs: &[(&str, u64)]) -> Vec<(String, u64)> {
    let pairs = pairs.iter();
    pairs.map(|(id, ts)| ((*id).to_owned(), *ts)).collect()
}

pub(super) fn least(service: &str, ts: u64) -> Result<(String, u64), String> {
    Ok((service.to_owned(), ts))
}
