//! How the caller's keys look to PD.
//!
//! TiKV stores transactional keys memcomparable-encoded, and PD's region bounds are bounds of what
//! is stored; raw keys are stored as they are. Requests to TiKV carry the caller's keys in both
//! cases. (client-go: `internal/apicodec` and `internal/locate/pd_codec.go`; API v2 prefixes are
//! not here yet.)

use bytes::Bytes;

use crate::codec;
use crate::error::{Error, Result};
use crate::key::{Key, KeyRange};

/// Which of TiKV's two interfaces a client speaks; a cluster's data is one or the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyMode {
    /// Transactions: region bounds are encoded.
    Txn,
    /// Raw key-value: region bounds are plain.
    Raw,
}

impl KeyMode {
    /// A key, or a bound, as PD has it. The empty key stays empty: it is a bound that is none.
    pub(crate) fn encode(self, key: &Key) -> Bytes {
        match self {
            KeyMode::Raw => key.as_bytes().clone(),
            KeyMode::Txn if key.is_empty() => Bytes::new(),
            KeyMode::Txn => codec::encode(key),
        }
    }

    /// A key to look up at PD. Unlike a bound, the empty key is a key like any other, and it is
    /// before all others in both encodings.
    fn decode(self, bound: &Bytes) -> Result<Key> {
        match self {
            KeyMode::Raw => Ok(bound.clone().into()),
            KeyMode::Txn if bound.is_empty() => Ok(Key::EMPTY),
            KeyMode::Txn => codec::decode(bound).map(Key::from).map_err(|error| {
                Error::protocol(format!(
                    "region bound {} is no encoded key: {error}; is the cluster used raw?",
                    bound.escape_ascii()
                ))
            }),
        }
    }

    /// The range of a region as the caller sees it.
    pub(crate) fn decode_range(self, start: &Bytes, end: &Bytes) -> Result<KeyRange> {
        let start = self.decode(start)?;
        let end = if end.is_empty() {
            None
        } else {
            Some(self.decode(end)?)
        };
        Ok(KeyRange::new(start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_survive_the_way_to_pd_and_back() {
        for mode in [KeyMode::Txn, KeyMode::Raw] {
            for (start, end) in [("", ""), ("", "b"), ("a", ""), ("a", "b")] {
                let range =
                    mode.decode_range(&mode.encode(&start.into()), &mode.encode(&end.into()));
                let end = (!end.is_empty()).then(|| Key::from(end));
                assert_eq!(range, Ok(KeyRange::new(start, end)), "{mode:?}");
            }
        }
    }

    #[test]
    fn a_raw_bound_is_refused_in_a_transactional_cluster() {
        let error = KeyMode::Txn.decode_range(&Bytes::from_static(b"raw"), &Bytes::new());
        assert!(matches!(error, Err(Error::Protocol { .. })));
    }
}
