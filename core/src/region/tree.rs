//! An ordered map made for look-ups with few cache misses.
//!
//! A tree of wide nodes. Each node keeps, beside its items, what its keys have in common and the
//! sixteen bytes after that of each key, eight and eight: a search reads a few lines that are
//! fetched together, the second eight bytes only where the first are equal, and a key itself only
//! where all are. A binary tree, or one that compares whole keys, goes to memory once per
//! comparison, and that is what a look-up costs in a cache of a million regions. Nothing here
//! knows of regions, and whatever their index does not need is absent.

use std::cmp::Ordering;
use std::hint::black_box;
use std::ops::Range;

use smallvec::SmallVec;

use crate::key::Key;

/// Something that is kept under its own key, which must not change.
pub(super) trait Keyed {
    /// Its key.
    fn key(&self) -> &Key;
}

/// Items by key.
#[derive(Debug)]
pub(super) struct KeyTree<T> {
    root: Box<Node<T>>,
}

impl<T: Keyed> Default for KeyTree<T> {
    fn default() -> Self {
        KeyTree {
            root: Node::leaf([]),
        }
    }
}

impl<T: Keyed> KeyTree<T> {
    /// The last item at or before `key`.
    pub(super) fn floor(&self, key: &[u8]) -> Option<&T> {
        self.last_until(&Probe::new(key), Bound::Included)
    }

    /// The last item before `key`.
    pub(super) fn below(&self, key: &[u8]) -> Option<&T> {
        self.last_until(&Probe::new(key), Bound::Excluded)
    }

    /// The item of exactly this key.
    pub(super) fn get(&self, key: &[u8]) -> Option<&T> {
        self.floor(key).filter(|item| **item.key() == *key)
    }

    /// The last item.
    pub(super) fn last(&self) -> Option<&T> {
        self.root.last()
    }

    /// The items at or after `key`, in order.
    pub(super) fn from(&self, key: &[u8]) -> Iter<'_, T> {
        let probe = Probe::new(key);
        let mut above = SmallVec::new();
        let mut node = &*self.root;
        loop {
            let rank = node.rank(&probe, Bound::Excluded);
            match &node.body {
                Body::Inner { children, .. } => {
                    let place = rank.saturating_sub(1);
                    above.push((&**children, place));
                    node = &children[place];
                }
                Body::Leaf(items) => {
                    let items = items[rank..].iter();
                    return Iter { above, items };
                }
            }
        }
    }

    /// Puts an item in; returns the one that was there under the same key.
    pub(super) fn insert(&mut self, item: T) -> Option<T> {
        match self.root.insert(item) {
            Put::Done => None,
            Put::Replaced(old) => Some(old),
            Put::Split(right) => {
                let left = std::mem::replace(&mut self.root, Node::leaf([]));
                self.root = Node::inner([left, right]);
                None
            }
        }
    }

    /// Takes the item of exactly this key out.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<T> {
        let removed = self.root.remove(&Probe::new(key));
        while let Body::Inner { children, .. } = &mut self.root.body {
            if children.len() > 1 {
                break;
            }
            let only = children.pop();
            self.root = only.unwrap_or_else(|| Node::leaf([]));
        }
        removed
    }

    fn last_until(&self, probe: &Probe<'_>, bound: Bound) -> Option<&T> {
        let mut node = &*self.root;
        // Where to look if nothing in the leaf is early enough.
        let mut left_of_path: Option<&Node<T>> = None;
        loop {
            match &node.body {
                Body::Inner { children, .. } => {
                    let place = node.rank(probe, bound).saturating_sub(1);
                    if place > 0 {
                        left_of_path = Some(&children[place - 1]);
                    }
                    node = &children[place];
                }
                Body::Leaf(items) => {
                    fetch(items);
                    return match node.rank(probe, bound) {
                        0 => left_of_path.and_then(Node::last),
                        rank => items[rank - 1].as_ref(),
                    };
                }
            }
        }
    }
}

/// The items from some key on, in order.
#[derive(Debug)]
pub(super) struct Iter<'a, T> {
    above: SmallVec<[Siblings<'a, T>; 8]>,
    items: std::slice::Iter<'a, Option<T>>,
}

