//! What the examples share: a cluster to talk to, and numbers to show.

#![allow(dead_code, reason = "each example uses its part")]

pub(crate) mod numbers;

use std::io;

use tikv_io_mock::serve::ServedCluster;

/// A cluster to talk to.
pub(crate) struct Target {
    /// Where its PD listens.
    pub(crate) pd: Vec<String>,
    /// The cluster itself, if it runs within this process.
    pub(crate) embedded: Option<ServedCluster>,
}

impl Target {
    /// The cluster at these addresses of PD, or an embedded one if there are none.
    pub(crate) async fn new(pd: Vec<String>) -> io::Result<Target> {
        if !pd.is_empty() {
            return Ok(Target { pd, embedded: None });
        }
        let cluster = ServedCluster::builder().stores(3).start().await?;
        println!(
            "embedded cluster of 3 stores, PD at {}",
            cluster.pd_address()
        );
        Ok(Target {
            pd: cluster.pd_endpoints(),
            embedded: Some(cluster),
        })
    }
}

/// The addresses on a command line that has nothing else: `[PD]...`
pub(crate) fn pd_from_args() -> Vec<String> {
    std::env::args().skip(1).collect()
}
