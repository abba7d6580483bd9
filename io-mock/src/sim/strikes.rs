//! Single strikes of faults. Each is numbered when it happens, so a failing run can be repeated
//! with some of them only, and in the end with the few that it takes to fail.
//!
//! A strike that is held back is drawn all the same, so that what comes after it changes as little
//! as possible.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use tikv_core::driver::Instant;

use super::faults::{Fault, in_one_word};

/// One strike of a fault: the so manieth of its kind in a run, counted from 0, whether those before
/// were held back or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Strike {
    /// The kind.
    pub fault: Fault,
    /// How many of its kind came before.
    pub number: u64,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", in_one_word(self.fault), self.number)
    }
}

impl FromStr for Strike {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not FAULT:NUMBER");
        let (name, number) = text.split_once(':').ok_or_else(wrong)?;
        let fault = Fault::ALL.iter().find(|fault| in_one_word(**fault) == name);
        Ok(Strike {
            fault: *fault.ok_or_else(wrong)?,
            number: number.parse().map_err(|_| wrong())?,
        })
    }
}

/// The strikes of one run.
#[derive(Debug, Default)]
pub(super) struct Strikes {
    only: Option<BTreeSet<Strike>>,
    counted: BTreeMap<Fault, u64>,
    landed: Vec<(Instant, Strike)>,
}

impl Strikes {
    pub(super) fn new(only: Option<BTreeSet<Strike>>) -> Self {
        Strikes {
            only,
            ..Strikes::default()
        }
    }

    /// Whether a fault strikes, which it does if it was drawn and is not held back.
    pub(super) fn lands(&mut self, at: Instant, fault: Fault, drawn: bool) -> bool {
        if !drawn {
            return false;
        }
        let count = self.counted.entry(fault).or_default();
        let strike = Strike {
            fault,
            number: *count,
        };
        *count += 1;
        let lands = self.only.as_ref().is_none_or(|only| only.contains(&strike));
        if lands {
            self.landed.push((at, strike));
        }
        lands
    }

    /// Those that happened, and when.
    pub(super) fn landed(&self) -> &[(Instant, Strike)] {
        &self.landed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_strikes_and_all_are_counted() {
        let only = ["cut:1", "cut:3", "split:0"].map(|text| text.parse().unwrap());
        let mut strikes = Strikes::new(Some(only.into()));
        let draws = [true, false, true, true, true];
        let landed = draws.map(|drawn| strikes.lands(Instant::ZERO, Fault::Cut, drawn));
        assert_eq!(landed, [false, false, true, false, true]);
        assert!(strikes.lands(Instant::ZERO, Fault::Split, true));
        assert!(!strikes.lands(Instant::ZERO, Fault::Split, true));
        let landed: Vec<String> = strikes
            .landed()
            .iter()
            .map(|(_, it)| it.to_string())
            .collect();
        assert_eq!(landed, ["cut:1", "cut:3", "split:0"]);
        let mut all = Strikes::new(None);
        assert!(all.lands(Instant::ZERO, Fault::Cut, true));
    }

    #[test]
    fn what_names_no_strike_is_refused() {
        for wrong in ["cut", "cut:", "cut:x", "splat:1", ":1"] {
            assert!(wrong.parse::<Strike>().is_err(), "{wrong:?}");
        }
    }
}
