//! A hard disk or SSD behind a port: ATA commands (ACS-3), decoded and answered. Data is moved by the port's
//! engine.

mod errors;
mod identify;
mod logs;
mod smart;
mod trim;

use std::sync::Arc;
use std::time::Instant;

use disk::{Disk, DiskError, Durability, Geometry, Operation, SectorRange, Sectors, Size, Tally, WriteCache};

use super::action::{Action, Change, Protocol};
use super::fis::{CommandFis, Signature, Taskfile};
use super::registers::{error, status};
use super::text::{AtaFirmware, AtaModel, AtaSerial};
use logs::QueuedError;

pub(super) use errors::Fault;

/// Commands (ACS-3, table 206 and after).
mod command {
    pub const DATA_SET_MANAGEMENT: u8 = 0x06;
    pub const RECALIBRATE: u8 = 0x10;
    pub const READ_SECTORS: u8 = 0x20;
    pub const READ_SECTORS_EXT: u8 = 0x24;
    pub const READ_DMA_EXT: u8 = 0x25;
    pub const READ_MULTIPLE_EXT: u8 = 0x29;
    pub const READ_LOG_EXT: u8 = 0x2f;
    pub const WRITE_SECTORS: u8 = 0x30;
    pub const WRITE_SECTORS_EXT: u8 = 0x34;
    pub const WRITE_DMA_EXT: u8 = 0x35;
    pub const WRITE_MULTIPLE_EXT: u8 = 0x39;
    pub const WRITE_DMA_FUA_EXT: u8 = 0x3d;
    pub const READ_VERIFY: u8 = 0x40;
    pub const READ_VERIFY_EXT: u8 = 0x42;
    pub const READ_LOG_DMA_EXT: u8 = 0x47;
    pub const READ_FPDMA_QUEUED: u8 = 0x60;
    pub const WRITE_FPDMA_QUEUED: u8 = 0x61;
    pub const SEND_FPDMA_QUEUED: u8 = 0x64;
    pub const EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;
    pub const INITIALIZE_PARAMETERS: u8 = 0x91;
    pub const SMART: u8 = 0xb0;
    pub const READ_MULTIPLE: u8 = 0xc4;
    pub const WRITE_MULTIPLE: u8 = 0xc5;
    pub const SET_MULTIPLE: u8 = 0xc6;
    pub const READ_DMA: u8 = 0xc8;
    pub const WRITE_DMA: u8 = 0xca;
    pub const WRITE_MULTIPLE_FUA_EXT: u8 = 0xce;
    pub const STANDBY_IMMEDIATE: u8 = 0xe0;
    pub const IDLE_IMMEDIATE: u8 = 0xe1;
    pub const STANDBY: u8 = 0xe2;
    pub const IDLE: u8 = 0xe3;
    pub const CHECK_POWER: u8 = 0xe5;
    pub const SLEEP: u8 = 0xe6;
    pub const FLUSH_CACHE: u8 = 0xe7;
    pub const FLUSH_CACHE_EXT: u8 = 0xea;
    pub const IDENTIFY: u8 = 0xec;
    pub const SET_FEATURES: u8 = 0xef;
}

/// Subcommands of SET FEATURES (ACS-3, 7.45).
mod feature {
    pub const ENABLE_WRITE_CACHE: u16 = 0x02;
    pub const TRANSFER_MODE: u16 = 0x03;
    pub const DISABLE_LOOK_AHEAD: u16 = 0x55;
    pub const KEEP_SETTINGS: u16 = 0x66;
    pub const DISABLE_WRITE_CACHE: u16 = 0x82;
    pub const ENABLE_LOOK_AHEAD: u16 = 0xaa;
    pub const REVERT_SETTINGS: u16 = 0xcc;
}

/// Control register: software reset.
const SOFTWARE_RESET: u8 = 1 << 2;
/// Device register: the address is an LBA.
const LBA: u8 = 1 << 6;
/// Device register of a queued write: FUA.
const FUA: u8 = 1 << 7;
/// Most sectors for READ and WRITE MULTIPLE.
const MOST_MULTIPLE: u8 = 16;

