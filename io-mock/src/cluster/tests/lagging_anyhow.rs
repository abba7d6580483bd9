//! Whatever happens to a region while peers of it lag, what they serve is correct.

use proptest::collection::vec;
use proptest::prelude::*;
use tikv_proto::kvrpcpb::Context;
use tikv_proto::metapb::PeerRole;

use super::{Bench, NOW};
use crate::cluster::key;
use crate::cluster::region::{Region, RegionId, StoreId};

/// What may happen while peers lag.
#[derive(Clone, Copy, Debug)]
enum Event {
    Write(u8),
    Prewrite(u8),
    Finish,
    Advance(u8),
    FallBehind(u8, u8),
    CatchUp(u8, u8),
    CatchUpAll(u8),
    Split(u8),
    Merge(u8, bool),
    Transfer(u8, u8),
    Elect(u8, u8),
    AddPeer(u8, u8),
    RemovePeer(u8, u8),
    PrepareMerge(u8),
    RollbackMerge(u8),
    ReadAtReplica(u8, u8),
    Restart(u8),
    Collect,
}

fn event() -> impl Strategy<Value = Event> {
    let (key, store) = (|| 0..KEYS, || 0..4u8);
    prop_oneof![
        4 => key().prop_map(Event::Write),
        2 => key().prop_map(Event::Prewrite),
        2 => Just(Event::Finish),
        3 => key().prop_map(Event::Advance),
        4 => (key(), store()).prop_map(|(key, store)| Event::FallBehind(key, store)),
        1 => (key(), store()).prop_map(|(key, store)| Event::CatchUp(key, store)),
        1 => store().prop_map(Event::CatchUpAll),
        2 => key().prop_map(Event::Split),
        2 => (key(), any::<bool>()).prop_map(|(key, left)| Event::Merge(key, left)),
        1 => (key(), store()).prop_map(|(key, store)| Event::Transfer(key, store)),
        1 => (key(), store()).prop_map(|(key, store)| Event::Elect(key, store)),
        2 => (key(), store()).prop_map(|(key, store)| Event::AddPeer(key, store)),
        2 => (key(), store()).prop_map(|(key, store)| Event::RemovePeer(key, store)),
        1 => key().prop_map(Event::PrepareMerge),
        1 => key().prop_map(Event::RollbackMerge),
        1 => (key(), store()).prop_map(|(key, store)| Event::ReadAtReplica(key, store)),
        1 => store().prop_map(Event::Restart),
        1 => Just(Event::Collect),
    ]
}

const KEYS: u8 = 6;

fn name(key: u8) -> [u8; 1] {
    [b'a' + key]
}

/// A cluster of four stores, and what has been committed.
struct Run {
    b: Bench,
    stores: Vec<StoreId>,
    pending: Vec<(u8, u64)>,
    /// Key, commit version and start version, which is the value.
    committed: Vec<(u8, u64, u64)>,
    collected: u64,
}

impl Run {
    fn new() -> Self {
        let mut b = Bench::new();
        b.cluster.add_store(NOW);
        let stores = b.cluster.store_ids().collect();
        Run {
            b,
            stores,
            pending: Vec::new(),
            committed: Vec::new(),
            collected: 0,
        }
    }

    fn tso(&mut self) -> u64 {
        self.b.cluster.pd_mut().next_tso(NOW)
    }

    fn region(&self, key: u8) -> Region {
        let region = self.b.cluster.regions().find(&key::encode(&name(key)));
        region.expect("ranges cover all keys").clone()
    }

    /// Prewrites a key, unless that can't be now.
    fn prewrite(&mut self, key: u8) {
        let region = self.region(key);
        let locked = self.pending.iter().any(|(other, _)| *other == key);
        if region.leader.is_none() || region.merging || locked {
            return;
        }
        let start_ts = self.tso();
        let value = start_ts.to_string();
        let name = name(key);
        self.b
            .must_prewrite_put(&name, value.as_bytes(), &name, start_ts);
        self.pending.push((key, start_ts));
    }

