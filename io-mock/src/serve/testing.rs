//! A client of bytes, for calls that no generated client knows, and one of plain HTTP.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::Stream;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

/// One call of plain HTTP: the status, and the answer if it is JSON.
pub(super) async fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, serde_json::Value) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: pd\r\nconnection: close\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_default())
}
