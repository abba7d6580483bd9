//! The core's clock on tokio's: nanoseconds since the driver started.

use std::time::Duration;

use tikv_core::driver::Instant;

/// Tells the time since it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: tokio::time::Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Clock {
            start: tokio::time::Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::ZERO + self.start.elapsed()
    }

    /// The instant on tokio's clock; one that this can't represent is far away.
    pub(crate) fn to_tokio(self, instant: Instant) -> tokio::time::Instant {
        const FAR: Duration = Duration::from_secs(86_400 * 365 * 30);
        let since_start = Duration::from_nanos(instant.as_nanos()).min(FAR);
        self.start + since_start
    }
}
