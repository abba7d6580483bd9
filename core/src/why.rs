//! Why something waits. Every sleep, every retry and every deadline carries one of these names,
//! so that a log, a trace or an error can say what the time went into.

use std::fmt;

/// The reason of one wait between two attempts. Base, cap and jitter of each stand in `backoff`.
///
/// (client-go: `retry.Config`, whose names these are)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum BackoffKind {
    /// A request to TiKV failed on its way.
    TikvRpc,
    /// A request to TiFlash failed on its way.
    TiflashRpc,
    /// A writer met the lock of a transaction that is alive.
    TxnLock,
    /// A reader met the lock of a transaction that is alive.
    TxnLockFast,
    /// PD did not answer, or not usefully.
    PdRpc,
    /// The region is not where, or not what, the client thought.
    RegionMiss,
    /// The region has no leader yet, is merging, or can't read yet.
    RegionScheduling,
    /// TiKV has too much to do. The only kind whose sleep is not charged to the budget.
    TikvServerBusy,
    /// TiFlash has too much to do.
    TiflashServerBusy,
    /// The store's disk is full.
    TikvDiskFull,
    /// The region is being recovered.
    RegionRecoveryInProgress,
    /// A transaction's primary is not there yet.
    TxnNotFound,
    /// The command arrived after its leader's term.
    StaleCommand,
    /// A new leader has not fetched its timestamp yet.
    MaxTsNotSynced,
    /// The oracle lags behind the timestamp to commit after.
    CommitTsLag,
    /// The peer has no data yet.
    RegionNotInitialized,
    /// The peer is a witness and has no data.
    IsWitness,
}

impl BackoffKind {
    /// How many kinds there are.
    pub const COUNT: usize = 17;

    /// Every kind, in the order that breaks ties.
    pub const ALL: [BackoffKind; Self::COUNT] = [
        BackoffKind::TikvRpc,
        BackoffKind::TiflashRpc,
        BackoffKind::TxnLock,
        BackoffKind::TxnLockFast,
        BackoffKind::PdRpc,
        BackoffKind::RegionMiss,
        BackoffKind::RegionScheduling,
        BackoffKind::TikvServerBusy,
        BackoffKind::TiflashServerBusy,
        BackoffKind::TikvDiskFull,
        BackoffKind::RegionRecoveryInProgress,
        BackoffKind::TxnNotFound,
        BackoffKind::StaleCommand,
        BackoffKind::MaxTsNotSynced,
        BackoffKind::CommitTsLag,
        BackoffKind::RegionNotInitialized,
        BackoffKind::IsWitness,
    ];

    /// The name in logs and labels, which is client-go's.
    pub const fn name(self) -> &'static str {
        match self {
            BackoffKind::TikvRpc => "tikvRPC",
            BackoffKind::TiflashRpc => "tiflashRPC",
            BackoffKind::TxnLock => "txnLock",
            BackoffKind::TxnLockFast => "txnLockFast",
            BackoffKind::PdRpc => "pdRPC",
            BackoffKind::RegionMiss => "regionMiss",
            BackoffKind::RegionScheduling => "regionScheduling",
            BackoffKind::TikvServerBusy => "tikvServerBusy",
            BackoffKind::TiflashServerBusy => "tiflashServerBusy",
            BackoffKind::TikvDiskFull => "tikvDiskFull",
            BackoffKind::RegionRecoveryInProgress => "regionRecoveryInProgress",
            BackoffKind::TxnNotFound => "txnNotFound",
            BackoffKind::StaleCommand => "staleCommand",
            BackoffKind::MaxTsNotSynced => "maxTsNotSynced",
            BackoffKind::CommitTsLag => "commitTSLag",
            BackoffKind::RegionNotInitialized => "regionNotInitialized",
            BackoffKind::IsWitness => "isWitness",
        }
    }
}

impl fmt::Display for BackoffKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a sleep or a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Why {
    /// To try again, after what the kind says.
    Backoff(BackoffKind),
    /// To extend the life of a transaction's primary lock.
    Heartbeat,
    /// To look again at what PD says of its members.
    MemberRefresh,
    /// To ask a store that failed whether it answers again.
    StoreProbe,
    /// For a server to answer.
    Response,
    /// The caller's own deadline.
    CallerDeadline,
    /// To leave the background work time to end before the client closes.
    CloseGrace,
    /// To probe whether the cluster answers.
    Readiness,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Backoff(kind) => kind.name(),
            Why::Heartbeat => "heartbeat",
            Why::MemberRefresh => "member refresh",
            Why::StoreProbe => "store probe",
            Why::Response => "a response",
            Why::CallerDeadline => "the caller's deadline",
            Why::CloseGrace => "close",
            Why::Readiness => "readiness",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_in_the_list_at_its_own_place() {
        for (place, kind) in BackoffKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place, "{kind}");
        }
    }
}
