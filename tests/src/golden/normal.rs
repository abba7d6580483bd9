//! What is cleared in an answer before it is compared: times, sizes and texts, which differ between
//! two servers that behave alike.
//!
//! It works on encoded messages by the names of their fields, so that it holds for every message
//! there is, whatever it contains.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_varint, skip_field,
};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// Fields that say how long something took, how much it read, or what only people read.
const CLEARED: [&str; 12] = [
    "exec_details",
    "exec_details_v2",
    "scan_detail",
    "scan_detail_v2",
    "time_detail",
    "time_detail_v2",
    "debug_info",
    "duration_to_last_update_ms",
    "region_id",
    "retry_time",
    "last_change_ts",
    "versions_to_last_change",
];
/// Texts for people; whether there is one counts, what it says does not.
const TEXTS: [&str; 5] = ["abort", "retryable", "other", "message", "error"];

/// The messages of the wire, by name.
pub struct Normal {
    messages: BTreeMap<String, Fields>,
    /// The message that each method of a store answers with.
    answers: BTreeMap<String, String>,
}

type Fields = BTreeMap<u32, FieldDescriptorProto>;

impl Normal {
    /// Reads what messages there are.
    ///
    /// # Errors
    ///
    /// The descriptors can't be read.
    pub fn new() -> Result<Self, String> {
        let files = FileDescriptorSet::decode(tikv_proto::FILE_DESCRIPTOR_SET)
            .map_err(|error| error.to_string())?;
        let mut normal = Normal {
            messages: BTreeMap::new(),
            answers: BTreeMap::new(),
        };
        for file in &files.file {
            for message in &file.message_type {
                normal.collect(&format!(".{}", file.package()), message);
            }
            for service in file.service.iter().filter(|one| one.name() == "Tikv") {
                for method in &service.method {
                    let answer = method.output_type().to_owned();
                    normal.answers.insert(method.name().to_owned(), answer);
                }
            }
        }
        Ok(normal)
    }

    fn collect(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        for nested in &message.nested_type {
            self.collect(&name, nested);
        }
        let fields = message.field.iter();
        let fields = fields.map(|field| (field.number() as u32, field.clone()));
        self.messages.insert(name, fields.collect());
    }

    /// The answer to a method of a store, without what does not count.
    ///
    /// # Errors
    ///
    /// The method is unknown, or the bytes are not its answer.
    pub fn answer(&self, rpc: &str, encoded: Bytes) -> Result<Bytes, String> {
        let message = self
            .answers
            .get(rpc)
            .ok_or_else(|| format!("no such method: {rpc}"))?;
        let mut out = Vec::with_capacity(encoded.len());
        self.message(message, encoded, &mut out)
            .map_err(|error| error.to_string())?;
        Ok(out.into())
    }

    fn message(
        &self,
        name: &str,
        mut encoded: Bytes,
        out: &mut Vec<u8>,
    ) -> Result<(), prost::DecodeError> {
        let fields = self.messages.get(name);
        while encoded.has_remaining() {
            let whole = encoded.clone();
            let (tag, wire) = decode_key(&mut encoded)?;
            let head = whole.len() - encoded.len();
            let body = encoded.clone();
            skip_field(wire, tag, &mut encoded, DecodeContext::default())?;
            let field_len = whole.len() - encoded.len();
            let body = body.slice(..field_len - head);
            let field = fields.and_then(|fields| fields.get(&tag));
            let Some(field) = field else {
                out.extend_from_slice(&whole[..field_len]);
                continue;
            };
            if CLEARED.contains(&field.name()) {
                continue;
            }
            match (field.r#type(), wire) {
                (Type::Message, WireType::LengthDelimited) => {
                    let mut inner = Vec::new();
                    self.message(field.type_name(), content(body)?, &mut inner)?;
                    push(out, &whole[..head], &inner);
                }
                (Type::String, WireType::LengthDelimited)
                    if TEXTS.contains(&field.name()) && !content(body.clone())?.is_empty() =>
                {
                    push(out, &whole[..head], b"*");
                }
                (_, WireType::Varint) if field.name() == "ttl" => {
                    let ttl = decode_varint(&mut body.clone())?;
                    out.extend_from_slice(&whole[..head]);
                    encode_varint(ttl.min(1), out);
                }
                _ => out.extend_from_slice(&whole[..field_len]),
            }
        }
        Ok(())
    }
}

/// What a field with a length holds.
fn content(mut body: Bytes) -> Result<Bytes, prost::DecodeError> {
    decode_varint(&mut body)?;
    Ok(body)
}

fn push(out: &mut Vec<u8>, head: &[u8], content: &[u8]) {
    out.extend_from_slice(head);
    encode_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tikv_proto::kvrpcpb::{self, KeyError, RawGetKeyTtlResponse, RawGetResponse};

    fn cleared<M: Message + Default>(rpc: &str, message: &M) -> M {
        let normal = Normal::new().expect("descriptors");
        let bytes = normal.answer(rpc, message.encode_to_vec().into());
        M::decode(bytes.expect("an answer")).expect("a message")
    }

    #[test]
    fn what_differs_between_servers_is_cleared() {
        let answer = kvrpcpb::GetResponse {
            value: "v".into(),
            error: Some(Box::new(KeyError {
                abort: "Error(Txn(..))".to_owned(),
                locked: Some(Box::new(kvrpcpb::LockInfo {
                    key: "k".into(),
                    duration_to_last_update_ms: 7,
                    ..Default::default()
                })),
                ..Default::default()
            })),
            exec_details_v2: Some(Box::default()),
            ..Default::default()
        };
        let expected = kvrpcpb::GetResponse {
            value: "v".into(),
            error: Some(Box::new(KeyError {
                abort: "*".to_owned(),
                locked: Some(Box::new(kvrpcpb::LockInfo {
                    key: "k".into(),
                    ..Default::default()
                })),
                ..Default::default()
            })),
            ..Default::default()
        };
        assert_eq!(cleared("KvGet", &answer), expected);
    }

    #[test]
    fn of_texts_and_life_times_it_counts_that_there_are_some() {
        for (ttl, expected) in [(0, 0), (1, 1), (100, 1)] {
            let answer = RawGetKeyTtlResponse {
                ttl,
                ..Default::default()
            };
            assert_eq!(cleared("RawGetKeyTTL", &answer).ttl, expected);
        }
        for (error, expected) in [("", ""), ("x", "*")] {
            let answer = RawGetResponse {
                error: error.to_owned(),
                ..Default::default()
            };
            assert_eq!(cleared("RawGet", &answer).error, expected);
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let normal = Normal::new().expect("descriptors");
        assert!(normal.answer("KvNothing", Bytes::new()).is_err());
        assert!(normal.answer("KvGet", Bytes::from_static(&[0xFF])).is_err());
    }
}
