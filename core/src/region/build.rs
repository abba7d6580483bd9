//! A region from what PD, or a store, says of it: which peers requests can go to, who leads.
//!
//! The message stays as it was; what is not usable is left out of the copy. A store that PD has
//! not described yet is left out too as long as another one is usable, so that no request waits
//! for all of them. (client-go: `newRegion`)

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, BytesMut};
use tikv_proto::metapb;

use crate::key::{Key, KeyRange};
use crate::region::{
    Buckets, Flag, OtherPeer, REASON_NONE, Region, RegionPeer, RegionVerId, ShortKey, Ttl,
};
use crate::store::{ResolveState, StoreKind, StoreTable};
use crate::time::Instant;

/// A region as PD described it, with its bounds already decoded to the caller's keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RegionData {
    /// Id, epoch and peers. The bounds in it are not read.
    pub(crate) meta: metapb::Region,
    /// The bounds.
    pub(crate) range: KeyRange,
    /// Who leads, if PD knows. A peer without an id is none.
    pub(crate) leader: Option<metapb::Peer>,
    /// Peers whose stores PD has not heard of for a while.
    pub(crate) down: Vec<metapb::Peer>,
    /// Peers that are behind.
    pub(crate) pending: Vec<metapb::Peer>,
    /// Finer cuts.
    pub(crate) buckets: Option<Buckets>,
}

/// Why no region can be made of what PD said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BuildError {
    /// PD named no peer at all.
    #[error("region {0} has no peers")]
    NoPeers(u64),
    /// Every peer is down, removed, or no replica of keys.
    #[error("region {0} has no available peers")]
    NoAvailablePeers(u64),
    /// None of the usable peers' stores is known: ask PD about these, then build again.
    #[error("region {region} has only peers on unknown stores {stores:?}")]
    Unresolved {
        /// The region.
        region: u64,
        /// The stores.
        stores: Vec<u64>,
    },
}

impl RegionData {
    /// The stores of this region about which PD was never asked. Best asked before
    /// [`Region::build`], which does without their peers.
    pub(crate) fn unresolved_stores(&self, stores: &StoreTable) -> Vec<u64> {
        self.meta
            .peers
            .iter()
            .map(|peer| peer.store_id)
            .filter(|id| stores.get_or_add(*id).resolve_state() == ResolveState::Unresolved)
            .collect()
    }

    /// The leader, unless PD said none.
    pub(crate) fn known_leader(&self) -> Option<&metapb::Peer> {
        self.leader.as_ref().filter(|leader| leader.id != 0)
    }
}

impl Region {
    /// Makes a region of PD's word.
    ///
    /// # Errors
    ///
    /// No peer is usable, or none is known well enough to tell.
    pub(crate) fn build(
        data: RegionData,
        stores: &StoreTable,
        ttl: Ttl,
        now: Instant,
    ) -> Result<Arc<Region>, BuildError> {
        let ver_id = RegionVerId::of(&data.meta);
        if data.meta.peers.is_empty() {
            return Err(BuildError::NoPeers(ver_id.id));
        }
        let usable = Usable::among(&data, stores);
        if usable.tikv.is_empty() {
            return Err(match usable.unresolved.is_empty() {
                true => BuildError::NoAvailablePeers(ver_id.id),
                false => BuildError::Unresolved {
                    region: ver_id.id,
                    stores: usable.unresolved,
                },
            });
        }
        let leader = data
            .known_leader()
            .and_then(|leader| usable.tikv.iter().position(|own| same(&own.peer, leader)));
        let mut flags = 0;
        if !data.down.is_empty() || !usable.unresolved.is_empty() {
            flags |= Flag::ExpireAfterTtl as u8;
        }
        if data.known_leader().is_none() {
            flags |= Flag::Leaderless as u8;
        }
        let range = in_one_buffer(&data.range);
        Ok(Arc::new(Region {
            expires: AtomicU64::new(ttl.fresh(ver_id.id, now).as_nanos()),
            leader: AtomicU32::new(leader.unwrap_or(0) as u32),
            flags: AtomicU8::new(flags),
            reason: AtomicU8::new(REASON_NONE),
            ttl,
            end: ShortKey::new(range.end()),
            ver_id,
            range,
            peers: usable.tikv.into(),
            other_peers: usable.others.into(),
            pending: data.pending.iter().map(|peer| peer.id).collect(),
            replica_number: replica_number(&data.meta),
            invalidated_at: AtomicU64::new(0),
            buckets: Mutex::new(data.buckets.map(Arc::new)),
        }))
    }
}

/// The peers requests can go to, by kind of store.
#[derive(Default)]
struct Usable {
    tikv: Vec<RegionPeer>,
    others: Vec<OtherPeer>,
    unresolved: Vec<u64>,
}

impl Usable {
    fn among(data: &RegionData, stores: &StoreTable) -> Self {
        let mut usable = Usable::default();
        for peer in &data.meta.peers {
            let is_down = data.down.iter().any(|down| same(down, peer));
            let leads = data.known_leader().is_some_and(|leader| same(leader, peer));
            if is_down || peer.is_witness && !leads {
                continue;
            }
            let store = stores.get_or_add(peer.store_id);
            match store.resolve_state() {
                ResolveState::Tombstone => {}
                ResolveState::Unresolved => usable.unresolved.push(peer.store_id),
                ResolveState::Resolved | ResolveState::NeedCheck => match store.kind() {
                    StoreKind::Tikv => usable.tikv.push(RegionPeer::new(*peer, store)),
                    StoreKind::Tiflash | StoreKind::TiflashCompute => {
                        usable.others.push(OtherPeer { peer: *peer, store });
                    }
                },
            }
        }
        usable
    }
}

/// A peer is the same only on the same store.
fn same(a: &metapb::Peer, b: &metapb::Peer) -> bool {
    a.id == b.id && a.store_id == b.store_id
}

/// Peers amid a change of membership do not count, as in client-go.
fn replica_number(meta: &metapb::Region) -> u8 {
    let counted = meta.peers.iter().filter(|peer| {
        matches!(
            peer.role(),
            metapb::PeerRole::Voter | metapb::PeerRole::Learner
        )
    });
    u8::try_from(counted.count()).unwrap_or(u8::MAX).max(1)
}

/// Keeps the bounds alone alive, not the message they came in, and side by side.
fn in_one_buffer(range: &KeyRange) -> KeyRange {
    let end_len = range.end().map_or(0, |end| end.len());
    let mut buf = BytesMut::with_capacity(range.start().len() + end_len);
    buf.put_slice(range.start());
    if let Some(end) = range.end() {
        buf.put_slice(end);
    }
    let mut start = buf.freeze();
    let end = start.split_off(range.start().len());
    KeyRange::new(start, range.end().map(|_| Key::from(end)))
}
