//! Finer cuts inside a region, as TiKV and PD report them. Advisory: they may lie outside the
//! region, be out of date, or be missing. (client-go: `metapb.Buckets`, `LocateBucket`)

use crate::key::{Key, KeyRange};

/// The cuts of one region at one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Buckets {
    version: u64,
    keys: Vec<Key>,
}

impl Buckets {
    /// Cuts at `keys`, which ascend; an empty last key means the end of all keys.
    pub(crate) fn new(version: u64, keys: Vec<Key>) -> Self {
        Buckets { version, keys }
    }

    /// Rises with every change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The cuts.
    pub(crate) fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// The range between the two cuts around `key`, within `region`; the region's own bounds
    /// stand in for a cut that is missing. `key` is in the region.
    pub(crate) fn around(&self, key: &[u8], region: &KeyRange) -> KeyRange {
        let cuts = match self.keys.split_last() {
            Some((last, cuts)) if last.is_empty() => cuts,
            _ => &self.keys[..],
        };
        let after = cuts.partition_point(|cut| **cut <= *key);
        let start = match after.checked_sub(1) {
            Some(before) => cuts[before].clone(),
            None => Key::EMPTY,
        };
        let clamped = KeyRange::new(start, cuts.get(after).cloned()).intersect(region);
        if clamped.is_empty() {
            return region.clone();
        }
        clamped
    }

    /// The cuts that matter to a part of the region they were made for.
    pub(crate) fn clamped(&self, range: &KeyRange) -> Buckets {
        let inside = self
            .keys
            .iter()
            .filter(|key| range.contains(key) && *key != range.start());
        let mut keys = vec![range.start().clone()];
        keys.extend(inside.cloned());
        keys.push(range.wire_end());
        Buckets {
            version: self.version,
            keys,
        }
    }
}
