//! What can be seen on the wire: the interesting states an exchange shows, its place in the
//! digest, its line in a timeline, and the raw writes it made.

use std::fmt;

use bytes::Bytes;
use tikv_core::driver::TransportError;
use tikv_core::wire::{Command, Response};
use tikv_core::{Key, Value};
use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{self, Action, Context, KeyError};

use super::digest::Digest;
use super::marks::{Mark, Marks};
use crate::dispatch::region_error;

type Outcome = Result<Response, TransportError>;

/// A request, however it came.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) context: Option<&'a Context>,
    pub(super) command: &'a Command,
}

impl Asked<'_> {
    /// The transaction that it is about, by its start; for a read, its version.
    pub(super) fn transaction(&self) -> Option<u64> {
        Some(match self.command {
            Command::Get(get) => get.version,
            Command::BatchGet(get) => get.version,
            Command::Scan(scan) => scan.version,
            Command::Prewrite(prewrite) => prewrite.start_version,
            Command::Commit(commit) => commit.start_version,
            Command::BatchRollback(rollback) => rollback.start_version,
            Command::PessimisticLock(lock) => lock.start_version,
            Command::PessimisticRollback(rollback) => rollback.start_version,
            Command::TxnHeartBeat(beat) => beat.start_version,
            Command::CheckTxnStatus(check) => check.lock_ts,
            Command::CheckSecondaryLocks(check) => check.start_version,
            Command::ResolveLock(resolve) => resolve.start_version,
            _ => return None,
        })
    }
}

/// Takes an exchange into the digest: enough of it that two runs that differ in anything that
/// matters differ here.
pub(super) fn digest(digest: &mut Digest, asked: Asked<'_>, outcome: &Outcome) {
    digest.bytes(asked.command.label().as_bytes());
    if let Some(context) = asked.context {
        digest.word(context.region_id);
        digest.word(context.region_epoch.map_or(0, |epoch| epoch.version));
    }
    match asked.command {
        Command::Get(get) => {
            digest.bytes(&get.key);
            digest.word(get.version);
        }
        Command::Prewrite(prewrite) => {
            digest.word(prewrite.start_version);
            prewrite.mutations.iter().for_each(|mutation| {
                digest.bytes(&mutation.key);
                digest.bytes(&mutation.value);
            });
        }
        Command::PessimisticLock(lock) => {
            digest.word(lock.start_version);
            let mutations = lock.mutations.iter();
            mutations.for_each(|mutation| digest.bytes(&mutation.key));
        }
        Command::Commit(commit) => {
            digest.word(commit.commit_version);
            commit.keys.iter().for_each(|key| digest.bytes(key));
        }
        Command::Scan(scan) => {
            digest.bytes(&scan.start_key);
            digest.word(scan.version);
        }
        Command::RawGet(get) => digest.bytes(&get.key),
        Command::RawPut(put) => {
            digest.bytes(&put.key);
            digest.bytes(&put.value);
        }
        // The label and the region say enough of the rest: what differs in them shows in time.
        _ => {}
    }
    match outcome {
        Ok(Response::Get(get)) => digest.bytes(&get.value),
        Ok(Response::Scan(scan)) => digest.word(scan.pairs.len() as u64),
        Ok(Response::RawGet(get)) => digest.bytes(&get.value),
        Ok(response) => digest.word(u64::from(region_error(response).is_some())),
        Err(_) => digest.word(2),
    }
}

/// Which interesting states an exchange shows.
pub(super) fn marks(marks: &mut Marks, command: &Command, outcome: &Outcome) {
    match outcome {
        Ok(response) => match region_error(response) {
            Some(error) => marks.reach(region_mark(error)),
            None => answer_marks(marks, command, response),
        },
        Err(TransportError::Status { message, .. }) if message.contains("not leader") => {
            marks.reach(Mark::PdNotLeader);
        }
        Err(_) => {}
    }
}

