//! Whether transactions ended as their clients were told.

use std::collections::BTreeMap;

use tikv_core::{Key, Value};

use super::truth::{LeftLock, Truth, What};
use super::{Verdict, Violation, show};
use crate::history::{History, Outcome, Transaction};

/// Each transaction is there with all its writes at one timestamp, or not at all.
///
/// # Errors
///
/// The first violation.
pub fn atomicity(history: &History, truth: &Truth) -> Verdict {
    for transaction in begun(history) {
        let commits = truth.commits(transaction.start_ts);
        let Some((_, commit_ts)) = commits.first() else {
            continue;
        };
        if let Some((key, other)) = commits.iter().find(|(_, other)| other != commit_ts) {
            return violation(
                "atomicity",
                transaction,
                format!("is committed at {commit_ts} and, on {key:?}, at {other}"),
            );
        }
        if *commit_ts <= transaction.start_ts {
            return violation(
                "atomicity",
                transaction,
                format!("is committed at {commit_ts}"),
            );
        }
        let writes = last_writes(transaction);
        for (key, written) in &writes {
            let version = truth
                .versions(key)
                .iter()
                .find(|it| it.start_ts == transaction.start_ts);
            let matches = match (version.map(|version| &version.what), written) {
                (Some(What::Put(value)), Some(written)) => value == *written,
                (Some(What::Delete | What::Lock), None) => true,
                (None, written) => is_pending(transaction, key, *written, truth),
                _ => false,
            };
            if !matches {
                let found = match version.map(|version| &version.what) {
                    None => "no version".to_owned(),
                    Some(What::Put(value)) => show(Some(value)),
                    Some(other) => format!("{other:?}"),
                };
                return violation(
                    "atomicity",
                    transaction,
                    format!(
                        "is committed, but it has {found} on {key:?}, not {}",
                        show(*written)
                    ),
                );
            }
        }
        if let Some((key, _)) = commits
            .iter()
            .find(|(key, _)| !writes.contains_key(key) && !transaction.locked.contains(key))
        {
            return violation("atomicity", transaction, format!("never wrote {key:?}"));
        }
    }
    Ok(())
}

/// A committed write that has left no version: its lock still stands, for whoever meets it to
/// commit, or it deletes what was not there.
fn is_pending(
    transaction: &Transaction,
    key: &Key,
    written: Option<&Value>,
    truth: &Truth,
) -> bool {
    let locked = |lock: &LeftLock| lock.key == *key && lock.start_ts == transaction.start_ts;
    truth.locks.iter().any(locked)
        || (written.is_none() && truth.value(key, transaction.start_ts).is_none())
}

/// What was acknowledged is there, at the timestamp that was told.
///
/// # Errors
///
/// The first violation.
pub fn no_lost_commit(history: &History, truth: &Truth) -> Verdict {
    for transaction in begun(history) {
        let Outcome::Committed(commit_ts) = transaction.outcome else {
            continue;
        };
        let commits = truth.commits(transaction.start_ts);
        for (key, written) in last_writes(transaction) {
            let undone = written.is_none() && commits.is_empty() && commit_ts.is_zero();
            let proven = undone || !commits.is_empty();
            if proven && is_pending(transaction, key, written, truth) {
                continue;
            }
            if !commits
                .iter()
                .any(|(other, at)| other == key && *at == commit_ts)
            {
                return violation(
                    "no lost commit",
                    transaction,
                    format!("was acknowledged at {commit_ts}, but {key:?} has {commits:?}"),
                );
            }
        }
    }
    Ok(())
}

/// What was reported as failed is not there.
///
/// # Errors
///
/// The first violation.
pub fn no_false_failure(history: &History, truth: &Truth) -> Verdict {
    for transaction in begun(history) {
        let Outcome::Failed(why) = &transaction.outcome else {
            continue;
        };
        if let Some((key, commit_ts)) = truth.commits(transaction.start_ts).first() {
            return violation(
                "no false failure",
                transaction,
                format!("was reported as failed ({why}), but {key:?} has it at {commit_ts}"),
            );
        }
    }
    Ok(())
}

/// What was inserted had no value when its transaction began. (Had it got one since, the commit
/// would have failed; see [`isolation::first_committer_wins`](super::isolation::first_committer_wins).)
///
/// # Errors
///
/// The first violation.
pub fn inserts_were_new(history: &History, truth: &Truth) -> Verdict {
    for transaction in begun(history) {
        let commits = truth.commits(transaction.start_ts);
        let committed = |key: &&Key| commits.iter().any(|(other, _)| other == *key);
        for key in transaction.inserted.iter().filter(committed) {
            if let Some(value) = truth.value(key, transaction.start_ts) {
                return violation(
                    "inserts were new",
                    transaction,
                    format!("has inserted {key:?}, which was {}", show(Some(value))),
                );
            }
        }
    }
    Ok(())
}

fn begun(history: &History) -> impl Iterator<Item = &Transaction> {
    history
        .transactions
        .iter()
        .filter(|transaction| !transaction.start_ts.is_zero())
}

