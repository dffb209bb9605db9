//! How to open one file or device.

use std::path::{Path, PathBuf};

use crate::contract::Access;
use crate::options::{Allocation, Bounce, Claim, DiskOptions};

/// At whose word a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Named {
    /// The user has given this path; it may lead anywhere, and be a device.
    ByTheUser,
    /// An image has this name in it: it must be a file, and no link to one.
    ByAnImage,
}

/// How to open one file or device.
#[derive(Clone, Debug)]
pub(crate) struct FileOptions {
    pub(crate) path: PathBuf,
    pub(crate) named: Named,
    pub(crate) access: Access,
    pub(crate) bounce: Bounce,
    pub(crate) allocation: Allocation,
    pub(crate) claim: Claim,
    /// Whether to go past the host's page cache where that is possible.
    pub(crate) direct: bool,
}

impl FileOptions {
    pub(crate) fn new(path: &Path, options: &DiskOptions) -> FileOptions {
        FileOptions {
            path: path.to_owned(),
            named: Named::ByTheUser,
            access: options.access,
            bounce: options.bounce,
            allocation: options.allocation,
            claim: options.claim,
            direct: true,
        }
    }

    /// Access for what only lies below the guest's changes.
    pub(crate) fn below(&self) -> FileOptions {
        FileOptions { access: Access::ReadOnly, allocation: Allocation::AsWritten, ..self.clone() }
    }
}
