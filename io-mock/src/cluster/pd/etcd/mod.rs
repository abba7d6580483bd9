//! The etcd inside PD, which clients reach at PD's own address: keys and values with revisions,
//! transactions, leases and watches over [the one storage](super::meta_storage) of metadata.
//!
//! Every member answers, whoever leads PD. What old nodes of TiDB leave there for PD to find, and
//! the other way round, [is in both places](pd_keys). Deliberately absent: PD's other keys, users
//! and roles, snapshots, changes of members.

mod cluster;
mod kv;
mod lease;
pub(crate) mod messages;
mod pd_keys;
#[cfg(test)]
mod tests;
mod txn;
pub(crate) mod watch;

pub(super) use self::lease::{Lease, Leases};

use self::messages::Header;
use super::Pd;
use crate::cluster::failure::{GrpcCode, GrpcError};

/// The term of etcd's leader; nothing here depends on it.
const RAFT_TERM: u64 = 2;

impl Pd {
    fn etcd_header(&self, member: usize) -> Option<Header> {
        let id = self.members().get(member).map(|member| member.member_id);
        Some(Header {
            cluster_id: self.cluster_id,
            member_id: id.unwrap_or_default(),
            revision: self.meta.revision(),
            raft_term: RAFT_TERM,
        })
    }

    /// Brings the storage up to the present: what PD has done and what has ended by itself.
    fn etcd_catch_up(&mut self, now_ms: u64) {
        self.etcd_end_leases(now_ms);
        self.etcd_tell_safe_points();
    }
}

fn invalid(message: &str) -> GrpcError {
    failed(GrpcCode::InvalidArgument, message)
}

fn failed(code: GrpcCode, message: &str) -> GrpcError {
    GrpcError::new(code, format!("etcdserver: {message}"))
}

fn no_key() -> GrpcError {
    invalid("key is not provided")
}

fn no_lease() -> GrpcError {
    failed(GrpcCode::NotFound, "requested lease not found")
}

fn compacted() -> GrpcError {
    let message = "mvcc: required revision has been compacted";
    failed(GrpcCode::OutOfRange, message)
}

fn future() -> GrpcError {
    let message = "mvcc: required revision is a future revision";
    failed(GrpcCode::OutOfRange, message)
}
