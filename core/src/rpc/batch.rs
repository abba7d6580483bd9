//! Cuts sorted keys into the requests that carry them: one region and a bounded size each.
//!
//! A batch is a region and a range of places in the caller's sorted list, so cutting copies
//! nothing. (client-go: `batchBuilder`, `groupSortedMutationsByRegion`)

use std::ops::Range;
use std::sync::Arc;

/// The part of a sorted list that goes to one region in one request.
#[derive(Clone, Debug)]
pub(crate) struct Batch<R> {
    pub(crate) region: Arc<R>,
    pub(crate) items: Range<usize>,
    /// How many items the whole region got in this grouping.
    pub(crate) region_items: usize,
}

/// Cuts each group where `size_of` its items adds up to `limit`. The item that crosses the limit
/// stays in, so one large item makes one batch.
pub(crate) fn cut<R>(
    groups: impl IntoIterator<Item = (Arc<R>, Range<usize>)>,
    limit: usize,
    size_of: impl Fn(usize) -> usize,
) -> Vec<Batch<R>> {
    let mut batches = Vec::new();
    for (region, items) in groups {
        let region_items = items.len();
        let mut start = items.start;
        let mut size = 0;
        for item in items.clone() {
            size += size_of(item);
            if size >= limit {
                batches.push(Batch {
                    region: region.clone(),
                    items: start..item + 1,
                    region_items,
                });
                start = item + 1;
                size = 0;
            }
        }
        if start < items.end {
            batches.push(Batch {
                region,
                items: start..items.end,
                region_items,
            });
        }
    }
    batches
}

/// Moves the batch that holds the item `primary` to the front. Whether there is one.
pub(crate) fn primary_first<R>(batches: &mut [Batch<R>], primary: usize) -> bool {
    match batches
        .iter()
        .position(|batch| batch.items.contains(&primary))
    {
        Some(place) => {
            batches.swap(0, place);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    fn ranges(batches: &[Batch<u8>]) -> Vec<(u8, Range<usize>)> {
        batches
            .iter()
            .map(|batch| (*batch.region, batch.items.clone()))
            .collect()
    }

    #[test]
    fn the_item_that_crosses_the_limit_stays_in() {
        let sizes = [4, 4, 4, 20, 1, 1];
        let groups = [(Arc::new(1), 0..4), (Arc::new(2), 4..6)];
        let mut batches = cut(groups, 8, |item| sizes[item]);
        assert_eq!(ranges(&batches), [(1, 0..2), (1, 2..4), (2, 4..6)]);
        assert_eq!(batches[1].region_items, 4);
        assert!(primary_first(&mut batches, 5));
        assert_eq!(ranges(&batches), [(2, 4..6), (1, 2..4), (1, 0..2)]);
        assert!(!primary_first(&mut batches, 6));
    }

    quickcheck! {
        fn every_item_travels_exactly_once(sizes: Vec<u8>, split: usize, limit: u8) -> bool {
            let split = split % (sizes.len() + 1);
            let groups = [(Arc::new(1u8), 0..split), (Arc::new(2), split..sizes.len())];
            let batches = cut(groups, usize::from(limit) + 1, |item| usize::from(sizes[item]));
            let items: Vec<usize> = batches.iter().flat_map(|batch| batch.items.clone()).collect();
            items == (0..sizes.len()).collect::<Vec<_>>()
                && batches.iter().all(|batch| !batch.items.is_empty())
        }
    }
}
