//! Stores as PD tells of them.

use tikv_proto::metapb;
use tikv_proto::pdpb::{
    ErrorType, GetAllStoresRequest, GetAllStoresResponse, GetStoreRequest, GetStoreResponse,
};

use crate::cluster::Cluster;
use crate::cluster::failure::GrpcError;

impl Cluster {
    /// One store, tombstones included.
    pub fn pd_get_store(
        &self,
        member: usize,
        request: GetStoreRequest,
    ) -> Result<GetStoreResponse, GrpcError> {
        self.pd.check(member, request.header.as_ref())?;
        let Some(store) = self.stores.get(&request.store_id) else {
            let message = format!("invalid store ID {}, not found", request.store_id);
            let header = self.pd.error_header(ErrorType::Unknown, message);
            return Ok(GetStoreResponse {
                header,
                ..GetStoreResponse::default()
            });
        };
        Ok(GetStoreResponse {
            header: self.pd.header(),
            store: Some(Box::new(store.meta.clone())),
            ..GetStoreResponse::default()
        })
    }

    /// All stores.
    pub fn pd_get_all_stores(
        &self,
        member: usize,
        request: GetAllStoresRequest,
    ) -> Result<GetAllStoresResponse, GrpcError> {
        self.pd.check(member, request.header.as_ref())?;
        let stores = self
            .stores
            .values()
            .filter(|store| {
                !request.exclude_tombstone_stores
                    || store.meta.state() != metapb::StoreState::Tombstone
            })
            .map(|store| store.meta.clone())
            .collect();
        Ok(GetAllStoresResponse {
            header: self.pd.header(),
            stores,
        })
    }
}
