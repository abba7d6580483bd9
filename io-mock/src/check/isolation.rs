//! Whether transactions saw and overwrote only what snapshot isolation lets them.

use std::collections::BTreeMap;

use tikv_core::driver::Instant;
use tikv_core::{Key, Timestamp, Value};

use super::truth::Truth;
use super::{Verdict, Violation, show};
use crate::history::{History, Outcome, Query, Read, Transaction};

/// Every read sees exactly the commits at or below its timestamp, and its own writes.
///
/// Judged by the final truth, so that a commit that appeared later at or below a timestamp that
/// had been read is a violation too.
///
/// # Errors
///
/// The first violation.
pub fn snapshot(history: &History, truth: &Truth) -> Verdict {
    for transaction in &history.transactions {
        for read in &transaction.reads {
            let expected = expected(transaction, read, truth);
            if expected != read.rows {
                let (differ, there) = difference(&expected, &read.rows);
                return Err(Violation::new(
                    "snapshot isolation",
                    format!(
                        "client {} read {} at {}: {}; transaction {}",
                        transaction.client, differ, read.ts, there, transaction.start_ts
                    ),
                ));
            }
        }
    }
    Ok(())
}

fn expected(transaction: &Transaction, read: &Read, truth: &Truth) -> Vec<(Key, Value)> {
    let own: BTreeMap<&Key, Option<&Value>> = transaction.writes[..read.own_writes]
        .iter()
        .map(|(key, value)| (key, value.as_ref()))
        .collect();
    match &read.query {
        Query::Keys(keys) => keys
            .iter()
            .filter_map(|key| {
                let value = match own.get(key) {
                    Some(own) => *own,
                    None => truth.value(key, read.ts),
                };
                Some((key.clone(), value?.clone()))
            })
            .collect(),
        Query::Range {
            range,
            limit,
            reverse,
        } => {
            let mut rows: BTreeMap<&Key, &Value> = truth.rows(range, read.ts).collect();
            for (key, value) in own.into_iter().filter(|(key, _)| range.contains(key)) {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(key),
                };
            }
            let row = |(key, value): (&&Key, &&Value)| (Key::clone(key), Value::clone(value));
            if *reverse {
                rows.iter().rev().take(*limit).map(row).collect()
            } else {
                rows.iter().take(*limit).map(row).collect()
            }
        }
    }
}

/// The first row in which two results differ, and how.
fn difference(expected: &[(Key, Value)], got: &[(Key, Value)]) -> (String, String) {
    let same = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
    let show = |row: Option<&(Key, Value)>| match row {
        Some((key, value)) => format!("{key:?}={}", show(Some(value))),
        None => "no more rows".to_owned(),
    };
    (
        show(got.get(same)),
        format!("there was {}", show(expected.get(same))),
    )
}

