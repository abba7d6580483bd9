//! Many random keys, and a map to compare with.

use std::collections::BTreeMap;

use super::*;

/// A generator of numbers for what needs many of them.
fn random() -> impl FnMut(u64) -> u64 {
    let mut state = 42_u64;
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

fn random_bytes(random: &mut impl FnMut(u64) -> u64, len_max: u64) -> Vec<u8> {
    let len = random(len_max) + 1;
    (0..len).map(|_| random(256) as u8).collect()
}

type Golden = BTreeMap<Vec<u8>, Vec<u8>>;

fn check_consistent(buffer: &MemBuffer, golden: &Golden) {
    assert_eq!(buffer.len(), golden.len());
    assert_eq!(
        buffer.size(),
        golden.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>()
    );
    let pair = |entry: Entry<'_>| (entry.key().to_vec(), entry.value().unwrap().to_vec());
    assert!(buffer.iter(..).map(pair).eq(golden.clone()));
    assert!(
        buffer
            .iter(..)
            .rev()
            .map(pair)
            .eq(golden.clone().into_iter().rev())
    );
    let mut before = None;
    for (key, value) in golden {
        assert_eq!(buffer.get_ref(key).unwrap(), Some(value.as_slice()));
        assert_eq!(buffer.iter(key.as_slice()..).next().unwrap().key(), key);
        let previous = buffer
            .iter(..key.as_slice())
            .next_back()
            .map(|entry| entry.key());
        assert_eq!(previous, before);
        before = Some(key);
    }
}

#[test]
fn random_keys() {
    let mut random = random();
    let (mut buffer, mut golden) = (MemBuffer::new(), Golden::new());
    for _ in 0..50_000 {
        let key = random_bytes(&mut random, 19);
        buffer.set(&key, &key).unwrap();
        golden.insert(key.clone(), key);
    }
    check_consistent(&buffer, &golden);
    for value in golden.values_mut() {
        let newer = random_bytes(&mut random, 19);
        let key = std::mem::replace(value, newer);
        buffer.set(&key, value).unwrap();
    }
    check_consistent(&buffer, &golden);
}

/// A hundred stages inside one another, of which three in ten are undone.
#[test]
fn random_derive() {
    let mut random = random();
    let (mut buffer, mut golden) = (MemBuffer::new(), Golden::new());
    let mut saved = Vec::new();
    for depth in 0..100 {
        saved.push((buffer.staging(), golden.clone()));
        let kind = random(3);
        for i in 0..128 + random(128) {
            let key = match kind {
                0 => random_bytes(&mut random, 19),
                1 => (i + depth).to_be_bytes().to_vec(),
                _ => i.to_be_bytes().to_vec(),
            };
            let value = random_bytes(&mut random, 255);
            buffer.set(&key, &value).unwrap();
            golden.insert(key, value);
        }
    }
    while let Some((stage, before)) = saved.pop() {
        if random(10) < 3 {
            buffer.cleanup(stage).unwrap();
            golden = before;
        } else {
            buffer.release(stage).unwrap();
        }
        if saved.len() % 10 == 0 {
            check_consistent(&buffer, &golden);
        }
    }
}

/// Many stages of one key each, half of them undone.
#[test]
fn random_ab() {
    let mut random = random();
    let (mut buffer, mut golden) = (MemBuffer::new(), Golden::new());
    for i in 0..20_000 {
        let key = random_bytes(&mut random, 19);
        let stage = buffer.staging();
        buffer.set(&key, &key).unwrap();
        if i % 2 == 0 {
            buffer.cleanup(stage).unwrap();
        } else {
            buffer.release(stage).unwrap();
            golden.insert(key.clone(), key);
        }
        assert_eq!(buffer.is_dirty(), i > 0);
    }
    check_consistent(&buffer, &golden);
}
