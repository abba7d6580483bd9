//! What everything that a client begins has in common.

use std::sync::Arc;
use std::time::Duration;

use crate::driver::Driver;
use crate::rpc::cluster::Cluster;
use crate::time::Instant;
use crate::txn::lock::resolver::LockResolver;

/// What all transactions of a client share.
pub(super) struct Shared {
    pub(super) cluster: Arc<Cluster>,
    pub(super) resolver: Arc<LockResolver>,
}

/// When a call has to end that begins now.
pub(super) fn deadline<D: Driver>(driver: &D, timeout: Option<Duration>) -> Option<Instant> {
    timeout.map(|timeout| driver.now() + timeout)
}
