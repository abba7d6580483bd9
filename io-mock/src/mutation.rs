//! Deliberate mistakes of the simulated cluster, to prove that the checkers notice them.
//!
//! Only there with the feature `mutations`. Most bend a request before a node serves it, or its
//! answer afterwards; the rest are made where the cluster decides. What is set holds for the
//! current thread, so simulations that run side by side do not disturb each other.

use tikv_core::Timestamp;
use tikv_core::wire::{Command, Response};
use tikv_proto::kvrpcpb::{self, IsolationLevel, prewrite_request::PessimisticAction};

tikv_core::mutations! {
    /// A store reads as if there were no locks.
    IgnoreLocks = "store-ignores-locks",
    /// A store prewrites without looking for newer commits.
    IgnoreConflicts = "store-ignores-conflicts",
    /// A store confirms some commits and does nothing.
    LoseCommits = "store-loses-commits",
    /// A store commits whatever lock it finds on the key, whoever's it is.
    CommitAnyLock = "store-commits-any-lock",
    /// A store commits below the timestamp that it promised a reader.
    CommitBelowPush = "store-commits-below-push",
    /// A store tells a reader that a transaction will commit later, and forgets it.
    ForgetPush = "store-forgets-push",
    /// A store leaves no mark of a rollback.
    ForgetRollbacks = "store-forgets-rollbacks",
    /// A store commits a lock that it is told to roll back.
    CommitRolledBack = "store-commits-rolled-back",
    /// A store leaves the last row out of its answer to a scan.
    LoseLastRow = "store-loses-last-row",
    /// A store reads a second behind the version it is asked for.
    ReadBehind = "store-reads-behind",
    /// A store confirms raw deletions and does nothing.
    LoseRawDeletes = "store-loses-raw-deletes",
    /// A store answers raw reads with nothing now and then.
    LoseRawReads = "store-loses-raw-reads",
    /// A store answers a write before it is applied, and loses it with its leadership.
    AnswerBeforeApply = "store-answers-before-applying",
    /// PD gives every other client timestamps of two seconds ago.
    TimestampsBehind = "pd-timestamps-behind",
    /// A store grants a pessimistic lock that another transaction holds.
    GrantTwice = "store-grants-lock-twice",
    /// A store grants a lock whatever has been written since.
    GrantOverNewer = "store-grants-over-newer",
    /// A store wakes nobody when a lock is released.
    WakeNobody = "store-wakes-nobody",
    /// A store finds no circle of those who wait.
    FindNoDeadlock = "store-finds-no-deadlock",
    /// A store does not look for the lock that a commit relies on.
    PrewriteUnlocked = "store-prewrites-unlocked",
    /// A store chooses the timestamp of a commit without regard to what it has served.
    ForgetReads = "store-forgets-reads",
    /// A store leaves the last of what is flushed out of its answer.
    LoseLastFlushed = "store-loses-last-flushed",
    /// A client reports a plain failure when the answer to its commit was lost.
    TakeLostForFailed = "wire-takes-lost-for-failed",
    /// A client with locks has its commit look for none of them.
    SkipLockChecks = "locker-skips-checks",
    /// A client with locks reads what it has locked as of its start.
    ReadBeforeLock = "locker-reads-before-lock",
    /// A client with locks takes the least timestamp that some of its keys allow.
    CommitTooEarly = "locker-commits-too-early",
    /// A client that loads commits what it has flushed before its primary.
    EndRangeFirst = "loader-ends-range-first",
    /// A client that loads flushes all its generations by one number.
    RepeatGeneration = "loader-repeats-generation",
}

/// Timestamps count milliseconds from this bit on.
const PHYSICAL: u32 = 18;
/// One in so many requests, told by their timestamps, is hit by a mistake that is made now and then.
const ONE_IN: u64 = 8;

fn now_and_then(ts: u64) -> bool {
    (ts >> PHYSICAL).is_multiple_of(ONE_IN)
}

/// The answer to a request that is not served at all.
pub(crate) fn lie(command: &Command) -> Option<Response> {
    match (ACTIVE.get()?, command) {
        (Mutation::LoseCommits, Command::Commit(commit)) if now_and_then(commit.start_version) => {
            let answer = kvrpcpb::CommitResponse {
                commit_version: commit.commit_version,
                ..Default::default()
            };
            Some(Response::Commit(answer))
        }
        (Mutation::LoseRawDeletes, Command::RawDelete(_)) => {
            Some(Response::RawDelete(kvrpcpb::RawDeleteResponse::default()))
        }
        _ => None,
    }
}

/// The request as it is served.
pub(crate) fn bend(mut command: Command) -> Command {
    let Some(mutation) = ACTIVE.get() else {
        return command;
    };
    let back = 1_000 << PHYSICAL;
    match (mutation, &mut command) {
        (Mutation::IgnoreLocks, Command::Get(get)) => read_committed(&mut get.context),
        (Mutation::IgnoreLocks, Command::BatchGet(get)) => read_committed(&mut get.context),
        (Mutation::IgnoreLocks, Command::Scan(scan)) => read_committed(&mut scan.context),
        (Mutation::ReadBehind, Command::Get(get)) => get.version -= back,
        (Mutation::ReadBehind, Command::BatchGet(get)) => get.version -= back,
        (Mutation::ReadBehind, Command::Scan(scan)) => scan.version -= back,
        (Mutation::IgnoreConflicts, Command::Prewrite(prewrite)) => {
            prewrite.skip_constraint_check = true;
        }
        (Mutation::PrewriteUnlocked, Command::Prewrite(prewrite)) => {
            let skip = PessimisticAction::SkipPessimisticCheck.into();
            prewrite.pessimistic_actions.fill(skip);
        }
        (Mutation::CommitRolledBack, Command::ResolveLock(resolve))
            if resolve.commit_version == 0 =>
        {
            resolve.commit_version = resolve.start_version + 1;
        }
        _ => {}
    }
    command
}

fn read_committed(context: &mut Option<Box<kvrpcpb::Context>>) {
    if let Some(context) = context {
        context.isolation_level = IsolationLevel::Rc.into();
    }
}

/// The answer as it is sent.
pub(crate) fn bend_answer(mut response: Response) -> Response {
    match (ACTIVE.get(), &mut response) {
        (Some(Mutation::LoseLastRow), Response::Scan(scan)) if scan.pairs.len() > 1 => {
            scan.pairs.pop();
        }
        (Some(Mutation::LoseLastFlushed), Response::BufferBatchGet(get)) if get.pairs.len() > 1 => {
            get.pairs.pop();
        }
        (Some(Mutation::LoseRawReads), Response::RawGet(get))
            if get.value.last().is_some_and(|last| last.is_multiple_of(5)) =>
        {
            get.value = Default::default();
            get.not_found = true;
        }
        _ => {}
    }
    response
}

/// The last timestamp of a grant, as it is told to a client.
pub(crate) fn bend_timestamp(client: u32, last: Timestamp) -> Timestamp {
    if is(Mutation::TimestampsBehind) && client.is_multiple_of(2) {
        return Timestamp::from_u64(last.as_u64() - (2_000 << PHYSICAL));
    }
    last
}
