//! What the core asks of the world, and what the world answers. Plain data.

use std::fmt;
use std::sync::Arc;

use tikv_proto::kvrpcpb;

use crate::command::{Command, Response};
use crate::error::TransportError;
use crate::operation::Operation;
use crate::time::{Instant, Timestamp};
use crate::why::Why;

/// Names one action of one [`Operation`]; never used twice by the same operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionId(pub(crate) u64);

impl ActionId {
    /// The number, counted from 1 within its operation.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// Something the core wants done. Every one but [`Action::Spawn`] is answered by one [`Reply`].
#[derive(Debug)]
pub enum Action {
    /// Send one request to one endpoint. Answer with [`Reply::Response`], at the latest when
    /// [`Rpc::deadline`] passes.
    Send(Rpc),
    /// Get timestamps from PD's oracle. Answer with [`Reply::Timestamp`], at the latest when
    /// [`TsoRequest::deadline`] passes.
    Timestamp(TsoRequest),
    /// Wait. Answer with [`Reply::Woke`] at, or after, `until`.
    Sleep {
        /// Until when.
        until: Instant,
        /// What for.
        why: Why,
    },
    /// Run another operation to its end, whatever becomes of this one. Not answered.
    Spawn(Operation<()>),
}

/// One request to one endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Rpc {
    /// To whom.
    pub endpoint: Endpoint,
    /// The context of this attempt; requests to PD have none.
    pub context: Option<Box<kvrpcpb::Context>>,
    /// The body, shared by all attempts.
    pub command: Arc<Command>,
    /// When to give up.
    pub deadline: Instant,
}

/// Whom a request is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// A TiKV store.
    Store {
        /// Its id.
        id: u64,
        /// Where it listens, as PD knows it.
        address: Arc<str>,
    },
    /// A member of PD.
    Pd {
        /// Its client URL.
        url: Arc<str>,
    },
}

impl Endpoint {
    /// The address or URL to connect to.
    pub fn address(&self) -> &Arc<str> {
        match self {
            Endpoint::Store { address, .. } => address,
            Endpoint::Pd { url } => url,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Store { id, address } => write!(f, "store {id} at {address}"),
            Endpoint::Pd { url } => write!(f, "PD at {url}"),
        }
    }
}

/// A wish for timestamps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TsoRequest {
    /// The member of PD that serves the oracle.
    pub url: Arc<str>,
    /// The cluster, which goes into the header.
    pub cluster_id: u64,
    /// When to give up.
    pub deadline: Instant,
}

/// What came of an action.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every reply is a response"
)]
pub enum Reply {
    /// The answer to a request, or why there is none.
    Response(Result<Response, TransportError>),
    /// A timestamp, or why there is none.
    Timestamp(Result<Timestamp, TransportError>),
    /// The time has come.
    Woke,
}

impl Reply {
    pub(crate) const fn kind(&self) -> ActionKind {
        match self {
            Reply::Response(_) => ActionKind::Send,
            Reply::Timestamp(_) => ActionKind::Timestamp,
            Reply::Woke => ActionKind::Sleep,
        }
    }
}

/// The kinds of action that are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ActionKind {
    Send,
    Timestamp,
    Sleep,
}
