//! Whether raw reads and writes were honest.
//!
//! TiKV promises less here than a register does: a write whose reply was lost is sent again, and
//! a request that was delayed may take effect after its call has ended. So reads are held against
//! the writes as they took effect, not against the calls.

use std::collections::BTreeSet;

use tikv_core::driver::Instant;
use tikv_core::{Key, Value};

use super::linearizable::{self, Access, Call, Order};
use super::truth::{RawWrite, Truth};
use super::{Verdict, Violation};
use crate::history::{History, RawCall, RawWhat};

/// A search is not carried on for longer than this; what it has not refuted by then passes.
const SEARCH_STEPS: usize = 20_000;

/// A read returns a value that was current at some moment while it ran.
///
/// # Errors
///
/// The first violation.
pub fn current(history: &History, truth: &Truth) -> Verdict {
    for call in &history.raw {
        let RawWhat::Read(value) = &call.what else {
            continue;
        };
        let Some(answered) = call.answered else {
            continue;
        };
        let writes = truth.raw_writes(&call.key);
        // The last write before it ran, then all while it ran.
        let before = writes.partition_point(|write| write.at < call.invoked);
        let first = before.checked_sub(1).map(|last| &writes[last].value);
        let mut candidates = std::iter::once(first.unwrap_or(&None)).chain(
            writes[before..]
                .iter()
                .take_while(|write| write.at <= answered)
                .map(|write| &write.value),
        );
        if !candidates.any(|candidate| candidate == value) {
            return violation(
                "raw read",
                call,
                format!("read {value:?}, which was not current then: {writes:?}"),
            );
        }
    }
    Ok(())
}

/// An acknowledged write took effect while its call ran, and no write took effect that nobody had
/// asked for.
///
/// # Errors
///
/// The first violation.
pub fn no_lost_write(history: &History, truth: &Truth) -> Verdict {
    for call in &history.raw {
        let value = match &call.what {
            RawWhat::Read(_) => continue,
            RawWhat::Write(value) => value.clone(),
            RawWhat::Swap { to, .. } => Some(to.clone()),
        };
        let Some(answered) = call.answered else {
            continue;
        };
        let took_effect = truth
            .raw_writes(&call.key)
            .iter()
            .any(|write| (call.invoked..=answered).contains(&write.at) && write.value == value);
        if !took_effect {
            return violation("raw write", call, format!("of {value:?} was lost"));
        }
    }
    Ok(())
}

/// The calls on each key could have happened one after the other, each while it ran. A write that
/// was sent again counts once for its call and once more for each time it took effect beyond that.
///
/// # Errors
///
/// The first violation.
pub fn linearizable(history: &History, truth: &Truth) -> Verdict {
    let keys: BTreeSet<&Key> = history.raw.iter().map(|call| &call.key).collect();
    for key in keys {
        let calls = calls_on(history, truth, key);
        if linearizable::search(&calls, SEARCH_STEPS) == Order::None {
            let detail = format!("{} calls on {key:?} have no order", calls.len());
            return Err(Violation::new("linearizable", detail));
        }
    }
    Ok(())
}

/// The calls on a key with what took effect more often than it was asked for.
fn calls_on(history: &History, truth: &Truth, key: &Key) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut effects = truth.raw_writes(key).to_vec();
    for call in history.raw.iter().filter(|call| call.key == *key) {
        let (invoked, answered) = (call.invoked, call.answered);
        let what = match &call.what {
            RawWhat::Read(value) => Access::Read(value.clone()),
            // One deletion is like another: they are taken as they took effect.
            RawWhat::Write(None) => continue,
            RawWhat::Write(value) => {
                take_effect(&mut effects, value.as_ref());
                Access::Write(value.clone())
            }
            RawWhat::Swap { from, to } => {
                take_effect(&mut effects, Some(to));
                Access::Swap {
                    from: from.clone(),
                    to: Some(to.clone()),
                    swapped: true,
                }
            }
        };
        calls.push(Call {
            invoked,
            answered,
            what,
        });
    }
    calls.extend(effects.into_iter().map(|effect| Call {
        invoked: effect.at,
        answered: Some(effect.at),
        what: Access::Write(effect.value),
    }));
    calls
}

/// The first time that a value was written is the call's.
fn take_effect(effects: &mut Vec<RawWrite>, value: Option<&Value>) {
    if let Some(first) = effects.iter().position(|it| it.value.as_ref() == value) {
        effects.remove(first);
    }
}

fn violation(rule: &'static str, call: &RawCall, what: String) -> Verdict {
    let until = call.answered.unwrap_or(Instant::FAR_FUTURE).as_millis();
    let detail = format!(
        "client {} on {:?}, {}–{until} ms: {what}",
        call.client,
        call.key,
        call.invoked.as_millis()
    );
    Err(Violation::new(rule, detail))
}

#[cfg(test)]
mod tests {
    use super::super::truth::RawWrite;
    use super::*;

    fn ms(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn truth() -> Truth {
        let mut truth = Truth::default();
        for (at, value) in [(10, Some("1")), (20, Some("2")), (30, None)] {
            let write = RawWrite {
                at: ms(at),
                value: value.map(Into::into),
            };
            truth.insert_raw("k".into(), write);
        }
        truth
    }

    #[test]
    fn a_read_must_be_current() {
        for (from, to, value, holds) in [
            (5, 8, None, true),
            (5, 12, Some("1"), true),
            (5, 12, None, true),
            (12, 18, Some("1"), true),
            (12, 18, None, false),
            (21, 25, Some("1"), false),
            (15, 40, Some("1"), true),
            (31, 40, None, true),
            (31, 40, Some("2"), false),
        ] {
            let mut history = History::default();
            history.raw_read(1, ms(from), ms(to), "k".into(), value.map(Into::into));
            let verdict = current(&history, &truth());
            assert_eq!(
                verdict.is_ok(),
                holds,
                "{from}..{to} {value:?}: {verdict:?}"
            );
        }
    }

    #[test]
    fn an_acknowledged_write_must_take_effect_in_its_time() {
        for (from, to, value, holds) in [
            (5, 12, Some("1"), true),
            (5, 8, Some("1"), false),
            (5, 12, Some("7"), false),
            (25, 40, None, true),
        ] {
            let mut history = History::default();
            let id = history.raw_write(1, ms(from), "k".into(), value.map(Into::into));
            assert_eq!(
                no_lost_write(&history, &truth()),
                Ok(()),
                "not acknowledged yet"
            );
            history.raw_written(id, ms(to));
            assert_eq!(no_lost_write(&history, &truth()).is_ok(), holds);
        }
    }
}
