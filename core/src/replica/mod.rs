//! Which replica of a region a request goes to, attempt after attempt.
//!
//! A [`Selector`] lives as long as one request stays with one region. It is asked for the next
//! [`Target`] and told what came of it; it answers with a [`Verdict`] and carries out what the
//! verdict says of the request, the region and the store. It sends nothing, waits for nothing and
//! reads no clock. (client-go: `replicaSelector`)

mod score;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use oorandom::Rand32;
use smallvec::SmallVec;
use tikv_proto::metapb;

use crate::error::{Error, TransportError};
use crate::region::{
    Effect, Flag, Hint, InvalidReason, Region, RegionError, RegionVerId, ReplicaFlag, Route, Then,
    Verdict, judge, judge_probe, transport_verdict,
};
use crate::replica::score::{Candidate, Wish};
use crate::store::{Label, Liveness, ResolveState, Store};
use crate::time::Instant;
use crate::why::BackoffKind;

/// Which replicas a read may go to. Writes go to the leader. (client-go: `kv.ReplicaReadType`)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum ReadType {
    #[default]
    Leader,
    /// Anyone but the leader, unless nobody else is left.
    Follower,
    /// Anyone.
    Mixed,
    /// Replicas without a vote, if there are.
    Learner,
    /// The leader, unless it is slow.
    PreferLeader,
}

/// What a request wants of its replicas. The default is a write, or a plain read of the leader.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) read_type: ReadType,
    /// Whether it is a read command. Only such go to a replica as replica reads.
    pub(crate) is_read: bool,
    /// Whether a version that is a little old will do. Goes with [`ReadType::Mixed`].
    pub(crate) stale_read: bool,
    /// Whether the caller limited the time of a read so that another replica is asked instead
    /// of a slow one waited for.
    pub(crate) is_impatient: bool,
    /// Whether it carries the coprocessor tasks of several regions.
    pub(crate) is_batched: bool,
    pub(crate) leader_only: bool,
    pub(crate) prefer_leader: bool,
    /// Stores with all of these labels are preferred.
    pub(crate) labels: Arc<[Label]>,
    /// These stores are preferred.
    pub(crate) stores: Arc<[u64]>,
    /// A leader read goes to a replica that is less busy than this if the leader is not; zero for
    /// never.
    pub(crate) busy_threshold: Duration,
}

/// One attempt: to whom, and how.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) region: RegionVerId,
    pub(crate) peer: metapb::Peer,
    pub(crate) store: Arc<Store>,
    pub(crate) address: Arc<str>,
    /// Whether the peer leads, as far as is known.
    pub(crate) is_leader: bool,
    /// The flag of the request's context.
    pub(crate) replica_read: bool,
    /// The flag of the request's context.
    pub(crate) stale_read: bool,
    /// For the request's context; zero for none.
    pub(crate) busy_threshold: Duration,
    /// What to wait for first: the store was busy when it was last asked.
    pub(crate) pause: Option<Pause>,
}

/// A pause that is owed to a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) kind: BackoffKind,
    pub(crate) cause: Error,
}

/// Chooses the replica of each attempt of one request. (client-go: `replicaSelector`)
#[derive(Debug)]
pub(crate) struct Selector {
    region: Arc<Region>,
    options: Options,
    /// In the order of the region's peers.
    replicas: SmallVec<[Replica; 5]>,
    /// Changes when a leader is learned, or must be asked.
    read_type: ReadType,
    busy_threshold: Duration,
    /// Whether a leader is asked for a stale version: not once a plain read was fallen back to.
    stays_stale: bool,
    attempts: u32,
    target: Option<Choice>,
    /// May go on once although the region has become invalid.
    once_more: bool,
    pauses: SmallVec<[(u64, Pause); 1]>,
    probe: BusyProbe,
    hints_followed: usize,
    ties: Ties,
}

/// What a request remembers of one replica.
#[derive(Debug)]
struct Replica {
    /// The store's fail epoch when the request began.
    epoch: u32,
    attempts: u32,
    time: Duration,
    flags: u8,
    /// Errors answered for which nobody sleeps the first time.
    idle_replies: u32,
}

impl Replica {
    fn has(&self, flag: ReplicaFlag) -> bool {
        self.flags & flag as u8 != 0
    }

    fn set(&mut self, flag: ReplicaFlag) {
        self.flags |= flag as u8;
    }

