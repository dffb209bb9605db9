//! Disks: opened, shown to the guest on controllers ([`controllers`]), watched for other sizes ([`resizes`]), and kept
//! in a list ([`list`]). While the VM runs, SATA disks come and go ([`plug`]), and discs in CD drives are changed ([`drives`]).

mod close;
mod controllers;
pub mod drives;
pub mod failures;
pub mod host_nvme;
mod list;
mod plug;
pub mod registered;
mod resizes;
mod same;
mod sata_port;

use std::path::Path;
use std::sync::Arc;

use config::{BootIndex, ControllerName, DiskModel, DiskSource, FileDisk, ModelName, OnError, Writes};
use devices::ahci::{AhciCd, AhciDisk, AhciPort, AtaText};
use devices::{InitialCache, NvmeOptions, Rings, VirtioBlk, VirtioBlkOptions};
use disk::{Allocation, Allowed, Bounce, Claim, Disk, DiskOptions, Format, NbdUrl, Poll, Sectors, Source};
use memory::Ram;
use pci::{Bus, Services};

use crate::disks::registered::Choice;
use crate::error::StartError;
use crate::events::Events;

pub use controllers::{controllers_of, settled};
pub use drives::{DriveError, DriveReading, TrayLock};
pub use list::{Disks, DisksOutside};
pub use plug::{Letting, PlugError, Plugged, UnplugError, Unplugged};
pub use same::{on_controllers, same_as};

/// Queue pairs that an NVMe controller has at least, which firmware relies on.
const LEAST_NVME_QUEUES: u16 = 2;

/// A disk, as far as it can be opened before devices are taken.
pub enum CheckedDisk {
    /// Open.
    Open(OpenDisk),
    /// On a controller that skep drives: it is looked at when the controller is skep's.
    Driven(config::Disk),
}

/// A disk that is open and claimed, and what the guest is to see of it.
pub struct OpenDisk {
    disk: Arc<Disk>,
    model: Model,
    controller: Option<ControllerName>,
    on_error: Option<OnError>,
    boot_index: Option<BootIndex>,
    buffers: Choice,
    /// What a person should know of how it was opened and of what the guest sees.
    remarks: Vec<String>,
}

/// What the guest is to see, as far as it is made without a place on the bus.
enum Model {
    VirtioBlk(Box<VirtioBlk>),
    Nvme(NvmeOptions),
    Ahci(AhciPort),
}

impl Model {
    fn name(&self) -> ModelName {
        match self {
            Model::VirtioBlk(_) => ModelName::VirtioBlk,
            Model::Nvme(_) => ModelName::Nvme,
            Model::Ahci(AhciPort::Cd(_)) => ModelName::AhciCd,
            Model::Ahci(AhciPort::Disk(_) | AhciPort::Empty) => ModelName::Ahci,
        }
    }
}

/// Opens a disk, which claims it: nobody else can mount it or give it to another VM until it is closed.
pub fn check(disk: &config::Disk, cpus: config::Cpus) -> Result<CheckedDisk, StartError> {
    let (options, name) = match &disk.source {
        DiskSource::Nvme { .. } => return Ok(CheckedDisk::Driven(disk.clone())),
        DiskSource::File(file) => (file_options(file), short_name(file.path.as_path())),
        DiskSource::Nbd(address) => {
            let url: NbdUrl = address.as_str().parse()?;
            let name = if url.export.is_empty() { "nbd".into() } else { short_name(Path::new(&url.export)) };
            (DiskOptions::over(Source::Nbd(url)), name)
        }
        DiskSource::Ram(size) => {
            (DiskOptions::over(Source::Memory(Sectors::in_bytes(size.bytes()))), "ram".into())
        }
    };
    let options = match disk.writes {
        Writes::Kept => options,
        Writes::Refused => options.read_only(),
        Writes::ThrownAway => options.throw_away(),
    };
    Ok(CheckedDisk::Open(OpenDisk::new(Disk::open(&options)?, &name, disk, queues(disk, cpus))?))
}

fn file_options(file: &FileDisk) -> DiskOptions {
    let FileDisk { path, format, chain, logical, preallocate, bounce, poll, force, buffers: _ } = file;
    DiskOptions {
        format: format.map(|format| match format {
            config::Format::Raw => Format::Raw,
            config::Format::Qcow2 => Format::Qcow2,
            config::Format::Vmdk => Format::Vmdk,
        }),
        chain: chain.iter().map(allowed).collect(),
        bounce: match bounce {
            config::Bounce::Needed => Bounce::WhenNeeded,
            config::Bounce::Always => Bounce::Always,
        },
        allocation: if *preallocate { Allocation::AtOnce } else { Allocation::AsWritten },
        claim: if *force { Claim::Forced } else { Claim::Exclusive },
        poll: poll.map(self::poll).unwrap_or_default(),
        logical_block: logical.map(config::LogicalBlock::bytes),
        ..DiskOptions::new(path.as_path())
    }
}

