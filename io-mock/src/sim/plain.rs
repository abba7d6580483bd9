//! A client for this module's own tests, in one operation per call: it asks PD for the region,
//! sends, and begins again whatever went wrong. It remembers nothing.

use std::sync::Arc;
use std::time::Duration;

use tikv_core::driver::{BackoffKind, Endpoint, Io, Operation, Rpc, Why};
use tikv_core::wire::{Call, Command, RegionResponse, Response};
use tikv_core::{Key, Value};
use tikv_proto::{kvrpcpb, metapb, pdpb};

use super::Sim;

#[derive(Clone)]
pub(super) struct Plain {
    pd: Vec<Arc<str>>,
}

const TIMEOUT: Duration = Duration::from_millis(700);

impl Plain {
    pub(super) fn new(sim: &Sim) -> Self {
        Plain {
            pd: sim.pd_endpoints().into_iter().map(Arc::from).collect(),
        }
    }

    pub(super) fn put(&self, key: Key, value: Value) -> Operation<()> {
        let plain = self.clone();
        Operation::new("put", move |io: Io| async move {
            let (key, value) = (key.into_bytes(), value.into_bytes());
            let request = kvrpcpb::RawPutRequest {
                key: key.clone(),
                value,
                ..Default::default()
            };
            plain.call(&io, &key, request).await;
        })
    }

    pub(super) fn get(&self, key: Key) -> Operation<Option<Value>> {
        let plain = self.clone();
        Operation::new("get", move |io: Io| async move {
            let key = key.into_bytes();
            let request = kvrpcpb::RawGetRequest {
                key: key.clone(),
                ..Default::default()
            };
            let answer = plain.call(&io, &key, request).await;
            (!answer.not_found).then(|| answer.value.into())
        })
    }

    async fn call<C>(&self, io: &Io, key: &[u8], request: C) -> C::Response
    where
        C: Call,
        C::Response: RegionResponse,
    {
        let command: Arc<Command> = Arc::new(request.into());
        loop {
            if let Some(mut answer) = self.try_call::<C>(io, key, &command).await
                && answer.take_region_error().is_none()
            {
                return answer;
            }
            let later = io.now() + Duration::from_millis(50);
            io.sleep_until(later, Why::Backoff(BackoffKind::RegionMiss))
                .await;
        }
    }

    async fn try_call<C: Call>(
        &self,
        io: &Io,
        key: &[u8],
        command: &Arc<Command>,
    ) -> Option<C::Response> {
        let header = Some(pdpb::RequestHeader {
            cluster_id: 1,
            ..Default::default()
        });
        let region_key = key.to_vec().into();
        let lookup = pdpb::GetRegionRequest {
            header: header.clone(),
            region_key,
            need_buckets: false,
        };
        let Response::GetRegion(found) = self.ask_pd(io, Command::GetRegion(lookup)).await? else {
            return None;
        };
        let (region, peer) = (found.region?, found.leader?);
        let store_id = peer.store_id;
        let lookup = pdpb::GetStoreRequest { header, store_id };
        let Response::GetStore(store) = self.ask_pd(io, Command::GetStore(lookup)).await? else {
            return None;
        };
        let address = store.store?.address.into();
        let context = context(&region, peer);
        let endpoint = Endpoint::Store {
            id: store_id,
            address,
        };
        let rpc = Rpc {
            endpoint,
            context: Some(Box::new(context)),
            command: command.clone(),
            deadline: io.now() + TIMEOUT,
        };
        C::response(io.send(rpc).await.ok()?)
    }

    async fn ask_pd(&self, io: &Io, command: Command) -> Option<Response> {
        let command = Arc::new(command);
        for url in &self.pd {
            let endpoint = Endpoint::Pd { url: url.clone() };
            let deadline = io.now() + TIMEOUT;
            let rpc = Rpc {
                endpoint,
                context: None,
                command: command.clone(),
                deadline,
            };
            if let Ok(answer) = io.send(rpc).await {
                return Some(answer);
            }
        }
        None
    }
}

fn context(region: &metapb::Region, peer: metapb::Peer) -> kvrpcpb::Context {
    kvrpcpb::Context {
        region_id: region.id,
        region_epoch: region.region_epoch,
        peer: Some(peer),
        ..Default::default()
    }
}
