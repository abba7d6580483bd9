//! A transaction of the public client in a module of WebAssembly that imports nothing: neither a
//! clock nor a socket nor chance could come from anywhere.
//!
//! The driver is the smallest that lets a transaction commit: one region on one store, which
//! agrees to everything.

use std::collections::BTreeSet;
use std::future::{Future, Ready, ready};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use tikv_core::driver::{Action, Driver, Instant, Operation, Reply, Rpc, TransportError};
use tikv_core::wire::{Command, Response};
use tikv_core::{Config, Endpoints, Timestamp, TransactionClient};
use tikv_proto::{metapb, pdpb};

/// The commit timestamp of one transaction; 0 if it did not commit.
#[unsafe(no_mangle)]
pub extern "C" fn commit() -> u64 {
    let mut transaction = pin!(transaction());
    match transaction
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(Ok(ts)) => ts.map_or(0, Timestamp::as_u64),
        Poll::Ready(Err(_)) | Poll::Pending => 0,
    }
}

async fn transaction() -> tikv_core::Result<Option<Timestamp>> {
    let endpoints = Endpoints::new(["pd"], false);
    let client = TransactionClient::with_driver(Agreeable::default(), endpoints, Config::default());
    let client = client.await?;
    let txn = client.begin().await?;
    txn.put("a", "1").await?;
    txn.get("b").await?;
    txn.scan("c"..).into_vec().await?;
    Ok(txn.commit().await?.commit_ts)
}

#[derive(Clone, Default)]
struct Agreeable {
    clock: Arc<AtomicU64>,
}

impl Driver for Agreeable {
    type Run<T: Send + 'static> = Ready<T>;

    fn run<T: Send + 'static>(&self, operation: Operation<T>) -> Ready<T> {
        ready(
            self.turn(operation)
                .expect("every call of this program ends"),
        )
    }

    fn spawn(&self, operation: Operation<()>) {
        self.turn(operation);
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.clock.load(Ordering::Relaxed))
    }

    fn seed(&self) -> u64 {
        7
    }
}

impl Agreeable {
    /// Turns an operation to its end; `None` if it sleeps, which only what keeps house does here.
    fn turn<T>(&self, mut operation: Operation<T>) -> Option<T> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut spawned = Vec::new();
        loop {
            let polled = operation.poll(&mut cx, self.now());
            let mut replies = Vec::new();
            let mut sleeps = BTreeSet::new();
            while let Some((id, action)) = operation.next_action() {
                match action {
                    Action::Send(rpc) => replies.push((id, Reply::Response(answer(&rpc)))),
                    Action::Timestamp(_) => {
                        let ts = Timestamp::new(1, self.clock.fetch_add(1, Ordering::Relaxed));
                        replies.push((id, Reply::Timestamp(Ok(ts))));
                    }
                    Action::Sleep { until, why: _ } => {
                        sleeps.insert(until);
                    }
                    Action::Spawn(child) => spawned.push(child),
                }
            }
            if let Poll::Ready(output) = polled {
                spawned.into_iter().for_each(|child| self.spawn(child));
                return Some(output);
            }
            if replies.is_empty() && spawned.is_empty() {
                return None;
            }
            for (id, reply) in replies {
                operation.complete(id, reply).ok()?;
            }
            spawned.drain(..).for_each(|child| self.spawn(child));
        }
    }
}

fn answer(rpc: &Rpc) -> Result<Response, TransportError> {
    let header = || {
        Some(pdpb::ResponseHeader {
            cluster_id: 1,
            error: None,
        })
    };
    let member = || pdpb::Member {
        client_urls: vec!["http://pd".into()],
        ..Default::default()
    };
    let store = || metapb::Store {
        id: 1,
        address: "store".into(),
        ..Default::default()
    };
    let peer = || metapb::Peer {
        id: 2,
        store_id: 1,
        ..Default::default()
    };
    let region = || metapb::Region {
        id: 3,
        region_epoch: Some(metapb::RegionEpoch {
            conf_ver: 1,
            version: 1,
        }),
        peers: vec![peer()],
        ..Default::default()
    };
    Ok(match &*rpc.command {
        Command::GetMembers(_) => Response::GetMembers(pdpb::GetMembersResponse {
            header: header(),
            leader: Some(Box::new(member())),
            members: vec![member()],
            ..Default::default()
        }),
        Command::GetRegion(_) => Response::GetRegion(pdpb::GetRegionResponse {
            header: header(),
            region: Some(Box::new(region())),
            leader: Some(peer()),
            ..Default::default()
        }),
        Command::GetStore(_) => Response::GetStore(pdpb::GetStoreResponse {
            header: header(),
            store: Some(Box::new(store())),
            ..Default::default()
        }),
        Command::GetAllStores(_) => Response::GetAllStores(pdpb::GetAllStoresResponse {
            header: header(),
            stores: vec![store()],
        }),
        // An empty answer of a store says that all is well.
        other => {
            other
                .decode_response(Default::default())
                .map_err(|error| TransportError::Decode {
                    address: rpc.endpoint.address().clone(),
                    message: error.to_string().into(),
                })?
        }
    })
}
