//! Mistakes that can be built into the client and into the cluster, to see whether the simulation
//! finds them.
//!
//! They are compiled in with the feature `mutations` only. Which run finds each of them stands in a
//! table of the book, `docs/src/mutations.md`, which is read here and held against the code.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use tikv_io_mock::sim::{Bounds, Failure};
use tikv_io_mock::workload::Workload;

#[cfg(feature = "mutations")]
use tikv_core::mutation as client;
#[cfg(feature = "mutations")]
use tikv_io_mock::mutation as cluster;

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mistake(Place);

/// Who makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    #[cfg(feature = "mutations")]
    Client(client::Mutation),
    #[cfg(feature = "mutations")]
    Cluster(cluster::Mutation),
}

/// A run that a mistake made fail.
#[derive(Debug)]
pub struct Found {
    /// What was run.
    pub workload: Workload,
    /// How the run went.
    pub failure: Box<Failure>,
}

/// Every mistake must be found by one of so many runs of some workload.
pub const SEEDS: Range<u64> = 0..500;

#[cfg(feature = "mutations")]
impl Mistake {
    /// Every mistake.
    pub fn all() -> impl Iterator<Item = Mistake> {
        let clients = client::Mutation::ALL.iter().copied().map(Place::Client);
        let clusters = cluster::Mutation::ALL.iter().copied().map(Place::Cluster);
        clients.chain(clusters).map(Mistake)
    }

    /// The name on a command line.
    pub fn name(self) -> &'static str {
        match self.0 {
            Place::Client(mutation) => mutation.name(),
            Place::Cluster(mutation) => mutation.name(),
        }
    }

    /// What is broken.
    pub fn what(self) -> &'static str {
        match self.0 {
            Place::Client(mutation) => mutation.what(),
            Place::Cluster(mutation) => mutation.what(),
        }
    }

    /// Does something with a mistake made on this thread.
    pub fn with<T>(mistake: Option<Mistake>, act: impl FnOnce() -> T) -> T {
        match mistake.map(|mistake| mistake.0) {
            Some(Place::Client(mutation)) => client::set(Some(mutation)),
            Some(Place::Cluster(mutation)) => cluster::set(Some(mutation)),
            None => {}
        }
        let result = act();
        client::set(None);
        cluster::set(None);
        result
    }
}

#[cfg(not(feature = "mutations"))]
impl Mistake {
    /// None is compiled in.
    pub fn all() -> impl Iterator<Item = Mistake> {
        std::iter::empty()
    }

    /// The name on a command line.
    pub fn name(self) -> &'static str {
        match self.0 {}
    }

    /// What is broken.
    pub fn what(self) -> &'static str {
        match self.0 {}
    }

    /// Does something; there is no mistake to be made.
    pub fn with<T>(_: Option<Mistake>, act: impl FnOnce() -> T) -> T {
        act()
    }
}

impl Mistake {
    /// The names of all.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Mistake::all().map(Mistake::name)
    }

    /// A run of this workload and seed with the mistake made, if it fails.
    pub fn try_run(self, workload: Workload, seed: u64) -> Option<Found> {
        let result = Mistake::with(Some(self), || workload.run(seed, &Bounds::default()));
        result.err().map(|failure| Found { workload, failure })
    }

    /// The first of these seeds, of any workload, that finds the mistake.
    pub fn search(self, seeds: Range<u64>) -> Option<Found> {
        seeds
            .flat_map(|seed| Workload::ALL.iter().map(move |&workload| (workload, seed)))
            .find_map(|(workload, seed)| self.try_run(workload, seed))
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mistake {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Mistake::all()
            .find(|mistake| mistake.name() == name)
            .ok_or_else(|| {
                let names: Vec<&str> = Mistake::names().collect();
                if names.is_empty() {
                    "no mutation is compiled in; build with --features mutations".to_owned()
                } else {
                    format!(
                        "no mutation is called {name:?}; there are {}",
                        names.join(", ")
                    )
                }
            })
    }
}

/// A row of the book's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The mistake.
    pub name: String,
    /// What is broken.
    pub what: String,
    /// The workload of the first run that finds it.
    pub workload: Workload,
    /// The seed of that run.
    pub seed: u64,
    /// The rule that is found broken.
    pub rule: String,
}

impl Row {
    /// The row of a mistake and the run that has found it.
    pub fn of(mistake: Mistake, found: &Found) -> Row {
        Row {
            name: mistake.name().to_owned(),
            what: mistake.what().to_owned(),
            workload: found.workload,
            seed: found.failure.report.plan.seed,
            rule: found.failure.kind.rule().to_owned(),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row {
            name,
            what,
            workload,
            seed,
            rule,
        } = self;
        write!(f, "| `{name}` | {what} | {workload} | {seed} | {rule} |")
    }
}

impl FromStr for Row {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, what, workload, seed, rule] = cells[..] else {
            return Err(format!("{line:?} has not five columns"));
        };
        Ok(Row {
            name: name.trim_matches('`').to_owned(),
            what: what.to_owned(),
            workload: workload.parse()?,
            seed: seed.parse().map_err(|error| format!("{seed:?}: {error}"))?,
            rule: rule.to_owned(),
        })
    }
}

/// The rows of the book's table.
///
/// # Errors
///
/// One that can't be read.
pub fn table() -> Result<Vec<Row>, String> {
    include_str!("../../docs/src/mutations.md")
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(str::parse)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_book_names_every_mistake_and_no_other() {
        let rows = table().unwrap();
        if !cfg!(feature = "mutations") {
            return;
        }
        let told: Vec<(&str, &str)> = rows
            .iter()
            .map(|row| (row.name.as_str(), row.what.as_str()))
            .collect();
        let built_in: Vec<(&str, &str)> = Mistake::all()
            .map(|mistake| (mistake.name(), mistake.what()))
            .collect();
        assert_eq!(told, built_in, "`sim --mutate all` prints the table");
        assert!(rows.len() >= 20 && rows.iter().all(|row| SEEDS.contains(&row.seed)));
    }

    #[test]
    fn a_row_is_read_as_it_is_written() {
        let line = "| `forget-insert` | Writes it anyway. | mixed | 12 | inserts were new |";
        assert_eq!(line.parse::<Row>().unwrap().to_string(), line);
        for wrong in ["| `a` | b | mixed | x | c |", "| `a` | b | mixed | 1 |"] {
            assert!(wrong.parse::<Row>().is_err(), "{wrong:?}");
        }
    }
}
