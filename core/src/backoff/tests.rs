use super::*;
use crate::driver::{Action, Reply};
use crate::operation::Operation;
use proptest::collection::vec;
use proptest::prelude::*;
use std::task::{Context, Poll, Waker};

use BackoffKind::{
    IsWitness, RegionMiss, RegionNotInitialized, RegionRecoveryInProgress, TikvRpc, TikvServerBusy,
    TxnLockFast, TxnNotFound,
};

const ONE: NonZeroU32 = NonZeroU32::MIN;

fn cause() -> Error {
    Error::protocol("test")
}

fn pause(backoffer: &mut Backoffer, kind: BackoffKind) -> Result<Duration> {
    let pause = backoffer.next(kind, cause(), None, Instant::ZERO)?;
    backoffer.slept(kind, pause);
    Ok(pause)
}

fn dominant(error: Error) -> BackoffKind {
    match error {
        Error::Exhausted(exhausted) => exhausted.kind,
        other => panic!("{other}"),
    }
}

#[test]
fn backoff_with_max() {
    let mut backoffer = Backoffer::new(10, WEIGHT_DEFAULT, 7);
    let cap = Some(Duration::from_millis(5));
    for _ in 0..4 {
        let pause = backoffer
            .next(TxnLockFast, cause(), cap, Instant::ZERO)
            .unwrap();
        assert_eq!(pause, Duration::from_millis(5));
        backoffer.slept(TxnLockFast, pause);
    }
    assert_eq!(backoffer.waited(), Duration::from_millis(20));
    assert!(
        backoffer
            .next(TxnLockFast, cause(), cap, Instant::ZERO)
            .is_err()
    );
}

#[test]
fn backoff_error_type() {
    let mut backoffer = Backoffer::new(800, WEIGHT_DEFAULT, 7);
    let ms = |range: std::ops::RangeInclusive<u64>, pause: Duration| {
        assert!(range.contains(&(pause.as_millis() as u64)), "{pause:?}");
    };
    ms(2..=2, pause(&mut backoffer, RegionMiss).unwrap());
    ms(2..=2, pause(&mut backoffer, RegionNotInitialized).unwrap());
    ms(4..=4, pause(&mut backoffer, RegionNotInitialized).unwrap());
    ms(
        50..=99,
        pause(&mut backoffer, RegionRecoveryInProgress).unwrap(),
    );
    // Waited, but not charged.
    ms(
        1_000..=1_999,
        pause(&mut backoffer, TikvServerBusy).unwrap(),
    );
    ms(500..=999, pause(&mut backoffer, IsWitness).unwrap());
    let error = (0..15)
        .find_map(|_| pause(&mut backoffer, TxnNotFound).err())
        .unwrap();
    let blamed = dominant(error);
    let (_, by_probe) = backoffer.waited_for(TxnNotFound);
    let (_, by_witness) = backoffer.waited_for(IsWitness);
    assert_eq!(
        blamed,
        if by_probe > by_witness {
            TxnNotFound
        } else {
            IsWitness
        }
    );
}

#[test]
fn backoff_deep_copy() {
    let mut backoffer = Backoffer::new(4, WEIGHT_DEFAULT, 7);
    let exhausted = std::iter::repeat_with(|| pause(&mut backoffer, RegionMiss));
    assert_eq!(exhausted.take_while(Result::is_ok).count(), 3);
    let mut fork = backoffer.fork();
    assert_eq!(fork.waited(), backoffer.waited());
    assert_eq!(fork.failures(), 3);
    // The fork inherits the blame, whatever it is about to wait for.
    assert_eq!(dominant(pause(&mut fork, TikvRpc).unwrap_err()), RegionMiss);
}

#[test]
fn backoff_update_using_fork() {
    let mut parent = Backoffer::new(2_000, WEIGHT_DEFAULT, 7);
    pause(&mut parent, RegionMiss).unwrap();
    let mut fork = parent.fork();
    // Each kind begins at its base again.
    assert_eq!(
        pause(&mut fork, RegionMiss).unwrap(),
        Duration::from_millis(2)
    );
    let mut grandchild = fork.fork();
    pause(&mut grandchild, TikvRpc).unwrap();
    parent.merge(&fork);
    assert_eq!((parent.waited(), parent.failures()), (fork.waited(), 2));
    parent.merge(&grandchild);
    assert_eq!(parent.waited(), grandchild.waited());
    // Neither a child nor a stranger takes over anything.
    let waited = fork.waited();
    fork.merge(&parent);
    let stranger = Backoffer::new(2_000, WEIGHT_DEFAULT, 8).fork();
    fork.merge(&stranger);
    assert_eq!(fork.waited(), waited);
}

