use proptest::prelude::*;

use super::*;

const NOW: Instant = Instant::from_millis(1_000);
const FAR: Instant = Instant::FAR_FUTURE;

fn batcher(config: TsoConfig) -> TsoBatcher<u32> {
    TsoBatcher::new("pd".into(), config)
}

fn grant(physical: i64, logical: i64, count: u32) -> TsoGrant {
    TsoGrant {
        physical,
        logical,
        count,
        suffix_bits: 0,
    }
}

fn broken() -> TransportError {
    TransportError::Broken {
        address: "pd".into(),
        message: "EOF".into(),
        sent: true,
    }
}

/// Takes what is done so far: completions with timestamps, as (physical, logical).
fn granted(done: &mut Vec<TsoDone<u32>>) -> Vec<(u32, (u64, u64))> {
    done.drain(..)
        .map(|done| {
            let ts = done.result.unwrap();
            (done.completion, (ts.physical_ms(), ts.logical()))
        })
        .collect()
}

/// Takes what is done so far: completions with errors.
fn failed(done: &mut Vec<TsoDone<u32>>) -> Vec<(u32, TransportError)> {
    done.drain(..)
        .map(|done| (done.completion, done.result.unwrap_err()))
        .collect()
}

#[test]
fn a_batch_is_shared_out_in_the_order_asked() {
    let mut batcher = batcher(TsoConfig::default());
    let mut done = Vec::new();
    assert_eq!(batcher.poll_batch(NOW, &mut done), None);
    for i in 0..3 {
        assert!(batcher.push(FAR, i).is_ok());
    }
    assert_eq!(
        batcher.poll_batch(NOW, &mut done),
        Some(TsoBatch { count: 3 })
    );
    // One batch at a time: what comes now waits, and goes out as one.
    for i in 3..5 {
        batcher.push(FAR, i).unwrap();
    }
    assert!(!batcher.is_ready());
    assert_eq!(batcher.poll_batch(NOW, &mut done), None);
    batcher.on_reply(grant(9, 10, 3), &mut done).unwrap();
    assert_eq!(granted(&mut done), [(0, (9, 8)), (1, (9, 9)), (2, (9, 10))]);
    assert!(batcher.is_ready());
    assert_eq!(
        batcher.poll_batch(NOW, &mut done),
        Some(TsoBatch { count: 2 })
    );
    batcher.on_reply(grant(9, 12, 2), &mut done).unwrap();
    assert_eq!(granted(&mut done), [(3, (9, 11)), (4, (9, 12))]);
    assert_eq!(batcher.largest(), Timestamp::new(9, 12));
}

#[test]
fn batches_queue_and_outstanding_ones_are_bounded() {
    let mut batcher = batcher(TsoConfig {
        queue_max: 5,
        batch_max: 2,
        outstanding_max: 2,
        ..Default::default()
    });
    let mut done = Vec::new();
    for i in 0..5 {
        batcher.push(FAR, i).unwrap();
    }
    assert_eq!(batcher.push(FAR, 9), Err(TsoRejected::Full(9)));
    for _ in 0..2 {
        assert_eq!(
            batcher.poll_batch(NOW, &mut done),
            Some(TsoBatch { count: 2 })
        );
    }
    assert_eq!(batcher.poll_batch(NOW, &mut done), None);
    assert_eq!((batcher.queued(), batcher.outstanding()), (1, 2));
    assert!(batcher.has_room());
    // Answers come in the order of the batches.
    batcher.on_reply(grant(1, 2, 2), &mut done).unwrap();
    assert_eq!(
        batcher.poll_batch(NOW, &mut done),
        Some(TsoBatch { count: 1 })
    );
    batcher.on_reply(grant(1, 4, 2), &mut done).unwrap();
    batcher.on_reply(grant(2, 0, 1), &mut done).unwrap();
    let expected = [
        (0, (1, 1)),
        (1, (1, 2)),
        (2, (1, 3)),
        (3, (1, 4)),
        (4, (2, 0)),
    ];
    assert_eq!(granted(&mut done), expected);
}

#[test]
fn suffix_bits_are_not_counted_with() {
    let mut batcher = batcher(TsoConfig::default());
    let mut done = Vec::new();
    for i in 0..3 {
        batcher.push(FAR, i).unwrap();
    }
    batcher.poll_batch(NOW, &mut done).unwrap();
    let answer = TsoGrant {
        suffix_bits: 3,
        ..grant(9, 21, 3)
    };
    batcher.on_reply(answer, &mut done).unwrap();
    assert_eq!(
        granted(&mut done),
        [(0, (9, 5)), (1, (9, 13)), (2, (9, 21))]
    );
}

