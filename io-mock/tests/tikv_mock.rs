//! The program `tikv-mock`: what it prints, what its flags do, and how it ends.
#![cfg(all(feature = "serve", unix))]

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tikv_io_mock::cluster::key;
use tikv_proto::keyspacepb::keyspace_client::KeyspaceClient;
use tikv_proto::keyspacepb::{LoadKeyspaceRequest, WatchKeyspacesRequest, keyspace_meta};
use tikv_proto::kvrpcpb::{self, ApiVersion, Context};
use tikv_proto::pdpb::pd_client::PdClient;
use tikv_proto::pdpb::{self, RequestHeader};
use tikv_proto::tikvpb::tikv_client::TikvClient;
use tonic::transport::Channel;

struct Mock {
    child: Child,
    out: BufReader<ChildStdout>,
    pd: String,
    first_line: String,
}

impl Mock {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tikv-mock"))
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let first_line = line(&mut out);
        let pd = first_line.split(' ').nth(1).unwrap();
        let pd = pd.strip_prefix("pd=").unwrap().to_owned();
        Mock {
            child,
            out,
            pd,
            first_line,
        }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.pd)).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// What Ctrl-C does; whether it went well.
    fn interrupt(mut self) -> bool {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &id]).status().unwrap();
        sent.success() && self.child.wait().unwrap().success()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        // It has ended by itself unless its test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line(out: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn header() -> Option<RequestHeader> {
    Some(RequestHeader {
        cluster_id: 1,
        ..Default::default()
    })
}

/// A client of the store that leads the region of a key, as regions' bounds are written, and the
/// context to ask it with.
async fn leader_of(mock: &Mock, key: Bytes) -> (TikvClient<Channel>, Box<Context>) {
    let mut pd = PdClient::new(mock.channel().await);
    let request = pdpb::GetRegionRequest {
        header: header(),
        region_key: key,
        ..Default::default()
    };
    let found = pd.get_region(request).await.unwrap().into_inner();
    let (region, leader) = (found.region.unwrap(), found.leader.unwrap());
    let request = pdpb::GetStoreRequest {
        header: header(),
        store_id: leader.store_id,
    };
    let store = pd.get_store(request).await.unwrap().into_inner();
    let url = format!("http://{}", store.store.unwrap().address);
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let context = Context {
        region_id: region.id,
        region_epoch: region.region_epoch,
        peer: Some(leader),
        ..Default::default()
    };
    (TikvClient::new(channel), Box::new(context))
}

#[tokio::test]
async fn it_says_where_it_listens_and_ends_on_ctrl_c() {
    let args = ["--stores", "2", "--pd-members", "3", "--control"];
    let mut mock = Mock::start(&args);
    let expected = format!("listening pd={} stores=2", mock.pd);
    assert_eq!(mock.first_line, expected);
    let control = line(&mut mock.out);
    let control = control.strip_prefix("control=").unwrap().to_owned();
    assert!(TcpStream::connect(&control).is_ok());
    let mut pd = PdClient::new(mock.channel().await);
    let members = pd
        .get_members(pdpb::GetMembersRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(members.members.len(), 3);
    let leader = members.leader.unwrap();
    assert_eq!(leader.client_urls, [format!("http://{}", mock.pd)]);
    let port = mock.pd.clone();
    assert!(mock.interrupt());
    assert!(TcpStream::connect(port).is_err() && TcpStream::connect(control).is_err());
}

#[tokio::test]
async fn keyspaces_bring_the_second_api_version() {
    let mock = Mock::start(&["--keyspace", "one", "--keyspace", "two"]);
    let mut client = KeyspaceClient::new(mock.channel().await);
    for (name, id) in [("DEFAULT", 0), ("one", 1), ("two", 2)] {
        let request = LoadKeyspaceRequest {
            header: header(),
            name: name.to_owned(),
            ..Default::default()
        };
        let loaded = client.load_keyspace(request).await.unwrap().into_inner();
        let keyspace = loaded.keyspace.unwrap().keyspace;
        assert_eq!(keyspace, Some(keyspace_meta::Keyspace::Id(id)), "{name}");
    }
    let (mut store, mut context) = leader_of(&mock, key::encode(b"r\0\0\x01k")).await;
    context.api_version = ApiVersion::V2.into();
    let put = kvrpcpb::RawPutRequest {
        context: Some(context),
        key: b"r\0\0\x01k"[..].into(),
        value: "v".into(),
        ..Default::default()
    };
    let answer = store.raw_put(put).await.unwrap().into_inner();
    assert!(
        answer.region_error.is_none() && answer.error.is_empty(),
        "{answer:?}"
    );
    assert!(mock.interrupt());
}

#[tokio::test]
async fn a_saved_cluster_is_gone_on_from() {
    let file = File::new("saved");
    let path = file.0.to_str().unwrap();
    let mock = Mock::start(&["--stores", "2", "--regions", "3", "--save", path]);
    let (mut store, context) = leader_of(&mock, "k".into()).await;
    let put = kvrpcpb::RawPutRequest {
        context: Some(context),
        key: "k".into(),
        value: "v".into(),
        ..Default::default()
    };
    store.raw_put(put).await.unwrap();
    assert!(mock.interrupt());

    let mock = Mock::start(&["--load", path]);
    assert!(mock.first_line.ends_with("stores=2"), "{}", mock.first_line);
    let (mut store, context) = leader_of(&mock, "k".into()).await;
    let get = kvrpcpb::RawGetRequest {
        context: Some(context),
        key: "k".into(),
        ..Default::default()
    };
    let found = store.raw_get(get).await.unwrap().into_inner();
    assert_eq!(&found.value[..], b"v");
    assert!(mock.interrupt());

    std::fs::write(&file.0, "no cluster").unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_tikv-mock"))
        .args(["--load", path])
        .output()
        .unwrap();
    assert!(!refused.status.success());
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(told, "tikv-mock: this is no saved cluster\n");
}

/// A file that is gone with its owner.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let name = format!("tikv-mock-{name}-{}", std::process::id());
        File(std::env::temp_dir().join(name))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // It may not be there.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn it_ends_while_clients_are_still_connected() {
    let mock = Mock::start(&["--stores", "1"]);
    let channel = mock.channel().await;
    // A stream of timestamps, one of changes, and nobody who ends them.
    let request = pdpb::TsoRequest {
        header: header(),
        count: 1,
        ..Default::default()
    };
    let requests = stream::iter([request]).chain(stream::pending());
    let mut timestamps = PdClient::new(channel.clone()).tso(requests).await.unwrap();
    assert!(timestamps.get_mut().message().await.unwrap().is_some());
    let request = WatchKeyspacesRequest { header: header() };
    let mut keyspaces = KeyspaceClient::new(channel);
    let mut changes = keyspaces.watch_keyspaces(request).await.unwrap();
    assert!(changes.get_mut().message().await.unwrap().is_some());

    assert!(mock.interrupt());
    assert!(timestamps.get_mut().message().await.is_err());
    assert!(changes.get_mut().message().await.is_err());
}
