//! PD's own tests of how safe points move and who may move them.

use tikv_proto::pdpb::{GetAllKeyspacesGcStatesRequest, keyspace_scope};

use super::gc_bench::*;
use crate::cluster::pd::gc::Barrier;

#[test]
fn test_advance_txn_safe_point_basic() {
    let mut b = Bench::new();
    for keyspace in MANAGEABLE {
        assert_eq!(b.advance_txn(keyspace, 10), Ok((0, 10, String::new())));
        assert_eq!(b.advance_txn(keyspace, 10), Ok((10, 10, String::new())));
        refused(b.advance_txn(keyspace, 9), "ErrDecreasingTxnSafePoint");
    }
    for keyspace in UNMANAGEABLE {
        refused(b.advance_txn(keyspace, 20), "ErrGCOnInvalidKeyspace");
        assert_eq!(b.state(keyspace).txn_safe_point, 10);
    }
    for keyspace in NOT_EXISTING {
        refused(b.advance_txn(keyspace, 30), "ErrKeyspaceNotFound");
    }
    for (step, keyspace) in (11..).zip(NULL_SYNONYMS) {
        assert_eq!(
            b.advance_txn(keyspace, step),
            Ok((step - 1, step, String::new()))
        );
        for sharing in UNIFIED.into_iter().chain(NULL_SYNONYMS) {
            assert_eq!(b.state(sharing).txn_safe_point, step);
        }
    }
}

#[test]
fn test_advance_gc_safe_point_basic() {
    let mut b = Bench::new();
    let exceeds = "ErrGCSafePointExceedsTxnSafePoint";
    for keyspace in MANAGEABLE.into_iter().chain(NULL_SYNONYMS) {
        refused(b.advance_gc(keyspace, 10), exceeds);
        assert_eq!(b.state(keyspace).gc_safe_point, 0);
    }
    for keyspace in UNMANAGEABLE {
        refused(b.advance_gc(keyspace, 10), "ErrGCOnInvalidKeyspace");
    }
    for keyspace in NOT_EXISTING {
        refused(b.advance_gc(keyspace, 10), "ErrKeyspaceNotFound");
    }
    for keyspace in MANAGEABLE {
        b.advance_txn(keyspace, 10).unwrap();
        assert_eq!(b.advance_gc(keyspace, 5), Ok((0, 5)));
        assert_eq!(b.advance_gc(keyspace, 10), Ok((5, 10)));
        refused(b.advance_gc(keyspace, 11), exceeds);
        assert_eq!(b.advance_gc(keyspace, 10), Ok((10, 10)));
        refused(b.advance_gc(keyspace, 9), "ErrDecreasingGCSafePoint");
    }
    b.advance_txn(NULL_KEYSPACE, 30).unwrap();
    for (step, keyspace) in (11..).zip(NULL_SYNONYMS) {
        assert_eq!(b.advance_gc(keyspace, step), Ok((step - 1, step)));
        for sharing in UNIFIED.into_iter().chain(NULL_SYNONYMS) {
            assert_eq!(b.state(sharing).gc_safe_point, step);
        }
    }
}

#[test]
fn test_compatible_update_gc_safe_point_sequentially() {
    let mut b = Bench::new();
    for keyspace in MANAGEABLE {
        for point in 10..20 {
            let before = if point == 10 { 0 } else { point - 1 };
            assert_eq!(b.load_gc(keyspace), Ok(before));
            assert_eq!(b.state(keyspace).gc_safe_point, before);
            refused(
                b.update_gc(keyspace, point),
                "ErrGCSafePointExceedsTxnSafePoint",
            );
            b.advance_txn(keyspace, point).unwrap();
            assert_eq!(b.update_gc(keyspace, point), Ok(point));
        }
        assert_eq!(b.update_gc(keyspace, 14), Ok(19), "smaller is no error");
        assert_eq!(b.load_gc(keyspace), Ok(19));
    }
    for keyspace in UNMANAGEABLE {
        refused(b.load_gc(keyspace), "ErrGCOnInvalidKeyspace");
    }
}

#[test]
fn test_redirect_keyspace() {
    type Ask = fn(&mut Bench, u32) -> Result<(), String>;
    let asks: [(Ask, bool); 5] = [
        (|b, keyspace| b.get(keyspace).map(|_| ()), true),
        (|b, keyspace| b.advance_txn(keyspace, 10).map(|_| ()), false),
        (|b, keyspace| b.advance_gc(keyspace, 10).map(|_| ()), false),
        (
            |b, keyspace| b.set(keyspace, "b", 15, HOUR).map(|_| ()),
            true,
        ),
        (|b, keyspace| b.delete(keyspace, "b").map(|_| ()), true),
    ];
    let mut b = Bench::new();
    for (ask, for_users) in asks {
        for keyspace in MANAGEABLE.into_iter().chain(NULL_SYNONYMS) {
            ask(&mut b, keyspace).unwrap();
        }
        for keyspace in UNMANAGEABLE {
            match for_users {
                true => ask(&mut b, keyspace).unwrap(),
                false => refused(ask(&mut b, keyspace), "ErrGCOnInvalidKeyspace"),
            }
        }
        for keyspace in NOT_EXISTING {
            refused(ask(&mut b, keyspace), "ErrKeyspaceNotFound");
        }
    }
}

