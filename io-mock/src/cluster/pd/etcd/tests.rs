//! The etcd inside PD, asked without a server.

use bytes::Bytes;
use tikv_proto::meta_storagepb::{KeyValue, event};
use tikv_proto::pdpb::{AdvanceTxnSafePointRequest, GetGcStateRequest};

use super::messages::{
    CompactionRequest, Compare, CompareResult, CompareTarget, Compared, DeleteRangeRequest,
    LeaseGrantRequest, LeaseRequest, LeaseTimeToLiveRequest, Op, OpDone, OpKind, PutRequest,
    RangeRequest, SortOrder, Target, TxnRequest, WatchCreate,
};
use crate::cluster::failure::GrpcCode;
use crate::cluster::pd::Pd;
use crate::cluster::pd::testing::{header, pd};

const MIN_START_TS: &str = "/tidb/server/minstartts/node-1";
const SAFE_POINT: &str = "/tidb/store/gcworker/saved_safe_point";

fn put_request(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    }
}

fn put(pd: &mut Pd, key: &'static str, value: &'static str) {
    pd.etcd_put(0, 0, put_request(key, value)).unwrap();
}

fn all() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(&[0]),
        range_end: Bytes::from_static(&[0]),
        ..RangeRequest::default()
    }
}

fn range(pd: &mut Pd, request: RangeRequest) -> Vec<(String, String)> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let found = pd.etcd_range(0, 0, request).unwrap().kvs;
    let found = found.iter().map(|kv| (text(&kv.key), text(&kv.value)));
    found.collect()
}

fn keys(pd: &mut Pd, request: RangeRequest) -> Vec<String> {
    range(pd, request).into_iter().map(|(key, _)| key).collect()
}

fn get(pd: &mut Pd, key: &'static str) -> Option<KeyValue> {
    let request = RangeRequest {
        key: key.into(),
        ..RangeRequest::default()
    };
    pd.etcd_range(0, 0, request).unwrap().kvs.pop()
}

fn code<T: std::fmt::Debug>(
    answer: Result<T, crate::cluster::failure::GrpcError>,
) -> (GrpcCode, String) {
    let error = answer.unwrap_err();
    (error.code, error.message)
}

#[test]
fn ranges_are_sorted_filtered_and_cut() {
    let mut pd = pd();
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("b", "4")] {
        put(&mut pd, key, value);
    }
    assert_eq!(keys(&mut pd, all()), ["a", "b", "c"]);
    let sorted = RangeRequest {
        sort_order: SortOrder::Descend.into(),
        sort_target: Target::Mod.into(),
        ..all()
    };
    assert_eq!(keys(&mut pd, sorted.clone()), ["b", "c", "a"]);
    let cut = RangeRequest { limit: 2, ..sorted };
    let found = pd.etcd_range(0, 0, cut).unwrap();
    assert_eq!((found.kvs.len(), found.more, found.count), (2, true, 3));
    let changed = RangeRequest {
        min_mod_revision: 5,
        ..all()
    };
    let found = pd.etcd_range(0, 0, changed).unwrap();
    let kv = &found.kvs[0];
    assert_eq!(found.count, 3, "counted before it is filtered");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (3, 5, 2));
    let counted = RangeRequest {
        count_only: true,
        ..all()
    };
    let found = pd.etcd_range(0, 0, counted).unwrap();
    assert_eq!((found.kvs.len(), found.count), (0, 3));
}

