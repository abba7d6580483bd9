//! Reads of single keys, for snapshots and for transactions.

use std::sync::Arc;

use bytes::Bytes;

use crate::driver::Driver;
use crate::error::Result;
use crate::key::Key;
use crate::operation::{Io, Operation};
use crate::txn::snapshot::{ReadOptions, Reads};

pub(super) async fn get<D: Driver>(
    driver: &D,
    reads: &Arc<Reads>,
    key: Key,
    options: ReadOptions,
) -> Result<Option<Bytes>> {
    let reads = reads.clone();
    let operation = Operation::new("get", move |io: Io| async move {
        let found = reads.get(&io, &key, &options).await?;
        Ok(found.map(|found| found.value))
    });
    driver.run(operation).await
}

/// The values of `keys` in their order.
pub(super) async fn batch_get<D: Driver>(
    driver: &D,
    reads: &Arc<Reads>,
    keys: Vec<Key>,
    options: ReadOptions,
) -> Result<Vec<Option<Bytes>>> {
    let reads = reads.clone();
    let operation = Operation::new("batch_get", move |io: Io| async move {
        let mut wanted = keys.clone();
        wanted.sort();
        wanted.dedup();
        let mut found = reads.batch_get(&io, wanted, &options).await?;
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let value = |key: &Key| {
            let place = found.binary_search_by(|found| found.key.cmp(key)).ok()?;
            found.get(place).map(|found| found.value.clone())
        };
        Ok(keys.iter().map(value).collect())
    });
    driver.run(operation).await
}
