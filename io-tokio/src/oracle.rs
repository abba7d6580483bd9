//! The timestamp stream of one member of PD.
//!
//! Who asks for how many timestamps, and who gets which, is decided by [`TsoBatcher`]; this file
//! gives it a lock, a clock and a task. The task exists while somebody waits or the stream is in
//! use: it owns the stream and watches the deadlines.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http::uri::PathAndQuery;
use prost::Message;
use tikv_core::driver::{Instant, TransportError, TsoRequest};
use tikv_core::tso::{TsoBatcher, TsoConfig, TsoDone, TsoGrant, TsoRejected, TsoTicket};
use tikv_proto::pdpb;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::codec::RawCodec;
use crate::deadlines::Deadlines;
use crate::inbox::{Arrival, Inbox};
use crate::line::{Line, unlimited};
use crate::status;
use crate::tasks::Tasks;
use crate::writer::{Life, Writer};

const PATH: &str = "/pdpb.PD/Tso";
/// How long PD may take to answer before its stream is given up.
const BATCH_TIMEOUT: Duration = Duration::from_secs(3);

/// The timestamp stream of one member of PD.
#[derive(Debug)]
pub(crate) struct Oracle {
    line: Arc<Line>,
    cluster_id: u64,
    clock: Clock,
    tasks: Tasks,
    idle_timeout: Duration,
    state: Mutex<State>,
    /// Rung when a deadline is earlier than the task knows.
    alarm: Notify,
}

#[derive(Debug)]
struct State {
    batcher: TsoBatcher<Seat>,
    deadlines: Deadlines<TsoTicket>,
    /// When the task wakes by itself.
    alarm_at: Instant,
    /// Whether there is a task.
    streaming: bool,
    /// The stream that the task has open, or will have.
    writer: Arc<Writer>,
    last_used: Instant,
}

/// Who waits for a timestamp.
#[derive(Debug)]
struct Seat {
    inbox: Arc<Inbox>,
    flight: u32,
    slot: u32,
}

/// Names a wish, to cancel it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OracleTicket {
    ticket: TsoTicket,
    slot: u32,
}

impl Oracle {
    pub(crate) fn new(
        line: Arc<Line>,
        cluster_id: u64,
        clock: Clock,
        tasks: Tasks,
        idle_timeout: Duration,
    ) -> Arc<Self> {
        let config = TsoConfig {
            // Each wish has a task that waits for it and does nothing else.
            queue_max: usize::MAX,
            batch_timeout: BATCH_TIMEOUT,
            ..TsoConfig::default()
        };
        Arc::new(Oracle {
            state: Mutex::new(State {
                batcher: TsoBatcher::new(line.address().clone(), config),
                deadlines: Deadlines::new(),
                alarm_at: Instant::FAR_FUTURE,
                streaming: false,
                writer: Arc::default(),
                last_used: Instant::ZERO,
            }),
            line,
            cluster_id,
            clock,
            tasks,
            idle_timeout,
            alarm: Notify::new(),
        })
    }

    /// Wishes for a timestamp. It arrives in the inbox, at the latest at the request's deadline.
    pub(crate) fn push(
        self: &Arc<Self>,
        request: &TsoRequest,
        inbox: Arc<Inbox>,
        flight: u32,
    ) -> Result<OracleTicket, TransportError> {
        let (ticket, writer, alarm, start) = {
            let mut state = self.lock();
            let slot = state.deadlines.next_slot();
            let seat = Seat {
                inbox,
                flight,
                slot,
            };
            let ticket = match state.batcher.push(request.deadline, seat) {
                Ok(ticket) => ticket,
                Err(TsoRejected::Failed(_, error)) => return Err(error),
                Err(TsoRejected::Full(_)) => {
                    let address = self.line.address().clone();
                    return Err(TransportError::Deadline {
                        address,
                        sent: false,
                    });
                }
            };
            state.deadlines.insert(request.deadline, ticket);
            state.last_used = self.clock.now();
            let alarm = request.deadline < state.alarm_at;
            let start = !std::mem::replace(&mut state.streaming, true);
            let writer = state.batcher.is_ready().then(|| state.writer.clone());
            (OracleTicket { ticket, slot }, writer, alarm, start)
        };
        if start {
            self.tasks.spawn(self.clone().run());
        } else {
            if let Some(writer) = writer {
                writer.wake();
            }
            if alarm {
                self.alarm.notify_one();
            }
        }
        Ok(ticket)
    }

