//! What calls to PD make of answers that do not fit together.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tikv_proto::{metapb, pdpb};

use super::*;
use crate::action::{Action, Reply};
use crate::operation::Operation;

fn pd() -> Arc<Pd> {
    let endpoints = ["http://pd:1".to_owned()];
    let pd = Pd::new(endpoints, false, KeyMode::Raw, Arc::default()).unwrap();
    let leader = pdpb::Member {
        client_urls: vec!["http://pd:1".into()],
        ..Default::default()
    };
    let header = pdpb::ResponseHeader {
        cluster_id: 7,
        error: None,
    };
    let reply = pdpb::GetMembersResponse {
        header: Some(header),
        leader: Some(leader.clone().into()),
        members: vec![leader],
        ..Default::default()
    };
    pd.members().learn(&"http://pd:1".into(), &reply).unwrap();
    Arc::new(pd)
}

/// Looks for the region before `b`, and is given these answers. What was asked, and the start of
/// the region that was found.
fn before_b(answers: &[Option<(&'static str, &'static str)>]) -> (Vec<&'static str>, String) {
    let pd = pd();
    let mut operation = Operation::new("test", |io: Io| async move {
        let mut backoff = Backoffer::new(40_000, std::num::NonZeroU32::MIN, 7);
        pd.region_by_end(&io, &mut backoff, Some(&"b".into())).await
    });
    let (mut asked, mut answers) = (Vec::new(), answers.iter());
    let mut now = Instant::ZERO;
    loop {
        if let Poll::Ready(found) = operation.poll(&mut Context::from_waker(Waker::noop()), now) {
            let start = found.unwrap().region.start_key;
            return (asked, String::from_utf8_lossy(&start).into_owned());
        }
        let (id, action) = operation.next_action().unwrap();
        let reply = match action {
            Action::Send(rpc) => {
                let region = answers.next().unwrap().map(|(start, end)| metapb::Region {
                    id: 1,
                    start_key: start.into(),
                    end_key: end.into(),
                    ..Default::default()
                });
                let answer = pdpb::GetRegionResponse {
                    region: region.map(Box::new),
                    ..Default::default()
                };
                asked.push(rpc.command.label());
                Reply::Response(Ok(match &*rpc.command {
                    Command::GetPrevRegion(_) => Response::GetPrevRegion(answer),
                    _ => Response::GetRegion(answer),
                }))
            }
            Action::Sleep { until, .. } => {
                now = until;
                Reply::Woke
            }
            other => panic!("{other:?}"),
        };
        operation.complete(id, reply).unwrap();
    }
}

#[test]
fn the_region_before_a_key_is_looked_for_again_if_regions_merge_meanwhile() {
    let (key, before) = ("GetRegion", "GetPrevRegion");
    let at_once = before_b(&[Some(("b", "c")), Some(("a", "b"))]);
    assert_eq!(at_once, (vec![key, before], "a".into()));
    let inside = before_b(&[Some(("a", "c"))]);
    assert_eq!(inside, (vec![key], "a".into()));
    // All regions are one now: none is before it.
    let gone = before_b(&[Some(("b", "c")), None, Some(("", ""))]);
    assert_eq!(gone, (vec![key, before, key], "".into()));
    // The key's region has grown downwards: what is before it ends too early.
    let grown = before_b(&[Some(("b", "c")), Some(("0", "a")), Some(("a", "c"))]);
    assert_eq!(grown, (vec![key, before, key], "a".into()));
}
