//! A store over gRPC, asked with the generated client: frames of requests answered one by one,
//! forwarding, and what keeps a store from its work.
#![cfg(feature = "serve")]

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tikv_io_mock::cluster::region::Region;
use tikv_io_mock::serve::ServedCluster;
use tikv_proto::kvrpcpb::{self, Context};
use tikv_proto::tikvpb::batch_commands_request::request::Cmd;
use tikv_proto::tikvpb::batch_commands_response::response::Cmd as Answer;
use tikv_proto::tikvpb::tikv_client::TikvClient;
use tikv_proto::tikvpb::{
    BatchCommandsEmptyRequest, BatchCommandsRequest, BatchCommandsResponse, batch_commands_request,
};
use tonic::codec::CompressionEncoding;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Streaming};

async fn serve() -> ServedCluster {
    ServedCluster::builder().stores(2).start().await.unwrap()
}

async fn connect(cluster: &ServedCluster, store: u64) -> TikvClient<Channel> {
    let (_, address) = cluster.stores().find(|(id, _)| *id == store).unwrap();
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    TikvClient::new(endpoint.connect().await.unwrap())
}

/// The context of a request to the leader of the only region.
fn context(cluster: &ServedCluster) -> Box<Context> {
    let region: Region =
        cluster.with(|cluster, _| cluster.regions().iter().next().cloned().unwrap());
    Box::new(Context {
        region_id: region.meta.id,
        region_epoch: region.meta.region_epoch,
        peer: region.leader_peer().copied(),
        ..Default::default()
    })
}

fn put(cluster: &ServedCluster, key: &str) -> kvrpcpb::RawPutRequest {
    kvrpcpb::RawPutRequest {
        context: Some(context(cluster)),
        key: key.to_owned().into(),
        value: "v".into(),
        ..Default::default()
    }
}

fn get(cluster: &ServedCluster, key: &str) -> kvrpcpb::RawGetRequest {
    kvrpcpb::RawGetRequest {
        context: Some(context(cluster)),
        key: key.to_owned().into(),
        ..Default::default()
    }
}

fn frame(requests: impl IntoIterator<Item = (u64, Option<Cmd>)>) -> BatchCommandsRequest {
    let (request_ids, commands): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
    BatchCommandsRequest {
        requests: commands
            .into_iter()
            .map(|cmd| batch_commands_request::Request { cmd })
            .collect(),
        request_ids,
        ..Default::default()
    }
}

/// The stream of answers to these frames; the client's half ends if `ends`.
async fn stream(
    client: &mut TikvClient<Channel>,
    frames: Vec<BatchCommandsRequest>,
    ends: bool,
) -> Streaming<BatchCommandsResponse> {
    let frames = futures_util::stream::iter(frames);
    let answers = if ends {
        client.batch_commands(frames).await
    } else {
        let endless = frames.chain(futures_util::stream::pending());
        client.batch_commands(endless).await
    };
    answers.unwrap().into_inner()
}

#[tokio::test]
async fn a_request_that_takes_long_holds_no_other_up() {
    let cluster = serve().await;
    let mut client = connect(&cluster, 1).await;
    let late = BatchCommandsEmptyRequest {
        test_id: 7,
        delay_time: 50,
    };
    let requests = frame([
        (1, Some(Cmd::Empty(late))),
        (2, Some(Cmd::RawPut(put(&cluster, "k")))),
        (3, None),
    ]);
    let mut answers = stream(&mut client, vec![requests], true).await;
    let first = answers.message().await.unwrap().unwrap();
    let mut ids = first.request_ids.clone();
    ids.sort();
    assert_eq!(ids, [2, 3]);
    assert_eq!(first.health_feedback.unwrap().store_id, 1);
    let second = answers.message().await.unwrap().unwrap();
    assert_eq!(second.request_ids, [1]);
    let Some(Answer::Empty(empty)) = &second.responses[0].cmd else {
        panic!("{second:?}");
    };
    assert_eq!(empty.test_id, 7);
    assert!(second.health_feedback.is_none(), "told a moment ago");
    assert!(
        answers.message().await.unwrap().is_none(),
        "all is answered"
    );
}

