//! What the tests of PD's parts share.

use tikv_proto::pdpb::{RequestHeader, ResponseHeader};

use super::Pd;
use crate::cluster::Config;

/// A PD that knows nothing yet.
pub(super) fn pd() -> Pd {
    Pd::new(&Config::default())
}

/// The header of a client of this cluster.
pub(super) fn header() -> Option<RequestHeader> {
    Some(RequestHeader {
        cluster_id: 1,
        ..RequestHeader::default()
    })
}

/// The error in a response's header; empty if there is none.
pub(super) fn message(header: &Option<ResponseHeader>) -> String {
    let error = header.as_ref().and_then(|header| header.error.as_ref());
    error.map(|error| error.message.clone()).unwrap_or_default()
}
