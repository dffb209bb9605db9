//! VFIO's ioctls (linux/vfio.h): numbers, calls, and structures with a tail.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(VFIO_GET_API_VERSION, VFIO_TYPE.into(), VFIO_BASE);
ioctl_io_nr!(VFIO_CHECK_EXTENSION, VFIO_TYPE.into(), VFIO_BASE + 1);
ioctl_io_nr!(VFIO_SET_IOMMU, VFIO_TYPE.into(), VFIO_BASE + 2);
ioctl_io_nr!(VFIO_GROUP_GET_STATUS, VFIO_TYPE.into(), VFIO_BASE + 3);
ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, VFIO_TYPE.into(), VFIO_BASE + 4);
ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, VFIO_TYPE.into(), VFIO_BASE + 6);
ioctl_io_nr!(VFIO_DEVICE_GET_INFO, VFIO_TYPE.into(), VFIO_BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, VFIO_TYPE.into(), VFIO_BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_GET_IRQ_INFO, VFIO_TYPE.into(), VFIO_BASE + 9);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, VFIO_TYPE.into(), VFIO_BASE + 10);
ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO_TYPE.into(), VFIO_BASE + 11);
ioctl_io_nr!(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, VFIO_TYPE.into(), VFIO_BASE + 12);
ioctl_io_nr!(VFIO_DEVICE_PCI_HOT_RESET, VFIO_TYPE.into(), VFIO_BASE + 13);
ioctl_io_nr!(VFIO_DEVICE_BIND_IOMMUFD, VFIO_TYPE.into(), VFIO_BASE + 18);
ioctl_io_nr!(VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_TYPE.into(), VFIO_BASE + 19);
ioctl_io_nr!(VFIO_DEVICE_DETACH_IOMMUFD_PT, VFIO_TYPE.into(), VFIO_BASE + 20);
ioctl_io_nr!(VFIO_IOMMU_GET_INFO, VFIO_TYPE.into(), VFIO_BASE + 12);
ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, VFIO_TYPE.into(), VFIO_BASE + 13);
ioctl_io_nr!(VFIO_IOMMU_UNMAP_DMA, VFIO_TYPE.into(), VFIO_BASE + 14);

/// The number of an ioctl.
pub(crate) type Request = std::os::raw::c_ulong;

/// No structure of VFIO's is larger than this; a larger size from the kernel is an error.
const LARGEST: usize = 1 << 20;

