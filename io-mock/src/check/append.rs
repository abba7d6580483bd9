//! Dependencies between transactions that read lists and append to them, told from what clients
//! saw alone. Lists are values of words separated by spaces, each word appended once in a run.
//!
//! | found | what it is |
//! |---|---|
//! | G1a | a list shows what a failed transaction has appended |
//! | G1b | a list ends in the midst of a transaction's appends |
//! | order | two readers disagree on the order of appends, or a word stands twice |
//! | lost update | two transactions appended to one list without seeing each other's |
//! | G0, G1c, G-single, G-nonadjacent | a cycle of dependencies that snapshot isolation forbids |
//!
//! A cycle in which two transactions in a row have each overlooked the next one is write skew, and
//! allowed. (After Adya's phenomena; the idea of lists is that of the checker Elle.)

use std::collections::{BTreeMap, BTreeSet};

use tikv_core::{Key, Value};

use super::{Verdict, Violation};
use crate::history::{History, Outcome, Query, Transaction};

/// Whether write skew was seen, which is no violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skew {
    /// Some cycle needs two overlooked writes in a row.
    Found,
    /// There is no cycle at all.
    None,
}

type Word = String;

/// What one transaction did to one list.
#[derive(Default)]
struct Touch {
    /// The list before the transaction's own appends, if it was read.
    saw: Option<Vec<Word>>,
    appended: Vec<Word>,
}

/// The place of a transaction in the history.
type Txn = usize;

/// The edges between transactions.
#[derive(Default)]
struct Graph {
    /// The one overwrote what the other had written.
    ww: BTreeSet<(Txn, Txn)>,
    /// The other read what the one had written.
    wr: BTreeSet<(Txn, Txn)>,
    /// The one read what the other overwrote.
    rw: BTreeSet<(Txn, Txn)>,
}

/// Judges all transactions of a history.
///
/// # Errors
///
/// The first violation.
pub fn dependencies(history: &History) -> Result<Skew, Violation> {
    let touches: Vec<BTreeMap<&Key, Touch>> = history.transactions.iter().map(touches).collect();
    let writers = writers(&touches)?;
    let mut graph = Graph::default();
    let keys: BTreeSet<&Key> = touches.iter().flat_map(BTreeMap::keys).copied().collect();
    for key in keys {
        let order = order(history, &touches, &writers, key)?;
        lost_update(history, &touches, &order, key)?;
        graph.add(&touches, &writers, &order, key);
    }
    graph.judge(history)
}

fn words(value: &Value) -> Vec<Word> {
    let text = String::from_utf8_lossy(value.as_bytes());
    text.split_whitespace().map(str::to_owned).collect()
}

/// What a transaction did to each list.
fn touches(transaction: &Transaction) -> BTreeMap<&Key, Touch> {
    let mut touches: BTreeMap<&Key, Touch> = BTreeMap::new();
    for (key, value) in &transaction.writes {
        let last = value.as_ref().and_then(|value| words(value).pop());
        touches.entry(key).or_default().appended.extend(last);
    }
    for read in &transaction.reads {
        // Scans are held against the truth elsewhere.
        let Query::Keys(keys) = &read.query else {
            continue;
        };
        for key in keys {
            let row = read.rows.iter().find(|(other, _)| other == key);
            let mut seen = row.map(|(_, value)| words(value)).unwrap_or_default();
            let touch = touches.entry(key).or_default();
            seen.retain(|word| !touch.appended.contains(word));
            touch.saw.get_or_insert(seen);
        }
    }
    touches
}

fn writers(touches: &[BTreeMap<&Key, Touch>]) -> Result<BTreeMap<Word, Txn>, Violation> {
    let mut writers = BTreeMap::new();
    for (txn, touches) in touches.iter().enumerate() {
        for word in touches.values().flat_map(|touch| &touch.appended) {
            if writers.insert(word.clone(), txn).is_some() {
                let detail = format!("{word} was appended twice by the workload itself");
                return Err(Violation::new("append: order", detail));
            }
        }
    }
    Ok(writers)
}

