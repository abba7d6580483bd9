//! House rules that a compiler cannot see. Each says, when it is broken, where and what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A source file of the workspace.
struct Source {
    /// From the root of the workspace, with slashes.
    path: String,
    text: String,
}

impl Source {
    /// Whether it holds tests and nothing else.
    fn is_test(&self) -> bool {
        let in_src = self.path.split("/src/").nth(1);
        match in_src {
            Some(rest) => rest
                .split('/')
                .any(|part| part == "tests" || part == "tests.rs"),
            None => true,
        }
    }

    /// The numbered lines before the tests, which stand at the end of a file.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.text.find("\n#[cfg(test)]\nmod ").filter(|start| {
            self.text[*start..]
                .lines()
                .nth(2)
                .is_some_and(|l| l.ends_with('{'))
        });
        let code = &self.text[..tests.unwrap_or(self.text.len())];
        code.lines()
            .enumerate()
            .map(|(number, line)| (number + 1, line))
    }

    /// The lines of code without comments and without what stands between quotes.
    fn bare_code(&self) -> impl Iterator<Item = (usize, String)> {
        self.code().map(|(number, line)| {
            let line = line.split("//").next().unwrap_or_default();
            let outside: String = line.split('"').step_by(2).collect();
            (number, outside)
        })
    }
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Every file under these folders whose name ends so.
fn files(folders: &[&str], endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" && name != "corpus" && name != "artifacts" {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending))
                && let Ok(text) = fs::read_to_string(&path)
            {
                let path = path.strip_prefix(root()).unwrap_or(&path);
                let path = path.to_string_lossy().replace('\\', "/");
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(
        !found.is_empty(),
        "no file was found; has a folder been renamed?"
    );
    found
}

fn rust(folders: &[&str]) -> Vec<Source> {
    files(folders, &[".rs"])
}

const CRATES: [&str; 6] = ["proto", "core", "io-mock", "io-tokio", "tests", "fuzz"];

/// Fails with all that was found, not only the first.
fn none(broken: Vec<String>, what_to_do: &str) {
    assert!(
        broken.is_empty(),
        "\n{}\n\n{what_to_do}\n",
        broken.join("\n")
    );
}

/// What a program could do or learn besides what it is told.
const IMPURE: [(&str, &str); 20] = [
    ("std::net", "a socket"),
    ("std::fs", "a file"),
    ("std::thread", "a thread"),
    ("std::process", "a process"),
    ("std::env", "the environment"),
    ("std::os", "the system"),
    ("Instant::now", "a clock"),
    ("SystemTime", "a clock"),
    ("UNIX_EPOCH", "a clock"),
    (".elapsed()", "a clock"),
    ("println!", "the standard output"),
    ("print!", "the standard output"),
    ("dbg!", "the standard error"),
    ("RandomState", "a random hasher"),
    ("DefaultHasher", "a hasher that may change"),
    ("getrandom", "the system's randomness"),
    ("rand::", "unseeded chance"),
    ("std::sync::mpsc", "a channel between threads"),
    ("Condvar", "a thread that waits"),
    ("thread::sleep", "a thread that waits"),
];

fn impurities(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        for (number, line) in source.bare_code() {
            for (token, what) in IMPURE {
                if line.contains(token) {
                    broken.push(format!("{}:{number}: {token} reaches {what}", source.path));
                }
            }
            let is_map = ["HashMap<", "HashSet<"]
                .iter()
                .any(|map| line.contains(map));
            if is_map && !line.contains("FixedState") {
                broken.push(format!(
                    "{}:{number}: a map without `FixedState`",
                    source.path
                ));
            }
        }
        let text: String = source.bare_code().map(|(_, line)| line).collect();
        for used in text.split("std::collections::").skip(1) {
            let used = used.split(';').next().unwrap_or_default();
            if used.contains("HashMap") || used.contains("HashSet") {
                broken.push(format!("{}: the standard library's hash map", source.path));
            }
        }
    }
    broken
}

#[test]
fn the_core_is_pure() {
    none(
        impurities(&rust(&["core/src"])),
        "The core performs no I/O, reads no clock and draws no unseeded chance. What it needs it \
         asks its driver for (`Io`), or is handed; maps are ordered or have a fixed hasher.",
    );
}

#[test]
fn the_simulator_is_deterministic() {
    let parts = ["sim", "cluster", "check", "workload"].map(|part| format!("io-mock/src/{part}"));
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    none(
        impurities(&rust(&parts)),
        "One seed must be one run: time comes from the simulation, chance from one of its streams, \
         and maps are ordered.",
    );
}

