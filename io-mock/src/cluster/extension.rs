//! What a program may add to the stores: answers to requests that mean something only to those who
//! send them. A coprocessor request carries a plan whose language is the business of a database on
//! top, so a store here checks everything around it and leaves the plan to an [`Extension`].
//!
//! One extension serves a whole cluster, wherever the cluster runs: it is part of the
//! configuration, or put in by [`Cluster::set_extension`].
//!
//! ```
//! use bytes::Bytes;
//! use tikv_io_mock::LocalCluster;
//! use tikv_io_mock::cluster::extension::{Asked, Extension};
//! use tikv_proto::coprocessor;
//!
//! /// Counts the rows of the ranges it is asked about.
//! struct Count;
//!
//! impl Extension for Count {
//!     fn coprocessor(
//!         &self,
//!         asked: &Asked<'_>,
//!         request: &coprocessor::Request,
//!     ) -> Option<coprocessor::Response> {
//!         let mut count = 0;
//!         for range in &request.ranges {
//!             count += asked.scan(request.start_ts, &range.start, &range.end).len();
//!         }
//!         Some(coprocessor::Response {
//!             data: Bytes::from(count.to_string()),
//!             ..Default::default()
//!         })
//!     }
//! }
//!
//! let cluster = LocalCluster::builder()
//!     .config(|config| config.extension = Some(Count.into()))
//!     .start();
//! # assert!(cluster.with(|cluster, _| cluster.config().extension.is_some()));
//! ```
//!
//! In a simulation an extension must be as deterministic as everything else: what it answers may
//! depend on nothing but what it is asked and what the cluster holds.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tikv_proto::coprocessor;
use tikv_proto::kvrpcpb::{IsolationLevel, RawCoprocessorRequest};

use super::Cluster;
use super::failure::{GrpcCode, GrpcError};
use super::key::{self, Key};
use super::mvcc::lock::ReadRules;
use super::mvcc::read::{ScanRange, Wanted, scan};
use super::mvcc::reader::Reader;
use super::region::StoreId;

/// Answers requests in the place of programs that are not simulated. Every method may leave a
/// request alone by answering `None`; the store then says that it knows no such thing.
pub trait Extension: Send + Sync {
    /// Answers a coprocessor request. The region has been checked, and nothing in the ranges is
    /// locked for the version read.
    fn coprocessor(
        &self,
        asked: &Asked<'_>,
        request: &coprocessor::Request,
    ) -> Option<coprocessor::Response> {
        let (_, _) = (asked, request);
        None
    }

    /// Answers a coprocessor request piece by piece. By default there is one piece, the whole
    /// answer.
    fn coprocessor_stream(
        &self,
        asked: &Asked<'_>,
        request: &coprocessor::Request,
    ) -> Option<Vec<coprocessor::Response>> {
        Some(vec![self.coprocessor(asked, request)?])
    }

    /// Answers a raw coprocessor request, with data or with the text of a failure. The region has
    /// been checked.
    fn raw_coprocessor(
        &self,
        asked: &Asked<'_>,
        request: &RawCoprocessorRequest,
    ) -> Option<Result<Bytes, String>> {
        let (_, _) = (asked, request);
        None
    }

    /// Answers any other call of `tikvpb.Tikv` that stores do not answer themselves, such as those
    /// of MPP, by its path. Where the call has one answer it is the first message; where it has a
    /// stream of answers all messages are sent. Nothing has been checked.
    fn call(
        &self,
        asked: &Asked<'_>,
        path: &str,
        request: &Bytes,
    ) -> Option<Result<Vec<Bytes>, GrpcError>> {
        let (_, _, _) = (asked, path, request);
        None
    }
}

/// An extension as a configuration holds it.
#[derive(Clone)]
pub struct Extended(Arc<dyn Extension>);

impl<E: Extension + 'static> From<E> for Extended {
    fn from(extension: E) -> Self {
        Extended(Arc::new(extension))
    }
}

impl fmt::Debug for Extended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Extended")
    }
}

/// Who is asked, and what there is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The time.
    pub now_ms: u64,
    /// The store.
    pub store: StoreId,
    /// Everything there is.
    pub cluster: &'a Cluster,
}

impl Asked<'_> {
    /// The values of keys in `[start, end)` as of a version, past all locks and regions, as far as
    /// the store has applied them. An empty end is no end.
    pub fn scan(&self, version: u64, start: &[u8], end: &[u8]) -> Vec<(Bytes, Bytes)> {
        let (no_locks, open) = (BTreeMap::new(), Bytes::new());
        let everything = Reader {
            engine: self.cluster.engine().on(self.store),
            memory: &no_locks,
            region_id: 0,
            start: &open,
            end: &open,
        };
        let range = ScanRange {
            lower: Some(key::encode(start)),
            upper: (!end.is_empty()).then(|| key::encode(end)),
            reverse: false,
            limit: usize::MAX,
            sample_step: 0,
        };
        let rules = ReadRules {
            ts: version,
            // Whoever calls has been told of locks already.
            isolation: IsolationLevel::Rc,
            bypass: &[],
            access: &[],
            replica: false,
        };
        let rows = scan(&everything, &range, &rules, Wanted::default());
        let rows = rows.unwrap_or_default().into_iter().flatten();
        rows.map(|(key, value)| (key.to_user(), value)).collect()
    }

    /// The value of a key as of a version, past all locks and regions.
    pub fn get(&self, version: u64, user_key: &[u8]) -> Option<Bytes> {
        let mut after = user_key.to_vec();
        after.push(0);
        let mut found = self.scan(version, user_key, &after).into_iter();
        let (key, value) = found.next()?;
        Key::from_user(&key).is_user(user_key).then_some(value)
    }
}

impl Cluster {
    /// Puts an extension in, in the place of the one there was.
    pub fn set_extension(&mut self, extension: Option<Extended>) {
        self.config.extension = extension;
    }

    /// Asks the extension, if there is one.
    pub(super) fn extended<A>(
        &self,
        now_ms: u64,
        store: StoreId,
        ask: impl FnOnce(&dyn Extension, &Asked<'_>) -> Option<A>,
    ) -> Option<A> {
        let Extended(extension) = self.config.extension.as_ref()?;
        let asked = Asked {
            now_ms,
            store,
            cluster: self,
        };
        ask(extension.as_ref(), &asked)
    }

    /// Answers a call that stores do not answer themselves.
    ///
    /// # Errors
    ///
    /// There is no extension that knows the call, the store is down, or the extension says so.
    pub fn extended_call(
        &self,
        now_ms: u64,
        store: StoreId,
        path: &str,
        request: &Bytes,
    ) -> Result<Vec<Bytes>, GrpcError> {
        self.admit(store, None)?;
        let answer = self.extended(now_ms, store, |extension, asked| {
            extension.call(asked, path, request)
        });
        answer.unwrap_or_else(|| {
            let message = format!("unknown method {path}");
            Err(GrpcError::new(GrpcCode::Unimplemented, message))
        })
    }
}

#[cfg(test)]
mod tests;
