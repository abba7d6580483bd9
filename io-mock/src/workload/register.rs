//! Raw keys: every client reads, writes and deletes a few of them, alone and in batches. In some runs
//! all of them are atomic writers, which also compare and swap.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use tikv_core::{Key, RawClient, Result, Value};

use super::under_faults;
use crate::check::{Verdict, Violation};
use crate::sim::{Chance, Fault, Mark, Sim, SimDriver};

const KEYS: u64 = 12;

fn key(number: u64) -> Key {
    Key::from(format!("raw/{number:02}"))
}

/// Where regions may begin.
pub(super) fn split_keys() -> Vec<Bytes> {
    (0..KEYS).map(|number| key(number).into_bytes()).collect()
}

/// Runs the workload and all its checks.
///
/// # Errors
///
/// The first violation.
pub async fn run(sim: Sim) -> Verdict {
    let chance = &mut sim.chance("register");
    let clients = sim.at_most_clients(chance.within(1..=6) as u32);
    let calls = sim.at_most_operations(chance.magnitude(10..=80));
    under_faults(&sim, clients, |number| {
        Client::new(&sim, number).work(calls)
    })
    .await?;
    let check = sim.check();
    check.manners()?;
    check.raw_calls()
}

struct Client {
    sim: Sim,
    number: u32,
    raw: Option<RawClient<SimDriver>>,
    /// Some clients wait for no call longer than this.
    timeout: Option<Duration>,
    /// Where atomic writers draw their swaps; absent in runs without.
    swaps: Option<Chance>,
    chance: Chance,
    written: u64,
}

const RECONNECT: Duration = Duration::from_millis(200);
const POLLS_BEFORE_CRASH: u64 = 20;
/// Some clients are impatient.
const TIMEOUT_MS: RangeInclusive<u64> = 10..=10_000;

impl Client {
    fn new(sim: &Sim, number: u32) -> Self {
        let chance = sim.chance(&format!("client {number}"));
        let swaps = sim.chance("swaps").coin();
        let mut patience = sim.chance(&format!("patience of client {number}"));
        let millis = patience.magnitude(TIMEOUT_MS);
        Client {
            sim: sim.clone(),
            number,
            raw: None,
            timeout: patience.coin().then_some(Duration::from_millis(millis)),
            swaps: swaps.then(|| sim.chance(&format!("swaps of client {number}"))),
            chance,
            written: 0,
        }
    }

    async fn work(mut self, calls: u64) -> Verdict {
        for _ in 0..calls {
            if self.sim.strikes(Fault::Crash) {
                let polls = self.chance.below(POLLS_BEFORE_CRASH);
                let driver = self.raw().await.driver().clone();
                let sim = self.sim.clone();
                if let Some(verdict) = sim.cancel_after(polls, self.call()).await {
                    verdict?;
                }
                driver.crash();
                self.raw = None;
                sim.mark(Mark::ClientCrashed);
            } else {
                self.call().await?;
            }
            let pause = self.chance.time(Duration::ZERO..=Duration::from_millis(40));
            self.sim.sleep(pause).await;
        }
        // Once nothing goes wrong any more, this client must work, whatever it has been through.
        self.sim.quiet().await;
        self.timeout = None;
        for number in 0..KEYS {
            let recovered = async {
                self.put(key(number)).await?;
                self.get(key(number)).await
            };
            recovered.await.map_err(|error| {
                let detail = format!(
                    "client {} fails though nothing goes wrong: {error}",
                    self.number
                );
                Violation::new("recovery", detail)
            })?;
        }
        Ok(())
    }

    async fn raw(&mut self) -> RawClient<SimDriver> {
        loop {
            if let Some(raw) = &self.raw {
                return match self.timeout {
                    Some(timeout) => raw.with_timeout(timeout),
                    None => raw.clone(),
                };
            }
            match self.sim.raw_client().await {
                Ok(raw) => {
                    self.raw = Some(match self.swaps {
                        Some(_) => raw.with_atomic(),
                        None => raw,
                    });
                }
                Err(_) => self.sim.sleep(RECONNECT).await,
            }
        }
    }

