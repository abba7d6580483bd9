//! Brings a request of the catalogue to the function of the cluster that answers it.
//!
//! Called by everything that delivers: the simulator, the driver in process, a server on a socket.
//! Deliberately absent: delivery itself, and state of any kind.

use std::sync::Arc;

use tikv_core::Timestamp;
use tikv_core::driver::{Rpc, TransportError, TsoRequest};
use tikv_core::wire::{
    Command, HealthCheckResponse, RegionResponse, Response, ServingStatus, encode_request,
};
use tikv_proto::{errorpb, kvrpcpb, pdpb};

use crate::cluster::Cluster;
use crate::cluster::failure::{GrpcCode, GrpcError};
use crate::cluster::lag::StalledRead;
use crate::cluster::lock_wait::{Answer, Ticket};
use crate::cluster::region::StoreId;
use crate::cluster::region_errors::{deadline_exceeded, stale_command};
use crate::cluster::write_end::{End, WritePoint};
#[cfg(feature = "mutations")]
use crate::mutation::Mutation;
use crate::node::Node;

/// Has a store answer a request that carries its context.
///
/// # Errors
///
/// A failure below the level of replies: the store is down, or dies of the request, or belongs to
/// another cluster, or knows no such request.
pub fn store(
    cluster: &mut Cluster,
    now_ms: u64,
    store: StoreId,
    command: Command,
) -> Result<Response, GrpcError> {
    match serve(cluster, now_ms, store, command, Patience::None)? {
        Answer::Now(response) => Ok(response),
        Answer::Later(_) => Err(GrpcError::new(GrpcCode::Unknown, "nobody may wait")),
    }
}

/// Whether a request may wait for a lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    None,
    Some,
}

type Served = Result<Answer<Response>, GrpcError>;

/// Has a store answer a request that may be refused without being looked at.
fn serve(
    cluster: &mut Cluster,
    now_ms: u64,
    store: StoreId,
    command: Command,
    patience: Patience,
) -> Served {
    if let Some(injected) = injected(cluster, store, &command) {
        return Ok(Answer::Now(injected));
    }
    let label = command.label();
    let answer = ended(cluster, now_ms, store, command, patience)?;
    if let Answer::Now(response) = &answer
        && cluster.config().keep_mistakes
    {
        cluster.note_mistake(now_ms, store, label, &response.encode());
    }
    Ok(answer)
}

/// Has a store answer a request that may be ended in the middle.
fn ended(
    cluster: &mut Cluster,
    now_ms: u64,
    store: StoreId,
    command: Command,
    patience: Patience,
) -> Served {
    let end = is_write(&command).then(|| cluster.take_write_end(store));
    match end.flatten() {
        None => look_at(cluster, now_ms, store, command, patience),
        Some((End::Crash, point)) => crash(cluster, now_ms, store, command, patience, point),
        Some((End::StepDown, point)) => step_down(cluster, now_ms, store, command, patience, point),
    }
}

fn look_at(
    cluster: &mut Cluster,
    now_ms: u64,
    store: StoreId,
    command: Command,
    patience: Patience,
) -> Served {
    match command {
        Command::PessimisticLock(request) if patience == Patience::Some => {
            cluster.end_waits(now_ms);
            cluster.admit(store, request.context.as_deref())?;
            Ok(
                match cluster.begin_pessimistic_lock(now_ms, store, request) {
                    Answer::Now(response) => Answer::Now(Response::PessimisticLock(response)),
                    Answer::Later(ticket) => Answer::Later(ticket),
                },
            )
        }
        other => {
            // A read may meet a replica that is stuck, and has to be there when it is not any more.
            let region = (patience == Patience::Some && cluster.may_stall())
                .then(|| context(&other).map(|context| context.region_id))
                .flatten();
            let again = region.map(|region| (region, other.clone()));
            // Who asked the cluster itself before may have left word of it.
            cluster.take_stalled();
            let answer = answer(cluster, now_ms, store, other)?;
            let stalled = cluster.take_stalled();
            Ok(match again.filter(|_| stalled) {
                Some((region, command)) => {
                    Answer::Later(cluster.park_read(now_ms, store, region, command))
                }
                None => Answer::Now(answer),
            })
        }
    }
}

