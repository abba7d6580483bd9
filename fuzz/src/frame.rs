//! Laws of the frames of the BatchCommands stream.

use std::sync::Arc;

use bytes::Bytes;
use tikv_core::driver::Instant;
use tikv_core::rpc::frame::{
    Answer, RequestFrame, build_response, encode_part, split_request, split_response,
};
use tikv_core::rpc::mux::{Done, Entry, Mux, MuxConfig};
use tikv_core::wire::Command;
use tikv_proto::kvrpcpb;

use crate::script::Script;

/// A frame of answers that could be taken apart is the same after it was put together again.
pub fn answers(data: &[u8]) {
    let Ok(split) = split_response(Bytes::copy_from_slice(data)) else {
        return;
    };
    if split.items.iter().any(|item| item.arm == 0) {
        // An empty item has no arm to be written in.
        return;
    }
    assert_eq!(split_response(split.encode()), Ok(split.clone()));

    let get = Command::from(kvrpcpb::GetRequest::default());
    let address: Arc<str> = "store".into();
    for item in split.items {
        let arm = item.arm;
        let decoded = Answer {
            arm,
            body: item.body,
        }
        .decode(&get, &address);
        assert!(decoded.is_err() || Some(arm) == get.batch_arm());
    }
}

/// A frame of requests that could be taken apart names only requests that are there.
pub fn requests(data: &[u8]) {
    if let Ok(split) = split_request(Bytes::copy_from_slice(data)) {
        for item in split.items {
            let _ = Command::decode_batched(item.arm, item.body);
        }
    }
}

/// The way of requests through a stream whose other end answers in any order, or not at all: no
/// request is answered twice, and none is forgotten.
pub fn stream(data: &[u8]) {
    let mut script = Script::new(data);
    let mut world = Stream::new(usize::from(script.byte_or_zero()) % 3 + 1);
    while let Some(step) = script.byte() {
        world.step(step, &mut script);
    }
    world.end();
}

/// A multiplexer, its writer, and a server that has received some requests.
struct Stream {
    mux: Mux<usize>,
    now: Instant,
    /// What was written and not answered, with the connection it went through.
    received: Vec<(usize, u64, u32)>,
    links: Vec<Option<tikv_core::rpc::mux::Link>>,
    tickets: Vec<tikv_core::rpc::mux::Ticket>,
    /// How often each request has come to an end, however it did.
    ends: Vec<u32>,
    done: Vec<Done<usize>>,
}

impl Stream {
    fn new(connections: usize) -> Self {
        let config = MuxConfig {
            connections,
            frame_entries_max: 3,
            ..MuxConfig::default()
        };
        Stream {
            mux: Mux::new("store".into(), config),
            now: Instant::ZERO,
            received: Vec::new(),
            links: vec![None; connections],
            tickets: Vec::new(),
            ends: Vec::new(),
            done: Vec::new(),
        }
    }

    fn step(&mut self, step: u8, script: &mut Script) {
        match step % 8 {
            0 | 1 => self.push(script),
            2 => self.write(),
            3 => self.answer(script),
            4 => self.garble(script),
            5 => self.cancel(script),
            6 => self.break_one(script),
            _ => {
                let nanos = u64::from(script.byte_or_zero()) << 26;
                self.now = Instant::from_nanos(self.now.as_nanos().saturating_add(nanos));
                self.mux.tick(self.now);
            }
        }
        self.settle();
    }

    fn push(&mut self, script: &mut Script) {
        let key = script.byte_or_zero();
        let get = kvrpcpb::GetRequest {
            key: vec![key].into(),
            ..Default::default()
        };
        let part = encode_part(None, &get.into()).expect("a get can be batched");
        let completion = self.ends.len();
        let deadline = Instant::from_nanos(self.now.as_nanos() + (u64::from(key) << 28));
        let entry = Entry {
            part,
            priority: u32::from(key) % 17,
            deadline,
            completion,
        };
        if let Ok(ticket) = self.mux.push(self.now, entry) {
            self.ends.push(0);
            self.tickets.push(ticket);
        }
    }

    fn write(&mut self) {
        while let Some(link) = self.mux.poll_connect(self.now) {
            self.mux.on_connected(link);
            self.links[link.connection()] = Some(link);
        }
        for link in self.links.iter().flatten() {
            while let Some(frame) = self.mux.poll_frame(self.now, *link, &mut self.done) {
                let bytes = frame.to_bytes(1);
                assert_eq!(bytes.len(), frame.encoded_len(1));
                let split = split_request(bytes).expect("what was written can be read");
                let ids: Vec<u64> = split.items.iter().map(|item| item.id).collect();
                assert!(frame.ids().eq(ids));
                let sent = split
                    .items
                    .into_iter()
                    .map(|item| (link.connection(), item.id, item.arm));
                self.received.extend(sent);
            }
        }
        let rewritten = RequestFrame::new(u64::MAX, Vec::new());
        assert!(rewritten.ids().is_empty());
    }

    fn answer(&mut self, script: &mut Script) {
        if self.received.is_empty() {
            return;
        }
        let place = usize::from(script.byte_or_zero()) % self.received.len();
        let (connection, id, arm) = self.received.swap_remove(place);
        let copies = usize::from(script.byte_or_zero()) % 3 + 1;
        let frame = build_response(&vec![(id, arm, Bytes::new()); copies]);
        self.read(connection, frame);
    }

    /// The server sends whatever the input says.
    fn garble(&mut self, script: &mut Script) {
        let connection = usize::from(script.byte_or_zero()) % self.links.len();
        let len = usize::from(script.byte_or_zero()) % 64;
        let frame = Bytes::copy_from_slice(script.take(len));
        self.read(connection, frame);
    }

    fn read(&mut self, connection: usize, frame: Bytes) {
        let Some(link) = self.links[connection] else {
            return;
        };
        if let Ok(mut split) = split_response(frame) {
            self.mux
                .handle_frame(self.now, link, &mut split, &mut self.done);
            assert!(split.items.is_empty());
        }
    }

    fn cancel(&mut self, script: &mut Script) {
        if self.tickets.is_empty() {
            return;
        }
        let place = usize::from(script.byte_or_zero()) % self.tickets.len();
        if let Some(cancelled) = self.mux.cancel(self.now, self.tickets[place]) {
            self.ends[cancelled.completion] += 1;
        }
    }

    fn break_one(&mut self, script: &mut Script) {
        let connection = usize::from(script.byte_or_zero()) % self.links.len();
        if let Some(link) = self.links[connection].take() {
            let error = tikv_core::driver::TransportError::Broken {
                address: "store".into(),
                message: "by the input".into(),
                sent: true,
            };
            self.mux.on_broken(self.now, link, &error, &mut self.done);
            self.received.retain(|(through, ..)| *through != connection);
        }
    }

    fn settle(&mut self) {
        for done in self.done.drain(..) {
            self.ends[done.completion] += 1;
        }
        assert!(
            self.ends.iter().all(|ends| *ends <= 1),
            "a request ended twice"
        );
    }

    fn end(&mut self) {
        self.mux.close(&mut self.done);
        self.settle();
        assert!(
            self.ends.iter().all(|ends| *ends == 1),
            "a request was forgotten"
        );
        assert_eq!((self.mux.queued(), self.mux.in_flight()), (0, 0));
    }
}