#[test]
fn no_runtime_is_under_the_core() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = Command::new(cargo)
        .args([
            "tree",
            "--offline",
            "-p",
            "tikv-core",
            "-e",
            "normal",
            "--prefix",
            "none",
        ])
        .current_dir(root())
        .output()
        .expect("cargo can be run");
    let errors = String::from_utf8_lossy(&tree.stderr);
    assert!(tree.status.success(), "cargo tree failed: {errors}");
    let forbidden = [
        "async-executor",
        "async-io",
        "async-std",
        "chrono",
        "getrandom",
        "h2",
        "hyper",
        "libc",
        "log",
        "mio",
        "parking_lot",
        "rand",
        "rustls",
        "smol",
        "socket2",
        "time",
        "tokio",
        "tonic",
        "tower",
        "tracing",
    ];
    let names: Vec<String> = String::from_utf8_lossy(&tree.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    assert!(
        names.iter().any(|name| name == "prost"),
        "is this a tree? {names:?}"
    );
    let broken = names
        .into_iter()
        .filter(|name| forbidden.contains(&name.as_str()))
        .map(|name| format!("tikv-core depends on {name}"))
        .collect();
    none(
        broken,
        "The core has no runtime, no I/O and no system randomness under it. `cargo tree -p \
         tikv-core -e normal -i NAME` says who brings it.",
    );
}

#[test]
fn a_region_error_cannot_go_unjudged() {
    let path = "core/src/region/verdict.rs";
    let text = fs::read_to_string(root().join(path)).expect("the verdicts on region errors");
    assert!(
        text.contains("deny(clippy::wildcard_enum_match_arm)"),
        "{path}: the match over region errors must deny wildcards, so that an error of a newer \
         TiKV is judged and does not fall into `_`",
    );
}

#[test]
fn every_file_says_what_it_is() {
    let broken = rust(&CRATES)
        .into_iter()
        .filter(|source| !source.path.contains("/src/") || !source.is_test())
        .filter(|source| !source.text.starts_with("//!"))
        .map(|source| source.path)
        .collect();
    none(
        broken,
        "A file's first lines say what it is, who calls it, and what is deliberately absent: begin \
         with `//!`.",
    );
}

const LINES_MAX: usize = 800;

#[test]
fn no_file_is_too_long() {
    let mut broken = Vec::new();
    for source in rust(&[
        "proto/src",
        "core/src",
        "io-mock/src",
        "io-tokio/src",
        "tests/src",
    ]) {
        if source.is_test() {
            continue;
        }
        let lines = source.code().count();
        if lines > LINES_MAX {
            broken.push(format!("{}: {lines} lines before its tests", source.path));
        }
    }
    none(
        broken,
        "A file is a room with one subject. Split it by subject; 800 lines are too many.",
    );
}

#[test]
fn nothing_is_left_unfinished_or_belongs_elsewhere() {
    let words = [
        ("TODO", "finish it, or open an issue"),
        ("FIXME", "mend it, or open an issue"),
        ("XXX", "say what is meant"),
        ("/home/", "a path of one machine"),
        ("/root/", "a path of one machine"),
        ("/Users/", "a path of one machine"),
        ("blazing", "say how fast, and which benchmark shows it"),
        ("obviously", "what is obvious need not be said"),
        ("leverage", "use"),
        ("utilize", "use"),
        ("seamless", "say what happens at the seam"),
    ];
    let endings = [".rs", ".md", ".toml", ".yml", ".proto", "justfile", "run"];
    let mut broken = Vec::new();
    for source in files(&["."], &endings) {
        let is_generated = source.path.ends_with("docs/src/client-go-tests.md");
        if source.path.ends_with("house_rules.rs") || is_generated {
            continue;
        }
        for (number, line) in source.text.lines().enumerate() {
            let whole_word = |word: &str| {
                line.match_indices(word).any(|(at, _)| {
                    let letter = |c: char| c.is_alphanumeric() || c == '_';
                    let before = line[..at].chars().next_back().is_some_and(letter);
                    let after = line[at + word.len()..].chars().next().is_some_and(letter);
                    !before && !after || word.starts_with('/')
                })
            };
            for (word, instead) in words {
                if whole_word(word) {
                    broken.push(format!("{}:{}: {word}: {instead}", source.path, number + 1));
                }
            }
        }
    }
    none(broken, "Exact words, nothing left over.");
}

#[test]
fn published_crates_say_what_they_are() {
    let mut broken = Vec::new();
    for manifest in files(&["proto", "core", "io-mock", "io-tokio"], &["Cargo.toml"]) {
        for field in ["description", "license", "rust-version"] {
            if !manifest.text.lines().any(|line| line.starts_with(field)) {
                broken.push(format!("{}: no {field}", manifest.path));
            }
        }
        if !manifest.text.contains("[lints]\nworkspace = true") {
            broken.push(format!(
                "{}: the workspace's lints are not switched on",
                manifest.path
            ));
        }
    }
    none(broken, "Complete the manifest.");
}
