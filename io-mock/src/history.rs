//! What clients saw of a run: every call they made and what they were told, with virtual times and
//! timestamps. Checkers read it.
//!
//! A transaction's writes are kept in their order, so that a read can be judged by those that came
//! before it. What nobody was told is written down as well: a commit that was dropped half way is
//! [`Outcome::Unknown`], not absent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tikv_core::driver::Instant;
use tikv_core::{Key, KeyRange, Timestamp, Value};

/// Everything that clients saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Transactions, in the order in which they were begun.
    pub transactions: Vec<Transaction>,
    /// Raw calls, in the order in which they were made.
    pub raw: Vec<RawCall>,
}

/// One transaction as its client saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    /// Which client.
    pub client: u32,
    /// When it was asked to begin.
    pub invoked: Instant,
    /// Its snapshot; zero if it never began.
    pub start_ts: Timestamp,
    /// What it read.
    pub reads: Vec<Read>,
    /// What it wrote, `None` being a deletion.
    pub writes: Vec<(Key, Option<Value>)>,
    /// Those of the written keys that must not have had a value before.
    pub inserted: Vec<Key>,
    /// Keys that it locked, which keeps others from writing them.
    pub locked: Vec<Key>,
    /// Up to where it has seen what others wrote to a key, where that is later than its start: it
    /// locked the key then, or another key that guards this one.
    pub for_update: Vec<(Key, Timestamp)>,
    /// When it was asked to commit.
    pub ending: Option<Instant>,
    /// When its end was known to the client.
    pub ended: Option<Instant>,
    /// What the client was told about its end.
    pub outcome: Outcome,
    /// Stores have chosen the timestamp of its commit: it may be the next one that PD gives out.
    pub calculated: bool,
}

/// What a client was told about the end of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It has not been asked to end.
    Open,
    /// It was asked to end and the client never heard of it: the call was dropped, the client
    /// died, or the error says that nobody knows.
    Unknown,
    /// It is committed, at this timestamp; zero if it wrote nothing.
    Committed(Timestamp),
    /// It is rolled back, because its client wanted so or because of this error.
    Failed(String),
}

/// One answered read.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// At which timestamp.
    pub ts: Timestamp,
    /// How many of the transaction's own writes came before.
    pub own_writes: usize,
    /// What was asked for.
    pub query: Query,
    /// The rows that came, in their order.
    pub rows: Vec<(Key, Value)>,
}

/// What a read asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Query {
    /// These keys.
    Keys(Vec<Key>),
    /// The rows of a range.
    Range {
        /// Which.
        range: KeyRange,
        /// How many at most.
        limit: usize,
        /// From its end.
        reverse: bool,
    },
}

/// One raw call as its client saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct RawCall {
    /// Which client.
    pub client: u32,
    /// When it was made.
    pub invoked: Instant,
    /// When it was answered; absent if the client never heard of it.
    pub answered: Option<Instant>,
    /// The key.
    pub key: Key,
    /// What it was.
    pub what: RawWhat,
}

/// A raw call and its result.
#[derive(Clone, Debug, PartialEq)]
pub enum RawWhat {
    /// A value was asked for; it was this.
    Read(Option<Value>),
    /// A value was written, `None` being a deletion.
    Write(Option<Value>),
    /// A value was swapped for another, or would have been. A swap that was refused is a read.
    Swap {
        /// What the key held before.
        from: Option<Value>,
        /// What it holds then.
        to: Value,
    },
}

/// Names a transaction of a [`History`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnId(usize);

/// Names a raw call of a [`History`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawId(usize);

impl History {
    /// A transaction is asked to begin.
    pub fn begin(&mut self, client: u32, now: Instant) -> TxnId {
        self.transactions.push(Transaction {
            client,
            invoked: now,
            start_ts: Timestamp::ZERO,
            reads: Vec::new(),
            writes: Vec::new(),
            inserted: Vec::new(),
            locked: Vec::new(),
            for_update: Vec::new(),
            ending: None,
            ended: None,
            outcome: Outcome::Open,
            calculated: false,
        });
        TxnId(self.transactions.len() - 1)
    }

    /// It has begun.
    pub fn began(&mut self, id: TxnId, start_ts: Timestamp) {
        self.transactions[id.0].start_ts = start_ts;
    }

