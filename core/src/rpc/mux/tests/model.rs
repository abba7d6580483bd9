//! The multiplexer against a model of it, under any sequence of events.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What may happen to a multiplexer.
#[derive(Clone, Debug)]
enum Event {
    Push {
        priority: u32,
        len: usize,
        ttl: u64,
    },
    Cancel(prop::sample::Index),
    Advance(u64),
    Connected(prop::sample::Index),
    ConnectFailed(prop::sample::Index),
    Write(prop::sample::Index),
    WriteFails(bool),
    /// The server answers some of what it got, in any order, some of it twice or on the wrong
    /// connection.
    Answer(prop::sample::Index, Vec<prop::sample::Index>),
    Break(prop::sample::Index),
    Close,
}

fn event() -> impl Strategy<Value = Event> {
    use prop::sample::Index;
    let priority = prop_oneof![4 => Just(0), 2 => 0u32..9, 1 => 9u32..20];
    let ttl = prop_oneof![4 => Just(1_000_000u64), 1 => 0u64..300];
    prop_oneof![
        120 => (priority, 4usize..60, ttl)
            .prop_map(|(priority, len, ttl)| Event::Push { priority, len, ttl }),
        20 => any::<Index>().prop_map(Event::Cancel),
        20 => (0u64..40).prop_map(Event::Advance),
        2 => (10_000u64..100_000).prop_map(Event::Advance),
        20 => any::<Index>().prop_map(Event::Connected),
        5 => any::<Index>().prop_map(Event::ConnectFailed),
        60 => any::<Index>().prop_map(Event::Write),
        4 => any::<bool>().prop_map(Event::WriteFails),
        40 => (any::<Index>(), prop::collection::vec(any::<Index>(), 0..8))
            .prop_map(|(link, ids)| Event::Answer(link, ids)),
        5 => any::<Index>().prop_map(Event::Break),
        1 => Just(Event::Close),
    ]
}

/// How a request stands, as an observer sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Queued,
    Sent(Link, u64),
    /// Cancelled after it was sent.
    Abandoned(Link, u64, Instant),
    Ended,
}

#[derive(Debug)]
struct Known {
    ticket: Ticket,
    priority: u32,
    len: usize,
    deadline: Instant,
    stage: Stage,
    /// Some frame holds its part.
    written: bool,
}

/// A driver and a server around the multiplexer, and the obvious model of it beside.
struct World {
    mux: Mux<u32>,
    config: MuxConfig,
    now: Instant,
    known: Vec<Known>,
    connecting: Vec<Link>,
    up: Vec<Link>,
    /// Writers that will ask for a frame; the others wait to be named.
    awake: Vec<Link>,
    /// What the server got and has not answered: tag by id and connection.
    server: BTreeMap<(usize, u64), u32>,
    /// All it ever got.
    history: Vec<(Link, u64)>,
    last_frame: Option<(Link, Range<u64>)>,
    answers: u64,
    closed: bool,
    /// Everything that can be seen, to compare two runs.
    log: Vec<String>,
}

impl World {
    fn new(config: MuxConfig) -> Self {
        World {
            mux: mux(config.clone()),
            config,
            now: NOW,
            known: Vec::new(),
            connecting: Vec::new(),
            up: Vec::new(),
            awake: Vec::new(),
            server: BTreeMap::new(),
            history: Vec::new(),
            last_frame: None,
            answers: 0,
            closed: false,
            log: Vec::new(),
        }
    }

    fn run(&mut self, event: &Event) {
        match event {
            Event::Push { priority, len, ttl } => self.push(*priority, *len, *ttl),
            Event::Cancel(index) => {
                if !self.known.is_empty() {
                    self.cancel(index.index(self.known.len()));
                }
            }
            Event::Advance(millis) => {
                self.now = self.now + Duration::from_millis(*millis);
                self.tick();
            }
            Event::Connected(index) => {
                if !self.connecting.is_empty() {
                    let link = self.connecting.remove(index.index(self.connecting.len()));
                    self.mux.on_connected(link);
                    self.up.push(link);
                    self.awake.push(link);
                }
            }
            Event::ConnectFailed(index) => {
                if !self.connecting.is_empty() {
                    let link = self.connecting.remove(index.index(self.connecting.len()));
                    let mut done = Vec::new();
                    let message = Arc::from("refused");
                    self.mux
                        .on_connect_failed(self.now, link, &message, &mut done);
                    let ended = self.end(done, |stage, _| stage == Stage::Queued);
                    let expected = if self.up.is_empty() {
                        self.queued().len()
                    } else {
                        0
                    };
                    assert_eq!(ended.len(), expected);
                    self.apply(ended);
                }
            }
            Event::Write(index) => {
                if !self.awake.is_empty() {
                    let link = self.awake[index.index(self.awake.len())];
                    self.write(link);
                }
            }
            Event::WriteFails(sent) => self.write_fails(*sent),
            Event::Answer(link, ids) => {
                if !self.up.is_empty() {
                    let link = self.up[link.index(self.up.len())];
                    let mut answered = Vec::new();
                    if !self.history.is_empty() {
                        let pick =
                            |i: &prop::sample::Index| self.history[i.index(self.history.len())].1;
                        answered.extend(ids.iter().map(pick));
                    }
                    self.answer(link, &answered);
                }
            }
            Event::Break(index) => {
                if !self.up.is_empty() {
                    let link = self.up[index.index(self.up.len())];
                    self.break_(link);
                }
            }
            Event::Close => {
                let mut done = Vec::new();
                self.mux.close(&mut done);
                let ended = self.end(done, |_, error| {
                    matches!(error, TransportError::Closed { .. })
                });
                self.apply(ended);
                self.closed = true;
                self.connecting.clear();
                self.up.clear();
                self.awake.clear();
                let open = self
                    .known
                    .iter()
                    .filter(|k| k.stage == Stage::Queued || matches!(k.stage, Stage::Sent(..)));
                assert_eq!(open.count(), 0);
                for known in &mut self.known {
                    known.stage = Stage::Ended;
                }
            }
        }
        self.drain();
        self.check();
    }

