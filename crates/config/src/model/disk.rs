//! A disk of the guest.

use std::path::{Component, PathBuf};
use std::str::FromStr;

use super::distinct::Identified;
use super::words::words;
use crate::values::Invalid;
use crate::values::address::PciAddress;
use crate::values::count::{Namespace, Queues};
use crate::values::path::HostPath;
use crate::values::text::Serial;

/// A disk of the guest and what holds its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What holds the data.
    pub source: DiskSource,
    /// What the guest sees.
    pub model: DiskModel,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// How many queues it has; `None` for one per vCPU.
    pub queues: Option<Queues>,
    /// The serial number that the guest sees; `None` for that of the device.
    pub serial: Option<Serial>,
}

/// What holds a disk's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A block device of the host, driven by its kernel.
    Path(HostPath),
    /// A namespace of an NVMe controller that skep itself drives.
    Nvme {
        /// The controller's address on the host.
        address: PciAddress,
        /// Which of its namespaces.
        namespace: Namespace,
        /// How skep learns that a request is done.
        poll: Poll,
    },
}

words! {
    /// How skep learns that a controller has done a request.
    #[derive(Default)]
    pub enum Poll, "a way to poll" {
        /// By interrupt.
        Off = "off",
        /// By looking for a while, then by interrupt, as the load suggests.
        #[default]
        Adaptive = "adaptive",
        /// By looking all the time, which takes a CPU.
        On = "on",
    }
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

impl Identified for Disk {
    fn identity(&self) -> String {
        match &self.source {
            DiskSource::Path(path) => {
                // a//b and ./a/./b are a/b. Whether two names lead to the same device is found when it is opened.
                let parts = path.as_path().components().filter(|part| *part != Component::CurDir);
                let path: PathBuf = parts.collect();
                format!("disk {}", path.display())
            }
            DiskSource::Nvme { address, namespace, .. } => {
                format!("namespace {namespace} of NVMe controller {address}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_disk_model_reads_as_it_prints() {
        for name in DiskModel::NAMES {
            assert_eq!(name.parse::<DiskModel>().unwrap().name(), *name);
        }
    }

    #[test]
    fn an_nvme_disk_is_its_controller_and_namespace_however_it_is_polled() {
        let disk = |namespace: i64, poll| Disk {
            source: DiskSource::Nvme {
                address: "03:00.0".parse().unwrap(),
                namespace: namespace.try_into().unwrap(),
                poll,
            },
            model: DiskModel::VirtioBlk,
            readonly: false,
            queues: None,
            serial: None,
        };
        assert_eq!(disk(1, Poll::Off).identity(), disk(1, Poll::On).identity());
        assert_ne!(disk(1, Poll::Off).identity(), disk(2, Poll::Off).identity());
    }
}
