//! What followers serve: reads confirmed by the leader, stale reads, and up to which timestamp.

use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{Context, GetRequest};
use tikv_proto::metapb::PeerRole;

use super::vocabulary::{pre, word};
use super::{Bench, NOW, put};
use crate::cluster::key;
use crate::cluster::mvcc::write_record::WriteKind;
use crate::cluster::region::{RegionId, StoreId};

#[derive(Clone, Copy)]
enum Read {
    Replica,
    Stale,
}
use Read::{Replica, Stale};

impl Bench {
    fn id(&self, k: &[u8]) -> RegionId {
        self.to(k).0.expect("a context").region_id
    }

    /// Reads a key at a store, as somebody who knows the region as it is.
    fn read_on(
        &mut self,
        store: StoreId,
        how: Read,
        k: &[u8],
        version: u64,
    ) -> Result<String, Box<errorpb::Error>> {
        let region = self.cluster.regions().find(&key::encode(k));
        let region = region.expect("ranges cover all keys");
        let context = Context {
            region_id: region.meta.id,
            region_epoch: region.meta.region_epoch,
            peer: region.peer_on(store).copied(),
            replica_read: matches!(how, Replica),
            stale_read: matches!(how, Stale),
            ..Default::default()
        };
        let request = GetRequest {
            context: Some(Box::new(context)),
            key: k.to_vec().into(),
            version,
            need_commit_ts: false,
        };
        let response = self.cluster.kv_get(NOW, store, request);
        match (response.region_error, response.error) {
            (Some(error), _) => Err(error),
            (None, Some(error)) => Ok(format!("!{}", word(Some(&error)))),
            (None, None) => Ok(super::looks::text(&response.value)),
        }
    }

    fn must_read_on(&mut self, store: StoreId, how: Read, k: &[u8], version: u64, v: &str) {
        assert_eq!(self.read_on(store, how, k, version), Ok(v.to_owned()));
    }

    /// A stale read that comes too soon; the follower's timestamp.
    fn must_be_too_soon(&mut self, store: StoreId, k: &[u8], version: u64) -> u64 {
        let error = self
            .read_on(store, Stale, k, version)
            .expect_err("too soon");
        error.data_is_not_ready.expect("its detail").safe_ts
    }

    /// The next timestamp of PD.
    fn tso(&mut self) -> u64 {
        self.cluster.pd_mut().next_tso(NOW)
    }

    /// Writes in a transaction of its own; where it committed.
    fn put_now(&mut self, k: &[u8], v: &[u8]) -> u64 {
        let (start_ts, commit_ts) = (self.tso(), self.tso());
        self.write(k, v, start_ts, commit_ts);
        commit_ts
    }

    /// What a region's leader says is complete reaches its followers.
    fn advance(&mut self, k: &[u8]) -> u64 {
        let id = self.id(k);
        self.cluster.advance_safe_ts(NOW, id)
    }
}

const K1: &[u8] = b"key1";
const K2: &[u8] = b"key2";
const K3: &[u8] = b"key3";

#[test]
fn test_replica_read_not_applied() {
    let mut b = Bench::new();
    let id = b.id(K1);
    b.write(K1, b"v1", 1, 2);
    b.must_prewrite_put(K1, b"v2", K1, 3);
    // The commit is in the log; nobody but the leader knows that it is.
    b.cluster.hold_writes(id);
    b.must_commit(K1, 3, 4);
    b.cluster.depose_leader(id);
    let refused = b.read_on(3, Replica, K1, 10).expect_err("nobody to ask");
    assert_eq!(refused.not_leader.expect("its detail").leader, None);
    assert!(b.cluster.elect(NOW, id, 2));
    // Whoever leads next knows, before it answers.
    b.must_read_on(3, Replica, K1, 10, "v2");
    b.must_read_on(1, Replica, K1, 10, "v2");
}

#[test]
fn test_read_index_retry_lock_checking() {
    let mut b = Bench::new();
    let id = b.id(K1);
    b.write(K1, b"v1", 1, 2);
    b.write(K2, b"v2", 1, 2);
    b.cluster.hold_writes(id);
    let pending = pre(K1, 10).put(&[K1]).by_locks(&[], 0).min(20);
    assert_eq!(b.must_run(pending).min_commit_ts, 20);
    // The leader alone knows of the lock, and finds it when it is asked.
    b.must_read_on(2, Replica, K1, 30, "!locked");
    b.must_read_on(2, Replica, K2, 30, "v2");
    b.must_read_on(2, Replica, K1, 19, "v1");
}

