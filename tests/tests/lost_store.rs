//! What a client does about a store that went away: it is asked once whether it lives, however
//! many requests failed, and its return is noticed soon.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tikv_io_mock::sim::Simulation;

/// Keeps what is written.
#[derive(Clone, Default)]
struct Trace(Arc<Mutex<Vec<u8>>>);

impl Write for Trace {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Trace {
    fn count(&self, word: &str) -> usize {
        let trace = self.0.lock().expect("nobody panics");
        String::from_utf8_lossy(&trace).matches(word).count()
    }
}

#[test]
fn a_lost_store_is_probed_once_by_all_and_found_again_soon() {
    let trace = Trace::default();
    let seen = trace.clone();
    Simulation::seed(1)
        .calm()
        .plan(|plan| plan.stores = 1)
        .timeline(trace)
        .run(async move |sim| {
            let client = sim.raw_client().await.expect("all is well");
            client.put("a", "1").await.expect("all is well");
            let before = seen.count("HealthCheck");
            sim.cluster(|cluster| cluster.stop_store(1));
            let readers: Vec<_> = (0..50)
                .map(|_| {
                    let client = client.clone();
                    sim.spawn(async move { client.get("a").await.map(drop) })
                })
                .collect();
            sim.sleep(Duration::from_millis(400)).await;
            let probes = seen.count("HealthCheck") - before;
            assert!((1..10).contains(&probes), "{probes} probes");

            let now_ms = sim.now().as_millis();
            sim.cluster(|cluster| cluster.start_store(now_ms, 1));
            let back = sim.now();
            for reader in readers {
                reader.await.expect("the store is back");
            }
            let took = sim.now() - back;
            assert!(took < Duration::from_millis(1_500), "{took:?}");
            Ok(())
        });
}
