//! The cache and its regions, case by case.

use super::*;
use crate::region::cache::GC_REGIONS;
use crate::store::Liveness;

struct Fixture {
    stores: StoreTable,
    cache: RegionCache,
}

impl Fixture {
    fn new() -> Self {
        Fixture {
            stores: stores(),
            cache: RegionCache::new(TTL),
        }
    }

    /// Regions 1, 2, 3, … cut at these keys, from the first key to the last.
    fn cut(cuts: &[&str]) -> Self {
        let fixture = Fixture::new();
        for (place, pair) in cuts.windows(2).enumerate() {
            fixture.load(data(place as u64 + 1, pair[0], pair[1], 1, 1), REPLACE, 0);
        }
        fixture
    }

    fn load(&self, data: RegionData, mode: InsertMode, ms: u64) -> Inserted {
        self.cache.load(data, &self.stores, mode, at(ms)).unwrap()
    }

    /// The id of the region that a look-up hits.
    fn hit(&self, key: &str, ms: u64) -> Option<u64> {
        match self.cache.lookup(key.as_bytes(), at(ms)) {
            Lookup::Hit(region) => Some(region.id()),
            Lookup::Reload { .. } | Lookup::Miss(_) => None,
        }
    }

    fn region(&self, id: u64) -> Arc<Region> {
        match self.cache.lookup_id(id, at(0)) {
            Lookup::Hit(region) | Lookup::Reload { region, .. } => region,
            Lookup::Miss(why) => panic!("region {id}: {why:?}"),
        }
    }

    fn missing(&self, key: &str, ms: u64) -> MissReason {
        match self.cache.lookup(key.as_bytes(), at(ms)) {
            Lookup::Miss(reason) => reason,
            hit => panic!("{hit:?}"),
        }
    }
}

fn key(key: &str) -> &[u8] {
    key.as_bytes()
}

#[test]
fn contains() {
    let stores = stores();
    let bounded = build(data(1, "b", "d", 1, 1), &stores);
    let all = build(data(2, "", "", 1, 1), &stores);
    for (k, inside) in [
        ("", false),
        ("a", false),
        ("b", true),
        ("c", true),
        ("d", false),
    ] {
        assert_eq!(bounded.contains(key(k)), inside, "{k}");
        assert!(all.contains(key(k)));
    }
}

#[test]
fn contains_by_end() {
    let stores = stores();
    let bounded = build(data(1, "b", "d", 1, 1), &stores);
    let last = build(data(2, "b", "", 1, 1), &stores);
    for (end, in_bounded, in_last) in [
        (Some("b"), false, false),
        (Some("c"), true, true),
        (Some("d"), true, true),
        (Some("e"), false, true),
        (None, false, true),
    ] {
        assert_eq!(bounded.contains_by_end(end.map(key)), in_bounded, "{end:?}");
        assert_eq!(last.contains_by_end(end.map(key)), in_last, "{end:?}");
    }
}

#[test]
fn long_ends_that_begin_alike_are_told_apart() {
    let stores = stores();
    let end = "0123456789012345678901234567890123456789";
    let region = build(data(1, "0", end, 1, 1), &stores);
    assert!(region.contains(&key(end)[..39]));
    assert!(!region.contains(key(end)));
    assert!(region.contains(key("01234567890123456789012345678901234567880")));
    assert!(!region.contains(key("1")));
}

#[test]
fn a_region_is_found_by_key_by_end_and_by_id() {
    let f = Fixture::cut(&["", "g", "n", ""]);
    for (k, id) in [("", 1), ("a", 1), ("g", 2), ("m\0", 2), ("n", 3), ("z", 3)] {
        assert_eq!(f.hit(k, 0), Some(id), "{k}");
    }
    for (end, id) in [(Some("a"), 1), (Some("g"), 1), (Some("h"), 2), (None, 3)] {
        let found = f.cache.lookup_end(end.map(key), at(0));
        assert!(
            matches!(found, Lookup::Hit(region) if region.id() == id),
            "{end:?}"
        );
    }
    assert!(matches!(f.cache.lookup_id(2, at(0)), Lookup::Hit(_)));
    assert!(matches!(
        f.cache.lookup_id(7, at(0)),
        Lookup::Miss(MissReason::Missing)
    ));
    assert_eq!(f.cache.len(), 3);
}

