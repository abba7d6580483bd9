//! The calls of PD that the client's catalogue does not have: other clients make them, and tools.
//! Called by [`pd`](super::pd) for every path that is not in the catalogue.
//!
//! One table: the path of a call and the function of the cluster that answers it.

use bytes::Bytes;
use prost::Message;
use tonic::Status;

use super::grpc;
use crate::cluster::Cluster;
use crate::cluster::failure::GrpcError;

/// Where a call arrives.
pub(super) struct At<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) now_ms: u64,
    /// The member of PD, counted from 0.
    pub(super) member: usize,
    /// The client allows a member that does not lead to answer look-ups of regions.
    pub(super) follower_allowed: bool,
}

macro_rules! calls {
    ($($path:literal => |$at:ident, $request:ident| $answer:expr;)*) => {
        /// Answers a call; `None` if PD has none of this path.
        pub(super) fn answer(at: At<'_>, path: &str, body: Bytes) -> Option<Result<Bytes, Status>> {
            Some(match path {
                $($path => reply(at, body, |$at, $request| $answer),)*
                _ => return None,
            })
        }
    };
}

calls! {
    "/pdpb.PD/GetRegion" => |at, request| at.cluster.pd().get_region(at.member, at.follower_allowed, request);
    "/pdpb.PD/GetPrevRegion" => |at, request| at.cluster.pd().get_prev_region(at.member, at.follower_allowed, request);
    "/pdpb.PD/GetRegionByID" => |at, request| at.cluster.pd().get_region_by_id(at.member, at.follower_allowed, request);
    "/pdpb.PD/ScanRegions" => |at, request| at.cluster.pd().scan_regions(at.member, at.follower_allowed, request);
    "/pdpb.PD/BatchScanRegions" => |at, request| at.cluster.pd().batch_scan_regions(at.member, at.follower_allowed, request);
    "/pdpb.PD/GetClusterConfig" => |at, request| at.cluster.pd().get_cluster_config(at.member, request);
    "/pdpb.PD/IsBootstrapped" => |at, request| at.cluster.pd().is_bootstrapped(at.member, request);
    "/pdpb.PD/AllocID" => |at, request| at.cluster.pd_mut().alloc_ids(at.member, request);
    "/pdpb.PD/SplitAndScatterRegions" => |at, request| at.cluster.pd_split_and_scatter_regions(at.now_ms, at.member, request);
    "/pdpb.PD/GetExternalTimestamp" => |at, request| at.cluster.pd().get_external_timestamp(at.member, request);
    "/pdpb.PD/SetExternalTimestamp" => |at, request| at.cluster.pd_mut().set_external_timestamp(at.now_ms, at.member, request);
    "/pdpb.PD/GetGCSafePoint" => |at, request| at.cluster.pd().get_gc_safe_point(at.member, request);
    "/pdpb.PD/UpdateGCSafePoint" => |at, request| at.cluster.pd_mut().update_gc_safe_point(at.member, request);
    "/pdpb.PD/UpdateServiceGCSafePoint" => |at, request| at.cluster.pd_mut().update_service_gc_safe_point(at.now_ms, at.member, request);
    "/pdpb.PD/AdvanceTxnSafePoint" => |at, request| at.cluster.pd_mut().advance_txn_safe_point(at.now_ms, at.member, request);
    "/pdpb.PD/AdvanceGCSafePoint" => |at, request| at.cluster.pd_mut().advance_gc_safe_point(at.member, request);
    "/pdpb.PD/SetGCBarrier" => |at, request| at.cluster.pd_mut().set_gc_barrier(at.now_ms, at.member, request);
    "/pdpb.PD/DeleteGCBarrier" => |at, request| at.cluster.pd_mut().delete_gc_barrier(at.now_ms, at.member, request);
}

fn reply<Q: Message + Default, A: Message>(
    at: At<'_>,
    body: Bytes,
    answer: impl FnOnce(At<'_>, Q) -> Result<A, GrpcError>,
) -> Result<Bytes, Status> {
    let request = Q::decode(body).map_err(grpc::unreadable)?;
    let answer = answer(at, request).map_err(grpc::status)?;
    Ok(answer.encode_to_vec().into())
}