#[test]
fn test_get_gc_state() {
    let mut b = Bench::new();
    for keyspace in MANAGEABLE {
        let state = b.state(keyspace);
        assert_eq!(state.keyspace_scope, scope(keyspace));
        assert_eq!(state.is_keyspace_level_gc, keyspace != NULL_KEYSPACE);
    }
    for keyspace in UNMANAGEABLE.into_iter().chain(NULL_SYNONYMS) {
        let state = b.state(keyspace);
        assert_eq!(state.keyspace_scope, scope(NULL_KEYSPACE));
        assert!(!state.is_keyspace_level_gc);
    }
    b.advance_txn(NULL_KEYSPACE, 20).unwrap();
    b.advance_gc(NULL_KEYSPACE, 15).unwrap();
    b.set(NULL_KEYSPACE, "b1", 25, HOUR).unwrap();
    b.set(NULL_KEYSPACE, "b2", 25, 2 * HOUR).unwrap();
    b.advance_txn(2, 50).unwrap();
    b.advance_gc(2, 45).unwrap();
    b.set(2, "b1", 55, HOUR).unwrap();
    b.set(2, "b3", 60, FOREVER).unwrap();
    let request = |exclude_gc_barriers| GetAllKeyspacesGcStatesRequest {
        header: header(),
        exclude_gc_barriers,
        ..Default::default()
    };
    let all = |b: &Bench, exclude| {
        let told =
            b.pd.get_all_keyspaces_gc_states(b.now_ms, 0, request(exclude));
        told.unwrap().gc_states
    };
    let states = all(&b, false);
    let told: Vec<_> = states.iter().map(|state| state.keyspace_scope).collect();
    assert_eq!(told, ALL.map(scope), "the disabled one is not told of");
    for state in &states {
        let id = match state
            .keyspace_scope
            .as_ref()
            .and_then(|s| s.keyspace.as_ref())
        {
            Some(keyspace_scope::Keyspace::KeyspaceId(id)) => *id,
            other => panic!("{other:?}"),
        };
        match MANAGEABLE.contains(&id) {
            true => assert_eq!(*state, b.state(id)),
            false => assert!(!state.is_keyspace_level_gc),
        }
    }
    let states = all(&b, true);
    assert!(states.iter().all(|state| state.gc_barriers.is_empty()));
    assert_eq!(
        (states[3].txn_safe_point, states[3].gc_safe_point),
        (50, 45)
    );
}

#[test]
fn test_weakened_constraints() {
    let mut b = Bench::new();
    for keyspace in MANAGEABLE {
        b.advance_txn(keyspace, 20).unwrap();
        let barrier = Barrier::new(NOW_MS, 10, FOREVER);
        b.pd.gc
            .of_mut(keyspace)
            .barriers
            .insert("b1".to_owned(), barrier);
        assert_eq!(b.advanced(keyspace, 30), (20, "b1".to_owned()));
        assert_eq!(b.delete(keyspace, "b1"), Ok(Some(10)));
        assert_eq!(b.advanced(keyspace, 30), (30, String::new()));
    }
}

#[test]
fn test_gc_operations() {
    let mut b = Bench::new();
    for keyspace in MANAGEABLE {
        assert_eq!(b.advance_txn(keyspace, 10), Ok((0, 10, String::new())));
        assert_eq!(b.advance_gc(keyspace, 8), Ok((0, 8)));
        assert_eq!(b.set(keyspace, "b1", 15, HOUR), Ok(HOUR));
        assert_eq!(b.set(keyspace, "b2", 14, FOREVER), Ok(FOREVER));
        assert_eq!(b.delete(keyspace, "b2"), Ok(Some(14)));
        assert_eq!(b.advanced(keyspace, 20), (15, "b1".to_owned()));
        let state = b.state(keyspace);
        assert_eq!((state.txn_safe_point, state.gc_safe_point), (15, 8));
        assert_eq!(state.gc_barriers[0].ttl_seconds, HOUR);
    }
    assert_eq!(b.set_global("b1", 20, HOUR), Ok(HOUR));
    assert_eq!(b.set_global("b2", 24, FOREVER), Ok(FOREVER));
    assert_eq!(b.delete_global("b2"), Ok(Some(24)));
    b.delete(2, "b1").unwrap();
    assert_eq!(b.advance_txn(2, 30).unwrap().1, 20);
}
