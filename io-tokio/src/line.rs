//! The connection to one address for calls that go alone: requests to PD, the timestamp stream,
//! and the few requests to stores that have no place in a frame.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::FutureExt;
use futures_util::future::Shared;
use http::uri::PathAndQuery;
use tikv_core::driver::{Rpc, TransportError};
use tikv_core::wire::{Response, encode_request};
use tonic::client::Grpc;
use tonic::transport::Channel;

use crate::clock::Clock;
use crate::codec::RawCodec;
use crate::connect::Connector;
use crate::status;
use crate::tasks::Tasks;

/// How long the news of a failed attempt to connect is held back. It keeps a herd of callers from
/// hammering an address.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

type Connecting = Shared<BoxFuture<'static, Result<Channel, TransportError>>>;

/// One address, connected on first use.
#[derive(Debug)]
pub(crate) struct Line {
    address: Arc<str>,
    connector: Arc<Connector>,
    connecting: Mutex<Option<Connecting>>,
}

impl Line {
    pub(crate) fn new(address: Arc<str>, connector: Arc<Connector>) -> Self {
        Line {
            address,
            connector,
            connecting: Mutex::new(None),
        }
    }

    /// Where the connection goes.
    pub(crate) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Sends one request and waits for its answer, the deadline, or the end of the driver.
    pub(crate) async fn call(
        &self,
        rpc: &Rpc,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<Response, TransportError> {
        let mut sent = false;
        let call = async {
            let channel = self.channel().await?;
            // From here on the request may leave the process at any moment.
            sent = true;
            self.unary(channel, rpc).await
        };
        let deadline = clock.to_tokio(rpc.deadline);
        let ended = tokio::select! {
            answer = tokio::time::timeout_at(deadline, call) => Some(answer),
            () = tasks.stopped() => None,
        };
        match ended {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => Err(TransportError::Deadline {
                address: self.address.clone(),
                sent,
            }),
            None => Err(TransportError::Closed { sent }),
        }
    }

    async fn unary(&self, channel: Channel, rpc: &Rpc) -> Result<Response, TransportError> {
        let mut grpc = unlimited(channel);
        let not_called = |message: String| TransportError::Connect {
            address: self.address.clone(),
            message: message.into(),
        };
        grpc.ready()
            .await
            .map_err(|error| not_called(error.to_string()))?;
        let body = encode_request(rpc.context.as_deref(), &rpc.command);
        let path = PathAndQuery::from_static(rpc.command.path());
        let answer = grpc
            .unary(tonic::Request::new(body), path, RawCodec::<Bytes>::new())
            .await
            .map_err(|status| status::call_failed(&self.address, &status))?;
        rpc.command
            .decode_response(answer.into_inner())
            .map_err(|error| TransportError::Decode {
                address: self.address.clone(),
                message: error.to_string().into(),
            })
    }

    /// The connection. All who ask while it is being made wait for the same attempt; afterwards
    /// it renews itself.
    pub(crate) async fn channel(&self) -> Result<Channel, TransportError> {
        let connecting = self
            .connecting()
            .get_or_insert_with(|| self.connect())
            .clone();
        let result = connecting.clone().await;
        if result.is_err() {
            let mut current = self.connecting();
            // Whoever sees the failure first makes room for the next attempt.
            if current
                .as_ref()
                .is_some_and(|current| current.ptr_eq(&connecting))
            {
                *current = None;
            }
        }
        result
    }

    fn connect(&self) -> Connecting {
        let (address, connector) = (self.address.clone(), self.connector.clone());
        async move {
            let result = connector.connect(&address).await;
            if result.is_err() {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            result
        }
        .boxed()
        .shared()
    }

    fn connecting(&self) -> MutexGuard<'_, Option<Connecting>> {
        self.connecting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client for raw messages of any size.
pub(crate) fn unlimited(channel: Channel) -> Grpc<Channel> {
    Grpc::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}
