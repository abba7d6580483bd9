//! How raw data is kept, and what raw commands have in common.
//!
//! Stored keys are plain in API v1 and memcomparable in API v2, where a deletion leaves a mark. The
//! encodings of values with an expiry or a mark exist only as fields, because no client sees them.
//! API v2's order by causal timestamps is the order of the calls.

use bytes::Bytes;
use tikv_proto::errorpb;
use tikv_proto::kvrpcpb::{
    ApiVersion, Context, KvPair, RawBatchDeleteResponse, RawBatchPutResponse, RawCasResponse,
    RawChecksumResponse, RawDeleteRangeResponse, RawDeleteResponse, RawGetKeyTtlResponse,
    RawGetResponse, RawPutResponse,
};

use super::Cluster;
use super::api_version::{ApiCheck, Mode};
use super::failure::Failure;
use super::key;
use super::mvcc::engine::{ColumnFamily, RawValue};
use super::mvcc::error::MvccError;
use super::region::{Region, StoreId};
use super::region_checks::{Access, RegionError};

/// How raw data of this cluster is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    version: ApiVersion,
}

impl Format {
    pub(super) fn stored(self, user: &[u8]) -> Bytes {
        match self.version {
            ApiVersion::V2 => key::encode(user),
            ApiVersion::V1 | ApiVersion::V1ttl | ApiVersion::V3 => Bytes::copy_from_slice(user),
        }
    }

    /// An end that is not given stays open, though the empty key has an encoding.
    pub(super) fn stored_end(self, user: &[u8]) -> Bytes {
        if user.is_empty() {
            Bytes::new()
        } else {
            self.stored(user)
        }
    }

    pub(super) fn user(self, stored: &Bytes) -> Bytes {
        match self.version {
            ApiVersion::V2 => key::decode(stored).unwrap_or_else(|| stored.clone()),
            ApiVersion::V1 | ApiVersion::V1ttl | ApiVersion::V3 => stored.clone(),
        }
    }

    pub(super) fn has_ttl(self) -> bool {
        matches!(self.version, ApiVersion::V1ttl | ApiVersion::V2)
    }

    pub(super) fn cf(self, name: &str) -> Result<ColumnFamily, Failure> {
        match (self.version, name) {
            (_, "") => Ok(ColumnFamily::Default),
            (ApiVersion::V2, _) => {
                Err(text(format!("cf is deprecated in API V2, cf name: {name}")))
            }
            (_, "default") => Ok(ColumnFamily::Default),
            (_, "lock") => Ok(ColumnFamily::Lock),
            (_, "write") => Ok(ColumnFamily::Write),
            (_, _) => Err(text(format!("invalid cf name: {name}"))),
        }
    }
}

pub(super) fn text(text: impl Into<String>) -> Failure {
    Failure::Key(MvccError::Abort(text.into()))
}

pub(super) fn is_alive(value: &RawValue, now_ms: u64) -> bool {
    !value.deleted && (value.expires_at == 0 || value.expires_at > now_ms / 1000)
}

pub(super) fn expiry(now_ms: u64, ttl: u64) -> u64 {
    if ttl == 0 {
        0
    } else {
        (now_ms / 1000).saturating_add(ttl)
    }
}

impl Cluster {
    pub(super) fn raw_format(&self) -> Format {
        Format {
            version: self.config().api_version,
        }
    }

    pub(super) fn raw_check<'a>(
        &self,
        context: &'a Context,
        command: &'static str,
    ) -> ApiCheck<'a> {
        ApiCheck {
            storage: self.config().api_version,
            context,
            command,
            mode: Mode::Raw,
        }
    }

    /// Has the peer that a raw read is for get ready to serve it.
    pub(super) fn get_ready_for_raw(
        &mut self,
        store: StoreId,
        context: &Context,
    ) -> Result<(), Failure> {
        self.check_read_load(store, context)?;
        Ok(self.get_ready(store, context)?)
    }

    /// The region for a raw read, after its peer got ready.
    pub(super) fn raw_region(
        &self,
        store: StoreId,
        context: &Context,
    ) -> Result<&Region, RegionError> {
        self.check_region(store, context, Access::Read(None))
    }

    /// Reads a raw value of a region.
    pub(super) fn raw_alive(
        &self,
        now_ms: u64,
        store: StoreId,
        region: &Region,
        cf: ColumnFamily,
        stored: &Bytes,
    ) -> Result<Option<&RawValue>, Failure> {
        if !region.contains(stored) {
            let outside = self.reader(store, region).outside(stored);
            return Err(text(format!("unknown error \"{outside}\"")));
        }
        Ok(self
            .engine
            .on(store)
            .raw(cf, stored)
            .filter(|value| is_alive(value, now_ms)))
    }
}

/// A reply that tells a failure as a region error or as text.
pub(super) trait RawAnswer: Default {
    fn refuse(region_error: Option<Box<errorpb::Error>>, error: String) -> Self;
}

macro_rules! raw_answers {
    ($($answer:ident)*) => {
        $(impl RawAnswer for $answer {
            fn refuse(region_error: Option<Box<errorpb::Error>>, error: String) -> Self {
                // Some of them have nothing else to say.
                #[allow(clippy::needless_update)]
                $answer { region_error, error, ..$answer::default() }
            }
        })*
    };
}

raw_answers! {
    RawGetResponse RawGetKeyTtlResponse RawPutResponse RawBatchPutResponse RawDeleteResponse
    RawBatchDeleteResponse RawDeleteRangeResponse RawCasResponse RawChecksumResponse
}

/// The reply, whatever it is.
pub(super) fn answer<A: RawAnswer>(result: Result<A, Failure>) -> A {
    result.unwrap_or_else(|failure| match failure {
        Failure::Region(error) => A::refuse(Some(error), String::new()),
        Failure::Key(error) => A::refuse(None, error.to_key_error().abort),
    })
}

/// Replies with pairs carry a failure in a pair of its own.
pub(super) fn pairs(
    result: Result<Vec<KvPair>, Failure>,
) -> (Option<Box<errorpb::Error>>, Vec<KvPair>) {
    match result {
        Ok(pairs) => (None, pairs),
        Err(Failure::Region(error)) => (Some(error), Vec::new()),
        Err(Failure::Key(error)) => {
            let error = Some(Box::new(error.to_key_error()));
            (
                None,
                vec![KvPair {
                    error,
                    ..KvPair::default()
                }],
            )
        }
    }
}
