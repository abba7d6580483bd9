//! Stores that leave, and stores that are slow.

use tikv_proto::metapb::{NodeState, StoreState};
use tikv_proto::pdpb::{GetAllStoresRequest, GetStoreRequest, RequestHeader};

use crate::cluster::tests::{Bench, NOW};

fn header() -> Option<RequestHeader> {
    Some(RequestHeader {
        cluster_id: 1,
        ..RequestHeader::default()
    })
}

#[test]
fn a_store_leaves_and_is_buried() {
    let mut b = Bench::new();
    let id = b.to(b"").0.expect("a context").region_id;
    assert!(b.cluster.take_offline(3));
    let known = |b: &Bench| {
        let request = GetStoreRequest {
            header: header(),
            store_id: 3,
        };
        b.cluster.pd_get_store(0, request).expect("PD leads")
    };
    let store = known(&b).store.expect("a store");
    assert_eq!(
        (store.state(), store.node_state()),
        (StoreState::Offline, NodeState::Removing)
    );
    assert!(b.cluster.take_online(3));
    assert_eq!(known(&b).store.expect("a store").state(), StoreState::Up);

    assert!(b.cluster.take_offline(3));
    assert!(b.cluster.bury_store(NOW, 3));
    let region = b.cluster.regions().get(id).expect("a region");
    assert!(region.peer_on(3).is_none());
    let store = known(&b).store.expect("tombstones are told of");
    assert_eq!(
        (store.state(), store.node_state()),
        (StoreState::Tombstone, NodeState::Removed)
    );
    b.cluster.start_store(NOW, 3);
    assert!(!b.cluster.is_up(3), "it does not come back");
    assert!(!b.cluster.take_online(3));
    for (exclude_tombstone_stores, count) in [(false, 3), (true, 2)] {
        let request = GetAllStoresRequest {
            header: header(),
            exclude_tombstone_stores,
        };
        let all = b.cluster.pd_get_all_stores(0, request).expect("PD leads");
        assert_eq!(all.stores.len(), count);
    }
    b.cluster.forget_tombstones();
    let response = known(&b);
    assert_eq!(response.store, None);
    let error = response
        .header
        .and_then(|header| header.error)
        .expect("nobody knows it");
    assert_eq!(error.message, "invalid store ID 3, not found");
}

#[test]
fn feedback_tells_how_slow_a_store_is() {
    let mut b = Bench::new();
    let score = |b: &mut Bench| {
        let feedback = b.cluster.next_health_feedback(1).expect("a store");
        (feedback.slow_score, feedback.feedback_seq_no)
    };
    let (first, seq) = score(&mut b);
    assert_eq!(first, 1);
    for (set, told) in [(40, 40), (1_000, 100), (-3, 1)] {
        b.cluster.set_slow_score(1, set);
        assert_eq!(score(&mut b).0, told);
    }
    assert_eq!(score(&mut b).1, seq + 4);
    b.cluster.set_slow_score(1, 80);
    b.cluster.stop_store(1);
    b.cluster.start_store(NOW, 1);
    assert_eq!(score(&mut b).0, 1, "it has forgotten");
}
