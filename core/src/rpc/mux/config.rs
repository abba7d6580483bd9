//! The bounds of a multiplexer.

use std::time::Duration;

/// The bounds of a [`Mux`](super::Mux).
#[derive(Clone, Debug)]
pub struct MuxConfig {
    /// Connections to the address, at least 1. Default 4 (client-go: `grpc-connection-count`).
    pub connections: usize,
    /// Requests that may wait to be sent. Default 16384.
    pub queue_entries_max: usize,
    /// Bytes of the requests that may wait to be sent; a single larger one may, alone. Default
    /// 64 MiB.
    pub queue_bytes_max: usize,
    /// Requests in one frame, at least 1. Default 128 (client-go: `max-batch-size`).
    pub frame_entries_max: usize,
    /// Bytes of the requests in one frame; a single larger one goes alone. Default 4 MiB.
    pub frame_bytes_max: usize,
    /// Requests sent and not answered per connection, at least 1; those of high priority go
    /// beyond it. Default no limit (client-go: `max-concurrency-request-limit`).
    pub in_flight_max: usize,
    /// How long a cancelled request that was sent keeps its place if no answer comes. Default
    /// 90 s.
    pub abandoned_ttl: Duration,
}

impl Default for MuxConfig {
    fn default() -> Self {
        MuxConfig {
            connections: 4,
            queue_entries_max: 16384,
            queue_bytes_max: 64 << 20,
            frame_entries_max: 128,
            frame_bytes_max: 4 << 20,
            in_flight_max: usize::MAX,
            abandoned_ttl: Duration::from_secs(90),
        }
    }
}
