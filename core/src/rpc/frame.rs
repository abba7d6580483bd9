//! The bytes of the BatchCommands stream: frames put together from parts, and taken apart into
//! slices. Called by whoever sends a request (its part), by the task that owns a stream (frames)
//! and, on the other side, by a server.
//!
//! Deliberately absent: the messages themselves. A part is encoded and an answer decoded by the
//! task that wants it, so that the one task per stream only moves bytes. Nothing here copies a
//! body on receipt: a slice keeps the frame it came in alive.
//!
//! A frame is what protobuf calls a `BatchCommandsRequest` or `BatchCommandsResponse`:
//!
//! | field | request | response |
//! |---|---|---|
//! | 1, repeated | item | item |
//! | 2, repeated | id of the i-th item | id of the i-th item |
//! | 3 | client's sending time | load of the server's transport |
//! | 4 | | health feedback |
//! | 5 | | server's sending time |
//!
//! An item is one length-delimited field whose number, the *arm*, says which command it is.
//! Fields come in any order, ids packed (as Rust writes them) or one by one (as TiKV does), fields
//! that are not known are skipped. Anything else is a [`FrameError`] and ends the stream that
//! brought it.

use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tikv_proto::kvrpcpb;

use crate::command::{Command, Response, encode_request_into, encoded_request_len};
use crate::error::TransportError;

/// Encodes a request as the item of a frame, its own tag and length included, in one allocation of
/// the exact size. `None` if the command has no arm and can only go alone.
///
/// Called by the task that sends the request, so that encoding runs in parallel. (client-go:
/// `encodeRequestCmd`)
pub fn encode_part(context: Option<&kvrpcpb::Context>, command: &Command) -> Option<Bytes> {
    let arm = command.batch_arm()?;
    let body_len = encoded_request_len(context, command);
    // A `Vec`, since prost writes byte by byte, which costs several times as much into a
    // `BytesMut`. Full to the last byte, it becomes `Bytes` as it is.
    let mut part = Vec::with_capacity(item_len(arm, body_len));
    put_item_head(arm, body_len, &mut part);
    encode_request_into(context, command, &mut part);
    Some(part.into())
}

/// A frame about to be written: parts with consecutive ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFrame {
    first_id: u64,
    parts: Vec<Bytes>,
    parts_len: usize,
}

impl RequestFrame {
    /// A frame of these [parts](encode_part), whose ids count up from `first_id`.
    pub fn new(first_id: u64, parts: Vec<Bytes>) -> Self {
        let parts_len = parts.iter().map(Bytes::len).sum();
        RequestFrame {
            first_id,
            parts,
            parts_len,
        }
    }

    /// The ids of the items, in their order.
    pub fn ids(&self) -> Range<u64> {
        self.first_id..self.first_id.saturating_add(self.parts.len() as u64)
    }

    /// The encoded items, in their order.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// How many bytes [`RequestFrame::encode`] writes.
    pub fn encoded_len(&self, sent_unix_ns: u64) -> usize {
        self.parts_len + trailer_len(self.ids(), sent_unix_ns)
    }

    /// Writes the frame. `sent_unix_ns` is the wall clock, from which TiKV measures the way to it;
    /// 0 leaves it out.
    pub fn encode(&self, sent_unix_ns: u64, buf: &mut impl BufMut) {
        for part in &self.parts {
            buf.put_slice(part);
        }
        put_ids(self.ids(), buf);
        put_u64(REQUEST_SENT, sent_unix_ns, buf);
    }

    /// The frame as bytes of their own.
    pub fn to_bytes(&self, sent_unix_ns: u64) -> Bytes {
        let mut buf = Vec::with_capacity(self.encoded_len(sent_unix_ns));
        self.encode(sent_unix_ns, &mut buf);
        buf.into()
    }
}

/// One item of a frame that was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// Ties an answer to its request.
    pub id: u64,
    /// Which command it is; 0 if the item was empty, which a correct peer never sends.
    pub arm: u32,
    /// The message in that arm.
    pub body: Bytes,
}

/// A frame of answers, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitFrame {
    /// The answers, in the order they came.
    pub items: Vec<Item>,
    /// How busy the server's transport is: percent of one core, summed over its threads; 0 if it
    /// does not say.
    pub transport_layer_load: u64,
    /// How the store feels.
    pub health_feedback: Option<HealthFeedback>,
    /// The server's wall clock when it sent the frame; 0 if it does not say.
    pub tikv_send_time_ns: u64,
    /// Empty but while a frame is read; its memory is kept.
    ids: Vec<u64>,
}

