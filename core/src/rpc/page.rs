//! What a page of a scan must look like: no more rows than were asked for, each in the part of the
//! range that was asked, each beyond the one before it. A server that breaks this would have a scan
//! repeat rows, leave some out, or go on for ever.

use crate::error::{Error, Result};
use crate::key::{Key, KeyRange};

/// The rows of one page, in the order in which they come.
pub(crate) struct Page<'a> {
    part: &'a KeyRange,
    reverse: bool,
    /// How many more rows it may have.
    left: u32,
}

impl<'a> Page<'a> {
    /// A page of `part` with at most `limit` rows.
    pub(crate) fn new(part: &'a KeyRange, reverse: bool, limit: u32) -> Self {
        Page {
            part,
            reverse,
            left: limit,
        }
    }

    /// Takes the next row's key in, which follows `last`.
    pub(crate) fn admit(&mut self, last: Option<&Key>, key: &Key) -> Result<()> {
        let wrong = |what: &str| {
            Err(Error::protocol(format!(
                "a scan of {:?} answered with {key}, which {what}",
                self.part
            )))
        };
        let in_order = last.is_none_or(|last| match self.reverse {
            false => last < key,
            true => key < last,
        });
        if self.left == 0 {
            return wrong("is more than was asked for");
        }
        if !in_order {
            return wrong("is out of order");
        }
        if !self.part.contains(key) {
            return wrong("lies outside");
        }
        self.left -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(reverse: bool, keys: &[&'static str]) -> bool {
        let part = KeyRange::from("b".."y");
        let mut page = Page::new(&part, reverse, 3);
        let mut last: Option<Key> = None;
        keys.iter().all(|&key| {
            let key = Key::from(key);
            let admitted = page.admit(last.as_ref(), &key).is_ok();
            last = Some(key);
            admitted
        })
    }

    #[test]
    fn rows_lie_in_the_part_and_follow_each_other() {
        for (reverse, keys, fits) in [
            (false, &["b", "c", "x"][..], true),
            (true, &["x", "c", "b"], true),
            (false, &[], true),
            (false, &["c", "b"], false),
            (false, &["c", "c"], false),
            (true, &["c", "x"], false),
            (true, &["c", "c"], false),
            (false, &["a"], false),
            (false, &["y"], false),
            (false, &["b", "c", "d", "e"], false),
        ] {
            assert_eq!(admitted(reverse, keys), fits, "{reverse} {keys:?}");
        }
    }
}