#[test]
fn keys_in_a_hole_are_missing() {
    let f = Fixture::new();
    f.load(data(1, "b", "d", 1, 1), REPLACE, 0);
    for k in ["", "a", "d", "e"] {
        assert_eq!(f.missing(k, 0), MissReason::Missing, "{k}");
    }
    assert!(matches!(
        f.cache.lookup_end(Some(key("b")), at(0)),
        Lookup::Miss(_)
    ));
    assert!(matches!(f.cache.lookup_end(None, at(0)), Lookup::Miss(_)));
}

#[test]
fn use_prolongs_the_term() {
    let f = Fixture::cut(&["", ""]);
    for ms in [9_000, 18_000, 27_000] {
        assert_eq!(f.hit("a", ms), Some(1));
    }
    assert_eq!(f.missing("a", 37_001), MissReason::Expired);
}

#[test]
fn terms_begun_together_do_not_end_together() {
    let ttl = Ttl {
        jitter_ms: 5_000,
        ..TTL
    };
    let ends: std::collections::BTreeSet<Instant> =
        (0..100).map(|region| ttl.fresh(region, at(0))).collect();
    assert!(ends.len() > 90);
    assert!(
        ends.iter()
            .all(|end| (at(10_000)..at(15_000)).contains(end))
    );
    assert_eq!(Ttl { base_ms: 5, ..TTL }.fresh(1, at(0)), at(5));
}

#[test]
fn need_expire_region_after_ttl() {
    let f = Fixture::new();
    let mut with_down_peer = data(1, "", "", 1, 1);
    with_down_peer.down = vec![peer(1, 3)];
    f.load(with_down_peer, REPLACE, 0);
    assert_eq!(f.region(1).peers().len(), 2);
    assert_eq!(f.hit("a", 9_000), Some(1));
    assert_eq!(f.missing("a", 10_001), MissReason::Frozen);
}

#[test]
fn an_invalid_region_stays_out_of_use_until_it_is_replaced() {
    let f = Fixture::cut(&["", "g", ""]);
    let region = f.region(1);
    f.cache
        .invalidate(region.ver_id(), InvalidReason::NoLeader, at(5));
    f.cache
        .invalidate(region.ver_id(), InvalidReason::Other, at(6));
    assert_eq!(
        f.missing("a", 6),
        MissReason::Invalid(InvalidReason::NoLeader)
    );
    assert!(!region.is_valid(at(6)));
    assert!(matches!(
        f.load(data(1, "", "g", 1, 1), REPLACE, 7),
        Inserted::Added(_)
    ));
    assert_eq!(f.hit("a", 7), Some(1));
    // PD may still name the one that stepped down, so the next one is tried.
    assert_eq!(f.region(1).leader_place(), 1);
}

#[test]
fn no_leader_means_nothing_to_the_region_that_comes_instead() {
    let f = Fixture::cut(&["", "g", ""]);
    f.cache
        .invalidate(f.region(1).ver_id(), InvalidReason::NoLeader, at(0));
    f.load(data(7, "", "g", 1, 2), REPLACE, 0);
    assert_eq!(f.region(7).leader_place(), 0);
}

#[test]
fn of_many_callers_one_reloads() {
    let f = Fixture::cut(&["", ""]);
    let region = f.region(1);
    region.set_flag(Flag::DelayedReady);
    assert!(f.cache.peek(b"a", at(0)).is_none());
    let first = f.cache.lookup(b"a", at(0));
    assert!(matches!(first, Lookup::Reload { replace: false, .. }));
    assert_eq!(f.hit("a", 0), Some(1));

    region.set_flag(Flag::ReloadOnAccess);
    assert!(!region.is_valid(at(0)));
    let first = f.cache.lookup(b"a", at(0));
    assert!(matches!(first, Lookup::Reload { replace: true, .. }));
    assert_eq!(f.hit("a", 0), Some(1));
}

