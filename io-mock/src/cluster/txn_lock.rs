//! PessimisticLock: several keys of one request. Who has to wait is handed to
//! [`lock_wait`](super::lock_wait).

use bytes::Bytes;
use tikv_proto::kvrpcpb::{
    Assertion, LockInfo, Op, PessimisticLockKeyResult, PessimisticLockKeyResultType,
    PessimisticLockRequest, PessimisticLockResponse, PessimisticLockWakeUpMode,
};

use super::Cluster;
use super::api_version::{ApiCheck, Mode, check_key_len};
use super::failure::Failure;
use super::key::Key;
use super::lock_wait::Answer;
use super::lock_wait::waking::wait_ms;
use super::mvcc::changes::Work;
use super::mvcc::error::MvccError;
use super::mvcc::pessimistic::{Granted, LockRequest, acquire};
use super::proposal::taking_room;
use super::region::StoreId;

/// One key to lock.
struct Wanted {
    key: Key,
    should_not_exist: bool,
    shared: bool,
}

/// How a request runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    First {
        force: bool,
    },
    /// Again, after it has waited; it forces its lock.
    Resumed,
}

/// What a lock request comes to when it does not fail as a whole.
pub(super) enum Outcome {
    Granted(Vec<Granted>),
    Blocked(Blocked),
}

/// A lock is in the way of a request.
pub(super) struct Blocked {
    /// The lock.
    pub(super) lock: Box<LockInfo>,
    /// The request may wait for it.
    pub(super) waitable: bool,
    /// The request wants the lock beside others.
    pub(super) shared: bool,
}

impl Cluster {
    /// Locks the keys of one region pessimistically. A lock in the way is an answer at once, as if
    /// the request did not want to wait.
    pub fn kv_pessimistic_lock(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: PessimisticLockRequest,
    ) -> PessimisticLockResponse {
        let force = forces(&request);
        let result = self.try_pessimistic_lock(now_ms, store, &request, Run::First { force });
        response(&request, force, result)
    }

    /// Locks the keys of one region pessimistically. A lock in the way is waited for if the request
    /// allows it; the answer is then among those of [`take_woken`](Cluster::take_woken).
    pub fn begin_pessimistic_lock(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: PessimisticLockRequest,
    ) -> Answer<PessimisticLockResponse> {
        let force = forces(&request);
        let result = self.try_pessimistic_lock(now_ms, store, &request, Run::First { force });
        match (result, wait_ms(&request)) {
            (Ok(Outcome::Blocked(blocked)), Some(wait_ms)) if blocked.waitable => {
                let deadline_ms = now_ms + wait_ms;
                match self.wait_for_lock(deadline_ms, store, request, force, blocked) {
                    Ok(ticket) => Answer::Later(ticket),
                    Err(error) => Answer::Now(failed_response(&error, force)),
                }
            }
            (result, _) => Answer::Now(response(&request, force, result)),
        }
    }

    /// Runs a request again that forces its lock. It wants it for itself now, whatever it wanted
    /// before; that is how TiKV does it.
    pub(super) fn resume_pessimistic_lock(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &PessimisticLockRequest,
    ) -> Result<Outcome, Failure> {
        self.try_pessimistic_lock(now_ms, store, request, Run::Resumed)
    }

    fn try_pessimistic_lock(
        &mut self,
        now_ms: u64,
        store: StoreId,
        request: &PessimisticLockRequest,
        run: Run,
    ) -> Result<Outcome, Failure> {
        let resumed = run == Run::Resumed;
        let force = run != Run::First { force: false };
        let context = taking_room(request.context.clone());
        let mut wanted = Vec::with_capacity(request.mutations.len());
        for mutation in &request.mutations {
            let shared = match mutation.op() {
                Op::PessimisticLock => false,
                Op::SharedPessimisticLock => true,
                other => {
                    return Err(MvccError::crash(format_args!(
                        "mismatch Op in pessimistic lock mutations: {other:?}"
                    ))
                    .into());
                }
            };
            wanted.push(Wanted {
                key: Key::from_user(&mutation.key),
                should_not_exist: mutation.assertion() == Assertion::NotExist,
                shared: shared && !resumed,
            });
        }
        let check = ApiCheck {
            storage: self.config().api_version,
            context: &context,
            command: "acquire_pessimistic_lock",
            mode: Mode::Txn,
        };
        check.keys(wanted.iter().map(|w| w.key.encoded().as_ref()))?;
        for want in &wanted {
            check_key_len(want.key.encoded())?;
        }
        let lock = LockRequest {
            primary: request.primary_lock.clone(),
            ttl: request.lock_ttl,
            for_update_ts: request.for_update_ts,
            min_commit_ts: request.min_commit_ts,
            need_value: request.return_values,
            need_existence: request.check_existence,
            only_if_exists: request.lock_only_if_exists,
            allow_conflict: force,
        };
        self.txn_write(now_ms, store, &context, request.start_version, |work, _| {
            if force && wanted.len() > 1 {
                return Err(MvccError::txn(
                    "Other(\"multiple keys in a single request with allowed_lock_with_conflict set \
                     is not allowed\")",
                )
                .into());
            }
            Ok(lock_all(work, &lock, &wanted, resumed)?)
        })
    }
}

