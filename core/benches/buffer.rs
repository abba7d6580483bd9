//! What the transaction's buffer costs: writes, reads, scans, stages.
//!
//! The shapes are those of client-go's `memdb_bench_test.go`: keys of 16 bytes and values of 128,
//! in order and at random; keys with a shared prefix as a SQL table has them; long keys.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tikv_core::txn::buffer::MemBuffer;

const VALUE: [u8; 128] = [7; 128];

#[derive(Clone, Copy)]
enum Shape {
    Sequential,
    Random,
    /// 19 bytes of prefix, the row id, the last 8 bytes at random.
    Table,
    /// 1 KiB.
    Long,
}

impl Shape {
    const ALL: [(&'static str, Shape); 4] = [
        ("sequential", Shape::Sequential),
        ("random", Shape::Random),
        ("table", Shape::Table),
        ("long", Shape::Long),
    ];

    fn keys(self, count: u64) -> Vec<Vec<u8>> {
        let key = |i: u64| match self {
            Shape::Sequential => [[0; 8], i.to_be_bytes()].concat(),
            Shape::Random => [scatter(i).to_be_bytes(), i.to_be_bytes()].concat(),
            Shape::Table => [
                &b"t\x80\0\0\0\0\0\0\x2a_r\x80keyspace"[..],
                &scatter(i).to_be_bytes(),
            ]
            .concat(),
            Shape::Long => {
                let mut key = vec![b'k'; 1024];
                key[1016..].copy_from_slice(&scatter(i).to_be_bytes());
                key
            }
        };
        (0..count).map(key).collect()
    }
}

/// A bijection that leaves no order.
fn scatter(i: u64) -> u64 {
    let i = (i ^ (i >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let i = (i ^ (i >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    i ^ (i >> 31)
}

fn filled(keys: &[Vec<u8>]) -> MemBuffer {
    let mut buffer = MemBuffer::new();
    for key in keys {
        let _ = buffer.set(key, &VALUE);
    }
    buffer
}

/// How many entries each shape is measured with.
fn sizes(shape: Shape) -> &'static [u64] {
    match shape {
        Shape::Long => &[10_000],
        _ => &[10_000, 1_000_000],
    }
}

fn points(c: &mut Criterion) {
    for (name, shape) in Shape::ALL {
        for &count in sizes(shape) {
            let keys = shape.keys(count);
            let mut group = c.benchmark_group(format!("buffer/{name}"));
            group.throughput(Throughput::Elements(count));
            if count > 100_000 {
                group.sample_size(10);
            }
            group.bench_with_input(BenchmarkId::new("set", count), &keys, |b, keys| {
                b.iter_with_large_drop(|| filled(keys));
            });
            let buffer = filled(&keys);
            group.bench_with_input(BenchmarkId::new("get", count), &keys, |b, keys| {
                b.iter(|| {
                    for key in keys {
                        let _ = black_box(buffer.get(key));
                    }
                });
            });
            group.bench_with_input(BenchmarkId::new("get_ref", count), &keys, |b, keys| {
                b.iter(|| {
                    for key in keys {
                        let _ = black_box(buffer.get_ref(key));
                    }
                });
            });
            group.bench_function(BenchmarkId::new("iterate", count), |b| {
                b.iter(|| {
                    buffer
                        .iter(..)
                        .map(|entry| entry.key().len() + entry.value().map_or(0, <[u8]>::len))
                        .sum::<usize>()
                });
            });
            let snapshot = buffer.snapshot();
            group.bench_function(BenchmarkId::new("iterate_snapshot", count), |b| {
                b.iter(|| {
                    buffer.iter_at(&snapshot, ..).map(|pairs| {
                        pairs
                            .map(|(key, value)| key.len() + value.len())
                            .sum::<usize>()
                    })
                });
            });
            group.finish();
        }
    }
}

/// A statement that fails: what it wrote is undone. On top of a buffer of some size.
fn stages(c: &mut Criterion) {
    let keys = Shape::Random.keys(101_000);
    let (base, staged) = keys.split_at(100_000);
    let mut buffer = filled(base);
    let mut group = c.benchmark_group("buffer/stage");
    group.throughput(Throughput::Elements(1000));
    for (name, written) in [("new", staged), ("overwritten", &base[..1000])] {
        group.bench_function(BenchmarkId::new("cleanup", name), |b| {
            b.iter(|| {
                let stage = buffer.staging();
                for key in written {
                    let _ = buffer.set(key, &VALUE);
                }
                buffer.cleanup(stage)
            });
        });
    }
    group.finish();
    c.bench_function("buffer/stage/empty", |b| {
        b.iter(|| {
            let stage = buffer.staging();
            buffer.release(stage)
        });
    });
}

/// A key that is read, written and flagged in a row, and a buffer that is hardly used.
fn small(c: &mut Criterion) {
    let keys = Shape::Random.keys(1000);
    let mut buffer = filled(&keys);
    c.bench_function("buffer/same_key/11_calls", |b| {
        let mut keys = keys.iter().cycle();
        b.iter(|| {
            if let Some(key) = keys.next() {
                for _ in 0..5 {
                    let _ = black_box(buffer.get_ref(key));
                    let _ = buffer.update_flags(key, &[]);
                }
                let _ = buffer.set(key, &VALUE);
            }
        });
    });
    c.bench_function("buffer/create", |b| b.iter(MemBuffer::new));
    c.bench_function("buffer/create_and_set_one", |b| {
        b.iter_batched(
            MemBuffer::new,
            |mut buffer| {
                let _ = buffer.set(b"key", &VALUE);
                buffer
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, points, stages, small);
criterion_main!(benches);
