use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Item = (Key, u32);

impl Keyed for Item {
    fn key(&self) -> &Key {
        &self.0
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Key),
    Remove(Key),
    /// Many keys at once, in order, so that nodes split and merge.
    Fill(Vec<u8>, u16),
    Drain(Vec<u8>, u16),
}

/// Short keys over few bytes, so that prefixes, ties and equal keys are common, and long ones
/// that differ only beyond what a node keeps.
fn keys() -> impl Strategy<Value = Vec<u8>> {
    let short = vec(prop_oneof![Just(0), Just(1), Just(b't'), Just(0xFF)], 0..6);
    let long = (any::<bool>(), short.clone()).prop_map(|(zeros, tail)| {
        let fill = if zeros { 0 } else { 0xFF };
        [vec![fill; PREFIX_MAX + 2 * WORD - 2], tail].concat()
    });
    prop_oneof![3 => short, 1 => long]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => keys().prop_map(|key| Step::Insert(key.into())),
        4 => keys().prop_map(|key| Step::Remove(key.into())),
        1 => (keys(), 1..300_u16).prop_map(|(key, count)| Step::Fill(key, count)),
        1 => (keys(), 1..300_u16).prop_map(|(key, count)| Step::Drain(key, count)),
    ]
}

fn numbered(prefix: &[u8], count: u16) -> impl Iterator<Item = Key> {
    (0..count).map(move |n| [prefix, &(n * 7).to_be_bytes()].concat().into())
}

fn apply(tree: &mut KeyTree<Item>, model: &mut BTreeMap<Key, u32>, step: Step, value: u32) {
    match step {
        Step::Insert(key) => {
            let before = tree.insert((key.clone(), value)).map(|item| item.1);
            assert_eq!(before, model.insert(key, value));
        }
        Step::Remove(key) => {
            assert_eq!(tree.remove(&key).map(|item| item.1), model.remove(&key));
        }
        Step::Fill(prefix, count) => {
            for key in numbered(&prefix, count) {
                apply(tree, model, Step::Insert(key), value);
            }
        }
        Step::Drain(prefix, count) => {
            for key in numbered(&prefix, count) {
                apply(tree, model, Step::Remove(key), value);
            }
        }
    }
}

fn check_shape(node: &Node<Item>, is_root: bool) -> usize {
    assert!(is_root || node.len() > 0);
    match &node.body {
        Body::Leaf(items) => {
            assert_eq!(node.len(), items.iter().flatten().count());
            assert!(items[..node.len()].iter().all(Option::is_some));
            0
        }
        Body::Inner { children, keys } => {
            assert_eq!((node.len(), node.len()), (children.len(), keys.len()));
            let depths = children.iter().map(|child| check_shape(child, false));
            let depths: Vec<usize> = depths.collect();
            assert!(depths.windows(2).all(|pair| pair[0] == pair[1]));
            depths[0] + 1
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_is_an_ordered_map(
        steps in vec(steps(), 1..60),
        probes in vec(keys(), 1..20),
    ) {
        let mut tree = KeyTree::default();
        let mut model = BTreeMap::new();
        for (value, step) in steps.into_iter().enumerate() {
            apply(&mut tree, &mut model, step, value as u32);
        }
        check_shape(&tree.root, true);
        let all: Vec<Item> = model.clone().into_iter().collect();
        prop_assert!(tree.from(b"").eq(all.iter()));
        prop_assert_eq!(tree.last(), all.last());
        for probe in probes.into_iter().map(Key::from) {
            let pair = |(key, value): (&Key, &u32)| (key.clone(), *value);
            let floor = model.range(..=probe.clone()).next_back().map(pair);
            let below = model.range(..probe.clone()).next_back().map(pair);
            prop_assert_eq!(tree.floor(&probe).cloned(), floor);
            prop_assert_eq!(tree.below(&probe).cloned(), below);
            prop_assert_eq!(tree.get(&probe).map(|item| item.1), model.get(&probe).copied());
            let from = all.iter().filter(|item| item.0 >= probe);
            prop_assert!(tree.from(&probe).eq(from));
        }
    }
}

#[test]
fn keys_in_order_fill_their_nodes() {
    let mut tree = KeyTree::default();
    for n in 0..10_000_u32 {
        tree.insert((Key::from(n.to_be_bytes()), n));
    }
    assert_eq!(check_shape(&tree.root, true), 2);
}
