//! The older requests about safe points, answered from the same state.

use tikv_proto::pdpb::{
    ErrorType, GcSafePointV2, GetAllGcSafePointV2Request, GetAllGcSafePointV2Response,
    GetGcSafePointRequest, GetGcSafePointResponse, GetGcSafePointV2Request,
    GetGcSafePointV2Response, UpdateGcSafePointRequest, UpdateGcSafePointResponse,
    UpdateGcSafePointV2Request, UpdateGcSafePointV2Response, UpdateServiceGcSafePointRequest,
    UpdateServiceGcSafePointResponse, UpdateServiceSafePointV2Request,
    UpdateServiceSafePointV2Response, gc_safe_point_v2, get_gc_safe_point_v2_request,
    update_gc_safe_point_v2_request, update_service_safe_point_v2_request,
};

use super::Pd;
use super::gc::{Barrier, GC_WORKER, NULL_KEYSPACE};
use super::keyspaces::{gc_is_own, is_enabled};
use crate::cluster::failure::GrpcError;

/// The service whose barrier holds for all keyspaces.
const NATIVE_BR: &str = "native_br";

/// What an older client is told of the services that hold the safe point back.
struct Least {
    service: String,
    ts: u64,
}

impl Pd {
    /// The point below which versions are removed.
    pub fn get_gc_safe_point(
        &self,
        member: usize,
        request: GetGcSafePointRequest,
    ) -> Result<GetGcSafePointResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        Ok(GetGcSafePointResponse {
            header: self.header(),
            safe_point: self.gc.shared.gc_safe_point,
        })
    }

    /// Moves that point. A smaller target changes nothing and is no error.
    pub fn update_gc_safe_point(
        &mut self,
        member: usize,
        request: UpdateGcSafePointRequest,
    ) -> Result<UpdateGcSafePointResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        Ok(match self.raise_gc(NULL_KEYSPACE, request.safe_point) {
            Ok(new_safe_point) => UpdateGcSafePointResponse {
                header: self.header(),
                new_safe_point,
            },
            Err(message) => UpdateGcSafePointResponse {
                header: self.error_header(ErrorType::Unknown, message),
                ..UpdateGcSafePointResponse::default()
            },
        })
    }

    fn raise_gc(&mut self, id: u32, target: u64) -> Result<u64, String> {
        let keyspace = self.gc_scope_of(id, true)?;
        let now = self.gc.of_mut(keyspace).gc_safe_point;
        if target < now {
            return Ok(now);
        }
        self.gc.advance_gc(keyspace, target).map(|(_, new)| new)
    }

    /// Holds the safe points back, or moves them if the service is the one that collects. Too old
    /// is no error: the answer says where the safe point is.
    pub fn update_service_gc_safe_point(
        &mut self,
        now_ms: u64,
        member: usize,
        request: UpdateServiceGcSafePointRequest,
    ) -> Result<UpdateServiceGcSafePointResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let id = String::from_utf8_lossy(&request.service_id);
        let least = self.hold(now_ms, NULL_KEYSPACE, &id, request.safe_point, request.ttl);
        Ok(match least {
            Ok(least) => UpdateServiceGcSafePointResponse {
                header: self.header(),
                service_id: least.service.into(),
                ttl: i64::MAX,
                min_safe_point: least.ts,
            },
            Err(message) => UpdateServiceGcSafePointResponse {
                header: self.error_header(ErrorType::Unknown, message),
                ..UpdateServiceGcSafePointResponse::default()
            },
        })
    }

    /// The services that hold the shared point for transactions back: each with where it does so,
    /// and until when in seconds since the Unix epoch.
    pub fn service_safe_points(&self) -> Vec<(String, u64, i64)> {
        let barriers = self.gc.shared.barriers.iter();
        let until_s = |at_ms: Option<u64>| match at_ms {
            Some(at_ms) => i64::try_from(at_ms.div_ceil(1_000)).unwrap_or(i64::MAX),
            None => i64::MAX,
        };
        barriers
            .map(|(id, barrier)| (id.clone(), barrier.ts, until_s(barrier.expires_at_ms)))
            .collect()
    }

    /// Forgets what a service holds back.
    pub fn forget_service_safe_point(&mut self, service: &str) {
        self.gc.shared.barriers.remove(service);
    }

    fn hold(
        &mut self,
        now_ms: u64,
        id: u32,
        service: &str,
        ts: u64,
        ttl_seconds: i64,
    ) -> Result<Least, String> {
        let keyspace = self.gc_scope_of(id, false)?;
        let worker = |ts| Least {
            service: GC_WORKER.to_owned(),
            ts,
        };
        if service == GC_WORKER {
            if ttl_seconds != i64::MAX {
                return Err("TTL of gc_worker's service safe point must be infinity".to_owned());
            }
            let advance = self.gc.advance_txn(now_ms, keyspace, ts)?;
            return Ok(match advance.blocker {
                Some((service, _)) if advance.new != ts => Least {
                    service,
                    ts: advance.new,
                },
                _ => worker(advance.new),
            });
        }
        let barrier = Barrier::new(now_ms, ts, ttl_seconds);
        if service == NATIVE_BR && keyspace == NULL_KEYSPACE {
            let bound = self.gc.txn_safe_point_max();
            if ttl_seconds <= 0 {
                self.gc.global.remove(service);
            } else if ts >= bound {
                self.put_global_barrier(service, barrier)?;
            }
            return Ok(worker(bound));
        }
        let bound = self.gc.of_mut(keyspace).txn_safe_point;
        if service.is_empty() {
            return Err("invalid argument, barrierID: ".to_owned());
        }
        if ttl_seconds <= 0 {
            self.gc.of_mut(keyspace).barriers.remove(service);
        } else if ts >= bound {
            self.put_barrier(keyspace, service, barrier)?;
        }
        Ok(worker(bound))
    }

    /// The point for versions of a keyspace that collects for itself.
    pub fn get_gc_safe_point_v2(
        &self,
        member: usize,
        request: GetGcSafePointV2Request,
    ) -> Result<GetGcSafePointV2Response, GrpcError> {
        use get_gc_safe_point_v2_request::Keyspace::{KeyspaceId, KeyspaceIdentity};
        self.check(member, request.header.as_ref())?;
        let id = match request.keyspace {
            Some(KeyspaceId(id)) => id,
            Some(KeyspaceIdentity(identity)) => identity.keyspace_id,
            None => 0,
        };
        Ok(match self.gc_scope_of(id, true) {
            Ok(keyspace) => GetGcSafePointV2Response {
                header: self.header(),
                safe_point: self.gc.of(keyspace).map_or(0, |state| state.gc_safe_point),
            },
            Err(message) => GetGcSafePointV2Response {
                header: self.error_header(ErrorType::Unknown, message),
                ..GetGcSafePointV2Response::default()
            },
        })
    }

    /// Moves the point for versions of a keyspace that collects for itself.
    pub fn update_gc_safe_point_v2(
        &mut self,
        member: usize,
        request: UpdateGcSafePointV2Request,
    ) -> Result<UpdateGcSafePointV2Response, GrpcError> {
        use update_gc_safe_point_v2_request::Keyspace::{KeyspaceId, KeyspaceIdentity};
        self.check(member, request.header.as_ref())?;
        let id = match request.keyspace {
            Some(KeyspaceId(id)) => id,
            Some(KeyspaceIdentity(identity)) => identity.keyspace_id,
            None => 0,
        };
        Ok(match self.raise_gc(id, request.safe_point) {
            Ok(new_safe_point) => UpdateGcSafePointV2Response {
                header: self.header(),
                new_safe_point,
            },
            Err(message) => UpdateGcSafePointV2Response {
                header: self.error_header(ErrorType::Unknown, message),
                ..UpdateGcSafePointV2Response::default()
            },
        })
    }

    /// Holds the safe points of a keyspace back, or moves them.
    pub fn update_service_safe_point_v2(
        &mut self,
        now_ms: u64,
        member: usize,
        request: UpdateServiceSafePointV2Request,
    ) -> Result<UpdateServiceSafePointV2Response, GrpcError> {
        use update_service_safe_point_v2_request::Keyspace::{KeyspaceId, KeyspaceIdentity};
        self.check(member, request.header.as_ref())?;
        let keyspace = match request.keyspace {
            Some(KeyspaceId(id)) => id,
            Some(KeyspaceIdentity(identity)) => identity.keyspace_id,
            None => 0,
        };
        let service = String::from_utf8_lossy(&request.service_id);
        let least = self.hold(now_ms, keyspace, &service, request.safe_point, request.ttl);
        Ok(match least {
            Ok(least) => UpdateServiceSafePointV2Response {
                header: self.header(),
                service_id: least.service.into(),
                ttl: i64::MAX,
                min_safe_point: least.ts,
            },
            Err(message) => UpdateServiceSafePointV2Response {
                header: self.error_header(ErrorType::Unknown, message),
                ..UpdateServiceSafePointV2Response::default()
            },
        })
    }

    /// The points for versions of all keyspaces that collect for themselves.
    pub fn get_all_gc_safe_points_v2(
        &self,
        member: usize,
        request: GetAllGcSafePointV2Request,
    ) -> Result<GetAllGcSafePointV2Response, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let gc_safe_points = self
            .keyspaces()
            .filter(|(_, meta)| is_enabled(meta) && gc_is_own(meta))
            .map(|(id, _)| GcSafePointV2 {
                keyspace: Some(gc_safe_point_v2::Keyspace::KeyspaceId(id)),
                gc_safe_point: self.gc.of(id).map_or(0, |state| state.gc_safe_point),
            })
            .collect();
        Ok(GetAllGcSafePointV2Response {
            header: self.header(),
            gc_safe_points,
            revision: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::pd::testing::{header, message, pd};

    fn service(pd: &mut Pd, id: &'static str, safe_point: u64, ttl: i64) -> (String, u64) {
        let request = UpdateServiceGcSafePointRequest {
            header: header(),
            service_id: id.into(),
            ttl,
            safe_point,
        };
        let answer = pd.update_service_gc_safe_point(1, 0, request).unwrap();
        let service = String::from_utf8(answer.service_id.to_vec()).unwrap();
        (service, answer.min_safe_point)
    }

    #[test]
    fn services_hold_the_worker_back() {
        let mut pd = pd();
        let worker = |ts| (GC_WORKER.to_owned(), ts);
        assert_eq!(service(&mut pd, GC_WORKER, 10, i64::MAX), worker(10));
        assert_eq!(service(&mut pd, "cdc", 20, 60), worker(10));
        assert_eq!(
            service(&mut pd, GC_WORKER, 30, i64::MAX),
            ("cdc".to_owned(), 20)
        );
        assert_eq!(
            service(&mut pd, "late", 15, 60),
            worker(20),
            "too old is no error"
        );
        assert_eq!(service(&mut pd, "cdc", 0, 0), worker(20));
        assert_eq!(service(&mut pd, NATIVE_BR, 25, 60), worker(20));
        assert_eq!(
            service(&mut pd, GC_WORKER, 30, i64::MAX),
            (NATIVE_BR.to_owned(), 25)
        );
        assert_eq!(service(&mut pd, GC_WORKER, 30, 5), (String::new(), 0));
    }

    #[test]
    fn the_older_update_never_goes_back_and_stays_behind() {
        let mut pd = pd();
        pd.gc_mut().txn_safe_point = 20;
        let mut update = |safe_point| {
            let request = UpdateGcSafePointRequest {
                header: header(),
                safe_point,
            };
            let answer = pd.update_gc_safe_point(0, request).unwrap();
            (answer.new_safe_point, !message(&answer.header).is_empty())
        };
        assert_eq!(update(15), (15, false));
        assert_eq!(update(0), (15, false));
        assert_eq!(update(21), (0, true));
        assert_eq!(update(20), (20, false));
    }
}
