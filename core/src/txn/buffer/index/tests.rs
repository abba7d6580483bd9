use std::collections::BTreeMap;

use quickcheck::quickcheck;

use super::*;

/// Checks the index against a map: finds, ranges from both ends, the shape of its nodes.
fn check(keys: impl IntoIterator<Item = Vec<u8>>) {
    let (mut table, mut index, mut map) = (Table::default(), Index::default(), BTreeMap::new());
    for key in keys {
        match index.locate(&table, &key) {
            Ok(id) => assert_eq!(map.get(&key), Some(&id)),
            Err(place) => {
                let id = table.push(&key);
                index.insert(&table, place, id);
                assert_eq!(map.insert(key, id), None);
            }
        }
    }
    for (key, id) in &map {
        assert_eq!(index.find(&table, key), Some(*id), "{key:?}");
        let mut longer = key.clone();
        longer.push(0);
        assert_eq!(index.find(&table, &longer), map.get(&longer).copied());
        assert_eq!(
            index.find(&table, &key[..key.len() / 2]),
            map.get(&key[..key.len() / 2]).copied()
        );
    }
    let all: Vec<EntryId> = map.values().copied().collect();
    let everything = KeyRange::all();
    assert_eq!(index.range(&table, &everything).collect::<Vec<_>>(), all);
    let mut backwards: Vec<_> = index.range(&table, &everything).rev().collect();
    backwards.reverse();
    assert_eq!(backwards, all);
    let some: Vec<&Vec<u8>> = map.keys().step_by(1 + map.len() / 9).collect();
    for from in &some {
        for to in &some {
            let range = KeyRange::from(from.as_slice()..to.as_slice());
            let expected: Vec<EntryId> = match from < to {
                true => map
                    .range((*from).clone()..(*to).clone())
                    .map(|(_, id)| *id)
                    .collect(),
                false => Vec::new(),
            };
            assert_eq!(index.range(&table, &range).collect::<Vec<_>>(), expected);
            let back: Vec<EntryId> = index.range(&table, &range).rev().collect();
            assert!(back.iter().rev().eq(&expected));
        }
    }
}

/// Visits `0..count` in an order without order.
fn shuffled(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(move |i| (u64::from(i) * 7919 % u64::from(count)) as u32)
}

#[test]
fn orders_of_arrival() {
    const COUNT: u32 = 12_007; // a prime: three levels, and `shuffled` visits all
    check((0..COUNT).map(|i| i.to_be_bytes().to_vec()));
    check((0..COUNT).rev().map(|i| i.to_be_bytes().to_vec()));
    check(shuffled(COUNT).map(|i| i.to_be_bytes().to_vec()));
    check(shuffled(COUNT).map(|i| i.to_string().into_bytes()));
    // In order, but for every tenth.
    check(
        (0..COUNT)
            .map(|i| if i % 10 == 0 { COUNT - i } else { i + COUNT })
            .map(|i| i.to_be_bytes().to_vec()),
    );
}

#[test]
fn keys_that_differ_late_or_in_length_only() {
    let prefixed = |i: u32| [&[b'p'; 300][..], &i.to_be_bytes()].concat();
    check(shuffled(1009).map(prefixed));
    check(shuffled(499).map(|i| vec![0; i as usize]));
    check(shuffled(499).map(|i| vec![0xFF; i as usize]));
    check(shuffled(499).map(|i| [&vec![b'a'; (i / 7) as usize][..], &[(i % 7) as u8]].concat()));
}

#[test]
fn keys_in_order_fill_the_nodes() {
    let (mut table, mut index) = (Table::default(), Index::default());
    for i in 0..64_u32 * 1000 {
        let place = index.locate(&table, &i.to_be_bytes()).unwrap_err();
        let id = table.push(&i.to_be_bytes());
        index.insert(&table, place, id);
    }
    assert_eq!(index.leaves.len(), 1000);
    assert_eq!(index.inners.len(), 1000_usize.div_ceil(65) + 1);
}

#[test]
fn what_keys_share_is_counted_to_the_byte() {
    for len in 0..40 {
        let key = vec![7; len];
        for differs in 0..len {
            let mut other = key.clone();
            other[differs] = 8;
            assert_eq!(shared_len(&key, &other), differs);
            assert_eq!(shared_len(&key, &key[..differs]), differs);
        }
    }
}

#[test]
fn heads_keep_the_order() {
    let keys: [&[u8]; 7] = [
        b"",
        b"\0",
        b"\0\0\0\0\0",
        b"\0\0\0\x01",
        b"a",
        b"aaaa",
        b"b",
    ];
    assert!(keys.map(head_of).is_sorted());
    assert_eq!(head_of(b"ab"), u32::from_be_bytes(*b"ab\0\0"));
}

quickcheck! {
    fn any_keys(keys: Vec<Vec<u8>>) -> bool {
        check(keys);
        true
    }

    fn keys_of_a_small_alphabet(keys: Vec<Vec<bool>>) -> bool {
        check(keys.into_iter().map(|key| key.into_iter().map(u8::from).collect()));
        true
    }
}