#[test]
fn insert_stale_region() {
    let f = Fixture::new();
    f.load(data(1, "", "", 2, 2), REPLACE, 0);
    for (conf_ver, version) in [(1, 2), (2, 1), (3, 1), (1, 3)] {
        let inserted = f.load(data(1, "", "", conf_ver, version), REPLACE, 0);
        assert!(inserted.is_stale(), "{conf_ver} {version}");
        // Unknown to the cache, yet good for the request that asked.
        assert!(inserted.region().is_valid(at(0)));
    }
    assert_eq!(f.region(1).ver_id().ver, 2);
    assert!(!f.load(data(1, "", "", 2, 3), REPLACE, 0).is_stale());
    assert!(!f.load(data(1, "", "", 3, 3), REPLACE, 0).is_stale());
}

#[test]
fn a_newer_neighbour_in_the_way_makes_a_region_stale() {
    let f = Fixture::new();
    f.load(data(1, "", "g", 1, 3), REPLACE, 0);
    f.load(data(2, "g", "", 1, 3), REPLACE, 0);
    // Before the split the region reached from end to end.
    assert!(f.load(data(1, "", "", 1, 2), REPLACE, 0).is_stale());
    // One that begins before, one that begins within.
    assert!(f.load(data(8, "a", "b", 1, 2), REPLACE, 0).is_stale());
    assert!(f.load(data(9, "c", "h", 1, 2), REPLACE, 0).is_stale());
    assert_eq!((f.cache.len(), f.hit("a", 0)), (2, Some(1)));
}

#[test]
fn remove_intersecting_regions() {
    let f = Fixture::cut(&["", "b", "c", "d", ""]);
    let left = f.region(1);
    // Merged from all but the last; of the first it takes the right half.
    f.load(data(9, "a", "d", 1, 2), REPLACE, 0);
    assert_eq!(f.cache.len(), 2);
    assert_eq!(f.missing("", 0), MissReason::Missing);
    assert_eq!(
        (f.hit("a", 0), f.hit("c", 0), f.hit("d", 0)),
        (Some(9), Some(9), Some(4))
    );
    assert!(!left.is_valid(at(0)));
    f.load(data(10, "0", "", 1, 3), REPLACE, 0);
    assert_eq!((f.cache.len(), f.hit("z", 0)), (1, Some(10)));
}

#[test]
fn loads_of_many_regions_leave_requests_under_way_alone() {
    let f = Fixture::cut(&["", ""]);
    let old = f.region(1);
    f.load(data(1, "", "", 1, 2), KEEP, 0);
    assert!(old.is_valid(at(0)));
    f.load(data(1, "", "", 1, 3), REPLACE, 0);
    assert!(old.is_valid(at(0)));
    assert_eq!(f.region(1).ver_id().ver, 3);
}

#[test]
fn an_id_that_moved_leaves_its_old_range() {
    let f = Fixture::cut(&["", "g", ""]);
    f.load(data(1, "g", "", 1, 5), REPLACE, 0);
    assert_eq!(f.cache.len(), 1);
    assert_eq!(f.missing("a", 0), MissReason::Missing);
}

#[test]
fn the_same_region_again_keeps_the_object() {
    let f = Fixture::cut(&["", ""]);
    let old = f.region(1);
    old.set_flag(Flag::DelayedPending);
    f.stores.get(2).unwrap().fail(0, at(0));
    assert!(old.peers()[1].is_stale());
    let mut again = data(1, "", "", 1, 1);
    again.leader = Some(peer(1, 3));
    again.buckets = Some(Buckets::new(4, vec!["g".into()]));
    let Inserted::Kept(kept) = f.load(again, REPLACE, 8_000) else {
        panic!("not kept")
    };
    assert!(Arc::ptr_eq(&kept, &old));
    assert_eq!(old.leader_place(), 2);
    assert_eq!(old.buckets().map(|buckets| buckets.version()), Some(4));
    assert!(!old.has_flag(Flag::DelayedPending) && !old.peers()[1].is_stale());
    assert_eq!(f.hit("a", 17_000), Some(1));
}

#[test]
fn the_same_region_with_other_peers_is_another_object() {
    let f = Fixture::cut(&["", ""]);
    let old = f.region(1);
    let mut without_third = data(1, "", "", 1, 1);
    without_third.down = vec![peer(1, 3)];
    assert!(matches!(
        f.load(without_third, REPLACE, 0),
        Inserted::Added(_)
    ));
    assert!(!old.is_valid(at(0)));
}

