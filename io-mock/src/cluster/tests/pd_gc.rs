//! PD's older requests about safe points beside the newer ones.

use tikv_proto::pdpb::{
    self, AdvanceGcSafePointRequest, GetGcSafePointRequest, GetGcStateRequest,
    UpdateGcSafePointRequest,
};

use super::{Bench, NOW};

fn header() -> Option<pdpb::RequestHeader> {
    Some(pdpb::RequestHeader {
        cluster_id: 1,
        ..Default::default()
    })
}

impl Bench {
    /// Lets transactions below a timestamp be ended.
    fn end_transactions(&mut self, target: u64) {
        let request = pdpb::AdvanceTxnSafePointRequest {
            header: header(),
            target,
            ..Default::default()
        };
        let pd = self.cluster.pd_mut();
        let answer = pd.advance_txn_safe_point(NOW, 0, request);
        assert_eq!(answer.map(|answer| answer.new_txn_safe_point), Ok(target));
    }

    /// Moves the point below which versions go, as newer clients do; where it is then, unless it
    /// was further already.
    fn advance_gc(&mut self, target: u64) -> Option<u64> {
        let request = AdvanceGcSafePointRequest {
            header: header(),
            target,
            ..Default::default()
        };
        let pd = self.cluster.pd_mut();
        let answer = pd
            .advance_gc_safe_point(0, request)
            .expect("the leader answers");
        let refused = answer.header.is_some_and(|header| header.error.is_some());
        (!refused).then_some(answer.new_gc_safe_point)
    }

    /// The same, as older clients do.
    fn update_gc(&mut self, safe_point: u64) -> u64 {
        let request = UpdateGcSafePointRequest {
            header: header(),
            safe_point,
        };
        let pd = self.cluster.pd_mut();
        let answer = pd
            .update_gc_safe_point(0, request)
            .expect("the leader answers");
        let error = answer.header.and_then(|header| header.error);
        assert_eq!(error, None);
        answer.new_safe_point
    }

    /// Where it is, for older clients and for newer ones.
    fn gc_points(&self) -> (u64, u64) {
        let pd = self.cluster.pd();
        let request = GetGcSafePointRequest { header: header() };
        let older = pd
            .get_gc_safe_point(0, request)
            .expect("the leader answers");
        let request = GetGcStateRequest {
            header: header(),
            ..Default::default()
        };
        let newer = pd
            .get_gc_state(NOW, 0, request)
            .expect("the leader answers");
        let state = newer.gc_state.expect("a state");
        (older.safe_point, state.gc_safe_point)
    }
}

#[test]
fn test_compatible_gc_safe_point_update_concurrently() {
    let mut b = Bench::new();
    let greatest = 1000;
    b.end_transactions(greatest);
    // Twenty clients, each with a step of its own, take turns, with older and newer requests.
    let mut turns = [0; 20];
    let mut reached = 0;
    while turns
        .iter()
        .zip(1..)
        .any(|(turn, step)| (turn + 1) * step <= greatest)
    {
        for (turn, step) in turns.iter_mut().zip(1..) {
            *turn += 1;
            let target = *turn * step;
            if target > greatest {
                continue;
            }
            if *turn % 2 == 0 {
                // To fall behind the others is the only thing that may go wrong.
                assert_eq!(b.advance_gc(target).is_none(), target < reached);
            } else {
                assert_eq!(b.update_gc(target), reached.max(target));
            }
            reached = reached.max(target);
            assert_eq!(b.gc_points(), (reached, reached));
        }
    }
    assert_eq!(b.gc_points(), (greatest, greatest));
}

#[test]
fn test_compatible_update_gc_safe_point_smaller_target_keeps_warm_cache_usable() {
    let mut b = Bench::new();
    b.end_transactions(50);
    assert_eq!(b.advance_gc(40), Some(40));
    assert_eq!(b.gc_points(), (40, 40));
    assert_eq!(b.update_gc(35), 40);
    assert_eq!(b.gc_points(), (40, 40));
}