/// The order of appends to a list: the longest that anybody saw, of which all others are beginnings.
fn order(
    history: &History,
    touches: &[BTreeMap<&Key, Touch>],
    writers: &BTreeMap<Word, Txn>,
    key: &Key,
) -> Result<Vec<Word>, Violation> {
    let seen = |touch: &BTreeMap<&Key, Touch>| touch.get(key).and_then(|touch| touch.saw.clone());
    let lists: Vec<Vec<Word>> = touches.iter().filter_map(seen).collect();
    let longest = lists
        .iter()
        .max_by_key(|list| list.len())
        .cloned()
        .unwrap_or_default();
    let fail = |rule, detail: String| Err(Violation::new(rule, format!("{key:?}: {detail}")));
    for list in &lists {
        if !longest.starts_with(list) {
            let detail = format!("{list:?} was read, and {longest:?}");
            return fail("append: order", detail);
        }
        if let Some(last) = list.last()
            && let Some(&writer) = writers.get(last)
            && let Some(touch) = touches[writer].get(key)
            && touch.appended.last() != Some(last)
        {
            let detail = format!("{list:?} was read, between {:?}", touch.appended);
            return fail("append: G1b, intermediate read", detail);
        }
    }
    let mut distinct = BTreeSet::new();
    for word in &longest {
        let Some(&writer) = writers.get(word) else {
            return fail("append: order", format!("nobody has appended {word}"));
        };
        if !distinct.insert(word) {
            return fail("append: order", format!("{word} stands twice"));
        }
        if let Outcome::Failed(why) = &history.transactions[writer].outcome {
            let detail = format!("{word} was read, but its transaction failed: {why}");
            return fail("append: G1a, aborted read", detail);
        }
    }
    Ok(longest)
}

/// No two committed transactions append to the same list behind the same word.
fn lost_update(
    history: &History,
    touches: &[BTreeMap<&Key, Touch>],
    order: &[Word],
    key: &Key,
) -> Verdict {
    let mut behind: BTreeMap<&[Word], Txn> = BTreeMap::new();
    for (txn, touches) in touches.iter().enumerate() {
        let Some(touch) = touches.get(key) else {
            continue;
        };
        let seen = touch.appended.iter().any(|word| order.contains(word));
        let told = matches!(history.transactions[txn].outcome, Outcome::Committed(_));
        let (Some(saw), true) = (&touch.saw, !touch.appended.is_empty() && (seen || told)) else {
            continue;
        };
        if let Some(other) = behind.insert(saw, txn) {
            let start = |txn: Txn| history.transactions[txn].start_ts;
            let detail = format!(
                "{key:?}: {} and {} both appended to {saw:?}",
                start(other),
                start(txn)
            );
            return Err(Violation::new("append: lost update", detail));
        }
    }
    Ok(())
}

impl Graph {
    fn add(
        &mut self,
        touches: &[BTreeMap<&Key, Touch>],
        writers: &BTreeMap<Word, Txn>,
        order: &[Word],
        key: &Key,
    ) {
        let writer = |word: &Word| writers.get(word).copied();
        for pair in order.windows(2) {
            if let (Some(one), Some(other)) = (writer(&pair[0]), writer(&pair[1]))
                && one != other
            {
                self.ww.insert((one, other));
            }
        }
        for (txn, touches) in touches.iter().enumerate() {
            let Some(saw) = touches.get(key).and_then(|touch| touch.saw.as_ref()) else {
                continue;
            };
            if let Some(one) = saw.last().and_then(writer)
                && one != txn
            {
                self.wr.insert((one, txn));
            }
            if let Some(next) = order.get(saw.len()).and_then(writer)
                && next != txn
            {
                self.rw.insert((txn, next));
            }
        }
    }

