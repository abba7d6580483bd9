//! Versions, locks and the rules between them: Percolator as TiKV runs it, one key at a time.
//!
//! Nothing here knows of regions' leaders, of requests or of time; a command brings a [`Work`] and
//! gets changes back. Applying them is the caller's business.
//!
//! [`Work`]: changes::Work

pub mod changes;
pub mod debug;
pub mod ending;
pub mod engine;
pub mod error;
pub mod last_change;
pub mod lock;
pub mod max_ts;
pub mod past;
pub mod pessimistic;
pub mod prewrite;
pub mod read;
pub mod reader;
pub mod shared_order;
pub mod status;
pub mod write_record;
