//! Which disk to open, and how.

mod error;
mod hints;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use crate::contract::{Access, Poll, Sectors};
use crate::nbd::NbdUrl;
pub use error::{OpenError, Role, Written};

/// Where a disk's data is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A block device or an image file.
    Path(PathBuf),
    /// Memory of the host, empty at first and gone with the disk.
    Memory(Sectors),
    /// A server that speaks the network block device protocol.
    Nbd(NbdUrl),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Path(path) => write!(f, "{}", path.display()),
            Source::Memory(size) => write!(f, "ram:{} MiB", size.0 >> 11),
            Source::Nbd(url) => url.fmt(f),
        }
    }
}

/// How an image keeps a disk's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// As it is.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
    /// VMware's format, flat extents only; for reading.
    Vmdk,
}

impl Format {
    /// As it is written in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no format.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is no format of images. Use raw, qcow2 or vmdk.")]
pub struct UnknownFormat {
    /// The word.
    pub text: String,
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Format, UnknownFormat> {
        [Format::Raw, Format::Qcow2, Format::Vmdk]
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| UnknownFormat { text: text.to_owned() })
    }
}

/// What becomes of the guest's writes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Changes {
    /// They change the disk.
    #[default]
    Kept,
    /// They go to a temporary file and are gone with the disk, which itself is only read (`snapshot=on`).
    ThrownAway,
}

/// Whether data is copied on its way between guest RAM and disk.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Bounce {
    /// Only where the disk cannot take the guest's memory as it is.
    #[default]
    WhenNeeded,
    /// Always: to compare, or to rule direct I/O out as the cause of a fault.
    Always,
}

/// When a raw file gets its room on the host's file system.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Allocation {
    /// When the guest writes.
    #[default]
    AsWritten,
    /// All of it when the disk is opened, so that there is none to run out of later.
    AtOnce,
}

/// What to do when somebody else uses the disk.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Claim {
    /// Refuse it, with who it is.
    #[default]
    Exclusive,
    /// Take it all the same (`force=on`), also an image of which a part is missing; [`crate::Disk::remarks`] says who else
    /// uses it and what is missing.
    Forced,
}

/// Files that may be opened because an image names them (`chain=`): as what it stands on, or as the place of its data.
/// No other file is, whatever the image says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// Files, but no devices and no links, in the folder of the image that names them (`chain=follow`).
    SameFolder,
    /// This file or device.
    File(PathBuf),
}

/// Which disk to open, and how.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Where its data is.
    pub source: Source,
    /// How a file keeps the data. `None` is raw, unless the file looks like something else, which is then refused:
    /// it is never guessed.
    pub format: Option<Format>,
    /// Which files an image may lead to.
    pub chain: Vec<Allowed>,
    /// Whether the VM may change it.
    pub access: Access,
    /// What becomes of the changes.
    pub changes: Changes,
    /// Whether data is copied on its way even where that is not needed.
    pub bounce: Bounce,
    /// When a raw file gets its room.
    pub allocation: Allocation,
    /// What to do when it is in use.
    pub claim: Claim,
    /// Whether its queues look for what comes before they sleep, where looking enters no kernel: behind io_uring.
    pub poll: Poll,
    /// Bytes of the blocks that the guest is to see, where these are smaller than the disk's; `None` for the
    /// disk's own. Whatever is not whole blocks of the disk is copied.
    pub logical_block: Option<u32>,
}

impl DiskOptions {
    /// A block device or raw file: reads and writes, no copies.
    pub fn new(path: impl Into<PathBuf>) -> DiskOptions {
        DiskOptions::over(Source::Path(path.into()))
    }

    /// Any disk: reads and writes, no copies.
    pub fn over(source: Source) -> DiskOptions {
        DiskOptions {
            source,
            format: None,
            chain: Vec::new(),
            access: Access::ReadWrite,
            changes: Changes::default(),
            bounce: Bounce::default(),
            allocation: Allocation::default(),
            claim: Claim::default(),
            poll: Poll::default(),
            logical_block: None,
        }
    }

    /// The same, for reading only.
    pub fn read_only(self) -> DiskOptions {
        DiskOptions { access: Access::ReadOnly, ..self }
    }

    /// The same, of a given format.
    pub fn format(self, format: Format) -> DiskOptions {
        DiskOptions { format: Some(format), ..self }
    }

    /// The same, where an image may lead to these files, too.
    pub fn chain(self, chain: impl IntoIterator<Item = Allowed>) -> DiskOptions {
        DiskOptions { chain: chain.into_iter().collect(), ..self }
    }

    /// The same, whose changes are thrown away.
    pub fn throw_away(self) -> DiskOptions {
        DiskOptions { changes: Changes::ThrownAway, ..self }
    }
    /// The error for what does not go with this disk.
    pub(crate) fn unfit(&self, asked: &str) -> OpenError {
        OpenError::Options {
            disk: self.source.to_string(),
            what: format!("it cannot have {asked}"),
            hint: "Leave it out.",
        }
    }

    /// The error for what the kernel refuses.
    pub(crate) fn failed(&self, cause: io::Error) -> OpenError {
        OpenError::Failed { path: self.source.to_string().into(), cause }
    }
}
