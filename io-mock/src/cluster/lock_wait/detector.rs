//! Who waits for whom, and whether one more wait would close a circle.
//!
//! A cluster has one detector, on the store that leads its first region; another store starts with
//! an empty graph. The request whose wait would close a circle is refused, whoever is younger.
//!
//! Deliberately absent: the network between stores and the detector, and the expiry of edges: a
//! wait that has ended takes its edges with it.

use std::collections::BTreeMap;

use bytes::Bytes;
use tikv_proto::deadlock::WaitForEntry;
use tikv_proto::kvrpcpb::Deadlock;

use crate::cluster::key::Key;
use crate::cluster::region::StoreId;

/// One transaction's wait for another.
#[derive(Clone, Debug)]
struct Wait {
    key: Key,
    tag: Bytes,
}

/// The graph of waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Detector {
    /// The store it is on; `None` while nobody leads the first region.
    store: Option<StoreId>,
    /// By who waits, then by whom it waits for; the keys in the order they were named.
    waits: BTreeMap<u64, BTreeMap<u64, Vec<Wait>>>,
}

impl Detector {
    /// It is on this store from now on. What it knew stays with the store that had it.
    pub(crate) fn move_to(&mut self, store: Option<StoreId>) {
        if self.store != store {
            self.store = store;
            self.waits.clear();
        }
    }

    /// The store that has it has lost its memory.
    pub(crate) fn restart(&mut self, store: StoreId) {
        if self.store == Some(store) {
            self.waits.clear();
        }
    }

    /// Remembers that `waiter` waits for `holder` because of a key, unless that would close a
    /// circle: then it is told how.
    pub(crate) fn detect(
        &mut self,
        waiter: u64,
        holder: u64,
        key: &Key,
        tag: &Bytes,
    ) -> Result<(), Box<Deadlock>> {
        if self.store.is_none() {
            return Ok(());
        }
        let wait = Wait {
            key: key.clone(),
            tag: tag.clone(),
        };
        if let Some(known) = self
            .waits
            .get_mut(&waiter)
            .and_then(|waits| waits.get_mut(&holder))
        {
            known.push(wait);
            return Ok(());
        }
        if let Some(mut wait_chain) = self.path(holder, waiter) {
            let leads_back = wait_chain.last().map_or(0, |entry| entry.key_hash);
            wait_chain.push(entry(waiter, holder, &wait));
            return Err(Box::new(Deadlock {
                lock_ts: holder,
                lock_key: key.to_user(),
                deadlock_key_hash: leads_back,
                wait_chain,
                ..Deadlock::default()
            }));
        }
        let waits = self.waits.entry(waiter).or_default();
        waits.insert(holder, vec![wait]);
        Ok(())
    }

    /// A wait has ended.
    pub(crate) fn forget(&mut self, waiter: u64, holder: u64, key: &Key) {
        let Some(waits) = self.waits.get_mut(&waiter) else {
            return;
        };
        if let Some(keys) = waits.get_mut(&holder) {
            if let Some(index) = keys.iter().position(|wait| wait.key == *key) {
                keys.remove(index);
            }
            if keys.is_empty() {
                waits.remove(&holder);
            }
        }
        if waits.is_empty() {
            self.waits.remove(&waiter);
        }
    }

    /// The waits that lead from one transaction to another.
    fn path(&self, from: u64, to: u64) -> Option<Vec<WaitForEntry>> {
        if from == to {
            return Some(Vec::new());
        }
        // Whom each transaction was reached from.
        let mut reached: BTreeMap<u64, u64> = BTreeMap::new();
        let mut open = vec![from];
        while let Some(waiter) = open.pop() {
            for &holder in self.waits.get(&waiter).into_iter().flat_map(BTreeMap::keys) {
                if holder == from || reached.contains_key(&holder) {
                    continue;
                }
                reached.insert(holder, waiter);
                if holder == to {
                    return Some(self.walk_back(from, to, &reached));
                }
                open.push(holder);
            }
        }
        None
    }

    fn walk_back(&self, from: u64, to: u64, reached: &BTreeMap<u64, u64>) -> Vec<WaitForEntry> {
        let mut entries = Vec::new();
        let mut holder = to;
        while holder != from
            && let Some(&waiter) = reached.get(&holder)
        {
            let waits = self.waits.get(&waiter).and_then(|waits| waits.get(&holder));
            if let Some(wait) = waits.and_then(|waits| waits.first()) {
                entries.push(entry(waiter, holder, wait));
            }
            holder = waiter;
        }
        entries.reverse();
        entries
    }
}

