//! The input of a run, taken byte by byte: what the application does, and what it is answered.

/// What is left of the input.
#[derive(Clone, Debug)]
pub struct Script {
    bytes: Vec<u8>,
    next: usize,
}

impl Script {
    /// The whole input.
    pub fn new(bytes: &[u8]) -> Self {
        Script {
            bytes: bytes.to_vec(),
            next: 0,
        }
    }

    /// Cuts the first `len` bytes off as a script of their own.
    pub fn split_off_head(&mut self, len: usize) -> Script {
        Script::new(self.take(len))
    }

    /// The next byte, `None` after the last.
    pub fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.next).copied();
        self.next += usize::from(byte.is_some());
        byte
    }

    /// The next byte, 0 after the last.
    pub fn byte_or_zero(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    /// Up to `len` bytes.
    pub fn take(&mut self, len: usize) -> &[u8] {
        let start = self.next;
        self.next = (start + len).min(self.bytes.len());
        &self.bytes[start..self.next]
    }

    /// A number of eight bytes, the missing ones zero.
    pub fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.take(8);
        bytes[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(bytes)
    }

    /// One of several, by the next byte.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::from(self.byte_or_zero()) % from.len()]
    }
}