#[test]
fn an_answer_that_does_not_fit_ends_the_stream_but_not_the_queue() {
    let impossible = |physical, logical| TsoError::Impossible { physical, logical };
    let count = |granted| TsoError::Count { asked: 2, granted };
    let table = [
        (grant(5, 5, 1), count(1)),
        (grant(5, 5, 3), count(3)),
        (grant(5, 5, 0), count(0)),
        (grant(5, 0, 2), impossible(5, 0)),
        (grant(5, -1, 2), impossible(5, -1)),
        (grant(-5, 5, 2), impossible(-5, 5)),
        (grant(1 << 46, 5, 2), impossible(1 << 46, 5)),
        (grant(5, 1 << 18, 2), impossible(5, 1 << 18)),
        (grant(i64::MAX, i64::MAX, 2), impossible(i64::MAX, i64::MAX)),
        (
            TsoGrant {
                suffix_bits: 5,
                ..grant(5, 31, 2)
            },
            impossible(5, 31),
        ),
        (
            TsoGrant {
                suffix_bits: u32::MAX,
                ..grant(5, 31, 2)
            },
            impossible(5, 31),
        ),
    ];
    for (answer, error) in table {
        let mut batcher = batcher(TsoConfig {
            batch_max: 2,
            outstanding_max: 2,
            ..Default::default()
        });
        let mut done = Vec::new();
        for i in 0..5 {
            batcher.push(FAR, i).unwrap();
        }
        batcher.poll_batch(NOW, &mut done).unwrap();
        batcher.poll_batch(NOW, &mut done).unwrap();
        assert_eq!(batcher.on_reply(answer, &mut done), Err(error));
        let failure = TransportError::Decode {
            address: "pd".into(),
            message: error.to_string().into(),
        };
        let expected: Vec<_> = (0..4).map(|i| (i, failure.clone())).collect();
        assert_eq!(failed(&mut done), expected, "{answer:?}");
        // Everything else goes on, with the next stream.
        assert_eq!(
            batcher.poll_batch(NOW, &mut done),
            Some(TsoBatch { count: 1 })
        );
        batcher.on_reply(grant(5, 5, 1), &mut done).unwrap();
        assert_eq!(granted(&mut done), [(4, (5, 5))]);
        let unasked = TsoError::Unasked { count: 1 };
        assert_eq!(batcher.on_reply(grant(5, 6, 1), &mut done), Err(unasked));
    }
}

#[test]
fn an_oracle_that_goes_back_is_never_trusted_again() {
    // What is granted after (7, 7) was, and the first timestamp of it if that is an error.
    let table = [
        (grant(7, 9, 2), None),
        (grant(8, 1, 2), None),
        (grant(7, 8, 2), Some((7, 7))),
        (grant(7, 7, 2), Some((7, 6))),
        (grant(6, 100, 2), Some((6, 99))),
    ];
    for (answer, first) in table {
        let mut batcher = batcher(TsoConfig {
            batch_max: 2,
            ..Default::default()
        });
        let mut done = Vec::new();
        batcher.observe(Timestamp::new(7, 7));
        batcher.observe(Timestamp::new(7, 5));
        for i in 0..3 {
            batcher.push(FAR, i).unwrap();
        }
        batcher.poll_batch(NOW, &mut done).unwrap();
        let result = batcher.on_reply(answer, &mut done);
        let Some((physical, logical)) = first else {
            assert_eq!(result, Ok(()), "{answer:?}");
            continue;
        };
        let error = TsoError::NotMonotonic {
            first: Timestamp::new(physical, logical),
            largest: Timestamp::new(7, 7),
        };
        assert_eq!(result, Err(error));
        let ended = failed(&mut done);
        assert_eq!(ended.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [0, 1, 2]);
        let again = batcher.push(FAR, 3);
        assert_eq!(again, Err(TsoRejected::Failed(3, ended[0].1.clone())));
        // Not even by closing it.
        batcher.close(&mut done);
        assert_eq!(batcher.push(FAR, 3), again);
        assert_eq!(done, []);
    }
}

#[test]
fn overlapping_batches_need_not_be_in_order() {
    let mut batcher = batcher(TsoConfig {
        outstanding_max: 2,
        ..Default::default()
    });
    let mut done = Vec::new();
    for i in 0..2 {
        batcher.push(FAR, i).unwrap();
        batcher.poll_batch(NOW, &mut done).unwrap();
    }
    batcher.on_reply(grant(5, 5, 1), &mut done).unwrap();
    // This one began before the other was answered; the next one did not.
    batcher.push(FAR, 2).unwrap();
    batcher.poll_batch(NOW, &mut done).unwrap();
    batcher.on_reply(grant(5, 4, 1), &mut done).unwrap();
    assert_eq!(granted(&mut done), [(0, (5, 5)), (1, (5, 4))]);
    let error = TsoError::NotMonotonic {
        first: Timestamp::new(5, 5),
        largest: Timestamp::new(5, 5),
    };
    assert_eq!(batcher.on_reply(grant(5, 5, 1), &mut done), Err(error));
}

