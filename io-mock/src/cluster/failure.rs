//! How a command fails: with the region, with a key, or below the level of replies.

use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::KeyError;

use super::mvcc::error::MvccError;

/// A command's failure.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The request did not reach a region that could serve it.
    Region(Box<errorpb::Error>),
    /// A key refused.
    Key(MvccError),
}

impl From<MvccError> for Failure {
    fn from(error: MvccError) -> Self {
        match error {
            // The server tells this as a region error without a detail.
            MvccError::InvalidMaxTs(message) => Failure::region(errorpb::Error {
                message,
                ..errorpb::Error::default()
            }),
            other => Failure::Key(other),
        }
    }
}

impl From<Box<errorpb::Error>> for Failure {
    fn from(error: Box<errorpb::Error>) -> Self {
        Failure::Region(error)
    }
}

impl From<errorpb::Error> for Failure {
    fn from(error: errorpb::Error) -> Self {
        Failure::region(error)
    }
}

impl Failure {
    /// A region error.
    pub fn region(error: errorpb::Error) -> Self {
        Failure::Region(Box::new(error))
    }

    /// Splits into what a reply has fields for: a region error or a key error.
    pub fn split(self) -> (Option<Box<errorpb::Error>>, Option<Box<KeyError>>) {
        match self {
            Failure::Region(error) => (Some(error), None),
            Failure::Key(error) => (None, Some(Box::new(error.to_key_error()))),
        }
    }
}

/// A failure below the level of replies: what a client gets instead of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcError {
    /// The gRPC status.
    pub code: GrpcCode,
    /// Its text.
    pub message: String,
}

/// The gRPC statuses that servers here answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcCode {
    /// The request makes no sense.
    InvalidArgument,
    /// What the request is about is not there.
    NotFound,
    /// The server is another one than the client thinks.
    FailedPrecondition,
    /// The request is about something that is gone, or still to come.
    OutOfRange,
    /// The server is down or may not serve now.
    Unavailable,
    /// The server has been asked too often.
    ResourceExhausted,
    /// The server has no such method.
    Unimplemented,
    /// The server failed in a way it has no name for.
    Unknown,
}

impl GrpcError {
    /// A status with a text.
    pub fn new(code: GrpcCode, message: impl Into<String>) -> Self {
        GrpcError {
            code,
            message: message.into(),
        }
    }
}