/// Names that the guest sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub serial: AtaSerial,
    pub firmware: AtaFirmware,
    pub model: AtaModel,
}

/// What the driver can set, as it is after a reset.
#[derive(Clone, Copy, Debug)]
struct Settings {
    write_cache: WriteCache,
    look_ahead: bool,
    smart: bool,
    /// 0 until the driver sets it.
    multiple: u8,
    standby: bool,
}

impl Settings {
    fn of(geometry: &Geometry) -> Settings {
        let write_cache = geometry.write_cache;
        Settings { write_cache, look_ahead: true, smart: true, multiple: 0, standby: false }
    }
}

/// A disk as ATA shows it.
pub(super) struct HardDisk {
    geometry: Geometry,
    /// It may change, unlike what the geometry says of it.
    size: Size,
    names: Names,
    settings: Settings,
    /// The control register holds the device in reset.
    held_in_reset: bool,
    queued_error: Option<QueuedError>,
    media_errors: u64,
    since: Instant,
    /// What SMART counts by; it does not keep the disk open.
    tally: Tally,
}

impl HardDisk {
    pub fn new(disk: &Arc<Disk>, names: Names) -> HardDisk {
        let geometry = disk.geometry();
        HardDisk {
            geometry: geometry.clone(),
            size: disk.size(),
            names,
            settings: Settings::of(geometry),
            held_in_reset: false,
            queued_error: None,
            media_errors: 0,
            since: Instant::now(),
            tally: disk.tally().clone(),
        }
    }

    /// Everything that a driver has set is as after power-on.
    pub fn reset(&mut self) {
        self.settings = Settings::of(&self.geometry);
        self.held_in_reset = false;
        self.queued_error = None;
    }

    /// Whether the command is one of those that may be under way together.
    pub fn is_queued(fis: &CommandFis) -> bool {
        use command::{READ_FPDMA_QUEUED, SEND_FPDMA_QUEUED, WRITE_FPDMA_QUEUED};
        fis.is_command && matches!(fis.command, READ_FPDMA_QUEUED | WRITE_FPDMA_QUEUED | SEND_FPDMA_QUEUED)
    }

    /// Decodes a command, and answers it unless it needs the disk.
    pub fn execute(&mut self, fis: &CommandFis, slot: u8) -> Action {
        if !fis.is_command {
            return self.control(fis.control);
        }
        self.command(fis, slot).unwrap_or_else(Action::Done)
    }

    fn control(&mut self, control: u8) -> Action {
        if control & SOFTWARE_RESET != 0 {
            self.held_in_reset = true;
            return Action::Control { busy: true };
        }
        if !std::mem::take(&mut self.held_in_reset) {
            return Action::Control { busy: false };
        }
        self.reset();
        Action::Signature(Signature::Ata.taskfile())
    }

