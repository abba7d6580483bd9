//! Whole runs in the simulator: every workload over many seeds with every fault on, the states
//! that such a set must have reached, and the proof that the checks find real mistakes.

use std::ops::Range;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tikv_io_mock::sim::{self, Bounds, Failure, FailureKind, Mark, Marks, Report};
use tikv_io_mock::workload::Workload;
use tikv_tests::mutations::{self, Mistake, Row};

/// Enough to reach every state that is not rare.
const SEEDS: Range<u64> = 0..200;

fn run(workload: Workload, seed: u64) -> Result<Report, Box<Failure>> {
    workload.run(seed, &Bounds::default())
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
fn every_state_is_reached_under_every_fault() {
    let run_all = |workload, seeds| {
        run_all(workload, seeds).unwrap_or_else(|failure| panic!("{workload}: {failure}"))
    };
    let marks = run_all(Workload::Bank, SEEDS);
    // Only who locks before the commit waits for locks.
    let marks = marks.union(run_all(Workload::Queues, 0..50));
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
fn one_seed_is_one_run_in_every_process() {
    let run = || {
        let sim = Command::new(env!("CARGO_BIN_EXE_sim"))
            .args(["--seeds", "0..10", "--workload", "mixed", "--jobs", "1"])
            .output()
            .expect("the simulator can be run");
        let told = String::from_utf8_lossy(&sim.stdout).into_owned();
        // The last line says how long it took.
        let seeds = told.lines().filter(|line| line.starts_with("seed "));
        seeds.map(str::to_owned).collect::<Vec<String>>()
    };
    let seeds = run();
    assert_eq!(seeds.len(), 10);
    assert_eq!(seeds, run());
}

/// What the book says of a mistake.
fn row(name: &str) -> Row {
    let rows = mutations::table().expect("the table can be read");
    let row = rows.into_iter().find(|row| row.name == name);
    row.unwrap_or_else(|| panic!("{name} is not in the table"))
}

#[test]
fn a_failing_run_is_made_smaller() {
    let name = "repeat-swaps";
    let Some(mistake) = Mistake::all().find(|mistake| mistake.name() == name) else {
        return;
    };
    let Row { workload, seed, .. } = row(name);
    let try_run =
        |bounds: &Bounds| Mistake::with(Some(mistake), || workload.run(seed, bounds)).err();
    let failure = try_run(&Bounds::default()).expect("the mistake is found");
    let struck = failure.strikes.len();
    let shrunk = sim::shrink(Bounds::default(), failure, try_run);
    let small = &shrunk.failure;
    assert!(
        small.strikes.len() <= 5 && small.strikes.len() < struck,
        "{small}"
    );
    assert!(small.report.stats.rpcs < 1_000, "{small}");
    let replayed = try_run(&shrunk.bounds).expect("it still fails");
    assert_eq!(replayed.to_string(), small.to_string());
    assert!(replayed.to_string().contains(&shrunk.bounds.to_string()));
}

#[test]
fn every_mistake_is_found_by_the_run_that_the_book_names() {
    for mistake in Mistake::all() {
        let name = mistake.name();
        let row = row(name);
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
