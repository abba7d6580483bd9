//! Whether a request has reached a region that may serve it, checked in the server's order.
//!
//! The order is that of the server's local reader followed by its propose path: who is asked, then
//! whether it leads, then whether the client knows the region's present shape.

use tikv_proto::kvrpcpb::Context;
use tikv_proto::{errorpb, metapb};

use super::Cluster;
use super::mvcc::reader::hex;
use super::region::{Region, StoreId};

/// A region error on its way to a reply.
pub type RegionError = Box<errorpb::Error>;

/// What a request wants of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read at a version; `None` reads no version.
    Read(Option<u64>),
    /// Read, but only at the leader whatever the context says.
    ReadLeader,
    /// Write.
    Write,
    /// Change the region; its peers must be known too.
    Admin,
}

/// The most regions that an error about a stale epoch brings beside the region itself.
const SIBLINGS_MAX: usize = 10;

impl Cluster {
    /// Checks a request against the region it names and returns the region.
    pub(super) fn check_region(
        &self,
        store: StoreId,
        context: &Context,
        access: Access,
    ) -> Result<&Region, RegionError> {
        let asked = context.peer.unwrap_or_default();
        if asked.store_id != store {
            return Err(errorpb::Error {
                message: format!("to store id {}, mine {store}", asked.store_id),
                store_not_match: Some(errorpb::StoreNotMatch {
                    request_store_id: asked.store_id,
                    actual_store_id: store,
                }),
                ..errorpb::Error::default()
            }
            .into());
        }
        let found = self.regions.get(context.region_id);
        let Some((region, peer)) = found.and_then(|r| r.peer_on(store).map(|peer| (r, peer)))
        else {
            return Err(region_not_found(context.region_id).into());
        };
        if asked.id != peer.id {
            return Err(errorpb::Error {
                message: format!("mismatch peer id {} != {}", asked.id, peer.id),
                mismatch_peer_id: Some(errorpb::MismatchPeerId {
                    request_peer_id: asked.id,
                    store_peer_id: peer.id,
                }),
                ..errorpb::Error::default()
            }
            .into());
        }
        if context.term != 0 && region.term > context.term.saturating_add(1) {
            return Err(stale_command().into());
        }
        let epoch_matches = epoch_matches(region, context, access);
        if epoch_matches {
            if peer.is_witness {
                return Err(is_witness(region.meta.id).into());
            }
            check_flashback(region, access)?;
        }
        if region.leader != Some(store) {
            self.check_replica(region, peer, context, access)?;
        }
        if !epoch_matches {
            return Err(self.epoch_not_match(store, region, context).into());
        }
        if region.merging && matches!(access, Access::Write | Access::Admin) {
            return Err(errorpb::Error {
                message: format!(
                    "[region {}] {} peer in merging mode, can't do proposal",
                    region.meta.id, peer.id
                ),
                proposal_in_merging_mode: Some(errorpb::ProposalInMergingMode {
                    region_id: region.meta.id,
                }),
                ..errorpb::Error::default()
            }
            .into());
        }
        Ok(region)
    }

    /// A peer that does not lead serves stale reads it is ready for, and replica reads if there is
    /// a leader to ask.
    fn check_replica(
        &self,
        region: &Region,
        peer: &metapb::Peer,
        context: &Context,
        access: Access,
    ) -> Result<(), RegionError> {
        let Access::Read(ts) = access else {
            return Err(not_leader(region).into());
        };
        if context.stale_read {
            if ts.is_some_and(|ts| ts <= region.safe_ts) {
                return Ok(());
            }
            return Err(errorpb::Error {
                message: format!(
                    "peer {} is not ready, safe_ts {}, region {}",
                    peer.id, region.safe_ts, region.meta.id
                ),
                data_is_not_ready: Some(errorpb::DataIsNotReady {
                    region_id: region.meta.id,
                    peer_id: peer.id,
                    safe_ts: region.safe_ts,
                }),
                ..errorpb::Error::default()
            }
            .into());
        }
        if !context.replica_read || region.leader.is_none() {
            return Err(not_leader(region).into());
        }
        if region.merging {
            return Err(errorpb::Error {
                message: format!(
                    "read index not ready, reason can not read index due to merge, region {}",
                    region.meta.id
                ),
                read_index_not_ready: Some(errorpb::ReadIndexNotReady {
                    reason: "can not read index due to merge".to_owned(),
                    region_id: region.meta.id,
                }),
                ..errorpb::Error::default()
            }
            .into());
        }
        Ok(())
    }

