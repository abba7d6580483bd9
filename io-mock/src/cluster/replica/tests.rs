//! What replicas answer, those that keep up and those that do not.

use bytes::Bytes;
use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{self, Context, IsolationLevel};
use tikv_proto::metapb::PeerRole;

use crate::cluster::key;
use crate::cluster::region::{RegionId, StoreId};
use crate::cluster::store::Disk;
use crate::cluster::tests::{Bench, NOW, put, ts};

#[derive(Clone, Copy, Debug)]
enum How {
    Plainly,
    ByReplica,
    Stale,
}

/// Reads `k` from a store that need not lead.
fn read(b: &mut Bench, store: StoreId, how: How, version: u64) -> kvrpcpb::GetResponse {
    let context = as_known_to(b, store);
    read_with(b, store, context, how, version)
}

fn read_with(
    b: &mut Bench,
    store: StoreId,
    mut context: Context,
    how: How,
    version: u64,
) -> kvrpcpb::GetResponse {
    context.replica_read = matches!(how, How::ByReplica);
    context.stale_read = matches!(how, How::Stale);
    let request = kvrpcpb::GetRequest {
        context: Some(Box::new(context)),
        key: "k".into(),
        version,
        need_commit_ts: false,
    };
    b.cluster.kv_get(NOW, store, request)
}

/// The context of a client that knows the region as it is and asks the peer on a store.
fn as_known_to(b: &Bench, store: StoreId) -> Context {
    let (context, _) = b.route(&key::encode(b"k"));
    let region = b.cluster.region(context.region_id).expect("a region");
    Context {
        peer: region.peer_on(store).copied(),
        ..context
    }
}

fn error(response: kvrpcpb::GetResponse) -> errorpb::Error {
    *response.region_error.expect("it can't serve")
}

/// A value of `k` at 6, in a cluster of one region.
fn with_value() -> (Bench, RegionId) {
    let mut b = Bench::new();
    b.must_prewrite_put(b"k", b"v", b"k", 5);
    b.must_commit(b"k", 5, 6);
    let id = as_known_to(&b, 1).region_id;
    (b, id)
}

#[test]
fn a_stale_read_is_served_up_to_the_peers_own_timestamp() {
    let (mut b, id) = with_value();
    b.cluster.set_safe_ts(id, 10);
    assert_eq!(read(&mut b, 2, How::Stale, 10).value, "v");
    let refused = error(read(&mut b, 2, How::Stale, 11));
    let detail = refused.data_is_not_ready.expect("its detail");
    let peer = as_known_to(&b, 2).peer.expect("a peer");
    assert_eq!(
        (detail.region_id, detail.peer_id, detail.safe_ts),
        (id, peer.id, 10)
    );

    // One follower's timestamp stands still.
    b.cluster
        .set_peer_state(id, 2, |peer| peer.safe_ts_stuck = Some(10));
    b.cluster.set_safe_ts(id, 20);
    assert_eq!(read(&mut b, 3, How::Stale, 20).value, "v");
    let detail = error(read(&mut b, 2, How::Stale, 20)).data_is_not_ready;
    assert_eq!(detail.expect("its detail").safe_ts, 10);
    let safe_ts = |b: &mut Bench, store| {
        b.cluster
            .get_store_safe_ts(NOW, store, Default::default())
            .safe_ts
    };
    assert_eq!((safe_ts(&mut b, 2), safe_ts(&mut b, 3)), (10, 20));
    b.cluster
        .set_peer_state(id, 2, |peer| peer.safe_ts_stuck = None);
    assert_eq!(read(&mut b, 2, How::Stale, 20).value, "v");
    // The leader has it all, whatever the timestamp.
    assert_eq!(read(&mut b, 1, How::Stale, 99).value, "v");
}

