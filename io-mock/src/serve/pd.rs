//! The server of a member of PD: `pdpb.PD` with its timestamp stream, and the health service.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use prost::Message;
use tikv_core::wire::Command;
use tikv_proto::pdpb;
use tonic::Status;
use tonic::body::Body;

use super::grpc;
use super::health;
use super::listener::Service;
use super::pd_calls;
use super::world::World;
use crate::dispatch;

const TSO: &str = "/pdpb.PD/Tso";
/// With the value `true`, a member that does not lead may answer look-ups of regions.
const ALLOW_FOLLOWER: &str = "pd-allow-follower-handle";

/// Answers for one member of PD.
#[derive(Debug)]
pub(super) struct PdServer {
    pub(super) world: Arc<World>,
    pub(super) member: usize,
}

impl Service for PdServer {
    async fn call(self: Arc<Self>, request: http::Request<Incoming>) -> http::Response<Body> {
        let path = request.uri().path();
        if path == TSO {
            return grpc::stream(request, move |wish| self.timestamps(wish)).await;
        }
        if path == health::CHECK {
            return grpc::unary(request, |_| Ok(health::serving())).await;
        }
        if !path.starts_with("/pdpb.PD/") {
            return grpc::unimplemented(path);
        }
        let path = path.to_owned();
        let follower_allowed = request
            .headers()
            .get(ALLOW_FOLLOWER)
            .is_some_and(|value| value == "true");
        grpc::unary(request, move |body| {
            self.answer(&path, follower_allowed, body)
        })
        .await
    }
}

impl PdServer {
    fn answer(&self, path: &str, follower_allowed: bool, body: Bytes) -> Result<Bytes, Status> {
        let outside = self.world.with(|cluster, now_ms| {
            let at = pd_calls::At {
                cluster,
                now_ms,
                member: self.member,
                follower_allowed,
            };
            pd_calls::answer(at, path, body.clone())
        });
        if let Some(answer) = outside {
            return answer;
        }
        let command = Command::decode_request(path, body)
            .ok_or_else(|| Status::unimplemented(format!("unknown method {path}")))?
            .map_err(grpc::unreadable)?;
        let answer = self
            .world
            .with(|cluster, now_ms| dispatch::pd(cluster, now_ms, self.member, command));
        Ok(answer.map_err(grpc::status)?.encode())
    }

    fn timestamps(&self, wish: Bytes) -> Result<Bytes, Status> {
        let wish = pdpb::TsoRequest::decode(wish).map_err(grpc::unreadable)?;
        let answer = self
            .world
            .with(|cluster, now_ms| cluster.pd_mut().tso(now_ms, self.member, wish));
        Ok(answer.map_err(grpc::status)?.encode_to_vec().into())
    }
}
