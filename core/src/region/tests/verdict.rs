//! The table of region errors and transport errors: what each means on each way.

use super::*;
use crate::error::{Error, TransportError};
use crate::region::verdict::Hint;
use crate::store::Liveness;
use crate::why::BackoffKind;
use tikv_proto::errorpb;

use BackoffKind::{RegionMiss, RegionScheduling, TikvRpc, TikvServerBusy};
use Effect::{Invalidate, MarkSlow};
use InvalidReason::Other;
use ReplicaFlag as Flagged;
use Then::{Backoff, Close, Fail, Postpone, Probe, Relocate, Retry, Undetermined};

/// A plain request to the leader, which has answered.
fn to_leader() -> Route {
    Route {
        region: RegionVerId {
            id: 9,
            conf_ver: 5,
            ver: 5,
        },
        on_leader: true,
        leader_tried: true,
        leader_holds: true,
        reads_replica: false,
        is_impatient: false,
        has_busy_threshold: false,
        is_batched: false,
        is_repeated: false,
        hint: Hint::Foreign,
    }
}

/// A replica read that a follower has answered; the leader was not asked.
fn to_follower() -> Route {
    Route {
        on_leader: false,
        leader_tried: false,
        leader_holds: false,
        reads_replica: true,
        ..to_leader()
    }
}

fn hinted(hint: Hint) -> Route {
    Route {
        hint,
        ..to_leader()
    }
}

fn error(set: impl FnOnce(&mut errorpb::Error)) -> RegionError {
    let mut error = errorpb::Error::default();
    set(&mut error);
    RegionError::classify(error)
}

fn text(message: &str) -> RegionError {
    error(|e| e.message = message.into())
}

fn busy(wait_ms: u32, reason: &str) -> RegionError {
    error(|e| {
        e.server_is_busy = Some(errorpb::ServerIsBusy {
            estimated_wait_ms: wait_ms,
            reason: reason.into(),
            ..Default::default()
        });
    })
}

fn epoch(regions: &[(u64, u64, u64)]) -> RegionError {
    let current_regions = regions
        .iter()
        .map(|(id, conf_ver, version)| data(*id, "", "", *conf_ver, *version).meta)
        .collect();
    error(|e| e.epoch_not_match = Some(errorpb::EpochNotMatch { current_regions }))
}

fn flagged(flag: Flagged) -> Effect {
    Effect::Flag(flag)
}

