//! Which keys a request may name, given how the stores keep keys and which API it speaks.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{ApiVersion, Context};

use super::mvcc::error::MvccError;
use super::mvcc::reader::hex;

/// The longest encoded key.
pub const KEY_LEN_MAX: usize = 8 * 1024;

/// Whether a request is transactional or raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Transactional.
    Txn,
    /// Raw.
    Raw,
}

/// How stores keep keys, and the name of the command that asks.
#[derive(Clone, Copy, Debug)]
pub struct ApiCheck<'a> {
    /// How stores keep keys.
    pub storage: ApiVersion,
    /// The request's context.
    pub context: &'a Context,
    /// What the server calls the command.
    pub command: &'static str,
    /// Transactional or raw.
    pub mode: Mode,
}

impl ApiCheck<'_> {
    /// The first bytes allowed, `None` for all.
    fn allowed(&self) -> Result<Option<&'static [u8]>, String> {
        let requested = self.context.api_version();
        Ok(match (self.storage, requested, self.mode) {
            (ApiVersion::V1, ApiVersion::V1, _) => None,
            // Clients do not know whether there is TTL.
            (ApiVersion::V1ttl, ApiVersion::V1, Mode::Raw) => None,
            (ApiVersion::V2, ApiVersion::V1, Mode::Txn) => Some(b"mt"),
            (ApiVersion::V2, ApiVersion::V2, Mode::Txn) => Some(b"x"),
            (ApiVersion::V2, ApiVersion::V2, Mode::Raw) => Some(b"r"),
            (storage, _, _) => {
                return Err(format!(
                    "ApiVersionNotMatched {{ cmd: {}, storage_api_version: {storage:?}, \
                     req_api_version: {requested:?} }}",
                    self.command
                ));
            }
        })
    }

    /// Checks single keys, by their first byte.
    pub fn keys<'k>(&self, keys: impl IntoIterator<Item = &'k [u8]>) -> Result<(), ApiError> {
        let Some(allowed) = self.allowed().map_err(ApiError)? else {
            return Ok(());
        };
        for key in keys {
            if !key.first().is_some_and(|first| allowed.contains(first)) {
                return Err(ApiError(format!(
                    "InvalidKeyMode {{ cmd: {}, storage_api_version: {:?}, key: {:?} }}",
                    self.command,
                    self.storage,
                    hex(key)
                )));
            }
        }
        Ok(())
    }

    /// Checks a range; where keys have a first byte of their own both ends must be given and stay
    /// within it.
    pub fn range(&self, start: &[u8], end: &[u8]) -> Result<(), ApiError> {
        let Some(allowed) = self.allowed().map_err(ApiError)? else {
            return Ok(());
        };
        let inside = match (start.first(), end.first()) {
            (Some(first), Some(last)) if allowed.contains(first) => {
                first == last || (first.checked_add(1) == Some(*last) && end.len() == 1)
            }
            _ => false,
        };
        if inside {
            return Ok(());
        }
        let bound = |key: &[u8]| if key.is_empty() { None } else { Some(hex(key)) };
        Err(ApiError(format!(
            "InvalidKeyRangeMode {{ cmd: {}, storage_api_version: {:?}, range: ({:?}, {:?}) }}",
            self.command,
            self.storage,
            bound(start),
            bound(end)
        )))
    }
}

/// A request that names keys it may not name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError(pub String);

impl From<ApiError> for MvccError {
    fn from(error: ApiError) -> Self {
        MvccError::Abort(format!("Error({})", error.0))
    }
}

impl From<ApiError> for super::failure::Failure {
    fn from(error: ApiError) -> Self {
        super::failure::Failure::Key(error.into())
    }
}

/// Refuses a key that is too long when encoded.
pub fn check_key_len(encoded: &Bytes) -> Result<(), ApiError> {
    if encoded.len() > KEY_LEN_MAX {
        return Err(ApiError(format!(
            "KeyTooLarge {{ size: {}, limit: {KEY_LEN_MAX} }}",
            encoded.len()
        )));
    }
    Ok(())
}
