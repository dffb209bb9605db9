//! IDENTIFY DEVICE (ACS-3, 7.12), true to the disk.

use disk::{Access, AfterDiscard, Geometry, WriteCache};

use super::{HardDisk, MOST_MULTIPLE};

/// Most blocks of 512 bytes of ranges in one DATA SET MANAGEMENT.
pub(super) const MOST_TRIM_BLOCKS: u16 = 8;

/// Word 82: SMART, power management, look-ahead, NOP; and the write cache, where there is one.
const FEATURES_82: u16 = 1 | 1 << 3 | LOOK_AHEAD | 1 << 14;
const WRITE_CACHE: u16 = 1 << 5;
const LOOK_AHEAD: u16 = 1 << 6;
/// Word 83: FLUSH CACHE (EXT) and 48-bit addresses. Bit 14 is always set.
const FEATURES_83: u16 = 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10;
/// Word 84: WRITE DMA FUA EXT, general purpose logs, SMART error log. Bit 14 is always set.
const FEATURES_84: u16 = 1 << 14 | 1 << 6 | 1 << 5 | 1;
/// Word 77: SEND and RECEIVE FPDMA QUEUED.
const SEND_AND_RECEIVE: u16 = 1 << 6;
/// Word 119: READ LOG DMA EXT. Bit 14 is always set.
const FEATURES_119: u16 = 1 << 14 | 1 << 3;

impl HardDisk {
    /// The 512 bytes.
    pub(super) fn identify(&self) -> Vec<u8> {
        let geometry = &self.geometry;
        let blocks = self.blocks();
        let mut words = [0u16; 256];
        let mut set = |first: usize, values: &[u16]| words[first..][..values.len()].copy_from_slice(values);
        set(0, &[0x0040]);
        // The geometry that disks have shown since there is LBA.
        set(1, &[16383, 0, 16, 0, 0, 63]);
        set(47, &[0x8000 | u16::from(MOST_MULTIPLE), 0x4000, 0x2f00, 0x4000]);
        set(53, &[0b110]);
        set(59, &[if self.settings.multiple == 0 { 0 } else { 0x100 | u16::from(self.settings.multiple) }]);
        let short = blocks.min(0x0fff_ffff);
        set(60, &[short as u16, (short >> 16) as u16]);
        set(63, &[0x0007, 0x0003, 120, 120, 120, 120]);
        let mut queued = 3 << 1;
        if let (Some(discard), Access::ReadWrite) = (&geometry.discard, geometry.access) {
            queued |= SEND_AND_RECEIVE;
            let zeroes = discard.after == AfterDiscard::Zeroes;
            set(69, &[if zeroes { 1 << 14 | 1 << 5 } else { 0 }]);
            set(105, &[MOST_TRIM_BLOCKS]);
            set(169, &[1]);
        }
        // 32 queued commands; 1.5, 3 and 6 Gb/s and NCQ; 6 Gb/s now, and commands within queued ones.
        set(75, &[31, 1 << 8 | 0b1110, queued]);
        set(80, &[0x07f0]);
        let cached = geometry.write_cache == WriteCache::WriteBack;
        let when = |condition: bool, bits: u16| if condition { bits } else { 0 };
        set(82, &[FEATURES_82 | when(cached, WRITE_CACHE), FEATURES_83, FEATURES_84]);
        let smart = when(self.settings.smart, 1);
        let look_ahead = when(self.settings.look_ahead, LOOK_AHEAD);
        let cache_on = when(cached && self.settings.write_cache == WriteCache::WriteBack, WRITE_CACHE);
        let now = FEATURES_82 & !(1 | LOOK_AHEAD) | smart | look_ahead | cache_on;
        // Bit 15 of word 86: words 119 and 120 hold something.
        set(85, &[now, FEATURES_83 & !(1 << 14) | 1 << 15, FEATURES_84]);
        set(88, &[0x407f]);
        set(100, &[blocks as u16, (blocks >> 16) as u16, (blocks >> 32) as u16, 0]);
        self.set_block_sizes(&mut set);
        set(119, &[FEATURES_119, FEATURES_119]);
        // 1: does not rotate; 0: the rate is not known.
        set(217, &[u16::from(!geometry.rotational)]);
        set(222, &[0x107f]);
        self.names.serial.put(&mut words[10..20]);
        self.names.firmware.put(&mut words[23..27]);
        self.names.model.put(&mut words[27..47]);
        let mut data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        data[510] = 0xa5;
        set_checksum(&mut data);
        data
    }