    fn clear(&mut self, flag: ReplicaFlag) {
        self.flags &= !(flag as u8);
    }

    fn is_exhausted(&self) -> bool {
        self.attempts >= ATTEMPTS_MAX || self.time >= TIME_MAX
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    place: usize,
    replica_read: bool,
    stale_read: bool,
}

/// Counts the busy answers of one leader. A read pool that is stuck answers "busy" before Raft is
/// asked, so a leader that was deposed never says so: after two such answers another replica is
/// asked once, and its hint heals the cache.
#[derive(Debug, Default)]
struct BusyProbe {
    leader: Option<usize>,
    count: u32,
    fired: bool,
}

/// How equals are told apart.
#[derive(Debug)]
enum Ties {
    Drawn(Rand32),
    #[cfg(test)]
    First,
}

impl Selector {
    /// Begins with a region that was looked up for the request. `seed` decides between equals.
    pub(crate) fn new(region: Arc<Region>, options: Options, seed: u64) -> Self {
        let replicas = region
            .peers()
            .iter()
            .map(|peer| Replica {
                epoch: peer.epoch(),
                attempts: 0,
                time: Duration::ZERO,
                flags: 0,
                idle_replies: 0,
            })
            .collect();
        Selector {
            region,
            replicas,
            read_type: options.read_type,
            busy_threshold: options.busy_threshold,
            stays_stale: options.stale_read,
            attempts: 0,
            target: None,
            once_more: false,
            pauses: SmallVec::new(),
            probe: BusyProbe::default(),
            hints_followed: 0,
            ties: Ties::Drawn(Rand32::new(seed)),
            options,
        }
    }

    /// The region of the request.
    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The next attempt. `None`: there is nobody left to ask, or the region is not what it was;
    /// first wait for [`last_pause`](Selector::last_pause), then locate the region again.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Target> {
        self.target = None;
        if !std::mem::take(&mut self.once_more) && !self.region.is_valid(now) {
            return None;
        }
        self.attempts += 1;
        let choice = match self.read_type {
            ReadType::Leader => self.leader_path(now),
            ReadType::Follower | ReadType::Mixed | ReadType::Learner | ReadType::PreferLeader => {
                self.mixed_path(now)
            }
        }?;
        if self.is_stale(choice.place) {
            self.region.invalidate(InvalidReason::Other, now);
            return None;
        }
        let peer = &self.region.peers()[choice.place];
        let address = peer.store.address()?;
        self.replicas[choice.place].attempts += 1;
        self.stays_stale = choice.stale_read;
        self.target = Some(choice);
        let pause = self.take_pause(peer.store.id());
        Some(Target {
            region: self.region.ver_id(),
            peer: self.region.peers()[choice.place].peer,
            store: self.region.peers()[choice.place].store.clone(),
            address,
            is_leader: choice.place == self.region.leader_place(),
            replica_read: choice.replica_read,
            stale_read: choice.stale_read,
            busy_threshold: self.busy_threshold,
            pause,
        })
    }

    /// What to wait for once nobody is left to ask: the longest of the pauses that were put off.
    pub(crate) fn last_pause(&self) -> Option<Pause> {
        self.pauses
            .iter()
            .map(|(_, pause)| pause)
            .reduce(|longest, other| {
                let longer =
                    crate::backoff::base_ms(other.kind) > crate::backoff::base_ms(longest.kind);
                if longer { other } else { longest }
            })
            .cloned()
    }

    /// How many attempts there were.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The attempt took so long, whatever came of it.
    pub(crate) fn spent(&mut self, time: Duration) {
        if let Some(target) = self.target {
            self.replicas[target.place].time += time;
        }
    }

    /// The attempt was answered. A plain read that someone else than the leader answers shows
    /// who leads.
    pub(crate) fn on_success(&mut self) {
        if let Some(target) = self.target {
            let plain = !target.replica_read && !target.stale_read;
            if plain && target.place != self.region.leader_place() {
                self.region.switch_leader(target.place);
            }
        }
    }