#[test]
fn test_split_isolation() {
    let mut b = Bench::new();
    let id = b.id(K1);
    b.write(K1, b"v1", 1, 2);
    b.cluster.remove_peer(NOW, id, 2);
    assert_ne!(b.cluster.add_peer(NOW, id, 2, PeerRole::Learner), 0);
    // The learner misses the split, and its part of the region is not born there.
    assert!(b.cluster.fall_behind(id, 2));
    b.cluster.split(NOW, id, &[key::encode(K2)]);
    let refused = b.read_on(2, Replica, K1, 10).expect_err("not born");
    assert!(refused.region_not_found.is_some());
    b.cluster.catch_up(2);
    b.must_read_on(2, Replica, K1, 10, "v1");
}

#[test]
fn test_stale_read_basic_flow_replicate() {
    flow_replicate(|b, k, v| b.put_now(k, v));
}

#[test]
fn test_stale_read_1pc_flow_replicate() {
    flow_replicate(|b, k, v| {
        let start_ts = b.tso();
        let mut one = pre(k, start_ts).with(put(k, v)).one_pc(0);
        one.request.min_commit_ts = b.tso();
        let commit_ts = b.must_run(one).one_pc_commit_ts;
        assert!(commit_ts > start_ts);
        b.tso();
        commit_ts
    });
}

fn flow_replicate(write: fn(&mut Bench, &[u8], &[u8]) -> u64) {
    let mut b = Bench::new();
    let id = b.id(K1);
    let first = b.put_now(K1, b"value1");
    let safe_ts = b.advance(K1);
    b.must_read_on(2, Stale, K1, safe_ts, "value1");
    // Nothing more reaches the follower.
    assert!(b.cluster.fall_behind(id, 2));
    let second = write(&mut b, K1, b"value2");
    let newest = b.advance(K1);
    assert!(newest > second);
    b.must_read_on(2, Stale, K1, first, "value1");
    assert_eq!(b.must_be_too_soon(2, K1, second), safe_ts);
    b.must_read_on(1, Stale, K1, newest, "value2");
    b.cluster.catch_up_peer(id, 2);
    b.must_read_on(2, Stale, K1, newest, "value2");
}

#[test]
fn test_stale_read_basic_flow_lock() {
    let mut b = Bench::new();
    let first = b.put_now(K1, b"value1");
    let start2 = b.tso();
    b.must_prewrite_put(K2, b"value1", K2, start2);
    let second = b.put_now(K1, b"value2");
    b.advance(K1);
    // The oldest lock of the region holds everything back.
    b.must_be_too_soon(2, K1, second);
    b.must_read_on(2, Stale, K1, first, "value1");
    let start3 = b.tso();
    b.must_prewrite_put(K3, b"value1", K3, start3);
    let commit2 = b.tso();
    b.must_commit(K2, start2, commit2);
    b.advance(K1);
    b.must_read_on(2, Stale, K1, second, "value2");
    b.must_be_too_soon(2, K2, commit2);
    let commit3 = b.tso();
    b.must_commit(K3, start3, commit3);
    let newest = b.advance(K1);
    b.must_read_on(2, Stale, K2, newest, "value1");
    b.must_read_on(2, Stale, K3, newest, "value1");
}

#[test]
fn test_stale_read_while_region_merge() {
    let mut b = Bench::new();
    let id = b.id(K1);
    b.cluster.split(NOW, id, &[key::encode(K3)]);
    let (source, target) = (b.id(K1), b.id(b"key5"));
    b.put_now(b"key5", b"value1");
    let start = b.tso();
    b.must_prewrite_put(K1, b"value1", K1, start);
    let second = b.put_now(b"key5", b"value2");
    b.advance(K1);
    b.advance(b"key5");
    b.must_read_on(2, Stale, b"key5", second, "value2");
    // The lock holds the merged region back, beyond what one part of it has told before.
    assert!(b.cluster.merge(NOW, source, target));
    b.must_read_on(2, Stale, b"key5", start, "value1");
    assert_eq!(b.must_be_too_soon(2, b"key5", second), start);
    b.advance(b"key5");
    b.must_be_too_soon(2, b"key5", second);
    let commit_ts = b.tso();
    b.must_commit(K1, start, commit_ts);
    let newest = b.advance(b"key5");
    b.must_read_on(2, Stale, b"key5", newest, "value2");
}

#[test]
fn test_new_leader_ignore_pessimistic_lock() {
    let mut b = Bench::new();
    let id = b.id(K1);
    b.put_now(K1, b"value1");
    let start = b.tso();
    b.must_lock(K2, K2, start, start);
    assert!(b.cluster.transfer_leader(NOW, id, 2));
    b.must_pessimistic_locked(K2, start, start);
    let newest = b.advance(K1);
    assert!(newest > start);
    b.must_read_on(3, Stale, K1, newest, "value1");
}

