//! What waits to be sent, the highest priority first, each priority in the order it came.

use super::slab::{List, Slab};

/// What waits to be sent: one list per level of priority.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) lists: [List; LEVELS],
    /// One bit per list that is not empty.
    pub(super) occupied: u32,
    pub(super) len: usize,
    pub(super) bytes: usize,
}

impl Queue {
    pub(super) fn new() -> Self {
        Queue {
            lists: [List::EMPTY; LEVELS],
            occupied: 0,
            len: 0,
            bytes: 0,
        }
    }

    /// The highest level that is waiting.
    pub(super) fn highest(&self) -> Option<usize> {
        self.occupied.checked_ilog2().map(|level| level as usize)
    }

    /// What goes out next.
    pub(super) fn front(&self) -> Option<u32> {
        self.lists[self.highest()?].front()
    }

    pub(super) fn push<V>(
        &mut self,
        slab: &mut Slab<V>,
        index: u32,
        level: usize,
        part_len: usize,
    ) {
        slab.push_back(&mut self.lists[level], index);
        self.occupied |= 1 << level;
        self.len += 1;
        self.bytes += part_len;
    }

    pub(super) fn unlink<V>(
        &mut self,
        slab: &mut Slab<V>,
        index: u32,
        level: usize,
        part_len: usize,
    ) {
        slab.unlink(&mut self.lists[level], index);
        if self.lists[level].is_empty() {
            self.occupied &= !(1 << level);
        }
        self.len -= 1;
        self.bytes -= part_len;
    }
}

/// Where in the queue a priority belongs; below [`LEVELS`].
pub(super) const fn level(priority: u32) -> usize {
    let highest = (LEVELS - 1) as u32;
    if priority < highest {
        priority as usize
    } else {
        LEVELS - 1
    }
}

/// Resource control knows the priorities 0 to 16.
pub(super) const LEVELS: usize = 17;
