//! The services of PD over gRPC, asked with the generated clients: each is there, streams keep
//! their order, watchers are told.
#![cfg(feature = "serve")]

use std::sync::Arc;

use tikv_io_mock::control::{Outcome, Verb};
use tikv_io_mock::serve::ServedCluster;
use tikv_proto::keyspacepb::keyspace_client::KeyspaceClient;
use tikv_proto::keyspacepb::{self, KeyspaceState, LoadKeyspaceRequest, WatchKeyspacesRequest};
use tikv_proto::meta_storagepb::meta_storage_client::MetaStorageClient;
use tikv_proto::pdpb::pd_client::PdClient;
use tikv_proto::pdpb::{self, RequestHeader, ServiceMode};
use tikv_proto::resource_manager::resource_manager_client::ResourceManagerClient;
use tikv_proto::resource_manager::{self, token_bucket_request};
use tikv_proto::routerpb::router_client::RouterClient;
use tikv_proto::tsopb::tso_client::TsoClient;
use tikv_proto::{keyspacepb as ks, meta_storagepb as meta, tsopb};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request};

async fn serve() -> ServedCluster {
    ServedCluster::builder().stores(3).start().await.unwrap()
}

async fn connect(address: impl std::fmt::Display) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect().await.unwrap()
}

fn header() -> Option<RequestHeader> {
    Some(RequestHeader {
        cluster_id: 1,
        ..Default::default()
    })
}

/// A stream of requests that has no end.
fn endless<T: Send + 'static>(
    requests: Vec<T>,
) -> impl futures_util::Stream<Item = T> + Send + 'static {
    use futures_util::StreamExt;
    futures_util::stream::iter(requests).chain(futures_util::stream::pending())
}

#[tokio::test]
async fn keyspaces_are_loaded_changed_and_watched() {
    let cluster = serve().await;
    let mut client = KeyspaceClient::new(connect(cluster.pd_address()).await);
    let watch = WatchKeyspacesRequest {
        header: Some(RequestHeader {
            cluster_id: 1,
            ..Default::default()
        }),
    };
    let mut changes = client.watch_keyspaces(watch).await.unwrap().into_inner();
    let all = changes.message().await.unwrap().unwrap().keyspaces;
    assert_eq!(all[0].name, "DEFAULT");

    let id = cluster
        .with(|cluster, now_ms| cluster.create_keyspace(now_ms, "mine", Default::default()))
        .unwrap();
    let told = changes.message().await.unwrap().unwrap().keyspaces;
    assert_eq!(told[0].name, "mine");

    let request = LoadKeyspaceRequest {
        header: header(),
        name: "mine".to_owned(),
        ..Default::default()
    };
    let loaded = client.load_keyspace(request).await.unwrap().into_inner();
    let expected = keyspacepb::keyspace_meta::Keyspace::Id(id);
    assert_eq!(loaded.keyspace.unwrap().keyspace, Some(expected));

    let request = ks::UpdateKeyspaceStateRequest {
        header: header(),
        keyspace: Some(ks::update_keyspace_state_request::Keyspace::Id(id)),
        state: KeyspaceState::Disabled.into(),
    };
    client.update_keyspace_state(request).await.unwrap();
    let told = changes.message().await.unwrap().unwrap().keyspaces;
    assert_eq!(told[0].state(), KeyspaceState::Disabled);
}

