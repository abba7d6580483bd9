//! The memcomparable encoding: bytes whose order is the order of what they encode, and whose end
//! can be found.
//!
//! TiKV stores transactional keys in it, so PD's region bounds are in it too (client-go:
//! `codec.EncodeBytes`). Groups of eight bytes, each followed by a marker that says how many of
//! them are padding (`0xFF` minus the count).

use bytes::{BufMut, Bytes, BytesMut};

const GROUP: usize = 8;
const MARKER_FULL: u8 = 0xFF;

/// Why bytes are no memcomparable encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The last group is incomplete.
    #[error("the encoded key ends inside a group of nine bytes")]
    Truncated,
    /// A marker claims more padding than a group has.
    #[error("the encoded key has an impossible marker {0:#04x}")]
    BadMarker(u8),
    /// Padding that is not zero.
    #[error("the encoded key has padding that is not zero")]
    BadPadding,
    /// Bytes after the last group.
    #[error("the encoded key is followed by {0} more bytes")]
    Trailing(usize),
}

/// How long `len` bytes are once encoded.
pub const fn encoded_len(len: usize) -> usize {
    (len / GROUP + 1) * (GROUP + 1)
}

/// Encodes `bytes`.
pub fn encode(bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(encoded_len(bytes.len()));
    let mut groups = bytes.chunks_exact(GROUP);
    for group in &mut groups {
        out.put_slice(group);
        out.put_u8(MARKER_FULL);
    }
    let rest = groups.remainder();
    let padding = GROUP - rest.len();
    out.put_slice(rest);
    out.put_bytes(0, padding);
    out.put_u8(MARKER_FULL - padding as u8);
    out.freeze()
}

/// Decodes bytes that are one encoding and nothing more.
pub fn decode(encoded: &[u8]) -> Result<Bytes, DecodeError> {
    let (bytes, rest) = decode_prefix(encoded)?;
    match rest.len() {
        0 => Ok(bytes),
        more => Err(DecodeError::Trailing(more)),
    }
}

/// Decodes the encoding that `encoded` begins with; returns what follows it as well.
pub fn decode_prefix(encoded: &[u8]) -> Result<(Bytes, &[u8]), DecodeError> {
    let mut out = BytesMut::with_capacity(encoded.len() / (GROUP + 1) * GROUP);
    let mut rest = encoded;
    loop {
        let Some((group, after)) = rest.split_at_checked(GROUP + 1) else {
            return Err(DecodeError::Truncated);
        };
        rest = after;
        let marker = group[GROUP];
        let padding = usize::from(MARKER_FULL - marker);
        if padding > GROUP {
            return Err(DecodeError::BadMarker(marker));
        }
        let (data, zeros) = group[..GROUP].split_at(GROUP - padding);
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(DecodeError::BadPadding);
        }
        out.put_slice(data);
        if padding > 0 {
            return Ok((out.freeze(), rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    #[test]
    fn known_encodings() {
        let table: [(&[u8], &[u8]); 4] = [
            (b"", &[0, 0, 0, 0, 0, 0, 0, 0, 247]),
            (&[1, 2, 3], &[1, 2, 3, 0, 0, 0, 0, 0, 250]),
            (
                &[1, 2, 3, 4, 5, 6, 7, 8],
                &[1, 2, 3, 4, 5, 6, 7, 8, 255, 0, 0, 0, 0, 0, 0, 0, 0, 247],
            ),
            (
                &[1, 2, 3, 4, 5, 6, 7, 8, 9],
                &[1, 2, 3, 4, 5, 6, 7, 8, 255, 9, 0, 0, 0, 0, 0, 0, 0, 248],
            ),
        ];
        for (plain, encoded) in table {
            assert_eq!(encode(plain), encoded);
            assert_eq!(encoded_len(plain.len()), encoded.len());
            assert_eq!(decode(encoded).unwrap(), plain);
        }
    }

    #[test]
    fn what_is_no_encoding_is_refused() {
        let table: [(&[u8], DecodeError); 5] = [
            (&[], DecodeError::Truncated),
            (&[1, 2, 3, 4, 5, 6, 7, 8], DecodeError::Truncated),
            (&[1, 2, 3, 4, 5, 6, 7, 8, 255], DecodeError::Truncated),
            (&[1, 2, 3, 4, 5, 6, 7, 8, 246], DecodeError::BadMarker(246)),
            (&[1, 2, 3, 4, 5, 6, 7, 8, 250], DecodeError::BadPadding),
        ];
        for (bytes, error) in table {
            assert_eq!(decode(bytes), Err(error), "{bytes:?}");
        }
        assert_eq!(
            decode(&[0, 0, 0, 0, 0, 0, 0, 0, 247, 1]),
            Err(DecodeError::Trailing(1))
        );
    }

    quickcheck! {
        fn decode_undoes_encode(bytes: Vec<u8>, tail: Vec<u8>) -> bool {
            let mut encoded = encode(&bytes).to_vec();
            encoded.extend_from_slice(&tail);
            decode_prefix(&encoded) == Ok((bytes.into(), &tail[..]))
        }

        fn order_is_kept(a: Vec<u8>, b: Vec<u8>) -> bool {
            a.cmp(&b) == encode(&a).cmp(&encode(&b))
        }

        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) -> bool {
            match decode(&bytes) {
                Ok(plain) => encode(&plain) == bytes,
                Err(_) => true,
            }
        }
    }
}
