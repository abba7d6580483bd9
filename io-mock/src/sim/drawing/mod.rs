//! What a drawing of a run shows: which client asked which node for what, when that arrived, what
//! came back and when, and what went wrong meanwhile. [`html`] makes a page of it.
//!
//! It is told of each moment as it happens and decides nothing. A request is recognised where it
//! arrives by its text; of two that say the same, the older one is taken to have arrived.

mod html;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};

use tikv_core::driver::{ActionId, Instant, Reply};

use super::network::ClientId;
use super::observe::Asked;
use super::ops::OpKey;
use crate::node::Node;

/// The record of a run, to be drawn.
#[derive(Debug, Default)]
pub(super) struct Drawing {
    /// Moments in the order in which they happened; each is one row.
    rows: Vec<Instant>,
    exchanges: Vec<Exchange>,
    notes: Vec<Note>,
    /// Exchanges that have not arrived, by what they say.
    unserved: BTreeMap<(ClientId, Node, String), VecDeque<usize>>,
    /// Exchanges that somebody waits for.
    waiting: BTreeMap<(u64, ActionId), usize>,
}

/// A request and its answer.
#[derive(Debug)]
struct Exchange {
    client: ClientId,
    node: Node,
    text: String,
    /// The transaction, by its start.
    txn: Option<u64>,
    /// The row in which it is sent; absent if it arrives once more than it was sent.
    sent: Option<usize>,
    /// The row in which it arrives, and what the node says.
    served: Option<(usize, String)>,
    /// The row in which its client hears of it, and of what failure if of one.
    answered: Option<(usize, Option<String>)>,
}

/// Something that happens to no message.
#[derive(Debug)]
struct Note {
    row: usize,
    text: String,
}

/// What a wish for a timestamp says.
const TIMESTAMP: &str = "Tso";

impl Drawing {
    fn row(&mut self, now: Instant) -> usize {
        self.rows.push(now);
        self.rows.len() - 1
    }

    /// A client sends a request.
    pub(super) fn asks(
        &mut self,
        now: Instant,
        client: ClientId,
        node: Node,
        waiter: (OpKey, ActionId),
        asked: Asked<'_>,
    ) {
        let txn = asked.transaction();
        self.sends(now, client, node, waiter, asked.to_string(), txn);
    }

    /// A client wishes for a timestamp.
    pub(super) fn wishes(
        &mut self,
        now: Instant,
        client: ClientId,
        node: Node,
        waiter: (OpKey, ActionId),
    ) {
        self.sends(now, client, node, waiter, TIMESTAMP.to_owned(), None);
    }

    fn sends(
        &mut self,
        now: Instant,
        client: ClientId,
        node: Node,
        (op, action): (OpKey, ActionId),
        text: String,
        txn: Option<u64>,
    ) {
        let sent = self.row(now);
        let exchange = self.exchanges.len();
        let same = self.unserved.entry((client, node, text.clone()));
        same.or_default().push_back(exchange);
        self.waiting.insert((op.number(), action), exchange);
        self.exchanges.push(Exchange {
            client,
            node,
            text,
            txn,
            sent: Some(sent),
            served: None,
            answered: None,
        });
    }

    /// A node has answered a request.
    pub(super) fn served(
        &mut self,
        now: Instant,
        client: ClientId,
        node: Node,
        asked: Asked<'_>,
        answer: String,
    ) {
        let row = self.row(now);
        let text = asked.to_string();
        let key = (client, node, text);
        let sent = self.unserved.get_mut(&key).and_then(VecDeque::pop_front);
        match sent {
            Some(exchange) => self.exchanges[exchange].served = Some((row, answer)),
            None => self.exchanges.push(Exchange {
                client,
                node,
                text: key.2,
                txn: asked.transaction(),
                sent: None,
                served: Some((row, answer)),
                answered: None,
            }),
        }
    }

    /// A member of PD has answered so many wishes of a client.
    pub(super) fn granted(
        &mut self,
        now: Instant,
        client: ClientId,
        node: Node,
        count: u32,
        answer: &str,
    ) {
        let key = (client, node, TIMESTAMP.to_owned());
        for _ in 0..count {
            let wish = self.unserved.get_mut(&key).and_then(VecDeque::pop_front);
            let Some(exchange) = wish else { return };
            let row = self.row(now);
            self.exchanges[exchange].served = Some((row, answer.to_owned()));
        }
    }

    /// A client hears what became of what it asked for.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        (op, action): (OpKey, ActionId),
        reply: &Reply,
    ) {
        let Some(exchange) = self.waiting.remove(&(op.number(), action)) else {
            return;
        };
        let failure = match reply {
            Reply::Response(Err(error)) | Reply::Timestamp(Err(error)) => Some(error.to_string()),
            _ => None,
        };
        let row = self.row(now);
        self.exchanges[exchange].answered = Some((row, failure));
    }

    /// Something happens to no message.
    pub(super) fn note(&mut self, now: Instant, text: String) {
        let row = self.row(now);
        self.notes.push(Note { row, text });
    }

    /// Writes the page.
    ///
    /// # Errors
    ///
    /// It can't be written.
    pub(super) fn write(&self, out: &mut dyn Write, title: &str) -> io::Result<()> {
        html::write(self, out, title)
    }
}
