//! Stores that say what no honest store says. A call that meets one ends: with an error that names
//! the breach, or, where each single answer could be true, once its budget is used up.

use std::collections::BTreeSet;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tikv_core::driver::{Action, Driver, Endpoint, Instant, Operation, Reply, Rpc, TransportError};
use tikv_core::wire::{Command, Response};
use tikv_core::{Config, Endpoints, Error, ErrorKind, Key, KeyRange, RawClient, TransactionClient};
use tikv_io_mock::cluster::{self, Cluster};
use tikv_io_mock::dispatch;
use tikv_proto::kvrpcpb::{self, KeyError, KvPair, LockInfo};

/// What a store says instead of the truth, if it lies about this.
type Lie = fn(&Command) -> Option<Response>;

const EPOCH_MS: u64 = 1_700_000_000_000;
/// More requests than any call below may need.
const REQUESTS_MAX: u32 = 5_000;

/// A client's driver over such a store. Its clock moves only while all wait, and a little with
/// each request.
#[derive(Clone)]
struct Driven(Arc<Mutex<World>>);

struct World {
    cluster: Cluster,
    lie: Lie,
    now: Instant,
    requests: u32,
}

impl World {
    fn now_ms(&self) -> u64 {
        EPOCH_MS + self.now.as_millis()
    }

    fn answer(&mut self, rpc: &Rpc) -> Result<Response, TransportError> {
        self.requests += 1;
        assert!(self.requests < REQUESTS_MAX, "it goes on for ever");
        self.now = self.now + Duration::from_micros(100);
        if let Some(lie) = (self.lie)(&rpc.command) {
            return Ok(lie);
        }
        let now_ms = self.now_ms();
        let command = dispatch::whole(rpc);
        let answer = match &rpc.endpoint {
            Endpoint::Store { id, .. } => dispatch::store(&mut self.cluster, now_ms, *id, command),
            _ => dispatch::pd(&mut self.cluster, now_ms, 0, command),
        };
        answer.map_err(|error| dispatch::status(rpc.endpoint.address(), error))
    }

    fn turn<T>(&mut self, mut operation: Operation<T>) -> T {
        let mut sleeps = BTreeSet::new();
        loop {
            let polled = operation.poll(&mut Context::from_waker(Waker::noop()), self.now);
            let mut answered = false;
            while let Some((id, action)) = operation.next_action() {
                let reply = match action {
                    Action::Send(rpc) => Reply::Response(self.answer(&rpc)),
                    Action::Timestamp(_) => {
                        let ts = self.cluster.pd_mut().next_tso(EPOCH_MS);
                        Reply::Timestamp(Ok(ts.into()))
                    }
                    Action::Sleep { until, .. } => {
                        sleeps.insert((until, id));
                        continue;
                    }
                    // None of what these calls leave behind goes on for ever.
                    Action::Spawn(child) => {
                        self.turn(child);
                        answered = true;
                        continue;
                    }
                };
                answered = true;
                operation.complete(id, reply).expect("answered once");
            }
            if let Poll::Ready(output) = polled {
                return output;
            }
            if !answered {
                let (until, id) = sleeps.pop_first().expect("it waits for something");
                self.now = self.now.max(until);
                operation.complete(id, Reply::Woke).expect("it slept");
            }
        }
    }
}

impl Driver for Driven {
    type Run<T: Send + 'static> = Ready<T>;

    fn run<T: Send + 'static>(&self, operation: Operation<T>) -> Ready<T> {
        ready(self.0.lock().expect("nobody panics").turn(operation))
    }

    fn spawn(&self, operation: Operation<()>) {
        pollster::block_on(self.run(operation));
    }

    fn now(&self) -> Instant {
        self.0.lock().expect("nobody panics").now
    }

    fn seed(&self) -> u64 {
        7
    }
}

fn driven(lie: Lie) -> (Driven, Endpoints) {
    let config = cluster::Config {
        stores: 1,
        ..cluster::Config::default()
    };
    let cluster = Cluster::new(config, EPOCH_MS);
    let members = cluster.pd().members().iter();
    let urls: Vec<String> = members.flat_map(|pd| pd.client_urls.clone()).collect();
    let world = World {
        cluster,
        lie,
        now: Instant::ZERO,
        requests: 0,
    };
    (
        Driven(Arc::new(Mutex::new(world))),
        Endpoints::new(urls, false),
    )
}

fn transactional(lie: Lie) -> TransactionClient<Driven> {
    let (driver, endpoints) = driven(lie);
    let client = TransactionClient::with_driver(driver, endpoints, Config::default());
    pollster::block_on(client).expect("nothing lies about that")
}

