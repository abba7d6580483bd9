//! What a member of PD answers over plain HTTP, at the same port: what clients and tools ask of
//! stores, regions, members, keyspaces and safe points.
//!
//! Any member answers, as a member of PD passes on what only the leader knows. A path that is not
//! here is 404. Deliberately absent: schedulers, placement, hot regions, and whatever else has no
//! meaning without movement.

pub(super) mod checkers;
mod keyspaces;
mod members;
mod query;
mod regions;
mod safe_points;
mod stores;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tonic::body::Body;

use self::checkers::Checkers;
use self::query::Query;
use super::pd::PdServer;
use super::plain_http::{json_answer, nothing};
use crate::cluster::Cluster;

/// A longer request is refused.
const REQUEST_LEN_MAX: usize = 16 << 20;

/// One request, come apart.
struct Asked<'a> {
    cluster: &'a mut Cluster,
    now_ms: u64,
    method: Method,
    /// The path behind `/pd/api`, in pieces.
    path: Vec<&'a str>,
    query: Query,
    body: Bytes,
    checkers: &'a Checkers,
}

/// A status, and what is wrong or right.
type Answer = (StatusCode, Value);

/// Answers a request.
pub(super) async fn answer(server: &PdServer, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, REQUEST_LEN_MAX).collect().await else {
        return nothing(StatusCode::PAYLOAD_TOO_LARGE);
    };
    server.impairment.admit().await;
    let path = head.uri.path();
    let path: Vec<&str> = match path.strip_prefix("/pd/api/") {
        Some(rest) => rest.split('/').collect(),
        // These two are also there without a version.
        None => match path {
            "/pd/health" => vec!["v1", "health"],
            "/pd/ping" => vec!["v1", "ping"],
            _ => return nothing(StatusCode::NOT_FOUND),
        },
    };
    let query = Query::of(&head.uri);
    let answer = server.world.with(|cluster, now_ms| {
        found(Asked {
            cluster,
            now_ms,
            method: head.method,
            path,
            query,
            body: body.to_bytes(),
            checkers: &server.world.checkers,
        })
    });
    match answer {
        Some((status, value)) => {
            let mut response = json_answer(&value);
            *response.status_mut() = status;
            response
        }
        None => nothing(StatusCode::NOT_FOUND),
    }
}

/// The answer of whoever knows the path.
fn found(asked: Asked<'_>) -> Option<Answer> {
    let path = (asked.path.first().copied()?, asked.path.get(1).copied()?);
    let needs_leader = !matches!(path, ("v1", "health" | "ping" | "members"));
    if needs_leader && asked.cluster.pd().leader().is_none() {
        return wrong(StatusCode::SERVICE_UNAVAILABLE, "no leader");
    }
    match path {
        ("v2", "keyspaces") => keyspaces::answer(asked),
        ("v1", "store" | "stores") => stores::answer(asked),
        ("v1", "region" | "regions" | "stats") => regions::answer(asked),
        ("v1", "checker") => checkers::answer(asked),
        ("v1", "gc" | "min-resolved-ts") => safe_points::answer(asked),
        ("v1", _) => members::answer(asked),
        _ => None,
    }
}

fn ok(value: Value) -> Option<Answer> {
    Some((StatusCode::OK, value))
}

fn wrong(status: StatusCode, why: impl Into<String>) -> Option<Answer> {
    Some((status, json!(why.into())))
}

fn bad(why: impl std::fmt::Display) -> Option<Answer> {
    wrong(StatusCode::BAD_REQUEST, why.to_string())
}
