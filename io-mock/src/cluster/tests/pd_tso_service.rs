//! Timestamps from a service of their own, and from one to the other.

use tikv_proto::pdpb::{
    self, ErrorType, GetClusterInfoRequest, GetMinTsRequest, ServiceMode, Timestamp,
};
use tikv_proto::tsopb::{
    self, FindGroupByKeyspaceIdRequest, RequestHeader, TsoRequest, request_header,
};

use super::{Bench, NOW};
use crate::cluster::failure::{GrpcCode, GrpcError};
use crate::cluster::pd::tso_service::TsoService;
use crate::cluster::{Cluster, Config};

fn bench() -> Bench {
    Bench::with(Config {
        pd_members: 2,
        ..Config::default()
    })
}

fn switch(b: &mut Bench, primary: Option<usize>) {
    let service = Some(TsoService { primary });
    b.cluster.pd_mut().set_tso_service(NOW, service);
}

fn header() -> RequestHeader {
    RequestHeader {
        cluster_id: 1,
        keyspace: Some(request_header::Keyspace::KeyspaceId(7)),
        ..RequestHeader::default()
    }
}

fn number(ts: Option<Timestamp>) -> u64 {
    let ts = ts.expect("a timestamp");
    (ts.physical as u64) << 18 | ts.logical as u64
}

/// Asks a server of the service.
fn ask(
    b: &mut Bench,
    server: usize,
    header: RequestHeader,
) -> Result<tsopb::TsoResponse, GrpcError> {
    let request = TsoRequest {
        header: Some(header),
        count: 3,
        ..TsoRequest::default()
    };
    b.cluster.pd_mut().tso_service_tso(NOW, server, request)
}

/// Asks a member of PD.
fn ask_pd(b: &mut Bench, member: usize) -> Result<u64, GrpcError> {
    let request = pdpb::TsoRequest {
        header: Some(pdpb::RequestHeader {
            cluster_id: 1,
            ..Default::default()
        }),
        count: 3,
        ..Default::default()
    };
    let answer = b.cluster.pd_mut().tso(NOW, member, request)?;
    Ok(number(answer.timestamp))
}

fn mode(cluster: &Cluster) -> (Vec<i32>, usize) {
    let request = GetClusterInfoRequest::default();
    let info = cluster.pd().get_cluster_info(1, request).expect("anybody");
    (info.service_modes, info.tso_urls.len())
}

#[test]
fn timestamps_rise_across_a_switch_and_back() {
    let mut b = bench();
    assert_eq!(mode(&b.cluster), (vec![ServiceMode::PdSvcMode.into()], 0));
    let absent = ask(&mut b, 0, header()).expect_err("there is no such service");
    assert_eq!(absent.code, GrpcCode::Unimplemented);
    let mut last = ask_pd(&mut b, 0).expect("it leads");
    assert!(ask_pd(&mut b, 1).is_err());

    switch(&mut b, Some(1));
    assert_eq!(mode(&b.cluster), (vec![ServiceMode::ApiSvcMode.into()], 2));
    let answer = ask(&mut b, 1, header()).expect("the primary answers");
    assert_eq!(answer.count, 3);
    assert_eq!(
        answer
            .header
            .map(|header| (header.cluster_id, header.keyspace_group_id)),
        Some((1, 0))
    );
    assert!(number(answer.timestamp) - 3 >= last);
    last = number(answer.timestamp);
    // PD asks the service, whoever leads.
    for member in [0, 1] {
        let next = ask_pd(&mut b, member).expect("both forward");
        assert!(next - 3 >= last);
        last = next;
    }
    switch(&mut b, Some(0));
    assert!(ask(&mut b, 1, header()).is_err());
    let next = number(ask(&mut b, 0, header()).expect("it does now").timestamp);
    assert!(next - 3 >= last);
    b.cluster.pd_mut().set_tso_service(NOW, None);
    assert_eq!(mode(&b.cluster), (vec![ServiceMode::PdSvcMode.into()], 0));
    assert!(ask_pd(&mut b, 0).expect("it leads") - 3 >= next);
}

