//! The ioctls of /dev/iommu (linux/iommufd.h), and the seam where tests put a model in their place.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use iommufd_bindings::{
    IOMMUFD_CMD_DESTROY, IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_COPY, IOMMUFD_CMD_IOAS_IOVA_RANGES,
    IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_MAP_FILE, IOMMUFD_CMD_IOAS_UNMAP, iommu_destroy, iommu_ioas_alloc,
    iommu_ioas_copy, iommu_ioas_iova_ranges, iommu_ioas_map, iommu_ioas_map_file, iommu_ioas_unmap,
    iommu_iova_range, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};
use vfio_bindings::bindings::vfio::VFIO_TYPE;
use vmm_sys_util::ioctl_io_nr;

use crate::iova::{Iova, IovaRange};
use crate::ledger::Permission;
use crate::vfio::ioctl;

// iommufd took VFIO's letter, and numbers above VFIO's.
ioctl_io_nr!(IOMMU_DESTROY, VFIO_TYPE.into(), IOMMUFD_CMD_DESTROY);
ioctl_io_nr!(IOMMU_IOAS_ALLOC, VFIO_TYPE.into(), IOMMUFD_CMD_IOAS_ALLOC);
ioctl_io_nr!(IOMMU_IOAS_COPY, VFIO_TYPE.into(), IOMMUFD_CMD_IOAS_COPY);
ioctl_io_nr!(IOMMU_IOAS_IOVA_RANGES, VFIO_TYPE.into(), IOMMUFD_CMD_IOAS_IOVA_RANGES);
ioctl_io_nr!(IOMMU_IOAS_MAP, VFIO_TYPE.into(), IOMMUFD_CMD_IOAS_MAP);
ioctl_io_nr!(IOMMU_IOAS_MAP_FILE, VFIO_TYPE.into(), IOMMUFD_CMD_IOAS_MAP_FILE);
ioctl_io_nr!(IOMMU_IOAS_UNMAP, VFIO_TYPE.into(), IOMMUFD_CMD_IOAS_UNMAP);

/// More ranges than any IOMMU has; a larger number from the kernel is an error.
const MOST_RANGES: u32 = 4096;

/// The kernel's number of an IOAS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IoasId(pub u32);

/// What the kernel does for an [`super::Iommufd`].
pub(crate) trait Kernel: Send + Sync {
    /// Makes an IOAS.
    fn alloc(&self) -> io::Result<IoasId>;

    /// Removes one, which no device may be attached to.
    fn destroy(&self, ioas: IoasId) -> io::Result<()>;

    /// The IOVAs that can be mapped, and what mappings are aligned to, as of the devices attached now.
    fn ranges(&self, ioas: IoasId) -> io::Result<(Vec<IovaRange>, u64)>;

    /// Whether it knows [`Kernel::map_file`].
    fn maps_files(&self) -> bool;

    /// Maps a piece of a file in memory, as long as `iova` from `start` on.
    fn map_file(
        &self,
        ioas: IoasId,
        iova: IovaRange,
        file: BorrowedFd<'_>,
        start: u64,
        permission: Permission,
    ) -> io::Result<()>;

    /// Maps memory of this process.
    ///
    /// # Safety
    /// The memory must stay what it is until nothing maps it any more: this IOAS, and those that it was copied to.
    unsafe fn map_memory(
        &self,
        ioas: IoasId,
        iova: IovaRange,
        host: NonNull<u8>,
        permission: Permission,
    ) -> io::Result<()>;

    /// Maps what another IOAS maps at `from`, which must be one whole mapping there; it is pinned once for both.
    fn copy(
        &self,
        to: (IoasId, IovaRange),
        from: (IoasId, IovaRange),
        permission: Permission,
    ) -> io::Result<()>;

    /// Removes a whole mapping; returns how many bytes were unmapped.
    fn unmap(&self, ioas: IoasId, iova: IovaRange) -> io::Result<u64>;
}

/// /dev/iommu of this machine.
#[derive(Debug)]
pub(crate) struct DevIommu(pub File);

fn size_of_u32<T>() -> u32 {
    size_of::<T>() as u32
}

fn flags(permission: Permission) -> u32 {
    match permission {
        Permission::Read => FIXED_IOVA | READABLE,
        Permission::ReadWrite => FIXED_IOVA | READABLE | WRITEABLE,
    }
}

impl Kernel for DevIommu {
    fn alloc(&self) -> io::Result<IoasId> {
        let mut request = iommu_ioas_alloc { size: size_of_u32::<iommu_ioas_alloc>(), ..Default::default() };
        ioctl::write(&self.0, IOMMU_IOAS_ALLOC(), &mut request)?;
        Ok(IoasId(request.out_ioas_id))
    }

    fn destroy(&self, ioas: IoasId) -> io::Result<()> {
        let mut request = iommu_destroy { size: size_of_u32::<iommu_destroy>(), id: ioas.0 };
        ioctl::write(&self.0, IOMMU_DESTROY(), &mut request)?;
        Ok(())
    }

