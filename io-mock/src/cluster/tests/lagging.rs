//! What a peer that has fallen behind sees, and who has it catch up.

use bytes::Bytes;
use tikv_core::wire::Response;
use tikv_proto::kvrpcpb::{
    Context, DeleteRangeRequest, GetRequest, GetResponse, RawGetRequest, RawPutRequest,
    RawScanRequest, ScanRequest, StoreSafeTsRequest, UnsafeDestroyRangeRequest,
};
use tikv_proto::metapb::PeerRole;

use super::vocabulary::pre;
use super::{Bench, NOW};
use crate::cluster::key;
use crate::cluster::lock_wait::Answer;
use crate::cluster::mvcc::engine::ColumnFamily;
use crate::cluster::region::{RegionId, StoreId};
use crate::dispatch;

impl Bench {
    /// The context of a client that knows the region of a key as a store does.
    fn known_on(&self, store: StoreId, k: &[u8]) -> Context {
        let (now, _) = self.route(&key::encode(k));
        let region = self.cluster.region_on(store, now.region_id);
        let region = region.expect("it is there");
        Context {
            peer: region.peer_on(store).copied(),
            region_epoch: region.meta.region_epoch,
            ..now
        }
    }

    pub(super) fn get_on(
        &mut self,
        store: StoreId,
        context: Context,
        k: &[u8],
        version: u64,
    ) -> GetResponse {
        let request = get(context, k, version);
        self.cluster.kv_get(NOW, store, request)
    }

    /// A stale read: the value, `!` for a lock, or nothing.
    fn stale(&mut self, store: StoreId, k: &[u8], version: u64) -> String {
        let context = Context {
            stale_read: true,
            ..self.known_on(store, k)
        };
        let response = self.get_on(store, context, k, version);
        assert_eq!(response.region_error, None);
        match response.error {
            Some(_) => "!".to_owned(),
            None => String::from_utf8_lossy(&response.value).into_owned(),
        }
    }

    fn by_replica(&mut self, store: StoreId, k: &[u8], version: u64) -> GetResponse {
        let context = Context {
            replica_read: true,
            ..self.known_on(store, k)
        };
        self.get_on(store, context, k, version)
    }

    fn id_of(&self, k: &[u8]) -> RegionId {
        self.route(&key::encode(k)).0.region_id
    }
}

fn get(context: Context, k: &[u8], version: u64) -> GetRequest {
    GetRequest {
        context: Some(Box::new(context)),
        key: Bytes::copy_from_slice(k),
        version,
        need_commit_ts: false,
    }
}

#[test]
fn what_it_has_not_applied_is_not_there() {
    let mut b = Bench::new();
    let id = b.id_of(b"k");
    b.write(b"a", b"old", 5, 6);
    b.write(b"b", b"old", 5, 6);
    b.must_prewrite_put(b"c", b"new", b"c", 20);
    b.cluster.set_safe_ts(id, 50);
    assert!(b.cluster.fall_behind(id, 2));
    b.write(b"a", b"new", 21, 22);
    b.must_prewrite_put(b"b", b"new", b"b", 23);
    b.must_commit(b"c", 20, 24);
    b.write(b"d", b"new", 25, 26);
    let seen =
        |b: &mut Bench, store| [b"a", b"b", b"c", b"d"].map(|k: &[u8; 1]| b.stale(store, k, 30));
    assert_eq!(seen(&mut b, 3), ["new", "!", "new", "new"]);
    assert_eq!(seen(&mut b, 2), ["old", "old", "!", ""]);
    for reverse in [false, true] {
        let (start_key, end_key) = match reverse {
            false => ("a".into(), "z".into()),
            true => ("z".into(), "a".into()),
        };
        let request = ScanRequest {
            context: Some(Box::new(Context {
                stale_read: true,
                ..b.known_on(2, b"k")
            })),
            start_key,
            end_key,
            reverse,
            limit: 9,
            version: 30,
            ..ScanRequest::default()
        };
        let pairs = b.cluster.kv_scan(NOW, 2, request).pairs;
        let mut seen: Vec<_> = pairs.iter().map(|pair| pair.value.as_ref()).collect();
        if reverse {
            seen.reverse();
        }
        assert_eq!(seen, [&b"old"[..], b"old", b""], "the last is locked");
    }
    b.cluster.catch_up(2);
    assert_eq!(seen(&mut b, 2), ["new", "!", "new", "new"]);
}

