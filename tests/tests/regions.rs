//! What a real cluster of three stores answered to requests that came to the wrong place, to
//! splits and to questions put to PD, against the simulated cluster: `data/regions.jsonl`, one
//! request with its answer a line, in the order they were made.
//!
//! Ids in the data are symbols: `R1` is a region, `S1` a store, `P(R1,S2)` the peer of a region on a
//! store. A symbol of an answer stands for whatever the simulated cluster says there first, and for
//! the same ever after. `ID7` is the number itself; `*` is anything but nothing. Texts have been
//! stripped of places in the server's source, and what the real cluster's history decides is `*`:
//! the size of a raft entry, for example, counts the digits of ids.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;
use tikv_core::wire::Command;
use tikv_io_mock::cluster::failure::{GrpcCode, GrpcError};
use tikv_io_mock::cluster::region::StoreId;
use tikv_io_mock::cluster::{Cluster, Config, key};
use tikv_io_mock::dispatch;
use tikv_proto::metapb::PeerRole;

const ROWS: &str = include_str!("data/regions.jsonl");
/// The physical part of the timestamps in the data is a little older.
const NOW_MS: u64 = 1_795_244_726_000;
/// The member of PD that is asked.
const LEADER: usize = 0;

/// What symbols stand for, on either side.
#[derive(Default)]
struct Symbols(BTreeMap<String, String>);

impl Symbols {
    fn is_symbol(text: &str) -> bool {
        let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        text == "CLUSTER"
            || text.starts_with("P(R") && text.ends_with(')')
            || text.strip_prefix('R').is_some_and(digits)
            || text.strip_prefix('S').is_some_and(digits)
    }

    fn bind(&mut self, symbol: &str, value: impl ToString) {
        self.0.insert(symbol.to_owned(), value.to_string());
    }

    fn number(&self, symbol: &str) -> u64 {
        let known = self.0.get(symbol);
        let known = known.unwrap_or_else(|| panic!("{symbol} stands for nothing yet"));
        known.parse().expect("an id")
    }

    /// A message of the data with everything known put in.
    fn fill(&self, value: &Value) -> Value {
        match value {
            Value::Object(fields) => fields
                .iter()
                .map(|(name, value)| (name.clone(), self.fill(value)))
                .collect(),
            Value::Array(items) => items.iter().map(|item| self.fill(item)).collect(),
            Value::String(text) => Value::String(self.fill_text(text)),
            other => other.clone(),
        }
    }

    fn fill_text(&self, text: &str) -> String {
        if let Some(number) = text.strip_prefix("ID") {
            return number.to_owned();
        }
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        if let Some(len) = text
            .strip_prefix('<')
            .and_then(|text| text.strip_suffix(" bytes>"))
        {
            // Base64 of that many bytes, a multiple of three.
            let len: usize = len.parse().expect("a length");
            assert_eq!(len % 3, 0);
            return "AAAA".repeat(len / 3);
        }
        let mut text = text.to_owned();
        for (symbol, known) in &self.0 {
            text = text.replace(&format!("{{{symbol}}}"), known);
        }
        text
    }

    /// Whether an answer is the expected one; learns what new symbols stand for.
    fn matches(&mut self, expected: &Value, got: &Value) -> bool {
        match (expected, got) {
            (Value::String(any), _) if any == "*" => true,
            (Value::Object(expected), Value::Object(got)) => {
                expected.len() == got.len()
                    && expected.iter().all(|(name, value)| {
                        got.get(name).is_some_and(|got| self.matches(value, got))
                    })
            }
            (Value::Array(expected), Value::Array(got)) => {
                let mut pairs = expected.iter().zip(got);
                expected.len() == got.len() && pairs.all(|(one, other)| self.matches(one, other))
            }
            (Value::String(symbol), Value::String(got))
                if Symbols::is_symbol(symbol) && !self.0.contains_key(symbol) =>
            {
                // Two symbols never stand for the same.
                let kind = symbol.chars().next();
                let taken = self
                    .0
                    .iter()
                    .any(|(other, known)| other.chars().next() == kind && known == got);
                self.bind(symbol, got);
                !taken
            }
            (Value::String(text), got) => *got == Value::String(self.fill_text(text)),
            (expected, got) => expected == got,
        }
    }
}

