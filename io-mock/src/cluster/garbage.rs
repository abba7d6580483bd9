//! The removal of old versions. A store asks PD every ten seconds up to where it may go; here it
//! asks when it is told to, because nothing happens between calls.
//!
//! Nobody checks a read against it: a read below the safe point finds holes, unless the
//! configuration has such reads refused.

use bytes::Bytes;
use tikv_proto::kvrpcpb::ApiVersion;

use super::Cluster;
use super::key::Key;
use super::mvcc::engine::Change;
use super::mvcc::write_record::WriteKind;

impl Cluster {
    /// Removes versions that no read at or above the safe point can see.
    pub fn collect_garbage(&mut self, safe_point: u64) {
        self.collected = self.collected.max(safe_point);
        self.collect(|_| safe_point);
    }

    /// Removes versions as far as PD's safe points allow, those of a keyspace that collects for
    /// itself as far as its own. Returns the safe point of all others.
    pub fn collect_to_safe_points(&mut self) -> u64 {
        let shared = self.pd.gc().gc_safe_point;
        if self.config.api_version != ApiVersion::V2 {
            self.collect_garbage(shared);
            return shared;
        }
        let own = self.pd.own_gc_safe_points();
        self.collect(|key| {
            let own = keyspace_of(key).and_then(|keyspace| own.get(&keyspace));
            own.copied().unwrap_or(shared)
        });
        shared
    }

    /// Removes versions of each key up to a safe point of its own.
    fn collect(&mut self, safe_point: impl Fn(&Key) -> u64) {
        let all = Bytes::new();
        let mut changes = Vec::new();
        for (key, history) in self.engine.histories(&all, &all) {
            let mut covered = false;
            for (commit_ts, write) in history.from(safe_point(key)) {
                let keep = !covered && write.kind == WriteKind::Put;
                covered |= matches!(write.kind, WriteKind::Put | WriteKind::Delete);
                if keep {
                    continue;
                }
                changes.push(Change::DeleteWrite(key.clone(), commit_ts));
                // Checkers ask for values that nobody can read any more.
                let goes = write.short_value.is_none() && !self.config.keep_truth;
                if write.kind == WriteKind::Put && goes {
                    changes.push(Change::DeleteValue(key.clone(), write.start_ts));
                }
            }
        }
        for change in changes {
            self.engine.apply(change);
        }
    }
}

/// The keyspace that a key of API v2 belongs to: three bytes after the mode.
fn keyspace_of(key: &Key) -> Option<u32> {
    match key.encoded().as_ref() {
        [b'x', a, b, c, ..] => Some(u32::from_be_bytes([0, *a, *b, *c])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tikv_proto::kvrpcpb::ApiVersion;

    use crate::cluster::Config;
    use crate::cluster::tests::{Bench, NOW};

    fn write(b: &mut Bench, k: &[u8]) {
        for start_ts in [5, 8] {
            b.must_prewrite_put(k, b"v", k, start_ts);
            b.must_commit(k, start_ts, start_ts + 1);
        }
    }

    #[test]
    fn versions_go_as_far_as_pd_allows() {
        let mut b = Bench::new();
        write(&mut b, b"k");
        assert_eq!(b.cluster.collect_to_safe_points(), 0);
        b.must_get(b"k", 7, b"v");
        let reached = b.cluster.pd_mut().advance_safe_points(NOW, 10);
        assert_eq!(reached, Ok(10));
        b.must_get(b"k", 7, b"v");
        assert_eq!(b.cluster.collect_to_safe_points(), 10);
        b.must_get_none(b"k", 7);
        b.must_get(b"k", 10, b"v");
    }

    #[test]
    fn a_keyspace_that_collects_for_itself_keeps_its_versions() {
        let mut b = Bench::with(Config {
            api_version: ApiVersion::V2,
            ..Config::default()
        });
        let own = [("gc_management_type", "keyspace_level")];
        let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let created = b.cluster.create_keyspace(NOW, "own", own.into());
        let [_, a, z, c] = created.expect("it is new").to_be_bytes();
        let (kept, gone) = ([b'x', a, z, c, b'k'], *b"x\0\0\0k");
        write(&mut b, &kept);
        write(&mut b, &gone);
        b.cluster
            .pd_mut()
            .advance_safe_points(NOW, 10)
            .expect("nothing is in the way");
        b.cluster.collect_to_safe_points();
        b.must_get_none(&gone, 7);
        b.must_get(&kept, 7, b"v");
    }
}
