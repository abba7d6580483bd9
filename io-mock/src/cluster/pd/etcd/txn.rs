//! Transactions: conditions, and what is done if they all hold or if not. All that is written
//! carries one revision, and nothing is if any of it can't be.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use bytes::Bytes;
use tikv_proto::meta_storagepb::KeyValue;

use super::messages::{
    Compare, CompareResult, CompareTarget, Compared, Op, OpDone, OpKind, OpResponse, TxnRequest,
    TxnResponse,
};
use super::{invalid, kv, no_key};
use crate::cluster::failure::GrpcError;
use crate::cluster::pd::Pd;
use crate::cluster::pd::meta_storage::Range;

/// How many conditions, or steps, a transaction may have.
const OPS_MAX: usize = 128;

impl Pd {
    pub(crate) fn etcd_txn(
        &mut self,
        now_ms: u64,
        member: usize,
        request: TxnRequest,
    ) -> Result<TxnResponse, GrpcError> {
        check(&request)?;
        self.etcd_catch_up(now_ms);
        let revision = self.meta.revision() + 1;
        self.check_branch(&request)?;
        Ok(self.do_txn(member, revision, request))
    }

    /// Whether all that is going to be done can be.
    fn check_branch(&self, request: &TxnRequest) -> Result<(), GrpcError> {
        for op in self.branch(request).1 {
            match &op.kind {
                Some(OpKind::Range(request)) => self.check_revision(request)?,
                Some(OpKind::Put(request)) => self.check_put_target(request)?,
                Some(OpKind::Txn(request)) => self.check_branch(request)?,
                Some(OpKind::DeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    /// Whether the conditions hold, and what is to be done.
    fn branch<'a>(&self, request: &'a TxnRequest) -> (bool, &'a [Op]) {
        let holds = request.compare.iter().all(|compare| self.holds(compare));
        let ops = match holds {
            true => &request.success,
            false => &request.failure,
        };
        (holds, ops)
    }

    fn do_txn(&mut self, member: usize, revision: i64, request: TxnRequest) -> TxnResponse {
        let (succeeded, _) = self.branch(&request);
        let ops = match succeeded {
            true => request.success,
            false => request.failure,
        };
        let responses = ops.into_iter().map(|op| {
            let done = op.kind.map(|kind| match kind {
                OpKind::Range(request) => OpDone::Range(self.do_range(member, request)),
                OpKind::Put(request) => OpDone::Put(self.do_put(member, revision, request)),
                OpKind::DeleteRange(request) => {
                    OpDone::DeleteRange(self.do_delete(member, revision, request))
                }
                OpKind::Txn(request) => OpDone::Txn(self.do_txn(member, revision, request)),
            });
            OpResponse { done }
        });
        let responses = responses.collect();
        TxnResponse {
            header: self.etcd_header(member),
            succeeded,
            responses,
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let range = kv::range(&compare.key, &compare.range_end);
        let mut found = self.meta.within(&range).peekable();
        if found.peek().is_some() {
            return found.all(|kv| agrees(compare, kv));
        }
        // A key that is not there has no value, not even an empty one.
        compare.target() != CompareTarget::Value && agrees(compare, &KeyValue::default())
    }
}

fn agrees(compare: &Compare, kv: &KeyValue) -> bool {
    use Compared::{Create, Lease, Mod, Value, Version};
    let (number, value) = match &compare.with {
        Some(Version(with) | Create(with) | Mod(with) | Lease(with)) => (*with, &[][..]),
        Some(Value(with)) => (0, &with[..]),
        None => (0, &[][..]),
    };
    let order = match compare.target() {
        CompareTarget::Version => kv.version.cmp(&number),
        CompareTarget::Create => kv.create_revision.cmp(&number),
        CompareTarget::Mod => kv.mod_revision.cmp(&number),
        CompareTarget::Lease => kv.lease.cmp(&number),
        CompareTarget::Value => kv.value[..].cmp(value),
    };
    match compare.result() {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::NotEqual => order != Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
    }
}

/// What is wrong with a transaction whatever is stored.
fn check(request: &TxnRequest) -> Result<(), GrpcError> {
    let TxnRequest {
        compare,
        success,
        failure,
    } = request;
    if compare.len().max(success.len()).max(failure.len()) > OPS_MAX {
        return Err(invalid("too many operations in txn request"));
    }
    if compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(no_key());
    }
    for ops in [success, failure] {
        for op in ops {
            match &op.kind {
                Some(OpKind::Range(request)) => kv::check_range(request)?,
                Some(OpKind::Put(request)) => kv::check_put(request)?,
                Some(OpKind::DeleteRange(request)) => kv::check_delete(request)?,
                Some(OpKind::Txn(request)) => check(request)?,
                // A step of a kind that is not known.
                None => return Err(invalid("key not found")),
            }
        }
        Written::of(ops)?;
    }
    Ok(())
}

/// What some steps may put and delete.
#[derive(Default)]
struct Written {
    puts: BTreeSet<Bytes>,
    deletes: Vec<Range>,
}

impl Written {
    /// What steps write; they must not put a key twice, or put and delete it.
    fn of(ops: &[Op]) -> Result<Self, GrpcError> {
        let mut written = Written::default();
        let mut nested = Vec::new();
        for op in ops {
            match &op.kind {
                Some(OpKind::Put(request)) => {
                    if !written.puts.insert(request.key.clone()) {
                        return Err(duplicate());
                    }
                }
                Some(OpKind::DeleteRange(request)) => {
                    let range = kv::range(&request.key, &request.range_end);
                    written.deletes.push(range);
                }
                // Only one of the two is done, so they may be about the same keys.
                Some(OpKind::Txn(request)) => {
                    let mut either = Written::of(&request.success)?;
                    either.extend(Written::of(&request.failure)?);
                    nested.push(either);
                }
                Some(OpKind::Range(_)) | None => {}
            }
        }
        if written.deletes(&written.puts) {
            return Err(duplicate());
        }
        for other in nested {
            if !written.puts.is_disjoint(&other.puts)
                || written.deletes(&other.puts)
                || other.deletes(&written.puts)
            {
                return Err(duplicate());
            }
            written.extend(other);
        }
        Ok(written)
    }

    fn deletes(&self, keys: &BTreeSet<Bytes>) -> bool {
        let deletes = |key| self.deletes.iter().any(|range| range.contains(key));
        keys.iter().any(|key| deletes(key))
    }

    fn extend(&mut self, other: Written) {
        self.puts.extend(other.puts);
        self.deletes.extend(other.deletes);
    }
}

fn duplicate() -> GrpcError {
    invalid("duplicate key given in txn request")
}