#[test]
fn pd_leader_is_believed_over_what_has_been_invalid_for_two_seconds() {
    let f = Fixture::cut(&["", "g", ""]);
    f.load(data(1, "", "g", 1, 5), REPLACE, 0);
    f.region(1).invalidate(InvalidReason::Other, at(100));
    assert!(f.load(data(1, "", "g", 1, 4), REPLACE, 2_099).is_stale());
    assert!(f.load(data(1, "", "g", 1, 4), KEEP, 2_100).is_stale());
    assert!(!f.load(data(1, "", "g", 1, 4), REPLACE, 2_100).is_stale());
}

#[test]
fn region_epoch_not_match_brings_the_parts() {
    let f = Fixture::cut(&["", ""]);
    let old = f.region(1);
    old.switch_leader(1);
    old.update_buckets(Arc::new(Buckets::new(3, vec!["c".into(), "k".into()])));
    let mut left = data(1, "", "g", 1, 2);
    let mut right = data(2, "g", "", 1, 2);
    left.leader = None;
    right.leader = None;
    // A child that has no peer on the old leader's store.
    let mut elsewhere = data(3, "p", "", 1, 3);
    elsewhere.leader = None;
    elsewhere.meta.peers.remove(1);
    let parts = vec![left, right, elsewhere];
    let relocated = f.cache.on_epoch_not_match(&old, parts, 3, &f.stores, at(0));
    assert_eq!(relocated.regions.len(), 3);
    assert_eq!(old.invalid_reason(), Some(InvalidReason::EpochNotMatch));
    // The peer that led goes on to lead, also in the part beside it.
    assert_eq!(f.region(1).leader_place(), 1);
    assert_eq!(
        f.region(3).peers()[f.region(3).leader_place()]
            .peer
            .store_id,
        3
    );
    let cuts = f.region(1).buckets().unwrap();
    assert_eq!(cuts.keys(), ["".into(), "c".into(), "g".into()]);
}

#[test]
fn region_epoch_on_tiflash() {
    let f = Fixture::cut(&["", ""]);
    let mut next = data(1, "", "", 2, 1);
    next.meta.peers.insert(
        0,
        metapb::Peer {
            role: metapb::PeerRole::Learner.into(),
            ..peer(1, 4)
        },
    );
    f.cache
        .on_epoch_not_match(&f.region(1), vec![next], 4, &f.stores, at(0));
    let region = f.region(1);
    assert_eq!((region.peers().len(), region.other_peers().len()), (3, 1));
    assert_eq!(region.peers()[region.leader_place()].peer, peer(1, 1));
    assert_eq!(region.replica_number(), 4);
}

#[test]
fn regions_that_no_request_can_use_are_refused() {
    let stores = stores();
    let build = |data| Region::build(data, &stores, TTL, at(0)).map(|region| region.id());
    let mut nobody = data(1, "", "", 1, 1);
    nobody.meta.peers.clear();
    assert_eq!(build(nobody), Err(BuildError::NoPeers(1)));
    let mut all_down = data(1, "", "", 1, 1);
    all_down.down.clone_from(&all_down.meta.peers);
    assert_eq!(build(all_down), Err(BuildError::NoAvailablePeers(1)));
    let mut only_tiflash = data(1, "", "", 1, 1);
    only_tiflash.meta.peers = vec![peer(1, 4)];
    assert_eq!(build(only_tiflash), Err(BuildError::NoAvailablePeers(1)));
    let mut unknown = data(1, "", "", 1, 1);
    unknown.meta.peers = vec![peer(1, 7), peer(1, 8)];
    assert_eq!(unknown.unresolved_stores(&stores), [7, 8]);
    let unresolved = BuildError::Unresolved {
        region: 1,
        stores: vec![7, 8],
    };
    assert_eq!(build(unknown), Err(unresolved));
}

#[test]
fn filter_down_peers_or_peers_on_tombstone_or_dropped_stores() {
    let stores = stores();
    stores.resolve(1, None);
    let mut witnessed = data(1, "", "", 1, 1);
    witnessed.meta.peers[1].is_witness = true;
    witnessed.leader = Some(peer(1, 3));
    let region = build(witnessed.clone(), &stores);
    assert_eq!(region.peers().len(), 1);
    assert_eq!(region.peers()[0].peer, peer(1, 3));
    // A witness that leads is asked, and says what it is.
    witnessed.leader = Some(witnessed.meta.peers[1]);
    assert_eq!(build(witnessed, &stores).peers().len(), 2);
}

