//! The one public error, and what it tells the caller to do.
//!
//! An error answers three questions: what happened (the variant and its fields), what now
//! ([`Error::is_retryable`], [`Error::is_undetermined`], [`Error::kind`]), and what was tried
//! ([`Exhausted`] carries the attempts and the last cause). No type of a transport, a runtime or
//! the wire is in it. It is cheap to clone and one cache line long: rare contents are boxed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::key::Key;
use crate::time::Timestamp;
use crate::why::{BackoffKind, Why};

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another transaction committed a write to a key after this one began, or holds a lock it
    /// began later. Begin again.
    #[error("{0}")]
    WriteConflict(Box<WriteConflict>),
    /// A key that was to be inserted is there already.
    #[error("key {key} already exists")]
    KeyExists {
        /// The key.
        key: Key,
    },
    /// Two transactions wait for each other's locks; this one must give way. Begin again.
    #[error("{0}")]
    Deadlock(Box<Deadlock>),
    /// A key is not what an assertion said it would be.
    #[error("{0}")]
    AssertionFailed(Box<AssertionFailed>),
    /// TiKV says that the transaction can't go on but that a new one may succeed. The text is
    /// TiKV's.
    #[error("the transaction must begin again: {message}")]
    Restart {
        /// TiKV's own words.
        message: Arc<str>,
    },
    /// TiKV refused for good. The text is TiKV's.
    #[error("the server refused: {message}")]
    Aborted {
        /// TiKV's own words.
        message: Arc<str>,
    },
    /// Nobody knows whether the transaction is committed: the answer that would have said so was
    /// lost. It must not be repeated blindly; read the data to find out.
    #[error("{0}")]
    Undetermined(Box<Undetermined>),
    /// The same wait was repeated until the budget was used up.
    #[error("{0}")]
    Exhausted(Box<Exhausted>),
    /// The caller's deadline passed.
    #[error("{0}")]
    DeadlineExceeded(Box<DeadlineExceeded>),
    /// One request failed on its way.
    #[error("{0}")]
    Transport(Box<TransportError>),
    /// The region can't serve this request, and repeating it will not help.
    #[error("{0}")]
    Region(Box<RegionRefusal>),
    /// PD answered with an error.
    #[error("PD refused {call}: {message}")]
    Pd {
        /// Which call.
        call: &'static str,
        /// PD's own words.
        message: Arc<str>,
    },
    /// The endpoints belong to different clusters, or to another one than before. The client is
    /// of no more use.
    #[error("cluster id mismatch: expected {expected}, {from} answered {got}")]
    ClusterIdMismatch {
        /// The cluster of this client.
        expected: u64,
        /// The cluster that answered.
        got: u64,
        /// Who answered.
        from: Arc<str>,
    },
    /// A key is longer than a key may be. Nothing was stored or sent.
    #[error("key of {size} bytes is too large, the limit is {limit}")]
    KeyTooLarge {
        /// Bytes of the key.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A key and its value are larger than an entry may be. Nothing was stored or sent.
    #[error("entry of {size} bytes is too large, the limit is {limit}")]
    EntryTooLarge {
        /// Bytes of key and value.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// All writes of a transaction together are larger than allowed.
    #[error("transaction of {size} bytes is too large, the limit is {limit}")]
    TransactionTooLarge {
        /// Bytes of all keys and values.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// An empty value was to be written. TiKV's transactions know no empty value.
    #[error("the value of key {key} is empty, which a transaction can't store")]
    EmptyValue {
        /// The key.
        key: Key,
    },
    /// The transaction has ended already.
    #[error("the transaction has been committed or rolled back already")]
    TransactionEnded,
    /// The transaction began longer ago than a transaction may take.
    #[error("the transaction takes too much time: it began {age:?} ago, the limit is {limit:?}")]
    TransactionTooOld {
        /// How long ago it began.
        age: Duration,
        /// How long it may take.
        limit: Duration,
    },
    /// An argument or a combination of options makes no sense.
    #[error("invalid argument: {message}")]
    InvalidArgument {
        /// What is wrong.
        message: Arc<str>,
    },
    /// The client is closed.
    #[error("the client is closed")]
    Closed,
    /// A server gave an answer that no honest server gives.
    #[error("protocol error: {message}")]
    Protocol {
        /// What is wrong with it.
        message: Arc<str>,
    },
}

/// What sort of failure an [`Error`] is, for `match`ing without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Another transaction was faster.
    Conflict,
    /// A key exists that should not, or an assertion failed.
    Constraint,
    /// The transaction can't go on; a new one can.
    Restart,
    /// The outcome of a commit is not known.
    Undetermined,
    /// Regions, stores or PD could not be reached in time.
    Unavailable,
    /// Locks of others could not be resolved in time.
    LockTimeout,
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// Too large.
    TooLarge,
    /// The caller asked for something that makes no sense.
    InvalidArgument,
    /// The server refused, or answered what it must not.
    Server,
    /// The client or the transaction has ended.
    Closed,
}

impl Error {
    /// Whether a new transaction that does the same may succeed (conflicts, deadlocks, locks that
    /// were lost). An [undetermined](Error::is_undetermined) commit never is.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Error::WriteConflict(_) | Error::Deadlock(_) | Error::Restart { .. }
        )
    }

    /// Whether the transaction may or may not be committed.
    pub fn is_undetermined(&self) -> bool {
        matches!(self, Error::Undetermined(_))
    }

    /// Whether another transaction's write was in the way.
    pub fn is_conflict(&self) -> bool {
        self.kind() == ErrorKind::Conflict
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::WriteConflict(_) | Error::Deadlock(_) => ErrorKind::Conflict,
            Error::KeyExists { .. } | Error::AssertionFailed(_) => ErrorKind::Constraint,
            Error::Restart { .. } | Error::TransactionTooOld { .. } => ErrorKind::Restart,
            Error::Undetermined(_) => ErrorKind::Undetermined,
            Error::Exhausted(exhausted) => exhausted.error_kind(),
            Error::Transport(_) => ErrorKind::Unavailable,
            Error::DeadlineExceeded(_) => ErrorKind::DeadlineExceeded,
            Error::KeyTooLarge { .. }
            | Error::EntryTooLarge { .. }
            | Error::TransactionTooLarge { .. } => ErrorKind::TooLarge,
            Error::EmptyValue { .. } | Error::InvalidArgument { .. } => ErrorKind::InvalidArgument,
            Error::Aborted { .. }
            | Error::Region(_)
            | Error::Pd { .. }
            | Error::ClusterIdMismatch { .. }
            | Error::Protocol { .. } => ErrorKind::Server,
            Error::TransactionEnded | Error::Closed => ErrorKind::Closed,
        }
    }

    /// An [`Error::InvalidArgument`] that says `message`.
    pub fn invalid_argument(message: impl Into<Arc<str>>) -> Self {
        Error::InvalidArgument {
            message: message.into(),
        }
    }

    /// An [`Error::Protocol`] that says `message`.
    pub fn protocol(message: impl Into<Arc<str>>) -> Self {
        Error::Protocol {
            message: message.into(),
        }
    }
}

