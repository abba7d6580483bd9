//! Where the buffer's bytes lie: chunks that are filled one after the other.
//!
//! Bytes are only ever appended at the end and only ever taken back from the end, so an undone
//! stage leaves the memory it used ready for the next one. A chunk belongs to the arena alone
//! until [`Arena::seal`] makes it shareable: from then on its bytes are handed out without a copy
//! and never change. A large piece lies in a buffer of its own, shareable from the start.
//!
//! Deliberately absent: freeing single pieces, and knowledge of what the bytes mean.

use bytes::Bytes;

/// Pieces of this size and more lie by themselves, so that reading them never copies.
pub(super) const LARGE: usize = 4096;

const CHUNK_FIRST: usize = 4096;
const CHUNK_MAX: usize = 1 << 20;

/// Bytes that grow and shrink at their end.
#[derive(Debug, Default)]
pub(super) struct Arena {
    /// `chunks[..=filling]` hold bytes; those after it are empty and kept for reuse.
    chunks: Vec<Chunk>,
    filling: usize,
    large: Vec<Bytes>,
    /// Capacity of the chunks and bytes of the large pieces.
    allocated: usize,
}

/// Where a piece begins. Its length is known to whoever keeps the place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of the chunk, or [`IN_LARGE`].
    chunk: u32,
    /// Offset in the chunk, or index among the large pieces.
    at: u32,
}

#[derive(Debug)]
enum Chunk {
    Open(Vec<u8>),
    /// The bytes, and what was allocated for them.
    Sealed(Bytes, usize),
}

impl Arena {
    /// Appends a copy of `bytes`, or `bytes` themselves if they are large and shareable.
    pub(super) fn push(&mut self, bytes: Source<'_>) -> Place {
        let len = bytes.as_slice().len();
        if len >= LARGE {
            self.allocated += len;
            self.large.push(bytes.into_shared());
            return Place {
                chunk: IN_LARGE,
                at: (self.large.len() - 1) as u32,
            };
        }
        let filling = self.chunk_with_room(len);
        let mut place = Place {
            chunk: filling as u32,
            at: 0,
        };
        if let Some(Chunk::Open(chunk)) = self.chunks.get_mut(filling) {
            place.at = chunk.len() as u32;
            chunk.extend_from_slice(bytes.as_slice());
        }
        place
    }

    /// Writes `bytes` over the piece of the same length at `place`. Only for pieces that were
    /// appended after the last [`Arena::seal`].
    pub(super) fn overwrite(&mut self, place: Place, bytes: Source<'_>) {
        if place.chunk == IN_LARGE {
            if let Some(piece) = self.large.get_mut(place.at as usize) {
                *piece = bytes.into_shared();
            }
            return;
        }
        let from = place.at as usize;
        let bytes = bytes.as_slice();
        match self.chunks.get_mut(place.chunk as usize) {
            Some(Chunk::Open(chunk)) => chunk[from..from + bytes.len()].copy_from_slice(bytes),
            _ => debug_assert!(false, "a sealed piece is not overwritten"),
        }
    }

    /// Takes back the piece at `place`, which is the last one.
    pub(super) fn pop(&mut self, place: Place) {
        let at = place.at as usize;
        if place.chunk == IN_LARGE {
            for piece in self.large.drain(at..) {
                self.allocated -= piece.len();
            }
            return;
        }
        self.filling = place.chunk as usize;
        if let Some(chunk) = self.chunks.get_mut(self.filling) {
            match chunk {
                Chunk::Open(bytes) => bytes.truncate(at),
                // Someone may still read the rest of a sealed chunk, so its memory is given up
                // when nothing in it is left, and not written to before.
                Chunk::Sealed(_, size) if at == 0 => {
                    self.allocated -= *size;
                    *chunk = Chunk::Open(Vec::new());
                }
                Chunk::Sealed(..) => {}
            }
        }
    }

    /// The piece of `len` bytes at `place`.
    pub(super) fn slice(&self, place: Place, len: usize) -> &[u8] {
        let at = place.at as usize;
        if place.chunk == IN_LARGE {
            return &self.large[at];
        }
        match &self.chunks[place.chunk as usize] {
            Chunk::Open(chunk) => &chunk[at..at + len],
            Chunk::Sealed(chunk, _) => &chunk[at..at + len],
        }
    }

    /// The piece of `len` bytes at `place`, to keep. Copies only what is neither sealed nor large.
    pub(super) fn bytes(&self, place: Place, len: usize) -> Bytes {
        let at = place.at as usize;
        if place.chunk == IN_LARGE {
            return self.large[at].clone();
        }
        match &self.chunks[place.chunk as usize] {
            Chunk::Open(chunk) => Bytes::copy_from_slice(&chunk[at..at + len]),
            Chunk::Sealed(chunk, _) => chunk.slice(at..at + len),
        }
    }

