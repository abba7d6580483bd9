//! Region errors and transport errors, and what to do about each, as values.
//!
//! [`RegionError::classify`] reads the wire, [`judge`] decides, the selector and the sender carry
//! out. No I/O, no clock, no loop; the table test is the specification.
//! (client-go: `RegionRequestSender.onRegionError`, `onSendFail`)

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};
use tikv_proto::{errorpb, metapb};

use crate::error::{Error, RegionRefusal, TransportError};
use crate::region::{InvalidReason, RegionVerId};
use crate::store::Liveness;
use crate::why::BackoffKind;

/// Why a store did not serve a request that reached it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RegionError {
    /// A write may or may not have happened.
    UndeterminedResult {
        message: Arc<str>,
    },
    NotLeader {
        leader: Option<metapb::Peer>,
    },
    DiskFull {
        message: Arc<str>,
    },
    RecoveryInProgress,
    IsWitness,
    FlashbackInProgress {
        start_ts: u64,
    },
    FlashbackNotPrepared,
    RegionNotFound,
    KeyNotInRegion {
        message: Arc<str>,
    },
    /// With nothing in it: the client's own word that the region must be located again.
    EpochNotMatch {
        current: Vec<metapb::Region>,
    },
    BucketVersionNotMatch {
        version: u64,
        keys: Vec<Bytes>,
    },
    ServerIsBusy {
        /// How long a request would wait; `None` if the store does not say.
        estimated_wait: Option<Duration>,
        /// Whether the store gave up because the request's time was over.
        is_deadline: bool,
        reason: Arc<str>,
    },
    StaleCommand,
    StoreNotMatch {
        actual_store: u64,
    },
    RaftEntryTooLarge {
        message: Arc<str>,
    },
    MaxTimestampNotSynced,
    RegionNotInitialized,
    ReadIndexNotReady,
    ProposalInMergingMode,
    DataIsNotReady,
    /// The request's time was over before the store began with it.
    DeadlineExceeded {
        message: Arc<str>,
    },
    MismatchPeerId,
    InvalidMaxTsUpdate {
        message: Arc<str>,
    },
    /// A newer TiKV knows errors that this client does not.
    Unknown {
        message: Arc<str>,
    },
}

impl RegionError {
    /// Reads an error off the wire. Three errors have no field of their own and are told by their
    /// text; nowhere else is a text looked at.
    pub(crate) fn classify(error: errorpb::Error) -> Self {
        let message: Arc<str> = error.message.into();
        // A reply carries one variant; should it carry several, the order decides.
        if let Some(undetermined) = error.undetermined_result {
            let message = undetermined.message.into();
            return RegionError::UndeterminedResult { message };
        }
        if let Some(not_leader) = error.not_leader {
            let leader = not_leader.leader.filter(|leader| leader.id != 0);
            return RegionError::NotLeader { leader };
        }
        if error.disk_full.is_some() {
            return RegionError::DiskFull { message };
        }
        if error.recovery_in_progress.is_some() {
            return RegionError::RecoveryInProgress;
        }
        if error.is_witness.is_some() {
            return RegionError::IsWitness;
        }
        if let Some(flashback) = error.flashback_in_progress {
            let start_ts = flashback.flashback_start_ts;
            return RegionError::FlashbackInProgress { start_ts };
        }
        if error.flashback_not_prepared.is_some() {
            return RegionError::FlashbackNotPrepared;
        }
        if error.region_not_found.is_some() {
            return RegionError::RegionNotFound;
        }
        if error.key_not_in_region.is_some() {
            return RegionError::KeyNotInRegion { message };
        }
        if let Some(epoch) = error.epoch_not_match {
            let current = epoch.current_regions;
            return RegionError::EpochNotMatch { current };
        }
        if let Some(buckets) = error.bucket_version_not_match {
            let (version, keys) = (buckets.version, buckets.keys);
            return RegionError::BucketVersionNotMatch { version, keys };
        }
        if let Some(busy) = error.server_is_busy {
            let wait_ms = busy.estimated_wait_ms;
            return RegionError::ServerIsBusy {
                estimated_wait: (wait_ms != 0).then(|| Duration::from_millis(wait_ms.into())),
                is_deadline: busy.reason.contains("deadline is exceeded"),
                reason: busy.reason.into(),
            };
        }
        if error.stale_command.is_some() {
            return RegionError::StaleCommand;
        }
        if let Some(store) = error.store_not_match {
            let actual_store = store.actual_store_id;
            return RegionError::StoreNotMatch { actual_store };
        }
        if error.raft_entry_too_large.is_some() {
            return RegionError::RaftEntryTooLarge { message };
        }
        if error.max_timestamp_not_synced.is_some() {
            return RegionError::MaxTimestampNotSynced;
        }
        if error.region_not_initialized.is_some() {
            return RegionError::RegionNotInitialized;
        }
        if error.read_index_not_ready.is_some() {
            return RegionError::ReadIndexNotReady;
        }
        if error.proposal_in_merging_mode.is_some() {
            return RegionError::ProposalInMergingMode;
        }
        if error.data_is_not_ready.is_some() {
            return RegionError::DataIsNotReady;
        }
        if message.contains("Deadline is exceeded") {
            return RegionError::DeadlineExceeded { message };
        }
        if error.mismatch_peer_id.is_some() {
            return RegionError::MismatchPeerId;
        }
        if message.contains("invalid max_ts update") {
            return RegionError::InvalidMaxTsUpdate { message };
        }
        RegionError::Unknown { message }
    }

