//! Random numbers of a simulation: one generator, many named streams.
//!
//! The generator is `oorandom::Rand64`, a PCG with 128 bits of state and a stream that its crate
//! promises never to change: a seed means the same run in every build. Each part of the simulator
//! draws from a stream of its own, named and derived from the seed, so that a part that draws once
//! more or once less does not shift what the others get.
//!
//! Deliberately absent: floating point. Its functions may round differently on other machines.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::digest::Digest;

/// One part in a million: the unit of every probability here.
pub(crate) type Ppm = u32;

/// Certainty.
pub(crate) const ALWAYS: Ppm = 1_000_000;

/// One stream of random numbers.
#[derive(Clone, Debug)]
pub struct Chance {
    rand: oorandom::Rand64,
}

impl Chance {
    /// The stream of a seed that is named `name`.
    pub fn stream(seed: u64, name: &str) -> Self {
        let mut digest = Digest::default();
        digest.bytes(name.as_bytes());
        let state = u128::from(seed) << 64 | u128::from(digest.value());
        Chance {
            rand: oorandom::Rand64::new(state),
        }
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.rand.rand_u64()
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.rand.rand_range(0..bound)
    }

    /// An index into something of `len` elements, of which there must be one.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number of a range.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (first, last) = range.into_inner();
        first + self.below(last.saturating_sub(first).saturating_add(1).max(1))
    }

    /// A number between two others, small ones as likely as large ones: first the magnitude is
    /// drawn, then the number.
    pub fn magnitude(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (first, last) = range.into_inner();
        let doublings = (last / first.max(1)).max(1).ilog2();
        let low = first << self.below(u64::from(doublings) + 1);
        self.within(low..=(low * 2).min(last).max(low))
    }

    /// A time of a range.
    pub fn time(&mut self, range: RangeInclusive<Duration>) -> Duration {
        let (first, last) = range.into_inner();
        Duration::from_nanos(self.within(nanos(first)..=nanos(last)))
    }

    /// A time whose mean is `mean`.
    pub fn around(&mut self, mean: Duration) -> Duration {
        self.time(Duration::from_nanos(1)..=mean * 2)
    }

    /// Whether something of this probability happens.
    pub fn hits(&mut self, probability: u32) -> bool {
        probability > 0 && self.below(u64::from(ALWAYS)) < u64::from(probability)
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.number() & 1 == 1
    }

    /// One of several; `None` of none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        (!from.is_empty()).then(|| &from[self.index(from.len())])
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        let mut chance = Chance::stream(7, "network");
        let drawn: Vec<u64> = (0..4).map(|_| chance.number()).collect();
        assert_eq!(
            drawn,
            [
                12_721_970_401_944_043_153,
                17_031_277_676_198_853_423,
                757_074_806_898_271_475,
                14_129_635_214_937_943_038,
            ],
            "replayed seeds mean something else now"
        );
    }

    #[test]
    fn streams_differ_by_seed_and_by_name() {
        let first = |seed, name| Chance::stream(seed, name).number();
        assert_ne!(first(7, "network"), first(8, "network"));
        assert_ne!(first(7, "network"), first(7, "scheduler"));
        assert_eq!(first(7, "network"), first(7, "network"));
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let mut chance = Chance::stream(1, "test");
        for _ in 0..1_000 {
            assert!((3..=5).contains(&chance.within(3..=5)));
            assert!((10..=1_000).contains(&chance.magnitude(10..=1_000)));
            assert!(chance.index(3) < 3);
            assert!(chance.around(Duration::from_millis(5)) <= Duration::from_millis(10));
        }
        assert_eq!(chance.within(9..=9), 9);
        assert_eq!(chance.magnitude(9..=9), 9);
        assert!(!chance.hits(0) && chance.hits(ALWAYS));
        assert_eq!(chance.pick::<u8>(&[]), None);
    }
}