    fn command(&mut self, fis: &CommandFis, slot: u8) -> Result<Action, Taskfile> {
        use Protocol::{Dma, Pio};
        use command::*;
        let good = Ok(Action::Done(Taskfile::good()));
        match fis.command {
            READ_FPDMA_QUEUED | WRITE_FPDMA_QUEUED => self.queued(fis, slot),
            SEND_FPDMA_QUEUED => self.begin_queued_trim(fis, slot),
            READ_DMA | READ_DMA_EXT => self.read(fis, Dma),
            READ_SECTORS | READ_SECTORS_EXT => self.read(fis, Pio),
            READ_MULTIPLE | READ_MULTIPLE_EXT => self.multiple().and_then(|()| self.read(fis, Pio)),
            WRITE_DMA | WRITE_DMA_EXT | WRITE_SECTORS | WRITE_SECTORS_EXT => {
                self.write(fis, self.durability())
            }
            WRITE_MULTIPLE | WRITE_MULTIPLE_EXT => {
                self.multiple().and_then(|()| self.write(fis, self.durability()))
            }
            WRITE_DMA_FUA_EXT => self.write(fis, Durability::Stable),
            WRITE_MULTIPLE_FUA_EXT => self.multiple().and_then(|()| self.write(fis, Durability::Stable)),
            READ_VERIFY | READ_VERIFY_EXT => self.verify(fis),
            FLUSH_CACHE | FLUSH_CACHE_EXT => Ok(Action::Series(vec![Change::Flush])),
            DATA_SET_MANAGEMENT => self.begin_trim(fis),
            IDENTIFY => Ok(Action::Send(self.identify(), Pio)),
            SET_FEATURES => self.set_features(fis),
            SMART => self.smart(fis),
            READ_LOG_EXT => self.read_log(fis, Pio),
            READ_LOG_DMA_EXT => self.read_log(fis, Dma),
            STANDBY_IMMEDIATE | STANDBY | SLEEP => {
                self.settings.standby = true;
                Ok(Action::Series(vec![Change::Flush]))
            }
            IDLE_IMMEDIATE | IDLE => {
                self.settings.standby = false;
                // With the feature "unload" (0x44) the answer says that the heads are parked (ACS-3, 7.17.4).
                let lba = if fis.command == IDLE_IMMEDIATE && fis.features == 0x44 { 0xc4 } else { 0 };
                Ok(Action::Done(Taskfile { lba, ..Taskfile::good() }))
            }
            CHECK_POWER => {
                let count = if self.settings.standby { 0x00 } else { 0xff };
                Ok(Action::Done(Taskfile { count, ..Taskfile::good() }))
            }
            SET_MULTIPLE => {
                let count = fis.count as u8;
                if count != 0 && (count > MOST_MULTIPLE || !count.is_power_of_two()) {
                    return Err(Taskfile::aborted());
                }
                self.settings.multiple = count;
                good
            }
            EXECUTE_DEVICE_DIAGNOSTIC => Ok(Action::Signature(Signature::Ata.taskfile())),
            INITIALIZE_PARAMETERS | RECALIBRATE => good,
            _ => Err(Taskfile::aborted()),
        }
    }

    /// READ and WRITE MULTIPLE need a setting first.
    fn multiple(&self) -> Result<(), Taskfile> {
        if self.settings.multiple == 0 { Err(Taskfile::aborted()) } else { Ok(()) }
    }

    /// When a write counts as done if its command does not say.
    fn durability(&self) -> Durability {
        let by_itself = self.geometry.write_cache == WriteCache::WriteThrough;
        match self.settings.write_cache {
            WriteCache::WriteThrough if !by_itself => Durability::Stable,
            _ => Durability::Cached,
        }
    }

    fn read(&mut self, fis: &CommandFis, protocol: Protocol) -> Result<Action, Taskfile> {
        let (at, bytes) = self.place(fis)?;
        self.settings.standby = false;
        Ok(Action::Transfer { operation: Operation::Read { at }, bytes, protocol })
    }

    fn write(&mut self, fis: &CommandFis, durability: Durability) -> Result<Action, Taskfile> {
        let (at, bytes) = self.place(fis)?;
        self.settings.standby = false;
        let operation = Operation::Write { at, durability };
        Ok(Action::Transfer { operation, bytes, protocol: Protocol::Dma })
    }

    /// The medium is read, and the data goes nowhere (ACS-3, 7.30).
    fn verify(&mut self, fis: &CommandFis) -> Result<Action, Taskfile> {
        let (start, bytes) = self.place(fis)?;
        let count = Sectors::in_bytes(bytes);
        let end = start.0.saturating_add(count.0);
        if end > self.size.now().0 {
            return Err(fis.echo(status::FAILED, error::NOT_FOUND));
        }
        self.settings.standby = false;
        Ok(Action::Series(vec![Change::Verify(SectorRange { start, count })]))
    }

