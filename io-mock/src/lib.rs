//! A simulated TiKV + PD cluster and the drivers that run the client against it.
//!
//! [`cluster`] is the pure state machine of stores, regions, MVCC and PD. [`sim`] runs clients
//! against it in virtual time, with faults, from one seed; what clients saw is written into a
//! [`history`] and judged by [`check`]. [`in_process`] runs them in real time, without faults.

pub mod check;
pub mod cluster;
#[cfg(feature = "serve")]
pub mod control;
pub mod dispatch;
pub mod history;
pub mod in_process;
#[cfg(feature = "mutations")]
pub mod mutation;
mod node;
#[cfg(feature = "serve")]
pub mod serve;
pub mod sim;
pub mod workload;

pub use in_process::LocalCluster;
pub use sim::{Faults, Simulation};