/// The answer to a read whose peer is not stuck any more. It may have come too late.
fn resume(cluster: &mut Cluster, now_ms: u64, read: StalledRead) -> Result<Response, GrpcError> {
    let limit = context(&read.command).map_or(0, |context| context.max_execution_duration_ms);
    let late = limit != 0 && now_ms.saturating_sub(read.since_ms) > limit;
    let refused = late
        .then(|| refusal(&read.command, deadline_exceeded()))
        .flatten();
    match refused {
        Some(refused) if cluster.is_up(read.store) => Ok(refused),
        _ => answer(cluster, now_ms, read.store, read.command),
    }
}

/// Has a store die of a write.
fn crash(
    cluster: &mut Cluster,
    now_ms: u64,
    store: StoreId,
    command: Command,
    patience: Patience,
    point: WritePoint,
) -> Served {
    let answer = (point != WritePoint::BeforePropose)
        .then(|| look_at(cluster, now_ms, store, command, patience));
    cluster.write_has_ended(store);
    cluster.stop_store(store);
    match (answer, point) {
        (Some(answer), WritePoint::Answered) => answer,
        (_, _) => Err(GrpcError::new(GrpcCode::Unavailable, "connection reset")),
    }
}

/// Has the leader of a region deposed in the middle of a write.
fn step_down(
    cluster: &mut Cluster,
    now_ms: u64,
    store: StoreId,
    command: Command,
    patience: Patience,
    point: WritePoint,
) -> Served {
    let id = context(&command).map_or(0, |context| context.region_id);
    if cluster
        .region(id)
        .is_none_or(|region| region.leader != Some(store))
    {
        cluster.write_has_ended(store);
        return look_at(cluster, now_ms, store, command, patience);
    }
    if point == WritePoint::BeforePropose {
        cluster.write_has_ended(store);
        cluster.depose_leader(id);
        return look_at(cluster, now_ms, store, command, patience);
    }
    let stale = refusal(&command, stale_command());
    let answer = look_at(cluster, now_ms, store, command, patience);
    let has_proposed = cluster.write_has_ended(store);
    cluster.depose_leader(id);
    #[cfg(feature = "mutations")]
    let stale = stale.filter(|_| !crate::mutation::is(Mutation::AnswerBeforeApply));
    match stale {
        Some(stale) if has_proposed && point != WritePoint::Answered => Ok(Answer::Now(stale)),
        _ => answer,
    }
}

/// The answer to a request that a store does not know itself.
fn extended(
    cluster: &Cluster,
    now_ms: u64,
    store: StoreId,
    command: &Command,
) -> Result<Response, GrpcError> {
    let path = command.path();
    if !path.starts_with("/tikvpb.Tikv/") {
        return Err(unimplemented(command));
    }
    let request = encode_request(None, command);
    let answer = cluster.extended_call(now_ms, store, path, &request)?;
    let answer = answer.into_iter().next().unwrap_or_default();
    let unreadable = |error| GrpcError::new(GrpcCode::Unknown, format!("no answer: {error}"));
    command.decode_response(answer).map_err(unreadable)
}

/// The answer that a request gets without being looked at.
fn injected(cluster: &mut Cluster, store: StoreId, command: &Command) -> Option<Response> {
    if !cluster.is_up(store) {
        return None;
    }
    let region = context(command)?.region_id;
    let error = cluster.take_injected(store, region, command.label())?;
    refusal(command, error)
}

/// Whether a request writes to a region.
pub(crate) fn is_write(command: &Command) -> bool {
    use Command::*;
    matches!(
        command,
        Prewrite(_)
            | Commit(_)
            | Cleanup(_)
            | BatchRollback(_)
            | ResolveLock(_)
            | DeleteRange(_)
            | RawPut(_)
            | RawBatchPut(_)
            | RawDelete(_)
            | RawBatchDelete(_)
            | RawDeleteRange(_)
            | RawCompareAndSwap(_)
            | PessimisticLock(_)
            | PessimisticRollback(_)
            | CheckTxnStatus(_)
            | CheckSecondaryLocks(_)
            | TxnHeartBeat(_)
            | Flush(_)
            | PrepareFlashbackToVersion(_)
            | FlashbackToVersion(_)
    )
}

