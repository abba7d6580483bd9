//! Access paths, as client-go's `replica_selector_test.go` pins them, and what this selector does
//! differently.
//!
//! A line is one request: `what it is | errors, one per attempt | attempts | outcome`. Three
//! voters on stores 1 to 3, the leader on store 1, equals are taken in order. An attempt is a
//! store with `L` (plain), `R` (replica read) or `S` (stale read). A line that begins with `+`
//! goes on with the cluster of the line before.
//!
//! | request | |
//! |---|---|
//! | `read` `write` `follower` `mixed` `prefer` `learner` `stale` | a leader read, a prewrite, … |
//! | `T` | the caller limited the time |
//! | `@2` | stores labelled 2 are preferred |
//! | `thr` | replicas busy for more than 10 ms are avoided |
//! | `l2` | store 2 leads |
//! | `slow1` | store 1 is slow |
//! | `one` | a region of one replica |
//! | `leaderonly` | nobody else is asked |
//!
//! | error | |
//! |---|---|
//! | `N` `N3` | not leader, without and with a hint |
//! | `B` `W` | busy, without and with an estimate of 10 ms |
//! | `D` | no answer in time; the store does not answer a probe either |
//! | `D!` | no answer in time, but the store answers a probe |
//! | `X` `K` `F` `M` `I` `U` | data not ready, stale command, flashback, region not found, region not initialized, unknown |
//!
//! The outcome is `ok`, `fake` (nobody is left to ask) or what the caller gets, then the pauses,
//! then `x` if the region is invalid.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::BTreeMap;

use super::*;
use crate::region::{RegionData, Ttl};
use crate::store::StoreTable;
use tikv_proto::errorpb;

struct World {
    stores: StoreTable,
    region: Arc<Region>,
    /// The requests of one world draw from nothing; time stands still.
    now: Instant,
}

#[derive(Clone, Copy)]
enum Answer<'a> {
    Region(&'a str),
    Hint(u64),
    Silence { alive: bool },
}

impl World {
    fn new(words: &[&str]) -> Self {
        let now = Instant::from_millis(1_000);
        let voters = if words.contains(&"one") { 1 } else { 3 };
        let learners = u64::from(words.contains(&"learner"));
        let stores = StoreTable::new();
        let listed: Vec<metapb::Store> = (1..=4)
            .map(|id| metapb::Store {
                id,
                address: format!("store-{id}:20160"),
                labels: vec![metapb::StoreLabel {
                    key: "id".into(),
                    value: id.to_string(),
                }],
                ..Default::default()
            })
            .collect();
        stores.update(&listed);
        let peers: Vec<metapb::Peer> = (1..=voters + learners)
            .map(|id| metapb::Peer {
                id: id + 100,
                store_id: id,
                role: i32::from(id > voters),
                ..Default::default()
            })
            .collect();
        let leader = number_after(words, "l").unwrap_or(1) as usize;
        if let Some(slow) = number_after(words, "slow") {
            stores.get_or_add(slow).mark_slow(now);
        }
        let data = RegionData {
            leader: Some(peers[leader - 1]),
            meta: metapb::Region {
                id: 9,
                region_epoch: Some(Default::default()),
                peers,
                ..Default::default()
            },
            ..Default::default()
        };
        let region = Region::build(data, &stores, Ttl::new(7), now).unwrap();
        World {
            stores,
            region,
            now,
        }
    }

