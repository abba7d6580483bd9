//! Raw commands.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{self, ApiVersion, KeyRange, KvPair};

use super::{Bench, NOW};
use crate::cluster::{Config, key};

fn bench(api_version: ApiVersion) -> Bench {
    Bench::with(Config {
        api_version,
        ..Default::default()
    })
}

fn put(b: &mut Bench, k: &str, v: &str, ttl: u64) -> String {
    let (context, store) = b.route(k.as_bytes());
    let request = kvrpcpb::RawPutRequest {
        context: Some(Box::new(context)),
        key: k.to_owned().into(),
        value: v.to_owned().into(),
        ttl,
        ..Default::default()
    };
    b.cluster.raw_put(NOW, store, request).error
}

fn get(b: &mut Bench, now_ms: u64, k: &str) -> Option<Bytes> {
    let (context, store) = b.route(k.as_bytes());
    let key = k.to_owned().into();
    let request = kvrpcpb::RawGetRequest {
        context: Some(Box::new(context)),
        key,
        cf: String::new(),
    };
    let response = b.cluster.raw_get(now_ms, store, request);
    assert_eq!(response.error, "");
    (!response.not_found).then_some(response.value)
}

fn scan(b: &mut Bench, start: &str, end: &str, limit: u32, reverse: bool) -> String {
    let (context, store) = b.route(b"");
    let request = kvrpcpb::RawScanRequest {
        context: Some(Box::new(context)),
        start_key: start.to_owned().into(),
        end_key: end.to_owned().into(),
        limit,
        reverse,
        ..Default::default()
    };
    let response = b.cluster.raw_scan(NOW, store, request);
    response
        .kvs
        .iter()
        .map(|kv| String::from_utf8_lossy(&kv.key).into_owned())
        .collect()
}

#[test]
fn test_raw_put_get_delete() {
    let mut b = bench(ApiVersion::V1);
    assert_eq!(get(&mut b, NOW, "k"), None);
    assert_eq!(put(&mut b, "k", "v", 0), "");
    assert_eq!(get(&mut b, NOW, "k"), Some("v".into()));
    let (context, store) = b.route(b"k");
    let request = kvrpcpb::RawDeleteRequest {
        context: Some(Box::new(context)),
        key: "k".into(),
        ..Default::default()
    };
    for _ in 0..2 {
        let response = b.cluster.raw_delete(NOW, store, request.clone());
        assert_eq!(response, Default::default());
        assert_eq!(get(&mut b, NOW, "k"), None);
    }
    assert!(put(&mut b, "k", "v", 5).contains("ttl is not enabled"));
}

#[test]
fn test_raw_scan() {
    let mut b = bench(ApiVersion::V1);
    for k in ["a", "b", "c", "d"] {
        assert_eq!(put(&mut b, k, k, 0), "");
    }
    for (start, end, limit, reverse, found) in [
        ("", "", 10, false, "abcd"),
        ("", "", 2, false, "ab"),
        ("b", "d", 10, false, "bc"),
        ("b", "", 0, false, ""),
        ("d", "b", 10, true, "cb"),
        ("d", "", 2, true, "cb"),
        ("", "", 10, true, ""),
    ] {
        let got = scan(&mut b, start, end, limit, reverse);
        assert_eq!(got, found, "{start} {end} {limit} {reverse}");
    }
}

#[test]
fn test_raw_batch_scan() {
    let mut b = bench(ApiVersion::V1);
    for k in ["a", "b", "c", "d"] {
        assert_eq!(put(&mut b, k, k, 0), "");
    }
    let mut found = |ranges: &[(&str, &str)], each_limit: u32| {
        let (context, store) = b.route(b"");
        let ranges = ranges
            .iter()
            .map(|(start, end)| KeyRange {
                start_key: (*start).to_owned().into(),
                end_key: (*end).to_owned().into(),
            })
            .collect();
        let request = kvrpcpb::RawBatchScanRequest {
            context: Some(Box::new(context)),
            ranges,
            each_limit,
            ..Default::default()
        };
        b.cluster.raw_batch_scan(NOW, store, request).kvs
    };
    let names = |kvs: &[KvPair]| kvs.iter().map(|kv| kv.key[0] as char).collect::<String>();
    assert_eq!(names(&found(&[("a", ""), ("c", "")], 5)), "abcd");
    assert_eq!(names(&found(&[("a", ""), ("c", "")], 1)), "ac");
    assert!(
        found(&[("c", "a")], 5)[0].error.is_some(),
        "a range in the wrong order"
    );
}

