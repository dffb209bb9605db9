//! A CD or DVD drive behind a port: ATAPI (ACS-3, 7.21) with the commands of MMC-6, decoded and answered. Data of
//! the disc is moved by the port's engine.

mod replies;
mod sense;
mod tray;

use std::sync::Arc;

use disk::{DiskError, Geometry, Operation, Sectors};

use super::action::{Action, Protocol};
use super::ata::{Fault, Names};
use super::fis::{CommandFis, Signature, Taskfile};
use super::registers::status;

use replies::Event;
pub(super) use sense::Sense;
use tray::Locked;
pub(super) use tray::{Handling, Kept, Tray};

/// Bytes of a block of data on a disc.
pub(super) const BLOCK: u32 = 2048;
/// Interrupt reason in the count register: status is there (command and data bits both set).
const STATUS_PHASE: u16 = 3;
/// Control register: software reset.
const SOFTWARE_RESET: u8 = 1 << 2;

/// ATA commands that a packet device has.
mod command {
    pub const DEVICE_RESET: u8 = 0x08;
    pub const EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;
    pub const PACKET: u8 = 0xa0;
    pub const IDENTIFY_PACKET: u8 = 0xa1;
    pub const STANDBY_IMMEDIATE: u8 = 0xe0;
    pub const IDLE_IMMEDIATE: u8 = 0xe1;
    pub const CHECK_POWER: u8 = 0xe5;
    pub const SLEEP: u8 = 0xe6;
    pub const FLUSH_CACHE: u8 = 0xe7;
    pub const IDENTIFY: u8 = 0xec;
    pub const SET_FEATURES: u8 = 0xef;
}

/// Packet commands.
mod packet {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP: u8 = 0x1b;
    pub const PREVENT_ALLOW: u8 = 0x1e;
    pub const READ_CAPACITY: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const SEEK_10: u8 = 0x2b;
    pub const SYNCHRONIZE_CACHE: u8 = 0x35;
    pub const READ_TOC: u8 = 0x43;
    pub const GET_CONFIGURATION: u8 = 0x46;
    pub const GET_EVENT_STATUS: u8 = 0x4a;
    pub const READ_DISC_INFORMATION: u8 = 0x51;
    pub const READ_TRACK_INFORMATION: u8 = 0x52;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const READ_12: u8 = 0xa8;
    pub const MECHANISM_STATUS: u8 = 0xbd;
    pub const READ_CD: u8 = 0xbe;
}

/// A drive as ATAPI shows it.
pub(super) struct CdDrive {
    names: Names,
    tray: Arc<Tray>,
    /// Blocks on the disc, while there is one.
    disc: Option<u32>,
    /// Why the last command failed.
    sense: Sense,
    /// What the next command that needs the disc is to be told first.
    attention: Option<Sense>,
    event: Event,
    held_in_reset: bool,
}

impl CdDrive {
    pub fn new(names: Names, tray: Arc<Tray>) -> CdDrive {
        CdDrive {
            names,
            tray,
            disc: None,
            sense: Sense::NONE,
            attention: None,
            event: Event::None,
            held_in_reset: false,
        }
    }

    /// What the host has done with the tray.
    pub fn handling(&self) -> Option<Handling> {
        self.tray.take_handling()
    }

    /// There is another disc.
    pub fn insert(&mut self, geometry: &Geometry) {
        self.disc = Some(blocks(geometry));
        self.attention = Some(Sense::MEDIUM_CHANGED);
        self.event = Event::NewMedia;
    }

    /// There is no disc any more.
    pub fn remove(&mut self) {
        self.disc = None;
        self.attention = None;
        self.event = Event::Removed;
    }

    /// The disc that was put in cannot be used, and is taken out.
    pub fn refuse(&mut self) {
        self.remove();
        self.tray.refuse();
    }

    /// The drive has failed for good.
    pub fn fail(&mut self) {
        self.remove();
        self.tray.fail();
    }

