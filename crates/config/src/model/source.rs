//! What holds a disk's data.

use std::fmt;
use std::path::{Component, PathBuf};
use std::str::FromStr;

use super::distinct::Identified;
use super::words::words;
use crate::values::Invalid;
use crate::values::address::PciAddress;
use crate::values::count::{LogicalBlock, Namespace};
use crate::values::nbd::NbdAddress;
use crate::values::path::HostPath;
use crate::values::size::DiskSize;

/// What holds a disk's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A block device or a file of the host, driven by its kernel: `path`.
    File(FileDisk),
    /// A namespace of an NVMe controller that skep itself drives: `nvme`.
    Nvme {
        /// The controller's address on the host.
        address: PciAddress,
        /// Which of its namespaces.
        namespace: Namespace,
        /// How skep learns that a request is done.
        poll: Poll,
    },
    /// A disk that a server offers by the NBD protocol: `nbd`.
    Nbd(NbdAddress),
    /// Memory of the host, empty at first and gone with the VM: `ram`.
    Ram(DiskSize),
}

/// A block device or a file of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDisk {
    /// Its path.
    pub path: HostPath,
    /// How the file keeps the data. `None` is raw, unless the file looks like an image, which is then refused: what
    /// it is, is never guessed.
    pub format: Option<Format>,
    /// Which files an image may lead to. Only of images.
    pub chain: Vec<Chain>,
    /// The blocks that the guest sees, where they are to be smaller than the disk's own. Only of raw disks whose
    /// changes are not thrown away.
    pub logical: Option<LogicalBlock>,
    /// Whether a raw file gets all its room on the host's file system at the start. Only of raw files that the guest
    /// may change.
    pub preallocate: bool,
    /// When data is copied on its way.
    pub bounce: Bounce,
    /// How the kernel gets at guest RAM for it; `None` is registered where all of RAM is present anyway (it is wired, or
    /// devices reach it), the kernel has it (Linux 6.12) and data is not copied always, and plain otherwise.
    pub buffers: Option<Buffers>,
    /// How skep learns that a request is done; `None` is by looking for a while where that is possible: behind io_uring,
    /// with raw disks whose blocks are what the guest sees and whose changes are kept.
    pub poll: Option<Poll>,
    /// Whether it is taken although somebody else uses it.
    pub force: bool,
}

impl FileDisk {
    /// A device or raw file, used as it is.
    pub fn new(path: HostPath) -> FileDisk {
        FileDisk {
            path,
            format: None,
            chain: Vec::new(),
            logical: None,
            preallocate: false,
            bounce: Bounce::default(),
            buffers: None,
            poll: None,
            force: false,
        }
    }
}

/// Files that may be opened because an image names them: as what it stands on, or as the place of its data. No other file
/// is, whatever the image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    /// Files in the folder of the image that names them, `follow`.
    Follow,
    /// This file or device.
    File(HostPath),
}

impl FromStr for Chain {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Chain, Invalid> {
        match text {
            "follow" => Ok(Chain::Follow),
            path => HostPath::unless_word(path, "no choice for chain", &["follow"]).map(Chain::File),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Chain::Follow => f.write_str("follow"),
            Chain::File(path) => path.fmt(f),
        }
    }
}

words! {
    /// How a file keeps a disk's data.
    pub enum Format, "a format of disk images" {
        /// As it is.
        Raw = "raw",
        /// QEMU's copy-on-write format.
        Qcow2 = "qcow2",
        /// VMware's format, which is only read.
        Vmdk = "vmdk",
    }
}

words! {
    /// When data is copied on its way between guest RAM and disk.
    #[derive(Default)]
    pub enum Bounce, "a choice for bounce" {
        /// Where the disk cannot take the guest's memory as it is.
        #[default]
        Needed = "needed",
        /// Always: to compare, or to rule direct I/O out as the cause of a fault.
        Always = "always",
    }
}

words! {
    /// How the kernel gets at guest RAM for a disk.
    pub enum Buffers, "a choice for buffers" {
        /// Pinned once, for the VM's life, which makes all of RAM present.
        Registered = "registered",
        /// Looked up and pinned for each request.
        Plain = "plain",
    }
}

words! {
    /// How skep learns that a disk has done a request, and a guest made one.
    #[derive(Default)]
    pub enum Poll, "a way to poll" {
        /// By being woken.
        Off = "off",
        /// By looking for a while, then by being woken, as the load suggests.
        #[default]
        Adaptive = "adaptive",
        /// By looking all the time, which takes a CPU.
        On = "on",
    }
}

impl Identified for DiskSource {
    fn identity(&self) -> Option<String> {
        match self {
            DiskSource::File(FileDisk { path, .. }) => {
                // a//b and ./a/./b are a/b. Whether two names lead to the same device is found when it is opened.
                let parts = path.as_path().components().filter(|part| *part != Component::CurDir);
                let path: PathBuf = parts.collect();
                Some(format!("disk {}", path.display()))
            }
            DiskSource::Nvme { address, namespace, .. } => {
                Some(format!("namespace {namespace} of NVMe controller {address}"))
            }
            DiskSource::Nbd(address) => Some(format!("disk {address}")),
            DiskSource::Ram(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_nvme_disk_is_its_controller_and_namespace_however_it_is_polled() {
        let disk = |namespace: i64, poll| DiskSource::Nvme {
            address: "03:00.0".parse().unwrap(),
            namespace: namespace.try_into().unwrap(),
            poll,
        };
        assert_eq!(disk(1, Poll::Off).identity(), disk(1, Poll::On).identity());
        assert_ne!(disk(1, Poll::Off).identity(), disk(2, Poll::Off).identity());
    }

    #[test]
    fn disks_in_memory_are_never_the_same() {
        assert_eq!(DiskSource::Ram("1G".parse().unwrap()).identity(), None);
    }
}
