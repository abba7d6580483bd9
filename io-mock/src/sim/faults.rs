//! The fault menu: what may go wrong, and how often it does in one run.
//!
//! Every fault is one that a real cluster can show: none breaks a commit that TiKV has
//! acknowledged, puts two leaders into one term, or makes timestamps go back. A run switches a
//! random part of the allowed faults off and gives the rest wild strengths, so that a rare
//! combination is as likely as the usual mixture (swarm testing).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::chance::{Chance, Ppm};

macro_rules! faults {
    ($( $(#[$doc:meta])* $fault:ident = $name:literal, )*) => {
        /// Something that can go wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Fault {
            $( $(#[$doc])* $fault, )*
        }

        impl Fault {
            /// The whole menu.
            pub const ALL: &[Fault] = &[$( Fault::$fault, )*];

            /// The name in a configuration and in a timeline.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Fault::$fault => $name, )*
                }
            }
        }
    };
}

faults! {
    /// A request is lost before it arrives.
    DropRequest = "drop request",
    /// A reply is lost after the request took effect.
    LoseReply = "lose reply",
    /// A message takes much longer than others, perhaps longer than anybody waits.
    Delay = "delay",
    /// A request arrives a second time, perhaps long after its answer.
    Duplicate = "duplicate",
    /// A connection breaks with requests under way.
    Reset = "reset",
    /// Nothing passes between one client and one node for a while, in silence.
    Cut = "cut",
    /// A store stops and comes back without what it held in memory.
    StopStore = "stop store",
    /// A region splits.
    Split = "split",
    /// Two neighbouring regions become one.
    Merge = "merge",
    /// A region's leader moves.
    TransferLeader = "move leader",
    /// A region has no leader for a while.
    LoseLeader = "lose leader",
    /// A region change meets the very request that is being served.
    Aim = "aim",
    /// PD learns late how regions changed.
    StalePd = "stale PD",
    /// Another member of PD leads.
    PdLeaderChange = "PD leader",
    /// No member of PD answers.
    PdOutage = "PD outage",
    /// Timestamps come late.
    SlowTso = "slow TSO",
    /// The application drops a call that is under way.
    Cancel = "cancel",
    /// A client dies with all it was doing.
    Crash = "crash",
    /// A store takes longer for everything.
    SlowStore = "slow store",
    /// A store refuses requests because it has too much to do.
    BusyStore = "busy store",
    /// A store takes no new data.
    DiskFull = "disk full",
    /// A store dies over a write: before, after, or in between.
    DieInWrite = "die in write",
    /// A region loses a follower, or gets one.
    MovePeer = "move peer",
    /// Timestamps leap ahead.
    JumpTso = "TSO jump",
    /// Leadership is lost in the middle of a request; a write that was proposed may be kept or lost.
    StepDown = "step down",
    /// A leader hands over: for a while it takes no writes and knows no successor.
    HandOver = "hand over",
    /// A region has lost a majority and a leader was forced upon it.
    Recovery = "forced leader",
    /// A store is cut off from all others, and its clients do not notice.
    Isolate = "isolated store",
    /// Peers know a region and its leader as they were.
    Lag = "lagging peers",
    /// A new leader has not applied yet what its region went through.
    LateApply = "late apply",
    /// A region splits under a write that has begun.
    MovedLocks = "moved locks",
    /// A region splits into many.
    Shatter = "split to pieces",
    /// Peers become learners, witnesses and voters.
    Roles = "peer roles",
    /// A region is closed to be set back.
    Flashback = "flashback",
    /// A region moves to other stores.
    MoveRegion = "move region",
    /// A store comes back at another address, perhaps one that was another's.
    NewAddress = "new address",
    /// Stores join and leave for good.
    ComeAndGo = "stores come and go",
    /// A store ends in order: it says so before it stops.
    CloseStore = "close store",
    /// A server ends a stream.
    CloseStream = "close stream",
    /// Requests arrive and no answer comes back.
    HalfOpen = "half-open",
    /// A client's process stands still.
    Freeze = "frozen client",
    /// PD refuses requests because there are too many.
    PdBusy = "PD rate limit",
    /// A new leader of PD has not loaded the cluster yet.
    PdStarting = "PD starting",
    /// A new leader of PD has not heard who leads the regions.
    PdForgets = "PD forgets leaders",
    /// PD gets members, and members move.
    PdMembers = "PD members",
    /// PD hears of one part of a split long before the others.
    PdHole = "PD hole",
    /// Transactions of clients that commit in other ways, and may die half way.
    Strangers = "strangers",
    /// A new leader does not know yet up to where the old one has served reads.
    LateSync = "late sync",
    /// A write is answered before it is applied.
    AsyncApply = "async apply",
    /// Old versions are removed, under transactions that are older still.
    Garbage = "garbage",
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which faults a simulation may draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults(u64);

const _: () = assert!(Fault::ALL.len() <= 64);

impl Faults {
    /// The whole menu.
    pub fn all() -> Self {
        Fault::ALL
            .iter()
            .fold(Faults::none(), |faults, &fault| faults.with(fault))
    }

    /// What the menu was when the first seeds were written down; those runs know no other faults.
    pub fn first_menu() -> Self {
        Faults::first(FIRST_MENU)
    }

    /// What the menu was before it took in all that a cluster can show.
    pub(super) fn second_menu() -> Self {
        Faults::first(SECOND_MENU)
    }

    /// The first of the menu, to which faults are only ever added at the end.
    pub fn first(count: usize) -> Self {
        let first = Fault::ALL.iter().take(count);
        first.fold(Faults::none(), |faults, &fault| faults.with(fault))
    }

    /// Nothing goes wrong.
    pub const fn none() -> Self {
        Faults(0)
    }

    /// Also this one.
    #[must_use]
    pub const fn with(self, fault: Fault) -> Self {
        Faults(self.0 | 1 << fault as u64)
    }

    /// But not this one.
    #[must_use]
    pub const fn without(self, fault: Fault) -> Self {
        Faults(self.0 & !(1 << fault as u64))
    }

    /// Whether a fault may be drawn.
    pub const fn contains(self, fault: Fault) -> bool {
        self.0 & 1 << fault as u64 != 0
    }

    /// Those that may be drawn.
    pub fn iter(self) -> impl Iterator<Item = Fault> {
        Fault::ALL
            .iter()
            .copied()
            .filter(move |&fault| self.contains(fault))
    }
}

/// The names in one word each, separated by commas; `none` if there are none.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.iter().map(in_one_word).collect();
        if names.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&names.join(","))
    }
}

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .filter(|name| !name.is_empty() && *name != "none")
            .try_fold(Faults::none(), |faults, name| {
                let fault = Fault::ALL.iter().find(|fault| in_one_word(**fault) == name);
                fault
                    .map(|&fault| faults.with(fault))
                    .ok_or(format!("no fault is called {name:?}"))
            })
    }
}

