//! The book and the README hold together: links lead somewhere, included code is there, tables
//! name what the code has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The README's example, compiled.
#[allow(dead_code)]
#[path = "data/readme.rs"]
mod readme;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The pages of the book, by path from the root.
fn pages() -> Vec<(String, String)> {
    let folder = root().join("docs/src");
    let names = fs::read_dir(folder).expect("docs/src is there");
    let names = names
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    names.sort();
    names
        .into_iter()
        .map(|name| (name.clone(), read(&format!("docs/src/{name}"))))
        .collect()
}

/// What stands between `](` and `)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(link, _)| link))
}

/// The names of headings as links know them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let letter = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    headings
        .map(|heading| heading.trim().chars().filter_map(letter).collect())
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    let mut texts = vec![("README.md".to_owned(), read("README.md"), root())];
    texts.extend(
        pages()
            .into_iter()
            .map(|(name, text)| (name, text, root().join("docs/src"))),
    );
    for (name, text, folder) in &texts {
        for link in links(text).filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                text.clone()
            } else {
                match fs::read_to_string(folder.join(path)) {
                    Ok(target) => target,
                    Err(_) if folder.join(path).is_dir() => String::new(),
                    Err(error) => {
                        broken.push(format!("{name}: {link}: {error}"));
                        continue;
                    }
                }
            };
            if !anchor.is_empty() && !anchors(&target).contains(anchor) {
                broken.push(format!("{name}: {link}: no such heading"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_page_is_in_the_summary() {
    let summary = read("docs/src/SUMMARY.md");
    let listed: BTreeSet<&str> = links(&summary).collect();
    let missing: Vec<String> = pages()
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name != "SUMMARY.md" && !listed.contains(name.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "add to docs/src/SUMMARY.md: {missing:?}"
    );
}

#[test]
fn included_code_is_there() {
    let mut count = 0;
    for (name, text) in pages() {
        for include in text.split("{{#include ").skip(1) {
            let (target, _) = include.split_once("}}").expect("an include ends");
            let (path, anchor) = target.rsplit_once(':').expect("an include names a part");
            let code = read(&format!("docs/src/{path}"));
            for mark in ["ANCHOR", "ANCHOR_END"] {
                let mark = format!("// {mark}: {anchor}\n");
                assert!(code.contains(&mark), "{name}: {path} has no {mark:?}");
            }
            count += 1;
        }
    }
    assert!(count > 3, "the book includes tested code");
}

/// The names that stand between `start` and a line that ends it, by what comes before `:` or an
/// opening of fields.
fn public_fields(source: &str, start: &str) -> Vec<String> {
    let (_, body) = source
        .split_once(start)
        .unwrap_or_else(|| panic!("no {start:?}"));
    body.lines()
        .take_while(|line| *line != "}")
        .filter_map(|line| line.trim().strip_prefix("pub "))
        .filter_map(|field| field.split_once(':').map(|(name, _)| name.to_owned()))
        .collect()
}

#[test]
fn every_option_is_in_the_table() {
    let page = read("docs/src/configuration.md");
    for (path, start) in [
        ("core/src/config.rs", "pub struct Config {"),
        ("io-tokio/src/config.rs", "pub struct IoConfig {"),
    ] {
        let fields = public_fields(&read(path), start);
        assert!(fields.len() > 5, "{path}: {fields:?}");
        for field in fields {
            assert!(
                page.contains(&format!("| `{field}` |")),
                "docs/src/configuration.md has no row for `{field}` of {path}"
            );
        }
    }
}

#[test]
fn every_error_is_in_the_table() {
    let page = read("docs/src/errors.md");
    let source = read("core/src/error.rs");
    let (_, body) = source
        .split_once("pub enum Error {")
        .expect("there is an error type");
    let variants = body
        .lines()
        .take_while(|line| *line != "}")
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .map(|line| {
            line.split(|c: char| !c.is_alphanumeric())
                .next()
                .unwrap_or_default()
        });
    let mut count = 0;
    for variant in variants {
        assert!(
            page.contains(&format!("`{variant}`")),
            "docs/src/errors.md lacks `{variant}`"
        );
        count += 1;
    }
    assert!(count > 10, "only {count} variants were found");
}

#[test]
fn the_readme_begins_with_the_two_commands() {
    let readme = read("README.md");
    let top: Vec<&str> = readme.lines().take(20).collect();
    for command in [
        "cargo run --release --example bank",
        "cargo test --workspace",
    ] {
        assert!(
            top.iter().any(|line| line.starts_with(command)),
            "not at the top: {command}"
        );
    }
    let (_, example) = readme.split_once("```rust\n").expect("there is an example");
    let (example, _) = example.split_once("```").expect("the example ends");
    let compiled = read("tests/tests/data/readme.rs");
    let (_, compiled) = compiled.split_once("\n\n").expect("a comment comes first");
    assert_eq!(
        example, compiled,
        "README.md and tests/tests/data/readme.rs must say the same"
    );
}

#[test]
fn every_verb_and_flag_of_the_simulated_cluster_is_in_its_chapter() {
    let chapter = read("docs/src/cluster.md");
    let verbs = read("io-mock/src/control/verb.rs");
    let flags = read("io-mock/src/bin/tikv-mock.rs");
    let body = |text: &str, begin: &str| {
        let (_, rest) = text.split_once(begin).expect("it has not been renamed");
        rest.split("\n}").next().unwrap_or_default().to_owned()
    };
    let (verbs, flags) = (
        body(&verbs, "pub enum Verb {"),
        body(&flags, "struct Args {"),
    );
    let mut names = Vec::new();
    for line in verbs.lines() {
        let variant = line.strip_prefix("    ").and_then(|l| l.split(" {").next());
        let variant = variant.filter(|name| name.starts_with(|c: char| c.is_ascii_uppercase()));
        if let Some(variant) = variant {
            let snake: String = variant
                .char_indices()
                .flat_map(|(at, c)| {
                    let gap = (at > 0 && c.is_ascii_uppercase()).then_some('_');
                    gap.into_iter().chain([c.to_ascii_lowercase()])
                })
                .collect();
            names.push(format!("`{snake}`"));
        }
    }
    assert!(names.len() > 20, "{names:?}");
    for line in flags.lines() {
        let field = line.strip_prefix("    ").and_then(|l| l.split_once(": "));
        let field =
            field.filter(|(name, _)| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        if let Some((name, _)) = field {
            names.push(format!("`--{}", name.replace('_', "-")));
        }
    }
    let missing: Vec<_> = names
        .iter()
        .filter(|name| !chapter.contains(*name))
        .collect();
    assert!(missing.is_empty(), "docs/src/cluster.md lacks {missing:?}");
}
