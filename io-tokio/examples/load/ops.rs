//! The kinds of operation, and the keys they work on.

use oorandom::Rand64;
use tikv_io_tokio::{Error, Key, KeyRange, RawClient, Result, Snapshot, TransactionClient, Value};

use crate::{Args, Op};

/// The keys of a run.
#[derive(Clone)]
pub(crate) struct Keys {
    count: u64,
    spread: bool,
}

impl Keys {
    pub(crate) fn new(args: &Args) -> Self {
        Keys {
            count: args.keys,
            spread: args.spread,
        }
    }

    fn key(&self, n: u64) -> Key {
        if !self.spread {
            return format!("load/{n:08}").into();
        }
        // The odd factor visits every 32-bit number once, far apart.
        let place = (n as u32).wrapping_mul(0x9E37_79B1).to_be_bytes();
        [&place[..], b"/load"].concat().into()
    }

    fn any(&self, chance: &mut Rand64) -> Key {
        self.key(chance.rand_range(0..self.count))
    }
}

/// What callers share.
#[derive(Clone)]
pub(crate) struct Worker {
    op: Op,
    batch: usize,
    keys: Keys,
    value: Value,
    client: TransactionClient,
    snapshot: Snapshot,
    raw: RawClient,
}

impl Worker {
    pub(crate) async fn new(
        args: &Args,
        keys: Keys,
        client: &TransactionClient,
        raw: &RawClient,
    ) -> Result<Self> {
        Ok(Worker {
            op: args.op,
            batch: args.batch,
            keys,
            value: value(args),
            client: client.clone(),
            snapshot: client.snapshot().await?,
            raw: raw.clone(),
        })
    }

    /// Runs one operation. One that meets another transaction counts as one, too.
    pub(crate) async fn run(&self, chance: &mut Rand64) -> Result<()> {
        match self.op {
            Op::Get => there(self.snapshot.get(self.keys.any(chance)).await?),
            Op::RawGet => there(self.raw.get(self.keys.any(chance)).await?),
            Op::RawPut => {
                self.raw
                    .put(self.keys.any(chance), self.value.clone())
                    .await
            }
            Op::Tso => self.client.current_timestamp().await.map(drop),
            Op::BatchGet => {
                let keys: Vec<_> = (0..self.batch).map(|_| self.keys.any(chance)).collect();
                self.snapshot
                    .batch_get(keys)
                    .await?
                    .into_iter()
                    .try_for_each(there)
            }
            Op::Scan => {
                let range = KeyRange::from(self.keys.any(chance)..);
                self.snapshot
                    .scan(range)
                    .limit(self.batch)
                    .into_vec()
                    .await
                    .map(drop)
            }
            Op::Put => {
                let key = self.keys.any(chance);
                self.write(&[key], false).await
            }
            Op::Txn => {
                let keys = [self.keys.any(chance), self.keys.any(chance)];
                self.write(&keys, true).await
            }
        }
    }

    async fn write(&self, keys: &[Key], read: bool) -> Result<()> {
        let txn = self.client.begin().await?;
        if read {
            txn.batch_get(keys.iter().cloned()).await?;
        }
        for key in keys {
            txn.put(key.clone(), self.value.clone()).await?;
        }
        match txn.commit().await {
            Err(error) if !error.is_retryable() => Err(error),
            _ => Ok(()),
        }
    }
}

/// Writes every key once.
pub(crate) async fn fill(
    args: &Args,
    keys: &Keys,
    client: &TransactionClient,
    raw: &RawClient,
) -> Result<()> {
    /// As much as one transaction should hold.
    const BYTES: u64 = 1 << 20;
    let value = value(args);
    let batch = (BYTES / args.value_bytes).clamp(1, 1000);
    for first in (0..args.keys).step_by(batch as usize) {
        let batch = first..(first + batch).min(args.keys);
        match args.op {
            Op::Tso => {}
            Op::RawGet | Op::RawPut => {
                raw.batch_put(batch.map(|n| (keys.key(n), value.clone())))
                    .await?;
            }
            _ => {
                client
                    .transact(async |txn| {
                        for n in batch.clone() {
                            txn.put(keys.key(n), value.clone()).await?;
                        }
                        Ok::<_, Error>(())
                    })
                    .await?;
            }
        }
    }
    Ok(())
}

fn value(args: &Args) -> Value {
    vec![b'v'; args.value_bytes as usize].into()
}

/// Every key was filled: one that is missing is a wrong answer.
fn there(value: Option<impl Sized>) -> Result<()> {
    match value {
        Some(_) => Ok(()),
        None => Err(Error::invalid_argument("a key that was written is missing")),
    }
}