    /// The client's own word that the region must be located again; no server said it.
    /// (client-go: `IsFakeRegionError`)
    pub(crate) fn relocate() -> Self {
        RegionError::EpochNotMatch { current: vec![] }
    }

    /// What a caller that got this error back waits for before it locates the region again.
    /// `None` if it need not wait: the error itself said what became of the region.
    /// (client-go: `MayBackoffForRegionError`)
    pub(crate) fn relocation_backoff(&self) -> Option<BackoffKind> {
        match self {
            RegionError::EpochNotMatch { current } if !current.is_empty() => None,
            _ => Some(BackoffKind::RegionMiss),
        }
    }

    /// The name in labels and errors.
    pub(crate) const fn label(&self) -> &'static str {
        match self {
            RegionError::UndeterminedResult { .. } => "undetermined_result",
            RegionError::NotLeader { .. } => "not_leader",
            RegionError::DiskFull { .. } => "disk_full",
            RegionError::RecoveryInProgress => "recovery_in_progress",
            RegionError::IsWitness => "peer_is_witness",
            RegionError::FlashbackInProgress { .. } => "flashback_in_progress",
            RegionError::FlashbackNotPrepared => "flashback_not_prepared",
            RegionError::RegionNotFound => "region_not_found",
            RegionError::KeyNotInRegion { .. } => "key_not_in_region",
            RegionError::EpochNotMatch { .. } => "epoch_not_match",
            RegionError::BucketVersionNotMatch { .. } => "bucket_version_not_match",
            RegionError::ServerIsBusy {
                is_deadline: true, ..
            }
            | RegionError::DeadlineExceeded { .. } => "deadline_exceeded",
            RegionError::ServerIsBusy { .. } => "server_is_busy",
            RegionError::StaleCommand => "stale_command",
            RegionError::StoreNotMatch { .. } => "store_not_match",
            RegionError::RaftEntryTooLarge { .. } => "raft_entry_too_large",
            RegionError::MaxTimestampNotSynced => "max_timestamp_not_synced",
            RegionError::RegionNotInitialized => "region_not_initialized",
            RegionError::ReadIndexNotReady => "read_index_not_ready",
            RegionError::ProposalInMergingMode => "proposal_in_merging_mode",
            RegionError::DataIsNotReady => "data_is_not_ready",
            RegionError::MismatchPeerId => "mismatch_peer_id",
            RegionError::InvalidMaxTsUpdate { .. } => "invalid_max_ts_update",
            RegionError::Unknown { .. } => "unknown",
        }
    }

    /// The error as the cause of a pause, or as what the caller gets.
    pub(crate) fn to_error(&self, region: u64) -> Error {
        let message: Arc<str> = match self {
            RegionError::UndeterminedResult { message }
            | RegionError::DiskFull { message }
            | RegionError::KeyNotInRegion { message }
            | RegionError::RaftEntryTooLarge { message }
            | RegionError::DeadlineExceeded { message }
            | RegionError::InvalidMaxTsUpdate { message }
            | RegionError::Unknown { message }
            | RegionError::ServerIsBusy {
                reason: message, ..
            } => message.clone(),
            RegionError::NotLeader { leader: Some(peer) } => {
                format!("the leader is peer {} on store {}", peer.id, peer.store_id).into()
            }
            RegionError::NotLeader { leader: None } => "no leader is known".into(),
            RegionError::FlashbackInProgress { start_ts } => {
                format!("region {region} is in flashback progress, FlashbackStartTS is {start_ts}")
                    .into()
            }
            RegionError::FlashbackNotPrepared => {
                format!("region {region} is not prepared for the flashback").into()
            }
            RegionError::EpochNotMatch { current } if current.is_empty() => {
                "the region must be located again".into()
            }
            RegionError::StoreNotMatch { actual_store } => {
                format!("the address belongs to store {actual_store}").into()
            }
            RegionError::RecoveryInProgress
            | RegionError::IsWitness
            | RegionError::RegionNotFound
            | RegionError::EpochNotMatch { .. }
            | RegionError::BucketVersionNotMatch { .. }
            | RegionError::StaleCommand
            | RegionError::MaxTimestampNotSynced
            | RegionError::RegionNotInitialized
            | RegionError::ReadIndexNotReady
            | RegionError::ProposalInMergingMode
            | RegionError::DataIsNotReady
            | RegionError::MismatchPeerId => self.label().into(),
        };
        Error::Region(Box::new(RegionRefusal::new(region, self.label(), message)))
    }
}

