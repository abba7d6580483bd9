//! Operations that are running: for each a box into which replies are put until its task is
//! polled, and the waker of that task. No operation is touched here, so that everything here can
//! happen under the lock of the world.

use std::fmt;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};

use tikv_core::driver::{ActionId, Instant, Reply, Why};

use super::network::ClientId;
use super::shared::Shared;
use crate::node::Node;

/// Names one operation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpKey {
    index: u32,
    generation: u32,
}

impl OpKey {
    /// A number for digests.
    pub(super) fn number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }
}

/// All running operations.
#[derive(Default)]
pub(super) struct Ops {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

struct Slot {
    generation: u32,
    running: Option<Running>,
    /// Outlives one operation for its capacity.
    mailbox: Vec<(ActionId, Reply)>,
    /// Given to every operation that runs in this slot.
    waker: Waker,
}

struct Running {
    label: &'static str,
    client: ClientId,
    kind: Kind,
    since: Instant,
    /// The waker was called since the last poll.
    woken: bool,
    /// Wakes the task; absent while the task is being polled.
    task: Option<Waker>,
    waiting: Waiting,
    /// How many requests it has sent.
    requests: u32,
    /// Its places on streams, to be given up when it ends.
    seats: Vec<Seat>,
}

/// A place on a stream that an operation's request or wish has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    /// On a stream of frames.
    Framed(u64),
    /// On a stream of timestamps.
    Wish(u64),
}

/// What may be expected of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Somebody waits for it, so it has to end.
    Call,
    /// It may go on as long as its client lives.
    Background,
}

