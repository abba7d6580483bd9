//! Region look-ups, as PD believes the regions to be, and the requests that split them.

use bytes::Bytes;
use tikv_proto::metapb;
use tikv_proto::pdpb::{
    self, BatchScanRegionsRequest, BatchScanRegionsResponse, ErrorType, GetRegionByIdRequest,
    GetRegionRequest, GetRegionResponse, QueryRegionRequest, QueryRegionResponse,
    ScanRegionsRequest, ScanRegionsResponse, SplitRegionsRequest, SplitRegionsResponse,
};

use super::Pd;
use super::known_regions::{KnownRegion, KnownRegions};
use crate::cluster::Cluster;
use crate::cluster::failure::GrpcError;
use crate::cluster::region::RegionId;

impl Pd {
    /// The region that holds a key.
    pub fn get_region(
        &self,
        member: usize,
        follower_allowed: bool,
        request: GetRegionRequest,
    ) -> Result<GetRegionResponse, GrpcError> {
        self.check_lookup(member, follower_allowed, request.header.as_ref())?;
        let found = self.view(member).containing(&request.region_key);
        Ok(self.region_reply(member, found, request.need_buckets))
    }

    /// The region before the one that holds a key.
    pub fn get_prev_region(
        &self,
        member: usize,
        follower_allowed: bool,
        request: GetRegionRequest,
    ) -> Result<GetRegionResponse, GrpcError> {
        self.check_lookup(member, follower_allowed, request.header.as_ref())?;
        let found = self.view(member).before(&request.region_key);
        Ok(self.region_reply(member, found, request.need_buckets))
    }

    /// A region by its id.
    pub fn get_region_by_id(
        &self,
        member: usize,
        follower_allowed: bool,
        request: GetRegionByIdRequest,
    ) -> Result<GetRegionResponse, GrpcError> {
        self.check_lookup(member, follower_allowed, request.header.as_ref())?;
        let found = self.view(member).get(request.region_id);
        Ok(self.region_reply(member, found, request.need_buckets))
    }

    /// The regions as a member knows them.
    fn view(&self, member: usize) -> &KnownRegions {
        let own = self.followers_know.as_ref();
        own.filter(|_| self.leader != Some(member))
            .unwrap_or(&self.regions)
    }

    /// Has the members that do not lead know the regions as they are known now, or as they are.
    pub fn hold_followers(&mut self, on: bool) {
        match on {
            true if self.followers_know.is_some() => {}
            true => self.followers_know = Some(self.regions.clone()),
            false => self.followers_know = None,
        }
    }

    /// The region PD believes holds an encoded key.
    pub fn containing(&self, encoded: &[u8]) -> Option<&KnownRegion> {
        self.regions.containing(encoded)
    }

    fn follower_not_ready(&self, member: usize) -> bool {
        self.leader != Some(member) && !self.follower_handles
    }

    /// The leader answers without a region where it knows none; a follower says so.
    fn region_reply(
        &self,
        member: usize,
        found: Option<&KnownRegion>,
        need_buckets: bool,
    ) -> GetRegionResponse {
        let found = found.filter(|_| !self.follower_not_ready(member));
        let Some(known) = found else {
            let header = if self.leader == Some(member) {
                self.header()
            } else {
                self.error_header(ErrorType::RegionNotFound, "region not found")
            };
            return GetRegionResponse {
                header,
                ..GetRegionResponse::default()
            };
        };
        GetRegionResponse {
            header: self.header(),
            region: Some(Box::new(known.meta.clone())),
            leader: known.leader,
            down_peers: down_peers(known),
            pending_peers: known.pending.clone(),
            buckets: self.buckets(member, known, need_buckets),
        }
    }

    /// A region's buckets, if they are asked of the leader: nobody else knows them.
    fn buckets(
        &self,
        member: usize,
        known: &KnownRegion,
        needed: bool,
    ) -> Option<Box<metapb::Buckets>> {
        let tells = needed && self.leader == Some(member);
        known.buckets.clone().filter(|_| tells)
    }

