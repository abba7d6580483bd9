//! What is written down about a run: the digest over every event, the counts, the marks, and, if
//! asked for, a timeline. It looks and decides nothing.

use std::fmt;
use std::io::Write;

use tikv_core::Timestamp;
use tikv_core::driver::{Instant, TransportError};
use tikv_core::wire::Response;

use super::digest::Digest;
use super::drawing::Drawing;
use super::marks::{Mark, Marks};
use super::network::ClientId;
use super::observe::{self, Asked};
use crate::node::Node;

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that clients sent.
    pub rpcs: u64,
    /// How often a task was polled.
    pub polls: u64,
}

/// The record of a run.
#[derive(Default)]
pub(super) struct Audit {
    pub(super) digest: Digest,
    pub(super) stats: Stats,
    pub(super) marks: Marks,
    pub(super) drawing: Option<Drawing>,
    timeline: Option<Box<dyn Write + Send>>,
}

/// Sets events of different kinds apart in the digest.
enum Kind {
    Poll = 1,
    Wake,
    Serve,
    Answer,
    Timestamp,
    Frame,
    Note,
}

impl Audit {
    pub(super) fn new(timeline: Option<Box<dyn Write + Send>>) -> Self {
        Audit {
            timeline,
            ..Audit::default()
        }
    }

    fn event(&mut self, kind: Kind, now: Instant, subject: u64) {
        self.digest.word(kind as u64);
        self.digest.word(now.as_nanos());
        self.digest.word(subject);
    }

    pub(super) fn mark(&mut self, mark: Mark) {
        self.marks.reach(mark);
    }

    pub(super) fn polled(&mut self, task: u64) {
        self.stats.polls += 1;
        self.event(Kind::Poll, Instant::ZERO, task);
    }

    pub(super) fn woke(&mut self, now: Instant, op: u64) {
        self.event(Kind::Wake, now, op);
    }

    pub(super) fn answered(&mut self, now: Instant, op: u64) {
        self.event(Kind::Answer, now, op);
    }

    pub(super) fn served(
        &mut self,
        now: Instant,
        client: ClientId,
        node: Node,
        asked: Asked<'_>,
        result: &Result<Response, TransportError>,
    ) {
        self.event(Kind::Serve, now, u64::from(client.0) << 32 | node.number());
        observe::digest(&mut self.digest, asked, result);
        observe::marks(&mut self.marks, asked.command, result);
        self.line(now, || {
            format!("{client} {node} {asked}: {}", observe::Answer(result))
        });
        if let Some(drawing) = &mut self.drawing {
            let answer = observe::Answer(result).to_string();
            drawing.served(now, client, node, asked, answer);
        }
    }

    pub(super) fn timestamp(
        &mut self,
        now: Instant,
        client: ClientId,
        node: Node,
        count: u32,
        result: &Result<Timestamp, TransportError>,
    ) {
        let ts = result.as_ref().map_or(0, |ts| ts.as_u64());
        self.event(Kind::Timestamp, now, ts);
        if result.is_err() {
            self.mark(Mark::PdNotLeader);
        }
        self.line(now, || match result {
            Ok(ts) => format!("{client} {node} Tso: {ts}"),
            Err(error) => format!("{client} {node} Tso: {error}"),
        });
        if let Some(drawing) = &mut self.drawing {
            let answer = match result {
                Ok(ts) => ts.to_string(),
                Err(error) => error.to_string(),
            };
            drawing.granted(now, client, node, count, &answer);
        }
    }

    /// A frame arrives.
    pub(super) fn frame(&mut self, now: Instant, bytes: &[u8]) {
        self.event(Kind::Frame, now, 0);
        self.digest.bytes(bytes);
    }

    /// Something of the simulator's own doing.
    pub(super) fn note(&mut self, now: Instant, text: impl FnOnce() -> String) {
        self.event(Kind::Note, now, 0);
        match &mut self.drawing {
            None => self.line(now, text),
            Some(drawing) => {
                let text = text();
                drawing.note(now, text.clone());
                self.line(now, || text);
            }
        }
    }

    fn line(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if let Some(timeline) = &mut self.timeline {
            let (seconds, rest) = (now.as_millis() / 1_000, now.as_nanos() / 1_000 % 1_000_000);
            let written = writeln!(timeline, "{seconds:>4}.{rest:06} s  {}", text());
            // A timeline that can't be written is no reason to end a run.
            if written.is_err() {
                self.timeline = None;
            }
        }
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Audit({}, {:?})", self.digest, self.stats)
    }
}
