//! The sending half of one stream: woken when there is something to send, and ended with the
//! stream.
//!
//! HTTP/2 does not end what a client sends when the client stops reading: a body that waits for
//! more to send keeps its connection open for ever. So whoever owns a stream holds its [`Life`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// Reaches the sending half of a stream from anywhere.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    waker: AtomicWaker,
    over: AtomicBool,
}

impl Writer {
    /// Has the stream look for something to send.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// What to send next: polled when, and only when, the connection can take a message.
    pub(crate) fn poll_next<M>(
        &self,
        cx: &mut Context<'_>,
        next: impl FnOnce() -> Option<M>,
    ) -> Poll<Option<M>> {
        // First the waker, then the looks: what happens in between wakes this task.
        self.waker.register(cx.waker());
        if self.over.load(Ordering::Acquire) {
            return Poll::Ready(None);
        }
        match next() {
            Some(message) => Poll::Ready(Some(message)),
            None => Poll::Pending,
        }
    }
}

/// Held by the owner of a stream. Its end is the end of the sending half.
#[derive(Debug)]
pub(crate) struct Life(Arc<Writer>);

impl Life {
    pub(crate) fn begin() -> Self {
        Life(Arc::default())
    }

    pub(crate) fn writer(&self) -> Arc<Writer> {
        self.0.clone()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
        self.0.wake();
    }
}
