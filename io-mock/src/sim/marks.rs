//! Interesting states that some run must reach. A simulation that never sees a lock expire tests
//! nothing about expired locks, whatever its checkers say; so whoever reaches such a state reports
//! it, and a set of seeds that misses one is a failure of the simulation.

use std::fmt;

macro_rules! marks {
    ($( $(#[$doc:meta])* $mark:ident = $name:literal, $often:ident; )*) => {
        /// A state worth reaching.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Mark {
            $( $(#[$doc])* $mark, )*
        }

        impl Mark {
            /// All of them.
            pub const ALL: &[Mark] = &[$( Mark::$mark, )*];

            /// The name in reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Mark::$mark => $name, )*
                }
            }

            /// Whether a set of a few hundred seeds may miss it.
            pub const fn is_rare(self) -> bool {
                match self {
                    $( Mark::$mark => marks!(@rare $often), )*
                }
            }
        }
    };
    (@rare rare) => { true };
    (@rare usual) => { false };
}

marks! {
    /// A reply was lost after its request took effect.
    ReplyLost = "reply lost", usual;
    /// A request was served that nobody waited for any more.
    ServedLate = "served late or twice", usual;
    /// A caller gave a request up that had been sent.
    DeadlinePassed = "deadline passed", usual;
    /// A request failed that had provably not been sent.
    NeverSent = "never sent", usual;
    /// A connection was refused.
    ConnectionRefused = "connection refused", usual;
    /// A connection broke under a request.
    BrokenInFlight = "connection broke under a request", usual;
    /// A region error named the new leader.
    NotLeader = "not leader, with a hint", usual;
    /// A region error named no leader.
    NoLeader = "not leader, without a hint", usual;
    /// A region error brought newer regions.
    EpochNotMatch = "epoch not match", usual;
    /// A region was gone.
    RegionNotFound = "region not found", usual;
    /// A region refused writes because it was about to be merged.
    Merging = "proposal in merging mode", rare;
    /// A region error that has no mark of its own.
    OtherRegionError = "another region error", rare;
    /// A region split.
    Split = "region split", usual;
    /// Two regions became one.
    Merged = "regions merged", usual;
    /// A leader moved.
    LeaderMoved = "leader moved", usual;
    /// A store came back.
    StoreRestarted = "store restarted", usual;
    /// A region changed right before a prewrite was served.
    ChangedBeforePrewrite = "region changed before a prewrite", usual;
    /// A region changed right after a prewrite was served, under its lock.
    ChangedAfterPrewrite = "region changed after a prewrite", usual;
    /// A region changed right before a commit was served.
    ChangedBeforeCommit = "region changed before a commit", usual;
    /// A read met a lock.
    ReadMetLock = "read met a lock", usual;
    /// A prewrite met a lock.
    PrewriteMetLock = "prewrite met a lock", usual;
    /// A prewrite met a newer commit.
    WriteConflict = "write conflict", usual;
    /// A request waited for a lock.
    WaitedForLock = "a request waited for a lock", usual;
    /// Transactions waited for each other.
    Deadlock = "deadlock", usual;
    /// A commit found its lock gone.
    CommitLockGone = "commit found its lock gone", usual;
    /// A transaction that is alive was found and left alone.
    LockAlive = "a lock's owner is alive", usual;
    /// A transaction whose time had passed was rolled back by another.
    LockExpired = "an expired lock was rolled back", usual;
    /// A lock's transaction turned out to be committed.
    OwnerCommitted = "a lock's owner had committed", usual;
    /// A lock's transaction turned out to be rolled back.
    OwnerRolledBack = "a lock's owner had been rolled back", usual;
    /// A lock's transaction was not to be found.
    OwnerMissing = "a lock's primary is missing", usual;
    /// A lock was committed by somebody else.
    LockCommittedByOther = "a lock was committed by another", usual;
    /// A lock was rolled back by somebody else.
    LockRolledBackByOther = "a lock was rolled back by another", usual;
    /// A transaction lived long enough for a heartbeat.
    HeartBeat = "heartbeat", usual;
    /// A member of PD that does not lead was asked.
    PdNotLeader = "PD is not leader", usual;
    /// PD knew no region for a key.
    PdKnowsNoRegion = "PD knows no region", rare;
    /// An application saw a commit fail for good.
    CommitFailed = "a commit failed", usual;
    /// An application saw a commit whose outcome nobody knows.
    CommitUndetermined = "a commit is undetermined", usual;
    /// An application dropped a call.
    CallCancelled = "a call was dropped", usual;
    /// An application dropped a commit that was under way.
    CommitCancelled = "a commit was dropped", usual;
    /// A client died.
    ClientCrashed = "a client crashed", usual;
    /// Two transactions overlooked each other's writes, as snapshot isolation allows.
    WriteSkew = "write skew", rare;
    /// A store refused a request because it had too much to do.
    StoreBusy = "a store was busy", usual;
    /// A store refused a write because its disk was full.
    DiskFull = "a disk was full", usual;
    /// A store died over a write.
    DiedInWrite = "a store died over a write", usual;
    /// A region got or lost a follower.
    PeerMoved = "a peer moved", usual;
    /// Timestamps leapt ahead.
    TimestampsJumped = "timestamps jumped", usual;
    /// A stream broke with a whole frame of requests on it.
    FrameLost = "a frame was lost", usual;
    /// A leader was about to hand over.
    HandedOver = "a leader handed over", usual;
    /// A region was led by force.
    Recovering = "a leader by force was asked", usual;
    /// A store that was cut off from the others was asked for what takes a majority.
    NoMajority = "a store without a majority was asked", usual;
    /// A store named older regions than the client knew.
    OlderRegions = "older regions were named", usual;
    /// A region changed under a write, which was told nothing about it.
    LocksMoved = "a region changed under a write", usual;
    /// A region split into more than two.
    SplitToPieces = "a region split into many", usual;
    /// A peer became a learner, a witness or a voter.
    RoleChanged = "a peer changed its role", usual;
    /// A witness, or a peer that had no data yet, was asked.
    AskedWitness = "a witness was asked", rare;
    /// A leader stepped down in the middle of a request.
    SteppedDown = "a leader stepped down over a request", usual;
    /// A store did not say what became of a command.
    StaleCommand = "stale command", usual;
    /// A region was closed to be set back.
    RegionClosed = "a region was closed", usual;
    /// A closed region was asked.
    FlashbackMet = "a closed region was asked", usual;
    /// A region moved to other stores.
    RegionMoved = "a region moved", usual;
    /// A store changed its address.
    AddressChanged = "a store moved", usual;
    /// A store took over the address of another.
    AddressReused = "an address was used again", usual;
    /// A store was asked for another one.
    WrongStore = "the wrong store was asked", usual;
    /// A store joined.
    StoreJoined = "a store joined", usual;
    /// A store left for good.
    StoreBuried = "a store left for good", usual;
    /// A store ended in order.
    StoreClosing = "a store closed", usual;
    /// A server ended a stream.
    StreamClosed = "a stream was closed", usual;
    /// No answer came back over a link.
    HalfOpen = "a link was half-open", usual;
    /// A client stood still.
    ClientFroze = "a client stood still", usual;
    /// PD refused a request because there were too many.
    PdBusy = "PD refused", usual;
    /// PD's leader had not loaded the cluster.
    PdStarting = "PD was starting", usual;
    /// PD knew a region and not who led it.
    PdKnowsNoLeader = "PD knows no leader", usual;
    /// PD got a member, or one moved.
    PdMembersChanged = "members of PD changed", usual;
    /// PD heard of one part of a split before the others.
    PdHeardInParts = "PD heard of a split in parts", rare;
    /// Another client's transaction began.
    StrangerMet = "a stranger began", usual;
    /// Another client's transaction committed.
    StrangerCommitted = "a stranger committed", usual;
    /// Another client died in the middle of a transaction.
    StrangerDied = "a stranger died", usual;
    /// Secondaries were asked how their transaction ended.
    SecondariesAsked = "secondaries were asked", usual;
    /// A new leader did not know up to where reads had been served.
    SyncedLate = "a leader learned late what was read", usual;
    /// A write was answered before it was applied.
    AppliedLate = "a write was applied after its answer", usual;
    /// Old versions were removed.
    GarbageGone = "garbage was collected", usual;
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The marks that were reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks(u128);

const _: () = assert!(Mark::ALL.len() <= 128);

impl Marks {
    /// A mark was reached.
    pub fn reach(&mut self, mark: Mark) {
        self.0 |= 1 << mark as u128;
    }

    /// Whether a mark was reached.
    pub fn has(self, mark: Mark) -> bool {
        self.0 & 1 << mark as u128 != 0
    }

    /// What either of two runs reached.
    #[must_use]
    pub fn union(self, other: Marks) -> Marks {
        Marks(self.0 | other.0)
    }

    /// What was not reached and should have been by many runs together.
    pub fn missing(self) -> impl Iterator<Item = Mark> {
        Mark::ALL
            .iter()
            .copied()
            .filter(move |&mark| !mark.is_rare() && !self.has(mark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_reached_is_missing() {
        let mut marks = Marks::default();
        assert!(marks.missing().all(|mark| !mark.is_rare()));
        marks.reach(Mark::Split);
        assert!(marks.has(Mark::Split) && !marks.has(Mark::Merged));
        assert!(marks.missing().all(|mark| mark != Mark::Split));
        let mut other = Marks::default();
        Mark::ALL.iter().for_each(|&mark| other.reach(mark));
        assert_eq!(marks.union(other).missing().count(), 0);
    }
}
