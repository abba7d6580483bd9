//! The order of the keys: a B+tree of entry numbers.
//!
//! It holds no key. A node knows how many first bytes all its keys share and keeps the next four
//! of each, so that most comparisons touch the node alone; keys of one table, which differ late,
//! compare as fast as others. Nothing is ever removed (an undone entry stays, dead), which leaves
//! the split of a full node as the only change of shape. Keys that come in order fill the nodes
//! to the last slot.
//!
//! It stands in for a `BTreeMap<Bytes, EntryId>`, which is simpler and was measured first
//! (`benches/buffer.rs`): with a million random keys a write takes less than half of the map's
//! time, a read two fifths, an undone stage a third, and an entry half the memory. The map is the
//! model of its test.

use smallvec::SmallVec;

use super::table::{EntryId, Table};
use crate::key::KeyRange;

/// The entries of a [`Table`] in the order of their keys.
#[derive(Debug, Default)]
pub(super) struct Index {
    leaves: Vec<Leaf>,
    inners: Vec<Inner>,
    /// A leaf if `height` is zero.
    root: NodeId,
    height: u32,
    last_leaf: NodeId,
}

impl Index {
    /// The entry with this key.
    pub(super) fn find(&self, table: &Table, key: &[u8]) -> Option<EntryId> {
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = &self.inners[node as usize];
            match inner.separators.search(table, key) {
                // A separator is the number of the entry itself.
                Ok(at) => return Some(inner.separators.ids[at]),
                Err(at) => node = inner.children[at],
            }
        }
        let leaf = self.leaves.get(node as usize)?;
        let at = leaf.slots.search(table, key).ok()?;
        Some(leaf.slots.ids[at])
    }

    /// The entry with this key, or where to put it.
    pub(super) fn locate(&self, table: &Table, key: &[u8]) -> Result<EntryId, Place> {
        let mut node = self.root;
        let mut path = SmallVec::new();
        // A key after all others needs no search, neither here nor in the nodes above.
        let last = self.leaves.get(self.last_leaf as usize);
        let at_end = last.filter(|last| last.slots.is_after_all(table, key));
        for _ in 0..self.height {
            let inner = &self.inners[node as usize];
            let at = match at_end {
                Some(_) => inner.separators.len(),
                None => inner.child_of(table, key),
            };
            path.push((node, at));
            node = inner.children[at];
        }
        let at = match (at_end, self.leaves.get(node as usize)) {
            (Some(last), _) => last.slots.len(),
            (None, Some(leaf)) => match leaf.slots.search(table, key) {
                Ok(at) => return Ok(leaf.slots.ids[at]),
                Err(at) => at,
            },
            (None, None) => 0,
        };
        let leaf = node;
        Err(Place { leaf, at, path })
    }

    /// Adds an entry at the place that [`Index::locate`] found for its key just before.
    pub(super) fn insert(&mut self, table: &Table, place: Place, id: EntryId) {
        if self.leaves.is_empty() {
            self.leaves.push(Leaf::default());
        }
        let Some(right) = self.insert_in_leaf(table, place.leaf, place.at, id) else {
            return;
        };
        // The leaf was split, and so may be its parents.
        let mut separator = self.leaves[right as usize].slots.ids[0];
        let mut child = right;
        for (node, at) in place.path.into_iter().rev() {
            match self.insert_in_inner(table, node, at, separator, child) {
                Some((promoted, right)) => (separator, child) = (promoted, right),
                None => return,
            }
        }
        let mut root = Inner::default();
        root.children[0] = self.root;
        root.insert(table, 0, separator, child);
        self.root = self.inners.len() as NodeId;
        self.inners.push(root);
        self.height += 1;
    }

    /// The entries in `range`.
    pub(super) fn range(&self, table: &Table, range: &KeyRange) -> Range<'_> {
        let (mut front, mut back) = (Position::END, Position::END);
        if !range.is_empty() {
            front = self.seek(table, range.start());
            if let Some(end) = range.end() {
                back = self.seek(table, end);
            }
        }
        let index = self;
        Range { index, front, back }
    }

    /// Bytes allocated.
    pub(super) fn allocated(&self) -> usize {
        self.leaves.capacity() * size_of::<Leaf>() + self.inners.capacity() * size_of::<Inner>()
    }

    /// Returns the new leaf to the right if the leaf had to be split.
    fn insert_in_leaf(
        &mut self,
        table: &Table,
        node: NodeId,
        at: usize,
        id: EntryId,
    ) -> Option<NodeId> {
        let right_node = self.leaves.len() as NodeId;
        let leaf = &mut self.leaves[node as usize];
        if !leaf.slots.is_full() {
            leaf.slots.insert(table, at, id);
            return None;
        }
        let mut right = Leaf::default();
        if at == FANOUT {
            right.slots.insert(table, 0, id);
        } else {
            right.slots = leaf.slots.split_off(table, FANOUT / 2);
            match at.checked_sub(FANOUT / 2) {
                Some(at) if at > 0 => right.slots.insert(table, at, id),
                _ => leaf.slots.insert(table, at, id),
            }
        }
        right.prev = node;
        right.next = std::mem::replace(&mut leaf.next, right_node);
        match right.next {
            NO_NODE => self.last_leaf = right_node,
            next => self.leaves[next as usize].prev = right_node,
        }
        self.leaves.push(right);
        Some(right_node)
    }

    /// Puts `child` after the child at `at`. If the node had to be split, returns the new node to
    /// the right and the separator between the two.
    fn insert_in_inner(
        &mut self,
        table: &Table,
        node: NodeId,
        at: usize,
        separator: EntryId,
        child: NodeId,
    ) -> Option<(EntryId, NodeId)> {
        let right_node = self.inners.len() as NodeId;
        let inner = &mut self.inners[node as usize];
        if !inner.separators.is_full() {
            inner.insert(table, at, separator, child);
            return None;
        }
        let mut right = Inner::default();
        if at == FANOUT {
            right.children[0] = child;
            self.inners.push(right);
            return Some((separator, right_node));
        }
        // The middle separator goes up; what is left and right of it stays apart.
        let middle = FANOUT / 2;
        right.separators = inner.separators.split_off(table, middle + 1);
        right.children[..FANOUT - middle].copy_from_slice(&inner.children[middle + 1..]);
        let promoted = inner.separators.pop(table);
        match at.checked_sub(middle + 1) {
            Some(at) => right.insert(table, at, separator, child),
            None => inner.insert(table, at, separator, child),
        }
        self.inners.push(right);
        Some((promoted, right_node))
    }

    /// The first entry whose key is not less than `key`.
    fn seek(&self, table: &Table, key: &[u8]) -> Position {
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = &self.inners[node as usize];
            node = inner.children[inner.child_of(table, key)];
        }
        let Some(leaf) = self.leaves.get(node as usize) else {
            return Position::END;
        };
        match leaf.slots.search(table, key) {
            Ok(at) | Err(at) if at < leaf.slots.len() => Position {
                leaf: node,
                at: at as u32,
            },
            _ => Position {
                leaf: leaf.next,
                at: 0,
            },
        }
    }
}

