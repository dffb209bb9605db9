//! Descriptor chains: read once, checked, in types of our own.

use memory::{Buffers, Gpa, GuestSlice, OutsideRam, Ram};
use zerocopy::{FromBytes, IntoBytes};

use crate::features::Features;

/// Bytes of a descriptor.
pub const DESCRIPTOR_SIZE: u64 = 16;

/// The chain goes on at `next`.
const NEXT: u16 = 1;
/// The device writes here; otherwise it reads.
const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
const INDIRECT: u16 = 4;

/// Longest table that a descriptor may point to. Drivers keep within the queue's size or the device's own
/// limits on segments, both of which are smaller.
const MAX_INDIRECT: u64 = 1024;

/// A descriptor.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// What is wrong with what a driver put into a queue. All of these are faults of the driver; the device asks to
/// be reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// The available index moved further than the queue is long.
    #[error("the available index {index} is more than {size} ahead of {next}")]
    IndexJump {
        /// The index in guest memory.
        index: u16,
        /// The next index to be taken.
        next: u16,
        /// The queue's size.
        size: u16,
    },
    /// More chains are available than there are descriptors.
    #[error("more than {size} chains are under way in a queue of that size")]
    TooManyChains {
        /// The queue's size.
        size: u16,
    },
    /// A descriptor index is outside its table.
    #[error("the chain at {head} names descriptor {index} of a table of {size}")]
    NoSuchDescriptor {
        /// The chain.
        head: u16,
        /// The index.
        index: u16,
        /// The table's size.
        size: u16,
    },
    /// A chain has more descriptors than its table, so it must be a loop.
    #[error("the chain at {head} is longer than its table of {size} descriptors")]
    Loop {
        /// The chain.
        head: u16,
        /// The table's size.
        size: u16,
    },
    /// A buffer without bytes.
    #[error("the chain at {head} holds an empty buffer at {at}")]
    Empty {
        /// The chain.
        head: u16,
        /// Where the buffer would be.
        at: Gpa,
    },
    /// A buffer that is not RAM.
    #[error(
        "the chain at {head} holds a buffer of {len} bytes at {at}, which is not wholly inside guest RAM"
    )]
    OutsideRam {
        /// The chain.
        head: u16,
        /// Where the buffer is.
        at: Gpa,
        /// Its length in bytes.
        len: u64,
    },
    /// A buffer for the device to read after one for it to write.
    #[error("the chain at {head} has a readable buffer behind a writable one")]
    ReadableAfterWritable {
        /// The chain.
        head: u16,
    },
    /// An indirect table where there may be none: not negotiated, inside another, or with a successor.
    #[error("the chain at {head} has an indirect table where none is allowed")]
    UnexpectedIndirect {
        /// The chain.
        head: u16,
    },
    /// An indirect table of impossible length.
    #[error("the chain at {head} has an indirect table of {len} bytes")]
    IndirectLength {
        /// The chain.
        head: u16,
        /// Its length in bytes.
        len: u32,
    },
}

/// A buffer of a chain: guest memory that was checked to be RAM, at least one byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// First byte.
    pub gpa: Gpa,
    /// Length in bytes.
    pub len: u32,
}

/// The buffers of one chain: those the device reads, then those it writes. Made once and read into again and
/// again, so that taking a chain allocates nothing.
#[derive(Default, Debug)]
pub struct Chain {
    pieces: Vec<Piece>,
    /// How many of the pieces are for reading.
    readable: usize,
    /// Bytes in them.
    readable_bytes: u64,
    /// Bytes in the others.
    writable_bytes: u64,
}

impl Chain {
    /// No buffers yet.
    pub fn new() -> Chain {
        Chain::default()
    }

