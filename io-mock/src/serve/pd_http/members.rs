//! PD itself: its members, its version, and the little of its configuration that means anything
//! here.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tikv_proto::pdpb::Member;

use super::{Answer, Asked, ok, wrong};

/// How many replicas PD wants of a region. It moves none, so this is only said.
const REPLICAS: u64 = 3;

pub(super) fn answer(asked: Asked<'_>) -> Option<Answer> {
    let now_ms = asked.now_ms;
    let pd = asked.cluster.pd();
    let version = &asked.cluster.config().store_version;
    let leader = pd.leader().and_then(|leader| pd.members().get(leader));
    match (&asked.method, &asked.path[1..]) {
        (&Method::GET, ["members"]) => {
            let members: Vec<Value> = pd.members().iter().map(member).collect();
            ok(json!({
                "header": { "cluster_id": asked.cluster.config().cluster_id },
                "members": members,
                "leader": leader.map(member),
                "etcd_leader": leader.map(member),
            }))
        }
        (&Method::GET, ["leader"]) => match leader {
            Some(leader) => ok(member(leader)),
            None => wrong(StatusCode::SERVICE_UNAVAILABLE, "no leader"),
        },
        (&Method::POST, ["leader", "transfer", name]) => {
            let to = pd.members().iter().position(|member| member.name == *name);
            match to {
                Some(to) => {
                    asked.cluster.pd_mut().set_leader(now_ms, Some(to));
                    ok(json!("The transfer command is submitted."))
                }
                None => {
                    let why = format!("failed to find member {name}");
                    wrong(StatusCode::INTERNAL_SERVER_ERROR, why)
                }
            }
        }
        (&Method::POST, ["leader", "resign"]) => {
            let count = pd.members().len();
            let next = pd.leader().map(|leader| (leader + 1) % count);
            asked.cluster.pd_mut().set_leader(now_ms, next);
            ok(json!("The resign command is submitted."))
        }
        (&Method::GET, ["health"]) => {
            let health = pd.members().iter().map(|member| {
                json!({
                    "name": member.name,
                    "member_id": member.member_id,
                    "client_urls": member.client_urls,
                    "health": true,
                })
            });
            ok(health.collect())
        }
        (&Method::GET, ["ping"]) => ok(Value::Null),
        (&Method::GET, ["version"]) => ok(json!({ "version": format!("v{version}") })),
        (&Method::GET, ["status"]) => ok(json!({
            "build_ts": "None",
            "version": format!("v{version}"),
            "git_hash": "None",
            "start_timestamp": 0,
            "kernel_type": "Classic",
        })),
        (&Method::GET, ["cluster"]) => ok(json!({
            "id": asked.cluster.config().cluster_id,
            "max_peer_count": REPLICAS,
        })),
        (&Method::GET, ["cluster", "status"]) => ok(json!({
            "raft_bootstrap_time": "1970-01-01T00:00:00Z",
            "is_initialized": true,
            "replication_status": "",
        })),
        (&Method::GET, ["config"]) => ok(json!({
            "cluster-version": version,
            "replication": replication(),
        })),
        (&Method::GET, ["config", "cluster-version"]) => ok(json!(version)),
        (&Method::GET, ["config", "replicate"]) => ok(replication()),
        _ => None,
    }
}

fn replication() -> Value {
    json!({
        "max-replicas": REPLICAS,
        "location-labels": "",
        "strictly-match-label": "false",
        "enable-placement-rules": "true",
        "enable-placement-rules-cache": "false",
        "isolation-level": "",
    })
}

fn member(member: &Member) -> Value {
    json!({
        "name": member.name,
        "member_id": member.member_id,
        "peer_urls": member.peer_urls,
        "client_urls": member.client_urls,
        "binary_version": member.binary_version,
    })
}
