//! Timestamps: strictly rising, close to the clock, never back.

use tikv_proto::pdpb::{GetMinTsRequest, GetMinTsResponse, Timestamp, TsoRequest, TsoResponse};

use super::Pd;
use crate::cluster::failure::{GrpcCode, GrpcError};

/// Bits of the logical part.
const LOGICAL_BITS: u32 = 18;
/// One more than the greatest logical part.
const LOGICAL_MAX: u64 = 1 << LOGICAL_BITS;
/// How far ahead of use a bound is stored; a new leader starts above it.
const SAVE_INTERVAL_MS: u64 = 5_000;

/// The allocator of timestamps.
#[derive(Clone, Debug, Default)]
pub struct Tso {
    pub(super) physical: u64,
    pub(super) logical: u64,
    /// No timestamp at or above this has been given out.
    pub(super) saved: u64,
}

impl Tso {
    /// Allocates `count` timestamps with one physical part and returns the last of them.
    fn next(&mut self, now_ms: u64, count: u64) -> (u64, u64) {
        if now_ms > self.physical {
            self.physical = now_ms;
            self.logical = 0;
        }
        if self.logical + count >= LOGICAL_MAX {
            self.physical += 1;
            self.logical = 0;
        }
        self.logical += count;
        if self.physical + 1 >= self.saved {
            self.saved = self.physical + SAVE_INTERVAL_MS;
        }
        (self.physical, self.logical)
    }
}

impl Pd {
    /// One timestamp, as a store takes it.
    pub fn next_tso(&mut self, now_ms: u64) -> u64 {
        let (physical, logical) = self.tso.next(now_ms, 1);
        physical << LOGICAL_BITS | logical
    }

    /// The greatest timestamp that PD could have given out by now.
    pub fn tso_bound(&self, now_ms: u64) -> u64 {
        self.tso.physical.max(now_ms) << LOGICAL_BITS | (LOGICAL_MAX - 1)
    }

    /// Lets the physical part jump forwards, as after a change of the clock.
    pub fn jump_tso(&mut self, to_ms: u64) {
        if to_ms > self.tso.physical {
            self.tso.physical = to_ms;
            self.tso.logical = 0;
        }
    }

    /// What a new leader does: it starts above anything the old one could have given out.
    pub(super) fn resume_tso(&mut self, now_ms: u64) {
        let from = self.tso.saved.saturating_add(1).max(now_ms);
        self.jump_tso(from);
    }

    /// Answers one request of a timestamp stream; the reply is the last of the batch.
    pub fn tso(
        &mut self,
        now_ms: u64,
        member: usize,
        request: TsoRequest,
    ) -> Result<TsoResponse, GrpcError> {
        self.check_cluster(request.header.as_ref())?;
        if self.leader != Some(member) {
            return Err(GrpcError::new(
                GrpcCode::Unknown,
                "generate timestamp failed, requested pd is not leader of cluster",
            ));
        }
        let count = u64::from(request.count);
        if count == 0 || count >= LOGICAL_MAX {
            return Err(GrpcError::new(
                GrpcCode::Unknown,
                "tso count should be positive and smaller than the logical range",
            ));
        }
        let (physical, logical) = self.tso.next(now_ms, count);
        Ok(TsoResponse {
            header: self.header(),
            count: request.count,
            timestamp: Some(timestamp(physical, logical)),
        })
    }

    /// A timestamp not above any that will be given out from now on.
    pub fn get_min_ts(
        &mut self,
        now_ms: u64,
        member: usize,
        request: GetMinTsRequest,
    ) -> Result<GetMinTsResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let (physical, logical) = self.tso.next(now_ms, 1);
        Ok(GetMinTsResponse {
            header: self.header(),
            timestamp: Some(timestamp(physical, logical)),
        })
    }
}

fn timestamp(physical: u64, logical: u64) -> Timestamp {
    // Both parts fit: 46 and 18 bits.
    Timestamp {
        physical: physical as i64,
        logical: logical as i64,
        suffix_bits: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_rise_whatever_the_clock_does() {
        let mut tso = Tso::default();
        let mut last = (0, 0);
        for (now, count) in [
            (5, 1),
            (5, 10),
            (4, 3),
            (9, LOGICAL_MAX - 2),
            (9, 7),
            (3, 1),
            (20, 1),
        ] {
            let (physical, logical) = tso.next(now, count);
            let first = (physical, logical - count);
            assert!(first >= last, "{first:?} after {last:?}");
            assert!(physical >= now && logical < LOGICAL_MAX);
            last = (physical, logical);
        }
    }
}