    /// Logical and physical blocks, and how they lie to each other (words 106, 117, 118 and 209).
    fn set_block_sizes(&self, set: &mut impl FnMut(usize, &[u16])) {
        let Geometry { logical_block, physical_block, alignment_offset, .. } = self.geometry;
        let mut sizes = 1 << 14;
        if logical_block > 512 {
            sizes |= 1 << 12;
            let in_words = logical_block / 2;
            set(117, &[in_words as u16, (in_words >> 16) as u16]);
        }
        let ratio = (physical_block / logical_block).max(1).ilog2().min(13) as u16;
        if ratio > 0 {
            sizes |= 1 << 13 | ratio;
            // The disk says where its first whole physical block begins, ATA where in a physical block it begins.
            let blocks = 1 << ratio;
            let first = (alignment_offset / logical_block % blocks) as u16;
            let begins = (blocks as u16 - first) % blocks as u16;
            set(209, &[1 << 14 | begins]);
        }
        set(106, &[sizes]);
    }
}

/// Sets the last byte so that the sum of all is 0.
pub(super) fn set_checksum(data: &mut [u8]) {
    if let Some((last, rest)) = data.split_last_mut() {
        *last = rest.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    }
}

#[cfg(test)]
mod tests {
    use crate::ahci::ata::tests::{disk, fis, geometry};
    use disk::{AfterDiscard, Discard, Geometry, Sectors, WriteCache};

    fn words(geometry: &Geometry) -> Vec<u16> {
        let data = disk(geometry).identify();
        assert_eq!(data.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    }

    #[test]
    fn a_disk_with_emulated_sectors_shows_both_sizes() {
        let words = words(&Geometry { alignment_offset: 3584, ..geometry(512, 4096) });
        assert_eq!(words[106], 0x6003);
        assert_eq!(words[209], 0x4001);
        assert_eq!((words[60], words[61]), (0, 16));
        assert_eq!((words[100], words[101]), (0, 16));
        assert_eq!(words[217], 1);
        assert_eq!((words[169], words[105], words[69]), (1, 8, 0x4020));
        assert_eq!(words[10], u16::from_be_bytes(*b"S-"));
    }

    #[test]
    fn a_disk_with_native_sectors_counts_in_them() {
        let words = words(&geometry(4096, 4096));
        assert_eq!((words[106], words[117], words[118]), (0x5000, 2048, 0));
        assert_eq!((words[100], words[101]), (0, 2));
    }

    #[test]
    fn what_a_disk_lacks_is_not_shown() {
        let plain = Geometry {
            discard: None,
            write_cache: WriteCache::WriteThrough,
            rotational: true,
            capacity: Sectors(1 << 40),
            ..geometry(512, 512)
        };
        let shown = words(&plain);
        assert_eq!((shown[169], shown[105], shown[69]), (0, 0, 0));
        assert_eq!((shown[82] & 0x20, shown[85] & 0x20), (0, 0));
        assert_eq!((shown[217], shown[106]), (0, 0x4000));
        assert_eq!((shown[60], shown[61]), (0xffff, 0x0fff));
        assert_eq!(shown[100..104], [0, 0, 0x100, 0]);
        let after = AfterDiscard::Unspecified;
        let discard = Some(Discard { max: Sectors(8), granularity: 512, after });
        let shown = words(&Geometry { discard, ..plain });
        assert_eq!((shown[169], shown[69]), (1, 0));
    }

    #[test]
    fn settings_are_shown_as_they_are() {
        let mut disk = disk(&geometry(512, 512));
        let word = |disk: &crate::ahci::ata::HardDisk, n: usize| {
            let data = disk.identify();
            u16::from_le_bytes([data[2 * n], data[2 * n + 1]])
        };
        assert_eq!(word(&disk, 85), word(&disk, 82));
        for features in [0x82, 0x55] {
            disk.execute(&super::super::CommandFis { features, ..fis(0xef) }, 0);
        }
        assert_eq!(word(&disk, 82) & !word(&disk, 85), 0x60);
    }
}
