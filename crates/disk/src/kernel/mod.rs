//! Block devices and raw files, through the host's kernel: direct I/O by io_uring on guest memory itself.

mod blocking;
mod bounce;
mod discards;
mod facts;
mod lock;
mod open;
#[cfg(test)]
pub(crate) mod recorder;
mod ring;
mod route;
mod scratch;
mod slot;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

pub(crate) use blocking::{PastEnd, Transfer, fill_with_zeroes, kind_of};
pub(crate) use bounce::BounceRoom;
pub(crate) use discards::DiscardsByThreads;
pub use open::OpenError;
pub(crate) use open::{FileOptions, Named, Opened, first_bytes, open};
pub(crate) use ring::Ring;
use route::Route;
pub(crate) use scratch::Scratch;
pub(crate) use slot::cut;

use crate::backend::{Backend, Engine};
use crate::counters::{Bounced, QueueCounters};
use crate::disk::QueueError;
use crate::geometry::{Access, Geometry, Sectors, WriteCache};
use crate::registered::BufferTable;
use crate::request::DiskError;
use crate::spin::Poll;

/// Whether data is copied on its way between guest RAM and disk.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Bounce {
    /// Only where the disk cannot take the guest's memory as it is.
    #[default]
    WhenNeeded,
    /// Always: to compare, or to rule direct I/O out as the cause of a fault.
    Always,
}

/// What lies behind the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    BlockDevice,
    File,
}

/// Which memory the kernel takes for direct I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Alignment {
    /// Every piece starts at a multiple of this many bytes, a power of two.
    pub(crate) address: u32,
    /// Every piece is a multiple of this many bytes long, a power of two.
    pub(crate) length: u32,
}

/// When and why data is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CopyPolicy {
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
    kind: Kind,
    copies: CopyPolicy,
    /// Longest transfer in bytes that the device takes at once, whatever memory it comes from.
    longest: u64,
    /// Somebody else than a flush was told that what was written did not get to stable storage.
    untold: AtomicBool,
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
}

impl Handle {
    /// What an error really is. A device that was removed lives on without sectors as long as it is open, and the kernel
    /// answers as if requests were behind its end: nothing to read, no space to write.
    pub(crate) fn kind_of(&self, error: DiskError) -> DiskError {
        let misleading = matches!(error, DiskError::OutOfRange | DiskError::NoSpace | DiskError::Media);
        let gone = || self.kind == Kind::BlockDevice && !matches!(self.bytes(), Ok(1..));
        if misleading && gone() { DiskError::Gone } else { error }
    }
}

/// A block device or raw file as it is, by io_uring.
pub(crate) struct KernelDisk {
    name: Arc<str>,
    handle: Arc<Handle>,
    geometry: Geometry,
    poll: Poll,
    buffers: OnceLock<Arc<BufferTable>>,
    bounces: Arc<BounceRoom>,
}

impl KernelDisk {
    pub(crate) fn new(name: Arc<str>, handle: Arc<Handle>, geometry: Geometry, poll: Poll) -> KernelDisk {
        KernelDisk { name, handle, geometry, poll, buffers: OnceLock::new(), bounces: Arc::default() }
    }
}

impl Backend for KernelDisk {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn capacity(&self) -> io::Result<Sectors> {
        self.handle.capacity(self.geometry.logical_block)
    }

    fn poll(&self) -> Poll {
        self.poll
    }

    fn flush_can_be_repeated(&self) -> bool {
        self.handle.flush_can_be_repeated()
    }

    fn has_rings(&self) -> bool {
        true
    }

    fn use_buffers(&self, table: &Arc<BufferTable>) -> bool {
        self.buffers.set(table.clone()).is_ok()
    }

    fn engine(&self, depth: u16, counters: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        let (buffers, bounces) = (self.buffers.get().cloned(), self.bounces.clone());
        match Ring::new(vec![self.handle.clone()], depth, counters, buffers, bounces) {
            Ok(ring) => Ok(Box::new(ring)),
            Err(cause) => Err(QueueError { disk: self.name.clone(), depth, hint: hint_after(&cause), cause }),
        }
    }
}