    fn finish(&mut self) {
        let Some(&(key, start_ts)) = self.pending.first() else {
            return;
        };
        if self.region(key).merging {
            return;
        }
        self.pending.remove(0);
        let commit_ts = self.tso();
        self.b.must_commit(&name(key), start_ts, commit_ts);
        self.committed.push((key, commit_ts, start_ts));
    }

    fn happen(&mut self, event: Event) {
        let region = |run: &Run, key| run.region(key).meta.id;
        let store = |run: &Run, store: u8| run.stores[usize::from(store)];
        match event {
            Event::Write(key) => {
                self.prewrite(key);
                self.finish();
            }
            Event::Prewrite(key) => self.prewrite(key),
            Event::Finish => self.finish(),
            Event::Advance(key) => {
                let id = region(self, key);
                self.b.cluster.advance_safe_ts(NOW, id);
            }
            Event::FallBehind(key, at) => {
                let (id, at) = (region(self, key), store(self, at));
                self.b.cluster.fall_behind(id, at);
            }
            Event::CatchUp(key, at) => {
                let (id, at) = (region(self, key), store(self, at));
                self.b.cluster.catch_up_peer(id, at);
            }
            Event::CatchUpAll(at) => self.b.cluster.catch_up(store(self, at)),
            Event::Split(key) => {
                let id = region(self, key);
                self.b.cluster.split(NOW, id, &[key::encode(&name(key))]);
            }
            Event::Merge(key, left) => {
                let source = self.region(key);
                let target = match left {
                    true => self
                        .b
                        .cluster
                        .regions()
                        .before(&source.meta.start_key)
                        .next(),
                    false => self
                        .b
                        .cluster
                        .regions()
                        .starting_at(&source.meta.end_key)
                        .next(),
                };
                let target = target.filter(|it| !it.merging).map(|it| it.meta.id);
                if let Some(target) = target {
                    self.b.cluster.merge(NOW, source.meta.id, target);
                }
            }
            Event::Transfer(key, to) => {
                let (id, to) = (region(self, key), store(self, to));
                self.b.cluster.transfer_leader(NOW, id, to);
            }
            Event::Elect(key, to) => {
                let (id, to) = (region(self, key), store(self, to));
                self.b.cluster.elect(NOW, id, to);
            }
            Event::AddPeer(key, at) => {
                let (id, at) = (region(self, key), store(self, at));
                self.b.cluster.add_peer(NOW, id, at, PeerRole::Voter);
            }
            Event::RemovePeer(key, at) => {
                let (id, at) = (region(self, key), store(self, at));
                self.b.cluster.remove_peer(NOW, id, at);
            }
            Event::PrepareMerge(key) => {
                if !self.region(key).merging {
                    let id = region(self, key);
                    self.b.cluster.prepare_merge(NOW, id);
                }
            }
            Event::RollbackMerge(key) => {
                if self.region(key).merging {
                    let id = region(self, key);
                    self.b.cluster.rollback_merge(NOW, id);
                }
            }
            Event::ReadAtReplica(key, at) => self.read_at_replica(key, store(self, at)),
            Event::Restart(at) => {
                let at = store(self, at);
                self.b.cluster.stop_store(at);
                self.b.cluster.start_store(NOW, at);
            }
            Event::Collect => {
                // As far as nobody reads any more.
                let stores = self.stores.iter();
                let told = stores.flat_map(|&at| self.known(at).map(move |it| it.safe_ts_on(at)));
                self.collected = told.min().unwrap_or(0).max(self.collected);
                self.b.cluster.collect_garbage(self.collected);
            }
        }
    }