/// Where in the index a new key belongs.
#[derive(Debug)]
pub(super) struct Place {
    leaf: NodeId,
    at: usize,
    /// The inner nodes from the root down, with the child taken in each.
    path: SmallVec<[(NodeId, usize); 6]>,
}

/// Entries in the order of their keys, from both ends.
#[derive(Clone, Debug)]
pub(super) struct Range<'a> {
    index: &'a Index,
    front: Position,
    /// The first entry that is not in the range.
    back: Position,
}

impl Iterator for Range<'_> {
    type Item = EntryId;

    fn next(&mut self) -> Option<EntryId> {
        if self.front == self.back {
            return None;
        }
        let leaf = self.index.leaves.get(self.front.leaf as usize)?;
        let id = leaf.slots.ids[self.front.at as usize];
        self.front.at += 1;
        if self.front.at as usize == leaf.slots.len() {
            self.front = Position {
                leaf: leaf.next,
                at: 0,
            };
        }
        Some(id)
    }
}

impl DoubleEndedIterator for Range<'_> {
    fn next_back(&mut self) -> Option<EntryId> {
        if self.front == self.back {
            return None;
        }
        if self.back.at == 0 {
            let node = match self.index.leaves.get(self.back.leaf as usize) {
                Some(leaf) => leaf.prev,
                None => self.index.last_leaf,
            };
            self.back = Position {
                leaf: node,
                at: self.index.leaves.get(node as usize)?.slots.len() as u32,
            };
        }
        self.back.at -= 1;
        let leaf = self.index.leaves.get(self.back.leaf as usize)?;
        Some(leaf.slots.ids[self.back.at as usize])
    }
}

/// A slot of a leaf that holds an entry, or [`Position::END`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    leaf: NodeId,
    at: u32,
}

impl Position {
    const END: Position = Position {
        leaf: NO_NODE,
        at: 0,
    };
}

#[derive(Debug)]
struct Leaf {
    slots: Slots,
    prev: NodeId,
    next: NodeId,
}

impl Default for Leaf {
    fn default() -> Self {
        Leaf {
            slots: Slots::default(),
            prev: NO_NODE,
            next: NO_NODE,
        }
    }
}

#[derive(Debug)]
struct Inner {
    /// The first entry below each child but the first.
    separators: Slots,
    children: [NodeId; FANOUT + 1],
}

impl Default for Inner {
    fn default() -> Self {
        Inner {
            separators: Slots::default(),
            children: [NO_NODE; FANOUT + 1],
        }
    }
}

impl Inner {
    /// The child that has, or should have, `key` below it.
    fn child_of(&self, table: &Table, key: &[u8]) -> usize {
        match self.separators.search(table, key) {
            Ok(at) => at + 1,
            Err(at) => at,
        }
    }

