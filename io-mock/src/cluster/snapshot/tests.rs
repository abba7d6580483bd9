//! A loaded cluster is the one that was saved; what is none is refused.

use proptest::collection::vec;
use proptest::prelude::*;
use tikv_core::wire::{Command, Response};
use tikv_proto::kvrpcpb::{self, ApiVersion, Context, Mutation, Op};
use tikv_proto::{meta_storagepb, pdpb, resource_manager};

use super::{HEADER_LEN, SnapshotError};
use crate::cluster::failure::GrpcError;
use crate::cluster::injection::Injection;
use crate::cluster::region::RegionId;
use crate::cluster::store::Disk;
use crate::cluster::write_end::{End, WritePoint};
use crate::cluster::{Cluster, Config, key};
use crate::dispatch;

const NOW: u64 = 1_000_000;

/// Something that leaves a trace in a cluster.
#[derive(Clone, Debug)]
enum Step {
    RawPut(u8),
    /// A transaction that commits, or leaves its lock.
    Put(u8, bool),
    /// A pessimistic lock, which the leader keeps in memory.
    Lock(u8),
    Split(u8),
    Transfer(u8, u64),
    Restart(u64),
    Offline(u64),
    Keyspace(u8),
    Barrier(u8, bool),
    Advance(u64),
    MetaPut(u8),
    Tokens(u8),
    Scatter,
    LeadPd(Option<usize>),
    /// A peer falls behind, or is stuck.
    FallBehind(u8, u64, bool),
    Buckets(u8),
    Trouble(u8, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let k = 0..20u8;
    let store = 1..4u64;
    prop_oneof![
        k.clone().prop_map(Step::RawPut),
        (k.clone(), any::<bool>()).prop_map(|(k, commits)| Step::Put(k, commits)),
        k.clone().prop_map(Step::Lock),
        k.clone().prop_map(Step::Split),
        (k.clone(), store.clone()).prop_map(|(k, store)| Step::Transfer(k, store)),
        store.clone().prop_map(Step::Restart),
        store.prop_map(Step::Offline),
        k.clone().prop_map(Step::Keyspace),
        (k.clone(), any::<bool>()).prop_map(|(k, global)| Step::Barrier(k, global)),
        (0..1_000u64).prop_map(Step::Advance),
        k.clone().prop_map(Step::MetaPut),
        k.prop_map(Step::Tokens),
        Just(Step::Scatter),
        prop_oneof![Just(None), (0..2usize).prop_map(Some)].prop_map(Step::LeadPd),
        (0..20u8, 1..4u64, any::<bool>())
            .prop_map(|(k, store, stuck)| Step::FallBehind(k, store, stuck)),
        (0..20u8).prop_map(Step::Buckets),
        (0..20u8, 1..4u64).prop_map(|(k, store)| Step::Trouble(k, store)),
    ]
}

/// Has the leader of a key's region answer.
fn ask(
    cluster: &mut Cluster,
    now_ms: u64,
    encoded: &[u8],
    command: impl Into<Command>,
) -> Result<Response, GrpcError> {
    let region = cluster.regions().find(encoded).unwrap();
    let store = region.leader.unwrap_or(1);
    let mut command = command.into();
    command.set_context(Box::new(Context {
        region_id: region.meta.id,
        region_epoch: region.meta.region_epoch,
        peer: region.leader_peer().copied(),
        ..Context::default()
    }));
    dispatch::store(cluster, now_ms, store, command)
}

fn prewrite(k: u8, start_version: u64) -> kvrpcpb::PrewriteRequest {
    let user_key = vec![k];
    kvrpcpb::PrewriteRequest {
        mutations: vec![Mutation {
            op: Op::Put.into(),
            key: user_key.clone().into(),
            // Every other one is too long to stand in its write record.
            value: vec![k; usize::from(k % 2) * 300].into(),
            ..Mutation::default()
        }],
        primary_lock: user_key.into(),
        start_version,
        lock_ttl: 3_000,
        ..Default::default()
    }
}

fn take(cluster: &mut Cluster, now_ms: u64, step: &Step) {
    match *step {
        Step::RawPut(k) => {
            let request = kvrpcpb::RawPutRequest {
                key: vec![k].into(),
                value: vec![k, k].into(),
                ..Default::default()
            };
            let _ = ask(cluster, now_ms, &[k], request);
        }
        Step::Put(k, commits) => {
            let encoded = key::encode(&[k]);
            let start_version = cluster.pd_mut().next_tso(now_ms);
            let _ = ask(cluster, now_ms, &encoded, prewrite(k, start_version));
            if commits {
                let request = kvrpcpb::CommitRequest {
                    start_version,
                    keys: vec![vec![k].into()],
                    commit_version: cluster.pd_mut().next_tso(now_ms),
                    ..Default::default()
                };
                let _ = ask(cluster, now_ms, &encoded, request);
            }
        }
        Step::Lock(k) => {
            let start_version = cluster.pd_mut().next_tso(now_ms);
            let request = kvrpcpb::PessimisticLockRequest {
                mutations: vec![Mutation {
                    op: Op::PessimisticLock.into(),
                    key: vec![k].into(),
                    ..Mutation::default()
                }],
                primary_lock: vec![k].into(),
                start_version,
                for_update_ts: start_version,
                lock_ttl: 3_000,
                wait_timeout: -1,
                ..Default::default()
            };
            let _ = ask(cluster, now_ms, &key::encode(&[k]), request);
        }
        Step::Split(k) => {
            let at = key::encode(&[k]);
            let region = cluster.regions().find(&at).unwrap().meta.id;
            cluster.split(now_ms, region, &[at]);
        }
        Step::Transfer(k, store) => {
            let region = cluster.regions().find(&[k]).unwrap().meta.id;
            cluster.transfer_leader(now_ms, region, store);
        }
        Step::Restart(store) => {
            cluster.stop_store(store);
            if now_ms.is_multiple_of(2) {
                cluster.start_store(now_ms, store);
            }
        }
        Step::Offline(store) => {
            cluster.take_offline(store);
            cluster.label_store(store, "zone", "z");
        }
        Step::Keyspace(k) => {
            let own = ("gc_management_type".to_owned(), "keyspace_level".to_owned());
            let _ = cluster.create_keyspace(now_ms, &format!("k{k}"), [own].into());
        }
        Step::Barrier(k, global) => {
            let barrier_ts = 500 + u64::from(k);
            let (barrier_id, ttl_seconds) = (format!("b{k}"), i64::from(k) + 1);
            let pd = cluster.pd_mut();
            if global {
                let request = pdpb::SetGlobalGcBarrierRequest {
                    header: header(),
                    barrier_id,
                    barrier_ts,
                    ttl_seconds,
                };
                let _ = pd.set_global_gc_barrier(now_ms, 0, request);
            } else {
                let request = pdpb::SetGcBarrierRequest {
                    header: header(),
                    barrier_id,
                    barrier_ts,
                    ttl_seconds,
                    ..Default::default()
                };
                let _ = pd.set_gc_barrier(now_ms, 0, request);
            }
        }
        Step::Advance(target) => {
            let _ = cluster.pd_mut().advance_safe_points(now_ms, target);
        }
        Step::MetaPut(k) => {
            let request = meta_storagepb::PutRequest {
                header: Some(meta_storagepb::RequestHeader {
                    cluster_id: 1,
                    ..Default::default()
                }),
                key: vec![k].into(),
                value: vec![k].into(),
                ..Default::default()
            };
            let _ = cluster.pd_mut().meta_put(0, request);
        }
        Step::Tokens(k) => {
            let name = format!("g{k}");
            let group = resource_manager::ResourceGroup {
                name: name.clone(),
                mode: resource_manager::GroupMode::RuMode.into(),
                r_u_settings: Some(resource_manager::GroupRequestUnitSettings {
                    r_u: Some(resource_manager::TokenBucket {
                        settings: Some(resource_manager::TokenLimitSettings {
                            fill_rate: 1_000,
                            burst_limit: 10_000,
                            ..Default::default()
                        }),
                        tokens: 0.0,
                    }),
                }),
                ..Default::default()
            };
            let put = resource_manager::PutResourceGroupRequest { group: Some(group) };
            let _ = cluster.pd_mut().add_resource_group(0, put);
            let _ = tokens(cluster, now_ms, &name);
        }
        Step::Scatter => {
            let all: Vec<_> = cluster.regions().ids().collect();
            cluster.scatter(now_ms, &all);
        }
        Step::LeadPd(member) => cluster.pd_mut().set_leader(now_ms, member),
        Step::FallBehind(k, store, stuck) => {
            let id = at(cluster, k);
            let _ = match stuck {
                true => cluster.stall(id, store),
                false => cluster.lengthen_lag(id, store, u64::from(k)),
            };
        }
        Step::Buckets(k) => cluster.set_buckets(at(cluster, k), &[key::encode(&[k, k])]),
        Step::Trouble(k, store) => make_trouble(cluster, k, store),
    }
}

/// The region of a key.
fn at(cluster: &Cluster, k: u8) -> RegionId {
    let region = cluster.regions().find(&key::encode(&[k])).unwrap();
    region.meta.id
}

/// Something about a store, a peer or a region is not as it should be.
fn make_trouble(cluster: &mut Cluster, k: u8, store: u64) {
    let id = at(cluster, k);
    let served = cluster.store_mut(store).unwrap();
    match k % 11 {
        0 => served.disk = Disk::AlmostFull,
        1 => served.load.observer_delay_ms = 7,
        2 => cluster.end_next_write(store, End::StepDown, WritePoint::Applied),
        3 => cluster.set_splitting(id, true),
        4 => cluster.set_transferring(id, true),
        5 => cluster.set_recovering(id, true),
        6 => cluster.inject(Injection {
            store: Some(store),
            ..Injection::once(Default::default())
        }),
        7 => {
            cluster.set_peer_state(id, store, |peer| peer.applying_snapshot = true);
        }
        8 => {
            cluster.set_peer_state(id, store, |peer| peer.down = true);
        }
        9 => cluster.pd_mut().hold_followers(true),
        _ => cluster.pd_mut().refuse_requests(3),
    }
}

fn header() -> Option<pdpb::RequestHeader> {
    Some(pdpb::RequestHeader {
        cluster_id: 1,
        ..Default::default()
    })
}

fn tokens(
    cluster: &mut Cluster,
    now_ms: u64,
    group: &str,
) -> Result<resource_manager::TokenBucketsResponse, GrpcError> {
    use resource_manager::token_bucket_request::{Request, RequestRu};
    let item = resource_manager::RequestUnitItem {
        r#type: resource_manager::RequestUnitType::Ru.into(),
        value: 100.0,
    };
    let wish = resource_manager::TokenBucketRequest {
        resource_group_name: group.to_owned(),
        request: Some(Request::RuItems(RequestRu {
            request_r_u: vec![item],
        })),
        ..Default::default()
    };
    let request = resource_manager::TokenBucketsRequest {
        requests: vec![wish],
        target_request_period_ms: 1_000,
        client_unique_id: 1,
    };
    cluster.pd_mut().acquire_token_buckets(now_ms, 0, request)
}

fn cluster(steps: &[Step]) -> Cluster {
    let config = Config {
        pd_members: 2,
        keep_truth: true,
        ..Config::default()
    };
    let mut cluster = Cluster::new(config, NOW);
    for (at, step) in steps.iter().enumerate() {
        take(&mut cluster, NOW + at as u64, step);
    }
    cluster
}

proptest! {
    // Two clusters are written out as text each time.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_loaded_cluster_is_the_one_that_was_saved(
        steps in vec(step(), 0..60),
        later in vec(step(), 0..20),
    ) {
        let mut before = cluster(&steps);
        let mut after = Cluster::load(&before.save()).unwrap();
        // All there is, whoever may see it.
        prop_assert_eq!(format!("{before:?}"), format!("{after:?}"));
        // Both give the same answers and go the same way from here.
        let now_ms = NOW + 500;
        for k in 0..20u8 {
            let read = kvrpcpb::GetRequest {
                key: vec![k].into(),
                version: u64::MAX,
                ..Default::default()
            };
            let encoded = key::encode(&[k]);
            let answers = [&mut before, &mut after]
                .map(|cluster| ask(cluster, now_ms, &encoded, read.clone()));
            prop_assert_eq!(&answers[0], &answers[1]);
        }
        for step in &later {
            take(&mut before, now_ms, step);
            take(&mut after, now_ms, step);
        }
        prop_assert_eq!(format!("{before:?}"), format!("{after:?}"));
    }

