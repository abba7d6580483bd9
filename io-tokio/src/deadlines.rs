//! The deadlines of everything in flight at one endpoint, behind one timer.
//!
//! Nearly every deadline passes long after its request has ended. So nothing is sorted and no
//! timer is armed per request: entering and leaving is a matter of one slot, and all slots are
//! looked through when the earliest of them may have passed.

use tikv_core::driver::Instant;

/// Deadlines with what is to be done when they pass.
#[derive(Debug)]
pub(crate) struct Deadlines<K> {
    slots: Vec<Option<(Instant, K)>>,
    free: Vec<u32>,
    /// No deadline is earlier.
    first: Instant,
}

impl<K: Copy> Deadlines<K> {
    pub(crate) fn new() -> Self {
        Deadlines {
            slots: Vec::new(),
            free: Vec::new(),
            first: Instant::FAR_FUTURE,
        }
    }

    /// The slot that the next [`insert`](Self::insert) fills.
    pub(crate) fn next_slot(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.slots.len() as u32)
    }

    pub(crate) fn insert(&mut self, deadline: Instant, key: K) {
        self.first = self.first.min(deadline);
        match self.free.pop() {
            Some(slot) => self.slots[slot as usize] = Some((deadline, key)),
            None => self.slots.push(Some((deadline, key))),
        }
    }

    pub(crate) fn remove(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize)
            && place.take().is_some()
        {
            self.free.push(slot);
        }
    }

    /// When to look for passed deadlines: at the earliest, or before.
    pub(crate) fn first(&self) -> Instant {
        self.first
    }

    /// What has passed. It stays in its slot until it is removed.
    pub(crate) fn passed(&mut self, now: Instant) -> Vec<K> {
        if self.first > now {
            return Vec::new();
        }
        let mut passed = Vec::new();
        self.first = Instant::FAR_FUTURE;
        for (deadline, key) in self.slots.iter().flatten() {
            if *deadline <= now {
                passed.push(*key);
            } else {
                self.first = self.first.min(*deadline);
            }
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn what_has_passed_is_found_and_the_rest_waits() {
        let mut deadlines = Deadlines::new();
        let mut slots = Vec::new();
        for millis in [30, 10, 20] {
            slots.push(deadlines.next_slot());
            deadlines.insert(at(millis), millis);
        }
        assert_eq!(deadlines.first(), at(10));
        assert!(deadlines.passed(at(9)).is_empty());
        assert_eq!(deadlines.passed(at(20)), [10, 20]);
        assert_eq!(deadlines.first(), at(30));

        for slot in slots {
            deadlines.remove(slot);
            deadlines.remove(slot);
        }
        assert!(deadlines.passed(at(30)).is_empty());
        assert_eq!(deadlines.first(), Instant::FAR_FUTURE);
        assert_eq!(deadlines.free.len(), 3);
    }
}