#[test]
fn a_replica_asks_the_leader_where_it_stands() {
    let (mut b, id) = with_value();
    assert_eq!(read(&mut b, 2, How::ByReplica, 7).value, "v");
    let leader = error(read(&mut b, 2, How::Plainly, 7))
        .not_leader
        .expect("a hint");
    assert_eq!(leader.leader.map(|peer| peer.store_id), Some(1));

    b.cluster.set_splitting(id, true);
    let not_ready = error(read(&mut b, 2, How::ByReplica, 8)).read_index_not_ready;
    assert_eq!(
        not_ready.expect("its detail").reason,
        "can not read index due to split"
    );
    assert_eq!(
        read(&mut b, 1, How::Plainly, 7).value,
        "v",
        "the leader itself reads on"
    );
    // What the leader has said before still holds.
    assert_eq!(read(&mut b, 2, How::ByReplica, 7).value, "v");
    b.cluster.set_splitting(id, false);

    b.cluster.prepare_merge(NOW, id);
    let not_ready = error(read(&mut b, 2, How::ByReplica, 8)).read_index_not_ready;
    assert_eq!(
        not_ready.expect("its detail").reason,
        "can not read index due to merge"
    );
    b.cluster.rollback_merge(NOW, id);

    b.cluster.depose_leader(id);
    let context = Context {
        region_id: id,
        region_epoch: b
            .cluster
            .region(id)
            .and_then(|region| region.meta.region_epoch),
        peer: b
            .cluster
            .region(id)
            .and_then(|region| region.peer_on(2))
            .copied(),
        ..Context::default()
    };
    let refused = error(read_with(&mut b, 2, context, How::ByReplica, 8));
    assert_eq!(refused.not_leader.expect("its detail").leader, None);
}

#[test]
fn a_replica_far_behind_says_so() {
    let (mut b, id) = with_value();
    for (version, lag, refused) in [(7, 0, false), (8, 99, false), (9, 100, true)] {
        assert!(b.cluster.lengthen_lag(id, 2, lag));
        let response = read(&mut b, 2, How::ByReplica, version);
        assert_eq!(response.region_error.is_some(), refused, "{lag}");
    }
    // Whoever is elected has caught up first.
    assert_eq!(b.cluster.lagging().collect::<Vec<_>>(), [(id, 2, 100)]);
    b.cluster.elect(NOW, id, 2);
    b.cluster.transfer_leader(NOW, id, 1);
    assert_eq!(read(&mut b, 2, How::ByReplica, 9).value, "v");
    assert_eq!(b.cluster.lagging().count(), 0);
    assert!(!b.cluster.lengthen_lag(id, 9, 1));
}

#[test]
fn a_replica_without_data_serves_nothing() {
    let (mut b, id) = with_value();
    b.cluster.set_safe_ts(id, 10);
    b.cluster
        .set_peer_state(id, 2, |peer| peer.uninitialized = true);
    assert!(error(read(&mut b, 2, How::Plainly, 7)).not_leader.is_some());
    for how in [How::ByReplica, How::Stale] {
        let refused = error(read(&mut b, 2, how, 7)).region_not_initialized;
        assert_eq!(refused.expect("its detail").region_id, id);
    }
    b.cluster.set_peer_state(id, 2, |peer| {
        peer.uninitialized = false;
        peer.applying_snapshot = true;
    });
    let refused = error(read(&mut b, 2, How::ByReplica, 7));
    let message = refused.message.clone();
    assert_eq!(
        refused,
        errorpb::Error {
            message,
            ..Default::default()
        }
    );
    let refused = error(read(&mut b, 2, How::Stale, 7)).data_is_not_ready;
    assert_eq!(refused.expect("its detail").safe_ts, 0);
    b.cluster.set_peer_state(id, 2, |peer| {
        peer.applying_snapshot = false;
        peer.waits_for_data = true;
    });
    for how in [How::Plainly, How::ByReplica, How::Stale] {
        let refused = error(read(&mut b, 2, how, 7)).is_witness;
        assert_eq!(refused.expect("its detail").region_id, id, "{how:?}");
    }
}

#[test]
fn a_learner_serves_and_does_not_lead() {
    let (mut b, id) = with_value();
    let store = b.cluster.add_store(NOW);
    b.cluster.add_peer(NOW, id, store, PeerRole::Learner);
    b.cluster.set_safe_ts(id, 10);
    assert_eq!(read(&mut b, store, How::ByReplica, 7).value, "v");
    assert_eq!(read(&mut b, store, How::Stale, 7).value, "v");
    assert!(!b.cluster.transfer_leader(NOW, id, store));
    b.cluster.promote_peer(NOW, id, store);
    assert!(b.cluster.transfer_leader(NOW, id, store));
}