    fn ranges(&self, ioas: IoasId) -> io::Result<(Vec<IovaRange>, u64)> {
        let mut room = 16;
        loop {
            let mut ranges = vec![iommu_iova_range::default(); room as usize];
            let mut request = iommu_ioas_iova_ranges {
                size: size_of_u32::<iommu_ioas_iova_ranges>(),
                ioas_id: ioas.0,
                num_iovas: room,
                allowed_iovas: ranges.as_mut_ptr() as u64,
                ..Default::default()
            };
            // `ranges` has room for the `num_iovas` that the kernel gets.
            match ioctl::write(&self.0, IOMMU_IOAS_IOVA_RANGES(), &mut request) {
                Ok(_) => {
                    ranges.truncate(request.num_iovas as usize);
                    let range =
                        |range: &iommu_iova_range| IovaRange::inclusive(Iova(range.start), Iova(range.last));
                    let mut ranges: Vec<IovaRange> = ranges.iter().filter_map(range).collect();
                    ranges.sort_unstable();
                    return Ok((ranges, request.out_iova_alignment));
                }
                Err(error)
                    if error.raw_os_error() == Some(libc::EMSGSIZE)
                        && room < request.num_iovas
                        && request.num_iovas <= MOST_RANGES =>
                {
                    room = request.num_iovas;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn maps_files(&self) -> bool {
        // No file has this number, so the call fails either way: with ENOTTY when the kernel does not know it.
        let mut request = iommu_ioas_map_file {
            size: size_of_u32::<iommu_ioas_map_file>(),
            flags: flags(Permission::Read),
            fd: -1,
            length: 4096,
            ..Default::default()
        };
        !unknown(&ioctl::write(&self.0, IOMMU_IOAS_MAP_FILE(), &mut request))
    }

    fn map_file(
        &self,
        ioas: IoasId,
        iova: IovaRange,
        file: BorrowedFd<'_>,
        start: u64,
        permission: Permission,
    ) -> io::Result<()> {
        let mut request = iommu_ioas_map_file {
            size: size_of_u32::<iommu_ioas_map_file>(),
            flags: flags(permission),
            ioas_id: ioas.0,
            fd: file.as_raw_fd(),
            start,
            length: iova.len(),
            iova: iova.first().0,
        };
        ioctl::write(&self.0, IOMMU_IOAS_MAP_FILE(), &mut request)?;
        Ok(())
    }

    unsafe fn map_memory(
        &self,
        ioas: IoasId,
        iova: IovaRange,
        host: NonNull<u8>,
        permission: Permission,
    ) -> io::Result<()> {
        let mut request = iommu_ioas_map {
            size: size_of_u32::<iommu_ioas_map>(),
            flags: flags(permission),
            ioas_id: ioas.0,
            user_va: host.as_ptr() as u64,
            length: iova.len(),
            iova: iova.first().0,
            ..Default::default()
        };
        ioctl::write(&self.0, IOMMU_IOAS_MAP(), &mut request)?;
        Ok(())
    }

    fn copy(
        &self,
        to: (IoasId, IovaRange),
        from: (IoasId, IovaRange),
        permission: Permission,
    ) -> io::Result<()> {
        let mut request = iommu_ioas_copy {
            size: size_of_u32::<iommu_ioas_copy>(),
            flags: flags(permission),
            dst_ioas_id: to.0.0,
            src_ioas_id: from.0.0,
            length: to.1.len(),
            dst_iova: to.1.first().0,
            src_iova: from.1.first().0,
        };
        ioctl::write(&self.0, IOMMU_IOAS_COPY(), &mut request)?;
        Ok(())
    }

    fn unmap(&self, ioas: IoasId, iova: IovaRange) -> io::Result<u64> {
        let mut request = iommu_ioas_unmap {
            size: size_of_u32::<iommu_ioas_unmap>(),
            ioas_id: ioas.0,
            iova: iova.first().0,
            length: iova.len(),
        };
        ioctl::write(&self.0, IOMMU_IOAS_UNMAP(), &mut request)?;
        Ok(request.length)
    }
}

/// Whether the kernel does not know a call.
fn unknown<T>(answer: &io::Result<T>) -> bool {
    matches!(answer, Err(error) if error.raw_os_error() == Some(libc::ENOTTY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_header() {
        assert_eq!(IOMMU_DESTROY(), 0x3b80);
        assert_eq!(IOMMU_IOAS_IOVA_RANGES(), 0x3b84);
        assert_eq!(IOMMU_IOAS_MAP_FILE(), 0x3b8f);
    }

    #[test]
    fn only_a_call_that_the_kernel_does_not_know_counts_as_unknown() {
        let answer = |code| Err::<(), _>(io::Error::from_raw_os_error(code));
        assert!(unknown(&answer(libc::ENOTTY)));
        assert!(!unknown(&answer(libc::EBADF)) && !unknown(&answer(libc::ENOENT)) && !unknown(&Ok(())));
    }

    #[test]
    fn a_file_that_is_not_iommufd_maps_no_files_and_answers_no_call() {
        let null = DevIommu(File::open("/dev/null").unwrap());
        assert!(!null.maps_files());
        assert_eq!(null.alloc().unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
