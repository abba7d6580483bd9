//! Replays recorded answers of a real TiKV against the simulated cluster.
//!
//! ```text
//! golden hand.jsonl.gz random.jsonl.gz    how many scenarios are equal, and what differs
//! golden hand.jsonl.gz --name check       those whose names contain this
//! ```
//!
//! Ends with 0 if everything is equal, with 1 if something differs, with 2 if the call makes no
//! sense.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tikv_io_mock::cluster::Config;
use tikv_tests::golden::replay::Replayer;
use tikv_tests::golden::scenario;

/// Replays recorded answers of a real TiKV against the simulated cluster.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Recordings, `.jsonl` or `.jsonl.gz`.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Only scenarios whose names contain this.
    #[arg(long)]
    name: Option<String>,
    /// Pessimistic locks go to the data at once, as if the leader had no memory for them.
    #[arg(long)]
    stored_pessimistic_locks: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Replays all files; whether everything is equal.
fn run(options: &Options) -> Result<bool, String> {
    let replayer = Replayer::new(Config {
        in_memory_pessimistic_locks: !options.stored_pessimistic_locks,
        ..Config::default()
    })?;
    let (mut equal, mut all) = (0, 0);
    for path in &options.files {
        let (mut equal_here, mut all_here) = (0, 0);
        for scenario in scenario::read(path)? {
            let wanted = options.name.as_ref();
            if wanted.is_some_and(|name| !scenario.name.contains(name)) {
                continue;
            }
            all_here += 1;
            match replayer.first_difference(&scenario)? {
                None => equal_here += 1,
                Some(difference) => println!("{}: {difference}", scenario.name),
            }
        }
        println!("{}: equal {equal_here} of {all_here}", path.display());
        equal += equal_here;
        all += all_here;
    }
    println!("equal {equal} of {all}");
    Ok(equal == all)
}
