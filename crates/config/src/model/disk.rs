//! A disk of the guest: what holds its data is in [`super::source`].

use super::distinct::Identified;
use super::source::DiskSource;
use super::words::words;
use crate::finding::Syntax;
use crate::values::count::{BootIndex, Queues};
use crate::values::name::ControllerName;
use crate::values::text::{Firmware, Product, Serial};

/// A disk of the guest and what holds its data.
///
/// Disks are equal when they are the same for the guest and for this host, however they were written.
#[derive(Debug, Clone, Eq)]
pub struct Disk {
    /// What holds the data.
    pub source: DiskSource,
    /// What the guest sees.
    pub model: DiskModel,
    /// The controller that it shares with the other disks that name it; `None` for an NVMe controller of its own, or the
    /// SATA controllers that disks without a name share. A virtio block device has none.
    pub controller: Option<ControllerName>,
    /// What becomes of the guest's writes.
    pub writes: Writes,
    /// The serial number that the guest sees; `None` for that of the device.
    pub serial: Option<Serial>,
    /// The model that the guest sees; `None` for that of the device. A virtio block device shows none.
    pub product: Option<Product>,
    /// The firmware revision that the guest sees; `None` for skep's version. A virtio block device shows none.
    pub firmware: Option<Firmware>,
    /// What is done when this host fails a request of the disk; `None` for a pause of the VM when there is no space left
    /// behind the disk, and [`OnError::Report`] for anything else.
    pub on_error: Option<OnError>,
    /// Its place among what firmware boots: those with lower ones first, then those without one in the order in which they
    /// are described.
    pub boot_index: Option<BootIndex>,
    /// How the person described it, and so how they write what they may have to add.
    pub syntax: Syntax,
}

impl PartialEq for Disk {
    fn eq(&self, other: &Disk) -> bool {
        let Disk {
            source,
            model,
            controller,
            writes,
            serial,
            product,
            firmware,
            on_error,
            boot_index,
            syntax: _,
        } = self;
        (source, model, controller, writes) == (&other.source, &other.model, &other.controller, &other.writes)
            && (serial, product, firmware, on_error, boot_index)
                == (&other.serial, &other.product, &other.firmware, &other.on_error, &other.boot_index)
    }
}

impl Disk {
    /// A virtio block device that keeps what the guest writes, with nothing else said about it.
    pub fn new(source: DiskSource) -> Disk {
        Disk {
            source,
            model: DiskModel::default(),
            controller: None,
            writes: Writes::default(),
            serial: None,
            product: None,
            firmware: None,
            on_error: None,
            boot_index: None,
            syntax: Syntax::default(),
        }
    }
}

words! {
    /// What is done when this host fails a request of a disk. It is an event of the VM in every case.
    pub enum OnError, "an answer to a disk's error" {
        /// The guest sees an error of its kind.
        Report = "report",
        /// The VM is paused, and tries the request again when it is resumed.
        Pause = "pause",
        /// The guest is told that what it writes, flushes or discards went well, though it did not. Reads that fail are
        /// errors all the same. A disk that is only read cannot have it.
        Ignore = "ignore",
    }
}

/// What becomes of the guest's writes: without a word they are kept, `readonly` refuses them, `snapshot` throws them
/// away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Writes {
    /// They change the disk.
    #[default]
    Kept,
    /// There are none: the guest may only read. A disc in a CD drive is always so.
    Refused,
    /// They are gone when the VM ends, and what holds the data is never changed. Only a [`super::FileDisk`] has it.
    ThrownAway,
}

/// What the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskModel {
    /// A virtio block device of its own, `virtio-blk`.
    VirtioBlk {
        /// How many queues it has; `None` for one per vCPU.
        queues: Option<Queues>,
        /// Whether its queues may be packed, which the guest's driver must know how to use. Without a word they are
        /// split.
        packed: bool,
        /// Whether the guest finds a write cache, where the disk has one. The guest may switch it, too.
        write_cache: bool,
    },
    /// A disk on a SATA controller, which it shares with other such disks, `ahci`.
    Ahci,
    /// A namespace of an NVMe controller, `nvme`: the only one, unless the controller has a name
    /// ([`Disk::controller`]).
    Nvme {
        /// How many queue pairs the controller has; `None` for one per vCPU.
        queues: Option<Queues>,
    },
    /// A disc in a CD drive on a SATA controller, `ahci-cd`.
    AhciCd,
}

impl DiskModel {
    /// The model's name.
    pub fn name(self) -> ModelName {
        match self {
            DiskModel::VirtioBlk { .. } => ModelName::VirtioBlk,
            DiskModel::Ahci => ModelName::Ahci,
            DiskModel::Nvme { .. } => ModelName::Nvme,
            DiskModel::AhciCd => ModelName::AhciCd,
        }
    }

    /// How many queues were asked for; `None` for one per vCPU, or when the model has no such choice.
    pub fn queues(self) -> Option<Queues> {
        match self {
            DiskModel::VirtioBlk { queues, .. } | DiskModel::Nvme { queues } => queues,
            DiskModel::Ahci | DiskModel::AhciCd => None,
        }
    }
}

/// A virtio block device with a split queue per vCPU and the disk's write cache.
impl Default for DiskModel {
    fn default() -> DiskModel {
        DiskModel::VirtioBlk { queues: None, packed: false, write_cache: true }
    }
}

words! {
    /// The name of a [`DiskModel`] in flags and TOML.
    #[derive(Default)]
    pub enum ModelName, "a disk model" {
        /// [`DiskModel::VirtioBlk`].
        #[default]
        VirtioBlk = "virtio-blk",
        /// [`DiskModel::Ahci`].
        Ahci = "ahci",
        /// [`DiskModel::Nvme`].
        Nvme = "nvme",
        /// [`DiskModel::AhciCd`].
        AhciCd = "ahci-cd",
    }
}

impl Identified for Disk {
    fn identity(&self) -> Option<String> {
        self.source.identity()
    }
}