    fn push(&mut self, priority: u32, len: usize, ttl: u64) {
        let tag = self.known.len() as u32;
        let part = part(tag, len);
        let len = part.len();
        let deadline = self.now + Duration::from_millis(ttl);
        let entry = Entry {
            part,
            priority,
            deadline,
            completion: tag,
        };
        let queued = self.queued();
        let bytes: usize = queued.iter().map(|i| self.known[*i].len).sum();
        let full = !queued.is_empty()
            && (queued.len() >= self.config.queue_entries_max
                || bytes + len > self.config.queue_bytes_max);
        match self.mux.push(self.now, entry) {
            Ok(ticket) => {
                assert!(!self.closed && !full);
                self.known.push(Known {
                    ticket,
                    priority: priority.min(16),
                    len,
                    deadline,
                    stage: Stage::Queued,
                    written: false,
                });
            }
            Err(Rejected::Full(_)) => assert!(full && !self.closed),
            Err(Rejected::Failed(_, error)) => {
                assert!(!error.may_have_been_sent());
                assert_eq!(self.closed, matches!(error, TransportError::Closed { .. }));
                assert!(self.up.is_empty() && self.connecting.is_empty());
            }
        }
    }

    fn cancel(&mut self, index: usize) {
        let cancelled = self.mux.cancel(self.now, self.known[index].ticket);
        let known = &mut self.known[index];
        let expected = match known.stage {
            Stage::Queued => Some(false),
            Stage::Sent(..) => Some(true),
            Stage::Abandoned(..) | Stage::Ended => None,
        };
        assert_eq!(cancelled.as_ref().map(|c| c.sent), expected);
        if let Some(cancelled) = cancelled {
            assert_eq!(cancelled.completion, index as u32);
            assert_eq!(cancelled.sent, known.written);
        }
        known.stage = match known.stage {
            Stage::Sent(link, id) => Stage::Abandoned(link, id, self.now),
            Stage::Queued => Stage::Ended,
            stage => stage,
        };
    }

    fn tick(&mut self) {
        self.mux.tick(self.now);
        for known in &mut self.known {
            if let Stage::Abandoned(_, _, at) = known.stage
                && self.now - at >= self.config.abandoned_ttl
            {
                known.stage = Stage::Ended;
            }
        }
    }

    /// Indices of what waits, in the order it is to go out.
    fn queued(&self) -> Vec<usize> {
        let mut queued: Vec<_> = (0..self.known.len())
            .filter(|i| self.known[*i].stage == Stage::Queued)
            .collect();
        queued.sort_by_key(|i| (std::cmp::Reverse(self.known[*i].priority), *i));
        queued
    }

    fn in_flight(&self, link: Link) -> usize {
        let on_link = |known: &&Known| match known.stage {
            Stage::Sent(l, _) | Stage::Abandoned(l, _, _) => l == link,
            _ => false,
        };
        self.known.iter().filter(on_link).count()
    }

