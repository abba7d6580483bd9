//! gRPC over raw bytes: the two shapes of call there are, answered by plain functions.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Code, Request, Response, Status, Streaming};

use super::codec::RawCodec;
use crate::cluster::failure::{GrpcCode, GrpcError};

/// Answers a call of one request with one answer.
pub(super) async fn unary(
    request: http::Request<Incoming>,
    answer: impl FnOnce(Bytes) -> Result<Bytes, Status> + Send + 'static,
) -> http::Response<Body> {
    unary_later(request, |body| std::future::ready(answer(body))).await
}

/// Answers a call of one request with one answer, perhaps later.
pub(super) async fn unary_later<F>(
    request: http::Request<Incoming>,
    answer: impl FnOnce(Bytes) -> F + Send + 'static,
) -> http::Response<Body>
where
    F: Future<Output = Result<Bytes, Status>> + Send + 'static,
{
    server().unary(Once(Some(answer)), request).await
}

/// Answers each message of a stream with one message, until the client ends it or an answer is a
/// status.
pub(super) async fn stream<F>(
    request: http::Request<Incoming>,
    mut answer: F,
) -> http::Response<Body>
where
    F: FnMut(Bytes) -> Result<Bytes, Status> + Send + Unpin + 'static,
{
    stream_with_late(request, move |message, _| answer(message).map(Some)).await
}

/// Takes a message that is no answer to the last one.
pub(super) type Late = mpsc::UnboundedSender<Result<Bytes, Status>>;

/// Answers each message of a stream with one message or none. Others may follow at any time; the
/// stream ends when the client has ended it and nobody can send one any more, or with a status.
pub(super) async fn stream_with_late<F>(
    request: http::Request<Incoming>,
    answer: F,
) -> http::Response<Body>
where
    F: FnMut(Bytes, &Late) -> Result<Option<Bytes>, Status> + Send + Unpin + 'static,
{
    server().streaming(Each(Some(answer)), request).await
}

/// What a server says to a call it does not know.
pub(super) fn unimplemented(path: &str) -> http::Response<Body> {
    Status::unimplemented(format!("unknown method {path}")).into_http()
}

/// A failure of the cluster below the level of replies, as the status a server answers with.
pub(super) fn status(error: GrpcError) -> Status {
    let code = match error.code {
        GrpcCode::Unknown => Code::Unknown,
        GrpcCode::InvalidArgument => Code::InvalidArgument,
        GrpcCode::FailedPrecondition => Code::FailedPrecondition,
        GrpcCode::Unimplemented => Code::Unimplemented,
        GrpcCode::Unavailable => Code::Unavailable,
    };
    Status::new(code, error.message)
}

/// A request that is no message.
pub(super) fn unreadable(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("unreadable request: {error}"))
}

fn server() -> Grpc<RawCodec> {
    Grpc::new(RawCodec)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

struct Once<A>(Option<A>);

impl<A, F> UnaryService<Bytes> for Once<A>
where
    A: FnOnce(Bytes) -> F,
    F: Future<Output = Result<Bytes, Status>> + Send + 'static,
{
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let answer = self.0.take().map(|answer| answer(request.into_inner()));
        Box::pin(async move {
            match answer {
                Some(answer) => answer.await.map(Response::new),
                None => Err(Status::internal("called twice")),
            }
        })
    }
}

struct Each<F>(Option<F>);

impl<F> StreamingService<Bytes> for Each<F>
where
    F: FnMut(Bytes, &Late) -> Result<Option<Bytes>, Status> + Send + Unpin + 'static,
{
    type Response = Bytes;
    type ResponseStream = Answers<F>;
    type Future = BoxFuture<'static, Result<Response<Answers<F>>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let answer = self.0.take();
        let requests = request.into_inner();
        Box::pin(async move {
            let answer = answer.ok_or_else(|| Status::internal("called twice"))?;
            let (late, come_late) = mpsc::unbounded_channel();
            let mut answers = Answers {
                first: None,
                open: Some((requests, answer, late)),
                come_late,
            };
            // As TiKV and PD do, the headers go out with the first answer: a client that awaits
            // them before it sends anything waits for ever.
            answers.first = match answers.next().await {
                Some(first) => Some(first?),
                None => None,
            };
            Ok(Response::new(answers))
        })
    }
}

/// The answers of a stream, made when the connection can take one.
pub(super) struct Answers<F> {
    first: Option<Bytes>,
    /// `None` once the client has ended it.
    open: Option<(Streaming<Bytes>, F, Late)>,
    come_late: mpsc::UnboundedReceiver<Result<Bytes, Status>>,
}

impl<F> Stream for Answers<F>
where
    F: FnMut(Bytes, &Late) -> Result<Option<Bytes>, Status> + Unpin,
{
    type Item = Result<Bytes, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            if let Poll::Ready(late) = this.come_late.poll_recv(cx) {
                return Poll::Ready(late);
            }
            let Some((requests, answer, late)) = &mut this.open else {
                return Poll::Pending;
            };
            match ready!(Pin::new(requests).poll_next(cx)) {
                Some(request) => {
                    let answered = request.and_then(|request| answer(request, late));
                    if let Some(answer) = answered.transpose() {
                        return Poll::Ready(Some(answer));
                    }
                }
                None => this.open = None,
            }
        }
    }
}
