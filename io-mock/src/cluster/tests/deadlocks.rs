//! Circles of waiting transactions: while regions change, while locks change hands, and among those
//! who share a lock.

use tikv_proto::deadlock::WaitForEntry;
use tikv_proto::kvrpcpb::{Deadlock, PessimisticLockKeyResultType, PessimisticLockRequest};
use tikv_proto::metapb::PeerRole;

use super::waiting::{forced, locked, only_error, result_type, shared, wish};
use super::{Bench, NOW};
use crate::cluster::key::Key;
use crate::cluster::lock_wait::WAIT_MS_MAX;
use crate::cluster::region::{RegionId, StoreId};

/// Who waits for whom and on which key.
type Edge<'a> = (u64, u64, &'a [u8]);

fn chain(deadlock: &Deadlock) -> Vec<Edge<'_>> {
    let edge = |entry: &'_ WaitForEntry| (entry.txn, entry.wait_for_txn);
    let entries = deadlock.wait_chain.iter();
    let edges = entries.map(|entry| (edge(entry), entry.key.as_ref()));
    edges.map(|((txn, by), key)| (txn, by, key)).collect()
}

impl Bench {
    /// Two transactions lock a key each and want the other's; the second to wait is refused.
    fn must_detect_deadlock(&mut self, key: &[u8], start_ts: u64) {
        let other = [key, &[0]].concat();
        let (first, second) = (start_ts, start_ts + 1);
        self.must_lock(key, key, first, first);
        self.must_lock(&other, &other, second, second);
        let ticket = self.must_wait(NOW, wish(key, second));
        let response = self.must_not_wait(wish(&other, first));
        let deadlock = only_error(&response).deadlock.as_ref().expect("a deadlock");
        let expected: [Edge<'_>; 2] = [(second, first, key), (first, second, &other)];
        assert_eq!(chain(deadlock), expected);
        let tags = deadlock.wait_chain.iter();
        let tags: Vec<_> = tags.map(|entry| &entry.resource_group_tag[..]).collect();
        let tag = |start_ts| format!("tag {start_ts}").into_bytes();
        assert_eq!(tags, [tag(second), tag(first)]);
        // Who was not refused waits until its time is over.
        let woken = self.woken(NOW + WAIT_MS_MAX);
        assert_eq!((woken.len(), woken[0].0), (1, ticket));
        assert_eq!(locked(&woken[0].1).lock_version, first);
        self.pessimistic_rollback(key, first, first);
        self.pessimistic_rollback(&other, second, second);
    }

    fn region_at(&self, key: &[u8]) -> RegionId {
        let (context, _) = self.to(key);
        context.expect("a context").region_id
    }

    fn must_lead(&mut self, key: &[u8], store: StoreId) {
        let region = self.region_at(key);
        if self.to(key).1 != store {
            assert!(self.cluster.transfer_leader(NOW, region, store));
        }
    }

    fn must_split(&mut self, key: &[u8]) {
        let region = self.region_at(key);
        let at = Key::from_user(key).encoded().clone();
        assert_eq!(self.cluster.split(NOW, region, &[at]).len(), 2);
    }

    /// Moves the leader's peer of a region to another store.
    fn must_move(&mut self, key: &[u8], to: StoreId) {
        let (region, from) = (self.region_at(key), self.to(key).1);
        self.cluster.add_peer(NOW, region, to, PeerRole::Voter);
        self.must_lead(key, to);
        assert!(self.cluster.remove_peer(NOW, region, from));
    }

    /// A wish that is granted at once.
    fn must_grant(&mut self, request: PessimisticLockRequest) {
        let response = self.must_not_wait(request);
        assert_eq!((response.region_error, response.errors), (None, vec![]));
    }

    /// Closes a shared lock to new members.
    fn must_close(&mut self, key: &[u8], start_ts: u64) {
        let request = PessimisticLockRequest {
            wait_timeout: -1,
            ..wish(key, start_ts)
        };
        assert_eq!(locked(&self.must_not_wait(request)).lock_version, 0);
    }

    /// A wish that would close a circle.
    fn must_be_refused(&mut self, request: PessimisticLockRequest) {
        let response = self.must_not_wait(request);
        assert!(only_error(&response).deadlock.is_some(), "{response:?}");
        let failed = PessimisticLockKeyResultType::LockResultFailed;
        assert_eq!(result_type(&response), failed);
    }
}

#[test]
fn test_detect_deadlock_basic() {
    let mut b = Bench::new();
    b.must_split(b"k");
    b.must_detect_deadlock(b"k1", 10);
    // The detector is on another store than those who wait.
    b.must_lead(b"", 2);
    assert_eq!(b.to(b"k1").1, 1);
    b.must_detect_deadlock(b"k1", 20);
}

#[test]
fn test_detect_deadlock_when_transfer_leader() {
    let mut b = Bench::new();
    b.must_detect_deadlock(b"k", 10);
    b.must_lead(b"", 2);
    b.must_detect_deadlock(b"k", 20);
}

#[test]
fn test_detect_deadlock_when_split_region() {
    let mut b = Bench::new();
    b.must_split(b"k1");
    b.must_detect_deadlock(b"k", 10);
    b.must_lead(b"k1", 2);
    assert_eq!(b.to(b"").1, 1);
    b.must_detect_deadlock(b"k1", 20);
}

#[test]
fn test_detect_deadlock_when_transfer_region() {
    let mut b = Bench::new();
    let fourth = b.cluster.add_store(NOW);
    b.must_move(b"k", fourth);
    b.must_detect_deadlock(b"k", 10);
    b.must_split(b"k1");
    for (start_ts, to) in [(20, 1), (40, fourth)] {
        // A region that is not the first moves, which is nothing to the detector.
        b.must_move(b"k1", to);
        assert_eq!(b.to(b"").1, fourth);
        b.must_detect_deadlock(b"k", start_ts);
        b.must_detect_deadlock(b"k1", start_ts + 10);
    }
}

#[test]
fn test_detect_deadlock_when_merge_region() {
    let mut b = Bench::new();
    let mut start_ts = 10;
    for (leader, into_first, left) in [(1, false, 1), (1, true, 1), (2, true, 1), (2, false, 2)] {
        b.must_split(b"k1");
        b.must_lead(b"k1", leader);
        let (mut source, mut target) = (b.region_at(b""), b.region_at(b"k1"));
        if into_first {
            std::mem::swap(&mut source, &mut target);
        }
        assert!(b.cluster.merge(NOW, source, target));
        assert_eq!(b.to(b"").1, left);
        b.must_detect_deadlock(b"k", start_ts);
        b.must_lead(b"", 1);
        start_ts += 10;
    }
}

#[test]
fn test_detect_deadlock_when_updating_wait_info() {
    let mut b = Bench::new();
    b.must_lock(b"key1", b"key1", 10, 10);
    b.must_lock(b"key2", b"key2", 12, 12);
    let eleven = b.must_wait(NOW, forced(b"key1", 11));
    let twelve = b.must_wait(NOW, forced(b"key1", 12));
    let second = b.must_wait(NOW, forced(b"key2", 11));
    // The lock goes to 11; 12, which 11 waits for, would have to wait for it.
    b.pessimistic_rollback(b"key1", 10, 10);
    let mut woken = b.woken(NOW);
    woken.sort_by_key(|(ticket, _)| *ticket);
    assert_eq!((woken[0].0, woken[1].0), (eleven, twelve));
    assert!(woken[0].1.errors.is_empty());
    let response = &woken[1].1;
    let deadlock = only_error(response).deadlock.as_ref().expect("a deadlock");
    let expected: [Edge<'_>; 2] = [(11, 12, b"key2"), (12, 11, b"key1")];
    assert_eq!(chain(deadlock), expected);
    let failed = PessimisticLockKeyResultType::LockResultFailed;
    assert_eq!(result_type(response), failed);
    b.pessimistic_rollback(b"key2", 12, 12);
    let woken = b.woken(NOW);
    assert_eq!((woken.len(), woken[0].0), (1, second));
    assert!(woken[0].1.errors.is_empty());
}

#[test]
fn test_shared_lock_deadlock_basic() {
    let mut b = Bench::new();
    b.must_grant(shared(b"k1", 10));
    b.must_grant(shared(b"k2", 20));
    b.must_close(b"k1", 100);
    b.must_close(b"k2", 101);
    let waits = b.must_wait(NOW, forced(b"k2", 10));
    b.must_be_refused(forced(b"k1", 20));
    b.pessimistic_rollback(b"k2", 20, 20);
    let woken = b.woken(NOW);
    assert_eq!((woken.len(), woken[0].0), (1, waits));
    assert!(woken[0].1.errors.is_empty());
}

#[test]
fn test_shared_lock_deadlock_cleanup_partial_edges() {
    let mut b = Bench::new();
    b.must_grant(shared(b"a", 10));
    b.must_grant(shared(b"a", 20));
    b.must_close(b"a", 102);
    b.must_lock(b"b", b"b", 30, 30);
    let twenty = b.must_wait(NOW, forced(b"b", 20));
    // It would wait for 10, which is no circle, and for 20, which is one.
    b.must_be_refused(forced(b"a", 30));
    // So it does not wait for 10 either.
    let ten = b.must_wait(NOW, forced(b"b", 10));
    b.pessimistic_rollback(b"b", 30, 30);
    let woken = b.woken(NOW);
    assert_eq!((woken.len(), woken[0].0), (1, ten));
    assert!(woken[0].1.errors.is_empty());
    b.pessimistic_rollback(b"b", 10, 10);
    assert_eq!(b.tickets(NOW), [twenty]);
}

#[test]
fn test_shared_lock_deadlock_with_update_waiter() {
    let mut b = Bench::new();
    b.must_grant(shared(b"a", 10));
    b.must_grant(shared(b"a", 20));
    b.must_close(b"a", 103);
    b.must_lock(b"b", b"b", 40, 40);
    let thirty = b.must_wait(NOW, forced(b"a", 30));
    let forty = b.must_wait(NOW, forced(b"a", 40));
    b.pessimistic_rollback(b"a", 10, 10);
    b.pessimistic_rollback(b"a", 20, 20);
    let woken = b.woken(NOW);
    assert_eq!((woken.len(), woken[0].0), (1, thirty));
    assert!(woken[0].1.errors.is_empty());
    // Only now does 40 wait for 30.
    b.must_be_refused(forced(b"b", 30));
    b.pessimistic_rollback(b"a", 30, 30);
    assert_eq!(b.tickets(NOW), [forty]);
}
