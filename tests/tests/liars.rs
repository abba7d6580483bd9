//! Stores and members of PD that say what no honest one says. A call that meets one ends: with an error that names
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
use tikv_proto::{metapb, pdpb};

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

/// Every key is locked, whatever is done about it.
fn locked(command: &Command) -> Option<Response> {
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
        Command::ResolveLock(_) => Response::ResolveLock(Default::default()),
        _ => return None,
    })
}

/// As [`locked`], by a transaction of which this is said.
fn locked_by(command: &Command, status: kvrpcpb::CheckTxnStatusResponse) -> Option<Response> {
    match command {
        Command::CheckTxnStatus(_) => Some(Response::CheckTxnStatus(status)),
        _ => locked(command),
    }
}

const STATES: [(&str, Lie); 6] = [
    ("committed", |command| {
        let status = kvrpcpb::CheckTxnStatusResponse {
            commit_version: (1 << 30) + 1,
            ..Default::default()
        };
        locked_by(command, status)
    }),
    ("rolled back", |command| {
        locked_by(command, Default::default())
    }),
    ("not found", |command| {
        let error = KeyError {
            txn_not_found: Some(Default::default()),
            ..KeyError::default()
        };
        let status = kvrpcpb::CheckTxnStatusResponse {
            error: Some(Box::new(error)),
            ..Default::default()
        };
        locked_by(command, status)
    }),
    ("alive though it has expired", |command| {
        let status = kvrpcpb::CheckTxnStatusResponse {
            lock_ttl: 1,
            ..Default::default()
        };
        locked_by(command, status)
    }),
    ("waiting for secondaries that are not there", |command| {
        let primary = LockInfo {
            use_async_commit: true,
            secondaries: vec!["b".into()],
            ..*lock("a").locked.unwrap_or_default()
        };
        let status = kvrpcpb::CheckTxnStatusResponse {
            lock_ttl: 1,
            lock_info: Some(Box::new(primary)),
            ..Default::default()
        };
        match command {
            Command::CheckSecondaryLocks(_) => {
                Some(Response::CheckSecondaryLocks(Default::default()))
            }
            _ => locked_by(command, status),
        }
    }),
    ("what no client knows", |command| {
        let status = kvrpcpb::CheckTxnStatusResponse {
            action: 77,
            ..Default::default()
        };
        locked_by(command, status)
    }),
];

#[test]
fn a_lock_that_never_goes_is_waited_for_and_given_up() {
    for (name, lie) in STATES {
        let ended = |error: Error| match error.kind() {
            ErrorKind::LockTimeout => assert!(error.to_string().contains("locked"), "{error}"),
            _ => assert!(matches!(error, Error::Protocol { .. }), "{name}: {error}"),
        };
        pollster::block_on(async {
            let client = transactional(lie);
            let snapshot = client.snapshot().await.expect("nothing lies about that");
            ended(snapshot.get("a").await.unwrap_err());
            ended(snapshot.batch_get(["a", "b"]).await.unwrap_err());
            ended(snapshot.scan(KeyRange::all()).into_vec().await.unwrap_err());
            let txn = client.begin().await.expect("nothing lies about that");
            txn.put("a", "1").await.expect("it is only buffered");
            ended(txn.commit().await.unwrap_err());
        });
    }
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

fn region(start: &'static [u8], end: &'static [u8], peers: bool) -> Option<Box<metapb::Region>> {
    let peer = metapb::Peer {
        id: 1,
        store_id: 1,
        ..metapb::Peer::default()
    };
    Some(Box::new(metapb::Region {
        id: 2,
        start_key: start.into(),
        end_key: end.into(),
        region_epoch: Some(Default::default()),
        peers: peers.then_some(peer).into_iter().collect(),
        ..metapb::Region::default()
    }))
}

/// What PD says of regions, whatever it is asked.
fn always(command: &Command, found: Option<Box<metapb::Region>>) -> Option<Response> {
    let reply = pdpb::GetRegionResponse {
        region: found.clone(),
        ..Default::default()
    };
    Some(match command {
        Command::GetRegion(_) => Response::GetRegion(reply),
        Command::GetPrevRegion(_) => Response::GetPrevRegion(reply),
        Command::BatchScanRegions(_) => {
            Response::BatchScanRegions(pdpb::BatchScanRegionsResponse {
                regions: vec![pdpb::Region {
                    region: found,
                    ..Default::default()
                }],
                ..Default::default()
            })
        }
        _ => return None,
    })
}

const LIES_OF_PD: [(&str, Lie); 9] = [
    ("no region", |command| always(command, None)),
    ("another region", |command| {
        always(command, region(b"zzzzzzzz\xf7", b"", true))
    }),
    ("a region before all keys", |command| {
        always(command, region(b"", b"\x01", true))
    }),
    ("a region that ends before it begins", |command| {
        always(command, region(b"z", b"a", true))
    }),
    ("a region without a peer", |command| {
        always(command, region(b"", b"", false))
    }),
    ("bounds that are no keys", |command| {
        always(
            command,
            region(b"\xff\xff\xff\xff\xff\xff\xff\xff", b"", true),
        )
    }),
    ("a store without an address", |command| match command {
        Command::GetStore(_) => Some(Response::GetStore(pdpb::GetStoreResponse {
            store: Some(Box::default()),
            ..Default::default()
        })),
        _ => None,
    }),
    ("no store", |command| match command {
        Command::GetStore(_) => Some(Response::GetStore(Default::default())),
        _ => None,
    }),
    ("the answer to another question", |command| match command {
        Command::GetRegion(_) | Command::GetStore(_) | Command::BatchScanRegions(_) => {
            Some(Response::GetMinTs(Default::default()))
        }
        _ => None,
    }),
];

#[test]
fn nothing_that_pd_says_of_regions_and_stores_keeps_a_call_going() {
    for (name, lie) in LIES_OF_PD {
        pollster::block_on(async {
            let client = transactional(lie);
            let snapshot = client.snapshot().await.expect("nothing lies about that");
            let scan = || snapshot.scan(KeyRange::all());
            snapshot.get("a").await.expect_err(name);
            snapshot.batch_get(["a", "b"]).await.expect_err(name);
            scan().into_vec().await.expect_err(name);
            scan().reverse().into_vec().await.expect_err(name);
            // What can't be used is not loaded.
            let _ = client.warm_up(KeyRange::all()).await;

            let client = raw(lie);
            client.put("a", "1").await.expect_err(name);
            client.batch_get(["a", "b"]).await.expect_err(name);
            client.scan(KeyRange::all(), 9).await.expect_err(name);
            let reverse = client.scan_reverse(KeyRange::all(), 9);
            reverse.await.expect_err(name);
            let gone = client.delete_range(KeyRange::all());
            gone.await.expect_err(name);
        });
    }
}
