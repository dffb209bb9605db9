//! One device opened through VFIO.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, vfio_device_info};

use super::error::VfioError;
use super::group::Group;
use super::ioctl;
use super::region::{self, Region};

/// A PCI function opened through VFIO. Closing it (dropping the last share) makes the kernel disable and, where
/// it can, reset the device.
#[derive(Debug)]
pub struct VfioDevice {
    file: File,
    name: String,
    resettable: bool,
    config: Region,
    /// The group must stay open as long as the device.
    group: Arc<Group>,
}

/// A function that a bus reset would reset too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dependent {
    /// Its IOMMU group.
    pub group: u32,
    /// PCI segment, bus, and device and function as in configuration addresses.
    pub address: (u16, u8, u8),
}

impl VfioDevice {
    /// Opens a device of a group that is in a container with an IOMMU.
    pub(crate) fn open(group: Arc<Group>, address: &str) -> Result<VfioDevice, VfioError> {
        let fail = |what: &str, cause: io::Error, hint| Err(VfioError::new(address, what, cause, hint));
        let Ok(name) = CString::new(address) else {
            return fail("open it", io::ErrorKind::InvalidInput.into(), "");
        };
        // SAFETY: the request reads a C string, which `name` is for the length of the call.
        let fd = unsafe {
            vmm_sys_util::ioctl::ioctl_with_ptr(
                group.file(),
                ioctl::VFIO_GROUP_GET_DEVICE_FD(),
                name.as_ptr(),
            )
        };
        if fd < 0 {
            let cause = io::Error::last_os_error();
            let hint = match cause.raw_os_error() {
                Some(libc::ENODEV) => "It is not bound to vfio-pci, or not in this IOMMU group",
                Some(libc::EBUSY) => "Another process has it open",
                _ => "See the kernel's log (`dmesg`)",
            };
            return fail("open it", cause, hint);
        }
        // SAFETY: a new descriptor from the kernel, which nothing else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut info = vfio_device_info { argsz: size_of::<vfio_device_info>() as u32, ..Default::default() };
        if let Err(cause) = ioctl::write(&file, ioctl::VFIO_DEVICE_GET_INFO(), &mut info) {
            return fail("ask what it is", cause, "");
        }
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 || info.num_regions <= region::CONFIG {
            let cause = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
            return fail("use it as a PCI device", cause, "");
        }
        let config = match region::read(&file, region::CONFIG) {
            Ok(config) => config,
            Err(cause) => return fail("find its configuration space", cause, ""),
        };
        let resettable = info.flags & VFIO_DEVICE_FLAGS_RESET != 0;
        Ok(VfioDevice { file, name: address.to_owned(), resettable, config, group })
    }

    /// Its PCI address, as text.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The group it is in.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// What the kernel says about a region; `None` when the device has no such region, or an empty one.
    pub fn region(&self, index: u32) -> Result<Option<Region>, VfioError> {
        match region::read(&self.file, index) {
            Ok(region) => Ok((region.size > 0).then_some(region)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(cause) => Err(VfioError::new(&self.name, format!("find its region {index}"), cause, "")),
        }
    }

    /// Configuration space.
    pub fn config(&self) -> &Region {
        &self.config
    }

    /// Reads from a region, all of `data` or an error.
    pub fn read(&self, region: &Region, offset: u64, data: &mut [u8]) -> Result<(), VfioError> {
        let len = data.len();
        let done = place(region, offset, len).and_then(|at| self.file.read_exact_at(data, at));
        done.map_err(|cause| {
            let what = format!("read {len} bytes at {offset:#x} of region {}", region.index);
            VfioError::new(&self.name, what, cause, "")
        })
    }

    /// Writes to a region, all of `data` or an error.
    pub fn write(&self, region: &Region, offset: u64, data: &[u8]) -> Result<(), VfioError> {
        let what = || format!("write {} bytes at {offset:#x} of region {}", data.len(), region.index);
        let done = place(region, offset, data.len()).and_then(|at| self.file.write_all_at(data, at));
        done.map_err(|cause| VfioError::new(&self.name, what(), cause, ""))
    }

    /// Whether the kernel can reset this function by itself.
    pub fn can_reset(&self) -> bool {
        self.resettable
    }

    /// Resets this function alone, by the best means the kernel has.
    pub fn reset(&self) -> Result<(), VfioError> {
        let hint = "The device may need a power cycle; see the kernel's log (`dmesg`)";
        let fail = |cause| VfioError::new(&self.name, "reset it", cause, hint);
        ioctl::none(&self.file, ioctl::VFIO_DEVICE_RESET()).map_err(fail)?;
        Ok(())
    }

    /// The functions that a reset of the bus would reset too, this one included.
    pub fn hot_reset_dependents(&self) -> Result<Vec<Dependent>, VfioError> {
        let fail = |cause| VfioError::new(&self.name, "ask what a bus reset would reset", cause, "");
        let mut room = 16;
        loop {
            let mut words = vec![0u32; 3 + 2 * room];
            words[0] = 4 * words.len() as u32;
            match ioctl::words(&self.file, ioctl::VFIO_DEVICE_GET_PCI_HOT_RESET_INFO(), &mut words) {
                Ok(_) => {
                    let count = (words[2] as usize).min(room);
                    return Ok(words[3..].chunks_exact(2).take(count).map(dependent).collect());
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 16 => room *= 4,
                Err(cause) => return Err(fail(cause)),
            }
        }
    }

    /// Resets the bus, with all functions on it. `groups` must be all the groups they are in.
    pub fn hot_reset(&self, groups: &[Arc<Group>]) -> Result<(), VfioError> {
        let mut request = vec![4 * (3 + groups.len() as u32), 0, groups.len() as u32];
        request.extend(groups.iter().map(|group| group.as_fd().as_raw_fd() as u32));
        let fail =
            |cause| VfioError::new(&self.name, "reset its bus", cause, "See the kernel's log (`dmesg`)");
        ioctl::words(&self.file, ioctl::VFIO_DEVICE_PCI_HOT_RESET(), &mut request).map_err(fail)?;
        Ok(())
    }
}

/// `vfio_pci_dependent_device`: group; then segment, bus and device/function.
fn dependent(words: &[u32]) -> Dependent {
    let [low, high, bus, devfn] = words[1].to_ne_bytes();
    Dependent { group: words[0], address: (u16::from_ne_bytes([low, high]), bus, devfn) }
}

/// Where in the device's file an access goes; an error when it leaves the region.
fn place(region: &Region, offset: u64, len: usize) -> io::Result<u64> {
    let end = offset.checked_add(len as u64).filter(|end| *end <= region.size);
    let at = end.and_then(|_| region.offset.checked_add(offset));
    at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("it has {:#x} bytes", region.size)))
}

impl AsFd for VfioDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for VfioDevice {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_that_leaves_its_region_is_refused() {
        let region = Region {
            index: 0,
            size: 0x1000,
            offset: 1 << 40,
            readable: true,
            writable: true,
            mappable: Vec::new(),
        };
        assert_eq!(place(&region, 0xffc, 4).unwrap(), (1 << 40) + 0xffc);
        assert!(place(&region, 0xffd, 4).is_err());
        assert!(place(&region, u64::MAX, 4).is_err());
    }

    #[test]
    fn a_dependent_is_read_as_the_kernel_writes_it() {
        let word = u32::from_ne_bytes([1, 0, 0x3f, 0xfa]);
        assert_eq!(dependent(&[12, word]), Dependent { group: 12, address: (1, 0x3f, 0xfa) });
    }
}
