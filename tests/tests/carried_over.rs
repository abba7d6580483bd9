//! Every test of client-go, and every test of the servers that the simulated cluster is held to, is
//! accounted for: carried over to a test here that exists, waiting for the part it is about, or
//! impossible, with the reason. Two tables in the book say which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The tests of another project and the table that accounts for them.
struct Source {
    /// `file<TAB>Suite/Test` or `file<TAB>Test`, one a line.
    tests: &'static str,
    table: &'static str,
    /// The list may not become shorter than this by accident.
    at_least: usize,
}

const CLIENT_GO: Source = Source {
    tests: include_str!("data/client-go-tests.tsv"),
    table: "docs/src/client-go-tests.md",
    at_least: 600,
};

/// TiKV's own tests and PD's; those of PD stand under `pd/`.
const SERVERS: Source = Source {
    tests: include_str!("data/server-tests.tsv"),
    table: "docs/src/server-tests.md",
    at_least: 370,
};

/// What a test that is not carried over yet may be waiting for.
const AREAS: [&str; 18] = [
    "admin",
    "async commit and one-phase commit",
    "buffer",
    "commit",
    "configuration",
    "execution details",
    "gc",
    "interceptors",
    "keyspaces",
    "latches",
    "locks",
    "observability",
    "pd",
    "pessimistic",
    "pipelined",
    "raw",
    "resource control",
    "routing",
];
const MORE_AREAS: [&str; 6] = [
    "flashback",
    "reads",
    "rpc",
    "store",
    "tests against a cluster",
    "tiflash",
];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The rows of the table: the file and test, and what became of it.
fn rows(table: &str) -> Vec<((String, String), String)> {
    let mut file = String::new();
    let mut rows = Vec::new();
    for line in table.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            file = heading.trim_matches('`').to_owned();
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let ["", test, fate, ""] = cells[..]
            && !test.starts_with("---")
            && !["Go test", "server test"].contains(&test)
        {
            let test = test.trim_matches('`').to_owned();
            rows.push(((file.clone(), test), fate.to_owned()));
        }
    }
    rows
}

#[derive(Debug, PartialEq)]
enum Fate {
    /// Tests here, as `path::function`.
    Carried(Vec<(String, String)>),
    Pending,
    Impossible,
}

fn fate(text: &str) -> Result<Fate, String> {
    if let Some(area) = text.strip_prefix("pending: ") {
        return match AREAS.iter().chain(&MORE_AREAS).any(|known| *known == area) {
            true => Ok(Fate::Pending),
            false => Err(format!(
                "{area:?} is no area; there are {AREAS:?} and {MORE_AREAS:?}"
            )),
        };
    }
    if let Some(reason) = text.strip_prefix("n/a: ") {
        return match reason.len() > 5 {
            true => Ok(Fate::Impossible),
            false => Err("why not?".to_owned()),
        };
    }
    let tests = text.split(", ").map(|test| {
        let test = test.trim_matches('`');
        let (path, function) = test.rsplit_once("::").ok_or("not `path::function`")?;
        Ok((path.to_owned(), function.to_owned()))
    });
    tests
        .collect::<Result<_, &str>>()
        .map(Fate::Carried)
        .map_err(|error| format!("{text}: {error}"))
}

impl Source {
    fn every_test_stands_in_the_table_once(&self) {
        let table = self.table;
        let wanted: BTreeSet<(String, String)> = self
            .tests
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(file, test)| (file.to_owned(), test.to_owned()))
            .collect();
        let count = wanted.len();
        assert!(
            count > self.at_least,
            "the list behind {table} has {count} lines"
        );
        let mut seen = BTreeMap::new();
        for (test, _) in rows(&read(table)) {
            *seen.entry(test).or_insert(0) += 1;
        }
        let missing: Vec<_> = wanted
            .iter()
            .filter(|test| !seen.contains_key(*test))
            .collect();
        assert!(missing.is_empty(), "not in {table}: {missing:#?}");
        let unknown: Vec<_> = seen.keys().filter(|test| !wanted.contains(*test)).collect();
        assert!(unknown.is_empty(), "no such tests there: {unknown:#?}");
        let twice: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "twice in {table}: {twice:#?}");
    }

    fn every_test_that_is_named_exists(&self) {
        let table = self.table;
        let mut sources: BTreeMap<String, String> = BTreeMap::new();
        let (mut carried, mut pending, mut impossible) = (0, 0, 0);
        let mut broken = Vec::new();
        for ((file, test), text) in rows(&read(table)) {
            match fate(&text) {
                Err(error) => broken.push(format!("{file} {test}: {error}")),
                Ok(Fate::Pending) => pending += 1,
                Ok(Fate::Impossible) => impossible += 1,
                Ok(Fate::Carried(tests)) => {
                    carried += 1;
                    for (path, function) in tests {
                        let source = sources.entry(path.clone()).or_insert_with(|| {
                            fs::read_to_string(root().join(&path)).unwrap_or_default()
                        });
                        if ![format!("fn {function}("), format!("fn {function}<")]
                            .iter()
                            .any(|start| source.contains(start))
                        {
                            broken.push(format!("{file} {test}: no {path}::{function}"));
                        }
                    }
                }
            }
        }
        assert!(
            broken.is_empty(),
            "\n{}\n\nCorrect {table}: a test that was renamed, moved or removed takes its row along.\n",
            broken.join("\n")
        );
        println!("{table}: {carried} carried over, {pending} pending, {impossible} n/a");
    }
}

#[test]
fn every_go_test_stands_in_the_table_once() {
    CLIENT_GO.every_test_stands_in_the_table_once();
}

#[test]
fn every_server_test_stands_in_the_table_once() {
    SERVERS.every_test_stands_in_the_table_once();
}

#[test]
fn every_test_that_is_named_exists() {
    CLIENT_GO.every_test_that_is_named_exists();
    SERVERS.every_test_that_is_named_exists();
}

#[test]
fn a_row_has_one_of_three_fates() {
    assert_eq!(fate("pending: raw"), Ok(Fate::Pending));
    assert_eq!(fate("n/a: there is no such thing"), Ok(Fate::Impossible));
    let carried = fate("`core/src/tso.rs::one`, `core/src/time.rs::two`");
    let one = ("core/src/tso.rs".to_owned(), "one".to_owned());
    let two = ("core/src/time.rs".to_owned(), "two".to_owned());
    assert_eq!(carried, Ok(Fate::Carried(vec![one, two])));
    for nonsense in ["", "pending", "pending: later", "n/a: no", "some words"] {
        assert!(fate(nonsense).is_err(), "{nonsense}");
    }
}
