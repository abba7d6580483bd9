//! PD's answers.

use bytes::Bytes;
use tikv_proto::pdpb::{self, ErrorType, RequestHeader};

use super::{Bench, NOW};
use crate::cluster::failure::GrpcCode;
use crate::cluster::{Config, key};

fn header() -> Option<RequestHeader> {
    Some(RequestHeader {
        cluster_id: 1,
        ..Default::default()
    })
}

fn region_at(b: &Bench, k: &[u8]) -> Option<u64> {
    let region_key = key::encode(k);
    let request = pdpb::GetRegionRequest {
        header: header(),
        region_key,
        need_buckets: false,
    };
    let response = b
        .cluster
        .pd()
        .get_region(0, false, request)
        .expect("the leader answers");
    response.region.map(|region| region.id)
}

#[test]
fn test_regions_are_found() {
    let mut b = Bench::new();
    let id = region_at(&b, b"x").expect("the first region");
    let parts = b
        .cluster
        .split(NOW, id, &[key::encode(b"g"), key::encode(b"p")]);
    assert_eq!(region_at(&b, b"a"), Some(parts[0]));
    assert_eq!(region_at(&b, b"g"), Some(parts[1]));
    assert_eq!(region_at(&b, b"z"), Some(parts[2]));
    let pd = b.cluster.pd();
    let before = |k: &[u8]| {
        let region_key = key::encode(k);
        let request = pdpb::GetRegionRequest {
            header: header(),
            region_key,
            need_buckets: false,
        };
        let response = pd
            .get_prev_region(0, false, request)
            .expect("the leader answers");
        response.region.map(|region| region.id)
    };
    assert_eq!(
        (before(b"z"), before(b"p"), before(b"a")),
        (Some(parts[1]), Some(parts[1]), None)
    );
    let scan = |start: &[u8], end: &[u8], limit: i32| -> Vec<u64> {
        let request = pdpb::ScanRegionsRequest {
            header: header(),
            start_key: key::encode(start),
            end_key: if end.is_empty() {
                Bytes::new()
            } else {
                key::encode(end)
            },
            limit,
        };
        let response = pd
            .scan_regions(0, false, request)
            .expect("the leader answers");
        response
            .region_metas
            .iter()
            .map(|region| region.id)
            .collect()
    };
    assert_eq!(scan(b"h", b"", 0), [parts[1], parts[2]]);
    assert_eq!(scan(b"a", b"h", 0), [parts[0], parts[1]]);
    assert_eq!(scan(b"a", b"", 2), [parts[0], parts[1]]);
    assert!(scan(b"z", b"a", 5).is_empty());
    let request = pdpb::QueryRegionRequest {
        header: header(),
        keys: vec![key::encode(b"z"), key::encode(b"a")],
        prev_keys: vec![key::encode(b"z")],
        ids: vec![999],
        ..Default::default()
    };
    let response = pd.query_region(0, request).expect("the leader answers");
    assert_eq!(response.key_id_map, [parts[2], parts[0]]);
    assert_eq!(response.prev_key_id_map, [parts[1]]);
    assert_eq!(response.regions_by_id.len(), 4);
    assert_eq!(response.regions_by_id[&999].region, None);
}

