//! Locks that are taken before the commit: asked for, waited for, kept alive, given back.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tikv_core::driver::Instant;
use tikv_core::{Key, Timestamp, Value};
use tikv_proto::kvrpcpb::{
    self, Assertion, Op, PessimisticLockKeyResultType, PessimisticLockWakeUpMode,
};

use super::cleanup::Lock;
use super::{Speaker, Stop, Task};
#[cfg(feature = "mutations")]
use crate::mutation::{self, Mutation};

/// What a client knows of its own transaction.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// When it began.
    pub(crate) start_ts: Timestamp,
    /// The first key that it locked, or was going to.
    pub(crate) primary: Option<Key>,
    /// Up to where it has seen what others have written.
    pub(crate) for_update_ts: Timestamp,
    begun: Instant,
    ttl: Duration,
    /// Every key whose lock it has asked for, and the lock if it has got it.
    pub(crate) locks: BTreeMap<Key, Option<Granted>>,
}

/// A lock that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// No other transaction has written the key between then and its release.
    pub(crate) for_update_ts: Timestamp,
    /// It was taken whatever others had written, so the commit has to name it.
    pub(crate) forced: bool,
}

/// How locks are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Take the lock as it is when its turn comes; for single keys.
    pub(crate) force: bool,
    /// Wait at most so many milliseconds at the store; not at all if negative.
    pub(crate) wait_ms: i64,
    /// Give the values.
    pub(crate) values: bool,
    /// Say whether there are values.
    pub(crate) existence: bool,
    /// Lock nothing where there is no value.
    pub(crate) only_if_exists: bool,
    /// There must be no value.
    pub(crate) must_be_new: bool,
}

/// What a lock showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Of which key.
    pub(crate) key: Key,
    /// The lock; absent where there was no value to be locked.
    pub(crate) granted: Option<Granted>,
    /// As of when.
    pub(crate) at: Timestamp,
    /// Whether there was a value, if that was asked.
    pub(crate) exists: Option<bool>,
    /// The value, if it was asked.
    pub(crate) value: Option<Option<Value>>,
}

/// A live transaction's lock is met so often before whoever met it gives in.
const MEETINGS_MAX: u32 = 4;

impl Held {
    /// A transaction that has begun.
    pub(crate) fn new(speaker: &Speaker, start_ts: Timestamp, ttl: Duration) -> Self {
        Held {
            start_ts,
            primary: None,
            for_update_ts: start_ts,
            begun: speaker.sim().now(),
            ttl,
            locks: BTreeMap::new(),
        }
    }

    /// How long its locks are to live from its start on.
    pub(crate) fn ttl_ms(&self, now: Instant) -> u64 {
        (now.since(self.begun) + self.ttl).as_millis() as u64
    }

    /// The locks that were granted.
    pub(crate) fn granted(&self) -> impl Iterator<Item = (&Key, Granted)> {
        self.locks
            .iter()
            .filter_map(|(key, granted)| Some((key, (*granted)?)))
    }

    /// Locks keys; `None` if the call was dropped half way.
    pub(crate) async fn lock(
        &mut self,
        speaker: &Speaker,
        keys: &[Key],
        manner: Manner,
    ) -> Option<Result<Vec<Shown>, Stop>> {
        let first = self.locks.is_empty();
        if self.primary.is_none() {
            self.primary = keys.first().cloned();
        }
        for key in keys {
            self.locks.entry(key.clone()).or_insert(None);
        }
        let asking = Asking {
            start_ts: self.start_ts,
            primary: self.primary.clone().unwrap_or_default().into_bytes(),
            for_update_ts: self.for_update_ts,
            begun: self.begun,
            ttl: self.ttl,
            first,
            manner,
        };
        let keys = keys.to_vec();
        let work = speaker.run("pessimistic_lock", move |task| asking.ask(task, keys));
        let (shown, for_update_ts) = match speaker.sim().may_cancel(work).await? {
            Ok(granted) => granted,
            Err(stop) => return Some(Err(stop)),
        };
        self.for_update_ts = self.for_update_ts.max(for_update_ts);
        for one in &shown {
            if let Some(granted) = one.granted {
                self.locks.insert(one.key.clone(), Some(granted));
                self.for_update_ts = self.for_update_ts.max(granted.for_update_ts);
            }
        }
        Some(Ok(shown))
    }

