//! Namespaces: disks as a guest counts them.

use std::sync::Arc;

use disk::{Access, AfterDiscard, Disk, Geometry, SectorRange, Sectors, WriteCache};
use zerocopy::FromZeros;

use super::spec::{IdentifyNamespace, Status};

/// A disk that is to be a namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    pub(super) disk: Arc<Disk>,
    pub(super) uuid: Option<[u8; 16]>,
}

impl Namespace {
    /// A namespace with a UUID that follows from the controller's serial number and the namespace's number.
    pub fn new(disk: Arc<Disk>) -> Namespace {
        Namespace { disk, uuid: None }
    }

    /// The same with a UUID of the caller's.
    #[must_use]
    pub fn with_uuid(self, uuid: [u8; 16]) -> Namespace {
        Namespace { uuid: Some(uuid), ..self }
    }
}

/// Whether NVMe drivers know logical blocks of so many bytes.
pub(super) fn takes_blocks(bytes: u32) -> bool {
    bytes.is_power_of_two() && (512..=4096).contains(&bytes)
}

/// A namespace of a controller.
pub(super) struct Attached {
    pub(super) nsid: u32,
    pub(super) disk: Arc<Disk>,
    uuid: [u8; 16],
    /// Bytes of a logical block as a power of two.
    shift: u32,
}

impl Attached {
    /// `None` when the disk's blocks are none that drivers know: 512 to 4096 bytes.
    pub(super) fn new(nsid: u32, namespace: Namespace, serial: &str) -> Option<Attached> {
        let block = namespace.disk.geometry().logical_block;
        if !takes_blocks(block) {
            return None;
        }
        let uuid = namespace.uuid.unwrap_or_else(|| uuid_for(serial, nsid));
        Some(Attached { nsid, disk: namespace.disk, uuid, shift: block.ilog2() })
    }

    pub(super) fn geometry(&self) -> &Geometry {
        self.disk.geometry()
    }

    /// Bytes of so many logical blocks.
    pub(super) fn bytes(&self, blocks: u64) -> u64 {
        blocks << self.shift
    }

    /// Whether completed writes may wait in the disk's cache.
    pub(super) fn caches(&self) -> bool {
        self.geometry().write_cache == WriteCache::WriteBack
    }

    /// The sectors of some logical blocks, if they lie in the namespace.
    pub(super) fn sectors(&self, lba: u64, blocks: u64) -> Result<SectorRange, Status> {
        let end = lba.checked_add(blocks).ok_or(Status::LBA_RANGE)?;
        if end > self.disk.capacity().0 >> (self.shift - 9) {
            return Err(Status::LBA_RANGE);
        }
        Ok(SectorRange {
            start: Sectors(lba << (self.shift - 9)),
            count: Sectors(blocks << (self.shift - 9)),
        })
    }

    /// Identify namespace (5.15.2.1).
    pub(super) fn identify(&self) -> IdentifyNamespace {
        let geometry = self.geometry();
        let capacity = self.disk.capacity().0;
        let blocks = capacity >> (self.shift - 9);
        let mut page = IdentifyNamespace::new_zeroed();
        (page.nsze, page.ncap, page.nuse) = (blocks.into(), blocks.into(), blocks.into());
        // 0's based counts of blocks.
        let in_blocks = |bytes: u32| u16::try_from((bytes >> self.shift).max(1) - 1).unwrap_or(0).into();
        page.nsfeat = IdentifyNamespace::PREFERRED_SIZES;
        page.npwg = in_blocks(geometry.physical_block);
        page.npwa = page.npwg;
        page.nows = in_blocks(geometry.optimal_io.max(geometry.physical_block));
        if let Some(discard) = &geometry.discard {
            page.npdg = in_blocks(discard.granularity);
            page.npda = page.npdg;
            if discard.after == AfterDiscard::Zeroes {
                page.dlfeat |= IdentifyNamespace::DEALLOCATED_IS_ZEROES;
            }
        }
        if geometry.write_zeroes.is_some() {
            page.dlfeat |= IdentifyNamespace::WRITE_ZEROES_DEALLOCATES;
        }
        if geometry.access == Access::ReadOnly {
            page.nsattr = IdentifyNamespace::WRITE_PROTECTED;
        }
        let bytes = u128::from(capacity) * 512;
        page.nvmcap = bytes.to_le_bytes();
        page.lbaf[0] = (self.shift << 16).into();
        page
    }

    /// The list of namespace identification descriptors (5.15.2.4): the UUID.
    pub(super) fn descriptors(&self) -> [u8; 20] {
        let mut list = [0; 20];
        list[..2].copy_from_slice(&[3, 16]);
        list[4..].copy_from_slice(&self.uuid);
        list
    }
}

/// The same numbers for the same names, always: a UUID of version 8 (RFC 9562) out of FNV-1a.
fn uuid_for(serial: &str, nsid: u32) -> [u8; 16] {
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    for byte in serial.bytes().chain([0]).chain(nsid.to_le_bytes()) {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
    }
    let mut uuid = hash.to_be_bytes();
    uuid[6] = 0x80 | uuid[6] & 0x0f;
    uuid[8] = 0x80 | uuid[8] & 0x3f;
    uuid
}
