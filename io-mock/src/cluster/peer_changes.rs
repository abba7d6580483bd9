//! Several changes of a region's peers at once: entering the state between two configurations, and
//! leaving it. Between the two a majority of both must agree; here that shows in roles and epochs.

use tikv_proto::metapb::{Peer, PeerRole};

use super::Cluster;
use super::region::{Region, RegionId, StoreId};

/// One change of a region's peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// A new voter, or a learner that becomes one.
    AddVoter(StoreId),
    /// A new learner, or a voter that becomes one.
    AddLearner(StoreId),
    /// A learner goes. A voter has to become one first.
    RemoveLearner(StoreId),
}

impl PeerChange {
    fn store(self) -> StoreId {
        match self {
            PeerChange::AddVoter(store)
            | PeerChange::AddLearner(store)
            | PeerChange::RemoveLearner(store) => store,
        }
    }
}

impl Cluster {
    /// Has a region enter the state between its present peers and those after all changes. `false`,
    /// and nothing has changed, if it is in such a state, or if one of the changes can't be.
    pub fn enter_joint(&mut self, now_ms: u64, id: RegionId, changes: &[PeerChange]) -> bool {
        let Some(region) = self.regions.get(id) else {
            return false;
        };
        let fits = |change: &PeerChange| {
            let role = region.peer_on(change.store()).map(Peer::role);
            self.stores.contains_key(&change.store()) && can_change(role, *change)
        };
        let mut stores: Vec<StoreId> = changes.iter().map(|change| change.store()).collect();
        stores.sort_unstable();
        stores.dedup();
        let once_each = stores.len() == changes.len();
        if changes.is_empty() || is_joint(region) || !once_each || !changes.iter().all(fits) {
            return false;
        }
        let new: Vec<(StoreId, u64)> = stores
            .into_iter()
            .filter(|store| region.peer_on(*store).is_none())
            .map(|store| (store, self.pd.alloc_id()))
            .collect();
        let stores: Vec<StoreId> = new.iter().map(|(store, _)| *store).collect();
        let changed = self.change_epoch(now_ms, id, |region, epoch| {
            for (store_id, peer_id) in new {
                region.meta.peers.push(Peer {
                    id: peer_id,
                    store_id,
                    role: PeerRole::Learner.into(),
                    is_witness: false,
                });
            }
            for change in changes {
                apply(region, *change);
            }
            epoch.conf_ver += changes.len() as u64;
        });
        for store in stores {
            self.catch_up_around(id, store);
        }
        changed
    }

    /// Has a region leave the state between two configurations. `false` if it is in none, or if its
    /// leader would not be a voter any more: then it has to hand over first.
    pub fn leave_joint(&mut self, now_ms: u64, id: RegionId) -> bool {
        let Some(region) = self.regions.get(id) else {
            return false;
        };
        let leader = region.leader_peer().map(Peer::role);
        if !is_joint(region) || leader == Some(PeerRole::DemotingVoter) {
            return false;
        }
        self.change_epoch(now_ms, id, |region, epoch| {
            for peer in &mut region.meta.peers {
                let role = match peer.role() {
                    PeerRole::IncomingVoter => PeerRole::Voter,
                    PeerRole::DemotingVoter => PeerRole::Learner,
                    PeerRole::Voter | PeerRole::Learner => continue,
                };
                peer.set_role(role);
                epoch.conf_ver += 1;
            }
        })
    }
}

fn is_joint(region: &Region) -> bool {
    region.meta.peers.iter().any(|peer| {
        matches!(
            peer.role(),
            PeerRole::IncomingVoter | PeerRole::DemotingVoter
        )
    })
}

fn can_change(role: Option<PeerRole>, change: PeerChange) -> bool {
    match change {
        PeerChange::AddVoter(_) => matches!(role, None | Some(PeerRole::Learner)),
        PeerChange::AddLearner(_) => matches!(role, None | Some(PeerRole::Voter)),
        PeerChange::RemoveLearner(_) => role == Some(PeerRole::Learner),
    }
}