fn allowed(chain: &config::Chain) -> Allowed {
    match chain {
        config::Chain::Follow => Allowed::SameFolder,
        config::Chain::File(path) => Allowed::File(path.as_path().to_owned()),
    }
}

/// How a disk's queues look for what comes.
pub fn poll(poll: config::Poll) -> Poll {
    match poll {
        config::Poll::Off => Poll::Off,
        config::Poll::Adaptive => Poll::Adaptive,
        config::Poll::On => Poll::On,
    }
}

fn short_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// How many queues of a disk its model may take into use: as many as there are vCPUs, unless somebody wants it
/// otherwise.
pub fn queues(disk: &config::Disk, cpus: config::Cpus) -> u16 {
    let one_per_cpu = cpus.get().get().min(config::Queues::MAX);
    let wanted = disk.model.queues().map_or(one_per_cpu, |queues| queues.get().get());
    match disk.model {
        DiskModel::VirtioBlk { .. } => wanted,
        DiskModel::Nvme { .. } => wanted.max(LEAST_NVME_QUEUES),
        DiskModel::Ahci | DiskModel::AhciCd => 1,
    }
}

impl OpenDisk {
    /// The model that the guest sees of a disk, with so many queues where it has a choice.
    pub fn new(opened: Disk, name: &str, disk: &config::Disk, queues: u16) -> Result<OpenDisk, StartError> {
        let opened = Arc::new(opened);
        let serial = disk.serial.as_ref().map(|serial| serial.as_str().to_owned());
        let product = disk.product.as_ref().map(|product| product.as_str().to_owned());
        let firmware = disk.firmware.as_ref().map(|firmware| firmware.as_str().to_owned());
        let model = match disk.model {
            DiskModel::VirtioBlk { packed, write_cache, .. } => {
                let options = VirtioBlkOptions {
                    queues,
                    serial,
                    rings: if packed { Rings::Packed } else { Rings::Split },
                    write_cache: if write_cache { InitialCache::OfDisk } else { InitialCache::Off },
                    ..VirtioBlkOptions::new(name)
                };
                Model::VirtioBlk(Box::new(VirtioBlk::new(opened.clone(), options)?))
            }
            DiskModel::Nvme { .. } => {
                let options =
                    NvmeOptions { queues, serial, model: product, firmware, ..NvmeOptions::new(name) };
                options.check(&opened)?;
                Model::Nvme(options)
            }
            DiskModel::Ahci => Model::Ahci(AhciPort::Disk(AhciDisk {
                serial: ata(&serial)?,
                model: ata(&product)?,
                firmware: ata(&firmware)?,
                ..AhciDisk::new(name, opened.clone())
            })),
            DiskModel::AhciCd => Model::Ahci(AhciPort::Cd(AhciCd {
                serial: ata(&serial)?,
                model: ata(&product)?,
                firmware: ata(&firmware)?,
                ..AhciCd::new(name, Some(opened.clone()))
            })),
        };
        let mut remarks = opened.remarks().to_vec();
        remarks.extend(shortened(&opened, disk));
        let buffers = Choice::of(&disk.source);
        let config::Disk { on_error, boot_index, .. } = *disk;
        let controller = disk.controller.clone();
        Ok(OpenDisk { disk: opened, model, controller, on_error, boot_index, buffers, remarks })
    }

    /// What holds its data.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// What a person should know of how it was opened and of what the guest sees.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Whether RAM is to be registered for it.
    pub fn buffers(&self) -> Choice {
        self.buffers
    }
}

/// What to say of a disk whose own serial number is too long for a guest.
fn shortened(opened: &Disk, disk: &config::Disk) -> Option<String> {
    if disk.serial.is_some() || matches!(disk.model, DiskModel::AhciCd) {
        return None;
    }
    let own = opened.geometry().serial.as_deref()?;
    let shown = devices::shortened_serial_number(own)?;
    Some(format!(
        "disk {}: a guest cannot be shown its serial number {own:?} as it is, and sees {shown} instead. `serial=` gives \
         the disk another one, of 20 characters at most",
        opened.name()
    ))
}

/// A text of a disk's description for ATA's identify data.
fn ata<const N: usize>(text: &Option<String>) -> Result<Option<AtaText<N>>, StartError> {
    Ok(text.as_deref().map(AtaText::new).transpose()?)
}

/// What people should know of how disks were opened.
pub fn remarks(disks: &[OpenDisk]) -> impl Iterator<Item = &String> {
    disks.iter().flat_map(OpenDisk::remarks)
}

/// Where controllers are put, and what they need there.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub bus: &'a Bus,
    pub ram: &'a Arc<Ram>,
    pub services: &'a Arc<dyn Services>,
    pub events: &'a Events,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_address_of_a_server_is_a_finding() {
        let source = DiskSource::Nbd("nbd+unix:///a".parse().unwrap());
        let error = check(&config::Disk::new(source), config::Cpus::default()).err().unwrap().to_string();
        assert!(error.contains("nbd+unix needs socket=PATH"), "{error}");
    }
}
