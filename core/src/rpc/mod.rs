//! A request's way to a store.
//!
//! [`frame`] knows the bytes of the BatchCommands stream, [`mux`] decides which request goes into
//! which frame of which connection. Both are for drivers, which own the streams.

pub(crate) mod background;
pub(crate) mod batch;
pub(crate) mod cluster;
pub mod frame;
pub mod mux;
pub(crate) mod page;
pub(crate) mod probe;
pub(crate) mod send;