macro_rules! store_calls {
    ($($call:ident => $handler:ident;)*) => {
        fn answer(
            cluster: &mut Cluster,
            now_ms: u64,
            store: StoreId,
            command: Command,
        ) -> Result<Response, GrpcError> {
            cluster.end_waits(now_ms);
            match command {
                $(Command::$call(request) => {
                    cluster.admit(store, request.context.as_deref())?;
                    Ok(Response::$call(cluster.$handler(now_ms, store, request)))
                })*
                Command::HealthCheck(_) => {
                    cluster.admit(store, None)?;
                    let status = ServingStatus::Serving.into();
                    Ok(Response::HealthCheck(HealthCheckResponse { status }))
                }
                // The catalogue may grow; what neither a store nor its extension knows, it says so.
                other => extended(cluster, now_ms, store, &other),
            }
        }
    };
}

store_calls! {
    Get => kv_get;
    Scan => kv_scan;
    Prewrite => kv_prewrite;
    Commit => kv_commit;
    Cleanup => kv_cleanup;
    BatchGet => kv_batch_get;
    BatchRollback => kv_batch_rollback;
    ScanLock => kv_scan_lock;
    ResolveLock => kv_resolve_lock;
    DeleteRange => kv_delete_range;
    RawGet => raw_get;
    RawBatchGet => raw_batch_get;
    RawPut => raw_put;
    RawBatchPut => raw_batch_put;
    RawDelete => raw_delete;
    RawBatchDelete => raw_batch_delete;
    RawScan => raw_scan;
    RawDeleteRange => raw_delete_range;
    RawBatchScan => raw_batch_scan;
    PessimisticLock => kv_pessimistic_lock;
    PessimisticRollback => kv_pessimistic_rollback;
    CheckTxnStatus => kv_check_txn_status;
    TxnHeartBeat => kv_txn_heart_beat;
    CheckSecondaryLocks => kv_check_secondary_locks;
    Flush => kv_flush;
    BufferBatchGet => kv_buffer_batch_get;
    GetHealthFeedback => get_health_feedback;
    BroadcastTxnStatus => broadcast_txn_status;
    RawGetKeyTtl => raw_get_key_ttl;
    RawCompareAndSwap => raw_compare_and_swap;
    RawChecksum => raw_checksum;
    UnsafeDestroyRange => unsafe_destroy_range;
    SplitRegion => split_region;
    MvccGetByKey => mvcc_get_by_key;
    MvccGetByStartTs => mvcc_get_by_start_ts;
    Coprocessor => coprocessor;
    RawCoprocessor => raw_coprocessor;
    PrepareFlashbackToVersion => kv_prepare_flashback_to_version;
    FlashbackToVersion => kv_flashback_to_version;
    GetLockWaitInfo => get_lock_wait_info;
}

/// Has a store answer a request, or have it wait, for a lock or for a replica, if it allows that. Whoever calls this
/// also calls [`take_woken`]; [`store`] is for those who can't let a request wait.
///
/// # Errors
///
/// As for [`store`].
pub fn begin(
    cluster: &mut Cluster,
    now_ms: u64,
    id: StoreId,
    command: Command,
) -> Result<Answer<Response>, GrpcError> {
    serve(cluster, now_ms, id, command, Patience::Some)
}

/// Takes the answers of requests that have stopped waiting. To be called after every request, and
/// when [`Cluster::next_wake_ms`] has come.
pub fn take_woken(
    cluster: &mut Cluster,
    now_ms: u64,
) -> Vec<(Ticket, Result<Response, GrpcError>)> {
    let woken = cluster.take_woken(now_ms).into_iter();
    let mut answers: Vec<_> = woken
        .map(|(ticket, answer)| (ticket, answer.map(Response::PessimisticLock)))
        .collect();
    for read in cluster.take_ready_reads() {
        let ticket = read.ticket;
        answers.push((ticket, resume(cluster, now_ms, read)));
    }
    answers
}

/// Whether a client may have region look-ups answered by a member that does not lead. The clients
/// here do not ask for it.
const FOLLOWER_ALLOWED: bool = false;

