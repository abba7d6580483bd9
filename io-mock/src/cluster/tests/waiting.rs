//! Waiting for locks: who is woken, in which order, and what everybody is told.

use bytes::Bytes;
use tikv_proto::deadlock::WaitForEntry;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::DoPessimisticCheck;
use tikv_proto::kvrpcpb::write_conflict::Reason;
use tikv_proto::kvrpcpb::{
    GetLockWaitInfoRequest, KeyError, LockInfo, Op, PessimisticLockKeyResultType,
    PessimisticLockRequest, PessimisticLockResponse, PessimisticLockWakeUpMode,
    PessimisticRollbackRequest,
};

use super::{Bench, NOW, mutation, put};
use crate::cluster::failure::GrpcCode;
use crate::cluster::key::Key;
use crate::cluster::lock_wait::{Answer, Ticket, WAIT_MS_MAX, WAKE_UP_DELAY_MS};
use crate::cluster::region::StoreId;
use crate::dispatch;

/// A request for one key that may wait as long as the server lets it.
pub(super) fn wish(key: &[u8], start_ts: u64) -> PessimisticLockRequest {
    PessimisticLockRequest {
        mutations: vec![mutation(Op::PessimisticLock, key, b"")],
        primary_lock: Bytes::copy_from_slice(key),
        start_version: start_ts,
        for_update_ts: start_ts,
        lock_ttl: 3000,
        ..Default::default()
    }
}

pub(super) fn forced(key: &[u8], start_ts: u64) -> PessimisticLockRequest {
    PessimisticLockRequest {
        wake_up_mode: PessimisticLockWakeUpMode::WakeUpModeForceLock.into(),
        ..wish(key, start_ts)
    }
}

pub(super) fn shared(key: &[u8], start_ts: u64) -> PessimisticLockRequest {
    PessimisticLockRequest {
        mutations: vec![mutation(Op::SharedPessimisticLock, key, b"")],
        ..wish(key, start_ts)
    }
}

impl Bench {
    pub(super) fn begin(
        &mut self,
        now_ms: u64,
        request: PessimisticLockRequest,
    ) -> Answer<PessimisticLockResponse> {
        let (mut context, store) = self.to(&request.mutations[0].key);
        if let Some(context) = &mut context {
            let tag = format!("tag {}", request.start_version);
            context.resource_group_tag = tag.into();
        }
        let request = PessimisticLockRequest { context, ..request };
        self.cluster.begin_pessimistic_lock(now_ms, store, request)
    }

    pub(super) fn must_wait(&mut self, now_ms: u64, request: PessimisticLockRequest) -> Ticket {
        match self.begin(now_ms, request) {
            Answer::Later(ticket) => ticket,
            Answer::Now(response) => panic!("must wait, but got {response:?}"),
        }
    }

    pub(super) fn must_not_wait(
        &mut self,
        request: PessimisticLockRequest,
    ) -> PessimisticLockResponse {
        match self.begin(NOW, request) {
            Answer::Now(response) => response,
            Answer::Later(_) => panic!("must be answered at once"),
        }
    }

    pub(super) fn must_prewrite_pessimistic(
        &mut self,
        key: &[u8],
        start_ts: u64,
        for_update_ts: u64,
    ) {
        let value = put(key, b"value");
        let error =
            self.pessimistic_prewrite(value, key, start_ts, for_update_ts, DoPessimisticCheck);
        assert_eq!(error, None);
    }

    /// Who has stopped waiting by now, and with which answer.
    pub(super) fn woken(&mut self, now_ms: u64) -> Vec<(Ticket, PessimisticLockResponse)> {
        let woken = self.cluster.take_woken(now_ms).into_iter();
        woken
            .map(|(ticket, answer)| (ticket, answer.expect("the store is up")))
            .collect()
    }

    /// Who waits for whom on a store.
    pub(super) fn lock_wait_info(&mut self, store: StoreId) -> Vec<WaitForEntry> {
        let request = GetLockWaitInfoRequest::default();
        self.cluster.get_lock_wait_info(NOW, store, request).entries
    }

