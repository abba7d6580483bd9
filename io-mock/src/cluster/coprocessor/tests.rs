//! What is checked before a plan is run.

use bytes::Bytes;
use tikv_proto::coprocessor::{KeyRange, Request, Response, StoreBatchTask};
use tikv_proto::kvrpcpb::{ApiVersion, Context, IsolationLevel, RawCoprocessorRequest};

use crate::cluster::extension::{Asked, Extension};
use crate::cluster::key;
use crate::cluster::tests::{Bench, NOW, put, ts};

/// Lists the rows of the ranges.
struct Rows;

impl Extension for Rows {
    fn coprocessor(&self, asked: &Asked<'_>, request: &Request) -> Option<Response> {
        let mut data = Vec::new();
        for range in &request.ranges {
            for (key, value) in asked.scan(request.start_ts, &range.start, &range.end) {
                data.extend_from_slice(&key);
                data.push(b'=');
                data.extend_from_slice(&value);
                data.push(b' ');
            }
        }
        (request.tp == 103).then(|| Response {
            data: data.into(),
            ..Response::default()
        })
    }

    fn coprocessor_stream(&self, asked: &Asked<'_>, request: &Request) -> Option<Vec<Response>> {
        let whole = self.coprocessor(asked, request)?;
        let pieces = whole.data.split_inclusive(|&byte| byte == b' ');
        Some(
            pieces
                .map(|piece| Response {
                    data: Bytes::copy_from_slice(piece),
                    ..Response::default()
                })
                .collect(),
        )
    }

    fn raw_coprocessor(
        &self,
        _: &Asked<'_>,
        request: &RawCoprocessorRequest,
    ) -> Option<Result<Bytes, String>> {
        (request.copr_name == "echo").then(|| Ok(request.data.clone()))
    }
}

fn with_rows() -> Bench {
    let mut b = Bench::new();
    for k in [b"a", b"b", b"m"] {
        b.must_prewrite_put(k, b"1", k, 5);
        b.must_commit(k, 5, 6);
    }
    b.cluster.set_extension(Some(Rows.into()));
    b
}

fn ranges(ranges: &[(&'static str, &'static str)]) -> Vec<KeyRange> {
    let ranges = ranges.iter();
    ranges
        .map(|(start, end)| KeyRange {
            start: (*start).into(),
            end: (*end).into(),
        })
        .collect()
}

fn request(b: &Bench, change: impl FnOnce(&mut Context)) -> Request {
    let (mut context, _) = b.to(b"a");
    change(context.as_mut().expect("a context"));
    Request {
        context,
        tp: 103,
        start_ts: 10,
        ranges: ranges(&[("a", "b"), ("b", "z")]),
        ..Request::default()
    }
}

fn ask(b: &mut Bench, change: impl FnOnce(&mut Context)) -> Response {
    let request = request(b, change);
    b.cluster.coprocessor(NOW, 1, request)
}

#[test]
fn a_plan_is_run_by_the_extension_or_by_nobody() {
    let mut b = with_rows();
    assert_eq!(ask(&mut b, |_| {}).data, "a=1 b=1 m=1 ");
    let mut unknown = request(&b, |_| {});
    unknown.tp = 104;
    let response = b.cluster.coprocessor(NOW, 1, unknown);
    assert_eq!(response.other_error, "unsupported tp 104");
    b.cluster.set_extension(None);
    assert_eq!(ask(&mut b, |_| {}).other_error, "unsupported tp 103");
}

#[test]
fn a_lock_in_a_range_is_the_answer() {
    let mut b = with_rows();
    b.must_prewrite_put(b"c", b"2", b"c", 7);
    let lock = ask(&mut b, |_| {}).locked.expect("a lock in the way");
    assert_eq!((lock.key.as_ref(), lock.lock_version), (&b"c"[..], 7));
    // Unless it does not matter.
    for change in [
        (|context: &mut Context| context.resolved_locks = vec![7]) as fn(&mut Context),
        |context| context.committed_locks = vec![7],
        |context| context.set_isolation_level(IsolationLevel::Rc),
    ] {
        let response = ask(&mut b, change);
        assert_eq!(
            (response.locked, response.data.as_ref()),
            (None, &b"a=1 b=1 m=1 "[..])
        );
    }
    let mut older = request(&b, |_| {});
    older.start_ts = 6;
    assert_eq!(b.cluster.coprocessor(NOW, 1, older).locked, None);
}

#[test]
fn a_plan_raises_the_timestamp_and_meets_commits_under_way() {
    let mut b = with_rows();
    let mut late = request(&b, |_| {});
    late.start_ts = ts(30, 0);
    b.cluster.coprocessor(NOW, 1, late);
    let id = b.to(b"a").0.expect("a context").region_id;
    b.cluster.hold_writes(id);
    let min = b.must_prewrite_async(put(b"c", b"2"), b"c", &[], ts(20, 0), 0);
    assert_eq!(min, ts(30, 0) + 1);
    let mut later = request(&b, |_| {});
    later.start_ts = ts(40, 0);
    let locked = b.cluster.coprocessor(NOW, 1, later.clone()).locked;
    assert_eq!(locked.expect("it is under way").lock_version, ts(20, 0));
    later.ranges = ranges(&[("a", "b")]);
    assert_eq!(b.cluster.coprocessor(NOW, 1, later).locked, None);
}

#[test]
fn the_region_is_checked_as_for_reads() {
    let mut b = with_rows();
    let error = ask(&mut b, |context| context.region_id = 99).region_error;
    assert!(error.expect("no such region").region_not_found.is_some());
    b.cluster.store_mut(1).expect("a store").load.read_wait_ms = 50;
    let error = ask(&mut b, |context| context.busy_threshold_ms = 10).region_error;
    assert!(error.expect("too busy").server_is_busy.is_some());
    let response = ask(&mut b, |context| context.set_api_version(ApiVersion::V3));
    assert!(!response.other_error.is_empty());
}

