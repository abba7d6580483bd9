//! Reads as the server's tests of its readers make them, and their outcome in one line.

use bytes::Bytes;
use tikv_proto::kvrpcpb::{Context, GetRequest, IsolationLevel, KvPair, ScanRequest};

use super::vocabulary::word;
use super::{Bench, NOW};
use crate::cluster::region::StoreId;

/// A read at a version.
#[derive(Clone, Default)]
pub(super) struct Look {
    ts: u64,
    context: Context,
    commit_ts: bool,
}

/// Reads at a version as snapshot isolation does.
pub(super) fn at(ts: u64) -> Look {
    Look {
        ts,
        ..Look::default()
    }
}

impl Look {
    /// Reads what is committed, whatever is locked.
    pub(super) fn rc(mut self) -> Self {
        self.context.set_isolation_level(IsolationLevel::Rc);
        self
    }

    /// Fails where anything is newer than the read.
    pub(super) fn rc_check(mut self) -> Self {
        self.context.set_isolation_level(IsolationLevel::RcCheckTs);
        self
    }

    /// Passes these transactions' locks.
    pub(super) fn bypass(mut self, locks: &[u64]) -> Self {
        self.context.resolved_locks = locks.to_vec();
        self
    }

    /// Reads through these transactions' locks.
    pub(super) fn access(mut self, locks: &[u64]) -> Self {
        self.context.committed_locks = locks.to_vec();
        self
    }

    /// Wants to know where the value was committed.
    pub(super) fn with_commit_ts(mut self) -> Self {
        self.commit_ts = true;
        self
    }

    /// The context of a request with what this read adds.
    pub(super) fn context(&self, route: Option<Box<Context>>) -> Option<Box<Context>> {
        route.map(|route| {
            Box::new(Context {
                isolation_level: self.context.isolation_level,
                resolved_locks: self.context.resolved_locks.clone(),
                committed_locks: self.context.committed_locks.clone(),
                ..*route
            })
        })
    }
}

/// Bounds of a scan in user keys, both optional.
pub(super) type Bounds<'a> = (&'a str, &'a str);

impl Bench {
    /// The value and the commit version a read sees, or the error in one word.
    pub(super) fn entry(
        &mut self,
        k: &[u8],
        look: &Look,
    ) -> Result<Option<(Bytes, u64)>, &'static str> {
        let (context, store) = self.to(k);
        let request = GetRequest {
            context: look.context(context),
            key: Bytes::copy_from_slice(k),
            version: look.ts,
            need_commit_ts: look.commit_ts,
        };
        let response = self.cluster.kv_get(NOW, store, request);
        assert_eq!(response.region_error, None);
        match response.error {
            Some(error) => Err(word(Some(&error))),
            None if response.not_found => Ok(None),
            None => Ok(Some((response.value, response.commit_ts))),
        }
    }

    /// The value a read sees as text: empty for none, the error's word with a `!` before it.
    pub(super) fn see(&mut self, k: &[u8], look: &Look) -> String {
        match self.entry(k, look) {
            Ok(Some((value, _))) => text(&value),
            Ok(None) => String::new(),
            Err(word) => format!("!{word}"),
        }
    }

    /// What a scan upwards sees: `a=1 b!locked c=3`.
    pub(super) fn rows(&mut self, look: &Look, (start, end): Bounds<'_>) -> String {
        self.scan(look, start, end, false)
    }

    /// What a scan downwards from the upper bound sees.
    pub(super) fn rows_down(&mut self, look: &Look, (start, end): Bounds<'_>) -> String {
        // A scan downwards starts below its start; above everything there is this key.
        let upper = if end.is_empty() { "\u{10ffff}" } else { end };
        self.scan(look, upper, start, true)
    }

    fn scan(&mut self, look: &Look, start: &str, end: &str, reverse: bool) -> String {
        let (context, store): (_, StoreId) = self.to(b"");
        let request = ScanRequest {
            context: look.context(context),
            start_key: start.to_owned().into(),
            end_key: end.to_owned().into(),
            version: look.ts,
            limit: 100,
            reverse,
            ..Default::default()
        };
        let response = self.cluster.kv_scan(NOW, store, request);
        assert_eq!(response.region_error, None);
        let rows: Vec<String> = response.pairs.iter().map(row).collect();
        rows.join(" ")
    }
}

/// A pair of an answer in one word.
pub(super) fn row(pair: &KvPair) -> String {
    match &pair.error {
        Some(error) => {
            let key = error.locked.as_ref().map(|lock| text(&lock.key));
            format!("{}!{}", key.unwrap_or_default(), word(Some(error)))
        }
        None => format!("{}={}", text(&pair.key), text(&pair.value)),
    }
}

/// Bytes as text.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