/// What a verdict depends on besides the error: how the request was sent, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The region it was sent to.
    pub(crate) region: RegionVerId,
    /// Whether the replica that answered is the leader as far as is known.
    pub(crate) on_leader: bool,
    /// Whether the cached leader has been asked by this request.
    pub(crate) leader_tried: bool,
    /// Whether this request is meant for the leader, and the leader can take it once more.
    pub(crate) leader_holds: bool,
    /// Whether it went as a replica read or a stale read.
    pub(crate) reads_replica: bool,
    /// Whether it is a read whose time the caller limited: another replica is asked at once when
    /// one takes too long.
    pub(crate) is_impatient: bool,
    /// Whether replicas that would take too long are to be avoided.
    pub(crate) has_busy_threshold: bool,
    /// Whether it carries the coprocessor tasks of several regions.
    pub(crate) is_batched: bool,
    /// Whether this replica has answered before with an error for which nobody sleeps.
    pub(crate) is_repeated: bool,
    /// Where the hinted leader stands, if one was hinted.
    pub(crate) hint: Hint,
}

/// Where a hinted leader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    /// No peer that this region is known to have.
    Foreign,
    /// Its store does not answer.
    Unreachable,
    /// Can be followed.
    Good {
        /// Its place among the region's peers.
        place: usize,
    },
    /// Too many hints have been followed: they go in a circle.
    Circular {
        /// Its place among the region's peers.
        place: usize,
    },
}

/// What to do about an error.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// What becomes of the request.
    pub(crate) then: Then,
    /// What was learned, in the order to be carried out.
    pub(crate) effects: SmallVec<[Effect; 3]>,
}

/// What becomes of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Ask the selector for the next replica, at once.
    Retry,
    /// Pause, then ask the selector for the next replica.
    Backoff(BackoffKind),
    /// Ask the selector for the next replica, at once; pause only before this store is asked
    /// again. The selector keeps that in mind.
    Postpone(BackoffKind),
    /// Find out whether the store lives, tell the selector, then pause.
    Probe,
    /// Give the error to whoever located the region: it must be located again.
    Relocate,
    /// Nothing helps: the error goes to the user.
    Fail,
    /// A write may or may not have happened: never again, and never "failed".
    Undetermined,
    /// The client is closing.
    Close,
}

/// What was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Of the region: it must not be used any more.
    Invalidate(InvalidReason),
    /// Of the region: this peer leads. The request does not go there for it.
    SwitchLeader(usize),
    /// Of the region: this peer leads, and the request follows.
    Follow(usize),
    /// Of the region: the error says what became of it.
    InsertRegions,
    /// Of the region: the error has newer buckets.
    ReplaceBuckets,
    /// Of the replica.
    Flag(ReplicaFlag),
    /// Of the request: from now on it is meant for the leader, asked plainly.
    AskLeader,
    /// Of the request: it may use the region once more although that is invalid.
    OnceMore,
    /// Of the request: busy replicas are no longer avoided.
    DropBusyThreshold,
    /// Of the replica: it was busy and did not say for how long. A leader that does so twice is
    /// suspected of having lost its leadership unknowingly.
    CountBusy,
    /// Of the replica: it answered with an error for which nobody sleeps the first time.
    CountIdle,
    /// Of the store: so long a request would have to wait there.
    EstimatedWait(Duration),
    /// Of the store: others should be preferred.
    MarkSlow,
    /// Of the store: PD should be asked where it is.
    NeedCheck,
    /// Of the store: it failed.
    FailStore,
    /// Of the store: someone should watch for its return. Carried out by the sender.
    Watch,
    /// Of the connection: it leads to the wrong store. Carried out by the sender.
    CloseConnection,
}