#[test]
fn a_request_cut_along_old_buckets_learns_the_new_ones() {
    let mut b = with_rows();
    assert_eq!(
        ask(&mut b, |context| context.buckets_version = 1).latest_buckets_version,
        0
    );
    let id = b.to(b"a").0.expect("a context").region_id;
    b.cluster.set_buckets(id, &[key::encode(b"g")]);
    let first = ask(&mut b, |_| {}).latest_buckets_version;
    assert!(first > 0);
    b.cluster
        .set_buckets(id, &[key::encode(b"g"), key::encode(b"p")]);
    let response = ask(&mut b, |context| context.buckets_version = first);
    let error = response
        .region_error
        .and_then(|error| error.bucket_version_not_match);
    let error = error.expect("they have changed");
    let open = Bytes::new();
    assert_eq!(
        error.keys,
        [open.clone(), key::encode(b"g"), key::encode(b"p"), open]
    );
    let response = ask(&mut b, |context| context.buckets_version = error.version);
    assert_eq!(response.latest_buckets_version, error.version);
    assert!(error.version > first);
    // Also who meets a lock learns it.
    b.must_prewrite_put(b"a", b"v", b"a", 10);
    let response = ask(&mut b, |_| {});
    assert!(response.locked.is_some());
    assert_eq!(response.latest_buckets_version, error.version);
    b.must_rollback(b"a", 10);
    // A new leader's versions are higher whatever the old one's were.
    b.cluster.transfer_leader(NOW, id, 2);
    b.cluster.set_buckets(id, &[key::encode(b"p")]);
    let region = b.cluster.region(id).expect("a region");
    let version = region.buckets.as_ref().expect("buckets").version;
    assert_eq!(version, region.term << 32);
    assert!(version > error.version);
}

#[test]
fn tasks_for_other_regions_are_answered_one_by_one() {
    let mut b = with_rows();
    let id = b.to(b"a").0.expect("a context").region_id;
    let left = b.cluster.split(NOW, id, &[key::encode(b"g")])[0];
    b.must_prewrite_put(b"n", b"2", b"n", 7);
    let mut request = request(&b, |_| {});
    request.ranges = ranges(&[("a", "g")]);
    let right = b.cluster.region(id).expect("a region").clone();
    let task = |task_id, start: &'static str, end: &'static str| StoreBatchTask {
        region_id: right.meta.id,
        region_epoch: right.meta.region_epoch,
        peer: right.leader_peer().copied(),
        ranges: ranges(&[(start, end)]),
        task_id,
        ..StoreBatchTask::default()
    };
    request.tasks = vec![
        task(7, "g", "n"),
        task(8, "g", "z"),
        StoreBatchTask {
            region_id: 99,
            ..task(9, "g", "z")
        },
    ];
    assert_eq!(request.context.as_ref().expect("a context").region_id, left);
    let response = b.cluster.coprocessor(NOW, 1, request);
    assert_eq!(response.data, "a=1 b=1 ");
    let ids: Vec<u64> = response
        .batch_responses
        .iter()
        .map(|one| one.task_id)
        .collect();
    assert_eq!(ids, [7, 8, 9]);
    assert_eq!(response.batch_responses[0].data, "m=1 ");
    assert!(response.batch_responses[1].locked.is_some());
    assert!(response.batch_responses[2].region_error.is_some());
}

#[test]
fn a_stream_has_as_many_pieces_as_the_extension_makes() {
    let mut b = with_rows();
    let request = request(&b, |_| {});
    let pieces = b.cluster.coprocessor_stream(NOW, 1, &request);
    let data: Vec<&[u8]> = pieces.iter().map(|piece| piece.data.as_ref()).collect();
    assert_eq!(data, [b"a=1 ", b"b=1 ", b"m=1 "]);
    b.cluster
        .depose_leader(request.context.as_ref().expect("a context").region_id);
    let pieces = b.cluster.coprocessor_stream(NOW, 1, &request);
    assert_eq!(pieces.len(), 1);
    assert!(pieces[0].region_error.is_some());
}

#[test]
fn a_plugin_is_known_by_its_name() {
    let mut b = with_rows();
    let mut ask = |name: &str| {
        let request = RawCoprocessorRequest {
            context: b.to(b"a").0,
            copr_name: name.to_owned(),
            data: "x".into(),
            ..Default::default()
        };
        b.cluster.raw_coprocessor(NOW, 1, request)
    };
    assert_eq!(ask("echo").data, "x");
    assert_eq!(
        ask("other").error,
        "no registered coprocessor with the name 'other'"
    );
}

#[test]
fn what_a_replica_was_told_for_a_plan_it_knows_for_others() {
    let mut b = with_rows();
    let id = request(&b, |_| {}).context.expect("a context").region_id;
    let region = b.cluster.region(id).expect("a region");
    let follower = region.peer_on(2).copied();
    let at_follower = |b: &mut Bench, stale_read: bool| {
        let asked = request(b, |context| {
            context.peer = follower;
            context.replica_read = !stale_read;
            context.stale_read = stale_read;
        });
        b.cluster.coprocessor(NOW, 2, asked)
    };
    assert!(at_follower(&mut b, true).region_error.is_some());
    assert_eq!(at_follower(&mut b, false).data, "a=1 b=1 m=1 ");
    assert_eq!(at_follower(&mut b, true).data, "a=1 b=1 m=1 ");
}