    pub(super) fn tickets(&mut self, now_ms: u64) -> Vec<Ticket> {
        let woken = self.woken(now_ms).into_iter();
        woken.map(|(ticket, _)| ticket).collect()
    }
}

pub(super) fn only_error(response: &PessimisticLockResponse) -> &KeyError {
    assert_eq!(response.errors.len(), 1, "{response:?}");
    &response.errors[0]
}

pub(super) fn locked(response: &PessimisticLockResponse) -> &LockInfo {
    only_error(response).locked.as_ref().expect("locked")
}

/// Of the release that a conflict tells of: who held the lock and where it committed.
pub(super) fn release(response: &PessimisticLockResponse) -> (u64, u64) {
    let conflict = only_error(response).conflict.as_ref().expect("a conflict");
    assert_eq!(conflict.reason(), Reason::PessimisticRetry);
    (conflict.conflict_ts, conflict.conflict_commit_ts)
}

pub(super) fn result_type(response: &PessimisticLockResponse) -> PessimisticLockKeyResultType {
    assert_eq!(response.results.len(), 1, "{response:?}");
    response.results[0].r#type()
}

#[test]
fn the_oldest_is_woken_first_and_the_others_after_a_delay() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    let thirty = b.must_wait(NOW, wish(b"k", 30));
    let twenty = b.must_wait(NOW, wish(b"k", 20));
    let forty = b.must_wait(NOW, wish(b"k", 40));
    b.must_rollback(b"k", 10);
    let woken = b.woken(NOW);
    assert_eq!(woken.len(), 1);
    assert_eq!(woken[0].0, twenty);
    assert_eq!(release(&woken[0].1), (10, 0));
    // Who came after the release is not among those it wakes, nor is anybody behind.
    b.must_lock(b"k", b"k", 20, 20);
    let late = b.must_wait(NOW + 1, wish(b"k", 35));
    assert_eq!(b.tickets(NOW + WAKE_UP_DELAY_MS - 1), []);
    let at = NOW + WAKE_UP_DELAY_MS;
    assert_eq!(b.cluster.next_wake_ms(), Some(at));
    let woken = b.woken(at);
    assert_eq!(woken.len(), 1);
    assert_eq!(woken[0].0, thirty);
    assert_eq!(release(&woken[0].1), (10, 0));
    b.must_rollback(b"k", 20);
    assert_eq!(b.tickets(NOW), [late]);
    assert_eq!(b.tickets(NOW + WAKE_UP_DELAY_MS), [forty]);
    assert_eq!(b.cluster.next_wake_ms(), None);
}

#[test]
fn a_newer_release_puts_the_delay_off_and_is_what_the_others_hear_of() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    let tickets: Vec<Ticket> = [20, 30, 40]
        .map(|start_ts| b.must_wait(NOW, wish(b"k", start_ts)))
        .into();
    b.must_rollback(b"k", 10);
    assert_eq!(b.tickets(NOW), tickets[..1]);
    b.must_lock(b"k", b"k", 20, 20);
    // Every release of the bench happens at the same time, so the delay begins anew from there.
    b.must_prewrite_pessimistic(b"k", 20, 20);
    b.must_commit(b"k", 20, 50);
    let woken = b.woken(NOW);
    assert_eq!((woken.len(), woken[0].0), (1, tickets[1]));
    assert_eq!(release(&woken[0].1), (20, 50));
    let woken = b.woken(NOW + WAKE_UP_DELAY_MS);
    assert_eq!((woken.len(), woken[0].0), (1, tickets[2]));
    assert_eq!(release(&woken[0].1), (20, 50));
}