#[test]
fn a_region_without_a_leader_is_usable_and_says_so() {
    let stores = stores();
    for leader in [None, Some(metapb::Peer::default())] {
        let mut data = data(1, "", "", 1, 1);
        data.leader = leader;
        let region = build(data, &stores);
        assert!(!region.has_leader());
        assert_eq!(region.leader_place(), 0);
        region.switch_leader(0);
        assert!(region.has_leader());
    }
}

#[test]
fn an_unknown_store_is_done_without_for_one_term() {
    let f = Fixture::new();
    let mut data = data(1, "", "", 1, 1);
    data.meta.peers.push(peer(1, 7));
    f.load(data, REPLACE, 0);
    assert_eq!(f.region(1).peers().len(), 3);
    assert_eq!(f.hit("a", 9_000), Some(1));
    assert_eq!(f.missing("a", 10_001), MissReason::Frozen);
}

#[test]
fn send_failed_invalidates_regions_in_the_same_store() {
    let f = Fixture::cut(&["", "g", ""]);
    f.stores.get(2).unwrap().fail(0, at(0));
    assert!(f.region(1).peers()[1].is_stale() && f.region(2).peers()[1].is_stale());
    assert!(!f.region(1).peers()[0].is_stale());
    // Who hears that the peer leads trusts it again.
    f.region(1).switch_leader(1);
    assert!(!f.region(1).peers()[1].is_stale());
}

#[test]
fn background_cache_gc() {
    let cuts: Vec<String> = (0..100).map(|n| format!("{n:03}")).collect();
    let cuts: Vec<&str> = [""]
        .into_iter()
        .chain(cuts.iter().map(String::as_str))
        .collect();
    let f = Fixture::cut(&cuts);
    for id in [1, 40, 100] {
        f.region(id).invalidate(InvalidReason::Other, at(0));
    }
    let (due, frozen) = (f.region(50), f.region(51));
    due.set_flag(Flag::DelayedPending);
    frozen.set_flag(Flag::DelayedPending);
    frozen.set_flag(Flag::ExpireAfterTtl);
    let mut cursor = Key::EMPTY;
    for left in [98, 97] {
        cursor = f.cache.collect(&cursor, GC_REGIONS, at(0));
        assert_eq!(f.cache.len(), left);
    }
    assert!(due.has_flag(Flag::DelayedReady));
    assert!(!frozen.has_flag(Flag::DelayedReady));
    // Past the last one it begins again.
    assert_eq!(f.cache.collect(&cursor, GC_REGIONS, at(0)), Key::EMPTY);
    f.stores.get(3).unwrap().set_liveness(Liveness::Unreachable);
    f.cache.collect(&Key::EMPTY, GC_REGIONS, at(0));
    assert!(f.region(2).has_flag(Flag::ExpireAfterTtl));
    assert!(!f.region(90).has_flag(Flag::ExpireAfterTtl));
}

#[test]
fn keys_are_grouped_up_to_the_first_that_is_missing() {
    let f = Fixture::cut(&["", "g", "n"]);
    let keys = ["a", "b", "g", "m", "x"];
    let grouped = f.cache.group(&keys, at(0));
    let groups: Vec<_> = grouped
        .groups
        .iter()
        .map(|g| (g.region.id(), g.keys.clone()))
        .collect();
    assert_eq!(groups, [(1, 0..2), (2, 2..4)]);
    assert_eq!(grouped.missing, Some(4));
    assert_eq!(f.cache.group(&keys[..4], at(0)).missing, None);
}

