//! Trouble that stores make by themselves, as verbs name it: disks, ends of writes, and errors that
//! requests are refused with.

use serde::{Deserialize, Serialize};
use tikv_proto::errorpb::{self, Error};

use crate::cluster::injection::Injection;
use crate::cluster::region::{RegionId, StoreId};
use crate::cluster::store::Disk;
use crate::cluster::write_end::{End, WritePoint};

/// How much room a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Room {
    /// Enough.
    Plenty,
    /// Only for what makes room or ends transactions.
    Little,
    /// None.
    None,
}

impl From<Room> for Disk {
    fn from(room: Room) -> Self {
        match room {
            Room::Plenty => Disk::Normal,
            Room::Little => Disk::AlmostFull,
            Room::None => Disk::AlreadyFull,
        }
    }
}

/// What ends a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// The store dies. Its port stays open, and answers that it is unavailable.
    Crash,
    /// The region's leader is deposed.
    StepDown,
}

impl From<Cause> for End {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Crash => End::Crash,
            Cause::StepDown => End::StepDown,
        }
    }
}

/// How far a write gets before it is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Progress {
    /// It never happens.
    NotProposed,
    /// It is proposed, and the next leader knows nothing of it.
    ProposedAndLost,
    /// It is proposed, and the next leader applies it.
    ProposedAndKept,
    /// It is applied and not answered.
    Applied,
    /// It is answered.
    Answered,
}

impl From<Progress> for WritePoint {
    fn from(progress: Progress) -> Self {
        match progress {
            Progress::NotProposed => WritePoint::BeforePropose,
            Progress::ProposedAndLost => WritePoint::Proposed { survives: false },
            Progress::ProposedAndKept => WritePoint::Proposed { survives: true },
            Progress::Applied => WritePoint::Applied,
            Progress::Answered => WritePoint::Answered,
        }
    }
}

/// A region error that needs nothing more to be said. Others come about by what is done to the
/// cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RegionError {
    /// The peer does not lead, and knows nobody who does.
    NotLeader,
    /// The region is not there.
    RegionNotFound,
    /// The region has another shape; not told which.
    EpochNotMatch,
    /// The store has too much to do.
    ServerIsBusy,
    /// The command comes from a term that has passed.
    StaleCommand,
    /// The leader has not caught up with PD's timestamps.
    MaxTimestampNotSynced,
    /// A merge is prepared.
    ProposalInMergingMode,
    /// A replica is not ready for the version read.
    DataIsNotReady,
    /// A replica can't ask the leader.
    ReadIndexNotReady,
    /// A leader has been forced upon the region.
    RecoveryInProgress,
    /// Nobody knows what became of the write.
    UndeterminedResult,
}

impl RegionError {
    /// As an answer has it.
    fn told(self, region_id: RegionId) -> Error {
        let mut error = Error {
            message: format!("{self:?} on demand"),
            ..Error::default()
        };
        match self {
            RegionError::NotLeader => {
                error.not_leader = Some(errorpb::NotLeader {
                    region_id,
                    leader: None,
                });
            }
            RegionError::RegionNotFound => {
                error.region_not_found = Some(errorpb::RegionNotFound { region_id });
            }
            RegionError::EpochNotMatch => error.epoch_not_match = Some(Default::default()),
            RegionError::ServerIsBusy => {
                error.server_is_busy = Some(errorpb::ServerIsBusy {
                    reason: "on demand".to_owned(),
                    ..errorpb::ServerIsBusy::default()
                });
            }
            RegionError::StaleCommand => error.stale_command = Some(Default::default()),
            RegionError::MaxTimestampNotSynced => {
                error.max_timestamp_not_synced = Some(Default::default());
            }
            RegionError::ProposalInMergingMode => {
                error.proposal_in_merging_mode = Some(errorpb::ProposalInMergingMode { region_id });
            }
            RegionError::DataIsNotReady => {
                error.data_is_not_ready = Some(errorpb::DataIsNotReady {
                    region_id,
                    ..errorpb::DataIsNotReady::default()
                });
            }
            RegionError::ReadIndexNotReady => {
                error.read_index_not_ready = Some(errorpb::ReadIndexNotReady {
                    reason: "on demand".to_owned(),
                    region_id,
                });
            }
            RegionError::RecoveryInProgress => {
                error.recovery_in_progress = Some(errorpb::RecoveryInProgress { region_id });
            }
            RegionError::UndeterminedResult => {
                error.undetermined_result = Some(Default::default());
            }
        }
        error
    }

    /// An error for the next requests that fit.
    pub(super) fn injected(
        self,
        store: Option<StoreId>,
        region: Option<RegionId>,
        times: u32,
    ) -> Injection {
        Injection {
            store,
            region,
            times,
            ..Injection::once(self.told(region.unwrap_or_default()))
        }
    }
}
