//! The multiplexer case by case; against a model in [`model`].

mod model;

use super::*;
use crate::rpc::frame::{HealthFeedback, Item, build_response, split_request, split_response};

const NOW: Instant = Instant::from_millis(1_000);

fn after(millis: u64) -> Instant {
    NOW + Duration::from_millis(millis)
}

/// A part whose body is `tag`, as a server would find it.
fn part(tag: u32, len: usize) -> Bytes {
    let mut body = tag.to_be_bytes().to_vec();
    body.resize(len.max(4), 0);
    // Requests and responses have their items in the same field.
    let frame = build_response(&[(0, 1, body.into())]);
    frame.slice(..frame.len() - ID_FIELD_LEN)
}

/// Tag, length and the one id 0, which is packed.
const ID_FIELD_LEN: usize = 3;

fn tag_of(body: &[u8]) -> u32 {
    u32::from_be_bytes(body[..4].try_into().unwrap())
}

fn entry(tag: u32, priority: u32) -> Entry<u32> {
    Entry {
        part: part(tag, 4),
        priority,
        deadline: Instant::FAR_FUTURE,
        completion: tag,
    }
}

fn broken(sent: bool) -> TransportError {
    TransportError::Broken {
        address: "a".into(),
        message: "EOF".into(),
        sent,
    }
}

fn connect_failed(message: &str) -> TransportError {
    TransportError::Connect {
        address: "a".into(),
        message: message.into(),
    }
}

/// A multiplexer with one connection, which is up once something is pushed.
fn mux(config: MuxConfig) -> Mux<u32> {
    Mux::new("a".into(), config)
}

fn one_connection() -> MuxConfig {
    MuxConfig {
        connections: 1,
        ..Default::default()
    }
}

/// Opens every connection that the multiplexer wants to have open.
fn connect(mux: &mut Mux<u32>, now: Instant) -> Vec<Link> {
    let links: Vec<_> = std::iter::from_fn(|| mux.poll_connect(now)).collect();
    for link in &links {
        mux.on_connected(*link);
    }
    links
}

/// Ids and tags of the next frame.
fn frame(mux: &mut Mux<u32>, now: Instant, link: Link) -> Vec<(u64, u32)> {
    let mut done = Vec::new();
    let Some(frame) = mux.poll_frame(now, link, &mut done) else {
        return Vec::new();
    };
    assert_eq!(done, []);
    let split = split_request(frame.to_bytes(7)).unwrap();
    assert!(split.items.iter().map(|item| item.id).eq(frame.ids()));
    let items = split.items.iter();
    items.map(|item| (item.id, tag_of(&item.body))).collect()
}

fn tags(mux: &mut Mux<u32>, now: Instant, link: Link) -> Vec<u32> {
    let items = frame(mux, now, link);
    items.into_iter().map(|(_, tag)| tag).collect()
}

/// The server answers these ids, each with its id as the body.
fn answer(mux: &mut Mux<u32>, now: Instant, link: Link, ids: &[u64]) -> Vec<(u32, u64)> {
    let answers: Vec<_> = ids
        .iter()
        .map(|id| (*id, 1, Bytes::from(id.to_string())))
        .collect();
    let mut frame = split_response(build_response(&answers)).unwrap();
    let mut done = Vec::new();
    mux.handle_frame(now, link, &mut frame, &mut done);
    done.into_iter()
        .map(|done| {
            let body = done.result.unwrap().body;
            let id = std::str::from_utf8(&body).unwrap().parse().unwrap();
            (done.completion, id)
        })
        .collect()
}

// client-go: TestPriority
#[test]
fn priority() {
    let config = MuxConfig {
        frame_entries_max: 2,
        ..one_connection()
    };
    let mut mux = mux(config);
    for priority in [3, 5, 1, 4, 2] {
        mux.push(NOW, entry(priority, priority)).unwrap();
    }
    mux.push(NOW, entry(30, 3)).unwrap();
    let last = mux.push(NOW, entry(40, 4)).unwrap();
    let link = connect(&mut mux, NOW)[0];
    assert_eq!(mux.cancel(NOW, last).unwrap().completion, 40);
    assert_eq!(tags(&mut mux, NOW, link), [5, 4]);
    // Equal ones in the order pushed, also when one of them came in between.
    mux.push(NOW, entry(31, 3)).unwrap();
    assert_eq!(tags(&mut mux, NOW, link), [3, 30]);
    assert_eq!(tags(&mut mux, NOW, link), [31, 2]);
    assert_eq!(tags(&mut mux, NOW, link), [1]);
    assert_eq!(tags(&mut mux, NOW, link), [0; 0]);
    assert_eq!(mux.queued(), 0);
}

