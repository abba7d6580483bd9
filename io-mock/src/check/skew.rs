//! Whether two keys ever had the same value at one moment.

use tikv_core::{Key, Timestamp, Value};

use super::truth::Truth;

/// The first commit after which all of `keys` have this value.
pub fn both(truth: &Truth, keys: &[Key; 2], value: &Value) -> Option<Timestamp> {
    let mut commits: Vec<Timestamp> = keys
        .iter()
        .flat_map(|key| truth.versions(key))
        .map(|version| version.commit_ts)
        .collect();
    commits.sort();
    commits
        .into_iter()
        .find(|&ts| keys.iter().all(|key| truth.value(key, ts) == Some(value)))
}

#[cfg(test)]
mod tests {
    use super::super::truth::{put, truth};
    use super::*;

    #[test]
    fn the_moment_is_found() {
        let truth = truth([
            put("a", 1, 2, "on"),
            put("b", 1, 2, "on"),
            put("a", 3, 5, "off"),
            put("b", 4, 6, "off"),
            put("a", 7, 8, "on"),
        ]);
        let keys = ["a".into(), "b".into()];
        assert_eq!(both(&truth, &keys, &"off".into()), Some(6.into()));
        assert_eq!(both(&truth, &keys, &"on".into()), Some(2.into()));
        assert_eq!(both(&truth, &keys, &"dim".into()), None);
    }
}
