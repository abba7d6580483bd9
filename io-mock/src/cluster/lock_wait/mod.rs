//! Requests that wait for a lock: who waits for which key on which store, in which order, and until
//! when.
//!
//! Plain state, without a rule about locks: [`waking`] decides who is answered what, and
//! [`detector`] who would wait for ever. A wait belongs to the store that was asked; a restart of
//! that store ends it, a change of the region's leader or shape does not.
//!
//! There is no clock here either. Whoever delivers asks when something is due
//! ([`Cluster::next_wake_ms`](super::Cluster::next_wake_ms)), and takes the answers that have become
//! ready after every call and when that time has come.

pub mod detector;
pub mod waking;

use std::collections::{BTreeMap, BTreeSet};

use tikv_proto::kvrpcpb::{LockInfo, PessimisticLockRequest};

use super::key::Key;
use super::region::StoreId;
use detector::Detector;

/// The longest wait, and the one of a request that names none.
pub const WAIT_MS_MAX: u64 = 1000;
/// How long after a release those are answered who were not first in the queue.
pub const WAKE_UP_DELAY_MS: u64 = 20;

/// Names a request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What a request comes to at once: an answer, or a wait.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer<T> {
    /// It is answered.
    Now(T),
    /// It waits; its answer will be under this ticket.
    Later(Ticket),
}

/// How a wait ended for those who wait beside it, and whom it concerns: the last release of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Release {
    /// The transaction that held the lock.
    pub(super) start_ts: u64,
    /// Where it committed; 0 if it did not.
    pub(super) commit_ts: u64,
}

/// A request that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub(super) store: StoreId,
    pub(super) key: Key,
    pub(super) request: PessimisticLockRequest,
    /// It wants the lock beside others.
    pub(super) shared: bool,
    /// It takes the lock when it is free, rather than being told that it is.
    pub(super) force: bool,
    /// The lock in the way.
    pub(super) lock: LockInfo,
    /// When another lock has come into its way, if one has.
    pub(super) lock_changed_ms: Option<u64>,
    /// For whom the detector knows it to wait.
    pub(super) detected: Vec<u64>,
    pub(super) deadline_ms: u64,
    /// How many releases had woken somebody when it came.
    pub(super) came_after: u64,
}

impl Waiter {
    pub(super) fn start_ts(&self) -> u64 {
        self.request.start_version
    }

    /// The transactions it waits for: one, or all that share the lock.
    pub(super) fn holders(&self) -> Vec<u64> {
        if self.lock.shared_lock_infos.is_empty() {
            return vec![self.lock.lock_version];
        }
        let members = self.lock.shared_lock_infos.iter();
        members.map(|lock| lock.lock_version).collect()
    }
}

/// Those who wait for one key.
#[derive(Clone, Debug, Default)]
struct Queue {
    /// The oldest transaction comes first, whenever it came.
    order: BTreeSet<(u64, Ticket)>,
    /// How many releases have woken somebody.
    releases: u64,
    last: Release,
    /// When those that were not first are answered.
    rest_ms: Option<u64>,
}

/// Everybody who waits in a cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct LockWaits {
    tickets: u64,
    waiters: BTreeMap<Ticket, Waiter>,
    queues: BTreeMap<(StoreId, Key), Queue>,
    timeouts: BTreeSet<(u64, Ticket)>,
    rests: BTreeSet<(u64, StoreId, Key)>,
    pub(super) detector: Detector,
}

/// Something whose time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// A request has waited long enough.
    Timeout(Ticket),
    /// Those who were not first at the last release are to be answered.
    Rest(StoreId, Key),
}

impl LockWaits {
    /// Whether somebody waits for a key.
    pub(super) fn has_queue(&self, store: StoreId, key: &Key) -> bool {
        !self.queues.is_empty() && self.queues.contains_key(&(store, key.clone()))
    }

    /// A ticket nobody has had.
    pub(super) fn issue(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// Puts a request into the queue of its key, for the first time or again.
    pub(super) fn push(&mut self, ticket: Ticket, mut waiter: Waiter) {
        let place = (waiter.store, waiter.key.clone());
        let queue = self.queues.entry(place).or_default();
        waiter.came_after = queue.releases;
        queue.order.insert((waiter.start_ts(), ticket));
        self.timeouts.insert((waiter.deadline_ms, ticket));
        self.waiters.insert(ticket, waiter);
    }

    /// Takes a request out, and what was known of its queue if it was the last. It still counts as
    /// one that waits.
    fn take(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        self.timeouts.remove(&(waiter.deadline_ms, ticket));
        let place = (waiter.store, waiter.key.clone());
        if let Some(queue) = self.queues.get_mut(&place) {
            queue.order.remove(&(waiter.start_ts(), ticket));
            if queue.order.is_empty() {
                if let Some(at) = queue.rest_ms {
                    self.rests.remove(&(at, place.0, place.1.clone()));
                }
                self.queues.remove(&place);
            }
        }
        Some(waiter)
    }

    /// Takes a request out that does not wait any more.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Waiter> {
        let mut waiter = self.take(ticket)?;
        self.forget(&mut waiter);
        Some(waiter)
    }

