//! Seeds that failed once. They stay in the file, with one line why, and are run for ever.

use tikv_io_mock::sim::Faults;
use tikv_io_mock::workload::Workload;

/// A seed that failed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSeed {
    /// The seed.
    pub seed: u64,
    /// What it ran.
    pub workload: Workload,
    /// Which faults there were when it failed: a menu that has grown since would make it another
    /// run.
    pub faults: Faults,
    /// What went wrong.
    pub why: String,
}

/// The seeds of `tests/seeds.txt`.
///
/// # Errors
///
/// A line that is none.
pub fn known() -> Result<Vec<KnownSeed>, String> {
    parse(include_str!("../seeds.txt"))
}

/// Lines of `seed workload [faults] # why`: the names of the faults that may be drawn, separated by
/// commas, or `menu:N` for the first N of the menu; without it, the menu as it was when the first
/// seeds were written down. Empty lines and lines of comment alone are skipped.
fn parse(text: &str) -> Result<Vec<KnownSeed>, String> {
    let lines = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (what, why) = line
                .split_once('#')
                .ok_or_else(|| format!("{line:?} does not say why"))?;
            let mut words = what.split_whitespace();
            let (Some(seed), Some(workload), faults, None) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                return Err(format!("{line:?} is not `seed workload [faults] # why`"));
            };
            Ok(KnownSeed {
                seed: seed.parse().map_err(|error| format!("{seed:?}: {error}"))?,
                workload: workload.parse()?,
                faults: match faults.map(|faults| faults.strip_prefix("menu:").ok_or(faults)) {
                    None => Faults::first_menu(),
                    Some(Ok(count)) => Faults::first(
                        count
                            .parse()
                            .map_err(|error| format!("{count:?}: {error}"))?,
                    ),
                    Some(Err(names)) => names.parse()?,
                },
                why: why.trim().to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_can_be_read() {
        known().unwrap();
    }

    #[test]
    fn each_line_says_seed_workload_and_why() {
        let known = parse("# a comment\n\n7 bank # lost update\n").unwrap();
        assert_eq!(known.len(), 1);
        assert_eq!((known[0].seed, known[0].workload), (7, Workload::Bank));
        assert_eq!(known[0].why, "lost update");
        assert_eq!(known[0].faults, Faults::first_menu());
        let known = parse("7 bank menu:24 # lost\n8 skew cut,split # lost\n").unwrap();
        assert_eq!(known[0].faults, Faults::first(24));
        assert_eq!(known[1].faults.to_string(), "cut,split");
        for wrong in [
            "7 bank",
            "x bank # why",
            "7 shop # why",
            "7 # why",
            "7 bank splat # why",
            "7 bank menu:x # why",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
