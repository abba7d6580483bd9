//! One connection of a multiplexer: whether it stands, when it may be tried again, what is on it.

use std::time::Duration;

use super::slab::List;
use crate::time::Instant;

#[derive(Debug)]
pub(super) struct Connection {
    /// Counts the attempts to open it.
    pub(super) life: u32,
    pub(super) state: State,
    /// Lives in a row that brought no frame.
    pub(super) failures: u32,
    /// Whether this life has brought a frame.
    pub(super) heard: bool,
    /// The highest id answered in this life.
    pub(super) highest_answered: u64,
    pub(super) sent: List,
    pub(super) abandoned: List,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Down { retry_at: Instant },
    Connecting,
    Up(Writer),
}

/// What a connection's writer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// Writing, or waiting until it may; asks by itself.
    Awake,
    /// Found nothing to write, and sleeps.
    Parked,
    /// Named to the driver to be woken, and has not asked yet.
    Woken,
}

impl Connection {
    pub(super) fn new() -> Self {
        Connection {
            life: 0,
            state: State::Down {
                retry_at: Instant::ZERO,
            },
            failures: 0,
            heard: false,
            highest_answered: 0,
            sent: List::EMPTY,
            abandoned: List::EMPTY,
        }
    }

    pub(super) fn begin(&mut self) -> u32 {
        self.life = self.life.wrapping_add(1);
        self.state = State::Connecting;
        self.heard = false;
        self.highest_answered = 0;
        self.life
    }

    pub(super) fn fail(&mut self, now: Instant) {
        self.state = State::Down {
            retry_at: now + reconnect_delay(self.failures),
        };
        self.failures = self.failures.saturating_add(1);
    }

    pub(super) fn must_wait(&self, now: Instant) -> bool {
        matches!(self.state, State::Down { retry_at } if retry_at > now)
    }

    pub(super) fn available(&self, in_flight_max: usize) -> usize {
        in_flight_max
            .max(1)
            .saturating_sub(self.sent.len() + self.abandoned.len())
    }
}

/// How long a connection rests after `failures + 1` lives without a frame. Without jitter: an
/// attempt is made when a request is waiting, and those come with jitter of their own.
fn reconnect_delay(failures: u32) -> Duration {
    // × 1.6 each time; the tenth is beyond the limit.
    let factor = (0..failures.min(10)).fold(1.0, |factor, _| factor * 1.6);
    RECONNECT_DELAY_BASE
        .mul_f64(factor)
        .min(RECONNECT_DELAY_MAX)
}

const RECONNECT_DELAY_BASE: Duration = Duration::from_millis(100);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_rest_longer_after_each_failure() {
        let delays: Vec<_> = (0..12).map(|n| reconnect_delay(n).as_millis()).collect();
        assert_eq!(
            delays,
            [
                100, 160, 256, 409, 655, 1048, 1677, 2684, 3000, 3000, 3000, 3000
            ]
        );
        assert_eq!(reconnect_delay(u32::MAX), RECONNECT_DELAY_MAX);
    }
}
