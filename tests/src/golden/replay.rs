//! Replays a scenario on a fresh cluster of one region and compares each answer with the recorded
//! one.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use tikv_core::wire::{Command, Response};
use tikv_io_mock::cluster::failure::GrpcError;
use tikv_io_mock::cluster::key::Key;
use tikv_io_mock::cluster::lock_wait::Answer;
use tikv_io_mock::cluster::mvcc::max_ts::InvalidMaxTs;
use tikv_io_mock::cluster::{Cluster, Config};
use tikv_io_mock::dispatch;
use tikv_proto::kvrpcpb::ApiVersion;

use super::circumstances;
use super::normal::Normal;
use super::scenario::{Asked, Scenario, Step};

/// When a replay begins. Recorded timestamps are compared only with each other.
const START_MS: u64 = 1_700_000_000_000;
/// How long the recorder waited after it had left a request waiting.
const AFTER_SPAWN_MS: u64 = 150;

/// The first answer of a scenario that differs.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Which step, counted from 0.
    pub step: usize,
    /// What was asked.
    pub rpc: String,
    /// The request.
    pub request: String,
    /// What the real server answered.
    pub expected: String,
    /// What the simulated one answered.
    pub got: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "step {} {}", self.step, self.rpc)?;
        writeln!(f, "  request  {}", self.request)?;
        writeln!(f, "  expected {}", self.expected)?;
        write!(f, "  got      {}", self.got)
    }
}

/// Replays scenarios, each on a cluster of its own.
pub struct Replayer {
    normal: Normal,
    /// What the clusters are like; stores and the API version are set for each scenario.
    config: Config,
}

impl Replayer {
    /// A replayer on clusters of this kind.
    ///
    /// # Errors
    ///
    /// The descriptors of the messages can't be read.
    pub fn new(config: Config) -> Result<Self, String> {
        Ok(Replayer {
            normal: Normal::new()?,
            config,
        })
    }

    /// The first answer that differs from the recorded one, if any does.
    ///
    /// # Errors
    ///
    /// The scenario holds what is no request or no answer.
    pub fn first_difference(&self, scenario: &Scenario) -> Result<Option<Difference>, String> {
        let api_version = ApiVersion::try_from(scenario.api_version).map_err(|e| e.to_string())?;
        let config = Config {
            stores: 1,
            api_version,
            // The servers were told to go on when a read is ahead of PD.
            invalid_max_ts: InvalidMaxTs::Allow,
            in_memory_pessimistic_locks: self.config.in_memory_pessimistic_locks
                && !circumstances::had_full_memory(&scenario.name),
            ..self.config.clone()
        };
        let mut run = Run {
            normal: &self.normal,
            cluster: Cluster::new(config, START_MS),
            now_ms: START_MS,
            spawned: BTreeMap::new(),
        };
        for (number, step) in scenario.steps.iter().enumerate() {
            let difference = run
                .step(step)
                .map_err(|error| format!("{}, step {number}: {error}", scenario.name))?;
            if let Some(difference) = difference {
                return Ok(Some(Difference {
                    step: number,
                    ..difference
                }));
            }
        }
        Ok(None)
    }
}

struct Run<'a> {
    normal: &'a Normal,
    cluster: Cluster,
    now_ms: u64,
    spawned: BTreeMap<String, Spawned>,
}

/// A request that is left waiting.
struct Spawned {
    rpc: String,
    command: Command,
    answer: Result<Answer<Response>, String>,
}

fn told<T>(answer: Result<T, GrpcError>) -> Result<T, String> {
    answer.map_err(|error| format!("{:?}: {}", error.code, error.message))
}