    fn read_at_replica(&mut self, key: u8, at: StoreId) {
        let id = self.region(key).meta.id;
        let Some(known) = self.b.cluster.region_on(at, id) else {
            return;
        };
        if known.leader == Some(at) || known.peer_on(at).is_none() {
            return;
        }
        let context = Context {
            region_id: id,
            region_epoch: known.meta.region_epoch,
            peer: known.peer_on(at).copied(),
            replica_read: true,
            ..Context::default()
        };
        let version = self.tso();
        let response = self.b.get_on(at, context, &name(key), version);
        if response.region_error.is_none() && response.error.is_none() {
            assert_eq!(
                response.value,
                self.expected(key, version),
                "of the present"
            );
        }
    }

    /// The regions that a store has peers of, as it knows them.
    fn known(&self, store: StoreId) -> impl Iterator<Item = Region> {
        let cluster = &self.b.cluster;
        let behind = cluster.store(store).map(|it| &it.behind);
        let mut ids: Vec<RegionId> = cluster.regions().ids().collect();
        ids.extend(behind.into_iter().flatten().map(|(id, _)| *id));
        ids.sort_unstable();
        ids.dedup();
        let known = ids.into_iter();
        let known = known.filter_map(move |id| cluster.region_on(store, id).cloned());
        known.filter(move |region| region.peer_on(store).is_some())
    }

    fn expected(&self, key: u8, version: u64) -> String {
        let seen = self.committed.iter();
        let seen = seen.filter(|(it, commit_ts, _)| *it == key && *commit_ts <= version);
        let newest = seen.max_by_key(|(_, commit_ts, _)| *commit_ts);
        newest.map_or_else(String::new, |(_, _, start_ts)| start_ts.to_string())
    }

    fn check(&mut self) {
        for store in self.stores.clone() {
            let mut known: Vec<Region> = self.known(store).collect();
            known.sort_by(|a, b| a.meta.start_key.cmp(&b.meta.start_key));
            for pair in known.windows(2) {
                let end = &pair[0].meta.end_key;
                assert!(
                    !end.is_empty() && *end <= pair[1].meta.start_key,
                    "{known:#?}"
                );
            }
            for region in known {
                self.check_stale_reads(store, &region);
            }
        }
    }

    /// Whatever a peer says it is ready for is complete, whenever it was.
    fn check_stale_reads(&mut self, store: StoreId, region: &Region) {
        let confirmed = region.confirmed_ts.get(&store).copied().unwrap_or_default();
        let version = region.safe_ts_on(store).max(confirmed);
        let leads = self
            .b
            .cluster
            .region(region.meta.id)
            .and_then(|it| it.leader)
            == Some(store);
        if version == 0 || leads {
            return;
        }
        let keys = (0..KEYS).filter(|key| region.contains(&key::encode(&name(*key))));
        for key in keys.collect::<Vec<_>>() {
            let context = Context {
                region_id: region.meta.id,
                region_epoch: region.meta.region_epoch,
                peer: region.peer_on(store).copied(),
                stale_read: true,
                ..Context::default()
            };
            let response = self.b.get_on(store, context, &name(key), version);
            assert_eq!(response.region_error, None);
            if let Some(locked) = response.error.and_then(|error| error.locked) {
                // What a leader has confirmed may be locked. What is complete is not, except at its
                // very end.
                let safe_ts = region.safe_ts_on(store);
                assert!(locked.lock_version >= safe_ts.min(version));
                continue;
            }
            assert_eq!(
                response.value,
                self.expected(key, version),
                "key {key} on {store}"
            );
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_to_a_region_its_peers_serve_no_more_than_they_know(
        events in vec(event(), 1..80),
    ) {
        let mut run = Run::new();
        for event in events {
            run.happen(event);
            run.check();
        }
        for store in run.stores.clone() {
            run.b.cluster.catch_up(store);
        }
        run.check();
        prop_assert_eq!(run.b.cluster.lagging().count(), 0);
        prop_assert!(!run.b.cluster.engine().stands_still_anywhere());
    }
}
