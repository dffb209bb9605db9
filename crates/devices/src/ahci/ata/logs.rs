//! General purpose logs (ACS-3, A.1): the directory, what became of queued commands and which of them there are, and
//! identify data.

use super::identify::set_checksum;
use super::{Action, CommandFis, HardDisk, Protocol, Taskfile};

/// Log addresses.
const DIRECTORY: u8 = 0x00;
const QUEUED_ERROR: u8 = 0x10;
const SEND_AND_RECEIVE: u8 = 0x13;
const IDENTIFY: u8 = 0x30;
/// Pages of the identify data log.
const IDENTIFY_PAGES: u16 = 4;
const PAGE: usize = 512;
/// In a quadword of the identify data log: it holds something.
const VALID: u64 = 1 << 63;

/// The queued command that failed last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QueuedError {
    pub tag: u8,
    pub taskfile: Taskfile,
}

impl HardDisk {
    /// READ LOG (DMA) EXT (ACS-3, 7.24).
    pub(super) fn read_log(&mut self, fis: &CommandFis, protocol: Protocol) -> Result<Action, Taskfile> {
        let log = fis.lba as u8;
        let first = (fis.lba >> 8 & 0xff | fis.lba >> 24 & 0xff00) as u16;
        let pages = match log {
            DIRECTORY | QUEUED_ERROR => 1,
            SEND_AND_RECEIVE if self.trims() => 1,
            IDENTIFY => IDENTIFY_PAGES,
            _ => 0,
        };
        let end = first.checked_add(fis.count).filter(|end| fis.count > 0 && *end <= pages);
        let end = end.ok_or_else(Taskfile::aborted)?;
        let mut data = Vec::with_capacity(usize::from(fis.count) * PAGE);
        for page in first..end {
            data.extend(match log {
                DIRECTORY => self.directory(),
                QUEUED_ERROR => self.queued_error_page(),
                SEND_AND_RECEIVE => send_and_receive(),
                _ => self.identify_page(page),
            });
        }
        Ok(Action::Send(data, protocol))
    }

    /// The log is about the last error until it is read (ACS-3, A.14).
    fn queued_error_page(&mut self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        match self.queued_error.take() {
            // NQ: the last error was not one of a queued command.
            None => page[0] = 1 << 7,
            Some(QueuedError { tag, taskfile }) => {
                // The device's registers as a frame has them, from status to count.
                page[..14].copy_from_slice(&taskfile.d2h(false)[..14]);
                page[0] = tag;
                page[1] = 0;
            }
        }
        set_checksum(&mut page);
        page
    }

    fn identify_page(&self, page: u16) -> Vec<u8> {
        let header = VALID | u64::from(page) << 16 | 1;
        let mut quadwords = vec![0u64; PAGE / 8];
        quadwords[0] = header;
        let bytes = |quadwords: &[u64]| quadwords.iter().flat_map(|word| word.to_le_bytes()).collect();
        match page {
            0 => {
                let mut data: Vec<u8> = bytes(&quadwords);
                data[8..13].copy_from_slice(&[IDENTIFY_PAGES as u8, 0, 1, 2, 3]);
                data
            }
            1 => self.identify(),
            2 => {
                // Capacity (A.11.4): in blocks, block sizes and alignment, size of a block in words.
                let identify = self.identify();
                let word = |n: usize| u64::from(identify[2 * n]) | u64::from(identify[2 * n + 1]) << 8;
                quadwords[1] = VALID | self.blocks();
                let sizes = word(106);
                quadwords[2] = VALID
                    | (sizes >> 13 & 1) << 62
                    | (sizes >> 12 & 1) << 61
                    | (word(209) >> 14 & 1) << 60
                    | (sizes & 0xf) << 16
                    | word(209) & 0x3fff;
                quadwords[3] = VALID | u64::from(self.geometry.logical_block / 2);
                quadwords[4] = VALID | self.blocks();
                bytes(&quadwords)
            }
            // Supported capabilities (A.11.5), of which there is only what identify data says already.
            _ => bytes(&quadwords),
        }
    }

    /// How many pages each log has; the log's address is the index.
    fn directory(&self) -> Vec<u8> {
        let send = u16::from(self.trims());
        let mut page = vec![0; PAGE];
        for (log, pages) in
            [(DIRECTORY, 1), (QUEUED_ERROR, 1), (SEND_AND_RECEIVE, send), (IDENTIFY, IDENTIFY_PAGES)]
        {
            page[2 * usize::from(log)..][..2].copy_from_slice(&pages.to_le_bytes());
        }
        page
    }
}

/// Which commands SEND FPDMA QUEUED carries (A.16): DATA SET MANAGEMENT, and of it TRIM.
fn send_and_receive() -> Vec<u8> {
    let mut page = vec![0; PAGE];
    page[0] = 1;
    page[4] = 1;
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ahci::ata::tests::{disk, fis, geometry};

    #[test]
    fn logs_are_read_page_by_page_and_not_beyond_their_end() {
        let mut disk = disk(&geometry(512, 4096));
        let mut read = |log: u64, first: u64, count| match disk
            .execute(&CommandFis { lba: log | first << 8, count, ..fis(0x2f) }, 0)
        {
            Action::Send(data, Protocol::Pio) => Some(data),
            Action::Done(_) => None,
            other => panic!("{other:?}"),
        };
        let directory = read(0, 0, 1).unwrap();
        assert_eq!((directory[0], directory[0x20], directory[0x60], directory[0x62]), (1, 1, 4, 0));
        let pages = read(0x30, 0, 4).unwrap();
        assert_eq!(pages.len(), 4 * PAGE);
        assert_eq!(pages[2 + PAGE * 2], 2, "the number of the page");
        assert_eq!(pages[PAGE + 510], 0xa5);
        assert_eq!(pages[8 + PAGE * 2..][..8], (VALID | 1 << 20).to_le_bytes());
        assert_eq!(pages[16 + PAGE * 2..][..8], (VALID | 1 << 62 | 1 << 60 | 3 << 16).to_le_bytes());
        assert_eq!(read(0x30, 3, 2), None);
        assert_eq!(read(0x30, 0xffff, 1), None);
        assert_eq!(read(0, 0, 0), None);
        assert_eq!(read(0x42, 0, 1), None);
        assert_eq!(read(0x10, 0, 1).unwrap()[0], 0x80);
    }

    #[test]
    fn queued_trims_are_announced_where_there_are_trims() {
        let trims = geometry(512, 4096);
        for (geometry, there) in [(disk::Geometry { discard: None, ..trims.clone() }, false), (trims, true)] {
            let mut disk = disk(&geometry);
            let mut read = |log: u64| disk.execute(&CommandFis { lba: log, count: 1, ..fis(0x2f) }, 0);
            let Action::Send(directory, _) = read(0) else { panic!("there is always a directory") };
            assert_eq!(directory[2 * 0x13], u8::from(there));
            match read(0x13) {
                Action::Send(page, _) => assert!(there && page[0] == 1 && page[4] == 1),
                _ => assert!(!there),
            }
            assert_eq!(disk.identify()[2 * 77] & 1 << 6 != 0, there);
        }
    }
}