/// What a request remembers of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ReplicaFlag {
    DeadlineExceeded = 1,
    DataNotReady = 2,
    NotLeader = 4,
    ServerBusy = 8,
    SuspectNotLeader = 16,
}

impl Verdict {
    fn new(then: Then, effects: impl Into<SmallVec<[Effect; 3]>>) -> Self {
        Verdict {
            then,
            effects: effects.into(),
        }
    }

    fn plain(then: Then) -> Self {
        Verdict::new(then, smallvec![])
    }
}

/// What to do about a region error.
#[deny(clippy::wildcard_enum_match_arm)] // a new error from TiKV must be judged here
pub(crate) fn judge(error: &RegionError, route: &Route) -> Verdict {
    use Effect::{Flag, Invalidate};
    use RegionError as E;
    let wrong = |reason| Verdict::new(Then::Relocate, smallvec![Invalidate(reason)]);
    match error {
        E::UndeterminedResult { .. } => Verdict::plain(Then::Undetermined),
        E::NotLeader { leader: None } => Verdict::new(
            Then::Backoff(BackoffKind::RegionScheduling),
            smallvec![Flag(ReplicaFlag::NotLeader)],
        ),
        E::NotLeader { leader: Some(_) } => follow(route.hint),
        E::DiskFull { .. } => Verdict::plain(Then::Backoff(BackoffKind::TikvDiskFull)),
        E::RecoveryInProgress | E::IsWitness => wrong(InvalidReason::Other),
        E::FlashbackInProgress { .. } if route.reads_replica && !route.on_leader => Verdict::new(
            Then::Retry,
            smallvec![Effect::DropBusyThreshold, Effect::AskLeader],
        ),
        E::FlashbackInProgress { .. } | E::FlashbackNotPrepared => Verdict::plain(Then::Fail),
        E::RegionNotFound if !route.leader_tried => Verdict::new(
            Then::Retry,
            smallvec![
                Invalidate(InvalidReason::Other),
                Effect::AskLeader,
                Effect::OnceMore
            ],
        ),
        E::RegionNotFound | E::KeyNotInRegion { .. } | E::MismatchPeerId => {
            wrong(InvalidReason::Other)
        }
        E::EpochNotMatch { current } if is_no_news(current, route.region) => {
            Verdict::plain(Then::Backoff(BackoffKind::RegionMiss))
        }
        E::EpochNotMatch { current } if current.is_empty() => wrong(InvalidReason::EpochNotMatch),
        E::EpochNotMatch { .. } => Verdict::new(Then::Relocate, smallvec![Effect::InsertRegions]),
        E::BucketVersionNotMatch { .. } => {
            Verdict::new(Then::Relocate, smallvec![Effect::ReplaceBuckets])
        }
        E::ServerIsBusy {
            estimated_wait,
            is_deadline,
            ..
        } => busy(*estimated_wait, *is_deadline, route),
        E::StaleCommand => idle(route, None),
        #[cfg(feature = "mutations")]
        E::StoreNotMatch { .. }
            if crate::mutation::is(crate::mutation::Mutation::ForgetMovedStores) =>
        {
            wrong(InvalidReason::Other)
        }
        E::StoreNotMatch { .. } => Verdict::new(
            Then::Relocate,
            smallvec![
                Effect::NeedCheck,
                Invalidate(InvalidReason::Other),
                Effect::CloseConnection
            ],
        ),
        E::RaftEntryTooLarge { .. } | E::InvalidMaxTsUpdate { .. } => Verdict::plain(Then::Fail),
        E::MaxTimestampNotSynced => Verdict::plain(Then::Backoff(BackoffKind::MaxTsNotSynced)),
        E::RegionNotInitialized => Verdict::plain(Then::Backoff(BackoffKind::RegionNotInitialized)),
        E::ReadIndexNotReady | E::ProposalInMergingMode => {
            Verdict::plain(Then::Backoff(BackoffKind::RegionScheduling))
        }
        E::DataIsNotReady => idle(route, Some(ReplicaFlag::DataNotReady)),
        E::DeadlineExceeded { .. } if route.is_impatient => too_slow(),
        E::DeadlineExceeded { .. } | E::Unknown { .. } => idle(route, None),
    }
}

