//! What a request costs on its way through one connection, apart from sockets and wake-ups.
//!
//! The first three groups are work of different tasks: the caller encodes its part, the stream's
//! task writes and splits frames. The last one is what happens under the multiplexer's lock,
//! per request.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tikv_core::driver::Instant;
use tikv_core::rpc::frame::{
    RequestFrame, SplitFrame, build_response, encode_part, split_response,
};
use tikv_core::rpc::mux::{Entry, Link, Mux, MuxConfig};
use tikv_core::wire::Command;
use tikv_proto::{kvrpcpb, metapb};

fn get(i: u64) -> (kvrpcpb::Context, Command) {
    let context = kvrpcpb::Context {
        region_id: 1_234 + i,
        region_epoch: Some(metapb::RegionEpoch {
            conf_ver: 5,
            version: 312,
        }),
        peer: Some(metapb::Peer {
            id: 1_235 + i,
            store_id: 4,
            ..Default::default()
        }),
        max_execution_duration_ms: 20_000,
        request_source: "external_Get".into(),
        cluster_id: 7_318_000_000_000_000_000,
        ..Default::default()
    };
    let command = kvrpcpb::GetRequest {
        key: Bytes::from(format!("t\u{1}account_{i:016}")),
        version: 443_852_055_297_916_932 + i,
        ..Default::default()
    };
    (context, command.into())
}

fn part(i: u64) -> Bytes {
    let (context, command) = get(i);
    encode_part(Some(&context), &command).expect("a get has an arm")
}

fn answer(value_len: usize) -> Bytes {
    let response = kvrpcpb::GetResponse {
        value: vec![b'v'; value_len].into(),
        ..Default::default()
    };
    prost::Message::encode_to_vec(&response).into()
}

fn parts(c: &mut Criterion) {
    let (context, command) = get(0);
    c.bench_function("encode_part/KvGet", |b| {
        b.iter(|| encode_part(black_box(Some(&context)), black_box(&command)));
    });
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Elements(16));
    let frame = RequestFrame::new(1_000_000, (0..16).map(part).collect());
    let mut buf = BytesMut::with_capacity(frame.encoded_len(1));
    group.bench_function("encode/16", |b| {
        b.iter(|| {
            buf.clear();
            black_box(&frame).encode(1_764_000_000_000_000_000, &mut buf);
        });
    });

    let answers: Vec<_> = (1_000_000..1_000_016)
        .map(|id| (id, 1, answer(64)))
        .collect();
    let received = build_response(&answers);
    group.bench_function("split/16", |b| {
        b.iter(|| split_response(black_box(received.clone())));
    });
    let mut split = SplitFrame::default();
    group.bench_function("split_again/16", |b| {
        b.iter(|| split.read(black_box(received.clone())));
    });
    group.finish();
}

/// A multiplexer with one connection that is up.
fn connected() -> (Mux<u32>, Link) {
    let config = MuxConfig {
        connections: 1,
        ..Default::default()
    };
    let mut mux = Mux::new("store".into(), config);
    let ticket = mux
        .push(Instant::ZERO, entry(&part(0)))
        .expect("there is room");
    let link = mux
        .poll_connect(Instant::ZERO)
        .expect("something is queued");
    mux.on_connected(link);
    mux.cancel(Instant::ZERO, ticket);
    mux.poll_frame(Instant::ZERO, link, &mut Vec::new());
    (mux, link)
}

fn entry(part: &Bytes) -> Entry<u32> {
    Entry {
        part: part.clone(),
        priority: 0,
        deadline: Instant::FAR_FUTURE,
        completion: 7,
    }
}

fn round_trips(c: &mut Criterion) {
    let mut group = c.benchmark_group("mux");
    for (frame_len, in_flight) in [(1u64, 1), (16, 16), (128, 128), (16, 1024)] {
        group.throughput(Throughput::Elements(frame_len));
        let (mut mux, link) = connected();
        let part = part(0);
        let body = answer(64);
        let mut done = Vec::new();
        let mut oldest = 1;
        // What is in flight beyond the frame that is measured.
        for _ in frame_len..in_flight {
            mux.push(Instant::ZERO, entry(&part))
                .expect("there is room");
            mux.poll_frame(Instant::ZERO, link, &mut done);
        }
        group.bench_function(format!("round_trip/{frame_len}_of_{in_flight}"), |b| {
            // The received frame is made outside of what is measured.
            b.iter_batched(
                || {
                    let ids = oldest..oldest + frame_len;
                    oldest = ids.end;
                    let answers: Vec<_> = ids.map(|id| (id, 1, body.clone())).collect();
                    split_response(build_response(&answers)).expect("it was just built")
                },
                |mut split| {
                    for _ in 0..frame_len {
                        mux.push(Instant::ZERO, entry(&part))
                            .expect("there is room");
                        black_box(mux.poll_connect(Instant::ZERO));
                        black_box(mux.poll_wake());
                    }
                    let frame = mux.poll_frame(Instant::ZERO, link, &mut done);
                    black_box(mux.poll_frame(Instant::ZERO, link, &mut done));
                    mux.handle_frame(Instant::ZERO, link, &mut split, &mut done);
                    black_box(mux.next_deadline());
                    assert_eq!(done.len() as u64, frame_len);
                    done.clear();
                    (frame, split)
                },
                BatchSize::NumIterations(1),
            );
        });
    }
    group.finish();
}

criterion_group!(benches, parts, frames, round_trips);
criterion_main!(benches);
