//! Why guest RAM cannot be registered.

use std::io;
use std::time::Duration;

use super::table;

/// A ring whose thread does not follow a change within this time is stuck.
pub(super) const FOLLOW_LIMIT: Duration = Duration::from_secs(2);

/// Why guest RAM cannot be registered.
#[derive(Debug, thiserror::Error)]
pub enum BufferTableError {
    /// The kernel makes no ring for it.
    #[error("cannot make a ring of io_uring to register guest RAM with: {cause}. {hint}")]
    Ring {
        /// The kernel's answer.
        #[source]
        cause: io::Error,
        /// What a person can do.
        hint: &'static str,
    },
    /// The kernel has no clones of tables.
    #[error(
        "this kernel cannot share registered buffers between the queues of disks: {0}. Use Linux 6.12 or later, or set `buffers` of the disks to plain."
    )]
    NoClones(#[source] io::Error),
    /// It did not take a part of RAM.
    #[error(
        "the kernel registers no {bytes} bytes of guest RAM at {at} with io_uring: {cause}. Raise the limit of locked memory (ulimit -l unlimited, or LimitMEMLOCK=infinity in a unit), or set `buffers` of the disks to plain."
    )]
    Refused {
        /// The first byte.
        at: memory::Gpa,
        /// How many bytes.
        bytes: u64,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// There is more RAM than a table has places for.
    #[error(
        "guest RAM is more than skep registers with io_uring: {} GiB. Set `buffers` of the disks to plain, or give the VM less `memory`.",
        (u64::from(table::PLACES) * table::LONGEST_BUFFER as u64) >> 30
    )]
    Full,
    /// A queue still uses RAM that is to go.
    #[error(
        "a disk's queue did not let go of guest RAM within {} s: its thread is stuck. Look into the kernel's log (dmesg) for a disk that does not answer.",
        FOLLOW_LIMIT.as_secs()
    )]
    Stuck,
}
