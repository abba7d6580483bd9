//! The queue of those who wait for a key: its order, what wakes them, and what they are answered.

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::DoPessimisticCheck;
use tikv_proto::kvrpcpb::{
    CheckTxnStatusRequest, PessimisticLockKeyResult, PessimisticLockKeyResultType,
    PessimisticLockRequest, PessimisticLockResponse, PessimisticRollbackRequest, PrewriteRequest,
    ResolveLockRequest, TxnInfo,
};

use super::waiting::{forced, locked, only_error, release, result_type, shared, wish};
use super::{Bench, NOW, put, ts};
use crate::cluster::Config;
use crate::cluster::lock_wait::{Ticket, WAIT_MS_MAX, WAKE_UP_DELAY_MS};

/// What a forced request got.
#[derive(Debug, PartialEq)]
enum Got {
    /// The lock.
    Empty,
    /// The lock and the value, if that was asked for.
    Value(Option<&'static str>),
    /// The lock, and whether there is a value.
    Existence(bool),
    /// The lock, and a version that is newer than it knew.
    Conflict(u64, Option<&'static str>),
}

/// What a forced request that asked for this must have got.
fn must_get(request: &PessimisticLockRequest, response: &PessimisticLockResponse, expected: Got) {
    assert_eq!(
        (&response.region_error, &response.errors[..]),
        (&None, &[][..])
    );
    let mut result = PessimisticLockKeyResult::default();
    let (value, existence) = match expected {
        Got::Empty => (None, false),
        Got::Value(value) => (value, value.is_some()),
        Got::Existence(existence) => (None, existence),
        Got::Conflict(conflict_ts, value) => {
            let conflict = PessimisticLockKeyResultType::LockResultLockedWithConflict;
            result.r#type = conflict.into();
            result.locked_with_conflict_ts = conflict_ts;
            (value, value.is_some())
        }
    };
    result.value = value.unwrap_or_default().into();
    result.existence = existence;
    assert_eq!(response.results, [result], "{request:?}");
}

impl Bench {
    /// The request of this ticket, and no other, has stopped waiting by now.
    fn must_wake(&mut self, now_ms: u64, ticket: Ticket) -> PessimisticLockResponse {
        let mut woken = self.woken(now_ms);
        assert_eq!(woken.len(), 1, "{woken:?}");
        let (other, response) = woken.remove(0);
        assert_eq!(other, ticket);
        response
    }
}

#[test]
fn test_simple_push_pop() {
    let mut b = Bench::new();
    for (key, start_ts) in [(b"k1", 10), (b"k2", 11)] {
        b.must_lock(key, key, 5, 5);
        b.must_wait(NOW, wish(key, start_ts));
    }
    assert_eq!(b.lock_wait_info(1).len(), 2);
    for (key, left) in [(b"k1", 1), (b"k2", 0)] {
        b.must_rollback(key, 5);
        assert_eq!(b.tickets(NOW).len(), 1);
        // The next release of the key finds nobody.
        b.must_lock(key, key, 6, 6);
        b.must_rollback(key, 6);
        assert_eq!(b.tickets(NOW + WAKE_UP_DELAY_MS), []);
        assert_eq!(b.lock_wait_info(1).len(), left);
    }
    assert_eq!(b.cluster.next_wake_ms(), None);
}

#[test]
fn test_popping_priority() {
    let mut b = Bench::new();
    b.must_lock(b"k1", b"k1", 5, 5);
    // A request may come twice.
    let tickets = [10, 20, 12, 13, 12].map(|start_ts| b.must_wait(NOW, wish(b"k1", start_ts)));
    for (holder, next) in [(5, 0), (6, 2), (7, 4), (8, 3), (9, 1)] {
        if holder > 5 {
            b.must_lock(b"k1", b"k1", holder, holder);
        }
        b.must_rollback(b"k1", holder);
        let response = b.must_wake(NOW, tickets[next]);
        assert_eq!(release(&response), (holder, 0));
    }
    assert_eq!(b.cluster.next_wake_ms(), None);
}

#[test]
fn test_removing_by_token() {
    let mut b = Bench::new();
    b.must_lock(b"k1", b"k1", 5, 5);
    let wait = |b: &mut Bench, start_ts, wait_timeout| {
        let request = wish(b"k1", start_ts);
        let request = PessimisticLockRequest {
            wait_timeout,
            ..request
        };
        b.must_wait(NOW, request)
    };
    let waits = [(10, 0), (11, 100), (12, 0), (13, 200), (14, 0)];
    let tickets = waits.map(|(start_ts, wait_timeout)| wait(&mut b, start_ts, wait_timeout));
    assert_eq!(b.tickets(NOW + 150), [tickets[1]]);
    assert_eq!(b.tickets(NOW + 250), [tickets[3]]);
    assert_eq!(b.lock_wait_info(1).len(), 3);
    for (holder, next) in [(5, 0), (6, 2), (7, 4)] {
        if holder > 5 {
            b.must_lock(b"k1", b"k1", holder, holder);
        }
        b.must_rollback(b"k1", holder);
        assert_eq!(b.tickets(NOW), [tickets[next]]);
    }
    assert_eq!(b.cluster.next_wake_ms(), None);
}

#[test]
fn test_pop_shared_group() {
    let mut b = Bench::new();
    b.must_lock(b"k1", b"k1", 5, 5);
    let group = [10, 11, 12].map(|start_ts| b.must_wait(NOW, shared(b"k1", start_ts)));
    let alone = b.must_wait(NOW, wish(b"k1", 20));
    b.must_rollback(b"k1", 5);
    let woken = b.woken(NOW);
    let tickets: Vec<_> = woken.iter().map(|(ticket, _)| *ticket).collect();
    assert_eq!(tickets, group);
    assert!(
        woken
            .iter()
            .all(|(_, response)| release(response) == (5, 0))
    );
    b.must_lock(b"k1", b"k1", 7, 7);
    b.must_rollback(b"k1", 7);
    assert_eq!(release(&b.must_wake(NOW, alone)), (7, 0));
    assert_eq!(b.cluster.next_wake_ms(), None);
}

#[test]
fn test_waiter_manager_timeout() {
    for (asked, waits) in [(1000, WAIT_MS_MAX), (100, 100), (3000, WAIT_MS_MAX)] {
        let mut b = Bench::new();
        b.must_lock(b"k", b"k", 20, 20);
        let request = PessimisticLockRequest {
            wait_timeout: asked,
            ..wish(b"k", 10)
        };
        let ticket = b.must_wait(NOW, request);
        assert_eq!(b.tickets(NOW + waits - 1), []);
        let response = b.must_wake(NOW + waits, ticket);
        assert_eq!(locked(&response).lock_version, 20);
    }
}

#[test]
fn test_waiter_on_timeout() {
    let mut b = Bench::new();
    for key in [b"k1", b"k2"] {
        b.must_lock(key, key, 5, 5);
    }
    let times_out = b.must_wait(NOW, wish(b"k1", 10));
    let woken = b.must_wait(NOW, wish(b"k2", 20));
    b.must_rollback(b"k2", 5);
    assert_eq!(release(&b.must_wake(NOW, woken)), (5, 0));
    // Only who has not been woken is still there when the time is over.
    let response = b.must_wake(NOW + WAIT_MS_MAX, times_out);
    assert_eq!(locked(&response).lock_version, 5);
}

#[test]
fn test_duration_to_last_update() {
    let mut b = Bench::new();
    for key in [b"k1", b"k2"] {
        b.must_lock(key, key, 5, 5);
    }
    let takes = b.must_wait(NOW, forced(b"k1", 20));
    let changed = b.must_wait(NOW, forced(b"k1", 30));
    let unchanged = b.must_wait(NOW, forced(b"k2", 40));
    let (context, store) = b.to(b"k1");
    let request = PessimisticRollbackRequest {
        context,
        start_version: 5,
        for_update_ts: 5,
        keys: vec!["k1".into()],
    };
    b.cluster.kv_pessimistic_rollback(NOW + 300, store, request);
    assert!(b.must_wake(NOW + 300, takes).errors.is_empty());
    let woken = b.woken(NOW + WAIT_MS_MAX);
    let told = woken.iter().map(|(ticket, response)| {
        let lock = locked(response);
        (*ticket, lock.lock_version, lock.duration_to_last_update_ms)
    });
    let told: Vec<_> = told.collect();
    assert_eq!(told, [(changed, 20, WAIT_MS_MAX - 300), (unchanged, 5, 0)]);
}

#[test]
fn test_wake_up() {
    // What resolves a whole region does not see locks that only the leader holds.
    let mut b = Bench::with(Config {
        in_memory_pessimistic_locks: false,
        ..Config::default()
    });
    let keys: [&[u8]; 3] = [b"a", b"b", b"c"];
    let block = |b: &mut Bench, keys: &[&'static [u8]], start_ts| {
        let waits = keys.iter();
        waits
            .map(|key| b.must_wait(NOW, wish(key, start_ts)))
            .collect::<Vec<_>>()
    };
    let must_wake = |b: &mut Bench, tickets: Vec<Ticket>, by: (u64, u64)| {
        let woken = b.woken(NOW);
        let who: Vec<_> = woken.iter().map(|(ticket, _)| *ticket).collect();
        assert_eq!(who, tickets);
        for (_, response) in &woken {
            assert_eq!(release(response), by);
        }
    };
    let prewrite = |b: &mut Bench, keys: &[&[u8]], start_ts| {
        keys.iter()
            .for_each(|key| b.must_prewrite_put(key, b"v", b"a", start_ts));
    };
    let lock = |b: &mut Bench, keys: &[&[u8]], start_ts| {
        keys.iter()
            .for_each(|key| b.must_lock(key, b"a", start_ts, start_ts));
    };

    prewrite(&mut b, &keys, 10);
    let blocked = block(&mut b, &keys, 15);
    keys.iter().for_each(|key| b.must_commit(key, 10, 20));
    must_wake(&mut b, blocked, (10, 20));

    for (start_ts, pessimistic) in [(30, false), (31, true)] {
        let take = if pessimistic { lock } else { prewrite };
        take(&mut b, &keys[..1], start_ts);
        let blocked = block(&mut b, &keys[..1], 35);
        b.must_cleanup(b"a", start_ts, 0);
        must_wake(&mut b, blocked, (start_ts, 0));
    }

    for (start_ts, pessimistic) in [(40, false), (41, true)] {
        let take = if pessimistic { lock } else { prewrite };
        take(&mut b, &keys, start_ts);
        let blocked = block(&mut b, &keys, 45);
        keys.iter().for_each(|key| b.must_rollback(key, start_ts));
        must_wake(&mut b, blocked, (start_ts, 0));
    }

    lock(&mut b, &keys, 50);
    let blocked = block(&mut b, &keys, 55);
    keys.iter()
        .for_each(|key| b.pessimistic_rollback(key, 50, 50));
    must_wake(&mut b, blocked, (50, 0));

    let resolve = |b: &mut Bench, request: ResolveLockRequest| {
        let (context, store) = b.to(b"a");
        let request = ResolveLockRequest { context, ..request };
        let response = b.cluster.kv_resolve_lock(NOW, store, request);
        assert_eq!((response.region_error, response.error), (None, None));
    };
    for (start_version, commit_version) in [(60, 0), (61, 62)] {
        prewrite(&mut b, &keys, start_version);
        let blocked = block(&mut b, &keys, 65);
        let request = ResolveLockRequest {
            start_version,
            commit_version,
            keys: keys.iter().map(|key| (*key).into()).collect(),
            ..Default::default()
        };
        resolve(&mut b, request);
        must_wake(&mut b, blocked, (start_version, commit_version));
    }

    lock(&mut b, &keys, 70);
    let committed: [&[u8]; 3] = [b"d", b"e", b"f"];
    prewrite(&mut b, &committed, 75);
    let rolled_back = block(&mut b, &keys, 76);
    let committed = block(&mut b, &committed, 76);
    let txn_infos = [(70, 0), (75, 76)].map(|(txn, status)| TxnInfo {
        txn,
        status,
        ..Default::default()
    });
    let request = ResolveLockRequest {
        txn_infos: txn_infos.into(),
        ..Default::default()
    };
    resolve(&mut b, request);
    let woken = b.woken(NOW);
    for (ticket, response) in &woken {
        let by = release(response);
        assert_eq!(rolled_back.contains(ticket), by == (70, 0));
        assert_eq!(committed.contains(ticket), by == (75, 76));
    }
    assert_eq!(woken.len(), 6);

    let start_ts = ts(100, 0);
    let (context, store) = b.to(b"k");
    let response = b.prewrite(PrewriteRequest {
        mutations: vec![put(b"k", b"v")],
        primary_lock: "k".into(),
        start_version: start_ts,
        lock_ttl: 100,
        ..Default::default()
    });
    assert!(response.errors.is_empty());
    let blocked = block(&mut b, &[b"k"], 105);
    for (now, expired) in [(150, false), (201, true)] {
        let request = CheckTxnStatusRequest {
            context: context.clone(),
            primary_key: "k".into(),
            lock_ts: start_ts,
            caller_start_ts: ts(110, 0),
            current_ts: ts(now, 0),
            ..Default::default()
        };
        let response = b.cluster.kv_check_txn_status(NOW, store, request);
        assert_eq!((response.region_error, response.error), (None, None));
        let expected = if expired { blocked.clone() } else { Vec::new() };
        must_wake(&mut b, expected, (start_ts, 0));
    }
}

/// What the server's test leaves out.
#[test]
fn the_rare_ways_of_releasing_a_lock_wake_up_too() {
    let mut b = Bench::new();
    // A commit in one phase takes the pessimistic lock along.
    b.must_lock(b"k", b"k", 10, 10);
    let ticket = b.must_wait(NOW, wish(b"k", 20));
    b.heart_beat(b"k", 10, 60_000);
    assert_eq!(b.tickets(NOW), []);
    let response = b.prewrite(PrewriteRequest {
        mutations: vec![put(b"k", b"v")],
        primary_lock: "k".into(),
        start_version: 10,
        for_update_ts: 10,
        pessimistic_actions: vec![DoPessimisticCheck.into()],
        try_one_pc: true,
        ..Default::default()
    });
    assert_eq!(response.one_pc_commit_ts, 11);
    assert_eq!(release(&b.must_wake(NOW, ticket)), (10, 11));
    // Who asks for the state of a secondary rolls a pessimistic lock back.
    b.must_lock(b"k", b"k", 30, 30);
    let ticket = b.must_wait(NOW, wish(b"k", 40));
    assert_eq!(b.check_secondary(b"k", 30), (0, false));
    assert_eq!(release(&b.must_wake(NOW, ticket)), (30, 0));
    // A prewrite does not release the lock that it replaces.
    b.must_lock(b"k", b"k", 50, 50);
    let ticket = b.must_wait(NOW, wish(b"k", 60));
    b.must_prewrite_pessimistic(b"k", 50, 50);
    assert_eq!(b.tickets(NOW), []);
    let response = b.must_wake(NOW + WAIT_MS_MAX, ticket);
    assert_eq!(locked(&response).lock_version, 50);
    assert_eq!(locked(&response).duration_to_last_update_ms, 0);
}

#[test]
fn test_acquire_pessimistic_lock_resumed() {
    // Each waits for a lock of its own and is run again when that is released.
    let resume = |b: &mut Bench, requests: &[PessimisticLockRequest]| {
        let mut answers = Vec::new();
        for request in requests {
            let key = &request.mutations[0].key;
            b.must_lock(key, key, 5, 50);
            let ticket = b.must_wait(NOW, request.clone());
            b.pessimistic_rollback(key, 5, 50);
            answers.push(b.must_wake(NOW, ticket));
        }
        answers
    };
    let late = |key, start_ts, for_update_ts| PessimisticLockRequest {
        for_update_ts,
        ..forced(key, start_ts)
    };
    let mut b = Bench::new();
    let requests = [
        late(b"k1", 20, 25),
        late(b"k2", 20, 25),
        late(b"k3", 21, 26),
    ];
    for (request, answer) in requests.iter().zip(resume(&mut b, &requests)) {
        must_get(request, &answer, Got::Empty);
        let (key, start_ts) = (&request.mutations[0].key, request.start_version);
        b.must_pessimistic_locked(key, start_ts, request.for_update_ts);
        b.pessimistic_rollback(key, start_ts, request.for_update_ts);
    }
    b.must_prewrite_put(b"k1", b"v1", b"k1", 30);
    b.must_commit(b"k1", 30, 35);
    b.must_prewrite_put(b"k3", b"v3", b"k3", 28);
    b.must_commit(b"k3", 28, 29);
    let requests = [
        forced(b"k1", 31),
        PessimisticLockRequest {
            return_values: true,
            ..forced(b"k3", 33)
        },
        PessimisticLockRequest {
            check_existence: true,
            ..forced(b"k4", 34)
        },
        forced(b"k5", 35),
    ];
    let answers = resume(&mut b, &requests);
    let expected = [
        Got::Conflict(35, Some("v1")),
        Got::Value(Some("v3")),
        Got::Existence(false),
        Got::Empty,
    ];
    for ((request, answer), expected) in requests.iter().zip(&answers).zip(expected) {
        must_get(request, answer, expected);
    }
    b.must_pessimistic_locked(b"k1", 31, 35);
    b.must_pessimistic_locked(b"k3", 33, 33);
    b.must_pessimistic_locked(b"k4", 34, 34);
    b.must_pessimistic_locked(b"k5", 35, 35);

    // Somebody else is in the way when it is run again: it waits on.
    b.must_lock(b"k2", b"k2", 5, 5);
    let normal = b.must_wait(NOW, wish(b"k2", 30));
    let waits = b.must_wait(NOW, forced(b"k2", 32));
    b.pessimistic_rollback(b"k2", 5, 5);
    b.must_wake(NOW, normal);
    b.must_prewrite_put(b"k2", b"v2", b"k2", 30);
    assert_eq!(b.tickets(NOW + WAKE_UP_DELAY_MS), []);
    b.must_locked(b"k2", 30);
    b.must_rollback(b"k2", 30);
    let answer = b.must_wake(NOW + WAKE_UP_DELAY_MS, waits);
    must_get(&forced(b"k2", 32), &answer, Got::Empty);
}

#[test]
fn test_pessimistic_lock_resumable() {
    for in_memory_pessimistic_locks in [false, true] {
        for (return_values, check_existence) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let mut b = Bench::with(Config {
                in_memory_pessimistic_locks,
                ..Config::default()
            });
            resumable(&mut b, return_values, check_existence);
        }
        let mut b = Bench::with(Config {
            in_memory_pessimistic_locks,
            ..Config::default()
        });
        b.must_lock(b"k21", b"k21", 10, 10);
        let [twenty, fifty, thirty, forty] =
            [20, 50, 30, 40].map(|start_ts| b.must_wait(NOW, forced(b"k21", start_ts)));
        for (holder, next) in [(10, twenty), (20, thirty), (30, forty), (40, fifty)] {
            b.pessimistic_rollback(b"k21", holder, holder);
            let answer = b.must_wake(NOW, next);
            must_get(&forced(b"k21", holder + 10), &answer, Got::Empty);
            assert_eq!(b.tickets(NOW + WAKE_UP_DELAY_MS), []);
        }
    }
}

fn resumable(b: &mut Bench, return_values: bool, check_existence: bool) {
    let asked = |value: Option<&'static str>| {
        if return_values {
            Got::Value(value)
        } else if check_existence {
            Got::Existence(value.is_some())
        } else {
            Got::Empty
        }
    };
    let request = |key: &'static [u8]| PessimisticLockRequest {
        return_values,
        check_existence,
        ..forced(key, 25)
    };
    b.must_prewrite_put(b"k1", b"v1", b"k1", 10);
    b.must_commit(b"k1", 10, 20);
    b.must_prewrite_put(b"k2", b"v2", b"k2", 30);
    b.must_commit(b"k2", 30, 40);
    b.must_lock(b"k3", b"k3", 20, 20);
    for (key, value, start_ts) in [(b"k4", b"v4", 30), (b"k5", b"v5", 30), (b"k6", b"v6", 10)] {
        b.must_prewrite_put(key, value, key, start_ts);
    }

    let granted = b.must_not_wait(request(b"k1"));
    must_get(&request(b"k1"), &granted, asked(Some("v1")));
    let granted = b.must_not_wait(request(b"k2"));
    must_get(&request(b"k2"), &granted, Got::Conflict(40, Some("v2")));
    let refused = b.must_not_wait(PessimisticLockRequest {
        wait_timeout: -1,
        ..request(b"k3")
    });
    assert!(only_error(&refused).locked.is_some());
    let failed = PessimisticLockKeyResultType::LockResultFailed;
    assert_eq!(result_type(&refused), failed);

    let [k3, k4, k5, k6] = [b"k3", b"k4", b"k5", b"k6"].map(|key| b.must_wait(NOW, request(key)));
    b.pessimistic_rollback(b"k3", 20, 20);
    must_get(&request(b"k3"), &b.must_wake(NOW, k3), asked(None));
    b.must_commit(b"k4", 30, 40);
    let four = b.must_wake(NOW, k4);
    must_get(&request(b"k4"), &four, Got::Conflict(40, Some("v4")));
    b.must_rollback(b"k5", 30);
    let five = b.must_wake(NOW, k5);
    must_get(&request(b"k5"), &five, Got::Conflict(30, None));
    b.must_commit(b"k6", 10, 20);
    must_get(&request(b"k6"), &b.must_wake(NOW, k6), asked(Some("v6")));

    for (key, for_update_ts, got) in [
        (b"k1", 25, asked(Some("v1"))),
        (b"k2", 40, Got::Conflict(40, Some("v2"))),
        (b"k3", 25, asked(None)),
        (b"k4", 40, Got::Conflict(40, Some("v4"))),
        (b"k5", 30, Got::Conflict(30, None)),
        (b"k6", 25, asked(Some("v6"))),
    ] {
        b.must_pessimistic_locked(key, 25, for_update_ts);
        // Asked again, it is told the same.
        let again = b.must_not_wait(request(key));
        must_get(&request(key), &again, got);
    }
}

#[test]
fn test_get_lock_wait_info_api() {
    let mut b = Bench::new();
    b.must_lock(b"a", b"a", 20, 20);
    b.must_wait(NOW, wish(b"a", 30));
    let entries = b.lock_wait_info(1);
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].txn, entries[0].wait_for_txn), (30, 20));
    assert_eq!(entries[0].key, "a");
    assert_eq!(entries[0].resource_group_tag, "tag 30");
}
