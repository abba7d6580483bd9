//! Which stores there are, where they listen, and what stands on them: regions that move, stores
//! that come back at other addresses, join, leave for good, or end in order.
//!
//! An address that one store has given up may become another's, so a client that has not heard of
//! the change asks the wrong store, which says so.

use std::ops::RangeInclusive;
use std::time::Duration;

use tikv_proto::metapb::{PeerRole, StoreState};

use super::chance::Chance;
use super::chaos::Change;
use super::faults::Fault;
use super::further::Later;
use super::marks::Mark;
use super::network::Down;
use super::plan::Plan;
use super::world::{Event, World};
use crate::cluster::region::{RegionId, StoreId};
use crate::node::{Node, Nodes};

/// What a seed drew of this.
pub(super) struct Placement {
    chance: Chance,
    /// Numbers for addresses that nobody had before.
    addresses: u64,
    /// Addresses that stores have given up.
    given_up: Vec<String>,
}

const LEAVING: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(2);
const CLOSING: RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(1);
/// There are never more stores than this.
const STORES_MAX: usize = 7;

impl Placement {
    pub(super) fn new(plan: &Plan) -> Self {
        Placement {
            chance: Chance::stream(plan.seed, "placement"),
            addresses: 0,
            given_up: Vec::new(),
        }
    }

    fn new_address(&mut self) -> String {
        self.addresses += 1;
        format!("127.0.0.2:{}", 20_160 + self.addresses)
    }

    /// An address that was another store's, or one that nobody had.
    fn some_address(&mut self) -> String {
        match self.chance.coin() && !self.given_up.is_empty() {
            true => {
                let place = self.chance.index(self.given_up.len());
                self.given_up.swap_remove(place)
            }
            false => self.new_address(),
        }
    }
}

impl World {
    pub(super) fn trouble_stores(&mut self, fault: Fault) {
        match fault {
            Fault::MoveRegion => self.move_some_region(),
            Fault::NewAddress => self.move_some_store(),
            Fault::ComeAndGo => match self.further.placement.chance.coin() {
                true => self.join_store(),
                false => self.retire_some_store(),
            },
            Fault::CloseStore => self.begin_closing(),
            _ => {}
        }
    }

    /// Stores that have not left for good.
    pub(super) fn alive(&self) -> Vec<StoreId> {
        let lives = |store: &StoreId| {
            let store = self.cluster.store(*store);
            store.is_some_and(|store| store.meta.state() != StoreState::Tombstone)
        };
        self.cluster.store_ids().filter(lives).collect()
    }

    fn some_store_up(&mut self) -> Option<StoreId> {
        let mut up = self.alive();
        up.retain(|&store| self.cluster.is_up(store));
        self.further.placement.chance.pick(&up).copied()
    }

    /// Clients find nodes where they listen now.
    pub(super) fn know_addresses(&mut self) {
        self.nodes = Nodes::of(&self.cluster);
    }

    /// All peers of a region move to some of the stores.
    fn move_some_region(&mut self) {
        let regions: Vec<RegionId> = self.cluster.regions().ids().collect();
        let Some(&id) = self.further.placement.chance.pick(&regions) else {
            return;
        };
        let mut stores = self.alive();
        stores.retain(|&store| self.cluster.is_up(store) && !self.is_isolated(store));
        let Some(region) = self.cluster.region(id) else {
            return;
        };
        // As many as it has, if there are so many others.
        let (mut to, mut back): (Vec<StoreId>, Vec<StoreId>) = stores
            .into_iter()
            .partition(|&store| region.peer_on(store).is_none());
        back.retain(|&store| region.leader != Some(store));
        let (count, leads) = (region.meta.peers.len().min(3), region.leader.is_some());
        while to.len() < count && !back.is_empty() {
            let place = self.further.placement.chance.index(back.len());
            to.push(back.swap_remove(place));
        }
        if leads {
            self.move_region(id, &to);
        }
    }

    fn move_region(&mut self, id: RegionId, to: &[StoreId]) {
        let now_ms = self.now_ms();
        for &store in to {
            self.cluster.add_peer(now_ms, id, store, PeerRole::Voter);
        }
        let can_lead = |store: &&StoreId| {
            let region = self.cluster.region(id);
            region.is_some_and(|region| self.could_lead(region, **store))
        };
        let Some(&heir) = to.iter().find(can_lead) else {
            self.changed(&[id]);
            return;
        };
        self.cluster.transfer_leader(now_ms, id, heir);
        let region = self.cluster.region(id);
        let peers = region.map(|region| region.meta.peers.clone());
        for peer in peers.unwrap_or_default() {
            if !to.contains(&peer.store_id) {
                self.cluster.remove_peer(now_ms, id, peer.store_id);
            }
        }
        self.audit
            .note(self.now, || format!("r{id} moves to stores {to:?}"));
        self.audit.mark(Mark::RegionMoved);
        self.changed(&[id]);
    }