/// What a store says about its own health. (client-go: `kvrpcpb.HealthFeedback`)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthFeedback {
    /// The store.
    pub store_id: u64,
    /// Counts up; feedback with a lower number is older and of no use.
    pub seq: u64,
    /// From 1, healthy, to 100.
    pub slow_score: i32,
}

/// Takes a frame of answers apart.
///
/// # Errors
///
/// What no correct server sends; the stream is of no use any more.
pub fn split_response(frame: Bytes) -> Result<SplitFrame, FrameError> {
    let mut split = SplitFrame::default();
    split.read(frame)?;
    Ok(split)
}

impl SplitFrame {
    /// Takes a frame of answers apart into `self`, whose memory is used again.
    ///
    /// # Errors
    ///
    /// What no correct server sends. `self` then holds no answers.
    pub fn read(&mut self, frame: Bytes) -> Result<(), FrameError> {
        self.clear();
        let result = self.read_fields(&frame);
        if result.is_err() {
            self.clear();
        }
        result
    }

    fn clear(&mut self) {
        self.items.clear();
        self.ids.clear();
        self.transport_layer_load = 0;
        self.health_feedback = None;
        self.tikv_send_time_ns = 0;
    }

    fn read_fields(&mut self, frame: &Bytes) -> Result<(), FrameError> {
        let mut cursor = Cursor::new(frame);
        while let Some(key) = cursor.key()? {
            match key.field {
                ITEMS => self.items.push(cursor.item(key, frame)?),
                IDS => cursor.ids(key, &mut self.ids)?,
                RESPONSE_LOAD => self.transport_layer_load = cursor.u64(key)?,
                RESPONSE_HEALTH => {
                    let feedback = self.health_feedback.get_or_insert_default();
                    cursor.message(key)?.health_feedback(feedback)?;
                }
                RESPONSE_SENT => self.tikv_send_time_ns = cursor.u64(key)?,
                _ => cursor.skip(key)?,
            }
        }
        let result = pair(&mut self.items, &self.ids);
        self.ids.clear();
        result
    }

    /// Puts the frame together again. For servers.
    pub fn encode(&self) -> Bytes {
        let mut buf = Vec::new();
        for item in &self.items {
            put_item(item.arm, &item.body, &mut buf);
        }
        put_ids(self.items.iter().map(|item| item.id), &mut buf);
        put_u64(RESPONSE_LOAD, self.transport_layer_load, &mut buf);
        if let Some(feedback) = &self.health_feedback {
            feedback.put(&mut buf);
        }
        put_u64(RESPONSE_SENT, self.tikv_send_time_ns, &mut buf);
        buf.into()
    }
}

impl HealthFeedback {
    fn put(&self, buf: &mut impl BufMut) {
        // Protobuf sign-extends a negative int32 to ten bytes.
        let score = i64::from(self.slow_score) as u64;
        encode_key(RESPONSE_HEALTH, WireType::LengthDelimited, buf);
        let fields = [
            (HEALTH_STORE, self.store_id),
            (HEALTH_SEQ, self.seq),
            (HEALTH_SCORE, score),
        ];
        let len: usize = fields.iter().map(|(field, v)| u64_len(*field, *v)).sum();
        encode_varint(len as u64, buf);
        for (field, value) in fields {
            put_u64(field, value, buf);
        }
    }
}

/// The answer to one request, not decoded yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which command it answers.
    pub arm: u32,
    /// The encoded response.
    pub body: Bytes,
}

impl Answer {
    /// Reads the answer to `command`. Called by the task that waits for it.
    ///
    /// # Errors
    ///
    /// The answer is to another command, or can't be read.
    pub fn decode(self, command: &Command, address: &Arc<str>) -> Result<Response, TransportError> {
        let unreadable = |message: String| TransportError::Decode {
            address: address.clone(),
            message: message.into(),
        };
        if command.batch_arm() != Some(self.arm) {
            let label = command.label();
            return Err(unreadable(format!(
                "an answer in field {} to {label}",
                self.arm
            )));
        }
        command
            .decode_response(self.body)
            .map_err(|error| unreadable(error.to_string()))
    }
}

/// A frame of requests, taken apart. For servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitRequest {
    /// The requests, in the order they came.
    pub items: Vec<Item>,
    /// The client's wall clock when it sent the frame; 0 if it does not say.
    pub client_send_time_ns: u64,
}

