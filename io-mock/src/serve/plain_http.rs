//! What a store and a member of PD answer to a plain GET, at the same port: a store its status, PD
//! up to where reads of old data are safe. Clients of TiDB ask the latter.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{Empty, Full};
use serde_json::{Map, Value, json};
use tikv_proto::kvrpcpb::{ApiVersion, StoreSafeTsRequest};
use tonic::body::Body;

use super::pd::PdServer;
use super::store::StoreServer;
use crate::cluster::Cluster;
use crate::cluster::region::{RegionId, StoreId};

const MIN_RESOLVED_TS: &str = "/pd/api/v1/min-resolved-ts";

/// Answers for a member of PD.
pub(super) fn pd(server: &PdServer, uri: &http::Uri) -> Response<Body> {
    server.world.with(|cluster, now_ms| match uri.path() {
        MIN_RESOLVED_TS => {
            let scope = uri.query().and_then(|query| {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs.find(|(name, _)| *name == "scope")
            });
            let scope = scope.map_or("", |(_, scope)| scope);
            json_answer(&min_resolved_ts(cluster, now_ms, scope))
        }
        "/pd/api/v1/version" => json_answer(&json!({
            "version": format!("v{}", cluster.config().store_version),
        })),
        _ => nothing(StatusCode::NOT_FOUND),
    })
}

/// The least timestamp of all stores, and those of the stores that are asked for: `cluster` for all,
/// or ids separated by commas.
fn min_resolved_ts(cluster: &mut Cluster, now_ms: u64, scope: &str) -> Value {
    let ids: Vec<StoreId> = cluster.store_ids().collect();
    let mut all = Vec::new();
    for id in ids {
        let asked = StoreSafeTsRequest::default();
        let safe_ts = cluster.get_store_safe_ts(now_ms, id, asked).safe_ts;
        all.push((id, safe_ts));
    }
    let asked = |id: &StoreId| scope == "cluster" || scope.split(',').any(|s| s.parse() == Ok(*id));
    let stores: Map<String, Value> = all
        .iter()
        .filter(|(id, _)| asked(id))
        .map(|(id, ts)| (id.to_string(), json!(ts)))
        .collect();
    let least = all.iter().map(|(_, ts)| *ts).min().unwrap_or_default();
    json!({
        "is_real_time": true,
        "min_resolved_ts": least,
        "persist_interval": "1s",
        "stores_min_resolved_ts": stores,
    })
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

fn json_answer(value: &Value) -> Response<Body> {
    text(value.to_string())
}

fn text(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(Body::new(Full::new(text.into())))
}

fn nothing(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::new(Empty::<Bytes>::new()));
    *response.status_mut() = status;
    response
}
