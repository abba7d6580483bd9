//! A client whose every call is written into the history of its simulation.

use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::Duration;

use tikv_core::{Key, KeyRange, KvPair, Result, Transaction, TransactionClient, Value};

use crate::check::{Verdict, Violation};
use crate::history::{Outcome, Query, TxnId};
use crate::sim::{Chance, Fault, Mark, Sim, SimDriver};

/// One client of a workload: it survives its own crashes as another client.
pub struct Session {
    sim: Sim,
    number: u32,
    client: Option<TransactionClient<SimDriver>>,
    /// Some clients wait for no call longer than this.
    timeout: Option<Duration>,
    /// What the client does is drawn from here.
    pub chance: Chance,
}

/// What a client does, as a future.
pub type Work<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// A client that dies is polled at most so often before.
const POLLS_BEFORE_CRASH: u64 = 40;
/// So many conflicts in a row are no coincidence.
const CONFLICTS_MAX: u32 = 100;
/// There are never more locks of one transaction than this.
const READS_MAX: usize = 64;
/// How long it may take to remove a lock that was met.
const PUT_RIGHT: Duration = Duration::from_secs(5);
/// Some clients are impatient.
const TIMEOUT_MS: RangeInclusive<u64> = 10..=10_000;
/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(200);

impl Session {
    /// The client of this number.
    pub fn new(sim: &Sim, number: u32) -> Self {
        let mut chance = sim.chance(&format!("client {number}"));
        let millis = chance.magnitude(TIMEOUT_MS);
        let timeout = chance.coin().then_some(Duration::from_millis(millis));
        Session {
            sim: sim.clone(),
            number,
            client: None,
            timeout,
            chance,
        }
    }

    /// A client of this number that waits as long as it takes.
    pub fn patient(sim: &Sim, number: u32) -> Self {
        Session {
            timeout: None,
            ..Session::new(sim, number)
        }
    }

    /// The client's number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The simulation.
    pub fn sim(&self) -> &Sim {
        &self.sim
    }

    /// The client, connected first if it is not.
    pub async fn client(&mut self) -> TransactionClient<SimDriver> {
        loop {
            if let Some(client) = &self.client {
                return client.clone();
            }
            match self.sim.client().await {
                Ok(client) => self.client = Some(client),
                // While PD is out nobody can connect; how long that lasts is bounded.
                Err(_) => self.sim.sleep(RECONNECT).await,
            }
        }
    }

    /// Begins a transaction that is written down.
    ///
    /// # Errors
    ///
    /// PD gave no timestamp in time.
    pub async fn begin(&mut self) -> Result<RecordedTransaction> {
        let mut client = self.client().await;
        if let Some(timeout) = self.timeout {
            client = client.with_timeout(timeout);
        }
        let id = self.sim.history().lock().begin(self.number, self.sim.now());
        let inner = client.begin().await?;
        self.sim.history().lock().began(id, inner.start_timestamp());
        Ok(RecordedTransaction {
            sim: self.sim.clone(),
            id,
            inner,
        })
    }

    /// Does one thing, or a part of it: the client may die over it. What was being done is then
    /// dropped, and so is all its background work.
    pub async fn once<'a, F, Fut>(&'a mut self, work: F)
    where
        F: FnOnce(&'a mut Session) -> Fut,
        Fut: Future<Output = ()>,
    {
        if !self.sim.strikes(Fault::Crash) {
            return work(self).await;
        }
        let polls = self.chance.below(POLLS_BEFORE_CRASH);
        let sim = self.sim.clone();
        let driver = self.client().await.driver().clone();
        // The next call makes a new client of it.
        self.client = None;
        let ended = sim.cancel_after(polls, work(self)).await;
        driver.crash();
        sim.mark(Mark::ClientCrashed);
        sim.note(|| format!("{} crashes ({ended:?})", driver.client_id()));
    }

    /// Waits until nothing goes wrong any more; then this client, whatever it has been through,
    /// must do its work: `work` has to succeed, if need be after some conflicts.
    ///
    /// # Errors
    ///
    /// It failed for another reason, or goes on failing.
    pub async fn recover<F>(&mut self, mut work: F) -> Verdict
    where
        F: for<'a> FnMut(&'a mut Session) -> Work<'a>,
    {
        self.sim.quiet().await;
        self.timeout = None;
        for _ in 0..CONFLICTS_MAX {
            match work(self).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_retryable() => self.pause().await,
                Err(error) => {
                    let detail = format!(
                        "client {} fails though nothing goes wrong: {error}",
                        self.number
                    );
                    return Err(Violation::new("recovery", detail));
                }
            }
        }
        let detail = format!("client {} meets one conflict after the other", self.number);
        Err(Violation::new("recovery", detail))
    }

    /// Reads a range again and again until no lock is left in it, once nothing goes wrong any more.
    ///
    /// One read removes at least one lock of each transaction that it meets, not all: those of a
    /// transaction known to be over are passed by.
    ///
    /// # Errors
    ///
    /// A read failed, or a lock stays.
    pub async fn clean_up(&mut self, range: &KeyRange) -> Result<(), Violation> {
        let mut reads = READS_MAX;
        loop {
            let txn = self.begin().await?;
            txn.scan(range, usize::MAX, false, 256).await?;
            txn.rollback().await?;
            // What a read has found out is put right behind it.
            self.sim.sleep(PUT_RIGHT).await;
            let verdict = self.sim.check().no_lock_left(range);
            if verdict.is_ok() || reads == 0 {
                return verdict;
            }
            reads -= 1;
        }
    }

    /// Waits a little, as people do between two calls.
    pub async fn pause(&mut self) {
        let time = self.chance.time(Duration::ZERO..=Duration::from_millis(60));
        self.sim.sleep(time).await;
    }
}

