//! The server of a member of PD: `pdpb.PD` and the smaller services beside it, with their streams,
//! and the health service.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use prost::Message;
use tikv_core::wire::Command;
use tonic::Status;
use tonic::body::Body;

use super::etcd;
use super::grpc::{self, Messages};
use super::health;
use super::impairment::Impairment;
use super::listener::Service;
use super::world::World;
use super::{pd_calls, pd_http, pd_watches, plain_http};
use crate::cluster::Cluster;
use crate::cluster::failure::GrpcError;
use crate::dispatch;
use crate::node::Node;

/// With the value `true`, a member that does not lead may answer look-ups of regions.
const ALLOW_FOLLOWER: &str = "pd-allow-follower-handle";
/// What stands in the names of the calls that move safe points.
const SAFE_POINT: &str = "SafePoint";
/// The URL of the member that a request is meant for, if not this one.
const FORWARDED_HOST: &str = "pd-forwarded-host";

/// Answers for one member of PD.
#[derive(Clone, Debug)]
pub(super) struct PdServer {
    pub(super) world: Arc<World>,
    pub(super) member: usize,
    pub(super) impairment: Arc<Impairment>,
}

impl Service for PdServer {
    async fn call(self: Arc<Self>, request: http::Request<Incoming>) -> http::Response<Body> {
        if plain_http::is_plain(&request) {
            return pd_http::answer(&self, request).await;
        }
        let server = match request.headers().get(FORWARDED_HOST) {
            None => self,
            Some(host) => match self.forwards_to(host.as_bytes()) {
                Some(server) if server.impairment.is_down() => {
                    return Status::unavailable("the forwarded host can't be reached").into_http();
                }
                Some(server) => Arc::new(server),
                None => return Status::invalid_argument("unknown forwarded host").into_http(),
            },
        };
        let path = request.uri().path().to_owned();
        let headers = request.headers();
        let follower_allowed = headers.get(ALLOW_FOLLOWER).is_some_and(|it| it == "true");
        if health::is_call(&path) {
            return health::call(health::Asked::Pd, &server.impairment, request).await;
        }
        if etcd::is_call(&path) {
            return etcd::call(PdServer::clone(&server), request).await;
        }
        if let Some(answer) = pd_calls::stream(&path) {
            return grpc::each(request, move |body| {
                let server = server.clone();
                async move { server.with(|at| answer(at, body), follower_allowed).await }
            })
            .await;
        }
        if let Some(watch) = pd_watches::find(&path) {
            return grpc::many(request, move |body| watch(&server, body)).await;
        }
        grpc::unary(request, async move |body| {
            server.answer(&path, follower_allowed, body).await
        })
        .await
    }
}

impl PdServer {
    pub(super) fn new(world: Arc<World>, member: usize) -> Self {
        let impairment = world.impairment(Node::Pd(member));
        PdServer {
            world,
            member,
            impairment,
        }
    }

    /// The server of a member that listens elsewhere.
    fn forwards_to(&self, url: &[u8]) -> Option<PdServer> {
        let member = self.world.with(|cluster, _| {
            let mut members = cluster.pd().members().iter();
            members.position(|member| {
                member
                    .client_urls
                    .iter()
                    .any(|known| known.as_bytes() == url)
            })
        })?;
        Some(PdServer::new(self.world.clone(), member))
    }

    async fn answer(
        &self,
        path: &str,
        follower_allowed: bool,
        body: Bytes,
    ) -> Result<Bytes, Status> {
        if let Some(call) = pd_calls::find(path) {
            let call = |at: pd_calls::At<'_>| {
                at.cluster.pd_mut().check_rate().map_err(grpc::status)?;
                call(at, body)
            };
            let answer = self.with(call, follower_allowed).await;
            if path.contains(SAFE_POINT) {
                // Who watches etcd hears of it.
                let tell = |cluster: &mut Cluster, _| cluster.pd_mut().etcd_tell_safe_points();
                self.world.with(tell);
            }
            return answer;
        }
        let known = path.starts_with("/pdpb.PD/");
        let command = known.then(|| Command::decode_request(path, body)).flatten();
        let command = command
            .ok_or_else(|| Status::unimplemented(format!("unknown method {path}")))?
            .map_err(grpc::unreadable)?;
        let answer = |at: pd_calls::At<'_>| {
            let answer = dispatch::pd(at.cluster, at.now_ms, at.member, command);
            Ok(answer.map_err(grpc::status)?.encode())
        };
        self.with(answer, follower_allowed).await
    }

    /// Has a request answered, unless the member is kept from that.
    pub(super) async fn with(
        &self,
        answer: impl FnOnce(pd_calls::At<'_>) -> Result<Bytes, Status>,
        follower_allowed: bool,
    ) -> Result<Bytes, Status> {
        self.impairment.admit().await;
        let answer = self.world.with(|cluster, now_ms| {
            answer(pd_calls::At {
                cluster,
                now_ms,
                member: self.member,
                follower_allowed,
            })
        });
        if self.impairment.takes_reply() {
            // Until the client has had enough.
            std::future::pending::<()>().await;
        }
        answer
    }

    /// The messages to a watcher that has seen `seen` so far: what `next` finds, and what has been
    /// seen then.
    pub(super) fn watch<S, A, F>(&self, seen: S, mut next: F) -> Messages
    where
        S: Clone + Send + 'static,
        A: Message,
        F: FnMut(&Cluster, S) -> Result<(Option<A>, S), GrpcError> + Send + 'static,
    {
        let mut seen = seen;
        self.world.clone().watch(move |cluster| {
            let (message, now) = next(cluster, seen.clone()).map_err(grpc::status)?;
            seen = now;
            Ok(message.map(|message| message.encode_to_vec().into()))
        })
    }
}
