//! A TiKV client for tokio: transactions, snapshots and raw key-value, over gRPC.
//!
//! ```no_run
//! use tikv_io_tokio::{Connect, TransactionClient};
//!
//! # #[tokio::main]
//! # async fn main() -> tikv_io_tokio::Result<()> {
//! let client = TransactionClient::connect(["127.0.0.1:2379"]).await?;
//! let txn = client.begin().await?;
//! txn.put("stock/7", "41").await?;
//! txn.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! This crate is the driver: it runs the protocol of `tikv-core` on tokio and tonic, and hands
//! out again what an application needs of it. Nothing of tonic shows outside.
//!
//! | module | holds |
//! |---|---|
//! | `client` | [`Connect`], [`ClientBuilder`], the clients on this driver |
//! | `config` | [`IoConfig`], [`Security`]: how to connect |
//! | `driver` | [`TokioDriver`]: the door through which the core reaches the world |
//! | `run` `inbox` | one operation, turned in the task that waits for it |
//! | `pool` `stream` `writer` | the BatchCommands streams of one store |
//! | `oracle` | the timestamp stream of one member of PD |
//! | `line` | calls that go alone |
//! | `connect` `codec` `status` | what is known of tonic: nothing of it shows outside |
//! | `deadlines` `tasks` `clock` `stats` | time, tasks, numbers |

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

mod client;
mod clock;
mod codec;
mod config;
mod connect;
mod deadlines;
mod driver;
mod inbox;
mod line;
mod oracle;
mod pool;
mod run;
mod stats;
mod status;
mod stream;
mod tasks;
mod writer;

pub use client::{
    ClientBuilder, Connect, RawClient, Scan, Snapshot, Transaction, TransactionClient,
};
pub use config::{IoConfig, Security};
pub use driver::TokioDriver;
pub use stats::IoStats;

pub use tikv_core::{
    AssertionFailed, Closed, Committed, Config, ConflictReason, DeadlineExceeded, Deadlock,
    Endpoints, Error, ErrorKind, Exhausted, Key, KeyRange, KvPair, RegionRefusal, Result,
    Savepoint, Timestamp, TransactionOptions, Undetermined, Value, WriteConflict,
};
