//! Reading at a version: one key, or a range in either direction.

use bytes::Bytes;
use tikv_proto::kvrpcpb::IsolationLevel;
use tikv_proto::kvrpcpb::write_conflict::Reason;

use super::error::MvccError;
use super::lock::{KeyLock, LockKind, ReadRules};
use super::reader::Reader;
use crate::cluster::key::Key;

/// A value with the version it was committed at; 0 if the version is not known or not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value; empty if only keys are asked.
    pub value: Bytes,
    /// Its commit version.
    pub commit_ts: u64,
}

/// What a read wants beside its version.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// The commit version; then a lock is never read through.
    pub commit_ts: bool,
    /// Keys alone.
    pub key_only: bool,
    /// The versions of a key are walked from the oldest on, as a scan downwards does.
    pub upwards: bool,
}

/// How many versions a scan downwards looks at one by one, the oldest first, before it seeks.
const UPWARDS_MAX: usize = 16;

/// Reads one key.
pub fn get(
    reader: &Reader<'_>,
    key: &Key,
    rules: &ReadRules<'_>,
    wanted: Wanted,
) -> Result<Option<Entry>, MvccError> {
    // Isolation RC does not even look at the lock, but a key outside the region is an error.
    let newest = reader.seek_write(key, u64::MAX)?;
    if let Some(KeyLock::Exclusive(lock)) = reader.engine.lock(key)
        && let Err(conflict) = lock.check_read(key, rules)
    {
        if wanted.commit_ts || !rules.access.contains(&lock.start_ts) {
            return Err(conflict);
        }
        let value = match (lock.kind, wanted.key_only, &lock.short_value) {
            (LockKind::Put, true, _) => Bytes::new(),
            (LockKind::Put, false, Some(value)) => value.clone(),
            (LockKind::Put, false, None) => reader
                .long_value(key, lock.start_ts)
                .ok_or_else(|| MvccError::default_not_found(&key.to_user()))?,
            (LockKind::Delete | LockKind::Lock | LockKind::Pessimistic, _, _) => return Ok(None),
        };
        return Ok(Some(Entry {
            value,
            commit_ts: 0,
        }));
    }
    if rules.isolation == IsolationLevel::RcCheckTs
        && let Some(commit_ts) = match (newest, wanted.upwards) {
            (Some(_), true) => reader.first_above(key, rules.ts, UPWARDS_MAX),
            (newest, _) => newest.map(|(ts, _)| ts).filter(|&ts| ts > rules.ts),
        }
    {
        return Err(MvccError::WriteConflict {
            start_ts: rules.ts,
            conflict_start_ts: 0,
            conflict_commit_ts: commit_ts,
            // Not the user's key: the server answers with the stored one, version and all.
            key: key.with_ts(commit_ts),
            primary: Bytes::new(),
            reason: Reason::RcCheckTs,
        });
    }
    let seen = match wanted.upwards {
        true => reader.get_write_upwards(key, rules.ts, UPWARDS_MAX),
        false => reader.get_write(key, rules.ts, rules.ts)?,
    };
    let Some((commit_ts, write)) = seen else {
        return Ok(None);
    };
    let value = if wanted.key_only {
        Bytes::new()
    } else {
        reader.load_value(key, write)?
    };
    Ok(Some(Entry {
        value,
        commit_ts: if wanted.commit_ts { commit_ts } else { 0 },
    }))
}

/// A range to scan.
#[derive(Clone, Debug)]
pub struct ScanRange {
    /// Encoded lower bound, inclusive.
    pub lower: Option<Bytes>,
    /// Encoded upper bound, exclusive.
    pub upper: Option<Bytes>,
    /// From the upper bound downwards.
    pub reverse: bool,
    /// At most this many rows and locked keys.
    pub limit: usize,
    /// With n > 0, rows 1, n + 1, 2n + 1 and so on.
    pub sample_step: usize,
}

/// One row of a scan, or the key's lock.
pub type Row = Result<(Key, Bytes), MvccError>;

