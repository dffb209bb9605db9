//! The device's configuration space (5.2.4).

use disk::{Geometry, Sectors};

use zerocopy::{Immutable, IntoBytes, little_endian as le};

use super::request::MOST_BYTES;

/// Offset of the write-back field, the only one that a driver may write.
pub(super) const WRITEBACK: u64 = 32;

/// Longest piece that a driver should send, in bytes.
const SIZE_MAX: u32 = 4 << 20;

/// Most pieces of data that a driver should send in one request.
const SEG_MAX: u16 = 254;

// A driver that keeps to both is never refused.
const _: () = assert!(SEG_MAX as u64 * SIZE_MAX as u64 <= MOST_BYTES);

/// `struct virtio_blk_config`, as far as its fields are used here.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Config {
    capacity: le::U64,
    size_max: le::U32,
    seg_max: le::U32,
    cylinders: le::U16,
    heads: u8,
    sectors: u8,
    blk_size: le::U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: le::U16,
    opt_io_size: le::U32,
    writeback: u8,
    unused0: u8,
    num_queues: le::U16,
    max_discard_sectors: le::U32,
    max_discard_seg: le::U32,
    discard_sector_alignment: le::U32,
    max_write_zeroes_sectors: le::U32,
    max_write_zeroes_seg: le::U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

impl Config {
    pub(super) fn new(geometry: &Geometry, queues: u16, queue_size: u16) -> Config {
        let block = geometry.logical_block;
        let in_blocks = |bytes: u32| bytes / block;
        // Requests are whole blocks, and so are their limits.
        let sectors = |count: u64| {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            le::U32::new(count - count % (block / 512))
        };
        let discard = geometry.discard.as_ref();
        let zeroes = geometry.write_zeroes.as_ref();
        // Offset and size of the first aligned block, as far as the fields hold them.
        let alignment_offset = u8::try_from(in_blocks(geometry.alignment_offset)).unwrap_or(0);
        Config {
            capacity: le::U64::new(geometry.capacity.0),
            size_max: le::U32::new(SIZE_MAX),
            // Beside its data a request has a header and a status.
            seg_max: le::U32::new(u32::from(SEG_MAX.min(queue_size - 2))),
            cylinders: le::U16::new(0),
            heads: 0,
            sectors: 0,
            blk_size: le::U32::new(block),
            physical_block_exp: in_blocks(geometry.physical_block).max(1).ilog2() as u8,
            alignment_offset,
            min_io_size: le::U16::new(u16::try_from(in_blocks(geometry.minimum_io)).unwrap_or(u16::MAX)),
            opt_io_size: le::U32::new(in_blocks(geometry.optimal_io)),
            writeback: 0,
            unused0: 0,
            num_queues: le::U16::new(queues),
            max_discard_sectors: sectors(discard.map_or(0, |discard| discard.max.0)),
            max_discard_seg: le::U32::new(u32::from(discard.is_some())),
            discard_sector_alignment: le::U32::new(discard.map_or(0, |discard| discard.granularity / 512)),
            max_write_zeroes_sectors: sectors(zeroes.map_or(0, |zeroes| zeroes.max.0)),
            max_write_zeroes_seg: le::U32::new(u32::from(zeroes.is_some())),
            write_zeroes_may_unmap: u8::from(discard.is_some()),
            unused1: [0; 3],
        }
    }

    /// The bytes that a driver sees now.
    pub(super) fn bytes(&self, capacity: Sectors, write_back: bool) -> [u8; size_of::<Config>()] {
        let capacity = le::U64::new(capacity.0);
        zerocopy::transmute!(Config { capacity, writeback: u8::from(write_back), ..*self })
    }
}

#[cfg(test)]
mod tests {
    use disk::{Access, AfterDiscard, Discard, WriteCache, WriteZeroes};

    use super::*;

    #[test]
    fn limits_are_those_of_the_disk_in_whole_blocks() {
        let disk = Geometry {
            capacity: Sectors(1 << 20),
            logical_block: 4096,
            physical_block: 16384,
            alignment_offset: 8192,
            minimum_io: 16384,
            optimal_io: 1 << 20,
            access: Access::ReadWrite,
            write_cache: WriteCache::WriteBack,
            fua: false,
            rotational: false,
            discard: Some(Discard {
                max: Sectors(u64::MAX),
                granularity: 65536,
                after: AfterDiscard::Unspecified,
            }),
            write_zeroes: Some(WriteZeroes { max: Sectors(0xffff) }),
            model: None,
            serial: None,
        };
        let config = Config::new(&disk, 3, 1024);
        assert_eq!((config.blk_size.get(), config.physical_block_exp, config.alignment_offset), (4096, 2, 2));
        assert_eq!((config.min_io_size.get(), config.opt_io_size.get()), (4, 256));
        assert_eq!((config.seg_max.get(), config.num_queues.get()), (254, 3));
        assert_eq!(config.max_discard_sectors.get(), 0xffff_fff8);
        assert_eq!((config.max_discard_seg.get(), config.discard_sector_alignment.get()), (1, 128));
        assert_eq!(config.max_write_zeroes_sectors.get(), 0xfff8);
        assert_eq!((config.max_write_zeroes_seg.get(), config.write_zeroes_may_unmap), (1, 1));

        let plain = Config::new(&Geometry { discard: None, write_zeroes: None, ..disk }, 1, 4);
        assert_eq!(plain.seg_max.get(), 2, "header and status take two of four descriptors");
        assert_eq!((plain.max_discard_sectors.get(), plain.max_discard_seg.get()), (0, 0));
        assert_eq!((plain.max_write_zeroes_sectors.get(), plain.write_zeroes_may_unmap), (0, 0));
    }

    #[test]
    fn the_fields_lie_where_the_specification_has_them() {
        assert_eq!(size_of::<Config>(), 60);
        assert_eq!(std::mem::offset_of!(Config, blk_size), 20);
        assert_eq!(std::mem::offset_of!(Config, writeback), WRITEBACK as usize);
        assert_eq!(std::mem::offset_of!(Config, max_discard_sectors), 36);
        assert_eq!(std::mem::offset_of!(Config, write_zeroes_may_unmap), 56);
    }
}