/// Takes a frame of requests apart. For servers.
///
/// # Errors
///
/// What no correct client sends.
pub fn split_request(frame: Bytes) -> Result<SplitRequest, FrameError> {
    let mut split = SplitRequest::default();
    let mut ids = Vec::new();
    let mut cursor = Cursor::new(&frame);
    while let Some(key) = cursor.key()? {
        match key.field {
            ITEMS => split.items.push(cursor.item(key, &frame)?),
            IDS => cursor.ids(key, &mut ids)?,
            REQUEST_SENT => split.client_send_time_ns = cursor.u64(key)?,
            _ => cursor.skip(key)?,
        }
    }
    pair(&mut split.items, &ids)?;
    Ok(split)
}

/// Puts a frame of answers together, each an id, an arm and an encoded response. For servers; one
/// that also reports its health encodes a [`SplitFrame`].
pub fn build_response(answers: &[(u64, u32, Bytes)]) -> Bytes {
    let ids = || answers.iter().map(|(id, _, _)| *id);
    let items_len: usize = answers
        .iter()
        .map(|(_, arm, body)| item_len(*arm, body.len()))
        .sum();
    let mut buf = Vec::with_capacity(items_len + trailer_len(ids(), 0));
    for (_, arm, body) in answers {
        put_item(*arm, body, &mut buf);
    }
    put_ids(ids(), &mut buf);
    buf.into()
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A field ends after its frame does.
    #[error("the frame ends inside a field")]
    Truncated,
    /// A number of more than 64 bits.
    #[error("the frame has a number of more than 64 bits")]
    Varint,
    /// A field number that can't be.
    #[error("the frame has an impossible field number {0}")]
    FieldNumber(u64),
    /// A field of a type that it can't have.
    #[error("field {field} of the frame has wire type {wire_type}")]
    WireType {
        /// The field.
        field: u32,
        /// Its wire type, as protobuf numbers them.
        wire_type: u8,
    },
    /// Items and ids can't be paired.
    #[error("the frame has {items} items but {ids} ids")]
    Unpaired {
        /// How many items.
        items: usize,
        /// How many ids.
        ids: usize,
    },
}

/// Gives each item its id.
fn pair(items: &mut [Item], ids: &[u64]) -> Result<(), FrameError> {
    if items.len() != ids.len() {
        return Err(FrameError::Unpaired {
            items: items.len(),
            ids: ids.len(),
        });
    }
    for (item, id) in items.iter_mut().zip(ids) {
        item.id = *id;
    }
    Ok(())
}

/// A field's number and type.
#[derive(Clone, Copy)]
struct Key {
    field: u32,
    wire_type: u8,
}

impl Key {
    fn expect(self, wire_type: u8) -> Result<(), FrameError> {
        if self.wire_type == wire_type {
            Ok(())
        } else {
            Err(self.wrong_type())
        }
    }

    fn wrong_type(self) -> FrameError {
        FrameError::WireType {
            field: self.field,
            wire_type: self.wire_type,
        }
    }
}

