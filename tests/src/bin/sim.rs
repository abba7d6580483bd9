//! Runs workloads in the deterministic simulator, one run per seed.
//!
//! ```text
//! sim --seed 7                      one run, its configuration first
//! sim --seeds 0..200                many runs, one line each
//! sim                               the seeds that failed once, from tests/seeds.txt
//! sim --seed 7 --trace out.txt      one run with its timeline
//! sim --seed 7 --shrink             a failing run with as few faults as still fail
//! sim --seeds 0..200 --mutate NAME  the same with a mistake built in, which must be found
//! sim --mutate list                 which mistakes there are
//! sim --mutate all                  which run finds each of them, and by which rule
//! ```
//!
//! Ends with 0 if every run was well, with 1 if one was not, with 2 if the call makes no sense.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use clap::Parser;
use tikv_io_mock::sim::{Failure, Fault, Faults, Marks, Plan, Report};
use tikv_io_mock::workload::Workload;
use tikv_tests::mutations::{Mistake, Row, SEEDS};
use tikv_tests::seeds::{self, KnownSeed};

/// Runs workloads in the deterministic simulator.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// One seed; prints what it draws before it runs.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Many seeds, `A..B` without B.
    #[arg(long, value_parser = range)]
    seeds: Option<Range<u64>>,
    /// append, bank, mixed, register, scans or skew.
    #[arg(long, default_value_t = Workload::Bank)]
    workload: Workload,
    /// Allow only these faults, by name, separated by commas.
    #[arg(long, value_parser = faults)]
    faults: Option<Faults>,
    /// Build in a mistake; `list` names them, `all` finds each.
    #[arg(long)]
    mutate: Option<String>,
    /// Write the timeline of the run here. For one seed.
    #[arg(long, requires = "seed")]
    trace: Option<PathBuf>,
    /// Search a failing run for the fewest faults that still make it fail. For one seed.
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// How many runs at a time; each is one thread.
    #[arg(long)]
    jobs: Option<usize>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.mutate.as_deref() == Some("list") {
        Mistake::all().for_each(|mistake| println!("{mistake:<28} {}", mistake.what()));
        return ExitCode::SUCCESS;
    }
    // A run that panics is reported with its seed; the panic itself need not shout.
    std::panic::set_hook(Box::new(|_| {}));
    if options.mutate.as_deref() == Some("all") {
        return all_mistakes(&options);
    }
    let mistake = match options
        .mutate
        .as_deref()
        .map(str::parse::<Mistake>)
        .transpose()
    {
        Ok(mistake) => mistake,
        Err(error) => return usage(&error),
    };
    match (options.seed, &options.seeds) {
        (Some(seed), _) => one(&options, mistake, seed),
        (None, Some(seeds)) => {
            let runs = seeds.clone().map(|seed| (seed, options.workload)).collect();
            many(&options, mistake, runs)
        }
        (None, None) => match seeds::known() {
            Ok(known) => {
                let runs = known
                    .iter()
                    .map(|KnownSeed { seed, workload, .. }| (*seed, *workload));
                many(&options, mistake, runs.collect())
            }
            Err(error) => usage(&error),
        },
    }
}

/// Finds every mistake, and tells which run did and by which rule, as rows of a table.
fn all_mistakes(options: &Options) -> ExitCode {
    let seeds = options.seeds.clone().unwrap_or(SEEDS);
    let mut missed = 0;
    for mistake in Mistake::all() {
        match mistake.search(seeds.clone()) {
            Some(found) => println!("{}", Row::of(mistake, &found)),
            None => {
                missed += 1;
                println!("| `{mistake}` | {} | not found | | |", mistake.what());
            }
        }
    }
    if missed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn usage(error: &str) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(2)
}

/// One run of one seed, on this thread.
fn run(
    options: &Options,
    mistake: Option<Mistake>,
    (seed, workload): (u64, Workload),
    timeline: Option<Box<dyn Write + Send>>,
) -> Result<Report, Box<Failure>> {
    let faults = options.faults.unwrap_or_else(Faults::all);
    Mistake::with(mistake, || workload.run(seed, faults, timeline))
}