/// Two writes of one key that can't both happen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteConflict {
    /// The key.
    pub key: Key,
    /// The primary key of the transaction that failed, empty if not known.
    pub primary: Key,
    /// When the failed transaction began.
    pub start_ts: Timestamp,
    /// When the other one began.
    pub conflict_start_ts: Timestamp,
    /// When the other one committed; zero if it holds a lock and has not.
    pub conflict_commit_ts: Timestamp,
    /// TiKV's reason.
    pub reason: ConflictReason,
}

impl WriteConflict {
    /// A conflict of a transaction with the commit, or the lock, of another on `key`.
    pub fn new(key: Key, start_ts: Timestamp, conflict_start_ts: Timestamp) -> Self {
        WriteConflict {
            key,
            primary: Key::EMPTY,
            start_ts,
            conflict_start_ts,
            conflict_commit_ts: Timestamp::ZERO,
            reason: ConflictReason::Unknown,
        }
    }
}

impl fmt::Display for WriteConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "write conflict on key {}: the transaction began at {}, another one that began at {} ",
            self.key, self.start_ts, self.conflict_start_ts
        )?;
        if self.conflict_commit_ts.is_zero() {
            write!(f, "holds a lock")?;
        } else {
            write!(f, "committed at {}", self.conflict_commit_ts)?;
        }
        write!(f, " ({}); begin again", self.reason)
    }
}

/// TiKV's reason for a [`WriteConflict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConflictReason {
    /// None was given.
    Unknown,
    /// An optimistic transaction found a newer version.
    Optimistic,
    /// A pessimistic lock request must be repeated with a newer timestamp.
    PessimisticRetry,
    /// The transaction has been rolled back, by itself or by one that found its lock expired.
    SelfRolledBack,
    /// A read-committed read found a newer version.
    ReadCommittedCheck,
    /// A constraint that was left to be checked at prewrite does not hold.
    LazyUniquenessCheck,
}

