//! The record a transaction leaves at its commit version: what was written, or that it was rolled back.

use bytes::Bytes;
use tikv_proto::kvrpcpb;

use super::last_change::LastChange;

/// What a write record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// A value.
    Put,
    /// A deletion.
    Delete,
    /// A committed lock without data.
    Lock,
    /// A rollback mark; its commit version is the transaction's start version.
    Rollback,
}

impl WriteKind {
    /// The operation that MVCC debug output shows.
    pub fn op(self) -> kvrpcpb::Op {
        match self {
            WriteKind::Put => kvrpcpb::Op::Put,
            WriteKind::Delete => kvrpcpb::Op::Del,
            WriteKind::Lock => kvrpcpb::Op::Lock,
            WriteKind::Rollback => kvrpcpb::Op::Rollback,
        }
    }
}

/// One write record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteRecord {
    /// What it says.
    pub kind: WriteKind,
    /// Start version of the transaction that wrote it.
    pub start_ts: u64,
    /// A value of at most 255 bytes; a protected rollback carries [`PROTECTED`].
    pub short_value: Option<Bytes>,
    /// The transaction whose start version is this record's commit version has been rolled back.
    pub overlapped_rollback: bool,
    /// With the mark above: the commit version of the next newer version when it was set, 0 if none.
    pub gc_fence: Option<u64>,
    /// Copied from the lock.
    pub txn_source: u64,
    /// Where the newest data below stands, copied from the lock.
    pub last_change: LastChange,
}

/// The short value that protects a rollback from being collapsed.
pub const PROTECTED: &[u8] = b"p";

impl WriteRecord {
    /// A record without any of the rare marks.
    pub fn new(kind: WriteKind, start_ts: u64, short_value: Option<Bytes>) -> Self {
        WriteRecord {
            kind,
            start_ts,
            short_value,
            overlapped_rollback: false,
            gc_fence: None,
            txn_source: 0,
            last_change: LastChange::Unknown,
        }
    }

    /// A rollback mark.
    pub fn rollback(start_ts: u64, protected: bool) -> Self {
        let mark = protected.then_some(Bytes::from_static(PROTECTED));
        WriteRecord::new(WriteKind::Rollback, start_ts, mark)
    }

    /// Whether a later rollback may not delete this one.
    pub fn is_protected(&self) -> bool {
        self.kind == WriteKind::Rollback && self.short_value.as_deref() == Some(PROTECTED)
    }

    /// Whether this record tells the transaction that started at `ts` that it was rolled back,
    /// given that it stands at commit version `ts`.
    pub fn rolls_back_at(&self) -> bool {
        self.kind == WriteKind::Rollback || self.overlapped_rollback
    }

    /// As the newest version at `read_ts`, does it still count? A record whose fence lies at or
    /// below the read was garbage when it was rewritten.
    pub fn passes_gc_fence(&self, read_ts: u64) -> bool {
        match self.gc_fence {
            None | Some(0) => true,
            Some(fence) => fence > read_ts,
        }
    }

    /// Whether a newer version existed when the fence was set: the record is a deleted version.
    pub fn is_fenced(&self) -> bool {
        self.gc_fence.is_some_and(|fence| fence != 0)
    }
}