#[test]
fn a_wait_ends_when_its_time_is_over() {
    for (asked, waits) in [(0, WAIT_MS_MAX), (200, 200), (60_000, WAIT_MS_MAX)] {
        let mut b = Bench::new();
        b.must_lock(b"k", b"k", 10, 10);
        let request = PessimisticLockRequest {
            wait_timeout: asked,
            ..wish(b"k", 20)
        };
        let ticket = b.must_wait(NOW, request);
        assert_eq!(b.cluster.next_wake_ms(), Some(NOW + waits));
        assert_eq!(b.tickets(NOW + waits - 1), []);
        let woken = b.woken(NOW + waits);
        assert_eq!((woken.len(), woken[0].0), (1, ticket));
        assert_eq!(locked(&woken[0].1).lock_version, 10);
        assert_eq!(locked(&woken[0].1).duration_to_last_update_ms, 0);
        assert!(woken[0].1.results.is_empty());
        // Nobody is left to be woken.
        b.must_rollback(b"k", 10);
        assert_eq!(b.tickets(NOW + 60_000), []);
    }
}

#[test]
fn who_does_not_want_to_wait_is_answered_at_once() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    let no_wait = |request| PessimisticLockRequest {
        wait_timeout: -1,
        ..request
    };
    let response = b.must_not_wait(no_wait(wish(b"k", 20)));
    assert_eq!(locked(&response).lock_version, 10);
    assert!(response.results.is_empty());
    let response = b.must_not_wait(no_wait(forced(b"k", 20)));
    assert_eq!(locked(&response).lock_version, 10);
    assert_eq!(
        result_type(&response),
        PessimisticLockKeyResultType::LockResultFailed
    );
    assert_eq!(b.cluster.next_wake_ms(), None);
}

#[test]
fn a_forced_request_takes_the_lock_when_it_is_free() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    let twenty = b.must_wait(NOW, forced(b"k", 20));
    let thirty = b.must_wait(NOW, forced(b"k", 30));
    b.must_prewrite_pessimistic(b"k", 10, 10);
    b.must_commit(b"k", 10, 25);
    let woken = b.woken(NOW);
    assert_eq!((woken.len(), woken[0].0), (1, twenty));
    // The version it did not know comes with the lock.
    let result = &woken[0].1.results[0];
    assert_eq!(
        result.r#type(),
        PessimisticLockKeyResultType::LockResultLockedWithConflict
    );
    assert_eq!(result.locked_with_conflict_ts, 25);
    assert_eq!(result.value, "value");
    assert!(woken[0].1.errors.is_empty());
    b.must_pessimistic_locked(b"k", 20, 25);
    // The next one waits for the new holder, and is told so when its time is over.
    assert_eq!(b.tickets(NOW + WAKE_UP_DELAY_MS), []);
    let woken = b.woken(NOW + WAIT_MS_MAX);
    assert_eq!((woken.len(), woken[0].0), (1, thirty));
    assert_eq!(locked(&woken[0].1).lock_version, 20);
    assert_eq!(locked(&woken[0].1).duration_to_last_update_ms, WAIT_MS_MAX);
    assert_eq!(
        result_type(&woken[0].1),
        PessimisticLockKeyResultType::LockResultFailed
    );
}

#[test]
fn the_delayed_wake_up_ends_with_a_request_that_takes_the_lock() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    let normal = b.must_wait(NOW, wish(b"k", 20));
    let next = b.must_wait(NOW, wish(b"k", 30));
    let takes = b.must_wait(NOW, forced(b"k", 40));
    let last = b.must_wait(NOW, wish(b"k", 50));
    b.must_rollback(b"k", 10);
    assert_eq!(b.tickets(NOW), [normal]);
    assert_eq!(b.tickets(NOW + WAKE_UP_DELAY_MS), [next, takes]);
    b.must_pessimistic_locked(b"k", 40, 40);
    b.must_rollback(b"k", 40);
    assert_eq!(b.tickets(NOW), [last]);
}

#[test]
fn a_forced_request_waits_again_if_somebody_was_faster() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    let normal = b.must_wait(NOW, wish(b"k", 20));
    let takes = b.must_wait(NOW, forced(b"k", 30));
    b.must_rollback(b"k", 10);
    assert_eq!(b.tickets(NOW), [normal]);
    b.must_lock(b"k", b"k", 20, 20);
    // Its time goes on from when it came.
    assert_eq!(b.tickets(NOW + WAKE_UP_DELAY_MS), []);
    assert_eq!(b.cluster.next_wake_ms(), Some(NOW + WAIT_MS_MAX));
    b.must_rollback(b"k", 20);
    assert_eq!(b.tickets(NOW + WAKE_UP_DELAY_MS), [takes]);
    b.must_pessimistic_locked(b"k", 30, 30);
}

