//! What answers tell of the time they took: a store fills that in when it sends them, whatever they
//! say otherwise. Alone and in frames it does so for different commands.

use std::time::Instant;

use tikv_core::wire::Response;
use tikv_proto::kvrpcpb::ExecDetailsV2;

/// Fills in how long an answer to a call of its own took.
pub(super) fn stamp_alone(response: &mut Response, begun: Instant) {
    let details = match response {
        Response::Get(answer) => &mut answer.exec_details_v2,
        Response::Prewrite(answer) => &mut answer.exec_details_v2,
        Response::PessimisticLock(answer) => &mut answer.exec_details_v2,
        Response::PessimisticRollback(answer) => &mut answer.exec_details_v2,
        Response::Commit(answer) => &mut answer.exec_details_v2,
        Response::BatchRollback(answer) => &mut answer.exec_details_v2,
        Response::TxnHeartBeat(answer) => &mut answer.exec_details_v2,
        Response::CheckTxnStatus(answer) => &mut answer.exec_details_v2,
        Response::CheckSecondaryLocks(answer) => &mut answer.exec_details_v2,
        Response::ScanLock(answer) => &mut answer.exec_details_v2,
        Response::ResolveLock(answer) => &mut answer.exec_details_v2,
        _ => return,
    };
    fill(details, elapsed_ns(begun), None);
}

/// Fills in how long an answer in a frame took. It does not wait for its frame here.
pub(super) fn stamp_in_frame(response: &mut Response, begun: Instant) {
    let details = match response {
        Response::Get(answer) => &mut answer.exec_details_v2,
        Response::BatchGet(answer) => &mut answer.exec_details_v2,
        Response::Prewrite(answer) => &mut answer.exec_details_v2,
        Response::Commit(answer) => &mut answer.exec_details_v2,
        Response::ResolveLock(answer) => &mut answer.exec_details_v2,
        Response::Coprocessor(answer) => &mut answer.exec_details_v2,
        Response::PessimisticLock(answer) => &mut answer.exec_details_v2,
        Response::CheckTxnStatus(answer) => &mut answer.exec_details_v2,
        Response::TxnHeartBeat(answer) => &mut answer.exec_details_v2,
        Response::CheckSecondaryLocks(answer) => &mut answer.exec_details_v2,
        _ => return,
    };
    fill(details, elapsed_ns(begun), Some(1));
}

fn fill(details: &mut Option<Box<ExecDetailsV2>>, total_ns: u64, wait_ns: Option<u64>) {
    let details = details.get_or_insert_default();
    let old = details.time_detail.get_or_insert_default();
    old.total_rpc_wall_time_ns = total_ns;
    let new = details.time_detail_v2.get_or_insert_default();
    new.total_rpc_wall_time_ns = total_ns;
    if let Some(wait_ns) = wait_ns {
        new.kv_grpc_wait_time_ns = wait_ns;
    }
}

/// Never nothing: whoever divides by it is safe.
fn elapsed_ns(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos())
        .unwrap_or(u64::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use tikv_proto::{errorpb, kvrpcpb};

    use super::*;

    #[test]
    fn every_answer_of_its_kind_tells_even_a_region_error() {
        let refused = kvrpcpb::GetResponse {
            region_error: Some(Box::new(errorpb::Error::default())),
            ..Default::default()
        };
        for stamp in [stamp_alone, stamp_in_frame] {
            let mut response = Response::Get(refused.clone());
            stamp(&mut response, Instant::now());
            let Response::Get(answer) = response else {
                panic!("it is another answer")
            };
            let details = answer.exec_details_v2.expect("details");
            let total = details.time_detail.expect("a time").total_rpc_wall_time_ns;
            let newer = details.time_detail_v2.expect("a time");
            assert!(total > 0 && newer.total_rpc_wall_time_ns == total);
        }
        let mut silent = Response::Scan(kvrpcpb::ScanResponse::default());
        stamp_in_frame(&mut silent, Instant::now());
        assert_eq!(silent, Response::Scan(kvrpcpb::ScanResponse::default()));
        let mut only_alone = Response::BatchRollback(kvrpcpb::BatchRollbackResponse::default());
        stamp_in_frame(&mut only_alone, Instant::now());
        let unchanged = Response::BatchRollback(kvrpcpb::BatchRollbackResponse::default());
        assert_eq!(only_alone, unchanged);
    }
}
