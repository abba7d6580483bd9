//! What a store answers over plain HTTP, at the same port: its status. A member of PD has
//! [more to say](super::pd_http).

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use serde_json::{Value, json};
use tikv_proto::kvrpcpb::ApiVersion;
use tonic::body::Body;

use super::store::StoreServer;
use crate::cluster::Cluster;
use crate::cluster::region::RegionId;

/// Whether a request is plain HTTP: all of gRPC is posted, and says so.
pub(super) fn is_plain<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    request.method() != Method::POST || !is_grpc
}

/// Answers for a store.
pub(super) fn store(server: &StoreServer, uri: &http::Uri) -> Response<Body> {
    let path = uri.path();
    if let Some(id) = path.strip_prefix("/region/") {
        return server.world.with(|cluster, _| {
            let known = id.parse().ok().and_then(|id| region(cluster, id));
            known.map_or_else(
                || nothing(StatusCode::NOT_FOUND),
                |value| json_answer(&value),
            )
        });
    }
    match path {
        "/status" | "/ready" => nothing(StatusCode::OK),
        "/config" => server.world.with(|cluster, _| {
            let storage = match cluster.config().api_version {
                ApiVersion::V1 => json!({ "api-version": 1, "enable-ttl": false }),
                ApiVersion::V1ttl => json!({ "api-version": 1, "enable-ttl": true }),
                _ => json!({ "api-version": 2, "enable-ttl": true }),
            };
            json_answer(&json!({ "storage": storage }))
        }),
        "/engine_type" => text("memory"),
        "/metrics" => server.world.with(|cluster, _| {
            let led = cluster.regions().iter();
            let led = led
                .filter(|region| region.leader == Some(server.id))
                .count();
            text(format!(
                "tikv_mock_regions_led{{store=\"{}\"}} {led}\n",
                server.id
            ))
        }),
        _ => nothing(StatusCode::NOT_FOUND),
    }
}

fn region(cluster: &Cluster, id: RegionId) -> Option<Value> {
    let region = cluster.region(id)?;
    let epoch = region.epoch();
    let stores = region.meta.peers.iter().map(|peer| peer.store_id);
    Some(json!({
        "id": id,
        "epoch": { "conf_ver": epoch.conf_ver, "version": epoch.version },
        "leader": region.leader,
        "stores": stores.collect::<Vec<_>>(),
    }))
}

pub(super) fn json_answer(value: &Value) -> Response<Body> {
    let mut response = text(value.to_string());
    let json = http::HeaderValue::from_static("application/json; charset=UTF-8");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

fn text(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(Body::new(Full::new(text.into())))
}

pub(super) fn nothing(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::new(Empty::<Bytes>::new()));
    *response.status_mut() = status;
    response
}