    /// One call. What fails has failed; the next one tries something else.
    async fn call(&mut self) -> Verdict {
        let sim = self.sim.clone();
        let key = key(self.chance.below(KEYS));
        if self.swaps.as_mut().is_some_and(Chance::coin) {
            return self.swap(key).await;
        }
        match self.chance.below(8) {
            0 => drop(self.delete(key).await),
            1 => drop(self.batch_put().await),
            2..=4 => drop(self.put(key).await),
            _ => drop(sim.may_cancel(self.get(key)).await),
        }
        Ok(())
    }

    /// Swaps what a key holds for something new, unless another client is quicker.
    async fn swap(&mut self, key: Key) -> Verdict {
        let raw = self.raw().await;
        let Ok(from) = raw.get(key.clone()).await else {
            return Ok(());
        };
        let (from, to) = (from.map(Value::from), self.value());
        let now = self.sim.now();
        let id = {
            let (key, from, to) = (key.clone(), from.clone(), to.clone());
            self.sim
                .history()
                .lock()
                .raw_swap(self.number, now, key, from, to)
        };
        let call = raw.compare_and_swap(key, from.clone(), to.clone());
        let Some(Ok(swap)) = self.sim.may_cancel(call).await else {
            return Ok(());
        };
        let now = self.sim.now();
        if swap.swapped {
            self.sim.history().lock().raw_written(id, now);
            return Ok(());
        }
        let held = swap.previous.map(Value::from);
        if held == from || held.as_ref() == Some(&to) {
            let detail = format!(
                "client {} is told that {held:?} is why {from:?} was not swapped for {to:?}",
                self.number
            );
            return Err(Violation::new("no false refusal", detail));
        }
        self.sim.history().lock().raw_swap_refused(id, now, held);
        Ok(())
    }

    fn value(&mut self) -> Value {
        self.written += 1;
        format!("{}.{}", self.number, self.written).into()
    }

    async fn get(&mut self, key: Key) -> Result<()> {
        let raw = self.raw().await;
        let invoked = self.sim.now();
        let value = raw.get(key.clone()).await?.map(Value::from);
        let now = self.sim.now();
        self.sim
            .history()
            .lock()
            .raw_read(self.number, invoked, now, key, value);
        Ok(())
    }

    async fn put(&mut self, key: Key) -> Result<()> {
        let raw = self.raw().await;
        let value = self.value();
        self.write(
            vec![(key.clone(), Some(value.clone()))],
            raw.put(key, value),
        )
        .await
    }

    async fn delete(&mut self, key: Key) -> Result<()> {
        let raw = self.raw().await;
        self.write(vec![(key.clone(), None)], raw.delete(key)).await
    }

    async fn batch_put(&mut self) -> Result<()> {
        let raw = self.raw().await;
        // Each key once: of several values for one key only the last is written.
        let first = self.chance.below(KEYS);
        let count = self.chance.within(1..=KEYS / 2);
        let pairs: Vec<(Key, Value)> = (0..count)
            .map(|n| (key((first + n) % KEYS), self.value()))
            .collect();
        let writes = pairs
            .iter()
            .map(|(key, value)| (key.clone(), Some(value.clone())))
            .collect();
        self.write(writes, raw.batch_put(pairs)).await
    }

    /// Makes a call that writes, and writes it down.
    async fn write(
        &mut self,
        writes: Vec<(Key, Option<Value>)>,
        call: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let invoked = self.sim.now();
        let mut ids = Vec::new();
        for (key, value) in writes {
            ids.push(
                self.sim
                    .history()
                    .lock()
                    .raw_write(self.number, invoked, key, value),
            );
        }
        let Some(result) = self.sim.may_cancel(call).await else {
            return Ok(());
        };
        result?;
        let now = self.sim.now();
        for id in ids {
            self.sim.history().lock().raw_written(id, now);
        }
        Ok(())
    }
}
