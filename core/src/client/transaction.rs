//! A transaction, as applications hold it.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::point::{batch_get, get};
use super::scan::{Scan, Source};
use super::shared::{Shared, deadline};
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::flight::detached;
use crate::key::{Key, KeyRange, Value};
use crate::operation::{Io, Operation};
use crate::time::{Instant, Timestamp};
use crate::txn::buffer::merge::{Overlay, overlay, overlay_batch};
use crate::txn::buffer::{Checkpoint, FlagOp, MemBuffer};
use crate::txn::commit::{CommitInput, Mutations, commit};
use crate::txn::snapshot::{ReadOptions, Reads};

/// An optimistic transaction (client-go: `KVTxn`).
///
/// Reads see the data as it was when the transaction began, and its own writes. Writes stay in
/// memory until [`commit`](Self::commit), which fails if another transaction has committed a
/// write to one of the keys since. Reads of one transaction may run at the same time.
///
/// # Dropping
///
/// An open transaction that is dropped has written nothing and leaves nothing behind.
#[must_use = "a transaction that is not committed writes nothing"]
pub struct Transaction<D> {
    driver: D,
    shared: Arc<Shared>,
    reads: Arc<Reads>,
    buffer: Arc<Mutex<MemBuffer>>,
    began: Instant,
    timeout: Mutex<Option<Duration>>,
    ended: AtomicBool,
}

/// What a transaction is begun with.
pub(super) struct Begin {
    pub(super) shared: Arc<Shared>,
    pub(super) start_ts: Timestamp,
    pub(super) timeout: Option<Duration>,
}

/// What came of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// When it was committed; `None` if there was nothing to write.
    pub commit_ts: Option<Timestamp>,
}

/// A point in a transaction to go back to.
#[derive(Clone, Copy, Debug)]
pub struct Savepoint(Checkpoint);

impl<D: Driver> Transaction<D> {
    pub(super) fn new(driver: D, begin: Begin) -> Self {
        let Begin {
            shared,
            start_ts,
            timeout,
        } = begin;
        let mut buffer = MemBuffer::new();
        let config = shared.cluster.config();
        buffer.set_limits(config.max_entry_bytes, config.max_transaction_bytes);
        let reads = Reads::new(shared.cluster.clone(), shared.resolver.clone(), start_ts);
        Transaction {
            began: driver.now(),
            driver,
            shared,
            reads: Arc::new(reads),
            buffer: Arc::new(Mutex::new(buffer)),
            timeout: Mutex::new(timeout),
            ended: AtomicBool::new(false),
        }
    }

    /// The version it reads, and by which it is known to others.
    pub fn start_timestamp(&self) -> Timestamp {
        self.reads.version()
    }

    /// Every call from now on fails once it has taken so long.
    pub fn set_timeout(&self, timeout: Duration) {
        *self.timeout.lock().unwrap_or_else(PoisonError::into_inner) = Some(timeout);
    }

    fn deadline(&self) -> Option<Instant> {
        let timeout = *self.timeout.lock().unwrap_or_else(PoisonError::into_inner);
        deadline(&self.driver, timeout)
    }

    fn options(&self) -> ReadOptions {
        ReadOptions {
            deadline: self.deadline(),
            ..Default::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, MemBuffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writes in memory. For builders of databases: nothing here locks or sends by itself.
    ///
    /// Held, it keeps every other call of this transaction waiting; do not hold it across an
    /// `await`.
    pub fn buffer(&self) -> impl DerefMut<Target = MemBuffer> + '_ {
        BufferGuard(self.lock())
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
        let key = key.into();
        let buffered = self.lock().get(&key)?;
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::BlindToOwnWrites) {
            return get(&self.driver, &self.reads, key, self.options()).await;
        }
        match overlay(buffered) {
            Overlay::Value(value) => Ok(Some(value)),
            Overlay::Deleted => Ok(None),
            Overlay::Unknown => get(&self.driver, &self.reads, key, self.options()).await,
        }
    }

