//! gRPC over raw bytes: the two shapes of call there are, answered by plain functions.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
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
    server().unary(Once(Some(answer)), request).await
}

/// Answers each message of a stream with one message, until the client ends it or an answer is a
/// status.
pub(super) async fn stream<F>(request: http::Request<Incoming>, answer: F) -> http::Response<Body>
where
    F: FnMut(Bytes) -> Result<Bytes, Status> + Send + Unpin + 'static,
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

struct Once<F>(Option<F>);

impl<F> UnaryService<Bytes> for Once<F>
where
    F: FnOnce(Bytes) -> Result<Bytes, Status>,
{
    type Response = Bytes;
    type Future = std::future::Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let answer = self.0.take();
        std::future::ready(match answer {
            Some(answer) => answer(request.into_inner()).map(Response::new),
            None => Err(Status::internal("called twice")),
        })
    }
}

struct Each<F>(Option<F>);

impl<F> StreamingService<Bytes> for Each<F>
where
    F: FnMut(Bytes) -> Result<Bytes, Status> + Send + Unpin + 'static,
{
    type Response = Bytes;
    type ResponseStream = Answers<F>;
    type Future = BoxFuture<'static, Result<Response<Answers<F>>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let answer = self.0.take();
        let mut requests = request.into_inner();
        Box::pin(async move {
            let mut answer = answer.ok_or_else(|| Status::internal("called twice"))?;
            // As TiKV and PD do, the headers go out with the first answer: a client that awaits
            // them before it sends anything waits for ever.
            let first = match requests.message().await? {
                Some(first) => Some(answer(first)?),
                None => None,
            };
            Ok(Response::new(Answers {
                first,
                requests,
                answer,
            }))
        })
    }
}

/// The answers of a stream, made when the connection can take one.
pub(super) struct Answers<F> {
    first: Option<Bytes>,
    requests: Streaming<Bytes>,
    answer: F,
}

impl<F> Stream for Answers<F>
where
    F: FnMut(Bytes) -> Result<Bytes, Status> + Unpin,
{
    type Item = Result<Bytes, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        let request = ready!(Pin::new(&mut this.requests).poll_next(cx));
        Poll::Ready(request.map(|request| request.and_then(&mut this.answer)))
    }
}
