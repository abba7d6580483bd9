//! One resource group's bucket of request units, shared by the clients that draw on it.
//!
//! The bucket fills at a rate. Every client that asks has a slot with an even share of that rate;
//! who has not asked for ten minutes has none. A slot may run into debt: at first it is lent units
//! at twice its rate, beyond that at its rate, and whoever is deepest in debt still gets half of
//! what flows in. What is lent is to be spent over the period that the client names.
//!
//! Deliberately absent: shares that follow the clients' demands, and limits set from outside.

use std::collections::BTreeMap;

use tikv_proto::resource_manager::token_bucket_request::Request;
use tikv_proto::resource_manager::{
    GrantedRuTokenBucket, RequestUnitType, TokenBucket, TokenBucketRequest, TokenBucketResponse,
    TokenLimitSettings,
};

/// What a bucket holds at first.
const INITIAL: f64 = 100_000.0;
/// The rate of a group that names none.
const DEFAULT_FILL_RATE: u64 = 10_000;
/// From this rate on a group counts as unlimited.
const UNLIMITED_RATE: u64 = i32::MAX as u64;
/// Unlimited, whatever the rate.
const BURST_UNLIMITED: i64 = -1;
/// May burst by a moderate amount.
const BURST_MODERATED: i64 = -2;
/// That amount, on top of the rate.
const MODERATE_BURST: u64 = 10_000;
/// What even the deepest in debt gets, as a part of what flows in.
const RESERVED: f64 = 0.5;
const SLOT_EXPIRES_MS: u64 = 10 * 60 * 1000;

#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub(super) settings: TokenLimitSettings,
    pub(super) slots: BTreeMap<u64, Slot>,
    /// What there is for the first client, as the group says.
    pub(super) given: f64,
    /// When it was last filled; nobody has asked before.
    pub(super) filled_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) tokens: f64,
    pub(super) asked_ms: u64,
}

impl Bucket {
    pub(super) fn new(settings: TokenLimitSettings, given: f64) -> Self {
        Bucket {
            settings,
            slots: BTreeMap::new(),
            given,
            filled_ms: None,
        }
    }

    /// Goes on with other settings, and with so much more. Debts are forgiven.
    pub(super) fn change(&mut self, settings: TokenLimitSettings, more: f64) {
        self.settings = settings;
        if self.filled_ms.is_none() {
            self.given += more;
        }
        let each = more / self.slots.len().max(1) as f64;
        for slot in self.slots.values_mut() {
            slot.tokens = (slot.tokens + each).max(0.0);
        }
    }

    /// The rate and the bound of all slots together, as the way of bursting makes them.
    fn limits(&self) -> (u64, i64) {
        let TokenLimitSettings {
            fill_rate,
            burst_limit,
            ..
        } = self.settings;
        match burst_limit {
            BURST_MODERATED if fill_rate >= UNLIMITED_RATE => (fill_rate, BURST_UNLIMITED),
            BURST_MODERATED => {
                let rate = fill_rate + MODERATE_BURST;
                (rate, i64::try_from(rate).unwrap_or(i64::MAX))
            }
            other => (fill_rate, other),
        }
    }

    pub(super) fn answer(
        &mut self,
        now_ms: u64,
        client: u64,
        period_ms: u64,
        wish: TokenBucketRequest,
    ) -> TokenBucketResponse {
        let mut response = TokenBucketResponse {
            resource_group_name: wish.resource_group_name,
            keyspace_id: wish.keyspace_id,
            ..TokenBucketResponse::default()
        };
        if let Some(Request::RuItems(items)) = wish.request {
            for item in items.request_r_u {
                let (tokens, trickle_time_ms) = self.draw(now_ms, client, period_ms, item.value);
                let granted_tokens = Some(TokenBucket {
                    settings: Some(TokenLimitSettings {
                        burst_limit: self.settings.burst_limit,
                        ..TokenLimitSettings::default()
                    }),
                    tokens,
                });
                response.granted_r_u_tokens.push(GrantedRuTokenBucket {
                    r#type: RequestUnitType::Ru.into(),
                    granted_tokens,
                    trickle_time_ms,
                });
            }
        }
        response
    }

