//! Arithmetic of ranges for loading many regions at once. Pure functions over sorted, disjoint
//! ranges; the loader sends what they leave over.

use std::sync::Arc;

use crate::key::{Key, KeyRange};
use crate::region::Region;

/// What is left of `ranges` after everything before `done`, `None` being the end of all keys.
/// (client-go: `rangesAfterKey`)
pub(crate) fn remaining(ranges: &[KeyRange], done: Option<&Key>) -> Vec<KeyRange> {
    let Some(done) = done else {
        return Vec::new();
    };
    ranges
        .iter()
        .filter(|range| range.end().is_none_or(|end| end > done))
        .map(|range| {
            let start = range.start().max(done).clone();
            KeyRange::new(start, range.end().cloned())
        })
        .collect()
}

/// Whether `regions`, in order, leave no gap in `ranges`. An answer that is as long as its
/// `limit` may end early. (client-go: `regionsHaveGapInRanges`, negated)
pub(crate) fn covers(ranges: &[KeyRange], regions: &[KeyRange], limit: Option<usize>) -> bool {
    let mut ranges = ranges.iter();
    let Some(mut range) = ranges.next() else {
        return true;
    };
    let mut cursor = range.start();
    for region in regions {
        if region.start() > cursor {
            return false;
        }
        let Some(end) = region.end() else {
            return true;
        };
        cursor = cursor.max(end);
        while range.end().is_some_and(|end| end <= cursor) {
            match ranges.next() {
                Some(next) => range = next,
                None => return true,
            }
        }
        cursor = cursor.max(range.start());
    }
    // Ranges that were reached to their end are behind us, so what is left was not covered.
    !regions.is_empty() && limit == Some(regions.len())
}

/// Cached regions and loaded ones, in order. What was loaded is newer: cached regions that it
/// covers are dropped, those that it overlaps only in part are kept beside it.
/// (client-go: `batchLocateRangesMerger`)
pub(crate) fn merge(cached: Vec<Arc<Region>>, loaded: Vec<Arc<Region>>) -> Vec<Arc<Region>> {
    let mut merged: Vec<Arc<Region>> = Vec::with_capacity(cached.len() + loaded.len());
    let mut cached = cached.into_iter().peekable();
    let mut reached: Option<Arc<Region>> = None;
    for next in loaded {
        // Right behind the last loaded one there is no room for a cached one.
        let adjoins = reached
            .as_ref()
            .is_some_and(|r| r.end().is_none_or(|e| next.start() <= e));
        while !adjoins && let Some(region) = cached.next_if(|region| region.start() < next.start())
        {
            if !is_covered(&region, reached.as_deref()) {
                merged.push(region);
            }
        }
        reached = Some(next.clone());
        merged.push(next);
    }
    merged.extend(cached.filter(|region| !is_covered(region, reached.as_deref())));
    merged
}

fn is_covered(region: &Region, reached: Option<&Region>) -> bool {
    reached.is_some_and(|reached| match (region.end(), reached.end()) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(end), Some(reached)) => end <= reached,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> Vec<KeyRange> {
        let range = |word: &str| {
            let (start, end) = word.split_once('-').unwrap();
            KeyRange::new(start, Some(Key::from(end)).filter(|end| !end.is_empty()))
        };
        text.split_whitespace().map(range).collect()
    }

    #[test]
    fn split_key_ranges() {
        for (before, done, after) in [
            ("b-d", Some(""), "b-d"),
            ("b-d", Some("a"), "b-d"),
            ("b-d", Some("b"), "b-d"),
            ("b-d", Some("c"), "c-d"),
            ("b-d", Some("d"), ""),
            ("b-d", Some("e"), ""),
            ("b-d e-g", Some("c"), "c-d e-g"),
            ("b-d e-g", Some("d"), "e-g"),
            ("b-d e-g", Some("f"), "f-g"),
            ("b-d e-", Some("f"), "f-"),
            ("b-d e-", Some("z"), "z-"),
            ("b-d e-", None, ""),
        ] {
            let done = done.map(Key::from);
            assert_eq!(
                remaining(&ranges(before), done.as_ref()),
                ranges(after),
                "{before}"
            );
        }
    }

    #[test]
    fn ranges_are_covered_check() {
        for (wanted, regions, limit, covered) in [
            ("", "", None, true),
            ("a-c", "", None, false),
            ("a-c", "a-c", None, true),
            ("a-c", "-d", None, true),
            ("a-c", "-", None, true),
            ("a-c", "b-c", None, false),
            ("a-c", "a-b", None, false),
            ("a-c", "a-b b-c", None, true),
            ("a-d", "a-b c-d", None, false),
            ("a-b c-d", "a-b c-d", None, true),
            ("a-b c-d", "a-b", None, false),
            ("a-b c-d", "a-b c1-d", None, false),
            ("a-b c-d", "-b b-c1 c1-", None, true),
            ("a-", "a-b b-", None, true),
            ("a-", "a-b b-c", None, false),
            ("a-", "a-b b-c", Some(2), true),
            ("a-", "a-b c-d", Some(2), false),
            ("a-", "a-b b-c", Some(3), false),
            ("-", "-", None, true),
        ] {
            let got = covers(&ranges(wanted), &ranges(regions), limit);
            assert_eq!(got, covered, "{wanted} by {regions}, limit {limit:?}");
        }
    }
}