#[test]
fn backoff_with_max_excluded_exceed() {
    let mut backoffer = Backoffer::new(1, ONE, 7);
    backoffer.excluded_ms_max = 1;
    pause(&mut backoffer, TikvServerBusy).unwrap();
    let error = pause(&mut backoffer, TikvServerBusy).unwrap_err();
    assert_eq!(dominant(error), TikvServerBusy);
    // Anything else is still affordable.
    assert!(pause(&mut backoffer, RegionMiss).is_ok());
}

#[test]
fn pauses_double_up_to_their_cap() {
    let mut backoffer = Backoffer::new(0, ONE, 7);
    let mut ms = || pause(&mut backoffer, RegionMiss).unwrap().as_millis();
    let pauses: Vec<u128> = std::iter::repeat_with(&mut ms).take(11).collect();
    assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 500, 500, 500]);
    for _ in 0..1_000 {
        assert_eq!(ms(), 500);
    }
    let rpc = std::iter::repeat_with(|| pause(&mut backoffer, TikvRpc).unwrap());
    for (place, pause) in rpc.take(8).enumerate() {
        let whole = Duration::from_millis((100 << place).min(2_000));
        assert!(
            pause >= whole / 2 && pause < whole,
            "{pause:?} of {whole:?}"
        );
    }
}

#[test]
fn weights_apply_unless_the_budget_is_for_ever() {
    let two = WEIGHT_DEFAULT;
    for (budget, weight, all) in [(0, two, 0), (800, two, 1_600), (800, ONE, 800)] {
        assert_eq!(weighted(budget, weight), all);
    }
    assert_eq!(
        weighted(budget::FOREVER_MS, two),
        u64::from(budget::FOREVER_MS)
    );
}

#[test]
fn a_new_stage_has_the_whole_budget_and_its_own_blame() {
    let mut backoffer = Backoffer::new(100, ONE, 7);
    while pause(&mut backoffer, RegionMiss).is_ok() {}
    backoffer.reset_budget(2);
    assert_eq!(
        pause(&mut backoffer, TxnNotFound).unwrap(),
        Duration::from_millis(2)
    );
    assert_eq!(
        dominant(pause(&mut backoffer, TikvRpc).unwrap_err()),
        TxnNotFound
    );
    assert_eq!(backoffer.waited_for(RegionMiss).0, 6);
}

#[test]
fn whoever_never_waits_gets_the_cause() {
    let mut backoffer = Backoffer::never();
    assert_eq!(pause(&mut backoffer, RegionMiss), Err(cause()));
    assert_eq!(pause(&mut backoffer.fork(), RegionMiss), Err(cause()));
    let foreign = Error::ClusterIdMismatch {
        expected: 1,
        got: 2,
        from: "pd".into(),
    };
    let mut patient = Backoffer::new(0, ONE, 7);
    let got = patient.next(RegionMiss, foreign.clone(), None, Instant::ZERO);
    assert_eq!(got, Err(foreign));
}

#[test]
fn a_deadline_trims_the_pause_and_says_what_was_waited_for() {
    let deadline = Instant::from_millis(30);
    let mut backoffer = Backoffer::new(0, ONE, 7).with_deadline(Some(deadline));
    let pause = backoffer
        .next(TikvRpc, cause(), None, Instant::from_millis(20))
        .unwrap();
    assert_eq!(pause, Duration::from_millis(10));
    let error = backoffer
        .next(TikvRpc, cause(), None, deadline)
        .unwrap_err();
    let Error::DeadlineExceeded(exceeded) = error else {
        panic!("{error}")
    };
    assert_eq!(exceeded.waiting_for, Why::Backoff(TikvRpc));
    assert_eq!((exceeded.attempts, exceeded.last), (1, Some(cause())));
}

#[test]
fn the_error_tells_the_last_causes() {
    let mut backoffer = Backoffer::new(20, ONE, 7);
    let error = (0..).find_map(|n: u32| {
        let cause = Error::protocol(format!("cause {n}"));
        let now = Instant::from_millis(u64::from(n));
        match backoffer.next(RegionMiss, cause, None, now) {
            Ok(pause) => {
                backoffer.slept(RegionMiss, pause);
                None
            }
            Err(error) => Some(error),
        }
    });
    let Some(Error::Exhausted(exhausted)) = error else {
        panic!("{error:?}")
    };
    let recent: Vec<&str> = exhausted.recent.iter().map(|cause| &**cause).collect();
    assert_eq!(
        recent,
        [1, 2, 3].map(|n| format!("at {n} ms: protocol error: cause {n}"))
    );
    assert_eq!(
        (exhausted.attempts, exhausted.waited),
        (4, Duration::from_millis(30))
    );
    assert_eq!(exhausted.last, Error::protocol("cause 4"));
}