#[test]
fn a_full_disk_at_the_replica_refuses_its_question() {
    let (mut b, id) = with_value();
    b.cluster.set_safe_ts(id, 10);
    b.cluster.store_mut(2).expect("a store").disk = Disk::AlreadyFull;
    let refused = error(read(&mut b, 2, How::ByReplica, 11)).disk_full;
    assert_eq!(refused.expect("its detail").store_id, [2]);
    // It need not ask about what it is sure to have.
    assert_eq!(read(&mut b, 2, How::Stale, 10).value, "v");
    assert_eq!(read(&mut b, 2, How::ByReplica, 10).value, "v");
    assert_eq!(read(&mut b, 3, How::ByReplica, 11).value, "v");
}

#[test]
fn a_replica_does_not_know_whether_there_is_anything_newer() {
    let (mut b, _) = with_value();
    let mut context = as_known_to(&b, 2);
    context.set_isolation_level(IsolationLevel::RcCheckTs);
    let response = read_with(&mut b, 2, context.clone(), How::ByReplica, 7);
    assert!(!response.error.expect("no such read").abort.is_empty());
    context.peer = as_known_to(&b, 1).peer;
    assert_eq!(read_with(&mut b, 1, context, How::Plainly, 7).value, "v");
}

#[test]
fn a_peer_that_fell_behind_knows_the_region_as_it_was() {
    let (mut b, id) = with_value();
    b.cluster.set_safe_ts(id, 10);
    let before = as_known_to(&b, 2);
    assert!(!b.cluster.fall_behind(id, 1), "it leads");
    assert!(b.cluster.fall_behind(id, 2));
    // A hint at a leader of the past.
    b.cluster.transfer_leader(NOW, id, 3);
    let hint = error(read_with(&mut b, 2, before.clone(), How::Plainly, 7)).not_leader;
    let hint = hint.and_then(|error| error.leader).expect("a hint");
    assert_eq!(hint.store_id, 1);
    b.cluster.set_safe_ts(id, 20);
    let detail = error(read_with(&mut b, 2, before.clone(), How::Stale, 20)).data_is_not_ready;
    assert_eq!(detail.expect("its detail").safe_ts, 10);

    let parts = b.cluster.split(NOW, id, &[key::encode(b"g")]);
    // A client that knows the split is ahead of it, and learns nothing.
    let after = Context {
        region_epoch: as_known_to(&b, 1).region_epoch,
        ..before.clone()
    };
    let known = error(read_with(&mut b, 2, after, How::Stale, 7)).epoch_not_match;
    let known = known.expect("an older epoch").current_regions;
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].start_key, Bytes::new());
    // A client that does not is served from the past.
    assert_eq!(
        read_with(&mut b, 2, before.clone(), How::Stale, 7).value,
        "v"
    );
    // The new part is not born there.
    let born = b.cluster.region(parts[0]).expect("a part").clone();
    let context = Context {
        region_id: born.meta.id,
        region_epoch: born.meta.region_epoch,
        peer: born.peer_on(2).copied(),
        ..Context::default()
    };
    let refused = error(read_with(&mut b, 2, context.clone(), How::Stale, 7));
    assert_eq!(
        refused.region_not_found.expect("its detail").region_id,
        born.meta.id
    );

    // Who asks it for the present makes it catch up, whatever that is.
    let now = error(read_with(&mut b, 2, before, How::ByReplica, 30)).epoch_not_match;
    assert_eq!(
        now.expect("it has split").current_regions[0].start_key,
        key::encode(b"g")
    );
    let refused = read_with(&mut b, 2, context, How::Stale, 7).region_error;
    assert_eq!(refused, None);
    assert_eq!(read(&mut b, 2, How::ByReplica, 30).value, "v");
}