// client-go: TestPriorityQueueTakeAllLeavesReferencesInBackingArray
#[test]
fn priority_queue_take_all_leaves_no_references() {
    let part = Bytes::from(vec![0; 64]);
    let mut mux = mux(one_connection());
    let push = |mux: &mut Mux<u32>| {
        let entry = Entry {
            part: part.clone(),
            ..entry(1, 0)
        };
        mux.push(NOW, entry).unwrap()
    };
    let tickets: Vec<_> = (0..10).map(|_| push(&mut mux)).collect();
    assert!(!part.is_unique());
    for ticket in tickets {
        mux.cancel(NOW, ticket).unwrap();
    }
    assert!(part.is_unique());
    push(&mut mux);
    let link = connect(&mut mux, NOW)[0];
    drop(mux.poll_frame(NOW, link, &mut Vec::new()).unwrap());
    assert!(
        part.is_unique(),
        "it is in flight, but need not be sent again"
    );
}

// client-go: TestBatchCommandsBuilder
#[test]
fn batch_commands_builder() {
    let mut mux = mux(one_connection());
    let push = |mux: &mut Mux<u32>, tags: Range<u32>| -> Vec<Ticket> {
        tags.map(|tag| mux.push(NOW, entry(tag, 0)).unwrap())
            .collect()
    };
    push(&mut mux, 0..10);
    let link = connect(&mut mux, NOW)[0];
    let expected: Vec<_> = (1..=10).zip(0..10).collect();
    assert_eq!(frame(&mut mux, NOW, link), expected);
    // Ids go on.
    push(&mut mux, 10..20);
    assert_eq!(frame(&mut mux, NOW, link)[0], (11, 10));
    // Those that were cancelled use none.
    let tickets = push(&mut mux, 20..25);
    for cancelled in [0, 2, 4] {
        mux.cancel(NOW, tickets[cancelled]).unwrap();
    }
    assert_eq!(frame(&mut mux, NOW, link), [(21, 21), (22, 23)]);
    // All that wait fail with the same error, in order; ids go on.
    push(&mut mux, 25..30);
    answer(&mut mux, NOW, link, &[]);
    let mut done = Vec::new();
    mux.on_broken(NOW, link, &broken(true), &mut done);
    assert_eq!(done.len(), 22, "nothing unsent is among them");
    done.clear();
    let link = mux.poll_connect(NOW).unwrap();
    mux.on_connect_failed(NOW, link, &"refused".into(), &mut done);
    let expected: Vec<_> = (25..30)
        .map(|completion| Done {
            completion,
            result: Err(connect_failed("refused")),
        })
        .collect();
    assert_eq!(done, expected);
    let later = after(100);
    mux.push(later, entry(30, 0)).unwrap();
    let link = connect(&mut mux, later)[0];
    assert_eq!(frame(&mut mux, later, link), [(23, 30)]);
}

// client-go: TestLimitConcurrency
#[test]
fn limit_concurrency() {
    let mut mux = mux(MuxConfig {
        in_flight_max: 1,
        ..one_connection()
    });
    mux.push(NOW, entry(1, 0)).unwrap();
    mux.push(NOW, entry(2, 0)).unwrap();
    mux.push(NOW, entry(3, PRIORITY_HIGH - 1)).unwrap();
    let link = connect(&mut mux, NOW)[0];
    assert_eq!(frame(&mut mux, NOW, link), [(1, 3)]);
    assert_eq!(tags(&mut mux, NOW, link), [0; 0]);
    assert_eq!(mux.poll_wake(), None, "no answer yet");
    // High priority goes beyond the limit and counts.
    mux.push(NOW, entry(4, PRIORITY_HIGH)).unwrap();
    mux.push(NOW, entry(5, 16)).unwrap();
    assert_eq!(mux.poll_wake(), Some(link));
    assert_eq!(frame(&mut mux, NOW, link), [(2, 5), (3, 4)]);
    assert_eq!(tags(&mut mux, NOW, link), [0; 0]);
    assert_eq!(answer(&mut mux, NOW, link, &[2, 1]), [(5, 2), (3, 1)]);
    assert_eq!(mux.poll_wake(), None, "one is still in flight");
    answer(&mut mux, NOW, link, &[3]);
    // A freed place is used at once, without another request having to come.
    assert_eq!(mux.poll_wake(), Some(link));
    assert_eq!(frame(&mut mux, NOW, link), [(4, 1)]);
}

