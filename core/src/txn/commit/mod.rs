//! The two-phase commit: a lock on every key, then the primary, then the others.
//!
//! `phase` decides what follows from what, `prewrite` what an error means, `mutation` and `ttl` what goes into the requests; `committer` sends them, `heartbeat` keeps the primary alive.
//! (client-go: `twoPhaseCommitter`)

mod committer;
mod heartbeat;
mod mutation;
mod phase;
mod prewrite;
mod ttl;

pub(crate) use committer::{CommitInput, commit};
pub(crate) use mutation::Mutations;
