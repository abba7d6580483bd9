//! Laws of the memcomparable encoding, of ranges of keys, and of the catalogue of requests.

use bytes::Bytes;
use tikv_core::wire::{Command, decode, decode_prefix, encode, encode_request, encoded_len};
use tikv_core::{Key, KeyRange};

use crate::script::Script;

/// What is decoded is what was encoded, order is kept, and nothing that is no encoding passes.
pub fn memcomparable(data: &[u8]) {
    let encoded = encode(data);
    assert_eq!(encoded.len(), encoded_len(data.len()));
    assert_eq!(decode(&encoded).as_deref(), Ok(data));

    if let Ok(plain) = decode(data) {
        assert_eq!(encode(&plain), data, "two encodings of one key");
    }
    if let Ok((plain, rest)) = decode_prefix(data) {
        let used = data.len() - rest.len();
        assert_eq!(encode(&plain), data[..used]);
    }

    let (a, b) = data.split_at(data.len() / 2);
    assert_eq!(a.cmp(b), encode(a).cmp(&encode(b)), "order is lost");
}

/// Ranges hold what they say they hold.
pub fn ranges(data: &[u8]) {
    let mut script = Script::new(data);
    let mut key = || {
        let len = usize::from(script.byte_or_zero()) % 12;
        Key::from(script.take(len))
    };
    let (a, b, c, d, probe) = (key(), key(), key(), key(), key());

    let prefix = KeyRange::prefix(&a);
    assert_eq!(prefix.contains(&probe), probe.starts_with(&a));
    assert!(a.next() > a);

    let (x, y) = (KeyRange::from(a.clone()..b), KeyRange::new(c, Some(d)));
    let both = x.intersect(&y);
    assert_eq!(
        both.contains(&probe),
        x.contains(&probe) && y.contains(&probe)
    );
    assert!(!both.is_empty() || !both.contains(&probe));
    let open = KeyRange::from(a.clone()..);
    assert_eq!(open.contains(&probe), probe >= a);
    let _ = format!("{x:?} {prefix:?} {probe}");
}

/// A request that could be read is read again from what it is written as.
pub fn catalogue(data: &[u8]) {
    let Some((&arm, body)) = data.split_first() else {
        return;
    };
    let body = Bytes::copy_from_slice(body);
    let Some(Ok(command)) = Command::decode_batched(u32::from(arm) % 48, body.clone()) else {
        return;
    };
    let written = encode_request(None, &command);
    let read = Command::decode_request(command.path(), written);
    assert_eq!(read, Some(Ok(command.clone())));

    if let Ok(response) = command.decode_response(body) {
        let again = command.decode_response(response.encode());
        assert_eq!(again, Ok(response));
    }
}