    /// Regions of a range in order.
    pub fn scan_regions(
        &self,
        member: usize,
        follower_allowed: bool,
        request: ScanRegionsRequest,
    ) -> Result<ScanRegionsResponse, GrpcError> {
        self.check_lookup(member, follower_allowed, request.header.as_ref())?;
        if self.follower_not_ready(member) {
            let header = self.error_header(ErrorType::RegionNotFound, "region not found");
            return Ok(ScanRegionsResponse {
                header,
                ..ScanRegionsResponse::default()
            });
        }
        let limit = usize::try_from(request.limit)
            .ok()
            .filter(|&n| n > 0)
            .unwrap_or(usize::MAX);
        let found: Vec<&KnownRegion> = self
            .view(member)
            .in_range(&request.start_key, &request.end_key)
            .take(limit)
            .collect();
        Ok(ScanRegionsResponse {
            header: self.found_header(member, found.len()),
            region_metas: found.iter().map(|known| known.meta.clone()).collect(),
            leaders: found.iter().map(|known| leader_or_empty(known)).collect(),
            regions: found.iter().map(|known| described(known)).collect(),
        })
    }

    /// Regions of several ranges in order, each region once.
    pub fn batch_scan_regions(
        &self,
        member: usize,
        follower_allowed: bool,
        request: BatchScanRegionsRequest,
    ) -> Result<BatchScanRegionsResponse, GrpcError> {
        self.check_lookup(member, follower_allowed, request.header.as_ref())?;
        let failed = |kind, message: String| {
            let header = self.error_header(kind, message);
            Ok(BatchScanRegionsResponse {
                header,
                ..BatchScanRegionsResponse::default()
            })
        };
        if self.follower_not_ready(member) {
            return failed(ErrorType::RegionNotFound, "region not found".to_owned());
        }
        let mut previous: Option<&pdpb::KeyRange> = None;
        for range in &request.ranges {
            // Bytes are compared, so a range without an end overlaps nothing.
            if previous.is_some_and(|previous| range.start_key < previous.end_key) {
                let message = "invalid key range, ranges overlapped".to_owned();
                return failed(ErrorType::Unknown, message);
            }
            if !range.end_key.is_empty() && range.start_key > range.end_key {
                let message = "invalid key range, start key > end key".to_owned();
                return failed(ErrorType::Unknown, message);
            }
            previous = Some(range);
        }
        let limit = usize::try_from(request.limit)
            .ok()
            .filter(|&n| n > 0)
            .unwrap_or(usize::MAX);
        let view = self.view(member);
        let mut regions: Vec<pdpb::Region> = Vec::new();
        let mut last: Option<RegionId> = None;
        for range in &request.ranges {
            // Every range is looked through by itself; what is too much is cut off at its end.
            let mut covered = range.start_key.clone();
            let mut scanned = 0;
            for known in view.in_range(&range.start_key, &range.end_key).take(limit) {
                scanned += 1;
                // Below the first region nothing is missing if the range has no start.
                let hole = !covered.is_empty() && known.meta.start_key > covered;
                if request.contain_all_key_range && hole {
                    return failed(
                        ErrorType::RegionsNotContainAllKeyRange,
                        "found a hole region between the regions".to_owned(),
                    );
                }
                covered = known.meta.end_key.clone();
                if last != Some(known.meta.id) {
                    regions.push(pdpb::Region {
                        buckets: self.buckets(member, known, request.need_buckets),
                        ..described(known)
                    });
                    last = Some(known.meta.id);
                }
                if covered.is_empty() {
                    break;
                }
            }
            let reached =
                covered.is_empty() || range.end_key.is_empty() || covered >= range.end_key;
            if request.contain_all_key_range && !reached && scanned < limit {
                return failed(
                    ErrorType::RegionsNotContainAllKeyRange,
                    "found a hole region in the last".to_owned(),
                );
            }
            if regions.len() >= limit {
                regions.truncate(limit);
                break;
            }
        }
        Ok(BatchScanRegionsResponse {
            header: self.found_header(member, regions.len()),
            regions,
        })
    }

