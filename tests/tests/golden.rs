//! The simulated cluster answers as a real TiKV did, in the recordings that are kept here.
//!
//! They are a selection from larger ones. Each scenario of `hand` is a
//! state of a key crossed with a command, as its name says, or a special one. From these were taken
//! all special ones, and of the others the fewest that show every state, every command, and every
//! form of answer that each command was given in any state. A form is the answer with its numbers,
//! keys and values made alike. `random` holds random histories of a few transactions on three keys,
//! the fewest that show every form of answer of every method. `raw-v1` and `raw-v2` are random
//! histories of raw requests, in both forms of storage, and complete.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tikv_io_mock::cluster::Config;
use tikv_tests::golden::replay::Replayer;
use tikv_tests::golden::scenario::{self, Scenario, Step};

fn recording(name: &str) -> Vec<Scenario> {
    let file: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "tests",
        "data",
        "golden",
        &format!("{name}.jsonl.gz"),
    ]
    .iter()
    .collect();
    scenario::read(Path::new(&file)).expect("a recording")
}

fn replayer() -> Replayer {
    Replayer::new(Config::default()).expect("descriptors")
}

fn must_be_equal(name: &str) {
    let replayer = replayer();
    let mut different = Vec::new();
    for scenario in recording(name) {
        let difference = replayer.first_difference(&scenario);
        if let Some(difference) = difference.expect("requests and answers") {
            different.push(format!("{}: {difference}", scenario.name));
        }
    }
    let (count, all) = (different.len(), different.join("\n"));
    assert_eq!(count, 0, "{all}");
}

#[test]
fn states_and_commands() {
    must_be_equal("hand");
}

#[test]
fn random_histories() {
    must_be_equal("random");
}

#[test]
fn raw_histories() {
    must_be_equal("raw-v1");
    must_be_equal("raw-v2");
}

#[test]
fn the_selection_has_every_state_command_and_special_scenario() {
    let scenarios = recording("hand");
    let names = scenarios.iter().map(|scenario| scenario.name.as_str());
    let (mut states, mut commands, mut specials) = (BTreeSet::new(), BTreeSet::new(), 0);
    for name in names {
        match name.split_once('+') {
            Some((state, command)) => {
                states.insert(state);
                commands.insert(command);
            }
            None => specials += 1,
        }
    }
    assert_eq!((states.len(), commands.len(), specials), (51, 137, 10));
}

#[test]
fn a_wrong_answer_is_noticed_at_its_step() {
    let replayer = replayer();
    let mut scenario = recording("raw-v1").swap_remove(0);
    let reads = |step: &Step| matches!(step, Step::Call(asked, _) if asked.rpc == "RawGet");
    let step = scenario.steps.iter().position(reads).expect("a read");
    if let Step::Call(_, answer) = &mut scenario.steps[step] {
        // The answer's last field, the absence of a value, becomes its opposite.
        *answer = if answer.is_empty() {
            vec![0x28, 1]
        } else {
            Vec::new()
        };
    }
    let difference = replayer.first_difference(&scenario);
    let difference = difference.expect("requests and answers");
    assert_eq!(difference.map(|difference| difference.step), Some(step));
}
