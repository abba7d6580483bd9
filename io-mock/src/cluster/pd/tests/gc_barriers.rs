//! PD's own tests of what holds safe points back.

use super::gc_bench::*;

#[test]
fn test_gc_barriers() {
    let mut b = Bench::new();
    for keyspace in MANAGEABLE {
        assert_eq!(b.set(keyspace, "b1", 10, HOUR), Ok(HOUR));
        let invalid = "ErrInvalidArgument";
        refused(b.set(keyspace, "", 10, HOUR), invalid);
        refused(b.delete(keyspace, ""), invalid);
        refused(b.set(keyspace, "b1", 10, 0), invalid);
        refused(b.set(keyspace, "b2", 10, 0), invalid);
        assert_eq!(b.barriers(keyspace), named(&[("b1", 10)]));
        assert_eq!(b.set(keyspace, "b1", 15, HOUR), Ok(HOUR));
        assert_eq!(b.set(keyspace, "b1", 15, 2 * HOUR), Ok(2 * HOUR));
        assert_eq!(b.barriers(keyspace), named(&[("b1", 15)]));
        assert_eq!(b.set(keyspace, "b1", 10, HOUR), Ok(HOUR));
        assert_eq!(b.set(keyspace, "b1", 10, FOREVER), Ok(FOREVER));

        let free = String::new();
        assert_eq!(b.advance_txn(keyspace, 5), Ok((0, 5, free.clone())));
        assert_eq!(b.advance_txn(keyspace, 10), Ok((5, 10, free.clone())));
        let (old, new, blocker) = b.advance_txn(keyspace, 15).unwrap();
        assert_eq!((old, new), (10, 10));
        assert!(blocker.contains(r#"BarrierID: "b1""#), "{blocker}");
        b.set(keyspace, "b1", 15, HOUR).unwrap();
        assert_eq!(b.advanced(keyspace, 20), (15, "b1".to_owned()));
        b.set(keyspace, "b1", 20, HOUR).unwrap();
        b.set(keyspace, "b2", 20, HOUR).unwrap();
        assert_eq!(b.advanced(keyspace, 25).0, 20);
        b.set(keyspace, "b1", 25, HOUR).unwrap();
        b.set(keyspace, "b2", 27, HOUR).unwrap();
        assert_eq!(b.advanced(keyspace, 30), (25, "b1".to_owned()));
        assert_eq!(b.delete(keyspace, "b1"), Ok(Some(25)));
        assert_eq!(b.advanced(keyspace, 30), (27, "b2".to_owned()));
        assert_eq!(b.delete(keyspace, "b2"), Ok(Some(27)));
        assert_eq!(b.advanced(keyspace, 30), (30, free.clone()));
        assert_eq!(b.delete(keyspace, "b1"), Ok(None));

        b.set(keyspace, "b3", 40, 60).unwrap();
        b.set(keyspace, "b4", 45, 120).unwrap();
        b.set(keyspace, "b5", 50, FOREVER).unwrap();
        for (seconds, point, blocker, left) in [
            (0, 40, "b3", 3),
            (59, 40, "b3", 3),
            (60, 40, "b3", 3),
            (120, 45, "b4", 2),
            (100 * 365 * 24 * 3_600, 50, "b5", 1),
        ] {
            b.now_ms = NOW_MS + seconds * 1_000;
            assert_eq!(
                b.advanced(keyspace, 60),
                (point, blocker.to_owned()),
                "{seconds} s"
            );
            assert_eq!(b.barriers(keyspace).len(), left, "{seconds} s");
        }
        assert_eq!(b.delete(keyspace, "b5"), Ok(Some(50)));
        assert_eq!(b.advanced(keyspace, 60), (60, free.clone()));
        b.now_ms = NOW_MS;
        refused(
            b.set(keyspace, "b6", 50, HOUR),
            "ErrGCBarrierTSBehindTxnSafePoint",
        );
        assert_eq!(b.set(keyspace, "b6", 60, HOUR), Ok(HOUR));
        assert_eq!(b.delete(keyspace, "b6"), Ok(Some(60)));
    }
    // Everybody may hold back; who does not collect, holds everybody back who does not either.
    for keyspace in UNIFIED.into_iter().chain(NULL_SYNONYMS) {
        b.set(keyspace, "b1", 100, HOUR).unwrap();
        for sharing in UNIFIED.into_iter().chain(NULL_SYNONYMS) {
            assert_eq!(b.barriers(sharing), named(&[("b1", 100)]));
        }
        b.delete(keyspace, "b1").unwrap();
    }
    for keyspace in NOT_EXISTING {
        refused(b.set(keyspace, "b1", 100, HOUR), "ErrKeyspaceNotFound");
    }
    for keyspace in ALL {
        refused(
            b.set(keyspace, "gc_worker", 100, HOUR),
            "ErrReservedGCBarrierID",
        );
        refused(b.delete(keyspace, "gc_worker"), "ErrReservedGCBarrierID");
    }
    let [one, other] = MANAGEABLE;
    b.set(one, "b1", 200, HOUR).unwrap();
    assert_eq!(b.advanced(other, 300), (300, String::new()));
}

#[test]
fn test_global_gc_barriers() {
    let mut b = Bench::new();
    assert_eq!(b.set_global("b1", 10, HOUR), Ok(HOUR));
    let invalid = "ErrInvalidArgument";
    refused(b.set_global("", 10, HOUR), invalid);
    refused(b.delete_global(""), invalid);
    refused(b.set_global("b1", 10, 0), invalid);
    refused(b.set_global("b2", 10, 0), invalid);
    assert_eq!(b.global_barriers(), named(&[("b1", 10)]));
    assert_eq!(b.set_global("b1", 15, 2 * HOUR), Ok(2 * HOUR));
    assert_eq!(b.set_global("b1", 10, FOREVER), Ok(FOREVER));
    let held = |b: &mut Bench, target, point, blocker: &str| {
        for keyspace in MANAGEABLE {
            assert_eq!(b.advanced(keyspace, target), (point, blocker.to_owned()));
        }
    };
    held(&mut b, 5, 5, "");
    held(&mut b, 10, 10, "");
    let (_, _, blocker) = b.advance_txn(2, 15).unwrap();
    assert!(
        blocker.contains(r#"GlobalGCBarrier { BarrierID: "b1""#),
        "{blocker}"
    );
    b.set_global("b1", 15, HOUR).unwrap();
    held(&mut b, 20, 15, "b1");
    b.set_global("b1", 25, HOUR).unwrap();
    b.set_global("b2", 27, HOUR).unwrap();
    held(&mut b, 30, 25, "b1");
    assert_eq!(b.delete_global("b1"), Ok(Some(25)));
    held(&mut b, 30, 27, "b2");
    assert_eq!(b.delete_global("b2"), Ok(Some(27)));
    held(&mut b, 30, 30, "");
    assert_eq!(b.delete_global("b1"), Ok(None));

    b.set_global("b3", 40, 60).unwrap();
    b.set_global("b4", 45, 120).unwrap();
    b.set_global("b5", 50, FOREVER).unwrap();
    for (seconds, point, blocker, left) in [
        (0, 40, "b3", 3),
        (59, 40, "b3", 3),
        (60, 40, "b3", 3),
        (120, 45, "b4", 2),
        (100 * 365 * 24 * 3_600, 50, "b5", 1),
    ] {
        b.now_ms = NOW_MS + seconds * 1_000;
        held(&mut b, 60, point, blocker);
        assert_eq!(b.global_barriers().len(), left, "{seconds} s");
    }
    assert_eq!(b.delete_global("b5"), Ok(Some(50)));
    held(&mut b, 60, 60, "");
    b.now_ms = NOW_MS;
    refused(
        b.set_global("b6", 50, HOUR),
        "ErrGlobalGCBarrierTSBehindTxnSafePoint",
    );
    assert_eq!(b.set_global("b6", 60, HOUR), Ok(HOUR));
    assert_eq!(b.delete_global("b6"), Ok(Some(60)));

    // Beside barriers of keyspaces the least one counts.
    let [one, other] = MANAGEABLE;
    b.set(one, "b2", 210, HOUR).unwrap();
    b.set(other, "b3", 220, HOUR).unwrap();
    for (global, of_one, of_other) in [
        (200, (200, "b1"), (200, "b1")),
        (211, (210, "b2"), (211, "b1")),
        (221, (210, "b2"), (220, "b3")),
    ] {
        b.set_global("b1", global, HOUR).unwrap();
        for (keyspace, (point, blocker)) in [(one, of_one), (other, of_other)] {
            assert_eq!(b.advanced(keyspace, 300), (point, blocker.to_owned()));
        }
    }
}

#[test]
fn test_tidb_min_start_ts() {
    for keyspace in MANAGEABLE {
        let mut b = Bench::new();
        let node = |b: &mut Bench, node: &str, ts| b.pd.set_min_start_ts(keyspace, node, ts);
        node(&mut b, "instance1", Some(10));
        assert_eq!(b.advanced(keyspace, 5), (5, String::new()));
        assert_eq!(b.advanced(keyspace, 10), (10, String::new()));
        let (_, new, blocker) = b.advance_txn(keyspace, 15).unwrap();
        assert_eq!(new, 10);
        assert!(blocker.starts_with("TiDBMinStartTS") && blocker.contains("instance1"));
        node(&mut b, "instance1", Some(20));
        node(&mut b, "instance2", Some(22));
        node(&mut b, "instance3", Some(28));
        b.set(keyspace, "b1", 24, HOUR).unwrap();
        b.set(keyspace, "b3", 30, HOUR).unwrap();
        b.set_global("b2", 26, HOUR).unwrap();
        let reached = |b: &mut Bench, point, blocker: &str| {
            assert_eq!(b.advanced(keyspace, 32), (point, blocker.to_owned()));
        };
        reached(&mut b, 20, "instance1");
        node(&mut b, "instance1", None);
        reached(&mut b, 22, "instance2");
        node(&mut b, "instance2", None);
        reached(&mut b, 24, "b1");
        b.delete(keyspace, "b1").unwrap();
        reached(&mut b, 26, "b2");
        b.delete_global("b2").unwrap();
        reached(&mut b, 28, "instance3");
        node(&mut b, "instance3", None);
        reached(&mut b, 30, "b3");
        b.delete(keyspace, "b3").unwrap();
        reached(&mut b, 32, "");
        // Such a node asks nobody, so it may be late: the point stays where it is.
        node(&mut b, "instance1", Some(25));
        assert_eq!(b.advanced(keyspace, 35), (32, "instance1".to_owned()));
        node(&mut b, "instance1", None);
        assert_eq!(b.advanced(keyspace, 35), (35, String::new()));
    }
}