    fn run(&self, options: Options, errors: &str) -> (String, String) {
        let mut selector = Selector::new(self.region.clone(), options, 7);
        selector.ties = Ties::First;
        let mut errors = errors
            .split(',')
            .filter(|e| !e.is_empty())
            .map(parse_answer);
        let mut attempts = Vec::new();
        let mut pauses: BTreeMap<&str, u32> = BTreeMap::new();
        let mut pause = |kind: BackoffKind| *pauses.entry(short(kind)).or_default() += 1;
        let outcome = loop {
            let Some(target) = selector.next(self.now) else {
                if let Some(last) = selector.last_pause() {
                    pause(last.kind);
                }
                break "fake".to_owned();
            };
            assert!(!(target.stale_read && target.replica_read));
            if let Some(first) = &target.pause {
                pause(first.kind);
            }
            let how = match (target.replica_read, target.stale_read) {
                (true, _) => 'R',
                (_, true) => 'S',
                _ => 'L',
            };
            attempts.push(format!("{}{how}", target.store.id()));
            assert!(attempts.len() < 40, "never ends: {attempts:?}");
            let verdict = match errors.next() {
                None => {
                    selector.on_success();
                    break "ok".to_owned();
                }
                Some(Answer::Region(name)) => {
                    selector.on_region_error(&RegionError::classify(error(name)), self.now)
                }
                Some(Answer::Hint(store)) => {
                    let error = RegionError::NotLeader {
                        leader: Some(metapb::Peer {
                            id: store + 100,
                            store_id: store,
                            ..Default::default()
                        }),
                    };
                    selector.on_region_error(&error, self.now)
                }
                Some(Answer::Silence { alive }) => {
                    let error = TransportError::Deadline {
                        address: target.address.clone(),
                        sent: true,
                    };
                    let found = match alive {
                        true => Liveness::Reachable,
                        false => Liveness::Unreachable,
                    };
                    match selector.on_transport_error(&error, self.now) {
                        verdict if verdict.then == Then::Probe => {
                            selector.on_probed(found, self.now)
                        }
                        verdict => verdict,
                    }
                }
            };
            match verdict.then {
                Then::Retry | Then::Postpone(_) => {}
                Then::Backoff(kind) => pause(kind),
                Then::Relocate => break "returned".to_owned(),
                Then::Fail => break "failed".to_owned(),
                Then::Probe | Then::Undetermined | Then::Close => {
                    break format!("{:?}", verdict.then);
                }
            }
        };
        let pauses = pauses
            .iter()
            .map(|(kind, count)| format!(" {kind}*{count}"));
        let mut outcome = outcome + &pauses.collect::<String>();
        if self.region.invalid_reason().is_some() {
            outcome += " x";
        }
        (attempts.join(" "), outcome)
    }
}

fn options(words: &[&str]) -> Options {
    let read_type = match words[0] {
        "read" | "write" => ReadType::Leader,
        "follower" => ReadType::Follower,
        "mixed" | "stale" => ReadType::Mixed,
        "prefer" => ReadType::PreferLeader,
        "learner" => ReadType::Learner,
        other => panic!("no request {other}"),
    };
    let labels = number_after(words, "@").map(|id| Label {
        key: "id".into(),
        value: id.to_string().into(),
    });
    Options {
        read_type,
        is_read: words[0] != "write",
        stale_read: words[0] == "stale",
        is_impatient: words.contains(&"T"),
        leader_only: words.contains(&"leaderonly"),
        labels: labels.into_iter().collect(),
        busy_threshold: Duration::from_millis(if words.contains(&"thr") { 10 } else { 0 }),
        ..Options::default()
    }
}

fn number_after(words: &[&str], prefix: &str) -> Option<u64> {
    let number = |word: &&str| word.strip_prefix(prefix)?.parse().ok();
    words.iter().find_map(number)
}

fn parse_answer(word: &str) -> Answer<'_> {
    match (word, word.strip_prefix('N').map(str::parse)) {
        ("D", _) => Answer::Silence { alive: false },
        ("D!", _) => Answer::Silence { alive: true },
        (_, Some(Ok(store))) => Answer::Hint(store),
        _ => Answer::Region(word),
    }
}