fn raw(lie: Lie) -> RawClient<Driven> {
    let (driver, endpoints) = driven(lie);
    let client = RawClient::with_driver(driver, endpoints, Config::default());
    pollster::block_on(client).expect("nothing lies about that")
}

fn lock(key: &'static str) -> Box<KeyError> {
    let info = LockInfo {
        key: key.into(),
        primary_lock: "p".into(),
        lock_version: 1 << 30,
        lock_ttl: 1,
        ..LockInfo::default()
    };
    Box::new(KeyError {
        locked: Some(Box::new(info)),
        ..KeyError::default()
    })
}

/// Every key is locked, whatever was done about it, by a transaction that has long committed.
fn the_lock_that_never_goes(command: &Command) -> Option<Response> {
    Some(match command {
        Command::Get(_) => Response::Get(kvrpcpb::GetResponse {
            error: Some(lock("a")),
            ..Default::default()
        }),
        Command::BatchGet(_) => Response::BatchGet(kvrpcpb::BatchGetResponse {
            error: Some(lock("a")),
            ..Default::default()
        }),
        Command::Scan(_) => Response::Scan(kvrpcpb::ScanResponse {
            error: Some(lock("a")),
            ..Default::default()
        }),
        Command::Prewrite(_) => Response::Prewrite(kvrpcpb::PrewriteResponse {
            errors: vec![*lock("a")],
            ..Default::default()
        }),
        Command::CheckTxnStatus(_) => Response::CheckTxnStatus(kvrpcpb::CheckTxnStatusResponse {
            commit_version: (1 << 30) + 1,
            ..Default::default()
        }),
        Command::ResolveLock(_) => Response::ResolveLock(Default::default()),
        _ => return None,
    })
}

#[test]
fn a_lock_that_never_goes_is_waited_for_and_given_up() {
    let locked = |error: Error| {
        assert_eq!(error.kind(), ErrorKind::LockTimeout, "{error}");
        assert!(error.to_string().contains("is locked"), "{error}");
    };
    let client = transactional(the_lock_that_never_goes);
    pollster::block_on(async {
        let snapshot = client.snapshot().await.expect("nothing lies about that");
        locked(snapshot.get("a").await.unwrap_err());
        locked(snapshot.batch_get(["a", "b"]).await.unwrap_err());
        locked(snapshot.scan(KeyRange::all()).into_vec().await.unwrap_err());
        let txn = client.begin().await.expect("nothing lies about that");
        txn.put("a", "1").await.expect("it is only buffered");
        locked(txn.commit().await.unwrap_err());
    });
}

fn pairs(keys: &[&'static str]) -> Vec<KvPair> {
    let pair = |&key: &&'static str| KvPair {
        key: key.into(),
        value: "1".into(),
        ..KvPair::default()
    };
    keys.iter().map(pair).collect()
}

fn the_same_rows_on_every_page(command: &Command) -> Option<Response> {
    let rows = pairs(&["a", "b"]);
    Some(match command {
        Command::Scan(_) => Response::Scan(kvrpcpb::ScanResponse {
            pairs: rows,
            ..Default::default()
        }),
        Command::RawScan(_) => Response::RawScan(kvrpcpb::RawScanResponse {
            kvs: rows,
            ..Default::default()
        }),
        _ => return None,
    })
}

#[test]
fn a_scan_takes_no_row_that_was_not_asked_for() {
    let breach = |error: Error| assert!(matches!(error, Error::Protocol { .. }), "{error}");
    pollster::block_on(async {
        let client = transactional(the_same_rows_on_every_page);
        let snapshot = client.snapshot().await.expect("nothing lies about that");
        let again = snapshot.scan(KeyRange::all()).page_size(2).into_vec();
        breach(again.await.unwrap_err());
        let outside = snapshot.scan(KeyRange::from("b"..)).into_vec();
        breach(outside.await.unwrap_err());
        let wrong_way = snapshot.scan(KeyRange::all()).reverse().into_vec();
        breach(wrong_way.await.unwrap_err());

        let client = raw(the_same_rows_on_every_page);
        breach(client.scan(KeyRange::all(), 1).await.unwrap_err());
        breach(client.scan_reverse(KeyRange::all(), 9).await.unwrap_err());
        let keys = client.scan_keys(KeyRange::all(), 9).await;
        assert_eq!(keys, Ok(vec![Key::from("a"), Key::from("b")]));
    });
}
