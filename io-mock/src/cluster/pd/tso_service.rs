//! Timestamps as a service of its own, `tsopb.TSO`, beside PD's: the mode that PD can be switched to
//! and back while clients are at work.
//!
//! Its servers stand where the members of PD do, at the same addresses, with a primary of their own.
//! They give out the same timestamps as PD does otherwise, so they rise across a switch. All keyspaces
//! are in one group, the default one. In this mode PD still answers for timestamps, by asking the
//! service, whichever member is asked.

use tikv_proto::pdpb::Timestamp;
use tikv_proto::tsopb::{
    Error, ErrorType, FindGroupByKeyspaceIdRequest, FindGroupByKeyspaceIdResponse, GetMinTsRequest,
    GetMinTsResponse, KeyspaceGroup, KeyspaceGroupMember, RequestHeader, ResponseHeader,
    TsoRequest, TsoResponse,
};

use super::Pd;
use crate::cluster::failure::{GrpcCode, GrpcError};

/// The group of the keyspaces that are assigned to no other, which here are all.
const DEFAULT_GROUP: u32 = 0;
/// One more than the greatest id of a group.
const GROUPS_MAX: u32 = 4096;

/// The service of timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TsoService {
    /// The server that gives timestamps out, counted from 0; `None` during an election.
    pub primary: Option<usize>,
}

impl Pd {
    /// Switches the service of timestamps on, with the server that is its primary, or off.
    pub fn set_tso_service(&mut self, now_ms: u64, service: Option<TsoService>) {
        let members = self.members.len();
        let service = service.map(|service| TsoService {
            primary: service.primary.filter(|&server| server < members),
        });
        if service == self.tso_service {
            return;
        }
        // Whoever gives them out next starts above what the last one could have given.
        self.resume_tso(now_ms);
        self.tso_service = service;
        self.tso_changes += 1;
        self.watched += 1;
    }

    /// The service of timestamps, if that is not PD itself.
    pub fn tso_service(&self) -> Option<TsoService> {
        self.tso_service
    }

    /// Where the service listens; nowhere if PD gives timestamps out.
    pub(super) fn tso_urls(&self) -> Vec<String> {
        let servers = self.tso_service.map(|_| self.members.iter());
        let urls = servers.into_iter().flatten().map(tso_url);
        urls.collect()
    }

    /// Answers one request of the service's stream; a failure ends it.
    pub fn tso_service_tso(
        &mut self,
        now_ms: u64,
        server: usize,
        request: TsoRequest,
    ) -> Result<TsoResponse, GrpcError> {
        let service = self.served_tso()?;
        let header = request.header.unwrap_or_default();
        self.check_cluster_id(header.cluster_id)?;
        self.check_callee(server, &header)
            .map_err(|message| GrpcError::new(GrpcCode::FailedPrecondition, message))?;
        let unknown = |message: String| GrpcError::new(GrpcCode::Unknown, message);
        if header.keyspace_group_id >= GROUPS_MAX {
            return Err(unknown(format!(
                "[PD:tso:ErrKeyspaceGroupIDInvalid]the keyspace group id is invalid, {} shouldn't \
                 >= {GROUPS_MAX}",
                header.keyspace_group_id
            )));
        }
        if header.keyspace_group_id != DEFAULT_GROUP {
            return Err(unknown(format!(
                "[PD:tso:ErrKeyspaceNotAssigned]the keyspace {} isn't assigned to any keyspace group",
                keyspace(&header)
            )));
        }
        if service.primary != Some(server) {
            return Err(not_leading());
        }
        Ok(TsoResponse {
            header: Some(self.tso_header()),
            count: request.count,
            timestamp: Some(self.allocate_tso(now_ms, request.count)?),
        })
    }

    /// Tells which group of keyspaces a keyspace belongs to, and who serves it.
    pub fn find_group_by_keyspace_id(
        &self,
        server: usize,
        request: FindGroupByKeyspaceIdRequest,
    ) -> Result<FindGroupByKeyspaceIdResponse, GrpcError> {
        let service = self.served_tso()?;
        let header = request.header.unwrap_or_default();
        let refused = |error| {
            Ok(FindGroupByKeyspaceIdResponse {
                header: Some(ResponseHeader {
                    error: Some(error),
                    ..self.group_header(header.keyspace_group_id)
                }),
                ..FindGroupByKeyspaceIdResponse::default()
            })
        };
        if let Err(error) = self.check_tso_header(server, &header) {
            return refused(error);
        }
        if request.mod_revision > self.tso_changes {
            let message = "[PD:keyspace:ErrKeyspaceGroupModRevisionStale]keyspace group mod revision \
                           is stale";
            return refused(error(ErrorType::InvalidValue, message));
        }
        let members = self.members.iter().enumerate();
        let members = members.map(|(index, member)| KeyspaceGroupMember {
            address: tso_url(member),
            is_primary: service.primary == Some(index),
        });
        Ok(FindGroupByKeyspaceIdResponse {
            header: Some(self.tso_header()),
            keyspace_group: Some(KeyspaceGroup {
                id: DEFAULT_GROUP,
                user_kind: "basic".to_owned(),
                split_state: None,
                members: members.collect(),
            }),
            mod_revision: self.tso_changes,
        })
    }

