//! What stands behind the question mark, and what is escaped before it.

use bytes::Bytes;

/// The arguments of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    pub(super) fn of(uri: &http::Uri) -> Self {
        let pairs = uri.query().unwrap_or_default().split('&');
        let pairs = pairs.filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = String::from_utf8_lossy(&unescape(name)).into_owned();
            (name, unescape(value))
        });
        Query(pairs.collect())
    }

    /// An argument as bytes.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        let mut pairs = self.0.iter();
        let (_, value) = pairs.find(|(known, _)| known == name)?;
        Some(value)
    }

    /// An argument as text; empty, if it is not there.
    pub(super) fn text(&self, name: &str) -> &str {
        let bytes = self.bytes(name).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// All values of an argument.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let named = self.0.iter().filter(move |(known, _)| known == name);
        named.map(|(_, value)| &**value)
    }

    /// A key: bytes, or hexadecimal digits where the request says so.
    pub(super) fn key(&self, name: &str) -> Result<Bytes, String> {
        let bytes = self.bytes(name).unwrap_or_default();
        self.key_of(bytes)
    }

    /// The same for a key that stands elsewhere.
    pub(super) fn key_of(&self, bytes: &[u8]) -> Result<Bytes, String> {
        match self.text("format") {
            "hex" => hex(bytes)
                .map(Bytes::from)
                .ok_or_else(|| "encoding/hex: invalid byte".to_owned()),
            _ => Ok(Bytes::copy_from_slice(bytes)),
        }
    }
}

/// Takes escapes back: a percent sign with two digits is a byte, a plus sign a space.
pub(super) fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        rest = others;
        let escaped = match (first, others) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match (escaped, first) {
            (Some((high, low)), _) => {
                bytes.push(high << 4 | low);
                rest = &others[2..];
            }
            (None, b'+') => bytes.push(b' '),
            (None, plain) => bytes.push(*plain),
        }
    }
    bytes
}

fn digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

fn hex(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let pairs = digits.chunks_exact(2);
    pairs
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

/// A key in PD's form: hexadecimal digits, the great ones.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02X}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_bytes() {
        let uri = "http://h/p?key=%00a%2b+%zz%4&end_key=&format=hex&count"
            .parse()
            .unwrap();
        let query = Query::of(&uri);
        assert_eq!(query.bytes("key").unwrap(), b"\0a+ %zz%4");
        assert_eq!(query.bytes("end_key"), Some(&[][..]));
        assert_eq!(query.bytes("count"), Some(&[][..]));
        assert_eq!(query.bytes("other"), None);
        assert_eq!(query.key_of(b"00Ff"), Ok(Bytes::from_static(&[0, 0xff])));
        assert!(query.key_of(b"0").is_err() && query.key_of(b"0x").is_err());
        assert_eq!(to_hex(&[0, 0xff]), "00FF");
    }
}
