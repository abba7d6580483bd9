//! Who waits for whom, and whether one more wait would close a circle.
//!
//! A cluster has one detector, on the store that leads its first region. It begins again with an
//! empty graph whenever that region changes. The request whose wait would close a circle is
//! refused, whoever is younger.
//!
//! Deliberately absent: the network between stores and the detector, and the expiry of edges: a
//! wait that has ended takes its edges with it.

use std::collections::BTreeMap;

use bytes::Bytes;
use tikv_proto::deadlock::WaitForEntry;
use tikv_proto::kvrpcpb::Deadlock;

use crate::cluster::key::Key;
use crate::cluster::region::{Region, StoreId};

/// One transaction's wait for another.
#[derive(Clone, Debug)]
struct Wait {
    /// In the order they were named; never empty.
    keys: Vec<Key>,
    /// What was last said of it.
    tag: Bytes,
}

/// Where the detector is, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    store: StoreId,
    region: u64,
    epoch: (u64, u64),
    term: u64,
}

impl Seat {
    /// The seat at the leader of the first region; `None` while nobody leads it.
    pub(crate) fn at(first: &Region) -> Option<Seat> {
        let epoch = first.epoch();
        Some(Seat {
            store: first.leader?,
            region: first.meta.id,
            epoch: (epoch.version, epoch.conf_ver),
            term: first.term,
        })
    }

    /// The store.
    pub(crate) fn store(&self) -> StoreId {
        self.store
    }
}

/// The graph of waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Detector {
    /// Where it is, if anywhere.
    seat: Option<Seat>,
    /// By who waits, then by whom it waits for.
    waits: BTreeMap<u64, BTreeMap<u64, Wait>>,
}

impl Detector {
    /// It is here from now on. If that is news, it forgets what it knew.
    pub(crate) fn move_to(&mut self, seat: Option<Seat>) {
        if self.seat != seat {
            self.seat = seat;
            self.waits.clear();
        }
    }

