//! Descriptor chains: read once, checked, in types of our own.

use memory::{Gpa, GuestSlice, Ram};

use super::cursor::Cursor;
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

/// A descriptor as it lies in guest memory: its address, then 32 bits of length and two numbers of 16 bits. Those of a
/// split queue are its flags and the next one's index (2.7.5), those of a packed one the buffer's number and its flags
/// (2.8.13).
#[derive(Clone, Copy)]
struct RawDescriptor {
    address: u64,
    rest: u64,
}

/// A descriptor, read.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    /// The next descriptor's index in a split queue, the buffer's number in a packed one.
    link: u16,
}

impl RawDescriptor {
    fn of_split(self) -> Descriptor {
        let RawDescriptor { address, rest } = self;
        Descriptor { address, len: rest as u32, flags: (rest >> 32) as u16, link: (rest >> 48) as u16 }
    }

    fn of_packed(self) -> Descriptor {
        let RawDescriptor { address, rest } = self;
        Descriptor { address, len: rest as u32, flags: (rest >> 48) as u16, link: (rest >> 32) as u16 }
    }
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
    /// A chain of a packed queue goes on over descriptors of chains that were not given back.
    #[error("the chain at {head} runs into chains that are under way, in a queue of {size}")]
    Overrun {
        /// The chain.
        head: u16,
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
        Cursor::over(&self.pieces[..self.readable], self.readable_bytes)
    }

    /// The room that the driver gave the device to write to.
    pub fn writable(&self) -> Cursor<'_> {
        Cursor::over(&self.pieces[self.readable..], self.writable_bytes)
    }

    /// Reads the chain at `head` of a table of `size` descriptors.
    pub(super) fn read_split(
        &mut self,
        head: u16,
        ram: &Ram,
        table: GuestSlice<'_>,
        size: u16,
        features: Features,
    ) -> Result<(), Malformed> {
        self.clear();
        let mut index = head;
        for _ in 0..size {
            let descriptor = descriptor(table, index, size, head)?.of_split();
            if descriptor.flags & INDIRECT != 0 {
                let (table, size) = indirect(head, ram, descriptor, features)?;
                return self.read_split_table(head, ram, table, size);
            }
            self.push(head, ram, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.link;
        }
        Err(Malformed::Loop { head, size })
    }

    fn read_split_table(
        &mut self,
        head: u16,
        ram: &Ram,
        table: GuestSlice<'_>,
        size: u16,
    ) -> Result<(), Malformed> {
        let mut index = 0;
        for _ in 0..size {
            let descriptor = descriptor(table, index, size, head)?.of_split();
            if descriptor.flags & INDIRECT != 0 {
                return Err(Malformed::UnexpectedIndirect { head });
            }
            self.push(head, ram, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.link;
        }
        Err(Malformed::Loop { head, size })
    }

    /// Reads the chain at `head` of a ring of `size` descriptors, of which `room` from there on may belong to it.
    /// Returns the buffer's number and how many descriptors of the ring the chain takes.
    pub(super) fn read_packed(
        &mut self,
        head: u16,
        ram: &Ram,
        ring: GuestSlice<'_>,
        (size, room): (u16, u16),
        features: Features,
    ) -> Result<(u16, u16), Malformed> {
        self.clear();
        let mut index = head;
        for count in 1..=room {
            let descriptor = descriptor(ring, index, size, head)?.of_packed();
            if descriptor.flags & INDIRECT != 0 {
                let (table, entries) = indirect(head, ram, descriptor, features)?;
                self.read_packed_table(head, ram, table, entries)?;
                return Ok((descriptor.link, count));
            }
            self.push(head, ram, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                // The last descriptor of a chain has the number.
                return Ok((descriptor.link, count));
            }
            index = if index + 1 == size { 0 } else { index + 1 };
        }
        Err(if room == size { Malformed::Loop { head, size } } else { Malformed::Overrun { head, size } })
    }

    /// All descriptors of an indirect table belong to the chain, one after the other, and of their flags only the
    /// one for writing means something (2.8.7).
    fn read_packed_table(
        &mut self,
        head: u16,
        ram: &Ram,
        table: GuestSlice<'_>,
        entries: u16,
    ) -> Result<(), Malformed> {
        (0..entries).try_for_each(|index| {
            let descriptor = descriptor(table, index, entries, head)?.of_packed();
            self.push(head, ram, descriptor)
        })
    }

    fn clear(&mut self) {
        self.pieces.clear();
        (self.readable, self.readable_bytes, self.writable_bytes) = (0, 0, 0);
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

/// The indirect table that a descriptor points to, and how many descriptors it has.
fn indirect(
    head: u16,
    ram: &Ram,
    Descriptor { address, len, flags, .. }: Descriptor,
    features: Features,
) -> Result<(GuestSlice<'_>, u16), Malformed> {
    if !features.contains(Features::INDIRECT_DESC) || flags & NEXT != 0 {
        return Err(Malformed::UnexpectedIndirect { head });
    }
    let count = u64::from(len) / DESCRIPTOR_SIZE;
    if !u64::from(len).is_multiple_of(DESCRIPTOR_SIZE) || count == 0 || count > MAX_INDIRECT {
        return Err(Malformed::IndirectLength { head, len });
    }
    let (at, len) = (Gpa(address), u64::from(len));
    let table = ram.slice(at, len).map_err(|_| Malformed::OutsideRam { head, at, len })?;
    Ok((table, count as u16))
}

/// Reads a descriptor, once.
#[inline]
fn descriptor(table: GuestSlice<'_>, index: u16, size: u16, head: u16) -> Result<RawDescriptor, Malformed> {
    let words = table.read_words::<2>(usize::from(index) * DESCRIPTOR_SIZE as usize);
    let words = words.filter(|_| index < size).ok_or(Malformed::NoSuchDescriptor { head, index, size })?;
    let [address, rest] = words.map(u64::from_le);
    Ok(RawDescriptor { address, rest })
}
