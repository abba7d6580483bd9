//! The network between clients and nodes: how long messages take, which are lost, what a broken
//! connection means for requests under way. It decides about journeys and moves nothing itself.
//!
//! One link per client and node, as one connection. Deliberately absent: traffic between nodes,
//! which the cluster does not have.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tikv_core::driver::Instant;

use super::chance::{Chance, Ppm};
use super::faults::{Drawn, Fault};
use super::plan::{Latency, Plan};
use super::strikes::Strikes;
use crate::node::Node;

/// One client of a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub(super) u32);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// Why a node can't be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Down {
    /// Its machine says at once that nobody listens.
    Refusing,
    /// Nothing answers.
    Silent,
}

/// What becomes of a request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Journey {
    /// No connection is made, which is known at this time.
    Refused(Instant),
    /// It leaves the client.
    Sent {
        /// When its bytes leave. It has not been sent if that is past its deadline.
        departs: Instant,
        /// When it arrives, unless it is lost.
        arrives: Option<Instant>,
        /// When it arrives a second time, if it does.
        again: Option<Instant>,
    },
}

/// What becomes of a frame on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// It arrives then.
    Arrives(Instant),
    /// It never does, and nobody is told.
    Lost,
    /// The stream breaks under it, which both ends know then.
    Breaks(Instant),
}

/// In which direction a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the client.
    There,
    /// To the client.
    Back,
}

/// All links.
pub(super) struct Network {
    chance: Chance,
    latency: Latency,
    ordered: bool,
    /// What the seed drew.
    drawn: Shares,
    /// What is in force: nothing while no faults happen.
    shares: Shares,
    links: BTreeMap<(ClientId, Node), Link>,
    down: BTreeMap<Node, Down>,
    /// Until when a node is slow, and by how much at most.
    slow: BTreeMap<Node, (Instant, Duration)>,
    /// How slow, each time: by chances of its own, so that what else is drawn stays the same.
    slowness: Chance,
}

/// How many messages of a million each fault hits.
#[derive(Clone, Copy, Debug, Default)]
struct Shares {
    drop_request: Ppm,
    lose_reply: Ppm,
    delay: Ppm,
    duplicate: Ppm,
    slow_tso: Ppm,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// From when on the connection stands; absent before the first request and once it broke.
    connected: Option<Instant>,
    /// Arrival of the last request and of the last reply.
    last_request: Instant,
    last_reply: Instant,
    /// Until when nothing passes.
    cut_until: Instant,
    /// Until when no answer comes back.
    deaf_until: Instant,
}

/// A delayed message may come so much later: sometimes after every deadline.
const DELAY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(20)..=Duration::from_secs(6);
/// One in so many delays is of another magnitude.
const LONG_DELAY_ONE_IN: u64 = 20;
const LONG_DELAY: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(6)..=Duration::from_secs(70);
/// How long an attempt to open a stream may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How late a timestamp may be.
const TSO_DELAY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(5)..=Duration::from_millis(1_500);

impl Network {
    pub(super) fn new(plan: &Plan) -> Self {
        let share = |fault| Drawn::share(&plan.faults, fault);
        Network {
            chance: Chance::stream(plan.seed, "network"),
            latency: plan.latency,
            ordered: plan.ordered,
            drawn: Shares {
                drop_request: share(Fault::DropRequest),
                lose_reply: share(Fault::LoseReply),
                delay: share(Fault::Delay),
                duplicate: share(Fault::Duplicate),
                slow_tso: share(Fault::SlowTso),
            },
            shares: Shares::default(),
            links: BTreeMap::new(),
            down: BTreeMap::new(),
            slow: BTreeMap::new(),
            slowness: Chance::stream(plan.seed, "slow nodes"),
        }
    }

    /// From now on messages are hit by what the seed drew.
    pub(super) fn begin_faults(&mut self) {
        self.shares = self.drawn;
    }

    /// From now on every message arrives, and every cut is mended.
    pub(super) fn end_faults(&mut self) {
        self.shares = Shares::default();
        self.down.clear();
        self.slow.clear();
        for link in self.links.values_mut() {
            link.cut_until = Instant::ZERO;
            link.deaf_until = Instant::ZERO;
        }
    }