    fn write(&mut self, link: Link) {
        let queued = self.queued();
        let mut available = self
            .config
            .in_flight_max
            .saturating_sub(self.in_flight(link));
        let mut expected = Vec::new();
        let mut expired = Vec::new();
        let mut bytes = 0;
        for index in queued {
            let known = &self.known[index];
            if expected.len() == self.config.frame_entries_max {
                break;
            }
            if known.deadline <= self.now {
                expired.push(index as u32);
                continue;
            }
            let too_large = bytes + known.len > self.config.frame_bytes_max && !expected.is_empty();
            if too_large || (known.priority < PRIORITY_HIGH && available == 0) {
                break;
            }
            available -= usize::from(known.priority < PRIORITY_HIGH);
            bytes += known.len;
            expected.push(index as u32);
        }
        let mut done = Vec::new();
        let frame = self.mux.poll_frame(self.now, link, &mut done);
        let ended = self.end(done, |stage, error| {
            stage == Stage::Queued && matches!(error, TransportError::Deadline { sent: false, .. })
        });
        assert_eq!(ended, expired);
        self.apply(ended);
        let Some(frame) = frame else {
            assert_eq!(expected, [0; 0]);
            self.awake.retain(|l| *l != link);
            return;
        };
        let bytes = frame.to_bytes(1);
        self.log.push(format!("{link:?} {bytes:?}"));
        let split = split_request(bytes).unwrap();
        let tags: Vec<_> = split.items.iter().map(|item| tag_of(&item.body)).collect();
        assert_eq!(tags, expected);
        for item in &split.items {
            assert!(self.history.last().is_none_or(|(_, last)| *last < item.id));
            self.history.push((link, item.id));
            let tag = tag_of(&item.body);
            self.server.insert((link.connection(), item.id), tag);
            let known = &mut self.known[tag as usize];
            assert!(!std::mem::replace(&mut known.written, true), "sent twice");
            known.stage = Stage::Sent(link, item.id);
        }
        self.last_frame = Some((link, frame.ids()));
    }

    fn write_fails(&mut self, sent: bool) {
        let Some((link, ids)) = self.last_frame.take() else {
            return;
        };
        let mut done = Vec::new();
        self.mux
            .on_write_failed(link, ids.clone(), &broken(sent), &mut done);
        let in_frame = |known: &Known| match known.stage {
            Stage::Sent(l, id) | Stage::Abandoned(l, id, _) => l == link && ids.contains(&id),
            _ => false,
        };
        for known in self.known.iter_mut().filter(|known| in_frame(known)) {
            known.written = sent;
            if let Stage::Abandoned(..) = known.stage {
                known.stage = Stage::Ended;
            }
        }
        let expected = self.known.iter().filter(|known| in_frame(known)).count();
        let ended = self.end(done, |stage, _| matches!(stage, Stage::Sent(..)));
        assert_eq!(ended.len(), expected);
        self.apply(ended);
    }

    fn answer(&mut self, link: Link, ids: &[u64]) {
        self.answers += ids.len() as u64;
        let tag = |id: &u64| {
            self.server
                .get(&(link.connection(), *id))
                .copied()
                .unwrap_or(0)
        };
        let answers: Vec<_> = ids
            .iter()
            .map(|id| (*id, 1, Bytes::copy_from_slice(&tag(id).to_be_bytes())))
            .collect();
        let mut frame = split_response(build_response(&answers)).unwrap();
        let mut done = Vec::new();
        self.mux.handle_frame(self.now, link, &mut frame, &mut done);
        assert!(frame.items.is_empty());
        self.log.push(format!("{done:?}"));
        let mut done = done.into_iter();
        for id in ids {
            let known = self.known.iter_mut().enumerate().find(|(_, known)| {
                matches!(known.stage, Stage::Sent(l, i) | Stage::Abandoned(l, i, _)
                    if i == *id && l == link)
            });
            if let Some((index, known)) = known {
                if let Stage::Sent(..) = known.stage {
                    let done = done.next().unwrap();
                    assert_eq!(done.completion, index as u32);
                    assert_eq!(tag_of(&done.result.unwrap().body), done.completion);
                }
                known.stage = Stage::Ended;
            }
        }
        assert_eq!(done.next(), None);
    }

    fn break_(&mut self, link: Link) {
        self.up.retain(|l| *l != link);
        self.awake.retain(|l| *l != link);
        self.server
            .retain(|(connection, _), _| *connection != link.connection());
        let mut done = Vec::new();
        self.mux
            .on_broken(self.now, link, &broken(false), &mut done);
        let expected = |known: &Known| matches!(known.stage, Stage::Sent(l, _) if l == link);
        let count = self.known.iter().filter(|known| expected(known)).count();
        let ended = self.end(done, |stage, error| {
            matches!(stage, Stage::Sent(l, _) if l == link) && error.may_have_been_sent()
        });
        assert_eq!(ended.len(), count);
        self.apply(ended);
        for known in &mut self.known {
            if matches!(known.stage, Stage::Abandoned(l, ..) if l == link) {
                known.stage = Stage::Ended;
            }
        }
    }

    /// The tags of requests that ended by an error, each of which must be fit for its stage.
    fn end(
        &mut self,
        done: Vec<Done<u32>>,
        is_fit: impl Fn(Stage, &TransportError) -> bool,
    ) -> Vec<u32> {
        self.log.push(format!("{done:?}"));
        let mut tags = Vec::new();
        for done in done {
            let known = &self.known[done.completion as usize];
            let error = done.result.unwrap_err();
            assert!(is_fit(known.stage, &error), "{:?} {error:?}", known.stage);
            assert_eq!(error.may_have_been_sent(), known.written);
            tags.push(done.completion);
        }
        tags
    }

