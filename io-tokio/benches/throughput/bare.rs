//! The least a client can do: callers encode a get into a frame part, streams pull what is queued
//! into frames, replies are split into slices, callers decode their own.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_core::Stream;
use futures_util::task::AtomicWaker;
use tikv_core::rpc::frame::{self, Answer, RequestFrame};
use tokio::sync::oneshot;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::{Target, check};

const FRAME_MAX: usize = 128;

pub(crate) struct Bare {
    target: Target,
    lanes: Vec<Arc<Lane>>,
}

/// One connection.
#[derive(Default)]
struct Lane {
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<(Bytes, oneshot::Sender<Answer>)>,
    sent: HashMap<u64, oneshot::Sender<Answer>>,
    next_id: u64,
}

impl Bare {
    pub(crate) async fn connect(target: &Target, connections: usize) -> Self {
        let mut lanes = Vec::new();
        for _ in 0..connections {
            let lane = Arc::new(Lane::default());
            let channel = tonic::transport::Endpoint::new(format!("http://{}", target.address))
                .unwrap()
                .connect()
                .await
                .unwrap();
            tokio::spawn(receive(channel, lane.clone()));
            lanes.push(lane);
        }
        Bare {
            target: target.clone(),
            lanes,
        }
    }

    pub(crate) async fn get(&self, n: usize) {
        let command = self.target.get(n);
        let part = frame::encode_part(Some(&self.target.context), &command).unwrap();
        let (sender, receiver) = oneshot::channel();
        let lane = &self.lanes[n % self.lanes.len()];
        lane.queue.lock().unwrap().waiting.push((part, sender));
        lane.waker.wake();
        let answer = receiver.await.unwrap();
        check(answer.decode(&command, &self.target.address).unwrap());
    }
}

async fn receive(channel: tonic::transport::Channel, lane: Arc<Lane>) {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/tikvpb.Tikv/BatchCommands");
    let frames = tonic::Request::new(Frames(lane.clone()));
    let mut answers = grpc
        .streaming(frames, path, Raw)
        .await
        .unwrap()
        .into_inner();
    // Its end is the end of the measurement.
    while let Ok(Some(bytes)) = answers.message().await {
        let split = frame::split_response(bytes).unwrap();
        let mut queue = lane.queue.lock().unwrap();
        let waiting: Vec<_> = split
            .items
            .into_iter()
            .map(|item| (queue.sent.remove(&item.id).unwrap(), item))
            .collect();
        drop(queue);
        for (sender, item) in waiting {
            let _ = sender.send(Answer {
                arm: item.arm,
                body: item.body,
            });
        }
    }
}

struct Frames(Arc<Lane>);

impl Stream for Frames {
    type Item = RequestFrame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RequestFrame>> {
        self.0.waker.register(cx.waker());
        let mut queue = self.0.queue.lock().unwrap();
        let Queue {
            waiting,
            sent,
            next_id,
        } = &mut *queue;
        if waiting.is_empty() {
            return Poll::Pending;
        }
        let first = *next_id;
        let count = waiting.len().min(FRAME_MAX);
        let mut parts = Vec::with_capacity(count);
        for (part, sender) in waiting.drain(..count) {
            sent.insert(*next_id, sender);
            parts.push(part);
            *next_id += 1;
        }
        Poll::Ready(Some(RequestFrame::new(first, parts)))
    }
}

#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = RequestFrame;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = RequestFrame;
    type Error = Status;

    fn encode(&mut self, item: RequestFrame, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.reserve(item.encoded_len(0));
        item.encode(0, dst);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}
