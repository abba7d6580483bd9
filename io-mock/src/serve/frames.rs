//! The BatchCommands stream of a store: many requests in one frame, each answered when its answer
//! is there, in whatever order and grouping.
//!
//! As long as nothing is in the way, the requests of a frame are answered in one frame, under one
//! lock. A request that fails below the level of replies gets no reply at all, as at TiKV; one that
//! is meant for another cluster ends the stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use prost::Message;
use tikv_core::rpc::frame::{self, HealthFeedback, Item, SplitFrame};
use tikv_core::wire::{Command, Response};
use tikv_proto::kvrpcpb;
use tikv_proto::tikvpb::{BatchCommandsEmptyRequest, BatchCommandsEmptyResponse};
use tonic::{Status, Streaming};

use super::grpc::{self, Messages};
use super::store::StoreServer;
use super::timing;
use super::waits::Asked;
use crate::cluster::failure::{GrpcCode, GrpcError};

/// How many answers one frame holds at most.
const ANSWERS_MAX: usize = 128;
/// How often a stream tells of its store's health.
const FEEDBACK_EVERY_MS: u64 = 1_000;
/// The field of a request that only asks for an answer.
const EMPTY: u32 = 255;
/// The field of a request for the store's health.
const HEALTH: u32 = 39;
/// Shorter delays of such a request are not worth a timer.
const EMPTY_DELAY_MIN: Duration = Duration::from_millis(10);

type Answer = (u64, u32, Bytes);
/// What becomes of a request: an answer, or none at all.
type Waiting = BoxFuture<'static, Result<Option<Answer>, Status>>;

/// Answers the frames of a stream.
pub(super) fn answer(server: Arc<StoreServer>, requests: Streaming<Bytes>) -> Messages {
    let stream = Frames {
        server,
        requests,
        open: true,
        ready: Vec::new(),
        waiting: FuturesUnordered::new(),
        feedback: Feedback::default(),
    };
    grpc::unfold(stream, |mut stream| async move {
        let frame = stream.next().await?;
        Ok(frame.map(|frame| (frame, stream)))
    })
}

/// When a stream tells of its store's health.
#[derive(Debug, Default)]
struct Feedback {
    next_ms: u64,
}

impl Feedback {
    /// Whether it is time to tell, which makes it not so for a while.
    fn falls_due(&mut self, now_ms: u64) -> bool {
        let due = now_ms >= self.next_ms;
        if due {
            self.told(now_ms);
        }
        due
    }

    /// It has told, whether or not it was time.
    fn told(&mut self, now_ms: u64) {
        self.next_ms = now_ms + FEEDBACK_EVERY_MS;
    }
}

struct Frames {
    server: Arc<StoreServer>,
    requests: Streaming<Bytes>,
    /// The client has not ended its half.
    open: bool,
    ready: Vec<Answer>,
    waiting: FuturesUnordered<Waiting>,
    feedback: Feedback,
}

impl Frames {
    /// The next frame of answers; nothing, when the client has ended the stream and has got them
    /// all.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if !self.ready.is_empty() {
                return Ok(Some(self.frame()));
            }
            if !self.open && self.waiting.is_empty() {
                return Ok(None);
            }
            tokio::select! {
                frame = self.requests.message(), if self.open => match frame? {
                    Some(frame) => self.take(frame)?,
                    None => self.open = false,
                },
                Some(done) = self.waiting.next() => {
                    self.ready.extend(done?);
                    while let Some(Some(done)) = self.waiting.next().now_or_never() {
                        self.ready.extend(done?);
                    }
                }
            }
        }
    }

    /// Takes a frame of requests.
    fn take(&mut self, frame: Bytes) -> Result<(), Status> {
        let items = frame::split_request(frame).map_err(grpc::unreadable)?.items;
        if !self.server.impairment.is_idle() {
            for item in items {
                let server = self.server.clone();
                self.waiting.push(hindered(server, item).boxed());
            }
            return Ok(());
        }
        let begun = Instant::now();
        let mut commands = Vec::with_capacity(items.len());
        for item in items {
            match item.arm {
                0 => self.ready.push((item.id, 0, Bytes::new())),
                EMPTY => self.waiting.push(empty(item).boxed()),
                _ => commands.extend(command(&item)?.map(|command| (item.id, item.arm, command))),
            }
        }
        let (server, ready, waiting) = (&self.server, &mut self.ready, &mut self.waiting);
        server.world.serve(|counter| {
            for (id, arm, command) in commands {
                match replied(counter.ask(server.id, command))? {
                    Some(Asked::Answered(answer)) => ready.push((id, arm, told(answer, begun))),
                    Some(waits @ Asked::Waits(_)) => {
                        waiting.push(late(id, arm, waits, begun).boxed());
                    }
                    None => {}
                }
            }
            Ok(())
        })
    }

    /// Puts a frame together from what is ready.
    fn frame(&mut self) -> Bytes {
        let rest = self.ready.split_off(self.ready.len().min(ANSWERS_MAX));
        let mut answers = std::mem::replace(&mut self.ready, rest);
        let world = &self.server.world;
        let asked = health_told(&mut answers);
        if asked.is_some() {
            self.feedback.told(world.now_ms());
        }
        let feedback = asked.or_else(|| {
            let is_due = self.feedback.falls_due(world.now_ms());
            is_due
                .then(|| world.with(|cluster, _| cluster.next_health_feedback(self.server.id)))
                .flatten()
        });
        let Some(feedback) = feedback else {
            return frame::build_response(&answers);
        };
        let answers = answers.into_iter();
        let mut frame = SplitFrame::default();
        frame.items = answers
            .map(|(id, arm, body)| Item { id, arm, body })
            .collect();
        frame.health_feedback = Some(HealthFeedback {
            store_id: feedback.store_id,
            seq: feedback.feedback_seq_no,
            slow_score: feedback.slow_score,
        });
        frame.encode()
    }
}

