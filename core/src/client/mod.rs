//! What applications hold: clients, transactions, snapshots, scans. Everything is generic in the
//! driver, so the same program runs on a real cluster and under simulation.
//!
//! Nothing is decided here: each call makes an operation of the protocol below and has the driver
//! run it.

mod point;
mod raw;
mod scan;
mod shared;
mod snapshot;
mod transaction;
mod transactions;

use std::sync::Arc;
use std::time::Duration;

use crate::backoff::budget;
use crate::driver::Driver;
use crate::error::{DeadlineExceeded, Error, Result};
use crate::flight::until;
use crate::operation::{Io, Operation};
use crate::rpc::cluster::Cluster;
use crate::rpc::probe;
use crate::time::Instant;
use crate::why::{BackoffKind, Why};

pub use raw::RawClient;
pub use scan::Scan;
pub use snapshot::Snapshot;
pub use transaction::{Committed, Savepoint, Transaction};
pub use transactions::{TransactionClient, TransactionOptions};

/// What closing a client left undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// How many background commits and roll-backs had not ended. Their locks are resolved by
    /// whoever meets them.
    pub left: usize,
}

/// Where a client begins to look for its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    urls: Vec<String>,
    tls: bool,
}

impl Endpoints {
    /// The members of PD to begin with, as `host:port` or URLs. With `tls`, every connection is
    /// encrypted.
    pub fn new<E: Into<String>>(urls: impl IntoIterator<Item = E>, tls: bool) -> Self {
        Endpoints {
            urls: urls.into_iter().map(Into::into).collect(),
            tls,
        }
    }
}

/// Asks PD who leads until it says so.
async fn connect(io: &Io, cluster: &Arc<Cluster>, timeout: Duration) -> Result<()> {
    let mut backoff = cluster.backoff(budget::TSO_MS, Some(io.now() + timeout));
    let (mut attempts, mut last) = (0, None);
    loop {
        let refreshed = until(
            io,
            backoff.deadline(),
            Why::Readiness,
            cluster.pd().refresh(io),
        )
        .await;
        match refreshed {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error @ (Error::ClusterIdMismatch { .. } | Error::Closed))) => {
                return Err(error);
            }
            Ok(Err(error)) => {
                attempts += 1;
                last = Some(error.clone());
                backoff.wait(io, BackoffKind::PdRpc, error).await?;
            }
            // Whoever reads this looks for a wrong address first.
            Err(_) => {
                let cause = last.unwrap_or_else(|| cluster.pd().no_answer().into());
                let exceeded = DeadlineExceeded::new(Why::Readiness, attempts, Some(cause));
                return Err(Error::DeadlineExceeded(Box::new(exceeded)));
            }
        }
    }
}

/// Waits until PD and every store have answered.
async fn ready(io: &Io, cluster: &Arc<Cluster>, deadline: Instant) -> Result<()> {
    let mut backoff = cluster.backoff(0, Some(deadline));
    let wait = async {
        loop {
            let found = cluster.pd().stores(io, &mut backoff).await?;
            cluster.stores().update(&found);
            match probe::first_silent(cluster, io).await {
                None => return Ok(()),
                Some(id) => {
                    let cause = Error::Transport(Box::new(cluster.no_answer(id)));
                    backoff.wait(io, BackoffKind::TikvRpc, cause).await?;
                }
            }
        }
    };
    until(io, Some(deadline), Why::Readiness, wait).await?
}

/// Waits for the work behind callers' backs, for `grace` at most.
async fn close<D: Driver>(driver: &D, cluster: &Arc<Cluster>, grace: Duration) -> Closed {
    cluster.background().close();
    let waiting = cluster.clone();
    let idle = Operation::new("close", move |io: Io| async move {
        let deadline = io.now() + grace;
        let _ = until(
            &io,
            Some(deadline),
            Why::CloseGrace,
            waiting.background().idle(),
        )
        .await;
    });
    driver.run(idle).await;
    Closed {
        left: cluster.background().running(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::error::Result;

    fn send<T: Send>(_: T) {}

    /// Every future can be given to a runtime that moves tasks between threads, also where the
    /// driver is not known yet.
    #[allow(dead_code, reason = "it is enough that this compiles")]
    fn futures_are_send<D: Driver>(
        driver: D,
        client: &TransactionClient<D>,
        raw: &RawClient<D>,
        txn: Transaction<D>,
        snapshot: &Snapshot<D>,
        mut scan: Scan<D>,
    ) {
        let endpoints = Endpoints::new(["pd"], false);
        send(TransactionClient::with_driver(
            driver.clone(),
            endpoints.clone(),
            Config::default(),
        ));
        send(RawClient::with_driver(driver, endpoints, Config::default()));
        send(client.begin());
        send(client.snapshot());
        send(client.current_timestamp());
        send(client.warm_up("a".."b"));
        send(client.ready(Duration::ZERO));
        send(client.clone().close(Duration::ZERO));
        send(snapshot.get("k"));
        send(snapshot.batch_get(["k"]));
        send(scan.try_next());
        send(scan.into_vec());
        send(txn.get("k"));
        send(txn.get_for_update("k"));
        send(txn.put("k", "v"));
        send(txn.batch_get(["k"]));
        send(txn.commit());
        send(raw.get("k"));
        send(raw.put("k", "v"));
        send(raw.batch_get(["k"]));
        send(raw.batch_put([("k", "v")]));
        send(raw.batch_delete(["k"]));
        send(raw.delete_range("a".."b"));
        send(raw.scan("a".."b", 1));
        send(async {
            let client = client.clone();
            let moved: Result<()> = client
                .transact(async |txn| {
                    txn.get("k").await?;
                    txn.put("k", "v").await
                })
                .await;
            moved
        });
    }
}
