//! Facts about this host, and binding its devices for a guest and back.
//!
//! Everything is read from sysfs and procfs below one root, `/`, or a scratch folder in tests. Facts
//! come with their evidence; a device is only taken when nothing on the host uses it, and what was taken is
//! given back as it was, also by a later process when the first one was killed.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod access;
mod address;
mod bind;
mod cdev;
mod cgroup;
mod disk;
mod disks;
mod group;
mod in_use;
mod iommu;
mod kernel;
mod openers;
mod pci;
mod reach;
mod record;
mod stuck;
mod taking;

#[cfg(test)]
mod fake;

pub use access::{may_make, may_write};
pub use address::{BadAddress, PciAddress};
pub use bind::{BindError, Bound};
pub use cgroup::OverLimit;
pub use disks::{Content, Controller, HostDisk, Partition, VfioController, serial_number};
pub use group::{IommuGroup, Member, NotViable};
pub use in_use::Reason;
pub use iommu::{Iommu, IommuKind, ReservedRegion};
pub use own::{Openers, OwnError, OwnFolder, own_user};
pub use pci::{HostError, PciDevice};
pub use reach::{Reach, Unreachable, Why};
pub use record::Leftover;
pub use taking::HostBar;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kernel::{Kernel, RealKernel};

/// The host whose facts are read and whose devices are bound.
#[derive(Clone)]
pub struct Host {
    root: PathBuf,
    kernel: Arc<dyn Kernel>,
}

impl Host {
    /// This machine.
    pub fn here() -> Host {
        Host::at("/")
    }

    /// A host whose `/sys`, `/proc`, `/dev` and `/run` lie below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Host {
        Host { root: root.into(), kernel: Arc::new(RealKernel) }
    }

    /// The place of an absolute path below the root.
    fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.root.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    /// The sysfs folder of a PCI function.
    fn device_dir(&self, address: PciAddress) -> PathBuf {
        self.path("/sys/bus/pci/devices").join(address.to_string())
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Host({})", self.root.display())
    }
}

/// The whole of a small file without white space around it, or `None` when it is not there or not readable:
/// for attributes whose absence is itself the fact.
fn attribute(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The last part of where a symbolic link leads.
fn link_name(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// The names in a folder, sorted; none when it is not there.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
