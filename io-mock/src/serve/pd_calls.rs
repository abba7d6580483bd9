//! The calls of PD that the client's catalogue does not have, and those of the services beside it:
//! other clients make them, and tools. Called by [`pd`](super::pd) for every path before it looks
//! into the catalogue.
//!
//! Two tables: the path of a call, or of a stream whose requests are answered one by one, and the
//! function of the cluster that answers.

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

/// Answers one request.
pub(super) type Call = fn(At<'_>, Bytes) -> Result<Bytes, Status>;

macro_rules! calls {
    ($(#[$doc:meta])* $name:ident; $($($path:literal),+ => |$at:ident, $request:ident| $answer:expr;)*) => {
        $(#[$doc])*
        pub(super) fn $name(path: &str) -> Option<Call> {
            Some(match path {
                $($($path)|+ => |at, body| reply(at, body, |$at, $request| $answer),)*
                _ => return None,
            })
        }
    };
}

calls! {
    /// The call of a path, if it is one of these.
    find;
    "/pdpb.PD/GetRegion", "/routerpb.Router/GetRegion" => |at, request| at.cluster.pd().get_region(at.member, at.follower_allowed, request);
    "/pdpb.PD/GetPrevRegion", "/routerpb.Router/GetPrevRegion" => |at, request| at.cluster.pd().get_prev_region(at.member, at.follower_allowed, request);
    "/pdpb.PD/GetRegionByID", "/routerpb.Router/GetRegionByID" => |at, request| at.cluster.pd().get_region_by_id(at.member, at.follower_allowed, request);
    "/pdpb.PD/ScanRegions" => |at, request| at.cluster.pd().scan_regions(at.member, at.follower_allowed, request);
    "/pdpb.PD/BatchScanRegions", "/routerpb.Router/BatchScanRegions" => |at, request| at.cluster.pd().batch_scan_regions(at.member, at.follower_allowed, request);
    "/routerpb.Router/GetStore" => |at, request| at.cluster.pd_get_store(at.member, request);
    "/routerpb.Router/GetAllStores" => |at, request| at.cluster.pd_get_all_stores(at.member, request);
    "/pdpb.PD/GetClusterConfig" => |at, request| at.cluster.pd().get_cluster_config(at.member, request);
    "/pdpb.PD/IsBootstrapped" => |at, request| at.cluster.pd().is_bootstrapped(at.member, request);
    "/pdpb.PD/Bootstrap" => |at, request| at.cluster.pd().bootstrap(at.member, request);
    "/pdpb.PD/IsSnapshotRecovering" => |at, request| at.cluster.pd().is_snapshot_recovering(at.member, request);
    "/pdpb.PD/AllocID" => |at, request| at.cluster.pd_mut().alloc_ids(at.member, request);
    "/pdpb.PD/PutStore" => |at, request| at.cluster.pd_put_store(at.now_ms, at.member, request);
    "/pdpb.PD/SplitAndScatterRegions" => |at, request| at.cluster.pd_split_and_scatter_regions(at.now_ms, at.member, request);
    "/pdpb.PD/GetExternalTimestamp" => |at, request| at.cluster.pd().get_external_timestamp(at.member, request);
    "/pdpb.PD/SetExternalTimestamp" => |at, request| at.cluster.pd_mut().set_external_timestamp(at.now_ms, at.member, request);
    "/pdpb.PD/GetGCSafePoint" => |at, request| at.cluster.pd().get_gc_safe_point(at.member, request);
    "/pdpb.PD/UpdateGCSafePoint" => |at, request| at.cluster.pd_mut().update_gc_safe_point(at.member, request);
    "/pdpb.PD/UpdateServiceGCSafePoint" => |at, request| at.cluster.pd_mut().update_service_gc_safe_point(at.now_ms, at.member, request);
    "/pdpb.PD/GetGCSafePointV2" => |at, request| at.cluster.pd().get_gc_safe_point_v2(at.member, request);
    "/pdpb.PD/UpdateGCSafePointV2" => |at, request| at.cluster.pd_mut().update_gc_safe_point_v2(at.member, request);
    "/pdpb.PD/UpdateServiceSafePointV2" => |at, request| at.cluster.pd_mut().update_service_safe_point_v2(at.now_ms, at.member, request);
    "/pdpb.PD/GetAllGCSafePointV2" => |at, request| at.cluster.pd().get_all_gc_safe_points_v2(at.member, request);
    "/pdpb.PD/AdvanceTxnSafePoint" => |at, request| at.cluster.pd_mut().advance_txn_safe_point(at.now_ms, at.member, request);
    "/pdpb.PD/AdvanceGCSafePoint" => |at, request| at.cluster.pd_mut().advance_gc_safe_point(at.member, request);
    "/pdpb.PD/SetGCBarrier" => |at, request| at.cluster.pd_mut().set_gc_barrier(at.now_ms, at.member, request);
    "/pdpb.PD/DeleteGCBarrier" => |at, request| at.cluster.pd_mut().delete_gc_barrier(at.now_ms, at.member, request);
    "/pdpb.PD/SetGlobalGCBarrier" => |at, request| at.cluster.pd_mut().set_global_gc_barrier(at.now_ms, at.member, request);
    "/pdpb.PD/DeleteGlobalGCBarrier" => |at, request| at.cluster.pd_mut().delete_global_gc_barrier(at.now_ms, at.member, request);
    "/pdpb.PD/GetAllKeyspacesGCStates" => |at, request| at.cluster.pd().get_all_keyspaces_gc_states(at.now_ms, at.member, request);
    "/pdpb.PD/StoreGlobalConfig" => |at, request| at.cluster.pd_mut().store_global_config(request);
    "/pdpb.PD/LoadGlobalConfig" => |at, request| at.cluster.pd().load_global_config(request);
    "/keyspacepb.Keyspace/LoadKeyspace" => |at, request| at.cluster.pd().load_keyspace(at.member, request);
    "/keyspacepb.Keyspace/LoadKeyspaceByID" => |at, request| at.cluster.pd().load_keyspace_by_id(at.member, request);
    "/keyspacepb.Keyspace/LookupKeyspace" => |at, request| at.cluster.pd().lookup_keyspace(at.member, request);
    "/keyspacepb.Keyspace/GetAllKeyspaces" => |at, request| at.cluster.pd().get_all_keyspaces(at.member, request);
    "/keyspacepb.Keyspace/UpdateKeyspaceState" => |at, request| at.cluster.pd_mut().update_keyspace_state(at.now_ms, at.member, request);
    "/meta_storagepb.MetaStorage/Get" => |at, request| at.cluster.pd().meta_get(at.member, request);
    "/meta_storagepb.MetaStorage/Put" => |at, request| at.cluster.pd_mut().meta_put(at.member, request);
    "/meta_storagepb.MetaStorage/Delete" => |at, request| at.cluster.pd_mut().meta_delete(at.member, request);
    "/tsopb.TSO/FindGroupByKeyspaceID" => |at, request| at.cluster.pd().find_group_by_keyspace_id(at.member, request);
    "/tsopb.TSO/GetMinTS" => |at, request| at.cluster.pd_mut().tso_service_min_ts(at.now_ms, at.member, request);
    "/resource_manager.ResourceManager/ListResourceGroups" => |at, request| at.cluster.pd().list_resource_groups(at.member, request);
    "/resource_manager.ResourceManager/GetResourceGroup" => |at, request| at.cluster.pd().get_resource_group(at.member, request);
    "/resource_manager.ResourceManager/AddResourceGroup" => |at, request| at.cluster.pd_mut().add_resource_group(at.member, request);
    "/resource_manager.ResourceManager/ModifyResourceGroup" => |at, request| at.cluster.pd_mut().modify_resource_group(at.member, request);
    "/resource_manager.ResourceManager/DeleteResourceGroup" => |at, request| at.cluster.pd_mut().delete_resource_group(at.member, request);
}

calls! {
    /// The stream of a path, if it is one of these.
    stream;
    "/pdpb.PD/Tso" => |at, request| at.cluster.pd_mut().tso(at.now_ms, at.member, request);
    "/tsopb.TSO/Tso" => |at, request| at.cluster.pd_mut().tso_service_tso(at.now_ms, at.member, request);
    "/pdpb.PD/QueryRegion", "/routerpb.Router/QueryRegion" => |at, request| at.cluster.pd().query_region(at.member, request);
    "/resource_manager.ResourceManager/AcquireTokenBuckets" => |at, request| at.cluster.pd_mut().acquire_token_buckets(at.now_ms, at.member, request);
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
