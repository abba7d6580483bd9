//! The greatest timestamp a store has served: what makes calculated commit versions safe.
//!
//! It never falls while the store runs, ignores the greatest possible version, and refuses values
//! that PD cannot have given out.

use super::error::MvccError;

/// What happens when a request brings a timestamp beyond PD's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InvalidMaxTs {
    /// The request fails with a region error that has only a message. A real server's default is
    /// to end its process here.
    #[default]
    Refuse,
    /// The request goes on.
    Allow,
}

/// The greatest timestamp a store has served.
#[derive(Clone, Debug, Default)]
pub struct MaxTs {
    value: u64,
    /// Values up to here are taken without a question. Set before each command.
    pub limit: u64,
    /// What PD has given out so far, for requests that are held to it exactly.
    pub tso: u64,
    /// What happens above the limit.
    pub action: InvalidMaxTs,
}

impl MaxTs {
    /// The greatest timestamp so far.
    pub fn get(&self) -> u64 {
        self.value
    }

    /// Raises it for a read, which may run ahead of PD by the allowed drift.
    pub fn raise(&mut self, ts: u64) -> Result<(), MvccError> {
        self.raise_within(ts, self.limit)
    }

    /// Raises it for a request that must not be ahead of PD at all.
    pub fn raise_exact(&mut self, ts: u64) -> Result<(), MvccError> {
        self.raise_within(ts, self.tso)
    }

    fn raise_within(&mut self, ts: u64, limit: u64) -> Result<(), MvccError> {
        if ts == u64::MAX {
            return Ok(());
        }
        if ts > limit && self.action == InvalidMaxTs::Refuse {
            return Err(MvccError::InvalidMaxTs(format!(
                "invalid max_ts update: {ts} exceeds the limit {limit}"
            )));
        }
        self.value = self.value.max(ts);
        Ok(())
    }
}
