//! Regions of a device: BARs, ROM, configuration space.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ROM_REGION_INDEX, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};

use super::device::VfioDevice;
use super::error::VfioError;
use super::ioctl;

/// Index of the expansion ROM's region.
pub const ROM: u32 = VFIO_PCI_ROM_REGION_INDEX;
/// Index of configuration space's region.
pub(crate) const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;

/// Index of a BAR's region (0 to 5).
pub fn bar(number: usize) -> u32 {
    number as u32
}

/// One region of a device, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Its index among the device's regions.
    pub index: u32,
    /// Bytes; 0 when the device does not have it.
    pub size: u64,
    /// Where it begins in the device's file.
    pub(crate) offset: u64,
    /// Whether it can be read.
    pub readable: bool,
    /// Whether it can be written.
    pub writable: bool,
    /// The areas that can be mapped, page aligned; none when it must be read and written.
    pub mappable: Vec<Range<u64>>,
}

/// Reads what the kernel says about a region.
pub(crate) fn read(device: &impl AsFd, index: u32) -> io::Result<Region> {
    let request = vfio_region_info { index, ..Default::default() };
    let (info, bytes) = ioctl::info(device, ioctl::VFIO_DEVICE_GET_REGION_INFO(), request)?;
    Ok(describe(&info, &bytes))
}

#[expect(clippy::single_range_in_vec_init, reason = "a list of areas, of which there is one")]
fn describe(info: &vfio_region_info, bytes: &[u8]) -> Region {
    let has = |flag| info.flags & flag != 0;
    let offset = if has(VFIO_REGION_INFO_FLAG_CAPS) { info.cap_offset } else { 0 };
    let mut region = Region {
        index: info.index,
        size: info.size,
        offset: info.offset,
        readable: has(VFIO_REGION_INFO_FLAG_READ),
        writable: has(VFIO_REGION_INFO_FLAG_WRITE),
        mappable: if has(VFIO_REGION_INFO_FLAG_MMAP) && info.size > 0 {
            vec![0..info.size]
        } else {
            Vec::new()
        },
    };
    for (id, body) in ioctl::capabilities(bytes, offset) {
        if u32::from(id) == VFIO_REGION_INFO_CAP_SPARSE_MMAP && !region.mappable.is_empty() {
            let area = |(start, len): (u64, u64)| {
                let end = start.checked_add(len)?;
                (len > 0 && end <= info.size).then_some(start..end)
            };
            region.mappable = ioctl::pairs(body).into_iter().filter_map(area).collect();
        }
    }
    region
}

/// A piece of a region mapped into this process; the device stays open as long as it is.
#[derive(Debug)]
pub struct MappedArea {
    start: NonNull<u8>,
    len: usize,
    /// A live mapping keeps the device busy in the kernel; so it is part of the device's life here as well.
    _device: Arc<VfioDevice>,
}

// SAFETY: the mapping is device memory that is never accessed through this type, only handed on.
unsafe impl Send for MappedArea {}
// SAFETY: as above.
unsafe impl Sync for MappedArea {}

impl MappedArea {
    /// Maps `area` of a region; it must lie in one of [`Region::mappable`] and be whole pages.
    pub fn new(device: &Arc<VfioDevice>, region: &Region, area: Range<u64>) -> Result<MappedArea, VfioError> {
        let what = || format!("map {:#x}-{:#x} of region {}", area.start, area.end, region.index);
        let fail = |cause| VfioError::new(device.name(), what(), cause, "See the kernel's log (`dmesg`)");
        let inside = |other: &Range<u64>| area.start >= other.start && area.end <= other.end;
        let len = area.end.saturating_sub(area.start);
        if len == 0 || !region.mappable.iter().any(inside) {
            return Err(fail(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        let protection = if region.readable { libc::PROT_READ } else { 0 }
            | if region.writable { libc::PROT_WRITE } else { 0 };
        let at = (region.offset + area.start) as libc::off_t;
        let fd = device.as_fd().as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice, of the device's own file.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len as usize, protection, libc::MAP_SHARED, fd, at) };
        match NonNull::new(start.cast::<u8>()) {
            Some(address) if start != libc::MAP_FAILED => {
                Ok(MappedArea { start: address, len: len as usize, _device: device.clone() })
            }
            _ => Err(fail(io::Error::last_os_error())),
        }
    }

    /// First byte. Valid as long as `self`.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false: an area is at least a page.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Drop for MappedArea {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; the owner has removed all uses of its address before.
        if unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) } != 0 {
            say::error(format_args!("cannot unmap a device's memory: {}", io::Error::last_os_error()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32, size: u64) -> vfio_region_info {
        vfio_region_info { flags, size, cap_offset: 32, ..Default::default() }
    }

    fn sparse(areas: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        bytes.extend([1u16, 1].map(u16::to_ne_bytes).concat());
        bytes.extend([0, areas.len() as u32, 0].map(u32::to_ne_bytes).concat());
        bytes.extend(areas.iter().flat_map(|(start, len)| [start.to_ne_bytes(), len.to_ne_bytes()].concat()));
        bytes
    }

    #[test]
    fn a_region_is_mappable_whole_unless_it_lists_areas() {
        assert_eq!(describe(&info(0x7, 0x4000), &[]).mappable, vec![0..0x4000]);
        assert_eq!(describe(&info(0x3, 0x4000), &[]).mappable, Vec::new());
        let region = describe(&info(0xf, 0x4000), &sparse(&[(0, 0x1000), (0x2000, 0x2000)]));
        assert_eq!(region.mappable, vec![0..0x1000, 0x2000..0x4000]);
    }

    #[test]
    fn areas_beyond_the_region_are_not_believed() {
        let region = describe(&info(0xf, 0x4000), &sparse(&[(0x3000, 0x2000), (u64::MAX, 2), (0x1000, 0)]));
        assert_eq!(region.mappable, Vec::new());
    }
}