    /// It read at its own snapshot.
    pub fn read(&mut self, id: TxnId, query: Query, rows: Vec<(Key, Value)>) {
        let transaction = &mut self.transactions[id.0];
        let (ts, own_writes) = (transaction.start_ts, transaction.writes.len());
        transaction.reads.push(Read {
            ts,
            own_writes,
            query,
            rows,
        });
    }

    /// It read what others had written at another version, as a lock shows it.
    pub fn read_at(&mut self, id: TxnId, ts: Timestamp, query: Query, rows: Vec<(Key, Value)>) {
        self.transactions[id.0].reads.push(Read {
            ts,
            own_writes: 0,
            query,
            rows,
        });
    }

    /// It wrote.
    pub fn write(&mut self, id: TxnId, key: Key, value: Option<Value>) {
        self.transactions[id.0].writes.push((key, value));
    }

    /// It wrote a key that must not have had a value.
    pub fn insert(&mut self, id: TxnId, key: Key, value: Value) {
        let transaction = &mut self.transactions[id.0];
        // What it has written itself hides what was there.
        if transaction
            .writes
            .iter()
            .all(|(written, _)| *written != key)
        {
            transaction.inserted.push(key.clone());
        }
        transaction.writes.push((key, Some(value)));
    }

    /// It locked a key.
    pub fn lock(&mut self, id: TxnId, key: Key) {
        self.transactions[id.0].locked.push(key);
    }

    /// It keeps others from writing a key since this version, which may be later than its start.
    pub fn guard(&mut self, id: TxnId, key: Key, for_update_ts: Timestamp) {
        self.transactions[id.0]
            .for_update
            .push((key, for_update_ts));
    }

    /// Stores, and not PD, have chosen the timestamp of its commit.
    pub fn calculated(&mut self, id: TxnId) {
        self.transactions[id.0].calculated = true;
    }

    /// It is asked to commit: from now on nobody knows what it is, until somebody is told.
    pub fn ending(&mut self, id: TxnId, now: Instant) {
        let transaction = &mut self.transactions[id.0];
        transaction.ending = Some(now);
        transaction.outcome = Outcome::Unknown;
    }

    /// Its client was told of its end.
    pub fn ended(&mut self, id: TxnId, now: Instant, outcome: Outcome) {
        let transaction = &mut self.transactions[id.0];
        transaction.ended = Some(now);
        transaction.outcome = outcome;
    }

    /// A raw swap is asked for.
    pub fn raw_swap(
        &mut self,
        client: u32,
        now: Instant,
        key: Key,
        from: Option<Value>,
        to: Value,
    ) -> RawId {
        self.raw.push(RawCall {
            client,
            invoked: now,
            answered: None,
            key,
            what: RawWhat::Swap { from, to },
        });
        RawId(self.raw.len() - 1)
    }

    /// A raw swap was refused: the key held this.
    pub fn raw_swap_refused(&mut self, id: RawId, now: Instant, held: Option<Value>) {
        self.raw[id.0].answered = Some(now);
        self.raw[id.0].what = RawWhat::Read(held);
    }

    /// A raw write is asked for.
    pub fn raw_write(
        &mut self,
        client: u32,
        now: Instant,
        key: Key,
        value: Option<Value>,
    ) -> RawId {
        let what = RawWhat::Write(value);
        self.raw.push(RawCall {
            client,
            invoked: now,
            answered: None,
            key,
            what,
        });
        RawId(self.raw.len() - 1)
    }

    /// It is done.
    pub fn raw_written(&mut self, id: RawId, now: Instant) {
        self.raw[id.0].answered = Some(now);
    }

    /// A raw read was answered.
    pub fn raw_read(
        &mut self,
        client: u32,
        invoked: Instant,
        now: Instant,
        key: Key,
        value: Option<Value>,
    ) {
        let what = RawWhat::Read(value);
        self.raw.push(RawCall {
            client,
            invoked,
            answered: Some(now),
            key,
            what,
        });
    }
}

/// A history that several tasks write.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    history: Arc<Mutex<History>>,
}

impl Recorder {
    /// The history, to write or to read. Not to be held across an await.
    pub fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