#[test]
fn waiting_is_one_sleep_that_says_why() {
    let mut operation = Operation::new("test", |io| async move {
        let deadline = Some(Instant::from_millis(3));
        let mut backoffer = Backoffer::new(0, ONE, 7).with_deadline(deadline);
        let none = Some(Duration::ZERO);
        backoffer
            .wait_capped(&io, TxnNotFound, cause(), none)
            .await
            .unwrap();
        backoffer.wait(&io, RegionMiss, cause()).await.unwrap();
        let late = backoffer.wait(&io, RegionMiss, cause()).await;
        (backoffer.waited(), late.is_err())
    });
    let mut cx = Context::from_waker(Waker::noop());
    let mut now = Instant::ZERO;
    let mut sleeps = Vec::new();
    let result = loop {
        if let Poll::Ready(result) = operation.poll(&mut cx, now) {
            break result;
        }
        let (id, action) = operation.next_action().unwrap();
        let Action::Sleep { until, why } = action else {
            panic!("{action:?}")
        };
        sleeps.push((until.as_millis(), why));
        now = until;
        operation.complete(id, Reply::Woke).unwrap();
    };
    let why = Why::Backoff(RegionMiss);
    assert_eq!(sleeps, [(2, why), (3, why)]);
    assert_eq!(result, (Duration::from_millis(3), true));
}

#[test]
fn a_cap_by_a_clock_that_stands_still_is_not_asked_without_end() {
    let mut backoffer = Backoffer::new(0, ONE, 7);
    let millis = Duration::from_millis;
    let mut capped = |kind, cap| {
        let pause = backoffer.next(kind, cause(), Some(cap), Instant::ZERO);
        let pause = pause.expect("there is time");
        backoffer.slept(kind, pause);
        pause
    };
    assert_eq!(capped(BackoffKind::TxnLock, Duration::ZERO), Duration::ZERO);
    assert_eq!(capped(BackoffKind::TxnLock, millis(1)), millis(1));
    assert_eq!(capped(BackoffKind::TxnLock, millis(1)), millis(2));
    assert_eq!(capped(BackoffKind::TxnLock, millis(1)), millis(4));
    assert_eq!(capped(BackoffKind::TxnLock, millis(9)), millis(9));
    // The other kind has not waited yet.
    assert_eq!(capped(BackoffKind::TxnLockFast, millis(1)), millis(1));
    let long = (0..20)
        .map(|_| capped(BackoffKind::TxnLock, millis(1)))
        .max();
    assert!(long > Some(millis(500)), "{long:?}");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pause(BackoffKind),
    /// Go on in a fork; come back with what it waited, or without.
    Fork,
    Return {
        merges: bool,
    },
    Reset,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..BackoffKind::COUNT).prop_map(|n| Step::Pause(BackoffKind::ALL[n])),
        2 => Just(Step::Fork),
        2 => any::<bool>().prop_map(|merges| Step::Return { merges }),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #[test]
    fn a_budget_is_overshot_by_at_most_one_pause(
        budget_ms in 1..60_000_u32,
        seed: u64,
        steps in vec(steps(), 1..200),
    ) {
        let run = || {
            let mut pauses = Vec::new();
            let mut stack = vec![Backoffer::new(budget_ms, ONE, seed)];
            let longest = Duration::from_secs(10);
            for step in &steps {
                let last = stack.len() - 1;
                match *step {
                    Step::Pause(kind) => match pause(&mut stack[last], kind) {
                        Ok(pause) => pauses.push(pause),
                        Err(error) => {
                            let of_stage = |kind: BackoffKind| {
                                let history = stack[last].history.as_ref();
                                history.map_or(Duration::ZERO, |h| h.kinds[kind as usize].stage)
                            };
                            let charged = BackoffKind::ALL
                                .into_iter()
                                .filter(|kind| *kind != TikvServerBusy);
                            let most = charged.clone().map(of_stage).max();
                            let first = charged.clone().find(|k| Some(of_stage(*k)) == most);
                            assert_eq!(Some(dominant(error)), first);
                        }
                    },
                    Step::Fork => {
                        let fork = stack[last].fork();
                        stack.push(fork);
                    }
                    Step::Return { merges } if last > 0 => {
                        let fork = stack.pop().unwrap();
                        if merges {
                            stack[last - 1].merge(&fork);
                        }
                    }
                    Step::Return { .. } => {}
                    Step::Reset => stack[last].reset(),
                }
                let backoffer = &stack[stack.len() - 1];
                if let Some(history) = &backoffer.history {
                    let budget = Duration::from_millis(budget_ms.into());
                    assert!(history.total - history.excluded < budget + longest);
                    let excluded_max = Duration::from_millis(EXCLUDED_MS_MAX).max(budget);
                    assert!(history.excluded < excluded_max + longest);
                }
            }
            pauses
        };
        prop_assert_eq!(run(), run());
    }
}
