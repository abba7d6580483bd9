# `just` lists the recipes; `just ci` is what CI runs.

set shell := ["bash", "-euo", "pipefail", "-c"]

default:
    @just --list --unsorted

# What CI runs
ci:
    .ci/run

# All tests that need no cluster
test *args:
    cargo test --workspace {{ args }}

# The bank in the simulator, one run per seed
sim seeds="0..200" *args:
    cargo run --release -p tikv-tests --bin sim -- --seeds {{ seeds }} {{ args }}

# One seed again, told and drawn in target/sim
replay seed *args:
    mkdir -p target/sim
    cargo run --release -p tikv-tests --bin sim -- --seed {{ seed }} --trace target/sim/{{ seed }}.txt --timeline target/sim/{{ seed }}.html {{ args }}

# A fuzz target (codec, frame, operation) for some seconds
fuzz target seconds="60":
    .ci/fuzz {{ target }} {{ seconds }}

# Another client at work on the simulated cluster
peers *args:
    cargo test --locked --manifest-path tests/peers/Cargo.toml {{ args }}

# The official Go client at work on tikv-mock; needs a Go toolchain
peers-go *args:
    cargo build --locked -p tikv-io-mock --features serve --bin tikv-mock
    TIKV_MOCK="$(realpath "${CARGO_TARGET_DIR:-target}/debug/tikv-mock")" go -C tests/peers/go test -count=1 ./... {{ args }}

# All benchmarks
bench *args:
    cargo bench --workspace {{ args }}

# Line coverage of the tests, as HTML
cover:
    cargo llvm-cov --workspace --html --open

# The book, rendered into docs/book
book:
    mdbook build docs --open

# API documentation; warnings are errors
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# A cluster of TiUP's on this machine; waits until PD answers. Ctrl-C ends it
playground version="nightly":
    .ci/playground {{ version }}

# The suite for a real cluster; PD_ADDRS says where, as host:port separated by commas
integration $PD_ADDRS=env("PD_ADDRS", "127.0.0.1:2379"):
    cargo test -p tikv-tests --test real_cluster -- --test-threads=1 --nocapture
