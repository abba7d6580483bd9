//! Regions as PD knows them, and what its members tell of themselves.

use bytes::Bytes;
use tikv_core::wire::Command;
use tikv_proto::metapb;
use tikv_proto::pdpb::{
    AllocIdRequest, BatchScanRegionsRequest, BatchScanRegionsResponse, ErrorType,
    GetExternalTimestampRequest, GetMembersRequest, GetRegionRequest, GetRegionResponse, KeyRange,
    QueryRegionRequest, QueryRegionResponse, RequestHeader, ResponseHeader, ScanRegionsRequest,
    SetExternalTimestampRequest,
};

use super::{Bench, NOW};
use crate::cluster::failure::GrpcCode;
use crate::cluster::key;
use crate::cluster::region::RegionId;
use crate::cluster::{Cluster, Config};
use crate::dispatch;

fn header() -> Option<RequestHeader> {
    Some(RequestHeader {
        cluster_id: 1,
        ..Default::default()
    })
}

/// The kind of error in an answer's header.
fn refusal(header: &Option<ResponseHeader>) -> Option<ErrorType> {
    let error = header.as_ref().and_then(|header| header.error.as_ref());
    error.map(|error| error.r#type())
}

/// An encoded key; the empty one is no bound.
fn bound(k: &str) -> Bytes {
    if k.is_empty() {
        Bytes::new()
    } else {
        key::encode(k.as_bytes())
    }
}

/// A cluster split at the given keys, of which PD has heard only of the regions that start at the
/// keys in `known`.
fn known_at(cuts: &[&str], known: &[&str]) -> Bench {
    let mut b = Bench::with(Config {
        heartbeat_at_once: false,
        pd_members: 2,
        ..Default::default()
    });
    let id = b.to(b"").0.expect("a context").region_id;
    let cuts: Vec<Bytes> = cuts.iter().map(|cut| bound(cut)).collect();
    b.cluster.split(NOW, id, &cuts);
    // The last region has been known before, as the whole.
    let last = b.cluster.regions().iter().last().expect("a region").meta.id;
    assert!(b.cluster.pd_heartbeat(last));
    for start in known {
        let id = id_at(&b, start);
        assert!(b.cluster.pd_heartbeat(id));
    }
    b
}

/// The region that holds a key, whatever PD knows.
fn id_at(b: &Bench, k: &str) -> RegionId {
    let region = b.cluster.regions().find(&bound(k));
    region.expect("covered").meta.id
}

fn batch_scan(
    b: &Bench,
    member: usize,
    ranges: &[(&str, &str)],
    limit: i32,
    whole: bool,
) -> BatchScanRegionsResponse {
    let range = |(start, end): &(&str, &str)| KeyRange {
        start_key: bound(start),
        end_key: bound(end),
    };
    let request = BatchScanRegionsRequest {
        header: header(),
        ranges: ranges.iter().map(range).collect(),
        limit,
        contain_all_key_range: whole,
        ..Default::default()
    };
    let answer = b.cluster.pd().batch_scan_regions(member, true, request);
    answer.expect("an answer")
}

#[test]
fn test_scan_region() {
    let cuts = ["a", "b", "c", "d", "f", "i", "l"];
    let scan = |known: &[&str], start: &str, end: &str, limit: i32, whole: bool| {
        let b = known_at(&cuts, known);
        let answer = batch_scan(&b, 0, &[(start, end)], limit, whole);
        match refusal(&answer.header) {
            Some(ErrorType::RegionsNotContainAllKeyRange) => None,
            Some(other) => panic!("another error: {other:?}"),
            None => Some(answer.regions.len()),
        }
    };
    let two = &["a", "b"][..];
    let three = &["a", "b", "d"][..];
    let four = &["a", "b", "d", "f"][..];
    for (known, start, end, limit, whole, expected) in [
        (&["a"][..], "a", "b", 0, true, Some(1)),
        (&["a"], "a", "c", 0, true, None),
        (&["a"], "a", "c", 1, true, Some(1)),
        (two, "a", "c", 0, true, Some(2)),
        (two, "a", "c", 1, true, Some(1)),
        (three, "a", "e", 0, true, None),
        (three, "c", "e", 0, true, None),
        (four, "c", "g", 0, true, None),
        (four, "g", "h", 0, true, Some(1)),
        (four, "Z", "g", 0, true, None),
        (four, "m", "", 0, true, Some(1)),
        (four, "a", "e", 0, false, Some(3)),
        (four, "c", "e", 0, false, Some(1)),
    ] {
        let found = scan(known, start, end, limit, whole);
        assert_eq!(
            found, expected,
            "{known:?} [{start}, {end}) {limit} {whole}"
        );
    }
}

#[test]
fn test_scan_region_limit() {
    let mut cuts = Vec::new();
    for letter in ["a", "b"] {
        cuts.extend((0..=9).map(|i| format!("{letter}{i}")));
    }
    let known: Vec<&str> = cuts.iter().map(String::as_str).collect();
    let bounded: Vec<&str> = known
        .iter()
        .copied()
        .filter(|k| !k.ends_with('9'))
        .collect();
    let b = known_at(&known, &bounded);
    for limit in 1..=18 {
        let ranges = [("a", "b"), ("b0", "")];
        let found = batch_scan(&b, 0, &ranges, limit, false).regions;
        assert_eq!(found.len(), limit as usize);
    }
}

#[test]
fn a_hole_beyond_the_limit_is_noticed_in_a_range_of_its_own() {
    let b = known_at(&["a", "b", "c", "d"], &["a", "b", "d"]);
    // The first range has one region, the second one of its two and a hole behind it.
    for (limit, complete) in [(1, true), (2, false)] {
        let answer = batch_scan(&b, 0, &[("a", "b"), ("b", "d")], limit, true);
        assert_eq!(refusal(&answer.header).is_none(), complete, "{limit}");
    }
    let overlapping = batch_scan(&b, 0, &[("b", "a"), ("a", "b")], 9, false);
    let error = overlapping.header.and_then(|header| header.error);
    assert_eq!(
        error.expect("an error").message,
        "invalid key range, start key > end key"
    );
}

#[test]
fn test_query_regions() {
    let b = known_at(&["a", "b", "c", "d", "e"], &["a", "b", "d"]);
    let [first, second, third, unknown] = ["a", "b", "d", "c"].map(|k| id_at(&b, k));
    let query = |keys: &[&str], prev_keys: &[&str], ids: &[RegionId]| -> QueryRegionResponse {
        let request = QueryRegionRequest {
            header: header(),
            keys: keys.iter().map(|k| bound(k)).collect(),
            prev_keys: prev_keys.iter().map(|k| bound(k)).collect(),
            ids: ids.to_vec(),
            ..Default::default()
        };
        let answer = b.cluster.pd().query_region(0, request);
        answer.expect("an answer")
    };
    // The regions told of, and whether each of them is known.
    let told = |answer: &QueryRegionResponse| -> Vec<(RegionId, bool)> {
        let mut ids: Vec<_> = answer
            .regions_by_id
            .iter()
            .map(|(id, answer)| (*id, answer.region.is_some()))
            .collect();
        ids.sort_unstable();
        ids
    };
    let sorted = |mut ids: Vec<(RegionId, bool)>| {
        ids.sort_unstable();
        ids
    };
    let answer = query(&["a", "b", "c"], &[], &[]);
    assert_eq!(answer.key_id_map, [first, second, 0]);
    assert_eq!(told(&answer), sorted(vec![(first, true), (second, true)]));
    let answer = query(&[], &[], &[first, second, third, unknown, 0]);
    let mut expected = vec![(first, true), (second, true), (third, true)];
    expected.push((unknown, false));
    assert_eq!(told(&answer), sorted(expected));
    let answer = query(&["c"], &[], &[]);
    assert_eq!((&answer.key_id_map[..], told(&answer)), (&[0][..], vec![]));
    let prev = ["a", "b", "c", "d", "e"];
    let answer = query(&["b", "c"], &prev, &[first, third]);
    assert_eq!(answer.key_id_map, [second, 0]);
    assert_eq!(answer.prev_key_id_map, [0, first, 0, 0, third]);
    let expected = vec![(first, true), (second, true), (third, true)];
    assert_eq!(told(&answer), sorted(expected));
}

/// PD knows of `[a, d)` and of `[f, ∞)`. Of a region nobody knows the leader answers with none,
/// a follower with an error.
fn two_known() -> Bench {
    known_at(&["a", "d", "f"], &["a"])
}

const BOTH: [(usize, Option<ErrorType>); 2] = [(0, None), (1, Some(ErrorType::RegionNotFound))];

#[test]
fn test_scan_regions() {
    let b = two_known();
    for (member, of_none) in BOTH {
        let scan = |start: &str, end: &str| {
            let request = ScanRegionsRequest {
                header: header(),
                start_key: bound(start),
                end_key: bound(end),
                limit: 10,
            };
            let answer = b.cluster.pd().scan_regions(member, true, request);
            let answer = answer.expect("an answer");
            (refusal(&answer.header), answer.regions.len())
        };
        assert_eq!(scan("a", "e"), (None, 1));
        assert_eq!(scan("", "0"), (of_none, 0));
    }
}

#[test]
fn test_batch_scan_regions() {
    let b = two_known();
    for (member, of_none) in BOTH {
        let found = batch_scan(&b, member, &[("a", "e")], 10, false);
        assert_eq!((refusal(&found.header), found.regions.len()), (None, 1));
        let none = batch_scan(&b, member, &[("", "0")], 10, false);
        assert_eq!((refusal(&none.header), none.regions.len()), (of_none, 0));
    }
}

fn told_id(answer: &GetRegionResponse) -> Option<RegionId> {
    answer.region.as_ref().map(|region| region.id)
}

fn region_request(k: &str) -> GetRegionRequest {
    GetRegionRequest {
        header: header(),
        region_key: bound(k),
        need_buckets: false,
    }
}

#[test]
fn test_get_region() {
    let b = two_known();
    for (member, of_none) in BOTH {
        let get = |k: &str| {
            let answer = b.cluster.pd().get_region(member, true, region_request(k));
            let answer = answer.expect("an answer");
            (refusal(&answer.header), told_id(&answer))
        };
        assert_eq!(get("c"), (None, Some(id_at(&b, "c"))));
        assert_eq!(get("0"), (of_none, None));
    }
}

#[test]
fn test_get_region_by_pre_key() {
    let b = two_known();
    for (member, of_none) in BOTH {
        // Before one there is a hole; the other is not known itself.
        for k in ["g", "0"] {
            let pd = b.cluster.pd();
            let answer = pd.get_prev_region(member, true, region_request(k));
            let answer = answer.expect("an answer");
            assert_eq!((refusal(&answer.header), told_id(&answer)), (of_none, None));
        }
    }
}

#[test]
fn test_stale_region() {
    let mut b = Bench::with(Config {
        heartbeat_at_once: false,
        ..Default::default()
    });
    let id = id_at(&b, "x");
    let mut before = b.clone();
    b.cluster.split(NOW, id, &[bound("m")]);
    assert!(b.cluster.pd_heartbeat(id));
    // A leader that has not heard of the split is not believed any more.
    *before.cluster.pd_mut() = b.cluster.pd().clone();
    assert!(!before.cluster.pd_heartbeat(id));
    assert_eq!(get_start(&before, "x"), Some(bound("m")));
    b.cluster.split(NOW, id, &[bound("p")]);
    assert!(b.cluster.pd_heartbeat(id));
    assert_eq!(get_start(&b, "x"), Some(bound("p")));
}

fn get_start(b: &Bench, k: &str) -> Option<Bytes> {
    let answer = b.cluster.pd().get_region(0, false, region_request(k));
    let region = answer.expect("an answer").region;
    region.map(|region| region.start_key)
}

#[test]
fn test_stale_term_heartbeat() {
    let mut b = Bench::with(Config {
        heartbeat_at_once: false,
        ..Default::default()
    });
    let id = id_at(&b, "x");
    let mut before = b.clone();
    assert!(b.cluster.transfer_leader(NOW, id, 2));
    assert!(b.cluster.pd_heartbeat(id));
    // The leader of the term before is not believed any more.
    *before.cluster.pd_mut() = b.cluster.pd().clone();
    assert!(!before.cluster.pd_heartbeat(id));
    let answer = before
        .cluster
        .pd()
        .get_region(0, false, region_request("x"));
    let leader = answer.expect("an answer").leader;
    assert_eq!(leader.map(|leader| leader.store_id), Some(2));
}

#[test]
fn test_get_pd_members() {
    let b = Bench::with(Config {
        pd_members: 3,
        ..Default::default()
    });
    for member in 0..3 {
        let answer = b
            .cluster
            .pd()
            .get_members(member, GetMembersRequest::default());
        let answer = answer.expect("any member answers");
        assert_eq!((refusal(&answer.header), answer.members.len()), (None, 3));
    }
}

#[test]
fn test_not_leader() {
    let mut b = Bench::with(Config {
        pd_members: 2,
        ..Default::default()
    });
    let request = AllocIdRequest {
        header: header(),
        ..Default::default()
    };
    let refused = b.cluster.pd_mut().alloc_ids(1, request.clone());
    let error = refused.expect_err("a follower");
    assert_eq!(
        (error.code, &error.message[..]),
        (GrpcCode::Unavailable, "not leader")
    );
    assert!(b.cluster.pd_mut().alloc_ids(0, request).is_ok());
}

#[test]
fn test_external_timestamp() {
    let mut b = Bench::new();
    let mut set = |timestamp: u64| {
        let request = SetExternalTimestampRequest {
            header: header(),
            timestamp,
        };
        let answer = b.cluster.pd_mut().set_external_timestamp(NOW, 0, request);
        let refused = refusal(&answer.expect("an answer").header);
        let request = GetExternalTimestampRequest { header: header() };
        let answer = b.cluster.pd().get_external_timestamp(0, request);
        (refused, answer.expect("an answer").timestamp)
    };
    let refused = Some(ErrorType::InvalidValue);
    assert_eq!(set(233), (None, 233));
    assert_eq!(set(232), (refused, 233), "it does not fall");
    assert_eq!(set(233), (refused, 233), "it rises");
    assert_eq!(set((NOW + 1000) << 18), (refused, 233), "beyond PD's time");
    assert_eq!(set(NOW << 18), (None, NOW << 18));
}

#[test]
fn peers_that_are_down_or_pending_are_told_with_their_region() {
    let mut b = Bench::new();
    let id = b.to(b"k").0.expect("a context").region_id;
    let look_up = |b: &Bench| {
        let request = GetRegionRequest {
            header: header(),
            region_key: Bytes::from("k"),
            need_buckets: false,
        };
        b.cluster
            .pd()
            .get_region(0, false, request)
            .expect("an answer")
    };
    assert!(look_up(&b).down_peers.is_empty() && look_up(&b).pending_peers.is_empty());
    b.cluster.set_peer_state(id, 2, |peer| peer.down = true);
    b.cluster
        .set_peer_state(id, 3, |peer| peer.applying_snapshot = true);
    let found = look_up(&b);
    let down: Vec<_> = found.down_peers.iter().filter_map(|it| it.peer).collect();
    let stores = |peers: &[metapb::Peer]| peers.iter().map(|it| it.store_id).collect::<Vec<_>>();
    assert_eq!(
        (stores(&down), stores(&found.pending_peers)),
        (vec![2], vec![3])
    );
    let loaded = Cluster::load(&b.cluster.save()).expect("it was saved");
    let request = GetRegionRequest {
        header: header(),
        region_key: Bytes::from("k"),
        need_buckets: false,
    };
    assert_eq!(loaded.pd().get_region(0, false, request), Ok(found));
    for store in [2, 3] {
        b.cluster
            .set_peer_state(id, store, |peer| *peer = Default::default());
    }
    assert!(look_up(&b).down_peers.is_empty() && look_up(&b).pending_peers.is_empty());
}

#[test]
fn too_many_requests_are_refused_but_not_who_the_members_are() {
    let mut b = Bench::new();
    b.cluster.pd_mut().refuse_requests(1);
    let mut ask = |command: Command| dispatch::pd(&mut b.cluster, NOW, 0, command).map(|_| ());
    assert_eq!(
        ask(Command::GetMembers(GetMembersRequest::default())),
        Ok(())
    );
    let get = GetRegionRequest {
        header: header(),
        ..Default::default()
    };
    let refused = ask(Command::GetRegion(get.clone())).expect_err("too many");
    assert_eq!(refused.code, GrpcCode::ResourceExhausted);
    assert_eq!(ask(Command::GetRegion(get)), Ok(()));
}

#[test]
fn a_follower_may_know_regions_as_they_were() {
    let mut b = Bench::with(Config {
        pd_members: 2,
        ..Config::default()
    });
    let id = b.to(b"k").0.expect("a context").region_id;
    b.cluster.pd_mut().hold_followers(true);
    b.cluster.split(NOW, id, &[bound("g")]);
    let start_of = |b: &Bench, member| {
        let request = GetRegionRequest {
            header: header(),
            region_key: bound("k"),
            need_buckets: false,
        };
        let answer = b.cluster.pd().get_region(member, true, request);
        answer
            .expect("an answer")
            .region
            .expect("a region")
            .start_key
    };
    assert_eq!((start_of(&b, 0), start_of(&b, 1)), (bound("g"), bound("")));
    assert_eq!(batch_scan(&b, 1, &[("a", "z")], 0, true).regions.len(), 1);
    // Who leads has heard everything.
    b.cluster.pd_mut().set_leader(NOW, Some(1));
    assert_eq!((start_of(&b, 0), start_of(&b, 1)), (bound(""), bound("g")));
    b.cluster.pd_mut().hold_followers(false);
    assert_eq!(start_of(&b, 0), bound("g"));
}
