//! What a gRPC status, or a connection that fails, means to the core.
//!
//! A status says by its source whether the server spoke it or the transport made it up: an answer
//! is [`TransportError::Status`], everything else a broken connection.

use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::Arc;

use tikv_core::driver::TransportError;
use tonic::{Code, ConnectError, Status};

/// A failure of a call that was handed to a connection.
pub(crate) fn call_failed(address: &Arc<str>, status: &Status) -> TransportError {
    let address = address.clone();
    if never_connected(status) {
        TransportError::Connect {
            address,
            message: text(status),
        }
    } else if spoken_by_transport(status) {
        TransportError::Broken {
            address,
            message: text(status),
            sent: true,
        }
    } else {
        TransportError::Status {
            address,
            code: status.code() as i32 as u32,
            message: Arc::from(status.message()),
        }
    }
}

/// The end of a stream, for everything that was in flight on it.
pub(crate) fn stream_failed(address: &Arc<str>, status: &Status) -> TransportError {
    let message = if spoken_by_transport(status) {
        text(status)
    } else {
        format!("gRPC status {}: {}", status.code() as i32, status.message()).into()
    };
    TransportError::Broken {
        address: address.clone(),
        message,
        sent: true,
    }
}

/// A connection that could not be made, with every cause in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> Arc<str> {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_line = inner.to_string();
        // Some layers repeat the text of what they wrap.
        if !line.ends_with(&inner_line) {
            let _ = write!(line, ": {inner_line}");
        }
        cause = inner.source();
    }
    line.into()
}

/// Statuses made up on this side carry what they were made of; a server's have no source.
fn spoken_by_transport(status: &Status) -> bool {
    status.source().is_some() || matches!(status.code(), Code::Cancelled)
}

/// The connection was gone and could not be made again, so that nothing was sent.
fn never_connected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn text(status: &Status) -> Arc<str> {
    match status.source() {
        Some(source) => chain(source),
        None if status.message().is_empty() => Arc::from(status.code().description()),
        None => Arc::from(status.message()),
    }
}
