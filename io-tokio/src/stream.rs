//! One connection to a store and its BatchCommands stream, from connecting to the break.
//!
//! The task only moves bytes: frames are put together from parts and taken apart into slices, and
//! no message is encoded or decoded here.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_core::Stream;
use http::uri::PathAndQuery;
use tikv_core::driver::TransportError;
use tikv_core::rpc::frame::{RequestFrame, SplitFrame};
use tikv_core::rpc::mux::Link;
use tonic::codec::EncodeBuf;
use tonic::transport::Channel;

use crate::codec::{RawCodec, RawMessage};
use crate::line::unlimited;
use crate::pool::Pool;
use crate::status;
use crate::writer::{Life, Writer};

const PATH: &str = "/tikvpb.Tikv/BatchCommands";

/// Lives one life of one connection.
pub(crate) async fn run(pool: Arc<Pool>, link: Link) {
    match pool.connector().connect(pool.address()).await {
        Ok(channel) => {
            let life = Life::begin();
            pool.on_connected(link, life.writer());
            let error = converse(&pool, link, channel, &life).await;
            drop(life);
            pool.on_broken(link, &error);
        }
        Err(TransportError::Connect { message, .. }) => pool.on_connect_failed(link, &message),
        Err(error) => pool.on_connect_failed(link, &error.to_string().into()),
    }
}

/// Sends and receives until the stream ends, and says how it ended.
async fn converse(pool: &Arc<Pool>, link: Link, channel: Channel, life: &Life) -> TransportError {
    let broken = |message| TransportError::Broken {
        address: pool.address().clone(),
        message,
        sent: true,
    };
    let mut grpc = unlimited(channel);
    if let Err(error) = grpc.ready().await {
        return broken(status::chain(&error));
    }
    let frames = Frames {
        pool: pool.clone(),
        link,
        writer: life.writer(),
        yielded: false,
    };
    let path = PathAndQuery::from_static(PATH);
    // The headers of a server's answer come with its first frame of answers. Requests do not wait
    // for them: the connection pulls them out of `frames` meanwhile.
    let mut answers = match grpc
        .streaming(tonic::Request::new(frames), path, RawCodec::<Frame>::new())
        .await
    {
        Ok(response) => response.into_inner(),
        Err(status) => return status::stream_failed(pool.address(), &status),
    };
    let mut frame = SplitFrame::default();
    let mut ended = Vec::new();
    loop {
        match answers.message().await {
            Ok(Some(bytes)) => {
                if let Err(error) = frame.read(bytes) {
                    return broken(error.to_string().into());
                }
                pool.receive(link, &mut frame, &mut ended);
            }
            Ok(None) => return broken("the server ended the stream".into()),
            Err(status) => return status::stream_failed(pool.address(), &status),
        }
    }
}

/// What a connection is to send.
///
/// Woken, it first lets every task run that is ready: those are mostly callers whose answers came
/// in the same frame and who are about to ask for more. What they ask for then goes into one frame,
/// which costs both sides less than many. Nobody waits longer for it than those tasks take.
struct Frames {
    pool: Arc<Pool>,
    link: Link,
    writer: Arc<Writer>,
    /// The others have had their turn.
    yielded: bool,
}

impl Stream for Frames {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.yielded, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = this.writer.poll_next(cx, || {
            let frame = this.pool.poll_frame(this.link)?;
            let sent_unix_ns = unix_ns();
            Some(Frame {
                frame,
                sent_unix_ns,
            })
        });
        this.yielded = next.is_ready();
        next
    }
}

/// A frame with the time at which it is sent.
struct Frame {
    frame: RequestFrame,
    sent_unix_ns: u64,
}

impl RawMessage for Frame {
    fn len(&self) -> usize {
        self.frame.encoded_len(self.sent_unix_ns)
    }

    fn put(self, buf: &mut EncodeBuf<'_>) {
        self.frame.encode(self.sent_unix_ns, buf);
    }
}

/// The wall clock, from which the server measures the way; 0 if it is of no use.
fn unix_ns() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(0)
}
