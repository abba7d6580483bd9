//! What stands between a command that has decided what to write and its entry in the log.

use tikv_proto::kvrpcpb::{CommandPri, Context, DiskFullOpt};
use tikv_proto::metapb::PeerRole;

use super::Cluster;
use super::region::{Region, StoreId};
use super::region_checks::RegionError;
use super::region_errors::{disk_full, entry_too_large, proposal_in_merging_mode, unknown_leader};
use super::store::Disk;

/// The largest raft entry.
const ENTRY_SIZE_MAX: usize = 8 * 1024 * 1024;
/// What an entry costs beside its changes.
const ENTRY_OVERHEAD: usize = 22;
/// What a change costs beside its key and value.
const CHANGE_OVERHEAD: usize = 16;

/// What one key and its value take in an entry.
pub(super) fn pair_size(key: usize, value: usize) -> usize {
    key + value + CHANGE_OVERHEAD
}

/// The context of a command that takes room like a prewrite, and may not take the last as one may.
pub(super) fn taking_room(context: Option<Box<Context>>) -> Context {
    let mut context = *context.unwrap_or_default();
    if context.disk_full_opt() == DiskFullOpt::AllowedOnAlreadyFull {
        context.set_disk_full_opt(DiskFullOpt::NotAllowedOnFull);
    }
    context
}

/// The context of a command that ends transactions or makes room: it passes a disk that is almost
/// full.
pub(super) fn making_room(context: Option<Box<Context>>) -> Context {
    let mut context = *context.unwrap_or_default();
    context.set_disk_full_opt(DiskFullOpt::AllowedOnAlmostFull);
    context
}

/// The context of a command that also passes a full queue.
pub(super) fn system(context: Option<Box<Context>>) -> Context {
    let mut context = making_room(context);
    context.set_priority(CommandPri::High);
    context
}

impl Cluster {
    /// Whether changes of this size may be proposed, checked in the server's order.
    pub(super) fn check_proposal(
        &self,
        store: StoreId,
        context: &Context,
        region: &Region,
        changes: usize,
    ) -> Result<(), RegionError> {
        let id = region.meta.id;
        self.check_queue(store)?;
        self.check_disks(store, context, region)?;
        if region.merging {
            let peer_id = region.peer_on(store).map_or(0, |peer| peer.id);
            return Err(proposal_in_merging_mode(id, peer_id).into());
        }
        self.check_observers(store)?;
        let size = changes + ENTRY_OVERHEAD;
        if size > ENTRY_SIZE_MAX {
            return Err(entry_too_large(id, size as u64).into());
        }
        if region.transferring {
            return Err(unknown_leader(id).into());
        }
        Ok(())
    }

    /// The leader's own disk decides, then whether a majority has room.
    fn check_disks(
        &self,
        store: StoreId,
        context: &Context,
        region: &Region,
    ) -> Result<(), RegionError> {
        let disk = |store: StoreId| {
            let store = self.stores.get(&store);
            store.map(|store| store.disk).unwrap_or_default()
        };
        let own = disk(store);
        let allowed = context.disk_full_opt();
        let full = |stores: Vec<StoreId>| {
            let reason = format!(
                "propose failed: tikv disk full, cmd diskFullOpt={allowed:?}, leader \
                 diskUsage={own:?}"
            );
            Err(disk_full(stores, reason).into())
        };
        let passes = match own {
            Disk::Normal => true,
            Disk::AlmostFull => allowed != DiskFullOpt::NotAllowedOnFull,
            Disk::AlreadyFull => false,
        };
        if !passes {
            return full(vec![store]);
        }
        let voters: Vec<StoreId> = region
            .meta
            .peers
            .iter()
            .filter(|peer| peer.role() != PeerRole::Learner)
            .map(|peer| peer.store_id)
            .collect();
        let others = voters.iter().copied().filter(|&other| other != store);
        let (no_room, room): (Vec<StoreId>, Vec<StoreId>) =
            others.partition(|&other| disk(other) != Disk::Normal);
        // The leader has passed, so it counts for the majority.
        let majority = |count: usize| count * 2 > voters.len();
        if majority(room.len() + 1) {
            return Ok(());
        }
        // With those that are almost full there is a majority, for commands that may fill them.
        let almost = no_room
            .iter()
            .filter(|&&other| disk(other) == Disk::AlmostFull);
        if allowed == DiskFullOpt::AllowedOnAlmostFull && majority(room.len() + 1 + almost.count())
        {
            return Ok(());
        }
        full(no_room)
    }
}

#[cfg(test)]
mod tests;