    /// The value of a key that this transaction is about to decide by: the commit fails if
    /// another one writes the key in the meantime, even if this one does not.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn get_for_update(&self, key: impl Into<Key>) -> Result<Option<Bytes>> {
        let key = key.into();
        self.lock_keys([&key]).await?;
        self.get(key).await
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
        let buffered = self.lock().batch_get(&keys)?;
        let (verdicts, ask) = overlay_batch(&keys, buffered);
        let asked = batch_get(&self.driver, &self.reads, ask.clone(), self.options()).await?;
        let found: std::collections::BTreeMap<Key, Option<Bytes>> =
            ask.into_iter().zip(asked).collect();
        let visible = |(key, verdict)| match verdict {
            Overlay::Value(value) => Some(value),
            Overlay::Deleted => None,
            Overlay::Unknown => found.get(key).cloned().flatten(),
        };
        Ok(keys.iter().zip(verdicts).map(visible).collect())
    }

    /// The rows of a range, in order: a stream that fetches page by page. Writes made while it
    /// runs show where it has not been yet.
    pub fn scan(&self, range: impl Into<KeyRange>) -> Scan<D> {
        let source = Source {
            reads: self.reads.clone(),
            buffer: Some(self.buffer.clone()),
        };
        let timeout = *self.timeout.lock().unwrap_or_else(PoisonError::into_inner);
        Scan::new(self.driver.clone(), source, range.into(), timeout)
    }

    /// Writes a value.
    ///
    /// # Errors
    ///
    /// The value is empty, or too large; the transaction is too large, or has ended.
    pub async fn put(&self, key: impl Into<Key>, value: impl Into<Value>) -> Result<()> {
        let (key, value) = (key.into(), value.into());
        self.write(|buffer| buffer.set_shared(&key, value.as_bytes(), &[]))
    }

    /// Writes a value for a key that must not have one; the commit fails if it does.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put); [`Error::KeyExists`] here if the transaction wrote the key itself,
    /// else by the commit.
    pub async fn insert(&self, key: impl Into<Key>, value: impl Into<Value>) -> Result<()> {
        let (key, value) = (key.into(), value.into());
        self.write(|buffer| {
            match overlay(buffer.get(&key)?) {
                Overlay::Value(_) => Err(Error::KeyExists { key }),
                // Whatever the cluster has of the key, this transaction has deleted it.
                Overlay::Deleted => buffer.set_shared(&key, value.as_bytes(), &[]),
                Overlay::Unknown => {
                    let ops = [FlagOp::SetPresumeKeyNotExists];
                    buffer.set_shared(&key, value.as_bytes(), &ops)
                }
            }
        })
    }

    /// Deletes a key, whether it has a value or not.
    ///
    /// # Errors
    ///
    /// The transaction is too large, or has ended.
    pub async fn delete(&self, key: impl Into<Key>) -> Result<()> {
        let key = key.into();
        self.write(|buffer| buffer.delete(&key))
    }

    /// Makes the commit fail if another transaction writes one of these keys in the meantime.
    ///
    /// # Errors
    ///
    /// A key is too large, or the transaction has ended.
    pub async fn lock_keys<K: Into<Key>>(&self, keys: impl IntoIterator<Item = K>) -> Result<()> {
        let keys: Vec<Key> = keys.into_iter().map(Into::into).collect();
        self.write(|buffer| {
            let mut lock = |key: &Key| buffer.update_flags(key, &[FlagOp::SetKeyLocked]);
            keys.iter().try_for_each(&mut lock)
        })
    }

    fn write(&self, write: impl FnOnce(&mut MemBuffer) -> Result<()>) -> Result<()> {
        if self.ended.load(Ordering::Acquire) {
            return Err(Error::TransactionEnded);
        }
        write(&mut self.lock())
    }

    /// Marks a point to [go back to](Self::rollback_to). Costs nothing.
    pub fn savepoint(&self) -> Savepoint {
        Savepoint(self.lock().checkpoint())
    }

    /// Undoes the writes since a savepoint; it and those before it stay usable.
    ///
    /// # Errors
    ///
    /// The savepoint is not one of this transaction, or lies after one gone back to already.
    pub fn rollback_to(&self, savepoint: Savepoint) -> Result<()> {
        self.lock().revert_to(savepoint.0)
    }

    /// Commits the writes, all or none.
    ///
    /// # Errors
    ///
    /// - [retryable](Error::is_retryable): another transaction was in the way; begin again;
    /// - [undetermined](Error::is_undetermined): nobody knows whether it is committed;
    /// - any other: it is not committed, and will not be.
    ///
    /// # Dropping the future
    ///
    /// A commit that has begun goes on, and may succeed.
    pub async fn commit(self) -> Result<Committed> {
        self.commit_shared().await
    }

    pub(super) async fn commit_shared(&self) -> Result<Committed> {
        if self.ended.swap(true, Ordering::AcqRel) {
            return Err(Error::TransactionEnded);
        }
        let mutations = Mutations::collect(&self.lock(), false)?;
        let Some(mutations) = mutations else {
            return Ok(Committed { commit_ts: None });
        };
        let cluster = self.shared.cluster.clone();
        let input = CommitInput {
            cluster: cluster.clone(),
            resolver: self.shared.resolver.clone(),
            mutations,
            start_ts: self.reads.version(),
            began: self.began,
            deadline: self.deadline(),
        };
        let operation = Operation::new("commit", move |io: Io| async move {
            let running = cluster.background().enter();
            detached(&io, "two_phase_commit", |io| async move {
                let _running = running;
                commit(&io, input).await
            })
            .await
        });
        let commit_ts = self.driver.run(operation).await?;
        Ok(Committed { commit_ts })
    }

    /// Ends the transaction without writing anything.
    ///
    /// # Errors
    ///
    /// None for an optimistic transaction, which has left nothing in the cluster.
    pub async fn rollback(self) -> Result<()> {
        self.ended.store(true, Ordering::Release);
        Ok(())
    }
}

/// Keeps the kind of lock out of the public API.
struct BufferGuard<'a>(MutexGuard<'a, MemBuffer>);

impl Deref for BufferGuard<'_> {
    type Target = MemBuffer;
    fn deref(&self) -> &MemBuffer {
        &self.0
    }
}

impl DerefMut for BufferGuard<'_> {
    fn deref_mut(&mut self) -> &mut MemBuffer {
        &mut self.0
    }
}

impl<D> fmt::Debug for Transaction<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transaction({})", self.reads.version())
    }
}
