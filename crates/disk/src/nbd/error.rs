//! Why a disk cannot be had from a server.

use std::io;

use super::url::NbdUrl;

/// What a person can do when a server lets nobody write.
pub(crate) const ONLY_READ: &str = "Use readonly=on.";

/// Why a disk cannot be had from a server.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// It could not be reached, or hung up.
    #[error(
        "disk {url}: cannot talk to the server: {cause}. Check that it runs, listens there, and can be reached."
    )]
    Connection {
        /// The disk.
        url: NbdUrl,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// It did not agree.
    #[error("disk {url}: the server does not give it: {what}. `nbdinfo --list` shows what a server offers.")]
    Protocol {
        /// The disk.
        url: NbdUrl,
        /// What happened.
        what: String,
    },
    /// It is only for reading.
    #[error("disk {url}: the server lets nobody write to it. {}", ONLY_READ)]
    ReadOnly {
        /// The disk.
        url: NbdUrl,
    },
    /// It is too small to be a disk.
    #[error(
        "disk {url}: the server says that it has {bytes} bytes, which is less than one block of {block}. Offer \
         another one."
    )]
    Size {
        /// The disk.
        url: NbdUrl,
        /// Its size.
        bytes: u64,
        /// Its block in bytes.
        block: u32,
    },
}
