//! The region errors of a store, each with its content and the text that people read.

use tikv_proto::{errorpb, metapb};

use super::mvcc::reader::hex;
use super::region::{Buckets, Region};

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

/// The peer asked does not lead and knows nobody who does.
pub fn unknown_leader(region_id: u64) -> errorpb::Error {
    let mut region = Region::default();
    region.meta.id = region_id;
    not_leader(&region)
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

/// The time that the request allows has passed.
pub fn deadline_exceeded() -> errorpb::Error {
    errorpb::Error {
        message: "Deadline is exceeded".to_owned(),
        server_is_busy: Some(errorpb::ServerIsBusy {
            reason: "deadline is exceeded".to_owned(),
            ..errorpb::ServerIsBusy::default()
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

/// The request comes from a term that has passed.
pub fn stale_command() -> errorpb::Error {
    errorpb::Error {
        message: "stale command".to_owned(),
        stale_command: Some(errorpb::StaleCommand {}),
        ..errorpb::Error::default()
    }
}

/// The peer has no data, or not yet.
pub fn is_witness(region_id: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!("peer is a witness of region {region_id}"),
        is_witness: Some(errorpb::IsWitness { region_id }),
        ..errorpb::Error::default()
    }
}

/// An epoch as the server prints it: zero fields are left out.
pub fn show_epoch(epoch: &metapb::RegionEpoch) -> String {
    let mut fields = Vec::new();
    if epoch.conf_ver != 0 {
        fields.push(format!("conf_ver: {}", epoch.conf_ver));
    }
    if epoch.version != 0 {
        fields.push(format!("version: {}", epoch.version));
    }
    fields.join(" ")
}

/// The request is for another store.
pub fn store_not_match(asked: u64, mine: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!("to store id {asked}, mine {mine}"),
        store_not_match: Some(errorpb::StoreNotMatch {
            request_store_id: asked,
            actual_store_id: mine,
        }),
        ..errorpb::Error::default()
    }
}

/// The request is for another peer of the region.
pub fn mismatch_peer_id(asked: u64, mine: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!("mismatch peer id {asked} != {mine}"),
        mismatch_peer_id: Some(errorpb::MismatchPeerId {
            request_peer_id: asked,
            store_peer_id: mine,
        }),
        ..errorpb::Error::default()
    }
}

/// The peer has heard of the region and knows nothing of it.
pub fn region_not_initialized(region_id: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!("region {region_id} not initialized yet"),
        region_not_initialized: Some(errorpb::RegionNotInitialized { region_id }),
        ..errorpb::Error::default()
    }
}

/// A leader was forced upon the region after the loss of a majority.
pub fn recovery_in_progress(region_id: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!("region {region_id} is in the recovery progress"),
        recovery_in_progress: Some(errorpb::RecoveryInProgress { region_id }),
        ..errorpb::Error::default()
    }
}

/// The region is being set back to an older version.
pub fn flashback_in_progress(region_id: u64, start_ts: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!(
            "region {region_id} is in the flashback progress with start_ts {start_ts}"
        ),
        flashback_in_progress: Some(errorpb::FlashbackInProgress {
            region_id,
            flashback_start_ts: start_ts,
        }),
        ..errorpb::Error::default()
    }
}

/// The region is to be set back, but was not prepared for it.
pub fn flashback_not_prepared(region_id: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!("region {region_id} not prepared the flashback"),
        flashback_not_prepared: Some(errorpb::FlashbackNotPrepared { region_id }),
        ..errorpb::Error::default()
    }
}

/// A replica is not yet where the version read would be complete.
pub fn data_is_not_ready(region_id: u64, peer_id: u64, safe_ts: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!("peer {peer_id} is not ready, safe_ts {safe_ts}, region {region_id}"),
        data_is_not_ready: Some(errorpb::DataIsNotReady {
            region_id,
            peer_id,
            safe_ts,
        }),
        ..errorpb::Error::default()
    }
}

/// A replica can't find out up to where it must have applied.
pub fn read_index_not_ready(region_id: u64, reason: &str) -> errorpb::Error {
    errorpb::Error {
        message: format!("read index not ready, reason {reason}, region {region_id}"),
        read_index_not_ready: Some(errorpb::ReadIndexNotReady {
            reason: reason.to_owned(),
            region_id,
        }),
        ..errorpb::Error::default()
    }
}

/// Nothing may be proposed while a merge is prepared.
pub fn proposal_in_merging_mode(region_id: u64, peer_id: u64) -> errorpb::Error {
    errorpb::Error {
        message: format!("[region {region_id}] {peer_id} peer in merging mode, can't do proposal"),
        proposal_in_merging_mode: Some(errorpb::ProposalInMergingMode { region_id }),
        ..errorpb::Error::default()
    }
}

/// Disks of these stores leave no room.
pub fn disk_full(stores: Vec<u64>, reason: String) -> errorpb::Error {
    errorpb::Error {
        message: format!("store ids {stores:?}, errmsg {reason}"),
        disk_full: Some(errorpb::DiskFull {
            store_id: stores,
            reason,
        }),
        ..errorpb::Error::default()
    }
}

/// The request was cut along buckets that have changed.
pub fn bucket_version_not_match(buckets: &Buckets) -> errorpb::Error {
    errorpb::Error {
        bucket_version_not_match: Some(errorpb::BucketVersionNotMatch {
            version: buckets.version,
            keys: buckets.keys.clone(),
        }),
        ..errorpb::Error::default()
    }
}
