//! What the fuzz targets do with their input. A target itself is one line; the code stands here so
//! that it is compiled, checked and read like any other.
//!
//! | module | holds |
//! |---|---|
//! | [`codec`] | laws of the key encoding, of ranges, and of the catalogue of requests |
//! | [`frame`] | laws of the frames of the BatchCommands stream |
//! | [`application`] | calls of an application over a [`world`] in which anything is answered |
//! | [`world`] | a driver in virtual time |
//! | [`server`] | who answers: a simulated cluster, as honest as the script lets it be |
//! | [`script`] | the input, taken byte by byte |
//!
//! A law that does not hold is a panic; so is an operation that never ends.

#![forbid(unsafe_code)]

pub mod application;
pub mod codec;
pub mod frame;
pub mod script;
pub mod server;
pub mod world;
