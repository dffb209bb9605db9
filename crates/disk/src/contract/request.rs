//! Requests, and what can become of them.

use std::fmt;

use memory::Buffers;

use super::geometry::{Access, Geometry, SectorRange, Sectors};

/// When a write counts as done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// When the disk has taken it; a later flush makes it last.
    Cached,
    /// When it is on stable storage (FUA).
    Stable,
}

/// Whether writing zeroes may give the blocks back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmap {
    /// The range may be deallocated, as long as it reads as zeroes.
    Allowed,
    /// The range stays allocated.
    Forbidden,
}

/// What a disk is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Fill the buffers from the disk.
    Read {
        /// First sector.
        at: Sectors,
    },
    /// Write the buffers to the disk.
    Write {
        /// First sector.
        at: Sectors,
        /// When it counts as done.
        durability: Durability,
    },
    /// Bring everything that completed before to stable storage.
    Flush,
    /// Forget the contents of a range; [`crate::Discard::after`] says what it reads as.
    Discard(SectorRange),
    /// Make a range read as zeroes.
    WriteZeroes(SectorRange, Unmap),
}

impl Operation {
    /// What the operation is called.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Read { .. } => "read",
            Operation::Write { .. } => "write",
            Operation::Flush => "flush",
            Operation::Discard(_) => "discard",
            Operation::WriteZeroes(..) => "write zeroes",
        }
    }

    /// Whether it is done only when it is on stable storage.
    pub(crate) fn must_last(self) -> bool {
        matches!(self, Operation::Write { durability: Durability::Stable, .. })
    }

    /// Whether the disk is other than before.
    pub fn changes_the_disk(self) -> bool {
        matches!(self, Operation::Write { .. } | Operation::Discard(_) | Operation::WriteZeroes(..))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Read { at } | Operation::Write { at, .. } => {
                write!(f, "{} at sector {at}", self.name())
            }
            Operation::Flush => f.write_str("flush"),
            Operation::Discard(range) | Operation::WriteZeroes(range, _) => {
                write!(f, "{} of {range}", self.name())
            }
        }
    }
}

/// One request: what to do, with which guest memory.
#[derive(Debug)]
pub struct Request {
    /// Comes back with the completion; the caller's own affair.
    pub tag: u64,
    /// What to do. A transfer is as long as its buffers.
    pub operation: Operation,
    /// Guest memory to fill or to write. Operations that carry no data leave it alone and bring it back.
    pub buffers: Buffers,
}

/// Why a request failed, in terms of the guest that made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiskError {
    /// It does not lie wholly inside the disk.
    #[error("beyond the end of the disk")]
    OutOfRange,
    /// It is not a whole number of logical blocks, or does not start on one.
    #[error("not in whole blocks of the disk")]
    Unaligned,
    /// It is longer than the disk's limit for such a request.
    #[error("longer than the disk's limit")]
    TooLong,
    /// It would change a disk that may only be read.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The disk cannot read or write this place.
    #[error("the medium failed")]
    Media,
    /// There is no room on the storage behind the disk.
    #[error("no space left behind the disk")]
    NoSpace,
    /// The disk has been removed or has stopped answering for good.
    #[error("the disk is gone")]
    Gone,
    /// The disk did not answer in time.
    #[error("the disk did not answer in time")]
    TimedOut,
    /// The IOMMU, or whatever else lies between disk and memory, did not let the data through.
    #[error("the disk's access to the guest's memory was blocked")]
    DmaBlocked,
    /// The disk does not know this operation.
    #[error("the disk cannot do this")]
    Unsupported,
    /// It was cancelled ([`crate::DiskQueue::cancel`]) before it was done; what it would have changed may or may not
    /// have changed.
    #[error("cancelled")]
    Cancelled,
    /// As many requests as the queue was prepared for are under way already.
    #[error("the queue is full")]
    QueueFull,
    /// Anything else: the kernel's error number.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Other(i32),
}

impl DiskError {
    /// The kind behind an error number of the kernel. The block layer's own meanings decide: ENODATA is a
    /// medium error, EIO anything the disk failed at.
    pub fn from_errno(errno: i32) -> DiskError {
        match errno {
            libc::EIO | libc::ENODATA | libc::EILSEQ | libc::EREMOTEIO => DiskError::Media,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => DiskError::NoSpace,
            libc::ENODEV | libc::ENXIO | libc::ENOLINK | libc::ESHUTDOWN | libc::ENOMEDIUM
            // A server's, when it or the way to it has gone.
            | libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN | libc::ESTALE => DiskError::Gone,
            libc::ETIMEDOUT | libc::ETIME => DiskError::TimedOut,
            libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS => DiskError::Unsupported,
            libc::EROFS | libc::EPERM => DiskError::ReadOnly,
            libc::ECANCELED => DiskError::Cancelled,
            other => DiskError::Other(other),
        }
    }