/// A name without spaces.
pub(super) fn in_one_word(fault: Fault) -> String {
    fault.name().replace(' ', "-")
}

/// How long the menu was when the first seeds were written down.
const FIRST_MENU: usize = 18;
/// How long it was before it took in all that a cluster can show.
const SECOND_MENU: usize = 24;

/// How strong one fault is in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// So many of a million messages or calls.
    Share(u32),
    /// Again and again, with this mean time in between.
    Every(Duration),
}

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Strength::Share(ppm) => write!(f, "{}.{:02} %", ppm / 10_000, ppm / 100 % 100),
            Strength::Every(mean) => write!(f, "every {} ms", mean.as_millis()),
        }
    }
}

/// The faults of one run with their strengths; those that are not in it are off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    strengths: Vec<(Fault, Strength)>,
}

/// Each allowed fault is on in this share of the runs.
const ON: Ppm = 650_000;

impl Drawn {
    /// Draws from the allowed ones.
    pub(super) fn draw(allowed: Faults, chance: &mut Chance) -> Self {
        let mut strengths = Vec::new();
        for &fault in Fault::ALL {
            // Both are drawn whether or not the fault is allowed: forbidding one leaves the
            // others as they were, which is what makes a failing run shrink.
            let (on, strength) = (chance.hits(ON), draw_strength(fault, chance));
            if on && allowed.contains(fault) {
                strengths.push((fault, strength));
            }
        }
        Drawn { strengths }
    }

    /// How strong a fault is; `None` if it is off.
    pub fn strength(&self, fault: Fault) -> Option<Strength> {
        self.strengths
            .iter()
            .find(|(on, _)| *on == fault)
            .map(|(_, strength)| *strength)
    }

    /// The share of messages or calls that a fault hits.
    pub(super) fn share(&self, fault: Fault) -> Ppm {
        match self.strength(fault) {
            Some(Strength::Share(ppm)) => ppm,
            Some(Strength::Every(_)) | None => 0,
        }
    }

    /// The faults that come by themselves, with the mean time between two of them.
    pub(super) fn recurring(&self) -> impl Iterator<Item = (Fault, Duration)> {
        self.strengths
            .iter()
            .filter_map(|&(fault, strength)| match strength {
                Strength::Every(mean) => Some((fault, mean)),
                Strength::Share(_) => None,
            })
    }

    /// Which faults are on.
    pub fn faults(&self) -> Faults {
        self.strengths
            .iter()
            .fold(Faults::none(), |faults, &(fault, _)| faults.with(fault))
    }
}

