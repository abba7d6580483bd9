//! Bulk load: clients write large transactions as they go, generation after generation, in locks
//! that stand until one commit makes all of them good, while others read and write the same keys.
//!
//! A client that dies half way leaves hundreds of locks behind, which whoever meets them ends by
//! asking for the primary alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use tikv_core::{Key, KeyRange, Result, Timestamp, Value, wire as encoding};
use tikv_proto::kvrpcpb::Op;

use super::session::Session;
use super::wire::commit::Ended;
use super::wire::pipelined::{Change, Pipelined};
use super::wire::{self, Speaker, Stop, Task};
use super::{CLEANED_UP, under_faults};
use crate::check::{Verdict, Violation};
use crate::history::{Outcome, TxnId};
use crate::sim::{Chance, Mark, Sim};

const KEYS_MAX: u64 = 120;
/// So many tries in vain are no coincidence.
const TRIES_MAX: u32 = 200;

fn key(number: u64) -> Key {
    Key::from(format!("bulk/{number:04}"))
}

fn everything() -> KeyRange {
    KeyRange::prefix("bulk/")
}

/// Where regions may begin.
pub(super) fn split_keys() -> Vec<Bytes> {
    (0..KEYS_MAX)
        .step_by(3)
        .map(|number| encoding::encode(&key(number)))
        .collect()
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Size {
    keys: u64,
    generations: u64,
    changes: u64,
    loads: u64,
    calls: u64,
}

/// Runs the loads and all their checks.
///
/// # Errors
///
/// The first violation.
pub async fn run(sim: Sim) -> Verdict {
    let chance = &mut sim.chance("bulk");
    let size = Size {
        keys: chance.magnitude(8..=KEYS_MAX),
        generations: chance.within(1..=10),
        changes: chance.magnitude(2..=40),
        loads: sim.at_most_operations(chance.within(1..=8)),
        calls: sim.at_most_operations(chance.magnitude(4..=24)),
    };
    let loaders = chance.within(1..=2) as u32;
    let clients = sim.at_most_clients(loaders + chance.within(1..=4) as u32);
    open(&sim, size).await?;

    under_faults(&sim, clients, |number| {
        let sim = sim.clone();
        async move {
            match number <= loaders {
                true => loader(Speaker::new(&sim, number), size).await,
                false => bystander(Session::new(&sim, number), size).await,
            }
        }
    })
    .await?;

    let mut auditor = Session::patient(&sim, clients + 1);
    auditor.clean_up(&everything()).await?;
    // Whatever still comes late has come by now.
    sim.sleep(CLEANED_UP).await;
    auditor.clean_up(&everything()).await?;
    let check = sim.check();
    check.manners()?;
    check.transactions()
}

/// Writes something everywhere, before anything goes wrong.
async fn open(sim: &Sim, size: Size) -> Verdict {
    let mut session = Session::patient(sim, 0);
    let txn = session.begin().await?;
    for number in (0..size.keys).step_by(2) {
        txn.put(&key(number), "0".into()).await?;
    }
    txn.commit().await?;
    Ok(())
}

/// A client that reads and writes a little at a time.
async fn bystander(mut session: Session, size: Size) -> Verdict {
    for n in 0..size.calls {
        session
            .once(async |session: &mut Session| {
                // What fails has failed; the next call tries something else.
                let _ = if session.chance.coin() {
                    look(session).await
                } else {
                    touch(session, size, n).await
                };
            })
            .await;
        session.pause().await;
    }
    session.recover(|session| Box::pin(look(session))).await?;
    session
        .recover(|session| Box::pin(touch(session, size, u64::MAX)))
        .await
}

/// Reads some keys, or all of them.
async fn look(session: &mut Session) -> Result<()> {
    let sim = session.sim().clone();
    let (reverse, page) = (
        session.chance.coin(),
        session.chance.magnitude(1..=64) as u32,
    );
    let some = [0, 1, 2].map(|_| key(session.chance.below(KEYS_MAX)));
    let whole = session.chance.coin();
    let txn = session.begin().await?;
    let range = everything();
    let reading = async {
        match whole {
            true => txn
                .scan(&range, usize::MAX, reverse, page)
                .await
                .map(|_| ()),
            false => txn.batch_get(&some).await.map(|_| ()),
        }
    };
    sim.may_cancel(reading).await.unwrap_or(Ok(()))
}

/// Writes one or two keys.
async fn touch(session: &mut Session, size: Size, n: u64) -> Result<()> {
    let number = session.number();
    let txn = session.begin().await?;
    for half in 0..session.chance.within(1..=2) {
        let key = key(session.chance.below(size.keys));
        match session.chance.below(4) {
            0 => txn.delete(&key).await?,
            _ => txn.put(&key, format!("{number}.{n}.{half}").into()).await?,
        }
    }
    txn.commit().await
}

/// A client that writes much at a time.
async fn loader(mut speaker: Speaker, size: Size) -> Verdict {
    for n in 0..size.loads {
        let done = speaker.once(async move |speaker: &mut Speaker| {
            Load::run(speaker, size, &n.to_string()).await
        });
        if let Some(done) = done.await {
            done?;
        }
        speaker.pause().await;
    }
    speaker.recover().await;
    let mut tries = 0;
    let small = Size {
        generations: 1,
        changes: 2,
        ..size
    };
    while !Load::run(&mut speaker, small, "last").await? {
        tries += 1;
        if tries > TRIES_MAX {
            let detail = format!("client {} never loads anything", speaker.number);
            return Err(Violation::new("recovery", detail));
        }
        speaker.pause().await;
    }
    Ok(())
}

/// One load.
struct Load<'a> {
    speaker: &'a mut Speaker,
    id: TxnId,
    txn: Pipelined,
    /// What it has flushed of each key last, a deletion being `None`.
    flushed: BTreeMap<Key, Option<Value>>,
    /// What it missed of that, if it did.
    missed: Option<String>,
}

