//! Finds out whether a store answers, and watches one that does not for its return.
//! (client-go: `Store.requestLiveness`, `startHealthCheckLoopIfNeeded`)

use std::sync::Arc;
use std::time::Duration;

use super::cluster::Cluster;
use crate::action::{Endpoint, Rpc};
use crate::command::{Command, HealthCheckRequest, Response, ServingStatus};
use crate::error::TransportError;
use crate::operation::{Io, Operation};
use crate::store::{Liveness, ResolveState, Store};
use crate::why::Why;

/// How long a store may take to say that it lives (client-go: `storeLivenessTimeout`).
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How soon a store that does not answer is asked again. The pause doubles: a store that merely
/// restarts is found again soon.
const WATCH_PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause (client-go: always so long).
const WATCH_PAUSE_MAX: Duration = Duration::from_secs(1);
/// After so many questions PD is asked where the store is.
const PROBES_PER_RECHECK: u32 = 30;

/// Asks a store whether it lives. However many requests fail at once because it does not, it is
/// asked once.
pub(crate) async fn probe(cluster: &Arc<Cluster>, io: &Io, store: &Arc<Store>) -> Liveness {
    let (asked, of) = (cluster.clone(), store.clone());
    cluster
        .probes()
        .join(io, "probe_store", store.id(), |io| async move {
            Ok(ask(&asked, &io, &of).await)
        })
        .await
        .unwrap_or(Liveness::Unknown)
}

async fn ask(cluster: &Cluster, io: &Io, store: &Store) -> Liveness {
    if !cluster.is_resolved(store.id()) {
        return Liveness::Unknown;
    }
    let Some(address) = store.address() else {
        return Liveness::Unreachable;
    };
    let rpc = Rpc {
        endpoint: Endpoint::Store {
            id: store.id(),
            address,
        },
        context: None,
        command: Arc::new(Command::HealthCheck(HealthCheckRequest::default())),
        deadline: io.now() + PROBE_TIMEOUT,
    };
    match io.send(rpc).await {
        Ok(Response::HealthCheck(reply)) => match reply.status() {
            ServingStatus::Serving => Liveness::Reachable,
            ServingStatus::Unknown | ServingStatus::ServiceUnknown => Liveness::Unknown,
            ServingStatus::NotServing => Liveness::Unreachable,
        },
        // Whoever answers at all can be reached.
        Err(TransportError::Status {
            code: GRPC_UNIMPLEMENTED,
            ..
        }) => Liveness::Reachable,
        Ok(_) | Err(_) => Liveness::Unreachable,
    }
}

const GRPC_UNIMPLEMENTED: u32 = 12;

/// The first store that does not answer, if there is one.
pub(crate) async fn first_silent(cluster: &Arc<Cluster>, io: &Io) -> Option<u64> {
    for store in cluster.stores().tikv_stores() {
        let found = probe(cluster, io, &store).await;
        store.set_liveness(found);
        if found != Liveness::Reachable {
            return Some(store.id());
        }
    }
    None
}

/// Asks a store again and again until it answers, or is gone for good.
pub(crate) fn watch(cluster: &Arc<Cluster>, io: &Io, store: Arc<Store>) {
    let cluster = cluster.clone();
    io.spawn(Operation::new("watch_store", |io: Io| async move {
        let mut probes: u32 = 0;
        let mut pause = WATCH_PAUSE_MIN;
        loop {
            io.sleep_until(io.now() + pause, Why::StoreProbe).await;
            pause = (pause * 2).min(WATCH_PAUSE_MAX);
            probes += 1;
            if probes.is_multiple_of(PROBES_PER_RECHECK) {
                cluster.resolve_stores(&io, vec![store.id()]).await;
            }
            if store.resolve_state() == ResolveState::Tombstone {
                return;
            }
            // A store that PD is to be asked about can't be judged; it is asked here, since
            // nothing else may come by.
            if store.resolve_state() == ResolveState::NeedCheck {
                cluster.resolve_stores(&io, vec![store.id()]).await;
            }
            let found = probe(&cluster, &io, &store).await;
            store.set_liveness(found);
            if found == Liveness::Reachable {
                return;
            }
        }
    }));
}