#[test]
fn old_revisions_are_read_until_they_are_compacted() {
    let mut pd = pd();
    put(&mut pd, "a", "1");
    put(&mut pd, "b", "1");
    put(&mut pd, "a", "2");
    let delete = DeleteRangeRequest {
        key: "b".into(),
        ..DeleteRangeRequest::default()
    };
    assert_eq!(pd.etcd_delete_range(0, 0, delete).unwrap().deleted, 1);
    let at = |revision| RangeRequest { revision, ..all() };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(range(&mut pd, at(2)), [pair("a", "1")]);
    assert_eq!(range(&mut pd, at(3)), [pair("a", "1"), pair("b", "1")]);
    assert_eq!(range(&mut pd, at(4)), [pair("a", "2"), pair("b", "1")]);
    assert_eq!(range(&mut pd, at(5)), [pair("a", "2")]);
    let future = code(pd.etcd_range(0, 0, at(6)));
    assert_eq!(future.0, GrpcCode::OutOfRange);
    pd.etcd_compact(0, 0, CompactionRequest { revision: 3 })
        .unwrap();
    assert_eq!(range(&mut pd, at(3)), [pair("a", "1"), pair("b", "1")]);
    let gone = code(pd.etcd_range(0, 0, at(2)));
    let message = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!(gone, (GrpcCode::OutOfRange, message.to_owned()));
    let again = pd.etcd_compact(0, 0, CompactionRequest { revision: 3 });
    assert_eq!(code(again).0, GrpcCode::OutOfRange);
}

fn compare(result: CompareResult, target: CompareTarget, with: Compared) -> Compare {
    Compare {
        result: result.into(),
        target: target.into(),
        key: "a".into(),
        with: Some(with),
        ..Compare::default()
    }
}

fn op(kind: OpKind) -> Op {
    Op { kind: Some(kind) }
}

#[test]
fn a_transaction_does_what_its_conditions_say_at_one_revision() {
    let mut pd = pd();
    let absent = compare(
        CompareResult::Equal,
        CompareTarget::Create,
        Compared::Create(0),
    );
    let request = TxnRequest {
        compare: vec![absent],
        success: vec![
            op(OpKind::Put(put_request("a", "mine"))),
            op(OpKind::Put(put_request("b", "mine"))),
        ],
        failure: vec![op(OpKind::Range(all()))],
    };
    let won = pd.etcd_txn(0, 0, request.clone()).unwrap();
    assert!(won.succeeded);
    let revisions = ["a", "b"].map(|key| get(&mut pd, key).unwrap().mod_revision);
    assert_eq!(revisions, [2, 2]);
    let lost = pd.etcd_txn(0, 0, request).unwrap();
    assert!(!lost.succeeded);
    let Some(OpDone::Range(seen)) = &lost.responses[0].done else {
        panic!("{lost:?}");
    };
    assert_eq!(seen.kvs.len(), 2);
    assert_eq!(lost.header.unwrap().revision, 2, "nothing was written");

    let holds = |pd: &mut Pd, compare: Compare| {
        let request = TxnRequest {
            compare: vec![compare],
            ..TxnRequest::default()
        };
        pd.etcd_txn(0, 0, request).unwrap().succeeded
    };
    use {CompareResult as R, CompareTarget as T};
    let value = |text: &'static str| Compared::Value(text.into());
    assert!(holds(&mut pd, compare(R::Equal, T::Value, value("mine"))));
    assert!(holds(&mut pd, compare(R::Less, T::Value, value("other"))));
    assert!(!holds(
        &mut pd,
        compare(R::Greater, T::Version, Compared::Version(1))
    ));
    let missing = Compare {
        key: "none".into(),
        ..compare(R::NotEqual, T::Value, value("mine"))
    };
    assert!(!holds(&mut pd, missing), "no value is not another value");
    let both = Compare {
        range_end: "c".into(),
        ..compare(R::NotEqual, T::Mod, Compared::Mod(2))
    };
    assert!(!holds(&mut pd, both));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_done() {
    let mut pd = pd();
    let txn = |success: Vec<Op>| TxnRequest {
        success,
        ..TxnRequest::default()
    };
    let put_a = || op(OpKind::Put(put_request("a", "1")));
    let delete_all = || {
        op(OpKind::DeleteRange(DeleteRangeRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            prev_kv: false,
        }))
    };
    for ops in [
        vec![put_a(), put_a()],
        vec![put_a(), delete_all()],
        vec![put_a(), op(OpKind::Txn(txn(vec![put_a()])))],
        vec![op(OpKind::Txn(txn(vec![put_a()]))), delete_all()],
    ] {
        let message = "etcdserver: duplicate key given in txn request";
        let refused = code(pd.etcd_txn(0, 0, txn(ops)));
        assert_eq!(refused, (GrpcCode::InvalidArgument, message.to_owned()));
    }
    let either = TxnRequest {
        success: vec![put_a()],
        failure: vec![put_a(), op(OpKind::Put(put_request("b", "1")))],
        ..TxnRequest::default()
    };
    let nested = txn(vec![op(OpKind::Txn(either))]);
    assert!(
        pd.etcd_txn(0, 0, nested).is_ok(),
        "only one of them is done"
    );
    let revision = pd.meta_revision();

    let hangs = PutRequest {
        lease: 9,
        ..put_request("b", "1")
    };
    let unknown = txn(vec![
        op(OpKind::Put(put_request("c", "1"))),
        op(OpKind::Put(hangs)),
    ]);
    assert_eq!(code(pd.etcd_txn(0, 0, unknown)).0, GrpcCode::NotFound);
    let many = vec![put_a(); 129];
    assert_eq!(
        code(pd.etcd_txn(0, 0, txn(many))).1,
        "etcdserver: too many operations in txn request"
    );
    let nameless = code(pd.etcd_put(0, 0, put_request("", "1")));
    assert_eq!(nameless.1, "etcdserver: key is not provided");
    let keeps = PutRequest {
        ignore_value: true,
        ..put_request("none", "")
    };
    let keeps = code(pd.etcd_put(0, 0, keeps));
    assert_eq!(keeps.1, "etcdserver: key not found");
    assert_eq!(pd.meta_revision(), revision, "nothing was written");
}