    fn apply(&mut self, ended: Vec<u32>) {
        for tag in ended {
            let known = &mut self.known[tag as usize];
            assert!(!matches!(known.stage, Stage::Ended | Stage::Abandoned(..)));
            known.stage = Stage::Ended;
        }
    }

    /// What the contract asks of a driver after each call.
    fn drain(&mut self) {
        while let Some(link) = self.mux.poll_connect(self.now) {
            self.connecting.push(link);
        }
        while let Some(link) = self.mux.poll_wake() {
            assert!(self.up.contains(&link) && !self.awake.contains(&link));
            self.awake.push(link);
        }
    }

    fn check(&self) {
        let in_flight: usize = self
            .known
            .iter()
            .filter(|known| matches!(known.stage, Stage::Sent(..) | Stage::Abandoned(..)))
            .count();
        assert_eq!(self.mux.in_flight(), in_flight);
        assert_eq!(self.mux.queued(), self.queued().len());
        let stats = self.mux.stats();
        assert_eq!(
            stats.completed + stats.discarded + stats.outdated,
            self.answers
        );
        let retired = stats.completed + stats.discarded + stats.failed + stats.abandoned;
        assert_eq!(stats.sent, retired + in_flight as u64);
        for link in &self.up {
            let normal = self.known.iter().filter(|known| {
                known.priority < PRIORITY_HIGH
                    && match known.stage {
                        Stage::Sent(l, _) | Stage::Abandoned(l, _, _) => l == *link,
                        _ => false,
                    }
            });
            assert!(normal.count() <= self.config.in_flight_max);
        }
        if self.awake.is_empty() && !self.up.is_empty() && !self.queued().is_empty() {
            // Nobody will ask, so nobody may.
            let stuck = self
                .up
                .iter()
                .all(|l| self.in_flight(*l) >= self.config.in_flight_max);
            assert!(stuck, "a writer should have been woken");
        }
    }

    /// No more faults: everything must come to its end.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let next = self.mux.next_deadline();
            if self.mux.queued() == 0 && self.mux.in_flight() == 0 {
                assert_eq!(next, None);
                assert!(self.known.iter().all(|known| known.stage == Stage::Ended));
                assert!(self.closed || self.mux.idle_since().is_some());
                return;
            }
            if let Some(link) = self.connecting.pop() {
                self.mux.on_connected(link);
                self.up.push(link);
                self.awake.push(link);
            } else if let Some(link) = self.awake.last().copied() {
                self.write(link);
            } else if let Some((connection, id)) = self.server.keys().next().copied() {
                let link = self.up.iter().find(|l| l.connection() == connection);
                if let Some(link) = link.copied() {
                    self.answer(link, &[id]);
                }
                self.server.remove(&(connection, id));
            } else {
                self.now = next.expect("nothing will ever happen").max(self.now);
                self.tick();
            }
            self.drain();
            self.check();
        }
        panic!("does not come to rest");
    }
}

fn config() -> impl Strategy<Value = MuxConfig> {
    (
        1usize..4,
        2usize..20,
        100usize..600,
        1usize..6,
        40usize..200,
        prop_oneof![Just(usize::MAX), 1usize..6],
    )
        .prop_map(
            |(
                connections,
                queue_entries_max,
                queue_bytes_max,
                frame_entries_max,
                frame_bytes_max,
                in_flight_max,
            )| {
                MuxConfig {
                    connections,
                    queue_entries_max,
                    queue_bytes_max,
                    frame_entries_max,
                    frame_bytes_max,
                    in_flight_max,
                    abandoned_ttl: Duration::from_secs(90),
                }
            },
        )
}

proptest! {
    // Each case is some hundred events; `PROPTEST_CASES` asks for more.
    #![proptest_config(cases(64))]

    /// Whatever happens in whatever order: every request ends once, with its own answer or with an
    /// error that tells the truth about whether it was sent; frames are those of the model; a
    /// writer that has something to send is awake; and once the faults stop, all comes to rest.
    #[test]
    fn behaves_like_the_model(
        config in config(),
        events in prop::collection::vec(event(), 0..250),
    ) {
        let mut world = World::new(config.clone());
        let mut again = World::new(config);
        for event in &events {
            world.run(event);
            again.run(event);
        }
        world.settle();
        again.settle();
        prop_assert_eq!(world.log, again.log);
    }
}

fn cases(default: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").is_ok();
    let config = ProptestConfig::default();
    let cases = if asked { config.cases } else { default };
    ProptestConfig { cases, ..config }
}
