//! A client of the queues that locks before it writes.

use bytes::Bytes;
use tikv_core::{Key, Timestamp, Value};
use tikv_proto::kvrpcpb::{Assertion, Op, prewrite_request::PessimisticAction};

use super::{Deeds, TRIES_MAX, head, item, note, tail};
use crate::check::queue::Deed;
use crate::check::{Verdict, Violation, sum};
use crate::history::{Outcome, Query, TxnId};
use crate::sim::{Chance, Mark};
use crate::workload::wire::commit::{Committing, Ended, Way, Write};
use crate::workload::wire::pessimistic::{Held, Manner, Shown};
use crate::workload::wire::{self, Speaker, Stop, Task};

/// What a transaction does.
#[derive(Clone, Copy, Debug)]
enum Chore {
    Put { into: usize },
    Take { from: usize },
    Move { from: usize, into: usize },
}

impl Chore {
    fn draw(chance: &mut Chance, queues: usize) -> Self {
        let (from, into) = (chance.index(queues), chance.index(queues));
        match chance.below(5) {
            0 | 1 => Chore::Put { into },
            2 | 3 => Chore::Take { from },
            _ => Chore::Move { from, into },
        }
    }

    fn from(self) -> Option<usize> {
        match self {
            Chore::Put { .. } => None,
            Chore::Take { from } | Chore::Move { from, .. } => Some(from),
        }
    }

    fn into(self) -> Option<usize> {
        match self {
            Chore::Take { .. } => None,
            Chore::Put { into } | Chore::Move { into, .. } => Some(into),
        }
    }
}

/// A client that locks before it writes.
pub(super) async fn run(mut speaker: Speaker, queues: usize, calls: u64, deeds: Deeds) -> Verdict {
    for n in 0..calls {
        let chore = Chore::draw(&mut speaker.chance, queues);
        let deeds = deeds.clone();
        let done = speaker.once(async move |speaker: &mut Speaker| {
            Transaction::run(speaker, chore, &n.to_string(), &deeds).await
        });
        if let Some(done) = done.await {
            done?;
        }
        speaker.pause().await;
    }
    speaker.recover().await;
    for chore in [Chore::Put { into: 0 }, Chore::Take { from: 0 }] {
        let mut tries = 0;
        while !Transaction::run(&mut speaker, chore, "last", &deeds).await? {
            tries += 1;
            if tries > TRIES_MAX {
                let detail = format!("client {} never gets to {chore:?}", speaker.number);
                return Err(Violation::new("recovery", detail));
            }
            speaker.pause().await;
        }
    }
    Ok(())
}

/// How one transaction goes on.
type Step<T> = Result<T, End>;

/// Why it does not.
#[derive(Debug)]
enum End {
    /// A call was dropped.
    Dropped,
    /// Something is in the way.
    Stopped(Stop),
    /// There is nothing to be done, or it has changed its mind.
    Done,
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        End::Stopped(stop)
    }
}

/// One transaction with locks.
struct Transaction<'a> {
    speaker: &'a mut Speaker,
    id: TxnId,
    held: Held,
    deed: Deed,
    writes: Vec<Write>,
}