#[test]
fn those_who_share_a_lock_are_woken_together() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    let first = b.must_wait(NOW, shared(b"k", 20));
    let second = b.must_wait(NOW, shared(b"k", 30));
    let alone = b.must_wait(NOW, wish(b"k", 40));
    b.must_rollback(b"k", 10);
    assert_eq!(b.tickets(NOW), [first, second]);
    assert_eq!(b.tickets(NOW + WAKE_UP_DELAY_MS), [alone]);
}

#[test]
fn those_who_force_a_lock_they_would_have_shared_all_get_it() {
    let both = |start_ts| PessimisticLockRequest {
        mutations: vec![mutation(Op::SharedPessimisticLock, b"k", b"")],
        ..forced(b"k", start_ts)
    };
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    let first = b.must_wait(NOW, both(20));
    let second = b.must_wait(NOW, both(30));
    b.must_rollback(b"k", 10);
    for (ticket, answer) in b.cluster.take_woken(NOW) {
        assert!([first, second].contains(&ticket));
        let answer = answer.expect("an answer");
        assert_eq!(answer.errors, []);
        let kind = PessimisticLockKeyResultType::LockResultNormal;
        assert_eq!(answer.results[0].r#type(), kind);
    }
    // It is the last one's, whatever the other believes.
    b.must_pessimistic_locked(b"k", 30, 30);
    assert!(b.cluster.take_woken(NOW + WAIT_MS_MAX).is_empty());
    // Who is refused leaves the lock to the one before.
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    b.must_wait(NOW, both(20));
    let absent = both(30);
    b.must_wait(
        NOW,
        PessimisticLockRequest {
            lock_only_if_exists: true,
            return_values: true,
            ..absent
        },
    );
    b.must_rollback(b"k", 10);
    assert_eq!(b.cluster.take_woken(NOW).len(), 2);
    b.must_pessimistic_locked(b"k", 20, 20);
}

#[test]
fn a_circle_of_two_is_refused() {
    let mut b = Bench::new();
    b.must_lock(b"a", b"a", 10, 10);
    b.must_lock(b"b", b"b", 20, 20);
    let ticket = b.must_wait(NOW, wish(b"b", 10));
    let response = b.must_not_wait(wish(b"a", 20));
    let deadlock = only_error(&response).deadlock.as_ref().expect("a deadlock");
    assert_eq!((deadlock.lock_ts, &deadlock.lock_key[..]), (10, &b"a"[..]));
    assert_eq!(deadlock.deadlock_key_hash, farmhash::fingerprint64(b"b"));
    let chain = deadlock.wait_chain.iter();
    let chain: Vec<_> = chain
        .map(|entry| {
            let tag = entry.resource_group_tag.clone();
            (entry.txn, entry.wait_for_txn, entry.key.clone(), tag)
        })
        .collect();
    let expected = [
        (10, 20, Bytes::from("b"), Bytes::from("tag 10")),
        (20, 10, Bytes::from("a"), Bytes::from("tag 20")),
    ];
    assert_eq!(chain, expected);
    // The other one goes on waiting, and gets its turn.
    b.must_rollback(b"b", 20);
    assert_eq!(b.tickets(NOW), [ticket]);
}

#[test]
fn a_circle_of_three_is_refused_unless_one_of_them_gave_up() {
    for gives_up in [false, true] {
        let mut b = Bench::new();
        for (key, start_ts) in [(b"a", 10), (b"b", 20), (b"c", 30)] {
            b.must_lock(key, key, start_ts, start_ts);
        }
        let first = PessimisticLockRequest {
            wait_timeout: 100,
            ..wish(b"b", 10)
        };
        let first = b.must_wait(NOW, first);
        b.must_wait(NOW, wish(b"c", 20));
        if gives_up {
            assert_eq!(b.tickets(NOW + 100), [first]);
            b.must_wait(NOW, wish(b"a", 30));
            continue;
        }
        let response = b.must_not_wait(forced(b"a", 30));
        let deadlock = only_error(&response).deadlock.as_ref().expect("a deadlock");
        let chain = deadlock.wait_chain.iter();
        let chain: Vec<_> = chain.map(|one| (one.txn, one.wait_for_txn)).collect();
        assert_eq!(chain, [(10, 20), (20, 30), (30, 10)]);
        assert_eq!(
            result_type(&response),
            PessimisticLockKeyResultType::LockResultFailed
        );
    }
}

#[test]
fn a_first_lock_is_in_no_circle() {
    let mut b = Bench::new();
    b.must_lock(b"a", b"a", 10, 10);
    b.must_lock(b"b", b"b", 20, 20);
    b.must_wait(NOW, wish(b"b", 10));
    let request = PessimisticLockRequest {
        is_first_lock: true,
        ..wish(b"a", 20)
    };
    b.must_wait(NOW, request);
}

#[test]
fn a_circle_that_closes_when_a_lock_changes_hands_is_refused_too() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    b.must_lock(b"other", b"other", 30, 30);
    b.must_wait(NOW, wish(b"other", 20));
    let first = b.must_wait(NOW, forced(b"k", 20));
    let second = b.must_wait(NOW, forced(b"k", 30));
    b.must_rollback(b"k", 10);
    // The lock goes to the first, which waits for the second: that one may not wait for it.
    let woken = b.woken(NOW);
    let tickets: Vec<Ticket> = woken.iter().map(|(ticket, _)| *ticket).collect();
    assert_eq!(tickets, [second, first]);
    assert!(only_error(&woken[0].1).deadlock.is_some());
    assert_eq!(
        result_type(&woken[0].1),
        PessimisticLockKeyResultType::LockResultFailed
    );
    b.must_pessimistic_locked(b"k", 20, 20);
}

