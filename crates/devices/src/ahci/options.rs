//! What is plugged into the ports, and why it may not be.

use std::io;
use std::sync::Arc;

use disk::{Disk, QueueError};
use pci::{Address, ServiceError};

use super::ata::{HardDisk, Names};
use super::atapi::{BLOCK, CdDrive, Kept, Tray};
use super::device::Device;
use super::port::Pluggable;
use super::text::{AtaFirmware, AtaModel, AtaSerial, AtaText};
use crate::serial_number;

/// Commands that can be under way at once on a disk: one for each slot.
const DEPTH: u16 = 32;
/// What the firmware revision is, if nobody says.
const FIRMWARE: &str = env!("CARGO_PKG_VERSION");

/// What is behind a port at the start.
pub enum AhciPort {
    /// Nothing; something may be plugged in later.
    Empty,
    /// A hard disk or SSD.
    Disk(AhciDisk),
    /// A CD or DVD drive.
    Cd(AhciCd),
}

/// A disk as an ATA device.
pub struct AhciDisk {
    /// A short name, for messages and thread names: "disk0".
    pub name: String,
    /// The disk; it is shown as it is: sizes of blocks, TRIM, write cache, rotation.
    pub disk: Arc<Disk>,
    /// The serial number, if not the disk's own.
    pub serial: Option<AtaSerial>,
    /// The model, if not the disk's own.
    pub model: Option<AtaModel>,
    /// The firmware revision, if not skep's version.
    pub firmware: Option<AtaFirmware>,
}

impl AhciDisk {
    /// The disk with its own serial number and model.
    pub fn new(name: impl Into<String>, disk: Arc<Disk>) -> AhciDisk {
        AhciDisk { name: name.into(), disk, serial: None, model: None, firmware: None }
    }

    pub(super) fn prepare(self, at: Address, port: u8) -> Result<Pluggable, AhciError> {
        let AhciDisk { name, disk, serial, model, firmware } = self;
        let geometry = disk.geometry();
        let own = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let names = Names {
            serial: serial.unwrap_or_else(|| match own(&geometry.serial) {
                Some(serial) => AtaText::from_lossy(&serial_number::shown(&serial)),
                None => place(at, port),
            }),
            model: model.unwrap_or_else(|| {
                AtaText::from_lossy(own(&geometry.model).as_deref().unwrap_or("skep disk"))
            }),
            firmware: firmware.unwrap_or_else(|| AtaText::from_lossy(FIRMWARE)),
        };
        let queue = disk.prepare_queue(DEPTH)?;
        let device = HardDisk::new(&disk, names);
        Ok(Pluggable { name, device: Device::Disk(Box::new(device)), queue: Some(queue), tray: None })
    }
}

/// A CD or DVD drive.
pub struct AhciCd {
    /// A short name, for messages and thread names: "cd0".
    pub name: String,
    /// What is in it.
    pub disc: Option<Arc<Disk>>,
    /// The serial number, if not one made of the drive's place.
    pub serial: Option<AtaSerial>,
    /// The model, if not "skep CD-ROM".
    pub model: Option<AtaModel>,
    /// The firmware revision, if not skep's version.
    pub firmware: Option<AtaFirmware>,
}

impl AhciCd {
    /// A drive with a disc or without.
    pub fn new(name: impl Into<String>, disc: Option<Arc<Disk>>) -> AhciCd {
        AhciCd { name: name.into(), disc, serial: None, model: None, firmware: None }
    }

    pub(super) fn prepare(self, at: Address, port: u8) -> Result<Pluggable, AhciError> {
        let names = Names {
            serial: self.serial.unwrap_or_else(|| place(at, port)),
            model: self.model.unwrap_or_else(|| AtaText::from_lossy("skep CD-ROM")),
            firmware: self.firmware.unwrap_or_else(|| AtaText::from_lossy(FIRMWARE)),
        };
        let tray = Arc::new(Tray::default());
        if let Some(disc) = self.disc {
            put(&tray, Some(disc), true)?;
        }
        let device = Device::Cd(CdDrive::new(names, tray.clone()));
        Ok(Pluggable { name: self.name, device, queue: None, tray: Some(tray) })
    }
}

/// Puts a disc into a tray, or takes out what is there.
pub(super) fn put(tray: &Tray, disc: Option<Arc<Disk>>, force: bool) -> Result<(), AhciError> {
    let disc = match disc {
        None => None,
        Some(disc) => {
            let block = disc.geometry().logical_block;
            if block > BLOCK {
                return Err(AhciError::DiscBlock { disc: disc.name().to_owned(), block });
            }
            // Packet commands are carried out one at a time.
            let queue = disc.prepare_queue(1)?;
            Some((disc, queue))
        }
    };
    tray.change(disc, force).map_err(|kept| match kept {
        Kept::Locked => AhciError::TrayLocked,
        Kept::Broken => AhciError::DriveFailed,
    })
}

/// A serial number that is the same at every start and for no other device of the VM.
fn place(at: Address, port: u8) -> AtaSerial {
    AtaText::from_lossy(&format!("SKEP{:02X}{:02X}{:X}{port:02}", at.bus(), at.device(), at.function()))
}

/// Why a controller, a device or a disc could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AhciError {
    /// Too few ports or too many.
    #[error("ahci {at}: {ports} ports. Give the controller 1 to 32 ports.")]
    Ports {
        /// The controller.
        at: Address,
        /// Ports asked for.
        ports: usize,
    },
    /// There is no memory for its registers.
    #[error("ahci {at}: cannot have memory for its registers: {cause}. Free some memory on this host.")]
    Registers {
        /// The controller.
        at: Address,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The controller has no such port.
    #[error("ahci: there is no port {port}. The controller has ports 0 to {last}.")]
    NoPort {
        /// The port asked for.
        port: u8,
        /// The last that there is.
        last: u8,
    },
    /// There is a device already.
    #[error("ahci: there is a device on port {port} already. Unplug it first, or choose another port.")]
    Occupied {
        /// The port.
        port: u8,
    },
    /// The device is gone for the guest, and its disk has not let go.
    #[error(
        "ahci: the disk on port {port} does not end what is under way. The guest sees no device there; the port is free when the disk answers. See the host's log for the disk."
    )]
    Leaving {
        /// The port.
        port: u8,
    },
    /// There is nothing to take away or to put a disc into.
    #[error("ahci: there is no {what} on port {port}. Choose another port.")]
    Missing {
        /// The port.
        port: u8,
        /// "device" or "CD drive".
        what: &'static str,
    },
    /// The guest has locked the tray.
    #[error(
        "ahci: the guest has locked the drive's tray and was asked to let the disc go. Unmount the disc in the guest and try again, or use force."
    )]
    TrayLocked,
    /// The drive's queue to a disc broke.
    #[error(
        "ahci: the drive has failed, so the guest sees it as unplugged and its disc cannot be changed. Restart the VM to have it again; what failed was reported."
    )]
    DriveFailed,
    /// The disc's blocks are larger than those of a CD.
    #[error(
        "disc {disc}: it can only be read in blocks of {block} bytes, and a CD has blocks of 2048. Put the image on a file system or device with smaller blocks."
    )]
    DiscBlock {
        /// The disc's name.
        disc: String,
        /// Its block in bytes.
        block: u32,
    },
    /// The host has no room for a thread or an eventfd.
    #[error("ahci port {port}: cannot start: {cause}. Raise the limits of open files and of processes.")]
    Start {
        /// The port.
        port: u8,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// The disk gave no queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The machine could not do what the controller asked.
    #[error(transparent)]
    Service(#[from] ServiceError),
}
