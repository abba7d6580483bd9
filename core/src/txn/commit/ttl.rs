//! How long a lock lives that its prewrite leaves behind.

use std::time::Duration;

/// The least a lock lives (client-go: `defaultLockTTL`).
const MIN_TTL_MS: u64 = 3_000;
/// Milliseconds per square root of a mebibyte (client-go: `ttlFactor`).
const TTL_FACTOR: f64 = 6_000.0;
/// From which size on a transaction's size counts.
const SIZE_THRESHOLD: usize = 16 * 1024;
const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// The TTL of the locks of a transaction of `size` bytes that began `elapsed` ago, in
/// milliseconds: by the size, as a large one takes longer, but no more than `managed`, beyond
/// which a heartbeat keeps it alive.
pub(crate) fn lock_ttl_ms(size: usize, elapsed: Duration, managed: Duration) -> u64 {
    let managed_ms = millis(managed).max(MIN_TTL_MS);
    let by_size = if size < SIZE_THRESHOLD {
        MIN_TTL_MS
    } else {
        let ms = TTL_FACTOR * (size as f64 / MEBIBYTE).sqrt();
        (ms as u64).clamp(MIN_TTL_MS, managed_ms)
    };
    by_size.saturating_add(millis(elapsed))
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_lives_by_its_transactions_size_and_age() {
        const MIB: usize = 1024 * 1024;
        let managed = Duration::from_secs(20);
        for (size, elapsed_ms, expected) in [
            (0, 0, 3_000),
            (16 * 1024 - 1, 0, 3_000),
            (64 * 1024, 0, 3_000),
            (MIB, 0, 6_000),
            (4 * MIB, 0, 12_000),
            (400 * MIB, 0, 20_000),
            (MIB, 700, 6_700),
        ] {
            let ttl = lock_ttl_ms(size, Duration::from_millis(elapsed_ms), managed);
            assert_eq!(ttl, expected, "{size} bytes, {elapsed_ms} ms old");
        }
    }
}