#[test]
fn a_forced_leader_serves_nobody() {
    let (mut b, id) = with_value();
    b.cluster.set_recovering(id, true);
    for store in [1, 2] {
        let refused = error(read(&mut b, store, How::Plainly, 7)).recovery_in_progress;
        assert_eq!(refused.expect("its detail").region_id, id);
    }
    b.cluster.set_recovering(id, false);
    assert_eq!(read(&mut b, 1, How::Plainly, 7).value, "v");
}

#[test]
fn what_is_refused_leaves_its_timestamp_behind() {
    let mut b = Bench::new();
    let id = as_known_to(&b, 1).region_id;
    b.cluster.set_recovering(id, true);
    let version = ts(20, 0);
    assert!(
        read(&mut b, 1, How::Plainly, version)
            .region_error
            .is_some()
    );
    b.cluster.set_recovering(id, false);
    let min = b.must_prewrite_async(put(b"k", b"v"), b"k", &[], ts(10, 0), 0);
    assert_eq!(min, version + 1);
}

#[test]
fn a_witness_has_nothing_to_serve() {
    let (mut b, id) = with_value();
    b.cluster.set_safe_ts(id, 10);
    assert!(!b.cluster.set_witness(NOW, id, 1, true), "it leads");
    assert!(b.cluster.set_witness(NOW, id, 2, true));
    for how in [How::Plainly, How::ByReplica, How::Stale] {
        let refused = error(read(&mut b, 2, how, 7)).is_witness;
        assert_eq!(refused.expect("its detail").region_id, id, "{how:?}");
    }
    assert!(!b.cluster.transfer_leader(NOW, id, 2));
    assert!(b.cluster.set_witness(NOW, id, 2, false));
    assert_eq!(read(&mut b, 2, How::Stale, 7).value, "v");
}

#[test]
fn a_replica_that_is_asked_for_another_shape_says_so_before_it_says_how_far_it_is() {
    let (mut b, id) = with_value();
    b.cluster.set_safe_ts(id, 10);
    let old = as_known_to(&b, 2);
    b.cluster.split(NOW, id, &[key::encode(b"g")]);
    let refused = error(read_with(&mut b, 2, old.clone(), How::Stale, 99));
    assert!(refused.epoch_not_match.is_some(), "{refused:?}");
    // Who has no data says that before either.
    assert!(b.cluster.set_witness(NOW, id, 2, true));
    for (how, witness) in [
        (How::Stale, true),
        (How::ByReplica, true),
        (How::Plainly, false),
    ] {
        let refused = error(read_with(&mut b, 2, old.clone(), how, 99));
        assert_eq!(refused.is_witness.is_some(), witness, "{refused:?}");
        assert_eq!(refused.not_leader.is_some(), !witness);
    }
}

#[test]
fn a_forced_leader_keeps_no_replica_from_what_it_has() {
    let (mut b, id) = with_value();
    b.cluster.set_safe_ts(id, 10);
    b.cluster.set_recovering(id, true);
    assert_eq!(read(&mut b, 2, How::Stale, 10).value, "v");
    assert!(
        error(read(&mut b, 2, How::Stale, 11))
            .data_is_not_ready
            .is_some()
    );
    assert!(
        error(read(&mut b, 2, How::ByReplica, 11))
            .recovery_in_progress
            .is_some()
    );
}

#[test]
fn what_can_not_be_asked_is_told_in_the_order_of_the_server() {
    let (mut b, id) = with_value();
    b.cluster.depose_leader(id);
    b.cluster.store_mut(2).expect("a store").disk = Disk::AlmostFull;
    b.cluster.set_splitting(id, true);
    let region = b.cluster.region(id).expect("a region").clone();
    let context = Context {
        region_id: id,
        region_epoch: region.meta.region_epoch,
        peer: region.peer_on(2).copied(),
        ..Context::default()
    };
    let refused = |b: &mut Bench| error(read_with(b, 2, context.clone(), How::ByReplica, 99));
    assert!(refused(&mut b).read_index_not_ready.is_some());
    b.cluster.set_splitting(id, false);
    assert!(refused(&mut b).disk_full.is_some());
    b.cluster.store_mut(2).expect("a store").disk = Disk::Normal;
    assert!(refused(&mut b).not_leader.is_some());
}