    /// Takes up to `wanted` units; how many, and over how many milliseconds to spend them.
    fn draw(&mut self, now_ms: u64, client: u64, period_ms: u64, wanted: f64) -> (f64, i64) {
        if self.limits().1 < 0 {
            return (wanted, 0);
        }
        if !wanted.is_finite() || wanted <= 0.0 {
            self.slots.remove(&client);
            return (0.0, 0);
        }
        self.fill(now_ms, client);
        let (rate, burst) = self.limits();
        let parts = self.slots.len().max(1) as f64;
        let (rate, burst) = (rate as f64 / parts, burst as f64 / parts);
        let Some(slot) = self.slots.get_mut(&client) else {
            return (0.0, 0);
        };
        if slot.tokens >= wanted {
            slot.tokens -= wanted;
            return (wanted, 0);
        }
        // A bucket that holds no more than flows in needs no smoothing.
        let rounds = if burst > 0.0 && burst <= rate { 1 } else { 2 };
        let period_s = period_ms as f64 / 1000.0;
        let held = slot.tokens.max(0.0);
        let (granted, over_s) = slot.borrow(wanted, rate, rounds, period_s);
        let over_s = if held > 0.0 {
            over_s.min(period_s)
        } else {
            period_s
        };
        (granted, (over_s * 1000.0) as i64)
    }

    fn fill_rate(&self) -> f64 {
        self.limits().0 as f64
    }

    fn fill(&mut self, now_ms: u64, client: u64) {
        let first = self.filled_ms.is_none();
        if first && self.settings.fill_rate == 0 && self.settings.burst_limit > 0 {
            self.settings.fill_rate = DEFAULT_FILL_RATE;
        }
        let burst = self.limits().1;
        let elapsed_ms = now_ms.saturating_sub(self.filled_ms.unwrap_or(now_ms));
        self.filled_ms = Some(now_ms.max(self.filled_ms.unwrap_or(0)));
        let inflow = self.fill_rate() * elapsed_ms as f64 / 1000.0;
        let share = 1.0 / self.slots.len().max(1) as f64;
        for slot in self.slots.values_mut() {
            slot.tokens += inflow * share;
        }
        self.slots
            .retain(|_, slot| now_ms.saturating_sub(slot.asked_ms) < SLOT_EXPIRES_MS);
        if let Some(slot) = self.slots.get_mut(&client) {
            slot.asked_ms = now_ms;
        } else {
            // A new client takes an even part of what there is.
            let all: f64 = self.slots.values().map(|slot| slot.tokens).sum();
            let given = if burst > 0 {
                self.given.max(INITIAL)
            } else {
                self.given
            };
            let all = all + if first { given } else { 0.0 };
            let slot = Slot {
                tokens: 0.0,
                asked_ms: now_ms,
            };
            self.slots.insert(client, slot);
            let even = all / self.slots.len() as f64;
            for slot in self.slots.values_mut() {
                slot.tokens = even;
            }
        }
        if burst > 0 {
            let most = burst as f64 / self.slots.len() as f64;
            for slot in self.slots.values_mut() {
                slot.tokens = slot.tokens.min(most);
            }
        }
    }
}