/// Reads the fields of one message. Positions count from the start of the whole frame, so that a
/// body found deep inside is sliced out of it.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    /// The next field's key, `None` at the end of the message.
    fn key(&mut self) -> Result<Option<Key>, FrameError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let wire_type = (key & 7) as u8;
        match u32::try_from(key >> 3) {
            Ok(field @ 1..=FIELD_MAX) => Ok(Some(Key { field, wire_type })),
            _ => Err(FrameError::FieldNumber(key >> 3)),
        }
    }

    fn u64(&mut self, key: Key) -> Result<u64, FrameError> {
        key.expect(VARINT)?;
        self.varint()
    }

    fn varint(&mut self) -> Result<u64, FrameError> {
        let mut value = 0;
        let mut shift = 0;
        loop {
            let byte = *self.bytes.get(self.at).ok_or(FrameError::Truncated)?;
            self.at += 1;
            // The tenth byte has room for the 64th bit alone.
            if shift == 63 && byte > 1 {
                return Err(FrameError::Varint);
            }
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
            shift += 7;
        }
    }

    /// Where the contents of a length-delimited field are; the cursor moves behind them.
    fn span(&mut self, key: Key) -> Result<Range<usize>, FrameError> {
        key.expect(LENGTH_DELIMITED)?;
        let len = self.varint()?;
        let start = self.at;
        self.advance(len)?;
        Ok(start..self.at)
    }

    /// The message in a field.
    fn message(&mut self, key: Key) -> Result<Cursor<'a>, FrameError> {
        let span = self.span(key)?;
        let bytes = self.bytes.get(..span.end).ok_or(FrameError::Truncated)?;
        Ok(Cursor {
            bytes,
            at: span.start,
        })
    }

    fn advance(&mut self, len: u64) -> Result<(), FrameError> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(len) {
            Ok(len) if len <= left => {
                self.at += len;
                Ok(())
            }
            _ => Err(FrameError::Truncated),
        }
    }

    fn skip(&mut self, key: Key) -> Result<(), FrameError> {
        match key.wire_type {
            VARINT => self.varint().map(drop),
            LENGTH_DELIMITED => self.span(key).map(drop),
            FIXED_64 => self.advance(8),
            FIXED_32 => self.advance(4),
            // Groups, which no version of the protocol has.
            _ => Err(key.wrong_type()),
        }
    }

    /// Reads an item, all but its id. Of several arms the last one counts, as in any `oneof`.
    fn item(&mut self, key: Key, frame: &Bytes) -> Result<Item, FrameError> {
        let mut message = self.message(key)?;
        let mut found = None;
        while let Some(key) = message.key()? {
            if key.wire_type == LENGTH_DELIMITED {
                found = Some((key.field, message.span(key)?));
            } else {
                message.skip(key)?;
            }
        }
        Ok(found.map_or_else(Item::default, |(arm, span)| Item {
            id: 0,
            arm,
            body: frame.slice(span),
        }))
    }

    /// Reads ids, one or a packed run of them.
    fn ids(&mut self, key: Key, ids: &mut Vec<u64>) -> Result<(), FrameError> {
        if key.wire_type == VARINT {
            ids.push(self.varint()?);
            return Ok(());
        }
        let mut run = self.message(key)?;
        while run.at < run.bytes.len() {
            ids.push(run.varint()?);
        }
        Ok(())
    }

    fn health_feedback(&mut self, feedback: &mut HealthFeedback) -> Result<(), FrameError> {
        while let Some(key) = self.key()? {
            match key.field {
                HEALTH_STORE => feedback.store_id = self.u64(key)?,
                HEALTH_SEQ => feedback.seq = self.u64(key)?,
                HEALTH_SCORE => feedback.slow_score = self.u64(key)? as i32,
                _ => self.skip(key)?,
            }
        }
        Ok(())
    }
}

/// How long an item is, with its tag and length.
fn item_len(arm: u32, body_len: usize) -> usize {
    let inner = arm_len(arm, body_len);
    key_len(ITEMS) + encoded_len_varint(inner as u64) + inner
}

fn arm_len(arm: u32, body_len: usize) -> usize {
    if arm == 0 {
        return 0;
    }
    key_len(arm) + encoded_len_varint(body_len as u64) + body_len
}

/// Writes everything of an item that comes before its body.
fn put_item_head(arm: u32, body_len: usize, buf: &mut impl BufMut) {
    encode_key(ITEMS, WireType::LengthDelimited, buf);
    encode_varint(arm_len(arm, body_len) as u64, buf);
    if arm != 0 {
        encode_key(arm, WireType::LengthDelimited, buf);
        encode_varint(body_len as u64, buf);
    }
}

fn put_item(arm: u32, body: &[u8], buf: &mut impl BufMut) {
    put_item_head(arm, body.len(), buf);
    if arm != 0 {
        buf.put_slice(body);
    }
}

/// How long what follows the items is.
fn trailer_len(ids: impl Iterator<Item = u64>, sent_unix_ns: u64) -> usize {
    let ids_len: usize = ids.map(encoded_len_varint).sum();
    let ids_field = match ids_len {
        0 => 0,
        len => key_len(IDS) + encoded_len_varint(len as u64) + len,
    };
    ids_field + u64_len(REQUEST_SENT, sent_unix_ns)
}

fn put_ids(ids: impl Iterator<Item = u64> + Clone, buf: &mut impl BufMut) {
    let len: usize = ids.clone().map(encoded_len_varint).sum();
    if len == 0 {
        return;
    }
    encode_key(IDS, WireType::LengthDelimited, buf);
    encode_varint(len as u64, buf);
    // By way of the stack, as a driver's buffer is slow to take single bytes.
    let mut chunk = [0; CHUNK_LEN];
    let mut room = &mut chunk[..];
    for id in ids {
        if room.len() < VARINT_LEN_MAX {
            let full = CHUNK_LEN - room.len();
            buf.put_slice(&chunk[..full]);
            room = &mut chunk[..];
        }
        encode_varint(id, &mut room);
    }
    let full = CHUNK_LEN - room.len();
    buf.put_slice(&chunk[..full]);
}