    /// The bytes that the driver wrote for the device.
    pub fn readable(&self) -> Cursor<'_> {
        Cursor { pieces: &self.pieces[..self.readable], skip: 0, bytes: self.readable_bytes }
    }

    /// The room that the driver gave the device to write to.
    pub fn writable(&self) -> Cursor<'_> {
        Cursor { pieces: &self.pieces[self.readable..], skip: 0, bytes: self.writable_bytes }
    }

    /// Reads the chain at `head` of a table of `size` descriptors.
    pub(super) fn read(
        &mut self,
        head: u16,
        ram: &Ram,
        table: GuestSlice<'_>,
        size: u16,
        features: Features,
    ) -> Result<(), Malformed> {
        self.pieces.clear();
        (self.readable, self.readable_bytes, self.writable_bytes) = (0, 0, 0);
        let mut index = head;
        for _ in 0..size {
            let descriptor = descriptor(table, index, size, head)?;
            if descriptor.flags & INDIRECT != 0 {
                if !features.contains(Features::INDIRECT_DESC) || descriptor.flags & NEXT != 0 {
                    return Err(Malformed::UnexpectedIndirect { head });
                }
                return self.read_indirect(head, ram, descriptor);
            }
            self.push(head, ram, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(Malformed::Loop { head, size })
    }

    fn read_indirect(
        &mut self,
        head: u16,
        ram: &Ram,
        descriptor_of_table: Descriptor,
    ) -> Result<(), Malformed> {
        let Descriptor { address, len, .. } = descriptor_of_table;
        let count = u64::from(len) / DESCRIPTOR_SIZE;
        if !u64::from(len).is_multiple_of(DESCRIPTOR_SIZE) || count == 0 || count > MAX_INDIRECT {
            return Err(Malformed::IndirectLength { head, len });
        }
        let (at, len) = (Gpa(address), u64::from(len));
        let table = ram.slice(at, len).map_err(|_| Malformed::OutsideRam { head, at, len })?;
        let (size, mut index) = (count as u16, 0);
        for _ in 0..size {
            let descriptor = descriptor(table, index, size, head)?;
            if descriptor.flags & INDIRECT != 0 {
                return Err(Malformed::UnexpectedIndirect { head });
            }
            self.push(head, ram, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(Malformed::Loop { head, size })
    }

    fn push(&mut self, head: u16, ram: &Ram, descriptor: Descriptor) -> Result<(), Malformed> {
        let piece = Piece { gpa: Gpa(descriptor.address), len: descriptor.len };
        if piece.len == 0 {
            return Err(Malformed::Empty { head, at: piece.gpa });
        }
        let len = u64::from(piece.len);
        ram.slice(piece.gpa, len).map_err(|_| Malformed::OutsideRam { head, at: piece.gpa, len })?;
        if descriptor.flags & WRITE == 0 {
            if self.readable < self.pieces.len() {
                return Err(Malformed::ReadableAfterWritable { head });
            }
            self.readable += 1;
            self.readable_bytes += len;
        } else {
            self.writable_bytes += len;
        }
        self.pieces.push(piece);
        Ok(())
    }
}

/// Reads a descriptor (2.7.5), once: its address, then length, flags and successor in eight bytes.
fn descriptor(table: GuestSlice<'_>, index: u16, size: u16, head: u16) -> Result<Descriptor, Malformed> {
    let words = table.read_words::<2>(usize::from(index) * DESCRIPTOR_SIZE as usize);
    let [address, rest] =
        words.filter(|_| index < size).ok_or(Malformed::NoSuchDescriptor { head, index, size })?;
    let rest = u64::from_le(rest);
    Ok(Descriptor {
        address: u64::from_le(address),
        len: rest as u32,
        flags: (rest >> 32) as u16,
        next: (rest >> 48) as u16,
    })
}

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
    pub fn append_to(mut self, buffers: &mut Buffers) -> Result<(), OutsideRam> {
        let rest = self.bytes;
        self.take(rest)
            .into_iter()
            .flatten()
            .try_for_each(|piece| buffers.push(piece.gpa, u64::from(piece.len)))
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