    /// First sector and bytes of a command that is not queued.
    fn place(&self, fis: &CommandFis) -> Result<(Sectors, u64), Taskfile> {
        use command::*;
        let long = matches!(
            fis.command,
            READ_SECTORS_EXT
                | READ_DMA_EXT
                | READ_MULTIPLE_EXT
                | READ_VERIFY_EXT
                | WRITE_SECTORS_EXT
                | WRITE_DMA_EXT
                | WRITE_MULTIPLE_EXT
                | WRITE_DMA_FUA_EXT
                | WRITE_MULTIPLE_FUA_EXT
        );
        if fis.device & LBA == 0 {
            // Cylinders, heads and sectors, which nobody has used for decades.
            return Err(fis.echo(status::FAILED, error::ABORTED));
        }
        let (lba, count) = if long {
            (fis.lba, if fis.count == 0 { 1 << 16 } else { u64::from(fis.count) })
        } else {
            let count = u64::from(fis.count as u8);
            let lba = fis.lba & 0xff_ffff | u64::from(fis.device & 0xf) << 24;
            (lba, if count == 0 { 1 << 8 } else { count })
        };
        self.sectors(lba, count).ok_or_else(|| fis.echo(status::FAILED, error::NOT_FOUND))
    }

    /// READ and WRITE FPDMA QUEUED (ACS-3, 7.23 and 7.59): the count is where others have features, and the
    /// tag where they have the count.
    fn queued(&mut self, fis: &CommandFis, slot: u8) -> Result<Action, Taskfile> {
        if fis.count >> 3 & 0x1f != u16::from(slot) {
            return Err(Taskfile::aborted());
        }
        let count = if fis.features == 0 { 1 << 16 } else { u64::from(fis.features) };
        let fua = fis.device & FUA != 0;
        self.settings.standby = false;
        let place = self.sectors(fis.lba, count);
        // What lies behind the end the disk's queue refuses, with the right word.
        let (at, bytes) = place.ok_or_else(Taskfile::aborted)?;
        let operation = match fis.command {
            command::READ_FPDMA_QUEUED => Operation::Read { at },
            _ if fua => Operation::Write { at, durability: Durability::Stable },
            _ => Operation::Write { at, durability: self.durability() },
        };
        Ok(Action::Transfer { operation, bytes, protocol: Protocol::Queued })
    }

    /// The disk's size in logical blocks, as it is now.
    fn blocks(&self) -> u64 {
        self.size.now().0 / (u64::from(self.geometry.logical_block) / Sectors::SIZE)
    }

    /// Logical blocks as sectors and bytes.
    fn sectors(&self, lba: u64, count: u64) -> Option<(Sectors, u64)> {
        let block = u64::from(self.geometry.logical_block);
        let first = lba.checked_mul(block / Sectors::SIZE)?;
        Some((Sectors(first), count.checked_mul(block)?))
    }

    fn set_features(&mut self, fis: &CommandFis) -> Result<Action, Taskfile> {
        let cached = self.geometry.write_cache == WriteCache::WriteBack;
        match fis.features & 0xff {
            feature::ENABLE_WRITE_CACHE if cached => self.settings.write_cache = WriteCache::WriteBack,
            feature::DISABLE_WRITE_CACHE if cached => {
                // What the cache holds goes to the medium first (ACS-3, 7.45.6).
                self.settings.write_cache = WriteCache::WriteThrough;
                return Ok(Action::Series(vec![Change::Flush]));
            }
            feature::ENABLE_LOOK_AHEAD => self.settings.look_ahead = true,
            feature::DISABLE_LOOK_AHEAD => self.settings.look_ahead = false,
            // All modes are the same here.
            feature::DISABLE_WRITE_CACHE
            | feature::TRANSFER_MODE
            | feature::KEEP_SETTINGS
            | feature::REVERT_SETTINGS => {}
            _ => return Err(Taskfile::aborted()),
        }
        Ok(Action::Done(Taskfile::good()))
    }

    /// What the guest learns of a failure, kind by kind; a queued command's goes into the log as well.
    pub fn failed(&mut self, why: DiskError, fis: &CommandFis, protocol: Protocol, slot: u8) -> Fault {
        if why == DiskError::Media {
            self.media_errors += 1;
        }
        let fault = Fault::of(why, fis);
        self.note(fault.taskfile, protocol, slot);
        fault
    }

    /// A command has failed with these registers; a queued command's go into the log.
    pub fn note(&mut self, taskfile: Taskfile, protocol: Protocol, slot: u8) {
        if protocol == Protocol::Queued {
            self.queued_error = Some(QueuedError { tag: slot, taskfile });
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