#[test]
fn without_a_primary_there_is_no_timestamp() {
    let mut b = bench();
    switch(&mut b, None);
    for refused in [ask(&mut b, 0, header()).map(|_| 0), ask_pd(&mut b, 0)] {
        let refused = refused.expect_err("nobody gives them out");
        assert_eq!(refused.code, GrpcCode::Unknown);
        assert!(
            refused.message.contains("is not leader"),
            "{}",
            refused.message
        );
    }
    let request = GetMinTsRequest {
        header: Some(pdpb::RequestHeader {
            cluster_id: 1,
            ..Default::default()
        }),
    };
    let answer = b
        .cluster
        .pd_mut()
        .get_min_ts(NOW, 0, request)
        .expect("PD answers");
    let error = answer
        .header
        .and_then(|header| header.error)
        .expect("and refuses");
    assert_eq!(error.r#type(), ErrorType::Unknown);
}

#[test]
fn a_request_for_somebody_else_ends_the_stream() {
    let mut b = bench();
    switch(&mut b, Some(0));
    let other_cluster = RequestHeader {
        cluster_id: 2,
        ..header()
    };
    let other_server = RequestHeader {
        callee_id: "127.0.0.1:9".to_owned(),
        ..header()
    };
    for wrong in [other_cluster, other_server] {
        let refused = ask(&mut b, 0, wrong).expect_err("it is not for it");
        assert_eq!(refused.code, GrpcCode::FailedPrecondition);
    }
    let other_group = |keyspace_group_id| RequestHeader {
        keyspace_group_id,
        ..header()
    };
    for group in [1, 4096] {
        let refused = ask(&mut b, 0, other_group(group)).expect_err("there is one group");
        assert_eq!(refused.code, GrpcCode::Unknown);
    }
    let own = RequestHeader {
        callee_id: "127.0.0.1:2379".to_owned(),
        ..header()
    };
    assert!(ask(&mut b, 0, own).is_ok());
}

#[test]
fn the_group_of_a_keyspace_names_its_servers() {
    let mut b = bench();
    switch(&mut b, Some(1));
    let find = |b: &Bench, header, mod_revision| {
        let request = FindGroupByKeyspaceIdRequest {
            header: Some(header),
            mod_revision,
            ..FindGroupByKeyspaceIdRequest::default()
        };
        let answer = b.cluster.pd().find_group_by_keyspace_id(0, request);
        answer.expect("an answer")
    };
    let found = find(&b, header(), 0);
    let group = found.keyspace_group.expect("a group");
    let members: Vec<_> = group
        .members
        .iter()
        .map(|member| member.is_primary)
        .collect();
    assert_eq!((group.id, members), (0, vec![false, true]));
    assert_eq!(group.members[1].address, "http://127.0.0.1:2389");
    let kind = |answer: tsopb::FindGroupByKeyspaceIdResponse| {
        let error = answer.header.and_then(|header| header.error);
        error.map(|error| error.r#type())
    };
    assert_eq!(kind(find(&b, header(), found.mod_revision)), None);
    let newer = find(&b, header(), found.mod_revision + 1);
    assert_eq!(kind(newer), Some(tsopb::ErrorType::InvalidValue));
    let strange = find(&b, RequestHeader::default(), 0);
    assert_eq!(kind(strange), Some(tsopb::ErrorType::ClusterMismatched));
}

#[test]
fn only_the_primary_counts_for_the_least_timestamp() {
    let mut b = bench();
    let min_ts = |b: &mut Bench, server| {
        let request = tsopb::GetMinTsRequest {
            header: Some(header()),
            ..Default::default()
        };
        let answer = b.cluster.pd_mut().tso_service_min_ts(NOW, server, request);
        let answer = answer.expect("an answer");
        let refused = answer.header.is_some_and(|header| header.error.is_some());
        (
            number(answer.timestamp) > 0,
            (answer.keyspace_groups_serving, answer.keyspace_groups_total),
            refused,
        )
    };
    switch(&mut b, Some(0));
    assert_eq!(min_ts(&mut b, 0), (true, (1, 1), false));
    assert_eq!(min_ts(&mut b, 1), (false, (0, 1), false));
    switch(&mut b, None);
    assert_eq!(min_ts(&mut b, 0), (false, (0, 1), true));
    let loaded = Cluster::load(&b.cluster.save()).expect("it was saved");
    assert_eq!(loaded.pd().tso_service(), b.cluster.pd().tso_service());
}
