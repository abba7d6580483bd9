//! Runs workloads in the deterministic simulator, one run per seed.
//!
//! ```text
//! sim --seed 7                      one run, its configuration first
//! sim --seeds 0..200                many runs, one line each
//! sim                               the seeds that failed once, from tests/seeds.txt
//! sim --seed 7 --trace out.txt      one run with all that happens, line by line
//! sim --seed 7 --timeline out.html  one run as a drawing
//! sim --seeds 0..200 --mutate NAME  the same with a mistake built in, which must be found
//! sim --mutate list                 which mistakes there are
//! sim --mutate all                  which run finds each of them, and by which rule
//! ```
//!
//! The first run that fails is made smaller: fewer faults, clients, operations, and in the end only the
//! single strikes of faults that it takes to fail. The command that repeats the smaller run is printed.
//!
//! Ends with 0 if every run was well, with 1 if one was not, with 2 if the call makes no sense.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufWriter;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use clap::Parser;
use tikv_io_mock::sim::{self, Bounds, Failure, Faults, Marks, Report, Strike};
use tikv_io_mock::workload::Workload;
use tikv_tests::mutations::{Mistake, Row, SEEDS};
use tikv_tests::seeds;

/// Runs workloads in the deterministic simulator.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// One seed; prints what it draws before it runs.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Many seeds, `A..B` without B.
    #[arg(long, value_parser = range)]
    seeds: Option<Range<u64>>,
    /// append, bank, bulk, mixed, queues, register, scans or skew.
    #[arg(long, default_value_t = Workload::Bank)]
    workload: Workload,
    /// Allow only these faults, by name, separated by commas.
    #[arg(long)]
    faults: Option<Faults>,
    /// Build in a mistake; `list` names them, `all` finds each.
    #[arg(long)]
    mutate: Option<String>,
    /// No more clients than this.
    #[arg(long)]
    clients: Option<u32>,
    /// No more operations of each client than this.
    #[arg(long)]
    operations: Option<u64>,
    /// Only these strikes of faults, as FAULT:NUMBER, separated by commas.
    #[arg(long, value_parser = strikes)]
    strikes: Option<Strikes>,
    /// Write everything that happens here, line by line. For one seed.
    #[arg(long, requires = "seed")]
    trace: Option<PathBuf>,
    /// Draw the run here, as an HTML page. For one seed.
    #[arg(long, requires = "seed")]
    timeline: Option<PathBuf>,
    /// Leave a failing run as large as it is.
    #[arg(long)]
    no_shrink: bool,
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
            let run = |seed| Run {
                seed,
                workload: options.workload,
                bounds: options.bounds(),
            };
            many(&options, mistake, seeds.clone().map(run).collect())
        }
        (None, None) => match seeds::known() {
            Ok(known) => {
                let runs = known.iter().map(|known| Run {
                    seed: known.seed,
                    workload: known.workload,
                    bounds: Bounds::faults(options.faults.unwrap_or(known.faults)),
                });
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

impl Options {
    fn bounds(&self) -> Bounds {
        Bounds {
            faults: self.faults.unwrap_or_else(Faults::all),
            clients: self.clients,
            operations: self.operations,
            strikes: self.strikes.clone().map(|Strikes(strikes)| strikes),
        }
    }
}

/// One run to be made.
#[derive(Clone, Debug)]
struct Run {
    seed: u64,
    workload: Workload,
    bounds: Bounds,
}

impl Run {
    /// Makes it in these bounds, on this thread.
    fn within(&self, mistake: Option<Mistake>, bounds: &Bounds) -> Result<Report, Box<Failure>> {
        Mistake::with(mistake, || self.workload.run(self.seed, bounds))
    }
}

fn one(options: &Options, mistake: Option<Mistake>, seed: u64) -> ExitCode {
    let (workload, bounds) = (options.workload, options.bounds());
    println!("seed {seed} {workload}\n{}", bounds.plan(seed));
    let mut simulation = workload.simulation(seed, &bounds);
    for (path, is_drawing) in [(&options.trace, false), (&options.timeline, true)] {
        let Some(path) = path else { continue };
        let file = match File::create(path) {
            Ok(file) => BufWriter::new(file),
            Err(error) => return usage(&format!("{}: {error}", path.display())),
        };
        simulation = match is_drawing {
            true => simulation.drawing(file),
            false => simulation.timeline(file),
        };
    }
    match Mistake::with(mistake, || workload.try_run(simulation)) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}{}", extra(options));
            let run = Run {
                seed,
                workload,
                bounds,
            };
            make_smaller(options, mistake, &run, failure);
            ExitCode::FAILURE
        }
    }
}

/// What else the command to replay a failure needs.
fn extra(options: &Options) -> String {
    let mutate = options.mutate.as_ref();
    mutate.map_or(String::new(), |name| format!(" --mutate {name}"))
}

/// Makes a failing run smaller and prints it, unless it is not to be.
fn make_smaller(options: &Options, mistake: Option<Mistake>, run: &Run, failure: Box<Failure>) {
    if options.no_shrink || run.bounds.strikes.is_some() {
        return;
    }
    let shrunk = sim::shrink(run.bounds.clone(), failure, |bounds| {
        run.within(mistake, bounds).err()
    });
    println!(
        "shrunk in {} runs to {} strikes:\n{}{}",
        shrunk.runs,
        shrunk.failure.strikes.len(),
        shrunk.failure,
        extra(options)
    );
}

/// Many runs, several at a time, told in the order of their seeds.
fn many(options: &Options, mistake: Option<Mistake>, runs: Vec<Run>) -> ExitCode {
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
                    let Some(run) = runs.get(index) else { return };
                    let result = run.within(mistake, &run.bounds);
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
                sum.tell(told, result, &extra(options));
                told += 1;
            }
            if sum.failed > 0 && !options.keep_going {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    if let Some((index, failure)) = sum.first_failed.take() {
        make_smaller(options, mistake, &runs[index], failure);
    }
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
    first_failed: Option<(usize, Box<Failure>)>,
}

impl Sum {
    fn tell(&mut self, index: usize, result: Result<Report, Box<Failure>>, extra: &str) {
        let (rpcs, marks) = match result {
            Ok(report) => {
                self.ok += 1;
                println!("{report}");
                (report.stats.rpcs, report.marks)
            }
            Err(failure) => {
                self.failed += 1;
                println!("{failure}{extra}");
                let told = (failure.report.stats.rpcs, failure.report.marks);
                self.first_failed.get_or_insert((index, failure));
                told
            }
        };
        self.rpcs += rpcs;
        self.marks = self.marks.union(marks);
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

/// Strikes of faults.
#[derive(Clone, Debug)]
struct Strikes(BTreeSet<Strike>);

fn strikes(text: &str) -> Result<Strikes, String> {
    let names = text
        .split(',')
        .filter(|name| !name.is_empty() && *name != "none");
    let strikes: Result<BTreeSet<Strike>, String> = names.map(str::parse).collect();
    strikes.map(Strikes)
}
