//! Each fault of the second half of the menu by itself: clients survive it, and it leaves its mark.

use tikv_io_mock::sim::{Bounds, Fault, Faults, Mark};
use tikv_io_mock::workload::Workload;

/// Until then a fault must have shown itself.
const SEEDS: u64 = 120;

/// A fault, what else it takes, and the mark that it leaves.
const FAULTS: &[(Fault, &[Fault], Mark)] = &[
    (Fault::StepDown, &[], Mark::SteppedDown),
    (Fault::HandOver, &[], Mark::HandedOver),
    (Fault::Recovery, &[], Mark::Recovering),
    (Fault::Isolate, &[], Mark::NoMajority),
    (Fault::Lag, &[Fault::TransferLeader], Mark::NotLeader),
    (Fault::LateApply, &[], Mark::OlderRegions),
    (Fault::MovedLocks, &[], Mark::LocksMoved),
    (Fault::Shatter, &[], Mark::SplitToPieces),
    (Fault::Roles, &[], Mark::RoleChanged),
    (Fault::Flashback, &[], Mark::FlashbackMet),
    (Fault::MoveRegion, &[], Mark::RegionMoved),
    (Fault::NewAddress, &[], Mark::WrongStore),
    (Fault::ComeAndGo, &[], Mark::StoreBuried),
    (Fault::CloseStore, &[], Mark::StoreClosing),
    (Fault::CloseStream, &[], Mark::StreamClosed),
    (Fault::HalfOpen, &[], Mark::HalfOpen),
    (Fault::Freeze, &[], Mark::ClientFroze),
    (Fault::PdBusy, &[Fault::Split], Mark::PdBusy),
    (Fault::PdStarting, &[Fault::Split], Mark::PdStarting),
    (Fault::PdForgets, &[Fault::Merge], Mark::PdKnowsNoLeader),
    (Fault::PdMembers, &[], Mark::PdMembersChanged),
    (Fault::PdHole, &[Fault::Split], Mark::PdHeardInParts),
    (Fault::Strangers, &[], Mark::SecondariesAsked),
    (Fault::LateSync, &[Fault::TransferLeader], Mark::SyncedLate),
    (Fault::AsyncApply, &[Fault::Strangers], Mark::AppliedLate),
    (Fault::Garbage, &[], Mark::GarbageGone),
];

#[test]
fn each_fault_is_survived_by_itself_and_leaves_its_mark() {
    for &(fault, others, mark) in FAULTS {
        let faults = others
            .iter()
            .fold(Faults::none().with(fault), |all, &it| all.with(it));
        let bounds = Bounds::faults(faults);
        let mut reached = false;
        // Some of them go on after the mark, so that more than one run survives it.
        for seed in 0..SEEDS {
            let workload = Workload::ALL[seed as usize % Workload::ALL.len()];
            let report = workload
                .run(seed, &bounds)
                .unwrap_or_else(|failure| panic!("{fault}: {failure}"));
            reached |= report.marks.has(mark);
            if reached && seed >= SEEDS / 20 {
                break;
            }
        }
        assert!(reached, "{fault} never led to {mark}");
    }
}

#[test]
fn the_table_names_every_fault_since_the_second_menu() {
    let named: Vec<Fault> = FAULTS.iter().map(|(fault, ..)| *fault).collect();
    let menu: Vec<Fault> = Fault::ALL[Fault::ALL.len() - FAULTS.len()..].to_vec();
    assert_eq!(named, menu);
    let book = include_str!("../../docs/src/faults.md");
    for fault in Fault::ALL {
        let name = fault.name().replace(' ', "-");
        assert!(book.contains(&format!("`{name}`")), "the book lacks {name}");
    }
}
