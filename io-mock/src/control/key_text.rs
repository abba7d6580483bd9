//! A key as people write it: text, or hexadecimal digits where it is none.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A key in JSON: `"text"`, or `{"hex": "00ff"}` for what is no printable text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum KeyText {
    /// The bytes of a text.
    Text(String),
    /// Two digits a byte.
    Hex {
        /// The digits.
        hex: String,
    },
}

impl KeyText {
    /// The shortest way to write a key.
    pub fn of(key: &[u8]) -> Self {
        match std::str::from_utf8(key) {
            Ok(text) if !text.chars().any(char::is_control) => KeyText::Text(text.to_owned()),
            _ => KeyText::Hex {
                hex: key.iter().map(|byte| format!("{byte:02x}")).collect(),
            },
        }
    }

    /// The key; `None` if the digits are no bytes.
    pub fn to_bytes(&self) -> Option<Bytes> {
        let hex = match self {
            KeyText::Text(text) => return Some(Bytes::copy_from_slice(text.as_bytes())),
            KeyText::Hex { hex } => hex.as_bytes(),
        };
        let digit = |c: u8| {
            char::from(c)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        let bytes = hex.chunks(2).map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        });
        bytes.collect()
    }
}

impl From<&str> for KeyText {
    fn from(text: &str) -> Self {
        KeyText::of(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_as_they_went() {
        let every_byte: Vec<u8> = (0..=255).collect();
        for key in [&b""[..], b"text", "täxt".as_bytes(), b"a\0", &every_byte] {
            assert_eq!(KeyText::of(key).to_bytes().as_deref(), Some(key));
        }
        assert_eq!(
            serde_json::to_string(&KeyText::of(b"\0\xff")).unwrap(),
            r#"{"hex":"00ff"}"#
        );
        for wrong in ["0", "0g", "00f"] {
            let hex = wrong.to_owned();
            assert_eq!(KeyText::Hex { hex }.to_bytes(), None, "{wrong}");
        }
    }
}
