//! How far data is complete, and from where on it is kept.

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tikv_proto::kvrpcpb::StoreSafeTsRequest;
use tikv_proto::metapb::StoreState;

use super::{Answer, Asked, bad, ok};
use crate::cluster::Cluster;
use crate::cluster::region::StoreId;

pub(super) fn answer(mut asked: Asked<'_>) -> Option<Answer> {
    let path = asked.path.split_off(1);
    match (&asked.method, &path[..]) {
        (&Method::GET, ["min-resolved-ts"]) => min_resolved_ts(asked),
        (&Method::GET, ["min-resolved-ts", store]) => match store.parse() {
            Err(why) => bad(why),
            Ok(store) => {
                let ts = store_resolved_ts(asked.cluster, asked.now_ms, store);
                ok(resolved(ts, Value::Null))
            }
        },
        (&Method::GET, ["gc", "safepoint"]) => {
            let pd = asked.cluster.pd();
            let mut held = pd.service_safe_points();
            let gc_worker = ("gc_worker".to_owned(), pd.gc().txn_safe_point, i64::MAX);
            if held.iter().all(|(service, ..)| *service != gc_worker.0) {
                held.push(gc_worker);
            }
            let now_s = i64::try_from(asked.now_ms / 1_000).unwrap_or(i64::MAX);
            let alive = held.iter().filter(|(_, _, until_s)| *until_s > now_s);
            let least = alive.map(|(_, ts, _)| *ts).min().unwrap_or_default();
            let points = held.iter().map(|(service, ts, until_s)| {
                json!({ "service_id": service, "expired_at": until_s, "safe_point": ts })
            });
            let mut told = json!({
                "service_gc_safe_points": points.collect::<Vec<Value>>(),
                "gc_safe_point": pd.gc().gc_safe_point,
            });
            if least > 0 {
                told["min_service_gc_safe_point"] = json!(least);
            }
            ok(told)
        }
        (&Method::DELETE, ["gc", "safepoint", service]) => {
            asked.cluster.pd_mut().forget_service_safe_point(service);
            let done = json!("Delete service GC safepoint successfully.");
            Some((StatusCode::OK, done))
        }
        _ => None,
    }
}

/// The least timestamp of all stores, and those of the stores that are asked for: `cluster` for all,
/// or ids separated by commas.
fn min_resolved_ts(asked: Asked<'_>) -> Option<Answer> {
    let (cluster, now_ms) = (asked.cluster, asked.now_ms);
    let all: Vec<StoreId> = cluster.store_ids().collect();
    let ids = match asked.query.text("scope") {
        "" => {
            let least = least(cluster, now_ms, &all).0;
            return ok(resolved(known(least), Value::Null));
        }
        "cluster" => Ok(all.clone()),
        ids => ids.split(',').map(str::parse).collect(),
    };
    let ids: Vec<StoreId> = match ids {
        Ok(ids) => ids,
        Err(why) => return bad(why),
    };
    let (of_all, of_ids) = (least(cluster, now_ms, &all).0, least(cluster, now_ms, &ids));
    let least = match asked.query.text("scope") {
        "cluster" => known(of_all),
        _ => of_ids.0,
    };
    ok(resolved(least, Value::Object(of_ids.1)))
}

/// PD has no number for a cluster of which it knows none yet.
fn known(least: u64) -> u64 {
    match least {
        u64::MAX => 0,
        least => least,
    }
}

fn least(cluster: &mut Cluster, now_ms: u64, ids: &[StoreId]) -> (u64, Map<String, Value>) {
    let mut least = u64::MAX;
    let stores = ids.iter().map(|id| {
        let ts = store_resolved_ts(cluster, now_ms, *id);
        least = least.min(ts);
        (id.to_string(), json!(ts))
    });
    let stores = stores.collect();
    (least, stores)
}

/// Up to where the regions of a store are complete. A store that leads none, or is none, holds
/// nobody back.
fn store_resolved_ts(cluster: &mut Cluster, now_ms: u64, id: StoreId) -> u64 {
    let leads = cluster
        .regions()
        .iter()
        .any(|region| region.leader == Some(id));
    let is_there = cluster
        .store(id)
        .is_some_and(|store| store.meta.state() != StoreState::Tombstone);
    match leads && is_there {
        true => {
            cluster
                .get_store_safe_ts(now_ms, id, StoreSafeTsRequest::default())
                .safe_ts
        }
        false => u64::MAX,
    }
}

fn resolved(least: u64, stores: Value) -> Value {
    json!({
        "is_real_time": true,
        "min_resolved_ts": least,
        "persist_interval": "1s",
        "stores_min_resolved_ts": stores,
    })
}