/// A transaction that is written into the history.
pub struct RecordedTransaction {
    sim: Sim,
    id: TxnId,
    inner: Transaction<SimDriver>,
}

impl RecordedTransaction {
    /// The transaction itself. What is done to it directly is not written down.
    pub fn inner(&self) -> &Transaction<SimDriver> {
        &self.inner
    }

    fn saw(&self, query: Query, rows: Vec<(Key, Value)>) {
        self.sim.history().lock().read(self.id, query, rows);
    }

    /// The value of a key.
    ///
    /// # Errors
    ///
    /// As [`Transaction::get`].
    pub async fn get(&self, key: &Key) -> Result<Option<Value>> {
        let value = self.inner.get(key.clone()).await?.map(Value::from);
        let rows = value
            .iter()
            .map(|value| (key.clone(), value.clone()))
            .collect();
        self.saw(Query::Keys(vec![key.clone()]), rows);
        Ok(value)
    }

    /// The values of some keys.
    ///
    /// # Errors
    ///
    /// As [`Transaction::batch_get`].
    pub async fn batch_get(&self, keys: &[Key]) -> Result<Vec<Option<Value>>> {
        let found = self.inner.batch_get(keys.iter().cloned()).await?;
        let values: Vec<Option<Value>> = found
            .into_iter()
            .map(|value| value.map(Value::from))
            .collect();
        let row = |(key, value): (&Key, &Option<Value>)| Some((key.clone(), value.clone()?));
        let rows = keys.iter().zip(&values).filter_map(row).collect();
        self.saw(Query::Keys(keys.to_vec()), rows);
        Ok(values)
    }

    /// The rows of a range.
    ///
    /// # Errors
    ///
    /// As [`Scan::try_next`](tikv_core::Scan::try_next).
    pub async fn scan(
        &self,
        range: &KeyRange,
        limit: usize,
        reverse: bool,
        page_size: u32,
    ) -> Result<Vec<(Key, Value)>> {
        let scan = self
            .inner
            .scan(range.clone())
            .limit(limit)
            .page_size(page_size);
        let scan = if reverse { scan.reverse() } else { scan };
        let pair = |pair: KvPair| {
            let (key, value) = pair.into_parts();
            (key, Value::from(value))
        };
        let rows: Vec<(Key, Value)> = scan.into_vec().await?.into_iter().map(pair).collect();
        self.saw(
            Query::Range {
                range: range.clone(),
                limit,
                reverse,
            },
            rows.clone(),
        );
        Ok(rows)
    }

    /// Writes a value.
    ///
    /// # Errors
    ///
    /// As [`Transaction::put`].
    pub async fn put(&self, key: &Key, value: Value) -> Result<()> {
        self.inner.put(key.clone(), value.clone()).await?;
        self.sim
            .history()
            .lock()
            .write(self.id, key.clone(), Some(value));
        Ok(())
    }

    /// Writes a value for a key that must not have one.
    ///
    /// # Errors
    ///
    /// As [`Transaction::insert`].
    pub async fn insert(&self, key: &Key, value: Value) -> Result<()> {
        self.inner.insert(key.clone(), value.clone()).await?;
        self.sim
            .history()
            .lock()
            .insert(self.id, key.clone(), value);
        Ok(())
    }

    /// Keeps others from writing a key until the commit, which fails if one of them does.
    ///
    /// # Errors
    ///
    /// As [`Transaction::lock_keys`].
    pub async fn lock(&self, key: &Key) -> Result<()> {
        self.inner.lock_keys([key.clone()]).await?;
        self.sim.history().lock().lock(self.id, key.clone());
        Ok(())
    }

    /// Deletes a key.
    ///
    /// # Errors
    ///
    /// As [`Transaction::delete`].
    pub async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key.clone()).await?;
        self.sim.history().lock().write(self.id, key.clone(), None);
        Ok(())
    }

    /// Commits. The call may be dropped half way, which the history says.
    ///
    /// # Errors
    ///
    /// As [`Transaction::commit`].
    pub async fn commit(self) -> Result<()> {
        let RecordedTransaction { sim, id, inner } = self;
        sim.history().lock().ending(id, sim.now());
        let Some(result) = sim.may_cancel(inner.commit()).await else {
            sim.mark(Mark::CommitCancelled);
            return Ok(());
        };
        let outcome = match &result {
            Ok(committed) => Outcome::Committed(committed.commit_ts.unwrap_or_default()),
            Err(error) if error.is_undetermined() => {
                sim.mark(Mark::CommitUndetermined);
                Outcome::Unknown
            }
            Err(error) => {
                sim.mark(Mark::CommitFailed);
                Outcome::Failed(error.to_string())
            }
        };
        sim.note(|| format!("transaction ends: {outcome:?}"));
        sim.history().lock().ended(id, sim.now(), outcome);
        result.map(|_| ())
    }

    /// Ends it without writing anything.
    ///
    /// # Errors
    ///
    /// As [`Transaction::rollback`].
    pub async fn rollback(self) -> Result<()> {
        let RecordedTransaction { sim, id, inner } = self;
        let result = inner.rollback().await;
        sim.history()
            .lock()
            .ended(id, sim.now(), Outcome::Failed("rolled back".to_owned()));
        result
    }
}
