//! The safe points: up to where transactions are ended and old versions removed, and who holds
//! that back. The rules; [`gc_calls`](super::gc_calls) and [`gc_legacy`](super::gc_legacy) are the
//! requests.
//!
//! Two points per keyspace that never fall: the one for versions stays behind the one for
//! transactions, and that one behind every barrier that lived when it was moved. Keyspaces that do
//! not collect for themselves share the state of no keyspace. Barriers whose time is over go when
//! the point is moved next, not before.
//!
//! What old nodes of TiDB write into PD's own storage, the oldest transaction each runs, holds the
//! points back too; there is no call for it, only [`Pd::set_min_start_ts`].

use std::collections::BTreeMap;

use tikv_proto::pdpb::{KeyspaceScope, keyspace_scope};

use super::Pd;
use super::keyspaces::{ID_MAX, gc_is_own};

/// The id that stands for no keyspace.
pub(super) const NULL_KEYSPACE: u32 = u32::MAX;
/// The service that moves the safe point itself.
pub(super) const GC_WORKER: &str = "gc_worker";

/// The safe points of one keyspace, or of all that have none of their own, and what holds them
/// back.
#[derive(Clone, Debug, Default)]
pub struct GcState {
    /// Transactions older than this are ended.
    pub txn_safe_point: u64,
    /// Versions older than this are removed.
    pub gc_safe_point: u64,
    pub(super) barriers: Barriers,
    /// The oldest transactions that old nodes of TiDB run.
    pub(super) min_start_ts: BTreeMap<String, u64>,
}

/// What holds a point back, by id.
pub(super) type Barriers = BTreeMap<String, Barrier>;

#[derive(Clone, Copy, Debug)]
pub(super) struct Barrier {
    pub(super) ts: u64,
    /// `None` is never.
    pub(super) expires_at_ms: Option<u64>,
}

impl Barrier {
    pub(super) fn new(now_ms: u64, ts: u64, ttl_seconds: i64) -> Self {
        // A life that does not fit a signed number of nanoseconds has no end.
        let fits = ttl_seconds.checked_mul(1_000_000_000).is_some();
        let ttl_ms = u64::try_from(ttl_seconds)
            .ok()
            .filter(|_| fits)
            .map(|ttl| ttl * 1000);
        Barrier {
            ts,
            expires_at_ms: ttl_ms.and_then(|ms| now_ms.checked_add(ms)),
        }
    }

    fn lives(&self, now_ms: u64) -> bool {
        // The last moment still counts.
        self.expires_at_ms.is_none_or(|at| at >= now_ms)
    }

    pub(super) fn ttl_seconds(&self, now_ms: u64) -> i64 {
        match self.expires_at_ms {
            None => i64::MAX,
            Some(at) => i64::try_from(at.saturating_sub(now_ms).div_ceil(1000)).unwrap_or(i64::MAX),
        }
    }
}

/// The safe points of all keyspaces, and the barriers that hold all of them back.
#[derive(Clone, Debug, Default)]
pub(super) struct GcStates {
    pub(super) shared: GcState,
    pub(super) own: BTreeMap<u32, GcState>,
    pub(super) global: Barriers,
}

/// How far the point for transactions has been moved.
pub(super) struct Advance {
    pub(super) old: u64,
    pub(super) new: u64,
    /// Who stood in the way, and how PD describes that.
    pub(super) blocker: Option<(String, String)>,
}

/// What holds a point back.
struct Blocker {
    /// What an older client is told.
    service: String,
    ts: u64,
    /// What a newer one is told.
    text: String,
}

impl Blocker {
    fn new(kind: &str, id: &str, ts: u64) -> Self {
        Blocker {
            service: id.to_owned(),
            ts,
            text: format!("{kind} {{ BarrierID: {id:?}, BarrierTS: {ts} }}"),
        }
    }

    fn min_start_ts(node: &str, ts: u64) -> Self {
        Blocker {
            service: format!("tidb_min_start_ts_{node}"),
            ts,
            text: format!("TiDBMinStartTS {{ Key: {node:?}, MinStartTS: {ts} }}"),
        }
    }
}

impl GcStates {
    pub(super) fn of(&self, keyspace: u32) -> Option<&GcState> {
        match keyspace {
            NULL_KEYSPACE => Some(&self.shared),
            own => self.own.get(&own),
        }
    }

    pub(super) fn of_mut(&mut self, keyspace: u32) -> &mut GcState {
        match keyspace {
            NULL_KEYSPACE => &mut self.shared,
            own => self.own.entry(own).or_default(),
        }
    }