    /// Makes everything here shareable: it is never changed again, and read without a copy.
    pub(super) fn seal(&mut self) {
        for chunk in &mut self.chunks {
            if let Chunk::Open(bytes) = chunk
                && !bytes.is_empty()
            {
                let size = bytes.capacity();
                *chunk = Chunk::Sealed(std::mem::take(bytes).into(), size);
            }
        }
    }

    /// Bytes allocated.
    pub(super) fn allocated(&self) -> usize {
        self.allocated + self.large.capacity() * size_of::<Bytes>()
    }

    /// The chunk to append `len` bytes to.
    fn chunk_with_room(&mut self, len: usize) -> usize {
        loop {
            match self.chunks.get_mut(self.filling) {
                Some(Chunk::Open(chunk)) if chunk.capacity() - chunk.len() >= len => {
                    return self.filling;
                }
                // A chunk whose sealed memory was given up: it has no memory of its own yet.
                Some(Chunk::Open(chunk)) if chunk.capacity() == 0 => {
                    chunk.reserve_exact(CHUNK_FIRST);
                    self.allocated += chunk.capacity();
                }
                Some(_) => self.filling += 1,
                None => {
                    let size = match self.chunks.last() {
                        Some(Chunk::Open(last)) => last.capacity() * 2,
                        Some(Chunk::Sealed(_, size)) => size * 2,
                        None => CHUNK_FIRST,
                    };
                    let chunk = Vec::with_capacity(size.clamp(CHUNK_FIRST, CHUNK_MAX));
                    self.allocated += chunk.capacity();
                    self.chunks.push(Chunk::Open(chunk));
                }
            }
        }
    }
}

/// Bytes on their way into an arena.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// Must be copied.
    Borrowed(&'a [u8]),
    /// May be kept, if that is worth it.
    Shared(&'a Bytes),
}

impl<'a> Source<'a> {
    pub(super) fn as_slice(self) -> &'a [u8] {
        match self {
            Source::Borrowed(bytes) => bytes,
            Source::Shared(bytes) => bytes,
        }
    }

    fn into_shared(self) -> Bytes {
        match self {
            Source::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Source::Shared(bytes) => bytes.clone(),
        }
    }
}

const IN_LARGE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn push(arena: &mut Arena, len: usize, byte: u8) -> Place {
        arena.push(Source::Borrowed(&vec![byte; len]))
    }

    #[test]
    fn nothing_is_allocated_for_nothing() {
        assert_eq!(Arena::default().allocated(), 0);
    }

    #[test]
    fn popped_memory_is_used_again() {
        let mut arena = Arena::default();
        let mut peak = 0;
        for round in 0..5 {
            let places: Vec<Place> = (0..100).map(|i| push(&mut arena, 500, i)).collect();
            for (i, place) in places.iter().enumerate() {
                assert_eq!(arena.slice(*place, 500), [i as u8; 500]);
            }
            for place in places.iter().rev() {
                arena.pop(*place);
            }
            if round == 0 {
                peak = arena.allocated();
            }
            assert_eq!(arena.allocated(), peak);
        }
    }

    #[test]
    fn sealed_and_large_pieces_are_shared() {
        let mut arena = Arena::default();
        let small = push(&mut arena, 10, 1);
        let large = push(&mut arena, LARGE, 2);
        let copied = arena.bytes(small, 10);
        assert_ne!(copied.as_ptr(), arena.slice(small, 10).as_ptr());
        arena.seal();
        for (place, len) in [(small, 10), (large, LARGE)] {
            assert_eq!(
                arena.bytes(place, len).as_ptr(),
                arena.slice(place, len).as_ptr()
            );
        }
    }

    #[test]
    fn a_large_shareable_piece_is_kept_as_it_is() {
        let mut arena = Arena::default();
        let mine = Bytes::from(vec![7; LARGE]);
        let place = arena.push(Source::Shared(&mine));
        assert_eq!(arena.slice(place, LARGE).as_ptr(), mine.as_ptr());
    }

    #[test]
    fn popping_behind_a_seal_exposes_and_leaks_nothing() {
        let mut arena = Arena::default();
        let kept = push(&mut arena, 10, 1);
        let undone = push(&mut arena, 10, 2);
        arena.seal();
        let reader = arena.bytes(undone, 10);
        let after = push(&mut arena, 10, 3);
        assert_eq!(arena.slice(after, 10), [3; 10]);
        let before = arena.allocated();
        arena.pop(after);
        arena.pop(undone);
        let again = push(&mut arena, 10, 4);
        assert_eq!(arena.slice(kept, 10), [1; 10]);
        assert_eq!(arena.slice(again, 10), [4; 10]);
        assert_eq!(arena.allocated(), before);
        arena.pop(again);
        arena.pop(kept);
        assert_eq!(reader, [2; 10].as_slice(), "a reader's bytes stay");
        assert!(arena.allocated() < before);
    }
}