fn error(name: &str) -> errorpb::Error {
    let mut error = errorpb::Error::default();
    let busy = |estimated_wait_ms| errorpb::ServerIsBusy {
        estimated_wait_ms,
        ..Default::default()
    };
    match name {
        "N" => error.not_leader = Some(Default::default()),
        "B" => error.server_is_busy = Some(busy(0)),
        "W" => error.server_is_busy = Some(busy(10)),
        "X" => error.data_is_not_ready = Some(Default::default()),
        "K" => error.stale_command = Some(Default::default()),
        "F" => error.flashback_in_progress = Some(Default::default()),
        "M" => error.region_not_found = Some(Default::default()),
        "I" => error.region_not_initialized = Some(Default::default()),
        "U" => {}
        "MaxTs" => error.max_timestamp_not_synced = Some(Default::default()),
        "Merging" => error.proposal_in_merging_mode = Some(Default::default()),
        "ReadIndex" => error.read_index_not_ready = Some(Default::default()),
        "DiskFull" => error.disk_full = Some(Default::default()),
        "KeyNotInRegion" => error.key_not_in_region = Some(Default::default()),
        "EpochNotMatch" => error.epoch_not_match = Some(Default::default()),
        "StoreNotMatch" => error.store_not_match = Some(Default::default()),
        "RaftEntryTooLarge" => error.raft_entry_too_large = Some(Default::default()),
        "Recovery" => error.recovery_in_progress = Some(Default::default()),
        "FlashbackNotPrepared" => error.flashback_not_prepared = Some(Default::default()),
        "IsWitness" => error.is_witness = Some(Default::default()),
        "MismatchPeerId" => error.mismatch_peer_id = Some(Default::default()),
        "Buckets" => error.bucket_version_not_match = Some(Default::default()),
        other => panic!("no error {other}"),
    }
    error
}

fn short(kind: BackoffKind) -> &'static str {
    match kind {
        BackoffKind::RegionScheduling => "rs",
        BackoffKind::TikvServerBusy => "busy",
        BackoffKind::TikvRpc => "rpc",
        BackoffKind::RegionMiss => "miss",
        BackoffKind::RegionNotInitialized => "rni",
        BackoffKind::TikvDiskFull => "disk",
        other => other.name(),
    }
}