    /// Takes a wish back that nobody waits for any more.
    pub(crate) fn cancel(&self, ticket: OracleTicket) {
        let mut state = self.lock();
        let cancelled = state.batcher.cancel(ticket.ticket);
        if cancelled.is_some() {
            state.deadlines.remove(ticket.slot);
        }
        drop(state);
        // An inbox is not dropped under the lock.
        drop(cancelled);
    }

    /// Ends everything that is waited for.
    pub(crate) fn close(&self) {
        self.change(|batcher, done| batcher.close(done));
    }

    /// How many wishes wait, and how many batches are under way.
    pub(crate) fn pending(&self) -> usize {
        let state = self.lock();
        state.batcher.queued() + state.batcher.outstanding()
    }

    /// Keeps a stream as long as it is needed.
    async fn run(self: Arc<Self>) {
        loop {
            let mut heard = false;
            let life = Life::begin();
            self.lock().writer = life.writer();
            let error = tokio::select! {
                error = self.converse(&life, &mut heard) => error,
                end = self.watch() => match end {
                    Some(error) => error,
                    None => return,
                },
            };
            drop(life);
            let message: Arc<str> = error.to_string().into();
            let waiting = {
                let mut done = Vec::new();
                let mut state = self.lock();
                state.batcher.on_broken(&error, &mut done);
                if !heard {
                    // A stream that brings nothing is as good as none; the next wish tries again.
                    state.batcher.on_connect_failed(&message, &mut done);
                }
                state.retire(&done);
                let waiting = state.batcher.queued() > 0;
                state.streaming = waiting;
                drop(state);
                deliver(done);
                waiting
            };
            if !waiting {
                return;
            }
        }
    }

    /// Sends and receives until the stream ends, and says how it ended.
    async fn converse(self: &Arc<Self>, life: &Life, heard: &mut bool) -> TransportError {
        let address = self.line.address();
        let channel = match self.line.channel().await {
            Ok(channel) => channel,
            Err(error) => return error,
        };
        let mut grpc = unlimited(channel);
        if let Err(error) = grpc.ready().await {
            return TransportError::Connect {
                address: address.clone(),
                message: status::chain(&error),
            };
        }
        let batches = Batches {
            oracle: self.clone(),
            writer: life.writer(),
        };
        let path = PathAndQuery::from_static(PATH);
        // As on any stream, the answer's headers may come with the first answer only.
        let mut answers = match grpc
            .streaming(tonic::Request::new(batches), path, RawCodec::<Bytes>::new())
            .await
        {
            Ok(response) => response.into_inner(),
            Err(status) => return status::call_failed(address, &status),
        };
        loop {
            match answers.message().await {
                Ok(Some(bytes)) => {
                    if let Err(error) = self.receive(bytes) {
                        return error;
                    }
                    *heard = true;
                    // There is room for the next batch.
                    life.writer().wake();
                }
                Ok(None) => {
                    return TransportError::Broken {
                        address: address.clone(),
                        message: "the server ended the stream".into(),
                        sent: true,
                    };
                }
                Err(status) => return status::call_failed(address, &status),
            }
        }
    }

    fn next_batch(&self) -> Option<Bytes> {
        let now = self.clock.now();
        let batch = self.change(|batcher, done| batcher.poll_batch(now, done))?;
        let header = pdpb::RequestHeader {
            cluster_id: self.cluster_id,
            ..pdpb::RequestHeader::default()
        };
        let request = pdpb::TsoRequest {
            header: Some(header),
            count: batch.count,
            ..pdpb::TsoRequest::default()
        };
        Some(request.encode_to_vec().into())
    }