#[test]
fn test_batch_scan_regions() {
    let mut b = Bench::new();
    let id = region_at(&b, b"x").expect("the first region");
    let parts = b
        .cluster
        .split(NOW, id, &[key::encode(b"g"), key::encode(b"p")]);
    let pd = b.cluster.pd();
    let scan = |ranges: &[(&[u8], &[u8])]| {
        let ranges = ranges
            .iter()
            .map(|(start, end)| pdpb::KeyRange {
                start_key: key::encode(start),
                end_key: key::encode(end),
            })
            .collect();
        let request = pdpb::BatchScanRegionsRequest {
            header: header(),
            ranges,
            contain_all_key_range: true,
            ..Default::default()
        };
        let response = pd
            .batch_scan_regions(0, false, request)
            .expect("the leader answers");
        let error = response.header.and_then(|header| header.error);
        let ids: Vec<u64> = response
            .regions
            .iter()
            .filter_map(|r| r.region.as_ref())
            .map(|r| r.id)
            .collect();
        (ids, error.map(|error| error.message))
    };
    assert_eq!(scan(&[(b"a", b"h"), (b"h", b"z")]), (parts.clone(), None));
    assert_eq!(
        scan(&[(b"a", b"b"), (b"q", b"z")]),
        (vec![parts[0], parts[2]], None)
    );
    let overlapped = scan(&[(b"a", b"h"), (b"c", b"z")]).1;
    assert_eq!(
        overlapped.as_deref(),
        Some("invalid key range, ranges overlapped")
    );
}

#[test]
fn test_pd_knows_what_it_has_been_told() {
    let config = Config {
        heartbeat_at_once: false,
        ..Default::default()
    };
    let mut b = Bench::with(config);
    let id = region_at(&b, b"x").expect("the first region");
    let parts = b.cluster.split(NOW, id, &[key::encode(b"g")]);
    assert_eq!(region_at(&b, b"a"), Some(id), "the old picture");
    assert!(b.cluster.pd_heartbeat(id));
    assert_eq!(
        region_at(&b, b"a"),
        None,
        "a hole until the other part is heard of"
    );
    assert!(b.cluster.pd_heartbeat(parts[0]));
    assert_eq!(region_at(&b, b"a"), Some(parts[0]));
}