fn u64_len(field: u32, value: u64) -> usize {
    match value {
        0 => 0,
        value => key_len(field) + encoded_len_varint(value),
    }
}

/// Writes a number, unless it is 0, which is what its absence means.
fn put_u64(field: u32, value: u64, buf: &mut impl BufMut) {
    if value != 0 {
        encode_key(field, WireType::Varint, buf);
        encode_varint(value, buf);
    }
}

const ITEMS: u32 = 1;
const IDS: u32 = 2;
const REQUEST_SENT: u32 = 3;
const RESPONSE_LOAD: u32 = 3;
const RESPONSE_HEALTH: u32 = 4;
const RESPONSE_SENT: u32 = 5;

const HEALTH_STORE: u32 = 1;
const HEALTH_SEQ: u32 = 2;
const HEALTH_SCORE: u32 = 3;

/// The largest field number of protobuf.
const FIELD_MAX: u32 = (1 << 29) - 1;

/// Bytes of ids that are written at once.
const CHUNK_LEN: usize = 256;
const VARINT_LEN_MAX: usize = 10;

const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED_32: u8 = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use quickcheck::quickcheck;
    use tikv_proto::tikvpb::batch_commands_request::{Request, request::Cmd as RequestCmd};
    use tikv_proto::tikvpb::batch_commands_response::{Response as Reply, response::Cmd};
    use tikv_proto::tikvpb::{
        BatchCommandsEmptyResponse, BatchCommandsRequest, BatchCommandsResponse,
    };

    use super::*;

    fn context(region_id: u64) -> kvrpcpb::Context {
        kvrpcpb::Context {
            region_id,
            cluster_id: 7_000_000_000,
            request_source: "external_Get".into(),
            ..Default::default()
        }
    }

    fn get(key: &[u8]) -> kvrpcpb::GetRequest {
        kvrpcpb::GetRequest {
            key: Bytes::copy_from_slice(key),
            version: 443_852_055_297_916_932,
            ..Default::default()
        }
    }

    fn put(key: &[u8], value: &[u8]) -> kvrpcpb::RawPutRequest {
        kvrpcpb::RawPutRequest {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
            ..Default::default()
        }
    }

    fn response(not_found: bool, value: Bytes) -> kvrpcpb::GetResponse {
        kvrpcpb::GetResponse {
            not_found,
            value,
            ..Default::default()
        }
    }

    fn item(id: u64, arm: u32, body: impl Into<Bytes>) -> Item {
        let body = body.into();
        Item { id, arm, body }
    }

    quickcheck! {
        // client-go: TestEncodedBatchCmd_SizeAndMarshalTo, TestEncodeRequestCmd_Basic
        fn concatenated_parts_are_the_encoded_message(
            keys: Vec<(Vec<u8>, Option<u64>)>, first_id: u32, sent: u64
        ) -> bool {
            let mut parts = Vec::new();
            let mut message = BatchCommandsRequest {
                client_send_time_ns: sent,
                ..Default::default()
            };
            for (i, (key, region)) in keys.iter().enumerate() {
                let context = region.map(context).map(Box::new);
                let (command, cmd) = if i % 2 == 0 {
                    let body = get(key);
                    let whole = kvrpcpb::GetRequest { context: context.clone(), ..body.clone() };
                    (Command::from(body), RequestCmd::Get(whole))
                } else {
                    let body = put(key, &key.repeat(30));
                    let whole = kvrpcpb::RawPutRequest { context: context.clone(), ..body.clone() };
                    (Command::from(body), RequestCmd::RawPut(whole))
                };
                parts.extend(encode_part(context.as_deref(), &command));
                message.requests.push(Request { cmd: Some(cmd) });
                message.request_ids.push(u64::from(first_id) + i as u64);
            }
            let frame = RequestFrame::new(first_id.into(), parts);
            let bytes = frame.to_bytes(sent);
            bytes == message.encode_to_vec()
                && bytes.len() == frame.encoded_len(sent)
                && frame.ids().eq(message.request_ids)
        }

        fn a_frame_of_answers_is_the_encoded_message(
            answers: Vec<(u64, bool, Vec<u8>)>, load: u64, feedback: Option<(u64, u64, i32)>,
            sent: u64
        ) -> bool {
            let answers: Vec<_> = answers
                .into_iter()
                .map(|(id, not_found, value)| (id, response(not_found, value.into())))
                .collect();
            let message = BatchCommandsResponse {
                responses: answers
                    .iter()
                    .map(|(_, body)| Reply { cmd: Some(Cmd::Get(body.clone())) })
                    .collect(),
                request_ids: answers.iter().map(|(id, _)| *id).collect(),
                transport_layer_load: load,
                health_feedback: feedback.map(|(store_id, feedback_seq_no, slow_score)| {
                    kvrpcpb::HealthFeedback { store_id, feedback_seq_no, slow_score }
                }),
                tikv_send_time_ns: sent,
            };
            let split = SplitFrame {
                items: answers
                    .iter()
                    .map(|(id, body)| item(*id, 1, body.encode_to_vec()))
                    .collect(),
                transport_layer_load: load,
                health_feedback: feedback.map(|(store_id, seq, slow_score)| HealthFeedback {
                    store_id,
                    seq,
                    slow_score,
                }),
                tikv_send_time_ns: sent,
                ..Default::default()
            };
            let bytes = Bytes::from(message.encode_to_vec());
            split.encode() == bytes && split_response(bytes) == Ok(split)
        }

        fn requests_come_apart_as_they_were_put_together(keys: Vec<Vec<u8>>, sent: u64) -> bool {
            let commands: Vec<_> = keys.iter().map(|key| Command::from(get(key))).collect();
            let parts = commands.iter().map(|command| encode_part(None, command).unwrap());
            let frame = RequestFrame::new(5, parts.collect());
            let split = split_request(frame.to_bytes(sent)).unwrap();
            let again = split.items.iter().map(|item| {
                Command::decode_batched(item.arm, item.body.clone()).unwrap().unwrap()
            });
            again.eq(commands)
                && split.items.iter().map(|item| item.id).eq(frame.ids())
                && split.client_send_time_ns == sent
        }

        fn built_answers_come_apart(answers: Vec<(u64, u8, Vec<u8>)>) -> bool {
            let answers: Vec<_> = answers
                .into_iter()
                .map(|(id, arm, body)| (id, u32::from(arm) + 1, Bytes::from(body)))
                .collect();
            let split = split_response(build_response(&answers)).unwrap();
            split.items.into_iter().map(|item| (item.id, item.arm, item.body)).eq(answers)
        }

        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) -> bool {
            let bytes = Bytes::from(bytes);
            let _ = split_request(bytes.clone());
            agrees_with_prost(bytes)
        }
    }

    /// Whatever prost takes for a message is a frame of the same answers, unless its items can't
    /// be paired or it has groups. (The other way round does not hold: bodies are not looked into.)
    fn agrees_with_prost(bytes: Bytes) -> bool {
        let split = split_response(bytes.clone());
        let Ok(message) = BatchCommandsResponse::decode(bytes) else {
            return true;
        };
        match split {
            Err(FrameError::WireType { wire_type, .. }) => wire_type == 3,
            Err(FrameError::Unpaired { items, ids }) => {
                items == message.responses.len() && ids == message.request_ids.len()
            }
            Err(_) => false,
            Ok(split) => {
                split
                    .items
                    .iter()
                    .map(|item| item.id)
                    .eq(message.request_ids)
                    && split.items.len() == message.responses.len()
                    && split.transport_layer_load == message.transport_layer_load
                    && split.tikv_send_time_ns == message.tikv_send_time_ns
                    && split.health_feedback
                        == message.health_feedback.map(|feedback| HealthFeedback {
                            store_id: feedback.store_id,
                            seq: feedback.feedback_seq_no,
                            slow_score: feedback.slow_score,
                        })
            }
        }
    }

    /// The field of a frame, and whether its order among those of its kind matters.
    #[derive(Clone, Debug)]
    enum Field {
        Item(u32, Vec<u8>),
        Id(u64),
        Ids(Vec<u64>),
        Load(u64),
        Unknown(Vec<u8>),
    }

    impl Field {
        fn put(&self, buf: &mut Vec<u8>) {
            match self {
                Field::Item(arm, body) => put_item(*arm, body, buf),
                // Never left out, as a repeated field of 0 is something else than none.
                Field::Id(id) => {
                    encode_key(IDS, WireType::Varint, buf);
                    encode_varint(*id, buf);
                }
                Field::Ids(ids) => put_ids(ids.iter().copied(), buf),
                Field::Load(load) => put_u64(RESPONSE_LOAD, *load, buf),
                Field::Unknown(bytes) => buf.extend_from_slice(bytes),
            }
        }
    }

    fn field() -> impl Strategy<Value = Field> {
        let unknown = prop_oneof![
            (6u32..90, any::<u64>()).prop_map(|(field, value)| {
                let mut buf = Vec::new();
                encode_key(field, WireType::Varint, &mut buf);
                encode_varint(value, &mut buf);
                buf
            }),
            (6u32..90, any::<u64>()).prop_map(|(field, value)| {
                let mut buf = Vec::new();
                encode_key(field, WireType::SixtyFourBit, &mut buf);
                buf.put_u64(value);
                buf
            }),
            (6u32..90, any::<u32>()).prop_map(|(field, value)| {
                let mut buf = Vec::new();
                encode_key(field, WireType::ThirtyTwoBit, &mut buf);
                buf.put_u32(value);
                buf
            }),
            (6u32..90, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(field, value)| {
                let mut buf = Vec::new();
                prost::encoding::bytes::encode(field, &value, &mut buf);
                buf
            }),
        ];
        prop_oneof![
            3 => (1u32..300, prop::collection::vec(any::<u8>(), 0..200))
                .prop_map(|(arm, body)| Field::Item(arm, body)),
            3 => any::<u64>().prop_map(Field::Id),
            1 => prop::collection::vec(any::<u64>(), 1..5).prop_map(Field::Ids),
            1 => (1..500u64).prop_map(Field::Load),
            1 => unknown.prop_map(Field::Unknown),
        ]
    }

    proptest! {
        /// Ids packed and not, fields in any order, unknown ones in between.
        #[test]
        fn fields_come_in_any_order(fields in prop::collection::vec(field(), 0..30)) {
            let mut bytes = Vec::new();
            let mut items = Vec::new();
            let mut ids = Vec::new();
            let mut load = 0;
            for field in &fields {
                field.put(&mut bytes);
                match field {
                    Field::Item(arm, body) => items.push((*arm, Bytes::from(body.clone()))),
                    Field::Id(id) => ids.push(*id),
                    Field::Ids(run) => ids.extend(run),
                    Field::Load(value) => load = *value,
                    Field::Unknown(_) => {}
                }
            }
            let split = split_response(bytes.into());
            if items.len() != ids.len() {
                let unpaired = FrameError::Unpaired { items: items.len(), ids: ids.len() };
                prop_assert_eq!(split, Err(unpaired));
            } else {
                let split = split.unwrap();
                let expected: Vec<_> = ids
                    .into_iter()
                    .zip(items)
                    .map(|(id, (arm, body))| item(id, arm, body))
                    .collect();
                prop_assert_eq!(split.items, expected);
                prop_assert_eq!(split.transport_layer_load, load);
            }
        }

        /// A frame with one byte changed, or cut short, is taken apart as prost does, or refused.
        #[test]
        fn damaged_frames_never_panic(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..4),
            at: prop::sample::Index,
            byte: u8,
            cut: bool,
        ) {
            let split = SplitFrame {
                items: values
                    .into_iter()
                    .zip(300u64..)
                    .map(|(value, id)| item(id, 1, response(false, value.into()).encode_to_vec()))
                    .collect(),
                health_feedback: Some(HealthFeedback { store_id: 1, seq: 300, slow_score: -1 }),
                tikv_send_time_ns: u64::MAX,
                ..Default::default()
            };
            let mut bytes = split.encode().to_vec();
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] = byte;
            }
            prop_assert!(agrees_with_prost(bytes.into()));
        }
    }

    #[test]
    fn every_arm_of_the_catalogue_encodes_like_the_message() {
        let mut known = 0;
        for arm in 0..1024 {
            let Some(command) = Command::decode_batched(arm, Bytes::new()) else {
                continue;
            };
            let part = encode_part(Some(&context(arm.into())), &command.unwrap()).unwrap();
            let frame = RequestFrame::new(1, vec![part]).to_bytes(0);
            let message = BatchCommandsRequest::decode(frame.clone()).unwrap();
            assert!(message.requests[0].cmd.is_some(), "arm {arm}");
            assert_eq!(message.encode_to_vec(), frame, "arm {arm}");
            known += 1;
        }
        assert!(known > 30, "{known}");
        assert_eq!(
            encode_part(None, &Command::GetMembers(Default::default())),
            None
        );
    }

    #[test]
    fn a_part_has_exactly_the_memory_it_needs() {
        for len in [0, 1, 100, 127, 128, 20_000, 3_000_000] {
            let part = encode_part(Some(&context(2)), &get(&vec![b'k'; len]).into()).unwrap();
            let len = part.len();
            assert_eq!(part.try_into_mut().unwrap().capacity(), len);
        }
    }

    #[test]
    fn slices_share_the_memory_of_their_frame() {
        let frame = build_response(&[(1, 1, Bytes::from(vec![7; 100]))]);
        let range = frame.as_ptr_range();
        let split = split_response(frame).unwrap();
        assert!(range.contains(&split.items[0].body.as_ptr()));
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        use FrameError::*;
        let table: [(&[u8], FrameError); 18] = [
            // An item without an id, and the other way round.
            (&[0x0A, 0], Unpaired { items: 1, ids: 0 }),
            (&[0x10, 5], Unpaired { items: 0, ids: 1 }),
            (&[0x12, 2, 5, 6], Unpaired { items: 0, ids: 2 }),
            // Ends too early: key, length, contents, number, fixed numbers, packed id.
            (&[0x80], Truncated),
            (&[0x0A], Truncated),
            (&[0x0A, 5, 0x0A, 1], Truncated),
            (&[0x18, 0x80], Truncated),
            (&[0x39, 1, 2, 3, 4, 5, 6, 7], Truncated),
            (&[0x3D, 1, 2, 3], Truncated),
            (&[0x12, 2, 5, 0x86], Truncated),
            // A body that reaches beyond its item, though not beyond the frame.
            (&[0x0A, 3, 0x0A, 4, 1, 2, 3, 4], Truncated),
            // A length that no memory has.
            (
                &[0x0A, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
                Truncated,
            ),
            // Eleven bytes, and a tenth with more than one bit.
            (
                &[0x18, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 1],
                Varint,
            ),
            (
                &[0x18, 128, 128, 128, 128, 128, 128, 128, 128, 128, 2],
                Varint,
            ),
            // Field 0, and one beyond the largest.
            (&[0x02, 0], FieldNumber(0)),
            (&[0x80, 0x80, 0x80, 0x80, 0x10, 0], FieldNumber(1 << 29)),
            // A number where items are, and a group.
            (
                &[0x08, 1],
                WireType {
                    field: 1,
                    wire_type: 0,
                },
            ),
            (
                &[0x33, 0x34],
                WireType {
                    field: 6,
                    wire_type: 3,
                },
            ),
        ];
        for (bytes, error) in table {
            assert_eq!(
                split_response(Bytes::copy_from_slice(bytes)),
                Err(error),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn a_frame_that_was_refused_leaves_nothing_behind() {
        let mut split = SplitFrame::default();
        split.read(build_response(&[(1, 1, Bytes::new())])).unwrap();
        assert_eq!(split.items.len(), 1);
        split
            .read(Bytes::from_static(&[0x18, 7, 0x0A]))
            .unwrap_err();
        assert_eq!(split, SplitFrame::default());
    }

    // client-go: TestBatchResponse
    #[test]
    fn an_item_without_a_command_is_seen_as_such() {
        let message = BatchCommandsResponse {
            responses: vec![Reply { cmd: None }],
            request_ids: vec![9],
            ..Default::default()
        };
        let split = split_response(message.encode_to_vec().into()).unwrap();
        assert_eq!(split.items, [item(9, 0, "")]);
        assert_eq!(split.encode(), message.encode_to_vec());
    }

    #[test]
    fn an_answer_is_read_by_whoever_asked() {
        let address: Arc<str> = Arc::from("tikv-1:20160");
        let command = Command::from(get(b"k"));
        let expected = response(false, "v".into());
        let body = Bytes::from(expected.encode_to_vec());
        let right = Answer { arm: 1, body };
        let (mut wrong, mut broken) = (right.clone(), right.clone());
        wrong.arm = 255;
        broken.body = Bytes::from_static(&[0xFF]);

        assert_eq!(
            right.decode(&command, &address),
            Ok(Response::Get(expected))
        );
        for answer in [wrong, broken] {
            let error = answer.decode(&command, &address).unwrap_err();
            assert!(
                matches!(&error, TransportError::Decode { address: a, .. } if *a == address),
                "{error}"
            );
        }
    }

    #[test]
    fn the_empty_command_of_a_test_server_is_an_arm_like_others() {
        let message = BatchCommandsResponse {
            responses: vec![Reply {
                cmd: Some(Cmd::Empty(BatchCommandsEmptyResponse { test_id: 7 })),
            }],
            request_ids: vec![1],
            ..Default::default()
        };
        let split = split_response(message.encode_to_vec().into()).unwrap();
        assert_eq!(split.items, [item(1, 255, &[0x08, 7][..])]);
    }
}