#[test]
fn its_timestamp_is_that_of_then() {
    let mut b = Bench::new();
    let id = b.id_of(b"k");
    let safe_ts = |b: &mut Bench, store| {
        let request = StoreSafeTsRequest::default();
        b.cluster.get_store_safe_ts(NOW, store, request).safe_ts
    };
    b.cluster.set_safe_ts(id, 10);
    b.cluster.fall_behind(id, 2);
    b.write(b"k", b"v", 15, 16);
    b.cluster.set_safe_ts(id, 20);
    assert_eq!((safe_ts(&mut b, 2), safe_ts(&mut b, 3)), (10, 20));
    let context = Context {
        stale_read: true,
        ..b.known_on(2, b"k")
    };
    let error = b.get_on(2, context.clone(), b"k", 20).region_error;
    let detail = error.and_then(|error| error.data_is_not_ready);
    assert_eq!(detail.map(|detail| detail.safe_ts), Some(10));
    b.cluster.catch_up_peer(id, 2);
    assert_eq!(b.get_on(2, context, b"k", 20).value, "v");
    assert_eq!(safe_ts(&mut b, 2), 20);
}

#[test]
fn a_restart_keeps_what_is_on_its_disk() {
    let mut b = Bench::new();
    let id = b.id_of(b"k");
    b.write(b"k", b"old", 5, 6);
    b.cluster.set_safe_ts(id, 10);
    assert_eq!(b.by_replica(2, b"k", 12).value, "old");
    b.cluster.fall_behind(id, 2);
    b.write(b"k", b"new", 15, 16);
    b.cluster.set_safe_ts(id, 20);
    b.cluster.stop_store(2);
    b.cluster.start_store(NOW, 2);
    let context = Context {
        stale_read: true,
        ..b.known_on(2, b"k")
    };
    let error = b.get_on(2, context, b"k", 8).region_error;
    let detail = error.and_then(|error| error.data_is_not_ready);
    assert_eq!(detail.map(|detail| detail.safe_ts), Some(0));
    let plain = b.known_on(2, b"k");
    let hint = b.get_on(2, plain, b"k", 30).region_error;
    let hint = hint
        .and_then(|error| error.not_leader)
        .expect("it does not lead");
    assert_eq!(hint.leader, None, "it has heard of nobody");
    assert_eq!(b.by_replica(2, b"k", 30).value, "new");
}

#[test]
fn who_asks_for_the_present_makes_it_catch_up() {
    let mut b = Bench::new();
    let id = b.id_of(b"k");
    b.write(b"k", b"old", 5, 6);
    b.cluster.set_safe_ts(id, 10);
    b.cluster.fall_behind(id, 2);
    b.write(b"k", b"new", 15, 16);
    assert_eq!(b.cluster.lagging().collect::<Vec<_>>(), [(id, 2, 2)]);
    // What it is sure to have it serves as it stands.
    assert_eq!(b.by_replica(2, b"k", 10).value, "old");
    assert_eq!(b.cluster.lagging().count(), 1);
    assert_eq!(b.by_replica(2, b"k", 20).value, "new");
    assert_eq!(b.cluster.lagging().count(), 0);
    // The leader says that it may not be read before the replica need wait.
    b.cluster.lengthen_lag(id, 2, 100);
    b.cluster.hold_writes(id);
    b.must_run(pre(b"k", 30).put(&[b"k"]).by_locks(&[], 0).min(40));
    let refused = b.by_replica(2, b"k", 50);
    assert!(refused.error.and_then(|error| error.locked).is_some());
    assert!(
        b.by_replica(2, b"k", 35).region_error.is_some(),
        "too far behind"
    );
}

#[test]
fn a_stuck_peer_lets_a_read_wait() {
    let mut b = Bench::new();
    let id = b.id_of(b"k");
    b.write(b"k", b"old", 5, 6);
    assert!(b.cluster.stall(id, 2));
    assert!(!b.cluster.stall(id, 1), "it leads");
    let read = |b: &Bench, limit| {
        let context = Context {
            replica_read: true,
            max_execution_duration_ms: limit,
            ..b.known_on(2, b"k")
        };
        get(context, b"k", 50)
    };
    // As long as there is nothing to apply, nobody waits.
    let request = read(&b, 0);
    assert_eq!(b.cluster.kv_get(NOW, 2, request).value, "old");
    b.write(b"k", b"new", 15, 16);
    let begin = |b: &mut Bench, limit| {
        let request = read(b, limit);
        match dispatch::begin(&mut b.cluster, NOW, 2, request.into()) {
            Ok(Answer::Later(ticket)) => ticket,
            other => panic!("must wait, but got {other:?}"),
        }
    };
    let first = begin(&mut b, 0);
    let hasty = begin(&mut b, 10);
    assert_eq!(b.cluster.next_wake_ms(), None);
    assert!(dispatch::take_woken(&mut b.cluster, NOW + 20).is_empty());
    // Who can't wait hears that its time is over.
    let request = read(&b, 0);
    let refused = b.cluster.kv_get(NOW, 2, request).region_error;
    assert!(refused.is_some_and(|error| error.server_is_busy.is_some()));
    // That is nobody else's business.
    let plain = get(b.known_on(1, b"k"), b"k", 50);
    let begun = dispatch::begin(&mut b.cluster, NOW, 1, plain.into());
    assert!(matches!(begun, Ok(Answer::Now(_))), "{begun:?}");
    b.write(b"k", b"newest", 25, 26);
    b.cluster.catch_up(2);
    assert_eq!(b.cluster.next_wake_ms(), Some(0));
    let woken = dispatch::take_woken(&mut b.cluster, NOW + 20);
    let [
        (one, Ok(Response::Get(answer))),
        (other, Ok(Response::Get(late))),
    ] = &woken[..]
    else {
        panic!("{woken:?}")
    };
    assert_eq!((*one, &answer.value[..]), (first, &b"newest"[..]));
    assert_eq!(*other, hasty);
    let busy = late
        .region_error
        .as_ref()
        .and_then(|error| error.server_is_busy.as_ref());
    assert_eq!(busy.expect("it is late").reason, "deadline is exceeded");
    assert_eq!(b.cluster.next_wake_ms(), None);
}

