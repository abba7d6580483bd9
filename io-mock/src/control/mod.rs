//! What can be done to a served cluster while clients are at work, as values: split, merge,
//! transfer, pause, restart, slow down, lose replies, advance GC, let timestamps jump.
//!
//! A [`Verb`] says what; [`ServedCluster::control`](crate::serve::ServedCluster::control) does it
//! and answers with an [`Outcome`], or says why it was [`Refused`]. The same verbs are served over
//! HTTP, as JSON, at the address that
//! [`serve_control`](crate::serve::ServedCluster::serve_control) opens:
//!
//! ```text
//! curl ADDRESS                                         # what there is
//! curl ADDRESS/split -d '{"keys": ["g", "p"]}'
//! curl ADDRESS/pause -d '{"store": 1}'
//! ```
//!
//! Deliberately absent: who may do that. Whoever can connect can.

mod apply;
mod http;
mod key_text;
mod state;
mod trouble;
mod verb;

pub(crate) use self::http::ControlServer;
pub use self::key_text::KeyText;
pub use self::state::{KeyspaceState, MemberState, PdState, RegionState, State, StoreState};
pub use self::trouble::{Cause, Progress, RegionError, Room};
pub use self::verb::{Outcome, Refused, Verb};