    /// The greatest point for transactions of all.
    pub(super) fn txn_safe_point_max(&self) -> u64 {
        let own = self.own.values().map(|state| state.txn_safe_point);
        own.max().unwrap_or(0).max(self.shared.txn_safe_point)
    }

    /// Moves the point for transactions as far as barriers allow; `Err` says why not at all.
    pub(super) fn advance_txn(
        &mut self,
        now_ms: u64,
        keyspace: u32,
        target: u64,
    ) -> Result<Advance, String> {
        let old = self.of(keyspace).map_or(0, |state| state.txn_safe_point);
        if target < old {
            return Err(format!(
                "[PD:gc:ErrDecreasingTxnSafePoint]trying to update txn safe point to a smaller value, \
                 current value: {old}, given: {target}"
            ));
        }
        self.global.retain(|_, barrier| barrier.lives(now_ms));
        let state = self.of_mut(keyspace);
        state.barriers.retain(|_, barrier| barrier.lives(now_ms));
        let least = |barriers: &Barriers| {
            let least = barriers.iter().min_by_key(|(_, barrier)| barrier.ts);
            least.map(|(id, barrier)| Blocker::new("GCBarrier", id, barrier.ts))
        };
        let own = least(&state.barriers);
        let oldest = state.min_start_ts.iter().min_by_key(|(_, ts)| **ts);
        let oldest = oldest.map(|(node, ts)| Blocker::min_start_ts(node, *ts));
        let global = least(&self.global).map(|found| Blocker {
            text: format!("Global{}", found.text),
            ..found
        });
        // Of equals the first one is named.
        let blockers = [own, oldest, global].into_iter().flatten();
        let blocker = blockers
            .filter(|blocker| blocker.ts < target)
            .min_by_key(|blocker| blocker.ts);
        let bound = blocker.as_ref().map_or(target, |blocker| blocker.ts);
        let new = bound.max(old);
        self.of_mut(keyspace).txn_safe_point = new;
        let blocker = blocker.map(|blocker| (blocker.service, blocker.text));
        Ok(Advance { old, new, blocker })
    }

    /// Moves the point for versions; `Err` says why not.
    pub(super) fn advance_gc(&mut self, keyspace: u32, target: u64) -> Result<(u64, u64), String> {
        let state = self.of_mut(keyspace);
        let old = state.gc_safe_point;
        if target < old {
            return Err(format!(
                "[PD:gc:ErrDecreasingGCSafePoint]trying to update GC safe point to a smaller value, \
                 current value: {old}, given: {target}"
            ));
        }
        if target > state.txn_safe_point {
            return Err(format!(
                "[PD:gc:ErrGCSafePointExceedsTxnSafePoint]trying to update GC safe point to a too large \
                 value that exceeds the txn safe point, current value: {old}, given: {target}, current \
                 txn safe point: {}",
                state.txn_safe_point
            ));
        }
        state.gc_safe_point = target;
        Ok((old, target))
    }
}

impl Pd {
    /// The safe points of all keyspaces that have none of their own.
    pub fn gc(&self) -> &GcState {
        &self.gc.shared
    }

    /// The same, to change them directly.
    pub fn gc_mut(&mut self) -> &mut GcState {
        &mut self.gc.shared
    }

    /// Says what an old node of TiDB writes: the oldest transaction it runs, or that it runs none.
    /// The keyspace is one that collects for itself, or `u32::MAX`.
    pub fn set_min_start_ts(&mut self, keyspace: u32, node: &str, ts: Option<u64>) {
        let running = &mut self.gc.of_mut(keyspace).min_start_ts;
        match ts {
            Some(ts) => running.insert(node.to_owned(), ts),
            None => running.remove(node),
        };
    }

    /// Moves the shared safe points as far as barriers allow, and returns where they are.
    ///
    /// # Errors
    ///
    /// They are further already.
    pub fn advance_safe_points(&mut self, now_ms: u64, target: u64) -> Result<u64, String> {
        let reached = self.gc.advance_txn(now_ms, NULL_KEYSPACE, target)?.new;
        self.gc.advance_gc(NULL_KEYSPACE, reached)?;
        Ok(reached)
    }

    /// The safe points of a keyspace that collects for itself.
    pub fn keyspace_gc(&self, keyspace: u32) -> Option<&GcState> {
        self.gc.of(keyspace)
    }

