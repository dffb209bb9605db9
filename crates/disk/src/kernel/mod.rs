//! Block devices and raw files, through the host's kernel: direct I/O by io_uring on guest memory itself.

mod facts;
mod holders;
mod open;
mod ring;
mod slot;

use std::fs::File;
use std::io;
use std::sync::Arc;

pub use open::OpenError;

use crate::backend::{Backend, Engine};
use crate::counters::{Bounced, QueueCounters};
use crate::disk::{DiskOptions, QueueError};
use crate::geometry::Geometry;
use ring::Ring;

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
enum Kind {
    BlockDevice,
    File,
}

/// Which memory the kernel takes for direct I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Alignment {
    /// Every piece starts at a multiple of this many bytes.
    address: u32,
    /// Every piece is a multiple of this many bytes long.
    length: u32,
}

/// When and why data is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CopyPolicy {
    /// Direct I/O on memory that is aligned like this; other memory is bounced.
    Unless(Alignment),
    /// Everything is bounced, because the user asked for it.
    Always,
    /// The kernel copies through its page cache; nothing to do here but to count.
    InPageCache,
}

/// An open block device or raw file.
struct Handle {
    file: File,
    kind: Kind,
    copies: CopyPolicy,
    /// Longest transfer in bytes that the device takes at once, whatever memory it comes from.
    longest: u64,
}

pub(crate) struct KernelDisk {
    name: Arc<str>,
    handle: Arc<Handle>,
    geometry: Geometry,
}

impl KernelDisk {
    pub(crate) fn open(options: &DiskOptions) -> Result<KernelDisk, OpenError> {
        let opened = open::open(options)?;
        let copies = match (options.bounce, opened.alignment) {
            (_, None) => CopyPolicy::InPageCache,
            (Bounce::Always, Some(_)) => CopyPolicy::Always,
            (Bounce::WhenNeeded, Some(alignment)) => CopyPolicy::Unless(alignment),
        };
        Ok(KernelDisk {
            name: options.path.display().to_string().into(),
            handle: Arc::new(Handle {
                file: opened.file,
                kind: opened.kind,
                copies,
                longest: opened.longest,
            }),
            geometry: opened.geometry,
        })
    }
}

impl Backend for KernelDisk {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn engine(&self, depth: u16, counters: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        match Ring::new(self.handle.clone(), depth, counters) {
            Ok(ring) => Ok(Box::new(ring)),
            Err(cause) => Err(QueueError { disk: self.name.clone(), depth, hint: hint_after(&cause), cause }),
        }
    }
}

/// What a person can do when the kernel makes no ring. There is no other way to the disk than io_uring.
fn hint_after(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "Disks need io_uring, which is forbidden here: set the sysctl kernel.io_uring_disabled to 0, or allow io_uring in the container's seccomp profile."
        }
        Some(libc::ENOSYS) => {
            "Disks need io_uring, which this kernel does not have (skep needs Linux 6.1 or later) or a container's seccomp profile hides: allow io_uring there."
        }
        Some(libc::ENOMEM) => "Raise the limit of locked memory (ulimit -l), or use fewer or shorter queues.",
        Some(libc::EMFILE | libc::ENFILE) => "Raise the limit of open files (ulimit -n).",
        _ => "Use fewer or shorter queues (queues=1).",
    }
}

impl CopyPolicy {
    /// Whether the kernel takes these pieces as they are, or why they have to be copied.
    fn for_pieces(self, pieces: &[libc::iovec]) -> Option<Bounced> {
        match self {
            CopyPolicy::Unless(alignment) if alignment.allows(pieces) => None,
            CopyPolicy::Unless(_) => Some(Bounced::Alignment),
            CopyPolicy::Always => Some(Bounced::Asked),
            CopyPolicy::InPageCache => Some(Bounced::PageCache),
        }
    }
}

impl Alignment {
    fn allows(self, pieces: &[libc::iovec]) -> bool {
        pieces.iter().all(|piece| {
            (piece.iov_base as usize).is_multiple_of(self.address as usize)
                && piece.iov_len.is_multiple_of(self.length as usize)
        })
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
