//! What the server shows of a key to those who look for a mistake, and which errors bring it along.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{self, CommitRole, MvccInfo};

use super::vocabulary::pre;
use super::{Bench, NOW, put};

/// Longer than what a record takes up.
const LONG: [u8; 300] = [7; 300];

impl Bench {
    /// Everything the server shows of a key.
    fn shown(&mut self, k: &[u8]) -> MvccInfo {
        let (context, store) = self.to(k);
        let request = kvrpcpb::MvccGetByKeyRequest {
            context,
            key: Bytes::copy_from_slice(k),
        };
        let response = self.cluster.mvcc_get_by_key(NOW, store, request);
        assert_eq!((response.region_error, response.error.as_str()), (None, ""));
        *response.info.expect("there is always something")
    }

    /// What an error of a commit brings along, as the key's writes and the number of its values.
    fn commit_as(&mut self, role: CommitRole, start: u64, commit: u64) -> kvrpcpb::KeyError {
        let (context, store) = self.to(b"k1");
        let request = kvrpcpb::CommitRequest {
            context,
            start_version: start,
            commit_version: commit,
            keys: vec!["k1".into()],
            commit_role: role.into(),
            ..Default::default()
        };
        let response = self.cluster.kv_commit(NOW, store, request);
        *response.error.expect("the commit must fail")
    }
}

/// A key with a long value, a short one, and a lock.
fn three_transactions(primary: &[u8]) -> Bench {
    let mut b = Bench::new();
    b.write(b"k1", &LONG, 1, 10);
    b.write(b"k1", b"v2", 11, 20);
    let mut run = pre(primary, 21).with(put(b"k1", b"v3"));
    run.request.min_commit_ts = 50;
    b.must_run(run);
    b
}

/// The commit versions of the writes, and how many long values there are.
fn outline(info: &MvccInfo) -> (Vec<u64>, usize) {
    let writes = info.writes.iter().map(|write| write.commit_ts);
    (writes.collect(), info.values.len())
}

#[test]
fn test_find_mvcc_infos_by_key() {
    let info = three_transactions(b"k1").shown(b"k1");
    assert_eq!(outline(&info), (vec![20, 10], 1));
    let lock = info.lock.expect("it is locked");
    assert_eq!((lock.start_ts, &lock.short_value[..]), (21, &b"v3"[..]));
    let writes = info.writes.iter();
    let writes = writes.map(|write| (write.start_ts, write.short_value.clone()));
    let writes: Vec<_> = writes.collect();
    assert_eq!(writes, [(11, "v2".into()), (1, Bytes::new())]);
    assert_eq!(info.values[0].start_ts, 1);
    assert_eq!(info.values[0].value, &LONG[..]);
}

#[test]
fn test_extract_key_error_write_conflict() {
    let mut b = Bench::new();
    b.write(b"k1", b"v", 108, 109);
    let error = b.must_prewrite_err(put(b"k1", b"w"), b"primary", 107);
    assert!(!error.retryable.is_empty());
    assert_eq!(error.debug_info, None);
    let conflict = error.conflict.expect("a conflict");
    assert_eq!((conflict.start_ts, conflict.conflict_ts), (107, 108));
    assert_eq!(conflict.conflict_commit_ts, 109);
    assert_eq!(
        (&conflict.key[..], &conflict.primary[..]),
        (&b"k1"[..], &b"primary"[..])
    );
}

#[test]
fn test_extract_key_error_txn_lock_not_found() {
    let mut b = three_transactions(b"k1");
    for (role, told) in [
        (CommitRole::Unknown, false),
        (CommitRole::Primary, false),
        (CommitRole::Secondary, true),
    ] {
        let error = b.commit_as(role, 5, 30);
        assert!(!error.retryable.is_empty());
        assert_eq!(error.txn_lock_not_found.expect("no lock").key, "k1");
        assert_eq!(error.debug_info.is_some(), told);
        if let Some(debug) = error.debug_info {
            let one = &debug.mvcc_info[0];
            assert_eq!(one.key, "k1");
            let info = one.mvcc.as_ref().expect("all of it");
            assert!(info.lock.is_some());
            assert_eq!(outline(info), (vec![20, 10], 0), "but long values");
        }
    }
}

#[test]
fn test_extract_key_error_commit_ts_expired() {
    for (primary, told) in [(&b"k1"[..], false), (b"pk", true)] {
        let mut b = three_transactions(primary);
        let error = b.commit_as(CommitRole::Unknown, 21, 30);
        let expired = error.commit_ts_expired.expect("it was pushed");
        assert_eq!((expired.start_ts, expired.attempted_commit_ts), (21, 30));
        assert_eq!((&expired.key[..], expired.min_commit_ts), (&b"k1"[..], 50));
        assert_eq!(error.debug_info.is_some(), told);
        if let Some(debug) = error.debug_info {
            let info = debug.mvcc_info[0].mvcc.as_ref().expect("all of it");
            assert_eq!(outline(info), (vec![20, 10], 0), "but long values");
        }
    }
}
