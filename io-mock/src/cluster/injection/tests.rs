//! Region errors on demand.

use tikv_core::wire::{Command, Response};
use tikv_proto::errorpb::{Error, UndeterminedResult};
use tikv_proto::kvrpcpb;

use super::Injection;
use crate::cluster::failure::GrpcError;
use crate::cluster::tests::{Bench, NOW};
use crate::dispatch;

fn ask(b: &mut Bench, command: Command) -> Result<Response, GrpcError> {
    dispatch::store(&mut b.cluster, NOW, 1, command)
}

fn get(b: &Bench) -> Command {
    let request = kvrpcpb::GetRequest {
        context: b.to(b"k").0,
        key: "k".into(),
        version: 5,
        need_commit_ts: false,
    };
    request.into()
}

fn scan(b: &Bench) -> Command {
    let request = kvrpcpb::ScanRequest {
        context: b.to(b"k").0,
        version: 5,
        limit: 1,
        ..Default::default()
    };
    request.into()
}

fn strange() -> Error {
    Error {
        message: "strange".to_owned(),
        undetermined_result: Some(UndeterminedResult::default()),
        ..Error::default()
    }
}

#[test]
fn as_many_fitting_requests_as_wished_get_the_error() {
    let mut b = Bench::new();
    b.cluster.inject(Injection {
        command: Some("Get"),
        times: 2,
        ..Injection::once(strange())
    });
    let refused = |answer: Result<Response, GrpcError>| {
        let answer = answer.expect("an answer");
        dispatch::region_error(&answer).cloned()
    };
    let (get, scan) = (get(&b), scan(&b));
    assert_eq!(refused(ask(&mut b, scan)), None);
    assert_eq!(refused(ask(&mut b, get.clone())), Some(strange()));
    assert_eq!(refused(ask(&mut b, get.clone())), Some(strange()));
    assert_eq!(refused(ask(&mut b, get.clone())), None);

    b.cluster.inject(Injection {
        store: Some(2),
        ..Injection::once(strange())
    });
    assert_eq!(refused(ask(&mut b, get.clone())), None);
    let region = b.to(b"k").0.expect("a context").region_id;
    b.cluster.inject(Injection {
        region: Some(region),
        times: 9,
        ..Injection::once(strange())
    });
    assert_eq!(refused(ask(&mut b, get.clone())), Some(strange()));
    b.cluster.stop_injecting();
    assert_eq!(refused(ask(&mut b, get)), None);
}

#[test]
fn a_store_that_is_down_answers_nothing() {
    let mut b = Bench::new();
    b.cluster.inject(Injection::once(strange()));
    let get = get(&b);
    b.cluster.stop_store(1);
    assert!(ask(&mut b, get.clone()).is_err());
    b.cluster.start_store(NOW, 1);
    let answer = ask(&mut b, get).expect("an answer");
    assert!(dispatch::region_error(&answer).is_some(), "it has waited");
}
