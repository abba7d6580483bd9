//! Support for the tests that need more than one crate.

pub mod conformance;
pub mod golden;
pub mod mutations;
pub mod seeds;