#[test]
fn a_read_stops_waiting_when_its_store_stops_or_leads() {
    let mut b = Bench::new();
    let id = b.id_of(b"k");
    b.write(b"k", b"old", 5, 6);
    for (leads, version) in [(true, 50), (false, 60)] {
        assert!(b.cluster.stall(id, 2));
        b.write(b"k", b"new", version - 2, version - 1);
        let context = Context {
            replica_read: true,
            ..b.known_on(2, b"k")
        };
        let request = get(context, b"k", version);
        let begun = dispatch::begin(&mut b.cluster, NOW, 2, request.into());
        assert!(matches!(begun, Ok(Answer::Later(_))), "{begun:?}");
        match leads {
            true => assert!(b.cluster.transfer_leader(NOW, id, 2)),
            false => b.cluster.stop_store(2),
        }
        let woken = dispatch::take_woken(&mut b.cluster, NOW);
        match &woken[..] {
            [(_, Ok(Response::Get(answer)))] if leads => assert_eq!(answer.value, "new"),
            [(_, Err(_))] if !leads => {}
            other => panic!("{other:?}"),
        }
        b.cluster.transfer_leader(NOW, id, 1);
    }
}

#[test]
fn ranges_that_go_are_still_there() {
    let mut b = Bench::new();
    let id = b.id_of(b"k");
    b.write(b"k", b"old", 5, 6);
    b.cluster.set_safe_ts(id, 10);
    b.cluster.fall_behind(id, 2);
    let (context, store) = b.to(b"k");
    let request = DeleteRangeRequest {
        context,
        start_key: "a".into(),
        end_key: "z".into(),
        notify_only: false,
    };
    assert_eq!(b.cluster.kv_delete_range(NOW, store, request).error, "");
    assert_eq!(b.stale(3, b"k", 8), "");
    assert_eq!(b.stale(2, b"k", 8), "old");
    // That one goes past the log.
    let request = UnsafeDestroyRangeRequest {
        start_key: key::encode(b"a"),
        end_key: key::encode(b"z"),
        ..UnsafeDestroyRangeRequest::default()
    };
    b.cluster.unsafe_destroy_range(NOW, 2, request);
    assert_eq!(b.stale(2, b"k", 8), "");
}

#[test]
fn raw_reads_at_a_replica_are_of_the_present() {
    let mut b = Bench::new();
    let (context, store) = b.route(b"k");
    let id = context.region_id;
    let put = |b: &mut Bench, value: &'static str| {
        let request = RawPutRequest {
            context: Some(Box::new(context.clone())),
            key: "k".into(),
            value: value.into(),
            ..RawPutRequest::default()
        };
        assert_eq!(b.cluster.raw_put(NOW, store, request).error, "");
    };
    put(&mut b, "old");
    b.cluster.fall_behind(id, 2);
    put(&mut b, "new");
    let region = b.cluster.region(id).expect("a region");
    let at_replica = Context {
        replica_read: true,
        peer: region.peer_on(2).copied(),
        ..context.clone()
    };
    let everything = Bytes::new();
    let values = |b: &Bench, store| {
        let view = b.cluster.engine().on(store);
        let raw = view.raw_range(ColumnFamily::Default, &everything, &everything);
        raw.map(|(_, value)| value.value.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (values(&b, 2), values(&b, 3)),
        (vec!["old".into()], vec!["new".into()])
    );
    let request = RawGetRequest {
        context: Some(Box::new(at_replica.clone())),
        key: "k".into(),
        ..RawGetRequest::default()
    };
    assert_eq!(b.cluster.raw_get(NOW, 2, request).value, "new");
    b.cluster.lengthen_lag(id, 2, 100);
    let request = RawScanRequest {
        context: Some(Box::new(at_replica)),
        limit: 9,
        ..RawScanRequest::default()
    };
    let refused = b.cluster.raw_scan(NOW, 2, request).region_error;
    assert!(refused.is_some_and(|error| error.read_index_not_ready.is_some()));
}

