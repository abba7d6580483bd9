//! Whole runs in the simulator: every workload over many seeds with every fault on, the states
//! that such a set must have reached, and the proof that the checks find real mistakes.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tikv_io_mock::sim::{Failure, FailureKind, Faults, Mark, Marks, Report};
use tikv_io_mock::workload::Workload;
use tikv_tests::mutations::{self, Mistake, Row};

/// Enough to reach every state that is not rare.
const SEEDS: Range<u64> = 0..200;

fn run(workload: Workload, seed: u64) -> Result<Report, Box<Failure>> {
    workload.run(seed, Faults::all(), None)
}

/// Runs every seed, on all processors, until one fails.
fn run_all(workload: Workload, seeds: Range<u64>) -> Result<Marks, Box<Failure>> {
    let next = AtomicU64::new(seeds.start);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let worker = || {
            let mut marks = Marks::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return Ok(marks);
                }
                match run(workload, seed) {
                    Ok(report) => marks = marks.union(report.marks),
                    Err(failure) => {
                        next.store(seeds.end, Ordering::Relaxed);
                        return Err(failure);
                    }
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a run catches its own panics"))
            .try_fold(Marks::default(), |all, marks| Ok(all.union(marks?)))
    })
}

/// The marks that must be reached and were not.
fn missing(marks: Marks) -> Vec<Mark> {
    marks.missing().filter(|mark| !mark.is_rare()).collect()
}

#[test]
fn the_bank_survives_every_fault_and_reaches_every_state() {
    let marks = run_all(Workload::Bank, SEEDS).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(missing(marks), [], "never reached");
}

#[test]
fn every_workload_survives_every_fault() {
    for &workload in Workload::ALL {
        run_all(workload, 0..50).unwrap_or_else(|failure| panic!("{workload}: {failure}"));
    }
}

#[test]
fn write_skew_is_seen_where_it_is_allowed() {
    let marks = run_all(Workload::Skew, 0..100).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(marks.has(Mark::WriteSkew));
}

#[test]
fn one_seed_is_one_run() {
    for &workload in Workload::ALL {
        for seed in [3, 4, 5] {
            let (first, second) = (run(workload, seed).unwrap(), run(workload, seed).unwrap());
            assert_eq!(first, second, "{workload} {seed}");
        }
        let (one, other) = (run(workload, 3).unwrap(), run(workload, 4).unwrap());
        assert_ne!(
            one.digest, other.digest,
            "two seeds of {workload} are one run"
        );
    }
}

#[test]
fn every_mistake_is_found_by_the_run_that_the_book_names() {
    for mistake in Mistake::all() {
        let name = mistake.name();
        let rows = mutations::table().expect("the table can be read");
        let row = rows.into_iter().find(|row| row.name == name);
        let row = row.unwrap_or_else(|| panic!("{name} is not in the table"));
        let Some(found) = mistake.try_run(row.workload, row.seed) else {
            panic!(
                "seed {} does not find {name}; `sim --mutate all` finds one",
                row.seed
            );
        };
        assert_eq!(Row::of(mistake, &found), row, "{}", found.failure);
        // A mistake must be seen by what it does to a caller, and not by a crash of the simulator.
        assert!(
            !matches!(found.failure.kind, FailureKind::Panicked(_)),
            "{name}: {}",
            found.failure
        );
    }
}