/// Has a member of PD, counted from 0, answer a request.
///
/// # Errors
///
/// A failure below the level of replies: the member does not lead, belongs to another cluster, or
/// knows no such request.
pub fn pd(
    cluster: &mut Cluster,
    now_ms: u64,
    member: usize,
    command: Command,
) -> Result<Response, GrpcError> {
    // Whom to ask anybody may ask as often as needed.
    if !matches!(command, Command::GetMembers(_) | Command::GetClusterInfo(_)) {
        cluster.pd_mut().check_rate()?;
    }
    Ok(match command {
        Command::GetMembers(request) => {
            Response::GetMembers(cluster.pd().get_members(member, request)?)
        }
        Command::GetClusterInfo(request) => {
            Response::GetClusterInfo(cluster.pd().get_cluster_info(member, request)?)
        }
        Command::GetRegion(request) => {
            Response::GetRegion(cluster.pd().get_region(member, FOLLOWER_ALLOWED, request)?)
        }
        Command::GetPrevRegion(request) => {
            let pd = cluster.pd();
            Response::GetPrevRegion(pd.get_prev_region(member, FOLLOWER_ALLOWED, request)?)
        }
        Command::GetRegionById(request) => {
            let pd = cluster.pd();
            Response::GetRegionById(pd.get_region_by_id(member, FOLLOWER_ALLOWED, request)?)
        }
        Command::BatchScanRegions(request) => {
            let pd = cluster.pd();
            Response::BatchScanRegions(pd.batch_scan_regions(member, FOLLOWER_ALLOWED, request)?)
        }
        Command::GetStore(request) => Response::GetStore(cluster.pd_get_store(member, request)?),
        Command::GetAllStores(request) => {
            Response::GetAllStores(cluster.pd_get_all_stores(member, request)?)
        }
        Command::ScatterRegion(request) => {
            Response::ScatterRegion(cluster.pd_scatter_region(now_ms, member, request)?)
        }
        Command::SplitRegions(request) => {
            Response::SplitRegions(cluster.pd_split_regions(now_ms, member, request)?)
        }
        Command::GetOperator(request) => {
            Response::GetOperator(cluster.pd().get_operator(now_ms, member, request)?)
        }
        Command::GetMinTs(request) => {
            Response::GetMinTs(cluster.pd_mut().get_min_ts(now_ms, member, request)?)
        }
        Command::GetGcState(request) => {
            Response::GetGcState(cluster.pd().get_gc_state(now_ms, member, request)?)
        }
        other => return Err(unimplemented(&other)),
    })
}

/// The request of an action, as it goes over the wire: its context in its body.
pub fn whole(rpc: &Rpc) -> Command {
    let mut command = Command::clone(&rpc.command);
    if let Some(context) = &rpc.context {
        command.set_context(context.clone());
    }
    command
}

/// Has a node answer a request that carries its context, or have it wait.
pub(crate) fn call(
    cluster: &mut Cluster,
    now_ms: u64,
    node: Node,
    command: Command,
    address: &Arc<str>,
) -> Result<Answer<Response>, TransportError> {
    let answer = match node {
        Node::Store(id) => begin(cluster, now_ms, id, command),
        Node::Pd(member) => pd(cluster, now_ms, member, command).map(Answer::Now),
    };
    answer.map_err(|error| status(address, error))
}

/// Has a member of PD answer a wish for `count` timestamps; the last of them.
pub(crate) fn timestamp(
    cluster: &mut Cluster,
    now_ms: u64,
    node: Node,
    request: &TsoRequest,
    count: u32,
) -> Result<Timestamp, TransportError> {
    let wire = pdpb::TsoRequest {
        header: Some(pdpb::RequestHeader {
            cluster_id: request.cluster_id,
            ..Default::default()
        }),
        count,
        ..Default::default()
    };
    let answer = match node {
        Node::Pd(member) => cluster.pd_mut().tso(now_ms, member, wire),
        Node::Store(_) => Err(GrpcError::new(
            GrpcCode::Unimplemented,
            "no such service: pdpb.PD",
        )),
    };
    let reply = answer.map_err(|error| status(&request.url, error))?;
    let ts = reply.timestamp.unwrap_or_default();
    // The oracle's parts are never negative.
    Ok(Timestamp::new(ts.physical as u64, ts.logical as u64))
}

