//! The model: what a VM is.

use std::fmt;
use std::ops::Deref;
use std::path::{Component, PathBuf};
use std::str::FromStr;

use crate::values::address::PciAddress;
use crate::values::count::{Cpus, Queues};
use crate::values::name::VmName;
use crate::values::path::{HostPath, SocketPath};
use crate::values::size::MemorySize;
use crate::values::text::{Cmdline, Serial};
use crate::values::{Invalid, Repeated};

/// A VM's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// What the VM is called.
    pub name: VmName,
    /// How many vCPUs it has.
    pub cpus: Cpus,
    /// How much RAM it has.
    pub memory: MemorySize,
    /// What it boots.
    pub boot: Boot,
    /// Its disks, in the order in which the guest finds them.
    pub disks: Distinct<Disk>,
    /// The PCI functions of the host that it gets for itself, in the order in which the guest finds them.
    pub assigned: Distinct<Assign>,
    /// Where its serial console goes.
    pub console: Console,
}

/// What a VM boots: a Linux kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// The kernel: an ELF file with a PVH entry, or a bzImage.
    pub kernel: HostPath,
    /// The initial RAM disk, if any.
    pub initrd: Option<HostPath>,
    /// The kernel's command line.
    pub cmdline: Cmdline,
}

/// A disk of the guest and what holds its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The block device of the host (or file) that holds the data.
    pub path: HostPath,
    /// What the guest sees.
    pub model: DiskModel,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// How many queues it has; `None` for one per vCPU.
    pub queues: Option<Queues>,
    /// The serial number that the guest sees; `None` for that of the device.
    pub serial: Option<Serial>,
}

/// What kind of disk the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DiskModel {
    /// virtio block device, `virtio-blk`.
    #[default]
    VirtioBlk,
}

impl DiskModel {
    /// The names of all models.
    pub const NAMES: &[&str] = &["virtio-blk"];

    /// The model's name in flags and TOML.
    pub fn name(self) -> &'static str {
        match self {
            DiskModel::VirtioBlk => "virtio-blk",
        }
    }
}

impl FromStr for DiskModel {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<DiskModel, Invalid> {
        match text {
            "virtio-blk" => Ok(DiskModel::VirtioBlk),
            _ => Err(Invalid::DiskModel { text: text.into() }),
        }
    }
}

/// A PCI function of the host that the guest gets for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assign {
    /// Its address on the host.
    pub address: PciAddress,
}

/// Where a VM's serial console goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Console {
    /// To this process's standard input and output: `stdio`.
    #[default]
    Stdio,
    /// Output to a file, no input: `file:PATH`.
    File(HostPath),
    /// To whoever connects to a Unix socket: `socket:PATH`.
    Socket(SocketPath),
}

impl FromStr for Console {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Console, Invalid> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(Console::Stdio),
            Some(("file", path)) => Ok(Console::File(path.parse()?)),
            Some(("socket", path)) => Ok(Console::Socket(path.parse()?)),
            _ => Err(Invalid::Console { text: text.into() }),
        }
    }
}

/// As it is written in flags and TOML.
impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Console::Stdio => f.write_str("stdio"),
            Console::File(path) => write!(f, "file:{path}"),
            Console::Socket(path) => write!(f, "socket:{path}"),
        }
    }
}

/// Something of which a VM may have several, but each only once.
pub trait Identified {
    /// What makes it the same thing as another one, in words: "disk /dev/sda".
    fn identity(&self) -> String;
}

impl Identified for Disk {
    fn identity(&self) -> String {
        // a//b and ./a/./b are a/b. Whether two names lead to the same device is found when it is opened.
        let parts = self.path.as_path().components().filter(|part| *part != Component::CurDir);
        let path: PathBuf = parts.collect();
        format!("disk {}", path.display())
    }
}

impl Identified for Assign {
    fn identity(&self) -> String {
        format!("PCI device {}", self.address)
    }
}

/// A list in which nothing is twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distinct<T>(Vec<T>);

impl<T> Default for Distinct<T> {
    fn default() -> Distinct<T> {
        Distinct(Vec::new())
    }
}

impl<T: Identified> TryFrom<Vec<T>> for Distinct<T> {
    type Error = Repeated;

    fn try_from(items: Vec<T>) -> Result<Distinct<T>, Repeated> {
        let mut seen = std::collections::HashSet::new();
        match items.iter().map(T::identity).find(|identity| !seen.insert(identity.clone())) {
            Some(what) => Err(Repeated { what }),
            None => Ok(Distinct(items)),
        }
    }
}

impl<T> Deref for Distinct<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'a, T> IntoIterator for &'a Distinct<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_reads_as_it_prints() {
        for text in ["stdio", "file:/tmp/a", "socket:/run/vm,1:2"] {
            assert_eq!(text.parse::<Console>().unwrap().to_string(), text);
        }
        for bad in ["", "stdi", "stdio:", "file", "file:", "socket:", "pty"] {
            assert!(bad.parse::<Console>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_list_that_repeats_an_entry_cannot_be_made() {
        let assign = |text: &str| Assign { address: text.parse().unwrap() };
        assert!(Distinct::try_from(vec![assign("01:00.0"), assign("01:00.1")]).is_ok());
        let error = Distinct::try_from(vec![assign("01:00.0"), assign("0000:01:00.0")]).unwrap_err();
        assert!(error.to_string().contains("PCI device 0000:01:00.0"), "{error}");
    }

    #[test]
    fn every_disk_model_reads_as_it_prints() {
        for name in DiskModel::NAMES {
            assert_eq!(name.parse::<DiskModel>().unwrap().name(), *name);
        }
    }
}