fn apply(region: &mut Region, change: PeerChange) {
    let store = change.store();
    if matches!(change, PeerChange::RemoveLearner(_)) {
        region.meta.peers.retain(|peer| peer.store_id != store);
        return;
    }
    let mut peers = region.meta.peers.iter_mut();
    let Some(peer) = peers.find(|peer| peer.store_id == store) else {
        return;
    };
    match (change, peer.role()) {
        (PeerChange::AddVoter(_), _) => peer.set_role(PeerRole::IncomingVoter),
        (PeerChange::AddLearner(_), PeerRole::Voter) => peer.set_role(PeerRole::DemotingVoter),
        // A new one is a learner already.
        (PeerChange::AddLearner(_) | PeerChange::RemoveLearner(_), _) => {}
    }
}

#[cfg(test)]
mod tests {
    use tikv_proto::metapb::PeerRole::{DemotingVoter, IncomingVoter, Learner, Voter};

    use super::PeerChange::{AddLearner, AddVoter, RemoveLearner};
    use super::*;
    use crate::cluster::tests::{Bench, NOW};

    fn peers(b: &Bench, id: RegionId) -> (Vec<(StoreId, PeerRole)>, u64) {
        let region = b.cluster.region(id).expect("a region");
        let peers = region.meta.peers.iter();
        let peers = peers.map(|peer| (peer.store_id, peer.role())).collect();
        (peers, region.epoch().conf_ver)
    }

    #[test]
    fn a_replacement_goes_through_the_state_between() {
        let mut b = Bench::new();
        let id = b.to(b"k").0.expect("a context").region_id;
        let new = b.cluster.add_store(NOW);
        let (before, conf_ver) = peers(&b, id);
        assert_eq!(before, [(1, Voter), (2, Voter), (3, Voter)]);

        assert!(
            b.cluster
                .enter_joint(NOW, id, &[AddVoter(new), AddLearner(3)])
        );
        let joint = [
            (1, Voter),
            (2, Voter),
            (3, DemotingVoter),
            (new, IncomingVoter),
        ];
        assert_eq!(peers(&b, id), (joint.to_vec(), conf_ver + 2));
        assert!(
            !b.cluster.enter_joint(NOW, id, &[AddLearner(2)]),
            "one at a time"
        );
        b.must_prewrite_put(b"k", b"v", b"k", 5);

        assert!(b.cluster.leave_joint(NOW, id));
        let after = [(1, Voter), (2, Voter), (3, Learner), (new, Voter)];
        assert_eq!(peers(&b, id), (after.to_vec(), conf_ver + 4));
        assert!(!b.cluster.leave_joint(NOW, id));
        assert!(b.cluster.enter_joint(NOW, id, &[RemoveLearner(3)]));
        assert_eq!(peers(&b, id).0.len(), 3);
        assert!(b.cluster.transfer_leader(NOW, id, new));
    }

    #[test]
    fn a_leader_on_its_way_down_hands_over_first() {
        let mut b = Bench::new();
        let id = b.to(b"k").0.expect("a context").region_id;
        assert!(b.cluster.enter_joint(NOW, id, &[AddLearner(1)]));
        assert!(!b.cluster.leave_joint(NOW, id));
        assert!(b.cluster.transfer_leader(NOW, id, 2));
        assert!(b.cluster.leave_joint(NOW, id));
        assert!(!b.cluster.transfer_leader(NOW, id, 1));
    }

    #[test]
    fn what_can_not_be_changes_nothing() {
        let mut b = Bench::new();
        let id = b.to(b"k").0.expect("a context").region_id;
        let before = peers(&b, id);
        for changes in [
            &[][..],
            &[AddVoter(2)],
            &[AddLearner(9)],
            &[RemoveLearner(2)],
            &[AddLearner(2), AddLearner(2)],
            &[AddLearner(2), AddVoter(3)],
        ] {
            assert!(!b.cluster.enter_joint(NOW, id, changes), "{changes:?}");
        }
        assert_eq!(peers(&b, id), before);
    }
}