fn unimplemented(command: &Command) -> GrpcError {
    GrpcError::new(
        GrpcCode::Unimplemented,
        format!("unknown method {}", command.path()),
    )
}

/// A failure below the level of replies, as a client meets it.
pub fn status(address: &Arc<str>, error: GrpcError) -> TransportError {
    let code = match error.code {
        GrpcCode::Unknown => 2,
        GrpcCode::InvalidArgument => 3,
        GrpcCode::NotFound => 5,
        GrpcCode::ResourceExhausted => 8,
        GrpcCode::FailedPrecondition => 9,
        GrpcCode::OutOfRange => 11,
        GrpcCode::Unimplemented => 12,
        GrpcCode::Unavailable => 14,
    };
    TransportError::Status {
        address: address.clone(),
        code,
        message: error.message.into(),
    }
}

macro_rules! store_messages {
    ($($call:ident)*) => {
        /// The context that a request to a store carries.
        pub fn context(command: &Command) -> Option<&kvrpcpb::Context> {
            match command {
                $(Command::$call(request) => request.context.as_deref(),)*
                // Requests to PD, which have none.
                _ => None,
            }
        }

        /// The answer to a request that says only what is wrong with its region.
        pub(crate) fn refusal(command: &Command, error: errorpb::Error) -> Option<Response> {
            Some(match command {
                $(Command::$call(_) => {
                    Response::$call(RegionResponse::from_region_error(error))
                })*
                _ => return None,
            })
        }

        /// The region error that a store's answer carries, if it does.
        pub fn region_error(response: &Response) -> Option<&errorpb::Error> {
            match response {
                $(Response::$call(response) => response.region_error.as_deref(),)*
                // Answers of PD, which have none.
                _ => None,
            }
        }
    };
}

store_messages! {
    Get Scan Prewrite Commit Cleanup BatchGet BatchRollback ScanLock ResolveLock DeleteRange RawGet
    RawBatchGet RawPut RawBatchPut RawDelete RawBatchDelete RawScan RawDeleteRange RawBatchScan
    Coprocessor PessimisticLock PessimisticRollback CheckTxnStatus TxnHeartBeat CheckSecondaryLocks
    RawCoprocessor FlashbackToVersion PrepareFlashbackToVersion Flush BufferBatchGet
    GetHealthFeedback RawGetKeyTtl RawCompareAndSwap RawChecksum UnsafeDestroyRange SplitRegion
    MvccGetByKey MvccGetByStartTs GetLockWaitInfo
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Config;
    use tikv_core::driver::{Endpoint, Instant};

    fn ask(node: Node, command: Command) -> Result<Response, TransportError> {
        let mut cluster = Cluster::new(Config::default(), 1);
        let endpoint = Endpoint::Store {
            id: 1,
            address: "s1".into(),
        };
        let deadline = Instant::FAR_FUTURE;
        let request = Rpc {
            endpoint,
            context: None,
            command: Arc::new(command),
            deadline,
        };
        let address = request.endpoint.address();
        match call(&mut cluster, 1, node, whole(&request), address)? {
            Answer::Now(response) => Ok(response),
            Answer::Later(_) => panic!("there is no lock to wait for"),
        }
    }

    #[test]
    fn requests_reach_their_handler() {
        let get = kvrpcpb::RawGetRequest::default().into();
        let answer = ask(Node::Store(1), get).unwrap();
        let error = region_error(&answer).expect("the request names no peer");
        assert!(error.store_not_match.is_some(), "{error:?}");
        let members = Command::GetMembers(Default::default());
        assert!(matches!(
            ask(Node::Pd(0), members),
            Ok(Response::GetMembers(_))
        ));
    }

    #[test]
    fn what_a_node_does_not_know_is_a_status() {
        for (node, command) in [
            (Node::Store(1), Command::GetMembers(Default::default())),
            (Node::Store(1), Command::DispatchMppTask(Default::default())),
            (Node::Pd(0), kvrpcpb::GetRequest::default().into()),
        ] {
            let error = ask(node, command).unwrap_err();
            assert!(
                matches!(error, TransportError::Status { code: 12, .. }),
                "{error:?}"
            );
        }
    }
}