/// What a frame tells of the store's health because a request in it has asked. All that have asked
/// are told the same.
fn health_told(answers: &mut [Answer]) -> Option<kvrpcpb::HealthFeedback> {
    let mut asked = answers.iter_mut().filter(|(_, arm, _)| *arm == HEALTH);
    let (_, _, first) = asked.next()?;
    let told = kvrpcpb::GetHealthFeedbackResponse::decode(first.clone()).ok()?;
    asked.for_each(|(_, _, other)| *other = first.clone());
    told.health_feedback
}

/// Answers a request that waits for a lock, in a frame that others need not wait for.
async fn late(id: u64, arm: u32, waits: Asked, begun: Instant) -> Result<Option<Answer>, Status> {
    let answer = replied(waits.answer().await)?;
    Ok(answer.map(|answer| (id, arm, told(answer, begun))))
}

/// An answer as bytes, with the time it took.
fn told(mut answer: Response, begun: Instant) -> Bytes {
    timing::stamp_in_frame(&mut answer, begun);
    answer.encode()
}

/// Answers a request to a store that is kept from its work.
async fn hindered(server: Arc<StoreServer>, item: Item) -> Result<Option<Answer>, Status> {
    let begun = Instant::now();
    server.impairment.admit().await;
    let answer = match item.arm {
        0 => Some((item.id, 0, Bytes::new())),
        EMPTY => empty(item).await?,
        _ => match command(&item)? {
            Some(command) => replied(server.dispatch(command).await)?
                .map(|answer| (item.id, item.arm, told(answer, begun))),
            None => None,
        },
    };
    Ok(answer.filter(|_| !server.impairment.takes_reply()))
}

async fn empty(item: Item) -> Result<Option<Answer>, Status> {
    let request = BatchCommandsEmptyRequest::decode(item.body).map_err(grpc::unreadable)?;
    let delay = Duration::from_millis(request.delay_time);
    if delay >= EMPTY_DELAY_MIN {
        tokio::time::sleep(delay).await;
    }
    let answer = BatchCommandsEmptyResponse {
        test_id: request.test_id,
    };
    Ok(Some((item.id, EMPTY, answer.encode_to_vec().into())))
}

/// Reads a request; nothing if the store knows none of its kind.
fn command(item: &Item) -> Result<Option<Command>, Status> {
    Command::decode_batched(item.arm, item.body.clone())
        .transpose()
        .map_err(grpc::unreadable)
}

/// What is sent for an answer: nothing for what the store does not know.
fn replied<T>(answer: Result<T, GrpcError>) -> Result<Option<T>, Status> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.code == GrpcCode::Unimplemented => Ok(None),
        Err(error) => Err(grpc::status(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Cluster, Config};

    #[test]
    fn test_health_feedback() {
        let now_ms = 1_700_000_000_000;
        let mut cluster = Cluster::new(Config::default(), now_ms);
        let mut feedback = Feedback::default();
        let mut told = Vec::new();
        // A frame each: the first tells, then one in a second.
        for after_ms in [0, 1, 999, 1_100, 2_099, 2_100] {
            if feedback.falls_due(now_ms + after_ms) {
                let health = cluster.next_health_feedback(1).unwrap();
                assert_eq!(health.store_id, 1);
                told.push((after_ms, health.feedback_seq_no));
            }
        }
        let first = told[0].1;
        assert_eq!(told, [(0, first), (1_100, first + 1), (2_100, first + 2)]);
    }
}