/// Why a load does not go on.
enum End {
    /// A call was dropped.
    Dropped,
    /// Something is in the way.
    Stopped(Stop),
    /// It has changed its mind.
    Given,
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        End::Stopped(stop)
    }
}

impl Load<'_> {
    /// Does one; whether it is known to be committed.
    async fn run(
        speaker: &mut Speaker,
        size: Size,
        name: &str,
    ) -> std::result::Result<bool, Violation> {
        let sim = speaker.sim().clone();
        let id = sim.history().lock().begin(speaker.number, sim.now());
        let begun = speaker.run("begin", |task: Task| async move { task.timestamp().await });
        let Ok(start_ts) = begun.await else {
            return Ok(false);
        };
        sim.history().lock().began(id, start_ts);
        let txn = Pipelined::new(speaker, start_ts, wire::ttl(&sim));
        let mut this = Load {
            speaker,
            id,
            txn,
            flushed: BTreeMap::new(),
            missed: None,
        };
        match this.flush_all(size, name).await {
            Ok(()) => return this.commit(start_ts).await,
            Err(End::Stopped(stop)) => {
                stop.check()?;
                this.failed(format!("{stop:?}"));
            }
            Err(End::Dropped) => this.failed("dropped".to_owned()),
            Err(End::Given) => this.failed("given up".to_owned()),
        }
        // Some leave their locks to others.
        if !this.txn.is_empty() && this.speaker.chance.below(4) > 0 {
            this.txn.roll_back(this.speaker).await;
        }
        Ok(false)
    }

    fn failed(&self, why: String) {
        let sim = self.speaker.sim();
        sim.note(|| format!("load {} is given up: {why}", self.txn.start_ts));
        let outcome = Outcome::Failed(why);
        sim.history().lock().ended(self.id, sim.now(), outcome);
    }

    /// Flushes one generation after the other, and looks at what it has flushed.
    async fn flush_all(&mut self, size: Size, name: &str) -> std::result::Result<(), End> {
        let generations = self.speaker.chance.within(1..=size.generations);
        for generation in 1..=generations {
            let name = format!("{}.{name}.{generation}", self.speaker.number);
            let changes = draw(&mut self.speaker.chance, size, &self.flushed, &name);
            self.write_down(&changes);
            let flushing = self.txn.flush(self.speaker, changes).await;
            flushing.ok_or(End::Dropped)??;
            if self.speaker.chance.coin() {
                self.look().await?;
            }
            let ttl = wire::ttl(self.speaker.sim());
            self.speaker.ponder(ttl / 2).await;
            if self.speaker.chance.coin() {
                self.txn.heart_beat(self.speaker).await?;
            }
        }
        match self.speaker.chance.below(12) {
            0 => Err(End::Given),
            _ => Ok(()),
        }
    }

    fn write_down(&mut self, changes: &[Change]) {
        let mut history = self.speaker.sim().history().lock();
        for (key, op, value) in changes {
            let value = (*op != Op::Del).then(|| Value::from(value.clone()));
            match (op, &value) {
                (Op::Insert, Some(value)) => history.insert(self.id, key.clone(), value.clone()),
                _ => history.write(self.id, key.clone(), value.clone()),
            }
            self.flushed.insert(key.clone(), value);
        }
    }

    /// Reads some of what it has flushed, and some that it has not.
    async fn look(&mut self) -> std::result::Result<(), End> {
        let mut keys: Vec<Key> = self.flushed.keys().cloned().collect();
        while keys.len() > 8 {
            keys.swap_remove(self.speaker.chance.index(keys.len()));
        }
        keys.push(key(KEYS_MAX));
        let found = self.txn.read(self.speaker, keys.clone()).await?;
        for key in keys {
            let (expected, found) = (self.flushed.get(&key), found.get(&key));
            // One that has been rolled back by others has lost its locks; it must not commit.
            if expected != found {
                let missed = format!("{key:?} is {found:?}, not {expected:?}");
                self.missed.get_or_insert(missed);
            }
        }
        Ok(())
    }

    async fn commit(self, start_ts: Timestamp) -> std::result::Result<bool, Violation> {
        let sim = self.speaker.sim().clone();
        sim.history().lock().ending(self.id, sim.now());
        let leave_rest = self.speaker.chance.below(5) == 0;
        let Some(ended) = self.txn.commit(self.speaker, leave_rest).await else {
            sim.mark(Mark::CommitCancelled);
            return Ok(false);
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(stop) => {
                stop.check()?;
                Ended::Unknown
            }
        };
        sim.note(|| format!("load {start_ts} ends: {ended:?}"));
        let is_committed = matches!(ended, Ended::Committed { .. });
        if let (true, Some(missed)) = (is_committed, &self.missed) {
            let detail = format!("load {start_ts} is committed, though it saw that {missed}");
            return Err(Violation::new("own writes", detail));
        }
        if matches!(ended, Ended::Failed(_)) && !leave_rest {
            self.txn.roll_back(self.speaker).await;
        }
        wire::write_down(&sim, self.id, ended);
        Ok(is_committed)
    }
}

/// Draws the changes of one generation, each of another key.
fn draw(
    chance: &mut Chance,
    size: Size,
    flushed: &BTreeMap<Key, Option<Value>>,
    name: &str,
) -> Vec<Change> {
    let mut changes = BTreeMap::new();
    for n in 0..chance.within(1..=size.changes) {
        let key = key(chance.below(size.keys));
        let value = match chance.below(16) {
            // Too long to stand in the lock itself.
            0 => format!("{name}.{n}/{}", "x".repeat(300)),
            _ => format!("{name}.{n}"),
        };
        let is_there = matches!(flushed.get(&key), Some(Some(_)));
        let (op, value) = match chance.below(8) {
            0 | 1 => (Op::Del, String::new()),
            2 if !is_there => (Op::Insert, value),
            _ => (Op::Put, value),
        };
        changes.insert(key, (op, Bytes::from(value)));
    }
    let changes = changes.into_iter();
    changes.map(|(key, (op, value))| (key, op, value)).collect()
}
