//! What a store answers to a request that came to the wrong place, or to a region that changed.

use bytes::Bytes;
use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{self, Context};
use tikv_proto::metapb::{Peer, PeerRole, RegionEpoch};

use super::{Bench, NOW, put};
use crate::cluster::key;
use crate::cluster::region::StoreId;

/// Reads a key with a context that has been tampered with.
fn read(b: &mut Bench, store: StoreId, context: Context, k: &[u8]) -> kvrpcpb::GetResponse {
    let key = Bytes::copy_from_slice(k);
    let context = Some(Box::new(context));
    let request = kvrpcpb::GetRequest {
        context,
        key,
        version: 5,
        need_commit_ts: false,
    };
    b.cluster.kv_get(NOW, store, request)
}

fn refusal(b: &mut Bench, store: StoreId, context: Context) -> Option<Box<errorpb::Error>> {
    read(b, store, context, b"m").region_error
}

/// A region of `[g, p)` between two others, as a client knows it.
fn split_in_three() -> (Bench, Context) {
    let mut b = Bench::new();
    let id = b.to(b"").0.expect("a context").region_id;
    let parts = b
        .cluster
        .split(NOW, id, &[key::encode(b"p"), key::encode(b"g")]);
    assert_eq!(parts.len(), 3);
    assert_eq!(parts[2], id, "the region keeps the right part");
    let context = *b.to(b"m").0.expect("a context");
    (b, context)
}

#[test]
fn test_request_for_another_place() {
    let (mut b, good) = split_in_three();
    assert_eq!(refusal(&mut b, 1, good.clone()), None);

    let wrong_store = Context {
        peer: Some(Peer {
            store_id: 7,
            ..Default::default()
        }),
        ..good.clone()
    };
    let error = refusal(&mut b, 1, wrong_store).expect("another store");
    assert_eq!(error.message, "to store id 7, mine 1");
    let detail = error.store_not_match.expect("its detail");
    assert_eq!((detail.request_store_id, detail.actual_store_id), (7, 1));
    let error = refusal(
        &mut b,
        1,
        Context {
            peer: None,
            ..good.clone()
        },
    )
    .expect("no peer");
    assert!(error.store_not_match.is_some());

    let error = refusal(
        &mut b,
        1,
        Context {
            region_id: 999,
            ..good.clone()
        },
    )
    .expect("no region");
    assert_eq!(error.message, "region 999 is missing");
    assert_eq!(error.region_not_found.expect("its detail").region_id, 999);

    let peer = Peer {
        id: 888,
        store_id: 1,
        ..Default::default()
    };
    let error = refusal(
        &mut b,
        1,
        Context {
            peer: Some(peer),
            ..good.clone()
        },
    );
    let detail = error
        .expect("another peer")
        .mismatch_peer_id
        .expect("its detail");
    assert_eq!(detail.request_peer_id, 888);

    let error = refusal(
        &mut b,
        1,
        Context {
            term: 1,
            ..good.clone()
        },
    )
    .expect("an old term");
    assert!(error.stale_command.is_some());
    assert_eq!(
        refusal(
            &mut b,
            1,
            Context {
                term: 1 << 40,
                ..good
            }
        ),
        None
    );
}

#[test]
fn test_check_req_region_epoch() {
    let (mut b, good) = split_in_three();
    let epoch = good.region_epoch.expect("an epoch");
    assert_eq!(epoch.version, 3);
    let with = |conf_ver: u64, version: u64| Context {
        region_epoch: Some(RegionEpoch { conf_ver, version }),
        ..good.clone()
    };
    // Reads and writes do not mind the peers.
    assert_eq!(refusal(&mut b, 1, with(epoch.conf_ver - 1, 3)), None);
    let starts = |error: Option<Box<errorpb::Error>>| -> Vec<Bytes> {
        let error = error
            .and_then(|e| e.epoch_not_match)
            .expect("another epoch");
        error
            .current_regions
            .iter()
            .map(|r| r.start_key.clone())
            .collect()
    };
    let (g, first) = (key::encode(b"g"), Bytes::new());
    // As many regions as versions have passed, to the left.
    assert_eq!(
        starts(refusal(&mut b, 1, with(3, 2))),
        [g.clone(), first.clone()]
    );
    // A newer request gets the region alone.
    assert_eq!(
        starts(refusal(&mut b, 1, with(3, 9))),
        std::slice::from_ref(&g)
    );
    let error = refusal(
        &mut b,
        1,
        Context {
            region_epoch: None,
            ..good.clone()
        },
    );
    assert!(
        error
            .as_ref()
            .is_some_and(|e| e.message.ends_with("but you sent "))
    );
    assert_eq!(starts(error), [g, first]);
}