    /// A node takes up to so much longer for everything, until then.
    pub(super) fn slow_down(&mut self, node: Node, until: Instant, more: Duration) {
        self.slow.insert(node, (until, more));
    }

    /// How much longer a node takes now.
    fn slowness(&mut self, now: Instant, node: Node) -> Duration {
        match self.slow.get(&node) {
            Some(&(until, more)) if now < until => self.slowness.time(Duration::ZERO..=more),
            _ => Duration::ZERO,
        }
    }

    /// Sends a request out.
    pub(super) fn request(
        &mut self,
        now: Instant,
        client: ClientId,
        node: Node,
        strikes: &mut Strikes,
    ) -> Journey {
        let slowness = self.slowness(now, node);
        let link = self.links.entry((client, node)).or_default();
        let latency = self.latency;
        let connected = match link.connected {
            Some(connected) => connected,
            None => match self.down.get(&node) {
                Some(Down::Refusing) => {
                    return Journey::Refused(now + latency.draw(&mut self.chance) * 2);
                }
                // Nobody answers the connection attempt either.
                Some(Down::Silent) => Instant::FAR_FUTURE,
                None => {
                    let from = now.max(link.cut_until);
                    let connected = from + latency.draw(&mut self.chance) * 2;
                    link.connected = Some(connected);
                    connected
                }
            },
        };
        let departs = now.max(connected);
        if departs == Instant::FAR_FUTURE {
            return Journey::Sent {
                departs,
                arrives: None,
                again: None,
            };
        }
        let lost = departs < link.cut_until
            || strikes.lands(
                now,
                Fault::DropRequest,
                self.chance.hits(self.shares.drop_request),
            )
            || self.down.contains_key(&node);
        let mut arrives = departs + latency.draw(&mut self.chance) + slowness;
        if let Some(later) = late(&mut self.chance, self.shares.delay, now, strikes) {
            arrives = arrives + later;
        } else if self.ordered {
            arrives = arrives.max(link.last_request);
            link.last_request = arrives;
        }
        let drawn = self.chance.hits(self.shares.duplicate).then(|| {
            let later = delay(&mut self.chance);
            departs + latency.draw(&mut self.chance) + later
        });
        let again = drawn.filter(|_| strikes.lands(now, Fault::Duplicate, true));
        Journey::Sent {
            departs,
            arrives: (!lost).then_some(arrives),
            again,
        }
    }

    /// Sends a reply back: when it arrives, unless it is lost.
    pub(super) fn reply(
        &mut self,
        now: Instant,
        client: ClientId,
        node: Node,
        strikes: &mut Strikes,
    ) -> Option<Instant> {
        let link = self.links.entry((client, node)).or_default();
        if now < link.cut_until || now < link.deaf_until {
            return None;
        }
        let lost = self.chance.hits(self.shares.lose_reply);
        if strikes.lands(now, Fault::LoseReply, lost) {
            return None;
        }
        let mut arrives = now + self.latency.draw(&mut self.chance);
        if let Some(later) = late(&mut self.chance, self.shares.delay, now, strikes) {
            arrives = arrives + later;
        } else if self.ordered {
            arrives = arrives.max(link.last_reply);
            link.last_reply = arrives;
        }
        Some(arrives)
    }

    /// Opens a stream: when it stands, or when it is known that it can't be opened.
    pub(super) fn connect(
        &mut self,
        now: Instant,
        client: ClientId,
        node: Node,
    ) -> Result<Instant, Instant> {
        let link = self.links.entry((client, node)).or_default();
        let round_trip = self.latency.draw(&mut self.chance) * 2;
        match self.down.get(&node) {
            Some(Down::Refusing) => Err(now + round_trip),
            Some(Down::Silent) => Err(now + CONNECT_TIMEOUT),
            None if link.cut_until > now + CONNECT_TIMEOUT => Err(now + CONNECT_TIMEOUT),
            None => Ok(now.max(link.cut_until) + round_trip),
        }
    }

