//! In which order those who share a lock are listed.
//!
//! The server keeps them in a hash table, so the order is neither that of their starts nor that of
//! their coming. But it is no accident either: the hash has no secret, and the table is filled in
//! the order in which the members were written the last time. So the table is laid out here as it
//! is there.

/// What a start version is multiplied with to get its hash.
const SEED: u64 = 0x517c_c1b7_2722_0a95;

/// The members as the server lists them: `written` is the order in which they stand in the data,
/// which may name some that have left since; `joined` come after them.
pub fn listed(written: &[u64], joined: &[u64]) -> Vec<u64> {
    // Whoever reads the data leaves room for one more.
    let count = (written.len() + 1).max(written.len() + joined.len());
    let mut table = vec![None; places(count)];
    let last = table.len() - 1;
    for &start_ts in written.iter().chain(joined) {
        // The table is a power of two, so the mask keeps the place within it.
        let mut place = start_ts.wrapping_mul(SEED) as usize & last;
        while table.get(place).is_some_and(Option::is_some) {
            place = (place + 1) & last;
        }
        if let Some(free) = table.get_mut(place) {
            *free = Some(start_ts);
        }
    }
    table.into_iter().flatten().collect()
}

/// How many places a table has that is to hold so many members.
fn places(count: usize) -> usize {
    match count {
        0..4 => 4,
        4..8 => 8,
        8..15 => 16,
        _ => (count * 8 / 7).next_power_of_two(),
    }
}

#[cfg(test)]
mod tests {
    use super::listed;

    /// A start version with these last bits.
    fn ts(physical: u64, logical: u64) -> u64 {
        physical << 18 | logical
    }

    #[test]
    fn those_with_the_same_last_bits_stand_as_they_came_until_the_table_ends() {
        let starts = [ts(10, 1), ts(11, 1)];
        assert_eq!(listed(&starts, &[]), starts);
        assert_eq!(
            listed(&starts, &[ts(12, 1)]),
            [ts(10, 1), ts(11, 1), ts(12, 1)]
        );
        let starts = [ts(10, 3), ts(11, 3)];
        let turned = [starts[1], starts[0]];
        assert_eq!(listed(&starts[..1], &starts[1..]), turned);
        // What is written in one order is read in the other.
        assert_eq!(listed(&turned, &[]), starts);
    }

    #[test]
    fn the_last_bits_decide_between_others() {
        let starts = [ts(10, 2), ts(11, 1)];
        assert_eq!(listed(&starts, &[]), [ts(11, 1), ts(10, 2)]);
        assert!(listed(&[], &[]).is_empty());
        let many: Vec<u64> = (1..=100).collect();
        let mut sorted = listed(&many, &[]);
        assert_ne!(sorted, many);
        sorted.sort_unstable();
        assert_eq!(sorted, many);
    }
}
