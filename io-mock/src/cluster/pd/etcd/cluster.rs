//! etcd's word on its members and on itself.

use super::RAFT_TERM;
use super::messages::{
    Member, MemberListRequest, MemberListResponse, StatusRequest, StatusResponse,
};
use crate::cluster::failure::GrpcError;
use crate::cluster::pd::Pd;

/// The version of the etcd inside PD.
const VERSION: &str = "3.5.15";

impl Pd {
    pub(crate) fn etcd_members(
        &self,
        member: usize,
        _: MemberListRequest,
    ) -> Result<MemberListResponse, GrpcError> {
        let members = self.members().iter();
        Ok(MemberListResponse {
            header: self.etcd_header(member),
            members: members
                .map(|member| Member {
                    id: member.member_id,
                    name: member.name.clone(),
                    peer_urls: member.peer_urls.clone(),
                    client_urls: member.client_urls.clone(),
                })
                .collect(),
        })
    }

    pub(crate) fn etcd_status(
        &self,
        member: usize,
        _: StatusRequest,
    ) -> Result<StatusResponse, GrpcError> {
        let leader = self.leader().and_then(|leader| self.members().get(leader));
        Ok(StatusResponse {
            header: self.etcd_header(member),
            version: VERSION.to_owned(),
            leader: leader.map_or(0, |leader| leader.member_id),
            raft_term: RAFT_TERM,
        })
    }
}
