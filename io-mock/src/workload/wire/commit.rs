//! The end of a transaction that has taken its locks before: in two phases, asynchronous, or in
//! one.
//!
//! A request that may have committed the transaction and was not answered, or that was refused for
//! a reason that may pass, is settled by rolling its primary back: that says how it went, and keeps
//! what still travels from taking effect. What can't be settled is undetermined.

use bytes::Bytes;
use tikv_core::{Key, Timestamp};
use tikv_proto::kvrpcpb::{
    self, Assertion, AssertionLevel, Op, prewrite_request::ForUpdateTsConstraint,
    prewrite_request::PessimisticAction,
};

use super::cleanup::Lock;
use super::{Stop, Task};
#[cfg(feature = "mutations")]
use crate::mutation::{self, Mutation};

/// One key of a transaction that ends.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// Which.
    pub(crate) key: Key,
    /// What is done to it.
    pub(crate) op: Op,
    /// Its new value, if it gets one.
    pub(crate) value: Bytes,
    /// What is to be looked at before.
    pub(crate) action: PessimisticAction,
    /// The lock that is to be there, if it was forced.
    pub(crate) expected: Option<Timestamp>,
    /// What is said of the key before.
    pub(crate) assertion: Assertion,
}

/// How a transaction is to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Locks, then a commit.
    TwoPhases,
    /// It is committed once all locks are there.
    Asynchronous,
    /// Without locks, if all keys are in one region.
    OnePhase,
}

/// A transaction that ends.
#[derive(Clone, Debug)]
pub(crate) struct Committing {
    /// When it began.
    pub(crate) start_ts: Timestamp,
    /// The newest version it has seen.
    pub(crate) for_update_ts: Timestamp,
    /// Its primary.
    pub(crate) primary: Key,
    /// How long its locks live.
    pub(crate) ttl_ms: u64,
    /// What it has locked and written; the primary is among it.
    pub(crate) writes: Vec<Write>,
    /// How.
    pub(crate) way: Way,
    /// An asynchronous commit, or one in one phase, is no later than so long after now.
    pub(crate) max_commit_ms: u64,
    /// Leave all but the primary to others.
    pub(crate) leave_rest: bool,
    /// Stores hold assertions against what is there.
    pub(crate) strict: bool,
}

/// How a transaction has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Committed then.
    Committed {
        /// When.
        commit_ts: Timestamp,
        /// The stores have chosen the timestamp, PD has not.
        calculated: bool,
    },
    /// Not committed, and it never will be.
    Failed(String),
    /// Nobody knows.
    Unknown,
}

/// What all prewrites have come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prewritten {
    /// In one phase.
    Committed(Timestamp),
    /// Asynchronously.
    Locked(Timestamp),
    /// Now it needs a commit.
    Plain,
}

impl Committing {
    /// Commits it.
    pub(crate) async fn run(mut self, task: Task) -> Result<Ended, Stop> {
        let mut open = false;
        let prewritten = match self.prewrite(&task, &mut open).await {
            Ok(prewritten) => prewritten,
            Err(Stop::Absurd(what)) => return Err(Stop::Absurd(what)),
            Err(why) if open => return self.settle(&task, format!("{why:?}")).await,
            Err(why) => {
                self.undo(&task);
                return Ok(Ended::Failed(format!("{why:?}")));
            }
        };
        let (commit_ts, calculated) = match prewritten {
            Prewritten::Committed(commit_ts) => {
                return Ok(Ended::Committed {
                    commit_ts,
                    calculated: true,
                });
            }
            Prewritten::Locked(commit_ts) => (commit_ts, true),
            Prewritten::Plain => match task.commit_primary(self.start_ts, &self.primary).await? {
                Ended::Committed { commit_ts, .. } => (commit_ts, false),
                other => {
                    if matches!(other, Ended::Failed(_)) {
                        self.undo(&task);
                    }
                    return Ok(other);
                }
            },
        };
        if !self.leave_rest {
            let keys = self.writes.iter().map(|write| write.key.as_bytes().clone());
            let keys: Vec<Bytes> = keys.collect();
            let start_version = self.start_ts.as_u64();
            task.behind("commit_rest", move |task| async move {
                let done = task
                    .commit_keys(start_version, commit_ts.as_u64(), keys)
                    .await;
                // Whoever meets these locks does the same.
                drop(done);
            });
        }
        Ok(Ended::Committed {
            commit_ts,
            calculated,
        })
    }

