//! A store's server: `tikvpb.Tikv`, alone and in frames, and the health service.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use tikv_core::rpc::frame;
use tikv_core::wire::{Command, Response};
use tokio::sync::oneshot;
use tonic::Status;
use tonic::body::Body;

use super::grpc::{self, Late};
use super::health;
use super::listener::Service;
use super::waits::Later;
use super::world::World;
use crate::cluster::failure::GrpcError;
use crate::cluster::region::StoreId;

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
            return grpc::stream_with_late(request, move |frame, late| {
                self.answer_frame(frame, late)
            })
            .await;
        }
        if path == health::CHECK {
            return grpc::unary(request, |_| Ok(health::serving())).await;
        }
        if !path.starts_with("/tikvpb.Tikv/") {
            return grpc::unimplemented(path);
        }
        let path = path.to_owned();
        grpc::unary_later(request, move |body| async move {
            let waits = match self.answer(&path, body)? {
                Begun::Answered(answer) => return Ok(answer),
                Begun::Waits(waits) => waits,
            };
            let gone = |_| Status::unavailable("the server is gone");
            let answer = waits.await.map_err(gone)?;
            Ok(answer.map_err(grpc::status)?.encode())
        })
        .await
    }
}

/// What an unary call comes to at once.
enum Begun {
    Answered(Bytes),
    Waits(oneshot::Receiver<Result<Response, GrpcError>>),
}

impl StoreServer {
    fn answer(&self, path: &str, body: Bytes) -> Result<Begun, Status> {
        let command = Command::decode_request(path, body)
            .ok_or_else(|| Status::unimplemented(format!("unknown method {path}")))?
            .map_err(grpc::unreadable)?;
        let mut waits = None;
        let answer = self.world.serve(|counter| {
            counter.ask(self.id, command, || {
                let (answered, waiting) = oneshot::channel();
                waits = Some(waiting);
                // A call that has ended does not want its answer.
                Box::new(|answer| drop(answered.send(answer)))
            })
        });
        let answer = answer.map_err(grpc::status)?;
        match (answer, waits) {
            (Some(response), _) => Ok(Begun::Answered(response.encode())),
            (None, Some(waits)) => Ok(Begun::Waits(waits)),
            (None, None) => Err(Status::internal("no answer")),
        }
    }

    /// Answers all requests of a frame in one frame, under one lock; those that wait come late.
    fn answer_frame(&self, frame: Bytes, late: &Late) -> Result<Option<Bytes>, Status> {
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
            .serve(|counter| {
                for (id, arm, command) in commands {
                    // A failure below the level of replies has no place in a frame: it ends the
                    // stream.
                    let answer = counter.ask(self.id, command, || answer_late(id, arm, late))?;
                    if let Some(answer) = answer {
                        answers.push((id, arm, answer.encode()));
                    }
                }
                Ok(())
            })
            .map_err(grpc::status)?;
        Ok((!answers.is_empty()).then(|| frame::build_response(&answers)))
    }
}

/// Answers a request of a frame by itself, in a frame of its own.
fn answer_late(id: u64, arm: u32, late: &Late) -> Later {
    let late = late.clone();
    Box::new(move |answer| {
        let answer = answer.map(|response| frame::build_response(&[(id, arm, response.encode())]));
        // A stream that has ended does not want its answers.
        let _ = late.send(answer.map_err(grpc::status));
    })
}