// client-go: TestPrioritySentLimit
#[test]
fn priority_sent_limit() {
    let mut mux = mux(MuxConfig {
        in_flight_max: 2,
        ..one_connection()
    });
    // Ten callers of each priority; each asks again as soon as it is answered. A round of the
    // server answers what is in flight.
    let mut asked_at = [0u64; 20];
    let mut latencies = [(0u64, 0u64); 2];
    let priority = |caller: u32| if caller < 10 { 16 } else { 8 };
    for caller in 0..20 {
        mux.push(NOW, entry(caller, priority(caller))).unwrap();
    }
    let link = connect(&mut mux, NOW)[0];
    let mut flying = Vec::new();
    for round in 1..1000 {
        // Those of high priority think for a while, or the others would never get a turn.
        if round % 3 == 0 {
            for caller in 0..10 {
                mux.push(NOW, entry(caller, 16)).unwrap();
                asked_at[caller as usize] = round;
            }
        }
        flying.extend(frame(&mut mux, NOW, link).into_iter().map(|(id, _)| id));
        for (caller, _) in answer(&mut mux, NOW, link, &std::mem::take(&mut flying)) {
            let class = usize::from(caller >= 10);
            latencies[class].0 += round - asked_at[caller as usize] + 1;
            latencies[class].1 += 1;
            if class == 1 {
                mux.push(NOW, entry(caller, 8)).unwrap();
                asked_at[caller as usize] = round;
            }
        }
    }
    let [high, medium] = latencies.map(|(sum, count)| sum as f64 / count as f64);
    assert!(high * 2.0 < medium, "{high} {medium}");
}

// client-go: TestRecvErrorInMultipleRecvLoops
#[test]
fn recv_error_in_multiple_recv_loops() {
    let mut mux = mux(MuxConfig::default());
    mux.push(NOW, entry(0, 0)).unwrap();
    let first = connect(&mut mux, NOW);
    assert_eq!(first.len(), 4);
    // One request in flight on each.
    let mut links = Vec::new();
    for tag in 0..4 {
        if tag > 0 {
            mux.push(NOW, entry(tag, 0)).unwrap();
        }
        assert_eq!(tags(&mut mux, NOW, first[tag as usize]), [tag]);
        links.push(first[tag as usize]);
    }
    for link in &first {
        answer(&mut mux, NOW, *link, &[]);
    }
    // All break one after another, each of them twice: each fails its own, once.
    for (tag, link) in first.iter().enumerate() {
        let mut done = Vec::new();
        mux.on_broken(NOW, *link, &broken(false), &mut done);
        mux.on_broken(NOW, *link, &broken(false), &mut done);
        let expected = Done {
            completion: tag as u32,
            result: Err(broken(true)),
        };
        assert_eq!(done, [expected]);
    }
    assert_eq!(mux.in_flight(), 0);
    // Each comes back in a new life, and serves.
    mux.push(NOW, entry(9, 0)).unwrap();
    let second = connect(&mut mux, NOW);
    assert_eq!(second.len(), 4);
    for (old, new) in first.iter().zip(&second) {
        assert_eq!(old.connection(), new.connection());
        assert_ne!(old, new);
    }
    assert_eq!(tags(&mut mux, NOW, first[0]), [0; 0], "that life is over");
    assert_eq!(frame(&mut mux, NOW, second[3]), [(5, 9)]);
    assert_eq!(answer(&mut mux, NOW, first[3], &[5]), []);
    assert_eq!(answer(&mut mux, NOW, second[2], &[5]), [], "not sent there");
    assert_eq!(mux.stats().outdated, 2);
    assert_eq!(answer(&mut mux, NOW, second[3], &[5]), [(9, 5)]);
}

