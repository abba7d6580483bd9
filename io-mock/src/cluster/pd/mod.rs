//! PD: members, timestamps, what it believes of regions and stores, and the safe point.
//!
//! PD's picture of regions is its own: it changes only by heartbeats, so it may be old, and a key
//! may have no region for a while. Every entry point takes the member that is asked, counted from
//! 0; only some requests may be answered by one that does not lead.
//!
//! Deliberately absent: placement. PD never moves a region by itself, only when it is asked to
//! scatter.

#[cfg_attr(
    not(feature = "serve"),
    expect(dead_code, reason = "only the servers of PD's members ask etcd")
)]
pub(crate) mod etcd;
mod gc;
mod gc_calls;
mod gc_legacy;
mod global_config;
mod heartbeats;
pub mod keyspaces;
mod known_regions;
mod members;
mod meta_storage;
mod operators;
mod regions;
mod resource_groups;
mod saved;
mod store_life;
mod stores;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod token_buckets;
mod tso;
pub mod tso_service;

use tikv_proto::pdpb::{self, ErrorType, RequestHeader, ResponseHeader};

pub use self::gc::GcState;
pub use self::known_regions::{KnownRegion, KnownRegions};
pub use self::tso::Tso;
use super::Config;
use super::failure::{GrpcCode, GrpcError};

/// PD.
#[derive(Clone, Debug)]
pub struct Pd {
    cluster_id: u64,
    members: Vec<pdpb::Member>,
    leader: Option<usize>,
    /// Followers may answer region look-ups when the client allows it.
    follower_handles: bool,
    last_id: u64,
    tso: Tso,
    /// The service that gives timestamps out, if PD itself does not.
    tso_service: Option<tso_service::TsoService>,
    /// How often that has changed.
    tso_changes: u64,
    regions: KnownRegions,
    /// What members that do not lead know of regions, if they do not keep up.
    followers_know: Option<KnownRegions>,
    gc: gc::GcStates,
    keyspaces: keyspaces::Keyspaces,
    meta: meta_storage::MetaStorage,
    resources: resource_groups::ResourceGroups,
    operators: operators::Operators,
    external_ts: u64,
    /// Counts the changes that somebody may watch.
    watched: u64,
    /// How many requests are still to be refused because there have been too many.
    too_many: u32,
}

impl Pd {
    pub(super) fn new(config: &Config) -> Self {
        Pd {
            cluster_id: config.cluster_id,
            members: (0..config.pd_members.max(1))
                .map(members::new_member)
                .collect(),
            leader: Some(0),
            follower_handles: true,
            last_id: 0,
            tso: Tso::default(),
            tso_service: None,
            tso_changes: 0,
            regions: KnownRegions::default(),
            followers_know: None,
            gc: gc::GcStates::default(),
            keyspaces: keyspaces::Keyspaces::default(),
            meta: meta_storage::MetaStorage::default(),
            resources: resource_groups::ResourceGroups::default(),
            operators: operators::Operators::default(),
            external_ts: 0,
            watched: 0,
            too_many: 0,
        }
    }

    /// The regions as its leader knows them.
    pub fn known_regions(&self) -> &KnownRegions {
        &self.regions
    }

    /// How many changes there have been to what can be watched: keyspaces, global configuration,
    /// stored metadata, who leads.
    pub fn watched_changes(&self) -> u64 {
        self.watched
    }

    /// Has the next requests refused as if there had been too many; 0 ends it. Streams and the question
    /// who the members are pass.
    pub fn refuse_requests(&mut self, count: u32) {
        self.too_many = count;
    }

    /// Whether there have not been too many requests.
    pub(crate) fn check_rate(&mut self) -> Result<(), GrpcError> {
        if self.too_many == 0 {
            return Ok(());
        }
        self.too_many -= 1;
        let text = "[PD:common:ErrRateLimitExceeded]rate limit exceeded";
        Err(GrpcError::new(GrpcCode::ResourceExhausted, text))
    }

    /// The next id for a store, region or peer.
    pub fn alloc_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: self.cluster_id,
            error: None,
        })
    }

    fn error_header(&self, kind: ErrorType, message: impl Into<String>) -> Option<ResponseHeader> {
        let error = Some(pdpb::Error {
            r#type: kind.into(),
            message: message.into(),
        });
        Some(ResponseHeader {
            cluster_id: self.cluster_id,
            error,
        })
    }

    /// What comes before every request but those about members.
    fn check(&self, member: usize, header: Option<&RequestHeader>) -> Result<(), GrpcError> {
        if self.leader != Some(member) {
            return Err(GrpcError::new(GrpcCode::Unavailable, "not leader"));
        }
        self.check_cluster(header)
    }

    fn check_cluster(&self, header: Option<&RequestHeader>) -> Result<(), GrpcError> {
        self.check_cluster_id(header.map_or(0, |header| header.cluster_id))
    }

    fn check_cluster_id(&self, got: u64) -> Result<(), GrpcError> {
        if got == self.cluster_id {
            return Ok(());
        }
        Err(GrpcError::new(
            GrpcCode::FailedPrecondition,
            format!(
                "mismatch cluster id, need {} but got {got}",
                self.cluster_id
            ),
        ))
    }

    /// The same for look-ups that a follower may answer when the client allows it.
    fn check_lookup(
        &self,
        member: usize,
        follower_allowed: bool,
        header: Option<&RequestHeader>,
    ) -> Result<(), GrpcError> {
        if self.leader != Some(member) && !follower_allowed {
            return Err(GrpcError::new(
                GrpcCode::Unavailable,
                "not leader and follower handling not allowed",
            ));
        }
        self.check_cluster(header)
    }
}
