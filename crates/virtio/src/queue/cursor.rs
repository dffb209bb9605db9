//! The bytes of a chain, consumed piece by piece.

use memory::{Buffers, Gpa, OutsideRam, Ram};
use zerocopy::{FromBytes, IntoBytes};

use super::chain::Piece;

/// A run of bytes over the pieces of a chain, consumed from the front.
#[derive(Clone, Debug)]
pub struct Cursor<'chain> {
    pieces: &'chain [Piece],
    /// Bytes of the first piece that are consumed already.
    skip: u32,
    /// Bytes left, which may end before the pieces do.
    bytes: u64,
}

impl<'chain> Cursor<'chain> {
    /// All of these pieces, which have so many bytes.
    pub(super) fn over(pieces: &'chain [Piece], bytes: u64) -> Cursor<'chain> {
        Cursor { pieces, skip: 0, bytes }
    }

    /// Bytes left.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Consumes and copies out a structure; `None` when fewer bytes are left.
    pub fn read<T: FromBytes + IntoBytes>(&mut self, ram: &Ram) -> Option<T> {
        let len = size_of::<T>() as u64;
        // Nearly always it lies in one piece.
        if let Some(first) = self.pieces.first()
            && len <= self.bytes.min(u64::from(first.len - self.skip))
        {
            let object = ram.read_obj(Gpa(first.gpa.0 + u64::from(self.skip))).ok();
            self.take(len)?;
            return object;
        }
        let mut object = T::new_zeroed();
        self.read_bytes(ram, object.as_mut_bytes())?;
        Some(object)
    }

    /// Consumes and copies out as many bytes as there is room for; `None` when fewer are left.
    pub fn read_bytes(&mut self, ram: &Ram, bytes: &mut [u8]) -> Option<()> {
        let mut done = 0;
        for piece in self.take(bytes.len() as u64)? {
            let len = piece.len as usize;
            ram.read(piece.gpa, &mut bytes[done..done + len]).ok()?;
            done += len;
        }
        Some(())
    }

    /// Copies bytes in and consumes the room for them; `None` when there is not enough.
    pub fn write_bytes(&mut self, ram: &Ram, bytes: &[u8]) -> Option<()> {
        let mut done = 0;
        for piece in self.take(bytes.len() as u64)? {
            let len = piece.len as usize;
            ram.write(piece.gpa, &bytes[done..done + len]).ok()?;
            done += len;
        }
        Some(())
    }

    /// Consumes everything into the buffers of a request.
    pub fn append_to(self, buffers: &mut Buffers) -> Result<(), OutsideRam> {
        let Cursor { pieces, skip, bytes } = self;
        let mut all = Pieces { pieces, skip, bytes };
        all.try_for_each(|piece| buffers.push(piece.gpa, u64::from(piece.len)))
    }

    /// Consumes the next `bytes` bytes as pieces; `None` when fewer are left.
    pub fn take(&mut self, bytes: u64) -> Option<Pieces<'chain>> {
        if bytes > self.bytes {
            return None;
        }
        let taken = Pieces { pieces: self.pieces, skip: self.skip, bytes };
        self.bytes -= bytes;
        let mut left = bytes;
        while let Some(first) = self.pieces.first() {
            let here = u64::from(first.len - self.skip);
            if left < here {
                self.skip += left as u32;
                break;
            }
            left -= here;
            self.skip = 0;
            self.pieces = &self.pieces[1..];
        }
        Some(taken)
    }

    /// Cuts the last `bytes` bytes off and returns them; `None` when fewer are left.
    pub fn split_end(&mut self, bytes: u64) -> Option<Cursor<'chain>> {
        let keep = self.bytes.checked_sub(bytes)?;
        let mut end = self.clone();
        end.take(keep)?;
        self.bytes = keep;
        Some(end)
    }

    /// The first address left, if any.
    pub fn start(&self) -> Option<Gpa> {
        let first = self.pieces.first().filter(|_| self.bytes > 0)?;
        first.gpa.checked_add(u64::from(self.skip))
    }
}

/// Pieces consumed from a [`Cursor`].
pub struct Pieces<'chain> {
    pieces: &'chain [Piece],
    skip: u32,
    bytes: u64,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.bytes == 0 {
            return None;
        }
        let (first, rest) = self.pieces.split_first()?;
        let skip = std::mem::take(&mut self.skip);
        let len = u64::from(first.len - skip).min(self.bytes);
        self.bytes -= len;
        self.pieces = rest;
        Some(Piece { gpa: Gpa(first.gpa.0 + u64::from(skip)), len: len as u32 })
    }
}
