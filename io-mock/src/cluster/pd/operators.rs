//! What PD has been asked to do with regions, and how far that has come: scattering, with the
//! operators by which a client may follow it.
//!
//! Leadership is what is scattered: each region is led by the store that leads the fewest. An
//! operator has its effect at once and counts as running for as long as the configuration says.
//!
//! Deliberately absent: moving peers, and operators that fail.

use std::collections::BTreeMap;

use tikv_proto::pdpb::{
    ErrorType, GetOperatorRequest, GetOperatorResponse, OperatorStatus, ScatterRegionRequest,
    ScatterRegionResponse, SplitAndScatterRegionsRequest, SplitAndScatterRegionsResponse,
};

use super::Pd;
use super::regions::percentage;
use crate::cluster::Cluster;
use crate::cluster::failure::GrpcError;
use crate::cluster::region::{RegionId, StoreId};

/// What an operator of scattering is called.
const SCATTER: &str = "scatter-region";
/// What kind of change it may make.
const SCATTER_KIND: &str = "leader";

/// The last operator of each region.
#[derive(Clone, Debug, Default)]
pub(super) struct Operators {
    /// When it is done.
    pub(super) done_at_ms: BTreeMap<RegionId, u64>,
}

impl Pd {
    /// What PD is doing with a region, or did last.
    pub fn get_operator(
        &self,
        now_ms: u64,
        member: usize,
        request: GetOperatorRequest,
    ) -> Result<GetOperatorResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let Some(done_at_ms) = self.operators.done_at_ms.get(&request.region_id) else {
            return Ok(GetOperatorResponse {
                header: self.error_header(ErrorType::RegionNotFound, "Not Found"),
                ..GetOperatorResponse::default()
            });
        };
        let status = match *done_at_ms > now_ms {
            true => OperatorStatus::Running,
            false => OperatorStatus::Success,
        };
        Ok(GetOperatorResponse {
            header: self.header(),
            region_id: request.region_id,
            desc: SCATTER.into(),
            kind: SCATTER_KIND.into(),
            status: status.into(),
        })
    }
}

impl Cluster {
    /// Scatters regions, several or a single one.
    pub fn pd_scatter_region(
        &mut self,
        now_ms: u64,
        member: usize,
        request: ScatterRegionRequest,
    ) -> Result<ScatterRegionResponse, GrpcError> {
        self.pd.check(member, request.header.as_ref())?;
        #[allow(deprecated)] // Older clients name a single region.
        let single = request.region_id;
        if request.regions_id.is_empty() {
            let failed = !self.scatter(now_ms, &[single]).is_empty();
            let message = format!("region {single} not found");
            return Ok(ScatterRegionResponse {
                header: match failed {
                    true => self.pd.error_header(ErrorType::RegionNotFound, message),
                    false => self.pd.header(),
                },
                finished_percentage: if failed { 0 } else { 100 },
                ..ScatterRegionResponse::default()
            });
        }
        let failed_regions_id = self.scatter(now_ms, &request.regions_id);
        let done = request.regions_id.len() - failed_regions_id.len();
        Ok(ScatterRegionResponse {
            header: self.pd.header(),
            finished_percentage: percentage(done, request.regions_id.len()),
            failed_regions_id,
        })
    }

    /// Splits regions at encoded keys through PD and scatters the parts.
    pub fn pd_split_and_scatter_regions(
        &mut self,
        now_ms: u64,
        member: usize,
        request: SplitAndScatterRegionsRequest,
    ) -> Result<SplitAndScatterRegionsResponse, GrpcError> {
        self.pd.check(member, request.header.as_ref())?;
        let (regions_id, done) = self.split_at(now_ms, &request.split_keys);
        let failed = self.scatter(now_ms, &regions_id).len();
        Ok(SplitAndScatterRegionsResponse {
            header: self.pd.header(),
            split_finished_percentage: percentage(done, request.split_keys.len()),
            scatter_finished_percentage: percentage(regions_id.len() - failed, regions_id.len()),
            regions_id,
        })
    }

