//! A served cluster is controlled, by function call and over HTTP, with the same verbs.
#![cfg(feature = "serve")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use tikv_io_mock::cluster::store::Disk;
use tikv_io_mock::cluster::write_end::{End, WritePoint};
use tikv_io_mock::control::{Outcome, Refused, RegionError, Verb};
use tikv_io_mock::dispatch;
use tikv_io_mock::serve::ServedCluster;
use tikv_proto::kvrpcpb;

async fn serve() -> ServedCluster {
    ServedCluster::builder().stores(3).start().await.unwrap()
}

/// What `curl` would get: status and body. Without a body the request is a GET.
fn http(address: SocketAddr, path: &str, body: Option<&str>) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = match body {
        None => format!("GET {path} HTTP/1.1\r\n"),
        Some(body) => format!("POST {path} HTTP/1.1\r\ncontent-length: {}\r\n", body.len()),
    };
    let host = "host: mock\r\nconnection: close\r\n\r\n";
    let request = format!("{head}{host}{}", body.unwrap_or_default());
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = serde_json::from_str(body).unwrap_or(Value::Null);
    (status, body)
}

async fn curl(address: SocketAddr, path: &str, body: Option<&str>) -> (u16, Value) {
    let (path, body) = (path.to_owned(), body.map(str::to_owned));
    let blocking = move || http(address, &path, body.as_deref());
    tokio::task::spawn_blocking(blocking).await.unwrap()
}

#[tokio::test]
async fn verbs_change_regions_and_stores() {
    let cluster = serve().await;
    let split = Verb::Split {
        keys: vec!["g".into(), "p".into()],
        raw: false,
    };
    let Ok(Outcome::Regions(created)) = cluster.control(split).await else {
        panic!("no regions");
    };
    assert_eq!(created.len(), 2);
    let regions = cluster.regions();
    let (source, target) = (regions[1], regions[2]);
    let transfer = |region, store| Verb::TransferLeader { region, store };
    assert_eq!(
        cluster.control(transfer(source, 3)).await,
        Ok(Outcome::Done)
    );
    let leader = |region| cluster.with(|cluster, _| cluster.region(region).unwrap().leader);
    assert_eq!(leader(source), Some(3));

    let not_adjacent = Verb::Merge {
        source: regions[0],
        target,
    };
    let refused = cluster.control(not_adjacent).await;
    assert!(matches!(refused, Err(Refused::Forbidden(_))), "{refused:?}");
    let merge = Verb::Merge { source, target };
    assert_eq!(cluster.control(merge).await, Ok(Outcome::Done));
    assert_eq!(cluster.regions(), [regions[0], target]);

    let unknown = cluster.control(transfer(source, 1)).await;
    assert_eq!(unknown, Err(Refused::NoRegion(source)));
    let unknown = cluster.control(Verb::Restart { store: 9 }).await;
    assert_eq!(unknown, Err(Refused::NoStore(9)));

    cluster.control(Verb::Stop { store: 1 }).await.unwrap();
    let taken = cluster.control(Verb::FailOver { store: 1 }).await;
    let Ok(Outcome::Regions(taken)) = taken else {
        panic!("{taken:?}");
    };
    assert!(taken.iter().all(|region| leader(*region) != Some(1)));
    cluster.control(Verb::Start { store: 1 }).await.unwrap();
    assert!(cluster.with(|cluster, _| cluster.is_up(1)));

    let added = cluster.control(Verb::AddStore {}).await.unwrap();
    let Outcome::Store(store) = added else {
        panic!("{added:?}");
    };
    let peer = Verb::AddPeer {
        region: target,
        store,
        learner: false,
    };
    assert_eq!(cluster.control(peer.clone()).await, Ok(Outcome::Done));
    assert!(cluster.control(peer).await.is_err(), "it is there already");
    cluster.control(Verb::Offline { store: 2 }).await.unwrap();
    cluster.control(Verb::Bury { store: 2 }).await.unwrap();
    cluster.control(Verb::ForgetTombstones {}).await.unwrap();
    assert!(cluster.with(|cluster, _| cluster.store(2).is_none()));
}

