//! PD asked over plain HTTP.

use std::time::Duration;

use serde_json::{Value, json};

use crate::serve::ServedCluster;
use crate::serve::testing::http;

async fn get(cluster: &ServedCluster, path: &str) -> (u16, Value) {
    let path = format!("/pd/api/v1/{path}");
    http(cluster.pd_address(), "GET", &path, "").await
}

#[tokio::test]
async fn keyspaces_live_and_are_found() {
    let cluster = ServedCluster::builder().start().await.unwrap();
    let ask = async |method, path: &str, body: &str| {
        let path = format!("/pd/api/v2/keyspaces{path}");
        http(cluster.pd_address(), method, &path, body).await
    };
    let wish = r#"{"name": "mine", "config": {"gc_management_type": "keyspace_level"}}"#;
    let (status, mine) = ask("POST", "", wish).await;
    assert_eq!((status, &mine["name"]), (200, &json!("mine")));
    assert_eq!(mine["state"], "ENABLED");
    let again = ask("POST", "", wish).await;
    assert_eq!(again.0, 500, "{again:?}");
    assert_eq!(ask("POST", "", "{").await.0, 400);
    // Its regions stand: a client can load it at once.
    let starts = cluster.with(|cluster, _| cluster.pd().known_regions().iter().count());
    assert!(starts > 1);

    let by_id = ask("GET", &format!("/id/{}", mine["id"]), "").await;
    assert_eq!(by_id, (200, mine.clone()));
    assert_eq!(ask("GET", "/mine", "").await, (200, mine));
    assert_eq!(ask("GET", "/other", "").await.0, 500);

    let change =
        r#"{"config": {"a": "1", "gc_management_type": null}, "preconditions": {"a": null}}"#;
    let (status, changed) = ask("PATCH", "/mine/config", change).await;
    assert_eq!((status, &changed["config"]), (200, &json!({ "a": "1" })));
    assert_eq!(ask("PATCH", "/mine/config", change).await.0, 409);
    let own = r#"{"config": {"gc_management_type": "keyspace_level"}}"#;
    assert_eq!(ask("PATCH", "/mine/config", own).await.0, 500);

    let (status, disabled) = ask("PUT", "/mine/state", r#"{"state": "disabled"}"#).await;
    assert_eq!((status, &disabled["state"]), (200, &json!("DISABLED")));
    assert_eq!(ask("PUT", "/mine/state", r#"{"state": "x"}"#).await.0, 400);
    assert_eq!(
        ask("PUT", "/mine/state", r#"{"state": "tombstone"}"#)
            .await
            .0,
        500
    );

    let (_, page) = ask("GET", "?limit=1", "").await;
    assert_eq!(page["keyspaces"][0]["name"], "DEFAULT");
    let next = page["next_page_token"].as_str().unwrap();
    let (_, page) = ask("GET", &format!("?limit=1&page_token={next}"), "").await;
    assert_eq!(page["keyspaces"][0]["name"], "mine");
    assert_eq!(page["next_page_token"], "");
}

#[tokio::test]
async fn regions_are_told_as_pd_believes_them_to_be() {
    let cluster = ServedCluster::builder().raw_regions(["g", "p/"]);
    let cluster = cluster.start().await.unwrap();
    let (_, all) = get(&cluster, "regions").await;
    assert_eq!(all["count"], 3);
    let (_, first) = get(&cluster, "regions/key?limit=1").await;
    assert_eq!(first["regions"][0]["end_key"], "67");
    let (_, last) = get(&cluster, "regions/key?key=702F&format=hex").await;
    assert_eq!(last["regions"][0]["start_key"], "702F");
    let (status, holds) = get(&cluster, "region/key/p%2Fx").await;
    assert_eq!((status, &holds["start_key"]), (200, &json!("702F")));
    assert_eq!(holds["peers"].as_array().unwrap().len(), 3);
    let id = &holds["id"];
    let (status, again) = get(&cluster, &format!("region/id/{id}")).await;
    assert_eq!((status, again), (200, holds));
    assert_eq!(get(&cluster, "region/id/99").await.0, 404);
    assert_eq!(get(&cluster, "region/id/x").await.0, 400);
    let (_, stats) = get(&cluster, "stats/region?start_key=a&end_key=h").await;
    assert_eq!(stats["count"], 2);
    assert_eq!(stats["store_peer_count"], json!({ "1": 2, "2": 2, "3": 2 }));
    let (_, of_store) = get(&cluster, "regions/store/2").await;
    assert_eq!(of_store["count"], 3);
}

#[tokio::test]
async fn stores_and_members_are_told() {
    let cluster = ServedCluster::builder().pd_members(2);
    let cluster = cluster.start().await.unwrap();
    let (_, stores) = get(&cluster, "stores").await;
    assert_eq!(stores["count"], 3);
    let first = &stores["stores"][0];
    assert_eq!(first["store"]["state_name"], "Up");
    assert_eq!(first["status"]["region_count"], 1);
    cluster.stop_store(2).await;
    let (_, second) = get(&cluster, "store/2").await;
    assert_eq!(second["store"]["state_name"], "Disconnected");
    assert_eq!(get(&cluster, "store/9").await.0, 404);

    let (_, members) = get(&cluster, "members").await;
    let names: Vec<&Value> = members["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| &member["name"])
        .collect();
    assert_eq!(members["leader"]["name"], *names[0]);
    let path = format!("/pd/api/v1/leader/transfer/{}", names[1].as_str().unwrap());
    assert_eq!(http(cluster.pd_address(), "POST", &path, "").await.0, 200);
    let (_, leader) = get(&cluster, "leader").await;
    assert_eq!(leader["name"], *names[1]);
    cluster.lead_pd(None);
    assert_eq!(get(&cluster, "stores").await.0, 503);
    assert_eq!(get(&cluster, "health").await.0, 200);
    assert_eq!(get(&cluster, "schedulers").await.0, 503);
    cluster.lead_pd(Some(0));
    assert_eq!(get(&cluster, "schedulers").await.0, 404);
}

#[tokio::test]
async fn safe_points_are_told_and_services_forgotten() {
    let cluster = ServedCluster::builder().start().await.unwrap();
    cluster.with(|cluster, now_ms| {
        cluster.pd_mut().advance_safe_points(now_ms, 20).unwrap();
        let request = tikv_proto::pdpb::UpdateServiceGcSafePointRequest {
            header: Some(tikv_proto::pdpb::RequestHeader {
                cluster_id: 1,
                ..Default::default()
            }),
            service_id: "br".into(),
            ttl: 60,
            safe_point: 30,
        };
        let pd = cluster.pd_mut();
        pd.update_service_gc_safe_point(now_ms, 0, request).unwrap();
    });
    let (_, told) = get(&cluster, "gc/safepoint").await;
    assert_eq!(told["gc_safe_point"], 20);
    assert_eq!(told["min_service_gc_safe_point"], 20);
    let services = told["service_gc_safe_points"].as_array().unwrap();
    let ids: Vec<&Value> = services.iter().map(|point| &point["service_id"]).collect();
    assert_eq!(ids, ["br", "gc_worker"]);
    assert_eq!(services[0]["safe_point"], 30);
    let path = "/pd/api/v1/gc/safepoint/br";
    assert_eq!(http(cluster.pd_address(), "DELETE", path, "").await.0, 200);
    let (_, told) = get(&cluster, "gc/safepoint").await;
    assert_eq!(told["service_gc_safe_points"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn complete_data_is_told_of_those_who_lead() {
    let cluster = ServedCluster::builder().stores(2).start().await.unwrap();
    let region = cluster.regions()[0];
    let ts = cluster.with(|cluster, now_ms| cluster.advance_safe_ts(now_ms, region));
    let (_, all) = get(&cluster, "min-resolved-ts").await;
    assert_eq!(all["min_resolved_ts"], ts);
    assert_eq!(all["stores_min_resolved_ts"], Value::Null);
    let (_, of_cluster) = get(&cluster, "min-resolved-ts?scope=cluster").await;
    let stores = json!({ "1": ts, "2": u64::MAX });
    assert_eq!(of_cluster["stores_min_resolved_ts"], stores);
    assert_eq!(of_cluster["min_resolved_ts"], ts);
    let (_, second) = get(&cluster, "min-resolved-ts?scope=2").await;
    assert_eq!(second["min_resolved_ts"], u64::MAX);
    assert_eq!(get(&cluster, "min-resolved-ts?scope=x").await.0, 400);
    let (_, first) = get(&cluster, "min-resolved-ts/1").await;
    assert_eq!(first["min_resolved_ts"], ts);
}

#[tokio::test]
async fn stale_reads_become_possible_by_themselves() {
    let cluster = ServedCluster::builder().raw_regions(["g"]);
    let cluster = cluster.safe_ts_every(Duration::from_millis(1));
    let cluster = cluster.start().await.unwrap();
    let mut seen = 0;
    // It is never 0 for long, and then goes on.
    for _ in 0..2 {
        seen = loop {
            let (_, told) = get(&cluster, "min-resolved-ts").await;
            let now = told["min_resolved_ts"].as_u64().unwrap();
            if now > seen {
                break now;
            }
        };
    }
    let (_, stores) = get(&cluster, "min-resolved-ts?scope=1,2,3").await;
    for ts in stores["stores_min_resolved_ts"]
        .as_object()
        .unwrap()
        .values()
    {
        assert!(ts.as_u64().unwrap() >= seen);
    }
}

#[tokio::test]
async fn checkers_are_paused_for_a_while() {
    let cluster = ServedCluster::builder().start().await.unwrap();
    let pause = async |name: &str, body| {
        let path = format!("/pd/api/v1/checker/{name}");
        http(cluster.pd_address(), "POST", &path, body).await.0
    };
    let paused = async || get(&cluster, "checker/merge").await.1["paused"].clone();
    assert_eq!(paused().await, false);
    assert_eq!(pause("merge", r#"{"delay": 60}"#).await, 200);
    assert_eq!(paused().await, true);
    assert_eq!(get(&cluster, "checker/split").await.1["paused"], false);
    assert_eq!(pause("merge", r#"{"delay": 0}"#).await, 200);
    assert_eq!(paused().await, false);
    assert_eq!(pause("merge", r#"{"delay": -1}"#).await, 400);
    assert_eq!(pause("merge", "{}").await, 400);
    assert_eq!(pause("other", r#"{"delay": 1}"#).await, 500);
    assert_eq!(get(&cluster, "checker/other").await.0, 500);
}
