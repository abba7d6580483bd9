//! Raw commands under each way of keeping keys.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{self, ApiVersion, ChecksumAlgorithm, Context, KeyRange, RawCasRequest};

use super::looks::{row, text};
use super::{Bench, NOW};
use crate::cluster::api_version::{ApiCheck, Mode};
use crate::cluster::checksum::crc64;
use crate::cluster::region::StoreId;
use crate::cluster::{Config, key};

const FORMATS: [ApiVersion; 3] = [ApiVersion::V1, ApiVersion::V1ttl, ApiVersion::V2];

/// Raw commands over one cluster; every key starts as API v2 wants it.
struct Raw {
    b: Bench,
    api: ApiVersion,
}

impl Raw {
    fn new(api: ApiVersion) -> Self {
        let config = Config {
            api_version: api,
            ..Default::default()
        };
        let b = Bench::with(config);
        Raw { b, api }
    }

    /// A key as it is named in a request.
    fn key(k: &str) -> Bytes {
        format!("r\0{k}").into()
    }

    fn to(&self, k: &str) -> (Option<Box<Context>>, StoreId) {
        let user = Raw::key(k);
        let stored = match self.api {
            ApiVersion::V2 => key::encode(&user),
            ApiVersion::V1 | ApiVersion::V1ttl | ApiVersion::V3 => user,
        };
        let (context, store) = self.b.route(&stored);
        (Some(Box::new(context)), store)
    }

    fn put_with(&mut self, pairs: &[(&str, &str)], ttls: Vec<u64>, for_cas: bool) -> String {
        let (context, store) = self.to("");
        let pair = |(k, v): &(&str, &str)| kvrpcpb::KvPair {
            key: Raw::key(k),
            value: (*v).to_owned().into(),
            ..Default::default()
        };
        let request = kvrpcpb::RawBatchPutRequest {
            context,
            pairs: pairs.iter().map(pair).collect(),
            for_cas,
            ttls,
            ..Default::default()
        };
        self.b.cluster.raw_batch_put(NOW, store, request).error
    }

    fn put(&mut self, k: &str, v: &str, ttl: u64) -> String {
        let (context, store) = self.to(k);
        let request = kvrpcpb::RawPutRequest {
            context,
            key: Raw::key(k),
            value: v.to_owned().into(),
            ttl,
            ..Default::default()
        };
        self.b.cluster.raw_put(NOW, store, request).error
    }

    fn fill(&mut self, keys: &[&str]) {
        for k in keys {
            assert_eq!(self.put(k, k, 0), "");
        }
    }

    fn delete(&mut self, k: &str) {
        let (context, store) = self.to(k);
        let request = kvrpcpb::RawDeleteRequest {
            context,
            key: Raw::key(k),
            ..Default::default()
        };
        let response = self.b.cluster.raw_delete(NOW, store, request);
        assert_eq!(response, Default::default());
    }

    fn delete_all(&mut self, keys: &[&str], for_cas: bool) {
        let (context, store) = self.to("");
        let request = kvrpcpb::RawBatchDeleteRequest {
            context,
            keys: keys.iter().map(|k| Raw::key(k)).collect(),
            for_cas,
            ..Default::default()
        };
        let response = self.b.cluster.raw_batch_delete(NOW, store, request);
        assert_eq!(response, Default::default());
    }

    fn delete_range(&mut self, start: &str, end: &str) {
        let (context, store) = self.to("");
        let request = kvrpcpb::RawDeleteRangeRequest {
            context,
            start_key: Raw::key(start),
            end_key: Raw::key(end),
            ..Default::default()
        };
        let response = self.b.cluster.raw_delete_range(NOW, store, request);
        assert_eq!(response, Default::default());
    }

    /// The value at a time; `None` if there is none.
    fn get_at(&mut self, now_ms: u64, k: &str) -> Option<String> {
        let (context, store) = self.to(k);
        let key = Raw::key(k);
        let request = kvrpcpb::RawGetRequest {
            context,
            key,
            ..Default::default()
        };
        let response = self.b.cluster.raw_get(now_ms, store, request);
        assert_eq!(response.error, "");
        (!response.not_found).then(|| text(&response.value))
    }

