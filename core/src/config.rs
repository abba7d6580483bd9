//! The options of one client. Nothing here is process-wide: two clients share nothing.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::error::{Error, Result};

/// The options of one client.
///
/// ```
/// use std::time::Duration;
/// use tikv_core::Config;
///
/// let mut config = Config::default();
/// config.pd_timeout = Duration::from_secs(1);
/// config.validate()?;
/// # Ok::<(), tikv_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// How long one request to PD may take. Default 3 s.
    pub pd_timeout: Duration,
    /// How long connecting may take in all. Default 10 s.
    pub connect_timeout: Duration,
    /// How long a point request to TiKV may take. Default 30 s (client-go: `ReadTimeoutShort`).
    pub request_timeout: Duration,
    /// How long a request for many rows may take. Default 60 s (client-go: `ReadTimeoutMedium`).
    pub range_timeout: Duration,
    /// How long TiKV may work on a write before it drops it. It must stay below
    /// `request_timeout`: a write that TiKV executes after the client gave it up is what makes an
    /// outcome undetermined. Default 20 s.
    pub write_execution_limit: Duration,
    /// How long a cached region may stay unused before it is asked for again. Default 600 s, plus
    /// up to `region_cache_jitter` (client-go: `RegionCacheTTL`).
    pub region_cache_ttl: Duration,
    /// The largest random part of a region's time in the cache. Default 60 s.
    pub region_cache_jitter: Duration,
    /// By how much every budget of waiting is multiplied. Default 2 (client-go: `BackOffWeight`).
    pub backoff_weight: NonZeroU32,
    /// How often the timestamp is fetched by which locks are judged expired. Default 2 s.
    pub low_resolution_interval: Duration,
    /// How long a lock lives that is kept alive by heartbeats. Default 20 s
    /// (client-go: `ManagedLockTTL`).
    pub managed_lock_ttl: Duration,
    /// A transaction of more bytes keeps its locks alive by heartbeats while it commits. Default
    /// 32 MiB (client-go: `TTLRefreshedTxnSize`).
    pub heartbeat_bytes: usize,
    /// Up to which size of keys and values the mutations of one region travel in one request.
    /// Default 16 KiB (client-go: `TxnCommitBatchSize`).
    pub commit_batch_bytes: usize,
    /// How many requests of one commit may be under way at once. Default 128.
    pub commit_concurrency: usize,
    /// The age at which a transaction may no longer commit. Default 24 h.
    pub max_transaction_age: Duration,
    /// The largest key and value together in a transaction, in bytes. Default 6 MiB, below the
    /// 8 MiB that TiKV takes in one Raft entry.
    pub max_entry_bytes: usize,
    /// All keys and values of a transaction together, in bytes. Default 100 MiB.
    pub max_transaction_bytes: usize,
    /// How many rows a page of a scan has. Default 256.
    pub scan_page_size: u32,
    /// How many requests of one raw batch call may be under way at once. Default 16.
    pub raw_concurrency: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            pd_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            range_timeout: Duration::from_secs(60),
            write_execution_limit: Duration::from_secs(20),
            region_cache_ttl: Duration::from_secs(600),
            region_cache_jitter: Duration::from_secs(60),
            backoff_weight: NonZeroU32::new(2).unwrap_or(NonZeroU32::MIN),
            low_resolution_interval: Duration::from_secs(2),
            managed_lock_ttl: Duration::from_secs(20),
            heartbeat_bytes: 32 * 1024 * 1024,
            commit_batch_bytes: 16 * 1024,
            commit_concurrency: 128,
            max_transaction_age: Duration::from_secs(24 * 3600),
            max_entry_bytes: 6 * 1024 * 1024,
            max_transaction_bytes: 100 * 1024 * 1024,
            scan_page_size: 256,
            raw_concurrency: 16,
        }
    }
}

impl Config {
    /// Checks that the options make sense together.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] that names the option.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("pd_timeout", self.pd_timeout),
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("range_timeout", self.range_timeout),
            ("write_execution_limit", self.write_execution_limit),
            ("region_cache_ttl", self.region_cache_ttl),
            ("low_resolution_interval", self.low_resolution_interval),
            ("managed_lock_ttl", self.managed_lock_ttl),
            ("max_transaction_age", self.max_transaction_age),
        ];
        for (name, value) in positive {
            if value < Duration::from_millis(1) {
                return Err(Error::invalid_argument(format!(
                    "{name} must be at least 1 ms"
                )));
            }
        }
        let counts = [
            ("commit_batch_bytes", self.commit_batch_bytes),
            ("commit_concurrency", self.commit_concurrency),
            ("max_entry_bytes", self.max_entry_bytes),
            ("max_transaction_bytes", self.max_transaction_bytes),
            ("scan_page_size", self.scan_page_size as usize),
            ("raw_concurrency", self.raw_concurrency),
        ];
        for (name, value) in counts {
            if value == 0 {
                return Err(Error::invalid_argument(format!("{name} must not be zero")));
            }
        }
        if self.write_execution_limit >= self.request_timeout {
            return Err(Error::invalid_argument(
                "write_execution_limit must be below request_timeout",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_nonsense_is_named() {
        assert_eq!(Config::default().validate(), Ok(()));
        let mut config = Config::default();
        config.write_execution_limit = config.request_timeout;
        assert!(
            config
                .validate()
                .unwrap_err()
                .to_string()
                .contains("write_execution_limit")
        );
        let config = Config {
            raw_concurrency: 0,
            ..Config::default()
        };
        assert!(
            config
                .validate()
                .unwrap_err()
                .to_string()
                .contains("raw_concurrency")
        );
    }
}
