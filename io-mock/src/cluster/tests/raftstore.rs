//! Who may be asked for a region, what becomes of its neighbours, and of the locks its leader holds.

use bytes::Bytes;
use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{self, Context, GetRequest, Op, PessimisticLockRequest, ScanLockRequest};
use tikv_proto::metapb::{Peer, RegionEpoch};

use super::looks::text;
use super::{Bench, NOW, mutation};
use crate::cluster::key::{self, Key};
use crate::cluster::region::RegionId;

/// Asks the first store for a key under a context that has been tampered with.
fn ask(b: &mut Bench, change: impl FnOnce(&mut Context)) -> Option<Box<errorpb::Error>> {
    let (context, _) = b.to(b"k");
    let mut context = context.expect("a context");
    change(&mut context);
    let request = GetRequest {
        context: Some(context),
        key: "k".into(),
        version: 10,
        need_commit_ts: false,
    };
    b.cluster.kv_get(NOW, 1, request).region_error
}

fn change_peer(change: impl FnOnce(&mut Peer)) -> impl FnOnce(&mut Context) {
    |context| {
        let mut peer = context.peer.unwrap_or_default();
        change(&mut peer);
        context.peer = Some(peer);
    }
}

#[test]
fn test_check_store_id() {
    let mut b = Bench::new();
    assert_eq!(ask(&mut b, |_| {}), None);
    let error = ask(&mut b, change_peer(|peer| peer.store_id = 2)).expect("another store");
    let detail = error.store_not_match.expect("its detail");
    assert_eq!((detail.request_store_id, detail.actual_store_id), (2, 1));
}

#[test]
fn test_check_peer_id() {
    let mut b = Bench::new();
    assert_eq!(ask(&mut b, change_peer(|_| {})), None);
    assert!(ask(&mut b, change_peer(|peer| peer.id += 1)).is_some());
}

#[test]
fn test_peer_id_mismatch() {
    let mut b = Bench::new();
    let (context, _) = b.to(b"k");
    let own = context.and_then(|context| context.peer).expect("a peer").id;
    let error = ask(&mut b, change_peer(|peer| peer.id += 1)).expect("another peer");
    let detail = error.mismatch_peer_id.expect("its detail");
    assert_eq!(
        (detail.request_peer_id, detail.store_peer_id),
        (own + 1, own)
    );
}

#[test]
fn test_check_term() {
    let mut b = Bench::new();
    let (context, _) = b.to(b"k");
    let id = context.expect("a context").region_id;
    let term = b.cluster.region(id).expect("a region").term;
    // One election may have passed unnoticed; after two another leader may have been in between.
    for (sent, stale) in [
        (term + 2, false),
        (term, false),
        (term - 1, false),
        (term - 2, true),
        (term - 3, true),
        (0, false),
    ] {
        let error = ask(&mut b, |context| context.term = sent);
        let refused = error.is_some_and(|error| error.stale_command.is_some());
        assert_eq!(refused, stale, "{sent} at {term}");
    }
}

fn split(b: &mut Bench, at: &[u8]) -> Vec<RegionId> {
    let (context, _) = b.to(at);
    let id = context.expect("a context").region_id;
    b.cluster.split(NOW, id, &[key::encode(at)])
}

#[test]
fn test_region_sibling() {
    // Only neighbours become one, whichever of them stays.
    for (source, target, siblings) in [
        (0, 1, true),
        (1, 0, true),
        (2, 3, true),
        (0, 2, false),
        (1, 3, false),
        (3, 0, false),
        (1, 1, false),
    ] {
        let mut b = Bench::new();
        for at in [b"k1", b"k2", b"k3"] {
            split(&mut b, at);
        }
        let ids: Vec<RegionId> = b.cluster.regions().iter().map(|r| r.meta.id).collect();
        let merged = b.cluster.merge(NOW, ids[source], ids[target]);
        assert_eq!(merged, siblings, "{source} into {target}");
    }
}

#[test]
fn test_read() {
    let mut b = Bench::new();
    split(&mut b, b"b");
    // What a leader checks before it reads on its own.
    assert_eq!(ask(&mut b, |_| {}), None);
    let unknown = ask(&mut b, |context| context.region_id = 999).expect("unknown");
    assert!(unknown.region_not_found.is_some());
    let store = ask(&mut b, change_peer(|peer| peer.store_id += 1)).expect("another store");
    assert!(store.store_not_match.is_some());
    let peer = ask(&mut b, change_peer(|peer| peer.id += 1)).expect("another peer");
    assert!(peer.mismatch_peer_id.is_some());
    let term = ask(&mut b, |context| context.term = 1).expect("an old term");
    assert!(term.stale_command.is_some());
    let old = |context: &mut Context| {
        let epoch = context.region_epoch.unwrap_or_default();
        context.region_epoch = Some(RegionEpoch {
            version: epoch.version - 1,
            ..epoch
        });
    };
    let epoch = ask(&mut b, old).expect("an old epoch");
    assert!(epoch.epoch_not_match.is_some());
    // A wrong store, peer or term is told before a wrong epoch.
    let both = ask(&mut b, |context| {
        old(context);
        context.term = 1;
    });
    assert!(both.is_some_and(|error| error.stale_command.is_some()));
}