    /// The store that has it has lost its memory.
    pub(crate) fn restart(&mut self, store: StoreId) {
        if self.seat.is_some_and(|seat| seat.store == store) {
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
        if self.seat.is_none() {
            return Ok(());
        }
        if let Some(known) = self
            .waits
            .get_mut(&waiter)
            .and_then(|waits| waits.get_mut(&holder))
        {
            if !known.keys.contains(key) {
                known.keys.push(key.clone());
            }
            known.tag = tag.clone();
            return Ok(());
        }
        if let Some(mut wait_chain) = self.path(holder, waiter) {
            let leads_back = wait_chain.last().map_or(0, |entry| entry.key_hash);
            wait_chain.push(wait_for_entry(waiter, holder, key, tag));
            return Err(Box::new(Deadlock {
                lock_ts: holder,
                lock_key: key.to_user(),
                deadlock_key_hash: leads_back,
                wait_chain,
                ..Deadlock::default()
            }));
        }
        let wait = Wait {
            keys: vec![key.clone()],
            tag: tag.clone(),
        };
        self.waits.entry(waiter).or_default().insert(holder, wait);
        Ok(())
    }

    /// A wait has ended.
    pub(crate) fn forget(&mut self, waiter: u64, holder: u64, key: &Key) {
        let Some(waits) = self.waits.get_mut(&waiter) else {
            return;
        };
        if let Some(wait) = waits.get_mut(&holder) {
            wait.keys.retain(|known| known != key);
            if wait.keys.is_empty() {
                waits.remove(&holder);
            }
        }
        if waits.is_empty() {
            self.waits.remove(&waiter);
        }
    }

    /// The waits that lead from one transaction to another. Who waits for itself is in no circle:
    /// one of those who share a lock may want it alone.
    fn path(&self, from: u64, to: u64) -> Option<Vec<WaitForEntry>> {
        // Whom each transaction was reached from.
        let mut reached: BTreeMap<u64, u64> = BTreeMap::new();
        let mut open = vec![from];
        while let Some(waiter) = open.pop() {
            for (&holder, wait) in self.waits.get(&waiter).into_iter().flatten() {
                if holder == to {
                    let mut entries = self.walk_back(from, waiter, &reached);
                    entries.extend(entry(waiter, holder, wait));
                    return Some(entries);
                }
                if holder != from && !reached.contains_key(&holder) {
                    reached.insert(holder, waiter);
                    open.push(holder);
                }
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
            let wait = self.waits.get(&waiter).and_then(|waits| waits.get(&holder));
            entries.extend(wait.and_then(|wait| entry(waiter, holder, wait)));
            holder = waiter;
        }
        entries.reverse();
        entries
    }
}

fn entry(waiter: u64, holder: u64, wait: &Wait) -> Option<WaitForEntry> {
    let key = wait.keys.first()?;
    Some(wait_for_entry(waiter, holder, key, &wait.tag))
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

    fn seat(store: StoreId, term: u64) -> Option<Seat> {
        let leader = Some(store);
        Seat::at(&Region {
            leader,
            term,
            ..Region::default()
        })
    }

    fn on_store_one() -> Detector {
        let mut detector = Detector::default();
        detector.move_to(seat(1, 1));
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
        let deadlock = wait(&mut detector, 2, 1, "c").expect("a circle");
        assert_eq!(chain(&deadlock), [(1, 2, &b"b"[..]), (2, 1, b"c")]);
        detector.forget(1, 2, &Key::from_user(b"b"));
        assert_eq!(wait(&mut detector, 2, 1, "c"), None);
    }

    #[test]
    fn who_waits_for_itself_is_in_no_circle() {
        let mut detector = on_store_one();
        assert_eq!(wait(&mut detector, 1, 1, "a"), None);
        assert_eq!(wait(&mut detector, 1, 2, "a"), None);
        assert_eq!(wait(&mut detector, 3, 1, "b"), None);
        let deadlock = wait(&mut detector, 2, 1, "a").expect("a circle");
        assert_eq!(chain(&deadlock), [(1, 2, &b"a"[..]), (2, 1, b"a")]);
    }

    #[test]
    fn another_leader_starts_with_nothing_and_no_leader_finds_nothing() {
        let mut detector = on_store_one();
        for next in [seat(2, 1), seat(2, 2)] {
            assert_eq!(wait(&mut detector, 1, 2, "a"), None);
            detector.move_to(next);
            assert_eq!(wait(&mut detector, 2, 1, "b"), None);
            detector.forget(2, 1, &Key::from_user(b"b"));
        }
        detector.move_to(None);
        assert_eq!(wait(&mut detector, 1, 2, "a"), None);
        assert_eq!(wait(&mut detector, 2, 1, "b"), None);
    }

    /// Refused because of a wait for this key.
    fn refused_for(detector: &mut Detector, waiter: u64, holder: u64, key: &str) -> u64 {
        let deadlock = wait(detector, waiter, holder, key).expect("a circle");
        deadlock.deadlock_key_hash
    }

    #[test]
    fn test_detect_table() {
        let mut detector = on_store_one();
        let hash = |key: &str| farmhash::fingerprint64(key.as_bytes());
        let forget = |detector: &mut Detector, waiter, holder, key: &str| {
            detector.forget(waiter, holder, &Key::from_user(key.as_bytes()));
        };
        assert_eq!(wait(&mut detector, 1, 2, "2"), None);
        assert_eq!(refused_for(&mut detector, 2, 1, "1"), hash("2"));
        assert_eq!(wait(&mut detector, 2, 3, "3"), None);
        assert_eq!(refused_for(&mut detector, 3, 1, "1"), hash("3"));
        forget(&mut detector, 2, 3, "3");
        // The circle is broken; a wait for several keys lasts as long as one of them.
        for key in ["1", "2", "2"] {
            assert_eq!(wait(&mut detector, 3, 1, key), None);
        }
        assert_eq!(wait(&mut detector, 3, 2, "2"), None);
        forget(&mut detector, 3, 1, "1");
        assert_eq!(refused_for(&mut detector, 1, 3, "3"), hash("2"));
        forget(&mut detector, 3, 1, "2");
        assert_eq!(refused_for(&mut detector, 2, 3, "3"), hash("2"));
        forget(&mut detector, 3, 2, "2");
        assert_eq!(wait(&mut detector, 1, 3, "3"), None);
        // There is nothing to forget.
        forget(&mut detector, 3, 1, "1");
    }

    /// The last of these waits closes a circle, of which all the others are told that are in it.
    fn check_chain(waits: &[(u64, u64)]) {
        let mut detector = on_store_one();
        let (&(waiter, holder), before) = waits.split_last().expect("some waits");
        for (waiter, holder) in before {
            let key = format!("k{waiter}{holder}");
            assert_eq!(wait(&mut detector, *waiter, *holder, &key), None);
        }
        let key = format!("k{waiter}{holder}");
        let deadlock = wait(&mut detector, waiter, holder, &key).expect("a circle");
        let mut at = holder;
        for entry in &deadlock.wait_chain {
            assert_eq!(entry.txn, at, "{waits:?}");
            at = entry.wait_for_txn;
            assert!(waits.contains(&(entry.txn, at)), "{waits:?}");
            assert_eq!(entry.key, format!("k{}{at}", entry.txn));
            assert_eq!(entry.key_hash, farmhash::fingerprint64(&entry.key));
            assert_eq!(entry.resource_group_tag, format!("tag {}", entry.txn));
        }
        // It ends with the wait that was refused.
        assert_eq!(at, holder, "{waits:?}");
        let last = deadlock.wait_chain.last().expect("a wait");
        assert_eq!((last.txn, last.wait_for_txn), (waiter, holder));
    }

    #[test]
    fn test_deadlock_generating_wait_chain() {
        check_chain(&[(1, 2), (2, 1)]);
        check_chain(&[(1, 2), (2, 3), (3, 1)]);
        check_chain(&[(1, 2), (2, 3), (2, 4), (4, 1)]);
        let mut waits = [(1, 2), (1, 3), (2, 4), (3, 5), (2, 5), (5, 6), (6, 1)];
        check_chain(&waits);
        // In every order of the first six, by Heap's algorithm.
        let mut turns = [0; 6];
        let mut place = 1;
        while place < 6 {
            if turns[place] < place {
                let other = if place % 2 == 0 { 0 } else { turns[place] };
                waits.swap(other, place);
                check_chain(&waits);
                turns[place] += 1;
                place = 1;
            } else {
                turns[place] = 0;
                place += 1;
            }
        }
    }
}
