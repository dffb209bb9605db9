//! An open block device or raw file.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;

use super::facts::{self, Alignment, Kind};
use crate::contract::{Bounced, DiskError, Sectors};

/// When and why data is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CopyPolicy {
    /// Direct I/O on memory that is aligned like this; other memory is bounced.
    Unless(Alignment),
    /// Everything is bounced into memory that is aligned like this, because the user asked for it.
    Always(Alignment),
    /// The kernel copies through its page cache; nothing to do here but to count.
    InPageCache,
}

/// An open block device or raw file.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) file: File,
    pub(super) kind: Kind,
    pub(super) copies: CopyPolicy,
    /// Longest transfer in bytes that the device takes at once, whatever memory it comes from.
    pub(super) longest: u64,
    /// Somebody else than a flush was told that what was written did not get to stable storage.
    pub(super) untold: AtomicBool,
}

impl Handle {
    /// The alignment of direct I/O; `None` where there is none.
    pub(crate) fn alignment(&self) -> Option<Alignment> {
        match self.copies {
            CopyPolicy::Unless(alignment) | CopyPolicy::Always(alignment) => Some(alignment),
            CopyPolicy::InPageCache => None,
        }
    }

    /// Whether a flush that failed tells the truth when it is tried again. Of what is in its page cache the kernel
    /// tells once that it could not be written, and forgets it then.
    pub(crate) fn flush_can_be_repeated(&self) -> bool {
        self.copies != CopyPolicy::InPageCache
    }

    /// The size of the device or file in bytes, now.
    pub(crate) fn bytes(&self) -> io::Result<u64> {
        facts::bytes(&self.file, self.kind)
    }

    /// The size of the device or file now, in whole blocks of `logical_block` bytes.
    pub(crate) fn capacity(&self, logical_block: u32) -> io::Result<Sectors> {
        let bytes = self.bytes()?;
        if self.kind == Kind::BlockDevice && bytes == 0 {
            // Gone, which is not another size.
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        Ok(Sectors::in_bytes(bytes - bytes % u64::from(logical_block)))
    }

    /// What an error really is. A device that was removed lives on without sectors as long as it is open, and the kernel
    /// answers as if requests were behind its end: nothing to read, no space to write.
    pub(crate) fn kind_of(&self, error: DiskError) -> DiskError {
        let misleading = matches!(error, DiskError::OutOfRange | DiskError::NoSpace | DiskError::Media);
        let gone = || self.kind == Kind::BlockDevice && !matches!(self.bytes(), Ok(1..));
        if misleading && gone() { DiskError::Gone } else { error }
    }
}

impl CopyPolicy {
    /// Whether the kernel takes these pieces as they are, or why they have to be copied.
    pub(super) fn for_pieces(self, pieces: &[libc::iovec]) -> Option<Bounced> {
        match self {
            CopyPolicy::Unless(alignment) if alignment.allows(pieces) => None,
            CopyPolicy::Unless(_) => Some(Bounced::Alignment),
            CopyPolicy::Always(_) => Some(Bounced::Asked),
            CopyPolicy::InPageCache => Some(Bounced::PageCache),
        }
    }
}
