//! Memcomparable keys: how a user key becomes the key that regions, locks and versions are ordered by.
//!
//! A [`Key`] is always the encoded form; the user's form is computed when an answer needs it.
//! Raw data of API v1 uses plain bytes and never passes through here. Nothing here can fail:
//! bytes that are no encoding decode to themselves.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of user data in one group.
const GROUP: usize = 8;
/// Marker of a full group; a padded one has the number of padding bytes subtracted.
const MARKER: u8 = 0xff;

/// A memcomparable-encoded key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(Bytes);

impl Key {
    /// Encodes a user key.
    pub fn from_user(user: &[u8]) -> Self {
        Key(encode(user))
    }

    /// Takes bytes that are encoded already.
    pub fn from_encoded(encoded: Bytes) -> Self {
        Key(encoded)
    }

    /// The encoded bytes.
    pub fn encoded(&self) -> &Bytes {
        &self.0
    }

    /// The user's key.
    pub fn to_user(&self) -> Bytes {
        decode(&self.0).unwrap_or_else(|| self.0.clone())
    }

    /// Whether this is the encoding of `user`, without building either form.
    pub fn is_user(&self, user: &[u8]) -> bool {
        self.0.len() == encoded_len(user.len()) && self.0 == encode(user)
    }

    /// This key followed by a version, as a key of the write and default column families.
    pub fn with_ts(&self, ts: u64) -> Bytes {
        let mut out = BytesMut::with_capacity(self.0.len() + 8);
        out.extend_from_slice(&self.0);
        out.put_u64(!ts);
        out.freeze()
    }
}

/// Length of the encoding of `len` user bytes.
pub fn encoded_len(len: usize) -> usize {
    (len / GROUP + 1) * (GROUP + 1)
}

/// Encodes user bytes so that the order of encodings is the order of keys.
pub fn encode(user: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(encoded_len(user.len()));
    let mut groups = user.chunks_exact(GROUP);
    for group in &mut groups {
        out.extend_from_slice(group);
        out.put_u8(MARKER);
    }
    let rest = groups.remainder();
    let padding = GROUP - rest.len();
    out.extend_from_slice(rest);
    out.put_bytes(0, padding);
    // `padding` is at most 8, so the cast and the subtraction are exact.
    out.put_u8(MARKER - padding as u8);
    out.freeze()
}

/// Decodes an encoding; `None` if the bytes are not exactly one.
pub fn decode(encoded: &[u8]) -> Option<Bytes> {
    let mut out = BytesMut::with_capacity(encoded.len());
    let mut rest = encoded;
    while rest.len() > GROUP {
        let (group, tail) = rest.split_at(GROUP + 1);
        let padding = usize::from(MARKER - group[GROUP]);
        if padding == 0 {
            out.extend_from_slice(&group[..GROUP]);
            rest = tail;
            continue;
        }
        if padding > GROUP || !tail.is_empty() {
            return None;
        }
        let (data, zeros) = group[..GROUP].split_at(GROUP - padding);
        if zeros.iter().any(|&b| b != 0) {
            return None;
        }
        out.extend_from_slice(data);
        return Some(out.freeze());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_have_the_known_form() {
        for (user, encoded) in [
            (&b""[..], &[0, 0, 0, 0, 0, 0, 0, 0, 247][..]),
            (&[1, 2, 3], &[1, 2, 3, 0, 0, 0, 0, 0, 250]),
            (&[1, 2, 3, 0], &[1, 2, 3, 0, 0, 0, 0, 0, 251]),
            (
                &[1, 2, 3, 4, 5, 6, 7, 8],
                &[1, 2, 3, 4, 5, 6, 7, 8, 255, 0, 0, 0, 0, 0, 0, 0, 0, 247],
            ),
        ] {
            assert_eq!(encode(user), encoded, "{user:?}");
            assert_eq!(decode(encoded).as_deref(), Some(user), "{user:?}");
            assert!(Key::from_user(user).is_user(user));
        }
    }

    #[test]
    fn what_is_no_encoding_does_not_decode() {
        for bytes in [
            &b""[..],
            b"abc",
            &[1, 2, 3, 4, 5, 6, 7, 8, 255],
            &[1, 2, 3, 9, 0, 0, 0, 0, 250],
            &[0, 0, 0, 0, 0, 0, 0, 0, 247, 1],
            &[0, 0, 0, 0, 0, 0, 0, 0, 12],
        ] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }
}
