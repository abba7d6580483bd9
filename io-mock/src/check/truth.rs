//! What happened: every version that was ever written, whoever was told of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use tikv_core::driver::Instant;
use tikv_core::{Key, KeyRange, Timestamp, Value};

use crate::cluster::mvcc::lock::KeyLock;
use crate::cluster::mvcc::write_record::WriteKind;
use crate::cluster::{self, Cluster};

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// Committed versions of each key, oldest first.
    versions: BTreeMap<Key, Vec<Version>>,
    /// What each transaction committed, by its start.
    by_start: BTreeMap<Timestamp, Vec<(Key, Timestamp)>>,
    /// Locks that stand at the end.
    pub locks: Vec<LeftLock>,
    /// Raw writes of each key, in the order in which they took effect.
    raw: BTreeMap<Key, Vec<RawWrite>>,
}

/// One committed version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// When the transaction began.
    pub start_ts: Timestamp,
    /// When it committed.
    pub commit_ts: Timestamp,
    /// What it wrote.
    pub what: What,
}

/// What a version is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A value.
    Put(Value),
    /// A deletion.
    Delete,
    /// Nothing: the key was only locked.
    Lock,
}

/// A lock that stands at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftLock {
    /// Where.
    pub key: Key,
    /// Whose.
    pub start_ts: Timestamp,
    /// How long it lives, counted from its owner's start.
    pub ttl_ms: u64,
}

/// A raw write at the moment it took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawWrite {
    /// When.
    pub at: Instant,
    /// The value, `None` being a deletion.
    pub value: Option<Value>,
}

impl Truth {
    /// Reads it off a cluster that has kept it.
    pub fn of(cluster: &Cluster) -> Self {
        let mut truth = Truth::default();
        let engine = cluster.engine();
        for applied in cluster.truth() {
            let record = &applied.record;
            let what = match record.kind {
                WriteKind::Put => What::Put(match &record.short_value {
                    Some(value) => value.clone().into(),
                    None => long_value(cluster, &applied.key, record.start_ts).into(),
                }),
                WriteKind::Delete => What::Delete,
                WriteKind::Lock => What::Lock,
                WriteKind::Rollback => continue,
            };
            let (start_ts, commit_ts) = (record.start_ts.into(), applied.commit_ts.into());
            let key = applied.key.to_user().into();
            truth.insert(
                key,
                Version {
                    start_ts,
                    commit_ts,
                    what,
                },
            );
        }
        let everything = Bytes::new();
        for (key, lock) in engine.locks(&everything, &everything) {
            let key: Key = key.to_user().into();
            let mut left = |start_ts: u64, ttl_ms| {
                truth.locks.push(LeftLock {
                    key: key.clone(),
                    start_ts: start_ts.into(),
                    ttl_ms,
                });
            };
            match lock {
                KeyLock::Exclusive(lock) => left(lock.start_ts, lock.ttl),
                KeyLock::Shared(shared) => {
                    shared
                        .members
                        .values()
                        .for_each(|lock| left(lock.start_ts, lock.ttl));
                }
            }
        }
        truth
    }

    /// Adds a version; one that is known already is left alone.
    pub fn insert(&mut self, key: Key, version: Version) {
        let versions = self.versions.entry(key.clone()).or_default();
        let at = versions.partition_point(|other| other.commit_ts < version.commit_ts);
        // A record is written again when a rollback is marked on it.
        if versions.get(at).is_some_and(|other| *other == version) {
            return;
        }
        let commits = self.by_start.entry(version.start_ts).or_default();
        commits.push((key, version.commit_ts));
        versions.insert(at, version);
    }

    /// Adds a raw write; they are added in the order in which they took effect.
    pub fn insert_raw(&mut self, key: Key, write: RawWrite) {
        self.raw.entry(key).or_default().push(write);
    }

    /// The versions of each key, oldest first.
    pub fn keys(&self) -> impl Iterator<Item = (&Key, &[Version])> {
        self.versions
            .iter()
            .map(|(key, versions)| (key, versions.as_slice()))
    }

    /// The versions of one key, oldest first.
    pub fn versions(&self, key: &Key) -> &[Version] {
        self.versions.get(key).map_or(&[], Vec::as_slice)
    }

    /// What the transaction that began at `start_ts` has committed: keys with their timestamps.
    pub fn commits(&self, start_ts: Timestamp) -> &[(Key, Timestamp)] {
        self.by_start.get(&start_ts).map_or(&[], Vec::as_slice)
    }

    /// How many transactions have committed something.
    pub fn committed(&self) -> u64 {
        self.by_start.len() as u64
    }

    /// The value of a key as of `ts`.
    pub fn value(&self, key: &Key, ts: Timestamp) -> Option<&Value> {
        value(self.versions(key), ts)
    }

    /// The rows of a range as of `ts`, in order.
    pub fn rows(&self, range: &KeyRange, ts: Timestamp) -> impl Iterator<Item = (&Key, &Value)> {
        self.versions
            .range(range.start().clone()..)
            .take_while(|(key, _)| range.contains(key))
            .filter_map(move |(key, versions)| Some((key, value(versions, ts)?)))
    }

    /// The raw writes of a key, in the order in which they took effect.
    pub fn raw_writes(&self, key: &Key) -> &[RawWrite] {
        self.raw.get(key).map_or(&[], Vec::as_slice)
    }
}

fn value(versions: &[Version], ts: Timestamp) -> Option<&Value> {
    let newest = versions
        .iter()
        .rev()
        .filter(|version| version.commit_ts <= ts)
        .find(|version| version.what != What::Lock)?;
    match &newest.what {
        What::Put(value) => Some(value),
        What::Delete | What::Lock => None,
    }
}

/// A value that does not fit into its record; empty if it has been deleted with its range.
fn long_value(cluster: &Cluster, key: &cluster::key::Key, start_ts: u64) -> Bytes {
    let history = cluster.engine().history(key);
    history
        .and_then(|history| history.value(start_ts))
        .cloned()
        .unwrap_or_default()
}

#[cfg(test)]
pub(super) fn put(key: &str, start: u64, commit: u64, value: &str) -> (Key, Version) {
    let what = What::Put(value.into());
    (
        key.into(),
        Version {
            start_ts: start.into(),
            commit_ts: commit.into(),
            what,
        },
    )
}

#[cfg(test)]
pub(super) fn truth(versions: impl IntoIterator<Item = (Key, Version)>) -> Truth {
    let mut truth = Truth::default();
    versions
        .into_iter()
        .for_each(|(key, version)| truth.insert(key, version));
    truth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_sees_the_newest_version_that_is_not_too_new() {
        let lock = (
            "a".into(),
            Version {
                start_ts: 21.into(),
                commit_ts: 22.into(),
                what: What::Lock,
            },
        );
        let delete = (
            "a".into(),
            Version {
                start_ts: 31.into(),
                commit_ts: 32.into(),
                what: What::Delete,
            },
        );
        let truth = truth([put("a", 11, 12, "x"), delete, lock, put("b", 5, 6, "y")]);
        let at = |ts: u64| {
            truth
                .value(&"a".into(), ts.into())
                .map(|value| value.as_ref().to_vec())
        };
        assert_eq!(at(11), None);
        assert_eq!(at(12).as_deref(), Some(&b"x"[..]));
        assert_eq!(at(31).as_deref(), Some(&b"x"[..]));
        assert_eq!(at(32), None);
        let rows = truth.rows(&KeyRange::all(), 40.into()).count();
        assert_eq!(rows, 1);
        assert_eq!(truth.commits(11.into()), [(Key::from("a"), 12.into())]);
    }
}
