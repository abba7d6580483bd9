//! Raw requests that no careful client sends: lists that do not fit together, nothing to do, keys
//! that are too long.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{self, ApiVersion};

use super::{Bench, NOW};
use crate::cluster::Config;

const LONG: [u8; 8193] = [b'r'; 8193];

fn bench(api_version: ApiVersion) -> Bench {
    Bench::with(Config {
        api_version,
        ..Config::default()
    })
}

fn batch_put(b: &mut Bench, request: kvrpcpb::RawBatchPutRequest) -> String {
    let (context, store) = b.to(b"r");
    let request = kvrpcpb::RawBatchPutRequest { context, ..request };
    let response = b.cluster.raw_batch_put(NOW, store, request);
    assert_eq!(response.region_error, None);
    response.error
}

fn pairs(keys: &[&'static str]) -> Vec<kvrpcpb::KvPair> {
    let pair = |key: &&'static str| kvrpcpb::KvPair {
        key: (*key).into(),
        value: "v".into(),
        ..Default::default()
    };
    keys.iter().map(pair).collect()
}

/// Whether there is a value, and how long it is to live.
fn ttl(b: &mut Bench, key: &'static str) -> Option<u64> {
    let (context, store) = b.to(b"r");
    let request = kvrpcpb::RawGetKeyTtlRequest {
        context,
        key: key.into(),
        ..Default::default()
    };
    let response = b.cluster.raw_get_key_ttl(NOW, store, request);
    assert_eq!(response.error, "");
    (!response.not_found).then_some(response.ttl)
}

fn is_there(b: &mut Bench, key: &'static str) -> bool {
    let (context, store) = b.to(b"r");
    let request = kvrpcpb::RawGetRequest {
        context,
        key: key.into(),
        ..Default::default()
    };
    !b.cluster.raw_get(NOW, store, request).not_found
}

#[test]
#[allow(deprecated)]
fn only_the_list_says_how_long_pairs_are_to_live() {
    let mut b = bench(ApiVersion::V1ttl);
    for (ttls, expected) in [(vec![], 0), (vec![50], 50), (vec![60, 70], 60)] {
        let request = kvrpcpb::RawBatchPutRequest {
            pairs: pairs(&["ra", "rb"]),
            ttl: 20,
            ttls,
            ..Default::default()
        };
        assert_eq!(batch_put(&mut b, request), "");
        assert_eq!(ttl(&mut b, "ra"), Some(expected));
    }
    let request = kvrpcpb::RawBatchPutRequest {
        pairs: pairs(&["ra"]),
        ttls: vec![1, 2],
        ..Default::default()
    };
    assert_ne!(batch_put(&mut b, request), "");
}

#[test]
fn a_store_without_ttl_takes_as_many_pairs_as_there_are_ttls() {
    let mut b = bench(ApiVersion::V1);
    let request = kvrpcpb::RawBatchPutRequest {
        pairs: pairs(&["ra", "rb", "rc"]),
        ttls: vec![0, 0],
        ..Default::default()
    };
    assert_eq!(batch_put(&mut b, request), "");
    let there = ["ra", "rb", "rc"].map(|key| is_there(&mut b, key));
    assert_eq!(there, [true, true, false]);
    // It minds a TTL even if there is no pair for it.
    let request = kvrpcpb::RawBatchPutRequest {
        ttls: vec![0, 1],
        ..Default::default()
    };
    assert_ne!(batch_put(&mut b, request), "");
}

#[test]
fn a_write_of_nothing_is_refused_unless_it_is_atomic() {
    for api_version in [ApiVersion::V1, ApiVersion::V2] {
        for for_cas in [false, true] {
            let mut b = bench(api_version);
            let request = kvrpcpb::RawBatchPutRequest {
                for_cas,
                ..Default::default()
            };
            assert_eq!(batch_put(&mut b, request).is_empty(), for_cas);
            let (context, store) = b.to(b"r");
            let mut delete = kvrpcpb::RawBatchDeleteRequest {
                context,
                for_cas,
                ..Default::default()
            };
            let response = b.cluster.raw_batch_delete(NOW, store, delete.clone());
            assert_eq!(response.error.is_empty(), for_cas);
            // Where it is refused, nobody has asked which region it is for.
            let context = delete.context.as_mut().expect("there is one");
            context.region_id = 77;
            let response = b.cluster.raw_batch_delete(NOW, store, delete);
            let asked = for_cas || api_version == ApiVersion::V2;
            assert_eq!(response.region_error.is_some(), asked);
            assert_eq!(response.error.is_empty(), asked);
        }
    }
}

#[test]
fn the_keys_of_an_atomic_write_may_be_of_any_length() {
    let mut b = bench(ApiVersion::V1);
    let long = Bytes::from_static(&LONG);
    for for_cas in [false, true] {
        let (context, store) = b.to(b"r");
        let put = kvrpcpb::RawPutRequest {
            context: context.clone(),
            key: long.clone(),
            value: "v".into(),
            for_cas,
            ..Default::default()
        };
        let response = b.cluster.raw_put(NOW, store, put);
        assert_eq!(response.error.is_empty(), for_cas);
        let delete = kvrpcpb::RawDeleteRequest {
            context,
            key: long.clone(),
            for_cas,
            ..Default::default()
        };
        let response = b.cluster.raw_delete(NOW, store, delete);
        assert_eq!(response.error.is_empty(), for_cas);
    }
}

#[test]
fn a_range_is_deleted_before_the_leader_has_caught_up() {
    let mut b = Bench::with(Config {
        api_version: ApiVersion::V2,
        sync_max_ts_at_once: false,
        ..Config::default()
    });
    let id = b.to(b"r").0.expect("a context").region_id;
    b.cluster.transfer_leader(NOW, id, 2);
    let (context, store) = b.to(b"r");
    let request = kvrpcpb::RawDeleteRangeRequest {
        context,
        start_key: "ra".into(),
        end_key: "rb".into(),
        ..Default::default()
    };
    let response = b.cluster.raw_delete_range(NOW, store, request);
    assert_eq!(response, Default::default());
}

#[test]
fn a_scan_of_raw_data_begins_within_the_region() {
    let mut b = bench(ApiVersion::V1);
    let id = b.to(b"a").0.expect("a context").region_id;
    b.cluster.split(NOW, id, &["m".into()]);
    let (context, store) = b.route(b"a");
    let scan = |b: &mut Bench, start: &'static str, reverse, limit| {
        let request = kvrpcpb::RawScanRequest {
            context: Some(Box::new(context.clone())),
            start_key: start.into(),
            reverse,
            limit,
            ..Default::default()
        };
        let response = b.cluster.raw_scan(NOW, store, request);
        assert_eq!(response.region_error, None);
        response.kvs.is_empty()
    };
    for reverse in [false, true] {
        assert!(scan(&mut b, "b", reverse, 10));
        assert!(
            scan(&mut b, "m", reverse, 10),
            "the end of the region will do"
        );
        assert!(
            !scan(&mut b, "n", reverse, 10),
            "there is a pair with an error"
        );
        assert!(
            scan(&mut b, "n", reverse, 0),
            "who wants nothing is not asked where"
        );
    }
}
