//! What a disk is: its size, its blocks, and what it can do.

use std::fmt;
use std::path::Path;

/// A place on a disk or a length, in sectors of 512 bytes, whatever the disk's own blocks are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Sectors(pub u64);

impl Sectors {
    /// Bytes in a sector.
    pub const SIZE: u64 = 512;

    /// The whole sectors in `bytes`; what does not fill one is left out.
    pub fn in_bytes(bytes: u64) -> Sectors {
        Sectors(bytes / Sectors::SIZE)
    }

    /// As bytes; `None` when there are more than a `u64` counts.
    pub fn bytes(self) -> Option<u64> {
        self.0.checked_mul(Sectors::SIZE)
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A run of sectors as somebody asked for it; it may lie anywhere until it is checked against a disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SectorRange {
    /// First sector.
    pub start: Sectors,
    /// How many.
    pub count: Sectors,
}

impl SectorRange {
    /// First sector behind the range; `None` past what a `u64` counts.
    pub fn end(self) -> Option<Sectors> {
        self.start.0.checked_add(self.count.0).map(Sectors)
    }
}

impl fmt::Display for SectorRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors from sector {}", self.count, self.start)
    }
}

/// Whether a disk may be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads and writes.
    ReadWrite,
    /// Reads only; everything else is refused with [`crate::DiskError::ReadOnly`].
    ReadOnly,
}

/// Whether completed writes may still be lost when the power goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteCache {
    /// They may, until a flush.
    WriteBack,
    /// They may not; a flush has nothing to do.
    WriteThrough,
}

/// What discarded sectors read as afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AfterDiscard {
    /// Zeroes.
    Zeroes,
    /// Anything: zeroes, the old data, changing data.
    Unspecified,
}

/// How a disk discards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Discard {
    /// Longest range in one request.
    pub max: Sectors,
    /// Ranges aligned to this many bytes are worth discarding.
    pub granularity: u32,
    /// What discarded sectors read as.
    pub after: AfterDiscard,
}

/// How a disk writes zeroes without being sent them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteZeroes {
    /// Longest range in one request.
    pub max: Sectors,
}

/// What a disk is. Guests are shown these values as they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Size of the disk when it was opened; [`crate::Disk::capacity`] has the present one.
    pub capacity: Sectors,
    /// Smallest unit of a transfer in bytes: a power of two, at least 512. Requests start and end on it.
    pub logical_block: u32,
    /// Unit that the disk writes without reading first, in bytes; a multiple of `logical_block`.
    pub physical_block: u32,
    /// How far the first sector lies from the start of a physical block, in bytes.
    pub alignment_offset: u32,
    /// Smallest transfer that performs well, in bytes.
    pub minimum_io: u32,
    /// Best transfer, in bytes; 0 when the disk names none.
    pub optimal_io: u32,
    /// Whether the disk may be changed.
    pub access: Access,
    /// Whether completed writes need a flush to last.
    pub write_cache: WriteCache,
    /// Whether a single write can be made durable on its own by the device.
    pub fua: bool,
    /// Whether the disk spins.
    pub rotational: bool,
    /// How it discards, if it does.
    pub discard: Option<Discard>,
    /// How it writes zeroes, if it does.
    pub write_zeroes: Option<WriteZeroes>,
    /// The maker's name for the disk.
    pub model: Option<String>,
    /// The disk's serial number.
    pub serial: Option<String>,
}

impl Geometry {
    /// What a person should know of a disk whose size is no multiple of its blocks.
    pub(crate) fn unseen(&self, disk: &Path, bytes: u64) -> Option<String> {
        let block = self.logical_block;
        let rest = bytes % u64::from(block);
        (rest != 0).then(|| {
            format!(
                "disk {}: it has {bytes} bytes, which is no multiple of its block of {block}; the guest does not see the last \
                 {rest} bytes",
                disk.display()
            )
        })
    }
}
