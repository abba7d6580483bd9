//! Stores coming, going and being asked for their health.

use tikv_proto::kvrpcpb::{
    Context, GetHealthFeedbackRequest, GetHealthFeedbackResponse, HealthFeedback,
    StoreSafeTsRequest, StoreSafeTsResponse,
};
use tikv_proto::metapb;

use super::failure::{GrpcCode, GrpcError};
use super::region::StoreId;
use super::store::Store;
use super::{Cluster, Config};

/// A store as it is after its first start.
pub(super) fn new_store(config: &Config, id: StoreId, now_ms: u64) -> Store {
    let address = format!("127.0.0.1:{}", 20_160 + id);
    let mut store = Store {
        meta: metapb::Store {
            id,
            peer_address: address.clone(),
            status_address: format!("127.0.0.1:{}", 20_180 + id),
            address,
            version: config.store_version.clone(),
            node_state: metapb::NodeState::Serving.into(),
            ..metapb::Store::default()
        },
        slow_score: 1,
        ..Store::default()
    };
    store.restart(now_ms);
    store
}

impl Cluster {
    /// Adds an empty store and returns its id.
    pub fn add_store(&mut self, now_ms: u64) -> StoreId {
        let id = self.pd.alloc_id();
        self.stores.insert(id, new_store(&self.config, id, now_ms));
        id
    }

    /// Whether a store answers at all.
    pub fn is_up(&self, store: StoreId) -> bool {
        self.stores.get(&store).is_some_and(|store| store.up)
    }

    /// Stops a store. It keeps its peers and, until an election, its leaders; what leaders held in
    /// memory is gone.
    pub fn stop_store(&mut self, store: StoreId) {
        if let Some(store) = self.stores.get_mut(&store) {
            store.up = false;
        }
        self.drop_waits(store);
        let led: Vec<_> = self
            .regions
            .iter()
            .filter(|r| r.leader == Some(store))
            .map(|r| r.meta.id)
            .collect();
        for id in led {
            if let Some(region) = self.regions.get_mut(id) {
                region.memory_locks.clear();
            }
        }
    }

    /// Starts a stopped store. It has forgotten what it kept in memory; its leaders have a new term.
    pub fn start_store(&mut self, now_ms: u64, store: StoreId) {
        let Some(stopped) = self.stores.get_mut(&store) else {
            return;
        };
        if stopped.meta.state() == metapb::StoreState::Tombstone {
            return;
        }
        stopped.restart(now_ms);
        for behind in stopped.behind.values_mut() {
            behind.region.confirmed_ts.remove(&store);
            let mut state = behind.region.peer_state(store);
            state.safe_ts_forgotten = true;
            behind.region.set_peer_state(store, state);
            // It hears from nobody until it has caught up.
            behind.region.leader = None;
        }
        let ids: Vec<_> = self.regions.ids().collect();
        for id in ids {
            if let Some(region) = self.regions.get_mut(id) {
                region.confirmed_ts.remove(&store);
            }
        }
        let led: Vec<_> = self
            .regions
            .iter()
            .filter(|r| r.leader == Some(store))
            .map(|r| r.meta.id)
            .collect();
        for id in led {
            self.elect(now_ms, id, store);
        }
        // How far stale reads may go its followers hear from their leaders again.
        let followed: Vec<_> = self
            .regions
            .iter()
            .filter(|r| r.safe_ts != 0 && r.leader != Some(store))
            .map(|r| r.meta.id)
            .collect();
        for id in followed {
            self.set_peer_state(id, store, |peer| peer.safe_ts_forgotten = true);
        }
    }

    /// Sets how slow a store says it is, from 1, healthy, to 100. Its next feedback tells.
    pub fn set_slow_score(&mut self, store: StoreId, slow_score: i32) {
        if let Some(store) = self.stores.get_mut(&store) {
            store.slow_score = slow_score.clamp(1, 100);
        }
    }

    /// What a store checks before it looks at a request; a failure is a gRPC status.
    pub fn admit(&self, store: StoreId, context: Option<&Context>) -> Result<(), GrpcError> {
        if !self.is_up(store) {
            return Err(GrpcError::new(GrpcCode::Unavailable, "connection refused"));
        }
        let cluster_id = context.map_or(0, |context| context.cluster_id);
        if cluster_id != 0 && cluster_id != self.config.cluster_id {
            return Err(GrpcError::new(
                GrpcCode::InvalidArgument,
                "the cluster id of the request does not match the TiKV cluster",
            ));
        }
        Ok(())
    }

    /// Tells a store's health; each answer has a higher number than the one before.
    pub fn get_health_feedback(
        &mut self,
        _now_ms: u64,
        store: StoreId,
        _request: GetHealthFeedbackRequest,
    ) -> GetHealthFeedbackResponse {
        GetHealthFeedbackResponse {
            health_feedback: self.next_health_feedback(store),
            ..GetHealthFeedbackResponse::default()
        }
    }

    /// The next piece of health feedback of a store.
    pub fn next_health_feedback(&mut self, store: StoreId) -> Option<HealthFeedback> {
        let served = self.stores.get_mut(&store)?;
        served.feedback_seq_no += 1;
        Some(HealthFeedback {
            store_id: store,
            feedback_seq_no: served.feedback_seq_no,
            slow_score: served.slow_score,
        })
    }

    /// The least timestamp up to which a store's peers in a range answer stale reads; 0 if unknown.
    pub fn get_store_safe_ts(
        &mut self,
        _now_ms: u64,
        store: StoreId,
        request: StoreSafeTsRequest,
    ) -> StoreSafeTsResponse {
        let range = request.key_range.unwrap_or_default();
        let safe_ts = self
            .regions
            .iter()
            .filter_map(|region| self.region_on(store, region.meta.id))
            .filter(|region| region.peer_on(store).is_some() && region.safe_ts_on(store) != 0)
            .filter(|region| {
                let meta = &region.meta;
                (range.end_key.is_empty() || meta.start_key < range.end_key)
                    && (meta.end_key.is_empty() || meta.end_key > range.start_key)
            })
            .map(|region| region.safe_ts_on(store))
            .min()
            .unwrap_or_default();
        StoreSafeTsResponse { safe_ts }
    }
}

#[cfg(test)]
mod tests;
