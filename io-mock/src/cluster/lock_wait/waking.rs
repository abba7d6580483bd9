//! Who is answered what, and when: a release wakes the first of a key's queue, the others follow
//! after a delay, time runs out, a circle is refused.
//!
//! A request in the normal mode is told that the lock was released, and has to ask again; one that
//! forces its lock is run again here and takes it. [`txn_lock`](super::super::txn_lock) runs them.

use tikv_proto::kvrpcpb::write_conflict::Reason;
use tikv_proto::kvrpcpb::{
    GetLockWaitInfoRequest, GetLockWaitInfoResponse, LockInfo, PessimisticLockRequest,
    PessimisticLockResponse,
};

use super::detector::{Seat, wait_for_entry};
use super::{Due, Release, Ticket, WAIT_MS_MAX, Waiter};
use crate::cluster::Cluster;
use crate::cluster::failure::{GrpcCode, GrpcError};
use crate::cluster::key::Key;
use crate::cluster::mvcc::changes::Released;
use crate::cluster::mvcc::engine::Change;
use crate::cluster::mvcc::error::MvccError;
use crate::cluster::mvcc::lock::{KeyLock, Lock};
use crate::cluster::region::{RegionId, StoreId};
use crate::cluster::txn_lock::{Blocked, Outcome, failed_response, failed_results, response};

/// The answer to a request that has waited; an error if its store was restarted.
pub type Woken = (Ticket, Result<PessimisticLockResponse, GrpcError>);

/// A lock that has been taken away for a moment.
enum Hidden {
    InMemory(RegionId, Lock),
    Stored(Lock),
}

/// How long a request may wait from now on; `None` if it does not want to.
pub(crate) fn wait_ms(request: &PessimisticLockRequest) -> Option<u64> {
    match request.wait_timeout {
        0 => Some(WAIT_MS_MAX),
        asked => u64::try_from(asked)
            .ok()
            .map(|asked| asked.min(WAIT_MS_MAX)),
    }
}

impl Cluster {
    /// Takes the answers of requests that have stopped waiting, in the order they stopped. Nobody
    /// may want an answer any more: a request waits on when its client is gone, as at TiKV.
    pub fn take_woken(&mut self, now_ms: u64) -> Vec<Woken> {
        self.end_waits(now_ms);
        std::mem::take(&mut self.woken)
    }

    /// Ends the waits whose time has come. Whoever lets a request see the cluster calls this
    /// before, so that nothing happens after what is later.
    pub fn end_waits(&mut self, now_ms: u64) {
        while let Some((at, due)) = self.lock_waits.next_due(now_ms) {
            match due {
                Due::Timeout(ticket) => self.time_out(at, ticket),
                Due::Rest(store, key) => self.wake_rest(at, store, &key),
            }
        }
    }

    /// When there will be something to take, unless something happens before; `None` if nobody
    /// waits.
    pub fn next_wake_ms(&self) -> Option<u64> {
        if !self.woken.is_empty() || self.has_ready_reads() {
            return Some(0);
        }
        self.lock_waits.next_ms()
    }

    /// Who waits for whom on a store.
    pub fn get_lock_wait_info(
        &mut self,
        _now_ms: u64,
        store: StoreId,
        _request: GetLockWaitInfoRequest,
    ) -> GetLockWaitInfoResponse {
        let mut entries = Vec::new();
        for ticket in self.lock_waits.on_store(store) {
            let Some(waiter) = self.lock_waits.get(ticket) else {
                continue;
            };
            // A lock that several share is nobody's.
            let holder = waiter.lock.lock_version;
            let entry = wait_for_entry(waiter.start_ts(), holder, &waiter.key, &tag(waiter));
            entries.push(entry);
        }
        GetLockWaitInfoResponse {
            entries,
            ..GetLockWaitInfoResponse::default()
        }
    }

    /// Has a request wait, unless that would close a circle.
    pub(in crate::cluster) fn wait_for_lock(
        &mut self,
        deadline_ms: u64,
        store: StoreId,
        request: PessimisticLockRequest,
        force: bool,
        blocked: Blocked,
    ) -> Result<Ticket, MvccError> {
        let mut waiter = Waiter {
            store,
            key: Key::from_user(&blocked.lock.key),
            request,
            shared: blocked.shared,
            force,
            lock: *blocked.lock,
            lock_changed_ms: None,
            detected: Vec::new(),
            deadline_ms,
            came_after: 0,
        };
        self.detect(&mut waiter)?;
        let ticket = self.lock_waits.issue();
        self.lock_waits.push(ticket, waiter);
        Ok(ticket)
    }

