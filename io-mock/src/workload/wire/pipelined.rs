//! A transaction that writes its locks as it goes, generation after generation, and ends them by
//! their range.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tikv_core::driver::Instant;
use tikv_core::{Key, KeyRange, Timestamp, Value};
use tikv_proto::kvrpcpb::{self, Op};

use super::cleanup::Lock;
use super::commit::Ended;
use super::{Speaker, Stop, Task};
#[cfg(feature = "mutations")]
use crate::mutation::{self, Mutation};

/// What a client knows of its own transaction.
#[derive(Clone, Debug)]
pub(crate) struct Pipelined {
    /// When it began.
    pub(crate) start_ts: Timestamp,
    begun: Instant,
    ttl: Duration,
    /// The first key that it flushed, or was going to.
    primary: Option<Key>,
    generation: u64,
    /// The least key and the greatest.
    span: Option<(Key, Key)>,
    /// It does not commit below; readers have been told.
    min_commit_ts: Timestamp,
}

/// One change of a key.
pub(crate) type Change = (Key, Op, Bytes);

impl Pipelined {
    /// A transaction that has begun.
    pub(crate) fn new(speaker: &Speaker, start_ts: Timestamp, ttl: Duration) -> Self {
        Pipelined {
            start_ts,
            begun: speaker.sim().now(),
            ttl,
            primary: None,
            generation: 0,
            span: None,
            min_commit_ts: start_ts.next(),
        }
    }

    fn ttl_ms(&self, speaker: &Speaker) -> u64 {
        (speaker.sim().now().since(self.begun) + self.ttl).as_millis() as u64
    }

    /// Whether something may have been written.
    pub(crate) fn is_empty(&self) -> bool {
        self.generation == 0
    }

    /// Writes the next generation; `None` if the call was dropped half way.
    pub(crate) async fn flush(
        &mut self,
        speaker: &Speaker,
        changes: Vec<Change>,
    ) -> Option<Result<(), Stop>> {
        for (key, _, _) in &changes {
            let (first, last) = self.span.take().unwrap_or((key.clone(), key.clone()));
            self.span = Some((first.min(key.clone()), last.max(key.clone())));
            self.primary.get_or_insert_with(|| key.clone());
        }
        self.generation += 1;
        #[cfg(feature = "mutations")]
        if mutation::is(Mutation::RepeatGeneration) {
            self.generation = 1;
        }
        let flushing = Flushing {
            start_ts: self.start_ts,
            primary: self.primary.clone().unwrap_or_default().into_bytes(),
            generation: self.generation,
            ttl_ms: self.ttl_ms(speaker),
        };
        let work = speaker.run("flush", move |task| flushing.run(task, changes));
        speaker.sim().may_cancel(work).await
    }

    /// What of these keys is flushed; `None` in place of a value for a deletion.
    pub(crate) async fn read(
        &self,
        speaker: &Speaker,
        keys: Vec<Key>,
    ) -> Result<BTreeMap<Key, Option<Value>>, Stop> {
        let version = self.start_ts.as_u64();
        let work = speaker.run("buffer_batch_get", move |task: Task| async move {
            let (mut left, mut found) = (keys, BTreeMap::new());
            while !left.is_empty() {
                let (route, keys) = task.first_region(&mut left, |key| key).await?;
                let request = kvrpcpb::BufferBatchGetRequest {
                    keys: keys.iter().map(|key| key.as_bytes().clone()).collect(),
                    version,
                    ..Default::default()
                };
                match task.send(&route, request, false).await? {
                    Err(_) => left.extend(keys),
                    Ok(answer) => {
                        if let Some(error) = answer.error {
                            return Err(Stop::refused(&error));
                        }
                        let value = |value: Bytes| (!value.is_empty()).then(|| value.into());
                        let pairs = answer.pairs.into_iter();
                        found.extend(pairs.map(|pair| (pair.key.into(), value(pair.value))));
                    }
                }
            }
            Ok(found)
        });
        work.await
    }