#[test]
fn a_broken_stream_fails_what_was_sent_on_it() {
    let mut batcher = batcher(TsoConfig {
        batch_max: 1,
        ..Default::default()
    });
    let mut done = Vec::new();
    for i in 0..2 {
        batcher.push(FAR, i).unwrap();
    }
    batcher.poll_batch(NOW, &mut done).unwrap();
    assert_eq!(batcher.next_deadline(), Some(NOW + Duration::from_secs(3)));
    batcher.on_broken(&broken(), &mut done);
    assert_eq!(failed(&mut done), [(0, broken())]);
    assert_eq!(batcher.next_deadline(), None);
    // No stream can be had.
    batcher.on_connect_failed(&"refused".into(), &mut done);
    let refused = TransportError::Connect {
        address: "pd".into(),
        message: "refused".into(),
    };
    assert_eq!(failed(&mut done), [(1, refused)]);
    // That is no reason to give up.
    batcher.push(FAR, 2).unwrap();
    batcher.poll_batch(NOW, &mut done).unwrap();
    batcher.on_reply(grant(1, 1, 1), &mut done).unwrap();
    assert_eq!(granted(&mut done), [(2, (1, 1))]);
}

#[test]
fn a_cancelled_wish_costs_nobody_anything() {
    let mut batcher = batcher(TsoConfig::default());
    let mut done = Vec::new();
    let tickets: Vec<_> = (0..5).map(|i| batcher.push(FAR, i).unwrap()).collect();
    assert_eq!(batcher.cancel(tickets[1]), Some(1));
    assert_eq!(batcher.cancel(tickets[1]), None);
    assert_eq!(
        batcher.poll_batch(NOW, &mut done),
        Some(TsoBatch { count: 4 })
    );
    let late = batcher.push(FAR, 5).unwrap();
    // Its timestamp is thrown away.
    assert_eq!(batcher.cancel(tickets[2]), Some(2));
    assert_eq!(batcher.cancel(tickets[2]), None);
    batcher.on_reply(grant(1, 4, 4), &mut done).unwrap();
    assert_eq!(granted(&mut done), [(0, (1, 1)), (3, (1, 3)), (4, (1, 4))]);
    for ticket in tickets {
        assert_eq!(batcher.cancel(ticket), None);
    }
    assert_eq!(batcher.cancel(late), Some(5));
    assert_eq!(batcher.poll_batch(NOW, &mut done), None);
    assert_eq!((batcher.queued(), batcher.outstanding()), (0, 0));
}

#[test]
fn an_expired_wish_is_not_sent() {
    let mut batcher = batcher(TsoConfig::default());
    let mut done = Vec::new();
    let second = NOW + Duration::from_secs(1);
    batcher.push(NOW, 0).unwrap();
    batcher.push(second, 1).unwrap();
    assert_eq!(
        batcher.poll_batch(NOW, &mut done),
        Some(TsoBatch { count: 1 })
    );
    let expired = TransportError::Deadline {
        address: "pd".into(),
        sent: false,
    };
    assert_eq!(failed(&mut done), [(0, expired.clone())]);
    // Once sent, it is the waiting task that watches the deadline.
    batcher.on_reply(grant(1, 1, 1), &mut done).unwrap();
    assert_eq!(granted(&mut done), [(1, (1, 1))]);
    batcher.push(second, 2).unwrap();
    assert_eq!(batcher.poll_batch(second, &mut done), None);
    assert_eq!(failed(&mut done), [(2, expired)]);
    assert_eq!(batcher.outstanding(), 0);
}

#[test]
fn close_ends_every_stage() {
    let mut batcher = batcher(TsoConfig::default());
    let mut done = Vec::new();
    batcher.push(FAR, 0).unwrap();
    batcher.poll_batch(NOW, &mut done).unwrap();
    batcher.push(FAR, 1).unwrap();
    batcher.close(&mut done);
    let closed = |sent| TransportError::Closed { sent };
    assert_eq!(failed(&mut done), [(0, closed(true)), (1, closed(false))]);
    batcher.close(&mut done);
    assert_eq!(batcher.poll_batch(NOW, &mut done), None);
    assert!(batcher.on_reply(grant(1, 1, 1), &mut done).is_err());
    assert_eq!(done, []);
    let rejected = TsoRejected::Failed(2, closed(false));
    assert_eq!(batcher.push(FAR, 2), Err(rejected));
}