/// Nodes side by side, and which of them the walk is in.
type Siblings<'a, T> = (&'a [Box<Node<T>>], usize);

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(Some(item)) = self.items.next() {
                return Some(item);
            }
            let (children, place) = self.above.last_mut()?;
            *place += 1;
            let Some(mut node) = children.get(*place) else {
                self.above.pop();
                continue;
            };
            while let Body::Inner { children, .. } = &node.body {
                self.above.push((children, 0));
                node = &children[0];
            }
            if let Body::Leaf(items) = &node.body {
                self.items = items.iter();
            }
        }
    }
}

/// No node is empty but a root that is a leaf.
#[derive(Debug)]
#[repr(C)] // What a search reads stands together.
struct Node<T> {
    heads: Heads,
    body: Body<T>,
    tails: Tails,
}

/// Leaves are all at one depth.
#[derive(Debug)]
#[expect(clippy::large_enum_variant)] // Both are about as large as a node of pointers.
enum Body<T> {
    /// As many items as there are heads, then none.
    Leaf([Option<T>; FANOUT]),
    /// What is below child n has keys from `keys[n]` on, up to but without `keys[n + 1]`.
    Inner {
        children: SmallVec<[Box<Node<T>>; FANOUT]>,
        keys: Vec<Key>,
    },
}

/// What became of an item that was put in.
enum Put<T> {
    Done,
    Replaced(T),
    /// The node was full. This one goes to its right.
    Split(Box<Node<T>>),
}

impl<T: Keyed> Node<T> {
    fn new(body: Body<T>) -> Box<Self> {
        let mut node = Box::new(Node {
            heads: Heads::default(),
            body,
            tails: Tails::default(),
        });
        node.rebuild();
        node
    }

    fn leaf(items: impl IntoIterator<Item = T>) -> Box<Self> {
        let mut items = items.into_iter();
        Node::new(Body::Leaf(std::array::from_fn(|_| items.next())))
    }

    fn inner(children: impl IntoIterator<Item = Box<Node<T>>>) -> Box<Self> {
        let children: SmallVec<[Box<Node<T>>; FANOUT]> = children.into_iter().collect();
        let keys = children.iter().map(|child| child.lower_bound()).collect();
        Node::new(Body::Inner { children, keys })
    }

    fn len(&self) -> usize {
        self.heads.len()
    }

    fn key(&self, place: usize) -> Option<&Key> {
        match &self.body {
            Body::Leaf(items) => items.get(place)?.as_ref().map(Keyed::key),
            Body::Inner { keys, .. } => keys.get(place),
        }
    }

    /// A key that nothing below comes before.
    fn lower_bound(&self) -> Key {
        self.key(0).cloned().unwrap_or_default()
    }

    fn last(&self) -> Option<&T> {
        let mut node = self;
        loop {
            match &node.body {
                Body::Leaf(items) => return items[..node.len()].last()?.as_ref(),
                Body::Inner { children, .. } => node = children.last()?,
            }
        }
    }

    /// How many keys come before the bound.
    fn rank(&self, probe: &Probe<'_>, bound: Bound) -> usize {
        let equal = match self.heads.search(probe) {
            Ok(rank) => return rank,
            Err(equal) => equal,
        };
        // Only keys equal so far have to be read.
        let mut places = self
            .tails
            .equal(equal, probe.word(self.heads.prefix_len() + WORD));
        while !places.is_empty() {
            let middle = places.start + places.len() / 2;
            let comes_before = self
                .key(middle)
                .is_some_and(|key| match (**key).cmp(probe.key) {
                    Ordering::Less => true,
                    Ordering::Equal => bound == Bound::Included,
                    Ordering::Greater => false,
                });
            match comes_before {
                true => places.start = middle + 1,
                false => places.end = middle,
            }
        }
        places.start
    }

    fn insert(&mut self, item: T) -> Put<T> {
        let probe = Probe::new(item.key());
        match &mut self.body {
            Body::Leaf(_) => {
                let place = self.rank(&probe, Bound::Excluded);
                self.insert_item(place, item)
            }
            Body::Inner { .. } => {
                let rank = self.rank(&probe, Bound::Included);
                self.insert_below(rank, item)
            }
        }
    }

