//! SMART (ACS-3, 7.48): what there is to say of a disk that somebody else watches over.

use super::identify::set_checksum;
use super::{Action, CommandFis, HardDisk, Protocol, Taskfile};

/// Subcommands.
mod feature {
    pub const READ_DATA: u16 = 0xd0;
    pub const READ_THRESHOLDS: u16 = 0xd1;
    pub const AUTOSAVE: u16 = 0xd2;
    pub const SAVE: u16 = 0xd3;
    pub const READ_LOG: u16 = 0xd5;
    pub const ENABLE: u16 = 0xd8;
    pub const DISABLE: u16 = 0xd9;
    pub const RETURN_STATUS: u16 = 0xda;
}

/// In LBA bits 23:8 of every SMART command.
const KEY: u64 = 0xc2_4f00;
/// Logs that SMART READ LOG knows: which exist, and the summary of errors.
const LOG_DIRECTORY: u8 = 0x00;
const LOG_ERRORS: u8 = 0x01;
const PAGE: usize = 512;
/// Structure revision of data and thresholds, as nearly every disk has it.
const REVISION: u16 = 0x0010;

/// An attribute: its number, what it counts, and whether it foretells a failure.
struct Attribute {
    id: u8,
    raw: u64,
    prefail: bool,
}

impl HardDisk {
    pub(super) fn smart(&mut self, fis: &CommandFis) -> Result<Action, Taskfile> {
        let subcommand = fis.features & 0xff;
        if fis.lba & 0xff_ff00 != KEY || !self.settings.smart && subcommand != feature::ENABLE {
            return Err(Taskfile::aborted());
        }
        let send = |data| Ok(Action::Send(data, Protocol::Pio));
        match subcommand {
            feature::READ_DATA => send(self.smart_data()),
            feature::READ_THRESHOLDS => send(self.smart_thresholds()),
            feature::READ_LOG if fis.count & 0xff == 1 => match fis.lba as u8 {
                LOG_DIRECTORY => send(log_directory()),
                LOG_ERRORS => send(error_log()),
                _ => Err(Taskfile::aborted()),
            },
            feature::ENABLE | feature::DISABLE => {
                self.settings.smart = subcommand == feature::ENABLE;
                Ok(Action::Done(Taskfile::good()))
            }
            feature::AUTOSAVE | feature::SAVE => Ok(Action::Done(Taskfile::good())),
            // The key unchanged: no threshold is exceeded.
            feature::RETURN_STATUS => Ok(Action::Done(Taskfile { lba: KEY, ..Taskfile::good() })),
            _ => Err(Taskfile::aborted()),
        }
    }

    fn attributes(&self) -> [Attribute; 5] {
        let counters = self.tally.counters();
        let block = u64::from(self.geometry.logical_block);
        let attribute = |id, raw| Attribute { id, raw, prefail: false };
        [
            attribute(9, self.since.elapsed().as_secs() / 3600),
            attribute(12, 1),
            Attribute { id: 187, raw: self.media_errors, prefail: true },
            attribute(241, counters.bytes_written / block),
            attribute(242, counters.bytes_read / block),
        ]
    }

    fn smart_data(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[..2].copy_from_slice(&REVISION.to_le_bytes());
        for (attribute, entry) in self.attributes().iter().zip(page[2..].chunks_exact_mut(12)) {
            entry[0] = attribute.id;
            // Kept up to date all the time; normalized values are 100, far from any threshold.
            entry[1..3].copy_from_slice(&(0x32 | u16::from(attribute.prefail)).to_le_bytes());
            entry[3..5].copy_from_slice(&[100, 100]);
            entry[5..11].copy_from_slice(&attribute.raw.to_le_bytes()[..6]);
        }
        // No self-tests and no background tests; attributes are saved, and errors are logged.
        page[368..371].copy_from_slice(&[3, 0, 1]);
        set_checksum(&mut page);
        page
    }

    fn smart_thresholds(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[..2].copy_from_slice(&REVISION.to_le_bytes());
        for (attribute, entry) in self.attributes().iter().zip(page[2..].chunks_exact_mut(12)) {
            entry[0] = attribute.id;
        }
        set_checksum(&mut page);
        page
    }
}

fn log_directory() -> Vec<u8> {
    let mut page = vec![0; PAGE];
    // Version 1, and a page of errors.
    page[..3].copy_from_slice(&[1, 0, 1]);
    page
}

/// The summary of errors, which has none: they are events of the VM instead.
fn error_log() -> Vec<u8> {
    let mut page = vec![0; PAGE];
    page[0] = 1;
    set_checksum(&mut page);
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ahci::ata::tests::{disk, fis, geometry};
    use disk::DiskError;

    fn smart(features: u16, low: u64, count: u16) -> CommandFis {
        CommandFis { features, lba: KEY | low, count, ..fis(0xb0) }
    }

    #[test]
    fn data_and_thresholds_name_the_same_attributes_and_add_up() {
        let mut disk = disk(&geometry(512, 512));
        disk.failed(DiskError::Media, &fis(0x25), Protocol::Dma, 0);
        let pages: Vec<Vec<u8>> = [0xd0, 0xd1]
            .map(|features| match disk.execute(&smart(features, 0, 0), 0) {
                Action::Send(page, Protocol::Pio) => page,
                other => panic!("{other:?}"),
            })
            .into();
        for page in &pages {
            assert_eq!(page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
        for entry in 0..5 {
            assert_eq!(pages[0][2 + 12 * entry], pages[1][2 + 12 * entry]);
        }
        assert_eq!((pages[0][2 + 24], pages[0][2 + 24 + 5]), (187, 1), "one error was reported");
    }

    #[test]
    fn without_the_key_or_when_off_everything_is_aborted() {
        let mut disk = disk(&geometry(512, 512));
        let aborted = Action::Done(Taskfile::aborted());
        assert_eq!(disk.execute(&CommandFis { lba: 0, ..smart(0xda, 0, 0) }, 0), aborted);
        let good = Action::Done(Taskfile { lba: KEY, ..Taskfile::good() });
        assert_eq!(disk.execute(&smart(0xda, 0, 0), 0), good);
        disk.execute(&smart(0xd9, 0, 0), 0);
        assert_eq!(disk.execute(&smart(0xda, 0, 0), 0), aborted);
        disk.execute(&smart(0xd8, 0, 0), 0);
        assert_eq!(disk.execute(&smart(0xda, 0, 0), 0), good);
        assert!(matches!(disk.execute(&smart(0xd5, 1, 1), 0), Action::Send(..)));
        assert_eq!(disk.execute(&smart(0xd5, 6, 1), 0), aborted);
    }
}