    /// The kind in a word, for programs.
    pub fn kind(self) -> &'static str {
        match self {
            DiskError::OutOfRange => "out-of-range",
            DiskError::Unaligned => "unaligned",
            DiskError::TooLong => "too-long",
            DiskError::ReadOnly => "read-only",
            DiskError::Media => "media",
            DiskError::NoSpace => "no-space",
            DiskError::Gone => "gone",
            DiskError::TimedOut => "timed-out",
            DiskError::DmaBlocked => "dma-blocked",
            DiskError::Unsupported => "unsupported",
            DiskError::Cancelled => "cancelled",
            DiskError::QueueFull => "queue-full",
            DiskError::Other(_) => "other",
        }
    }

    /// What a person can do about it, in a sentence.
    pub fn hint(self) -> &'static str {
        match self {
            DiskError::OutOfRange => {
                "It has become smaller than the guest knows it: make it as large as it was."
            }
            DiskError::ReadOnly => {
                "It takes no writes any more: see in the kernel's log (dmesg) whether its file system or device was \
                 made read-only after an error."
            }
            DiskError::Media => {
                "The kernel's log (dmesg) says more; look after the disk with smartctl or nvme smart-log."
            }
            DiskError::NoSpace => {
                "Make room on the file system or pool that holds its data, or raise the quota there."
            }
            DiskError::Gone => {
                "Look after its cable, controller or server. A disk that comes back under another name needs a new start \
                 of the VM."
            }
            DiskError::TimedOut => {
                "It hangs, or whatever leads to it is overloaded: the kernel's log (dmesg) says more."
            }
            DiskError::DmaBlocked => {
                "`skep dma` shows what its controller may reach, `skep events` what it tried."
            }
            DiskError::Unsupported
            | DiskError::Unaligned
            | DiskError::TooLong
            | DiskError::Cancelled
            | DiskError::QueueFull => "Nothing needs to be done: the guest deals with it.",
            DiskError::Other(_) => "The kernel's log (dmesg) may say more.",
        }
    }
}

/// The one place where requests are checked, before any back end sees them.
/// `capacity` is the disk's present one, which may differ from the one it had when it was opened.
pub(crate) fn check(
    geometry: &Geometry,
    capacity: Sectors,
    operation: Operation,
    bytes: u64,
) -> Result<(), DiskError> {
    if operation.changes_the_disk() && geometry.access == Access::ReadOnly {
        return Err(DiskError::ReadOnly);
    }
    match operation {
        Operation::Read { at } | Operation::Write { at, .. } => {
            if bytes == 0 || !bytes.is_multiple_of(Sectors::SIZE) {
                return Err(DiskError::Unaligned);
            }
            inside(geometry, capacity, SectorRange { start: at, count: Sectors::in_bytes(bytes) })
        }
        Operation::Flush => Ok(()),
        Operation::Discard(range) => {
            let limits = geometry.discard.ok_or(DiskError::Unsupported)?;
            within_limit(range, limits.max)?;
            inside(geometry, capacity, range)
        }
        Operation::WriteZeroes(range, _) => {
            let limits = geometry.write_zeroes.ok_or(DiskError::Unsupported)?;
            within_limit(range, limits.max)?;
            inside(geometry, capacity, range)
        }
    }
}

fn within_limit(range: SectorRange, max: Sectors) -> Result<(), DiskError> {
    if range.count > max { Err(DiskError::TooLong) } else { Ok(()) }
}

fn inside(geometry: &Geometry, capacity: Sectors, range: SectorRange) -> Result<(), DiskError> {
    let block = u64::from(geometry.logical_block) / Sectors::SIZE;
    if range.count.0 == 0 || !range.start.0.is_multiple_of(block) || !range.count.0.is_multiple_of(block) {
        return Err(DiskError::Unaligned);
    }
    match range.end() {
        Some(end) if end <= capacity => Ok(()),
        _ => Err(DiskError::OutOfRange),
    }
}

