//! What the core itself costs: a point get of a cached region through an in-memory driver that
//! answers by a function call.

use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use criterion::{Criterion, criterion_group, criterion_main};
use tikv_core::driver::{Action, Driver, Instant, Operation, Reply, Rpc};
use tikv_core::wire::{Command, Response};
use tikv_core::{Config, Endpoints, Timestamp, TransactionClient};
use tikv_proto::{kvrpcpb, metapb, pdpb};

/// Answers every action at once.
#[derive(Clone)]
struct InMemory;

fn header() -> Option<pdpb::ResponseHeader> {
    Some(pdpb::ResponseHeader {
        cluster_id: 1,
        error: None,
    })
}

fn answer(rpc: &Rpc) -> Response {
    match &*rpc.command {
        Command::Get(_) => Response::Get(kvrpcpb::GetResponse {
            value: "value".into(),
            ..Default::default()
        }),
        Command::GetMembers(_) => {
            let member = pdpb::Member {
                client_urls: vec!["pd:1".into()],
                ..Default::default()
            };
            Response::GetMembers(pdpb::GetMembersResponse {
                header: header(),
                members: vec![member.clone()],
                leader: Some(Box::new(member)),
                ..Default::default()
            })
        }
        Command::GetRegion(_) => {
            let peer = metapb::Peer {
                id: 3,
                store_id: 1,
                ..Default::default()
            };
            Response::GetRegion(pdpb::GetRegionResponse {
                header: header(),
                region: Some(Box::new(metapb::Region {
                    id: 2,
                    region_epoch: Some(metapb::RegionEpoch {
                        conf_ver: 1,
                        version: 1,
                    }),
                    peers: vec![peer],
                    ..Default::default()
                })),
                leader: Some(peer),
                ..Default::default()
            })
        }
        Command::GetStore(_) => Response::GetStore(pdpb::GetStoreResponse {
            header: header(),
            store: Some(Box::new(metapb::Store {
                id: 1,
                address: "store:1".into(),
                ..Default::default()
            })),
            ..Default::default()
        }),
        other => panic!("{other:?}"),
    }
}

impl Driver for InMemory {
    type Run<T: Send + 'static> = Ready<T>;

    fn run<T: Send + 'static>(&self, mut operation: Operation<T>) -> Ready<T> {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(output) = operation.poll(&mut cx, Instant::ZERO) {
                while let Some((_, Action::Spawn(child))) = operation.next_action() {
                    self.spawn(child);
                }
                return ready(output);
            }
            while let Some((id, action)) = operation.next_action() {
                let reply = match action {
                    Action::Send(rpc) => Reply::Response(Ok(answer(&rpc))),
                    Action::Timestamp(_) => Reply::Timestamp(Ok(Timestamp::new(1, 1))),
                    Action::Sleep { .. } => Reply::Woke,
                    Action::Spawn(child) => {
                        self.spawn(child);
                        continue;
                    }
                };
                operation
                    .complete(id, reply)
                    .expect("each action is answered once");
            }
        }
    }

    fn spawn(&self, operation: Operation<()>) {
        drop(self.run(operation));
    }

    fn now(&self) -> Instant {
        Instant::ZERO
    }

    fn seed(&self) -> u64 {
        7
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    loop {
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
}

fn point_get(c: &mut Criterion) {
    let endpoints = Endpoints::new(["pd:1"], false);
    let connecting = TransactionClient::with_driver(InMemory, endpoints, Config::default());
    let client = block_on(connecting).expect("PD answers");
    let snapshot = client.snapshot_at(Timestamp::new(1, 1));
    assert_eq!(
        block_on(snapshot.get("key")).unwrap().as_deref(),
        Some(&b"value"[..])
    );

    let mut group = c.benchmark_group("core");
    group.bench_function("cached point get", |b| {
        b.iter(|| block_on(snapshot.get(black_box("key"))));
    });
    let answered = Arc::new(Command::from(kvrpcpb::GetRequest::default()));
    group.bench_function("the driver's share of it", |b| {
        b.iter(|| {
            let rpc = Rpc {
                endpoint: tikv_core::driver::Endpoint::Pd { url: "pd".into() },
                context: None,
                command: answered.clone(),
                deadline: Instant::ZERO,
            };
            answer(black_box(&rpc))
        });
    });
    group.finish();
}

criterion_group!(benches, point_get);
criterion_main!(benches);
