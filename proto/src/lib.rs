//! The gRPC interface of TiKV and of its placement driver, PD.
//!
//! Every module is one protobuf package. Its messages are compiled with [`prost`] from the `.proto`
//! files in this crate; byte strings are [`bytes::Bytes`], maps are ordered. With the feature
//! `grpc`, the packages that have services also hold clients and servers for `tonic`, for instance
//! `tikvpb::tikv_client::TikvClient` and `tikvpb::tikv_server::Tikv`. They are generic over the
//! transport: give a client any channel that speaks HTTP/2, for instance a
//! `tonic::transport::Channel`.
//!
//! ```
//! use prost::Message;
//! use tikv_proto::kvrpcpb::{Context, GetRequest, IsolationLevel};
//!
//! let request = GetRequest {
//!     context: Some(Box::new(Context {
//!         region_id: 7,
//!         isolation_level: IsolationLevel::Si.into(),
//!         ..Default::default()
//!     })),
//!     key: "account".into(),
//!     version: 443_852_055_297_916_932,
//!     ..Default::default()
//! };
//!
//! let bytes = request.encode_to_vec();
//! assert_eq!(GetRequest::decode(bytes.as_slice())?, request);
//! # Ok::<(), prost::DecodeError>(())
//! ```
//!
//! # How names carry over
//!
//! - A message keeps its name in camel case with acronyms lowered: `GCRequest` is `GcRequest`,
//!   `RUV2` is `Ruv2`.
//! - A message nested in another lives in a module named after the outer one, as does the enum of a
//!   `oneof`: [`tikvpb::batch_commands_request::request::Cmd`].
//! - A field of an enum type is an `i32`, since a peer may send a value that is not known here; an
//!   accessor of the same name gives the enum or its default, and `TryFrom<i32>` tells the unknown
//!   ones.
//! - A field of type `kvrpcpb.Context`, `errorpb.Error`, `kvrpcpb.KeyError`, `kvrpcpb.ExecDetails` or
//!   `kvrpcpb.ExecDetailsV2` is boxed, unless it is repeated: responses that went well stay small.
//! - A name that is a word of Rust is raw: `r#type`.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

/// Encoded descriptors of all packages: a `google.protobuf.FileDescriptorSet`, without comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Declares the module of one package. What is generated answers to the compiler only, not to
/// lints.
macro_rules! package {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[allow(missing_docs, deprecated, unreachable_pub, rust_2018_idioms)]
        #[allow(clippy::all, clippy::pedantic)]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
        }
    };
}

package! {
    /// How a keyspace is named together with the namespace that owns it.
    apipb
}

package! {
    /// Push-down execution: one opaque plan, run beside the data over given key ranges. The plan
    /// and its result are bytes to this layer.
    coprocessor
}

package! {
    /// The edge of the wait-for graph that a deadlock report is made of.
    deadlock
}

package! {
    /// Locking of files in shared object storage, used where compute and storage nodes are
    /// separate.
    disaggregated
}

package! {
    /// How a value that is stored encrypted names its key.
    encryptionpb
}

package! {
    /// The few Raft facts that other packages refer to: the kind of a membership change and the
    /// durable state.
    eraftpb
}

package! {
    /// Region errors: why a store did not serve a request that reached it. They steer routing and
    /// back-off, and never speak of keys locked by transactions.
    errorpb
}

package! {
    /// Keyspaces and namespaces: tenants that share one cluster, and their life cycle.
    keyspacepb
}

package! {
    /// Requests and responses of the key-value commands, transactional and raw, with what they
    /// share: the request context, key errors, locks and execution details.
    kvrpcpb
}

package! {
    /// A small watched key-value store inside PD, close to the etcd interface.
    meta_storagepb
}

package! {
    /// The cluster as everyone sees it: stores, regions, peers, epochs and buckets.
    metapb
}

package! {
    /// Tasks that span several nodes and exchange rows with one another.
    mpp
}

package! {
    /// The placement driver: members, timestamps, regions, stores, safe points, GC barriers and
    /// scheduling.
    pdpb
}

package! {
    /// Durable states of a peer, as reported in recovery.
    raft_serverpb
}

package! {
    /// How far replication between data centres has come.
    replication_modepb
}

package! {
    /// Resource groups and the token buckets that meter them.
    resource_manager
}

package! {
    /// Region look-ups without the rest of PD, for services that answer only these. It declares a
    /// service and no message, so it is there with the feature `grpc` only.
    #[cfg(feature = "grpc")]
    routerpb
}

package! {
    /// The service of a store, and the stream that carries many commands at once.
    tikvpb
}

package! {
    /// Spans and trace contexts that travel with requests.
    tracepb
}

package! {
    /// The timestamp oracle as a service of its own, sharded into keyspace groups.
    tsopb
}