    /// Up to where versions may be removed in each keyspace that collects for itself.
    pub fn own_gc_safe_points(&self) -> BTreeMap<u32, u64> {
        let own = self.keyspaces().filter(|(_, meta)| gc_is_own(meta));
        own.map(|(id, _)| (id, self.gc.of(id).map_or(0, |state| state.gc_safe_point)))
            .collect()
    }

    /// Whose safe points a request is about. A keyspace that does not collect for itself shares
    /// those of no keyspace, which may be read and held back through it, but not moved.
    pub(super) fn gc_scope(
        &self,
        scope: Option<&KeyspaceScope>,
        to_advance: bool,
    ) -> Result<u32, String> {
        use keyspace_scope::Keyspace::{KeyspaceId, KeyspaceIdentity};
        let id = match scope.and_then(|scope| scope.keyspace.as_ref()) {
            None => NULL_KEYSPACE,
            Some(KeyspaceId(id)) => *id,
            Some(KeyspaceIdentity(identity)) => identity.keyspace_id,
        };
        self.gc_scope_of(id, to_advance)
    }

    pub(super) fn gc_scope_of(&self, id: u32, to_advance: bool) -> Result<u32, String> {
        if id > ID_MAX {
            return Ok(NULL_KEYSPACE);
        }
        let meta = self
            .keyspace(id)
            .ok_or_else(|| "[PD:keyspace:ErrKeyspaceNotFound]keyspace does not exist".to_owned())?;
        match gc_is_own(meta) {
            true => Ok(id),
            false if to_advance => Err(format!(
                "[PD:gc:ErrGCOnInvalidKeyspace]trying to manage GC in keyspace {id} where keyspace \
                 level GC is not enabled"
            )),
            false => Ok(NULL_KEYSPACE),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tikv_proto::pdpb::{
        AdvanceGcSafePointRequest, AdvanceTxnSafePointRequest, DeleteGcBarrierRequest,
        SetGcBarrierRequest, SetGlobalGcBarrierRequest, UpdateServiceGcSafePointRequest,
    };

    use super::*;
    use crate::cluster::pd::testing::{header, pd};

    #[test]
    fn a_life_too_long_to_count_has_no_end() {
        assert_eq!(Barrier::new(5, 1, 10).expires_at_ms, Some(10_005));
        for ttl in [i64::MAX, i64::MAX / 1_000_000_000 + 1] {
            assert_eq!(Barrier::new(5, 1, ttl).expires_at_ms, None);
        }
        assert_eq!(Barrier::new(0, 1, 10).ttl_seconds(9_001), 1);
    }

    #[test]
    fn the_least_barrier_holds_back_and_a_dead_one_does_not() {
        let mut gc = GcStates::default();
        gc.shared
            .barriers
            .insert("a".into(), Barrier::new(0, 50, 10));
        gc.global.insert("b".into(), Barrier::new(0, 40, 20));
        let advance = |gc: &mut GcStates, now_ms, target| {
            let advance = gc.advance_txn(now_ms, NULL_KEYSPACE, target)?;
            Ok::<_, String>((advance.new, advance.blocker.map(|(id, _)| id)))
        };
        assert_eq!(advance(&mut gc, 0, 30), Ok((30, None)));
        assert_eq!(advance(&mut gc, 0, 45), Ok((40, Some("b".into()))));
        assert_eq!(advance(&mut gc, 15_000, 60), Ok((40, Some("b".into()))));
        assert_eq!(advance(&mut gc, 20_001, 60), Ok((60, None)));
        assert!(advance(&mut gc, 20_001, 59).is_err());
        assert!(gc.shared.barriers.is_empty() && gc.global.is_empty());
    }

    #[test]
    fn versions_go_only_behind_the_point_for_transactions() {
        let mut gc = GcStates::default();
        gc.of_mut(7).txn_safe_point = 10;
        assert_eq!(gc.advance_gc(7, 10), Ok((0, 10)));
        assert!(gc.advance_gc(7, 11).is_err());
        assert!(gc.advance_gc(7, 9).is_err());
        assert!(gc.advance_gc(NULL_KEYSPACE, 1).is_err(), "another's points");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Barrier {
            own: bool,
            id: u8,
            ts: u64,
            ttl: i64,
        },
        GlobalBarrier {
            id: u8,
            ts: u64,
            ttl: i64,
        },
        Delete {
            own: bool,
            id: u8,
        },
        AdvanceTxn {
            own: bool,
            target: u64,
        },
        AdvanceGc {
            own: bool,
            target: u64,
        },
        Service {
            id: u8,
            ts: u64,
            ttl: i64,
        },
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (own, id, ts, ttl) = (any::<bool>(), 0..4u8, 0..100u64, -1..20i64);
        prop_oneof![
            (own, id.clone(), ts.clone(), ttl.clone())
                .prop_map(|(own, id, ts, ttl)| Step::Barrier { own, id, ts, ttl }),
            (id.clone(), ts.clone(), ttl.clone()).prop_map(|(id, ts, ttl)| Step::GlobalBarrier {
                id,
                ts,
                ttl
            }),
            (own, id.clone()).prop_map(|(own, id)| Step::Delete { own, id }),
            (own, ts.clone()).prop_map(|(own, target)| Step::AdvanceTxn { own, target }),
            (own, ts.clone()).prop_map(|(own, target)| Step::AdvanceGc { own, target }),
            (id, ts, ttl).prop_map(|(id, ts, ttl)| Step::Service { id, ts, ttl }),
            (0..10_000u64).prop_map(Step::Wait),
        ]
    }

    fn take(pd: &mut Pd, now_ms: u64, own_id: u32, step: &Step) {
        let scope = |own: bool| {
            let id = if own { own_id } else { NULL_KEYSPACE };
            Some(KeyspaceScope {
                keyspace: Some(keyspace_scope::Keyspace::KeyspaceId(id)),
            })
        };
        match *step {
            Step::Barrier { own, id, ts, ttl } => {
                let request = SetGcBarrierRequest {
                    header: header(),
                    keyspace_scope: scope(own),
                    barrier_id: id.to_string(),
                    barrier_ts: ts,
                    ttl_seconds: ttl,
                };
                pd.set_gc_barrier(now_ms, 0, request).unwrap();
            }
            Step::GlobalBarrier { id, ts, ttl } => {
                let request = SetGlobalGcBarrierRequest {
                    header: header(),
                    barrier_id: id.to_string(),
                    barrier_ts: ts,
                    ttl_seconds: ttl,
                };
                pd.set_global_gc_barrier(now_ms, 0, request).unwrap();
            }
            Step::Delete { own, id } => {
                let request = DeleteGcBarrierRequest {
                    header: header(),
                    keyspace_scope: scope(own),
                    barrier_id: id.to_string(),
                };
                pd.delete_gc_barrier(now_ms, 0, request).unwrap();
            }
            Step::AdvanceTxn { own, target } => {
                let request = AdvanceTxnSafePointRequest {
                    header: header(),
                    keyspace_scope: scope(own),
                    target,
                };
                pd.advance_txn_safe_point(now_ms, 0, request).unwrap();
            }
            Step::AdvanceGc { own, target } => {
                let request = AdvanceGcSafePointRequest {
                    header: header(),
                    keyspace_scope: scope(own),
                    target,
                };
                pd.advance_gc_safe_point(0, request).unwrap();
            }
            Step::Service { id, ts, ttl } => {
                let request = UpdateServiceGcSafePointRequest {
                    header: header(),
                    service_id: format!("service {id}").into(),
                    ttl,
                    safe_point: ts,
                };
                pd.update_service_gc_safe_point(now_ms, 0, request).unwrap();
            }
            Step::Wait(_) => {}
        }
    }

    proptest! {
        #[test]
        fn no_point_falls_or_passes_what_holds_it_back(steps in vec(step(), 1..100)) {
            let mut pd = pd();
            let config = [("gc_management_type".to_owned(), "keyspace_level".to_owned())];
            let own = pd.add_keyspace(1, "own", config.into()).unwrap();
            let mut now_ms = 1_000;
            for step in &steps {
                let points = |pd: &Pd, id| {
                    let state = pd.gc.of(id);
                    state.map_or((0, 0), |state| (state.txn_safe_point, state.gc_safe_point))
                };
                let before = [NULL_KEYSPACE, own].map(|id| points(&pd, id));
                if let Step::Wait(ms) = step {
                    now_ms += ms;
                }
                take(&mut pd, now_ms, own, step);
                for (id, before) in [NULL_KEYSPACE, own].into_iter().zip(before) {
                    let (txn, gc) = points(&pd, id);
                    prop_assert!(txn >= before.0 && gc >= before.1, "{step:?} lets a point fall");
                    prop_assert!(gc <= txn, "{step:?}");
                    let barriers = pd.gc.of(id).into_iter().flat_map(|state| state.barriers.values());
                    for barrier in barriers.chain(pd.gc.global.values()) {
                        prop_assert!(!barrier.lives(now_ms) || barrier.ts >= txn, "{step:?}");
                    }
                }
            }
        }
    }
}
