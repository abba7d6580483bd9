//! The way to a region: what a client of the wire remembers of regions, stores and PD, and one
//! attempt at a time. It asks PD again after whatever has gone wrong.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tikv_core::driver::{Endpoint, Rpc, TsoRequest};
use tikv_core::wire::{self, Call, Command, RegionResponse, Response};
use tikv_core::{KeyRange, Timestamp};
use tikv_proto::{errorpb, kvrpcpb, metapb, pdpb};

use super::{Stop, Task};
use crate::sim::Sim;

const CLUSTER: u64 = 1;
/// How long an answer is waited for. Longer than any wait for a lock.
const TIMEOUT: Duration = Duration::from_millis(1_500);
const BETWEEN_ATTEMPTS_MS: u64 = 40;

/// What a client knows of the cluster.
pub(crate) struct Wire {
    /// Tells who the members of PD are: they may change altogether.
    sim: Sim,
    /// Regions are bounded by keys of this form.
    encode: fn(&[u8]) -> Bytes,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Which member of PD has answered last.
    pd: usize,
    /// By where they begin.
    regions: BTreeMap<Bytes, Route>,
    stores: BTreeMap<u64, Arc<str>>,
}

/// A region, and the peer that is believed to lead it.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    region: metapb::Region,
    peer: metapb::Peer,
}

impl Route {
    fn contains(&self, encoded: &[u8]) -> bool {
        let (start, end) = (&self.region.start_key, &self.region.end_key);
        start <= encoded && (end.is_empty() || encoded < end)
    }

    /// The user key at which the next region begins, if there is one.
    pub(super) fn end(&self) -> Option<Bytes> {
        wire::decode(&self.region.end_key).ok()
    }
}

/// An attempt that has had no answer from a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Miss;

impl Wire {
    /// For keys of transactions.
    pub(crate) fn new(sim: &Sim) -> Self {
        Wire {
            sim: sim.clone(),
            encode: wire::encode,
            memory: Mutex::default(),
        }
    }