fn last_writes(transaction: &Transaction) -> BTreeMap<&Key, Option<&Value>> {
    transaction
        .writes
        .iter()
        .map(|(key, value)| (key, value.as_ref()))
        .collect()
}

fn violation(rule: &'static str, transaction: &Transaction, what: String) -> Verdict {
    let detail = format!(
        "transaction {} of client {} {what}",
        transaction.start_ts, transaction.client
    );
    Err(Violation::new(rule, detail))
}

#[cfg(test)]
mod tests {
    use super::super::truth::{put, truth};
    use super::*;
    use tikv_core::driver::Instant;

    fn history(outcome: Outcome) -> History {
        let mut history = History::default();
        let id = history.begin(1, Instant::ZERO);
        history.began(id, 10.into());
        history.write(id, "a".into(), Some("1".into()));
        history.write(id, "b".into(), Some("0".into()));
        history.write(id, "b".into(), Some("2".into()));
        history.ending(id, Instant::ZERO);
        history.ended(id, Instant::from_millis(5), outcome);
        history
    }

    #[test]
    fn half_a_transaction_is_caught() {
        for (found, truth) in [
            (None, truth([])),
            (None, truth([put("a", 10, 12, "1"), put("b", 10, 12, "2")])),
            (Some("no version"), truth([put("a", 10, 12, "1")])),
            (
                Some("it has"),
                truth([put("a", 10, 12, "1"), put("b", 10, 12, "0")]),
            ),
            (
                Some("at 13"),
                truth([put("a", 10, 12, "1"), put("b", 10, 13, "2")]),
            ),
            (
                Some("never wrote"),
                truth([
                    put("a", 10, 12, "1"),
                    put("b", 10, 12, "2"),
                    put("c", 10, 12, "3"),
                ]),
            ),
        ] {
            let verdict = atomicity(&history(Outcome::Unknown), &truth);
            match found {
                None => assert_eq!(verdict, Ok(())),
                Some(text) => assert!(verdict.unwrap_err().detail.contains(text)),
            }
        }
    }

    #[test]
    fn a_lock_that_is_left_is_no_half_transaction() {
        let mut half = truth([put("a", 10, 12, "1")]);
        half.locks.push(LeftLock {
            key: "b".into(),
            start_ts: 10.into(),
            ttl_ms: 3_000,
        });
        assert_eq!(atomicity(&history(Outcome::Unknown), &half), Ok(()));
        let told = history(Outcome::Committed(12.into()));
        assert_eq!(no_lost_commit(&told, &half), Ok(()));
        // Without the primary the lock proves nothing.
        let locks = std::mem::take(&mut half.locks);
        half = Truth::default();
        half.locks = locks;
        assert!(no_lost_commit(&told, &half).is_err());
    }

    #[test]
    fn deleting_nothing_leaves_nothing() {
        let mut history = history(Outcome::Unknown);
        history.transactions[0].writes.push(("c".into(), None));
        let whole = [put("a", 10, 12, "1"), put("b", 10, 12, "2")];
        assert_eq!(atomicity(&history, &truth(whole.clone())), Ok(()));
        let [a, b] = whole;
        let there = truth([a, b, put("c", 3, 4, "0")]);
        assert!(atomicity(&history, &there).is_err());
    }

    #[test]
    fn an_acknowledged_commit_must_be_there() {
        let told = history(Outcome::Committed(12.into()));
        let whole = truth([put("a", 10, 12, "1"), put("b", 10, 12, "2")]);
        assert_eq!(no_lost_commit(&told, &whole), Ok(()));
        let lost = truth([put("a", 10, 12, "1")]);
        assert!(no_lost_commit(&told, &lost).is_err());
        let elsewhere = truth([put("a", 10, 13, "1"), put("b", 10, 13, "2")]);
        assert!(no_lost_commit(&told, &elsewhere).is_err());
        assert_eq!(no_lost_commit(&history(Outcome::Unknown), &lost), Ok(()));
    }

    #[test]
    fn an_insertion_over_a_value_is_caught() {
        let mut inserting = history(Outcome::Committed(12.into()));
        inserting.transactions[0].inserted.push("a".into());
        let [a, b] = [put("a", 10, 12, "1"), put("b", 10, 12, "2")];
        let new = truth([a.clone(), b.clone(), put("a", 13, 14, "0")]);
        assert_eq!(inserts_were_new(&inserting, &new), Ok(()));
        let there = truth([a, b, put("a", 3, 4, "0")]);
        assert!(inserts_were_new(&inserting, &there).is_err());
        let failed = truth([put("a", 3, 4, "0")]);
        assert_eq!(inserts_were_new(&inserting, &failed), Ok(()));
    }

    #[test]
    fn a_failure_must_not_be_there() {
        let told = history(Outcome::Failed("conflict".into()));
        assert_eq!(
            no_false_failure(&told, &truth([put("a", 8, 9, "0")])),
            Ok(())
        );
        let there = truth([put("a", 10, 12, "1")]);
        assert!(no_false_failure(&told, &there).is_err());
        assert_eq!(no_false_failure(&history(Outcome::Unknown), &there), Ok(()));
    }
}
