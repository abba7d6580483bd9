//! Whether money appears or disappears.

use tikv_core::{KeyRange, Value};

use super::{Verdict, Violation};
use crate::history::{History, Query};

/// Every read of the whole range by a transaction that had written nothing sees values that add up
/// to `total`. Values are decimal numbers.
///
/// # Errors
///
/// The first violation.
pub fn constant(history: &History, range: &KeyRange, total: u64) -> Verdict {
    for transaction in &history.transactions {
        for read in &transaction.reads {
            let whole = matches!(
                &read.query,
                Query::Range { range: asked, limit: usize::MAX, .. } if asked == range
            );
            if !whole || read.own_writes > 0 {
                continue;
            }
            let mut sum = 0;
            for (key, value) in &read.rows {
                let Some(number) = number(value) else {
                    let detail = format!("{key:?} holds {value:?}, which is no number");
                    return Err(Violation::new("constant sum", detail));
                };
                sum += number;
            }
            if sum != total {
                let detail = format!(
                    "client {} saw a total of {sum} at {}, not {total}",
                    transaction.client, read.ts
                );
                return Err(Violation::new("constant sum", detail));
            }
        }
    }
    Ok(())
}

/// The number that a value spells.
pub fn number(value: &Value) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tikv_core::driver::Instant;

    fn history(values: &[&str]) -> History {
        let mut history = History::default();
        let id = history.begin(1, Instant::ZERO);
        let range = KeyRange::all();
        let rows = values
            .iter()
            .map(|value| ((*value).into(), (*value).into()))
            .collect();
        history.read(
            id,
            Query::Range {
                range,
                limit: usize::MAX,
                reverse: false,
            },
            rows,
        );
        history
    }

    #[test]
    fn a_wrong_total_is_caught() {
        let range = KeyRange::all();
        assert_eq!(constant(&history(&["40", "60"]), &range, 100), Ok(()));
        assert!(constant(&history(&["40", "59"]), &range, 100).is_err());
        assert!(constant(&history(&["40", "x"]), &range, 100).is_err());
    }
}