    /// Makes known whom a request waits for.
    fn detect(&mut self, waiter: &mut Waiter) -> Result<(), MvccError> {
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::FindNoDeadlock) {
            return Ok(());
        }
        // The first lock of a transaction can't be in anybody's way.
        if waiter.request.is_first_lock {
            return Ok(());
        }
        let seat = self.regions.find(&[]).and_then(Seat::at);
        let seat = seat.filter(|seat| self.is_up(seat.store()));
        self.lock_waits.detector.move_to(seat);
        let (start_ts, tag) = (waiter.start_ts(), tag(waiter));
        for holder in waiter.holders() {
            let detector = &mut self.lock_waits.detector;
            if let Err(deadlock) = detector.detect(start_ts, holder, &waiter.key, &tag) {
                self.lock_waits.forget(waiter);
                return Err(MvccError::Deadlock(deadlock));
            }
            waiter.detected.push(holder);
        }
        Ok(())
    }

    /// Keys of a store that were free are locked: who waits for one of them now waits for these
    /// locks.
    pub(in crate::cluster) fn note_new_locks(
        &mut self,
        now_ms: u64,
        store: StoreId,
        locks: Vec<(Key, KeyLock)>,
    ) {
        for (key, lock) in locks {
            let info = match &lock {
                KeyLock::Exclusive(lock) => lock.info(key.to_user()),
                KeyLock::Shared(shared) => shared.info(key.to_user()),
            };
            for ticket in self.lock_waits.queue(store, &key) {
                if let Err(error) = self.note_new_lock(now_ms, ticket, &info) {
                    self.lock_waits.remove(ticket);
                    self.woken.push((ticket, Ok(failed_response(&error, true))));
                }
            }
        }
    }

    fn note_new_lock(
        &mut self,
        now_ms: u64,
        ticket: Ticket,
        lock: &LockInfo,
    ) -> Result<(), MvccError> {
        let Some(waiter) = self.lock_waits.get_mut(ticket) else {
            return Ok(());
        };
        waiter.lock_changed_ms = Some(now_ms);
        let both_shared =
            !waiter.lock.shared_lock_infos.is_empty() && !lock.shared_lock_infos.is_empty();
        if waiter.lock.lock_version == lock.lock_version && !both_shared {
            return Ok(());
        }
        waiter.lock = lock.clone();
        // Who will be told of the release asks again anyway.
        if !waiter.force {
            return Ok(());
        }
        let mut waiter = waiter.clone();
        self.lock_waits.forget(&mut waiter);
        let result = self.detect(&mut waiter);
        if let Some(known) = self.lock_waits.get_mut(ticket) {
            known.detected = waiter.detected;
        }
        result
    }

    /// Locks were released on a store: the first who wait for them are woken.
    pub(in crate::cluster) fn wake(
        &mut self,
        now_ms: u64,
        store: StoreId,
        released: Vec<Released>,
    ) {
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::WakeNobody) {
            return;
        }
        for one in released {
            let release = Release {
                start_ts: one.start_ts,
                commit_ts: one.commit_ts,
            };
            let popped = self.lock_waits.pop(now_ms, store, &one.key, release);
            self.wake_popped(now_ms, release, popped);
        }
    }

    fn wake_rest(&mut self, now_ms: u64, store: StoreId, key: &Key) {
        let (release, popped) = self.lock_waits.pop_rest(store, key);
        self.wake_popped(now_ms, release, popped);
    }

    fn wake_popped(&mut self, now_ms: u64, release: Release, popped: Vec<(Ticket, Waiter)>) {
        // Those who take the lock themselves run in one command: each sees the key as it was before
        // all of them, so each is told that it has the lock, and it is the last one's.
        let mut together = Vec::new();
        for (ticket, mut waiter) in popped {
            if waiter.force {
                let (key, start_ts) = (waiter.key.clone(), waiter.start_ts());
                let hidden = self.hide_lock(&key, &together);
                self.resume(now_ms, ticket, waiter);
                if let Some(hidden) = hidden {
                    self.show_lock(key, hidden);
                }
                together.push(start_ts);
                continue;
            }
            self.lock_waits.forget(&mut waiter);
            let error = MvccError::WriteConflict {
                start_ts: waiter.start_ts(),
                conflict_start_ts: release.start_ts,
                conflict_commit_ts: release.commit_ts,
                key: waiter.key.to_user(),
                primary: waiter.request.primary_lock.clone(),
                reason: Reason::PessimisticRetry,
            };
            self.woken
                .push((ticket, Ok(failed_response(&error, false))));
        }
    }

    /// Takes the lock of a key away if it belongs to one of these.
    fn hide_lock(&mut self, key: &Key, holders: &[u64]) -> Option<Hidden> {
        let id = self.regions.find(key.encoded())?.meta.id;
        let region = self.regions.get_mut(id)?;
        let of_them = |lock: &Lock| holders.contains(&lock.start_ts);
        if region.memory_locks.get(key).is_some_and(of_them) {
            let lock = region.memory_locks.remove(key)?;
            return Some(Hidden::InMemory(id, lock));
        }
        match self.engine.lock(key) {
            Some(KeyLock::Exclusive(lock)) if of_them(lock) => {
                let lock = lock.clone();
                self.engine.apply(Change::DeleteLock(key.clone()));
                Some(Hidden::Stored(lock))
            }
            Some(KeyLock::Exclusive(_) | KeyLock::Shared(_)) | None => None,
        }
    }

    /// Puts a lock back that was taken away, unless there is another one by now.
    fn show_lock(&mut self, key: Key, hidden: Hidden) {
        let region = self.regions.find(key.encoded());
        let in_memory = region.is_some_and(|region| region.memory_locks.contains_key(&key));
        if in_memory || self.engine.lock(&key).is_some() {
            return;
        }
        match hidden {
            Hidden::InMemory(id, lock) => {
                if let Some(region) = self.regions.get_mut(id) {
                    region.memory_locks.insert(key, lock);
                }
            }
            Hidden::Stored(lock) => self
                .engine
                .apply(Change::PutLock(key, KeyLock::Exclusive(lock))),
        }
    }

    /// Runs a request again that forces its lock.
    fn resume(&mut self, now_ms: u64, ticket: Ticket, mut waiter: Waiter) {
        let result = self.resume_pessimistic_lock(now_ms, waiter.store, &waiter.request);
        let answer = match result {
            // Somebody was faster; that one's lock has been noted.
            Ok(Outcome::Blocked(blocked)) if blocked.waitable => {
                waiter.shared = false;
                self.lock_waits.push(ticket, waiter);
                return;
            }
            Ok(Outcome::Blocked(blocked)) => {
                failed_response(&MvccError::KeyIsLocked(blocked.lock), true)
            }
            Ok(outcome @ Outcome::Granted(_)) => response(&waiter.request, true, Ok(outcome)),
            // A request that has waited is answered key by key, whatever went wrong.
            Err(failure) => {
                let told = response(&waiter.request, true, Err(failure));
                PessimisticLockResponse {
                    results: failed_results(),
                    ..told
                }
            }
        };
        self.lock_waits.forget(&mut waiter);
        self.woken.push((ticket, Ok(answer)));
    }

    fn time_out(&mut self, now_ms: u64, ticket: Ticket) {
        let Some(waiter) = self.lock_waits.remove(ticket) else {
            return;
        };
        let mut lock = Box::new(waiter.lock);
        if let Some(at) = waiter.lock_changed_ms {
            lock.duration_to_last_update_ms = now_ms.saturating_sub(at).max(1);
        }
        let answer = failed_response(&MvccError::KeyIsLocked(lock), waiter.force);
        self.woken.push((ticket, Ok(answer)));
    }

    /// A store has lost its memory, and the connections to it.
    pub(in crate::cluster) fn drop_waits(&mut self, store: StoreId) {
        self.lock_waits.detector.restart(store);
        for ticket in self.lock_waits.on_store(store) {
            self.lock_waits.remove(ticket);
            let error = GrpcError::new(GrpcCode::Unavailable, "connection closed");
            self.woken.push((ticket, Err(error)));
        }
    }
}

fn tag(waiter: &Waiter) -> bytes::Bytes {
    let context = waiter.request.context.as_ref();
    context.map_or_else(bytes::Bytes::new, |context| {
        context.resource_group_tag.clone()
    })
}
