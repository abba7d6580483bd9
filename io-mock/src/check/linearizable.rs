//! Whether calls on one key could have happened one after the other, each at one moment while it
//! ran: the search of Wing and Gong, with memory of what has been tried. Each key by itself, which
//! is enough for registers.
//!
//! A call that was never answered may have taken effect at any later time, or never.

use std::collections::BTreeSet;

use tikv_core::Value;
use tikv_core::driver::Instant;

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// When it was made.
    pub invoked: Instant,
    /// When it was answered; absent if the client never heard of it.
    pub answered: Option<Instant>,
    /// What it was.
    pub what: Access,
}

/// What a call does to its register.
#[derive(Clone, Debug, PartialEq)]
pub enum Access {
    /// It was this.
    Read(Option<Value>),
    /// It becomes this.
    Write(Option<Value>),
    /// It becomes the second if it is the first.
    Swap {
        /// What it must be.
        from: Option<Value>,
        /// What it becomes then.
        to: Option<Value>,
        /// Whether it was so.
        swapped: bool,
    },
}

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// There is an order.
    Found,
    /// There is none.
    None,
    /// It was not found in so many steps, nor shown that there is none.
    GaveUp,
}

impl Access {
    /// What becomes of a register, if the call can happen now.
    fn on(&self, held: &Option<Value>) -> Option<Option<Value>> {
        match self {
            Access::Read(value) => (value == held).then(|| held.clone()),
            Access::Write(value) => Some(value.clone()),
            Access::Swap { from, to, swapped } if *swapped => (from == held).then(|| to.clone()),
            Access::Swap { from, .. } => (from != held).then(|| held.clone()),
        }
    }
}

/// Searches for an order of the calls on one register, which is empty at first.
pub fn search(calls: &[Call], steps: usize) -> Order {
    let mut calls: Vec<&Call> = calls.iter().collect();
    calls.sort_by_key(|call| call.invoked);
    let end = |call: &Call| call.answered.unwrap_or(Instant::FAR_FUTURE);
    let answered = calls.iter().filter(|call| call.answered.is_some()).count();
    let mut tried = BTreeSet::new();
    // Which calls have happened, and what the register holds then.
    let mut waiting = vec![(Done::of(calls.len()), None, answered)];
    let mut left = steps;
    while let Some((done, held, missing)) = waiting.pop() {
        if missing == 0 {
            return Order::Found;
        }
        if left == 0 {
            return Order::GaveUp;
        }
        left -= 1;
        // Nothing may happen after a call that was answered before it was made.
        let open = || (0..calls.len()).filter(|&n| !done.has(n));
        let first_end = open().map(|n| end(calls[n])).min();
        let Some(first_end) = first_end else {
            return Order::Found;
        };
        for n in open().take_while(|&n| calls[n].invoked <= first_end) {
            if let Some(next) = calls[n].what.on(&held) {
                let after = done.with(n);
                if tried.insert((after.clone(), next.clone())) {
                    let missing = missing - usize::from(calls[n].answered.is_some());
                    waiting.push((after, next, missing));
                }
            }
        }
    }
    Order::None
}

/// A set of calls by their places.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Done(Vec<u64>);

impl Done {
    fn of(calls: usize) -> Done {
        Done(vec![0; calls.div_ceil(64)])
    }

    fn has(&self, n: usize) -> bool {
        self.0[n / 64] & 1 << (n % 64) != 0
    }

    fn with(&self, n: usize) -> Done {
        let mut more = self.clone();
        more.0[n / 64] |= 1 << (n % 64);
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(from: u64, to: u64, what: Access) -> Call {
        Call {
            invoked: Instant::from_millis(from),
            answered: (to > 0).then(|| Instant::from_millis(to)),
            what,
        }
    }

    fn write(from: u64, to: u64, value: &str) -> Call {
        call(from, to, Access::Write(Some(value.into())))
    }

    fn read(from: u64, to: u64, value: &str) -> Call {
        let value = (!value.is_empty()).then(|| value.into());
        call(from, to, Access::Read(value))
    }

    fn swap(from: u64, to: u64, values: (&str, &str), swapped: bool) -> Call {
        let what = Access::Swap {
            from: Some(values.0.into()),
            to: Some(values.1.into()),
            swapped,
        };
        call(from, to, what)
    }

    #[test]
    fn orders_are_found_and_their_absence_is() {
        for (calls, order) in [
            (vec![write(1, 2, "a"), read(3, 4, "a")], Order::Found),
            (vec![write(1, 2, "a"), read(3, 4, "")], Order::None),
            (vec![write(1, 5, "a"), read(2, 4, "")], Order::Found),
            // The old value comes back.
            (
                vec![
                    write(1, 2, "a"),
                    write(3, 9, "b"),
                    read(4, 5, "b"),
                    read(6, 7, "a"),
                ],
                Order::None,
            ),
            // A call that was never answered may happen late, or not at all.
            (
                vec![write(1, 0, "a"), read(2, 3, ""), read(8, 9, "a")],
                Order::Found,
            ),
            (vec![write(1, 0, "a"), read(8, 9, "")], Order::Found),
            (
                vec![write(1, 0, "a"), read(2, 3, "a"), read(8, 9, "")],
                Order::None,
            ),
            (
                vec![
                    write(1, 2, "a"),
                    swap(3, 6, ("a", "b"), true),
                    swap(3, 6, ("a", "c"), false),
                    read(7, 8, "b"),
                ],
                Order::Found,
            ),
            (
                vec![
                    write(1, 2, "a"),
                    swap(3, 6, ("a", "b"), true),
                    swap(3, 6, ("a", "c"), true),
                ],
                Order::None,
            ),
        ] {
            assert_eq!(search(&calls, 1_000), order, "{calls:?}");
        }
    }

    #[test]
    fn a_search_that_takes_too_long_says_so() {
        let calls: Vec<Call> = (0..40).map(|n| write(1, 100, &n.to_string())).collect();
        assert_eq!(search(&calls, 1_000), Order::Found);
        let mut impossible = calls;
        impossible.push(read(1, 100, "never"));
        assert_eq!(search(&impossible, 100), Order::GaveUp);
    }
}