    /// A request does not wait any more.
    pub(super) fn forget(&mut self, waiter: &mut Waiter) {
        for holder in std::mem::take(&mut waiter.detected) {
            self.detector.forget(waiter.start_ts(), holder, &waiter.key);
        }
    }

    /// A request that waits.
    pub(super) fn get(&self, ticket: Ticket) -> Option<&Waiter> {
        self.waiters.get(&ticket)
    }

    /// A request that waits, to change what is known of it.
    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Waiter> {
        self.waiters.get_mut(&ticket)
    }

    /// Those who wait for a key, in order.
    pub(super) fn queue(&self, store: StoreId, key: &Key) -> Vec<Ticket> {
        let queue = self.queues.get(&(store, key.clone()));
        let order = queue.into_iter().flat_map(|queue| &queue.order);
        order.map(|(_, ticket)| *ticket).collect()
    }

    /// All who wait on a store.
    pub(super) fn on_store(&self, store: StoreId) -> Vec<Ticket> {
        let waiters = self.waiters.iter();
        waiters
            .filter(|(_, waiter)| waiter.store == store)
            .map(|(ticket, _)| *ticket)
            .collect()
    }

    /// Who is first in the queue of a key, with those behind that can share the lock with it. They
    /// are out of the queue then. The rest is due after a delay if one of these will not take the
    /// lock itself.
    pub(super) fn pop(
        &mut self,
        now_ms: u64,
        store: StoreId,
        key: &Key,
        release: Release,
    ) -> Vec<(Ticket, Waiter)> {
        let place = (store, key.clone());
        let Some(queue) = self.queues.get_mut(&place) else {
            return Vec::new();
        };
        queue.last = release;
        let mut group = Vec::new();
        for (_, ticket) in &queue.order {
            let shared = self.waiters.get(ticket).is_some_and(|one| one.shared);
            if !group.is_empty() && !shared {
                break;
            }
            group.push(*ticket);
            if !shared {
                break;
            }
        }
        let leaves_it = |ticket: &Ticket| self.waiters.get(ticket).is_some_and(|one| !one.force);
        if group.iter().any(leaves_it) {
            queue.releases += 1;
            if queue.order.len() > group.len() {
                let at = now_ms + WAKE_UP_DELAY_MS;
                if let Some(before) = queue.rest_ms.replace(at) {
                    self.rests.remove(&(before, store, key.clone()));
                }
                self.rests.insert((at, store, key.clone()));
            }
        }
        let group = group.into_iter();
        group
            .filter_map(|ticket| self.take(ticket).map(|waiter| (ticket, waiter)))
            .collect()
    }

    /// Takes those out of a queue who waited when the last release happened, up to and including
    /// the first who takes the lock itself.
    pub(super) fn pop_rest(
        &mut self,
        store: StoreId,
        key: &Key,
    ) -> (Release, Vec<(Ticket, Waiter)>) {
        let place = (store, key.clone());
        let mut popped = Vec::new();
        let Some(queue) = self.queues.get_mut(&place) else {
            return (Release::default(), popped);
        };
        let (release, releases) = (queue.last, queue.releases);
        if let Some(at) = queue.rest_ms.take() {
            self.rests.remove(&(at, store, key.clone()));
        }
        for ticket in self.queue(store, key) {
            let waits = self.get(ticket);
            if waits.is_none_or(|one| one.came_after >= releases) {
                break;
            }
            if let Some(waiter) = self.take(ticket) {
                let takes_it = waiter.force;
                popped.push((ticket, waiter));
                if takes_it {
                    break;
                }
            }
        }
        (release, popped)
    }

    /// When something is due next.
    pub(super) fn next_ms(&self) -> Option<u64> {
        let timeout = self.timeouts.first().map(|(at, _)| *at);
        let rest = self.rests.first().map(|(at, ..)| *at);
        match (timeout, rest) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        }
    }

    /// What was due first, by now, and when it was.
    pub(super) fn next_due(&self, now_ms: u64) -> Option<(u64, Due)> {
        let timeout = self.timeouts.first().filter(|(at, _)| *at <= now_ms);
        let rest = self.rests.first().filter(|(at, ..)| *at <= now_ms);
        match (timeout, rest) {
            (Some((at, _)), Some((sooner, store, key))) if sooner <= at => {
                Some((*sooner, Due::Rest(*store, key.clone())))
            }
            (None, Some((at, store, key))) => Some((*at, Due::Rest(*store, key.clone()))),
            (Some((at, ticket)), _) => Some((*at, Due::Timeout(*ticket))),
            (None, None) => None,
        }
    }
}