// client-go: TestBatchClientRecoverAfterServerRestart, TestFastFailRequest,
// TestFastFailWhenNoAvailableConn
#[test]
fn batch_client_recover_after_server_restart() {
    let mut mux = mux(one_connection());
    let mut now = NOW;
    let mut done = Vec::new();
    mux.push(now, entry(0, 0)).unwrap();
    let link = connect(&mut mux, now)[0];
    assert_eq!(tags(&mut mux, now, link), [0]);
    assert_eq!(answer(&mut mux, now, link, &[1]), [(0, 1)]);
    mux.on_broken(now, link, &broken(true), &mut done);

    // The server is gone. The first attempt is made at once, later ones ever more rarely; those
    // who come in between learn it at once.
    let mut delays = Vec::new();
    for _ in 0..12 {
        mux.push(now, entry(1, 0)).unwrap();
        let link = mux.poll_connect(now).unwrap();
        assert_eq!(mux.poll_connect(now), None);
        mux.push(now, entry(2, 0)).unwrap();
        assert_eq!(
            mux.next_deadline(),
            None,
            "the attempt is the driver's to end"
        );
        mux.on_connect_failed(now, link, &"refused".into(), &mut done);
        assert_eq!(done.len(), 2);
        done.clear();
        let rejected = mux.push(now, entry(3, 0)).unwrap_err();
        let Rejected::Failed(entry, error) = rejected else {
            panic!("{rejected:?}");
        };
        assert_eq!((entry.completion, error), (3, connect_failed("refused")));
        let start = now;
        while mux.push(now, entry_at(4, now)).is_err() {
            now = now + Duration::from_millis(1);
        }
        delays.push((now - start).as_millis());
        // Not sent in time; only there to see when it is taken.
        let link = mux.poll_connect(now).unwrap();
        mux.on_connected(link);
        assert_eq!(mux.poll_frame(now, link, &mut done), None);
        let expired = TransportError::Deadline {
            address: "a".into(),
            sent: false,
        };
        assert_eq!(done.pop().unwrap().result, Err(expired));
        mux.on_broken(now, link, &broken(true), &mut done);
        now = now + Duration::from_secs(3);
    }
    // Two lives without a frame per round.
    assert_eq!(delays[..5], [100, 256, 656, 1678, 3000]);
    assert_eq!(delays[5..], [3000; 7]);

    mux.push(now, entry(5, 0)).unwrap();
    let link = connect(&mut mux, now)[0];
    assert_eq!(frame(&mut mux, now, link), [(2, 5)]);
    assert_eq!(answer(&mut mux, now, link, &[2]), [(5, 2)]);
    mux.on_broken(now, link, &broken(true), &mut done);
    mux.push(now, entry(6, 0)).unwrap();
    assert!(mux.poll_connect(now).is_some(), "it has proved itself");
}

fn entry_at(tag: u32, deadline: Instant) -> Entry<u32> {
    Entry {
        deadline,
        ..entry(tag, 0)
    }
}

// client-go: TestSendWhenReconnect
#[test]
fn send_when_reconnect() {
    let mut mux = mux(MuxConfig::default());
    let ticket = mux.push(NOW, entry(1, 0)).unwrap();
    let links: Vec<_> = std::iter::from_fn(|| mux.poll_connect(NOW)).collect();
    assert_eq!(links.len(), 4);
    assert_eq!(mux.poll_wake(), None);
    // It waits for as long as the caller does, and never went out.
    let cancelled = mux.cancel(after(5_000), ticket).unwrap();
    assert_eq!((cancelled.completion, cancelled.sent), (1, false));
    assert_eq!(mux.cancel(after(5_000), ticket), None);
}

#[test]
fn a_failed_attempt_harms_nobody_while_another_connection_is_up() {
    let mut mux = mux(MuxConfig {
        connections: 2,
        ..Default::default()
    });
    let mut done = Vec::new();
    mux.push(NOW, entry(1, 0)).unwrap();
    let [up, failing] = [0, 1].map(|_| mux.poll_connect(NOW).unwrap());
    mux.on_connected(up);
    mux.on_connect_failed(NOW, failing, &"refused".into(), &mut done);
    assert_eq!(done, []);
    assert_eq!(mux.next_deadline(), Some(after(100)));
    assert_eq!(tags(&mut mux, NOW, up), [1]);
    assert_eq!(mux.next_deadline(), None, "nothing waits for it");
    // What is over is over.
    mux.on_connected(failing);
    mux.on_connect_failed(NOW, failing, &"refused".into(), &mut done);
    assert_eq!(mux.poll_frame(NOW, failing, &mut done), None);
    assert_eq!(done, []);
}

