//! The simulated cluster behind real gRPC on loopback, in real time.
//!
//! One [`Cluster`](crate::cluster::Cluster) behind one lock; a listener per store and one for PD.
//! Bytes become commands, commands go to [`dispatch`](crate::dispatch), answers become bytes.
//! Several requests of one frame are answered under one lock; one that waits for a lock of the data
//! is answered in a frame of its own.
//!
//! A store or a member of PD can be stopped, paused, slowed down, or made to lose replies; regions
//! can split and move. Deliberately absent: faults of the network itself. Lost and delayed packets
//! belong to the simulator.
//!
//! | file | holds |
//! |---|---|
//! | `served` `builder` | [`ServedCluster`]: addresses, and a hand on the cluster |
//! | `listener` `tls` | one address that can be shut and opened again |
//! | `store` `frames` `pd` `health` | what answers there |
//! | `store_calls` | a store's calls beyond the catalogue |
//! | `pd_calls` `pd_watches` | PD's calls beyond the catalogue, and those that are answered with a stream |
//! | `etcd` `etcd_watch` | the etcd inside PD |
//! | `plain_http` `pd_http` | what answers to plain HTTP: a store, a member of PD |
//! | `impairment` | what keeps a server from its work |
//! | `timing` | what answers tell of the time they took |
//! | `grpc` `codec` | gRPC over raw bytes |
//! | `world` `waits` | the cluster and its clock, and who waits for a lock |

mod builder;
mod codec;
mod etcd;
mod etcd_watch;
mod frames;
mod grpc;
mod health;
mod impairment;
mod listener;
mod pd;
mod pd_calls;
mod pd_http;
mod pd_watches;
mod plain_http;
mod served;
mod store;
mod store_calls;
#[cfg(test)]
mod testing;
mod timing;
mod tls;
mod waits;
mod world;

pub use builder::ServedClusterBuilder;
pub use impairment::Condition;
pub(crate) use listener::Service;
pub use served::ServedCluster;
pub(crate) use served::Shared;