    #[test]
    fn any_change_of_a_saved_cluster_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut bytes = cluster(&[Step::RawPut(1), Step::Put(2, true)]).save();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Cluster::load(&bytes).is_err(), "byte {}", at);
    }
}

#[test]
fn what_is_no_saved_cluster_is_refused() {
    let config = Config {
        api_version: ApiVersion::V2,
        ..Config::default()
    };
    let saved = Cluster::new(config, NOW).save();
    assert_eq!(
        Cluster::load(&saved).unwrap().config().api_version,
        ApiVersion::V2
    );
    let load = |bytes: &[u8]| Cluster::load(bytes).map(|_| ()).unwrap_err();
    for text in [
        &b""[..],
        b"text",
        b"a text that is longer than the header is",
    ] {
        assert_eq!(load(text), SnapshotError::NotASnapshot);
    }
    assert_eq!(load(&saved[..HEADER_LEN - 1]), SnapshotError::Damaged);
    assert_eq!(load(&saved[..saved.len() - 1]), SnapshotError::Damaged);
    let mut newer = saved.clone();
    newer[8] = 9;
    let expected = SnapshotError::Version { found: 9, known: 1 };
    assert_eq!(load(&newer), expected);
    let empty = [&saved[..12], &super::crc64(&[b""]).to_le_bytes()].concat();
    assert!(matches!(load(&empty), SnapshotError::Unreadable(_)));
}