/// Messages by the names of methods.
struct Wire(DescriptorPool);

impl Wire {
    fn new() -> Self {
        let descriptors = Bytes::from_static(tikv_proto::FILE_DESCRIPTOR_SET);
        Wire(DescriptorPool::decode(descriptors).expect("descriptors"))
    }

    /// The path of a method, and its request encoded.
    fn request(&self, rpc: &str, request: &Value) -> (String, Bytes) {
        let method = self.method(rpc);
        let message = DynamicMessage::deserialize(method.input(), request)
            .unwrap_or_else(|error| panic!("{rpc} {request}: {error}"));
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        (path, message.encode_to_vec().into())
    }

    /// An answer in the form of the data, without what is not in the data.
    fn answer(&self, rpc: &str, answer: Bytes) -> Value {
        let output = self.method(rpc).output();
        let message = DynamicMessage::decode(output, answer).expect("an answer");
        let options = SerializeOptions::new().use_proto_field_name(true);
        let value = message.serialize_with_options(serde_json::value::Serializer, &options);
        let mut value = value.expect("JSON");
        clear(&mut value);
        value
    }

    fn method(&self, rpc: &str) -> prost_reflect::MethodDescriptor {
        let (service, name) = match rpc.strip_prefix("PD.") {
            Some(name) => ("pdpb.PD", name),
            None => ("tikvpb.Tikv", rpc),
        };
        let service = self.0.get_service_by_name(service).expect("a service");
        let mut methods = service.methods();
        methods
            .find(|method| method.name() == name)
            .unwrap_or_else(|| panic!("no method {rpc}"))
    }
}

