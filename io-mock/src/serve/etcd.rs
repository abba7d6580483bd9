//! The services of the etcd inside PD, at PD's own port. Called by [`pd`](super::pd) for every path
//! before it looks for its own.
//!
//! What is answered one by one is a table; a stream of watches is [beside it](super::etcd_watch).

use bytes::Bytes;
use hyper::body::Incoming;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use super::etcd_watch;
use super::grpc;
use super::pd::PdServer;
use super::pd_calls::At;
use crate::cluster::failure::GrpcError;

/// What the paths of etcd's services begin with.
const SERVICES: &str = "/etcdserverpb.";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const LEASE: &str = "/etcdserverpb.Lease/";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// Whether a call is one of etcd's.
pub(super) fn is_call(path: &str) -> bool {
    path.starts_with(SERVICES)
}

/// Answers a call.
pub(super) async fn call(
    server: PdServer,
    request: http::Request<Incoming>,
) -> http::Response<Body> {
    let path = request.uri().path().to_owned();
    match &*path {
        WATCH => grpc::streams(request, |requests| etcd_watch::answer(server, requests)).await,
        KEEP_ALIVE => {
            grpc::each(request, move |body| {
                let server = server.clone();
                async move { served(&server, KEEP_ALIVE, body).await }
            })
            .await
        }
        _ => {
            grpc::unary(request, async move |body| {
                served(&server, &path, body).await
            })
            .await
        }
    }
}

async fn served(server: &PdServer, path: &str, body: Bytes) -> Result<Bytes, Status> {
    let answer = server.with(|at| answer(at, path, body), false).await;
    if path.starts_with(LEASE) {
        server.world.end_leases_in_time();
    }
    answer
}

macro_rules! calls {
    ($($path:literal => |$pd:ident, $now_ms:ident, $member:ident, $request:ident| $answer:expr;)*) => {
        fn answer(at: At<'_>, path: &str, body: Bytes) -> Result<Bytes, Status> {
            let At { cluster, now_ms, member, .. } = at;
            match path {
                $($path => reply(body, |$request| {
                    let ($pd, $now_ms, $member) = (cluster.pd_mut(), now_ms, member);
                    $answer
                }),)*
                _ => Err(Status::unimplemented(format!("unknown method {path}"))),
            }
        }
    };
}

calls! {
    "/etcdserverpb.KV/Range" => |pd, now_ms, member, request| pd.etcd_range(now_ms, member, request);
    "/etcdserverpb.KV/Put" => |pd, now_ms, member, request| pd.etcd_put(now_ms, member, request);
    "/etcdserverpb.KV/DeleteRange" => |pd, now_ms, member, request| pd.etcd_delete_range(now_ms, member, request);
    "/etcdserverpb.KV/Txn" => |pd, now_ms, member, request| pd.etcd_txn(now_ms, member, request);
    "/etcdserverpb.KV/Compact" => |pd, now_ms, member, request| pd.etcd_compact(now_ms, member, request);
    "/etcdserverpb.Lease/LeaseGrant" => |pd, now_ms, member, request| pd.etcd_lease_grant(now_ms, member, request);
    "/etcdserverpb.Lease/LeaseRevoke" => |pd, now_ms, member, request| pd.etcd_lease_revoke(now_ms, member, request);
    "/etcdserverpb.Lease/LeaseKeepAlive" => |pd, now_ms, member, request| pd.etcd_lease_keep_alive(now_ms, member, request);
    "/etcdserverpb.Lease/LeaseTimeToLive" => |pd, now_ms, member, request| pd.etcd_lease_time_to_live(now_ms, member, request);
    "/etcdserverpb.Lease/LeaseLeases" => |pd, now_ms, member, request| pd.etcd_leases(now_ms, member, request);
    "/etcdserverpb.Cluster/MemberList" => |pd, _now_ms, member, request| pd.etcd_members(member, request);
    "/etcdserverpb.Maintenance/Status" => |pd, _now_ms, member, request| pd.etcd_status(member, request);
}

