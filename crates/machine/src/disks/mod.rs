//! Disks: opened, shown to the guest on controllers ([`controllers`]), watched for other sizes ([`resizes`]), and, in CD
//! drives, changed while the VM runs ([`drives`]).

mod controllers;
pub mod drives;
mod resizes;

use std::path::Path;
use std::sync::{Arc, Weak};

use config::{ControllerName, DiskModel, DiskSource, FileDisk, OnError, Writes};
use devices::ahci::{AhciCd, AhciDisk, AhciPort, AtaText};
use devices::{InitialCache, NvmeOptions, Rings, VirtioBlk, VirtioBlkOptions};
use disk::{
    Allocation, Bounce, Claim, Disk, DiskOptions, Format, NbdUrl, Poll, Reading, Sectors, SizeWatch, Source,
    Tally,
};
use memory::Ram;
use pci::{Bus, Services};

use crate::buffers::Choice;
use crate::error::{StartError, system};
use crate::events::Events;
use crate::failures;

pub use controllers::settled;
use controllers::{Put, controllers};
use drives::Drive;
pub use drives::{DriveError, DriveReading, TrayLock};
use resizes::SizeTeller;

/// Queues of a model at most.
const MOST_QUEUES: u16 = 64;
/// Queue pairs that an NVMe controller has at least, which firmware relies on.
const LEAST_NVME_QUEUES: u16 = 2;

/// A disk as far as it can be had before devices are taken.
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
    buffers: Choice,
}

/// What the guest is to see, as far as it is made without a place on the bus.
enum Model {
    VirtioBlk(Box<VirtioBlk>),
    Nvme(NvmeOptions),
    Ahci(AhciPort),
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
    let FileDisk { path, format, logical, preallocate, bounce, poll, force, buffers: _ } = file;
    DiskOptions {
        format: format.map(|format| match format {
            config::Format::Raw => Format::Raw,
            config::Format::Qcow2 => Format::Qcow2,
            config::Format::Vmdk => Format::Vmdk,
        }),
        bounce: match bounce {
            config::Bounce::Needed => Bounce::WhenNeeded,
            config::Bounce::Always => Bounce::Always,
        },
        allocation: if *preallocate { Allocation::AtOnce } else { Allocation::AsWritten },
        claim: if *force { Claim::Forced } else { Claim::Exclusive },
        poll: poll.map_or(Poll::Adaptive, self::poll),
        logical_block: logical.map(config::LogicalBlock::bytes),
        ..DiskOptions::new(path.as_path())
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
    let wanted = disk.model.queues().map_or(cpus.get().get().min(MOST_QUEUES), |queues| queues.get().get());
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
            DiskModel::Nvme { .. } => Model::Nvme(NvmeOptions {
                queues,
                serial,
                model: product,
                firmware,
                ..NvmeOptions::new(name)
            }),
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
        let buffers = Choice::of(&disk.source);
        let (controller, on_error) = (disk.controller.clone(), disk.on_error);
        Ok(OpenDisk { disk: opened, model, controller, on_error, buffers })
    }

    /// What holds its data.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Whether RAM is to be registered for it.
    pub fn buffers(&self) -> Choice {
        self.buffers
    }
}

/// A text of a disk's description for ATA's identify data.
fn ata<const N: usize>(text: &Option<String>) -> Result<Option<AtaText<N>>, StartError> {
    Ok(text.as_deref().map(AtaText::new).transpose()?)
}

/// What people should know of how disks were opened.
pub fn remarks(disks: &[OpenDisk]) -> impl Iterator<Item = &String> {
    disks.iter().flat_map(|disk| disk.disk.remarks())
}

/// Where controllers are put, and what they need there.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub bus: &'a Bus,
    pub ram: &'a Arc<Ram>,
    pub services: &'a Arc<dyn Services>,
    pub events: &'a Events,
}

/// The disks of a VM, which are watched for changes of their sizes.
pub struct Disks {
    // First, for they use the disks.
    _teller: Option<SizeTeller>,
    _watch: Option<SizeWatch>,
    all: Vec<Slot>,
}

/// What the guest has for ever: a disk, or a drive whose disc may be changed.
enum Slot {
    Disk(Arc<Disk>),
    Drive(Arc<Drive>),
}