impl fmt::Display for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.strengths.is_empty() {
            return f.write_str("no faults");
        }
        for (n, (fault, strength)) in self.strengths.iter().enumerate() {
            let separator = if n == 0 { "" } else { " · " };
            write!(f, "{separator}{fault} {strength}")?;
        }
        Ok(())
    }
}

fn draw_strength(fault: Fault, chance: &mut Chance) -> Strength {
    let mut share = |first, last| Strength::Share(chance.magnitude(first..=last) as u32);
    match fault {
        Fault::DropRequest | Fault::LoseReply => share(500, 60_000),
        Fault::Delay | Fault::Duplicate => share(500, 100_000),
        Fault::Aim => share(2_000, 200_000),
        Fault::Cancel => share(2_000, 150_000),
        Fault::Crash => share(1_000, 60_000),
        Fault::SlowTso => share(5_000, 300_000),
        Fault::StalePd => share(50_000, 1_000_000),
        Fault::Split | Fault::Merge | Fault::TransferLeader => every(chance, 20, 2_000),
        Fault::Reset | Fault::Cut | Fault::LoseLeader => every(chance, 50, 3_000),
        Fault::StopStore | Fault::PdOutage => every(chance, 300, 6_000),
        Fault::DieInWrite => share(200, 8_000),
        Fault::MovePeer => every(chance, 20, 2_000),
        Fault::BusyStore => every(chance, 100, 3_000),
        Fault::SlowStore | Fault::DiskFull => every(chance, 300, 5_000),
        Fault::JumpTso => every(chance, 300, 8_000),
        // Each change may put timestamps seconds ahead of the clock, where locks do not age.
        Fault::PdLeaderChange => every(chance, 1_000, 8_000),
        Fault::StepDown => share(200, 10_000),
        Fault::MovedLocks => share(500, 50_000),
        Fault::PdHole | Fault::LateSync | Fault::AsyncApply => share(50_000, 1_000_000),
        Fault::Strangers => every(chance, 20, 2_000),
        Fault::HandOver | Fault::Lag | Fault::Roles | Fault::CloseStream => {
            every(chance, 50, 3_000)
        }
        Fault::MoveRegion | Fault::LateApply | Fault::HalfOpen => every(chance, 100, 4_000),
        Fault::Recovery
        | Fault::Shatter
        | Fault::Freeze
        | Fault::PdBusy
        | Fault::PdStarting
        | Fault::PdForgets => every(chance, 300, 6_000),
        Fault::Isolate
        | Fault::Flashback
        | Fault::NewAddress
        | Fault::ComeAndGo
        | Fault::CloseStore
        | Fault::PdMembers => every(chance, 500, 8_000),
        // The clock leaps with it.
        Fault::Garbage => every(chance, 2_000, 10_000),
    }
}

fn every(chance: &mut Chance, first_ms: u64, last_ms: u64) -> Strength {
    Strength::Every(Duration::from_millis(chance.magnitude(first_ms..=last_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(seed: u64, allowed: Faults) -> Drawn {
        Drawn::draw(allowed, &mut Chance::stream(seed, "faults"))
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let faults = Faults::none().with(Fault::Split).with(Fault::Crash);
        assert!(faults.contains(Fault::Split) && !faults.contains(Fault::Merge));
        assert_eq!(
            faults.iter().collect::<Vec<_>>(),
            [Fault::Split, Fault::Crash]
        );
        assert_eq!(
            faults.without(Fault::Split).without(Fault::Crash),
            Faults::none()
        );
        assert_eq!(Faults::all().iter().count(), Fault::ALL.len());
        for set in [faults, Faults::all(), Faults::none()] {
            assert_eq!(set.to_string().parse(), Ok(set));
        }
        assert!("splat".parse::<Faults>().is_err());
        let first = Faults::first_menu();
        assert!(first.contains(Fault::Crash) && !first.contains(Fault::SlowStore));
    }

    #[test]
    fn each_seed_switches_another_part_off() {
        let sets: Vec<Faults> = (0..50)
            .map(|seed| drawn(seed, Faults::all()).faults())
            .collect();
        for &fault in Fault::ALL {
            let on = sets.iter().filter(|set| set.contains(fault)).count();
            assert!((15..50).contains(&on), "{fault} is on in {on} of 50");
        }
    }

    #[test]
    fn forbidding_one_leaves_the_others_as_they_were() {
        for seed in 0..20 {
            let all = drawn(seed, Faults::all());
            let fewer = drawn(seed, Faults::all().without(Fault::Split));
            assert_eq!(fewer.strength(Fault::Split), None);
            for &fault in Fault::ALL.iter().filter(|&&fault| fault != Fault::Split) {
                assert_eq!(fewer.strength(fault), all.strength(fault));
            }
        }
    }
}