impl fmt::Display for ConflictReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConflictReason::Unknown => "no reason given",
            ConflictReason::Optimistic => "optimistic",
            ConflictReason::PessimisticRetry => "pessimistic retry",
            ConflictReason::SelfRolledBack => "rolled back already",
            ConflictReason::ReadCommittedCheck => "read committed check",
            ConflictReason::LazyUniquenessCheck => "lazy uniqueness check",
        })
    }
}

/// A circle of transactions that wait for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deadlock {
    /// The key that was to be locked.
    pub key: Key,
    /// Who holds it.
    pub lock_ts: Timestamp,
    /// The circle: each waits for the next, as far as the server told.
    pub cycle: Vec<(Timestamp, Timestamp)>,
}

impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "deadlock on key {}, locked by the transaction of {}; begin again",
            self.key, self.lock_ts
        )
    }
}

/// A key that is not what the transaction asserted of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssertionFailed {
    /// The key.
    pub key: Key,
    /// The transaction.
    pub start_ts: Timestamp,
    /// Whether the key was asserted to exist (or not to).
    pub asserted_exists: bool,
    /// When the version that is there was begun; zero if none is.
    pub existing_start_ts: Timestamp,
    /// When the version that is there was committed; zero if none is.
    pub existing_commit_ts: Timestamp,
}

impl fmt::Display for AssertionFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.asserted_exists {
            "exists"
        } else {
            "does not exist"
        };
        write!(
            f,
            "assertion failed: key {} {what} (transaction {})",
            self.key, self.start_ts
        )
    }
}

impl AssertionFailed {
    /// The assertion of a transaction about `key` that does not hold.
    pub fn new(key: Key, start_ts: Timestamp, asserted_exists: bool) -> Self {
        AssertionFailed {
            key,
            start_ts,
            asserted_exists,
            existing_start_ts: Timestamp::ZERO,
            existing_commit_ts: Timestamp::ZERO,
        }
    }
}

impl Deadlock {
    /// A deadlock met at `key`.
    pub fn new(key: Key, lock_ts: Timestamp, cycle: Vec<(Timestamp, Timestamp)>) -> Self {
        Deadlock {
            key,
            lock_ts,
            cycle,
        }
    }
}

/// A commit, or a raw compare-and-swap, of which nobody knows whether it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undetermined {
    /// When the transaction began, zero for a raw operation.
    pub start_ts: Timestamp,
    /// The commit timestamp that was tried, zero if there was none.
    pub commit_ts: Timestamp,
    /// What went wrong last.
    pub cause: Error,
}

impl Undetermined {
    /// The outcome of the transaction that began at `start_ts` is not known because of `cause`.
    pub fn new(start_ts: Timestamp, commit_ts: Timestamp, cause: Error) -> Self {
        Undetermined {
            start_ts,
            commit_ts,
            cause,
        }
    }
}

impl fmt::Display for Undetermined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("execution result undetermined: ")?;
        match self.start_ts.is_zero() {
            true => f.write_str("the raw operation may have taken effect")?,
            false => write!(
                f,
                "the transaction of {} may be committed at {}",
                self.start_ts, self.commit_ts
            )?,
        }
        write!(
            f,
            "; read the data before doing it again (last cause: {})",
            self.cause
        )
    }
}

/// A budget of waiting that is used up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exhausted {
    /// What most of the time was waited for.
    pub kind: BackoffKind,
    /// How often it was tried again, for whatever reason.
    pub attempts: u32,
    /// How long it was waited in all.
    pub waited: Duration,
    /// The last error before giving up.
    pub last: Error,
    /// The causes of the last attempts, oldest first.
    pub recent: Vec<Arc<str>>,
}

impl Exhausted {
    fn error_kind(&self) -> ErrorKind {
        match self.kind {
            BackoffKind::TxnLock | BackoffKind::TxnLockFast | BackoffKind::TxnNotFound => {
                ErrorKind::LockTimeout
            }
            _ => ErrorKind::Unavailable,
        }
    }
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            BackoffKind::TikvRpc => "TiKV server timeout",
            BackoffKind::TiflashRpc => "TiFlash server timeout",
            BackoffKind::TxnLock | BackoffKind::TxnLockFast | BackoffKind::TxnNotFound => {
                "resolve lock timeout"
            }
            BackoffKind::PdRpc => "PD server timeout",
            BackoffKind::RegionMiss | BackoffKind::RegionScheduling => "region is unavailable",
            BackoffKind::TikvServerBusy => "TiKV server is busy",
            BackoffKind::TiflashServerBusy => "TiFlash server is busy",
            BackoffKind::TikvDiskFull => "TiKV disk is full",
            BackoffKind::RegionRecoveryInProgress => "region is being recovered",
            BackoffKind::StaleCommand => "stale command",
            BackoffKind::MaxTsNotSynced => "TiKV max timestamp is not synced",
            BackoffKind::CommitTsLag => "commit timestamp lags behind",
            BackoffKind::RegionNotInitialized => "region is not initialized",
            BackoffKind::IsWitness => "peer is a witness",
        };
        write!(
            f,
            "{what}: gave up after {} attempts and {:?} of waiting, mostly for {}; last cause: {}",
            self.attempts, self.waited, self.kind, self.last
        )
    }
}

