//! Regions, as PD believes them to be.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tikv_proto::metapb::{Peer, PeerRole};

use super::query::{to_hex, unescape};
use super::{Answer, Asked, bad, ok, wrong};
use crate::cluster::pd::KnownRegion;

/// How many regions a scan tells of if it says no other number.
const SCAN_LIMIT: usize = 16;
/// It never tells of more.
const SCAN_LIMIT_MAX: usize = 10_240;
/// Megabytes that a region is said to have: none is smaller to PD.
const SIZE_MB: u64 = 1;

pub(super) fn answer(asked: Asked<'_>) -> Option<Answer> {
    if asked.method != Method::GET {
        return None;
    }
    let known = asked.cluster.pd().known_regions();
    let all = Bytes::new();
    match &asked.path[1..] {
        ["region", "id", id] => match id.parse::<u64>() {
            Err(_) | Ok(0) => bad("the id is no number of a region"),
            Ok(id) => match known.get(id) {
                Some(found) => ok(region(found)),
                None => {
                    let why = format!("[PD:api:ErrRegionNotFound]region {id} not found");
                    wrong(StatusCode::NOT_FOUND, why)
                }
            },
        },
        ["region", "key", key] => match asked.query.key_of(&unescape(key)) {
            Err(why) => bad(why),
            // PD tells of a region without anything if there is none.
            Ok(key) => ok(known.containing(&key).map_or_else(nobody, region)),
        },
        ["regions"] => ok(list(known.in_range(&all, &all))),
        ["regions", "key"] => {
            let keys = (asked.query.key("key"), asked.query.key("end_key"));
            let limit = match asked.query.text("limit") {
                "" => Ok(SCAN_LIMIT),
                text => text.parse(),
            };
            match (keys, limit) {
                ((Ok(start), Ok(end)), Ok(limit)) => ok(list(
                    known.in_range(&start, &end).take(limit.min(SCAN_LIMIT_MAX)),
                )),
                ((Err(why), _) | (_, Err(why)), _) => bad(why),
                (_, Err(why)) => bad(why),
            }
        }
        ["regions", "count"] => {
            let count = known.iter().count();
            ok(json!({ "count": count, "regions": null }))
        }
        ["regions", "store", id] => match id.parse::<u64>() {
            Err(why) => bad(why),
            Ok(store) => {
                let all = known.in_range(&all, &all);
                ok(list(all.filter(|known| {
                    known.meta.peers.iter().any(|peer| peer.store_id == store)
                })))
            }
        },
        ["stats", "region"] => {
            let query = &asked.query;
            match (query.key("start_key"), query.key("end_key")) {
                (Ok(start), Ok(end)) => {
                    let counted = query.bytes("count").is_some();
                    ok(stats(known.in_range(&start, &end), counted))
                }
                (Err(why), _) | (_, Err(why)) => bad(why),
            }
        }
        _ => None,
    }
}

fn list<'a>(regions: impl Iterator<Item = &'a KnownRegion>) -> Value {
    let regions: Vec<Value> = regions.map(region).collect();
    json!({ "count": regions.len(), "regions": regions })
}

fn region(known: &KnownRegion) -> Value {
    let meta = &known.meta;
    let epoch = meta.region_epoch.unwrap_or_default();
    told(
        meta.id,
        [&meta.start_key, &meta.end_key],
        json!({ "conf_ver": epoch.conf_ver, "version": epoch.version }),
        &meta.peers,
        known.leader.as_ref(),
    )
}

fn nobody() -> Value {
    told(0, [&[], &[]], json!({}), &[], None)
}

fn told(id: u64, keys: [&[u8]; 2], epoch: Value, peers: &[Peer], leader: Option<&Peer>) -> Value {
    let no_leader = || json!({ "role_name": "Voter" });
    json!({
        "id": id,
        "start_key": to_hex(keys[0]),
        "end_key": to_hex(keys[1]),
        "epoch": epoch,
        "peers": peers.iter().map(peer).collect::<Vec<Value>>(),
        "leader": leader.map_or_else(no_leader, peer),
        "cpu_usage": 0,
        "written_bytes": 0,
        "read_bytes": 0,
        "written_keys": 0,
        "read_keys": 0,
        "approximate_size": SIZE_MB,
        "approximate_keys": 0,
        "approximate_kv_size": 0,
        "approximate_columnar_kv_size": 0,
    })
}

fn peer(peer: &Peer) -> Value {
    let mut told = Map::from_iter([
        ("id".to_owned(), json!(peer.id)),
        ("store_id".to_owned(), json!(peer.store_id)),
    ]);
    let name = match peer.role() {
        PeerRole::Voter => "Voter",
        PeerRole::Learner => "Learner",
        PeerRole::IncomingVoter => "IncomingVoter",
        PeerRole::DemotingVoter => "DemotingVoter",
    };
    told.insert("role_name".to_owned(), json!(name));
    // What has the value of nothing is left out.
    if peer.role != 0 {
        told.insert("role".to_owned(), json!(peer.role));
    }
    if peer.role() == PeerRole::Learner {
        told.insert("is_learner".to_owned(), json!(true));
    }
    if peer.is_witness {
        told.insert("is_witness".to_owned(), json!(true));
    }
    Value::Object(told)
}

/// Sums over regions: how many there are, and how many each store has and leads.
fn stats<'a>(regions: impl Iterator<Item = &'a KnownRegion>, counted: bool) -> Value {
    let (mut count, mut leaders, mut peers) = (0u64, Map::new(), Map::new());
    let more = |sums: &mut Map<String, Value>, store: u64| {
        let sum = sums.entry(store.to_string()).or_insert(json!(0));
        *sum = json!(sum.as_u64().unwrap_or_default() + 1);
    };
    for known in regions {
        count += 1;
        if let Some(leader) = &known.leader {
            more(&mut leaders, leader.store_id);
        }
        for peer in &known.meta.peers {
            more(&mut peers, peer.store_id);
        }
    }
    if counted {
        return json!({
            "count": count,
            "empty_count": 0,
            "storage_size": 0,
            "storage_keys": 0,
            "store_leader_count": null,
            "store_peer_count": null,
        });
    }
    json!({
        "count": count,
        "empty_count": count,
        "storage_size": count * SIZE_MB,
        "storage_keys": 0,
        "store_leader_count": leaders,
        "store_peer_count": peers,
    })
}
