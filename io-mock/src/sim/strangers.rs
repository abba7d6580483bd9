//! Transactions of other clients: of an older or newer kind than the one under test, in other
//! languages, and some of them dying at any point of their protocol. What they leave is for the
//! clients under test to find out about.
//!
//! A stranger commits in two phases, by its locks alone (async commit), at once (one phase), writes
//! before it commits (pipelined), or locks before it writes (pessimistic). What it writes is what
//! was there, so no workload need know of it; a workload whose values mean nothing lets strangers
//! write others ([`Sim::let_strangers_write`](super::Sim::let_strangers_write)). Its requests reach
//! the leader at once and are not lost: the network between strangers and stores is not what this is
//! about. Neither are crashes of stores: a stranger that meets one tries again a few times.
//!
//! With them comes what nobody else could see: leaders that do not know yet up to where reads were
//! served, and writes that are answered before they are applied.

mod aftermath;

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use tikv_core::wire::{Command, Response};
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction;
use tikv_proto::kvrpcpb::{self, Mutation, Op};

use super::chance::Chance;
use super::chaos::Change;
use super::faults::{Drawn, Fault};
use super::further::Later;
use super::marks::Mark;
use super::plan::Plan;
use super::world::{Event, Phase, World};
use crate::cluster::key::Key;
use crate::cluster::mvcc::write_record::WriteKind;
use crate::cluster::region::StoreId;
use crate::dispatch;

/// What a seed drew of this, and who is about.
pub(super) struct Strangers {
    chance: Chance,
    drawn: Drawn,
    /// They may write what was not there.
    pub(super) write_freely: bool,
    all: Vec<Stranger>,
}

/// One transaction of another client.
struct Stranger {
    way: Way,
    start_ts: u64,
    ttl_ms: u64,
    /// The primary first.
    keys: Vec<Bytes>,
    /// In which order the keys are locked.
    order: Vec<usize>,
    /// The first so many of the order are locked.
    locked: usize,
    /// The first so many keys are committed.
    committed: usize,
    /// It will not commit below.
    min_commit_ts: u64,
    /// Some store told it to commit in two phases.
    falls_back: bool,
    commit_ts: u64,
    /// It is committed at this timestamp, whatever becomes of its owner.
    decided: Option<u64>,
    /// It has given up and removes its locks.
    fails: bool,
    tries: u32,
    is_over: bool,
}

/// How a transaction commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    TwoPhase,
    Async,
    OnePhase,
    Pipelined,
    Pessimistic,
    /// It only ever locks.
    LocksOnly,
}

const WAYS: [Way; 7] = [
    Way::TwoPhase,
    Way::Async,
    Way::Async,
    Way::OnePhase,
    Way::Pipelined,
    Way::Pessimistic,
    Way::LocksOnly,
];
const KEYS: RangeInclusive<u64> = 1..=4;
const TTL_MS: RangeInclusive<u64> = 50..=4_000;
const STEP: RangeInclusive<Duration> = Duration::from_micros(100)..=Duration::from_millis(250);
const APPLY: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(400);
/// A stranger dies before one in so many of its steps.
const DIES_ONE_IN: u64 = 9;
const TRIES_MAX: u32 = 8;
/// Whose bound is too low has to commit in two phases.
const LOW_BOUND_ONE_IN: u64 = 6;
/// A bound on commit timestamps, as far above the beginning as a second is long.
const BOUND: u64 = 1_000 << 18;

impl Strangers {
    pub(super) fn new(plan: &Plan) -> Self {
        Strangers {
            chance: Chance::stream(plan.seed, "strangers"),
            drawn: plan.faults.clone(),
            write_freely: false,
            all: Vec::new(),
        }
    }
}

/// What came of a stranger's step.
enum Came<T> {
    /// This.
    Of(T),
    /// Nobody was there to do it.
    Later,
}

