//! What a cluster of many regions costs: finding the region of a key and splitting one, at the
//! stores and at PD, by the number of regions; and the memory that a region takes.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use oorandom::Rand64;
use tikv_io_mock::cluster::{Cluster, Config, key};
use tikv_proto::pdpb;

/// The largest first: what it leaves behind is what the memory of the others would be taken from.
const SIZES: [u64; 3] = [500_000, 50_000, 5_000];
const NOW_MS: u64 = 1_700_000_000_000;
const ROWS_PER_REGION: u64 = 1_000;

/// The encoded key of a row.
fn row(number: u64) -> Bytes {
    key::encode(&number.to_be_bytes())
}

fn cluster(regions: u64) -> Cluster {
    let mut cluster = Cluster::new(Config::default(), NOW_MS);
    let first = cluster.regions().ids().next().expect("there is a region");
    let keys: Vec<Bytes> = (1..regions).map(|n| row(n * ROWS_PER_REGION)).collect();
    let made = cluster.split(NOW_MS, first, &keys);
    assert_eq!(made.len() as u64, regions);
    cluster
}

/// The memory of this process in bytes. Zero where the system does not tell.
fn resident() -> u64 {
    let pages = || {
        let text = std::fs::read_to_string("/proc/self/statm").ok()?;
        text.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    pages().unwrap_or(0) * 4096
}

fn many_regions(c: &mut Criterion) {
    let mut group = c.benchmark_group("cluster");
    for regions in SIZES {
        let before = resident();
        let mut cluster = cluster(regions);
        let taken = resident().saturating_sub(before);
        if regions == SIZES[0] {
            println!("{regions} regions take {} bytes each", taken / regions);
        }
        let mut rng = Rand64::new(7);
        group.bench_function(BenchmarkId::new("locate", regions), |b| {
            b.iter(|| {
                let number = rng.rand_range(0..regions * ROWS_PER_REGION);
                cluster
                    .regions()
                    .find(black_box(&row(number)))
                    .map(|found| found.meta.id)
            });
        });
        group.bench_function(BenchmarkId::new("PD GetRegion", regions), |b| {
            b.iter(|| {
                let number = rng.rand_range(0..regions * ROWS_PER_REGION);
                let request = pdpb::GetRegionRequest {
                    header: Some(pdpb::RequestHeader {
                        cluster_id: 1,
                        ..Default::default()
                    }),
                    region_key: row(number),
                    ..Default::default()
                };
                cluster.pd().get_region(0, false, request)
            });
        });
        group.sample_size(10);
        group.bench_function(BenchmarkId::new("split", regions), |b| {
            b.iter(|| {
                let number = rng.rand_range(0..regions * ROWS_PER_REGION);
                let key = row(number);
                let id = cluster.regions().find(&key).map(|found| found.meta.id);
                id.map(|id| cluster.split(NOW_MS, id, &[key]))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, many_regions);
criterion_main!(benches);
