//! The first phase: a lock on every key. What its errors mean is decided here without I/O; the
//! sending stands in `committer`. (client-go: `actionPrewrite`)

use tikv_proto::kvrpcpb;

use super::mutation::Mutations;
use crate::error::{Error, WriteConflict};
use crate::time::Timestamp;
use crate::txn::key_error::KeyFailure;
use crate::txn::lock::Lock;

/// What follows from the errors of one prewrite.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// The keys are locked.
    Locked,
    /// Others hold locks: resolve them, then send again.
    Resolve(Vec<Lock>),
    /// The transaction can't go on.
    Fail(Error),
}

/// Judges the errors in the order in which TiKV listed them: the first that is final decides;
/// locks of others only matter if there is none.
pub(crate) fn judge(errors: Vec<kvrpcpb::KeyError>, start_ts: Timestamp) -> Verdict {
    let mut locks = Vec::new();
    for error in errors {
        match KeyFailure::from(error) {
            KeyFailure::Locked(met) => {
                // A later transaction got there first. Waiting for it would only end in the
                // conflict that is certain already.
                if let Some(newer) = met.iter().find(|lock| lock.txn > start_ts) {
                    let conflict = WriteConflict::new(newer.key.clone(), start_ts, newer.txn);
                    return Verdict::Fail(Error::WriteConflict(Box::new(WriteConflict {
                        reason: crate::error::ConflictReason::Optimistic,
                        ..conflict
                    })));
                }
                locks.extend(met);
            }
            #[cfg(feature = "mutations")]
            KeyFailure::Fatal(Error::WriteConflict(_))
                if crate::mutation::is(crate::mutation::Mutation::IgnoreWriteConflict) => {}
            #[cfg(feature = "mutations")]
            KeyFailure::AlreadyExists(_)
                if crate::mutation::is(crate::mutation::Mutation::IgnoreKeyExists) => {}
            failure => return Verdict::Fail(failure.into_error()),
        }
    }
    if locks.is_empty() {
        Verdict::Locked
    } else {
        Verdict::Resolve(locks)
    }
}

/// What all prewrites of one transaction have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) start_ts: Timestamp,
    pub(crate) lock_ttl_ms: u64,
}

/// The request that locks the mutations at `items`. `txn_size` is how many of the transaction's
/// keys its region holds; more than the truth is safe, less lets others clean up a part.
pub(crate) fn request(
    mutations: &Mutations,
    items: std::ops::Range<usize>,
    terms: Terms,
    txn_size: u64,
) -> kvrpcpb::PrewriteRequest {
    let mutated: Vec<_> = mutations.items().get(items).unwrap_or_default().to_vec();
    kvrpcpb::PrewriteRequest {
        pessimistic_actions: vec![
            kvrpcpb::prewrite_request::PessimisticAction::SkipPessimisticCheck
                .into();
            mutated.len()
        ],
        mutations: mutated,
        primary_lock: mutations.primary_key().into_bytes(),
        start_version: terms.start_ts.as_u64(),
        lock_ttl: terms.lock_ttl_ms,
        txn_size,
        min_commit_ts: terms.start_ts.next().as_u64(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tikv_proto::kvrpcpb::{KeyError, LockInfo};

    fn locked(key: &'static str, txn: u64) -> KeyError {
        KeyError {
            locked: Some(Box::new(LockInfo {
                key: key.into(),
                lock_version: txn,
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn exists(key: &'static str) -> KeyError {
        KeyError {
            already_exist: Some(kvrpcpb::AlreadyExist { key: key.into() }),
            ..Default::default()
        }
    }

    #[test]
    fn the_first_final_error_decides_and_older_locks_are_resolved() {
        let start_ts = Timestamp::from(10);
        assert_eq!(judge(vec![], start_ts), Verdict::Locked);
        let Verdict::Resolve(locks) = judge(vec![locked("a", 8), locked("b", 9)], start_ts) else {
            panic!("not resolved");
        };
        assert_eq!(locks.len(), 2);
        assert_eq!(
            judge(vec![locked("a", 8), exists("b")], start_ts),
            Verdict::Fail(Error::KeyExists { key: "b".into() })
        );
        let Verdict::Fail(Error::WriteConflict(conflict)) =
            judge(vec![locked("a", 8), locked("b", 11), exists("c")], start_ts)
        else {
            panic!("no conflict");
        };
        assert_eq!(
            (conflict.key, conflict.conflict_start_ts),
            ("b".into(), 11.into())
        );
    }
}
