//! The client of raw data.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::shared::deadline;
use super::{Closed, Endpoints};
use crate::config::Config;
use crate::driver::Driver;
use crate::error::Result;
use crate::key::{Key, KeyRange, KvPair, Value};
use crate::keyspace::KeyMode;
use crate::operation::{Io, Operation};
use crate::raw::{Raw, RawOptions, Swap};
use crate::rpc::cluster::Cluster;

/// A client of raw key-value (client-go: `rawkv.Client`).
///
/// Every operation stands by itself; there are no transactions, and a cluster's raw data is not
/// visible to transactions. Cheap to clone.
pub struct RawClient<D> {
    driver: D,
    cluster: Arc<Cluster>,
    raw: Arc<Raw>,
    options: RawOptions,
    timeout: Option<Duration>,
}

impl<D: Driver> RawClient<D> {
    /// Connects to a cluster through a driver. Applications mostly use what the driver's crate
    /// offers instead.
    ///
    /// # Errors
    ///
    /// No endpoint is valid, or PD did not answer within [`Config::connect_timeout`].
    pub async fn with_driver(driver: D, endpoints: Endpoints, config: Config) -> Result<Self> {
        let timeout = config.connect_timeout;
        let seed = driver.seed();
        let Endpoints { urls, tls } = endpoints;
        let cluster = Arc::new(Cluster::new(urls, tls, KeyMode::Raw, config, seed)?);
        let connecting = cluster.clone();
        driver
            .run(Operation::new("connect", move |io: Io| async move {
                super::connect(&io, &connecting, timeout).await
            }))
            .await?;
        let raw = Arc::new(Raw::new(cluster.clone()));
        Ok(RawClient {
            driver,
            cluster,
            raw,
            options: RawOptions::default(),
            timeout: None,
        })
    }

    /// A client of this column family: `default`, `lock` or `write`.
    pub fn with_column_family(&self, name: impl Into<String>) -> Self {
        let mut client = self.clone();
        client.options.column_family = name.into();
        client
    }

    /// A client whose writes are atomic with compare-and-swap of the same keys. All writers of a
    /// key must be, or none.
    pub fn with_atomic(&self) -> Self {
        let mut client = self.clone();
        client.options.atomic = true;
        client
    }