fn entry(waiter: u64, holder: u64, wait: &Wait) -> WaitForEntry {
    wait_for_entry(waiter, holder, &wait.key, &wait.tag)
}

/// A wait as clients are told of it.
pub(crate) fn wait_for_entry(waiter: u64, holder: u64, key: &Key, tag: &Bytes) -> WaitForEntry {
    let key = key.to_user();
    WaitForEntry {
        txn: waiter,
        wait_for_txn: holder,
        key_hash: farmhash::fingerprint64(&key),
        key,
        resource_group_tag: tag.clone(),
        ..WaitForEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_store_one() -> Detector {
        let mut detector = Detector::default();
        detector.move_to(Some(1));
        detector
    }

    fn wait(detector: &mut Detector, waiter: u64, holder: u64, key: &str) -> Option<Deadlock> {
        let tag = Bytes::from(format!("tag {waiter}"));
        let result = detector.detect(waiter, holder, &Key::from_user(key.as_bytes()), &tag);
        result.err().map(|deadlock| *deadlock)
    }

    /// Who waits for whom, and for which key.
    fn chain(deadlock: &Deadlock) -> Vec<(u64, u64, &[u8])> {
        let entries = deadlock.wait_chain.iter();
        entries
            .map(|entry| (entry.txn, entry.wait_for_txn, entry.key.as_ref()))
            .collect()
    }

    #[test]
    fn two_that_wait_for_each_other_are_a_circle() {
        let mut detector = on_store_one();
        assert_eq!(wait(&mut detector, 1, 2, "b"), None);
        let deadlock = wait(&mut detector, 2, 1, "a").expect("a circle");
        assert_eq!(deadlock.lock_ts, 1);
        assert_eq!(deadlock.lock_key, "a");
        assert_eq!(deadlock.deadlock_key_hash, farmhash::fingerprint64(b"b"));
        assert!(deadlock.deadlock_key.is_empty());
        assert_eq!(chain(&deadlock), [(1, 2, &b"b"[..]), (2, 1, b"a")]);
        assert_eq!(deadlock.wait_chain[1].resource_group_tag, "tag 2");
        // Who is refused does not wait: nothing of it is left in the way of others.
        assert_eq!(wait(&mut detector, 3, 2, "c"), None);
        assert_eq!(wait(&mut detector, 1, 3, "d"), None);
    }

    #[test]
    fn a_circle_of_many_is_told_from_the_holder_on() {
        let mut detector = on_store_one();
        for (waiter, holder) in [(1, 9), (1, 2), (2, 8), (2, 3), (3, 4)] {
            let key = format!("{waiter}{holder}");
            assert_eq!(wait(&mut detector, waiter, holder, &key), None);
        }
        let deadlock = wait(&mut detector, 4, 1, "41").expect("a circle");
        let expected = [
            (1, 2, &b"12"[..]),
            (2, 3, b"23"),
            (3, 4, b"34"),
            (4, 1, b"41"),
        ];
        assert_eq!(chain(&deadlock), expected);
        assert_eq!(deadlock.deadlock_key_hash, farmhash::fingerprint64(b"34"));
    }

    #[test]
    fn a_wait_that_has_ended_is_in_no_circle() {
        let mut detector = on_store_one();
        assert_eq!(wait(&mut detector, 1, 2, "a"), None);
        assert_eq!(wait(&mut detector, 1, 2, "b"), None);
        detector.forget(1, 2, &Key::from_user(b"a"));
        assert!(wait(&mut detector, 2, 1, "c").is_some());
        detector.forget(1, 2, &Key::from_user(b"b"));
        assert_eq!(wait(&mut detector, 2, 1, "c"), None);
    }

    #[test]
    fn another_store_starts_with_nothing_and_no_store_finds_nothing() {
        let mut detector = on_store_one();
        assert_eq!(wait(&mut detector, 1, 2, "a"), None);
        detector.move_to(Some(2));
        assert_eq!(wait(&mut detector, 2, 1, "b"), None);
        detector.move_to(None);
        assert_eq!(wait(&mut detector, 1, 2, "a"), None);
        assert_eq!(wait(&mut detector, 2, 1, "b"), None);
    }
}
