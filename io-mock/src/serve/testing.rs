//! A client of bytes, for calls that no generated client knows.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::Stream;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::codec::RawCodec;

/// A client of one server.
pub(super) struct Client(Grpc<Channel>);

impl Client {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        Client(Grpc::new(endpoint.connect().await.unwrap()))
    }

    pub(super) async fn unary<A: Message + Default>(
        &mut self,
        path: &'static str,
        request: &impl Message,
    ) -> Result<A, Status> {
        self.0.ready().await.unwrap();
        let request = Request::new(request.encode_to_vec().into());
        let path = PathAndQuery::from_static(path);
        let answer = self.0.unary(request, path, RawCodec).await?;
        Ok(A::decode(answer.into_inner()).unwrap())
    }

    pub(super) async fn streams(
        &mut self,
        path: &'static str,
        requests: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Streaming<Bytes>, Status> {
        self.0.ready().await.unwrap();
        let path = PathAndQuery::from_static(path);
        let requests = Request::new(requests);
        let answers = self.0.streaming(requests, path, RawCodec).await?;
        Ok(answers.into_inner())
    }
}