    /// Somebody would like to have the disc.
    pub fn ask_to_eject(&mut self) {
        self.event = Event::EjectAsked;
    }

    pub fn has_disc(&self) -> bool {
        self.disc.is_some()
    }

    /// As after power-on; the disc stays, and is free to be taken.
    pub fn reset(&mut self) {
        self.sense = Sense::NONE;
        self.held_in_reset = false;
        self.tray.lock(false);
    }

    /// Decodes a command, and answers it unless it needs the disc.
    pub fn execute(&mut self, fis: &CommandFis, packet: &[u8; 16]) -> Action {
        use command::*;
        if !fis.is_command {
            return self.control(fis.control);
        }
        match fis.command {
            PACKET => self.packet(packet),
            IDENTIFY_PACKET => Action::Send(self.identify(), Protocol::Pio),
            // Refused with the signature, by which drivers know what they have (ACS-3, 7.12.3).
            IDENTIFY => Action::Done(Taskfile { status: status::FAILED, error: 4, ..self.signature() }),
            DEVICE_RESET => {
                self.reset();
                Action::Signature(self.signature())
            }
            EXECUTE_DEVICE_DIAGNOSTIC => Action::Signature(self.signature()),
            SET_FEATURES if fis.features & 0xff == 0x03 => Action::Done(Taskfile::good()),
            CHECK_POWER => Action::Done(Taskfile { count: 0xff, ..Taskfile::good() }),
            STANDBY_IMMEDIATE | IDLE_IMMEDIATE | SLEEP | FLUSH_CACHE => Action::Done(Taskfile::good()),
            _ => Action::Done(Taskfile::aborted()),
        }
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
        Action::Signature(self.signature())
    }

    fn signature(&self) -> Taskfile {
        Signature::Atapi.taskfile()
    }

    fn packet(&mut self, packet: &[u8; 16]) -> Action {
        // The reason of a failure is there until the next command that is not REQUEST SENSE.
        let answer = match packet[0] {
            packet::REQUEST_SENSE => {
                let sense = match std::mem::take(&mut self.sense) {
                    Sense::NONE => self.attention.take().unwrap_or(Sense::NONE),
                    sense => sense,
                };
                Ok(reply(sense.data(), usize::from(packet[4])))
            }
            _ => {
                self.sense = Sense::NONE;
                self.command(packet)
            }
        };
        answer.unwrap_or_else(|sense| {
            self.sense = sense;
            Action::Done(sense.taskfile())
        })
    }