    fn insert_item(&mut self, place: usize, item: T) -> Put<T> {
        let is_full = self.len() == FANOUT;
        let Body::Leaf(items) = &mut self.body else {
            debug_assert!(false, "an item goes into a leaf");
            return Put::Done;
        };
        match items.get_mut(place) {
            Some(Some(there)) if there.key() == item.key() => {
                return Put::Replaced(std::mem::replace(there, item));
            }
            _ => {}
        }
        if !is_full {
            let fits = self.heads.insert(place, item.key(), &mut self.tails);
            items[place..].rotate_right(1);
            items[place] = Some(item);
            if !fits {
                self.rebuild();
            }
            return Put::Done;
        }
        let middle = split_place(place);
        let mut right = Node::leaf(items[middle..].iter_mut().filter_map(Option::take));
        self.rebuild();
        match place.checked_sub(middle) {
            Some(place) => right.insert_item(place, item),
            None => self.insert_item(place, item),
        };
        Put::Split(right)
    }

    fn insert_below(&mut self, rank: usize, item: T) -> Put<T> {
        let Body::Inner { children, keys } = &mut self.body else {
            debug_assert!(false, "a child goes into an inner node");
            return Put::Done;
        };
        let place = rank.saturating_sub(1);
        if rank == 0 {
            keys[0] = item.key().clone();
        }
        let put = children[place].insert(item);
        if rank == 0 {
            self.rebuild();
        }
        match put {
            Put::Split(right) => self.insert_child(place + 1, right),
            done => done,
        }
    }

    fn insert_child(&mut self, place: usize, child: Box<Node<T>>) -> Put<T> {
        let is_full = self.len() == FANOUT;
        let Body::Inner { children, keys } = &mut self.body else {
            debug_assert!(false, "a child goes into an inner node");
            return Put::Done;
        };
        if !is_full {
            let key = child.lower_bound();
            let fits = self.heads.insert(place, &key, &mut self.tails);
            keys.insert(place, key);
            children.insert(place, child);
            if !fits {
                self.rebuild();
            }
            return Put::Done;
        }
        let middle = split_place(place);
        let mut right = Node::new(Body::Inner {
            children: children.drain(middle..).collect(),
            keys: keys.split_off(middle),
        });
        self.rebuild();
        match place.checked_sub(middle) {
            Some(place) => right.insert_child(place, child),
            None => self.insert_child(place, child),
        };
        Put::Split(right)
    }

    fn remove(&mut self, probe: &Probe<'_>) -> Option<T> {
        let included = self.rank(probe, Bound::Included);
        let place = included.saturating_sub(1);
        match &mut self.body {
            Body::Leaf(items) => {
                let removed = items[place].take_if(|item| **item.key() == *probe.key)?;
                items[place..].rotate_left(1);
                self.heads.remove(place, &mut self.tails);
                Some(removed)
            }
            Body::Inner { children, .. } => {
                let removed = children[place].remove(probe)?;
                if children[place].len() == 0 {
                    self.remove_child(place);
                } else {
                    self.merge_around(place);
                }
                Some(removed)
            }
        }
    }

    fn remove_child(&mut self, place: usize) -> Option<Box<Node<T>>> {
        let Body::Inner { children, keys } = &mut self.body else {
            return None;
        };
        keys.remove(place);
        self.heads.remove(place, &mut self.tails);
        Some(children.remove(place))
    }

    /// Puts a child that has become small together with a neighbour, with room to spare.
    fn merge_around(&mut self, place: usize) {
        for left in [place.saturating_sub(1), place] {
            let Body::Inner { children, .. } = &self.body else {
                return;
            };
            let Some([a, b]) = children.get(left..left + 2) else {
                continue;
            };
            let (a, b) = (a.len(), b.len());
            if a.min(b) >= FANOUT / 4 || a + b > FANOUT * 3 / 4 {
                continue;
            }
            let right = self.remove_child(left + 1);
            if let (Body::Inner { children, .. }, Some(right)) = (&mut self.body, right) {
                children[left].absorb(*right);
            }
            return;
        }
    }

    /// Takes over everything of the node to its right, which is of the same depth.
    fn absorb(&mut self, right: Node<T>) {
        let len = self.len();
        match (&mut self.body, right.body) {
            (Body::Leaf(own), Body::Leaf(others)) => {
                for (free, item) in own[len..].iter_mut().zip(others) {
                    *free = item;
                }
            }
            (
                Body::Inner { children, keys },
                Body::Inner {
                    children: c,
                    keys: k,
                },
            ) => {
                children.extend(c);
                keys.extend(k);
            }
            (Body::Leaf(_), Body::Inner { .. }) | (Body::Inner { .. }, Body::Leaf(_)) => {
                debug_assert!(false, "neighbours are of one depth");
            }
        }
        self.rebuild();
    }