/// Takes out what the data does not have, and hides texts that only people read.
fn clear(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("exec_details_v2");
            for (name, field) in fields {
                let is_text = ["abort", "retryable", "other", "error"].contains(&name.as_str());
                match field {
                    Value::String(text) if is_text => "*".clone_into(text),
                    field => clear(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(clear),
        _ => {}
    }
}

/// Everything behind one call: the store or PD, whichever serves it.
fn call(
    cluster: &mut Cluster,
    store: Option<StoreId>,
    path: &str,
    body: Bytes,
) -> Result<Bytes, GrpcError> {
    fn read<M: Message + Default>(body: Bytes) -> M {
        M::decode(body).expect("a request")
    }
    fn encoded(answer: impl Message) -> Bytes {
        answer.encode_to_vec().into()
    }
    let Some(command) = Command::decode_request(path, body.clone()) else {
        // What the client never calls is served beside the catalogue.
        return Ok(match path {
            "/pdpb.PD/ScanRegions" => {
                encoded(cluster.pd().scan_regions(LEADER, false, read(body))?)
            }
            "/pdpb.PD/GetGCSafePoint" => {
                encoded(cluster.pd().get_gc_safe_point(LEADER, read(body))?)
            }
            "/pdpb.PD/GetExternalTimestamp" => {
                encoded(cluster.pd().get_external_timestamp(LEADER, read(body))?)
            }
            "/pdpb.PD/SetExternalTimestamp" => {
                let pd = cluster.pd_mut();
                encoded(pd.set_external_timestamp(NOW_MS, LEADER, read(body))?)
            }
            "/tikvpb.Tikv/GetStoreSafeTS" => {
                let store = store.expect("a store");
                encoded(cluster.get_store_safe_ts(NOW_MS, store, read(body)))
            }
            _ => return Err(GrpcError::new(GrpcCode::Unimplemented, "")),
        });
    };
    let command = command.expect("a request");
    let answer = match store {
        Some(store) => dispatch::store(cluster, NOW_MS, store, command),
        None => dispatch::pd(cluster, NOW_MS, LEADER, command),
    };
    answer.map(|answer| answer.encode())
}

/// A status in the form of the data.
fn status(error: GrpcError) -> Value {
    let code = match error.code {
        GrpcCode::InvalidArgument => "INVALID_ARGUMENT",
        GrpcCode::NotFound => "NOT_FOUND",
        GrpcCode::FailedPrecondition => "FAILED_PRECONDITION",
        GrpcCode::OutOfRange => "OUT_OF_RANGE",
        GrpcCode::Unavailable => "UNAVAILABLE",
        GrpcCode::ResourceExhausted => "RESOURCE_EXHAUSTED",
        GrpcCode::Unimplemented => "UNIMPLEMENTED",
        GrpcCode::Unknown => "UNKNOWN",
    };
    serde_json::json!({ "grpc_status": code, "details": error.message })
}

/// The cluster as it was before the first request, as far as the answers tell: six regions up to
/// `x`, of which `R1` is the last and is about to be split. Followers of the region beyond have
/// heard how far they may serve stale reads, those of the others have not.
fn before(symbols: &mut Symbols) -> Cluster {
    let config = Config {
        cluster_id: 77,
        ..Config::default()
    };
    let mut cluster = Cluster::new(config, NOW_MS);
    let first = cluster.regions().ids().next().expect("a region");
    cluster.remove_peer(NOW_MS, first, 3);
    cluster.add_peer(NOW_MS, first, 3, PeerRole::Voter);
    let at = |key: &str| key::encode(key.as_bytes());
    let parts = cluster.split(NOW_MS, first, &[at("x\0\0\0"), at("x\0\0\x01")]);
    let left = parts[0];
    cluster.set_safe_ts(first, 5);
    let parts = cluster.split(NOW_MS, left, &[at("q428e/g"), at("q428e/p")]);
    let (r7, middle) = (parts[0], parts[1]);
    let parts = cluster.split(NOW_MS, middle, &[at("q428e/j"), at("q428e/n")]);
    let (r6, r5, r4) = (parts[0], parts[1], parts[2]);
    symbols.bind("CLUSTER", 77);
    for store in 1..=3 {
        symbols.bind(&format!("S{store}"), store);
    }
    for (symbol, id) in [("R1", left), ("R4", r4), ("R5", r5), ("R6", r6), ("R7", r7)] {
        symbols.bind(symbol, id);
        let region = cluster.region(id).expect("it is there");
        for peer in &region.meta.peers {
            symbols.bind(&format!("P({symbol},S{})", peer.store_id), peer.id);
        }
    }
    cluster
}

#[test]
fn a_misplaced_request_is_answered_as_by_a_real_cluster() {
    let wire = Wire::new();
    let mut symbols = Symbols::default();
    let mut cluster = before(&mut symbols);
    let mut different = Vec::new();
    let mut count = 0;
    for line in ROWS.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let text = |field: &str| row[field].as_str().expect("text");
        let name = text("name");
        if name == "follower_replica_read" {
            // It had to catch up first, as the stale read after it tells.
            let (id, store) = (symbols.number("R3"), symbols.number("S2"));
            assert!(cluster.lengthen_lag(id, store, 1));
        }
        if name == "not_leader_after_transfer" {
            cluster.transfer_leader(NOW_MS, symbols.number("R1"), 2);
        }
        let store = row["sent_to"].as_str().map(|store| symbols.number(store));
        let mut request = symbols.fill(&row["request"]);
        if name == "pd_scatter" {
            request["regions_id"] = serde_json::json!([symbols.0["R3"]]);
        }
        let (path, body) = wire.request(text("rpc"), &request);
        let got = match call(&mut cluster, store, &path, body) {
            Ok(answer) => wire.answer(text("rpc"), answer),
            Err(error) => status(error),
        };
        if !symbols.matches(&row["response"], &got) {
            let expected = symbols.fill(&row["response"]);
            different.push(format!("{name}\n  expected {expected}\n  got      {got}"));
        }
        count += 1;
    }
    assert_eq!(count, 80);
    assert!(different.is_empty(), "\n{}", different.join("\n"));
}