fn lock_all(
    work: &mut Work<'_>,
    lock: &LockRequest,
    wanted: &[Wanted],
    resumed: bool,
) -> Result<Outcome, MvccError> {
    let mut granted = Vec::with_capacity(wanted.len());
    // Shared locks are always stored, and so are those that are asked for beside them.
    work.changes.stores_locks = wanted.iter().any(|want| want.shared);
    for want in wanted {
        match acquire(work, lock, &want.key, want.should_not_exist, want.shared) {
            Ok(one) => granted.push(one),
            Err(MvccError::KeyIsLocked(lock)) => {
                work.changes.clear();
                // A request waits again only for a lock that one transaction has.
                let waitable = !resumed || lock.shared_lock_infos.is_empty();
                return Ok(Outcome::Blocked(Blocked {
                    lock,
                    waitable,
                    shared: want.shared,
                }));
            }
            // Whoever wants the key for itself closes the shared locks to new members first, unless
            // it has waited already.
            Err(MvccError::NotShrinkOnly(mut shared)) => {
                work.changes.clear();
                let info = shared.info(want.key.to_user());
                if !resumed {
                    shared.shrink_only = true;
                    work.changes.put_shared(want.key.clone(), shared);
                }
                return Ok(Outcome::Blocked(Blocked {
                    lock: Box::new(info),
                    waitable: false,
                    shared: want.shared,
                }));
            }
            Err(other) => return Err(other),
        }
    }
    Ok(Outcome::Granted(granted))
}

fn forces(request: &PessimisticLockRequest) -> bool {
    request.wake_up_mode() == PessimisticLockWakeUpMode::WakeUpModeForceLock
}

/// The answer to a request that has run.
pub(super) fn response(
    request: &PessimisticLockRequest,
    force: bool,
    result: Result<Outcome, Failure>,
) -> PessimisticLockResponse {
    match result {
        Ok(Outcome::Granted(granted)) => PessimisticLockResponse {
            exec_details_v2: Some(Box::default()),
            ..granted_response(request, force, granted)
        },
        Ok(Outcome::Blocked(blocked)) => {
            // A request that may wait is answered key by key.
            let by_key = force && blocked.waitable;
            failed_response(&MvccError::KeyIsLocked(blocked.lock), by_key)
        }
        Err(failure) => {
            let (region_error, error) = failure.split();
            PessimisticLockResponse {
                exec_details_v2: error.is_some().then(Box::default),
                region_error,
                errors: error.map(|error| *error).into_iter().collect(),
                ..PessimisticLockResponse::default()
            }
        }
    }
}

/// The answer to a request of which a key failed; `by_key` says that it is answered key by key.
pub(super) fn failed_response(error: &MvccError, by_key: bool) -> PessimisticLockResponse {
    PessimisticLockResponse {
        errors: vec![error.to_key_error()],
        results: if by_key { failed_results() } else { Vec::new() },
        exec_details_v2: Some(Box::default()),
        ..PessimisticLockResponse::default()
    }
}

/// What a request that is answered key by key gets for a key that failed.
pub(super) fn failed_results() -> Vec<PessimisticLockKeyResult> {
    vec![PessimisticLockKeyResult {
        r#type: PessimisticLockKeyResultType::LockResultFailed.into(),
        ..PessimisticLockKeyResult::default()
    }]
}

fn granted_response(
    request: &PessimisticLockRequest,
    force: bool,
    granted: Vec<Granted>,
) -> PessimisticLockResponse {
    let mut response = PessimisticLockResponse::default();
    for one in granted {
        let exists = one.value.is_some();
        let value = one.value.unwrap_or_else(Bytes::new);
        if force {
            let mut result = PessimisticLockKeyResult::default();
            if let Some(ts) = one.conflict_ts {
                result.r#type = PessimisticLockKeyResultType::LockResultLockedWithConflict.into();
                result.locked_with_conflict_ts = ts;
                result.value = value;
                result.existence = exists;
            } else if request.return_values {
                result.value = value;
                result.existence = exists;
            } else if request.check_existence {
                result.existence = exists;
            }
            response.results.push(result);
        } else if request.return_values {
            response.values.push(value);
            response.not_founds.push(!exists);
        } else if request.check_existence {
            response.not_founds.push(!exists);
        }
    }
    response
}