    /// Locks all keys for the commit. `open` says that it may be committed from now on.
    async fn prewrite(&mut self, task: &Task, open: &mut bool) -> Result<Prewritten, Stop> {
        let now = task.timestamp().await?;
        // Whoever has been told of a commit before this one is asked for is below it.
        let least = now.max(self.for_update_ts).next();
        let most = Timestamp::new(now.physical_ms() + self.max_commit_ms, 0);
        let mut commit_ts = Timestamp::ZERO;
        let mut left = self.writes.clone();
        let mut retry = false;
        while !left.is_empty() {
            let (route, writes) = task.first_region(&mut left, |write| &write.key).await?;
            if self.way == Way::OnePhase && writes.len() < self.writes.len() {
                if *open {
                    return Err(Stop::Over("its region has split".to_owned()));
                }
                self.way = Way::TwoPhases;
            }
            *open |= self.way != Way::TwoPhases;
            let request = self.request(&writes, least, most);
            let Ok(answer) = task.send(&route, request, retry).await? else {
                retry = true;
                left.extend(writes);
                continue;
            };
            if !answer.errors.is_empty() {
                for error in answer.errors {
                    let Some(lock) = error.locked else {
                        return Err(Stop::refused(&error));
                    };
                    if task.resolve(&lock, self.start_ts).await? == Lock::Stays {
                        task.nap(30).await?;
                    }
                }
                left.extend(writes);
                continue;
            }
            let (one, least) = (answer.one_pc_commit_ts, answer.min_commit_ts);
            let told = one.max(least);
            if told > most.as_u64() {
                return Err(Stop::Absurd(format!(
                    "transaction {} is to commit at {told}, no later than {most}",
                    self.start_ts
                )));
            }
            match self.way {
                Way::OnePhase if one > 0 => return Ok(Prewritten::Committed(one.into())),
                #[cfg(feature = "mutations")]
                Way::Asynchronous
                    if least > 0
                        && !commit_ts.is_zero()
                        && mutation::is(Mutation::CommitTooEarly) =>
                {
                    commit_ts = commit_ts.min(least.into());
                }
                Way::Asynchronous if least > 0 => commit_ts = commit_ts.max(least.into()),
                // The store has fallen back.
                Way::OnePhase | Way::Asynchronous => self.way = Way::TwoPhases,
                Way::TwoPhases => {}
            }
        }
        Ok(match self.way {
            Way::Asynchronous => Prewritten::Locked(commit_ts),
            Way::OnePhase | Way::TwoPhases => Prewritten::Plain,
        })
    }

    fn request(
        &self,
        writes: &[Write],
        least: Timestamp,
        most: Timestamp,
    ) -> kvrpcpb::PrewriteRequest {
        let mutation = |write: &Write| kvrpcpb::Mutation {
            op: write.op.into(),
            key: write.key.as_bytes().clone(),
            value: write.value.clone(),
            assertion: write.assertion.into(),
        };
        let constraint = |(index, write): (usize, &Write)| {
            Some(ForUpdateTsConstraint {
                index: index as u32,
                expected_for_update_ts: write.expected?.as_u64(),
            })
        };
        let asynchronous = self.way == Way::Asynchronous;
        let has_primary = writes.iter().any(|write| write.key == self.primary);
        let rest = self.writes.iter().filter(|write| write.key != self.primary);
        let level = match self.strict {
            true => AssertionLevel::Strict,
            false => AssertionLevel::Off,
        };
        // The lock must not expire before the latest moment of its commit: otherwise others could
        // not tell whether it did.
        let safe_ttl = most
            .physical_ms()
            .saturating_sub(self.start_ts.physical_ms())
            + 1;
        kvrpcpb::PrewriteRequest {
            mutations: writes.iter().map(mutation).collect(),
            primary_lock: self.primary.as_bytes().clone(),
            start_version: self.start_ts.as_u64(),
            lock_ttl: match asynchronous {
                true => self.ttl_ms.max(safe_ttl),
                false => self.ttl_ms,
            },
            pessimistic_actions: writes.iter().map(|write| action(write).into()).collect(),
            txn_size: self.writes.len() as u64,
            for_update_ts: self.for_update_ts.as_u64(),
            min_commit_ts: least.as_u64(),
            max_commit_ts: match self.way {
                Way::TwoPhases => 0,
                Way::Asynchronous | Way::OnePhase => most.as_u64(),
            },
            use_async_commit: asynchronous,
            secondaries: match asynchronous && has_primary {
                true => rest.map(|write| write.key.as_bytes().clone()).collect(),
                false => Vec::new(),
            },
            try_one_pc: self.way == Way::OnePhase,
            assertion_level: level.into(),
            for_update_ts_constraints: writes.iter().enumerate().filter_map(constraint).collect(),
            ..Default::default()
        }
    }

