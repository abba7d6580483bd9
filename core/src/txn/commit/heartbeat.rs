//! Keeps the primary lock of a long commit alive. (client-go: `ttlManager`)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tikv_proto::kvrpcpb;

use super::ttl::millis;
use crate::backoff::budget;
use crate::key::Key;
use crate::operation::{Io, Operation};
use crate::rpc::cluster::Cluster;
use crate::rpc::send::SendOptions;
use crate::time::Timestamp;
use crate::why::Why;

/// For how long a transaction is kept alive (client-go: `maxTxnTTL`).
const MAX_LIFE: Duration = Duration::from_secs(3600);
/// How many beats in a row may fail.
const MAX_FAILURES: u32 = 10;

/// A heartbeat that stops when this is dropped.
pub(crate) struct Heartbeat {
    stopped: Arc<AtomicBool>,
}

impl Heartbeat {
    /// Extends the life of the lock on `primary` every half of its time.
    pub(crate) fn start(
        io: &Io,
        cluster: Arc<Cluster>,
        primary: Key,
        start_ts: Timestamp,
    ) -> Heartbeat {
        let stopped = Arc::new(AtomicBool::new(false));
        let watch = stopped.clone();
        io.spawn(Operation::new("heartbeat", |io: Io| async move {
            beat(&io, &cluster, &primary, start_ts, &watch).await;
        }));
        Heartbeat { stopped }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
    }
}

async fn beat(
    io: &Io,
    cluster: &Arc<Cluster>,
    primary: &Key,
    start_ts: Timestamp,
    stopped: &AtomicBool,
) {
    let ttl = cluster.config().managed_lock_ttl;
    let mut failures = 0;
    while failures <= MAX_FAILURES {
        io.sleep_until(io.now() + ttl / 2, Why::Heartbeat).await;
        if stopped.load(Ordering::Acquire) {
            return;
        }
        let mut backoff = cluster.backoff(budget::HEARTBEAT_MS, None);
        let Ok(now) = cluster.timestamp(io, &mut backoff).await else {
            failures += 1;
            continue;
        };
        let age = Duration::from_millis(now.physical_ms().saturating_sub(start_ts.physical_ms()));
        if age > MAX_LIFE {
            return;
        }
        let request = kvrpcpb::TxnHeartBeatRequest {
            primary_lock: primary.as_bytes().clone(),
            start_version: start_ts.as_u64(),
            advise_lock_ttl: millis(age + ttl),
            ..Default::default()
        };
        let options = SendOptions::write(cluster.config());
        match cluster
            .send_to_key(io, &mut backoff, primary, request, &options)
            .await
        {
            // The lock is gone, and with it the reason to go on.
            Ok(reply) if reply.error.is_some() => return,
            Ok(_) => failures = 0,
            Err(_) => failures += 1,
        }
    }
}
