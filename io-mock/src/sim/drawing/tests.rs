//! The page of a whole run: it needs nothing but itself, every message is on it, and lanes and
//! colours are those of the run.

use std::io::Write;
use std::sync::{Arc, Mutex};

use super::super::{Bounds, Fault, Faults, Report, Simulation};
use crate::workload::Workload;

/// A file in memory that outlives its writer.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Page {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn draw(workload: Workload, seed: u64) -> (Report, String) {
    let page = Page::default();
    // Requests to addresses where nobody listens any more have no lane to go to.
    let faults = Faults::all()
        .without(Fault::NewAddress)
        .without(Fault::ComeAndGo)
        .without(Fault::PdMembers);
    let simulation = workload.simulation(seed, &Bounds::faults(faults));
    let report = workload.try_run(simulation.drawing(page.clone()));
    (report.unwrap(), page.text())
}

/// How often something stands in a text.
fn count(text: &str, what: &str) -> u64 {
    text.matches(what).count() as u64
}

#[test]
fn a_run_is_drawn_whole_on_a_page_of_its_own() {
    for (workload, seed) in [
        (Workload::Bank, 1),
        (Workload::Bank, 2),
        (Workload::Register, 3),
    ] {
        let (report, page) = draw(workload, seed);
        for outside in ["src=", "href=", "url(", "@import", "<link", "fetch("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains(&format!("seed {seed} ")), "its name");
        let asked = count(&page, "class=\"ask\"") + count(&page, "class=\"ask lost\"");
        assert_eq!(asked, report.stats.rpcs);
        for node in (1..=report.plan.stores).map(|store| format!(">s{store}</text>")) {
            assert!(count(&page, &node) <= 1, "one lane each");
        }
        assert!(page.contains(">c0</text>") && page.contains(">pd0</text>"));
        assert_eq!(page.contains("class=\"x t1\""), workload == Workload::Bank);
    }
}

#[test]
fn a_drawing_changes_nothing() {
    let drawn = draw(Workload::Bank, 5).0;
    let plain = Workload::Bank.run(5, &Bounds::faults(drawn.plan.faults.faults()));
    assert_eq!(drawn, plain.unwrap());
}

#[test]
fn what_is_written_on_it_means_nothing_else() {
    let page = Page::default();
    let simulation = Simulation::seed(1).drawing(page.clone());
    simulation.run(async |sim| {
        sim.note(|| "<script>&".to_owned());
        Ok(())
    });
    assert!(page.text().contains("&lt;script&gt;&amp;"));
}