// client-go: TestBatchClientReceiveHealthFeedback
#[test]
fn batch_client_receive_health_feedback() {
    let mut mux = mux(one_connection());
    mux.push(NOW, entry(1, 0)).unwrap();
    let link = connect(&mut mux, NOW)[0];
    tags(&mut mux, NOW, link);
    let mut frame = SplitFrame::default();
    frame.items.push(Item {
        id: 1,
        arm: 1,
        body: Bytes::new(),
    });
    let feedback = HealthFeedback {
        store_id: 1,
        seq: 2,
        slow_score: 1,
    };
    frame.health_feedback = Some(feedback);
    frame.transport_layer_load = 280;
    let mut done = Vec::new();
    mux.handle_frame(NOW, link, &mut frame, &mut done);
    // Both are in the driver's hands now, and nobody has been woken.
    assert_eq!(frame.health_feedback, Some(feedback));
    assert_eq!(done.len(), 1);
    assert_eq!(mux.load(after(9_999)), Some(280));
    assert_eq!(mux.load(after(10_000)), None, "long ago");
}

// client-go: TestInspectPendingBatchRequests
#[test]
fn inspect_pending_batch_requests() {
    let mut mux = mux(MuxConfig {
        connections: 2,
        ..Default::default()
    });
    let seconds = |s: u64| NOW + Duration::from_secs(s);
    mux.push(NOW, entry(0, 0)).unwrap();
    let links = connect(&mut mux, NOW);
    // Waiting times at the end: 450 and 300 s on one, 360, 240 and 30 s on the other. The fourth
    // is answered, which proves that the server has seen what was sent there before.
    let sent = [(0, 0), (90, 1), (150, 0), (151, 0), (210, 1), (420, 1)];
    for (id, (at, link)) in (1..).zip(sent) {
        if id > 1 {
            mux.push(seconds(at), entry(id as u32, 0)).unwrap();
        }
        assert_eq!(frame(&mut mux, seconds(at), links[link])[0].0, id);
    }
    answer(&mut mux, seconds(450), links[0], &[4]);
    let expected = Pending {
        oldest: Some((1, Duration::from_secs(450))),
        slow: 5,
        slow_unconfirmed: 3,
        hanging: 4,
        hanging_unconfirmed: 2,
    };
    assert_eq!(mux.pending(seconds(450)), expected);
    assert_eq!(mux.pending(NOW), Pending::default());
}

#[test]
fn a_cancelled_request_that_was_sent_keeps_its_place() {
    let mut mux = mux(MuxConfig {
        in_flight_max: 2,
        ..one_connection()
    });
    let mut done = Vec::new();
    let tickets = [1, 2, 3].map(|tag| mux.push(NOW, entry(tag, 0)).unwrap());
    let link = connect(&mut mux, NOW)[0];
    assert_eq!(frame(&mut mux, NOW, link), [(1, 1), (2, 2)]);
    for (i, at) in [(1, 0), (0, 5)] {
        let cancelled = mux.cancel(after(at), tickets[i]).unwrap();
        assert!(cancelled.sent);
        assert_eq!(mux.cancel(after(at), tickets[i]), None);
    }
    assert_eq!(mux.in_flight(), 2);
    assert_eq!(tags(&mut mux, after(5), link), [0; 0]);
    // The one cancelled first is given up first, though sent last.
    assert_eq!(mux.next_deadline(), Some(after(90_000)));
    mux.tick(after(89_999));
    assert_eq!(mux.in_flight(), 2);
    mux.tick(after(90_000));
    assert_eq!((mux.in_flight(), mux.stats().abandoned), (1, 1));
    assert_eq!(mux.next_deadline(), Some(after(90_005)));
    assert_eq!(mux.poll_wake(), Some(link));
    assert_eq!(frame(&mut mux, after(90_000), link), [(3, 3)]);
    // A late answer is thrown away and frees the place; an even later one is not known.
    assert_eq!(answer(&mut mux, after(90_001), link, &[1, 2]), []);
    assert_eq!((mux.stats().discarded, mux.stats().outdated), (1, 1));
    // A break ends the wait for the others.
    mux.cancel(after(90_001), tickets[2]).unwrap();
    mux.on_broken(after(90_001), link, &broken(true), &mut done);
    assert_eq!((mux.in_flight(), done.len()), (0, 0));
    assert_eq!(mux.next_deadline(), None);
}