fn check(table: &str) {
    let mut world = None;
    let mut wrong = Vec::new();
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let [request, errors, attempts, outcome] = columns[..] else {
            panic!("not a line: {line}");
        };
        let (goes_on, request) = match request.strip_prefix('+') {
            Some(request) => (true, request),
            None => (false, request),
        };
        let words: Vec<&str> = request.split_whitespace().collect();
        if !goes_on {
            world = Some(World::new(&words));
        }
        let world = world.as_ref().unwrap();
        let got = world.run(options(&words), errors);
        if got != (attempts.to_owned(), outcome.to_owned()) {
            wrong.push(format!("{line}\n    got: {} | {}", got.0, got.1));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn leader_reads() {
    check(
        "
        read         |                       | 1L                               | ok
        read         | W,B                   | 1L 1L 1L                         | ok busy*2
        read         | B,B,B,B,B,B,B,B,B,B,B | 1L 1L 2L 3L 1L 1L 1L 1L 1L 1L 1L 1L | ok busy*11
        read         | N                     | 1L 2L                            | ok rs*1
        read         | N,N                   | 1L 2L 3L                         | ok rs*2
        read         | N,N,N                 | 1L 2L 3L                         | fake rs*3 x
        read         | N3                    | 1L 3L                            | ok
        read         | N3,B                  | 1L 3L 3L                         | ok busy*1
        read         | D                     | 1L 2L                            | ok rpc*1
        read         | D,N1,N1               | 1L 2L 3L                         | fake rpc*1 x
        read         | D,B,B                 | 1L 2L 3L                         | fake busy*1 rpc*1 x
        read T       | D                     | 1L 2R                            | ok
        read T       | N3,D                  | 1L 3L 2R                         | ok
        read T       | N,D,N2                | 1L 2L 3L                         | fake rs*1
        read T       | N,N3,D                | 1L 2L 3L                         | fake rs*1
        read thr     | N,N3,W,N              | 1L 2L 3L 3L                      | fake busy*1 rs*2 x
        read thr     | N,N3,W,B              | 1L 2L 3L 3L 3L                   | ok busy*2 rs*1
        read         | N                     | 1L 2L                            | ok rs*1
        +read        | N3                    | 2L 3L                            | ok
        +read        | B                     | 3L 3L                            | ok busy*1
        ",
    );
}

#[test]
fn prewrite() {
    check(
        "
        write T      | N3,D                  | 1L 3L 2L                         | ok rpc*1
        write        | D,N,N2,B,D            | 1L 2L 3L 2L 2L                   | fake busy*1 rpc*2 rs*1 x
        write thr    | B,B                   | 1L 1L 2L                         | ok busy*2
        ",
    );
}

#[test]
fn a_leader_that_stays_busy_is_probed_through_another_replica() {
    check(
        "
        read         | B                     | 1L 1L                            | ok busy*1
        read         | B,B                   | 1L 1L 2L                         | ok busy*2
        read         | B,B,N3                | 1L 1L 2L 3L                      | ok busy*2
        +read        |                       | 3L                               | ok
        read         | B,B,N1,B,B            | 1L 1L 2L 1L 1L 1L                | ok busy*4
        read         | B,B,N                 | 1L 1L 2L 3L                      | ok busy*2 rs*1
        read         | B,N2,B,B              | 1L 1L 2L 2L 3L                   | ok busy*3
        read         | B,W,B                 | 1L 1L 1L 2L                      | ok busy*3
        read         | B,B,N,N               | 1L 1L 2L 3L 1L                   | ok busy*2 rs*2
        read one     | B,B,B                 | 1L 1L 1L 1L                      | ok busy*3
        read leaderonly | B,B,B              | 1L 1L 1L 1L                      | ok busy*3
        ",
    );
}

#[test]
fn threshold_reads() {
    check(
        "
        read thr     | W,W                   | 1L 2R 3R                         | ok
        read thr     | W,W,W                 | 1L 2R 3R 1L                      | ok busy*1
        ",
    );
}

#[test]
fn follower_and_learner_reads() {
    check(
        "
        follower     |                       | 2R                               | ok
        follower     | W,B                   | 2R 3R 1L                         | ok
        follower     | B,W,B                 | 2R 3R 1L                         | fake busy*1 x
        follower     | D,B                   | 2R 3R 1L                         | ok rpc*1
        follower T   | D,B                   | 2R 3R 1L                         | ok
        follower     | M                     | 2R 1L                            | ok x
        learner      | B                     | 4R 1L                            | ok
        ",
    );
}

#[test]
fn mixed_and_prefer_leader_reads() {
    check(
        "
        mixed        |                       | 1L                               | ok
        prefer       |                       | 1L                               | ok
        mixed        | W,K,B                 | 1L 2R 3R                         | fake busy*1 x
        prefer       | W,K,B                 | 1L 2R 3R                         | fake busy*1 x
        mixed        | B,M                   | 1L 2R                            | returned x
        mixed        | D,B                   | 1L 2R 3R                         | ok rpc*1
        mixed T      | D,B                   | 1L 2R 3R                         | ok
        prefer       | D,B                   | 1L 2R 3R                         | ok rpc*1
        mixed T      | B,B,D                 | 1L 2R 3R                         | fake busy*1
        mixed @2     | D,B                   | 2R 1L 3R                         | ok rpc*1
        mixed T @2   | D,B                   | 2R 1L 3R                         | ok
        mixed T @2   | D,DiskFull,FlashbackNotPrepared | 2R 1L 3R               | failed disk*1
        mixed T @2   | F                     | 2R 1L                            | ok
        mixed T @3 l2 | D,B                  | 3R 2L 1R                         | ok
        mixed l3     | B,B,B                 | 1R 2R 3L                         | fake busy*1 x
        prefer l3    | B,B,B                 | 3L 1R 2R                         | fake busy*1 x
        prefer l3    | D,B                   | 3L 1R 2R                         | ok rpc*1
        prefer l3 @2 | B,B,B                 | 2R 3L 1R                         | fake busy*1 x
        prefer l3 @2 | D,B                   | 2R 3L 1R                         | ok rpc*1
        prefer       | B                     | 1L 2R                            | ok
        +prefer      | B,B,B                 | 2R 3R 1L                         | fake busy*1 x
        prefer       | B,B                   | 1L 2R 3R                         | ok
        +prefer      | B,B,B                 | 3R 1L                            | fake busy*1 x
        ",
    );
}

#[test]
fn stale_reads() {
    check(
        "
        stale        |                       | 1S                               | ok
        stale        | X                     | 1S 2R                            | ok
        stale        | X,B                   | 1S 2R 3R                         | ok
        stale        | X,B,B                 | 1S 2R 3R                         | fake busy*1 x
        stale @1     | X,B                   | 1S 2R 3R                         | ok
        stale @2     | X                     | 2S 1L                            | ok
        stale @2     | X,B                   | 2S 1L 2S                         | ok
        stale @2     | X,B,B,B               | 2S 1L 2S 3S                      | fake busy*1 x
        stale @3     | B,B                   | 3S 1L 2S                         | ok
        stale @2     | X,N2                  | 2S 1L 2L                         | ok
        stale @2     | X,N3                  | 2S 1L 3L                         | ok
        stale @3     | X,N                   | 3S 1L 3R                         | ok rs*1
        stale @2     | X,N,B,B               | 2S 1L 2R 3R                      | fake busy*1 rs*1 x
        stale @2     | X,N3,B,N2,B           | 2S 1L 3L 3L 2L 2L                | ok busy*2
        stale @2     | X,M                   | 2S 1L                            | returned x
        stale        | B,W                   | 1S 2S 3S                         | ok
        stale T      | D,B                   | 1S 2S 3S                         | ok
        stale T      | D,B,B                 | 1S 2S 3S                         | fake busy*1
        stale T @2   | D,B                   | 2S 1L 3S                         | ok
        stale T @2   | D,D                   | 2S 1L 3S                         | ok
        stale T @2   | D,N2                  | 2S 1L 3S                         | ok
        stale        | D,I,D                 | 1S 2R 3R                         | fake rni*1 rpc*2 x
        stale @2     | D,D                   | 2S 1L 3R                         | ok rpc*2
        +stale @2    | B                     | 3S                               | fake busy*1 x
        stale l2     | X,B,B                 | 1S 2L 3S 1S                      | ok
        stale l2     | X,B,B,B               | 1S 2L 3S 1S                      | fake busy*1 x
        stale @2     | M                     | 2S 1S                            | ok x
        ",
    );
}

#[test]
fn flashback() {
    check(
        "
        read T       | F                     | 1L                               | failed
        read T       | D,F,F                 | 1L 2R 3R                         | fake
        mixed T      | D,F,F                 | 1L 2R 3R                         | fake
        mixed        | F                     | 1L                               | failed
        stale @2     | F                     | 2S 1S                            | ok
        ",
    );
}

#[test]
fn slow_stores_are_passed_over() {
    check(
        "
        mixed l3 slow1    |                  | 2R                               | ok
        stale l3 slow1    |                  | 2S                               | ok
        mixed l3 slow1 @1 |                  | 3L                               | ok
        stale l3 slow1 @1 |                  | 3S                               | ok
        stale l3          | B                | 1S 3L                            | ok
        mixed l3 @1       | B                | 1R 3L                            | ok
        mixed l3          | B                | 1R 2R                            | ok
        mixed l3 slow1 @1 | B                | 3L 2R                            | ok
        stale l3 slow1 @1 | B                | 3S 2S                            | ok
        mixed l3 slow1    | B                | 2R 3L                            | ok
        stale l3 slow1    | B                | 2S 3L                            | ok
        ",
    );
}

#[test]
fn every_retryable_error_once() {
    for (error, pause) in [
        ("B", "busy"),
        ("W", "busy"),
        ("K", ""),
        ("MaxTs", "maxTsNotSynced"),
        ("Merging", "rs"),
        ("ReadIndex", "rs"),
        ("I", "rni"),
        ("DiskFull", "disk"),
    ] {
        let is_busy = matches!(error, "B" | "W");
        for (request, attempts) in [
            ("read", "1L 1L"),
            ("write", "1L 1L"),
            ("follower", "2R 3R"),
            ("mixed", "1L 2R"),
            ("prefer", "1L 2R"),
            ("stale", if is_busy { "1S 2S" } else { "1S 2R" }),
        ] {
            let waits = !pause.is_empty() && (!is_busy || attempts == "1L 1L");
            let outcome = match waits {
                true => format!("ok {pause}*1"),
                false => "ok".to_owned(),
            };
            let words = [request];
            let got = World::new(&words).run(options(&words), error);
            assert_eq!(got, (attempts.to_owned(), outcome), "{request} {error}");
        }
    }
}

#[test]
fn every_final_error_once() {
    for (error, outcome) in [
        ("KeyNotInRegion", "returned x"),
        ("EpochNotMatch", "returned x"),
        ("StoreNotMatch", "returned x"),
        ("RaftEntryTooLarge", "failed"),
        ("Recovery", "returned x"),
        ("FlashbackNotPrepared", "failed"),
        ("IsWitness", "returned x"),
        ("MismatchPeerId", "returned x"),
        ("Buckets", "returned"),
    ] {
        for request in ["read", "write", "follower", "mixed", "prefer", "stale"] {
            let words = [request];
            let (attempts, got) = World::new(&words).run(options(&words), error);
            assert_eq!(attempts.split(' ').count(), 1, "{request} {error}");
            assert_eq!(got, outcome, "{request} {error}");
        }
    }
    check("read | M | 1L | returned x");
}

#[test]
fn what_client_go_repeats_without_sleeping_is_capped() {
    check(
        "
        read         | K,K,K                 | 1L 1L 1L 1L                      | ok miss*2
        read         | U,U                   | 1L 1L 1L                         | ok miss*1
        read         | N2,N1,N2,N1,N2,N1     | 1L 2L 1L 2L 1L 2L 3L             | ok rs*1
        ",
    );
}

#[test]
fn a_store_that_lives_but_does_not_answer_is_left_after_ten_attempts() {
    check(
        "
        write | D!,D!,D!,D!,D!,D!,D!,D!,D!,D! | 1L 1L 1L 1L 1L 1L 1L 1L 1L 1L 2L | ok rpc*10
        ",
    );
}

#[test]
fn a_leader_that_takes_too_long_in_all_is_left() {
    let world = World::new(&["write"]);
    let mut selector = Selector::new(world.region.clone(), options(&["write"]), 7);
    for _ in 0..2 {
        assert_eq!(selector.next(world.now).unwrap().store.id(), 1);
        selector.spent(Duration::from_secs(25));
    }
    assert_ne!(selector.next(world.now).unwrap().store.id(), 1);
}

#[test]
fn a_failed_store_counts_once_and_makes_the_region_due_for_a_reload() {
    let world = World::new(&["write"]);
    let store = world.stores.get(1).unwrap();
    let failed = TransportError::Closed { sent: true };
    let mut requests: Vec<Selector> = (0..3)
        .map(|seed| Selector::new(world.region.clone(), options(&["write"]), seed))
        .collect();
    let mut watchers = 0;
    for selector in &mut requests {
        selector.next(world.now).unwrap();
    }
    for selector in &mut requests {
        assert_eq!(
            selector.on_transport_error(&failed, world.now).then,
            Then::Close
        );
        let verdict = selector.on_probed(Liveness::Unreachable, world.now);
        watchers += verdict
            .effects
            .iter()
            .filter(|e| **e == Effect::Watch)
            .count();
    }
    assert_eq!((store.fail_epoch(), watchers), (1, 1));
    assert_eq!(store.resolve_state(), ResolveState::NeedCheck);
    assert!(
        requests[0]
            .next(world.now)
            .is_some_and(|target| target.store.id() != 1)
    );
    assert!(world.region.has_flag(Flag::DelayedPending));
}

#[test]
fn a_hint_to_a_stranger_ends_the_request() {
    let world = World::new(&["read"]);
    let (attempts, outcome) = world.run(options(&["read"]), "N4");
    assert_eq!((attempts.as_str(), outcome.as_str()), ("1L", "fake x"));
    let reason = world.region.invalid_reason();
    assert_eq!(reason, Some(InvalidReason::StoreNotFound));
}

#[test]
fn an_invalid_region_is_not_asked() {
    let world = World::new(&["read"]);
    world.region.invalidate(InvalidReason::Other, world.now);
    assert_eq!(
        world.run(options(&["read"]), ""),
        (String::new(), "fake x".into())
    );
}

#[test]
fn equals_are_told_apart_by_the_seed() {
    let world = World::new(&["follower"]);
    let first = |seed| {
        let mut selector = Selector::new(world.region.clone(), options(&["follower"]), seed);
        selector.next(world.now).unwrap().store.id()
    };
    let drawn: std::collections::BTreeSet<u64> = (0..20).map(first).collect();
    assert_eq!(drawn, [2, 3].into());
    assert_eq!(first(5), first(5));
}

proptest! {
    /// Whatever the answers: a request ends, its flags make sense, and no replica is asked a
    /// third time without a pause or a hint in between.
    #[test]
    fn every_request_ends_politely(
        request in select(vec![
            "read", "read T", "read thr", "read leaderonly", "write", "follower", "mixed",
            "mixed @2", "prefer", "stale", "stale @3", "stale T", "learner",
        ]),
        answers in vec(select(vec![
            "N", "N1", "N2", "N3", "B", "W", "D", "D!", "X", "K", "F", "M", "I", "U", "MaxTs",
        ]), 60),
        seed: u64,
    ) {
        let words: Vec<&str> = request.split_whitespace().collect();
        let world = World::new(&words);
        let mut selector = Selector::new(world.region.clone(), options(&words), seed);
        let mut unpaused = BTreeMap::new();
        let mut hints = 0;
        let mut sends = 0;
        for answer in answers.iter().copied().map(parse_answer) {
            let Some(target) = selector.next(world.now) else {
                break;
            };
            sends += 1;
            let id = target.store.id();
            let is_read = words[0] != "write";
            prop_assert!(!(target.stale_read && target.replica_read));
            prop_assert!(is_read || !(target.stale_read || target.replica_read));
            prop_assert!(!(target.replica_read && target.is_leader));
            if target.pause.is_some() {
                unpaused.clear();
            }
            let times: &mut u32 = unpaused.entry(id).or_default();
            *times += 1;
            prop_assert!(*times <= 2, "{} times at {}", times, id);
            let verdict = match answer {
                Answer::Region(name) => {
                    selector.on_region_error(&RegionError::classify(error(name)), world.now)
                }
                Answer::Hint(store) => {
                    hints += 1;
                    unpaused.clear();
                    let leader = Some(metapb::Peer {
                        id: store + 100,
                        store_id: store,
                        ..Default::default()
                    });
                    selector.on_region_error(&RegionError::NotLeader { leader }, world.now)
                }
                Answer::Silence { alive } => {
                    let late = TransportError::Deadline {
                        address: target.address.clone(),
                        sent: true,
                    };
                    let found = match alive {
                        true => Liveness::Reachable,
                        false => Liveness::Unreachable,
                    };
                    match selector.on_transport_error(&late, world.now) {
                        verdict if verdict.then == Then::Probe => {
                            selector.on_probed(found, world.now)
                        }
                        verdict => verdict,
                    }
                }
            };
            match verdict.then {
                Then::Retry | Then::Postpone(_) => {}
                Then::Backoff(_) => unpaused.clear(),
                Then::Relocate | Then::Fail => break,
                Then::Probe | Then::Undetermined | Then::Close => {
                    prop_assert!(false, "{:?}", verdict.then);
                }
            }
        }
        prop_assert!(sends <= 11 * selector.replicas.len() + hints);
    }
}
