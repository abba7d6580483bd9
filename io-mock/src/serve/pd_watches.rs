//! The calls of PD that are answered with a stream of changes.

use bytes::Bytes;
use prost::Message;
use tikv_proto::keyspacepb::WatchKeyspacesRequest;
use tikv_proto::meta_storagepb::WatchRequest;
use tikv_proto::pdpb::WatchGlobalConfigRequest;
use tonic::Status;

use super::grpc::{self, Messages};
use super::pd::PdServer;

/// Begins to watch.
pub(super) type Watch = fn(&PdServer, Bytes) -> Result<Messages, Status>;

/// The watch of a path, if there is one.
pub(super) fn find(path: &str) -> Option<Watch> {
    Some(match path {
        "/keyspacepb.Keyspace/WatchKeyspaces" => keyspaces,
        "/pdpb.PD/WatchGlobalConfig" => global_config,
        "/meta_storagepb.MetaStorage/Watch" => meta_storage,
        _ => return None,
    })
}

fn keyspaces(server: &PdServer, body: Bytes) -> Result<Messages, Status> {
    let request = WatchKeyspacesRequest::decode(body).map_err(grpc::unreadable)?;
    let member = server.member;
    Ok(server.watch(None, move |cluster, seen| {
        let told = cluster.pd().watch_keyspaces(member, &request, seen)?;
        Ok(match told {
            Some((message, seen)) => (Some(message), Some(seen)),
            None => (None, seen),
        })
    }))
}

fn global_config(server: &PdServer, body: Bytes) -> Result<Messages, Status> {
    let request = WatchGlobalConfigRequest::decode(body).map_err(grpc::unreadable)?;
    let from = from_on(server, request.revision);
    Ok(server.watch(from, move |cluster, from| {
        cluster.pd().watch_global_config(&request, from)
    }))
}

fn meta_storage(server: &PdServer, body: Bytes) -> Result<Messages, Status> {
    let request = WatchRequest::decode(body).map_err(grpc::unreadable)?;
    let (member, from) = (server.member, from_on(server, request.start_revision));
    Ok(server.watch(from, move |cluster, from| {
        cluster.pd().meta_watch(member, &request, from)
    }))
}

/// The revision to watch from: 0 is the next one, counted from the moment of the call.
fn from_on(server: &PdServer, revision: i64) -> i64 {
    match revision {
        0 => server.world.with(|cluster, _| cluster.pd().meta_revision()) + 1,
        given => given,
    }
}