    /// Rolls the primary back, or learns that it has been committed.
    async fn settle(&self, task: &Task, why: String) -> Result<Ended, Stop> {
        let request = kvrpcpb::CleanupRequest {
            key: self.primary.as_bytes().clone(),
            start_version: self.start_ts.as_u64(),
            ..Default::default()
        };
        #[cfg(feature = "mutations")]
        if mutation::is(Mutation::TakeLostForFailed) {
            return Ok(Ended::Failed(why));
        }
        let again = task.again();
        let Ok(answer) = again.call(&self.primary, request).await else {
            return Ok(Ended::Unknown);
        };
        if let Some(error) = answer.error {
            return Err(Stop::Absurd(format!("{error:?}")));
        }
        if answer.commit_version > 0 {
            return Ok(Ended::Committed {
                commit_ts: answer.commit_version.into(),
                calculated: true,
            });
        }
        self.undo(task);
        Ok(Ended::Failed(why))
    }

    /// Gives everything back, behind the caller's back.
    fn undo(&self, task: &Task) {
        if self.leave_rest {
            return;
        }
        let keys = self.writes.iter().map(|write| write.key.as_bytes().clone());
        let keys: Vec<Bytes> = keys.collect();
        let start_version = self.start_ts.as_u64();
        task.behind("undo", move |task| async move {
            let done = task.roll_back_keys(start_version, keys.clone()).await;
            let done = done.and(
                task.pessimistic_rollback(start_version, u64::MAX, keys)
                    .await,
            );
            // Whoever meets these locks does the same.
            drop(done);
        });
    }
}

fn action(write: &Write) -> PessimisticAction {
    #[cfg(feature = "mutations")]
    if mutation::is(Mutation::SkipLockChecks) {
        return PessimisticAction::SkipPessimisticCheck;
    }
    write.action
}

impl Task {
    /// Commits the primary of a transaction whose locks are all there.
    pub(super) async fn commit_primary(
        &self,
        start_ts: Timestamp,
        primary: &Key,
    ) -> Result<Ended, Stop> {
        let primary = primary.as_bytes();
        let mut commit_ts = match self.timestamp().await {
            Ok(ts) => ts,
            Err(_) => return Ok(Ended::Failed("no timestamp to commit at".to_owned())),
        };
        loop {
            let request = kvrpcpb::CommitRequest {
                start_version: start_ts.as_u64(),
                keys: vec![primary.clone()],
                commit_version: commit_ts.as_u64(),
                primary_key: primary.clone(),
                ..Default::default()
            };
            let error = match self.call(primary, request).await {
                Ok(answer) => answer.error,
                #[cfg(feature = "mutations")]
                Err(why) if mutation::is(Mutation::TakeLostForFailed) => {
                    return Ok(Ended::Failed(format!("{why:?}")));
                }
                Err(_) => return Ok(Ended::Unknown),
            };
            let Some(error) = error else {
                return Ok(Ended::Committed {
                    commit_ts,
                    calculated: false,
                });
            };
            if error.commit_ts_expired.is_none() {
                return match Stop::refused(&error) {
                    Stop::Absurd(what) => Err(Stop::Absurd(what)),
                    other => Ok(Ended::Failed(format!("{other:?}"))),
                };
            }
            commit_ts = match self.timestamp().await {
                Ok(ts) => ts,
                // It was refused, and what still travels will be, too.
                Err(_) => return Ok(Ended::Failed("no timestamp to commit at".to_owned())),
            };
        }
    }

    /// Commits keys of a transaction whose primary is committed.
    pub(super) async fn commit_keys(
        &self,
        start_version: u64,
        commit_version: u64,
        keys: Vec<Bytes>,
    ) -> Result<(), Stop> {
        let request = |keys| kvrpcpb::CommitRequest {
            start_version,
            commit_version,
            keys,
            ..Default::default()
        };
        self.for_parts(keys, request, |answer| accepted(answer.error.as_deref()))
            .await
    }

    /// Rolls keys back.
    async fn roll_back_keys(&self, start_version: u64, keys: Vec<Bytes>) -> Result<(), Stop> {
        let request = |keys| kvrpcpb::BatchRollbackRequest {
            start_version,
            keys,
            ..Default::default()
        };
        self.for_parts(keys, request, |answer| accepted(answer.error.as_deref()))
            .await
    }
}

fn accepted(error: Option<&kvrpcpb::KeyError>) -> Result<(), Stop> {
    error.map_or(Ok(()), |error| Err(Stop::refused(error)))
}