#[test]
fn keys_go_with_their_lease() {
    let mut pd = pd();
    let grant = |pd: &mut Pd, ttl, id| {
        let request = LeaseGrantRequest { ttl, id };
        pd.etcd_lease_grant(0, 0, request)
    };
    let short = grant(&mut pd, 1, 0).unwrap();
    assert_eq!(short.ttl, 5, "none is shorter");
    let long = grant(&mut pd, 60, 77).unwrap();
    assert_eq!(code(grant(&mut pd, 60, 77)).0, GrpcCode::FailedPrecondition);
    for (key, lease) in [("a", short.id), ("b", short.id), ("c", long.id)] {
        let request = PutRequest {
            lease,
            ..put_request(key, "1")
        };
        pd.etcd_put(0, 0, request).unwrap();
    }
    // A put without a lease takes the key off it.
    put(&mut pd, "b", "2");
    let mut watcher = pd.etcd_watch(
        3,
        &WatchCreate {
            key: "a".into(),
            ..WatchCreate::default()
        },
    );
    let keep = LeaseRequest { id: short.id };
    let renewed = pd.etcd_lease_keep_alive(4_000, 0, keep).unwrap();
    assert_eq!(renewed.ttl, 5);
    assert!(pd.etcd_has_leases());
    pd.etcd_end_leases(8_999);
    assert!(pd.etcd_next(0, &mut watcher).is_none());
    pd.etcd_end_leases(9_000);
    let told = pd.etcd_next(0, &mut watcher).unwrap();
    assert_eq!(told.watch_id, 3);
    assert_eq!(told.events[0].r#type(), event::EventType::Delete);
    assert_eq!(keys(&mut pd, all()), ["b", "c"]);
    let ask = |id| LeaseTimeToLiveRequest { id, keys: true };
    let gone = pd.etcd_lease_time_to_live(9_000, 0, ask(short.id)).unwrap();
    assert_eq!((gone.ttl, gone.granted_ttl), (-1, 0));
    let lives = pd.etcd_lease_time_to_live(9_000, 0, ask(77)).unwrap();
    assert_eq!((lives.ttl, lives.granted_ttl), (51, 60));
    assert_eq!(lives.keys, ["c"]);
    let renewed = pd.etcd_lease_keep_alive(9_000, 0, LeaseRequest { id: short.id });
    assert_eq!(renewed.unwrap().ttl, 0, "it is not there");
    pd.etcd_lease_revoke(9_000, 0, LeaseRequest { id: 77 })
        .unwrap();
    assert_eq!(keys(&mut pd, all()), ["b"]);
    let again = pd.etcd_lease_revoke(9_000, 0, LeaseRequest { id: 77 });
    assert_eq!(code(again).0, GrpcCode::NotFound);
}

#[test]
fn a_watch_tells_what_it_was_asked_for_and_ends_when_that_is_gone() {
    let mut pd = pd();
    put(&mut pd, "a", "1");
    put(&mut pd, "b", "1");
    let from_first = WatchCreate {
        key: Bytes::from_static(&[0]),
        range_end: Bytes::from_static(&[0]),
        start_revision: 1,
        filters: vec![1],
        prev_kv: true,
        ..WatchCreate::default()
    };
    let mut watcher = pd.etcd_watch(0, &from_first);
    assert_eq!(pd.etcd_next(0, &mut watcher).unwrap().events.len(), 2);
    assert!(pd.etcd_next(0, &mut watcher).is_none());
    put(&mut pd, "a", "2");
    let delete = DeleteRangeRequest {
        key: "a".into(),
        ..DeleteRangeRequest::default()
    };
    pd.etcd_delete_range(0, 0, delete).unwrap();
    let told = pd.etcd_next(0, &mut watcher).unwrap().events;
    assert_eq!(told.len(), 1, "deletions are left out");
    assert_eq!(&told[0].prev_kv.as_ref().unwrap().value[..], b"1");
    let later = WatchCreate {
        start_revision: 7,
        ..from_first.clone()
    };
    let mut later = pd.etcd_watch(1, &later);
    put(&mut pd, "c", "1");
    assert!(pd.etcd_next(0, &mut later).is_none(), "revision 6");
    put(&mut pd, "c", "2");
    assert_eq!(pd.etcd_next(0, &mut later).unwrap().events.len(), 1);
    pd.etcd_compact(0, 0, CompactionRequest { revision: 4 })
        .unwrap();
    let mut watcher = pd.etcd_watch(2, &from_first);
    let told = pd.etcd_next(0, &mut watcher).unwrap();
    assert_eq!((told.canceled, told.compact_revision), (true, 4));
}

#[test]
fn what_old_nodes_leave_for_pd_holds_it_back() {
    let mut pd = pd();
    put(&mut pd, MIN_START_TS, "40");
    let advance = |pd: &mut Pd, target| {
        let request = AdvanceTxnSafePointRequest {
            header: header(),
            target,
            ..AdvanceTxnSafePointRequest::default()
        };
        let answer = pd.advance_txn_safe_point(0, 0, request).unwrap();
        answer.new_txn_safe_point
    };
    assert_eq!(advance(&mut pd, 60), 40);
    let kept = get(&mut pd, SAFE_POINT).unwrap();
    assert_eq!(&kept.value[..], b"40", "where old nodes look for it");
    let delete = DeleteRangeRequest {
        key: MIN_START_TS.into(),
        ..DeleteRangeRequest::default()
    };
    pd.etcd_delete_range(0, 0, delete).unwrap();
    assert_eq!(advance(&mut pd, 60), 60);
    // An old node moves the point itself.
    put(&mut pd, SAFE_POINT, "70");
    let request = GetGcStateRequest {
        header: header(),
        ..GetGcStateRequest::default()
    };
    let state = pd.get_gc_state(0, 0, request).unwrap().gc_state.unwrap();
    assert_eq!(state.txn_safe_point, 70);
    let revision = pd.meta_revision();
    pd.etcd_tell_safe_points();
    assert_eq!(pd.meta_revision(), revision, "there is no news");
}