    fn get(&mut self, k: &str) -> Option<String> {
        self.get_at(NOW, k)
    }

    fn batch_get(&mut self, keys: &[&str]) -> String {
        let (context, store) = self.to("");
        let request = kvrpcpb::RawBatchGetRequest {
            context,
            keys: keys.iter().map(|k| Raw::key(k)).collect(),
            ..Default::default()
        };
        let pairs = self.b.cluster.raw_batch_get(NOW, store, request).pairs;
        rows(&pairs)
    }

    fn scan(&mut self) -> String {
        let (context, store) = self.to("");
        let request = kvrpcpb::RawScanRequest {
            context,
            start_key: "r".into(),
            end_key: "rz".into(),
            limit: 20,
            ..Default::default()
        };
        let response = self.b.cluster.raw_scan(NOW, store, request);
        rows(&response.kvs)
    }

    /// Seconds to live; `None` if there is no such key.
    fn ttl(&mut self, now_ms: u64, k: &str) -> Option<u64> {
        let (context, store) = self.to(k);
        let request = kvrpcpb::RawGetKeyTtlRequest {
            context,
            key: Raw::key(k),
            ..Default::default()
        };
        let response = self.b.cluster.raw_get_key_ttl(now_ms, store, request);
        assert_eq!(response.error, "");
        (!response.not_found).then_some(response.ttl)
    }

    fn cas(&mut self, k: &str, from: Option<&str>, to: Option<&str>) -> (Option<String>, bool) {
        let (context, store) = self.to(k);
        let request = RawCasRequest {
            context,
            key: Raw::key(k),
            value: to.unwrap_or("ignored").to_owned().into(),
            previous_not_exist: from.is_none(),
            previous_value: from.unwrap_or_default().to_owned().into(),
            delete: to.is_none(),
            ..Default::default()
        };
        let response = self.b.cluster.raw_compare_and_swap(NOW, store, request);
        assert_eq!(response.error, "");
        let previous = (!response.previous_not_exist).then(|| text(&response.previous_value));
        (previous, response.succeed)
    }

    fn batch_scan(&mut self, ranges: &[(&str, &str)], reverse: bool) -> Result<usize, String> {
        let (context, store) = self.to("");
        let range = |(start, end): &(&str, &str)| KeyRange {
            start_key: (*start).to_owned().into(),
            end_key: (*end).to_owned().into(),
        };
        let request = kvrpcpb::RawBatchScanRequest {
            context,
            ranges: ranges.iter().map(range).collect(),
            each_limit: 10,
            reverse,
            ..Default::default()
        };
        let kvs = self.b.cluster.raw_batch_scan(NOW, store, request).kvs;
        match kvs.first().and_then(|pair| pair.error.as_ref()) {
            Some(error) => Err(error.abort.clone()),
            None => Ok(kvs.len()),
        }
    }
}

/// Pairs in one line, keys without what they have in common.
fn rows(pairs: &[kvrpcpb::KvPair]) -> String {
    let rows: Vec<String> = pairs.iter().map(row).collect();
    rows.join(" ").replace("r\0", "")
}

fn value(v: &str) -> Option<String> {
    Some(v.to_owned())
}

#[test]
fn test_raw_get_put() {
    for api in FORMATS {
        let mut raw = Raw::new(api);
        assert_eq!(raw.get("x"), None);
        for v in ["100", "", "200"] {
            assert_eq!(raw.put("x", v, 0), "");
            assert_eq!(raw.get("x"), value(v), "an empty value is a value");
        }
    }
}

#[test]
fn test_raw_v2_multi_versions() {
    let mut raw = Raw::new(ApiVersion::V2);
    for v in [Some("v1"), Some("v2"), None, Some(""), Some("v3")] {
        match v {
            Some(v) => assert_eq!(raw.put("k", v, 0), ""),
            None => raw.delete("k"),
        }
        assert_eq!(raw.get("k"), v.map(str::to_owned));
    }
    assert_eq!(raw.scan(), "k=v3");
}