impl Disks {
    /// Makes controllers of disks and puts them on the bus, at the first addresses that are free.
    pub fn put_on(mut disks: Vec<OpenDisk>, place: Place<'_>) -> Result<Disks, StartError> {
        // Before any of their queues is prepared.
        disks.iter().for_each(|disk| failures::watch(&disk.disk, disk.on_error, place.events));
        let watched: Vec<Arc<Disk>> = disks.iter().map(|disk| disk.disk.clone()).collect();
        name_drives(&mut disks);
        let planned: Vec<Planned> = disks.iter().map(Planned::of).collect();
        let mut put = Put::default();
        for controller in controllers(disks) {
            put.add(controller.put_on(place)?);
        }
        let Put { listeners, mut seats } = put;
        let all = planned.into_iter().filter_map(|planned| match planned {
            Planned::Disk(disk) => Some(Slot::Disk(disk)),
            Planned::Drive { name, on_error, tally } => {
                let seat = seats.remove(&name)?;
                Some(Slot::Drive(Arc::new(Drive::new(name, seat, on_error, tally, place.events.clone()))))
            }
        });
        let all = all.collect();
        let failed = system("watch the sizes of disks");
        let watch = if watched.is_empty() { None } else { Some(SizeWatch::over(&watched).map_err(failed)?) };
        let teller = SizeTeller::new(listeners).map_err(system("listen to changes of disks"))?;
        Ok(Disks { _teller: teller, _watch: watch, all })
    }

    /// Those that there are now: disks, and discs that are in drives.
    pub fn now(&self) -> Vec<Arc<Disk>> {
        let now = self.all.iter().filter_map(|slot| match slot {
            Slot::Disk(disk) => Some(disk.clone()),
            Slot::Drive(drive) => drive.disc(),
        });
        now.collect()
    }

    /// What went through them, and through discs that are in their drive no more.
    pub fn tallies(&self) -> Vec<Tally> {
        let tallies = self.all.iter().flat_map(|slot| match slot {
            Slot::Disk(disk) => vec![disk.tally().clone()],
            Slot::Drive(drive) => drive.tallies(),
        });
        tallies.collect()
    }

    /// The way to them from outside.
    pub fn outside(&self) -> DisksOutside {
        let all = self.all.iter().map(|slot| match slot {
            Slot::Disk(disk) => SlotOutside::Disk(Arc::downgrade(disk)),
            Slot::Drive(drive) => SlotOutside::Drive(Arc::downgrade(drive)),
        });
        DisksOutside(all.collect())
    }
}

/// The disks of a VM for whoever keeps none of them.
#[derive(Clone)]
pub struct DisksOutside(Vec<SlotOutside>);

#[derive(Clone)]
enum SlotOutside {
    Disk(Weak<Disk>),
    Drive(Weak<Drive>),
}

impl DisksOutside {
    /// What went through those that there are now, and what waits.
    pub fn read(&self) -> Vec<Reading> {
        let disks = self.0.iter().filter_map(|slot| match slot {
            SlotOutside::Disk(disk) => disk.upgrade(),
            SlotOutside::Drive(drive) => drive.upgrade()?.disc(),
        });
        disks.map(|disk| disk.read()).collect()
    }

    /// The CD drives and what is in them.
    pub fn drives(&self) -> Vec<DriveReading> {
        self.all_drives().map(|drive| drive.read()).collect()
    }

    /// The CD drive of this name, or with the disc of this name in it.
    pub fn drive(&self, name: &str) -> Result<Arc<Drive>, DriveError> {
        let named = self.all_drives().find(|drive| drive.name() == name);
        let drive = named.or_else(|| self.all_drives().find(|drive| drive.holds(name)));
        drive.ok_or_else(|| DriveError::Missing { name: name.to_owned(), drives: self.drives() })
    }

    fn all_drives(&self) -> impl Iterator<Item = Arc<Drive>> {
        self.0.iter().filter_map(|slot| match slot {
            SlotOutside::Disk(_) => None,
            SlotOutside::Drive(drive) => drive.upgrade(),
        })
    }
}

/// A place that its controller is not made for yet.
enum Planned {
    Disk(Arc<Disk>),
    Drive { name: String, on_error: Option<OnError>, tally: Tally },
}

impl Planned {
    fn of(open: &OpenDisk) -> Planned {
        match &open.model {
            Model::Ahci(AhciPort::Cd(cd)) => Planned::Drive {
                name: cd.name.clone(),
                on_error: open.on_error,
                tally: open.disk.tally().clone(),
            },
            _ => Planned::Disk(open.disk.clone()),
        }
    }
}

/// Drives are called cd0, cd1 ... in the order of the description, whatever is in them.
fn name_drives(disks: &mut [OpenDisk]) {
    let drives = disks.iter_mut().filter_map(|disk| match &mut disk.model {
        Model::Ahci(AhciPort::Cd(cd)) => Some(cd),
        _ => None,
    });
    drives.enumerate().for_each(|(n, cd)| cd.name = format!("cd{n}"));
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