    /// A follower that finds nothing says so, because it may only not have heard of it yet.
    fn found_header(&self, member: usize, found: usize) -> Option<pdpb::ResponseHeader> {
        if found == 0 && self.leader != Some(member) {
            return self.error_header(ErrorType::RegionNotFound, "region not found");
        }
        self.header()
    }

    /// Answers one request of a region stream.
    pub fn query_region(
        &self,
        member: usize,
        request: QueryRegionRequest,
    ) -> Result<QueryRegionResponse, GrpcError> {
        // Whether a follower may answer is not for the client to say here.
        self.check_cluster(request.header.as_ref())?;
        let mut response = QueryRegionResponse {
            header: self.header(),
            ..QueryRegionResponse::default()
        };
        if self.follower_not_ready(member) {
            response.header = self.error_header(ErrorType::RegionNotFound, "region not found");
            return Ok(response);
        }
        let view = self.view(member);
        let id_of = |known: Option<&KnownRegion>| known.map_or(0, |known| known.meta.id);
        response.key_id_map = request
            .keys
            .iter()
            .map(|key| id_of(view.containing(key)))
            .collect();
        response.prev_key_id_map = request
            .prev_keys
            .iter()
            .map(|key| id_of(view.before(key)))
            .collect();
        let asked = response
            .key_id_map
            .iter()
            .chain(&response.prev_key_id_map)
            .chain(&request.ids)
            .filter(|id| **id != 0);
        for &id in asked.collect::<Vec<_>>() {
            let found = view.get(id).map(|known| pdpb::RegionResponse {
                region: Some(Box::new(known.meta.clone())),
                leader: known.leader,
                down_peers: down_peers(known),
                pending_peers: known.pending.clone(),
                buckets: self.buckets(member, known, request.need_buckets),
            });
            response.regions_by_id.insert(id, found.unwrap_or_default());
        }
        Ok(response)
    }
}

impl Cluster {
    /// Splits regions at encoded keys through PD.
    pub fn pd_split_regions(
        &mut self,
        now_ms: u64,
        member: usize,
        request: SplitRegionsRequest,
    ) -> Result<SplitRegionsResponse, GrpcError> {
        self.pd.check(member, request.header.as_ref())?;
        let (regions_id, done) = self.split_at(now_ms, &request.split_keys);
        Ok(SplitRegionsResponse {
            header: self.pd.header(),
            finished_percentage: percentage(done, request.split_keys.len()),
            regions_id,
        })
    }

    /// Splits wherever the keys fall; returns the new regions and how many keys are now bounds.
    pub(super) fn split_at(&mut self, now_ms: u64, keys: &[Bytes]) -> (Vec<RegionId>, usize) {
        let mut created = Vec::new();
        let mut done = 0;
        for key in keys {
            let Some(region) = self.regions.find(key) else {
                continue;
            };
            let id = region.meta.id;
            done += 1;
            if region.meta.start_key == *key {
                continue;
            }
            let parts = self.split(now_ms, id, std::slice::from_ref(key));
            created.extend(parts.into_iter().filter(|part| *part != id));
        }
        (created, done)
    }
}

fn described(known: &KnownRegion) -> pdpb::Region {
    pdpb::Region {
        region: Some(Box::new(known.meta.clone())),
        leader: Some(leader_or_empty(known)),
        down_peers: down_peers(known),
        pending_peers: known.pending.clone(),
        ..pdpb::Region::default()
    }
}

/// For how long peers have been down when their leader says so.
const DOWN_SECONDS: u64 = 600;

fn down_peers(known: &KnownRegion) -> Vec<pdpb::PeerStats> {
    let down = known.down.iter().map(|peer| pdpb::PeerStats {
        peer: Some(*peer),
        down_seconds: DOWN_SECONDS,
    });
    down.collect()
}

fn leader_or_empty(known: &KnownRegion) -> metapb::Peer {
    known.leader.unwrap_or_default()
}

pub(super) fn percentage(done: usize, all: usize) -> u64 {
    (done * 100).checked_div(all).unwrap_or(100) as u64
}