    fn rebuild(&mut self) {
        (self.heads, self.tails) = match &self.body {
            Body::Leaf(items) => {
                let items = items.iter().map_while(Option::as_ref);
                Heads::of(items.map(|item| &**item.key()))
            }
            Body::Inner { keys, .. } => Heads::of(keys.iter().map(|key| &**key)),
        };
    }
}

/// Has memory deliver the items of a leaf while its heads are still on their way.
fn fetch<T>(items: &[Option<T>; FANOUT]) {
    let of_each_line = items.iter().step_by(WORDS_PER_LINE);
    black_box(of_each_line.filter(|item| item.is_some()).count());
}

/// Where a full node is cut when something comes to `place`. Keys that come in order fill their
/// nodes.
fn split_place(place: usize) -> usize {
    if place == FANOUT { FANOUT } else { FANOUT / 2 }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    Included,
    Excluded,
}

/// A key to search for, taken into words once for all nodes on the way.
struct Probe<'k> {
    key: &'k [u8],
    /// Eight bytes each, as numbers that compare as they do, with zeros beyond the end.
    words: [u64; PROBE_WORDS],
}

impl<'k> Probe<'k> {
    fn new(key: &'k [u8]) -> Self {
        Probe {
            key,
            words: std::array::from_fn(|place| word(key, place * WORD)),
        }
    }

    /// The eight bytes from `at` on.
    fn word(&self, at: usize) -> u64 {
        let (place, shift) = (at / WORD, at % WORD * 8);
        let pair = u128::from(self.words[place]) << 64 | u128::from(self.words[place + 1]);
        (pair >> (64 - shift)) as u64
    }
}

/// What a node knows of its keys without reading them.
#[derive(Debug)]
#[repr(C, align(64))]
struct Heads {
    /// What all keys have in common, in words as a [`Probe`] has them, and which bits of these
    /// words that is.
    prefix: [u64; PREFIX_WORDS],
    prefix_mask: [u64; PREFIX_WORDS],
    /// How many bytes all keys have in common; with long keys, how many of them are kept.
    prefix_len: u8,
    len: u8,
    /// Of each key the eight bytes after the prefix. Beyond the last one the greatest number, so
    /// that a search needs no length.
    words: Lines,
}

/// Of each key the eight bytes after those in [`Heads`].
#[derive(Debug)]
struct Tails([u64; FANOUT]);

/// Begins with a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Lines([u64; FANOUT]);

impl Default for Heads {
    fn default() -> Self {
        Heads {
            prefix: [0; PREFIX_WORDS],
            prefix_mask: [0; PREFIX_WORDS],
            prefix_len: 0,
            len: 0,
            words: Lines([u64::MAX; FANOUT]),
        }
    }
}

impl Default for Tails {
    fn default() -> Self {
        Tails([0; FANOUT])
    }
}