#[test]
fn test_who_answers() {
    let mut b = Bench::with(Config {
        pd_members: 3,
        ..Default::default()
    });
    let request = |header: Option<RequestHeader>| pdpb::GetRegionRequest {
        header,
        region_key: Bytes::new(),
        need_buckets: false,
    };
    let pd = b.cluster.pd();
    let code = |member: usize, follower: bool, header: Option<RequestHeader>| {
        pd.get_region(member, follower, request(header))
            .map_err(|error| error.code)
            .err()
    };
    assert_eq!(code(0, false, header()), None);
    assert_eq!(code(1, false, header()), Some(GrpcCode::Unavailable));
    assert_eq!(code(1, true, header()), None);
    assert_eq!(code(0, false, None), Some(GrpcCode::FailedPrecondition));
    b.cluster.pd_mut().set_follower_handles(false);
    let response = b
        .cluster
        .pd()
        .get_region(1, true, request(header()))
        .expect("an answer");
    let error = response
        .header
        .and_then(|header| header.error)
        .expect("not ready");
    assert_eq!(error.r#type(), ErrorType::RegionNotFound);
    let members = b
        .cluster
        .pd()
        .get_members(2, Default::default())
        .expect("any member");
    assert_eq!(members.members.len(), 3);
    assert_eq!(members.leader.expect("a leader").name, "pd0");
}

#[test]
fn test_tso() {
    let mut b = Bench::with(Config {
        pd_members: 2,
        ..Default::default()
    });
    let next = |b: &mut Bench, member: usize, count: u32| {
        let request = pdpb::TsoRequest {
            header: header(),
            count,
            ..Default::default()
        };
        let response = b
            .cluster
            .pd_mut()
            .tso(NOW, member, request)
            .map_err(|e| e.message)?;
        let ts = response.timestamp.ok_or("no timestamp")?;
        Ok::<_, String>((ts.physical, ts.logical))
    };
    let first = next(&mut b, 0, 10).expect("timestamps");
    assert_eq!(first, (NOW as i64, 10), "the last of the batch");
    assert_eq!(next(&mut b, 0, 5), Ok((NOW as i64, 15)));
    assert!(next(&mut b, 0, 0).is_err());
    assert!(
        next(&mut b, 1, 1)
            .expect_err("a follower")
            .contains("is not leader of cluster")
    );
    b.cluster.pd_mut().set_leader(NOW, Some(1));
    assert!(next(&mut b, 1, 1).expect("the new leader") > (NOW as i64 + 5_000, 0));
}

#[test]
fn test_stores_and_operators() {
    let b = Bench::new();
    let request = |store_id: u64| pdpb::GetStoreRequest {
        header: header(),
        store_id,
    };
    let known = b.cluster.pd_get_store(0, request(1)).expect("an answer");
    assert_eq!(known.store.expect("a store").version, "9.0.0-beta.2");
    let unknown = b.cluster.pd_get_store(0, request(42)).expect("an answer");
    let error = unknown
        .header
        .and_then(|header| header.error)
        .expect("unknown");
    assert_eq!(error.message, "invalid store ID 42, not found");
    let request = pdpb::GetAllStoresRequest {
        header: header(),
        ..Default::default()
    };
    assert_eq!(
        b.cluster
            .pd_get_all_stores(0, request)
            .expect("an answer")
            .stores
            .len(),
        3
    );
    let request = pdpb::GetOperatorRequest {
        header: header(),
        region_id: 4,
    };
    let answer = b
        .cluster
        .pd()
        .get_operator(NOW, 0, request)
        .expect("an answer");
    assert_eq!(
        answer.header.and_then(|h| h.error).expect("none").message,
        "Not Found"
    );
}

#[test]
fn test_advance_safe_points() {
    let mut b = Bench::new();
    let pd = b.cluster.pd_mut();
    let barrier = pdpb::SetGcBarrierRequest {
        header: header(),
        barrier_id: "backup".to_owned(),
        barrier_ts: 50,
        ttl_seconds: 10,
        ..Default::default()
    };
    assert!(
        pd.set_gc_barrier(NOW, 0, barrier)
            .expect("an answer")
            .new_barrier_info
            .is_some()
    );
    let mut advance = |now_ms: u64, target: u64| {
        let request = pdpb::AdvanceTxnSafePointRequest {
            header: header(),
            target,
            ..Default::default()
        };
        let response = pd
            .advance_txn_safe_point(now_ms, 0, request)
            .expect("an answer");
        (
            response.new_txn_safe_point,
            !response.blocker_description.is_empty(),
        )
    };
    assert_eq!(advance(NOW, 40), (40, false));
    assert_eq!(advance(NOW, 100), (50, true));
    assert_eq!(
        advance(NOW, 30),
        (0, false),
        "never back: an error without a value"
    );
    assert_eq!(
        advance(NOW + 20_000, 100),
        (100, false),
        "the barrier has expired"
    );
    let request = |target: u64| pdpb::AdvanceGcSafePointRequest {
        header: header(),
        target,
        ..Default::default()
    };
    let too_far = pd
        .advance_gc_safe_point(0, request(101))
        .expect("an answer");
    assert!(too_far.header.and_then(|header| header.error).is_some());
    assert_eq!(
        pd.advance_gc_safe_point(0, request(90))
            .expect("an answer")
            .new_gc_safe_point,
        90
    );
    let request = pdpb::GetGcStateRequest {
        header: header(),
        ..Default::default()
    };
    let state = pd
        .get_gc_state(NOW, 0, request)
        .expect("an answer")
        .gc_state
        .expect("a state");
    assert_eq!((state.txn_safe_point, state.gc_safe_point), (100, 90));
}

#[test]
fn test_many_regions() {
    let mut b = Bench::with(Config {
        heartbeat_at_once: false,
        ..Default::default()
    });
    let id = region_at(&b, b"x").expect("the first region");
    let keys: Vec<Bytes> = (1..10_000u32)
        .map(|i| key::encode(&i.to_be_bytes()))
        .collect();
    assert_eq!(b.cluster.split(NOW, id, &keys).len(), 10_000);
    for i in (0..10_000u32).step_by(997) {
        let found = b
            .cluster
            .regions()
            .find(&key::encode(&i.to_be_bytes()))
            .expect("covered");
        assert!(found.contains(&key::encode(&i.to_be_bytes())));
    }
}