    fn command(&mut self, cdb: &[u8; 16]) -> Result<Action, Sense> {
        use packet::*;
        let be16 = |at: usize| u16::from_be_bytes([cdb[at], cdb[at + 1]]);
        let be32 = |at: usize| u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]]);
        let long = usize::from(be16(7));
        let done = || Ok(Action::Done(good()));
        match cdb[0] {
            TEST_UNIT_READY => self.ready().and_then(|_| done()),
            INQUIRY => Ok(reply(self.inquiry(cdb[1] & 1 != 0, cdb[2])?, usize::from(be16(3)))),
            MODE_SENSE_6 => Ok(reply(self.mode_sense(cdb[2], false)?, usize::from(cdb[4]))),
            MODE_SENSE_10 => Ok(reply(self.mode_sense(cdb[2], true)?, long)),
            START_STOP => self.start_stop(cdb[4]),
            PREVENT_ALLOW => {
                self.tray.lock(cdb[4] & 1 != 0);
                done()
            }
            READ_CAPACITY => {
                let last = self.ready()?.saturating_sub(1);
                let data = [last.to_be_bytes(), BLOCK.to_be_bytes()].concat();
                Ok(reply(data, usize::MAX))
            }
            READ_10 => self.read(be32(2), u32::from(be16(7))),
            READ_12 => self.read(be32(2), be32(6)),
            READ_CD => {
                // Blocks of data, of which only the user's part is there: any or mode 1, nothing else asked.
                let count = be32(5) & 0xff_ffff;
                if !matches!(cdb[1] >> 2 & 7, 0 | 2 | 4) || !matches!(cdb[9], 0x10 | 0) || cdb[10] & 7 != 0 {
                    return Err(Sense::INVALID_FIELD);
                }
                let count = if cdb[9] == 0 { 0 } else { count };
                self.read(be32(2), count)
            }
            SEEK_10 => {
                if be32(2) >= self.ready()? {
                    Err(Sense::OUT_OF_RANGE)
                } else {
                    done()
                }
            }
            SYNCHRONIZE_CACHE => done(),
            READ_TOC => {
                let blocks = self.ready()?;
                // Where the format lies has moved over the years.
                let format = if cdb[2] & 0xf != 0 { cdb[2] & 0xf } else { cdb[9] >> 6 };
                Ok(reply(replies::toc(blocks, format, cdb[1] & 2 != 0, cdb[6])?, long))
            }
            GET_CONFIGURATION => Ok(reply(self.configuration(cdb[1] & 3, be16(2))?, long)),
            GET_EVENT_STATUS => self.event_status(cdb[1] & 1 != 0, cdb[4], long),
            READ_DISC_INFORMATION if cdb[1] & 7 == 0 => {
                self.ready()?;
                Ok(reply(replies::disc_information(), long))
            }
            READ_TRACK_INFORMATION => Ok(reply(replies::track_information(self.ready()?), long)),
            MECHANISM_STATUS => Ok(reply(vec![0, 0, 0, 0, 0, 0, 0, 0], usize::from(be16(8)))),
            READ_DISC_INFORMATION => Err(Sense::INVALID_FIELD),
            _ => Err(Sense::UNKNOWN_COMMAND),
        }
    }

    /// Blocks on the disc, if it is there and its driver knows of it.
    fn ready(&mut self) -> Result<u32, Sense> {
        if let Some(attention) = self.attention.take() {
            return Err(attention);
        }
        self.disc.ok_or(Sense::NO_MEDIUM)
    }

    fn read(&mut self, first: u32, count: u32) -> Result<Action, Sense> {
        let blocks = self.ready()?;
        let end = first.checked_add(count).filter(|end| *end <= blocks && first < blocks);
        end.ok_or(Sense::OUT_OF_RANGE)?;
        if count == 0 {
            return Ok(Action::Done(good()));
        }
        let sectors = u64::from(BLOCK) / Sectors::SIZE;
        let operation = Operation::Read { at: Sectors(u64::from(first) * sectors) };
        let bytes = u64::from(count) * u64::from(BLOCK);
        Ok(Action::Transfer { operation, bytes, protocol: Protocol::Packet })
    }

    /// START STOP UNIT (MMC-6, 6.42): with LoEj a start closes the tray and a stop opens it.
    fn start_stop(&mut self, what: u8) -> Result<Action, Sense> {
        if what & 0b11 == 0b10 && what >> 4 == 0 {
            self.tray.eject().map_err(|Locked| Sense::LOCKED)?;
            if self.disc.is_some() {
                self.remove();
            }
        }
        Ok(Action::Done(good()))
    }

    /// The disc's data could not be read.
    pub fn failed(&mut self, why: DiskError) -> Fault {
        self.sense = Sense::of(why);
        Fault { taskfile: self.sense.taskfile(), serror: 0 }
    }
}

/// A packet command has ended well.
pub(super) fn good() -> Taskfile {
    Taskfile { count: STATUS_PHASE, ..Taskfile::good() }
}

/// As much of the data as the driver wants.
fn reply(mut data: Vec<u8>, wanted: usize) -> Action {
    data.truncate(wanted);
    if data.is_empty() { Action::Done(good()) } else { Action::Send(data, Protocol::Packet) }
}

/// Whole blocks on a disc.
fn blocks(geometry: &Geometry) -> u32 {
    let sectors = u64::from(BLOCK) / Sectors::SIZE;
    u32::try_from(geometry.capacity.0 / sectors).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