#[tokio::test]
async fn verbs_move_time_and_safe_points() {
    let cluster = serve().await;
    let now = |cluster: &ServedCluster| cluster.with(|c, now_ms| c.pd_mut().next_tso(now_ms));
    let before = now(&cluster);
    let jump = Verb::JumpTso { by_ms: 3_600_000 };
    cluster.control(jump).await.unwrap();
    assert!(now(&cluster) >= before + (3_600_000 << 18));
    let advance = |safe_point| Verb::AdvanceGc { safe_point };
    let moved = cluster.control(advance(Some(7))).await;
    assert_eq!(moved, Ok(Outcome::SafePoint(7)));
    let collected = cluster.control(Verb::CollectGarbage {}).await;
    assert_eq!(collected, Ok(Outcome::SafePoint(7)));
    let refused = cluster.control(advance(Some(6))).await;
    assert!(matches!(refused, Err(Refused::Forbidden(_))), "{refused:?}");
    let moved = cluster.control(advance(None)).await.unwrap();
    assert!(
        matches!(moved, Outcome::SafePoint(ts) if ts > before),
        "{moved:?}"
    );
}

#[tokio::test]
async fn the_same_verbs_are_served_over_http() {
    let cluster = serve().await;
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let address = cluster.serve_control(anywhere).await.unwrap();
    let answer = curl(address, "/split", Some(r#"{"keys": ["g"]}"#)).await;
    let regions = cluster.regions();
    assert_eq!(answer, (200, json!({ "regions": [regions[0]] })));
    let paused = curl(address, "/pause", Some(r#"{"store": 2}"#)).await;
    assert_eq!(paused, (200, json!("done")));
    curl(address, "/slow", Some(r#"{"store": 3, "delay_ms": 5}"#)).await;
    let label = r#"{"store": 1, "key": "zone", "value": "a"}"#;
    curl(address, "/label", Some(label)).await;
    let keyspace = curl(address, "/create_keyspace", Some(r#"{"name": "mine"}"#)).await;
    assert_eq!(keyspace, (200, json!({ "keyspace": 1 })));

    let (status, state) = curl(address, "/", None).await;
    assert_eq!(status, 200);
    let state = &state["state"];
    assert_eq!(state["stores"][1]["paused"], json!(true));
    assert_eq!(state["stores"][2]["delay_ms"], json!(5));
    assert_eq!(state["stores"][0]["labels"], json!({ "zone": "a" }));
    assert_eq!(state["regions"][0]["start"], json!(""));
    assert_eq!(state["regions"][0]["end"], json!("g"));
    assert_eq!(state["keyspaces"][1]["name"], json!("mine"));

    for (path, body, expected) in [
        ("/pause", r#"{"store": 9}"#, 404),
        ("/pause", r#"{"store": "#, 400),
        ("/dance", "", 400),
        ("/online", r#"{"store": 1}"#, 409),
    ] {
        let (status, answer) = curl(address, path, Some(body)).await;
        assert_eq!(status, expected, "{path} {answer}");
        assert!(answer["error"].is_string(), "{path} {answer}");
    }
    assert_eq!(curl(address, "/pause", None).await.0, 405);
}

#[tokio::test]
async fn stores_and_pd_answer_a_plain_get_at_their_ports() {
    let cluster = serve().await;
    let (_, store) = cluster.stores().next().unwrap();
    let region = cluster.regions()[0];
    assert_eq!(curl(store, "/status", None).await.0, 200);
    let (status, told) = curl(store, &format!("/region/{region}"), None).await;
    assert_eq!((status, &told["leader"]), (200, &json!(1)));
    let config = curl(store, "/config", None).await.1;
    assert_eq!(config["storage"]["api-version"], json!(1));
    for missing in ["/region/99", "/region/x", "/nothing"] {
        assert_eq!(curl(store, missing, None).await.0, 404, "{missing}");
    }
    let path = "/pd/api/v1/min-resolved-ts?scope=1,3";
    let (status, told) = curl(cluster.pd_address(), path, None).await;
    assert_eq!(status, 200);
    let stores = told["stores_min_resolved_ts"].as_object().unwrap();
    assert_eq!(stores.keys().collect::<Vec<_>>(), ["1", "3"]);
    assert!(told["min_resolved_ts"].is_u64());
}

#[tokio::test]
async fn the_control_address_goes_with_the_cluster() {
    let cluster = serve().await;
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let address = cluster.serve_control(anywhere).await.unwrap();
    cluster.stop().await;
    assert!(TcpStream::connect(address).is_err());
}

#[tokio::test]
async fn stores_refuse_on_demand() {
    let cluster = serve().await;
    let address = cluster.serve_control(([127, 0, 0, 1], 0).into()).await;
    let address = address.unwrap();
    for (verb, body) in [
        ("disk", r#"{"store": 1, "room": "little"}"#),
        (
            "load",
            r#"{"store": 2, "read_wait_ms": 30, "scheduler_full": true}"#,
        ),
        (
            "end_write",
            r#"{"store": 3, "cause": "crash", "progress": "proposed_and_lost"}"#,
        ),
        (
            "refuse",
            r#"{"error": "server_is_busy", "store": 1, "count": 2}"#,
        ),
        (
            "fall_behind",
            r#"{"region": 4, "store": 2, "entries": 7, "stuck": true}"#,
        ),
    ] {
        let region = cluster.regions()[0];
        let body = body.replace("\"region\": 4", &format!("\"region\": {region}"));
        let (status, answer) = curl(address, &format!("/{verb}"), Some(&body)).await;
        assert_eq!((status, answer), (200, json!("done")), "{verb}");
    }
    let region = cluster.regions()[0];
    cluster.with(|cluster, _| {
        let store = |id| cluster.store(id).unwrap();
        assert_eq!(store(1).disk, Disk::AlmostFull);
        assert_eq!(store(2).load.read_wait_ms, 30);
        assert!(store(2).load.scheduler_full && !store(2).load.closing);
        assert!(store(2).behind[&region].stuck);
        let end = (End::Crash, WritePoint::Proposed { survives: false });
        assert_eq!(store(3).ends_write, Some(end));
    });
    let get = |cluster: &ServedCluster| {
        let request = kvrpcpb::GetRequest {
            context: Some(Box::default()),
            ..Default::default()
        };
        let answer = cluster.with(|cluster, now_ms| {
            dispatch::store(cluster, now_ms, 1, request.into()).expect("the store is up")
        });
        let error = dispatch::region_error(&answer).cloned();
        error.is_some_and(|error| error.server_is_busy.is_some())
    };
    assert_eq!(
        [get(&cluster), get(&cluster), get(&cluster)],
        [true, true, false]
    );

    let described = curl(address, "/describe", Some("{}")).await.1;
    let lagging = &described["state"]["regions"][0]["lagging"];
    assert_eq!(lagging, &json!({ "2": 7 }));
    let leads = Verb::FallBehind {
        region,
        store: 1,
        entries: 0,
        stuck: false,
    };
    let refused = cluster.control(leads).await;
    assert!(matches!(refused, Err(Refused::Forbidden(_))), "{refused:?}");
    let refuse = |error, count| Verb::Refuse {
        error,
        store: None,
        region: Some(region),
        count,
    };
    for count in [5, 0] {
        let verb = refuse(RegionError::ServerIsBusy, count);
        assert_eq!(cluster.control(verb).await, Ok(Outcome::Done));
    }
    assert!(!get(&cluster), "it has been taken back");
    let catch_up = |region| Verb::CatchUp { store: 2, region };
    for region in [Some(region), None] {
        let done = cluster.control(catch_up(region)).await;
        assert_eq!(done, Ok(Outcome::Done));
        assert_eq!(cluster.with(|cluster, _| cluster.lagging().count()), 0);
    }
    let advanced = cluster.control(Verb::AdvanceSafeTs { region }).await;
    assert!(
        matches!(advanced, Ok(Outcome::SafeTs(ts)) if ts > 0),
        "{advanced:?}"
    );
    let nobody = Verb::AdvanceSafeTs { region: 999 };
    assert_eq!(cluster.control(nobody).await, Err(Refused::NoRegion(999)));
}