#[test]
fn test_raw_checksum() {
    for api in FORMATS {
        let mut raw = Raw::new(api);
        raw.fill(&["a", "b", "c"]);
        let (context, store) = raw.to("");
        let mut request = kvrpcpb::RawChecksumRequest {
            context,
            ranges: vec![KeyRange {
                // Above the first key, however keys are stored.
                start_key: "r\0a\0".into(),
                end_key: "r\0z".into(),
            }],
            ..Default::default()
        };
        request.set_algorithm(ChecksumAlgorithm::Crc64Xor);
        let response = raw.b.cluster.raw_checksum(NOW, store, request);
        let expected = crc64(&[b"r\0bb"]) ^ crc64(&[b"r\0cc"]);
        assert_eq!(response.checksum, expected);
        assert_eq!((response.total_kvs, response.total_bytes), (2, 8));
    }
}

#[test]
fn test_raw_delete() {
    for api in FORMATS {
        let mut raw = Raw::new(api);
        raw.fill(&["a", "b"]);
        raw.delete("a");
        assert_eq!((raw.get("a"), raw.get("b")), (None, value("b")));
        raw.delete("a");
        raw.delete("never");
        assert_eq!(raw.scan(), "b=b");
    }
}

#[test]
fn test_raw_delete_range() {
    for api in FORMATS {
        let mut raw = Raw::new(api);
        raw.fill(&["a", "b", "c", "d", "e"]);
        raw.delete_range("d", "e");
        assert_eq!(raw.scan(), "a=a b=b c=c e=e");
        raw.delete_range("aa", "ab");
        assert_eq!(raw.scan(), "a=a b=b c=c e=e", "nothing was there");
        raw.delete_range("a", "z");
        assert_eq!(raw.scan(), "");
    }
}

#[test]
fn test_raw_batch_put() {
    for api in FORMATS {
        for for_cas in [false, true] {
            let mut raw = Raw::new(api);
            let pairs = [("a", "1"), ("b", "2"), ("c", "3")];
            let with_ttl = api != ApiVersion::V1;
            let ttls = if with_ttl { vec![1, 0, 20] } else { vec![0; 3] };
            assert_eq!(raw.put_with(&pairs, ttls, for_cas), "");
            assert_eq!(raw.batch_get(&["a", "b", "c"]), "a=1 b=2 c=3");
            let refused = raw.put_with(&pairs, vec![1, 2], for_cas);
            if with_ttl {
                assert_eq!(raw.ttl(NOW, "c"), Some(20));
                assert_eq!(raw.get_at(NOW + 1_000, "a"), None, "expired");
                assert!(refused.contains("length of ttls"));
            } else {
                assert!(refused.contains("ttl is not enabled"));
            }
        }
    }
}

#[test]
fn test_raw_batch_get() {
    for api in FORMATS {
        let mut raw = Raw::new(api);
        raw.fill(&["a", "b", "c", "d", "e"]);
        let found = raw.batch_get(&["a", "b", "c", "d", "e"]);
        assert_eq!(found, "a=a b=b c=c d=d e=e");
        assert_eq!(raw.batch_get(&["e", "x", "a"]), "e=e a=a");
    }
}

#[test]
fn test_raw_batch_get_command() {
    // Several reads that came together are answered each for itself.
    for api in FORMATS {
        let mut raw = Raw::new(api);
        raw.fill(&["a", "b", "c"]);
        let found = ["c", "x", "a", "b"].map(|k| raw.get(k));
        assert_eq!(found, [value("c"), None, value("a"), value("b")]);
    }
}

#[test]
fn test_raw_batch_delete() {
    for api in FORMATS {
        for for_cas in [false, true] {
            let mut raw = Raw::new(api);
            raw.fill(&["a", "b", "c", "d", "e"]);
            raw.delete_all(&["b", "d"], for_cas);
            assert_eq!(raw.batch_get(&["a", "b", "c", "d", "e"]), "a=a c=c e=e");
            raw.delete_all(&["a", "c", "e"], for_cas);
            assert_eq!(raw.batch_get(&["a", "b", "c", "d", "e"]), "");
        }
    }
}

