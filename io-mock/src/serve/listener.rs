//! One address that can be shut and opened again: what a server's process is to its clients.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tonic::body::Body;

use super::tls::Tls;

/// The window of a stream and of a connection, as TiKV has them.
const WINDOW_BYTES: u32 = 2 << 20;
/// How many calls one connection may have open, as at TiKV.
const STREAMS_MAX: u32 = 1024;

/// Answers the requests that come to one address.
pub(crate) trait Service: Send + Sync + 'static {
    /// Answers one call. A failure is a gRPC status, never a broken connection.
    fn call(
        self: Arc<Self>,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = http::Response<Body>> + Send;
}

/// One address, open or shut.
#[derive(Debug)]
pub(super) struct Listener {
    address: SocketAddr,
    tls: Option<Tls>,
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    /// Dropped or sent: shut.
    shut: oneshot::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Listener {
    /// Binds an address; port 0 asks the system for one.
    pub(super) async fn bind(
        address: SocketAddr,
        tls: Option<Tls>,
    ) -> io::Result<(Listener, TcpListener)> {
        let socket = TcpListener::bind(address).await?;
        let address = socket.local_addr()?;
        Ok((
            Listener {
                address,
                tls,
                open: Mutex::new(None),
            },
            socket,
        ))
    }

    /// Where clients connect to.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers calls until [`shut`](Self::shut), or until the listener is dropped.
    pub(super) fn serve<S: Service>(&self, socket: TcpListener, service: Arc<S>) {
        let (shut, shutting) = oneshot::channel();
        let accepting = tokio::spawn(accept(socket, self.tls.clone(), service, shutting));
        *self.open() = Some(Open { shut, accepting });
    }

    /// Opens the address again after [`shut`](Self::shut).
    pub(super) async fn reopen<S: Service>(&self, service: Arc<S>) -> io::Result<()> {
        if self.open().is_none() {
            let socket = TcpListener::bind(self.address).await?;
            self.serve(socket, service);
        }
        Ok(())
    }

    /// Whether it answers.
    pub(super) fn is_open(&self) -> bool {
        self.open().is_some()
    }

    /// Closes the port and cuts every connection. Returns when both are done.
    pub(super) async fn shut(&self) {
        let open = self.open().take();
        if let Some(Open { shut, accepting }) = open {
            drop(shut);
            // It ends by itself; a panic in it has been printed already.
            let _ = accepting.await;
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes connections until `shutting` resolves, then cuts all of them.
async fn accept<S: Service>(
    socket: TcpListener,
    tls: Option<Tls>,
    service: Arc<S>,
    mut shutting: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut shutting => break,
            accepted = socket.accept() => {
                // Failing to accept is the peer's trouble, or passes.
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve_connection(stream, tls.clone(), service.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(socket);
    connections.shutdown().await;
}

async fn serve_connection<S: Service>(stream: TcpStream, tls: Option<Tls>, service: Arc<S>) {
    // Small replies must not wait for more.
    let _ = stream.set_nodelay(true);
    match tls {
        None => serve_calls(stream, service).await,
        Some(tls) => {
            // Who can't agree on a key has been told why.
            if let Ok(stream) = tls.0.accept(stream).await {
                serve_calls(stream, service).await;
            }
        }
    }
}

/// Answers the calls of a connection: gRPC, and plain HTTP of either version.
async fn serve_calls<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    service: Arc<S>,
) {
    let calls = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.call(request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX);
    // A client that goes away ends the connection with an error; there is nobody to tell.
    let _ = builder.serve_connection(TokioIo::new(stream), calls).await;
}
