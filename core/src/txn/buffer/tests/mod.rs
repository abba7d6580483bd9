//! Tests of the buffer as a whole. `model` compares with a map that copies itself, the others
//! carry over client-go's.

mod iterators;
mod memdb;
mod model;
mod random;
mod snapshots;
mod stages;
mod unions;

use super::*;

/// `i` as a key of four bytes.
fn n(i: u32) -> [u8; 4] {
    i.to_be_bytes()
}

/// Opens a stage and writes `i + base` to each key `i` of a range.
fn fill(buffer: &mut MemBuffer, keys: std::ops::Range<u32>, base: u32) -> StageHandle {
    let stage = buffer.staging();
    for i in keys {
        buffer.set(&n(i), &n(i + base)).unwrap();
    }
    stage
}

/// A buffer that holds `i` for each `i` below `count`.
fn filled(count: u32) -> MemBuffer {
    let mut buffer = MemBuffer::new();
    let stage = fill(&mut buffer, 0..count, 0);
    buffer.release(stage).unwrap();
    buffer
}

/// Checks that the buffer holds exactly these pairs, by gets and by iterators both ways.
fn check_pairs(buffer: &MemBuffer, expected: impl Iterator<Item = (u32, u32)>) {
    let expected: Vec<([u8; 4], [u8; 4])> = expected.map(|(k, v)| (n(k), n(v))).collect();
    for (key, value) in &expected {
        assert_eq!(buffer.get(key).unwrap().unwrap(), value.as_slice());
    }
    let pairs = |entry: Entry<'_>| {
        let key: [u8; 4] = entry.key().try_into().unwrap();
        let value: [u8; 4] = entry.value().unwrap().try_into().unwrap();
        (key, value)
    };
    assert_eq!(buffer.iter(..).map(pairs).collect::<Vec<_>>(), expected);
    let mut backwards: Vec<_> = buffer.iter(..).rev().map(pairs).collect();
    backwards.reverse();
    assert_eq!(backwards, expected);
}

fn keys<'a>(iter: impl Iterator<Item = Entry<'a>>) -> Vec<&'a [u8]> {
    iter.map(|entry| entry.key()).collect()
}

fn ten_digits(i: u32) -> String {
    format!("{i:010}")
}