fn answer(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// An ioctl without an argument.
pub(crate) fn none(fd: &impl AsRawFd, request: Request) -> io::Result<i32> {
    // SAFETY: such a request touches no memory of ours.
    answer(unsafe { vmm_sys_util::ioctl::ioctl(fd, request) })
}

/// An ioctl whose argument is a number.
pub(crate) fn value(fd: &impl AsRawFd, request: Request, value: u64) -> io::Result<i32> {
    // SAFETY: as `none`.
    answer(unsafe { vmm_sys_util::ioctl::ioctl_with_val(fd, request, value) })
}

/// An ioctl that reads a structure of ours. The structure's `argsz`, where it has one, must be its size.
pub(crate) fn read<T>(fd: &impl AsRawFd, request: Request, argument: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads at most the structure's size, for which VFIO requests take what `argsz` says.
    answer(unsafe { vmm_sys_util::ioctl::ioctl_with_ref(fd, request, argument) })
}

/// An ioctl that reads and writes a structure of ours. As for [`read`].
pub(crate) fn write<T>(fd: &impl AsRawFd, request: Request, argument: &mut T) -> io::Result<i32> {
    // SAFETY: as `read`; and what the kernel writes stays within the structure too.
    answer(unsafe { vmm_sys_util::ioctl::ioctl_with_mut_ref(fd, request, argument) })
}

/// An ioctl that reads a structure with a tail, given as words; the first is its length in bytes (`argsz`).
pub(crate) fn words(fd: &impl AsRawFd, request: Request, words: &mut [u32]) -> io::Result<i32> {
    debug_assert!(words[0] as usize <= size_of_val(words));
    // SAFETY: the kernel reads and writes at most `argsz` bytes, which the slice has.
    answer(unsafe { vmm_sys_util::ioctl::ioctl_with_mut_ptr(fd, request, words.as_mut_ptr()) })
}

/// A structure of VFIO's that begins with `argsz`: plain numbers without padding.
///
/// # Safety
/// The type must be `repr(C)`, valid for every pattern of bits, without padding, and begin with a `u32` that
/// is the length in bytes.
pub(crate) unsafe trait Header: Copy {}
// SAFETY: as linux/vfio.h defines them: only integers, with explicit padding.
unsafe impl Header for vfio_bindings::bindings::vfio::vfio_iommu_type1_info {}
// SAFETY: as above.
unsafe impl Header for vfio_bindings::bindings::vfio::vfio_region_info {}

/// An ioctl that fills a structure and a chain of capabilities behind it, whose length the kernel knows:
/// returns the structure, and all bytes including it.
pub(crate) fn info<H: Header>(fd: &impl AsFd, request: Request, header: H) -> io::Result<(H, Vec<u8>)> {
    let mut len = size_of::<H>();
    loop {
        let mut buffer = vec![0u64; len.div_ceil(8)];
        // SAFETY: the buffer has room for `H` and is aligned to 8, which no such structure exceeds.
        unsafe { buffer.as_mut_ptr().cast::<H>().write(header) };
        // SAFETY: by `Header`, the first word is `argsz`.
        unsafe { buffer.as_mut_ptr().cast::<u32>().write(len as u32) };
        // SAFETY: the kernel writes at most `argsz` = `len` bytes, which the buffer has.
        answer(unsafe {
            vmm_sys_util::ioctl::ioctl_with_mut_ptr(&fd.as_fd(), request, buffer.as_mut_ptr())
        })?;
        let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).take(len).collect();
        let wanted = u32_at(&bytes, 0).unwrap_or(0) as usize;
        if wanted > len && wanted <= LARGEST {
            len = wanted;
            continue;
        }
        // SAFETY: the buffer holds an `H`, which by `Header` is valid whatever the bits.
        return Ok((unsafe { buffer.as_ptr().cast::<H>().read() }, bytes));
    }
}

/// The chain of capabilities (`vfio_info_cap_header`) at `offset` of an information structure: number and what
/// follows the header. A chain that runs backwards or out of the bytes ends there.
pub(crate) fn capabilities(bytes: &[u8], mut offset: u32) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while offset != 0 {
        let Some(header) = bytes.get(offset as usize..).filter(|rest| rest.len() >= 8) else { break };
        let next = u32_at(header, 4).unwrap_or(0);
        found.push((u16::from_ne_bytes([header[0], header[1]]), &header[8..]));
        if next <= offset {
            break;
        }
        offset = next;
    }
    found
}

/// The list in a capability that begins with a count and a reserved word and goes on with pairs of 64 bits:
/// IOVA ranges and sparse areas both do.
pub(crate) fn pairs(body: &[u8]) -> Vec<(u64, u64)> {
    let count = u32_at(body, 0).unwrap_or(0) as usize;
    let u64_at = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    let rest = body.get(8..).unwrap_or_default();
    rest.chunks_exact(16).take(count).map(|pair| (u64_at(&pair[..8]), u64_at(&pair[8..]))).collect()
}

/// The 32 bits at `offset`, if they are there.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_numbers_are_those_of_the_header() {
        assert_eq!(VFIO_GET_API_VERSION(), 0x3b64);
        assert_eq!(VFIO_IOMMU_MAP_DMA(), 0x3b71);
        assert_eq!(VFIO_DEVICE_SET_IRQS(), 0x3b6e);
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let mut bytes = vec![0u8; 32];
        bytes[8..10].copy_from_slice(&7u16.to_ne_bytes());
        bytes[12..16].copy_from_slice(&8u32.to_ne_bytes());
        assert_eq!(capabilities(&bytes, 8).len(), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_chain_panic_or_run_for_ever(bytes: Vec<u8>, offset: u32) {
            for (_, body) in capabilities(&bytes, offset % 64) {
                pairs(body);
            }
        }
    }
}