impl World {
    /// A stranger begins a transaction.
    pub(super) fn meet_stranger(&mut self) {
        let now_ms = self.now_ms();
        let everything = Bytes::new();
        let histories = self.cluster.engine().histories(&everything, &everything);
        let mut known: Vec<Bytes> = histories.map(|(key, _)| key.to_user()).collect();
        let chance = &mut self.further.strangers.chance;
        let way = WAYS[chance.index(WAYS.len())];
        let count = chance.within(KEYS) as usize;
        let ttl_ms = chance.magnitude(TTL_MS);
        let mut keys = Vec::new();
        while keys.len() < count && !known.is_empty() {
            keys.push(known.swap_remove(chance.index(known.len())));
        }
        if way == Way::OnePhase
            && let Some(first) = keys.first()
        {
            let region = self.cluster.regions().find(Key::from_user(first).encoded());
            let region = region.map(|region| region.meta.clone());
            keys.retain(|key| {
                let encoded = Key::from_user(key);
                region.as_ref().is_some_and(|region| {
                    *encoded.encoded() >= region.start_key
                        && (region.end_key.is_empty() || *encoded.encoded() < region.end_key)
                })
            });
        }
        if keys.is_empty() || self.cluster.pd().leader().is_none() {
            return;
        }
        let mut rest: Vec<usize> = (0..keys.len()).collect();
        let mut order = Vec::new();
        let chance = &mut self.further.strangers.chance;
        while !rest.is_empty() {
            order.push(rest.swap_remove(chance.index(rest.len())));
        }
        let start_ts = self.cluster.pd_mut().next_tso(now_ms);
        let number = self.further.strangers.all.len();
        self.audit.note(self.now, || {
            format!("stranger {number} begins at {start_ts}, {way:?}, {keys:?}")
        });
        self.audit.mark(Mark::StrangerMet);
        self.further.strangers.all.push(Stranger {
            way,
            start_ts,
            ttl_ms,
            keys,
            order,
            locked: 0,
            committed: 0,
            min_commit_ts: 0,
            falls_back: false,
            commit_ts: 0,
            decided: None,
            fails: false,
            tries: 0,
            is_over: false,
        });
        self.next_step(number);
    }

    fn next_step(&mut self, number: usize) {
        let after = self.further.strangers.chance.time(STEP);
        let next = Later::Stranger(number);
        self.schedule(after, Event::Change(Change::Later(next)));
    }

    /// A stranger takes its next step, or dies before it.
    pub(super) fn go_on(&mut self, number: usize) {
        let too_old = self.cluster.pd().gc().gc_safe_point;
        let dies = self.further.strangers.chance.below(DIES_ONE_IN) == 0;
        let Some(stranger) = self.further.strangers.all.get_mut(number) else {
            return;
        };
        if stranger.is_over || self.phase != Phase::Faulty {
            return;
        }
        if dies || stranger.tries > TRIES_MAX || stranger.start_ts <= too_old {
            stranger.is_over = true;
            self.audit
                .note(self.now, || format!("stranger {number} dies"));
            self.audit.mark(Mark::StrangerDied);
            return;
        }
        let (locks, fails) = (stranger.locked < stranger.order.len(), stranger.fails);
        let came = match (fails, locks) {
            (true, _) => self.give_up_stranger(number),
            (false, true) => self.lock_some(number),
            (false, false) => self.commit_some(number),
        };
        let Some(stranger) = self.further.strangers.all.get_mut(number) else {
            return;
        };
        match came {
            Came::Of(true) => stranger.is_over = true,
            Came::Of(false) => {
                stranger.tries = 0;
                self.next_step(number);
            }
            Came::Later => {
                stranger.tries += 1;
                self.next_step(number);
            }
        }
    }

