//! The client of transactional data: begins transactions and snapshots.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use super::snapshot::Snapshot;
use super::transaction::{Begin, Transaction};
use super::{Closed, Endpoints};
use crate::backoff::{Backoffer, budget};
use crate::config::Config;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::key::KeyRange;
use crate::keyspace::KeyMode;
use crate::operation::{Io, Operation};
use crate::rpc::cluster::Cluster;
use crate::time::{Instant, Timestamp};
use crate::txn::lock::resolver::LockResolver;
use crate::why::BackoffKind;

/// A client of TiKV's transactions (client-go: `txnkv.Client`, `KVStore`).
///
/// Cheap to clone; clones share everything but the timeout. Dropping the last one stops
/// whatever it started, as soon as the driver is dropped too; [`close`](Self::close) first waits.
pub struct TransactionClient<D> {
    driver: D,
    shared: Arc<Shared>,
    timeout: Option<Duration>,
}

/// How a transaction is begun.
///
/// ```
/// use tikv_core::TransactionOptions;
///
/// let options = TransactionOptions::optimistic();
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransactionOptions {
    start_ts: Option<Timestamp>,
}

impl TransactionOptions {
    /// Writes are checked for conflicts when the transaction commits.
    pub fn optimistic() -> Self {
        TransactionOptions::default()
    }

    /// Begins at this timestamp instead of a new one. It must come from PD, and not be older than
    /// what garbage collection has left.
    pub fn start_ts(mut self, start_ts: Timestamp) -> Self {
        self.start_ts = Some(start_ts);
        self
    }
}

impl<D: Driver> TransactionClient<D> {
    /// Connects to a cluster through a driver. Applications mostly use what the driver's crate
    /// offers instead.
    ///
    /// # Errors
    ///
    /// No endpoint is valid, or PD did not answer within [`Config::connect_timeout`].
    ///
    /// # Dropping the future
    ///
    /// Nothing was made.
    pub async fn with_driver(driver: D, endpoints: Endpoints, config: Config) -> Result<Self> {
        let timeout = config.connect_timeout;
        let seed = driver.seed();
        let Endpoints { urls, tls } = endpoints;
        let cluster = Arc::new(Cluster::new(urls, tls, KeyMode::Txn, config, seed)?);
        let connecting = cluster.clone();
        driver
            .run(Operation::new("connect", move |io: Io| async move {
                super::connect(&io, &connecting, timeout).await
            }))
            .await?;
        let resolver = Arc::new(LockResolver::new(cluster.clone()));
        let shared = Arc::new(Shared { cluster, resolver });
        Ok(TransactionClient {
            driver,
            shared,
            timeout: None,
        })
    }

