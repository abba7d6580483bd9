//! A view of the data at one version.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::point::{batch_get, get};
use super::scan::{Scan, Source};
use super::shared::{Shared, deadline};
use crate::driver::Driver;
use crate::error::Result;
use crate::key::{Key, KeyRange};
use crate::time::Timestamp;
use crate::txn::snapshot::{ReadOptions, Reads};

/// A view of the data at one version (client-go: `KVSnapshot`).
///
/// Cheap to clone. Reads of one snapshot may run at the same time; what one learns about locks in
/// the way helps the others.
pub struct Snapshot<D> {
    driver: D,
    reads: Arc<Reads>,
    timeout: Option<Duration>,
}

impl<D: Driver> Snapshot<D> {
    pub(super) fn new(
        driver: D,
        shared: Arc<Shared>,
        version: Timestamp,
        timeout: Option<Duration>,
    ) -> Self {
        let reads = Reads::new(shared.cluster.clone(), shared.resolver.clone(), version);
        Snapshot {
            driver,
            reads: Arc::new(reads),
            timeout,
        }
    }

    /// The version that is read.
    pub fn version(&self) -> Timestamp {
        self.reads.version()
    }

    /// The same view, each read of which fails once it has taken so long.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Snapshot {
            timeout: Some(timeout),
            ..self.clone()
        }
    }

    fn options(&self) -> ReadOptions {
        ReadOptions {
            deadline: deadline(&self.driver, self.timeout),
            ..Default::default()
        }
    }

    /// The value of a key, `None` if it has none.
    ///
    /// # Errors
    ///
    /// The region was not available within the budget, or a lock could not be resolved.
    ///
    /// # Dropping the future
    ///
    /// Harmless, as for every read.
    pub async fn get(&self, key: impl Into<Key>) -> Result<Option<Bytes>> {
        get(&self.driver, &self.reads, key.into(), self.options()).await
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn key_exists(&self, key: impl Into<Key>) -> Result<bool> {
        Ok(self.get(key).await?.is_some())
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
        batch_get(&self.driver, &self.reads, keys, self.options()).await
    }

    /// The rows of a range, in order: a stream that fetches page by page.
    pub fn scan(&self, range: impl Into<KeyRange>) -> Scan<D> {
        let source = Source {
            reads: self.reads.clone(),
            buffer: None,
        };
        Scan::new(self.driver.clone(), source, range.into(), self.timeout)
    }
}

impl<D: Clone> Clone for Snapshot<D> {
    fn clone(&self) -> Self {
        Snapshot {
            driver: self.driver.clone(),
            reads: self.reads.clone(),
            timeout: self.timeout,
        }
    }
}

impl<D> fmt::Debug for Snapshot<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({})", self.reads.version())
    }
}