#[tokio::test]
async fn resource_groups_hand_out_tokens() {
    let cluster = serve().await;
    let mut client = ResourceManagerClient::new(connect(cluster.pd_address()).await);
    let settings = resource_manager::TokenLimitSettings {
        fill_rate: 1_000,
        burst_limit: 10_000_000,
        ..Default::default()
    };
    let group = resource_manager::ResourceGroup {
        name: "batch".to_owned(),
        mode: resource_manager::GroupMode::RuMode.into(),
        priority: 8,
        r_u_settings: Some(resource_manager::GroupRequestUnitSettings {
            r_u: Some(resource_manager::TokenBucket {
                settings: Some(settings),
                tokens: 0.0,
            }),
        }),
        ..Default::default()
    };
    let put = resource_manager::PutResourceGroupRequest { group: Some(group) };
    let added = client.add_resource_group(put).await.unwrap().into_inner();
    assert_eq!(added.body, "Success!");

    let wish = |name: &str, value| {
        let item = resource_manager::RequestUnitItem {
            r#type: resource_manager::RequestUnitType::Ru.into(),
            value,
        };
        let items = resource_manager::token_bucket_request::RequestRu {
            request_r_u: vec![item],
        };
        resource_manager::TokenBucketRequest {
            resource_group_name: name.to_owned(),
            request: Some(token_bucket_request::Request::RuItems(items)),
            ..Default::default()
        }
    };
    let request = |value| resource_manager::TokenBucketsRequest {
        requests: vec![wish("batch", value), wish("unknown", value)],
        target_request_period_ms: 5_000,
        client_unique_id: 7,
    };
    let requests = endless(vec![request(50_000.0), request(25_000.0)]);
    let mut granted = client
        .acquire_token_buckets(requests)
        .await
        .unwrap()
        .into_inner();
    for expected in [50_000.0, 25_000.0] {
        let responses = granted.message().await.unwrap().unwrap().responses;
        assert_eq!(responses.len(), 1, "an unknown group has no entry");
        let bucket = &responses[0].granted_r_u_tokens[0];
        assert_eq!(bucket.granted_tokens.as_ref().unwrap().tokens, expected);
        assert_eq!(bucket.trickle_time_ms, 0);
    }
    let request = resource_manager::GetResourceGroupRequest {
        resource_group_name: "other".to_owned(),
        ..Default::default()
    };
    let missing = client.get_resource_group(request).await.unwrap_err();
    assert_eq!(missing.message(), "the other resource group does not exist");
}