/// Two transactions that write one key do not overlap: the later begins at or after the commit of
/// the earlier. One that has locked the key before its commit counts from that lock on.
///
/// # Errors
///
/// The first violation.
pub fn first_committer_wins(history: &History, truth: &Truth) -> Verdict {
    let locking = history.transactions.iter();
    let locked: BTreeMap<(Timestamp, &Key), Timestamp> = locking
        .flat_map(|transaction| {
            let locks = transaction.for_update.iter();
            locks.map(|(key, ts)| ((transaction.start_ts, key), *ts))
        })
        .collect();
    for (key, versions) in truth.keys() {
        for (earlier, later) in versions.iter().zip(&versions[1.min(versions.len())..]) {
            let locked = locked.get(&(later.start_ts, key)).copied();
            let since = locked.unwrap_or(later.start_ts);
            if since < earlier.commit_ts || later.commit_ts == earlier.commit_ts {
                return Err(Violation::new(
                    "first committer wins",
                    format!(
                        "lost update on {key:?}: {}..{} overlaps {since}..{}",
                        earlier.start_ts, earlier.commit_ts, later.commit_ts
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Who begins after a commit was acknowledged gets a timestamp above it, and so does whoever is
/// asked to commit after it.
///
/// # Errors
///
/// The first violation.
pub fn real_time(history: &History) -> Verdict {
    // What is above an acknowledged commit, given when that was: the commit itself if stores have
    // chosen its timestamp, since PD gives the same one out later.
    let mut ends: Vec<(Instant, Timestamp)> = history
        .transactions
        .iter()
        .filter_map(|transaction| match transaction.outcome {
            Outcome::Committed(commit_ts) if transaction.calculated => {
                Some((transaction.ended?, commit_ts))
            }
            Outcome::Committed(commit_ts) => Some((transaction.ended?, commit_ts.next())),
            Outcome::Open | Outcome::Unknown | Outcome::Failed(_) => None,
        })
        .collect();
    ends.sort();
    // The least timestamp that is above all that had been acknowledged by each end.
    let mut above = Timestamp::ZERO;
    for (_, least) in &mut ends {
        above = above.max(*least);
        *least = above;
    }
    // The last acknowledgement before a moment, if a timestamp that was got later is not above it.
    let overtaken = |since: Instant, ts: Timestamp| {
        let before = ends.partition_point(|(ended, _)| *ended < since);
        let last = before.checked_sub(1).map(|last| ends[last]);
        last.filter(|(_, least)| !ts.is_zero() && ts < *least)
    };
    for transaction in &history.transactions {
        let begun = overtaken(transaction.invoked, transaction.start_ts).map(|end| ("began", end));
        let committed = match (transaction.ending, &transaction.outcome) {
            (Some(ending), Outcome::Committed(commit_ts)) => overtaken(ending, *commit_ts),
            _ => None,
        };
        let committed = committed.map(|end| ("was asked to commit", end));
        if let Some((what, (ended, least))) = begun.or(committed) {
            return Err(Violation::new(
                "real-time order",
                format!(
                    "transaction {} of client {} {what} after a commit below {least} had been \
                     acknowledged ({} ms), and got a timestamp below that, too",
                    transaction.start_ts,
                    transaction.client,
                    ended.as_millis()
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::truth::{Version, What, put, truth};
    use super::*;
    use tikv_core::KeyRange;

    fn rows(rows: &[(&str, &str)]) -> Vec<(Key, Value)> {
        rows.iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    fn reading(query: Query, seen: &[(&str, &str)]) -> History {
        let mut history = History::default();
        let id = history.begin(1, Instant::ZERO);
        history.began(id, 20.into());
        history.write(id, "c".into(), Some("own".into()));
        history.write(id, "a".into(), None);
        history.read(id, query, rows(seen));
        history
    }

    fn world() -> Truth {
        truth([
            put("a", 5, 6, "0"),
            put("b", 5, 6, "1"),
            put("b", 19, 21, "2"),
            put("d", 5, 20, "3"),
        ])
    }

    #[test]
    fn reads_are_held_against_the_final_truth() {
        let range = |limit, reverse| Query::Range {
            range: KeyRange::all(),
            limit,
            reverse,
        };
        let keys = Query::Keys(vec!["b".into(), "a".into(), "c".into(), "b".into()]);
        let right: &[(&str, &str)] = &[("b", "1"), ("c", "own"), ("d", "3")];
        for (query, seen, holds) in [
            (
                keys.clone(),
                &[("b", "1"), ("c", "own"), ("b", "1")][..],
                true,
            ),
            (
                keys.clone(),
                &[("b", "2"), ("c", "own"), ("b", "1")][..],
                false,
            ),
            (keys, &[("c", "own")][..], false),
            (range(9, false), right, true),
            (range(2, false), &right[..2], true),
            (range(2, true), &[("d", "3"), ("c", "own")][..], true),
            (range(9, false), &right[..2], false),
            (
                range(9, false),
                &[("a", "0"), ("b", "1"), ("c", "own"), ("d", "3")][..],
                false,
            ),
        ] {
            let verdict = snapshot(&reading(query.clone(), seen), &world());
            assert_eq!(verdict.is_ok(), holds, "{query:?} {seen:?} {verdict:?}");
        }
    }

    #[test]
    fn a_lost_update_is_caught() {
        let unlocked = History::default();
        let fine = truth([
            put("a", 5, 10, "1"),
            put("a", 10, 12, "2"),
            put("a", 13, 15, "3"),
        ]);
        assert_eq!(first_committer_wins(&unlocked, &fine), Ok(()));
        let lost = truth([put("a", 5, 10, "1"), put("a", 9, 12, "2")]);
        assert!(
            first_committer_wins(&unlocked, &lost)
                .unwrap_err()
                .detail
                .contains("5..10 overlaps 9..12")
        );
        let locked = Version {
            start_ts: 8.into(),
            commit_ts: 12.into(),
            what: What::Lock,
        };
        let lock = truth([put("a", 5, 10, "1"), ("a".into(), locked)]);
        assert!(first_committer_wins(&unlocked, &lock).is_err());
    }

    #[test]
    fn who_locks_a_key_may_have_begun_before_it_was_written() {
        let overlapping = truth([put("a", 5, 10, "1"), put("a", 9, 12, "2")]);
        let locking = |key: &str, for_update_ts: u64| {
            let mut history = History::default();
            let id = history.begin(1, Instant::ZERO);
            history.began(id, 9.into());
            history.guard(id, key.into(), for_update_ts.into());
            first_committer_wins(&history, &overlapping)
        };
        assert_eq!(locking("a", 10), Ok(()));
        assert!(locking("a", 9).is_err());
        assert!(locking("b", 11).is_err());
    }

    #[test]
    fn who_begins_at_a_calculated_commit_sees_it() {
        let with = |calculated, start_ts: u64| {
            let mut history = History::default();
            let id = history.begin(1, Instant::ZERO);
            history.began(id, 1.into());
            history.ended(id, Instant::from_millis(5), Outcome::Committed(50.into()));
            if calculated {
                history.calculated(id);
            }
            let id = history.begin(2, Instant::from_millis(6));
            history.began(id, start_ts.into());
            real_time(&history)
        };
        assert_eq!(with(true, 50), Ok(()));
        assert!(with(true, 49).is_err());
        assert!(with(false, 50).is_err());
        assert_eq!(with(false, 51), Ok(()));
    }

    #[test]
    fn who_begins_after_an_acknowledged_commit_sees_it() {
        let with = |invoked_ms, start_ts: u64| {
            let mut history = History::default();
            for (ended_ms, commit_ts) in [(30, 90), (10, 50)] {
                let id = history.begin(1, Instant::ZERO);
                history.began(id, 1.into());
                let outcome = Outcome::Committed(commit_ts.into());
                history.ended(id, Instant::from_millis(ended_ms), outcome);
            }
            let id = history.begin(2, Instant::from_millis(invoked_ms));
            history.began(id, start_ts.into());
            history
        };
        assert_eq!(real_time(&with(5, 40)), Ok(()));
        assert_eq!(real_time(&with(11, 51)), Ok(()));
        assert!(real_time(&with(11, 50)).is_err());
        assert!(real_time(&with(31, 70)).is_err());
    }

    #[test]
    fn who_commits_after_an_acknowledged_commit_is_above_it() {
        let with = |asked_ms, commit_ts: u64| {
            let mut history = History::default();
            for (asked_ms, ended_ms, commit_ts) in [(0, 10, 50), (asked_ms, 40, commit_ts)] {
                let id = history.begin(1, Instant::ZERO);
                history.began(id, 1.into());
                history.ending(id, Instant::from_millis(asked_ms));
                let outcome = Outcome::Committed(commit_ts.into());
                history.ended(id, Instant::from_millis(ended_ms), outcome);
            }
            history
        };
        assert_eq!(real_time(&with(5, 40)), Ok(()));
        assert_eq!(real_time(&with(11, 51)), Ok(()));
        assert!(real_time(&with(11, 40)).is_err());
        // Who has written nothing has no timestamp of a commit.
        assert_eq!(real_time(&with(11, 0)), Ok(()));
    }
}