#[test]
fn test_stale_read_with_ts0() {
    let mut b = Bench::new();
    let first = b.put_now(K1, b"value1");
    let second = b.put_now(K1, b"value2");
    b.advance(K1);
    b.must_read_on(2, Stale, K1, first, "value1");
    b.must_read_on(2, Stale, K1, second, "value2");
    let refused = b.read_on(2, Stale, K1, 0).expect_err("it does not lead");
    assert!(refused.not_leader.is_some());
    b.must_read_on(1, Stale, K1, 0, "");
}

#[test]
fn test_region_read_progress() {
    let mut b = Bench::new();
    let id = b.id(K1);
    let safe = |b: &Bench, store| {
        let region = b.cluster.region(id).expect("a region");
        region.safe_ts_on(store)
    };
    b.cluster.set_safe_ts(id, 10);
    // A follower that has not applied what its leader has learns nothing new.
    b.cluster
        .set_peer_state(id, 2, |peer| peer.safe_ts_stuck = Some(10));
    b.cluster.set_safe_ts(id, 20);
    assert_eq!((safe(&b, 2), safe(&b, 3)), (10, 20));
    b.cluster
        .set_peer_state(id, 2, |peer| peer.safe_ts_stuck = None);
    assert_eq!(safe(&b, 2), 20);
    // What is older than it knows changes nothing.
    b.cluster.set_safe_ts(id, 15);
    assert_eq!(safe(&b, 2), 20);
    // While it takes over a copy it knows of nothing.
    b.cluster
        .set_peer_state(id, 2, |peer| peer.applying_snapshot = true);
    assert_eq!((safe(&b, 2), safe(&b, 3)), (0, 20));
    b.cluster
        .set_peer_state(id, 2, |peer| peer.applying_snapshot = false);
    // While it is about to be merged it learns nothing new.
    b.cluster.prepare_merge(NOW, id);
    b.cluster.set_safe_ts(id, 30);
    b.must_read_on(2, Stale, K1, 20, "");
    assert_eq!(b.must_be_too_soon(2, K1, 30), 20);
    b.cluster.rollback_merge(NOW, id);
    b.cluster.set_safe_ts(id, 30);
    b.must_read_on(2, Stale, K1, 30, "");
}

#[test]
fn test_read_index_safe_ts() {
    let mut b = Bench::new();
    let id = b.id(K1);
    b.write(K1, b"v", 1, 2);
    let stale = |b: &mut Bench, version| b.read_on(2, Stale, K1, version).is_ok();
    // What the leader has confirmed once is complete from then on.
    for (confirmed, newest) in [(10, 10), (15, 15), (12, 15), (u64::MAX, 15)] {
        b.must_read_on(2, Replica, K1, confirmed, "v");
        assert!(stale(&mut b, newest) && !stale(&mut b, newest + 1));
    }
    b.cluster.prepare_merge(NOW, id);
    assert!(!stale(&mut b, 15));
    assert!(b.read_on(2, Replica, K1, 20).is_err());
    b.cluster.rollback_merge(NOW, id);
    assert!(!stale(&mut b, 15));
    b.must_read_on(2, Replica, K1, 30, "v");
    assert!(stale(&mut b, 30));
    b.cluster
        .set_peer_state(id, 2, |peer| peer.applying_snapshot = true);
    b.cluster
        .set_peer_state(id, 2, |peer| peer.applying_snapshot = false);
    assert!(!stale(&mut b, 30));
    b.must_read_on(2, Replica, K1, 50, "v");
    let parts = b.cluster.split(NOW, id, &[key::encode(b"m")]);
    assert!(!stale(&mut b, 50), "the part on the left is new");
    b.must_read_on(2, Replica, K1, 50, "v");
    assert!(b.cluster.merge(NOW, parts[1], parts[0]));
    assert!(!stale(&mut b, 50));
    // A follower that has to catch up first serves the read, and knows no more than before.
    let id = b.id(K1);
    b.cluster.lengthen_lag(id, 2, 1);
    b.must_read_on(2, Replica, K1, 52, "v");
    assert!(!stale(&mut b, 52));
    // A lock under way anywhere in the region says that not all is complete.
    b.cluster.hold_writes(id);
    let pending = b.must_run(pre(K2, 60).put(&[K2]).by_locks(&[], 0));
    b.must_read_on(2, Replica, K1, 55, "v");
    assert!(!stale(&mut b, 55));
    b.cluster.release_writes(NOW, id);
    let commit_ts = pending.min_commit_ts;
    b.must_commit(K2, 60, commit_ts);
    b.must_written(K2, 60, commit_ts, WriteKind::Put);
    b.must_read_on(2, Replica, K1, 55, "v");
    assert!(stale(&mut b, 55));
}
