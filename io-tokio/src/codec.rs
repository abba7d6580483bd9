//! A tonic codec whose messages are bytes that are encoded already, so that no connection task
//! ever encodes or decodes a message.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// How much room a write buffer starts with. Most frames of point requests fit in.
const WRITE_BUFFER_BYTES: usize = 8 * 1024;
/// How much must be encoded before a buffer goes to the connection although more is ready.
const WRITE_THRESHOLD_BYTES: usize = 32 * 1024;

/// A message that can be copied into the write buffer of a stream.
pub(crate) trait RawMessage: Send + Sync + 'static {
    /// How many bytes `put` writes.
    fn len(&self) -> usize;
    /// Writes the message.
    fn put(self, buf: &mut EncodeBuf<'_>);
}

impl RawMessage for Bytes {
    fn len(&self) -> usize {
        Bytes::len(self)
    }

    fn put(self, buf: &mut EncodeBuf<'_>) {
        buf.put(self);
    }
}

/// Sends messages of type `M` as they are, and receives bytes. A received message is a slice of
/// the buffer it was read into.
#[derive(Debug)]
pub(crate) struct RawCodec<M>(PhantomData<fn(M)>);

impl<M> RawCodec<M> {
    pub(crate) const fn new() -> Self {
        RawCodec(PhantomData)
    }
}

impl<M: RawMessage> Codec for RawCodec<M> {
    type Encode = M;
    type Decode = Bytes;
    type Encoder = RawCodec<M>;
    type Decoder = RawDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        RawCodec::new()
    }

    fn decoder(&mut self) -> Self::Decoder {
        RawDecoder
    }
}

impl<M: RawMessage> Encoder for RawCodec<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, item: M, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.reserve(item.len());
        item.put(dst);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(WRITE_BUFFER_BYTES, WRITE_THRESHOLD_BYTES)
    }
}

#[derive(Debug)]
pub(crate) struct RawDecoder;

impl Decoder for RawDecoder {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}