#[test]
fn test_follower_answers() {
    let (mut b, good) = split_in_three();
    let region = b.cluster.region(good.region_id).expect("the region");
    let follower = *region.peer_on(2).expect("a peer");
    let leader = *region.peer_on(1).expect("a peer");
    let there = Context {
        peer: Some(follower),
        ..good.clone()
    };
    let hint = |error: Option<Box<errorpb::Error>>| {
        error
            .and_then(|e| e.not_leader)
            .expect("not the leader")
            .leader
    };
    assert_eq!(hint(refusal(&mut b, 2, there.clone())), Some(leader));
    // Who leads comes before the epoch.
    let stale = Context {
        region_epoch: None,
        ..there.clone()
    };
    assert_eq!(hint(refusal(&mut b, 2, stale)), Some(leader));
    let replica = Context {
        replica_read: true,
        ..there.clone()
    };
    let stale_read = Context {
        stale_read: true,
        ..there.clone()
    };
    let error = refusal(&mut b, 2, stale_read.clone()).expect("not ready");
    assert_eq!(
        error.data_is_not_ready.expect("its detail").peer_id,
        follower.id
    );
    b.cluster.set_safe_ts(good.region_id, 5);
    assert_eq!(refusal(&mut b, 2, stale_read), None);
    assert_eq!(refusal(&mut b, 2, replica.clone()), None);

    b.cluster.depose_leader(good.region_id);
    assert_eq!(hint(refusal(&mut b, 1, good.clone())), None);
    assert_eq!(hint(refusal(&mut b, 2, there)), None);
    // What it is sure to have it serves without a leader.
    assert_eq!(refusal(&mut b, 2, replica), None);
    assert!(b.cluster.elect(NOW, good.region_id, 2));
    assert_eq!(hint(refusal(&mut b, 1, good)), Some(follower));
}

#[test]
fn test_key_outside_its_region() {
    let (mut b, good) = split_in_three();
    for k in [b"a", b"p", b"z"] {
        let response = read(&mut b, 1, good.clone(), k);
        assert_eq!(response.region_error, None);
        assert!(
            response
                .error
                .expect("an abort")
                .abort
                .contains("is out of [region")
        );
    }
    let request = kvrpcpb::PrewriteRequest {
        context: Some(Box::new(good.clone())),
        mutations: vec![put(b"z", b"v")],
        primary_lock: "z".into(),
        start_version: 5,
        ..Default::default()
    };
    let response = b.cluster.kv_prewrite(NOW, 1, request);
    assert!(response.errors[0].abort.contains("is out of [region"));
    let request = kvrpcpb::RawPutRequest {
        context: Some(Box::new(good)),
        key: "z".into(),
        ..Default::default()
    };
    let response = b.cluster.raw_put(NOW, 1, request);
    assert!(
        response
            .region_error
            .expect("met at apply")
            .key_not_in_region
            .is_some()
    );
}

#[test]
fn test_raft_entry_too_large() {
    let (mut b, good) = split_in_three();
    let request = kvrpcpb::RawPutRequest {
        context: Some(Box::new(good)),
        key: "q42b/m".into(),
        value: vec![0; 9_437_184].into(),
        ..Default::default()
    };
    let error = b
        .cluster
        .raw_put(NOW, 1, request)
        .region_error
        .expect("too large");
    assert_eq!(
        error.raft_entry_too_large.expect("its detail").entry_size,
        9_437_228
    );
}

