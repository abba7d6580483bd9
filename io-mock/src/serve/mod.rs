//! The simulated cluster behind real gRPC on loopback, in real time.
//!
//! One [`Cluster`](crate::cluster::Cluster) behind one lock; a listener per store and one for PD.
//! Bytes become commands, commands go to [`dispatch`](crate::dispatch), answers become bytes.
//! Several requests of one frame are answered under one lock; one that waits for a lock of the data
//! is answered in a frame of its own.
//!
//! Deliberately absent: faults below the level of connections. A store can be stopped and started,
//! regions can split and move; lost and delayed messages belong to the simulator.
//!
//! | file | holds |
//! |---|---|
//! | `served` | [`ServedCluster`]: addresses, and a hand on the cluster |
//! | `listener` | one address that can be shut and opened again |
//! | `store` `pd` `health` | what answers there |
//! | `pd_calls` | PD's calls beyond the catalogue |
//! | `grpc` `codec` | gRPC over raw bytes |
//! | `world` `waits` | the cluster and its clock, and who waits for a lock |

mod codec;
mod grpc;
mod health;
mod listener;
mod pd;
mod pd_calls;
mod served;
mod store;
mod waits;
mod world;

pub use served::{ServedCluster, ServedClusterBuilder};