    fn epoch_not_match(
        &self,
        store: StoreId,
        region: &Region,
        context: &Context,
    ) -> errorpb::Error {
        let sent = context.region_epoch.unwrap_or_default();
        let mut current_regions = vec![region.meta.clone()];
        let mut newest = region.epoch().version;
        if sent.version < newest {
            // The region itself counts, so a split in two brings one region more.
            let mut wanted = newest - sent.version;
            let siblings = self.regions.before(&region.meta.start_key);
            let known = siblings.filter(|sibling| sibling.peer_on(store).is_some());
            for sibling in known.take(SIBLINGS_MAX) {
                wanted -= 1;
                let version = sibling.epoch().version;
                if version >= newest {
                    wanted += version - newest;
                    newest = version;
                }
                current_regions.push(sibling.meta.clone());
                if wanted == 0 {
                    break;
                }
            }
        }
        errorpb::Error {
            message: format!(
                "EpochNotMatch current epoch of region {} is {}, but you sent {}",
                region.meta.id,
                show_epoch(&region.epoch()),
                show_epoch(&sent)
            ),
            epoch_not_match: Some(errorpb::EpochNotMatch { current_regions }),
            ..errorpb::Error::default()
        }
    }
}

fn epoch_matches(region: &Region, context: &Context, access: Access) -> bool {
    let sent = context.region_epoch.unwrap_or_default();
    let current = region.epoch();
    let peers_matter = access == Access::Admin;
    sent.version == current.version && (!peers_matter || sent.conf_ver == current.conf_ver)
}

fn check_flashback(region: &Region, access: Access) -> Result<(), RegionError> {
    let start_ts = region.meta.flashback_start_ts;
    let older_read = matches!(access, Access::Read(Some(ts)) if ts != 0 && ts < start_ts);
    if !region.meta.is_in_flashback || older_read {
        return Ok(());
    }
    Err(errorpb::Error {
        message: format!(
            "region {} is in the flashback progress with start_ts {start_ts}",
            region.meta.id
        ),
        flashback_in_progress: Some(errorpb::FlashbackInProgress {
            region_id: region.meta.id,
            flashback_start_ts: start_ts,
        }),
        ..errorpb::Error::default()
    }
    .into())
}

/// The region is not on the store that was asked.
pub fn region_not_found(region_id: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!("region {region_id} is missing"),
        region_not_found: Some(errorpb::RegionNotFound { region_id }),
        ..errorpb::Error::default()
    }
}

/// The peer asked does not lead; the hint is the present leader.
pub fn not_leader(region: &Region) -> errorpb::Error {
    let leader = region.leader_peer().cloned();
    let hint = match &leader {
        Some(peer) => format!("Some(id: {} store_id: {})", peer.id, peer.store_id),
        None => "None".to_owned(),
    };
    errorpb::Error {
        message: format!(
            "peer is not leader for region {}, leader may {hint}",
            region.meta.id
        ),
        not_leader: Some(errorpb::NotLeader {
            region_id: region.meta.id,
            leader,
        }),
        ..errorpb::Error::default()
    }
}

/// A key outside the region, met where the request's keys are checked one by one.
pub fn key_not_in_region(region: &metapb::Region, key: &bytes::Bytes) -> errorpb::Error {
    errorpb::Error {
        message: format!(
            "key {} is not in region key range [{}, {}) for region {}",
            hex(key),
            hex(&region.start_key),
            hex(&region.end_key),
            region.id
        ),
        key_not_in_region: Some(errorpb::KeyNotInRegion {
            key: key.clone(),
            region_id: region.id,
            start_key: region.start_key.clone(),
            end_key: region.end_key.clone(),
        }),
        ..errorpb::Error::default()
    }
}

/// A write larger than a raft entry may be.
pub fn entry_too_large(region_id: u64, entry_size: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!("raft entry is too large, region {region_id}, entry size {entry_size}"),
        raft_entry_too_large: Some(errorpb::RaftEntryTooLarge {
            region_id,
            entry_size,
        }),
        ..errorpb::Error::default()
    }
}

/// The leader has not caught up with PD's timestamps.
pub fn max_ts_not_synced() -> errorpb::Error {
    errorpb::Error {
        max_timestamp_not_synced: Some(errorpb::MaxTimestampNotSynced {}),
        ..errorpb::Error::default()
    }
}

fn stale_command() -> errorpb::Error {
    errorpb::Error {
        message: "stale command".to_owned(),
        stale_command: Some(errorpb::StaleCommand {}),
        ..errorpb::Error::default()
    }
}

fn is_witness(region_id: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!("peer is a witness of region {region_id}"),
        is_witness: Some(errorpb::IsWitness { region_id }),
        ..errorpb::Error::default()
    }
}

/// An epoch as the server prints it: zero fields are left out.
fn show_epoch(epoch: &metapb::RegionEpoch) -> String {
    let mut fields = Vec::new();
    if epoch.conf_ver != 0 {
        fields.push(format!("conf_ver: {}", epoch.conf_ver));
    }
    if epoch.version != 0 {
        fields.push(format!("version: {}", epoch.version));
    }
    fields.join(" ")
}
