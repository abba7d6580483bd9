//! `grpc.health.v1.Health/Check`: every server that answers at all is serving. One that is
//! paused does not answer.

use bytes::Bytes;

/// The path of the check.
pub(super) const CHECK: &str = "/grpc.health.v1.Health/Check";

/// A `HealthCheckResponse` with status SERVING, which is field 1 with value 1.
pub(super) fn serving() -> Bytes {
    Bytes::from_static(&[0x08, 0x01])
}