#[test]
fn a_restart_ends_the_waits_of_a_store() {
    let mut b = Bench::new();
    b.must_lock(b"a", b"a", 10, 10);
    b.must_lock(b"b", b"b", 20, 20);
    let ticket = b.must_wait(NOW, wish(b"b", 10));
    let store = b.to(b"a").1;
    b.cluster.stop_store(store);
    let woken = b.cluster.take_woken(NOW);
    assert_eq!(woken.len(), 1);
    assert_eq!(woken[0].0, ticket);
    assert_eq!(
        woken[0].1.as_ref().map_err(|error| error.code),
        Err(GrpcCode::Unavailable)
    );
    assert_eq!(b.cluster.next_wake_ms(), None);
}

#[test]
fn a_wait_outlives_its_region_s_leader() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    let (context, _) = b.to(b"k");
    let region = context.expect("a context").region_id;
    let normal = b.must_wait(NOW, wish(b"k", 20));
    assert!(b.cluster.transfer_leader(NOW, region, 2));
    // The release happens elsewhere, so only time ends the wait.
    b.must_rollback(b"k", 10);
    assert_eq!(b.tickets(NOW), []);
    let woken = b.woken(NOW + WAIT_MS_MAX);
    assert_eq!((woken.len(), woken[0].0), (1, normal));
    assert_eq!(locked(&woken[0].1).lock_version, 10);
}

#[test]
fn a_forced_request_meets_the_region_as_it_is_when_its_turn_comes() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    let (context, _) = b.to(b"k");
    let region = context.expect("a context").region_id;
    let takes = b.must_wait(NOW, forced(b"k", 20));
    b.cluster
        .split(NOW, region, &[Key::from_user(b"z").encoded().clone()]);
    assert_eq!(b.tickets(NOW), []);
    b.must_rollback(b"k", 10);
    let woken = b.woken(NOW);
    assert_eq!((woken.len(), woken[0].0), (1, takes));
    let error = woken[0].1.region_error.as_ref().expect("a region error");
    assert!(error.epoch_not_match.is_some());
    assert_eq!(
        result_type(&woken[0].1),
        PessimisticLockKeyResultType::LockResultFailed
    );
    assert!(woken[0].1.errors.is_empty());
    b.must_unlocked(b"k");
}