#[test]
fn a_stale_read_of_raw_data_is_served_by_anybody() {
    let mut b = Bench::new();
    let (context, store) = b.route(b"k");
    let id = context.region_id;
    let put = kvrpcpb::RawPutRequest {
        context: Some(Box::new(context.clone())),
        key: "k".into(),
        value: "v".into(),
        ..Default::default()
    };
    assert_eq!(b.cluster.raw_put(NOW, store, put).error, "");
    b.cluster.fall_behind(id, 2);
    let peer = b
        .cluster
        .region(id)
        .and_then(|region| region.peer_on(2).copied());
    let context = Context {
        peer,
        stale_read: true,
        ..context
    };
    let get = kvrpcpb::RawGetRequest {
        context: Some(Box::new(context)),
        key: "k".into(),
        ..Default::default()
    };
    assert_eq!(b.cluster.raw_get(NOW, 2, get).value, "v");
}

#[test]
fn a_merge_unsettles_the_leader_s_greatest_timestamp_wherever_it_is() {
    let mut b = Bench::with(crate::cluster::Config {
        sync_max_ts_at_once: false,
        ..Default::default()
    });
    let id = as_known_to(&b, 1).region_id;
    let parts = b.cluster.split(NOW, id, &[key::encode(b"g")]);
    let (source, target) = (parts[0], parts[1]);
    let synced = |b: &Bench| b.cluster.region(target).map(|region| region.max_ts_synced);
    assert_eq!(synced(&b), Some(true));
    b.cluster.prepare_merge(NOW, target);
    assert!(!b.cluster.merge(NOW, source, target), "it goes itself");
    b.cluster.rollback_merge(NOW, target);
    // Prepared or not, a merge raises versions alike.
    let mut other = b.clone();
    other.cluster.prepare_merge(NOW, source);
    for b in [&mut b, &mut other] {
        assert!(b.cluster.merge(NOW, source, target));
        assert_eq!(synced(b), Some(false));
    }
    let epoch = |b: &Bench| b.cluster.region(target).map(|region| region.epoch());
    assert_eq!(epoch(&b), epoch(&other));
}

#[test]
fn a_leader_that_steps_down_and_comes_back_has_lost_what_only_it_held() {
    let mut b = Bench::with(crate::cluster::Config {
        sync_max_ts_at_once: false,
        ..Default::default()
    });
    b.must_prewrite_put(b"k", b"v", b"k", 5);
    b.must_commit(b"k", 5, 6);
    b.must_lock(b"l", b"l", 8, 8);
    let context = as_known_to(&b, 1);
    let id = context.region_id;
    b.cluster.set_safe_ts(id, 7);
    let before = b.cluster.region(id).expect("a region").clone();
    b.cluster.depose_leader(id);
    // It is a follower like others, and nobody leads.
    let refused = error(read_with(&mut b, 1, context.clone(), How::Plainly, 9));
    assert_eq!(refused.not_leader.expect("its detail").leader, None);
    assert_eq!(
        read_with(&mut b, 1, context.clone(), How::Stale, 7).value,
        "v"
    );
    let detail = error(read_with(&mut b, 1, context.clone(), How::Stale, 9)).data_is_not_ready;
    assert_eq!(detail.expect("its detail").safe_ts, 7);

    assert!(b.cluster.elect(NOW, id, 1));
    let after = b.cluster.region(id).expect("a region");
    assert!(after.term > before.term && after.epoch() == before.epoch());
    assert!(!after.max_ts_synced, "others may have served reads");
    assert!(after.memory_locks.is_empty());
    assert_eq!(read(&mut b, 1, How::Stale, 9).value, "v", "it leads again");
    // Once more, and who still counts on its first term has missed too much.
    b.cluster.depose_leader(id);
    assert!(b.cluster.elect(NOW, id, 1));
    let old = Context {
        term: before.term,
        ..context
    };
    let refused = error(read_with(&mut b, 1, old, How::Plainly, 9));
    assert!(refused.stale_command.is_some());
}