#[test]
fn test_raw_values_expire() {
    for api_version in [ApiVersion::V1ttl, ApiVersion::V2] {
        let mut b = bench(api_version);
        let k = "rk";
        assert_eq!(put(&mut b, k, "v", 10), "");
        let ttl = |b: &mut Bench, now_ms: u64| {
            let (context, store) = b.route(&key::encode(k.as_bytes()));
            let context = Some(Box::new(context));
            let request = kvrpcpb::RawGetKeyTtlRequest {
                context,
                key: k.into(),
                cf: String::new(),
            };
            let response = b.cluster.raw_get_key_ttl(now_ms, store, request);
            (!response.not_found).then_some(response.ttl)
        };
        assert_eq!(ttl(&mut b, NOW), Some(10));
        assert_eq!(ttl(&mut b, NOW + 4_000), Some(6));
        assert_eq!(get(&mut b, NOW + 9_999, k), Some("v".into()));
        assert_eq!(get(&mut b, NOW + 10_000, k), None);
        assert_eq!(ttl(&mut b, NOW + 10_000), None);
    }
}

#[test]
fn test_cas_basic() {
    let mut b = bench(ApiVersion::V1);
    let mut cas = |previous: Option<&str>, value: &str, delete: bool| {
        let (context, store) = b.route(b"k");
        let request = kvrpcpb::RawCasRequest {
            context: Some(Box::new(context)),
            key: "k".into(),
            value: value.to_owned().into(),
            previous_not_exist: previous.is_none(),
            previous_value: previous.unwrap_or_default().to_owned().into(),
            delete,
            ..Default::default()
        };
        let response = b.cluster.raw_compare_and_swap(NOW, store, request);
        let previous = (!response.previous_not_exist).then_some(response.previous_value);
        (response.succeed, previous)
    };
    let some = |v: &'static str| Some(Bytes::from(v));
    assert_eq!(cas(None, "v1", false), (true, None));
    assert_eq!(cas(None, "v2", false), (false, some("v1")));
    assert_eq!(cas(Some("v2"), "v3", false), (false, some("v1")));
    assert_eq!(cas(Some("v1"), "v3", false), (true, some("v1")));
    assert_eq!(cas(Some("v3"), "", true), (true, some("v3")));
    assert_eq!(cas(None, "", true), (true, None));
    assert_eq!(cas(None, "v4", false), (true, None));
}

#[test]
fn test_check_api_version() {
    for (storage, requested, k, allowed) in [
        (ApiVersion::V1, ApiVersion::V1, "k", true),
        (ApiVersion::V1, ApiVersion::V2, "rk", false),
        (ApiVersion::V1ttl, ApiVersion::V1, "k", true),
        (ApiVersion::V1ttl, ApiVersion::V1ttl, "k", false),
        (ApiVersion::V2, ApiVersion::V2, "rk", true),
        (ApiVersion::V2, ApiVersion::V2, "xk", false),
        (ApiVersion::V2, ApiVersion::V1, "k", false),
    ] {
        let mut b = bench(storage);
        let (mut context, store) = b.route(k.as_bytes());
        context.set_api_version(requested);
        let request = kvrpcpb::RawPutRequest {
            context: Some(Box::new(context)),
            key: k.into(),
            value: "v".into(),
            ..Default::default()
        };
        let response = b.cluster.raw_put(NOW, store, request);
        assert_eq!(
            response.error.is_empty(),
            allowed,
            "{storage:?} {requested:?} {k}"
        );
    }
}
