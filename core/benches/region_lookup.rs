//! What it costs to find the region of a key, and to take in a split.
//!
//! Keys are those of a SQL table (`t`, table id, `_r`, row id), in few large tables and in many
//! small ones, and short ones. Every look-up is of another key, drawn evenly from the whole cache.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use oorandom::Rand64;
use tikv_core::Key;
use tikv_core::internal::RegionTable;

const SIZES: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];
const ROWS_PER_REGION: u64 = 1_000;
const SIGN: u64 = 1 << 63;

#[derive(Clone, Copy)]
enum Shape {
    /// Ten tables.
    LargeTables,
    /// A table for every ten regions.
    SmallTables,
    /// Eight bytes.
    Short,
}

impl Shape {
    const ALL: [(&'static str, Shape); 3] = [
        ("large_tables", Shape::LargeTables),
        ("small_tables", Shape::SmallTables),
        ("short", Shape::Short),
    ];

    /// The key of one row of one region, written to `buf`.
    fn key(self, region: u64, row: u64, regions: u64, buf: &mut [u8; 19]) -> &[u8] {
        let per_table = match self {
            Shape::LargeTables => regions / 10,
            Shape::SmallTables => 10,
            Shape::Short => {
                buf[..8].copy_from_slice(&(region * ROWS_PER_REGION + row).to_be_bytes());
                return &buf[..8];
            }
        };
        let (table, place) = (region / per_table, region % per_table);
        buf[0] = b't';
        buf[1..9].copy_from_slice(&((table + 100) | SIGN).to_be_bytes());
        buf[9..11].copy_from_slice(b"_r");
        buf[11..].copy_from_slice(&((place * ROWS_PER_REGION + row) | SIGN).to_be_bytes());
        buf
    }

    fn cuts(self, regions: u64) -> Vec<Key> {
        let mut buf = [0; 19];
        let cut = |region| Key::from(self.key(region, 0, regions, &mut buf));
        (0..regions).map(cut).collect()
    }
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("region_lookup");
    for (name, shape) in Shape::ALL {
        for regions in SIZES {
            let table = RegionTable::new(&shape.cuts(regions));
            let mut rng = Rand64::new(7);
            let mut buf = [0; 19];
            group.bench_function(BenchmarkId::new(name, regions), |b| {
                b.iter(|| {
                    let drawn = rng.rand_u64();
                    let region = ((u128::from(drawn) * u128::from(regions)) >> 64) as u64;
                    let key = shape.key(region, drawn % ROWS_PER_REGION, regions, &mut buf);
                    assert!(table.lookup(black_box(key)));
                });
            });
        }
    }
    group.finish();
}

fn split(c: &mut Criterion) {
    let mut group = c.benchmark_group("region_split");
    group.sample_size(10);
    for regions in SIZES {
        let shape = Shape::LargeTables;
        let mut table = RegionTable::new(&shape.cuts(regions));
        let mut rng = Rand64::new(7);
        group.bench_function(BenchmarkId::new("large_tables", regions), |b| {
            b.iter_batched(
                || {
                    let drawn = rng.rand_u64();
                    let region = ((u128::from(drawn) * u128::from(regions)) >> 64) as u64;
                    let row = 1 + (drawn >> 32) % (ROWS_PER_REGION - 1);
                    Key::from(shape.key(region, row, regions, &mut [0; 19]))
                },
                |key| table.split(key),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, split);
criterion_main!(benches);
