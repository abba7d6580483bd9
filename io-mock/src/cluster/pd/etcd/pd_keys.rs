//! The keys of etcd that PD itself keeps its safe points in, or looks for: up to where transactions
//! are ended, and the oldest transaction that each old node of TiDB runs.
//!
//! In PD these keys are the state. Here the state is [elsewhere](super::super::gc), so what one
//! side writes is told to the other.

use std::str;

use super::super::gc::NULL_KEYSPACE;
use crate::cluster::pd::Pd;

const TXN_SAFE_POINT: &str = "/tidb/store/gcworker/saved_safe_point";
const MIN_START_TS: &str = "/tidb/server/minstartts/";
/// What the same keys of a keyspace that collects for itself begin with, before its id.
const KEYSPACE: &str = "/keyspaces/tidb/";

/// A key that PD knows.
#[derive(Debug, PartialEq, Eq)]
enum Known<'a> {
    TxnSafePoint(u32),
    MinStartTs(u32, &'a str),
}

impl Pd {
    /// Writes the safe points that have moved since.
    pub(crate) fn etcd_tell_safe_points(&mut self) {
        let own = self.gc.own.iter().map(|(id, state)| (*id, state));
        let all = own.chain([(NULL_KEYSPACE, &self.gc.shared)]);
        let moved: Vec<(String, String)> = all
            .map(|(id, state)| (txn_safe_point_key(id), state.txn_safe_point))
            .filter(|(key, ts)| {
                let kept = self.meta.get(key.as_bytes());
                let kept = kept.and_then(|kv| number(&kv.value));
                kept.unwrap_or(0) != *ts
            })
            .map(|(key, ts)| (key, ts.to_string()))
            .collect();
        for (key, ts) in moved {
            self.meta.put(key.into(), ts.into(), 0);
            self.watched += 1;
        }
    }

    /// Takes note of what a client writes, or deletes.
    pub(super) fn etcd_hear(&mut self, key: &[u8], value: Option<&[u8]>) {
        let Some(known) = str::from_utf8(key).ok().and_then(known) else {
            return;
        };
        let ts = value.map(number);
        match known {
            Known::TxnSafePoint(keyspace) => {
                // What is no number would be an error at PD's next look; here nothing changes.
                if let Some(ts) = ts.unwrap_or(Some(0)) {
                    self.gc.of_mut(keyspace).txn_safe_point = ts;
                }
            }
            Known::MinStartTs(keyspace, node) => {
                self.set_min_start_ts(keyspace, node, ts.flatten());
            }
        }
    }
}

fn txn_safe_point_key(keyspace: u32) -> String {
    match keyspace {
        NULL_KEYSPACE => TXN_SAFE_POINT.to_owned(),
        id => format!("{KEYSPACE}{id}{TXN_SAFE_POINT}"),
    }
}

fn known(key: &str) -> Option<Known<'_>> {
    let (keyspace, rest) = match key.strip_prefix(KEYSPACE) {
        None => (NULL_KEYSPACE, key),
        Some(of_keyspace) => {
            let end = of_keyspace.find('/')?;
            let (id, rest) = of_keyspace.split_at(end);
            (id.parse().ok()?, rest)
        }
    };
    if rest == TXN_SAFE_POINT {
        return Some(Known::TxnSafePoint(keyspace));
    }
    let node = rest.strip_prefix(MIN_START_TS)?;
    Some(Known::MinStartTs(keyspace, node))
}

fn number(value: &[u8]) -> Option<u64> {
    str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_keyspaces_are_told_from_the_shared_ones() {
        for keyspace in [NULL_KEYSPACE, 7] {
            let key = txn_safe_point_key(keyspace);
            assert_eq!(known(&key), Some(Known::TxnSafePoint(keyspace)));
        }
        let node = "/keyspaces/tidb/7/tidb/server/minstartts/n-1";
        assert_eq!(known(node), Some(Known::MinStartTs(7, "n-1")));
        for other in ["/tidb/server/info/n-1", "/keyspaces/tidb/x/y", "/"] {
            assert_eq!(known(other), None);
        }
    }
}
