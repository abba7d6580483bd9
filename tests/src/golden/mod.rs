//! Recorded answers of a real TiKV, replayed against the simulated cluster.
//!
//! A recording is a file of scenarios, one JSON object a line, perhaps compressed. Each scenario is
//! a list of requests with the answers that a real server gave; keys and timestamps are its own, so
//! that each can be replayed alone on a fresh cluster of one region.
//!
//! | subject | where |
//! |---|---|
//! | the form of a file | [`scenario`] |
//! | what is cleared before answers are compared | [`normal`] |
//! | sending the requests and comparing | [`replay`] |
//! | what was special about the server | [`circumstances`] |
//!
//! Used by the program `golden`, for whole recordings, and by the test of that name, for those that
//! are kept in the repository.

pub mod circumstances;
pub mod normal;
pub mod replay;
pub mod scenario;
