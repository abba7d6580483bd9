//! What the tests of the driver share: requests as plain operations, and servers that misbehave.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod raw_codec;

use std::sync::Arc;
use std::time::Duration;

use tikv_core::Timestamp;
use tikv_core::driver::{
    Driver, Endpoint, Instant, Io, Operation, Rpc, TransportError, TsoRequest,
};
use tikv_core::wire::{Command, Response};
use tikv_io_mock::cluster::region::StoreId;
use tikv_io_mock::serve::ServedCluster;
use tikv_io_tokio::{IoConfig, TokioDriver};
use tikv_proto::{kvrpcpb, pdpb};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) type Outcome = Result<Response, TransportError>;

pub(crate) async fn serve() -> ServedCluster {
    ServedCluster::builder().stores(3).start().await.unwrap()
}

pub(crate) fn driver() -> TokioDriver {
    TokioDriver::new(IoConfig::default()).unwrap()
}

/// The time `millis` from now.
pub(crate) fn within(driver: &TokioDriver, millis: u64) -> Instant {
    driver.now() + Duration::from_millis(millis)
}

/// A request to the store that leads the only region.
pub(crate) fn to_leader(
    cluster: &ServedCluster,
    command: impl Into<Command>,
    deadline: Instant,
) -> Rpc {
    let (context, store) = cluster.with(|cluster, _| {
        let region = cluster.regions().iter().next().unwrap();
        let store = region.leader.unwrap();
        let peer = region
            .meta
            .peers
            .iter()
            .find(|peer| peer.store_id == store)
            .cloned();
        let context = kvrpcpb::Context {
            region_id: region.meta.id,
            region_epoch: region.meta.region_epoch,
            peer,
            ..Default::default()
        };
        (context, store)
    });
    Rpc {
        endpoint: Endpoint::Store {
            id: store,
            address: address(cluster, store),
        },
        context: Some(Box::new(context)),
        command: Arc::new(command.into()),
        deadline,
    }
}

pub(crate) fn address(cluster: &ServedCluster, store: StoreId) -> Arc<str> {
    let (_, address) = cluster.stores().find(|(id, _)| *id == store).unwrap();
    address.to_string().into()
}

/// A request to a store that knows nothing of regions, at any address.
pub(crate) fn to_address(address: &str, deadline: Instant) -> Rpc {
    Rpc {
        endpoint: Endpoint::Store {
            id: 1,
            address: address.into(),
        },
        context: Some(Box::default()),
        command: Arc::new(raw_get("k")),
        deadline,
    }
}

pub(crate) fn to_pd(url: &str, command: impl Into<Command>, deadline: Instant) -> Rpc {
    Rpc {
        endpoint: Endpoint::Pd { url: url.into() },
        context: None,
        command: Arc::new(command.into()),
        deadline,
    }
}

pub(crate) fn get_members() -> Command {
    Command::GetMembers(pdpb::GetMembersRequest::default())
}

pub(crate) fn raw_get(key: &str) -> Command {
    kvrpcpb::RawGetRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
    .into()
}

pub(crate) fn raw_put(key: &str, value: &str) -> Command {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    kvrpcpb::RawPutRequest {
        key,
        value,
        ..Default::default()
    }
    .into()
}

pub(crate) fn send(rpc: Rpc) -> Operation<Outcome> {
    Operation::new("send", |io: Io| async move { io.send(rpc).await })
}

pub(crate) fn timestamp(
    url: &str,
    deadline: Instant,
) -> Operation<Result<Timestamp, TransportError>> {
    let request = TsoRequest {
        url: url.into(),
        cluster_id: 1,
        deadline,
    };
    Operation::new(
        "timestamp",
        |io: Io| async move { io.timestamp(request).await },
    )
}

/// The value of an answer to a `raw_get`.
pub(crate) fn value(outcome: Outcome) -> Option<String> {
    match outcome {
        Ok(Response::RawGet(answer)) => {
            assert_eq!(answer.region_error, None);
            (!answer.not_found).then(|| String::from_utf8(answer.value.to_vec()).unwrap())
        }
        other => panic!("no answer to a get: {other:?}"),
    }
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("not within {PATIENCE:?}: {what}");
    }
}

/// A server that takes connections and never says a word.
pub(crate) async fn mute() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    (address, task)
}

/// An address at which nobody listens.
pub(crate) async fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}
