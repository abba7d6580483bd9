//! Compiles `proto/*.proto` to Rust, without an installed `protoc`.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message as _;
use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// Where the `.proto` files are, seen from this package.
const SOURCES: &str = "proto";

/// Large messages that other messages have a field for: the context, which is kept beside a
/// request until it is sent, errors and locks, which are rare, execution details, and what PD
/// tells. A field of such a type is boxed, so that one pair of a scan takes eighty bytes and not a
/// thousand, and the sum of all responses is no larger than what a point get needs.
const BOXED: [&str; 12] = [
    ".kvrpcpb.Context",
    ".errorpb.Error",
    ".kvrpcpb.KeyError",
    ".kvrpcpb.LockInfo",
    ".kvrpcpb.MvccInfo",
    ".kvrpcpb.ExecDetails",
    ".kvrpcpb.ExecDetailsV2",
    ".metapb.Region",
    ".metapb.Store",
    ".metapb.Buckets",
    ".pdpb.Member",
    ".pdpb.StoreStats",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCES}");

    let mut files = Vec::new();
    for entry in fs::read_dir(SOURCES)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            files.push(path);
        }
    }
    files.sort();

    let descriptors = protox::compile(&files, [SOURCES])?;
    write_descriptors(descriptors.clone())?;
    generate(descriptors)?;
    Ok(())
}

/// Keeps the descriptors beside the generated code, without comments and positions.
fn write_descriptors(mut descriptors: FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(out, descriptors.encode_to_vec())?;
    Ok(())
}

/// The full names of the fields to box. In a repeated field the vector is the box already.
fn boxed_fields(descriptors: &FileDescriptorSet) -> Vec<String> {
    let mut paths = Vec::new();
    for file in &descriptors.file {
        for message in &file.message_type {
            collect_boxed(&format!(".{}", file.package()), message, &mut paths);
        }
    }
    paths
}

fn collect_boxed(scope: &str, message: &DescriptorProto, paths: &mut Vec<String>) {
    let name = format!("{scope}.{}", message.name());
    for field in &message.field {
        if field.label() != Label::Repeated && BOXED.contains(&field.type_name()) {
            paths.push(format!("{name}.{}", field.name()));
        }
    }
    for nested in &message.nested_type {
        collect_boxed(&name, nested, paths);
    }
}

fn config(descriptors: &FileDescriptorSet) -> prost_build::Config {
    let mut config = prost_build::Config::new();
    // Keys and values are slices of the frame that they came in.
    config.bytes(["."]);
    // A message has one encoding, on every run.
    config.btree_map(["."]);
    for path in boxed_fields(descriptors) {
        config.boxed(path);
    }
    config
}

#[cfg(not(feature = "grpc"))]
fn generate(descriptors: FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    Ok(config(&descriptors).compile_fds(descriptors)?)
}

#[cfg(feature = "grpc")]
fn generate(descriptors: FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    let config = config(&descriptors);
    // The generated code takes any transport, so that users choose theirs.
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