#[tokio::test]
async fn metadata_is_stored_and_watched() {
    let cluster = serve().await;
    let mut client = MetaStorageClient::new(connect(cluster.pd_address()).await);
    let header = || {
        Some(meta::RequestHeader {
            cluster_id: 1,
            ..Default::default()
        })
    };
    let watch = meta::WatchRequest {
        header: header(),
        key: "a".into(),
        range_end: "b".into(),
        ..Default::default()
    };
    let mut events = client.watch(watch).await.unwrap().into_inner();
    for (key, value) in [("z", "0"), ("a1", "1")] {
        let put = meta::PutRequest {
            header: header(),
            key: key.into(),
            value: value.into(),
            ..Default::default()
        };
        client.put(put).await.unwrap();
    }
    let told = events.message().await.unwrap().unwrap();
    let kv = told.events[0].kv.as_ref().unwrap();
    assert_eq!((&kv.key[..], &kv.value[..]), (&b"a1"[..], &b"1"[..]));
    let get = meta::GetRequest {
        header: header(),
        key: "a1".into(),
        ..Default::default()
    };
    let found = client.get(get).await.unwrap().into_inner();
    assert_eq!((found.count, found.header.unwrap().revision), (1, 3));
    let delete = meta::DeleteRequest {
        header: header(),
        key: "a1".into(),
        ..Default::default()
    };
    client.delete(delete).await.unwrap();
    let told = events.message().await.unwrap().unwrap();
    assert_eq!(told.events[0].r#type(), meta::event::EventType::Delete);
}

#[tokio::test]
async fn the_router_answers_many_look_ups_in_one_message() {
    let builder = ServedCluster::builder().raw_regions(["g", "p"]);
    let cluster = builder.start().await.unwrap();
    let regions = cluster.regions();
    let mut client = RouterClient::new(connect(cluster.pd_address()).await);
    let request = |key: &str, id| pdpb::QueryRegionRequest {
        header: header(),
        keys: vec![key.to_owned().into()],
        prev_keys: vec!["g".into()],
        ids: vec![id],
        ..Default::default()
    };
    let requests = endless(vec![request("a", 0), request("z", regions[1])]);
    let mut found = client.query_region(requests).await.unwrap().into_inner();
    let first = found.message().await.unwrap().unwrap();
    assert_eq!(first.key_id_map, [regions[0]]);
    assert_eq!(first.prev_key_id_map, [regions[0]]);
    assert!(!first.regions_by_id.contains_key(&0), "no id at all");
    let second = found.message().await.unwrap().unwrap();
    assert_eq!(second.key_id_map, [regions[2]]);
    assert!(second.regions_by_id[&regions[1]].leader.is_some());

    let request = pdpb::GetAllStoresRequest {
        header: header(),
        ..Default::default()
    };
    let stores = client.get_all_stores(request).await.unwrap().into_inner();
    assert_eq!(stores.stores.len(), 3);
}

#[tokio::test]
async fn the_global_configuration_is_watched() {
    let cluster = serve().await;
    let mut client = PdClient::new(connect(cluster.pd_address()).await);
    let watch = pdpb::WatchGlobalConfigRequest::default();
    let mut changes = client
        .watch_global_config(watch)
        .await
        .unwrap()
        .into_inner();
    let item = pdpb::GlobalConfigItem {
        name: "a".to_owned(),
        payload: "1".into(),
        ..Default::default()
    };
    let store = pdpb::StoreGlobalConfigRequest {
        changes: vec![item],
        ..Default::default()
    };
    client.store_global_config(store).await.unwrap();
    let told = changes.message().await.unwrap().unwrap();
    assert_eq!(&told.changes[0].payload[..], b"1");
    let load = pdpb::LoadGlobalConfigRequest {
        names: vec!["a".to_owned()],
        ..Default::default()
    };
    let loaded = client.load_global_config(load).await.unwrap().into_inner();
    assert_eq!(&loaded.items[0].payload[..], b"1");
}

#[tokio::test]
async fn safe_points_are_held_back_by_barriers_of_all_kinds() {
    let cluster = serve().await;
    let mut client = PdClient::new(connect(cluster.pd_address()).await);
    let barrier = pdpb::SetGlobalGcBarrierRequest {
        header: header(),
        barrier_id: "backup".to_owned(),
        barrier_ts: 15,
        ttl_seconds: 60,
    };
    client.set_global_gc_barrier(barrier).await.unwrap();
    let advance = pdpb::AdvanceTxnSafePointRequest {
        header: header(),
        target: 20,
        ..Default::default()
    };
    let advanced = client.advance_txn_safe_point(advance).await.unwrap();
    assert_eq!(advanced.into_inner().new_txn_safe_point, 15);
    let request = pdpb::GetAllKeyspacesGcStatesRequest {
        header: header(),
        ..Default::default()
    };
    let states = client.get_all_keyspaces_gc_states(request).await.unwrap();
    let states = states.into_inner();
    assert_eq!(states.gc_states[0].txn_safe_point, 15);
    assert_eq!(states.global_gc_barriers[0].barrier_id, "backup");
    let watch = pdpb::WatchGcSafePointV2Request::default();
    let refused = client.watch_gc_safe_point_v2(watch).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn timestamps_come_in_batches_and_jump() {
    let cluster = serve().await;
    let mut client = PdClient::new(connect(cluster.pd_address()).await);
    let (wishes, receiver) = tokio::sync::mpsc::unbounded_channel();
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    let requests = futures_util::stream::unfold(receiver, |receiver| async move {
        let wish: Option<pdpb::TsoRequest> = receiver.lock().await.recv().await;
        wish.map(|wish| (wish, receiver))
    });
    let ask = |count| {
        let request = pdpb::TsoRequest {
            header: header(),
            count,
            ..Default::default()
        };
        wishes.send(request).unwrap();
    };
    ask(10);
    let mut answers = client.tso(requests).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert_eq!(first.count, 10);
    let first = first.timestamp.unwrap();
    cluster.with(|cluster, now_ms| cluster.pd_mut().jump_tso(now_ms + 60_000));
    ask(1);
    let jumped = answers.message().await.unwrap().unwrap().timestamp.unwrap();
    assert!(jumped.physical >= first.physical + 59_000);
    ask(0);
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unknown);
}

#[tokio::test]
async fn members_forward_lead_and_let_followers_answer() {
    let builder = ServedCluster::builder().pd_members(3);
    let cluster = builder.start().await.unwrap();
    let endpoints = cluster.pd_endpoints();
    assert_eq!(endpoints.len(), 3);
    let mut follower = PdClient::new(connect(&endpoints[1]).await);
    let get = || pdpb::GetRegionRequest {
        header: header(),
        region_key: "k".into(),
        ..Default::default()
    };
    let refused = follower.get_region(get()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let mut allowed = Request::new(get());
    let yes = MetadataValue::from_static("true");
    allowed
        .metadata_mut()
        .insert("pd-allow-follower-handle", yes);
    let answer = follower.get_region(allowed).await.unwrap().into_inner();
    assert!(answer.region.is_some());

    let mut forwarded = Request::new(get());
    let leader = format!("http://{}", endpoints[0]).parse().unwrap();
    forwarded.metadata_mut().insert("pd-forwarded-host", leader);
    assert!(follower.get_region(forwarded).await.is_ok());
    let mut astray = Request::new(get());
    let nowhere = MetadataValue::from_static("http://nowhere:1");
    astray.metadata_mut().insert("pd-forwarded-host", nowhere);
    let refused = follower.get_region(astray).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    cluster.stop_pd_member(0).await;
    let members = follower
        .get_members(pdpb::GetMembersRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(members.leader.unwrap().name, "pd1");
    assert!(follower.get_region(get()).await.is_ok(), "it leads now");
    let mut down = Request::new(get());
    let stopped = format!("http://{}", endpoints[0]).parse().unwrap();
    down.metadata_mut().insert("pd-forwarded-host", stopped);
    let refused = follower.get_region(down).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn timestamps_come_from_a_service_of_their_own() {
    let cluster = serve().await;
    let verb = |on| Verb::TsoService {
        on,
        primary: Some(0),
    };
    assert_eq!(cluster.control(verb(true)).await, Ok(Outcome::Done));
    let channel = connect(cluster.pd_address()).await;
    let info = PdClient::new(channel.clone())
        .get_cluster_info(pdpb::GetClusterInfoRequest::default())
        .await;
    let info = info.unwrap().into_inner();
    assert_eq!(info.service_modes, [i32::from(ServiceMode::ApiSvcMode)]);
    let [url] = &info.tso_urls[..] else {
        panic!("{:?}", info.tso_urls)
    };
    let channel = connect(url.strip_prefix("http://").unwrap()).await;
    let mut client = TsoClient::new(channel);
    let request = tsopb::TsoRequest {
        header: Some(tsopb::RequestHeader {
            cluster_id: 1,
            ..Default::default()
        }),
        count: 2,
        ..Default::default()
    };
    let requests = endless(vec![request.clone(), request]);
    let mut answers = client.tso(requests).await.unwrap().into_inner();
    let mut last = (0, 0);
    for _ in 0..2 {
        let answer = answers.message().await.unwrap().unwrap();
        let ts = answer.timestamp.unwrap();
        assert!((ts.physical, ts.logical) > last && answer.count == 2);
        last = (ts.physical, ts.logical);
    }
    let find = tsopb::FindGroupByKeyspaceIdRequest {
        header: Some(tsopb::RequestHeader {
            cluster_id: 1,
            ..Default::default()
        }),
        ..Default::default()
    };
    let group = client
        .find_group_by_keyspace_id(find.clone())
        .await
        .unwrap();
    let group = group.into_inner().keyspace_group.unwrap();
    assert_eq!(&group.members[0].address, url);

    assert_eq!(cluster.control(verb(false)).await, Ok(Outcome::Done));
    let gone = client.find_group_by_keyspace_id(find).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unimplemented);
}