fn one(options: &Options, mistake: Option<Mistake>, seed: u64) -> ExitCode {
    let faults = options.faults.unwrap_or_else(Faults::all);
    println!(
        "seed {seed} {}\n{}",
        options.workload,
        Plan::of(seed, faults)
    );
    let timeline: Option<Box<dyn Write + Send>> = match &options.trace {
        None => None,
        Some(path) => match File::create(path) {
            Ok(file) => Some(Box::new(BufWriter::new(file))),
            Err(error) => return usage(&format!("{}: {error}", path.display())),
        },
    };
    match run(options, mistake, (seed, options.workload), timeline) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}{}", extra(options));
            if options.shrink {
                shrink(options, mistake, seed);
            }
            ExitCode::FAILURE
        }
    }
}

/// What else the command to replay a failure needs.
fn extra(options: &Options) -> String {
    let mut extra = String::new();
    if let Some(mutate) = &options.mutate {
        extra.push_str(&format!(" --mutate {mutate}"));
    }
    if let Some(faults) = options.faults {
        extra.push_str(&format!(" --faults {}", names(faults)));
    }
    extra
}

/// Switches off one fault after the other as long as the run still fails.
fn shrink(options: &Options, mistake: Option<Mistake>, seed: u64) {
    let fails = |faults: Faults| {
        let options = Options {
            faults: Some(faults),
            ..options.clone()
        };
        run(&options, mistake, (seed, options.workload), None).is_err()
    };
    let allowed = options.faults.unwrap_or_else(Faults::all);
    let mut left = Plan::of(seed, allowed).faults.faults();
    loop {
        let fewer = left
            .iter()
            .map(|fault| left.without(fault))
            .find(|&fewer| fails(fewer));
        match fewer {
            Some(fewer) => left = fewer,
            None => break,
        }
    }
    println!(
        "  shrunk to {} faults: --faults {}",
        left.iter().count(),
        names(left)
    );
}

/// Many runs, several at a time, told in the order of their seeds.
fn many(options: &Options, mistake: Option<Mistake>, runs: Vec<(u64, Workload)>) -> ExitCode {
    let jobs = options
        .jobs
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get));
    let started = Instant::now();
    let mut sum = Sum::default();
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..jobs {
            let (sender, runs, next, stop) = (sender.clone(), &runs, &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&what) = runs.get(index) else { return };
                    let result = run(options, mistake, what, None);
                    if sender.send((index, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let (mut early, mut told) = (BTreeMap::new(), 0);
        for (index, result) in receiver {
            early.insert(index, result);
            while let Some(result) = early.remove(&told) {
                told += 1;
                sum.tell(result, &extra(options));
            }
            if sum.failed > 0 && !options.keep_going {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    sum.conclude(started, runs.len());
    if sum.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

#[derive(Default)]
struct Sum {
    ok: usize,
    failed: usize,
    rpcs: u64,
    marks: Marks,
}

impl Sum {
    fn tell(&mut self, result: Result<Report, Box<Failure>>, extra: &str) {
        let report = match &result {
            Ok(report) => {
                self.ok += 1;
                println!("{report}");
                report
            }
            Err(failure) => {
                self.failed += 1;
                println!("{failure}{extra}");
                &failure.report
            }
        };
        self.rpcs += report.stats.rpcs;
        self.marks = self.marks.union(report.marks);
    }

    fn conclude(&self, started: Instant, runs: usize) {
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{} of {runs} ok, {} failed, {:.1} s, {:.0} requests/s",
            self.ok,
            self.failed,
            seconds,
            self.rpcs as f64 / seconds
        );
        let missing: Vec<&str> = self.marks.missing().map(|mark| mark.name()).collect();
        if !missing.is_empty() {
            println!("never reached: {}", missing.join(", "));
        }
    }
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (first, last) = text.split_once("..").ok_or("a range is written A..B")?;
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|error| format!("{text}: {error}"))
    };
    Ok(number(first)?..number(last)?)
}

fn faults(text: &str) -> Result<Faults, String> {
    text.split(',')
        .filter(|name| !name.is_empty() && *name != "none")
        .try_fold(Faults::none(), |faults, name| {
            let fault = Fault::ALL.iter().find(|fault| in_one_word(**fault) == name);
            fault
                .map(|&fault| faults.with(fault))
                .ok_or(format!("no fault is called {name:?}"))
        })
}

fn names(faults: Faults) -> String {
    let names: Vec<String> = faults.iter().map(in_one_word).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(",")
    }
}

fn in_one_word(fault: Fault) -> String {
    fault.name().replace(' ', "-")
}
