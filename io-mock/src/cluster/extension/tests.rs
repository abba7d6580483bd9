//! Extensions wherever a cluster runs.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tikv_core::driver::{Driver, Endpoint, Instant, Io, Operation, Rpc};
use tikv_core::wire::{Command, Response};
use tikv_proto::mpp;

use super::{Asked, Extended, Extension};
use crate::cluster::failure::{GrpcCode, GrpcError};
use crate::cluster::tests::{Bench, NOW};
use crate::dispatch;
use crate::{LocalCluster, Simulation};

/// Takes MPP tasks of version 1 and none other.
struct Mpp;

impl Extension for Mpp {
    fn call(
        &self,
        asked: &Asked<'_>,
        path: &str,
        request: &Bytes,
    ) -> Option<Result<Vec<Bytes>, GrpcError>> {
        if path != "/tikvpb.Tikv/DispatchMPPTask" {
            return None;
        }
        let request = mpp::DispatchTaskRequest::decode(request.clone()).ok()?;
        if request.timeout == 0 {
            let message = format!("s{} takes no task", asked.store);
            return Some(Err(GrpcError::new(GrpcCode::InvalidArgument, message)));
        }
        let answer = mpp::DispatchTaskResponse {
            error: Some(mpp::Error {
                code: request.timeout as i32,
                ..Default::default()
            }),
            ..Default::default()
        };
        Some(Ok(vec![answer.encode_to_vec().into()]))
    }
}

fn task(timeout: i64) -> Command {
    Command::DispatchMppTask(mpp::DispatchTaskRequest {
        timeout,
        ..Default::default()
    })
}

#[test]
fn an_extension_answers_what_the_store_does_not_know() {
    let mut b = Bench::new();
    let unknown = dispatch::store(&mut b.cluster, NOW, 1, task(3)).expect_err("nobody knows it");
    assert_eq!(unknown.code, GrpcCode::Unimplemented);

    b.cluster.set_extension(Some(Mpp.into()));
    let Ok(Response::DispatchMppTask(answer)) = dispatch::store(&mut b.cluster, NOW, 2, task(3))
    else {
        panic!("no answer");
    };
    assert_eq!(answer.error.expect("as it was made").code, 3);
    let refused = dispatch::store(&mut b.cluster, NOW, 2, task(0)).expect_err("it refuses");
    assert_eq!(refused.message, "s2 takes no task");
    let cancel = Command::CancelMppTask(Default::default());
    let unknown = dispatch::store(&mut b.cluster, NOW, 1, cancel).expect_err("it leaves it alone");
    assert_eq!(unknown.code, GrpcCode::Unimplemented);
    // A question for PD is none for a store.
    let members = Command::GetMembers(Default::default());
    let unknown = dispatch::store(&mut b.cluster, NOW, 1, members).expect_err("no such service");
    assert_eq!(unknown.code, GrpcCode::Unimplemented);
    b.cluster.stop_store(2);
    let down = dispatch::store(&mut b.cluster, NOW, 2, task(3)).expect_err("it is down");
    assert_eq!(down.code, GrpcCode::Unavailable);
}

#[test]
fn a_cluster_in_process_has_the_extension_of_its_configuration() {
    let cluster = LocalCluster::builder()
        .config(|config| config.extension = Some(Extended::from(Mpp)))
        .start();
    let answer = cluster.with(|cluster, now_ms| dispatch::store(cluster, now_ms, 1, task(5)));
    assert!(
        matches!(answer, Ok(Response::DispatchMppTask(_))),
        "{answer:?}"
    );
}

#[test]
fn a_simulated_client_reaches_the_extension() {
    Simulation::seed(1).extension(Mpp).run(async |sim| {
        let store = sim.cluster(|cluster| cluster.store(1).cloned());
        let address = store.expect("a store").meta.address;
        let rpc = Rpc {
            endpoint: Endpoint::Store {
                id: 1,
                address: address.into(),
            },
            context: None,
            command: Arc::new(task(4)),
            deadline: Instant::FAR_FUTURE,
        };
        let send = Operation::new("mpp", |io: Io| async move { io.send(rpc).await });
        let answer = sim.driver().run(send).await;
        assert!(
            matches!(answer, Ok(Response::DispatchMppTask(_))),
            "{answer:?}"
        );
        Ok(())
    });
}

#[test]
fn an_extension_reads_what_was_committed() {
    let mut b = Bench::new();
    for (start, value) in [(5, b"old"), (8, b"new")] {
        b.must_prewrite_put(b"k", value, b"k", start);
        b.must_commit(b"k", start, start + 1);
    }
    b.must_prewrite_put(b"k", b"later", b"k", 11);
    let asked = Asked {
        now_ms: NOW,
        store: 1,
        cluster: &b.cluster,
    };
    assert_eq!(asked.get(5, b"k"), None);
    assert_eq!(asked.get(8, b"k").as_deref(), Some(&b"old"[..]));
    assert_eq!(asked.get(20, b"k").as_deref(), Some(&b"new"[..]));
    assert_eq!(asked.get(20, b"k1"), None);
    assert_eq!(asked.scan(20, b"", b"").len(), 1);
    assert_eq!(asked.scan(20, b"a", b"k").len(), 0);
}