    /// The attempt was answered by a region error. What the verdict's effects say of the request,
    /// its replica, its store and the validity and leader of its region is done already.
    pub(crate) fn on_region_error(&mut self, error: &RegionError, now: Instant) -> Verdict {
        let hint = match error {
            RegionError::NotLeader { leader: Some(peer) } => self.hint(peer),
            _ => Hint::Foreign,
        };
        let verdict = judge(error, &self.route(hint));
        self.carry_out(&verdict, now);
        if let Then::Postpone(kind) = verdict.then {
            let cause = error.to_error(self.region.id());
            self.owe(Pause { kind, cause });
        }
        verdict
    }

    /// The attempt failed on its way. After [`Then::Probe`], call
    /// [`on_probed`](Selector::on_probed).
    pub(crate) fn on_transport_error(&mut self, error: &TransportError, now: Instant) -> Verdict {
        let verdict = transport_verdict(error, &self.route(Hint::Foreign));
        self.carry_out(&verdict, now);
        verdict
    }

    /// The store of the failed attempt was probed. [`Effect::Watch`] stays in the verdict only
    /// for the first to find the store lost.
    pub(crate) fn on_probed(&mut self, found: Liveness, now: Instant) -> Verdict {
        let mut verdict = judge_probe(found, false);
        let first = self.target_store().is_some_and(|store| store.lose(found));
        if !first {
            verdict.effects.retain(|effect| *effect != Effect::Watch);
        }
        self.carry_out(&verdict, now);
        verdict
    }

    fn leader_path(&mut self, now: Instant) -> Option<Choice> {
        let leader = self.region.leader_place();
        let plain = |place, stays_stale| Choice {
            place,
            replica_read: false,
            stale_read: stays_stale,
        };
        let replica_read = |place| Choice {
            place,
            replica_read: true,
            stale_read: false,
        };
        if self.is_usable(leader) && !self.replicas[leader].has(ReplicaFlag::SuspectNotLeader) {
            if self.avoids_busy() && self.is_busy(leader, now) {
                let wish = Wish::idle_within(self.busy_threshold);
                if let Some(place) = self.best(&wish, now) {
                    return Some(replica_read(place));
                }
                self.busy_threshold = Duration::ZERO;
            }
            return Some(plain(leader, self.stays_stale));
        }
        let wish = Wish {
            leader_only: self.options.leader_only,
            ..Wish::default()
        };
        let place = self.best_or_give_up(&wish, now)?;
        let leader_too_slow = self.replicas[leader].has(ReplicaFlag::DeadlineExceeded);
        Some(match self.options.is_read && leader_too_slow {
            true => replica_read(place),
            false => plain(place, self.stays_stale),
        })
    }

    fn mixed_path(&mut self, now: Instant) -> Option<Choice> {
        let leader = self.region.leader_place();
        if self.options.stale_read
            && self.attempts == 2
            && self.replicas[leader].attempts == 0
            && self.is_usable(leader)
        {
            return Some(Choice {
                place: leader,
                replica_read: false,
                stale_read: false,
            });
        }
        let read_type = self.options.read_type;
        let wish = Wish {
            try_leader: matches!(read_type, ReadType::Mixed | ReadType::PreferLeader),
            prefer_leader: self.options.prefer_leader || read_type == ReadType::PreferLeader,
            leader_only: self.options.leader_only,
            learner_only: read_type == ReadType::Learner,
            has_labels: !self.options.labels.is_empty(),
            idle_within: None,
        };
        let place = self.best_or_give_up(&wish, now)?;
        let leader = self.region.leader_place();
        let (replica_read, stale_read) = if !self.options.stale_read {
            (self.options.is_read && place != leader, false)
        } else if self.attempts == 1 && (place == leader || self.matches_labels(place)) {
            (false, true)
        } else {
            let asked = &self.replicas[leader];
            let leader_answers = asked.attempts > 0
                && !asked.has(ReplicaFlag::DeadlineExceeded)
                && !asked.has(ReplicaFlag::ServerBusy);
            (leader_answers, !leader_answers)
        };
        Some(Choice {
            place,
            replica_read,
            stale_read,
        })
    }

    /// The best candidate; without one the request is over, unless a leader that was only
    /// suspected can be asked after all.
    fn best_or_give_up(&mut self, wish: &Wish, now: Instant) -> Option<usize> {
        let best = self.best(wish, now);
        if best.is_some() {
            return best;
        }
        let leader = self.region.leader_place();
        if self.replicas[leader].has(ReplicaFlag::SuspectNotLeader) {
            self.replicas[leader].clear(ReplicaFlag::SuspectNotLeader);
            if self.is_usable(leader) {
                return Some(leader);
            }
        }
        // Replicas that are only slow speak for the region, not against it.
        let is_slow = |replica: &Replica| replica.has(ReplicaFlag::DeadlineExceeded);
        if !self.replicas.iter().any(is_slow) {
            self.region.invalidate(InvalidReason::Other, now);
        }
        None
    }

