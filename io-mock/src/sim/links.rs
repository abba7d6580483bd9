//! What goes wrong between a client and its nodes beside lost and late messages: streams that their
//! server ends, connections on which no answer comes back, clients whose process stands still.
//!
//! A client that stands still hears of nothing, neither answers nor that time has passed, and then
//! of everything at once: its heartbeats come late, and its locks may have gone meanwhile.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use tikv_core::driver::{ActionId, Reply};

use super::chance::Chance;
use super::chaos::Change;
use super::faults::Fault;
use super::further::Later;
use super::marks::Mark;
use super::network::ClientId;
use super::ops::OpKey;
use super::plan::Plan;
use super::world::{Event, World};
use crate::node::Node;

/// What a seed drew of this, and who stands still.
pub(super) struct Links {
    chance: Chance,
    /// What clients will hear that stand still.
    frozen: BTreeMap<ClientId, Vec<News>>,
}

/// Who waits for what, and what it is.
type News = ((OpKey, ActionId), Reply);

const HALF_OPEN: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(6);
const FROZEN: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(6);

impl Links {
    pub(super) fn new(plan: &Plan) -> Self {
        Links {
            chance: Chance::stream(plan.seed, "links"),
            frozen: BTreeMap::new(),
        }
    }
}

impl World {
    pub(super) fn trouble_links(&mut self, fault: Fault) {
        let links = self.network.links();
        let chance = &mut self.further.links.chance;
        let Some(&(client, node)) = chance.pick(&links) else {
            return;
        };
        match fault {
            Fault::CloseStream => {
                let pick = chance.number();
                self.close_stream(client, node, pick);
            }
            Fault::HalfOpen => {
                let until = self.now + chance.time(HALF_OPEN);
                self.audit.note(self.now, || {
                    let until = until.as_millis();
                    format!("no answer from {node} reaches {client} until {until} ms")
                });
                self.audit.mark(Mark::HalfOpen);
                self.network.deafen(client, node, until);
            }
            Fault::Freeze if !self.further.links.frozen.contains_key(&client) => {
                let after = chance.time(FROZEN);
                self.audit
                    .note(self.now, || format!("{client} stands still"));
                self.audit.mark(Mark::ClientFroze);
                self.further.links.frozen.insert(client, Vec::new());
                let end = Later::Thaw(client);
                self.schedule(after, Event::Change(Change::Later(end)));
            }
            _ => {}
        }
    }

    /// A server ends one of its streams to a client; the others, and what goes alone, go on.
    fn close_stream(&mut self, client: ClientId, node: Node, pick: u64) {
        let closed = match node {
            Node::Store(_) => self.break_one_stream(client, node, pick),
            Node::Pd(_) => self.break_oracle(client, node),
        };
        if closed {
            self.audit
                .note(self.now, || format!("{node} ends a stream to {client}"));
            self.audit.mark(Mark::StreamClosed);
        }
    }

    /// Keeps news from a client that stands still.
    pub(super) fn keeps_back(&mut self, waiter: (OpKey, ActionId), reply: Reply) -> Option<News> {
        if self.further.links.frozen.is_empty() {
            return Some((waiter, reply));
        }
        let client = self.ops.client(waiter.0);
        let news = client.and_then(|client| self.further.links.frozen.get_mut(&client));
        match news {
            Some(news) => {
                news.push((waiter, reply));
                None
            }
            None => Some((waiter, reply)),
        }
    }

    /// A client's process goes on, and hears all that it missed.
    pub(super) fn thaw(&mut self, client: ClientId) {
        if let Some(news) = self.further.links.frozen.remove(&client) {
            self.audit.note(self.now, || {
                format!("{client} goes on, with {} news", news.len())
            });
            for (waiter, reply) in news {
                self.deliver(waiter, reply);
            }
        }
    }

    pub(super) fn mend_links(&mut self) {
        let frozen: Vec<ClientId> = self.further.links.frozen.keys().copied().collect();
        for client in frozen {
            self.thaw(client);
        }
    }
}