impl Run<'_> {
    fn step(&mut self, step: &Step) -> Result<Option<Difference>, String> {
        self.now_ms += 1;
        match step {
            Step::Call(asked, answer) => {
                let command = self.command(asked)?;
                let got = self.ask(asked, command.clone());
                self.compare(&asked.rpc, &command, answer, got)
            }
            Step::Spawn(asked, name) => {
                let command = self.command(asked)?;
                let answer = self.ask(asked, command.clone());
                let spawned = Spawned {
                    rpc: asked.rpc.clone(),
                    command,
                    answer,
                };
                self.spawned.insert(name.clone(), spawned);
                self.now_ms += AFTER_SPAWN_MS;
                self.take_woken();
                Ok(None)
            }
            Step::StillWaiting(name) => {
                let spawned = self.spawned.get(name).ok_or("nobody has this name")?;
                if matches!(spawned.answer, Ok(Answer::Later(_))) {
                    return Ok(None);
                }
                Ok(Some(Difference {
                    step: 0,
                    rpc: spawned.rpc.clone(),
                    request: format!("{:?}", spawned.command),
                    expected: "still waiting".to_owned(),
                    got: format!("{:?}", spawned.answer),
                }))
            }
            Step::Join(name, answer) => {
                self.wait_for(name);
                let spawned = self.spawned.remove(name).ok_or("nobody has this name")?;
                self.compare(&spawned.rpc, &spawned.command, answer, spawned.answer)
            }
        }
    }

    /// Lets time pass until a spawned request is answered, or nothing will happen any more.
    fn wait_for(&mut self, name: &str) {
        let waits = |run: &Self| {
            let spawned = run.spawned.get(name);
            spawned.is_some_and(|spawned| matches!(spawned.answer, Ok(Answer::Later(_))))
        };
        while waits(self)
            && let Some(at) = self.cluster.next_wake_ms()
        {
            self.now_ms = self.now_ms.max(at);
            self.take_woken();
        }
    }

    fn take_woken(&mut self) {
        for (ticket, answer) in dispatch::take_woken(&mut self.cluster, self.now_ms) {
            let mut spawned = self.spawned.values_mut();
            if let Some(spawned) = spawned.find(|one| one.answer == Ok(Answer::Later(ticket))) {
                spawned.answer = told(answer.map(Answer::Now));
            }
        }
    }

    /// The request of a recording, addressed to the leader of its key's region.
    fn command(&self, asked: &Asked) -> Result<Command, String> {
        let path = format!("/tikvpb.Tikv/{}", asked.rpc);
        let message = Bytes::from(asked.message.clone());
        let mut command = Command::decode_request(&path, message)
            .ok_or_else(|| format!("no such method: {}", asked.rpc))?
            .map_err(|error| error.to_string())?;
        let key = Key::from_user(&asked.key);
        let region = self.cluster.regions().find(key.encoded());
        let region = region.ok_or("no region holds the key")?;
        let mut context = dispatch::context(&command).cloned().unwrap_or_default();
        context.region_id = region.meta.id;
        context.region_epoch = region.meta.region_epoch;
        context.peer = region.leader_peer().copied();
        command.set_context(Box::new(context));
        Ok(command)
    }

    fn ask(&mut self, asked: &Asked, command: Command) -> Result<Answer<Response>, String> {
        let key = Key::from_user(&asked.key);
        let region = self.cluster.regions().find(key.encoded());
        let store = region.and_then(|region| region.leader);
        let store = store.ok_or("nobody leads the region")?;
        let answer = dispatch::begin(&mut self.cluster, self.now_ms, store, command);
        self.take_woken();
        told(answer)
    }

    fn compare(
        &self,
        rpc: &str,
        command: &Command,
        recorded: &[u8],
        got: Result<Answer<Response>, String>,
    ) -> Result<Option<Difference>, String> {
        let clear = |encoded: Bytes| {
            let encoded = self.normal.answer(rpc, encoded)?;
            command
                .decode_response(encoded)
                .map_err(|error| error.to_string())
        };
        let expected = clear(Bytes::copy_from_slice(recorded))?;
        let got = match got {
            Ok(Answer::Now(response)) => Ok(clear(response.encode())?),
            Ok(Answer::Later(_)) => Err("no answer, it waits".to_owned()),
            Err(error) => Err(error),
        };
        Ok((got.as_ref() != Ok(&expected)).then(|| Difference {
            step: 0,
            rpc: rpc.to_owned(),
            request: format!("{command:?}"),
            expected: format!("{expected:?}"),
            got: format!("{got:?}"),
        }))
    }
}