    /// For raw keys.
    #[cfg(test)]
    pub(crate) fn raw(sim: &Sim) -> Self {
        Wire {
            encode: Bytes::copy_from_slice,
            ..Wire::new(sim)
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Neither the region nor where its leader's store is need be as it was.
    fn forget(&self, route: &Route) {
        let mut memory = self.memory();
        memory.regions.remove(&route.region.start_key);
        memory.stores.remove(&route.peer.store_id);
    }
}

fn header() -> Option<pdpb::RequestHeader> {
    Some(pdpb::RequestHeader {
        cluster_id: CLUSTER,
        ..Default::default()
    })
}

impl Task {
    /// A timestamp.
    pub(crate) async fn timestamp(&self) -> Result<Timestamp, Stop> {
        loop {
            for (member, url) in self.members() {
                let request = TsoRequest {
                    url,
                    cluster_id: CLUSTER,
                    deadline: self.io.now() + TIMEOUT,
                };
                if let Ok(ts) = self.io.timestamp(request).await {
                    self.wire.memory().pd = member;
                    return Ok(ts);
                }
            }
            self.nap(BETWEEN_ATTEMPTS_MS).await?;
        }
    }

    /// The members of PD, the one that answered last first.
    fn members(&self) -> Vec<(usize, Arc<str>)> {
        let first = self.wire.memory().pd;
        let members = self.wire.sim.pd_endpoints().into_iter();
        let mut members: Vec<_> = members.map(Arc::from).enumerate().collect();
        let first = first % members.len().max(1);
        members.rotate_left(first);
        members
    }

    async fn ask_pd(&self, command: Command) -> Option<Response> {
        let command = Arc::new(command);
        for (member, url) in self.members() {
            let rpc = Rpc {
                endpoint: Endpoint::Pd { url },
                context: None,
                command: command.clone(),
                deadline: self.io.now() + TIMEOUT,
            };
            if let Ok(answer) = self.io.send(rpc).await {
                self.wire.memory().pd = member;
                return Some(answer);
            }
        }
        None
    }

    /// The region of a key.
    pub(crate) async fn route(&self, key: &[u8]) -> Result<Route, Stop> {
        let encoded = (self.wire.encode)(key);
        loop {
            {
                let memory = self.wire.memory();
                let before = memory.regions.range(..=encoded.clone()).next_back();
                if let Some((_, route)) = before.filter(|(_, route)| route.contains(&encoded)) {
                    return Ok(route.clone());
                }
            }
            let lookup = pdpb::GetRegionRequest {
                header: header(),
                region_key: encoded.clone(),
                need_buckets: false,
            };
            if let Some(Response::GetRegion(found)) = self.ask_pd(Command::GetRegion(lookup)).await
                && let (Some(region), Some(peer)) = (found.region, found.leader)
            {
                let route = Route {
                    region: *region,
                    peer,
                };
                if route.contains(&encoded) {
                    let start = route.region.start_key.clone();
                    self.wire.memory().regions.insert(start, route.clone());
                    return Ok(route);
                }
            }
            self.nap(BETWEEN_ATTEMPTS_MS).await?;
        }
    }

    async fn address(&self, store_id: u64) -> Option<Arc<str>> {
        if let Some(address) = self.wire.memory().stores.get(&store_id) {
            return Some(address.clone());
        }
        let lookup = pdpb::GetStoreRequest {
            header: header(),
            store_id,
        };
        let Response::GetStore(found) = self.ask_pd(Command::GetStore(lookup)).await? else {
            return None;
        };
        let address: Arc<str> = found.store?.address.into();
        self.wire.memory().stores.insert(store_id, address.clone());
        Some(address)
    }

    /// Sends a request to a region once. After a miss what was known of the region is forgotten
    /// and some time has passed; the request may have been served all the same, or may be yet.
    ///
    /// # Errors
    ///
    /// The operation's time is over.
    pub(crate) async fn send<C>(
        &self,
        route: &Route,
        request: C,
        retry: bool,
    ) -> Result<Result<C::Response, Miss>, Stop>
    where
        C: Call,
        C::Response: RegionResponse,
    {
        let context = kvrpcpb::Context {
            region_id: route.region.id,
            region_epoch: route.region.region_epoch,
            peer: Some(route.peer),
            is_retry_request: retry,
            ..Default::default()
        };
        if let Some(answer) = self
            .ask_store::<C>(route.peer.store_id, context, request)
            .await
        {
            let mut answer = answer;
            match answer.take_region_error() {
                None => return Ok(Ok(answer)),
                Some(error) => self.learn(route, &error),
            }
        } else {
            self.wire.forget(route);
        }
        self.nap(BETWEEN_ATTEMPTS_MS).await?;
        Ok(Err(Miss))
    }

    async fn ask_store<C: Call>(
        &self,
        id: u64,
        context: kvrpcpb::Context,
        request: C,
    ) -> Option<C::Response> {
        let address = self.address(id).await?;
        let rpc = Rpc {
            endpoint: Endpoint::Store { id, address },
            context: Some(Box::new(context)),
            command: Arc::new(request.into()),
            deadline: (self.io.now() + TIMEOUT).min(self.until),
        };
        C::response(self.io.send(rpc).await.ok()?)
    }

    /// A region has moved, or can't answer now.
    fn learn(&self, route: &Route, error: &errorpb::Error) {
        let hint = error.not_leader.as_ref().and_then(|it| it.leader);
        match hint {
            Some(peer) => {
                let start = route.region.start_key.clone();
                let region = route.region.clone();
                let led = Route { region, peer };
                self.wire.memory().regions.insert(start, led);
            }
            None => self.wire.forget(route),
        }
    }

    /// Sends a request to the region of a key until it is answered.
    pub(crate) async fn call<C>(&self, key: &[u8], request: C) -> Result<C::Response, Stop>
    where
        C: Call,
        C::Response: RegionResponse,
    {
        let mut retry = false;
        loop {
            let route = self.route(key).await?;
            if let Ok(answer) = self.send(&route, request.clone(), retry).await? {
                return Ok(answer);
            }
            retry = true;
        }
    }

    /// Takes those out of `left` that are in one region with the first, which there must be.
    pub(super) async fn first_region<T>(
        &self,
        left: &mut Vec<T>,
        key: impl Fn(&T) -> &[u8],
    ) -> Result<(Route, Vec<T>), Stop> {
        let Some(first) = left.first() else {
            return Err(Stop::Late);
        };
        let route = self.route(key(first)).await?;
        let all = std::mem::take(left);
        let inside = |it: &T| route.contains(&(self.wire.encode)(key(it)));
        let (now, later) = all.into_iter().partition(inside);
        *left = later;
        Ok((route, now))
    }

    /// Sends a request about each region's part of some keys until all are answered; `judge` says
    /// what an answer means.
    pub(super) async fn for_parts<C>(
        &self,
        mut left: Vec<Bytes>,
        make: impl Fn(Vec<Bytes>) -> C,
        judge: impl Fn(C::Response) -> Result<(), Stop>,
    ) -> Result<(), Stop>
    where
        C: Call,
        C::Response: RegionResponse,
    {
        while !left.is_empty() {
            let (route, keys) = self.first_region(&mut left, |key| key).await?;
            match self.send(&route, make(keys.clone()), false).await? {
                Err(Miss) => left.extend(keys),
                Ok(answer) => judge(answer)?,
            }
        }
        Ok(())
    }

    /// Sends a request to every region of a range, one after the other; `make` is given where in
    /// the range a region begins and ends. Gives all answers.
    pub(super) async fn sweep<C>(
        &self,
        range: &KeyRange,
        make: impl Fn(&Bytes, &Bytes) -> C,
    ) -> Result<Vec<C::Response>, Stop>
    where
        C: Call,
        C::Response: RegionResponse,
    {
        let end = range.wire_end().into_bytes();
        let (mut at, mut answers, mut retry) =
            (range.start().as_bytes().clone(), Vec::new(), false);
        loop {
            let route = self.route(&at).await?;
            let next = route.end().filter(|next| end.is_empty() || *next < end);
            let until = next.as_ref().unwrap_or(&end);
            match self.send(&route, make(&at, until), retry).await? {
                Err(Miss) => {
                    retry = true;
                    continue;
                }
                Ok(answer) => answers.push(answer),
            }
            retry = false;
            match next {
                Some(next) => at = next,
                None => return Ok(answers),
            }
        }
    }

    /// Tells every store how a transaction stands. Nobody minds if one does not hear of it.
    pub(super) async fn broadcast(&self, status: kvrpcpb::TxnStatus) {
        let lookup = pdpb::GetAllStoresRequest {
            header: header(),
            ..Default::default()
        };
        let Some(Response::GetAllStores(found)) = self.ask_pd(Command::GetAllStores(lookup)).await
        else {
            return;
        };
        let telling = found.stores.into_iter().map(|store| {
            let request = kvrpcpb::BroadcastTxnStatusRequest {
                txn_status: vec![status],
                ..Default::default()
            };
            self.ask_store(store.id, kvrpcpb::Context::default(), request)
        });
        futures_util::future::join_all(telling).await;
    }
}
