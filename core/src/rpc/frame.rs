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
    fn must_be(self, wire_type: u8) -> Result<(), FrameError> {
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
        key.must_be(VARINT)?;
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
        key.must_be(LENGTH_DELIMITED)?;
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
mod tests;
