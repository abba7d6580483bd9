//! How a server is kept from its work: paused, slow, or with replies that get lost. The server
//! itself knows nothing of it; it passes here before it looks at a request, and after.
//!
//! What is to go wrong is said, and goes wrong; chance decides only in which order requests are
//! answered when they are to be shuffled.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// The ways in which one server is impaired.
#[derive(Debug)]
pub(super) struct Impairment {
    /// Something is in the way. Read with every request, so it costs no lock.
    active: AtomicBool,
    state: watch::Sender<State>,
    /// It has been stopped: nobody can reach it, by way of others either.
    down: AtomicBool,
    /// How many replies more are to be lost.
    to_lose: AtomicU64,
    shuffle: Mutex<oorandom::Rand32>,
}

/// Requests are shuffled by delays shorter than this.
const SHUFFLE_US: u32 = 2_000;

/// What keeps a server from its work at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Condition {
    /// It looks at no request.
    pub paused: bool,
    /// It answers requests in an order that is not theirs.
    pub shuffled: bool,
    /// Every request takes this much longer.
    pub delay: Duration,
    /// So many replies are still to be lost.
    pub replies_to_drop: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    paused: bool,
    delay: Duration,
    shuffled: bool,
}

impl Default for Impairment {
    fn default() -> Self {
        Impairment {
            active: AtomicBool::new(false),
            down: AtomicBool::new(false),
            state: watch::Sender::new(State::default()),
            to_lose: AtomicU64::new(0),
            shuffle: Mutex::new(oorandom::Rand32::new(0)),
        }
    }
}

impl Impairment {
    /// Requests wait from now on, or go on.
    pub(super) fn pause(&self, paused: bool) {
        self.change(|state| state.paused = paused);
    }

    /// Every request waits this long before it is looked at.
    pub(super) fn slow_down(&self, delay: Duration) {
        self.change(|state| state.delay = delay);
    }

    /// The next `count` requests take effect, and their replies are lost.
    pub(super) fn lose_replies(&self, count: u64) {
        self.to_lose.store(count, Ordering::Relaxed);
    }

    /// Requests are answered in an order that is not theirs, from now on or no more.
    pub(super) fn shuffle(&self, shuffled: bool) {
        self.change(|state| state.shuffled = shuffled);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| {
            change(state);
            let active = state.paused || state.shuffled || !state.delay.is_zero();
            self.active.store(active, Ordering::Release);
        });
    }

    /// The server is stopped, or started again.
    pub(super) fn stop(&self, down: bool) {
        self.down.store(down, Ordering::Release);
    }

    /// Whether it is stopped.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// What is in the way now.
    pub(super) fn condition(&self) -> Condition {
        let state = *self.state.borrow();
        Condition {
            paused: state.paused,
            shuffled: state.shuffled,
            delay: state.delay,
            replies_to_drop: self.to_lose.load(Ordering::Relaxed),
        }
    }

    /// Nothing is in the way of a request.
    pub(super) fn is_idle(&self) -> bool {
        !self.active.load(Ordering::Acquire) && self.to_lose.load(Ordering::Relaxed) == 0
    }

    /// Returns when a request may be looked at.
    pub(super) async fn admit(&self) {
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        let now = *self.state.borrow();
        let mut delay = now.delay;
        if now.shuffled {
            let mut shuffle = self.shuffle.lock().unwrap_or_else(PoisonError::into_inner);
            delay += Duration::from_micros(shuffle.rand_range(0..SHUFFLE_US).into());
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|state| !state.paused).await;
    }

    /// Whether the reply to a request that has been answered is lost.
    pub(super) fn takes_reply(&self) -> bool {
        let one_less = |count: u64| count.checked_sub(1);
        self.to_lose
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_replies_are_lost_as_was_said() {
        let impairment = Impairment::default();
        assert!(impairment.is_idle());
        impairment.lose_replies(2);
        assert!(!impairment.is_idle());
        let lost = (0..4).filter(|_| impairment.takes_reply()).count();
        assert_eq!(lost, 2);
        assert!(impairment.is_idle());
    }

    #[test]
    fn a_paused_server_looks_at_nothing_until_it_goes_on() {
        let impairment = Impairment::default();
        impairment.pause(true);
        let mut admit = std::pin::pin!(impairment.admit());
        let mut poll = || {
            let waker = std::task::Waker::noop();
            admit
                .as_mut()
                .poll(&mut std::task::Context::from_waker(waker))
        };
        assert!(poll().is_pending());
        impairment.pause(false);
        assert!(poll().is_ready());
        assert_eq!(impairment.condition(), Condition::default());
    }
}