fn reply<Q: Message + Default, A: Message>(
    body: Bytes,
    answer: impl FnOnce(Q) -> Result<A, GrpcError>,
) -> Result<Bytes, Status> {
    let request = Q::decode(body).map_err(grpc::unreadable)?;
    let answer = answer(request).map_err(grpc::status)?;
    Ok(answer.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use futures_util::stream;
    use tikv_proto::meta_storagepb::event::EventType;
    use tikv_proto::pdpb::{AdvanceTxnSafePointRequest, AdvanceTxnSafePointResponse};
    use tonic::Code;

    use super::super::testing::Client;
    use super::*;
    use crate::cluster::pd::etcd::messages::*;
    use crate::cluster::{Cluster, Config};
    use crate::serve::ServedCluster;

    async fn put(client: &mut Client, key: &'static str, value: &'static str, lease: i64) {
        let request = PutRequest {
            key: key.into(),
            value: value.into(),
            lease,
            ..PutRequest::default()
        };
        let path = "/etcdserverpb.KV/Put";
        let _: PutResponse = client.unary(path, &request).await.unwrap();
    }

    #[tokio::test]
    async fn every_member_answers_and_watchers_are_told() {
        let cluster = ServedCluster::builder().pd_members(2);
        let cluster = cluster.start().await.unwrap();
        let mut leader = Client::connect(cluster.pd_address()).await;
        let path = "/etcdserverpb.Cluster/MemberList";
        let members: MemberListResponse = leader.unary(path, &MemberListRequest {}).await.unwrap();
        let urls: Vec<&String> = members.members.iter().map(|m| &m.client_urls[0]).collect();
        let other = urls[1].strip_prefix("http://").unwrap().parse().unwrap();
        let mut other = Client::connect(other).await;

        let grant = LeaseGrantRequest { ttl: 60, id: 0 };
        let path = "/etcdserverpb.Lease/LeaseGrant";
        let lease: LeaseLife = other.unary(path, &grant).await.unwrap();
        put(&mut leader, "a", "1", lease.id).await;

        let wish = WatchCreate {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            start_revision: 1,
            ..WatchCreate::default()
        };
        let request = WatchRequest {
            wish: Some(WatchWish::Create(wish)),
        };
        let requests = stream::iter([Bytes::from(request.encode_to_vec())]);
        let requests = requests.chain(stream::pending());
        let mut watch = other.streams(WATCH, requests).await.unwrap();
        let mut told = async || {
            let message = watch.message().await.unwrap().unwrap();
            WatchResponse::decode(message).unwrap()
        };
        assert!(told().await.created);
        let first = told().await.events.remove(0).kv.unwrap();
        assert_eq!((first.lease, first.mod_revision), (lease.id, 2));
        // The lease ends, and a safe point of PD's moves.
        let revoke = LeaseRequest { id: lease.id };
        let path = "/etcdserverpb.Lease/LeaseRevoke";
        let _: Done = leader.unary(path, &revoke).await.unwrap();
        assert_eq!(told().await.events[0].r#type(), EventType::Delete);
        let advance = AdvanceTxnSafePointRequest {
            header: Some(tikv_proto::pdpb::RequestHeader {
                cluster_id: 1,
                ..Default::default()
            }),
            target: 9,
            ..Default::default()
        };
        let path = "/pdpb.PD/AdvanceTxnSafePoint";
        let _: AdvanceTxnSafePointResponse = leader.unary(path, &advance).await.unwrap();
        assert_eq!(&told().await.events[0].kv.as_ref().unwrap().value[..], b"9");
    }

    #[tokio::test]
    async fn leases_of_a_saved_cluster_end_by_themselves() {
        let mut cluster = Cluster::new(Config::default(), 0);
        let pd = cluster.pd_mut();
        let grant = LeaseGrantRequest { ttl: 10, id: 7 };
        pd.etcd_lease_grant(0, 0, grant).unwrap();
        let request = PutRequest {
            key: "a".into(),
            lease: 7,
            ..PutRequest::default()
        };
        pd.etcd_put(0, 0, request).unwrap();
        let cluster = Cluster::load(&cluster.save()).unwrap();
        assert!(cluster.pd().etcd_has_leases());

        // Its time was over long ago, but nobody asks for it.
        let cluster = ServedCluster::builder().from_cluster(cluster);
        let cluster = cluster.start().await.unwrap();
        let mut client = Client::connect(cluster.pd_address()).await;
        let wish = WatchCreate {
            key: "a".into(),
            start_revision: 3,
            ..WatchCreate::default()
        };
        let request = WatchRequest {
            wish: Some(WatchWish::Create(wish)),
        };
        let requests = stream::iter([Bytes::from(request.encode_to_vec())]);
        let requests = requests.chain(stream::pending());
        let mut watch = client.streams(WATCH, requests).await.unwrap();
        let event = loop {
            let message = watch.message().await.unwrap().unwrap();
            let told = WatchResponse::decode(message).unwrap();
            if let Some(event) = told.events.into_iter().next() {
                break event;
            }
        };
        assert_eq!(event.r#type(), EventType::Delete);
        assert!(!cluster.with(|cluster, _| cluster.pd().etcd_has_leases()));
    }

    #[tokio::test]
    async fn signs_of_life_are_a_stream_and_what_is_not_there_is_not() {
        let cluster = ServedCluster::builder().start().await.unwrap();
        let mut client = Client::connect(cluster.pd_address()).await;
        let request = LeaseRequest { id: 5 };
        let requests = [Bytes::from(request.encode_to_vec())];
        let requests = stream::iter(requests);
        let mut lives = client.streams(KEEP_ALIVE, requests).await.unwrap();
        let life = lives.message().await.unwrap().unwrap();
        assert_eq!(LeaseLife::decode(life).unwrap().ttl, 0);
        assert!(lives.message().await.unwrap().is_none());
        let path = "/etcdserverpb.Auth/UserAdd";
        let answer: Result<Done, Status> = client.unary(path, &request).await;
        assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
    }
}
