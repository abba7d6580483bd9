//! What every call moves about stays small: rare and large parts of a message are boxed.

use std::mem::size_of;

use tikv_proto::kvrpcpb::{
    GetRequest, GetResponse, KvPair, Mutation, PrewriteResponse, RawGetResponse,
};
use tikv_proto::pdpb::{GetMembersResponse, GetRegionResponse, GetStoreResponse};

#[test]
fn what_pd_tells_is_small() {
    assert!(size_of::<GetMembersResponse>() <= 136);
    assert!(size_of::<GetRegionResponse>() <= 136);
    assert!(size_of::<GetStoreResponse>() <= 136);
}

#[test]
fn messages_of_every_call_are_small() {
    assert!(size_of::<GetRequest>() <= 96);
    assert!(size_of::<KvPair>() <= 96);
    assert!(size_of::<Mutation>() <= 96);
    assert!(size_of::<GetResponse>() <= 96);
    assert!(size_of::<RawGetResponse>() <= 96);
    assert!(size_of::<PrewriteResponse>() <= 96);
}
