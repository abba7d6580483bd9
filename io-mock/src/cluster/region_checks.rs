//! Whether a request has reached a region that may serve it, checked in the server's order.
//!
//! The order is that of the server's local reader followed by its propose path: who is asked, then
//! whether it leads, then whether the client knows the region's present shape. What a replica may
//! serve is decided in [`replica`](super::replica), what may be proposed in `proposal`.

use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::Context;

use super::Cluster;
use super::region::{Region, StoreId};
use super::region_errors::{
    flashback_in_progress, mismatch_peer_id, recovery_in_progress, region_not_found, show_epoch,
    stale_command, store_not_match,
};
use super::replica::{check_has_data, check_replica, serves_alone};

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
    /// Set back to an older version, which begins and ends with changes of the region itself.
    Flashback,
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
            return Err(store_not_match(asked.store_id, store).into());
        }
        let found = self.region_on(store, context.region_id);
        let Some((region, peer)) = found.and_then(|r| r.peer_on(store).map(|peer| (r, peer)))
        else {
            return Err(region_not_found(context.region_id).into());
        };
        if asked.id != peer.id {
            return Err(mismatch_peer_id(asked.id, peer.id).into());
        }
        if context.term != 0 && region.term > context.term.saturating_add(1) {
            return Err(stale_command().into());
        }
        let leads = region.leader == Some(store);
        let epoch_matches = epoch_matches(region, context, access);
        if epoch_matches {
            check_has_data(store, region, peer)?;
            check_flashback(region, access)?;
            if !leads && serves_alone(store, region, peer, context, access)? {
                return Ok(region);
            }
        }
        if region.recovering {
            return Err(recovery_in_progress(region.meta.id).into());
        }
        if !leads {
            check_replica(store, region, peer, context, access)?;
        }
        if !epoch_matches {
            return Err(self.epoch_not_match(store, region, context).into());
        }
        if !leads {
            self.check_read_index(store, region)?;
        }
        Ok(region)
    }

    pub(super) fn epoch_not_match(
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
            let known = siblings
                .filter_map(|sibling| self.region_on(store, sibling.meta.id))
                .filter(|sibling| sibling.peer_on(store).is_some());
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
    let peers_matter = matches!(access, Access::Admin | Access::Flashback);
    sent.version == current.version && (!peers_matter || sent.conf_ver == current.conf_ver)
}

fn check_flashback(region: &Region, access: Access) -> Result<(), RegionError> {
    let start_ts = region.meta.flashback_start_ts;
    let passes = match access {
        Access::Flashback => true,
        // What is older does not change.
        Access::Read(Some(ts)) => ts != 0 && ts < start_ts,
        Access::Read(None) | Access::ReadLeader | Access::Write | Access::Admin => false,
    };
    if region.meta.is_in_flashback && !passes {
        return Err(flashback_in_progress(region.meta.id, start_ts).into());
    }
    Ok(())
}