    fn best(&mut self, wish: &Wish, now: Instant) -> Option<usize> {
        let mut best: SmallVec<[usize; 5]> = SmallVec::new();
        let mut best_score = 0;
        for place in 0..self.replicas.len() {
            let candidate = self.candidate(place, now);
            if candidate.is_stale && self.should_reload(place) {
                self.region.set_flag(Flag::DelayedPending);
            }
            let Some(score) = candidate.score(wish) else {
                continue;
            };
            if best.is_empty() || score > best_score {
                best.clear();
                best_score = score;
            }
            if score == best_score {
                best.push(place);
            }
        }
        match best.len() {
            0 => None,
            1 => Some(best[0]),
            equals => Some(best[self.ties.draw(equals)]),
        }
    }

    fn candidate(&self, place: usize, now: Instant) -> Candidate {
        let replica = &self.replicas[place];
        let peer = &self.region.peers()[place];
        Candidate {
            is_leader: place == self.region.leader_place(),
            is_learner: peer.peer.role() == metapb::PeerRole::Learner,
            is_stale: self.is_stale(place),
            is_lost: peer.store.liveness() == Liveness::Unreachable,
            is_slow: peer.store.is_slow(now),
            matches: self.matches_labels(place),
            attempts: replica.attempts,
            data_not_ready: replica.has(ReplicaFlag::DataNotReady),
            server_busy: replica.has(ReplicaFlag::ServerBusy),
            estimated_wait: peer.store.estimated_wait(now),
        }
    }

    /// Whether the region should be loaded again because the replica's store failed and came
    /// back, or because it is the leader's.
    fn should_reload(&self, place: usize) -> bool {
        let store = &self.region.peers()[place].store;
        let is_back = store.liveness() == Liveness::Reachable
            && store.resolve_state() == ResolveState::Resolved;
        is_back || place == self.region.leader_place()
    }

    fn matches_labels(&self, place: usize) -> bool {
        let store = &self.region.peers()[place].store;
        let wanted = &self.options.stores;
        (wanted.is_empty() || wanted.contains(&store.id()))
            && store.has_labels(&self.options.labels)
    }

    /// Whether the store has failed since the request began.
    fn is_stale(&self, place: usize) -> bool {
        self.replicas[place].epoch != self.region.peers()[place].store.fail_epoch()
    }

    /// Whether the replica can be asked as a leader.
    fn is_usable(&self, place: usize) -> bool {
        let replica = &self.replicas[place];
        self.region.peers()[place].store.liveness() == Liveness::Reachable
            && !replica.is_exhausted()
            && !replica.has(ReplicaFlag::DeadlineExceeded)
            && !replica.has(ReplicaFlag::NotLeader)
            && !self.is_stale(place)
    }

    fn avoids_busy(&self) -> bool {
        self.options.is_read && !self.busy_threshold.is_zero()
    }

    fn is_busy(&self, place: usize, now: Instant) -> bool {
        let store = &self.region.peers()[place].store;
        self.replicas[place].has(ReplicaFlag::ServerBusy)
            || store.estimated_wait(now) > self.busy_threshold
    }

    fn route(&self, hint: Hint) -> Route {
        let leader = self.region.leader_place();
        let target = self.target;
        let leader_holds = self.read_type == ReadType::Leader
            && self.is_usable(leader)
            && !self.replicas[leader].has(ReplicaFlag::ServerBusy);
        Route {
            region: self.region.ver_id(),
            on_leader: target.is_some_and(|target| target.place == leader),
            leader_tried: self.replicas[leader].attempts > 0,
            leader_holds,
            reads_replica: target.is_some_and(|t| t.replica_read || t.stale_read),
            is_impatient: self.options.is_read && self.options.is_impatient,
            has_busy_threshold: self.avoids_busy(),
            is_batched: self.options.is_batched,
            is_repeated: target.is_some_and(|t| self.replicas[t.place].idle_replies > 0),
            hint,
        }
    }