impl Transaction<'_> {
    /// Does a chore; whether it is done.
    async fn run(
        speaker: &mut Speaker,
        chore: Chore,
        name: &str,
        deeds: &Deeds,
    ) -> Result<bool, Violation> {
        let sim = speaker.sim().clone();
        let id = sim.history().lock().begin(speaker.number, sim.now());
        let begun = speaker.run("begin", |task: Task| async move { task.timestamp().await });
        let Ok(start_ts) = begun.await else {
            return Ok(false);
        };
        sim.history().lock().began(id, start_ts);
        let held = Held::new(speaker, start_ts, wire::ttl(&sim));
        let deed = Deed {
            start_ts,
            ..Deed::default()
        };
        let mut this = Transaction {
            speaker,
            id,
            held,
            deed,
            writes: Vec::new(),
        };
        let why = match this.prepare(chore, name).await {
            Ok(()) => {
                note(deeds, std::mem::take(&mut this.deed));
                return this.commit().await;
            }
            Err(End::Stopped(stop)) => {
                stop.check()?;
                format!("{stop:?}")
            }
            Err(other) => format!("{other:?}"),
        };
        let deed = Deed {
            start_ts,
            told: std::mem::take(&mut this.deed.told),
            ..Deed::default()
        };
        note(deeds, deed);
        // Some leave their locks to others.
        if this.speaker.chance.below(8) > 0
            && let Err(stop) = this.held.roll_back(this.speaker).await
        {
            stop.check()?;
        }
        let is_done = why == format!("{:?}", End::Done);
        sim.note(|| format!("transaction {start_ts} is given up: {why}"));
        let outcome = Outcome::Failed(why);
        sim.history().lock().ended(id, sim.now(), outcome);
        Ok(is_done)
    }

    /// Takes all locks and finds out what there is to write.
    async fn prepare(&mut self, chore: Chore, name: &str) -> Step<()> {
        let mut counters = Vec::new();
        counters.extend(chore.from().map(head));
        counters.extend(chore.into().map(tail));
        // To be sure that nobody puts anything in.
        if let Some(from) = chore.from()
            && self.speaker.chance.coin()
            && chore.into() != Some(from)
        {
            counters.push(tail(from));
        }
        if self.speaker.chance.coin() {
            counters.reverse();
        }
        let numbers = self.lock_counters(counters).await?;
        let number = |key: &Key| {
            let found = numbers.iter().find(|(counter, _)| counter == key);
            found.map_or(0, |(_, number)| *number)
        };
        let mut taken = Vec::new();
        if let Some(from) = chore.from() {
            let first = number(&head(from));
            let wanted = self.speaker.chance.within(1..=2);
            taken = self.take(from, first, wanted).await?;
            if taken.is_empty() {
                return Err(End::Done);
            }
            let head = head(from);
            self.write(head, Op::Put, (first + taken.len() as u64).to_string());
            self.deed
                .taken
                .extend(taken.iter().map(|value| (from, value.clone())));
        }
        if let Some(into) = chore.into() {
            let values = match chore {
                Chore::Move { .. } => taken,
                _ => (0..self.speaker.chance.within(1..=2))
                    .map(|n| format!("{}.{name}.{n}", self.speaker.number).into())
                    .collect(),
            };
            let end = number(&tail(into));
            self.put(into, end, &values).await?;
            self.write(tail(into), Op::Put, (end + values.len() as u64).to_string());
            self.deed
                .put
                .extend(values.into_iter().map(|value| (into, value)));
        }
        // Some think about it for long, and some keep their locks alive meanwhile.
        let ttl = wire::ttl(self.speaker.sim());
        if self.speaker.ponder(ttl).await && self.speaker.chance.coin() {
            self.held.heart_beat(self.speaker).await?;
        }
        match self.speaker.chance.below(16) {
            0 => Err(End::Dropped),
            _ => Ok(()),
        }
    }

    fn manner(&mut self) -> Manner {
        let chance = &mut self.speaker.chance;
        Manner {
            force: chance.coin(),
            wait_ms: match chance.below(4) {
                0 => -1,
                1 => 0,
                _ => chance.magnitude(20..=1_000) as i64,
            },
            values: true,
            existence: chance.coin(),
            only_if_exists: false,
            must_be_new: false,
        }
    }

    /// Locks keys as `manner` says, and writes down what that shows.
    async fn lock(&mut self, keys: &[Key], mut manner: Manner) -> Step<Vec<Shown>> {
        manner.force &= keys.len() == 1;
        let shown = self.held.lock(self.speaker, keys, manner).await;
        let shown = shown.ok_or(End::Dropped)??;
        for one in &shown {
            if let Some(exists) = one.exists {
                self.deed.told.push((one.key.clone(), one.at, exists));
            }
            if let Some(value) = &one.value {
                self.saw(&one.key, one.at, value.clone());
            }
        }
        Ok(shown)
    }

    fn saw(&self, key: &Key, at: Timestamp, value: Option<Value>) {
        let rows = value
            .map(|value| (key.clone(), value))
            .into_iter()
            .collect();
        let query = Query::Keys(vec![key.clone()]);
        let sim = self.speaker.sim();
        sim.history().lock().read_at(self.id, at, query, rows);
    }

    /// The value of a key that is locked, as of its lock, or that is guarded by one.
    async fn read(&mut self, key: &Key, at: Timestamp) -> Step<Option<Value>> {
        let value = self.held.read(self.speaker, key, at).await?;
        self.saw(key, at, value.clone());
        Ok(value)
    }

    /// Locks the counters and reads them, together or one by one.
    async fn lock_counters(&mut self, keys: Vec<Key>) -> Step<Vec<(Key, u64)>> {
        let mut shown = Vec::new();
        let mut manner = self.manner();
        manner.values = self.speaker.chance.below(3) > 0;
        if self.speaker.chance.below(3) == 0 {
            shown.extend(self.lock(&keys, manner).await?);
        } else {
            for key in keys {
                shown.extend(self.lock(&[key], manner).await?);
            }
        }
        let mut numbers = Vec::new();
        for one in shown {
            let value = match one.value {
                Some(value) => value,
                None => self.read(&one.key, one.at).await?,
            };
            match value.as_ref().and_then(sum::number) {
                Some(number) => numbers.push((one.key, number)),
                None => {
                    let what = format!("{:?} holds {value:?} at {}", one.key, one.at);
                    return Err(End::Stopped(Stop::Absurd(what)));
                }
            }
        }
        Ok(numbers)
    }

    /// Since when a counter is locked.
    fn guarded_since(&self, counter: &Key) -> Timestamp {
        let granted = self.held.locks.get(counter).copied().flatten();
        granted.map_or(self.held.start_ts, |granted| granted.for_update_ts)
    }

    /// Takes items out of a queue, whose head is locked.
    async fn take(&mut self, from: usize, first: u64, wanted: u64) -> Step<Vec<Value>> {
        let mut taken = Vec::new();
        for number in first..first + wanted {
            let key = item(from, number);
            let value = if self.speaker.chance.coin() {
                let mut manner = self.manner();
                manner.only_if_exists = true;
                let shown = self.lock(std::slice::from_ref(&key), manner).await?;
                shown.into_iter().next().and_then(|one| one.value).flatten()
            } else {
                let since = self.guarded_since(&head(from));
                self.read(&key, since).await?
            };
            let Some(value) = value else { break };
            self.write_guarded(key, Op::Del, Value::default(), &head(from));
            taken.push(value);
        }
        Ok(taken)
    }

    /// Puts items into a queue, whose tail is locked.
    async fn put(&mut self, into: usize, end: u64, values: &[Value]) -> Step<()> {
        for (number, value) in (end..).zip(values) {
            let key = item(into, number);
            if self.writes.iter().any(|write| write.key == key) {
                // What it takes is behind the end that it knows: it has lost a lock.
                return Err(End::Stopped(Stop::Over("overtaken".to_owned())));
            }
            if self.speaker.chance.coin() {
                let mut manner = self.manner();
                manner.values = self.speaker.chance.coin();
                manner.must_be_new = self.speaker.chance.coin();
                self.lock(std::slice::from_ref(&key), manner).await?;
            }
            let op = match self.speaker.chance.coin() {
                true => Op::Insert,
                false => Op::Put,
            };
            self.write_guarded(key, op, value.clone(), &tail(into));
        }
        Ok(())
    }

    /// Writes a key that is locked itself.
    fn write(&mut self, key: Key, op: Op, value: String) {
        let guard = key.clone();
        self.write_guarded(key, op, value.into(), &guard);
    }

    /// Writes a key that is locked itself or, if it is not, guarded by another.
    fn write_guarded(&mut self, key: Key, op: Op, value: Value, guard: &Key) {
        let granted = self.held.locks.get(&key).copied().flatten();
        let action = match granted {
            Some(_) => PessimisticAction::DoPessimisticCheck,
            None if op == Op::Insert || self.speaker.chance.coin() => {
                PessimisticAction::DoConstraintCheck
            }
            None => PessimisticAction::SkipPessimisticCheck,
        };
        let since = match (granted, action) {
            (Some(granted), _) => granted.for_update_ts,
            (None, PessimisticAction::DoConstraintCheck) => self.held.start_ts,
            (None, _) => self.guarded_since(guard),
        };
        {
            let mut history = self.speaker.sim().history().lock();
            history.guard(self.id, key.clone(), since);
            match op {
                Op::Insert => history.insert(self.id, key.clone(), value.clone()),
                Op::Del => history.write(self.id, key.clone(), None),
                _ => history.write(self.id, key.clone(), Some(value.clone())),
            }
        }
        let assertion = match (op, self.speaker.chance.coin()) {
            (_, false) => Assertion::None,
            (Op::Insert, true) => Assertion::NotExist,
            (Op::Del, true) => Assertion::Exist,
            (_, true) if key == *guard => Assertion::Exist,
            (_, true) => Assertion::NotExist,
        };
        self.writes.push(Write {
            key,
            op,
            value: value.as_bytes().clone(),
            action,
            expected: granted
                .filter(|granted| granted.forced)
                .map(|granted| granted.for_update_ts),
            assertion,
        });
    }

    /// Commits; whether it is known to be committed.
    async fn commit(mut self) -> Result<bool, Violation> {
        // What is locked and not written is written as a lock.
        let granted: Vec<(Key, _)> = self
            .held
            .granted()
            .map(|(key, granted)| (key.clone(), granted))
            .collect();
        for (key, granted) in granted {
            if self.writes.iter().any(|write| write.key == key) {
                continue;
            }
            {
                let mut history = self.speaker.sim().history().lock();
                history.guard(self.id, key.clone(), granted.for_update_ts);
                history.lock(self.id, key.clone());
            }
            self.writes.push(Write {
                key,
                op: Op::Lock,
                value: Bytes::new(),
                action: PessimisticAction::DoPessimisticCheck,
                expected: granted.forced.then_some(granted.for_update_ts),
                assertion: Assertion::None,
            });
        }
        let sim = self.speaker.sim().clone();
        let chance = &mut self.speaker.chance;
        let committing = Committing {
            start_ts: self.held.start_ts,
            for_update_ts: self.held.for_update_ts,
            primary: self.held.primary.clone().unwrap_or_default(),
            ttl_ms: self.held.ttl_ms(sim.now()),
            writes: shuffled(std::mem::take(&mut self.writes), chance),
            way: match chance.below(3) {
                0 => Way::Asynchronous,
                1 => Way::OnePhase,
                _ => Way::TwoPhases,
            },
            max_commit_ms: match chance.below(5) {
                0 => chance.below(5),
                _ => 2_000,
            },
            leave_rest: chance.below(6) == 0,
            strict: chance.coin(),
        };
        sim.history().lock().ending(self.id, sim.now());
        let work = self.speaker.run("commit", move |task| committing.run(task));
        let Some(ended) = sim.may_cancel(work).await else {
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
        sim.note(|| format!("transaction {} ends: {ended:?}", self.held.start_ts));
        let is_committed = matches!(ended, Ended::Committed { .. });
        wire::write_down(&sim, self.id, ended);
        Ok(is_committed)
    }
}

fn shuffled<T>(mut from: Vec<T>, chance: &mut Chance) -> Vec<T> {
    let mut to = Vec::with_capacity(from.len());
    while !from.is_empty() {
        to.push(from.swap_remove(chance.index(from.len())));
    }
    to
}
