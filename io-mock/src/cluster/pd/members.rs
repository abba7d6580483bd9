//! The members of PD: who they are and who leads.

use tikv_proto::metapb;
use tikv_proto::pdpb::{
    AllocIdRequest, AllocIdResponse, BootstrapRequest, BootstrapResponse, ErrorType,
    GetClusterConfigRequest, GetClusterConfigResponse, GetClusterInfoRequest,
    GetClusterInfoResponse, GetExternalTimestampRequest, GetExternalTimestampResponse,
    GetMembersRequest, GetMembersResponse, IsBootstrappedRequest, IsBootstrappedResponse,
    IsSnapshotRecoveringRequest, IsSnapshotRecoveringResponse, Member, ServiceMode,
    SetExternalTimestampRequest, SetExternalTimestampResponse,
};

use super::Pd;
use crate::cluster::failure::GrpcError;

pub(super) fn new_member(index: u64) -> Member {
    Member {
        name: format!("pd{index}"),
        member_id: 1_000 + index,
        peer_urls: vec![format!("http://127.0.0.1:{}", 2_380 + 10 * index)],
        client_urls: vec![format!("http://127.0.0.1:{}", 2_379 + 10 * index)],
        ..Member::default()
    }
}

impl Pd {
    /// The members, leader or not.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member that leads, counted from 0; `None` during an election.
    pub fn leader(&self) -> Option<usize> {
        self.leader
    }

    /// Moves leadership. A new leader's timestamps start above the old one's.
    pub fn set_leader(&mut self, now_ms: u64, leader: Option<usize>) {
        let leader = leader.filter(|&index| index < self.members.len());
        if leader.is_some() && leader != self.leader {
            self.resume_tso(now_ms);
        }
        self.leader = leader;
        self.watched += 1;
    }

    /// Whether followers are ready to answer region look-ups.
    pub fn set_follower_handles(&mut self, ready: bool) {
        self.follower_handles = ready;
    }

    /// Tells where a member listens.
    pub fn set_client_urls(&mut self, member: usize, urls: Vec<String>) {
        if let Some(member) = self.members.get_mut(member) {
            member.client_urls = urls;
        }
    }

    /// Adds a member and returns its number.
    pub fn add_member(&mut self) -> usize {
        let index = self.members.len();
        self.members.push(new_member(index as u64));
        index
    }

    /// Tells who the members are; any of them answers.
    pub fn get_members(
        &self,
        _member: usize,
        _request: GetMembersRequest,
    ) -> Result<GetMembersResponse, GrpcError> {
        let leader = self
            .leader
            .and_then(|index| self.members.get(index))
            .cloned();
        Ok(GetMembersResponse {
            header: self.header(),
            members: self.members.clone(),
            etcd_leader: leader.clone().map(Box::new),
            leader: leader.map(Box::new),
            ..GetMembersResponse::default()
        })
    }

    /// Tells how PD's services are arranged; any member answers.
    pub fn get_cluster_info(
        &self,
        _member: usize,
        _request: GetClusterInfoRequest,
    ) -> Result<GetClusterInfoResponse, GrpcError> {
        let mode = match self.tso_service() {
            Some(_) => ServiceMode::ApiSvcMode,
            None => ServiceMode::PdSvcMode,
        };
        Ok(GetClusterInfoResponse {
            header: self.header(),
            service_modes: vec![mode.into()],
            tso_urls: self.tso_urls(),
        })
    }

    /// Tells the cluster's configuration.
    pub fn get_cluster_config(
        &self,
        member: usize,
        request: GetClusterConfigRequest,
    ) -> Result<GetClusterConfigResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        Ok(GetClusterConfigResponse {
            header: self.header(),
            cluster: Some(metapb::Cluster {
                id: self.cluster_id,
                max_peer_count: 3,
            }),
        })
    }

    /// Whether the cluster has been set up; here it always has.
    pub fn is_bootstrapped(
        &self,
        member: usize,
        request: IsBootstrappedRequest,
    ) -> Result<IsBootstrappedResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        Ok(IsBootstrappedResponse {
            header: self.header(),
            bootstrapped: true,
        })
    }

    /// Sets the cluster up, which has been done.
    pub fn bootstrap(
        &self,
        member: usize,
        request: BootstrapRequest,
    ) -> Result<BootstrapResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let message = "cluster is already bootstrapped";
        Ok(BootstrapResponse {
            header: self.error_header(ErrorType::AlreadyBootstrapped, message),
            replication_status: None,
        })
    }

    /// Whether the cluster is being restored from a backup; it never is.
    pub fn is_snapshot_recovering(
        &self,
        member: usize,
        request: IsSnapshotRecoveringRequest,
    ) -> Result<IsSnapshotRecoveringResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        Ok(IsSnapshotRecoveringResponse {
            header: self.header(),
            marked: false,
        })
    }

    /// Gives out ids; the reply names the last one.
    pub fn alloc_ids(
        &mut self,
        member: usize,
        request: AllocIdRequest,
    ) -> Result<AllocIdResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let count = request.count.max(1);
        self.last_id += u64::from(count);
        Ok(AllocIdResponse {
            header: self.header(),
            id: self.last_id,
            count,
        })
    }

    /// The timestamp set from outside.
    pub fn get_external_timestamp(
        &self,
        member: usize,
        request: GetExternalTimestampRequest,
    ) -> Result<GetExternalTimestampResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        Ok(GetExternalTimestampResponse {
            header: self.header(),
            timestamp: self.external_ts,
        })
    }

    /// Sets the timestamp from outside: it rises, and stays below those given out.
    pub fn set_external_timestamp(
        &mut self,
        now_ms: u64,
        member: usize,
        request: SetExternalTimestampRequest,
    ) -> Result<SetExternalTimestampResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let refused = if request.timestamp > self.next_tso(now_ms) {
            Some("the external timestamp should not be larger than global ts")
        } else if request.timestamp <= self.external_ts {
            Some("the external timestamp should be larger than now")
        } else {
            None
        };
        let header = match refused {
            Some(message) => self.error_header(ErrorType::InvalidValue, message),
            None => {
                self.external_ts = request.timestamp;
                self.header()
            }
        };
        Ok(SetExternalTimestampResponse { header })
    }
}
