use super::*;

fn pd_store(id: u64, address: &str, labels: &[(&str, &str)]) -> metapb::Store {
    metapb::Store {
        id,
        address: address.into(),
        labels: labels
            .iter()
            .map(|(key, value)| metapb::StoreLabel {
                key: (*key).into(),
                value: (*value).into(),
            })
            .collect(),
        ..Default::default()
    }
}

fn tombstone(id: u64) -> metapb::Store {
    metapb::Store {
        state: metapb::StoreState::Tombstone.into(),
        ..pd_store(id, "a", &[])
    }
}

fn label(key: &str, value: &str) -> Label {
    Label {
        key: key.into(),
        value: value.into(),
    }
}

const NOW: Instant = Instant::from_millis(1_000);

#[test]
fn resolve_state_transition() {
    use Resolution::{Changed, Confirmed, NoAddress, Removed};
    use ResolveState::{NeedCheck, Resolved, Tombstone, Unresolved};

    let up = pd_store(1, "a", &[]);
    let moved = pd_store(1, "b", &[("zone", "z1")]);
    let nowhere = pd_store(1, "", &[]);
    let dead = tombstone(1);
    let table: [(&[Option<&metapb::Store>], Resolution, ResolveState, u32); 10] = [
        (&[Some(&up)], Changed, Resolved, 0),
        (&[Some(&nowhere)], NoAddress, Unresolved, 0),
        (&[None], Removed, Tombstone, 0),
        (&[Some(&dead)], Removed, Tombstone, 0),
        (&[Some(&dead), Some(&dead)], Confirmed, Tombstone, 0),
        (&[Some(&up), Some(&up)], Confirmed, Resolved, 0),
        (&[Some(&up), Some(&moved)], Changed, Resolved, 0),
        (&[Some(&up), Some(&nowhere)], NoAddress, Resolved, 0),
        (&[Some(&up), Some(&dead)], Removed, Tombstone, 1),
        // PD's leader reports it Up again.
        (&[Some(&up), None, Some(&up)], Changed, Resolved, 1),
    ];
    for (answers, last, state, fail_epoch) in table {
        let stores = StoreTable::new();
        let store = stores.get_or_add(1);
        assert_eq!((store.resolve_state(), store.address()), (Unresolved, None));
        let resolution = answers
            .iter()
            .map(|answer| stores.resolve(1, *answer))
            .last();
        assert_eq!(resolution, Some(last), "{answers:?}");
        assert_eq!(store.resolve_state(), state, "{answers:?}");
        assert_eq!(store.fail_epoch(), fail_epoch, "{answers:?}");
        assert_eq!(store.address().is_some(), state == Resolved, "{answers:?}");
    }

    let stores = StoreTable::new();
    assert!(!stores.get_or_add(1).mark_need_check());
    stores.resolve(1, Some(&up));
    let store = stores.get(1).unwrap();
    assert!(store.mark_need_check());
    assert!(!store.mark_need_check());
    assert_eq!(
        (store.resolve_state(), store.address()),
        (NeedCheck, Some("a".into()))
    );
    assert_eq!(stores.need_check().len(), 1);
    assert!(stores.resolved().is_empty());
    assert_eq!(stores.resolve(1, Some(&up)), Confirmed);
    assert_eq!(store.resolve_state(), Resolved);
}

#[test]
fn a_new_address_is_seen_by_whoever_holds_the_store() {
    let stores = StoreTable::new();
    stores.resolve(1, Some(&pd_store(1, "a", &[("zone", "z1")])));
    let held = stores.get(1).unwrap();
    stores.resolve(1, Some(&pd_store(1, "b", &[("zone", "z2")])));
    assert_eq!(held.address(), Some("b".into()));
    assert!(held.has_labels(&[label("zone", "z2")]));
    assert!(Arc::ptr_eq(&held, &stores.get(1).unwrap()));
}

