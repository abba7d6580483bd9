//! Calls to PD, sent to the member that leads.
//!
//! A failed call makes the members be asked who leads now, once for all callers that failed; the
//! caller backs off and tries again. What the answers mean is decided in `members`.
//! (PD Go client: `client.go`, `service_discovery`)

mod members;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tikv_proto::{metapb, pdpb};

use crate::action::{Endpoint, Rpc, TsoRequest};
use crate::backoff::Backoffer;
use crate::command::{Command, Response};
use crate::config::Config;
use crate::error::{Error, Result, TransportError};
use crate::flight::{Flights, until};
use crate::key::{Key, KeyRange};
use crate::keyspace::KeyMode;
use crate::operation::Io;
use crate::time::{Instant, Timestamp};
use crate::why::{BackoffKind, Why};

use members::{Learned, Members, means_leader_changed};

/// How long one member may take to say who leads.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(1);

/// A region as PD describes it, with bounds as PD has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PdRegion {
    pub(crate) region: metapb::Region,
    pub(crate) leader: Option<metapb::Peer>,
    pub(crate) down: Vec<metapb::Peer>,
    pub(crate) pending: Vec<metapb::Peer>,
}

/// The way to PD.
pub(crate) struct Pd {
    members: Mutex<Members>,
    refreshes: Arc<Flights<(), ()>>,
    config: Arc<Config>,
    mode: KeyMode,
}

impl Pd {
    pub(crate) fn new(
        endpoints: impl IntoIterator<Item = String>,
        tls: bool,
        mode: KeyMode,
        config: Arc<Config>,
    ) -> Result<Self> {
        let members = Members::new(endpoints, tls)?;
        Ok(Pd {
            members: Mutex::new(members),
            refreshes: Arc::default(),
            config,
            mode,
        })
    }

