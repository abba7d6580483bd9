//! Whether queues give what was put into them.

use std::collections::VecDeque;

use tikv_core::{Key, Timestamp, Value};

use super::truth::Truth;
use super::{Verdict, Violation, show};

/// What one transaction did to queues, or would have if it were committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deed {
    /// Which transaction.
    pub start_ts: Timestamp,
    /// What it took from which queue, in order.
    pub taken: Vec<(usize, Value)>,
    /// What it put into which queue, in order.
    pub put: Vec<(usize, Value)>,
    /// Of which keys it was told at a version whether they had a value.
    pub told: Vec<(Key, Timestamp, bool)>,
}

/// Every queue gives what was put into it, each once, in that order; what is left at the end is
/// what nobody took. Whether a deed was done is told by the truth, whatever its client was told;
/// what a client was told of keys holds in any case.
///
/// # Errors
///
/// The first violation.
pub fn in_order(deeds: &[Deed], left: &[Vec<Value>], truth: &Truth) -> Verdict {
    for deed in deeds {
        for (key, at, exists) in &deed.told {
            if truth.value(key, *at).is_some() != *exists {
                let not = if *exists { "" } else { "not " };
                return violation(format!(
                    "transaction {} was told that {key:?} is {not}there at {at}",
                    deed.start_ts
                ));
            }
        }
    }
    let committed = |deed: &&Deed| {
        let commits = truth.commits(deed.start_ts);
        commits.first().map(|(_, commit_ts)| *commit_ts)
    };
    let mut done: Vec<(Timestamp, &Deed)> = deeds
        .iter()
        .filter_map(|deed| Some((committed(&deed)?, deed)))
        .collect();
    done.sort_by_key(|(commit_ts, deed)| (*commit_ts, deed.start_ts));
    let mut queues: Vec<VecDeque<&Value>> = vec![VecDeque::new(); left.len()];
    // Those that commit at one timestamp do not see each other.
    for at_once in done.chunk_by(|(one, _), (other, _)| one == other) {
        for (commit_ts, deed) in at_once {
            for (queue, value) in &deed.taken {
                let first = queues.get_mut(*queue).and_then(VecDeque::pop_front);
                if first != Some(value) {
                    return violation(format!(
                        "transaction {} took {} from queue {queue} at {commit_ts}, which began with {}",
                        deed.start_ts,
                        show(Some(value)),
                        show(first)
                    ));
                }
            }
        }
        for (_, deed) in at_once {
            for (queue, value) in &deed.put {
                if let Some(queue) = queues.get_mut(*queue) {
                    queue.push_back(value);
                }
            }
        }
    }
    for (number, (expected, left)) in queues.iter().zip(left).enumerate() {
        if !expected.iter().copied().eq(left) {
            return violation(format!(
                "queue {number} holds {left:?} in the end, not {expected:?}"
            ));
        }
    }
    Ok(())
}

fn violation(detail: String) -> Verdict {
    Err(Violation::new("queues", detail))
}

#[cfg(test)]
mod tests {
    use super::super::truth::{put, truth};
    use super::*;

    fn deed(start: u64, taken: &[&str], put: &[&str]) -> Deed {
        let values = |values: &[&str]| values.iter().map(|value| (0, (*value).into())).collect();
        Deed {
            start_ts: start.into(),
            taken: values(taken),
            put: values(put),
            told: Vec::new(),
        }
    }

    fn verdict(deeds: &[Deed], left: &[&str]) -> Verdict {
        let world = truth([
            put("tail", 1, 2, "2"),
            put("head", 3, 5, "1"),
            put("tail", 4, 5, "3"),
            put("head", 6, 7, "2"),
        ]);
        let left = left.iter().map(|value| (*value).into()).collect();
        in_order(deeds, &[left], &world)
    }

    #[test]
    fn what_comes_first_goes_first() {
        let all = [
            deed(1, &[], &["a", "b"]),
            deed(4, &[], &["c"]),
            deed(3, &["a"], &[]),
            deed(6, &["b"], &[]),
            // It was not committed.
            deed(9, &["c"], &["d"]),
        ];
        assert_eq!(verdict(&all, &["c"]), Ok(()));
        assert!(verdict(&all, &[]).is_err());
        assert!(verdict(&all, &["c", "d"]).is_err());
        for wrong in ["a", "c", "e"] {
            let mut all = all.clone();
            all[3] = deed(6, &[wrong], &[]);
            assert!(verdict(&all, &["c"]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_told_of_a_key_holds_even_if_the_transaction_fails() {
        let mut told = deed(9, &[], &[]);
        told.told = vec![
            ("head".into(), 4.into(), false),
            ("head".into(), 5.into(), true),
        ];
        let others = [
            deed(1, &[], &["a", "b"]),
            deed(3, &["a"], &[]),
            deed(6, &["b"], &[]),
        ];
        let mut all = others.to_vec();
        all.push(told.clone());
        assert_eq!(verdict(&all, &[]), Ok(()));
        told.told = vec![("head".into(), 4.into(), true)];
        all.push(told);
        assert!(verdict(&all, &[]).is_err());
    }
}
