//! Timestamps: strictly rising, close to the clock, never back.

use tikv_proto::pdpb::{
    ErrorType, GetMinTsRequest, GetMinTsResponse, Timestamp, TsoRequest, TsoResponse,
};

use super::Pd;
use super::tso_service::NO_PRIMARY;
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
        self.check_gives_timestamps(member)?;
        Ok(TsoResponse {
            header: self.header(),
            count: request.count,
            timestamp: Some(self.allocate_tso(now_ms, request.count)?),
        })
    }

    /// Allocates a batch; the last of it.
    pub(super) fn allocate_tso(&mut self, now_ms: u64, count: u32) -> Result<Timestamp, GrpcError> {
        let refused = |why: &str| {
            let text = format!("[PD:tso:ErrGenerateTimestamp]generate timestamp failed, {why}");
            Err(GrpcError::new(GrpcCode::Unknown, text))
        };
        if count == 0 {
            return refused("tso count should be positive");
        }
        if u64::from(count) >= LOGICAL_MAX {
            return refused("generate tso maximum number of retries exceeded");
        }
        let (physical, logical) = self.tso.next(now_ms, u64::from(count));
        Ok(timestamp(physical, logical))
    }

    /// A timestamp not above any that will be given out from now on.
    pub fn get_min_ts(
        &mut self,
        now_ms: u64,
        member: usize,
        request: GetMinTsRequest,
    ) -> Result<GetMinTsResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        if self
            .tso_service()
            .is_some_and(|service| service.primary.is_none())
        {
            return Ok(GetMinTsResponse {
                header: self.error_header(ErrorType::Unknown, NO_PRIMARY),
                timestamp: Some(Timestamp::default()),
            });
        }
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
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tikv_proto::pdpb::SetExternalTimestampRequest;

    use super::*;
    use crate::cluster::Config;
    use crate::cluster::pd::testing::{header, message};

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

    /// What may happen between two requests.
    #[derive(Clone, Debug)]
    enum Event {
        Ask(usize, u32),
        Clock(u64),
        Lead(Option<usize>),
        Jump(u64),
        MinTs,
        External(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        let count = prop_oneof![Just(0u32), 1..100u32, 200_000..300_000u32];
        prop_oneof![
            4 => (0..3usize, count).prop_map(|(member, count)| Event::Ask(member, count)),
            2 => (0..20_000u64).prop_map(Event::Clock),
            1 => prop_oneof![Just(None), (0..3usize).prop_map(Some)].prop_map(Event::Lead),
            1 => (0..60_000u64).prop_map(Event::Jump),
            1 => Just(Event::MinTs),
            1 => (0..20_000u64).prop_map(Event::External),
        ]
    }

    proptest! {
        #[test]
        fn no_timestamp_is_given_out_twice_whoever_leads(events in vec(event(), 1..100)) {
            let config = Config { pd_members: 3, ..Config::default() };
            let mut pd = Pd::new(&config);
            let (mut now_ms, mut last, mut external) = (10_000, 0, 0);
            for event in events {
                match event {
                    Event::Ask(member, count) => {
                        let request = TsoRequest { header: header(), count, ..Default::default() };
                        let answer = pd.tso(now_ms, member, request);
                        let fine = pd.leader() == Some(member)
                            && count > 0
                            && u64::from(count) < LOGICAL_MAX;
                        prop_assert_eq!(answer.is_ok(), fine);
                        let Ok(answer) = answer else { continue };
                        let ts = answer.timestamp.unwrap();
                        prop_assert!(ts.logical < LOGICAL_MAX as i64);
                        let ts = (ts.physical as u64) << LOGICAL_BITS | ts.logical as u64;
                        prop_assert!(ts - u64::from(count) >= last, "the first of the batch");
                        prop_assert!(ts >> LOGICAL_BITS >= now_ms, "not behind the clock");
                        last = ts;
                    }
                    // Forwards and backwards.
                    Event::Clock(to_ms) => now_ms = 10_000 + to_ms,
                    Event::Lead(member) => pd.set_leader(now_ms, member),
                    Event::Jump(by_ms) => pd.jump_tso(now_ms + by_ms),
                    Event::MinTs => {
                        let Some(member) = pd.leader() else { continue };
                        let request = GetMinTsRequest { header: header() };
                        let ts = pd.get_min_ts(now_ms, member, request).unwrap().timestamp.unwrap();
                        let ts = (ts.physical as u64) << LOGICAL_BITS | ts.logical as u64;
                        prop_assert!(ts > last);
                        last = ts;
                    }
                    Event::External(physical_ms) => {
                        let Some(member) = pd.leader() else { continue };
                        let timestamp = physical_ms << LOGICAL_BITS;
                        let request = SetExternalTimestampRequest { header: header(), timestamp };
                        let answer = pd.set_external_timestamp(now_ms, member, request).unwrap();
                        let set = message(&answer.header).is_empty();
                        // Asking for it takes a timestamp of its own.
                        let bound = pd.next_tso(now_ms);
                        prop_assert_eq!(set, timestamp > external && timestamp < bound);
                        external = if set { timestamp } else { external };
                        last = bound;
                    }
                }
            }
        }
    }
}