#[test]
fn a_cover_finds_every_hole() {
    let f = Fixture::cut(&["b", "d", "f", "h"]);
    f.region(2).invalidate(InvalidReason::Other, at(0));
    let cover = |ranges: &[(&str, &str)]| {
        let bound = |end: &str| Some(Key::from(end)).filter(|end| !end.is_empty());
        let range = |(start, end): &(&str, &str)| KeyRange::new(*start, bound(end));
        let ranges: Vec<KeyRange> = ranges.iter().map(range).collect();
        let cover = f.cache.cover(&ranges, at(0));
        let regions: Vec<u64> = cover.regions.iter().map(|region| region.id()).collect();
        (regions, format!("{:?}", cover.holes))
    };
    for (ranges, regions, holes) in [
        (vec![("b", "d")], vec![1], r#"[]"#),
        (vec![("b", "h")], vec![1, 3], r#"[["d", "f")]"#),
        (
            vec![("", "")],
            vec![1, 3],
            r#"[["", "b"), ["d", "f"), ["h", +inf)]"#,
        ),
        (vec![("c", "e")], vec![1], r#"[["d", "e")]"#),
        (vec![("c", "c1"), ("c2", "c3")], vec![1], r#"[]"#),
        (
            vec![("c", "c1"), ("c2", "g")],
            vec![1, 3],
            r#"[["d", "f")]"#,
        ),
        (vec![("x", "y")], vec![], r#"[["x", "y")]"#),
        (
            vec![("a", "a1"), ("h", "")],
            vec![],
            r#"[["a", "a1"), ["h", +inf)]"#,
        ),
        (vec![("c", "c")], vec![], r#"[]"#),
    ] {
        assert_eq!(cover(&ranges), (regions, holes.to_owned()), "{ranges:?}");
    }
}

#[test]
fn a_cover_is_read_page_by_page() {
    let cuts: Vec<String> = (0..300).map(|n| format!("{n:03}")).collect();
    let cuts: Vec<&str> = cuts.iter().map(String::as_str).collect();
    let f = Fixture::cut(&cuts);
    let cover = f.cache.cover(&[KeyRange::all()], at(0));
    assert_eq!(cover.regions.len(), 299);
    assert_eq!(cover.holes, [("".."000").into(), ("299"..).into()]);
}

#[test]
fn locate_bucket_even_without_any_or_at_the_edges() {
    let stores = stores();
    let region = build(data(1, "b", "y", 1, 1), &stores);
    assert_eq!(region.bucket_of(b"c"), Some(region.range().clone()));
    region.update_buckets(Arc::new(Buckets::new(
        2,
        vec!["f".into(), "m".into(), "zz".into()],
    )));
    for (k, expected) in [
        ("c", Some("b".."f")),
        ("f", Some("f".."m")),
        ("l", Some("f".."m")),
        ("m", Some("m".."y")),
        ("x", Some("m".."y")),
        ("a", None),
        ("y", None),
    ] {
        assert_eq!(
            region.bucket_of(key(k)),
            expected.map(KeyRange::from),
            "{k}"
        );
    }
    region.update_buckets(Arc::new(Buckets::new(1, vec![])));
    assert_eq!(region.buckets().map(|buckets| buckets.version()), Some(2));
}

#[test]
fn batch_scan_regions_merger() {
    let stores = stores();
    let regions = |text: &str| -> Vec<Arc<Region>> {
        let bounds = text
            .split_whitespace()
            .map(|word| word.split_once('-').unwrap());
        bounds
            .map(|(start, end)| build(data(1, start, end, 1, 1), &stores))
            .collect()
    };
    for (cached, loaded, merged) in [
        ("", "", ""),
        ("a-b c-d", "", "a-b c-d"),
        ("", "a-b b-c", "a-b b-c"),
        ("a-b", "b-c c-d", "a-b b-c c-d"),
        ("c-d", "a-b b-c", "a-b b-c c-d"),
        ("a-b c-d e-f", "b-c d-e", "a-b b-c c-d d-e e-f"),
        ("a-b c-d", "a-b b-c c-d", "a-b b-c c-d"),
        ("a-b b-c", "-", "-"),
        ("b-c d-e", "a-f", "a-f"),
        ("a-c", "b-d", "a-c b-d"),
        ("b-d", "a-c c-f", "a-c c-f"),
        ("c-", "a-b b-c", "a-b b-c c-"),
        ("c-e e-", "a-b b-c", "a-b b-c c-e e-"),
        ("c-d", "a-b b-", "a-b b-"),
    ] {
        let got = merge(regions(cached), regions(loaded));
        let got: Vec<_> = got.iter().map(|region| region.range().clone()).collect();
        let expected: Vec<_> = regions(merged).iter().map(|r| r.range().clone()).collect();
        assert_eq!(got, expected, "{cached} with {loaded}");
    }
}