fn region_mark(error: &errorpb::Error) -> Mark {
    match error {
        error
            if error
                .not_leader
                .as_ref()
                .is_some_and(|it| it.leader.is_some()) =>
        {
            Mark::NotLeader
        }
        error if error.not_leader.is_some() => Mark::NoLeader,
        error if error.epoch_not_match.is_some() => Mark::EpochNotMatch,
        error if error.region_not_found.is_some() => Mark::RegionNotFound,
        error if error.proposal_in_merging_mode.is_some() => Mark::Merging,
        error if error.server_is_busy.is_some() => Mark::StoreBusy,
        error if error.disk_full.is_some() => Mark::DiskFull,
        error if error.recovery_in_progress.is_some() => Mark::Recovering,
        error if error.is_witness.is_some() => Mark::AskedWitness,
        error if error.flashback_in_progress.is_some() => Mark::FlashbackMet,
        error if error.store_not_match.is_some() => Mark::WrongStore,
        error if error.stale_command.is_some() => Mark::StaleCommand,
        _ => Mark::OtherRegionError,
    }
}

fn answer_marks(marks: &mut Marks, command: &Command, response: &Response) {
    let is_locked = |error: Option<&KeyError>| error.is_some_and(|error| error.locked.is_some());
    match (command, response) {
        (_, Response::Get(get)) if is_locked(get.error.as_deref()) => {
            marks.reach(Mark::ReadMetLock);
        }
        (_, Response::Scan(kvrpcpb::ScanResponse { pairs, error, .. }))
        | (_, Response::BatchGet(kvrpcpb::BatchGetResponse { pairs, error, .. }))
            if is_locked(error.as_deref())
                || pairs.iter().any(|pair| is_locked(pair.error.as_deref())) =>
        {
            marks.reach(Mark::ReadMetLock);
        }
        (_, Response::Prewrite(prewrite)) => {
            for error in &prewrite.errors {
                if error.locked.is_some() {
                    marks.reach(Mark::PrewriteMetLock);
                }
                if error.conflict.is_some() {
                    marks.reach(Mark::WriteConflict);
                }
            }
        }
        (_, Response::PessimisticLock(lock)) => {
            for error in &lock.errors {
                if error.conflict.is_some() {
                    marks.reach(Mark::WriteConflict);
                }
                if error.deadlock.is_some() {
                    marks.reach(Mark::Deadlock);
                }
            }
        }
        (_, Response::Commit(commit))
            if commit
                .error
                .as_ref()
                .is_some_and(|error| error.txn_lock_not_found.is_some()) =>
        {
            marks.reach(Mark::CommitLockGone);
        }
        (_, Response::CheckTxnStatus(status)) => marks.reach(status_mark(status)),
        (Command::ResolveLock(resolve), Response::ResolveLock(answer))
            if answer.error.is_none() =>
        {
            marks.reach(if resolve.commit_version > 0 {
                Mark::LockCommittedByOther
            } else {
                Mark::LockRolledBackByOther
            });
        }
        (_, Response::CheckSecondaryLocks(_)) => marks.reach(Mark::SecondariesAsked),
        (_, Response::TxnHeartBeat(_)) => marks.reach(Mark::HeartBeat),
        (_, Response::GetRegion(region)) if region.region.is_none() => {
            marks.reach(Mark::PdKnowsNoRegion);
        }
        _ => {}
    }
}

fn status_mark(status: &kvrpcpb::CheckTxnStatusResponse) -> Mark {
    match status.action() {
        Action::TtlExpireRollback | Action::TtlExpirePessimisticRollback => Mark::LockExpired,
        Action::LockNotExistRollback | Action::LockNotExistDoNothing => Mark::OwnerMissing,
        Action::NoAction | Action::MinCommitTsPushed if status.commit_version > 0 => {
            Mark::OwnerCommitted
        }
        Action::NoAction | Action::MinCommitTsPushed if status.error.is_some() => {
            Mark::OwnerMissing
        }
        Action::NoAction | Action::MinCommitTsPushed if status.lock_ttl == 0 => {
            Mark::OwnerRolledBack
        }
        Action::NoAction | Action::MinCommitTsPushed => Mark::LockAlive,
    }
}

