//! Ending transactions where their locks are found.

use tikv_proto::kvrpcpb::Op;
use tikv_proto::kvrpcpb::prewrite_request::PessimisticAction::DoPessimisticCheck;

use super::vocabulary::pre;
use super::{Bench, mutation};
use crate::cluster::mvcc::write_record::WriteKind;

fn share(b: &mut Bench, k: &[u8], start: u64) {
    b.must_share(k, b"pk", start, start + 5);
    let one = pre(b"pk", start).with(mutation(Op::SharedLock, k, b""));
    b.must_run(one.pessimistic(start + 5, &[DoPessimisticCheck]));
}

#[test]
fn test_resolve_multiple_shared_locks_same_key() {
    let mut b = Bench::new();
    let k = b"shared";
    share(&mut b, k, 10);
    share(&mut b, k, 20);
    b.resolve_all(&[(10, 0), (20, 0)]);
    for start in [10, 20] {
        b.must_written(k, start, start, WriteKind::Rollback);
    }
    b.must_prewrite_put(k, b"v", k, 50);
}

#[test]
fn test_resolve_shared_locks_same_key_mixed_commit_and_rollback() {
    let mut b = Bench::new();
    let k = b"shared";
    for start in [10, 20, 30] {
        share(&mut b, k, start);
    }
    b.resolve_all(&[(10, 0), (20, 25)]);
    b.must_written(k, 10, 10, WriteKind::Rollback);
    b.must_written(k, 20, 25, WriteKind::Lock);
    let left: Vec<u64> = b.shared(k).members.into_keys().collect();
    assert_eq!(left, [30]);
    b.resolve_all(&[(30, 0)]);
    b.must_written(k, 30, 30, WriteKind::Rollback);
    b.must_prewrite_put(k, b"v", k, 50);
}

#[test]
fn test_resolve_lock_read_shared_pessimistic() {
    let mut b = Bench::new();
    let k = b"shared";
    for start in [10, 20, 40] {
        share(&mut b, k, start);
    }
    b.resolve_all(&[(20, 30), (40, 0)]);
    let left: Vec<u64> = b.shared(k).members.into_keys().collect();
    assert_eq!(left, [10], "only the transactions asked for");
}

#[test]
fn test_resolve_lock_readphase_large_single_shared_key_progress() {
    let mut b = Bench::new();
    let k = b"shared";
    // More members than the server resolves in one go.
    let starts: Vec<u64> = (100..100 + 256 + 64).collect();
    for &start in &starts {
        share(&mut b, k, start);
    }
    assert_eq!(b.shared(k).members.len(), starts.len());
    let fates: Vec<(u64, u64)> = starts.iter().map(|&start| (start, 0)).collect();
    b.resolve_all(&fates);
    b.resolve_all(&fates);
    b.must_prewrite_put(k, b"v", k, 500);
}