#[test]
fn every_region_error_has_its_verdict() {
    let not_leader = |hinted: bool| {
        error(|e| {
            e.not_leader = Some(errorpb::NotLeader {
                region_id: 9,
                leader: hinted.then(|| peer(9, 2)),
            });
        })
    };
    let impatient = Route {
        is_impatient: true,
        ..to_leader()
    };
    let thrifty = Route {
        has_busy_threshold: true,
        ..to_leader()
    };
    let repeated = Route {
        is_repeated: true,
        ..to_leader()
    };
    let wait = Duration::from_millis(10);
    let not_leader_flag = flagged(Flagged::NotLeader);
    let table: Vec<(RegionError, Route, Then, Vec<Effect>)> = vec![
        (
            error(|e| e.undetermined_result = Some(Default::default())),
            to_leader(),
            Undetermined,
            vec![],
        ),
        (
            not_leader(false),
            to_leader(),
            Backoff(RegionScheduling),
            vec![not_leader_flag],
        ),
        (
            not_leader(true),
            hinted(Hint::Good { place: 1 }),
            Retry,
            vec![not_leader_flag, Effect::Follow(1)],
        ),
        (
            not_leader(true),
            hinted(Hint::Foreign),
            Retry,
            vec![not_leader_flag, Invalidate(InvalidReason::StoreNotFound)],
        ),
        (
            not_leader(true),
            hinted(Hint::Unreachable),
            Retry,
            vec![not_leader_flag],
        ),
        (
            not_leader(true),
            hinted(Hint::Circular { place: 1 }),
            Backoff(RegionScheduling),
            vec![not_leader_flag, Effect::SwitchLeader(1)],
        ),
        (
            error(|e| e.disk_full = Some(Default::default())),
            to_leader(),
            Backoff(BackoffKind::TikvDiskFull),
            vec![],
        ),
        (
            error(|e| e.recovery_in_progress = Some(Default::default())),
            to_leader(),
            Relocate,
            vec![Invalidate(Other)],
        ),
        (
            error(|e| e.is_witness = Some(Default::default())),
            to_leader(),
            Relocate,
            vec![Invalidate(Other)],
        ),
        (
            error(|e| e.flashback_in_progress = Some(Default::default())),
            to_leader(),
            Fail,
            vec![],
        ),
        (
            error(|e| e.flashback_in_progress = Some(Default::default())),
            to_follower(),
            Retry,
            vec![Effect::DropBusyThreshold, Effect::AskLeader],
        ),
        (
            error(|e| e.flashback_not_prepared = Some(Default::default())),
            to_leader(),
            Fail,
            vec![],
        ),
        (
            error(|e| e.region_not_found = Some(Default::default())),
            to_leader(),
            Relocate,
            vec![Invalidate(Other)],
        ),
        (
            error(|e| e.region_not_found = Some(Default::default())),
            to_follower(),
            Retry,
            vec![Invalidate(Other), Effect::AskLeader, Effect::OnceMore],
        ),
        (
            error(|e| e.key_not_in_region = Some(Default::default())),
            to_leader(),
            Relocate,
            vec![Invalidate(Other)],
        ),
        (
            epoch(&[]),
            to_leader(),
            Relocate,
            vec![Invalidate(InvalidReason::EpochNotMatch)],
        ),
        (
            epoch(&[(9, 5, 6), (10, 5, 6)]),
            to_leader(),
            Relocate,
            vec![Effect::InsertRegions],
        ),
        (
            epoch(&[(9, 5, 5)]),
            to_leader(),
            Backoff(RegionMiss),
            vec![],
        ),
        (
            epoch(&[(10, 1, 1)]),
            to_leader(),
            Relocate,
            vec![Effect::InsertRegions],
        ),
        (
            epoch(&[(9, 4, 5)]),
            to_leader(),
            Backoff(RegionMiss),
            vec![],
        ),
        (
            epoch(&[(10, 6, 6), (9, 6, 4)]),
            to_leader(),
            Backoff(RegionMiss),
            vec![],
        ),
        (
            error(|e| e.bucket_version_not_match = Some(Default::default())),
            to_leader(),
            Relocate,
            vec![Effect::ReplaceBuckets],
        ),
        (
            busy(0, "raftstore"),
            to_leader(),
            Backoff(TikvServerBusy),
            vec![MarkSlow, Effect::CountBusy],
        ),
        (
            busy(0, "raftstore"),
            to_follower(),
            Postpone(TikvServerBusy),
            vec![MarkSlow, Effect::CountBusy, flagged(Flagged::ServerBusy)],
        ),
        (
            busy(10, ""),
            to_leader(),
            Backoff(TikvServerBusy),
            vec![Effect::EstimatedWait(wait)],
        ),
        (
            busy(10, ""),
            thrifty,
            Postpone(TikvServerBusy),
            vec![Effect::EstimatedWait(wait), flagged(Flagged::ServerBusy)],
        ),
        (
            busy(10, ""),
            Route {
                is_batched: true,
                ..thrifty
            },
            Relocate,
            vec![Effect::EstimatedWait(wait)],
        ),
        (
            busy(0, "deadline is exceeded"),
            impatient,
            Retry,
            vec![flagged(Flagged::DeadlineExceeded)],
        ),
        (
            busy(0, "deadline is exceeded"),
            to_leader(),
            Backoff(TikvServerBusy),
            vec![MarkSlow, Effect::CountBusy],
        ),
        (
            error(|e| e.stale_command = Some(Default::default())),
            to_leader(),
            Retry,
            vec![Effect::CountIdle],
        ),
        (
            error(|e| e.stale_command = Some(Default::default())),
            repeated,
            Backoff(RegionMiss),
            vec![Effect::CountIdle],
        ),
        (
            error(|e| e.store_not_match = Some(Default::default())),
            to_leader(),
            Relocate,
            vec![
                Effect::NeedCheck,
                Invalidate(Other),
                Effect::CloseConnection,
            ],
        ),
        (
            error(|e| e.raft_entry_too_large = Some(Default::default())),
            to_leader(),
            Fail,
            vec![],
        ),
        (
            error(|e| e.max_timestamp_not_synced = Some(Default::default())),
            to_leader(),
            Backoff(BackoffKind::MaxTsNotSynced),
            vec![],
        ),
        (
            error(|e| e.region_not_initialized = Some(Default::default())),
            to_leader(),
            Backoff(BackoffKind::RegionNotInitialized),
            vec![],
        ),
        (
            error(|e| e.read_index_not_ready = Some(Default::default())),
            to_leader(),
            Backoff(RegionScheduling),
            vec![],
        ),
        (
            error(|e| e.proposal_in_merging_mode = Some(Default::default())),
            to_leader(),
            Backoff(RegionScheduling),
            vec![],
        ),
        (
            error(|e| e.data_is_not_ready = Some(Default::default())),
            to_follower(),
            Retry,
            vec![Effect::CountIdle, flagged(Flagged::DataNotReady)],
        ),
        (
            text("Deadline is exceeded"),
            impatient,
            Retry,
            vec![flagged(Flagged::DeadlineExceeded)],
        ),
        (
            text("Deadline is exceeded"),
            to_leader(),
            Retry,
            vec![Effect::CountIdle],
        ),
        (
            error(|e| e.mismatch_peer_id = Some(Default::default())),
            to_leader(),
            Relocate,
            vec![Invalidate(Other)],
        ),
        (text("invalid max_ts update: 7"), to_leader(), Fail, vec![]),
        (
            text("something new"),
            to_leader(),
            Retry,
            vec![Effect::CountIdle],
        ),
        (
            text("something new"),
            repeated,
            Backoff(RegionMiss),
            vec![Effect::CountIdle],
        ),
    ];
    for (error, route, then, effects) in table {
        let verdict = judge(&error, &route);
        assert_eq!(verdict.then, then, "{error:?} on {route:?}");
        assert_eq!(verdict.effects.to_vec(), effects, "{error:?} on {route:?}");
    }
}

