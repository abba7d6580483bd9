//! A store's server: `tikvpb.Tikv`, alone and in frames, and the health service.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use tikv_core::rpc::frame;
use tikv_core::wire::Command;
use tonic::Status;
use tonic::body::Body;

use super::grpc;
use super::health;
use super::listener::Service;
use super::world::World;
use crate::cluster::region::StoreId;
use crate::dispatch;

const BATCH_COMMANDS: &str = "/tikvpb.Tikv/BatchCommands";

/// Answers for one store.
#[derive(Debug)]
pub(super) struct StoreServer {
    pub(super) world: Arc<World>,
    pub(super) id: StoreId,
}

impl Service for StoreServer {
    async fn call(self: Arc<Self>, request: http::Request<Incoming>) -> http::Response<Body> {
        let path = request.uri().path();
        if path == BATCH_COMMANDS {
            return grpc::stream(request, move |frame| self.answer_frame(frame)).await;
        }
        if path == health::CHECK {
            return grpc::unary(request, |_| Ok(health::serving())).await;
        }
        if !path.starts_with("/tikvpb.Tikv/") {
            return grpc::unimplemented(path);
        }
        let path = path.to_owned();
        grpc::unary(request, move |body| self.answer(&path, body)).await
    }
}

impl StoreServer {
    fn answer(&self, path: &str, body: Bytes) -> Result<Bytes, Status> {
        let command = Command::decode_request(path, body)
            .ok_or_else(|| Status::unimplemented(format!("unknown method {path}")))?
            .map_err(grpc::unreadable)?;
        let answer = self
            .world
            .with(|cluster, now_ms| dispatch::store(cluster, now_ms, self.id, command));
        Ok(answer.map_err(grpc::status)?.encode())
    }

    /// Answers all requests of a frame in one frame, under one lock.
    fn answer_frame(&self, frame: Bytes) -> Result<Bytes, Status> {
        let requests = frame::split_request(frame).map_err(grpc::unreadable)?.items;
        let mut commands = Vec::with_capacity(requests.len());
        for request in requests {
            let command = Command::decode_batched(request.arm, request.body)
                .ok_or_else(|| {
                    Status::unimplemented(format!("no command in field {}", request.arm))
                })?
                .map_err(grpc::unreadable)?;
            commands.push((request.id, request.arm, command));
        }
        let mut answers = Vec::with_capacity(commands.len());
        self.world
            .with(|cluster, now_ms| {
                for (id, arm, command) in commands {
                    // A failure below the level of replies has no place in a frame: it ends the
                    // stream.
                    let answer = dispatch::store(cluster, now_ms, self.id, command)?;
                    answers.push((id, arm, answer.encode()));
                }
                Ok(())
            })
            .map_err(grpc::status)?;
        Ok(frame::build_response(&answers))
    }
}
