//! A store's server: `tikvpb.Tikv`, alone and in frames, and the health service.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hyper::body::Incoming;
use tikv_core::wire::{Command, Response};
use tonic::Status;
use tonic::body::Body;

use super::frames;
use super::grpc;
use super::health;
use super::impairment::Impairment;
use super::listener::Service;
use super::plain_http;
use super::store_calls;
use super::timing;
use super::world::World;
use crate::cluster::failure::GrpcError;
use crate::cluster::region::StoreId;
use crate::node::Node;

const BATCH_COMMANDS: &str = "/tikvpb.Tikv/BatchCommands";
/// The address of the store that a request is meant for, if not this one.
const FORWARDED_HOST: &str = "tikv-forwarded-host";

/// Answers for one store.
#[derive(Clone, Debug)]
pub(super) struct StoreServer {
    pub(super) world: Arc<World>,
    pub(super) id: StoreId,
    pub(super) impairment: Arc<Impairment>,
}

impl Service for StoreServer {
    async fn call(self: Arc<Self>, request: http::Request<Incoming>) -> http::Response<Body> {
        if plain_http::is_plain(&request) {
            return match *request.method() {
                http::Method::GET => plain_http::store(&self, request.uri()),
                _ => plain_http::nothing(http::StatusCode::NOT_FOUND),
            };
        }
        let server = match request.headers().get(FORWARDED_HOST) {
            None => self,
            Some(host) => match self.forwards_to(host.as_bytes()) {
                Some(server) => Arc::new(server),
                // TiKV drops a call that it can't pass on, and gRPC calls that cancelled.
                None => return Status::cancelled("the store can't be reached").into_http(),
            },
        };
        let path = request.uri().path();
        if path == BATCH_COMMANDS {
            return grpc::streams(request, |requests| frames::answer(server, requests)).await;
        }
        if health::is_call(path) {
            return health::call(health::Asked::Store, &server.impairment, request).await;
        }
        if !path.starts_with("/tikvpb.Tikv/") {
            return grpc::unimplemented(path);
        }
        let path = path.to_owned();
        if store_calls::is_stream(&path) {
            return grpc::many(request, move |body| {
                let answers = server.world.with(|cluster, now_ms| {
                    store_calls::answers(cluster, now_ms, server.id, &path, body)
                })?;
                Ok(grpc::all(answers))
            })
            .await;
        }
        grpc::unary(request, move |body| server.answer(path, body)).await
    }
}

impl StoreServer {
    pub(super) fn new(world: Arc<World>, id: StoreId) -> Self {
        let impairment = world.impairment(Node::Store(id));
        StoreServer {
            world,
            id,
            impairment,
        }
    }

    /// The server of a store that listens elsewhere, if it does.
    fn forwards_to(&self, address: &[u8]) -> Option<StoreServer> {
        let id = self.world.with(|cluster, _| {
            cluster.store_ids().find(|id| {
                let store = cluster.store(*id);
                store.is_some_and(|store| store.up && store.meta.address.as_bytes() == address)
            })
        })?;
        Some(StoreServer::new(self.world.clone(), id))
    }

    async fn answer(self: Arc<Self>, path: String, body: Bytes) -> Result<Bytes, Status> {
        let command = Command::decode_request(&path, body.clone())
            .transpose()
            .map_err(grpc::unreadable)?;
        let begun = Instant::now();
        self.impairment.admit().await;
        let answer = match command {
            Some(command) => {
                let mut answer = self.dispatch(command).await.map_err(grpc::status)?;
                timing::stamp_alone(&mut answer, begun);
                answer.encode()
            }
            None => self.world.with(|cluster, now_ms| {
                store_calls::answer(cluster, now_ms, self.id, &path, body)
            })?,
        };
        if self.impairment.takes_reply() {
            // Until the client has had enough.
            std::future::pending::<()>().await;
        }
        Ok(answer)
    }

    /// Has the cluster answer a request, now or when it has waited long enough.
    pub(super) async fn dispatch(&self, command: Command) -> Result<Response, GrpcError> {
        let asked = self.world.serve(|counter| counter.ask(self.id, command))?;
        asked.answer().await
    }
}