#[test]
fn test_raw_get_key_ttl() {
    for api in [ApiVersion::V1ttl, ApiVersion::V2] {
        let mut raw = Raw::new(api);
        for (k, ttl) in [("a", 10), ("b", 20), ("c", 0)] {
            assert_eq!(raw.put(k, "v", ttl), "");
            assert_eq!(raw.ttl(NOW, k), Some(ttl));
        }
        assert_eq!(raw.ttl(NOW + 9_000, "a"), Some(1));
        assert_eq!(raw.ttl(NOW + 10_000, "a"), None);
        assert_eq!(raw.ttl(NOW + 10_000, "c"), Some(0), "for ever");
        // As long as can be said is not for ever, and it does not overflow.
        assert_eq!(raw.put("f", "v", u64::MAX), "");
        assert!(raw.ttl(NOW, "f").is_some_and(|ttl| ttl > 1 << 60));
        assert_eq!(raw.ttl(NOW, "never"), None);
    }
}

#[test]
fn test_raw_compare_and_swap() {
    for api in FORMATS {
        let mut raw = Raw::new(api);
        assert_eq!(raw.cas("k", Some("v1"), Some("v")), (None, false));
        assert_eq!(raw.cas("k", None, Some("v1")), (None, true));
        assert_eq!(raw.cas("k", Some("v1"), Some("v2")), (value("v1"), true));
        assert_eq!(raw.cas("k", Some("v1"), Some("v2")), (value("v2"), false));
        assert_eq!((raw.get("k"), raw.scan()), (value("v2"), "k=v2".to_owned()));
        assert_eq!(raw.put_with(&[("k", "v3")], vec![0], true), "");
        assert_eq!(raw.cas("k", Some("v3"), Some("v4")), (value("v3"), true));
        raw.delete_all(&["k"], true);
        assert_eq!(raw.cas("k", None, Some("v")), (None, true));
        assert_eq!((raw.get("k"), raw.scan()), (value("v"), "k=v".to_owned()));
    }
}

#[test]
fn test_raw_compare_and_swap_delete() {
    for api in FORMATS {
        let mut raw = Raw::new(api);
        assert_eq!(raw.cas("k", None, Some("v1")), (None, true));
        assert_eq!(raw.cas("k", Some("v1"), None), (value("v1"), true));
        assert_eq!(raw.get("k"), None);
        assert_eq!(raw.cas("k", None, Some("v2")), (None, true));
        assert_eq!(raw.cas("k", Some("v1"), None), (value("v2"), false));
        assert_eq!(raw.get("k"), value("v2"));
        raw.delete_all(&["k"], true);
        assert_eq!(raw.cas("k", None, None), (None, true), "nothing to delete");
        assert_eq!(raw.get("k"), None);
        assert_eq!(raw.cas("k", None, Some("v1")), (None, true));
        assert_eq!(raw.cas("k", None, None), (value("v1"), false));
        assert_eq!(raw.get("k"), value("v1"));
    }
}

#[test]
fn test_cas_process_write() {
    // A swap writes as a put does: with the time to live of the request, and under one name.
    for api in [ApiVersion::V1ttl, ApiVersion::V2] {
        let mut raw = Raw::new(api);
        let (context, store) = raw.to("k");
        let request = RawCasRequest {
            context,
            key: Raw::key("k"),
            value: "valuek".into(),
            ttl: 30,
            previous_not_exist: true,
            ..Default::default()
        };
        let response = raw.b.cluster.raw_compare_and_swap(NOW, store, request);
        assert!(response.succeed);
        assert_eq!(raw.ttl(NOW, "k"), Some(30));
        assert_eq!(raw.scan(), "k=valuek");
    }
}