#[derive(Clone, Debug)]
enum Event {
    Push {
        ttl: u64,
    },
    Cancel(prop::sample::Index),
    Advance(u64),
    Send,
    /// The oracle answers; its clock moves on by so many milliseconds.
    Answer(i64),
    WrongCount(u32),
    Break,
    ConnectFailed,
    Close,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        60 => prop_oneof![3 => Just(1_000_000u64), 1 => 0u64..50]
            .prop_map(|ttl| Event::Push { ttl }),
        10 => any::<prop::sample::Index>().prop_map(Event::Cancel),
        10 => (0u64..30).prop_map(Event::Advance),
        40 => Just(Event::Send),
        30 => (0i64..3).prop_map(Event::Answer),
        1 => (0u32..5).prop_map(Event::WrongCount),
        3 => Just(Event::Break),
        2 => Just(Event::ConnectFailed),
        1 => Just(Event::Close),
    ]
}

proptest! {
    /// Everyone gets one timestamp or one error; timestamps are distinct and increase in the
    /// order they were asked for; nobody is forgotten.
    #[test]
    fn everyone_gets_one_timestamp_or_one_error(
        batch_max in 1u32..6,
        outstanding_max in 1usize..4,
        queue_max in 1usize..20,
        events in prop::collection::vec(event(), 0..300),
    ) {
        let mut batcher = batcher(TsoConfig {
            queue_max,
            batch_max,
            outstanding_max,
            ..Default::default()
        });
        let mut now = NOW;
        // An honest oracle, and what it was asked on the stream that stands.
        let (mut physical, mut logical) = (1i64, 0i64);
        let mut asked = VecDeque::new();
        let mut tickets = Vec::new();
        let mut ended = Vec::new();
        let mut last = Timestamp::ZERO;
        let tail = std::iter::repeat_n([Event::Send, Event::Answer(0)], 40).flatten();
        for event in events.into_iter().chain(tail) {
            let mut done = Vec::new();
            match event {
                Event::Push { ttl } => {
                    let completion = tickets.len() as u32;
                    let is_full = batcher.queued() >= queue_max;
                    match batcher.push(now + Duration::from_millis(ttl), completion) {
                        Ok(ticket) => {
                            prop_assert!(!is_full);
                            tickets.push(ticket);
                            ended.push(false);
                        }
                        Err(TsoRejected::Full(_)) => prop_assert!(is_full),
                        Err(TsoRejected::Failed(..)) => {}
                    }
                }
                Event::Cancel(index) if !tickets.is_empty() => {
                    let index = index.index(tickets.len());
                    let cancelled = batcher.cancel(tickets[index]);
                    prop_assert_eq!(cancelled, (!ended[index]).then_some(index as u32));
                    ended[index] = true;
                }
                Event::Cancel(_) => {}
                Event::Advance(millis) => now = now + Duration::from_millis(millis),
                Event::Send => {
                    if let Some(batch) = batcher.poll_batch(now, &mut done) {
                        prop_assert!((1..=batch_max).contains(&batch.count));
                        asked.push_back(batch.count);
                    }
                    prop_assert!(asked.len() <= outstanding_max);
                }
                Event::Answer(millis) => {
                    if millis > 0 {
                        (physical, logical) = (physical + millis, 0);
                    }
                    if let Some(count) = asked.pop_front() {
                        logical += i64::from(count);
                        let answer = grant(physical, logical, count);
                        prop_assert_eq!(batcher.on_reply(answer, &mut done), Ok(()));
                    }
                }
                Event::WrongCount(count) => {
                    if asked.front() != Some(&count) {
                        batcher
                            .on_reply(grant(physical + 1, 9, count), &mut done)
                            .unwrap_err();
                        prop_assert!(done.iter().all(|done| done.result.is_err()));
                        asked.clear();
                    }
                }
                Event::Break => {
                    batcher.on_broken(&broken(), &mut done);
                    asked.clear();
                }
                Event::ConnectFailed => {
                    batcher.on_connect_failed(&"refused".into(), &mut done);
                    prop_assert_eq!(batcher.queued(), 0);
                }
                Event::Close => {
                    batcher.close(&mut done);
                    asked.clear();
                }
            }
            prop_assert_eq!(batcher.outstanding(), asked.len());
            for done in done {
                let index = done.completion as usize;
                prop_assert!(!std::mem::replace(&mut ended[index], true));
                if let Ok(timestamp) = done.result {
                    prop_assert!(timestamp > last);
                    last = timestamp;
                }
            }
        }
        prop_assert!(ended.iter().all(|ended| *ended));
        prop_assert_eq!(batcher.queued(), 0);
    }
}
