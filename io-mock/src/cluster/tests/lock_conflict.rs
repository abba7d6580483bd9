//! Locking a key although it has a newer version than the transaction has read.

use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::DoPessimisticCheck;
use tikv_proto::kvrpcpb::{
    Assertion, Op, PessimisticLockKeyResultType, PessimisticLockRequest, PessimisticLockWakeUpMode,
};

use super::vocabulary::{RETRY, pre, word};
use super::{Bench, mutation};

/// What a granted lock tells.
#[derive(Debug, PartialEq)]
enum Told {
    Nothing,
    Exists(bool),
    Value(Option<&'static str>),
    Conflict(u64, Option<&'static str>),
}
use Told::{Conflict, Exists, Nothing, Value};

#[derive(Clone, Copy, Default)]
struct Ask {
    value: bool,
    existence: bool,
    absent: bool,
    only_if_exists: bool,
}

/// Values of these tests, so that what is told can be compared.
fn value(bytes: &[u8], exists: bool) -> Option<&'static str> {
    let known = ["v1", "v2"].into_iter().find(|v| v.as_bytes() == bytes);
    assert_eq!(exists, known.is_some());
    known
}

fn lock(b: &mut Bench, k: &[u8], start: u64, at: u64, ask: Ask) -> Result<Told, &'static str> {
    let mut m = mutation(Op::PessimisticLock, k, b"");
    if ask.absent {
        m.set_assertion(Assertion::NotExist);
    }
    let mut request = PessimisticLockRequest {
        mutations: vec![m],
        return_values: ask.value,
        check_existence: ask.existence,
        lock_only_if_exists: ask.only_if_exists,
        ..Default::default()
    };
    request.set_wake_up_mode(PessimisticLockWakeUpMode::WakeUpModeForceLock);
    let response = b.lock_one(request, k, k, start, at);
    if let Some(error) = response.errors.first() {
        return Err(word(Some(error)));
    }
    let result = &response.results[0];
    Ok(match result.r#type() {
        PessimisticLockKeyResultType::LockResultLockedWithConflict => Conflict(
            result.locked_with_conflict_ts,
            value(&result.value, result.existence),
        ),
        PessimisticLockKeyResultType::LockResultNormal if ask.value => {
            Value(value(&result.value, result.existence))
        }
        PessimisticLockKeyResultType::LockResultNormal if ask.existence => Exists(result.existence),
        PessimisticLockKeyResultType::LockResultNormal => Nothing,
        PessimisticLockKeyResultType::LockResultFailed => return Err("failed"),
    })
}

#[test]
fn test_lock_with_conflict() {
    let mut b = Bench::new();
    let k = b"k1";
    b.write(k, b"v1", 10, 20);
    let asks = [(false, false), (false, true), (true, false), (true, true)];
    for (value, existence) in asks {
        let ask = Ask {
            value,
            existence,
            ..Ask::default()
        };
        let told = match (value, existence) {
            (true, _) => Value(Some("v1")),
            (false, true) => Exists(true),
            (false, false) => Nothing,
        };
        assert_eq!(lock(&mut b, k, 10, 30, ask), Ok(told));
        b.pessimistic_rollback(k, 10, 30);
        // With a conflict the value is told unasked.
        let conflict = Ok(Conflict(20, Some("v1")));
        assert_eq!(lock(&mut b, k, 10, 15, ask), conflict);
        b.must_pessimistic_locked(k, 10, 20);
        assert!(b.lock_of(k).expect("locked").locked_with_conflict);
        b.pessimistic_rollback(k, 10, 20);
        b.must_unlocked(k);
    }
    let ask = Ask::default();
    assert_eq!(lock(&mut b, k, 10, 50, ask), Ok(Nothing));
    for late in [40, 15] {
        let held = Ok(Conflict(50, Some("v1")));
        assert_eq!(lock(&mut b, k, 10, late, ask), held);
    }
    b.must_pessimistic_locked(k, 10, 50);
    assert!(!b.lock_of(k).expect("locked").locked_with_conflict);
    for (start, at) in [(11, 55), (9, 9)] {
        assert_eq!(lock(&mut b, k, start, at, ask), Err("locked"));
    }
    b.must_pessimistic_locked(k, 10, 50);
}