#[test]
fn a_merge_waits_for_the_target_where_that_lags() {
    let mut b = Bench::new();
    let id = b.id_of(b"k");
    let parts = b.cluster.split(NOW, id, &[key::encode(b"m")]);
    let (source, target) = (parts[0], parts[1]);
    b.write(b"a", b"old", 5, 6);
    b.cluster.set_safe_ts(source, 10);
    b.cluster.set_safe_ts(target, 10);
    let before = b.cluster.region(source).expect("a region").epoch();
    b.cluster.fall_behind(target, 2);
    b.cluster.fall_behind(source, 3);
    assert!(b.cluster.merge(NOW, source, target));
    // Where the target has caught up, so has the source before it.
    assert_eq!(
        b.cluster
            .lagging()
            .map(|(id, store, _)| (id, store))
            .collect::<Vec<_>>(),
        [(target, 2), (source, 2)]
    );
    let waiting = b.cluster.region_on(2, source).expect("it waits").clone();
    assert!(waiting.merging);
    assert_eq!(waiting.epoch().version, before.version + 1);
    let context = Context {
        region_id: source,
        region_epoch: waiting.meta.region_epoch,
        peer: waiting.peer_on(2).copied(),
        stale_read: true,
        ..Context::default()
    };
    assert_eq!(b.get_on(2, context.clone(), b"a", 8).value, "old");
    let by_replica = Context {
        stale_read: false,
        replica_read: true,
        ..context
    };
    let error = b.get_on(2, by_replica, b"a", 20).region_error;
    let not_ready = error.and_then(|error| error.read_index_not_ready);
    let reason = not_ready.expect("it is set apart").reason;
    assert_eq!(reason, "can not read index due to merge");
    b.cluster.catch_up_peer(target, 2);
    assert_eq!(b.cluster.lagging().count(), 0);
    assert_eq!(b.stale(2, b"a", 10), "old");
}

#[test]
fn who_led_what_was_merged_serves_it_no_more_where_the_target_lags() {
    let mut b = Bench::new();
    let id = b.id_of(b"k");
    let parts = b.cluster.split(NOW, id, &[key::encode(b"m")]);
    let (source, target) = (parts[0], parts[1]);
    b.write(b"a", b"old", 5, 6);
    assert!(b.cluster.transfer_leader(NOW, source, 1));
    assert!(b.cluster.transfer_leader(NOW, target, 2));
    b.cluster.fall_behind(target, 1);
    assert!(b.cluster.merge(NOW, source, target));
    let waiting = b.cluster.region_on(1, source).expect("it waits").clone();
    b.write(b"a", b"new", 15, 16);
    let context = Context {
        region_id: source,
        region_epoch: waiting.meta.region_epoch,
        peer: waiting.peer_on(1).copied(),
        ..Context::default()
    };
    let error = b.get_on(1, context, b"a", 20).region_error;
    assert!(error.is_some_and(|error| error.not_leader.is_some()));
}

#[test]
fn a_buried_store_leaves_nothing_behind() {
    let mut b = Bench::new();
    let id = b.id_of(b"k");
    assert!(b.cluster.stall(id, 3));
    b.write(b"k", b"v", 5, 6);
    assert!(b.cluster.take_offline(3));
    assert!(b.cluster.bury_store(NOW, 3));
    assert_eq!(b.cluster.lagging().count(), 0);
    assert!(!b.cluster.engine().stands_still_anywhere() && !b.cluster.may_stall());
}

#[test]
fn a_peer_that_was_removed_learns_it_when_it_catches_up() {
    let mut b = Bench::new();
    let id = b.id_of(b"k");
    b.write(b"k", b"old", 5, 6);
    b.cluster.set_safe_ts(id, 10);
    b.cluster.fall_behind(id, 2);
    assert!(b.cluster.remove_peer(NOW, id, 2));
    assert_eq!(b.stale(2, b"k", 8), "old");
    let response = b.by_replica(2, b"k", 20);
    assert!(
        response
            .region_error
            .is_some_and(|error| error.region_not_found.is_some())
    );
    // A new peer starts with a copy.
    b.cluster.add_peer(NOW, id, 2, PeerRole::Voter);
    assert_eq!(b.cluster.lagging().count(), 0);
    assert_eq!(b.stale(2, b"k", 8), "old");
}