/// What lies from byte `from` to byte `end` of the pieces.
pub(crate) fn cut(pieces: &[libc::iovec], from: u64, end: u64, into: &mut Vec<libc::iovec>) {
    into.clear();
    let mut at = 0;
    for piece in pieces {
        let len = piece.iov_len as u64;
        let (first, last) = (from.clamp(at, at + len) - at, end.clamp(at, at + len) - at);
        if first < last {
            let iov_base = piece.iov_base.cast::<u8>().wrapping_add(first as usize).cast();
            into.push(libc::iovec { iov_base, iov_len: (last - first) as usize });
        }
        at += len;
    }
}

#[cfg(test)]
mod tests {
    use super::super::geometry::{AfterDiscard, Discard, WriteCache, WriteZeroes};
    use super::*;
    use proptest::prelude::*;

    fn disk(capacity: u64, logical_block: u32) -> Geometry {
        Geometry {
            capacity: Sectors(capacity),
            logical_block,
            physical_block: logical_block,
            alignment_offset: 0,
            minimum_io: logical_block,
            optimal_io: 0,
            access: Access::ReadWrite,
            write_cache: WriteCache::WriteBack,
            fua: false,
            rotational: false,
            discard: Some(Discard { max: Sectors(64), granularity: 4096, after: AfterDiscard::Unspecified }),
            write_zeroes: Some(WriteZeroes { max: Sectors(64) }),
            model: None,
            serial: None,
        }
    }

    fn check(geometry: &Geometry, operation: Operation, bytes: u64) -> Result<(), DiskError> {
        super::check(geometry, geometry.capacity, operation, bytes)
    }

    fn read(at: u64) -> Operation {
        Operation::Read { at: Sectors(at) }
    }

    #[test]
    fn the_last_block_is_inside_and_the_next_is_not() {
        let disk = disk(80, 4096);
        assert_eq!(check(&disk, read(72), 4096), Ok(()));
        assert_eq!(check(&disk, read(80), 4096), Err(DiskError::OutOfRange));
        assert_eq!(check(&disk, read(72), 8192), Err(DiskError::OutOfRange));
        assert_eq!(check(&disk, read(u64::MAX - 7), 4096), Err(DiskError::OutOfRange));
        assert_eq!(check(&disk, read(72), 512), Err(DiskError::Unaligned));
        assert_eq!(check(&disk, read(1), 4096), Err(DiskError::Unaligned));
        assert_eq!(check(&disk, read(0), 0), Err(DiskError::Unaligned));
        assert_eq!(check(&disk, read(0), 4097), Err(DiskError::Unaligned));
    }

    #[test]
    fn a_read_only_disk_refuses_every_change_and_nothing_else() {
        let disk = Geometry { access: Access::ReadOnly, ..disk(80, 512) };
        let range = SectorRange { start: Sectors(0), count: Sectors(8) };
        let write = Operation::Write { at: Sectors(0), durability: Durability::Cached };
        for change in [write, Operation::Discard(range), Operation::WriteZeroes(range, Unmap::Allowed)] {
            assert_eq!(check(&disk, change, 512), Err(DiskError::ReadOnly));
        }
        assert_eq!(check(&disk, read(0), 512), Ok(()));
        assert_eq!(check(&disk, Operation::Flush, 0), Ok(()));
    }

    #[test]
    fn a_range_longer_than_the_limit_or_without_support_is_refused() {
        let range = |count| SectorRange { start: Sectors(0), count: Sectors(count) };
        assert_eq!(check(&disk(800, 512), Operation::Discard(range(64)), 0), Ok(()));
        assert_eq!(check(&disk(800, 512), Operation::Discard(range(65)), 0), Err(DiskError::TooLong));
        let without = Geometry { discard: None, write_zeroes: None, ..disk(800, 512) };
        assert_eq!(check(&without, Operation::Discard(range(1)), 0), Err(DiskError::Unsupported));
        let zeroes = Operation::WriteZeroes(range(1), Unmap::Allowed);
        assert_eq!(check(&without, zeroes, 0), Err(DiskError::Unsupported));
    }

    proptest! {
        #[test]
        fn whatever_passes_lies_inside(at: u64, bytes in 0u64..1 << 33, capacity in 0u64..1 << 40) {
            let geometry = disk(capacity, 512);
            if check(&geometry, read(at), bytes).is_ok() {
                prop_assert!(u128::from(at) * 512 + u128::from(bytes) <= u128::from(capacity) * 512);
            }
        }
    }
}
