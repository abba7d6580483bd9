//! PD's checkers, which make regions what they should be: here they do nothing, but whoever ingests
//! data pauses them and asks whether they are.
//!
//! As at PD, a pause is not kept: it is over when the program ends.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use http::{Method, StatusCode};
use serde_json::json;

use super::{Answer, Asked, bad, ok, wrong};

/// The checkers that there are.
const NAMES: [&str; 6] = [
    "learner",
    "replica",
    "rule",
    "split",
    "merge",
    "joint-state",
];

/// Until when each checker is paused.
#[derive(Debug, Default)]
pub(in crate::serve) struct Checkers(Mutex<BTreeMap<String, u64>>);

impl Checkers {
    fn pause(&self, name: &str, until_ms: u64) {
        let mut paused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        paused.insert(name.to_owned(), until_ms);
    }

    fn is_paused(&self, name: &str, now_ms: u64) -> bool {
        let paused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        paused.get(name).is_some_and(|until_ms| *until_ms > now_ms)
    }
}

pub(super) fn answer(asked: Asked<'_>) -> Option<Answer> {
    let ["checker", name] = asked.path[1..] else {
        return None;
    };
    let is_known = NAMES.contains(&name);
    let unknown = || {
        let why = "[PD:checker:ErrCheckerNotFound]checker not found";
        wrong(StatusCode::INTERNAL_SERVER_ERROR, why)
    };
    match asked.method {
        Method::GET if is_known => {
            ok(json!({ "paused": asked.checkers.is_paused(name, asked.now_ms) }))
        }
        Method::POST => {
            let wish: BTreeMap<String, i64> = match serde_json::from_slice(&asked.body) {
                Ok(wish) => wish,
                Err(why) => return bad(why),
            };
            let Some(delay_s) = wish.get("delay") else {
                return bad("missing pause time");
            };
            let Ok(delay_s) = u64::try_from(*delay_s) else {
                return bad("delay cannot be negative");
            };
            if !is_known {
                return unknown();
            }
            let until_ms = asked.now_ms.saturating_add(delay_s.saturating_mul(1_000));
            asked.checkers.pause(name, until_ms);
            ok(json!(match delay_s {
                0 => "Resume the checker successfully.",
                _ => "Pause the checker successfully.",
            }))
        }
        Method::GET => unknown(),
        _ => None,
    }
}