/// The raw writes that an exchange made, `None` as the value of a deletion.
pub(super) fn raw_writes(command: &Command, response: &Response) -> Vec<(Key, Option<Value>)> {
    let value = |value: &Bytes| Some(Value::from(value.clone()));
    match (command, response) {
        (_, response) if region_error(response).is_some() => Vec::new(),
        (Command::RawPut(put), Response::RawPut(answer)) if answer.error.is_empty() => {
            vec![(put.key.clone().into(), value(&put.value))]
        }
        (Command::RawBatchPut(puts), Response::RawBatchPut(answer)) if answer.error.is_empty() => {
            puts.pairs
                .iter()
                .map(|pair| (pair.key.clone().into(), value(&pair.value)))
                .collect()
        }
        (Command::RawCompareAndSwap(swap), Response::RawCompareAndSwap(answer))
            if answer.succeed =>
        {
            vec![(swap.key.clone().into(), value(&swap.value))]
        }
        (Command::RawDelete(delete), Response::RawDelete(answer)) if answer.error.is_empty() => {
            vec![(delete.key.clone().into(), None)]
        }
        (Command::RawBatchDelete(deletes), Response::RawBatchDelete(answer))
            if answer.error.is_empty() =>
        {
            deletes
                .keys
                .iter()
                .map(|key| (key.clone().into(), None))
                .collect()
        }
        (Command::RawCompareAndSwap(swap), Response::RawCompareAndSwap(answer))
            if answer.succeed && !swap.delete =>
        {
            vec![(swap.key.clone().into(), value(&swap.value))]
        }
        _ => Vec::new(),
    }
}

/// Whether a request is about raw values.
pub(super) fn is_raw(command: &Command) -> bool {
    matches!(
        command,
        Command::RawGet(_)
            | Command::RawBatchGet(_)
            | Command::RawPut(_)
            | Command::RawBatchPut(_)
            | Command::RawDelete(_)
            | Command::RawBatchDelete(_)
            | Command::RawDeleteRange(_)
            | Command::RawCompareAndSwap(_)
            | Command::RawScan(_)
            | Command::RawBatchScan(_)
    )
}

/// The keys that a request names one by one, and whether they are raw.
pub(super) fn keys(command: &Command) -> (Vec<Bytes>, bool) {
    match command {
        Command::Get(get) => (vec![get.key.clone()], false),
        Command::BatchGet(get) => (get.keys.clone(), false),
        Command::Prewrite(prewrite) => (
            prewrite
                .mutations
                .iter()
                .map(|mutation| mutation.key.clone())
                .collect(),
            false,
        ),
        Command::Commit(commit) => (commit.keys.clone(), false),
        Command::BatchRollback(rollback) => (rollback.keys.clone(), false),
        Command::ResolveLock(resolve) => (resolve.keys.clone(), false),
        Command::CheckTxnStatus(check) => (vec![check.primary_key.clone()], false),
        Command::RawGet(get) => (vec![get.key.clone()], true),
        Command::RawPut(put) => (vec![put.key.clone()], true),
        Command::RawBatchPut(puts) => (
            puts.pairs.iter().map(|pair| pair.key.clone()).collect(),
            true,
        ),
        _ => (Vec::new(), false),
    }
}