/// What an operation asked for last.
#[derive(Clone, Copy, Debug)]
pub(super) enum Waiting {
    Nothing,
    Answer { label: &'static str, from: Node },
    Timestamp,
    Time { until: Instant, why: Why },
}

impl Ops {
    pub(super) fn start(
        &mut self,
        shared: &Weak<Shared>,
        label: &'static str,
        client: ClientId,
        kind: Kind,
        now: Instant,
    ) -> (OpKey, Waker) {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = self.slots.len() as u32;
            let waker = Waker::from(Arc::new(OpWaker {
                shared: shared.clone(),
                index,
            }));
            self.slots.push(Slot {
                generation: 0,
                running: None,
                mailbox: Vec::new(),
                waker,
            });
            index
        });
        let slot = &mut self.slots[index as usize];
        slot.generation += 1;
        slot.running = Some(Running {
            label,
            client,
            kind,
            since: now,
            woken: true,
            task: None,
            waiting: Waiting::Nothing,
            requests: 0,
            seats: Vec::new(),
        });
        (
            OpKey {
                index,
                generation: slot.generation,
            },
            slot.waker.clone(),
        )
    }

    /// Whose operation it is, while it runs.
    pub(super) fn client(&mut self, key: OpKey) -> Option<ClientId> {
        let running = self.slot(key)?.running.as_ref();
        running.map(|running| running.client)
    }

    /// Forgets an operation that has ended or was dropped; the places it leaves.
    pub(super) fn end(&mut self, key: OpKey) -> Vec<Seat> {
        let Some(slot) = self.slot(key) else {
            return Vec::new();
        };
        slot.mailbox.clear();
        let ended = slot.running.take();
        self.free.push(key.index);
        ended.map_or_else(Vec::new, |ended| ended.seats)
    }

    /// An operation takes a place on a stream.
    pub(super) fn sit(&mut self, key: OpKey, seat: Seat) {
        if let Some(running) = self.running(key) {
            running.seats.push(seat);
        }
    }

    /// It has left it.
    pub(super) fn rise(&mut self, key: OpKey, seat: Seat) {
        if let Some(running) = self.running(key) {
            running.seats.retain(|other| *other != seat);
        }
    }

    fn slot(&mut self, key: OpKey) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(key.index as usize)?;
        (slot.generation == key.generation && slot.running.is_some()).then_some(slot)
    }

    fn running(&mut self, key: OpKey) -> Option<&mut Running> {
        self.slot(key)?.running.as_mut()
    }

    /// Leaves a reply for an operation; wake the answer.
    pub(super) fn put(&mut self, key: OpKey, action: ActionId, reply: Reply) -> Option<Waker> {
        let slot = self.slot(key)?;
        slot.mailbox.push((action, reply));
        slot.running
            .as_mut()
            .and_then(|running| running.task.take())
    }

    /// Before a poll: takes the replies, and says whether there is a reason to poll at all.
    pub(super) fn take(&mut self, key: OpKey, replies: &mut Vec<(ActionId, Reply)>) -> bool {
        let Some(slot) = self.slot(key) else {
            return false;
        };
        std::mem::swap(&mut slot.mailbox, replies);
        let Some(running) = &mut slot.running else {
            return false;
        };
        running.task = None;
        std::mem::take(&mut running.woken) || !replies.is_empty()
    }

    /// Right before a poll: whatever woke it so far, it is going to see.
    pub(super) fn calm(&mut self, key: OpKey) {
        if let Some(running) = self.running(key) {
            running.woken = false;
        }
    }

    /// After a poll that did not end it: whom to wake. Called at once if something has come
    /// meanwhile.
    pub(super) fn park(&mut self, key: OpKey, task: &Waker) -> Option<Waker> {
        let slot = self.slot(key)?;
        let running = slot.running.as_mut()?;
        if running.woken || !slot.mailbox.is_empty() {
            return Some(task.clone());
        }
        running.task = Some(task.clone());
        None
    }

    /// Remembers what an operation waits for.
    pub(super) fn waits(&mut self, key: OpKey, waiting: Waiting) {
        if let Some(running) = self.running(key) {
            running.waiting = waiting;
        }
    }

    /// An operation sends a request: how many it has sent, and what it is called.
    pub(super) fn asks(&mut self, key: OpKey) -> (u32, &'static str) {
        self.running(key).map_or((0, ""), |running| {
            running.requests += 1;
            (running.requests, running.label)
        })
    }

    /// Since when the oldest call is running.
    pub(super) fn oldest_call(&self) -> Option<Instant> {
        let running = self.slots.iter().filter_map(|slot| slot.running.as_ref());
        running
            .filter(|running| running.kind == Kind::Call)
            .map(|running| running.since)
            .min()
    }

    fn wake(&mut self, index: u32) -> Option<Waker> {
        let running = self.slots.get_mut(index as usize)?.running.as_mut()?;
        running.woken = true;
        running.task.take()
    }

    /// Everything that is running and what it waits for, oldest first.
    pub(super) fn pending(&self) -> Vec<Pending> {
        let mut pending: Vec<Pending> = self
            .slots
            .iter()
            .filter_map(|slot| slot.running.as_ref())
            .map(|running| Pending {
                label: running.label,
                client: running.client,
                since: running.since,
                waiting: running.waiting,
            })
            .collect();
        pending.sort_by_key(|pending| pending.since);
        pending
    }
}

/// An operation that has not ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    label: &'static str,
    client: ClientId,
    since: Instant,
    waiting: Waiting,
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pending {
            label,
            client,
            since,
            waiting,
        } = self;
        write!(f, "{label} of {client} since {} ms ", since.as_millis())?;
        match waiting {
            Waiting::Nothing => write!(f, "waits for another operation"),
            Waiting::Answer { label, from } => write!(f, "waits for {from} to answer {label}"),
            Waiting::Timestamp => write!(f, "waits for a timestamp"),
            Waiting::Time { until, why } => {
                write!(f, "sleeps until {} ms ({why})", until.as_millis())
            }
        }
    }
}

struct OpWaker {
    shared: Weak<Shared>,
    index: u32,
}

impl Wake for OpWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        // A slot that has been given to another operation meanwhile is polled once for nothing.
        let task = shared.lock().ops.wake(self.index);
        if let Some(task) = task {
            task.wake();
        }
    }
}