impl Heads {
    /// Of keys in order.
    fn of<'k>(keys: impl Iterator<Item = &'k [u8]> + Clone) -> (Heads, Tails) {
        let (mut heads, mut tails) = (Heads::default(), Tails::default());
        if let (Some(first), Some(last)) = (keys.clone().next(), keys.clone().last()) {
            let same = first.iter().zip(last.iter()).take_while(|(a, b)| a == b);
            let len = same.take(PREFIX_MAX).count();
            let prefix = Probe::new(&first[..len]);
            let mask = Probe::new(&[0xFF; PREFIX_MAX][..len]);
            heads.prefix.copy_from_slice(&prefix.words[..PREFIX_WORDS]);
            heads
                .prefix_mask
                .copy_from_slice(&mask.words[..PREFIX_WORDS]);
            heads.prefix_len = len as u8;
        }
        for (place, key) in keys.enumerate() {
            heads.set(place, &Probe::new(key), &mut tails);
            heads.len += 1;
        }
        (heads, tails)
    }

    fn len(&self) -> usize {
        usize::from(self.len)
    }

    fn prefix_len(&self) -> usize {
        usize::from(self.prefix_len)
    }

    /// How many keys come before the key searched for; an error has those that may be equal.
    fn search(&self, probe: &Probe<'_>) -> Result<usize, Range<usize>> {
        match self.compare_prefix(probe) {
            Ordering::Less => return Ok(0),
            Ordering::Greater => return Ok(self.len()),
            Ordering::Equal => {}
        }
        let word = probe.word(self.prefix_len());
        let rank = self.count_until(word);
        let before = &self.words.0[..rank];
        match before.last() {
            Some(last) if *last == word => Err(before.partition_point(|other| *other < word)..rank),
            _ => Ok(rank),
        }
    }

    /// Where a key stands to all keys that begin with the prefix; equal if it does so too.
    fn compare_prefix(&self, probe: &Probe<'_>) -> Ordering {
        let own = |place: usize| probe.words[place] & self.prefix_mask[place];
        let differ = (0..PREFIX_WORDS).fold(0, |bits, n| bits | (own(n) ^ self.prefix[n]));
        if differ != 0 {
            let words: [u64; PREFIX_WORDS] = std::array::from_fn(own);
            return words.cmp(&self.prefix);
        }
        // A word is padded with zeros, so a key that ends early may only look equal.
        match probe.key.len() < self.prefix_len() {
            true => Ordering::Less,
            false => Ordering::Equal,
        }
    }

    /// How many words are at most `word`. First one of each cache line, so that all lines are on
    /// their way together, then within one line.
    fn count_until(&self, word: u64) -> usize {
        let words = &self.words.0;
        let firsts = (WORDS_PER_LINE..FANOUT).step_by(WORDS_PER_LINE);
        let mut place = firsts.fold(0, |place, first| {
            place + WORDS_PER_LINE * usize::from(words[first] <= word)
        });
        for half in [4, 2, 1, 1] {
            place += half * usize::from(words[(place + half - 1) % FANOUT] <= word);
        }
        place.min(self.len())
    }

    /// There is room. `false`: the key has not the prefix, so all must be built anew.
    fn insert(&mut self, place: usize, key: &[u8], tails: &mut Tails) -> bool {
        let probe = Probe::new(key);
        if self.len() == 0 || self.compare_prefix(&probe).is_ne() {
            return false;
        }
        self.words.0.copy_within(place..FANOUT - 1, place + 1);
        tails.0.copy_within(place..FANOUT - 1, place + 1);
        self.set(place, &probe, tails);
        self.len += 1;
        true
    }

    fn remove(&mut self, place: usize, tails: &mut Tails) {
        self.words.0.copy_within(place + 1.., place);
        tails.0.copy_within(place + 1.., place);
        self.words.0[FANOUT - 1] = u64::MAX;
        self.len -= 1;
    }

    fn set(&mut self, place: usize, probe: &Probe<'_>, tails: &mut Tails) {
        self.words.0[place] = probe.word(self.prefix_len());
        tails.0[place] = probe.word(self.prefix_len() + WORD);
    }
}

impl Tails {
    /// Of keys that are equal up to here, those that may still be; all before them come before.
    fn equal(&self, among: Range<usize>, word: u64) -> Range<usize> {
        let tails = &self.0[among.clone()];
        let lower = tails.partition_point(|other| *other < word);
        let upper = tails.partition_point(|other| *other <= word);
        among.start + lower..among.start + upper
    }
}

/// The eight bytes from `at` on as a number that compares as they do, with zeros beyond the end.
fn word(key: &[u8], at: usize) -> u64 {
    if let Some(bytes) = key.get(at..).and_then(<[u8]>::first_chunk) {
        return u64::from_be_bytes(*bytes);
    }
    let left = key.len().saturating_sub(at);
    match key.last_chunk() {
        _ if left == 0 => 0,
        Some(bytes) => u64::from_be_bytes(*bytes) << (8 * (WORD - left)),
        None => {
            let short = key[at..]
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
            short << (8 * (WORD - left))
        }
    }
}

const FANOUT: usize = 32;
const WORD: usize = size_of::<u64>();
const WORDS_PER_LINE: usize = 64 / WORD;
const PREFIX_WORDS: usize = 3;
const PREFIX_MAX: usize = PREFIX_WORDS * WORD;
/// What a prefix, the words after it and their being anywhere reach to.
const PROBE_WORDS: usize = PREFIX_WORDS + 3;

#[cfg(test)]
mod tests;
