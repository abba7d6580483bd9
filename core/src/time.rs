//! Two kinds of time, never mixed: [`Instant`] for deadlines, [`Timestamp`] for versions.
//!
//! Neither is ever read here: a driver passes the instant in, PD's timestamp oracle hands the
//! timestamps out.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on the driver's monotonic clock, in nanoseconds since the driver started.
///
/// Only differences and comparisons mean anything. Arithmetic saturates, so that a deadline
/// far away is [`Instant::FAR_FUTURE`] instead of an overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The driver's start.
    pub const ZERO: Instant = Instant(0);
    /// Later than every deadline.
    pub const FAR_FUTURE: Instant = Instant(u64::MAX);

    /// The instant `nanos` nanoseconds after the driver's start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Instant(nanos)
    }

    /// The instant `millis` milliseconds after the driver's start.
    pub const fn from_millis(millis: u64) -> Self {
        Instant(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the driver's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the driver's start.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The time since `earlier`, zero if `earlier` is not earlier.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        let nanos = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, rhs: Instant) -> Duration {
        self.since(rhs)
    }
}

/// A timestamp of PD's oracle: 46 bits of milliseconds since the Unix epoch, 18 bits of counter.
///
/// Start and commit timestamps of transactions are such; a snapshot is a set of all commits at or
/// below one. (client-go: `oracle.ComposeTS`)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// How many low bits of a [`Timestamp`] count within one millisecond.
pub(crate) const LOGICAL_BITS: u32 = 18;

impl Timestamp {
    /// Before every transaction.
    pub const ZERO: Timestamp = Timestamp(0);
    /// As a read version: whatever is committed by now.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// Puts a timestamp together. The logical part must stay below 2^18; more would spill into
    /// the milliseconds.
    pub const fn new(physical_ms: u64, logical: u64) -> Self {
        Timestamp((physical_ms << LOGICAL_BITS).wrapping_add(logical))
    }

    /// The timestamp as it travels in requests.
    pub const fn from_u64(value: u64) -> Self {
        Timestamp(value)
    }

    /// The timestamp as it travels in requests.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Milliseconds since the Unix epoch.
    pub const fn physical_ms(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The counter within the millisecond.
    pub const fn logical(self) -> u64 {
        self.0 & ((1 << LOGICAL_BITS) - 1)
    }

    /// Whether no timestamp was given ([`Timestamp::ZERO`] means "none" on the wire).
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The next timestamp, [`Timestamp::MAX`] at the end.
    pub const fn next(self) -> Timestamp {
        Timestamp(self.0.saturating_add(1))
    }
}

impl From<u64> for Timestamp {
    fn from(value: u64) -> Self {
        Timestamp(value)
    }
}

impl From<Timestamp> for u64 {
    fn from(value: Timestamp) -> Self {
        value.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_saturate_at_both_ends() {
        assert_eq!(
            Instant::FAR_FUTURE + Duration::from_secs(1),
            Instant::FAR_FUTURE
        );
        assert_eq!(Instant::ZERO + Duration::MAX, Instant::FAR_FUTURE);
        assert_eq!(Instant::ZERO - Instant::from_millis(3), Duration::ZERO);
        assert_eq!(
            Instant::from_millis(5) - Instant::from_millis(3),
            Duration::from_millis(2)
        );
    }

    #[test]
    fn timestamps_split_into_milliseconds_and_counter() {
        let ts = Timestamp::new(1_700_000_000_000, 42);
        assert_eq!((ts.physical_ms(), ts.logical()), (1_700_000_000_000, 42));
        assert_eq!(Timestamp::from(ts.as_u64()), ts);
        assert_eq!(Timestamp::MAX.next(), Timestamp::MAX);
    }
}