/// What to do about a request that failed on its way to TiKV. After [`Then::Probe`] comes
/// [`judge_probe`].
pub(crate) fn transport_verdict(error: &TransportError, route: &Route) -> Verdict {
    match error {
        TransportError::Closed { .. } => Verdict::plain(Then::Close),
        TransportError::Deadline { .. }
        | TransportError::Status {
            code: GRPC_DEADLINE_EXCEEDED,
            ..
        } if route.is_impatient => too_slow(),
        // The server, not the caller, cancelled: that connection is of no more use.
        TransportError::Status {
            code: GRPC_CANCELLED,
            ..
        } => Verdict::new(Then::Probe, smallvec![Effect::CloseConnection]),
        TransportError::Deadline { .. }
        | TransportError::Status { .. }
        | TransportError::Connect { .. }
        | TransportError::Broken { .. }
        | TransportError::Decode { .. } => Verdict::plain(Then::Probe),
    }
}

/// What to do about a store to which a request failed, once it has been probed. With
/// `can_forward` the next attempt reaches an unreachable store through another one.
pub(crate) fn judge_probe(found: Liveness, can_forward: bool) -> Verdict {
    let effects = match found {
        Liveness::Reachable => smallvec![],
        Liveness::Unreachable if can_forward => smallvec![Effect::Watch],
        Liveness::Unreachable | Liveness::Unknown => smallvec![Effect::Watch, Effect::FailStore],
    };
    Verdict {
        then: Then::Backoff(BackoffKind::TikvRpc),
        effects,
    }
}

fn follow(hint: Hint) -> Verdict {
    let flag = Effect::Flag(ReplicaFlag::NotLeader);
    match hint {
        Hint::Foreign => Verdict::new(
            Then::Retry,
            smallvec![flag, Effect::Invalidate(InvalidReason::StoreNotFound)],
        ),
        Hint::Unreachable => Verdict::new(Then::Retry, smallvec![flag]),
        Hint::Good { place } => Verdict::new(Then::Retry, smallvec![flag, Effect::Follow(place)]),
        Hint::Circular { place } => Verdict::new(
            Then::Backoff(BackoffKind::RegionScheduling),
            smallvec![flag, Effect::SwitchLeader(place)],
        ),
    }
}

fn busy(estimated_wait: Option<Duration>, is_deadline: bool, route: &Route) -> Verdict {
    if is_deadline && route.is_impatient {
        return too_slow();
    }
    let mut effects = SmallVec::new();
    let mut avoids = false;
    match estimated_wait {
        Some(wait) => {
            effects.push(Effect::EstimatedWait(wait));
            avoids = route.has_busy_threshold;
            if avoids && route.is_batched {
                return Verdict::new(Then::Relocate, effects);
            }
        }
        None => effects.extend([Effect::MarkSlow, Effect::CountBusy]),
    }
    // A leader that is now known to be busy is passed over, so nobody waits for it.
    let waits_for_leader = route.leader_holds && !(avoids && route.on_leader);
    if avoids || !waits_for_leader {
        effects.push(Effect::Flag(ReplicaFlag::ServerBusy));
    }
    let kind = BackoffKind::TikvServerBusy;
    let then = match waits_for_leader {
        true => Then::Backoff(kind),
        false => Then::Postpone(kind),
    };
    Verdict::new(then, effects)
}

/// The caller set the time so that another replica is asked rather than this one waited for.
fn too_slow() -> Verdict {
    let flag = Effect::Flag(ReplicaFlag::DeadlineExceeded);
    Verdict::new(Then::Retry, smallvec![flag])
}

/// Tried again at once, but not twice in a row at the same replica.
fn idle(route: &Route, flag: Option<ReplicaFlag>) -> Verdict {
    let mut effects: SmallVec<[Effect; 3]> = smallvec![Effect::CountIdle];
    effects.extend(flag.map(Effect::Flag));
    let then = match route.is_repeated {
        true => Then::Backoff(BackoffKind::RegionMiss),
        false => Then::Retry,
    };
    Verdict::new(then, effects)
}

/// Whether the store knows nothing newer of the region than the client, who may have it from PD:
/// the store will catch up.
fn is_no_news(current: &[metapb::Region], cached: RegionVerId) -> bool {
    #[cfg(feature = "mutations")]
    if crate::mutation::is(crate::mutation::Mutation::BelieveOlderRegions) {
        return false;
    }
    current
        .iter()
        .map(RegionVerId::of)
        .any(|region| region == cached || (region.id == cached.id && region.is_behind(cached)))
}

const GRPC_CANCELLED: u32 = 1;
const GRPC_DEADLINE_EXCEEDED: u32 = 4;