#[test]
fn test_lock_with_conflict_should_not_exist() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k1", b"k2");
    let ask = Ask {
        absent: true,
        ..Ask::default()
    };
    b.write(k1, b"v1", 20, 30);
    assert_eq!(lock(&mut b, k1, 10, 10, ask), Err(RETRY));
    b.must_unlocked(k1);
    for held in [30, 40] {
        b.must_lock(k1, k1, 10, held);
        assert_eq!(lock(&mut b, k1, 10, 10, ask), Err(RETRY));
        b.must_pessimistic_locked(k1, 10, held);
    }
    let delete = pre(k1, 10).with(mutation(Op::Del, k1, b""));
    b.must_run(delete.pessimistic(40, &[DoPessimisticCheck]));
    b.must_commit(k1, 10, 60);
    for _ in 0..2 {
        assert_eq!(lock(&mut b, k1, 50, 50, ask), Ok(Conflict(60, None)));
        b.must_pessimistic_locked(k1, 50, 60);
    }
    b.must_lock(k1, k1, 50, 70);
    assert_eq!(lock(&mut b, k1, 50, 50, ask), Ok(Conflict(70, None)));

    // Without a conflict.
    for _ in 0..2 {
        assert_eq!(lock(&mut b, k2, 10, 10, ask), Ok(Nothing));
        b.must_pessimistic_locked(k2, 10, 10);
    }
    b.must_lock(k2, k2, 10, 20);
    assert_eq!(lock(&mut b, k2, 10, 10, ask), Ok(Conflict(20, None)));
    assert_eq!(lock(&mut b, k2, 10, 25, ask), Ok(Nothing));
    b.must_pessimistic_locked(k2, 10, 25);
    b.must_run(
        pre(k2, 10)
            .put(&[k2])
            .pessimistic(20, &[DoPessimisticCheck]),
    );
    b.must_commit(k2, 10, 30);
    assert_eq!(lock(&mut b, k2, 40, 40, ask), Err("exists"));
    b.must_unlocked(k2);
    for (held, at) in [(40, 40), (50, 40), (50, 60)] {
        b.must_lock(k2, k2, 40, held);
        assert_eq!(lock(&mut b, k2, 40, at, ask), Err("exists"));
        b.must_pessimistic_locked(k2, 40, held);
    }
}

#[test]
fn test_lock_with_conflict_lock_only_if_exists() {
    let mut b = Bench::new();
    let (k1, k2) = (b"k1", b"k2");
    let ask = Ask {
        value: true,
        only_if_exists: true,
        ..Ask::default()
    };
    b.write(k1, b"v1", 20, 30);
    for held in [30, 30, 40] {
        if held == 40 {
            b.must_lock(k1, k1, 10, 40);
        }
        let told = lock(&mut b, k1, 10, 10, ask);
        assert_eq!(told, Ok(Conflict(held, Some("v1"))));
        b.must_pessimistic_locked(k1, 10, held);
        assert!(b.lock_of(k1).expect("locked").locked_with_conflict);
    }
    let delete = pre(k1, 10).with(mutation(Op::Del, k1, b""));
    b.must_run(delete.pessimistic(40, &[DoPessimisticCheck]));
    b.must_commit(k1, 10, 60);
    assert_eq!(lock(&mut b, k1, 50, 50, ask), Err(RETRY));
    b.must_unlocked(k1);

    assert_eq!(lock(&mut b, k2, 10, 10, ask), Ok(Value(None)));
    b.must_unlocked(k2);
    b.write(k2, b"v2", 10, 30);
    for _ in 0..2 {
        assert_eq!(lock(&mut b, k2, 40, 40, ask), Ok(Value(Some("v2"))));
        b.must_pessimistic_locked(k2, 40, 40);
    }
    b.must_lock(k2, k2, 40, 50);
    assert_eq!(lock(&mut b, k2, 40, 40, ask), Ok(Conflict(50, Some("v2"))));
    b.must_pessimistic_locked(k2, 40, 50);
}
