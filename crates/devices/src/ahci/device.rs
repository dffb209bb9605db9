//! What can be behind a port.

use disk::DiskError;

use super::action::{Action, Change, Protocol};
use super::ata::{Fault, HardDisk};
use super::atapi::{self, CdDrive};
use super::command::Command;
use super::fis::{Signature, Taskfile};

/// A device, on the thread of its port.
pub(super) enum Device {
    Disk(Box<HardDisk>),
    Cd(CdDrive),
}

impl Device {
    pub fn signature(&self) -> Signature {
        match self {
            Device::Disk(_) => Signature::Ata,
            Device::Cd(_) => Signature::Atapi,
        }
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        match self {
            Device::Disk(disk) => disk.reset(),
            Device::Cd(drive) => drive.reset(),
        }
    }

    /// Whether the command may be under way together with others.
    pub fn is_queued(&self, command: &Command) -> bool {
        matches!(self, Device::Disk(_)) && HardDisk::is_queued(&command.fis)
    }

    /// Decodes a command, and answers it unless it needs the medium.
    pub fn execute(&mut self, command: &Command, slot: u8) -> Action {
        match self {
            Device::Disk(disk) => disk.execute(&command.fis, slot),
            Device::Cd(drive) => drive.execute(&command.fis, &command.packet),
        }
    }

    /// What a disk is to discard, as the driver's data says.
    pub fn trim(
        &mut self,
        command: &Command,
        data: &[u8],
        protocol: Protocol,
        slot: u8,
    ) -> Result<Vec<Change>, Fault> {
        let Device::Disk(disk) = self else {
            return Err(Fault { taskfile: Taskfile::aborted(), serror: 0 });
        };
        disk.trim(data).map_err(|error| {
            let taskfile = command.fis.echo(Taskfile::aborted().status, error);
            disk.note(taskfile, protocol, slot);
            Fault { taskfile, serror: 0 }
        })
    }

    /// The next thing to do of `rest`, whose last comes first.
    pub fn next_change(&self, rest: &mut Vec<Change>) -> Option<Change> {
        match self {
            Device::Disk(disk) => disk.next_change(rest),
            Device::Cd(_) => rest.pop(),
        }
    }

    /// What the guest learns of a failure.
    pub fn failed(&mut self, why: DiskError, command: &Command, protocol: Protocol, slot: u8) -> Fault {
        match self {
            Device::Disk(disk) => disk.failed(why, &command.fis, protocol, slot),
            Device::Cd(drive) => drive.failed(why),
        }
    }

    /// The registers after a command that has ended well.
    pub fn good(&self) -> Taskfile {
        match self {
            Device::Disk(_) => Taskfile::good(),
            Device::Cd(_) => atapi::good(),
        }
    }
}