#[test]
fn of_several_errors_in_one_the_first_of_the_table_counts() {
    let all = error(|e| {
        e.message = "Deadline is exceeded".into();
        e.not_leader = Some(Default::default());
        e.undetermined_result = Some(Default::default());
        e.server_is_busy = Some(Default::default());
    });
    assert_eq!(all.label(), "undetermined_result");
    let two = error(|e| {
        e.message = "Deadline is exceeded".into();
        e.mismatch_peer_id = Some(Default::default());
    });
    assert_eq!(two.label(), "deadline_exceeded");
    assert_eq!(busy(5, "deadline is exceeded").label(), "deadline_exceeded");
    // As written, and nowhere else.
    assert_eq!(text("deadline is exceeded").label(), "unknown");
    assert_eq!(busy(5, "Deadline is exceeded").label(), "server_is_busy");
}

#[test]
fn every_transport_error_has_its_verdict() {
    let address: Arc<str> = "store-1:20160".into();
    let status = |code| TransportError::Status {
        address: address.clone(),
        code,
        message: "".into(),
    };
    let late = TransportError::Deadline {
        address: address.clone(),
        sent: true,
    };
    let connect = TransportError::Connect {
        address: address.clone(),
        message: "".into(),
    };
    let broken = TransportError::Broken {
        address: address.clone(),
        message: "".into(),
        sent: false,
    };
    let closed = TransportError::Closed { sent: true };
    let impatient = Route {
        is_impatient: true,
        ..to_leader()
    };
    let slow = vec![flagged(Flagged::DeadlineExceeded)];
    let table: [(&TransportError, Route, Then, Vec<Effect>); 9] = [
        (&closed, impatient, Close, vec![]),
        (&late, impatient, Retry, slow.clone()),
        (&late, to_leader(), Probe, vec![]),
        (&status(4), impatient, Retry, slow),
        (&status(4), to_leader(), Probe, vec![]),
        (&status(1), impatient, Probe, vec![Effect::CloseConnection]),
        (&status(14), impatient, Probe, vec![]),
        (&connect, impatient, Probe, vec![]),
        (&broken, to_leader(), Probe, vec![]),
    ];
    for (error, route, then, effects) in table {
        let verdict = transport_verdict(error, &route);
        assert_eq!(verdict.then, then, "{error:?} on {route:?}");
        assert_eq!(verdict.effects.to_vec(), effects, "{error:?} on {route:?}");
    }
}

#[test]
fn a_store_fails_unless_it_answers_a_probe_or_can_be_reached_through_another() {
    let watch = Effect::Watch;
    for (found, can_forward, effects) in [
        (Liveness::Reachable, false, vec![]),
        (Liveness::Reachable, true, vec![]),
        (Liveness::Unreachable, false, vec![watch, Effect::FailStore]),
        (Liveness::Unreachable, true, vec![watch]),
        (Liveness::Unknown, false, vec![watch, Effect::FailStore]),
        (Liveness::Unknown, true, vec![watch, Effect::FailStore]),
    ] {
        let verdict = judge_probe(found, can_forward);
        assert_eq!(verdict.then, Backoff(TikvRpc));
        assert_eq!(verdict.effects.to_vec(), effects, "{found:?} {can_forward}");
    }
}

#[test]
fn may_backoff_for_region_error() {
    // Only a server that says what became of the region spares the caller a pause.
    assert_eq!(epoch(&[(9, 5, 6)]).relocation_backoff(), None);
    assert_eq!(
        RegionError::relocate().relocation_backoff(),
        Some(RegionMiss)
    );
    assert_eq!(epoch(&[]), RegionError::relocate());
    let not_leader = error(|e| e.not_leader = Some(Default::default()));
    let max_ts = error(|e| e.max_timestamp_not_synced = Some(Default::default()));
    for error in [not_leader, busy(0, ""), max_ts] {
        assert_eq!(error.relocation_backoff(), Some(RegionMiss), "{error:?}");
    }
}

#[test]
fn should_not_retry_flashback() {
    let in_progress = error(|e| {
        e.flashback_in_progress = Some(errorpb::FlashbackInProgress {
            region_id: 9,
            flashback_start_ts: 77,
        });
    });
    assert_eq!(judge(&in_progress, &to_leader()).then, Fail);
    let Error::Region(refusal) = in_progress.to_error(9) else {
        panic!("no refusal")
    };
    assert_eq!(
        &*refusal.message,
        "region 9 is in flashback progress, FlashbackStartTS is 77"
    );
}
