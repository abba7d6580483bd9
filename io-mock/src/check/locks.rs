//! Whether locks are cleaned up.

use tikv_core::KeyRange;

use super::truth::Truth;
use super::{Verdict, Violation};

/// No lock stands in a range. To be asked when the system is quiet, every lock's time has passed,
/// and somebody has read the range since.
///
/// # Errors
///
/// The first lock.
pub fn none_left(truth: &Truth, range: &KeyRange) -> Verdict {
    match truth.locks.iter().find(|lock| range.contains(&lock.key)) {
        None => Ok(()),
        Some(lock) => Err(Violation::new(
            "no lock left",
            format!(
                "{:?} is still locked by the transaction of {}, which had {} ms to live",
                lock.key, lock.start_ts, lock.ttl_ms
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::truth::LeftLock;
    use super::*;

    #[test]
    fn a_lock_in_the_range_is_caught() {
        let mut truth = Truth::default();
        assert_eq!(none_left(&truth, &KeyRange::all()), Ok(()));
        truth.locks.push(LeftLock {
            key: "b".into(),
            start_ts: 5.into(),
            ttl_ms: 3_000,
        });
        assert!(none_left(&truth, &KeyRange::all()).is_err());
        assert_eq!(none_left(&truth, &KeyRange::from("c"..)), Ok(()));
    }
}