#[test]
fn test_atomic_process_write() {
    for api in FORMATS {
        let mut raw = Raw::new(api);
        let pairs = [("a", "valuea"), ("z", "valuez")];
        assert_eq!(raw.put_with(&pairs, vec![], true), "");
        assert_eq!(raw.scan(), "a=valuea z=valuez");
    }
}

#[test]
fn test_check_key_ranges() {
    let mut raw = Raw::new(ApiVersion::V1);
    let up = [("a", "a3"), ("b", "b3"), ("c", "c3")];
    let down = [("a3", "a"), ("b3", "b"), ("c3", "c")];
    let open_up = [("a", ""), ("b", ""), ("c", "")];
    let open_down = [("c3", ""), ("b3", ""), ("a3", "")];
    for (ranges, reverse, allowed) in [
        (up, false, true),
        (open_up, false, true),
        (down, false, false),
        (open_down, false, false),
        (down, true, true),
        (open_down, true, true),
        (up, true, false),
        (open_up, true, false),
    ] {
        let found = raw.batch_scan(&ranges, reverse);
        assert_eq!(found.is_ok(), allowed, "{ranges:?} {reverse}");
    }
}

/// Names a range under one API of stores with another, and tells the error's name.
fn refusal(
    storage: ApiVersion,
    asked: ApiVersion,
    mode: Mode,
    (start, end): (&str, &str),
) -> &'static str {
    let mut context = Context::default();
    context.set_api_version(asked);
    let check = ApiCheck {
        storage,
        context: &context,
        command: "scan",
        mode,
    };
    match check.range(start.as_bytes(), end.as_bytes()) {
        Ok(()) => "",
        Err(error) if error.0.contains("ApiVersionNotMatched") => "version",
        Err(error) if error.0.contains("InvalidKeyRangeMode") => "mode",
        Err(_) => "another error",
    }
}

#[test]
fn test_check_api_version_ranges() {
    use ApiVersion::{V1, V1ttl, V2};
    let tidb = [("t_a", "t_z"), ("t", "u"), ("m", "n"), ("m_a", "m_z")];
    let txn = [("x\0a", "x\0z"), ("x", "y")];
    let raw = [("r\0a", "r\0z"), ("r", "s")];
    let tidb_wrong = [("t_a", "ua"), ("t", ""), ("", "t_z"), ("m_a", "na")];
    let txn_wrong = [("x\0a", "ya"), ("x", ""), ("", "x\0z")];
    let raw_wrong = [("r\0a", "sa"), ("r", ""), ("", "r\0z")];
    for (storage, asked, mode, ranges, expected) in [
        (V1, V1, Mode::Txn, &tidb[..], ""),
        (V1, V1, Mode::Raw, &tidb, ""),
        (V1, V1, Mode::Raw, &tidb_wrong, ""),
        (V1ttl, V1, Mode::Raw, &raw, ""),
        (V1ttl, V1, Mode::Raw, &raw_wrong, ""),
        (V1ttl, V1, Mode::Txn, &tidb, "version"),
        (V1, V2, Mode::Txn, &tidb, "version"),
        (V2, V1, Mode::Txn, &tidb, ""),
        (V2, V1, Mode::Raw, &tidb, "version"),
        (V2, V1, Mode::Txn, &txn, "mode"),
        (V2, V1, Mode::Txn, &raw, "mode"),
        (V2, V2, Mode::Txn, &txn, ""),
        (V2, V2, Mode::Raw, &raw, ""),
        (V2, V2, Mode::Txn, &raw, "mode"),
        (V2, V2, Mode::Raw, &txn, "mode"),
        (V2, V2, Mode::Txn, &tidb, "mode"),
        (V2, V1, Mode::Txn, &tidb_wrong, "mode"),
        (V2, V2, Mode::Txn, &txn_wrong, "mode"),
        (V2, V2, Mode::Raw, &raw_wrong, "mode"),
    ] {
        for &range in ranges {
            let found = refusal(storage, asked, mode, range);
            assert_eq!(found, expected, "{storage:?} {asked:?} {mode:?} {range:?}");
        }
    }
}
