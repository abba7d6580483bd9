//! PD's own tests of the older way to hold safe points back.

use super::gc_bench::*;

#[test]
fn test_compatible_service_gc_safe_point_update_null_keyspace() {
    let mut b = Bench::new();
    let none = NULL_KEYSPACE;
    assert_eq!(b.service(none, "cdc", 10, 10_000), least("gc_worker", 0));
    assert_eq!(b.service(none, "br", 15, 10_000), least("gc_worker", 0));
    assert_eq!(
        b.service(none, "gc_worker", 8, FOREVER),
        least("gc_worker", 8)
    );
    refused(b.service(none, "gc_worker", 10_000, 10), "must be infinity");
    assert_eq!(b.service(none, "br", 10_000, -100), least("gc_worker", 8));
    assert_eq!(b.service(none, "gc_worker", 15, FOREVER), least("cdc", 10));
    b.service(none, "br", 5, 100).unwrap();
    assert_eq!(
        b.barriers(none),
        named(&[("cdc", 10)]),
        "too old, and no error"
    );
    b.service(none, "br", 20, 100).unwrap();
    assert_eq!(b.barriers(none), named(&[("br", 20), ("cdc", 10)]));
}

#[test]
fn test_compatible_service_gc_safe_point_rounding_ttl() {
    let mut b = Bench::new();
    let longest = 9_223_372_036;
    for keyspace in MANAGEABLE {
        b.service(keyspace, "svc1", 10, longest).unwrap();
        assert_eq!(b.state(keyspace).gc_barriers[0].ttl_seconds, longest);
        b.service(keyspace, "svc1", 10, longest + 1).unwrap();
        assert_eq!(b.state(keyspace).gc_barriers[0].ttl_seconds, FOREVER);
    }
}

fn service_gc_safe_point_compatibility(keyspace: u32) {
    let mut b = Bench::new();
    assert_eq!(
        b.service(keyspace, "svc1", 10, FOREVER),
        least("gc_worker", 0)
    );
    assert_eq!(b.advanced(keyspace, 15), (10, "svc1".to_owned()));
    b.set(keyspace, "svc1", 15, HOUR).unwrap();
    for id in ["svc1", "svc2"] {
        assert_eq!(b.service(keyspace, id, 8, FOREVER), least("gc_worker", 10));
        assert_eq!(b.barriers(keyspace), named(&[("svc1", 15)]));
    }
    assert_eq!(
        b.service(keyspace, "svc1", 12, FOREVER),
        least("gc_worker", 10)
    );
    for hours in [0, 1] {
        b.now_ms = NOW_MS + hours * 3_600_000;
        b.service(keyspace, "svc1", 12, HOUR).unwrap();
        assert_eq!(b.state(keyspace).gc_barriers[0].ttl_seconds, HOUR);
    }
    refused(
        b.service(keyspace, "gc_worker", 20, HOUR),
        "must be infinity",
    );
    assert_eq!(
        b.service(keyspace, "gc_worker", 20, FOREVER),
        least("svc1", 12)
    );
    assert_eq!(b.state(keyspace).txn_safe_point, 12);
    b.service(keyspace, "svc1", 12, 0).unwrap();
    b.pd.set_min_start_ts(keyspace, "instance1", Some(14));
    let blocked = least("tidb_min_start_ts_instance1", 14);
    assert_eq!(b.service(keyspace, "gc_worker", 20, FOREVER), blocked);
    b.pd.set_min_start_ts(keyspace, "instance1", None);
    assert_eq!(
        b.service(keyspace, "gc_worker", 20, FOREVER),
        least("gc_worker", 20)
    );
    assert_eq!(
        b.service(keyspace, "svc1", 25, FOREVER),
        least("gc_worker", 20)
    );
    assert_eq!(
        b.service(keyspace, "gc_worker", 28, FOREVER),
        least("svc1", 25)
    );
    for other in MANAGEABLE.into_iter().filter(|other| *other != keyspace) {
        assert_eq!(b.advanced(other, 30), (30, String::new()));
        assert_eq!(
            b.service(other, "gc_worker", 35, FOREVER),
            least("gc_worker", 35)
        );
    }
}

#[test]
fn test_service_gc_safe_point_compatibility_for_null_keyspace() {
    service_gc_safe_point_compatibility(NULL_KEYSPACE);
}

#[test]
fn test_service_gc_safe_point_compatibility_for_non_null_keyspace() {
    service_gc_safe_point_compatibility(2);
}

#[test]
fn test_service_gc_safe_point_compatibility_for_native_br() {
    let mut b = Bench::new();
    b.advance_txn(2, 25).unwrap();
    let br = "native_br";
    assert_eq!(
        b.service(NULL_KEYSPACE, br, 16, FOREVER),
        least("gc_worker", 25)
    );
    assert!(b.global_barriers().is_empty());
    assert_eq!(
        b.service(NULL_KEYSPACE, br, 32, FOREVER),
        least("gc_worker", 25)
    );
    for keyspace in MANAGEABLE {
        assert_eq!(b.advanced(keyspace, 33), (32, br.to_owned()));
        assert!(b.barriers(keyspace).is_empty());
    }
    assert_eq!(b.global_barriers(), named(&[(br, 32)]));
    b.service(NULL_KEYSPACE, br, 32, -1).unwrap();
    assert!(b.global_barriers().is_empty());
    // Of another keyspace it is a barrier like others.
    assert_eq!(b.service(2, br, 16, FOREVER), least("gc_worker", 32));
    assert_eq!(b.service(2, br, 64, FOREVER), least("gc_worker", 32));
    assert_eq!(b.barriers(2), named(&[(br, 64)]));
    assert_eq!(b.advanced(2, 100), (64, br.to_owned()));
    assert_eq!(b.advanced(NULL_KEYSPACE, 100), (100, String::new()));
}