    /// A client whose every call fails once it has taken so long. Commits that have begun go on
    /// behind the failed call.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        TransactionClient {
            timeout: Some(timeout),
            ..self.clone()
        }
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    fn deadline(&self) -> Option<Instant> {
        self.timeout.map(|timeout| self.driver.now() + timeout)
    }

    fn check_open(&self) -> Result<()> {
        match self.shared.cluster.background().is_closed() {
            true => Err(Error::Closed),
            false => Ok(()),
        }
    }

    /// Begins an optimistic transaction.
    ///
    /// # Errors
    ///
    /// PD gave no timestamp in time.
    ///
    /// # Dropping the future
    ///
    /// Nothing was begun.
    pub async fn begin(&self) -> Result<Transaction<D>> {
        self.begin_with(TransactionOptions::optimistic()).await
    }

    /// Begins a transaction.
    ///
    /// # Errors
    ///
    /// PD gave no timestamp in time.
    ///
    /// # Dropping the future
    ///
    /// Nothing was begun.
    pub async fn begin_with(&self, options: TransactionOptions) -> Result<Transaction<D>> {
        self.check_open()?;
        let start_ts = match options.start_ts {
            Some(start_ts) => start_ts,
            None => self.current_timestamp().await?,
        };
        Ok(Transaction::new(
            self.driver.clone(),
            Begin {
                shared: self.shared.clone(),
                start_ts,
                timeout: self.timeout,
            },
        ))
    }

    /// A view of the data as it is now.
    ///
    /// # Errors
    ///
    /// PD gave no timestamp in time.
    pub async fn snapshot(&self) -> Result<Snapshot<D>> {
        let version = self.current_timestamp().await?;
        Ok(self.snapshot_at(version))
    }

    /// A view of the data as it was at `version`; [`Timestamp::MAX`] reads whatever is newest,
    /// each key by itself.
    pub fn snapshot_at(&self, version: Timestamp) -> Snapshot<D> {
        Snapshot::new(
            self.driver.clone(),
            self.shared.clone(),
            version,
            self.timeout,
        )
    }

    /// A new timestamp from PD, greater than all that were given out before.
    ///
    /// # Errors
    ///
    /// PD did not answer in time.
    pub async fn current_timestamp(&self) -> Result<Timestamp> {
        self.check_open()?;
        let cluster = self.shared.cluster.clone();
        let deadline = self.deadline();
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::BeginInThePast) {
            let run = Operation::new("begin", move |io: Io| async move {
                let mut backoff = cluster.backoff(budget::TSO_MS, deadline);
                cluster.low_resolution(&io, &mut backoff).await
            });
            return self.driver.run(run).await;
        }
        self.driver
            .run(Operation::new("timestamp", move |io: Io| async move {
                let mut backoff = cluster.backoff(budget::TSO_MS, deadline);
                cluster.timestamp(&io, &mut backoff).await
            }))
            .await
    }

    /// Runs `body` in a transaction and commits it, again and again while it fails by conflicts,
    /// until it commits, `body` fails by itself, or the client's timeout passes.
    ///
    /// `body` may run several times, so what it does besides the transaction should not matter. A
    /// commit of [unknown outcome](Error::is_undetermined) is never repeated. What `body` leaves
    /// running with a clone of the transaction comes too late for the commit.
    ///
    /// # Errors
    ///
    /// What `body` failed with, or the commit.
    ///
    /// # Dropping the future
    ///
    /// A commit that has begun goes on.
    pub async fn transact<T, E, F, Fut>(&self, mut body: F) -> Result<T, E>
    where
        // Not an `AsyncFnMut` of a reference: its future could not be spawned
        // (rust-lang/rust#96865). An `async |txn| { .. }` is such a function all the same.
        F: FnMut(Arc<Transaction<D>>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error> + 'static,
    {
        let deadline = self.deadline();
        let mut backoff = self.shared.cluster.backoff(0, deadline);
        loop {
            let txn = Arc::new(self.begin().await?);
            let failed = match body(txn.clone()).await {
                Ok(output) => match txn.commit_shared().await {
                    Ok(_) => return Ok(output),
                    Err(error) => E::from(error),
                },
                // There is nothing to undo: an optimistic transaction has no locks yet.
                Err(error) => error,
            };
            let cause = (&failed as &dyn Any).downcast_ref::<Error>().cloned();
            // Errors of other types keep to themselves whether they came from a conflict.
            match cause.filter(Error::is_retryable) {
                Some(cause) => backoff = self.pause(backoff, cause).await?,
                None => return Err(failed),
            }
        }
    }

    async fn pause(&self, mut backoff: Backoffer, cause: Error) -> Result<Backoffer> {
        self.driver
            .run(Operation::new("pause", move |io: Io| async move {
                backoff.wait(&io, BackoffKind::TxnLockFast, cause).await?;
                Ok(backoff)
            }))
            .await
    }

    /// Loads the regions of a range into the cache; how many.
    ///
    /// # Errors
    ///
    /// PD did not answer in time.
    pub async fn warm_up(&self, range: impl Into<KeyRange>) -> Result<usize> {
        let cluster = self.shared.cluster.clone();
        let (range, deadline) = (range.into(), self.deadline());
        self.driver
            .run(Operation::new("warm_up", move |io: Io| async move {
                let mut backoff = cluster.backoff(budget::LOCATE_MS, deadline);
                cluster.warm_up(&io, &mut backoff, &range).await
            }))
            .await
    }

    /// Waits until PD and every store have answered.
    ///
    /// # Errors
    ///
    /// They did not within `timeout`.
    pub async fn ready(&self, timeout: Duration) -> Result<()> {
        let cluster = self.shared.cluster.clone();
        self.driver
            .run(Operation::new("ready", move |io: Io| async move {
                let deadline = io.now() + timeout;
                super::ready(&io, &cluster, deadline).await
            }))
            .await
    }

    /// Begins nothing new, waits up to `grace` for commits and roll-backs that go on in the
    /// background, and says what it left.
    pub async fn close(self, grace: Duration) -> Closed {
        super::close(&self.driver, &self.shared.cluster, grace).await
    }
}

impl<D: Clone> Clone for TransactionClient<D> {
    fn clone(&self) -> Self {
        TransactionClient {
            driver: self.driver.clone(),
            shared: self.shared.clone(),
            timeout: self.timeout,
        }
    }
}

impl<D> fmt::Debug for TransactionClient<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = self.shared.cluster.pd().cluster_id();
        f.debug_struct("TransactionClient")
            .field("cluster_id", &cluster)
            .finish_non_exhaustive()
    }
}