impl Slot {
    /// Takes what there is and lends the rest, as far as that goes: how much in all, and over how
    /// many seconds it may be spent.
    fn borrow(&mut self, wanted: f64, rate: f64, rounds: u32, period_s: f64) -> (f64, f64) {
        let mut granted = self.tokens.max(0.0);
        self.tokens = self.tokens.min(0.0);
        let (mut over_s, mut limit) = (0.0, 0.0);
        // Each round lends more slowly than the one before, up to a greater debt.
        for pace in (1..=rounds).rev().map(|round| rate * f64::from(round)) {
            limit += pace * period_s;
            let (room, missing) = (limit + self.tokens, wanted - granted);
            if missing <= 0.0 || over_s >= period_s {
                break;
            }
            if room <= 0.0 {
                continue;
            }
            let lent = if room > missing {
                over_s += (granted + missing) / pace;
                missing
            } else if over_s + room / pace >= period_s {
                let rest = (period_s - over_s) * pace;
                over_s = period_s;
                rest
            } else {
                over_s += room / pace;
                room
            };
            self.tokens -= lent;
            granted += lent;
        }
        let reserved = (RESERVED * rate * period_s).min(wanted);
        if granted < reserved {
            self.tokens -= reserved - granted;
            granted = reserved;
        }
        (granted, over_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(fill_rate: u64, burst_limit: i64) -> Bucket {
        let settings = TokenLimitSettings {
            fill_rate,
            burst_limit,
            ..TokenLimitSettings::default()
        };
        Bucket::new(settings, 0.0)
    }

    #[test]
    fn without_a_limit_everything_is_granted_at_once() {
        for (rate, burst) in [(1, -1), (UNLIMITED_RATE, -1), (UNLIMITED_RATE, -2)] {
            assert_eq!(bucket(rate, burst).draw(0, 7, 5_000, 1e9), (1e9, 0));
        }
    }

    // pd: TestGroupTokenBucketRequest
    #[test]
    fn test_group_token_bucket_request() {
        let mut bucket = bucket(2_000, 20_000_000);
        bucket.given = 200_000.0;
        for (now_ms, wanted, granted, over_ms) in [
            (0, 190_000.0, 190_000.0, 0),
            // There are 10 000 left; the rest is lent at twice the rate.
            (0, 11_000.0, 11_000.0, 2_750),
            (0, 35_000.0, 35_000.0, 10_000),
            (0, 60_000.0, 22_000.0, 10_000),
            (0, 3_000.0, 3_000.0, 10_000),
            // Half of what flows in, however deep the debt.
            (0, 12_000.0, 10_000.0, 10_000),
            (20_000, 20_000.0, 20_000.0, 10_000),
        ] {
            let drawn = bucket.draw(now_ms, 0, 10_000, wanted);
            assert_eq!(drawn, (granted, over_ms), "{wanted} at {now_ms}");
        }
    }

    // pd: TestGroupTokenBucketRequestLoop
    #[test]
    fn test_group_token_bucket_request_loop() {
        let mut bucket = bucket(2_000, 200_000);
        // The test begins with 50 000.
        bucket.draw(0, 0, 5_000, 50_000.0);
        let mut wanted = 50_000.0;
        let expected = [
            50_000.0, 30_000.0, 15_000.0, 12_500.0, 11_250.0, 10_625.0, 10_312.5,
        ];
        for (round, expected) in expected.into_iter().enumerate() {
            let (granted, over_ms) = bucket.draw(round as u64 * 5_000, 0, 5_000, wanted);
            assert_eq!(granted, expected, "round {round}");
            assert_eq!(over_ms, if round == 0 { 0 } else { 5_000 });
            wanted = if round == 0 { 50_000.0 } else { granted };
        }
        // It comes close to what flows in during a period.
        for round in 7..30 {
            (wanted, _) = bucket.draw(round * 5_000, 0, 5_000, wanted);
        }
        assert!((wanted - 10_000.0).abs() < 0.01, "{wanted}");
    }

    // pd: TestGroupTokenBucketRequestBurstLimit
    #[test]
    fn test_group_token_bucket_request_burst_limit() {
        let moderate = 2_000 + MODERATE_BURST;
        for (rate, burst, expected) in [
            (2_000, 2_000, (2_000, 2_000)),
            (2_000, 0, (2_000, 0)),
            (2_000, -1, (2_000, -1)),
            (2_000, -2, (moderate, moderate as i64)),
            (UNLIMITED_RATE, 2_000, (UNLIMITED_RATE, 2_000)),
            (UNLIMITED_RATE, 0, (UNLIMITED_RATE, 0)),
            (UNLIMITED_RATE, -1, (UNLIMITED_RATE, -1)),
        ] {
            let mut bucket = bucket(rate, burst);
            bucket.draw(0, 0, 10_000, 190_000.0);
            assert_eq!(bucket.limits(), expected);
            assert_eq!(
                bucket.settings.burst_limit, burst,
                "the group stays as it is"
            );
        }
    }

    #[test]
    fn clients_share_the_rate_until_they_are_gone() {
        let mut bucket = bucket(1_000, 0);
        bucket.draw(0, 1, 1_000, 1.0);
        let (second, _) = bucket.draw(0, 2, 1_000, 1e6);
        assert!(second <= 1_000.0, "half of twice the rate: {second}");
        assert_eq!(bucket.slots.len(), 2);
        bucket.draw(SLOT_EXPIRES_MS, 2, 1_000, 1.0);
        assert_eq!(bucket.slots.len(), 1);
        bucket.draw(SLOT_EXPIRES_MS, 2, 1_000, 0.0);
        assert!(bucket.slots.is_empty());
    }

    #[test]
    fn nothing_flows_in_without_a_rate() {
        let mut bucket = bucket(0, 0);
        for now_ms in [0, 5_000] {
            assert_eq!(bucket.draw(now_ms, 7, 5_000, 10.0), (0.0, 5_000));
        }
    }

    #[test]
    fn other_settings_forgive_debts_and_may_give_more() {
        let mut bucket = bucket(1_000, 1_000_000);
        bucket.draw(0, 7, 1_000, 101_000.0);
        let settings = bucket.settings;
        bucket.change(settings, 0.0);
        assert_eq!(bucket.slots[&7].tokens, 0.0);
        bucket.change(settings, 500.0);
        assert_eq!(bucket.draw(0, 7, 1_000, 500.0), (500.0, 0));
    }
}