impl Exhausted {
    /// A budget that ended: what was waited for most, how often and how long, and why last.
    pub fn new(
        kind: BackoffKind,
        attempts: u32,
        waited: Duration,
        last: Error,
        recent: Vec<Arc<str>>,
    ) -> Self {
        Exhausted {
            kind,
            attempts,
            waited,
            last,
            recent,
        }
    }
}

/// A caller's deadline that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadlineExceeded {
    /// What was being waited for.
    pub waiting_for: Why,
    /// How often it had been tried again.
    pub attempts: u32,
    /// The last error before, if there was one.
    pub last: Option<Error>,
}

impl DeadlineExceeded {
    /// The deadline passed while waiting for `waiting_for`.
    pub fn new(waiting_for: Why, attempts: u32, last: Option<Error>) -> Self {
        DeadlineExceeded {
            waiting_for,
            attempts,
            last,
        }
    }
}

impl fmt::Display for DeadlineExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "deadline exceeded while waiting for {} after {} attempts",
            self.waiting_for, self.attempts
        )?;
        match &self.last {
            Some(last) => write!(f, "; last cause: {last}"),
            None => Ok(()),
        }
    }
}

/// A request that failed on its way: no answer, or none that can be read.
///
/// The driver alone knows whether the request may have reached the server; it says so in
/// [`TransportError::may_have_been_sent`], and a lost commit is judged by it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// No connection could be made. The request was not sent.
    #[error("cannot connect to {address}: {message}")]
    Connect {
        /// Where to.
        address: Arc<str>,
        /// Why not.
        message: Arc<str>,
    },
    /// No answer came in time.
    #[error("no answer from {address} within the deadline")]
    Deadline {
        /// From whom.
        address: Arc<str>,
        /// Whether the request may have left this process.
        sent: bool,
    },
    /// The stream or connection broke.
    #[error("the connection to {address} broke: {message}")]
    Broken {
        /// To whom.
        address: Arc<str>,
        /// How.
        message: Arc<str>,
        /// Whether the request may have left this process.
        sent: bool,
    },
    /// The server answered with a gRPC status instead of a message.
    #[error("{address} answered with gRPC status {code}: {message}")]
    Status {
        /// Who.
        address: Arc<str>,
        /// The gRPC code.
        code: u32,
        /// The status' message.
        message: Arc<str>,
    },
    /// An answer came that can't be read, or is of another kind than asked for.
    #[error("unreadable answer from {address}: {message}")]
    Decode {
        /// From whom.
        address: Arc<str>,
        /// What is wrong with it.
        message: Arc<str>,
    },
    /// The driver has been closed.
    #[error("the transport is closed")]
    Closed {
        /// Whether the request may have left this process.
        sent: bool,
    },
}

impl TransportError {
    /// Whether the server may have received, and executed, the request.
    pub fn may_have_been_sent(&self) -> bool {
        match self {
            TransportError::Connect { .. } => false,
            TransportError::Deadline { sent, .. }
            | TransportError::Broken { sent, .. }
            | TransportError::Closed { sent } => *sent,
            TransportError::Status { .. } | TransportError::Decode { .. } => true,
        }
    }
}

impl From<TransportError> for Error {
    fn from(error: TransportError) -> Self {
        Error::Transport(Box::new(error))
    }
}

/// A region that refuses a request for a reason that does not pass by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionRefusal {
    /// The region.
    pub region: u64,
    /// The name of TiKV's region error.
    pub error: &'static str,
    /// TiKV's own words.
    pub message: Arc<str>,
}

impl RegionRefusal {
    /// Region `region` refused with `error`.
    pub fn new(region: u64, error: &'static str, message: impl Into<Arc<str>>) -> Self {
        RegionRefusal {
            region,
            error,
            message: message.into(),
        }
    }
}

impl fmt::Display for RegionRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "region {} refused ({}): {}",
            self.region, self.error, self.message
        )
    }
}

#[cfg(test)]
mod tests;