/// Scans a range. A locked key is a row of its own and the scan goes on; any other error ends it.
pub fn scan(
    reader: &Reader<'_>,
    range: &ScanRange,
    rules: &ReadRules<'_>,
    wanted: Wanted,
) -> Result<Vec<Row>, MvccError> {
    check_range(reader, range)?;
    let first = if range.reverse {
        &range.upper
    } else {
        &range.lower
    };
    if let Some(first) = first {
        reader.check_seek(first)?;
    }
    let wanted = Wanted {
        upwards: range.reverse,
        ..wanted
    };
    let (start, end) = reader.clip(
        &range.lower.clone().unwrap_or_default(),
        &range.upper.clone().unwrap_or_default(),
    );
    let mut keys = Keys::new(reader, &start, &end, range.reverse);
    let mut rows = Vec::new();
    let mut seen = 0usize;
    while rows.len() < range.limit {
        let Some(key) = keys.next() else { break };
        match get(reader, key, rules, wanted) {
            Ok(Some(entry)) => {
                if range.sample_step == 0 || seen.is_multiple_of(range.sample_step) {
                    rows.push(Ok((key.clone(), entry.value)));
                }
                seen += 1;
            }
            Ok(None) => {}
            Err(locked @ MvccError::KeyIsLocked(_)) => rows.push(Err(locked)),
            Err(other) => return Err(other),
        }
    }
    Ok(rows)
}

fn check_range(reader: &Reader<'_>, range: &ScanRange) -> Result<(), MvccError> {
    let below = range
        .lower
        .as_ref()
        .is_some_and(|lower| lower < reader.start);
    let above =
        !reader.end.is_empty() && range.upper.as_ref().is_some_and(|upper| upper > reader.end);
    if !below && !above {
        return Ok(());
    }
    let bound = |bytes: &Option<Bytes>| format!("{:?}", bytes.as_deref().map(<[u8]>::to_vec));
    Err(MvccError::txn(format_args!(
        "InvalidReqRange {{ start: {}, end: {}, lower_bound: Some({:?}), upper_bound: Some({:?}) }}",
        bound(&range.lower),
        bound(&range.upper),
        reader.start.to_vec(),
        reader.end.to_vec()
    )))
}

/// Keys that have a lock or a version, in order and once each.
struct Keys<'a, L: Iterator<Item = &'a Key>, W: Iterator<Item = &'a Key>> {
    locks: std::iter::Peekable<L>,
    writes: std::iter::Peekable<W>,
    reverse: bool,
}

impl<'a> Keys<'a, Box<dyn Iterator<Item = &'a Key> + 'a>, Box<dyn Iterator<Item = &'a Key> + 'a>> {
    fn new(reader: &Reader<'a>, start: &Bytes, end: &Bytes, reverse: bool) -> Self {
        let locks = reader.engine.locks(start, end).map(|(key, _)| key);
        let writes = reader.engine.histories(start, end).map(|(key, _)| key);
        let (locks, writes): (
            Box<dyn Iterator<Item = &'a Key>>,
            Box<dyn Iterator<Item = &'a Key>>,
        ) = if reverse {
            (Box::new(locks.rev()), Box::new(writes.rev()))
        } else {
            (Box::new(locks), Box::new(writes))
        };
        Keys {
            locks: locks.peekable(),
            writes: writes.peekable(),
            reverse,
        }
    }
}

impl<'a, L: Iterator<Item = &'a Key>, W: Iterator<Item = &'a Key>> Iterator for Keys<'a, L, W> {
    type Item = &'a Key;

    fn next(&mut self) -> Option<&'a Key> {
        let order = match (self.locks.peek(), self.writes.peek()) {
            (None, None) => return None,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(lock), Some(write)) if self.reverse => write.cmp(lock),
            (Some(lock), Some(write)) => lock.cmp(write),
        };
        match order {
            std::cmp::Ordering::Less => self.locks.next(),
            std::cmp::Ordering::Greater => self.writes.next(),
            std::cmp::Ordering::Equal => {
                self.locks.next();
                self.writes.next()
            }
        }
    }
}

/// Reads a pipelined transaction's own flushed lock.
pub fn get_flushed(
    reader: &Reader<'_>,
    key: &Key,
    start_ts: u64,
) -> Result<Option<Bytes>, MvccError> {
    let Some(KeyLock::Exclusive(lock)) = reader.lock(key)? else {
        return Ok(None);
    };
    if lock.start_ts != start_ts {
        return Ok(None);
    }
    match lock.kind {
        LockKind::Put => match lock.short_value {
            Some(value) => Ok(Some(value)),
            None => Ok(reader.long_value(key, start_ts)),
        },
        LockKind::Delete => Ok(Some(Bytes::new())),
        LockKind::Lock | LockKind::Pessimistic => Err(MvccError::crash(
            "a buffer read met a lock without data of its own transaction",
        )),
    }
}

/// Whether any write record stands in an encoded range, both ends included.
pub fn has_versions(reader: &Reader<'_>, first: &Key, last: &Key) -> bool {
    let mut end = last.encoded().to_vec();
    end.push(0);
    reader
        .engine
        .histories(first.encoded(), &Bytes::from(end))
        .any(|(_, history)| history.seek(u64::MAX).is_some())
}