    fn hint(&self, leader: &metapb::Peer) -> Hint {
        let Some(place) = self.region.place_of(leader) else {
            return Hint::Foreign;
        };
        if self.region.peers()[place].store.liveness() != Liveness::Reachable {
            return Hint::Unreachable;
        }
        match self.hints_followed < self.replicas.len() + HINTS_BEYOND_REPLICAS {
            true => Hint::Good { place },
            false => Hint::Circular { place },
        }
    }

    fn carry_out(&mut self, verdict: &Verdict, now: Instant) {
        for effect in &verdict.effects {
            match *effect {
                Effect::Invalidate(reason) => self.region.invalidate(reason, now),
                Effect::SwitchLeader(place) => self.region.switch_leader(place),
                Effect::Follow(place) => self.follow(place),
                Effect::AskLeader => self.read_type = ReadType::Leader,
                Effect::OnceMore => self.once_more = true,
                Effect::DropBusyThreshold => self.busy_threshold = Duration::ZERO,
                Effect::CountBusy => self.count_busy(),
                Effect::Flag(flag) => self.with_target(|replica, _| replica.set(flag)),
                Effect::CountIdle => self.with_target(|replica, _| replica.idle_replies += 1),
                Effect::EstimatedWait(wait) => {
                    self.with_target(|_, store| store.set_estimated_wait(wait, now));
                }
                Effect::MarkSlow => self.with_target(|_, store| store.mark_slow(now)),
                Effect::NeedCheck => self.with_target(|_, store| {
                    store.mark_need_check();
                }),
                Effect::FailStore => self.with_target(|replica, store| {
                    store.fail(replica.epoch, now);
                }),
                // The sender's.
                Effect::InsertRegions
                | Effect::ReplaceBuckets
                | Effect::Watch
                | Effect::CloseConnection => {}
            }
        }
    }

    fn with_target(&mut self, act: impl FnOnce(&mut Replica, &Store)) {
        if let Some(target) = self.target {
            let store = &self.region.peers()[target.place].store;
            act(&mut self.replicas[target.place], store);
        }
    }

    fn target_store(&self) -> Option<&Arc<Store>> {
        let target = self.target?;
        Some(&self.region.peers()[target.place].store)
    }

    fn follow(&mut self, place: usize) {
        self.hints_followed += 1;
        let replica = &mut self.replicas[place];
        replica.clear(ReplicaFlag::NotLeader);
        replica.clear(ReplicaFlag::SuspectNotLeader);
        if replica.is_exhausted() {
            replica.attempts = ATTEMPTS_MAX - 1;
            replica.time = Duration::ZERO;
        }
        self.region.switch_leader(place);
        if self.is_usable(place) {
            self.read_type = ReadType::Leader;
        }
    }

    fn count_busy(&mut self) {
        let leader = self.region.leader_place();
        let on_leader = self.target.is_some_and(|target| target.place == leader);
        let probes = self.read_type == ReadType::Leader
            && !self.options.stale_read
            && !self.options.leader_only
            && on_leader
            && !self.probe.fired;
        if !probes {
            return;
        }
        if self.probe.leader != Some(leader) {
            self.probe.leader = Some(leader);
            self.probe.count = 0;
        }
        self.probe.count += 1;
        if self.probe.count == BUSY_BEFORE_SUSPECT {
            self.probe.fired = true;
            self.replicas[leader].set(ReplicaFlag::SuspectNotLeader);
        }
    }

    fn owe(&mut self, pause: Pause) {
        let Some(store) = self.target_store().map(|store| store.id()) else {
            return;
        };
        self.take_pause(store);
        self.pauses.push((store, pause));
    }

    fn take_pause(&mut self, store: u64) -> Option<Pause> {
        let place = self.pauses.iter().position(|(of, _)| *of == store)?;
        Some(self.pauses.remove(place).1)
    }
}

impl Ties {
    fn draw(&mut self, equals: usize) -> usize {
        match self {
            Ties::Drawn(rng) => rng.rand_range(0..equals as u32) as usize,
            #[cfg(test)]
            Ties::First => 0,
        }
    }
}

const ATTEMPTS_MAX: u32 = 10;
const TIME_MAX: Duration = Duration::from_secs(50);
const BUSY_BEFORE_SUSPECT: u32 = 2;
/// How many more hints than replicas are followed before they count as going in a circle.
const HINTS_BEYOND_REPLICAS: usize = 2;