/// A request as a line of a timeline begins.
impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = self.command;
        write!(f, "{}", command.label())?;
        if let Some(context) = self.context {
            let version = context.region_epoch.map_or(0, |epoch| epoch.version);
            write!(f, " r{}@{version}", context.region_id)?;
        }
        match command {
            Command::Get(get) => write!(f, " {} at {}", show(&get.key), get.version)?,
            Command::Scan(scan) => write!(
                f,
                " {}..{} at {}, {} at most{}",
                show(&scan.start_key),
                show(&scan.end_key),
                scan.version,
                scan.limit,
                if scan.reverse { ", reverse" } else { "" }
            )?,
            Command::Prewrite(prewrite) => {
                write!(
                    f,
                    " {} primary {}",
                    prewrite.start_version,
                    show(&prewrite.primary_lock)
                )?;
                for mutation in &prewrite.mutations {
                    write!(
                        f,
                        " {} {}",
                        mutation.op().as_str_name(),
                        show(&mutation.key)
                    )?;
                }
            }
            Command::PessimisticLock(lock) => {
                write!(f, " {} at {}", lock.start_version, lock.for_update_ts)?;
                for mutation in &lock.mutations {
                    write!(f, " {}", show(&mutation.key))?;
                }
            }
            Command::Commit(commit) => {
                write!(f, " {} at {}", commit.start_version, commit.commit_version)?;
            }
            Command::BatchRollback(rollback) => write!(f, " {}", rollback.start_version)?,
            Command::CheckTxnStatus(check) => {
                write!(f, " of {} at {}", check.lock_ts, check.current_ts)?;
            }
            Command::ResolveLock(resolve) => {
                write!(
                    f,
                    " {} at {}",
                    resolve.start_version, resolve.commit_version
                )?;
            }
            Command::RawPut(put) => write!(f, " {:?}", put.value)?,
            _ => {}
        }
        let (keys, _) = keys(command);
        if !matches!(command, Command::Get(_) | Command::Prewrite(_)) {
            for key in &keys {
                write!(f, " {}", show(key))?;
            }
        }
        Ok(())
    }
}

/// What came of a request, as a line of a timeline ends.
pub(super) struct Answer<'a>(pub(super) &'a Outcome);

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(response) => describe(f, response),
            Err(error) => write!(f, "{error}"),
        }
    }
}

fn describe(f: &mut fmt::Formatter<'_>, response: &Response) -> fmt::Result {
    if let Some(error) = region_error(response) {
        return write!(f, "{} ({})", region_mark(error), error.message);
    }
    let refused = |f: &mut fmt::Formatter<'_>, error: &KeyError| match error {
        KeyError {
            locked: Some(lock), ..
        } => write!(
            f,
            "{} is locked by {}, ttl {}",
            show(&lock.key),
            lock.lock_version,
            lock.lock_ttl
        ),
        KeyError {
            conflict: Some(conflict),
            ..
        } => write!(
            f,
            "{} conflicts with {} at {}",
            show(&conflict.key),
            conflict.conflict_ts,
            conflict.conflict_commit_ts
        ),
        KeyError {
            deadlock: Some(deadlock),
            ..
        } => {
            f.write_str("deadlock:")?;
            deadlock.wait_chain.iter().try_for_each(|wait| {
                let key = show(&wait.key);
                write!(f, " {} waits for {} on {key}", wait.txn, wait.wait_for_txn)
            })
        }
        other => write!(f, "{other:?}"),
    };
    match response {
        Response::Get(get) => match &get.error {
            Some(error) => refused(f, error),
            None if get.not_found => f.write_str("nothing"),
            None => write!(f, "{:?}", get.value),
        },
        Response::Scan(scan) => {
            for pair in &scan.pairs {
                match &pair.error {
                    Some(error) => refused(f, error)?,
                    None => write!(f, "{}={:?} ", show(&pair.key), pair.value)?,
                }
            }
            Ok(())
        }
        Response::Prewrite(kvrpcpb::PrewriteResponse { errors, .. })
        | Response::PessimisticLock(kvrpcpb::PessimisticLockResponse { errors, .. }) => {
            match errors.as_slice() {
                [] => f.write_str("locked"),
                errors => errors.iter().try_for_each(|error| refused(f, error)),
            }
        }
        Response::Commit(commit) => match &commit.error {
            Some(error) => refused(f, error),
            None => f.write_str("committed"),
        },
        Response::CheckTxnStatus(status) => write!(
            f,
            "{}, ttl {}, commit {}",
            status_mark(status),
            status.lock_ttl,
            status.commit_version
        ),
        Response::RawGet(get) => write!(f, "{:?}", get.value),
        _ => f.write_str("done"),
    }
}

fn show(key: &Bytes) -> Key {
    Key::from(key.clone())
}