    /// Keeps the locks alive for longer, and tells readers from when on it will be there.
    pub(crate) async fn heart_beat(&mut self, speaker: &Speaker) -> Result<(), Stop> {
        let Some(primary) = self.primary.clone().map(Key::into_bytes) else {
            return Ok(());
        };
        let (start_version, advise_lock_ttl) = (self.start_ts.as_u64(), self.ttl_ms(speaker));
        let beat = speaker.run("heart_beat", move |task: Task| async move {
            let min_commit_ts = task.timestamp().await?;
            let request = kvrpcpb::TxnHeartBeatRequest {
                primary_lock: primary.clone(),
                start_version,
                advise_lock_ttl,
                min_commit_ts: min_commit_ts.as_u64(),
                ..Default::default()
            };
            if let Some(error) = task.call(&primary, request).await?.error {
                return Err(Stop::refused(&error));
            }
            let status = kvrpcpb::TxnStatus {
                start_ts: start_version,
                min_commit_ts: min_commit_ts.as_u64(),
                ..Default::default()
            };
            task.broadcast(status).await;
            Ok(min_commit_ts)
        });
        self.min_commit_ts = beat.await?;
        Ok(())
    }

    /// Commits: the primary, and then whatever it has written, by its range. `leave_rest` leaves
    /// that to others. `None` if the call was dropped half way.
    pub(crate) async fn commit(
        &self,
        speaker: &Speaker,
        leave_rest: bool,
    ) -> Option<Result<Ended, Stop>> {
        let this = self.clone();
        let work = speaker.run("commit_pipelined", move |task: Task| async move {
            let primary = this.primary.clone().unwrap_or_default();
            #[cfg(feature = "mutations")]
            if mutation::is(Mutation::EndRangeFirst) {
                this.end(&task, task.timestamp().await?);
            }
            let ended = task.commit_primary(this.start_ts, &primary).await?;
            if let Ended::Committed { commit_ts, .. } = &ended
                && !leave_rest
            {
                this.end(&task, *commit_ts);
            }
            Ok(ended)
        });
        speaker.sim().may_cancel(work).await
    }

    /// Rolls everything back, in the background.
    pub(crate) async fn roll_back(&self, speaker: &Speaker) {
        let this = self.clone();
        let work = speaker.run("roll_back_pipelined", move |task: Task| async move {
            this.end(&task, Timestamp::ZERO);
        });
        work.await;
    }

    /// Ends all locks in the range, in the background, as of a commit or, if that is zero, of a
    /// rollback.
    fn end(&self, task: &Task, commit_ts: Timestamp) {
        let Some((first, last)) = self.span.clone() else {
            return;
        };
        let mut status = kvrpcpb::TxnStatus {
            start_ts: self.start_ts.as_u64(),
            min_commit_ts: self.min_commit_ts.as_u64(),
            commit_ts: commit_ts.as_u64(),
            rolled_back: commit_ts.is_zero(),
            is_completed: false,
        };
        let range = KeyRange::new(first, Some(last.next()));
        task.behind("end_range", move |task| async move {
            task.broadcast(status).await;
            let resolve = |_: &Bytes, _: &Bytes| kvrpcpb::ResolveLockRequest {
                start_version: status.start_ts,
                commit_version: status.commit_ts,
                ..Default::default()
            };
            if task.sweep(&range, resolve).await.is_ok() {
                status.is_completed = true;
                task.broadcast(status).await;
            }
        });
    }
}

/// One generation on its way.
struct Flushing {
    start_ts: Timestamp,
    primary: Bytes,
    generation: u64,
    ttl_ms: u64,
}

impl Flushing {
    async fn run(self, task: Task, changes: Vec<Change>) -> Result<(), Stop> {
        let (mut left, mut retry) = (changes, false);
        while !left.is_empty() {
            let (route, changes) = task.first_region(&mut left, |(key, _, _)| key).await?;
            let mutation = |(key, op, value): &Change| kvrpcpb::Mutation {
                op: (*op).into(),
                key: key.as_bytes().clone(),
                value: value.clone(),
                ..Default::default()
            };
            let request = kvrpcpb::FlushRequest {
                mutations: changes.iter().map(mutation).collect(),
                primary_key: self.primary.clone(),
                start_ts: self.start_ts.as_u64(),
                min_commit_ts: self.start_ts.next().as_u64(),
                generation: self.generation,
                lock_ttl: self.ttl_ms,
                ..Default::default()
            };
            let Ok(answer) = task.send(&route, request, retry).await? else {
                retry = true;
                left.extend(changes);
                continue;
            };
            if answer.errors.is_empty() {
                continue;
            }
            for error in answer.errors {
                let Some(lock) = error.locked else {
                    return Err(Stop::refused(&error));
                };
                if lock.lock_version > self.start_ts.as_u64() {
                    let newer = format!("{} has been locked since", lock.lock_version);
                    return Err(Stop::Over(newer));
                }
                if task.resolve(&lock, self.start_ts).await? == Lock::Stays {
                    task.nap(40).await?;
                }
            }
            left.extend(changes);
        }
        Ok(())
    }
}