#[tokio::test]
async fn replies_can_come_in_any_order_but_all_come() {
    let cluster = serve().await;
    cluster.shuffle_replies(1, true);
    let mut client = connect(&cluster, 1).await;
    let requests = |first: u64| {
        let request = Cmd::RawGet(get(&cluster, "k"));
        frame((first..first + 64).map(|id| (id, Some(request.clone()))))
    };
    let mut answers = stream(&mut client, vec![requests(0), requests(64)], true).await;
    let mut ids = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.responses.len(), answer.request_ids.len());
        assert!(answer.responses.len() <= 128);
        ids.extend(answer.request_ids);
    }
    assert!(!ids.is_sorted());
    ids.sort();
    assert_eq!(ids, (0..128).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_a_store_does_not_know_gets_no_reply_and_another_cluster_ends_the_stream() {
    let cluster = serve().await;
    let mut client = connect(&cluster, 1).await;
    let unknown = Cmd::RawCoprocessor(kvrpcpb::RawCoprocessorRequest::default());
    let known = Cmd::RawGet(get(&cluster, "k"));
    let mut foreign = get(&cluster, "k");
    foreign.context.as_mut().unwrap().cluster_id = 99;
    let frames = vec![
        frame([(1, Some(unknown)), (2, Some(known))]),
        frame([(3, Some(Cmd::RawGet(foreign)))]),
    ];
    let mut answers = stream(&mut client, frames, false).await;
    let first = answers.message().await.unwrap().unwrap();
    assert!(first.request_ids.contains(&2));
    let ended = answers.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_paused_store_answers_when_it_goes_on() {
    let cluster = serve().await;
    let mut client = connect(&cluster, 1).await;
    cluster.pause_store(1);
    assert!(cluster.condition(1).paused);
    let request = put(&cluster, "k");
    let mut paused = Box::pin(client.raw_put(request));
    // It gets as far as it can while another store answers.
    let mut other = connect(&cluster, 2).await;
    tokio::select! {
        answer = &mut paused => panic!("{answer:?}"),
        answer = other.raw_get(get(&cluster, "k")) => {
            assert!(answer.unwrap().into_inner().region_error.is_some());
        }
    }
    assert!((&mut paused).now_or_never().is_none());
    cluster.resume_store(1);
    let answer = paused.await.unwrap().into_inner();
    assert!(answer.region_error.is_none(), "{answer:?}");
}

#[tokio::test]
async fn a_request_whose_reply_is_lost_has_taken_effect() {
    let cluster = serve().await;
    let mut client = connect(&cluster, 1).await;
    cluster.drop_replies(1, 2);
    let mut lost = Request::new(put(&cluster, "k"));
    lost.set_timeout(Duration::from_millis(50));
    assert!(client.raw_put(lost).await.is_err());
    assert_eq!(cluster.condition(1).replies_to_drop, 1);
    let requests = frame([(1, Some(Cmd::RawPut(put(&cluster, "l"))))]);
    let reads = frame([(2, Some(Cmd::RawGet(get(&cluster, "l"))))]);
    // Of the two one goes unanswered; which one is chance, since they are two frames.
    let mut answers = stream(&mut client, vec![requests, reads], true).await;
    let mut answered = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        answered += answer.request_ids.len();
    }
    assert_eq!(answered, 1);
    for key in ["k", "l"] {
        let found = client.raw_get(get(&cluster, key)).await.unwrap();
        assert_eq!(&found.into_inner().value[..], b"v", "{key}");
    }
}

#[tokio::test]
async fn a_slow_store_answers_all_the_same() {
    let cluster = serve().await;
    let mut client = connect(&cluster, 1).await;
    let delay = Duration::from_millis(20);
    cluster.slow_store(1, delay);
    let begin = std::time::Instant::now();
    client.raw_put(put(&cluster, "k")).await.unwrap();
    assert!(begin.elapsed() >= delay);
    cluster.slow_store(1, Duration::ZERO);
    assert_eq!(cluster.condition(1), Default::default());
}

#[tokio::test]
async fn a_request_can_go_by_way_of_another_store() {
    let cluster = serve().await;
    let mut client = connect(&cluster, 2).await;
    let (_, leader) = cluster.stores().next().unwrap();
    let by_way = |address: String| {
        let mut request = Request::new(put(&cluster, "k"));
        let address = address.parse().unwrap();
        request
            .metadata_mut()
            .insert("tikv-forwarded-host", address);
        request
    };
    let answer = client.raw_put(by_way(leader.to_string())).await.unwrap();
    assert!(answer.into_inner().region_error.is_none());
    cluster.stop_store(1).await;
    for address in [leader.to_string(), "nowhere:1".to_owned()] {
        let refused = client.raw_put(by_way(address)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Cancelled);
    }
}

#[tokio::test]
async fn a_store_added_later_is_found_and_answers() {
    let cluster = serve().await;
    let id = cluster.add_store().await.unwrap();
    assert_eq!(cluster.stores().count(), 3);
    let mut client = connect(&cluster, id).await;
    let answer = client.raw_get(get(&cluster, "k")).await.unwrap();
    let error = answer.into_inner().region_error.unwrap();
    assert!(error.store_not_match.is_some(), "{error:?}");
}

#[tokio::test]
async fn connections_are_encrypted_with_the_certificate_of_a_directory() {
    let directory = Directory::new("tls");
    let start = || ServedCluster::builder().tls(&directory.0).start();
    let cluster = start().await.unwrap();
    let made = std::fs::read(directory.0.join("cert.pem")).unwrap();
    let url = cluster.with(|cluster, _| cluster.pd().members()[0].client_urls[0].clone());
    assert!(url.starts_with("https://"), "{url}");
    let (_, address) = cluster.stores().next().unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&made));
    let endpoint = Channel::from_shared(format!("https://{address}")).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
    let answer = TikvClient::new(channel).raw_put(put(&cluster, "k")).await;
    assert!(answer.unwrap().into_inner().region_error.is_none());
    cluster.stop().await;

    let _again = start().await.unwrap();
    let kept = std::fs::read(directory.0.join("cert.pem")).unwrap();
    assert_eq!(kept, made);
    std::fs::write(directory.0.join("key.pem"), "no key").unwrap();
    let refused = start().await.unwrap_err();
    assert!(refused.to_string().contains("key.pem"), "{refused}");
}