    /// Asks the leader of a key's region; `None` if there is none or it refuses.
    fn ask_leader(
        &mut self,
        key: &[u8],
        request: impl FnOnce(Box<kvrpcpb::Context>) -> Command,
    ) -> Option<Response> {
        let (store, context) = self.leader_of(key)?;
        let now_ms = self.now_ms();
        let response = dispatch::store(&mut self.cluster, now_ms, store, request(context)).ok()?;
        dispatch::region_error(&response)
            .is_none()
            .then_some(response)
    }

    fn leader_of(&self, key: &[u8]) -> Option<(StoreId, Box<kvrpcpb::Context>)> {
        let region = self.cluster.regions().find(Key::from_user(key).encoded())?;
        let peer = *region.leader_peer()?;
        if self.is_isolated(peer.store_id) {
            return None;
        }
        let context = kvrpcpb::Context {
            region_id: region.meta.id,
            region_epoch: region.meta.region_epoch,
            peer: Some(peer),
            ..Default::default()
        };
        Some((peer.store_id, Box::new(context)))
    }

    /// What a stranger is to write: what is there at its version, or something of its own.
    fn value_for(&mut self, number: usize, key: &Bytes) -> Option<Bytes> {
        let strangers = &mut self.further.strangers;
        if strangers.write_freely {
            return Some(format!("stranger {number} {}", strangers.chance.number()).into());
        }
        let start_ts = strangers.all.get(number)?.start_ts;
        let history = self.cluster.engine().history(&Key::from_user(key))?;
        let mut records = history.from(start_ts);
        let newest = records.find(|(_, it)| matches!(it.kind, WriteKind::Put | WriteKind::Delete));
        let (_, record) = newest.filter(|(_, record)| record.kind == WriteKind::Put)?;
        match &record.short_value {
            Some(value) => Some(value.clone()),
            None => history.value(record.start_ts).cloned(),
        }
    }

