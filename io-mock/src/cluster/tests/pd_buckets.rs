//! Where PD says that regions may be cut.

use bytes::Bytes;
use tikv_proto::metapb;
use tikv_proto::pdpb::{
    BatchScanRegionsRequest, GetRegionByIdRequest, GetRegionRequest, KeyRange, QueryRegionRequest,
    RequestHeader,
};

use super::{Bench, NOW};
use crate::cluster::{Cluster, Config, key};

fn header() -> Option<RequestHeader> {
    Some(RequestHeader {
        cluster_id: 1,
        ..Default::default()
    })
}

/// The buckets of the region of `k`, however a member is asked.
fn told(cluster: &Cluster, member: usize, need_buckets: bool) -> Vec<Option<Box<metapb::Buckets>>> {
    let (pd, region_key) = (cluster.pd(), key::encode(b"k"));
    let request = GetRegionRequest {
        header: header(),
        region_key: region_key.clone(),
        need_buckets,
    };
    let one = pd.get_region(member, true, request).expect("an answer");
    let region_id = one.region.expect("a region").id;
    let request = GetRegionByIdRequest {
        header: header(),
        region_id,
        need_buckets,
    };
    let by_id = pd
        .get_region_by_id(member, true, request)
        .expect("an answer");
    let request = BatchScanRegionsRequest {
        header: header(),
        ranges: vec![KeyRange {
            start_key: region_key.clone(),
            end_key: key::encode(b"l"),
        }],
        need_buckets,
        ..Default::default()
    };
    let scanned = pd
        .batch_scan_regions(member, true, request)
        .expect("an answer");
    let request = QueryRegionRequest {
        header: header(),
        keys: vec![region_key],
        need_buckets,
        ..Default::default()
    };
    let queried = pd.query_region(member, request).expect("an answer");
    let queried = queried.regions_by_id.into_values();
    let mut all = vec![one.buckets, by_id.buckets];
    all.extend(scanned.regions.into_iter().map(|region| region.buckets));
    all.extend(queried.map(|region| region.buckets));
    assert_eq!(all.len(), 4);
    all
}

fn keys(cluster: &Cluster) -> Vec<Bytes> {
    let told = told(cluster, 0, true).swap_remove(0);
    told.expect("buckets").keys
}

#[test]
fn the_leader_tells_who_asks() {
    let mut b = Bench::with(Config {
        pd_members: 2,
        ..Config::default()
    });
    let id = b.to(b"k").0.expect("a context").region_id;
    assert_eq!(told(&b.cluster, 0, true), vec![None; 4]);
    b.cluster.set_buckets(id, &[key::encode(b"g")]);
    let buckets = told(&b.cluster, 0, true).swap_remove(0).expect("buckets");
    let region = b.cluster.region(id).expect("a region");
    assert_eq!(
        (buckets.region_id, buckets.version >> 32),
        (id, region.term)
    );
    assert_eq!(
        buckets.keys,
        [Bytes::new(), key::encode(b"g"), Bytes::new()]
    );
    let stats = buckets.stats.as_ref().expect("what was counted");
    assert_eq!(stats.read_bytes.len(), 2);
    assert_eq!(told(&b.cluster, 0, true), vec![Some(buckets); 4]);
    assert_eq!(told(&b.cluster, 0, false), vec![None; 4], "nobody asked");
    assert_eq!(told(&b.cluster, 1, true), vec![None; 4], "it does not lead");
}

#[test]
fn old_buckets_stay_until_newer_ones_are_reported() {
    let mut b = Bench::with(Config {
        heartbeat_at_once: false,
        ..Config::default()
    });
    let id = b.to(b"k").0.expect("a context").region_id;
    b.cluster.pd_heartbeat(id);
    let open = Bytes::new();
    b.cluster.set_buckets(id, &[key::encode(b"g")]);
    assert_eq!(told(&b.cluster, 0, true), vec![None; 4], "it has not heard");
    assert!(b.cluster.pd_heartbeat(id));
    let first = vec![open.clone(), key::encode(b"g"), open.clone()];
    assert_eq!(keys(&b.cluster), first);
    // Neither a split nor a new leader is a report.
    b.cluster.split(NOW, id, &[key::encode(b"h")]);
    b.cluster.transfer_leader(NOW, id, 2);
    assert!(
        b.cluster
            .region(id)
            .is_some_and(|region| region.buckets.is_none())
    );
    assert!(b.cluster.pd_heartbeat(id));
    assert_eq!(keys(&b.cluster), first);
    b.cluster.set_buckets(id, &[key::encode(b"p")]);
    assert!(b.cluster.pd_heartbeat(id));
    assert_eq!(
        keys(&b.cluster),
        [key::encode(b"h"), key::encode(b"p"), open]
    );
    let loaded = Cluster::load(&b.cluster.save()).expect("it was saved");
    assert_eq!(keys(&loaded), keys(&b.cluster));
}

#[test]
fn a_second_split_of_the_same_leader_is_reported_too() {
    let mut b = Bench::new();
    let id = b.to(b"k").0.expect("a context").region_id;
    let mut last = 0;
    for (cut, bucket) in [(b"a", b"p"), (b"b", b"q"), (b"c", b"r")] {
        b.cluster.set_buckets(id, &[key::encode(bucket)]);
        let told = told(&b.cluster, 0, true).swap_remove(0).expect("buckets");
        assert!(told.version > last);
        assert_eq!(told.keys[1], key::encode(bucket));
        last = told.version;
        b.cluster.split(NOW, id, &[key::encode(cut)]);
    }
}