#[test]
fn a_failed_write_fails_its_own_frame() {
    let mut mux = mux(MuxConfig {
        frame_entries_max: 2,
        ..one_connection()
    });
    let mut done = Vec::new();
    let tickets: Vec<_> = (1..=4)
        .map(|tag| mux.push(NOW, entry(tag, 0)).unwrap())
        .collect();
    let link = connect(&mut mux, NOW)[0];
    let first = mux.poll_frame(NOW, link, &mut done).unwrap();
    mux.poll_frame(NOW, link, &mut done).unwrap();
    mux.cancel(NOW, tickets[0]).unwrap();
    for _ in 0..2 {
        mux.on_write_failed(link, first.ids(), &broken(false), &mut done);
    }
    let expected = Done {
        completion: 2,
        result: Err(broken(false)),
    };
    assert_eq!(done, [expected]);
    assert_eq!(answer(&mut mux, NOW, link, &[1, 2, 3, 4]), [(3, 3), (4, 4)]);
}

#[test]
fn queue_and_frames_are_bounded() {
    let config = MuxConfig {
        queue_entries_max: 3,
        queue_bytes_max: 100,
        frame_bytes_max: 60,
        ..one_connection()
    };
    let mut mux = mux(config);
    let sized = |tag, len| Entry {
        part: Bytes::from(vec![0; len]),
        ..entry(tag, 0)
    };
    // A single one may be larger than everything.
    mux.push(NOW, sized(1, 500)).unwrap();
    assert!(!mux.has_room(0));
    let full = mux.push(NOW, sized(2, 1)).unwrap_err();
    assert!(matches!(full, Rejected::Full(_)));
    let link = connect(&mut mux, NOW)[0];
    assert_eq!(
        mux.poll_frame(NOW, link, &mut Vec::new()).unwrap().ids(),
        1..2
    );
    // By bytes, then by count; frames too.
    for (tag, len) in [(2, 40), (3, 20), (4, 40)] {
        mux.push(NOW, sized(tag, len)).unwrap();
    }
    assert!(!mux.has_room(1));
    assert_eq!(
        mux.poll_frame(NOW, link, &mut Vec::new()).unwrap().ids(),
        2..4
    );
    for tag in [5, 6] {
        assert!(mux.has_room(1));
        mux.push(NOW, sized(tag, 1)).unwrap();
    }
    assert!(!mux.has_room(1));
    assert_eq!(
        mux.poll_frame(NOW, link, &mut Vec::new()).unwrap().ids(),
        4..7
    );
}

#[test]
fn writers_take_turns_and_sleep_when_there_is_too_little() {
    let mut mux = mux(MuxConfig {
        connections: 3,
        frame_entries_max: 2,
        ..Default::default()
    });
    mux.push(NOW, entry(0, 0)).unwrap();
    let links = connect(&mut mux, NOW);
    assert_eq!(mux.poll_wake(), None, "they are awake and will ask");
    assert_eq!(tags(&mut mux, NOW, links[0]), [0]);
    for link in &links {
        assert_eq!(tags(&mut mux, NOW, *link), [0; 0]);
    }
    // One is woken for two, another one for the third; the one that writes is left alone.
    mux.push(NOW, entry(1, 0)).unwrap();
    assert_eq!(mux.poll_wake(), Some(links[1]));
    mux.push(NOW, entry(2, 0)).unwrap();
    assert_eq!(mux.poll_wake(), None);
    mux.push(NOW, entry(3, 0)).unwrap();
    assert_eq!(mux.poll_wake(), Some(links[2]));
    assert_eq!(mux.poll_wake(), None);
    assert_eq!(tags(&mut mux, NOW, links[1]), [1, 2]);
    // The one woken for the third breaks before it asks; the next one in turn takes over.
    mux.on_broken(NOW, links[2], &broken(true), &mut Vec::new());
    assert_eq!(mux.poll_wake(), Some(links[0]));
    assert_eq!(tags(&mut mux, NOW, links[0]), [3]);
}

