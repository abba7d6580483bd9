//! One resource group's bucket of request units, shared by the clients that draw on it.
//!
//! The bucket fills at a rate. Every client that asks has a slot with an even share of that rate;
//! who has not asked for ten minutes has none. A slot may run into debt, up to twice what flows in
//! during one period; what is lent is to be spent over that period.
//!
//! Deliberately absent: giving less to clients that have drawn more.

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
const SLOT_EXPIRES_MS: u64 = 10 * 60 * 1000;

#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub(super) settings: TokenLimitSettings,
    pub(super) slots: BTreeMap<u64, Slot>,
    /// When it was last filled; nobody has asked before.
    pub(super) filled_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) tokens: f64,
    pub(super) asked_ms: u64,
}

impl Bucket {
    pub(super) fn new(settings: TokenLimitSettings) -> Self {
        Bucket {
            settings,
            slots: BTreeMap::new(),
            filled_ms: None,
        }
    }

    /// Goes on with other settings. Debts are forgiven.
    pub(super) fn change(&mut self, settings: TokenLimitSettings) {
        self.settings = settings;
        for slot in self.slots.values_mut() {
            slot.tokens = slot.tokens.max(0.0);
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
        let burst = self.settings.burst_limit;
        if burst < 0 {
            return (wanted, 0);
        }
        if !wanted.is_finite() || wanted <= 0.0 {
            self.slots.remove(&client);
            return (0.0, 0);
        }
        self.fill(now_ms, client);
        let share = self.fill_rate() / self.slots.len().max(1) as f64;
        let Some(slot) = self.slots.get_mut(&client) else {
            return (0.0, 0);
        };
        if slot.tokens >= wanted {
            slot.tokens -= wanted;
            return (wanted, 0);
        }
        let period_s = period_ms as f64 / 1000.0;
        let held = slot.tokens.max(0.0);
        let coefficient = if burst > 0 && burst as f64 <= share {
            1.0
        } else {
            2.0
        };
        let inflow = share * period_s;
        // Whoever is deep in debt still gets half of what flows in.
        let debt = (-slot.tokens).max(0.0);
        let loan = (coefficient * inflow - debt).clamp(0.0, coefficient * inflow);
        let granted = (held + loan).max(0.5 * inflow).min(wanted);
        slot.tokens -= granted;
        let trickle_ms = if held > 0.0 && share > 0.0 {
            ((granted / (coefficient * share)).min(period_s) * 1000.0) as i64
        } else {
            i64::try_from(period_ms).unwrap_or(i64::MAX)
        };
        (granted, trickle_ms)
    }

    fn fill_rate(&self) -> f64 {
        self.settings.fill_rate as f64
    }

    fn fill(&mut self, now_ms: u64, client: u64) {
        let first = self.filled_ms.is_none();
        if first && self.settings.fill_rate == 0 && self.settings.burst_limit > 0 {
            self.settings.fill_rate = DEFAULT_FILL_RATE;
        }
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
            let all = if first && self.settings.burst_limit > 0 {
                all + INITIAL
            } else {
                all
            };
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
        if self.settings.burst_limit > 0 {
            let most = self.settings.burst_limit as f64 / self.slots.len() as f64;
            for slot in self.slots.values_mut() {
                slot.tokens = slot.tokens.min(most);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(fill_rate: u64, burst_limit: i64) -> Bucket {
        Bucket::new(TokenLimitSettings {
            fill_rate,
            burst_limit,
            ..TokenLimitSettings::default()
        })
    }

    #[test]
    fn without_a_limit_everything_is_granted_at_once() {
        for burst in [-1, -2] {
            assert_eq!(bucket(1, burst).draw(0, 7, 5_000, 1e9), (1e9, 0));
        }
    }

    #[test]
    fn the_first_client_finds_a_full_bucket() {
        let mut bucket = bucket(2_000, 10_000_000);
        assert_eq!(bucket.draw(0, 7, 5_000, INITIAL), (INITIAL, 0));
        // Ten seconds flow in during ten seconds.
        assert_eq!(bucket.draw(10_000, 7, 5_000, 20_000.0), (20_000.0, 0));
    }

    #[test]
    fn debt_is_bounded_and_never_less_than_half_the_rate_is_granted() {
        let mut bucket = bucket(1_000, 0);
        let (first, trickle) = bucket.draw(0, 7, 5_000, 1e6);
        assert_eq!(
            (first, trickle),
            (10_000.0, 5_000),
            "twice the rate for a period"
        );
        assert_eq!(bucket.draw(0, 7, 5_000, 1e6), (2_500.0, 5_000));
        let mut small = self::bucket(1_000, 1_000);
        small.draw(0, 7, 5_000, 1e6);
        let mut limited = 0.0;
        for _ in 0..3 {
            limited = small.draw(0, 7, 5_000, 1e6).0;
        }
        assert_eq!(limited, 2_500.0);
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
        assert_eq!(bucket.draw(0, 7, 5_000, 10.0), (0.0, 5_000));
    }
}
