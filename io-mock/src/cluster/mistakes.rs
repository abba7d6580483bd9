//! Requests that a correct client never sends: a real server would end its process. Here they get an
//! error; a cluster that is told to also keeps them, so that a test can fail for them whatever the
//! client made of the error.

use super::Cluster;
use super::region::StoreId;

/// How errors of this kind begin, wherever in an answer they stand.
const MARKERS: [&str; 2] = ["a real server would crash", "invalid max_ts update"];
/// More than enough to see that something is wrong.
const KEPT_MAX: usize = 100;

/// A request that a correct client never sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// When.
    pub at_ms: u64,
    /// Which store got it.
    pub store: StoreId,
    /// The name of the request.
    pub command: &'static str,
    /// What is wrong with it.
    pub text: String,
}

impl Cluster {
    /// The mistakes of clients so far; only kept if the configuration says so.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// Keeps a mistake if an encoded answer tells of one.
    pub(crate) fn note_mistake(
        &mut self,
        at_ms: u64,
        store: StoreId,
        command: &'static str,
        answer: &[u8],
    ) {
        if self.mistakes.len() < KEPT_MAX
            && let Some(text) = mistake_in(answer)
        {
            self.mistakes.push(Mistake {
                at_ms,
                store,
                command,
                text,
            });
        }
    }
}

fn mistake_in(answer: &[u8]) -> Option<String> {
    let start = MARKERS.iter().find_map(|marker| {
        let marker = marker.as_bytes();
        answer.windows(marker.len()).position(|part| part == marker)
    })?;
    let text = answer.get(start..)?;
    let end = text.iter().position(|byte| byte.is_ascii_control());
    let text = text.get(..end.unwrap_or(text.len()))?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tikv_core::driver::{Driver, Endpoint, Instant, Io, Operation, Rpc};
    use tikv_proto::kvrpcpb::{self, Op};

    use crate::cluster::mvcc::max_ts::InvalidMaxTs;
    use crate::cluster::tests::{Bench, NOW, mutation, ts};
    use crate::cluster::{Config, tests};
    use crate::{Simulation, dispatch};

    #[test]
    fn what_would_crash_a_server_is_kept() {
        let mut b = Bench::with(Config {
            keep_mistakes: true,
            ..Config::default()
        });
        b.cluster.config.invalid_max_ts = InvalidMaxTs::Refuse;
        let prewrite = |b: &Bench, op| kvrpcpb::PrewriteRequest {
            context: b.to(b"k").0,
            mutations: vec![mutation(op, b"k", b"v")],
            primary_lock: "k".into(),
            start_version: 5,
            ..Default::default()
        };
        let good = prewrite(&b, Op::Put).into();
        dispatch::store(&mut b.cluster, tests::NOW, 1, good).expect("an answer");
        assert_eq!(b.cluster.mistakes(), []);

        let bad = prewrite(&b, Op::Rollback).into();
        dispatch::store(&mut b.cluster, NOW, 1, bad).expect("an answer");
        let far = kvrpcpb::GetRequest {
            context: b.to(b"k").0,
            key: "k".into(),
            version: ts(NOW * 2, 0),
            ..Default::default()
        };
        dispatch::store(&mut b.cluster, NOW, 1, far.into()).expect("an answer");
        let kept: Vec<_> = b.cluster.mistakes().iter().map(|m| m.command).collect();
        assert_eq!(kept, ["Prewrite", "Get"]);
        let text = &b.cluster.mistakes()[0].text;
        assert!(
            text.starts_with("a real server would crash: mismatch Op"),
            "{text}"
        );
    }

    #[test]
    fn it_fails_a_simulation() {
        let failure = Simulation::seed(1).try_run(async |sim| {
            let rpc = sim.cluster(|cluster| {
                let region = cluster.regions().iter().next().expect("a region");
                let leader = region.leader_peer().copied().expect("a leader");
                let store = cluster.store(leader.store_id).expect("a store");
                Rpc {
                    endpoint: Endpoint::Store {
                        id: leader.store_id,
                        address: store.meta.address.as_str().into(),
                    },
                    context: Some(Box::new(kvrpcpb::Context {
                        region_id: region.meta.id,
                        region_epoch: region.meta.region_epoch,
                        peer: Some(leader),
                        ..Default::default()
                    })),
                    command: Arc::new(kvrpcpb::RawGetKeyTtlRequest::default().into()),
                    deadline: Instant::FAR_FUTURE,
                }
            });
            let send = Operation::new("ttl", |io: Io| async move { io.send(rpc).await });
            let _ = sim.driver().run(send).await;
            Ok(())
        });
        let failure = failure.expect_err("a store without TTL would have crashed");
        let text = failure.to_string();
        assert!(text.contains("no request crashes a server"), "{text}");
    }
}