    fn judge(&self, history: &History) -> Result<Skew, Violation> {
        let forbidden = |rule, cycle: Vec<Txn>| {
            let starts: Vec<String> = cycle
                .iter()
                .map(|&txn| history.transactions[txn].start_ts.to_string())
                .collect();
            Err(Violation::new(
                rule,
                format!("a cycle of {}", starts.join(", ")),
            ))
        };
        if let Some(cycle) = cycle(&self.ww) {
            return forbidden("append: G0, write cycle", cycle);
        }
        let reads_and_writes: BTreeSet<_> = self.ww.union(&self.wr).copied().collect();
        if let Some(cycle) = cycle(&reads_and_writes) {
            return forbidden("append: G1c, circular information", cycle);
        }
        let next = successors(&reads_and_writes);
        for &(reader, writer) in &self.rw {
            if let Some(mut path) = path(&next, writer, reader) {
                path.insert(0, reader);
                return forbidden("append: G-single, read skew", path);
            }
        }
        // A dependency, followed by at most one overlooked write: must not go in a circle.
        let mut composed = reads_and_writes.clone();
        let overlooked = successors(&self.rw);
        for &(one, other) in &reads_and_writes {
            for &third in overlooked.get(&other).into_iter().flatten() {
                if third != one {
                    composed.insert((one, third));
                }
            }
        }
        if let Some(cycle) = cycle(&composed) {
            return forbidden("append: G-nonadjacent", cycle);
        }
        let all: BTreeSet<_> = reads_and_writes.union(&self.rw).copied().collect();
        Ok(match cycle(&all) {
            Some(_) => Skew::Found,
            None => Skew::None,
        })
    }
}

type Successors = BTreeMap<Txn, Vec<Txn>>;

fn successors(edges: &BTreeSet<(Txn, Txn)>) -> Successors {
    let mut next = Successors::new();
    for &(from, to) in edges {
        next.entry(from).or_default().push(to);
    }
    next
}

/// Some cycle, if there is one: what is left when ends are taken away, and ends of that, is on one
/// or between two.
fn cycle(edges: &BTreeSet<(Txn, Txn)>) -> Option<Vec<Txn>> {
    let next = successors(edges);
    let mut done = BTreeSet::new();
    for &root in next.keys() {
        let mut way: Vec<(Txn, usize)> = vec![(root, 0)];
        let mut on_way = BTreeSet::from([root]);
        while let Some((txn, place)) = way.pop() {
            if done.contains(&txn) {
                on_way.remove(&txn);
                continue;
            }
            match next.get(&txn).and_then(|next| next.get(place)) {
                None => {
                    done.insert(txn);
                    on_way.remove(&txn);
                }
                Some(&to) if on_way.contains(&to) => {
                    let mut cycle: Vec<Txn> = way.iter().map(|(txn, _)| *txn).collect();
                    cycle.push(txn);
                    let start = cycle.iter().position(|&txn| txn == to)?;
                    return Some(cycle.split_off(start));
                }
                Some(&to) => {
                    way.push((txn, place + 1));
                    if !done.contains(&to) {
                        on_way.insert(to);
                        way.push((to, 0));
                    }
                }
            }
        }
    }
    None
}

