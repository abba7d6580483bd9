//! What PD believes of regions: the last word of their leaders, as far as it has heard it.
//!
//! Heartbeats come late and in any order, so an older one must change nothing. Until all have come,
//! a key may have no region; never two.
//!
//! Buckets are reported beside the heartbeats, and outlive them: until the leader of a region that has
//! been split reports new ones, PD tells the old.

use tikv_proto::metapb;

use super::Pd;
use super::known_regions::KnownRegion;
use crate::cluster::region::{Buckets, PeerState, Region, RegionId};

/// How often a leader reports buckets.
const REPORT_MS: u64 = 10_000;

impl Pd {
    /// Takes a heartbeat of a region's leader. `false` if PD knows something newer.
    pub(in crate::cluster) fn heartbeat(&mut self, region: &Region) -> bool {
        let meta = &region.meta;
        let epoch = region.epoch();
        if let Some(known) = self.regions.get(meta.id) {
            let old = known.meta.region_epoch.unwrap_or_default();
            if epoch.version < old.version
                || epoch.conf_ver < old.conf_ver
                || region.term < known.term
            {
                return false;
            }
        }
        let overlapped = self.regions.overlapping(&meta.start_key, &meta.end_key);
        let newer = overlapped.iter().filter(|id| **id != meta.id).any(|id| {
            self.regions.get(*id).is_some_and(|other| {
                other.meta.region_epoch.unwrap_or_default().version > epoch.version
            })
        });
        if newer {
            return false;
        }
        for id in overlapped.into_iter().filter(|id| *id != meta.id) {
            self.regions.remove(id);
        }
        let before = self.regions.remove(meta.id);
        let known = KnownRegion {
            meta: meta.clone(),
            leader: region.leader_peer().cloned(),
            term: region.term,
            down: peers(region, |state| state.down),
            pending: peers(region, PeerState::is_pending),
            buckets: before.and_then(|before| before.buckets),
        };
        self.regions.insert(known);
        self.note_buckets(region);
        true
    }

    /// Takes a leader's report of a region's buckets, unless there is none or PD knows newer ones.
    fn note_buckets(&mut self, region: &Region) {
        let Some(buckets) = &region.buckets else {
            return;
        };
        if let Some(known) = self.regions.get_mut(region.meta.id)
            && known.buckets.as_ref().map_or(0, |known| known.version) < buckets.version
        {
            known.buckets = Some(Box::new(reported(region.meta.id, buckets)));
        }
    }
}

/// The peers of a region about which something is out of the ordinary.
fn peers(region: &Region, is_so: impl Fn(&PeerState) -> bool) -> Vec<metapb::Peer> {
    let peers = region.meta.peers.iter();
    let found = peers.filter(|peer| region.peer_states.get(&peer.store_id).is_some_and(&is_so));
    found.copied().collect()
}

/// Buckets as a leader reports them. Nothing is counted here.
fn reported(region_id: RegionId, buckets: &Buckets) -> metapb::Buckets {
    let none = || vec![0; buckets.keys.len().saturating_sub(1)];
    metapb::Buckets {
        region_id,
        version: buckets.version,
        keys: buckets.keys.clone(),
        stats: Some(metapb::BucketStats {
            read_bytes: none(),
            write_bytes: none(),
            read_qps: none(),
            write_qps: none(),
            read_keys: none(),
            write_keys: none(),
        }),
        period_in_ms: REPORT_MS,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::{Cluster, Config, key};

    /// What a region goes through.
    #[derive(Clone, Debug)]
    enum Change {
        Split(u8),
        /// Merges the region of a key into its neighbour.
        Merge(u8, bool),
        Transfer(u8, u64),
        /// One of the heartbeats that are on their way arrives.
        Arrive(prop::sample::Index),
        /// One of them is lost.
        Lose(prop::sample::Index),
    }

    fn change() -> impl Strategy<Value = Change> {
        let k = b'a'..=b'z';
        prop_oneof![
            3 => k.clone().prop_map(Change::Split),
            2 => (k.clone(), any::<bool>()).prop_map(|(k, left)| Change::Merge(k, left)),
            2 => (k, 1..4u64).prop_map(|(k, store)| Change::Transfer(k, store)),
            6 => any::<prop::sample::Index>().prop_map(Change::Arrive),
            1 => any::<prop::sample::Index>().prop_map(Change::Lose),
        ]
    }

    fn no_key_has_two_regions(pd: &Pd) {
        let mut known: Vec<_> = pd.regions.iter().map(|known| &known.meta).collect();
        known.sort_by(|a, b| a.start_key.cmp(&b.start_key));
        for pair in known.windows(2) {
            let end = &pair[0].end_key;
            assert!(!end.is_empty() && *end <= pair[1].start_key, "{pair:?}");
        }
    }

    proptest! {
        #[test]
        fn heartbeats_in_any_order_lead_to_the_truth(changes in vec(change(), 1..80)) {
            let config = Config { heartbeat_at_once: false, ..Config::default() };
            let mut cluster = Cluster::new(config, 1);
            let mut on_their_way: Vec<Region> = Vec::new();
            for change in changes {
                let before = cluster.regions.clone();
                let at = |k: u8| before.find(&key::encode(&[k])).unwrap();
                match change {
                    Change::Split(k) => {
                        let id = at(k).meta.id;
                        cluster.split(1, id, &[key::encode(&[k])]);
                    }
                    Change::Merge(k, left) => {
                        let source = at(k);
                        let target = match left {
                            true => before.before(&source.meta.start_key).next(),
                            false => before.starting_at(&source.meta.end_key).next(),
                        };
                        if let Some(target) = target {
                            cluster.merge(1, source.meta.id, target.meta.id);
                        }
                    }
                    Change::Transfer(k, store) => {
                        let id = at(k).meta.id;
                        cluster.transfer_leader(1, id, store);
                    }
                    Change::Arrive(index) if !on_their_way.is_empty() => {
                        let region = on_their_way.swap_remove(index.index(on_their_way.len()));
                        cluster.pd.heartbeat(&region);
                    }
                    Change::Lose(index) if !on_their_way.is_empty() => {
                        on_their_way.swap_remove(index.index(on_their_way.len()));
                    }
                    Change::Arrive(_) | Change::Lose(_) => {}
                }
                no_key_has_two_regions(&cluster.pd);
                // Every leader tells of what has changed.
                let changed = cluster.regions.iter().filter(|region| {
                    before.get(region.meta.id).is_none_or(|old| {
                        old.meta != region.meta || old.term != region.term
                    })
                });
                on_their_way.extend(changed.cloned());
            }
            // The regular heartbeats come in the end, and old ones after them.
            let truth: Vec<Region> = cluster.regions.iter().cloned().collect();
            for region in truth.iter().chain(&on_their_way) {
                cluster.pd.heartbeat(region);
                no_key_has_two_regions(&cluster.pd);
            }
            for region in &truth {
                let known = cluster.pd.regions.containing(&region.meta.start_key).unwrap();
                prop_assert_eq!(&known.meta, &region.meta);
                prop_assert_eq!(known.leader.as_ref(), region.leader_peer());
            }
            prop_assert_eq!(cluster.pd.regions.iter().count(), truth.len());
        }
    }
}
