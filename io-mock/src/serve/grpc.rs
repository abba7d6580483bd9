//! gRPC over raw bytes: the three shapes of call there are, answered by functions and streams of
//! bytes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::server::{Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Code, Request, Response, Status, Streaming};

use super::codec::RawCodec;
use crate::cluster::failure::{GrpcCode, GrpcError};

/// A stream of messages that are not made yet.
// A type of its own: the compiler loses the lifetime of a boxed stream in an `async fn` of a trait.
pub(super) struct Messages(BoxStream<'static, Result<Bytes, Status>>);

impl Messages {
    fn new(messages: impl Stream<Item = Result<Bytes, Status>> + Send + 'static) -> Self {
        Messages(messages.boxed())
    }
}

impl Stream for Messages {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

/// Answers a call of one request with one answer.
pub(super) async fn unary<F, A>(request: http::Request<Incoming>, answer: F) -> http::Response<Body>
where
    F: FnOnce(Bytes) -> A + Send + 'static,
    A: Future<Output = Result<Bytes, Status>> + Send + 'static,
{
    server().unary(Once(Some(answer)), request).await
}

/// Answers each message of a stream with one message and in its order, until the client ends it or
/// an answer is a status.
pub(super) async fn each<F, A>(request: http::Request<Incoming>, answer: F) -> http::Response<Body>
where
    F: FnMut(Bytes) -> A + Send + 'static,
    A: Future<Output = Result<Bytes, Status>> + Send + 'static,
{
    streams(request, move |requests| {
        Messages::new(requests.and_then(answer))
    })
    .await
}

/// Answers a stream of messages with another one.
pub(super) async fn streams<F>(request: http::Request<Incoming>, answer: F) -> http::Response<Body>
where
    F: FnOnce(Streaming<Bytes>) -> Messages + Send + 'static,
{
    server().streaming(Both(Some(answer)), request).await
}

/// Answers a call of one request with a stream of messages.
pub(super) async fn many<F>(request: http::Request<Incoming>, answer: F) -> http::Response<Body>
where
    F: FnOnce(Bytes) -> Result<Messages, Status> + Send + 'static,
{
    server().server_streaming(Many(Some(answer)), request).await
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
        GrpcCode::NotFound => Code::NotFound,
        GrpcCode::FailedPrecondition => Code::FailedPrecondition,
        GrpcCode::ResourceExhausted => Code::ResourceExhausted,
        GrpcCode::OutOfRange => Code::OutOfRange,
        GrpcCode::Unimplemented => Code::Unimplemented,
        GrpcCode::Unavailable => Code::Unavailable,
    };
    Status::new(code, error.message)
}

/// A request that is no message.
pub(super) fn unreadable(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("unreadable request: {error}"))
}

/// What takes calls apart. As at TiKV, requests may come compressed, and answers do not.
fn server() -> Grpc<RawCodec> {
    Grpc::new(RawCodec)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Deflate)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

fn called_twice() -> Status {
    Status::internal("called twice")
}

struct Once<F>(Option<F>);

impl<F, A> UnaryService<Bytes> for Once<F>
where
    F: FnOnce(Bytes) -> A,
    A: Future<Output = Result<Bytes, Status>> + Send + 'static,
{
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let answer = self.0.take().map(|answer| answer(request.into_inner()));
        Box::pin(async move { Ok(Response::new(answer.ok_or_else(called_twice)?.await?)) })
    }
}

struct Both<F>(Option<F>);

impl<F> StreamingService<Bytes> for Both<F>
where
    F: FnOnce(Streaming<Bytes>) -> Messages + Send + 'static,
{
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = BoxFuture<'static, Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let answers = self.0.take().map(|answer| answer(request.into_inner()));
        Box::pin(async move {
            let mut answers = answers.ok_or_else(called_twice)?;
            // As TiKV and PD do, the headers go out with the first answer: a client that awaits
            // them before it sends anything waits for ever.
            let first = answers.next().await.transpose()?;
            let first = stream::iter(first.map(Ok));
            Ok(Response::new(Messages::new(first.chain(answers))))
        })
    }
}

struct Many<F>(Option<F>);

impl<F> ServerStreamingService<Bytes> for Many<F>
where
    F: FnOnce(Bytes) -> Result<Messages, Status>,
{
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = std::future::Ready<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let answer = self.0.take().ok_or_else(called_twice);
        let messages = answer.and_then(|answer| answer(request.into_inner()));
        std::future::ready(messages.map(Response::new))
    }
}

/// A stream of messages that are all known.
pub(super) fn all(messages: Vec<Bytes>) -> Messages {
    Messages::new(stream::iter(messages.into_iter().map(Ok)))
}

/// A stream that is asked again and again for its next message.
pub(super) fn unfold<S, F, A>(state: S, next: F) -> Messages
where
    S: Send + 'static,
    F: FnMut(S) -> A + Send + 'static,
    A: Future<Output = Result<Option<(Bytes, S)>, Status>> + Send + 'static,
{
    Messages::new(stream::try_unfold(state, next))
}