#[test]
fn test_stale_read_local_leader_fallback() {
    let mut b = Bench::new();
    b.write(b"k", b"v", 1, 2);
    let (context, _) = b.to(b"k");
    let id = context.expect("a context").region_id;
    b.cluster.set_safe_ts(id, 5);
    // At the leader a stale read beyond what is known to be complete is as any other; a follower
    // refuses it.
    for (store, refused) in [(1, false), (2, true)] {
        let region = b.cluster.region(id).expect("a region");
        let context = Context {
            region_id: id,
            region_epoch: region.meta.region_epoch,
            peer: region.peer_on(store).copied(),
            stale_read: true,
            ..Default::default()
        };
        let request = GetRequest {
            context: Some(Box::new(context)),
            key: "k".into(),
            version: 10,
            need_commit_ts: false,
        };
        let response = b.cluster.kv_get(NOW, store, request);
        let error = response.region_error;
        let not_ready = error.is_some_and(|error| error.data_is_not_ready.is_some());
        assert_eq!(not_ready, refused);
        assert_eq!(response.value == "v", !refused);
    }
}

#[test]
fn test_cmd_epoch_checker() {
    // What comes before a request in the log decides about it. Reads and writes care for the range,
    // a split for the peers, too.
    for (splits, write_refused) in [(true, true), (false, false)] {
        let mut b = Bench::new();
        let (context, store) = b.to(b"k");
        let id = context.as_ref().expect("a context").region_id;
        match splits {
            true => assert_eq!(split(&mut b, b"m").len(), 2),
            false => assert!(b.cluster.remove_peer(NOW, id, 3)),
        }
        let request = kvrpcpb::PrewriteRequest {
            context: context.clone(),
            mutations: vec![mutation(Op::Put, b"z", b"v")],
            primary_lock: "z".into(),
            start_version: 5,
            ..Default::default()
        };
        let refused = |error: Option<Box<errorpb::Error>>| {
            error.is_some_and(|error| error.epoch_not_match.is_some())
        };
        let write = b.cluster.kv_prewrite(NOW, store, request);
        assert_eq!(refused(write.region_error), write_refused);
        let request = kvrpcpb::SplitRegionRequest {
            context,
            split_keys: vec!["p".into()],
            ..Default::default()
        };
        let response = b.cluster.split_region(NOW, store, request.clone());
        assert!(refused(response.region_error));
        // Whoever knows what has happened meanwhile is served.
        let (context, store) = b.to(b"p");
        let request = kvrpcpb::SplitRegionRequest { context, ..request };
        let response = b.cluster.split_region(NOW, store, request);
        assert_eq!(response.region_error, None);
    }
}

/// Pessimistic locks in the leader's memory, by region.
fn held(b: &Bench) -> Vec<String> {
    let keys = |region: &crate::cluster::region::Region| {
        let keys = region.memory_locks.keys();
        keys.map(|key| text(&key.to_user())).collect()
    };
    b.cluster.regions().iter().map(keys).collect()
}

#[test]
fn test_group_locks_by_regions() {
    let mut b = Bench::new();
    for k in [b"a", b"c", b"e", b"g", b"i"] {
        b.must_lock(k, k, 10, 10);
    }
    let (context, _) = b.to(b"");
    let id = context.expect("a context").region_id;
    let cuts = [b"b", b"c", b"d", b"h"].map(|at| key::encode(at));
    b.cluster.split(NOW, id, &cuts);
    assert_eq!(held(&b), ["a", "", "c", "eg", "i"]);
}

#[test]
fn test_scan_memory_lock() {
    let mut b = Bench::new();
    for k in [b"key1", b"key2", b"key3"] {
        b.must_lock(k, k, 10, 10);
    }
    assert_eq!(held(&b), ["key1key2key3"], "all of them in memory");
    for (start, end, max_version, limit, expected) in [
        ("", "", 10, 1, "key1"),
        ("", "", 10, 10, "key1 key2 key3"),
        ("key0", "key1", 10, 10, ""),
        ("key0", "key2", 10, 10, "key1"),
        ("key1", "key3", 10, 10, "key1 key2"),
        ("key1", "key4", 10, 2, "key1 key2"),
        ("key1", "key4", 10, 10, "key1 key2 key3"),
        ("key2", "key4", 10, 10, "key2 key3"),
        ("key4", "key5", 10, 10, ""),
        ("", "", 9, 10, ""),
        ("key2", "", 10, 1, "key2"),
        ("", "key2", 9, 1, ""),
    ] {
        let (context, store) = b.to(b"");
        let request = ScanLockRequest {
            context,
            max_version,
            start_key: Bytes::from_static(start.as_bytes()),
            end_key: Bytes::from_static(end.as_bytes()),
            limit,
        };
        let locks = b.cluster.kv_scan_lock(NOW, store, request).locks;
        let found: Vec<String> = locks.iter().map(|lock| text(&lock.key)).collect();
        assert_eq!(found.join(" "), expected, "[{start}, {end}) {limit}");
    }
}

#[test]
fn test_insert_checking_memory_limit() {
    let mut b = Bench::new();
    let mut lock = |start: u64, keys: &[Vec<u8>]| {
        let mutations = keys
            .iter()
            .map(|k| mutation(Op::PessimisticLock, k, b""))
            .collect();
        let request = PessimisticLockRequest {
            mutations,
            ..Default::default()
        };
        assert_eq!(b.lock_one(request, b"", b"p", start, start).errors, []);
        let in_memory = |k: &Vec<u8>| b.cluster.engine().lock(&Key::from_user(k)).is_none();
        keys.iter().all(in_memory)
    };
    let many: Vec<Vec<u8>> = (0..100).map(|i| vec![i; 4500]).collect();
    assert!(lock(10, &many));
    // The rest of a request that has no room is stored, all of it; a small one still fits.
    let more: Vec<Vec<u8>> = (100..104).map(|i| vec![i; 4500]).collect();
    assert!(!lock(20, &more));
    assert!(lock(30, &[b"k".to_vec()]));
}