    /// A timestamp not above any that a server's groups will give out; none from one that serves no
    /// group.
    pub fn tso_service_min_ts(
        &mut self,
        now_ms: u64,
        server: usize,
        request: GetMinTsRequest,
    ) -> Result<GetMinTsResponse, GrpcError> {
        let service = self.served_tso()?;
        let header = request.header.unwrap_or_default();
        let own = self.group_header(header.keyspace_group_id);
        if let Err(error) = self.check_tso_header(server, &header) {
            return Ok(GetMinTsResponse {
                header: Some(ResponseHeader {
                    error: Some(error),
                    ..own
                }),
                ..GetMinTsResponse::default()
            });
        }
        let told = |header, timestamp, keyspace_groups_serving| GetMinTsResponse {
            header: Some(header),
            timestamp: Some(timestamp),
            keyspace_groups_serving,
            keyspace_groups_total: 1,
        };
        Ok(match service.primary {
            Some(primary) if primary == server => told(own, self.allocate_tso(now_ms, 1)?, 1),
            Some(_) => told(own, Timestamp::default(), 0),
            None => {
                let error = Some(error(ErrorType::Unknown, NO_PRIMARY));
                told(ResponseHeader { error, ..own }, Timestamp::default(), 0)
            }
        })
    }

    /// Which service answers a request to PD for timestamps may not matter to a member, or it does.
    ///
    /// # Errors
    ///
    /// Nobody may give any out now.
    pub(super) fn check_gives_timestamps(&self, member: usize) -> Result<(), GrpcError> {
        match self.tso_service {
            Some(TsoService { primary: Some(_) }) => Ok(()),
            None if self.leader == Some(member) => Ok(()),
            Some(TsoService { primary: None }) | None => Err(not_leading()),
        }
    }

    /// A server that nobody has started knows no such service.
    fn served_tso(&self) -> Result<TsoService, GrpcError> {
        let absent = || GrpcError::new(GrpcCode::Unimplemented, "unknown service tsopb.TSO");
        self.tso_service.ok_or_else(absent)
    }

    fn check_tso_header(&self, server: usize, header: &RequestHeader) -> Result<(), Error> {
        self.check_cluster_id(header.cluster_id)
            .map_err(|wrong| error(ErrorType::ClusterMismatched, wrong.message))?;
        self.check_callee(server, header)
            .map_err(|message| error(ErrorType::InvalidValue, message))
    }

    /// A request may say whom it is meant for.
    fn check_callee(&self, server: usize, header: &RequestHeader) -> Result<(), String> {
        let url = self.members.get(server).map(tso_url).unwrap_or_default();
        let host = url.rsplit("//").next().unwrap_or_default();
        let callee = &header.callee_id;
        if callee.is_empty() || callee == host {
            return Ok(());
        }
        Err(format!("mismatch callee id, need {url} but got {callee}"))
    }

    fn tso_header(&self) -> ResponseHeader {
        self.group_header(DEFAULT_GROUP)
    }

    fn group_header(&self, keyspace_group_id: u32) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id,
            keyspace_group_id,
            ..ResponseHeader::default()
        }
    }
}

/// Why there is no least timestamp.
pub(super) const NO_PRIMARY: &str =
    "[PD:tso:ErrGetMinTS]get min ts failed, keyspace group 0's primary is not elected";

fn not_leading() -> GrpcError {
    GrpcError::new(
        GrpcCode::Unknown,
        "[PD:tso:ErrGenerateTimestamp]generate timestamp failed, requested pd is not leader of cluster",
    )
}

fn error(kind: ErrorType, message: impl Into<String>) -> Error {
    Error {
        r#type: kind.into(),
        message: message.into(),
    }
}

fn tso_url(member: &tikv_proto::pdpb::Member) -> String {
    member.client_urls.first().cloned().unwrap_or_default()
}

fn keyspace(header: &RequestHeader) -> u32 {
    use tikv_proto::tsopb::request_header::Keyspace;
    match &header.keyspace {
        Some(Keyspace::KeyspaceId(id)) => *id,
        Some(Keyspace::KeyspaceIdentity(_)) | None => 0,
    }
}