    /// A store stops and will listen elsewhere; perhaps another one where it listened.
    fn move_some_store(&mut self) {
        let Some(store) = self.some_store_up().filter(|&store| self.may_stop(store)) else {
            return;
        };
        let address = self.further.placement.some_address();
        self.relocate(store, address);
        let heir = self.some_store_up().filter(|&heir| self.may_stop(heir));
        if let Some(heir) = heir
            && self.further.placement.chance.coin()
            && let Some(address) = self.further.placement.given_up.pop()
        {
            self.relocate(heir, address);
            self.audit.mark(Mark::AddressReused);
        }
    }

    fn relocate(&mut self, store: StoreId, address: String) {
        self.stop_store(store);
        self.audit
            .note(self.now, || format!("s{store} will listen at {address}"));
        self.audit.mark(Mark::AddressChanged);
        if let Some(moved) = self.cluster.store_mut(store) {
            let old = std::mem::replace(&mut moved.meta.address, address);
            moved.meta.peer_address.clone_from(&moved.meta.address);
            self.further.placement.given_up.push(old);
        }
        self.know_addresses();
    }

    fn join_store(&mut self) {
        let now_ms = self.now_ms();
        if self.alive().len() >= STORES_MAX {
            return;
        }
        let store = self.cluster.add_store(now_ms);
        let address = self.further.placement.some_address();
        if let Some(new) = self.cluster.store_mut(store) {
            new.meta.address.clone_from(&address);
            new.meta.peer_address = address;
        }
        self.know_addresses();
        self.audit.note(self.now, || format!("s{store} joins"));
        self.audit.mark(Mark::StoreJoined);
        let regions: Vec<RegionId> = self.cluster.regions().ids().collect();
        for id in regions {
            if self.further.placement.chance.coin()
                && self.cluster.add_peer(now_ms, id, store, PeerRole::Voter) != 0
            {
                self.changed(&[id]);
            }
        }
    }

    fn retire_some_store(&mut self) {
        let store = self.some_store_up();
        // Whoever is left must still be able to lose one.
        let Some(store) = store.filter(|_| self.alive().len() > 2) else {
            return;
        };
        if self.cluster.take_offline(store) {
            self.audit.note(self.now, || format!("s{store} is leaving"));
            let after = self.further.placement.chance.time(LEAVING);
            let end = Later::Bury(store);
            self.schedule(after, Event::Change(Change::Later(end)));
        }
    }

    /// A store that is leaving goes for good, once nothing stands on it any more.
    pub(super) fn bury(&mut self, store: StoreId) {
        let now_ms = self.now_ms();
        let regions = self.cluster.regions().iter();
        let on_it = regions.filter(|region| region.peer_on(store).is_some());
        let on_it: Vec<RegionId> = on_it.map(|region| region.meta.id).collect();
        let mut others = self.alive();
        others.retain(|&other| {
            other != store && self.cluster.is_up(other) && !self.is_isolated(other)
        });
        for &id in &on_it {
            for &other in &others {
                self.cluster.add_peer(now_ms, id, other, PeerRole::Voter);
            }
        }
        let address = self.cluster.store(store).map(|it| it.meta.address.clone());
        if self.cluster.is_up(store) && others.len() > 1 && self.cluster.bury_store(now_ms, store) {
            self.audit.note(self.now, || format!("s{store} is gone"));
            self.audit.mark(Mark::StoreBuried);
            self.further.placement.given_up.extend(address);
            self.take_down(Node::Store(store), Down::Refusing);
            self.know_addresses();
            if self.further.placement.chance.coin() {
                let after = self.further.placement.chance.time(LEAVING);
                let end = Later::ForgetBuried;
                self.schedule(after, Event::Change(Change::Later(end)));
            }
        } else {
            self.cluster.take_online(store);
        }
        self.changed(&on_it);
    }

    fn begin_closing(&mut self) {
        let Some(store) = self.some_store_up().filter(|&store| self.may_stop(store)) else {
            return;
        };
        let after = self.further.placement.chance.time(CLOSING);
        if let Some(closing) = self.cluster.store_mut(store) {
            closing.load.closing = true;
        }
        self.audit.note(self.now, || format!("s{store} is closing"));
        self.audit.mark(Mark::StoreClosing);
        let end = Later::Close(store);
        self.schedule(after, Event::Change(Change::Later(end)));
    }

    pub(super) fn close_store(&mut self, store: StoreId) {
        let closes = self
            .cluster
            .store(store)
            .is_some_and(|store| store.load.closing);
        if closes && self.may_stop(store) {
            self.stop_store(store);
        } else if let Some(closing) = self.cluster.store_mut(store) {
            closing.load.closing = false;
        }
    }

    pub(super) fn forget_buried(&mut self) {
        self.cluster.forget_tombstones();
        self.know_addresses();
    }

    /// Nobody listens where a store was that is gone for good.
    pub(super) fn keep_buried_down(&mut self) {
        let alive = self.alive();
        let stores: Vec<StoreId> = self.cluster.store_ids().collect();
        for store in stores {
            if !alive.contains(&store) {
                self.take_down(Node::Store(store), Down::Refusing);
            }
        }
    }

    pub(super) fn mend_stores(&mut self) {
        for store in self.alive() {
            self.cluster.take_online(store);
            if let Some(closing) = self.cluster.store_mut(store) {
                closing.load.closing = false;
            }
        }
    }
}
