//! Transactions: what they keep in memory, and the protocols by which they read, lock and commit.

pub mod buffer;
pub(crate) mod commit;
pub(crate) mod key_error;
pub(crate) mod lock;
pub(crate) mod snapshot;