fn path(next: &Successors, from: Txn, to: Txn) -> Option<Vec<Txn>> {
    let mut came_from = BTreeMap::from([(from, from)]);
    let mut waiting = vec![from];
    while let Some(txn) = waiting.pop() {
        if txn == to {
            let mut way = vec![to];
            let mut at = to;
            while at != from {
                at = came_from[&at];
                way.push(at);
            }
            way.reverse();
            way.pop();
            return Some(way);
        }
        for &after in next.get(&txn).into_iter().flatten() {
            if let std::collections::btree_map::Entry::Vacant(place) = came_from.entry(after) {
                place.insert(txn);
                waiting.push(after);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use tikv_core::driver::Instant;

    enum Did {
        Saw(&'static str, &'static str),
        Wrote(&'static str, &'static str),
    }
    use Did::{Saw, Wrote};

    fn history(transactions: &[(&[Did], bool)]) -> History {
        let mut history = History::default();
        for (n, (steps, committed)) in transactions.iter().enumerate() {
            let id = history.begin(1, Instant::ZERO);
            history.began(id, (n as u64 + 1).into());
            for step in *steps {
                match step {
                    Saw(key, list) => {
                        let rows = match list.is_empty() {
                            true => vec![],
                            false => vec![((*key).into(), (*list).into())],
                        };
                        history.read(id, Query::Keys(vec![(*key).into()]), rows);
                    }
                    Wrote(key, list) => history.write(id, (*key).into(), Some((*list).into())),
                }
            }
            let outcome = match committed {
                true => Outcome::Committed((n as u64 + 100).into()),
                false => Outcome::Failed("conflict".into()),
            };
            history.ended(id, Instant::ZERO, outcome);
        }
        history
    }

    fn verdict(transactions: &[(&[Did], bool)]) -> Result<Skew, &'static str> {
        dependencies(&history(transactions)).map_err(|violation| violation.rule)
    }

    #[test]
    fn what_snapshot_isolation_allows_passes() {
        let reader: &[Did] = &[Saw("x", "1 2"), Saw("y", "3")];
        let one: &[Did] = &[Saw("x", ""), Wrote("x", "1")];
        let two: &[Did] = &[Saw("x", "1"), Wrote("x", "1 2"), Wrote("y", "3")];
        assert_eq!(
            verdict(&[(one, true), (two, true), (reader, true)]),
            Ok(Skew::None)
        );
        let skewed: &[Did] = &[Saw("x", ""), Wrote("y", "1")];
        let other: &[Did] = &[Saw("y", ""), Wrote("x", "2")];
        let reader: &[Did] = &[Saw("x", "2"), Saw("y", "1")];
        assert_eq!(
            verdict(&[(skewed, true), (other, true), (reader, true)]),
            Ok(Skew::Found)
        );
    }

    #[test]
    fn each_phenomenon_is_told() {
        let write: &[Did] = &[Saw("x", ""), Wrote("x", "1")];
        let twice: &[Did] = &[Saw("x", ""), Wrote("x", "1"), Wrote("x", "1 2")];
        let blind: &[Did] = &[Saw("x", ""), Wrote("x", "9")];
        let both: &[Did] = &[Wrote("x", "1"), Wrote("y", "2")];
        let one: &[Did] = &[Wrote("x", "1"), Wrote("y", "4 2")];
        let other: &[Did] = &[Wrote("x", "1 3"), Wrote("y", "4")];
        let saw = |x: &'static str, y: &'static str| [Saw("x", x), Saw("y", y)];
        let circle: &[Did] = &[Wrote("x", "1"), Saw("y", "2")];
        let round: &[Did] = &[Wrote("y", "2"), Saw("x", "1")];
        for (transactions, rule) in [
            (
                vec![(write, false), (&saw("1", "")[..1], true)],
                "append: G1a, aborted read",
            ),
            (
                vec![(twice, true), (&saw("1", "")[..1], true)],
                "append: G1b, intermediate read",
            ),
            (vec![(write, true), (blind, true)], "append: lost update"),
            (
                vec![
                    (write, true),
                    (&saw("1", "")[..1], true),
                    (&[Wrote("x", "9")][..], true),
                    (&saw("9", "")[..1], true),
                ],
                "append: order",
            ),
            (
                vec![(one, true), (other, true), (&saw("1 3", "4 2")[..], true)],
                "append: G0, write cycle",
            ),
            (
                vec![(circle, true), (round, true)],
                "append: G1c, circular information",
            ),
            (
                vec![
                    (both, true),
                    (&saw("1", "")[..], true),
                    (&saw("1", "2")[..], true),
                ],
                "append: G-single, read skew",
            ),
        ] {
            assert_eq!(verdict(&transactions), Err(rule));
        }
    }

    #[test]
    fn two_that_overlook_each_others_reader_are_found() {
        // A long fork: each reader sees one of two independent writes and not the other.
        let x: &[Did] = &[Wrote("x", "1")];
        let y: &[Did] = &[Wrote("y", "2")];
        let one: &[Did] = &[Saw("x", "1"), Saw("y", "")];
        let other: &[Did] = &[Saw("x", ""), Saw("y", "2")];
        let last: &[Did] = &[Saw("x", "1"), Saw("y", "2")];
        assert_eq!(
            verdict(&[
                (x, true),
                (y, true),
                (one, true),
                (other, true),
                (last, true)
            ]),
            Err("append: G-nonadjacent")
        );
    }
}