/// A directory that is gone with its owner.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let name = format!("tikv-mock-{name}-{}", std::process::id());
        Directory(std::env::temp_dir().join(name))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // It may not be there.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn requests_may_come_compressed_and_may_be_large() {
    let cluster = serve().await;
    let client = connect(&cluster, 1).await;
    let mut client = client
        .send_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(usize::MAX);
    // More than a client allows by default, and less than a store refuses.
    let value = vec![7; 5 << 20];
    for key in ["a", "b"] {
        let request = kvrpcpb::RawPutRequest {
            value: value.clone().into(),
            ..put(&cluster, key)
        };
        let answer = client.raw_put(request).await.unwrap().into_inner();
        assert_eq!(answer.error, "");
    }
    let frames = ["a", "b"].map(|key| (1, Some(Cmd::RawGet(get(&cluster, key)))));
    let mut answers = stream(&mut client, vec![frame(frames)], true).await;
    let mut found = 0;
    while let Some(frame) = answers.message().await.unwrap() {
        for response in frame.responses {
            let Some(Answer::RawGet(answer)) = response.cmd else {
                panic!("another answer");
            };
            found += usize::from(answer.value == value);
        }
    }
    assert_eq!(found, 2);
}

#[tokio::test]
async fn who_asks_for_a_stores_health_is_told_in_the_frame_too() {
    let cluster = serve().await;
    let mut client = connect(&cluster, 1).await;
    let ask = || Some(Cmd::GetHealthFeedback(Default::default()));
    let frames = [
        frame([(1, ask()), (2, ask()), (3, None)]),
        frame([(4, ask())]),
    ];
    let mut answers = stream(&mut client, frames.to_vec(), true).await;
    let mut last = 0;
    let mut asked = 0;
    while let Some(frame) = answers.message().await.unwrap() {
        let told = frame.health_feedback.expect("somebody has asked");
        assert!(told.feedback_seq_no > last, "each frame is newer");
        last = told.feedback_seq_no;
        for response in frame.responses {
            if let Some(Answer::GetHealthFeedback(answer)) = response.cmd {
                assert_eq!(answer.health_feedback, Some(told));
                asked += 1;
            }
        }
    }
    assert_eq!(asked, 3);
}