// client-go: TestSendRequestAsyncAndCloseClientOnHandle,
// TestSendRequestAsyncAndCloseClientBeforeSend
#[test]
fn close_ends_every_stage() {
    let mut mux = mux(one_connection());
    let mut done = Vec::new();
    let cancelled = mux.push(NOW, entry(1, 0)).unwrap();
    mux.push(NOW, entry(2, 0)).unwrap();
    let link = connect(&mut mux, NOW)[0];
    assert_eq!(tags(&mut mux, NOW, link), [1, 2]);
    mux.cancel(NOW, cancelled).unwrap();
    let queued = mux.push(NOW, entry(3, 0)).unwrap();
    mux.close(&mut done);
    let ends: Vec<_> = done.drain(..).map(|d| (d.completion, d.result)).collect();
    let closed = |sent| Err(TransportError::Closed { sent });
    assert_eq!(ends, [(3, closed(false)), (2, closed(true))]);

    mux.close(&mut done);
    mux.on_broken(NOW, link, &broken(true), &mut done);
    assert_eq!(mux.poll_frame(NOW, link, &mut done), None);
    assert_eq!(answer(&mut mux, NOW, link, &[1, 2]), []);
    assert_eq!(mux.cancel(NOW, queued), None);
    assert_eq!((mux.poll_connect(NOW), mux.poll_wake()), (None, None));
    assert_eq!(mux.next_deadline(), None);
    assert_eq!(done, []);
    let rejected = mux.push(NOW, entry(4, 0)).unwrap_err();
    assert!(matches!(
        rejected,
        Rejected::Failed(_, TransportError::Closed { sent: false })
    ));
}

// client-go: TestBatchResponse
#[test]
fn an_answer_without_a_command_fails_its_request_only() {
    let mut mux = mux(one_connection());
    for tag in [1, 2] {
        mux.push(NOW, entry(tag, 0)).unwrap();
    }
    let link = connect(&mut mux, NOW)[0];
    tags(&mut mux, NOW, link);
    let answers = build_response(&[(1, 0, Bytes::new()), (2, 1, Bytes::new())]);
    let mut done = Vec::new();
    mux.handle_frame(NOW, link, &mut split_response(answers).unwrap(), &mut done);
    assert!(matches!(done[0].result, Err(TransportError::Decode { .. })));
    assert!(done[1].result.is_ok());
}

#[test]
fn a_store_is_idle_when_nothing_is_asked_of_it() {
    let mut mux = mux(one_connection());
    assert_eq!(mux.idle_since(), Some(Instant::ZERO));
    mux.push(after(1), entry(1, 0)).unwrap();
    assert_eq!(mux.idle_since(), None);
    let link = connect(&mut mux, after(2))[0];
    tags(&mut mux, after(2), link);
    assert_eq!(mux.idle_since(), None);
    answer(&mut mux, after(3), link, &[1]);
    assert_eq!(mux.idle_since(), Some(after(3)));
}

#[test]
fn the_steady_path_keeps_its_memory() {
    let mut mux = mux(one_connection());
    mux.push(NOW, entry(0, 0)).unwrap();
    let link = connect(&mut mux, NOW)[0];
    let mut id = 1;
    let mut capacity = 0;
    for round in 0..2000 {
        for tag in 1..16 {
            mux.push(NOW, entry(tag, 0)).unwrap();
        }
        let ids: Vec<_> = frame(&mut mux, NOW, link)
            .iter()
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(ids[0], id);
        id += ids.len() as u64;
        answer(&mut mux, NOW, link, &ids);
        if round == 100 {
            capacity = mux.by_id.capacity();
        }
    }
    assert_eq!(mux.requests.capacity_used(), 16);
    assert_eq!(mux.by_id.capacity(), capacity);
}

#[test]
fn an_error_of_something_sent_says_so() {
    let status = TransportError::Status {
        address: "a".into(),
        code: 14,
        message: "m".into(),
    };
    for (error, expected) in [
        (broken(false), broken(true)),
        (status.clone(), status),
        (
            TransportError::Closed { sent: false },
            TransportError::Closed { sent: true },
        ),
        (connect_failed("EOF"), broken(true)),
    ] {
        assert_eq!(as_sent(&error), expected);
        assert!(as_sent(&error).may_have_been_sent());
    }
}