#[test]
fn test_split_region() {
    let (mut b, good) = split_in_three();
    let split = |b: &mut Bench, context: Context, keys: &[&str]| {
        let request = kvrpcpb::SplitRegionRequest {
            context: Some(Box::new(context)),
            split_keys: keys.iter().map(|k| (*k).to_owned().into()).collect(),
            ..Default::default()
        };
        b.cluster.split_region(NOW, 1, request)
    };
    let message =
        |response: kvrpcpb::SplitRegionResponse| response.region_error.expect("refused").message;
    assert!(message(split(&mut b, good.clone(), &[])).contains("no split key is specified"));
    assert!(message(split(&mut b, good.clone(), &["g"])).contains("no valid key found"));
    let outside = split(&mut b, good.clone(), &["z"])
        .region_error
        .expect("refused");
    assert!(outside.key_not_in_region.is_some());
    let regions = split(&mut b, good.clone(), &["n", "j"]).regions;
    let starts: Vec<&Bytes> = regions.iter().map(|r| &r.start_key).collect();
    assert_eq!(
        starts,
        [&key::encode(b"g"), &key::encode(b"j"), &key::encode(b"n")]
    );
    assert_eq!(regions[2].id, good.region_id);
    assert!(
        regions
            .iter()
            .all(|r| r.region_epoch.is_some_and(|e| e.version == 5))
    );
    let stale = split(&mut b, good, &["k"])
        .region_error
        .expect("an old epoch");
    assert!(stale.epoch_not_match.is_some());
}

#[test]
fn test_merge_and_peers() {
    let (mut b, good) = split_in_three();
    let left = b.to(b"a").0.expect("a context").region_id;
    b.must_prewrite_put(b"a", b"v", b"a", 1);
    b.must_commit(b"a", 1, 2);
    assert!(b.cluster.merge(NOW, left, good.region_id));
    b.must_get(b"a", 5, b"v");
    let merged = b.to(b"a").0.expect("a context");
    assert_eq!(merged.region_id, good.region_id);
    assert_eq!(merged.region_epoch.expect("an epoch").version, 5);
    assert!(b.cluster.regions().get(left).is_none());

    let fourth = b.cluster.add_store(NOW);
    let learner = b
        .cluster
        .add_peer(NOW, merged.region_id, fourth, PeerRole::Learner);
    assert_ne!(learner, 0);
    assert!(
        !b.cluster.transfer_leader(NOW, merged.region_id, fourth),
        "a learner"
    );
    assert!(b.cluster.promote_peer(NOW, merged.region_id, fourth));
    assert!(b.cluster.transfer_leader(NOW, merged.region_id, fourth));
    assert!(b.cluster.remove_peer(NOW, merged.region_id, 1));
    let error = refusal(&mut b, 1, *merged.clone()).expect("no peer there any more");
    assert!(error.region_not_found.is_some());
    let now = b
        .to(b"a")
        .0
        .and_then(|context| context.region_epoch)
        .expect("an epoch");
    assert_eq!(
        now.conf_ver,
        merged.region_epoch.expect("an epoch").conf_ver + 3
    );
    b.must_get(b"a", 5, b"v");
}

#[test]
fn test_restart_forgets_what_is_in_memory() {
    let mut b = Bench::new();
    let (context, store) = b.to(b"k");
    b.must_lock(b"k", b"k", 10, 10);
    let before = b
        .cluster
        .next_health_feedback(store)
        .expect("a store")
        .feedback_seq_no;
    b.cluster.stop_store(store);
    assert!(!b.cluster.is_up(store));
    assert!(b.cluster.admit(store, context.as_deref()).is_err());
    b.cluster.start_store(NOW + 100, store);
    assert!(b.cluster.admit(store, context.as_deref()).is_ok());
    b.must_unlocked(b"k");
    let after = b
        .cluster
        .next_health_feedback(store)
        .expect("a store")
        .feedback_seq_no;
    assert!(after > before);
    let wrong = Context {
        cluster_id: 12_345,
        ..Context::default()
    };
    assert!(b.cluster.admit(store, Some(&wrong)).is_err());
}

#[test]
fn test_max_ts_limit() {
    let mut b = Bench {
        cluster: crate::cluster::Cluster::new(Default::default(), NOW),
        asked_under: None,
    };
    let soon = (NOW + 50_000) << 18;
    b.must_get_none(b"k", soon);
    b.must_get_none(b"k", u64::MAX);
    let late = b
        .get(b"k", (NOW + 70_000) << 18)
        .region_error
        .expect("beyond PD");
    assert!(late.message.contains("invalid max_ts update"));
    // Requests that end transactions are held to what PD has given out.
    assert!(b.cleanup(b"k", soon, 0).region_error.is_some());
    b.must_cleanup(b"k", NOW << 18, 0);
}