    /// Sends a frame out on a stream, not before the one that was sent last arrives.
    pub(super) fn carry(
        &mut self,
        now: Instant,
        client: ClientId,
        node: Node,
        last: &mut Instant,
        way: Way,
        strikes: &mut Strikes,
    ) -> Carried {
        let slowness = match way {
            Way::There => self.slowness(now, node),
            Way::Back => Duration::ZERO,
        };
        let link = self.links.entry((client, node)).or_default();
        let deaf = way == Way::Back && now < link.deaf_until;
        if now < link.cut_until || deaf || self.down.contains_key(&node) {
            return Carried::Lost;
        }
        let (fault, share) = match way {
            Way::There => (Fault::DropRequest, self.shares.drop_request),
            Way::Back => (Fault::LoseReply, self.shares.lose_reply),
        };
        let mut arrives = now + self.latency.draw(&mut self.chance) + slowness;
        if strikes.lands(now, fault, self.chance.hits(share)) {
            return Carried::Breaks(arrives);
        }
        if let Some(later) = late(&mut self.chance, self.shares.delay, now, strikes) {
            // Whatever comes behind it on the stream is late as well.
            arrives = arrives + later;
        }
        *last = arrives.max(*last);
        Carried::Arrives(*last)
    }

    /// How much later a frame reaches its node a second time, if it does.
    pub(super) fn again(&mut self, now: Instant, strikes: &mut Strikes) -> Option<Duration> {
        let again = self.chance.hits(self.shares.duplicate);
        let later = again.then(|| delay(&mut self.chance));
        later.filter(|_| strikes.lands(now, Fault::Duplicate, true))
    }

    /// How much longer than other answers a timestamp takes.
    pub(super) fn timestamp_delay(&mut self, now: Instant, strikes: &mut Strikes) -> Duration {
        let drawn = self.chance.hits(self.shares.slow_tso);
        let later = drawn.then(|| self.chance.time(TSO_DELAY));
        later
            .filter(|_| strikes.lands(now, Fault::SlowTso, true))
            .unwrap_or_default()
    }

    /// The connection of a link is gone; the next request makes a new one.
    pub(super) fn disconnect(&mut self, client: ClientId, node: Node) {
        self.links.entry((client, node)).or_default().connected = None;
    }

    /// Nothing passes a link until then. The connection seems to stand.
    pub(super) fn cut(&mut self, client: ClientId, node: Node, until: Instant) {
        self.links.entry((client, node)).or_default().cut_until = until;
    }

    /// What is sent over a link arrives, and no answer comes back until then.
    pub(super) fn deafen(&mut self, client: ClientId, node: Node, until: Instant) {
        self.links.entry((client, node)).or_default().deaf_until = until;
    }

    /// A node can't be reached from now on.
    pub(super) fn take_down(&mut self, node: Node, down: Down) {
        self.down.insert(node, down);
    }

    /// A node can be reached again.
    pub(super) fn bring_up(&mut self, node: Node) {
        self.down.remove(&node);
    }

    pub(super) fn is_up(&self, node: Node) -> bool {
        !self.down.contains_key(&node)
    }

    /// Every link that was ever used.
    pub(super) fn links(&self) -> Vec<(ClientId, Node)> {
        self.links.keys().copied().collect()
    }

    /// Forgets the links of a client that is gone.
    pub(super) fn forget(&mut self, client: ClientId) {
        self.links.retain(|(owner, _), _| *owner != client);
    }
}

/// How much later than usual a message arrives, if it is delayed.
fn late(chance: &mut Chance, share: Ppm, now: Instant, strikes: &mut Strikes) -> Option<Duration> {
    let later = chance.hits(share).then(|| delay(chance));
    later.filter(|_| strikes.lands(now, Fault::Delay, true))
}

fn delay(chance: &mut Chance) -> Duration {
    if chance.below(LONG_DELAY_ONE_IN) == 0 {
        chance.time(LONG_DELAY)
    } else {
        chance.time(DELAY)
    }
}