    /// Locks the next key, or all keys of one that commits at once.
    fn lock_some(&mut self, number: usize) -> Came<bool> {
        let Some(stranger) = self.further.strangers.all.get(number) else {
            return Came::Of(true);
        };
        let (way, start_ts) = (stranger.way, stranger.start_ts);
        let (ttl_ms, primary) = (stranger.ttl_ms, stranger.keys[0].clone());
        let keys: Vec<Bytes> = match way {
            Way::OnePhase => stranger.keys.clone(),
            _ => vec![stranger.keys[stranger.order[stranger.locked]].clone()],
        };
        let secondaries = match way {
            Way::Async => stranger.keys[1..].to_vec(),
            _ => Vec::new(),
        };
        let locked_by = |op: Op, key: &Bytes, value: Bytes| Mutation {
            op: op.into(),
            key: key.clone(),
            value,
            ..Default::default()
        };
        if matches!(way, Way::Pessimistic | Way::LocksOnly) {
            let lock = kvrpcpb::PessimisticLockRequest {
                mutations: vec![locked_by(Op::PessimisticLock, &keys[0], Bytes::new())],
                primary_lock: primary,
                start_version: start_ts,
                for_update_ts: start_ts,
                lock_ttl: ttl_ms,
                wait_timeout: -1,
                ..Default::default()
            };
            let asked = self.ask_leader(&keys[0], |context| {
                let context = Some(context);
                kvrpcpb::PessimisticLockRequest { context, ..lock }.into()
            });
            return match asked {
                Some(Response::PessimisticLock(answer)) => {
                    self.was_locked(number, answer.errors.is_empty(), 0, 0)
                }
                _ => Came::Later,
            };
        }
        let Some((_, context)) = self.leader_of(&keys[0]) else {
            return Came::Later;
        };
        let region = context.region_id;
        self.apply_late(region);
        let mut mutations = Vec::new();
        for key in &keys {
            match self.value_for(number, key) {
                Some(value) => mutations.push(locked_by(Op::Put, key, value)),
                None => return self.was_locked(number, false, 0, 0),
            }
        }
        if way == Way::Pipelined {
            let generation = 1 + self.further.strangers.chance.below(3);
            let asked = self.ask_leader(&keys[0], |context| {
                let flush = kvrpcpb::FlushRequest {
                    context: Some(context),
                    mutations,
                    primary_key: primary,
                    start_ts,
                    generation,
                    lock_ttl: ttl_ms,
                    ..Default::default()
                };
                flush.into()
            });
            return match asked {
                Some(Response::Flush(answer)) => {
                    self.was_locked(number, answer.errors.is_empty(), 0, 0)
                }
                _ => Came::Later,
            };
        }
        let strangers = &mut self.further.strangers;
        let bounded = strangers.chance.below(LOW_BOUND_ONE_IN) == 0;
        let early = way != Way::TwoPhase
            && strangers
                .chance
                .hits(strangers.drawn.share(Fault::AsyncApply))
            && self.strikes.lands(self.now, Fault::AsyncApply, true);
        if early {
            self.cluster.hold_writes(region);
        }
        let asked = self.ask_leader(&keys[0], |context| {
            let prewrite = kvrpcpb::PrewriteRequest {
                context: Some(context),
                txn_size: mutations.len() as u64,
                mutations,
                primary_lock: primary,
                start_version: start_ts,
                lock_ttl: ttl_ms,
                use_async_commit: way == Way::Async,
                try_one_pc: way == Way::OnePhase,
                secondaries,
                min_commit_ts: start_ts + 1,
                max_commit_ts: if bounded { start_ts + BOUND / 8 } else { 0 },
                ..Default::default()
            };
            prewrite.into()
        });
        if early {
            self.cluster.stop_holding(region);
        }
        let by_locks = matches!(&asked, Some(Response::Prewrite(answer))
            if answer.min_commit_ts != 0 || answer.one_pc_commit_ts != 0);
        if early && !by_locks {
            // Only what commits by its locks is answered early.
            self.apply_late(region);
        } else if early {
            let after = self.further.strangers.chance.time(APPLY);
            self.schedule(after, Event::Change(Change::Later(Later::Apply(region))));
            self.audit.mark(Mark::AppliedLate);
        }
        match asked {
            Some(Response::Prewrite(answer)) => {
                let (one_phase, min) = (answer.one_pc_commit_ts, answer.min_commit_ts);
                self.was_locked(number, answer.errors.is_empty(), one_phase, min)
            }
            _ => Came::Later,
        }
    }

    /// A stranger was told whether it has its lock, and at what it commits.
    fn was_locked(
        &mut self,
        number: usize,
        locked: bool,
        one_phase: u64,
        min_commit_ts: u64,
    ) -> Came<bool> {
        let Some(stranger) = self.further.strangers.all.get_mut(number) else {
            return Came::Of(true);
        };
        if !locked {
            stranger.fails = true;
            return Came::Of(false);
        }
        match stranger.way {
            Way::OnePhase => {
                stranger.locked = stranger.order.len();
                if one_phase != 0 {
                    stranger.decided = Some(one_phase);
                    self.audit.note(self.now, || {
                        format!("stranger {number} is committed at {one_phase}")
                    });
                    self.audit.mark(Mark::StrangerCommitted);
                    return Came::Of(true);
                }
                stranger.falls_back = true;
            }
            Way::Async => {
                stranger.locked += 1;
                stranger.falls_back |= min_commit_ts == 0;
                stranger.min_commit_ts = stranger.min_commit_ts.max(min_commit_ts);
                if stranger.locked == stranger.order.len() && !stranger.falls_back {
                    stranger.decided = Some(stranger.min_commit_ts);
                }
            }
            _ => stranger.locked += 1,
        }
        Came::Of(stranger.way == Way::LocksOnly && stranger.locked == stranger.order.len())
    }