    /// Puts `child` after the child at `at`.
    fn insert(&mut self, table: &Table, at: usize, separator: EntryId, child: NodeId) {
        let end = self.separators.len() + 1;
        self.children.copy_within(at + 1..end, at + 2);
        self.children[at + 1] = child;
        self.separators.insert(table, at, separator);
    }
}

/// Entries in the order of their keys, as many as fit into a node.
#[derive(Debug)]
struct Slots {
    len: u16,
    /// How many first bytes all keys share.
    shared: u16,
    /// The four bytes of each key after the shared ones, with zeroes after its end.
    heads: [u32; FANOUT],
    ids: [EntryId; FANOUT],
}

impl Default for Slots {
    fn default() -> Self {
        Slots {
            len: 0,
            shared: 0,
            heads: [0; FANOUT],
            ids: [0; FANOUT],
        }
    }
}

impl Slots {
    fn len(&self) -> usize {
        usize::from(self.len)
    }

    fn is_full(&self) -> bool {
        self.len() == FANOUT
    }

    /// The slot of `key`, or the one where it would have to be.
    fn search(&self, table: &Table, key: &[u8]) -> Result<usize, usize> {
        let (len, shared) = (self.len(), usize::from(self.shared));
        if shared > 0 {
            let first = &table.key(self.ids[0])[..shared];
            match key[..key.len().min(shared)].cmp(first) {
                std::cmp::Ordering::Less => return Err(0),
                std::cmp::Ordering::Greater => return Err(len),
                std::cmp::Ordering::Equal => {}
            }
        }
        let rest = &key[shared..];
        let head = head_of(rest);
        let from = self.heads[..len].partition_point(|other| *other < head);
        // Few heads are equal, so it is not worth halving them.
        let equal = self.heads[from..len]
            .iter()
            .take_while(|other| **other == head);
        let to = from + equal.count();
        self.ids[from..to]
            .binary_search_by(|id| table.key(*id)[shared..].cmp(rest))
            .map(|at| from + at)
            .map_err(|at| from + at)
    }

    /// Whether `key` is greater than all that are here. Not so if there are none.
    fn is_after_all(&self, table: &Table, key: &[u8]) -> bool {
        let last = self.len().checked_sub(1).map(|last| self.ids[last]);
        last.is_some_and(|last| key > table.key(last))
    }

    /// Adds an entry at `at`, where its key belongs. There must be room.
    fn insert(&mut self, table: &Table, at: usize, id: EntryId) {
        let (len, key) = (self.len(), table.key(id));
        let shared = match len {
            0 => key.len(),
            _ => shared_len(&table.key(self.ids[0])[..usize::from(self.shared)], key),
        };
        if shared != usize::from(self.shared) {
            self.share(table, shared);
        }
        self.ids.copy_within(at..len, at + 1);
        self.heads.copy_within(at..len, at + 1);
        self.ids[at] = id;
        self.heads[at] = head_of(&key[shared..]);
        self.len += 1;
    }

    /// Keeps the first `at` entries and returns the others. Neither may be none.
    fn split_off(&mut self, table: &Table, at: usize) -> Slots {
        let mut right = Slots::default();
        let moved = self.len() - at;
        right.ids[..moved].copy_from_slice(&self.ids[at..self.len()]);
        right.len = moved as u16;
        self.len = at as u16;
        self.tighten(table);
        right.tighten(table);
        right
    }

    /// Takes the last entry out. It must not be the only one.
    fn pop(&mut self, table: &Table) -> EntryId {
        self.len -= 1;
        let popped = self.ids[self.len()];
        self.tighten(table);
        popped
    }

    /// Finds out how much the keys share, after some have gone.
    fn tighten(&mut self, table: &Table) {
        let (first, last) = (self.ids[0], self.ids[self.len() - 1]);
        self.share(table, shared_len(table.key(first), table.key(last)));
    }

    fn share(&mut self, table: &Table, shared: usize) {
        self.shared = shared as u16;
        for (head, id) in self
            .heads
            .iter_mut()
            .zip(&self.ids[..usize::from(self.len)])
        {
            *head = head_of(&table.key(*id)[shared..]);
        }
    }
}

type NodeId = u32;

/// Entries in a node. 64 heads are four cache lines.
const FANOUT: usize = 64;

const NO_NODE: NodeId = NodeId::MAX;

/// The first bytes of a key such that heads that differ are in the order of their keys.
fn head_of(key: &[u8]) -> u32 {
    match key.first_chunk() {
        Some(head) => u32::from_be_bytes(*head),
        None => key
            .iter()
            .rev()
            .fold(0, |head, byte| (head >> 8) | u32::from(*byte) << 24),
    }
}

fn shared_len(a: &[u8], b: &[u8]) -> usize {
    // Sixteen at once, because long keys of one table share hundreds.
    let blocks = a.chunks_exact(16).zip(b.chunks_exact(16));
    let at = 16 * blocks.take_while(|(a, b)| a == b).count();
    let rest = a[at..].iter().zip(&b[at..]);
    at + rest.take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