    /// A client whose every call fails once it has taken so long.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        RawClient {
            timeout: Some(timeout),
            ..self.clone()
        }
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    fn options(&self) -> RawOptions {
        RawOptions {
            deadline: deadline(&self.driver, self.timeout),
            ..self.options.clone()
        }
    }

    async fn run<T, F, Fut>(&self, label: &'static str, body: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Io, Arc<Raw>, RawOptions) -> Fut,
        Fut: Future<Output = Result<T>> + Send + 'static,
    {
        let (raw, options) = (self.raw.clone(), self.options());
        self.driver
            .run(Operation::new(label, move |io| body(io, raw, options)))
            .await
    }

    /// The value of a key, `None` if the key is not there. An empty value is a value.
    ///
    /// # Errors
    ///
    /// The region was not available within the budget, or refused.
    ///
    /// # Dropping the future
    ///
    /// Harmless, as for every read.
    pub async fn get(&self, key: impl Into<Key>) -> Result<Option<Bytes>> {
        let key = key.into();
        self.run("raw_get", |io, raw, options| async move {
            raw.get(&io, key, &options).await
        })
        .await
    }

    /// The values of many keys, in the order asked; the same key may be asked for twice.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get); one failure fails all.
    pub async fn batch_get<K: Into<Key>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Bytes>>> {
        let keys: Vec<Key> = keys.into_iter().map(Into::into).collect();
        self.run("raw_batch_get", |io, raw, options| async move {
            let found = raw.batch_get(&io, &keys, &options).await?;
            Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
        })
        .await
    }

    /// Writes a value.
    ///
    /// # Errors
    ///
    /// The region was not available within the budget, or refused. The value may be written all
    /// the same.
    ///
    /// # Dropping the future
    ///
    /// The value may or may not be written.
    pub async fn put(&self, key: impl Into<Key>, value: impl Into<Value>) -> Result<()> {
        self.put_with_ttl(key, value, Duration::ZERO).await
    }

    /// Writes a value that disappears after a time, in whole seconds; zero keeps it for ever. The
    /// cluster must have TTL enabled.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub async fn put_with_ttl(
        &self,
        key: impl Into<Key>,
        value: impl Into<Value>,
        ttl: Duration,
    ) -> Result<()> {
        let (key, value) = (key.into(), value.into());
        self.run("raw_put", |io, raw, options| async move {
            raw.put(&io, key, value, ttl.as_secs(), &options).await
        })
        .await
    }

    /// Writes many values; of several for one key the last wins. Not atomic: each region's part
    /// is written by itself.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put); some may be written after an error.
    pub async fn batch_put<K: Into<Key>, V: Into<Value>>(
        &self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<()> {
        let pairs = pairs
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        self.run("raw_batch_put", |io, raw, options| async move {
            raw.batch_put(&io, pairs, 0, &options).await
        })
        .await
    }

    /// Writes a value if the key holds `previous` at that moment; `None` is a key that is not there,
    /// which an empty value is not. (client-go: `CompareAndSwap`)
    ///
    /// Only atomic writers may change such keys: the client must be one of
    /// [`with_atomic`](Self::with_atomic).
    ///
    /// ```
    /// # async fn example<D: tikv_core::driver::Driver>(
    /// #     raw: tikv_core::RawClient<D>,
    /// # ) -> tikv_core::Result<()> {
    /// let raw = raw.with_atomic();
    /// let swap = raw.compare_and_swap("leader", None, "me").await?;
    /// if !swap.swapped {
    ///     println!("{:?} leads", swap.previous);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - the client is not atomic: nothing was sent;
    /// - [undetermined](crate::Error::is_undetermined): the answer was lost, and whether the value was
    ///   written is not known. A swap is never sent again after that: it might find its own value, or
    ///   happen twice. (client-go sends it again.)
    /// - as [`get`](Self::get).
    ///
    /// # Dropping the future
    ///
    /// The value may or may not be written.
    pub async fn compare_and_swap<V: Into<Value>>(
        &self,
        key: impl Into<Key>,
        previous: Option<V>,
        value: V,
    ) -> Result<Swap> {
        let (key, previous, value) = (key.into(), previous.map(Into::into), value.into());
        self.run("raw_compare_and_swap", |io, raw, options| async move {
            raw.compare_and_swap(&io, key, previous, value, &options)
                .await
        })
        .await
    }

    /// Deletes a key, whether it is there or not.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub async fn delete(&self, key: impl Into<Key>) -> Result<()> {
        let key = key.into();
        self.run("raw_delete", |io, raw, options| async move {
            raw.delete(&io, key, &options).await
        })
        .await
    }

    /// Deletes many keys. Not atomic: each region's part is deleted by itself.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put); some may be deleted after an error.
    pub async fn batch_delete<K: Into<Key>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<()> {
        let keys = keys.into_iter().map(Into::into).collect();
        self.run("raw_batch_delete", |io, raw, options| async move {
            raw.batch_delete(&io, keys, &options).await
        })
        .await
    }

    /// Deletes every key of a range, region by region. Not atomic.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put); a part may be deleted after an error.
    pub async fn delete_range(&self, range: impl Into<KeyRange>) -> Result<()> {
        let range = range.into();
        self.run("raw_delete_range", |io, raw, options| async move {
            raw.delete_range(&io, range, &options).await
        })
        .await
    }

    /// The first rows of a range, `limit` at most; no more than 10240.
    ///
    /// # Errors
    ///
    /// `limit` is too large; else as [`get`](Self::get).
    pub async fn scan(&self, range: impl Into<KeyRange>, limit: u32) -> Result<Vec<KvPair>> {
        self.scan_with(range.into(), limit, false, false).await
    }

    /// The last rows of a range, the last first.
    ///
    /// # Errors
    ///
    /// As [`scan`](Self::scan).
    pub async fn scan_reverse(
        &self,
        range: impl Into<KeyRange>,
        limit: u32,
    ) -> Result<Vec<KvPair>> {
        self.scan_with(range.into(), limit, false, true).await
    }

    /// The first keys of a range.
    ///
    /// # Errors
    ///
    /// As [`scan`](Self::scan).
    pub async fn scan_keys(&self, range: impl Into<KeyRange>, limit: u32) -> Result<Vec<Key>> {
        let rows = self.scan_with(range.into(), limit, true, false).await?;
        Ok(rows.into_iter().map(|row| row.into_parts().0).collect())
    }

    /// The last keys of a range, the last first.
    ///
    /// # Errors
    ///
    /// As [`scan`](Self::scan).
    pub async fn scan_keys_reverse(
        &self,
        range: impl Into<KeyRange>,
        limit: u32,
    ) -> Result<Vec<Key>> {
        let rows = self.scan_with(range.into(), limit, true, true).await?;
        Ok(rows.into_iter().map(|row| row.into_parts().0).collect())
    }

    async fn scan_with(
        &self,
        range: KeyRange,
        limit: u32,
        keys_only: bool,
        reverse: bool,
    ) -> Result<Vec<KvPair>> {
        self.run("raw_scan", |io, raw, options| async move {
            raw.scan(&io, range, limit, keys_only, reverse, &options)
                .await
        })
        .await
    }

    /// Waits until PD and every store have answered.
    ///
    /// # Errors
    ///
    /// They did not within `timeout`.
    pub async fn ready(&self, timeout: Duration) -> Result<()> {
        let cluster = self.cluster.clone();
        self.driver
            .run(Operation::new("ready", move |io: Io| async move {
                let deadline = io.now() + timeout;
                super::ready(&io, &cluster, deadline).await
            }))
            .await
    }

    /// Waits up to `grace` for what goes on in the background, and says what it left.
    pub async fn close(self, grace: Duration) -> Closed {
        super::close(&self.driver, &self.cluster, grace).await
    }
}

impl<D: Clone> Clone for RawClient<D> {
    fn clone(&self) -> Self {
        RawClient {
            driver: self.driver.clone(),
            cluster: self.cluster.clone(),
            raw: self.raw.clone(),
            options: self.options.clone(),
            timeout: self.timeout,
        }
    }
}

impl<D> fmt::Debug for RawClient<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = self.cluster.pd().cluster_id();
        f.debug_struct("RawClient")
            .field("cluster_id", &cluster)
            .finish_non_exhaustive()
    }
}