    /// Keeps the locks alive for longer.
    pub(crate) async fn heart_beat(&self, speaker: &Speaker) -> Result<(), Stop> {
        let Some(primary) = self.primary.clone().map(Key::into_bytes) else {
            return Ok(());
        };
        let request = kvrpcpb::TxnHeartBeatRequest {
            primary_lock: primary.clone(),
            start_version: self.start_ts.as_u64(),
            advise_lock_ttl: self.ttl_ms(speaker.sim().now()),
            ..Default::default()
        };
        let beat = speaker.run("heart_beat", move |task: Task| async move {
            match task.call(&primary, request).await?.error {
                None => Ok(()),
                Some(error) => Err(Stop::refused(&error)),
            }
        });
        beat.await
    }

    /// Gives all locks back.
    pub(crate) async fn roll_back(&self, speaker: &Speaker) -> Result<(), Stop> {
        let keys: Vec<Bytes> = self
            .locks
            .keys()
            .map(|key| key.as_bytes().clone())
            .collect();
        let (start_version, for_update_ts) = (self.start_ts.as_u64(), u64::MAX);
        let work = speaker.run("pessimistic_rollback", move |task: Task| async move {
            task.pessimistic_rollback(start_version, for_update_ts, keys)
                .await
        });
        work.await
    }
}

/// A request for locks, as it is repeated.
#[derive(Clone)]
struct Asking {
    start_ts: Timestamp,
    primary: Bytes,
    for_update_ts: Timestamp,
    begun: Instant,
    ttl: Duration,
    first: bool,
    manner: Manner,
}

/// What an answer comes to.
enum Answered {
    Granted(Vec<Shown>),
    /// Somebody has written since; ask again as of now.
    Newer,
    /// A lock is in the way.
    Locked(Box<kvrpcpb::LockInfo>),
}

impl Asking {
    async fn ask(mut self, task: Task, keys: Vec<Key>) -> Result<(Vec<Shown>, Timestamp), Stop> {
        let mut left = keys;
        let (mut shown, mut meetings, mut retry) = (Vec::new(), 0, false);
        while !left.is_empty() {
            let (route, keys) = task.first_region(&mut left, |key| key).await?;
            let age = task.io.now().since(self.begun);
            let request = self.request(
                age,
                &keys,
                self.first && left.is_empty() && shown.is_empty(),
            );
            let Ok(answer) = task.send(&route, request, retry).await? else {
                retry = true;
                left.extend(keys);
                continue;
            };
            match self.judge(&keys, answer)? {
                Answered::Granted(more) => {
                    shown.extend(more);
                    retry = false;
                    continue;
                }
                Answered::Newer => {
                    let now = task.timestamp().await?;
                    self.for_update_ts = self.for_update_ts.max(now);
                }
                Answered::Locked(lock) => {
                    let stays = task.resolve(&lock, Timestamp::ZERO).await? == Lock::Stays;
                    if stays && (self.manner.wait_ms < 0 || meetings == MEETINGS_MAX) {
                        return Err(Stop::Blocked);
                    }
                    meetings += u32::from(stays);
                    task.nap(1).await?;
                }
            }
            left.extend(keys);
        }
        Ok((shown, self.for_update_ts))
    }

    fn request(
        &self,
        age: Duration,
        keys: &[Key],
        is_first_lock: bool,
    ) -> kvrpcpb::PessimisticLockRequest {
        let assertion = match self.manner.must_be_new {
            true => Assertion::NotExist,
            false => Assertion::None,
        };
        let mutation = |key: &Key| kvrpcpb::Mutation {
            op: Op::PessimisticLock.into(),
            key: key.as_bytes().clone(),
            assertion: assertion.into(),
            ..Default::default()
        };
        let mode = match self.manner.force {
            true => PessimisticLockWakeUpMode::WakeUpModeForceLock,
            false => PessimisticLockWakeUpMode::WakeUpModeNormal,
        };
        kvrpcpb::PessimisticLockRequest {
            mutations: keys.iter().map(mutation).collect(),
            primary_lock: self.primary.clone(),
            start_version: self.start_ts.as_u64(),
            lock_ttl: (age + self.ttl).as_millis() as u64,
            for_update_ts: self.for_update_ts.as_u64(),
            is_first_lock,
            wait_timeout: self.manner.wait_ms,
            return_values: self.manner.values,
            check_existence: self.manner.existence,
            lock_only_if_exists: self.manner.only_if_exists,
            min_commit_ts: self.for_update_ts.next().as_u64(),
            wake_up_mode: mode.into(),
            ..Default::default()
        }
    }