    fn receive(&self, bytes: Bytes) -> Result<(), TransportError> {
        let address = self.line.address();
        let unreadable = |message: String| TransportError::Decode {
            address: address.clone(),
            message: message.into(),
        };
        let answer = pdpb::TsoResponse::decode(bytes).map_err(|e| unreadable(e.to_string()))?;
        if let Some(error) = answer.header.and_then(|header| header.error)
            && error.r#type != pdpb::ErrorType::Ok as i32
        {
            return Err(TransportError::Status {
                address: address.clone(),
                code: tonic::Code::Unknown as u32,
                message: error.message.into(),
            });
        }
        let timestamp = answer.timestamp.unwrap_or_default();
        let grant = TsoGrant {
            physical: timestamp.physical,
            logical: timestamp.logical,
            count: answer.count,
            suffix_bits: timestamp.suffix_bits,
        };
        self.change(|batcher, done| batcher.on_reply(grant, done))
            .map_err(|error| unreadable(error.to_string()))
    }

    /// Ends what has passed its deadline, until the stream must be given up (with the error) or
    /// is needed no longer (without one).
    async fn watch(&self) -> Option<TransportError> {
        loop {
            let now = self.clock.now();
            let wake_at = {
                let mut state = self.lock();
                if state.batcher.next_deadline().is_some_and(|at| at <= now) {
                    let address = self.line.address().clone();
                    return Some(TransportError::Deadline {
                        address,
                        sent: true,
                    });
                }
                let idle_at = state.last_used + self.idle_timeout;
                let used = state.batcher.queued() + state.batcher.outstanding() > 0;
                if !used && idle_at <= now {
                    state.streaming = false;
                    return None;
                }
                // A batch that begins later is also given up later, so that its timeout need not
                // ring the alarm: looking this often is enough.
                let look_at = match state.batcher.next_deadline() {
                    Some(at) => at,
                    None if used => now + BATCH_TIMEOUT.min(self.idle_timeout),
                    None => idle_at,
                };
                state.alarm_at = state.deadlines.first().min(look_at);
                state.alarm_at
            };
            tokio::select! {
                () = self.alarm.notified() => {}
                () = tokio::time::sleep_until(self.clock.to_tokio(wake_at)) => {}
            }
            self.expire();
        }
    }

    fn expire(&self) {
        let now = self.clock.now();
        let mut late = Vec::new();
        {
            let mut state = self.lock();
            for ticket in state.deadlines.passed(now) {
                let waiting = state.batcher.queued();
                if let Some(seat) = state.batcher.cancel(ticket) {
                    let sent = state.batcher.queued() == waiting;
                    state.deadlines.remove(seat.slot);
                    late.push((seat, sent));
                }
            }
        }
        for (seat, sent) in late {
            let address = self.line.address().clone();
            seat.answer(Err(TransportError::Deadline { address, sent }));
        }
    }

    fn change<R>(
        &self,
        change: impl FnOnce(&mut TsoBatcher<Seat>, &mut Vec<TsoDone<Seat>>) -> R,
    ) -> R {
        let mut done = Vec::new();
        let result = {
            let mut state = self.lock();
            let result = change(&mut state.batcher, &mut done);
            state.retire(&done);
            result
        };
        deliver(done);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The batcher has no panic in it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn retire(&mut self, done: &[TsoDone<Seat>]) {
        for done in done {
            self.deadlines.remove(done.completion.slot);
        }
    }
}

impl Seat {
    fn answer(self, result: Result<tikv_core::Timestamp, TransportError>) {
        self.inbox.deliver(self.flight, Arrival::Timestamp(result));
    }
}

fn deliver(done: Vec<TsoDone<Seat>>) {
    for done in done {
        done.completion.answer(done.result);
    }
}

/// What the stream is to send.
struct Batches {
    oracle: Arc<Oracle>,
    writer: Arc<Writer>,
}

impl Stream for Batches {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.writer.poll_next(cx, || self.oracle.next_batch())
    }
}