    /// Commits the next key; before the first it learns when.
    fn commit_some(&mut self, number: usize) -> Came<bool> {
        let now_ms = self.now_ms();
        let Some(stranger) = self.further.strangers.all.get_mut(number) else {
            return Came::Of(true);
        };
        if stranger.way == Way::Pessimistic {
            // What was locked is written now.
            stranger.way = Way::TwoPhase;
            stranger.locked = 0;
            return self.write_locked(number);
        }
        if stranger.commit_ts == 0 {
            let by_locks = stranger.way == Way::Async && !stranger.falls_back;
            stranger.commit_ts = match by_locks {
                true => stranger.min_commit_ts,
                false => self.cluster.pd_mut().next_tso(now_ms),
            };
            let commit_ts = stranger.commit_ts;
            self.audit.note(self.now, || {
                format!("stranger {number} commits at {commit_ts}")
            });
            return Came::Of(false);
        }
        let key = stranger.keys[stranger.committed].clone();
        let commit = kvrpcpb::CommitRequest {
            start_version: stranger.start_ts,
            commit_version: stranger.commit_ts,
            keys: vec![key.clone()],
            ..Default::default()
        };
        let asked = self.ask_leader(&key, |context| {
            let context = Some(context);
            kvrpcpb::CommitRequest { context, ..commit }.into()
        });
        let Some(Response::Commit(answer)) = asked else {
            return Came::Later;
        };
        let Some(stranger) = self.further.strangers.all.get_mut(number) else {
            return Came::Of(true);
        };
        if answer.error.is_some() {
            return Came::Of(true);
        }
        stranger.committed += 1;
        stranger.decided = Some(stranger.commit_ts);
        self.audit.mark(Mark::StrangerCommitted);
        Came::Of(stranger.committed == stranger.keys.len())
    }

    /// Turns all of a stranger's pessimistic locks into written ones.
    fn write_locked(&mut self, number: usize) -> Came<bool> {
        let Some(stranger) = self.further.strangers.all.get(number) else {
            return Came::Of(true);
        };
        let (keys, start_ts, ttl_ms) = (stranger.keys.clone(), stranger.start_ts, stranger.ttl_ms);
        for key in &keys {
            let Some(value) = self.value_for(number, key) else {
                return self.was_locked(number, false, 0, 0);
            };
            let put = Mutation {
                op: Op::Put.into(),
                key: key.clone(),
                value,
                ..Default::default()
            };
            let asked = self.ask_leader(key, |context| {
                let prewrite = kvrpcpb::PrewriteRequest {
                    context: Some(context),
                    mutations: vec![put],
                    pessimistic_actions: vec![PessimisticAction::DoPessimisticCheck.into()],
                    primary_lock: keys[0].clone(),
                    start_version: start_ts,
                    for_update_ts: start_ts,
                    lock_ttl: ttl_ms,
                    ..Default::default()
                };
                prewrite.into()
            });
            let locked = match asked {
                Some(Response::Prewrite(answer)) => answer.errors.is_empty(),
                _ => false,
            };
            if !locked {
                return self.was_locked(number, false, 0, 0);
            }
        }
        if let Some(stranger) = self.further.strangers.all.get_mut(number) {
            stranger.locked = stranger.order.len();
        }
        Came::Of(false)
    }

    /// Removes the locks of a stranger that can't go on.
    fn give_up_stranger(&mut self, number: usize) -> Came<bool> {
        let Some(stranger) = self.further.strangers.all.get(number) else {
            return Came::Of(true);
        };
        let (keys, start_ts) = (stranger.keys.clone(), stranger.start_ts);
        for key in &keys {
            let rollback = kvrpcpb::BatchRollbackRequest {
                start_version: start_ts,
                keys: vec![key.clone()],
                ..Default::default()
            };
            let asked = self.ask_leader(key, |context| {
                let context = Some(context);
                kvrpcpb::BatchRollbackRequest {
                    context,
                    ..rollback
                }
                .into()
            });
            if asked.is_none() {
                return Came::Later;
            }
        }
        Came::Of(true)
    }
}