    /// Zero until [`Pd::refresh`] succeeded once.
    pub(crate) fn cluster_id(&self) -> u64 {
        self.members().cluster_id()
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the members who leads. One question is under way at a time.
    pub(crate) async fn refresh(self: &Arc<Self>, io: &Io) -> Result<()> {
        let pd = self.clone();
        self.refreshes
            .join(io, "pd_member_refresh", (), |io| async move {
                pd.ask_members(&io).await
            })
            .await
    }

    /// As [`Pd::refresh`], but no longer than the caller waits.
    async fn refresh_for(self: &Arc<Self>, io: &Io, backoff: &Backoffer) -> Result<()> {
        until(io, backoff.deadline(), Why::MemberRefresh, self.refresh(io)).await?
    }

    async fn ask_members(&self, io: &Io) -> Result<()> {
        let (urls, cluster_id) = {
            let members = self.members();
            (members.urls().to_vec(), members.cluster_id())
        };
        let mut last = Error::Closed;
        for url in urls {
            let request = pdpb::GetMembersRequest {
                header: Some(self.header(cluster_id)),
            };
            let deadline = io.now() + MEMBER_TIMEOUT.min(self.config.pd_timeout);
            let learned = match self
                .send(io, &url, Command::GetMembers(request), deadline)
                .await
            {
                Ok(Response::GetMembers(reply)) => self.members().learn(&url, &reply),
                Ok(other) => Err(unexpected("GetMembers", &other)),
                Err(error) => Err(error),
            };
            match learned {
                Ok(Learned::SameLeader | Learned::NewLeader) => return Ok(()),
                Err(error @ Error::ClusterIdMismatch { .. }) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// What is to be said when none of the members has answered.
    pub(crate) fn no_answer(&self) -> TransportError {
        let urls = self.members().urls().join(", ");
        TransportError::Deadline {
            address: urls.into(),
            sent: true,
        }
    }

    async fn leader(self: &Arc<Self>, io: &Io, backoff: &Backoffer) -> Result<Arc<str>> {
        if let Some(leader) = self.members().leader() {
            return Ok(leader.clone());
        }
        self.refresh_for(io, backoff).await?;
        self.members().leader().cloned().ok_or(Error::Closed)
    }

    fn header(&self, cluster_id: u64) -> pdpb::RequestHeader {
        pdpb::RequestHeader {
            cluster_id,
            caller_id: "tikv-client-rs".into(),
            caller_component: match self.mode {
                KeyMode::Txn => "txnkv-client-rs".into(),
                KeyMode::Raw => "rawkv-client-rs".into(),
            },
            ..Default::default()
        }
    }

    async fn send(
        &self,
        io: &Io,
        url: &Arc<str>,
        command: Command,
        deadline: Instant,
    ) -> Result<Response> {
        let endpoint = Endpoint::Pd { url: url.clone() };
        let rpc = Rpc {
            endpoint,
            context: None,
            command: Arc::new(command),
            deadline,
        };
        Ok(io.send(rpc).await?)
    }

    /// One call to the leader. After a failure that a new leader may mend, the leader has been
    /// looked up again by the time this returns.
    async fn call_once(
        self: &Arc<Self>,
        io: &Io,
        backoff: &Backoffer,
        command: impl FnOnce(pdpb::RequestHeader) -> Command,
    ) -> Result<Response> {
        let leader = self.leader(io, backoff).await?;
        let command = command(self.header(self.cluster_id()));
        let call = command.label();
        backoff.check(io.now(), None)?;
        let deadline = backoff.request_deadline(io.now(), self.config.pd_timeout);
        match self.send(io, &leader, command, deadline).await {
            Ok(response) => match header_error(&response) {
                None => Ok(response),
                Some(error) => {
                    if means_leader_changed(&error.message) {
                        self.refresh_for(io, backoff).await?;
                    }
                    Err(Error::Pd {
                        call,
                        message: error.message.as_str().into(),
                    })
                }
            },
            Err(error) => {
                // The first error is the more telling one, whatever becomes of the look-up; a
                // mismatch alone is final.
                match self.refresh_for(io, backoff).await {
                    Err(mismatch @ Error::ClusterIdMismatch { .. }) => Err(mismatch),
                    Ok(()) | Err(_) => Err(error),
                }
            }
        }
    }

    /// One call to the leader, repeated until it succeeds or the budget is used up.
    async fn call(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        command: impl Fn(pdpb::RequestHeader) -> Command,
    ) -> Result<Response> {
        loop {
            match self.call_once(io, backoff, &command).await {
                Ok(response) => return Ok(response),
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => backoff.wait(io, BackoffKind::PdRpc, error).await?,
            }
        }
    }

    /// The region that holds a key. An answer without a region counts as a failure and is asked
    /// for again: every key belongs to a region.
    pub(crate) async fn region_by_key(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        key: &Key,
    ) -> Result<PdRegion> {
        let region_key = self.mode.encode(key);
        self.region(io, backoff, |header| {
            Command::GetRegion(pdpb::GetRegionRequest {
                header: Some(header),
                region_key: region_key.clone(),
                need_buckets: false,
            })
        })
        .await
    }

    /// The region that ends at, or holds, the key before `end`; the last region for `None`.
    pub(crate) async fn region_by_end(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        end: Option<&Key>,
    ) -> Result<PdRegion> {
        let Some(end) = end else {
            return self.last_region(io, backoff).await;
        };
        let region_key = self.mode.encode(end);
        loop {
            let region = self.region_by_key(io, backoff, end).await?;
            if region.region.start_key != region_key {
                return Ok(region);
            }
            let before = self
                .find_region(io, backoff, |header| {
                    Command::GetPrevRegion(pdpb::GetRegionRequest {
                        header: Some(header),
                        region_key: region_key.clone(),
                        need_buckets: false,
                    })
                })
                .await?;
            // Between the two questions the regions may have merged; then the one that holds the
            // key may have none before it, or one that ends elsewhere.
            match before {
                Some(before) if before.region.end_key == region_key => return Ok(before),
                Some(_) | None => backoff.wait(io, BackoffKind::PdRpc, no_region()).await?,
            }
        }
    }

    /// PD finds a region by a key in it. No key is certain to be in the last region but the
    /// largest one that can be; whatever is stored sorts below it.
    async fn last_region(self: &Arc<Self>, io: &Io, backoff: &mut Backoffer) -> Result<PdRegion> {
        let mut largest = bytes::Bytes::from_static(&[0xFF; 64]);
        loop {
            let region_key = largest.clone();
            let found = self
                .region(io, backoff, |header| {
                    Command::GetRegion(pdpb::GetRegionRequest {
                        header: Some(header),
                        region_key: region_key.clone(),
                        need_buckets: false,
                    })
                })
                .await?;
            if found.region.end_key.is_empty() {
                return Ok(found);
            }
            if found.region.end_key <= largest {
                // Not the one that was asked for.
                backoff.wait(io, BackoffKind::PdRpc, no_region()).await?;
            }
            largest = found.region.end_key.max(largest);
        }
    }

    async fn region(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        command: impl Fn(pdpb::RequestHeader) -> Command,
    ) -> Result<PdRegion> {
        loop {
            match self.find_region(io, backoff, &command).await? {
                Some(region) => return Ok(region),
                None => backoff.wait(io, BackoffKind::PdRpc, no_region()).await?,
            }
        }
    }

    /// The region that PD finds, if it finds one.
    async fn find_region(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        command: impl Fn(pdpb::RequestHeader) -> Command,
    ) -> Result<Option<PdRegion>> {
        match self.call(io, backoff, command).await? {
            Response::GetRegion(reply)
            | Response::GetPrevRegion(reply)
            | Response::GetRegionById(reply) => Ok(reply.region.map(|region| PdRegion {
                region: *region,
                leader: reply.leader.filter(|leader| leader.id != 0),
                down: down_peers(reply.down_peers),
                pending: reply.pending_peers,
            })),
            other => Err(unexpected("GetRegion", &other)),
        }
    }

    /// The regions of a range, `limit` at most, in order.
    pub(crate) async fn scan_regions(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        range: &KeyRange,
        limit: u32,
    ) -> Result<Vec<PdRegion>> {
        let start_key = self.mode.encode(range.start());
        let end_key = range
            .end()
            .map(|end| self.mode.encode(end))
            .unwrap_or_default();
        loop {
            let response = self
                .call(io, backoff, |header| {
                    Command::BatchScanRegions(pdpb::BatchScanRegionsRequest {
                        header: Some(header),
                        need_buckets: false,
                        ranges: vec![pdpb::KeyRange {
                            start_key: start_key.clone(),
                            end_key: end_key.clone(),
                        }],
                        limit: i32::try_from(limit).unwrap_or(i32::MAX),
                        contain_all_key_range: false,
                    })
                })
                .await?;
            let Response::BatchScanRegions(reply) = response else {
                return Err(unexpected("BatchScanRegions", &response));
            };
            let regions: Vec<PdRegion> = reply
                .regions
                .into_iter()
                .filter_map(|found| {
                    Some(PdRegion {
                        region: *found.region?,
                        leader: found.leader.filter(|leader| leader.id != 0),
                        down: down_peers(found.down_peers),
                        pending: found.pending_peers,
                    })
                })
                .collect();
            let starts_at_the_range = regions
                .first()
                .is_some_and(|first| first.region.start_key <= start_key);
            if starts_at_the_range {
                return Ok(regions);
            }
            let error = Error::Pd {
                call: "BatchScanRegions",
                message: "a gap in the answer".into(),
            };
            backoff.wait(io, BackoffKind::PdRpc, error).await?;
        }
    }

    /// A store, `None` if it was removed.
    pub(crate) async fn store(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        store_id: u64,
    ) -> Result<Option<metapb::Store>> {
        loop {
            let result = self
                .call_once(io, backoff, |header| {
                    Command::GetStore(pdpb::GetStoreRequest {
                        header: Some(header),
                        store_id,
                    })
                })
                .await;
            match result {
                Ok(Response::GetStore(reply)) => return Ok(reply.store.map(|store| *store)),
                Ok(other) => return Err(unexpected("GetStore", &other)),
                Err(Error::Pd { message, .. }) if message.contains("not found") => return Ok(None),
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => backoff.wait(io, BackoffKind::PdRpc, error).await?,
            }
        }
    }

    /// Every store that has not been removed.
    pub(crate) async fn stores(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
    ) -> Result<Vec<metapb::Store>> {
        let response = self
            .call(io, backoff, |header| {
                Command::GetAllStores(pdpb::GetAllStoresRequest {
                    header: Some(header),
                    exclude_tombstone_stores: true,
                })
            })
            .await?;
        match response {
            Response::GetAllStores(reply) => Ok(reply.stores),
            other => Err(unexpected("GetAllStores", &other)),
        }
    }

    /// A new timestamp from the oracle.
    pub(crate) async fn timestamp(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
    ) -> Result<Timestamp> {
        loop {
            let error = match self.timestamp_once(io, backoff).await {
                Ok(ts) => return Ok(ts),
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => error,
            };
            let refreshed = self.refresh_for(io, backoff).await;
            if let Err(mismatch @ Error::ClusterIdMismatch { .. }) = refreshed {
                return Err(mismatch);
            }
            backoff.wait(io, BackoffKind::PdRpc, error).await?;
        }
    }

    async fn timestamp_once(self: &Arc<Self>, io: &Io, backoff: &Backoffer) -> Result<Timestamp> {
        let url = self.leader(io, backoff).await?;
        backoff.check(io.now(), None)?;
        let deadline = backoff.request_deadline(io.now(), self.config.pd_timeout);
        let request = TsoRequest {
            url,
            cluster_id: self.cluster_id(),
            deadline,
        };
        Ok(io.timestamp(request).await?)
    }
}

/// Whether trying again can't help.
fn is_final(error: &Error) -> bool {
    matches!(
        error,
        Error::ClusterIdMismatch { .. }
            | Error::Closed
            | Error::DeadlineExceeded(_)
            | Error::Protocol { .. }
    )
}

fn no_region() -> Error {
    Error::Pd {
        call: "GetRegion",
        message: "no such region".into(),
    }
}

fn unexpected(call: &'static str, response: &Response) -> Error {
    Error::protocol(format!("PD answered {call} with {}", response.label()))
}

fn down_peers(stats: Vec<pdpb::PeerStats>) -> Vec<metapb::Peer> {
    stats.into_iter().filter_map(|stats| stats.peer).collect()
}

/// The error in the header of PD's answer.
fn header_error(response: &Response) -> Option<pdpb::Error> {
    let header = match response {
        Response::GetMembers(reply) => &reply.header,
        Response::GetClusterInfo(reply) => &reply.header,
        Response::GetRegion(reply)
        | Response::GetPrevRegion(reply)
        | Response::GetRegionById(reply) => &reply.header,
        Response::BatchScanRegions(reply) => &reply.header,
        Response::GetStore(reply) => &reply.header,
        Response::GetAllStores(reply) => &reply.header,
        Response::ScatterRegion(reply) => &reply.header,
        Response::SplitRegions(reply) => &reply.header,
        Response::GetOperator(reply) => &reply.header,
        Response::GetMinTs(reply) => &reply.header,
        Response::GetGcState(reply) => &reply.header,
        _ => &None,
    };
    header
        .as_ref()?
        .error
        .clone()
        .filter(|error| error.r#type != pdpb::ErrorType::Ok as i32)
}