    fn judge(
        &self,
        keys: &[Key],
        answer: kvrpcpb::PessimisticLockResponse,
    ) -> Result<Answered, Stop> {
        if let Some(error) = answer.errors.into_iter().next() {
            if error.deadlock.is_some() {
                return Err(Stop::Deadlock);
            }
            if let Some(lock) = error.locked {
                return Ok(Answered::Locked(lock));
            }
            let newer = |conflict: &kvrpcpb::WriteConflict| {
                conflict.reason() == kvrpcpb::write_conflict::Reason::PessimisticRetry
            };
            if error.conflict.as_ref().is_some_and(newer) {
                return Ok(Answered::Newer);
            }
            return Err(Stop::refused(&error));
        }
        if !self.manner.force {
            let exists = |n: usize| answer.not_founds.get(n).map(|not_found| !not_found);
            let one = |(n, key): (usize, &Key)| {
                let value = answer.values.get(n).cloned().map(Value::from);
                self.shown(key, self.for_update_ts, exists(n), value)
            };
            return Ok(Answered::Granted(
                keys.iter().enumerate().map(one).collect(),
            ));
        }
        let [key] = keys else {
            return Err(Stop::Absurd(format!("locks of {keys:?} were forced")));
        };
        let Some(result) = answer.results.into_iter().next() else {
            return Err(Stop::Absurd(format!("no result of {key:?}")));
        };
        let exists = Some(result.existence);
        Ok(match result.r#type() {
            PessimisticLockKeyResultType::LockResultNormal => {
                let asked = self.manner.values || self.manner.existence;
                let exists = exists.filter(|_| asked);
                Answered::Granted(vec![self.shown(
                    key,
                    self.for_update_ts,
                    exists,
                    Some(result.value.into()),
                )])
            }
            PessimisticLockKeyResultType::LockResultLockedWithConflict => {
                let at = Timestamp::from_u64(result.locked_with_conflict_ts);
                let value = Some(Some(Value::from(result.value)).filter(|_| result.existence));
                let mut shown = self.shown(key, at, exists, None);
                shown.value = value;
                Answered::Granted(vec![shown])
            }
            PessimisticLockKeyResultType::LockResultFailed => {
                return Err(Stop::Absurd(format!("no reason why {key:?} was refused")));
            }
        })
    }

    /// What a granted lock shows of what was asked.
    fn shown(&self, key: &Key, at: Timestamp, exists: Option<bool>, value: Option<Value>) -> Shown {
        let locked = !self.manner.only_if_exists || exists == Some(true);
        Shown {
            key: key.clone(),
            granted: locked.then_some(Granted {
                for_update_ts: at,
                forced: self.manner.force,
            }),
            at,
            exists,
            value: self
                .manner
                .values
                .then(|| value.filter(|_| exists == Some(true))),
        }
    }
}

impl Held {
    /// Reads a locked key as of its lock.
    pub(crate) async fn read(
        &self,
        speaker: &Speaker,
        key: &Key,
        at: Timestamp,
    ) -> Result<Option<Value>, Stop> {
        let (key, version) = (key.as_bytes().clone(), at.as_u64());
        #[cfg(feature = "mutations")]
        let version = match mutation::is(Mutation::ReadBeforeLock) {
            true => self.start_ts.as_u64(),
            false => version,
        };
        let read = speaker.run("read_locked", move |task: Task| async move {
            loop {
                let request = kvrpcpb::GetRequest {
                    key: key.clone(),
                    version,
                    ..Default::default()
                };
                let answer = task.call(&key, request).await?;
                let Some(error) = answer.error else {
                    return Ok((!answer.not_found).then(|| answer.value.into()));
                };
                // The lock may have been lost, and another may have come in its place.
                let Some(lock) = error.locked else {
                    return Err(Stop::refused(&error));
                };
                task.resolve(&lock, at).await?;
                task.nap(20).await?;
            }
        });
        read.await
    }
}

impl Task {
    /// Takes pessimistic locks of a transaction away.
    pub(super) async fn pessimistic_rollback(
        &self,
        start_version: u64,
        for_update_ts: u64,
        mut left: Vec<Bytes>,
    ) -> Result<(), Stop> {
        while !left.is_empty() {
            let (route, keys) = self.first_region(&mut left, |key| key).await?;
            let request = kvrpcpb::PessimisticRollbackRequest {
                start_version,
                for_update_ts,
                keys: keys.clone(),
                ..Default::default()
            };
            match self.send(&route, request, false).await? {
                Err(_) => left.extend(keys),
                Ok(answer) => {
                    if let Some(error) = answer.errors.first() {
                        return Err(Stop::Absurd(format!("{error:?}")));
                    }
                }
            }
        }
        Ok(())
    }
}
