//! Up to which timestamp replicas answer stale reads: everything at or below it is committed or
//! never will be. A leader works it out now and then and tells its followers.

use tikv_proto::kvrpcpb::{CheckLeaderRequest, CheckLeaderResponse, LeaderInfo};

use super::Cluster;
use super::mvcc::lock::{KeyLock, Lock, LockKind};
use super::region::{RegionId, StoreId};

impl Cluster {
    /// Has the leader of a region work out up to which timestamp stale reads are complete, and its
    /// followers learn it. Returns it; 0 without a leader.
    pub fn advance_safe_ts(&mut self, now_ms: u64, id: RegionId) -> u64 {
        let Some(region) = self.regions.get(id) else {
            return 0;
        };
        let Some(leader) = region.leader.filter(|&leader| self.is_up(leader)) else {
            return 0;
        };
        let (start, end) = (region.meta.start_key.clone(), region.meta.end_key.clone());
        let tso = self.pd.next_tso(now_ms);
        let locks = self.engine.locks(&start, &end);
        // Shared locks hold no data.
        let stored = locks.filter_map(|(_, lock)| match lock {
            KeyLock::Exclusive(lock) => self.held_back_by(leader, lock),
            KeyLock::Shared(_) => None,
        });
        let memory = self.store(leader).map(|store| &store.memory_locks);
        let in_memory = memory
            .into_iter()
            .flatten()
            .filter(|(key, _)| {
                let key = key.encoded();
                *key >= start && (end.is_empty() || *key < end)
            })
            .filter_map(|(_, lock)| self.held_back_by(leader, lock));
        let resolved = stored.chain(in_memory).fold(tso, u64::min);
        self.set_safe_ts(id, resolved);
        resolved
    }

    /// Tells a leader's store which of the regions it thinks it leads are led by it as far as this
    /// store knows: stores ask each other before they say that anything is complete.
    pub fn check_leader(
        &mut self,
        _now_ms: u64,
        store: StoreId,
        request: CheckLeaderRequest,
    ) -> CheckLeaderResponse {
        let agrees = |info: &&LeaderInfo| {
            let Some(region) = self.region_on(store, info.region_id) else {
                return false;
            };
            let leader = region.leader_peer().map_or(0, |leader| leader.id);
            region.peer_on(store).is_some()
                && leader == info.peer_id
                && region.term == info.term
                && region.meta.region_epoch == info.region_epoch
        };
        let regions = request.regions.iter().filter(agrees);
        CheckLeaderResponse {
            regions: regions.map(|info| info.region_id).collect(),
            ts: request.ts,
        }
    }

    /// The greatest timestamp that can't be missed because of a lock.
    fn held_back_by(&self, leader: StoreId, lock: &Lock) -> Option<u64> {
        match lock.kind {
            LockKind::Put | LockKind::Delete => {}
            LockKind::Lock | LockKind::Pessimistic => return None,
        }
        let told = self
            .store(leader)
            .and_then(|store| store.large_txns.get(&lock.start_ts));
        match told {
            Some(large) if lock.generation > 0 && large.rolled_back => None,
            Some(large) if lock.generation > 0 => {
                Some(large.min_commit_ts.saturating_sub(1).max(lock.start_ts))
            }
            _ => Some(lock.start_ts),
        }
    }
}

#[cfg(test)]
mod tests;