    /// Spreads the leaders of regions over the stores; returns those that PD does not know.
    pub fn scatter(&mut self, now_ms: u64, regions: &[RegionId]) -> Vec<RegionId> {
        let mut leaders: BTreeMap<StoreId, usize> = BTreeMap::new();
        for store in self.regions.iter().filter_map(|region| region.leader) {
            *leaders.entry(store).or_default() += 1;
        }
        let mut unknown = Vec::new();
        for &id in regions {
            if self.pd.regions.get(id).is_none() {
                unknown.push(id);
                continue;
            }
            let done_at_ms = now_ms + self.config.operator_ms;
            self.pd.operators.done_at_ms.insert(id, done_at_ms);
            let Some(region) = self.regions.get(id) else {
                // PD has not heard yet that it is gone.
                continue;
            };
            let led = |store: StoreId| leaders.get(&store).copied().unwrap_or_default();
            let from = region.leader;
            let least = region
                .meta
                .peers
                .iter()
                .map(|peer| peer.store_id)
                .filter(|store| self.is_up(*store))
                .min_by_key(|store| (led(*store), Some(*store) != from, *store));
            let Some(to) = least else { continue };
            // One that leads no more than one region less would only change places.
            let worth = from.is_none_or(|from| led(to) + 1 < led(from) || !self.is_up(from));
            if worth && self.transfer_leader(now_ms, id, to) {
                *leaders.entry(to).or_default() += 1;
                if let Some(count) = from.and_then(|from| leaders.get_mut(&from)) {
                    *count -= 1;
                }
            }
        }
        unknown
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cluster::pd::testing::{header, message};
    use crate::cluster::{Config, key};

    #[test]
    fn scattering_spreads_leaders_and_can_be_followed() {
        let config = Config {
            operator_ms: 10,
            ..Config::default()
        };
        let mut cluster = Cluster::new(config, 1);
        let split_keys: Vec<Bytes> = (b'b'..=b'f').map(|k| key::encode(&[k])).collect();
        let request = SplitAndScatterRegionsRequest {
            header: header(),
            split_keys,
            ..Default::default()
        };
        let answer = cluster.pd_split_and_scatter_regions(1, 0, request).unwrap();
        assert_eq!(answer.regions_id.len(), 5);
        assert_eq!(
            (
                answer.split_finished_percentage,
                answer.scatter_finished_percentage
            ),
            (100, 100)
        );
        for store in cluster.store_ids() {
            let led = cluster.regions().iter().filter(|r| r.leader == Some(store));
            assert_eq!(led.count(), 2, "store {store}");
        }
        let operator = |now_ms, region_id| {
            let request = GetOperatorRequest {
                header: header(),
                region_id,
            };
            cluster.pd().get_operator(now_ms, 0, request).unwrap()
        };
        let scattered = answer.regions_id[0];
        assert_eq!(operator(5, scattered).status(), OperatorStatus::Running);
        assert_eq!(operator(11, scattered).status(), OperatorStatus::Success);
        assert_eq!(&operator(11, scattered).desc[..], b"scatter-region");
        assert_eq!(message(&operator(5, 999).header), "Not Found");
    }

    #[test]
    fn an_unknown_region_can_not_be_scattered() {
        let mut cluster = Cluster::new(Config::default(), 1);
        let known = cluster.regions().ids().next().unwrap();
        let mut scatter = |regions_id| {
            let request = ScatterRegionRequest {
                header: header(),
                regions_id,
                ..Default::default()
            };
            cluster.pd_scatter_region(1, 0, request).unwrap()
        };
        let some = scatter(vec![known, 999]);
        assert_eq!(
            (some.finished_percentage, some.failed_regions_id),
            (50, vec![999])
        );
        let single = scatter(vec![]);
        assert!(message(&single.header).contains("not found"));
    }
}