/// A disk of the host's kernel in memory: a file that is in no folder.
pub(crate) fn in_memory(size: Sectors) -> io::Result<(Arc<Handle>, Geometry)> {
    // SAFETY: a constant name that ends in zero; a new descriptor is returned, which nobody else has.
    let file = unsafe {
        let fd = libc::memfd_create(c"skep-disk".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(size.bytes().ok_or(io::ErrorKind::FileTooLarge)?)?;
    let (mut geometry, _) = facts::read(&file, Kind::File, Access::ReadWrite).map_err(|(_, cause)| cause)?;
    // There is no storage that anything could be brought to, so there is nothing to be lost before that either.
    geometry.write_cache = WriteCache::WriteThrough;
    geometry.logical_block = Sectors::SIZE as u32;
    let handle = Handle {
        file,
        kind: Kind::File,
        copies: CopyPolicy::InPageCache,
        longest: u64::MAX,
        untold: AtomicBool::default(),
    };
    Ok((Arc::new(handle), geometry))
}

/// A temporary file of our own, and what a person should know of it.
pub(crate) fn temporary(
    file: File,
    name: &Path,
    bounce: Bounce,
) -> io::Result<(Arc<Handle>, Option<String>)> {
    let (geometry, alignment) =
        facts::read(&file, Kind::File, Access::ReadWrite).map_err(|(_, cause)| cause)?;
    let longest = facts::longest_transfer(&file, Kind::File, geometry.logical_block);
    let route = if set_direct(&file).is_ok() { Route::Direct } else { Route::DirectRefused };
    let remark = route.remark(&file, name, Access::ReadWrite, bounce);
    let copies = route.copies(bounce, alignment);
    Ok((Arc::new(Handle { file, kind: Kind::File, copies, longest, untold: AtomicBool::default() }), remark))
}

/// Goes past the page cache from now on, if the file system can.
fn set_direct(file: &File) -> io::Result<()> {
    // SAFETY: our own descriptor; no memory is involved.
    let status = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT)
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether this process may use io_uring; if not, why.
pub(crate) fn ring_is_refused() -> Option<io::Error> {
    let refused = io_uring::IoUring::new(2).err()?;
    matches!(refused.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)).then_some(refused)
}

/// What a person can do when the kernel makes no ring.
pub(crate) fn hint_after(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "Without io_uring, which is forbidden here, disks are slower: set the sysctl kernel.io_uring_disabled to 0, or allow io_uring in the container's seccomp profile."
        }
        Some(libc::ENOSYS) => {
            "Without io_uring, which this kernel does not have (skep wants Linux 6.1 or later) or a container's seccomp profile hides, disks are slower: allow io_uring there."
        }
        Some(libc::ENOMEM) => "Raise the limit of locked memory (ulimit -l), or use fewer or shorter queues.",
        Some(libc::EMFILE | libc::ENFILE) => "Raise the limit of open files (ulimit -n).",
        _ => "Use fewer or shorter queues (`queues`).",
    }
}

impl CopyPolicy {
    /// Whether the kernel takes these pieces as they are, or why they have to be copied.
    fn for_pieces(self, pieces: &[libc::iovec]) -> Option<Bounced> {
        match self {
            CopyPolicy::Unless(alignment) if alignment.allows(pieces) => None,
            CopyPolicy::Unless(_) => Some(Bounced::Alignment),
            CopyPolicy::Always(_) => Some(Bounced::Asked),
            CopyPolicy::InPageCache => Some(Bounced::PageCache),
        }
    }
}

impl Alignment {
    fn allows(self, pieces: &[libc::iovec]) -> bool {
        // Bits that must be 0: there is a division less for each piece.
        let (address, length) = (self.address as usize - 1, self.length as usize - 1);
        pieces.iter().all(|piece| piece.iov_base as usize & address == 0 && piece.iov_len & length == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_io_uring_is_forbidden_or_absent_the_error_says_so_and_how_to_allow_it() {
        let message = |errno| {
            let cause = io::Error::from_raw_os_error(errno);
            let hint = hint_after(&cause);
            QueueError { disk: "/dev/sdb".into(), depth: 256, cause, hint }.to_string()
        };
        let forbidden = message(libc::EPERM);
        assert!(forbidden.starts_with("disk /dev/sdb: cannot make a queue for 256 requests: Operation not"));
        assert!(forbidden.contains("io_uring, which is forbidden"), "{forbidden}");
        assert!(forbidden.contains("sysctl kernel.io_uring_disabled to 0"), "{forbidden}");
        let absent = message(libc::ENOSYS);
        assert!(absent.contains("io_uring") && absent.contains("Linux 6.1"), "{absent}");
        assert!(absent.contains("seccomp"), "{absent}");
    }
}
