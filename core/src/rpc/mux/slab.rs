//! Slots that are used again and again, each a member of at most one list. What makes the steady
//! path of the multiplexer free of allocations, and every removal a matter of two links.
//!
//! Deliberately absent: any meaning of what is stored. That a slot is in the list it is unlinked
//! from is the caller's to know.

/// No slot.
const NIL: u32 = u32::MAX;

/// Names one use of one slot, so that a name kept too long names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Handle {
    pub(super) index: u32,
    generation: u32,
}

#[derive(Debug)]
struct Slot<V> {
    generation: u32,
    prev: u32,
    next: u32,
    value: Option<V>,
}

#[derive(Debug)]
pub(super) struct Slab<V> {
    slots: Vec<Slot<V>>,
    /// The first free slot; the others follow by `next`.
    free: u32,
}

/// Slots in the order they were appended.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    head: u32,
    tail: u32,
    len: usize,
}

impl List {
    pub(super) const EMPTY: List = List {
        head: NIL,
        tail: NIL,
        len: 0,
    };

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn front(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }
}

impl<V> Slab<V> {
    pub(super) fn new() -> Self {
        Slab {
            slots: Vec::new(),
            free: NIL,
        }
    }

    /// How many slots there are, in use or free.
    #[cfg(test)]
    pub(super) fn capacity_used(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn insert(&mut self, value: V) -> Handle {
        let index = self.free;
        match self.slots.get_mut(index as usize) {
            Some(slot) => {
                self.free = slot.next;
                slot.next = NIL;
                slot.value = Some(value);
                Handle {
                    index,
                    generation: slot.generation,
                }
            }
            None => {
                // Far below `NIL`: whoever inserts bounds how much it holds.
                let index = self.slots.len() as u32;
                self.slots.push(Slot {
                    generation: 0,
                    prev: NIL,
                    next: NIL,
                    value: Some(value),
                });
                Handle {
                    index,
                    generation: 0,
                }
            }
        }
    }

    /// The slot that a handle names, if it still does.
    pub(super) fn resolve(&self, handle: Handle) -> Option<u32> {
        let slot = self.slots.get(handle.index as usize)?;
        (slot.generation == handle.generation && slot.value.is_some()).then_some(handle.index)
    }

    pub(super) fn get(&self, index: u32) -> Option<&V> {
        self.slots.get(index as usize)?.value.as_ref()
    }

    /// Puts another value into a slot that is in use.
    pub(super) fn replace(&mut self, index: u32, value: V) {
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.value = Some(value);
        }
    }

    /// Takes the value out for a moment; [`Slab::replace`] or [`Slab::free`] follows.
    pub(super) fn take(&mut self, index: u32) -> Option<V> {
        self.slots.get_mut(index as usize)?.value.take()
    }

    /// Makes an unlinked slot free. Its handle names nothing from now on.
    pub(super) fn free(&mut self, index: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.value = None;
            slot.generation = slot.generation.wrapping_add(1);
            slot.prev = NIL;
            slot.next = self.free;
            self.free = index;
        }
    }

    pub(super) fn push_back(&mut self, list: &mut List, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return;
        };
        slot.prev = list.tail;
        slot.next = NIL;
        match self.slots.get_mut(list.tail as usize) {
            Some(tail) => tail.next = index,
            None => list.head = index,
        }
        list.tail = index;
        list.len += 1;
    }

    /// Takes a slot out of the list it is in.
    pub(super) fn unlink(&mut self, list: &mut List, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return;
        };
        let (prev, next) = (slot.prev, slot.next);
        slot.prev = NIL;
        slot.next = NIL;
        match self.slots.get_mut(prev as usize) {
            Some(slot) => slot.next = next,
            None => list.head = next,
        }
        match self.slots.get_mut(next as usize) {
            Some(slot) => slot.prev = prev,
            None => list.tail = prev,
        }
        list.len -= 1;
    }

    /// The values of a list, in its order.
    pub(super) fn iter(&self, list: &List) -> impl Iterator<Item = &V> {
        let mut next = list.head;
        std::iter::from_fn(move || {
            let slot = self.slots.get(next as usize)?;
            next = slot.next;
            slot.value.as_ref()
        })
    }
}
