//! The TiKV client protocol as a pure, deterministic state machine.
//!
//! This crate never opens a socket, reads a clock, starts a thread or draws an unseeded random
//! number. It says what it wants done, as values ([`driver::Action`]); a driver does it and hands
//! back what came ([`driver::Reply`]). Applications use it through a driver crate:
//! `tikv-io-tokio` against real clusters, `tikv-io-mock` against simulated ones. The same
//! application code, generic in [`driver::Driver`], runs on both.
//!
//! # The floors
//!
//! Each module may use only those above it.
//!
//! | floor | modules | holds |
//! |---|---|---|
//! | ground | `time` `key` `codec` `keyspace` `why` `error` `config` | timestamps, keys, errors, options |
//! | doorway | `command` `action` `operation` [`driver`] | the contract with the driver |
//! | cluster | `backoff` `region` `store` | what is known of the cluster, and what a failure means |
//! | calls | `rpc` `tso` `pd` | a request's way to a region, and to PD |
//! | data | `raw` `txn` | the protocols |
//! | face | `client` | [`TransactionClient`], [`RawClient`] and what they hand out |

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::print_stdout
    )
)]

mod action;
// Some of these floors stands before what will stand on it: follower reads, range loads, upkeep.
#[allow(dead_code)]
mod backoff;
mod client;
mod codec;
mod command;
mod config;
pub mod driver;
mod error;
mod flight;
mod key;
mod keyspace;
#[cfg(feature = "mutations")]
pub mod mutation;
mod operation;
mod pd;
mod raw;
#[allow(dead_code, unused_imports)]
mod region;
#[allow(dead_code)]
mod replica;
pub mod rpc;
#[allow(dead_code)]
mod store;
mod time;
pub mod tso;
pub mod txn;
mod why;

pub use client::{
    Closed, Committed, Endpoints, RawClient, Savepoint, Scan, Snapshot, Transaction,
    TransactionClient, TransactionOptions,
};
pub use config::Config;
pub use error::{
    AssertionFailed, ConflictReason, DeadlineExceeded, Deadlock, Error, ErrorKind, Exhausted,
    RegionRefusal, Result, Undetermined, WriteConflict,
};
pub use key::{Key, KeyRange, KvPair, Value};
pub use raw::Swap;
pub use time::Timestamp;

/// The wire: requests and responses as TiKV and PD know them. For drivers and for callers that
/// send a request of their own.
pub mod wire {
    pub use crate::codec::{DecodeError, decode, decode_prefix, encode, encoded_len};
    pub use crate::command::{
        Call, Command, HealthCheckRequest, HealthCheckResponse, RegionResponse, Response,
        ServingStatus, encode_request,
    };
}

#[doc(hidden)] // What benchmarks reach below the public API for. No promise holds here.
pub mod internal {
    pub use crate::region::RegionTable;
}
