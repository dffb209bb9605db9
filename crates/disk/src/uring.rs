//! io_uring itself: whether it may be used, and what to do where it may not.

use std::io;

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