#[test]
fn who_wants_a_shared_lock_alone_waits_for_all_who_have_it() {
    let mut b = Bench::new();
    for start_ts in [10, 20] {
        assert!(b.must_not_wait(shared(b"k", start_ts)).errors.is_empty());
    }
    // The first wish only closes the lock to others.
    assert_eq!(locked(&b.must_not_wait(wish(b"k", 30))).lock_version, 0);
    let alone = b.must_wait(NOW, wish(b"k", 30));
    let told = b.lock_wait_info(1);
    assert_eq!((told.len(), told[0].wait_for_txn), (1, 0));
    // Each of them is in its way.
    b.must_lock(b"other", b"other", 30, 30);
    for start_ts in [10, 20] {
        let response = b.must_not_wait(wish(b"other", start_ts));
        let deadlock = only_error(&response).deadlock.as_ref().expect("a deadlock");
        let chain = deadlock.wait_chain.iter();
        let chain: Vec<_> = chain.map(|one| (one.txn, one.wait_for_txn)).collect();
        assert_eq!(chain, [(30, start_ts), (start_ts, 30)]);
    }
    // One who leaves changes nothing, the last one wakes it.
    b.pessimistic_rollback(b"k", 10, 10);
    assert_eq!(b.tickets(NOW + 1), []);
    b.pessimistic_rollback(b"k", 20, 20);
    let woken = b.woken(NOW + 2);
    assert_eq!((woken.len(), woken[0].0), (1, alone));
    assert_eq!(release(&woken[0].1), (20, 0));
}

#[test]
fn one_of_those_who_share_a_lock_may_wait_for_it_alone() {
    let mut b = Bench::new();
    for start_ts in [10, 20] {
        assert!(b.must_not_wait(shared(b"k", start_ts)).errors.is_empty());
    }
    b.must_not_wait(wish(b"k", 10));
    b.must_wait(NOW, wish(b"k", 10));
    // If both do, they are a circle.
    let response = b.must_not_wait(wish(b"k", 20));
    assert!(only_error(&response).deadlock.is_some());
}

#[test]
fn a_wait_that_is_over_is_not_ended_by_what_happens_later() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    let (context, store) = b.to(b"k");
    let request = PessimisticLockRequest {
        context: context.clone(),
        wait_timeout: 100,
        ..wish(b"k", 20)
    };
    let begun = dispatch::begin(&mut b.cluster, NOW, store, request.into());
    let Ok(Answer::Later(ticket)) = begun else {
        panic!("must wait, but got {begun:?}")
    };
    // Nobody has looked when its time was over; the release is later all the same.
    let release = PessimisticRollbackRequest {
        context,
        keys: vec!["k".into()],
        start_version: 10,
        for_update_ts: 10,
    };
    let released = dispatch::store(&mut b.cluster, NOW + 101, store, release.into());
    assert!(released.is_ok());
    let woken = b.woken(NOW + 101);
    assert_eq!((woken.len(), woken[0].0), (1, ticket));
    assert_eq!(locked(&woken[0].1).lock_version, 10);
}

#[test]
fn a_store_tells_who_waits_for_whom() {
    let mut b = Bench::new();
    b.must_lock(b"k", b"k", 10, 10);
    b.must_wait(NOW, wish(b"k", 20));
    let told = b.lock_wait_info(1);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].txn, told[0].wait_for_txn), (20, 10));
    assert_eq!(told[0].key, "k");
    assert_eq!(told[0].key_hash, farmhash::fingerprint64(b"k"));
    assert_eq!(told[0].resource_group_tag, "tag 20");
    assert_eq!(b.lock_wait_info(2), []);
    b.must_rollback(b"k", 10);
    assert_eq!(b.lock_wait_info(1), []);
}