#[test]
fn store_labels() {
    let stores = StoreTable::new();
    let labels = [("zone", "z1"), ("disk", "ssd")];
    stores.resolve(1, Some(&pd_store(1, "a", &labels)));
    let store = stores.get(1).unwrap();
    for (wanted, matches) in [
        (vec![], true),
        (vec![label("zone", "z1")], true),
        (vec![label("disk", "ssd"), label("zone", "z1")], true),
        (vec![label("zone", "z2")], false),
        (vec![label("zone", "z1"), label("rack", "1")], false),
    ] {
        assert_eq!(store.has_labels(&wanted), matches, "{wanted:?}");
    }
}

#[test]
fn labels_tell_the_kind_of_a_store() {
    for (labels, kind) in [
        (vec![], StoreKind::Tikv),
        (vec![("zone", "tiflash")], StoreKind::Tikv),
        (vec![("engine", "tiflash")], StoreKind::Tiflash),
        (
            vec![("zone", "z"), ("engine", "tiflash_compute")],
            StoreKind::TiflashCompute,
        ),
        (vec![("engine", "tikv")], StoreKind::Tikv),
    ] {
        let stores = StoreTable::new();
        stores.resolve(1, Some(&pd_store(1, "a", &labels)));
        assert_eq!(stores.get(1).unwrap().kind(), kind, "{labels:?}");
        assert_eq!(
            stores.tikv_stores().len(),
            usize::from(kind == StoreKind::Tikv)
        );
    }
}

#[test]
fn a_listing_adds_updates_revives_and_notes_who_is_missing() {
    let stores = StoreTable::new();
    stores.update(&[pd_store(1, "a", &[]), pd_store(2, "b", &[]), tombstone(9)]);
    assert!(stores.get(9).is_none());
    stores.resolve(2, None);
    stores.get(1).unwrap().mark_need_check();
    let listing = stores.update(&[pd_store(2, "b", &[]), pd_store(3, "c", &[])]);
    assert_eq!((listing.changed, listing.missing), (vec![2, 3], vec![1]));
    assert_eq!(
        stores.get(2).unwrap().resolve_state(),
        ResolveState::Resolved
    );
    assert_eq!(
        stores.get(1).unwrap().resolve_state(),
        ResolveState::NeedCheck
    );
    let ids: Vec<u64> = stores.resolved().iter().map(|store| store.id()).collect();
    assert_eq!(ids, [2, 3]);
}

#[test]
fn failures_at_one_time_count_once() {
    let stores = StoreTable::new();
    stores.resolve(1, Some(&pd_store(1, "a", &[])));
    let store = stores.get(1).unwrap();
    assert!(store.fail(0, NOW));
    assert!(!store.fail(0, NOW));
    assert_eq!(store.fail_epoch(), 1);
    assert_eq!(store.resolve_state(), ResolveState::NeedCheck);
    assert!(store.is_slow(NOW));
    assert!(!store.is_slow(NOW + SLOW_MARK));
}

#[test]
fn one_caller_watches_for_the_return_of_a_lost_store() {
    let store = Store::new(1);
    assert!(!store.lose(Liveness::Reachable));
    assert!(store.lose(Liveness::Unknown));
    assert!(!store.lose(Liveness::Unreachable));
    assert_eq!(store.liveness(), Liveness::Unknown);
    // A request's own probe does not bring it back, the watcher does.
    assert!(!store.lose(Liveness::Reachable));
    assert_eq!(store.liveness(), Liveness::Unknown);
    store.set_liveness(Liveness::Reachable);
    assert_eq!(store.liveness(), Liveness::Reachable);
}

#[test]
fn an_estimated_wait_runs_off() {
    let store = Store::new(1);
    assert_eq!(store.estimated_wait(NOW), Duration::ZERO);
    store.set_estimated_wait(Duration::from_millis(30), NOW);
    let later = NOW + Duration::from_millis(20);
    assert_eq!(store.estimated_wait(later), Duration::from_millis(10));
    assert_eq!(
        store.estimated_wait(later + Duration::from_secs(1)),
        Duration::ZERO
    );
}
