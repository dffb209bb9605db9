//! One device opened through VFIO.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, vfio_device_info};

use super::cdev::{Attached, BoundCdev};
use super::error::VfioError;
use super::group::Group;
use super::ioctl;
use super::region::{self, Region};
use crate::domain::Domain;
use crate::iommufd::Space;

/// A PCI function opened through VFIO. Closing it (dropping the last share) ends its DMA: one of a group is disabled
/// and, where the kernel can, reset; one with a character device is taken out of its domain, and is reset when the
/// domain goes.
#[derive(Debug)]
pub struct VfioDevice {
    handle: Handle,
    name: String,
    resettable: bool,
    config: Region,
    /// Last: as long as the device is open its DMA uses the domain, which must keep its mappings that long.
    _domain: Arc<Domain>,
}

/// The way in which it is open.
#[derive(Debug)]
enum Handle {
    /// By its group, which must stay open as long as the device.
    Group { file: File, _group: Arc<Group> },
    /// By its character device, attached to an IOAS.
    Cdev(Attached),
}

impl Handle {
    fn file(&self) -> &File {
        match self {
            Handle::Group { file, .. } => file,
            Handle::Cdev(attached) => attached.file(),
        }
    }
}

impl VfioDevice {
    /// Opens a device of a group that is in a container with an IOMMU.
    pub(crate) fn open(
        group: Arc<Group>,
        address: &str,
        domain: &Arc<Domain>,
    ) -> Result<VfioDevice, VfioError> {
        let fail = |cause: io::Error, hint| Err(VfioError::new(address, "open it", cause, hint));
        let Ok(name) = CString::new(address) else { return fail(io::ErrorKind::InvalidInput.into(), "") };
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
            return fail(cause, hint);
        }
        // SAFETY: a new descriptor from the kernel, which nothing else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        VfioDevice::describe(Handle::Group { file, _group: group }, address, domain)
    }

    /// Attaches a device to an IOAS. From now on it reaches what that maps, if it is bus master.
    pub(crate) fn attach(
        cdev: &Arc<BoundCdev>,
        space: &Arc<Space>,
        domain: &Arc<Domain>,
    ) -> Result<VfioDevice, VfioError> {
        VfioDevice::describe(Handle::Cdev(Attached::new(cdev, space)?), cdev.name(), domain)
    }

    fn describe(handle: Handle, address: &str, domain: &Arc<Domain>) -> Result<VfioDevice, VfioError> {
        let fail = |what: &str, cause: io::Error| Err(VfioError::new(address, what, cause, ""));
        let file = handle.file();
        let mut info = vfio_device_info { argsz: size_of::<vfio_device_info>() as u32, ..Default::default() };
        if let Err(cause) = ioctl::write(file, ioctl::VFIO_DEVICE_GET_INFO(), &mut info) {
            return fail("ask what it is", cause);
        }
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 || info.num_regions <= region::CONFIG {
            return fail("use it as a PCI device", io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let config = match region::read(file, region::CONFIG) {
            Ok(config) => config,
            Err(cause) => return fail("find its configuration space", cause),
        };
        let resettable = info.flags & VFIO_DEVICE_FLAGS_RESET != 0;
        let (name, _domain) = (address.to_owned(), domain.clone());
        Ok(VfioDevice { handle, name, resettable, config, _domain })
    }

    /// Its PCI address, as text.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel says about a region; `None` when the device has no such region, or an empty one.
    pub fn region(&self, index: u32) -> Result<Option<Region>, VfioError> {
        match region::read(self.handle.file(), index) {
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
        let done = place(region, offset, len).and_then(|at| self.handle.file().read_exact_at(data, at));
        done.map_err(|cause| {
            let what = format!("read {len} bytes at {offset:#x} of region {}", region.index);
            VfioError::new(&self.name, what, cause, "")
        })
    }

    /// Writes to a region, all of `data` or an error.
    pub fn write(&self, region: &Region, offset: u64, data: &[u8]) -> Result<(), VfioError> {
        let what = || format!("write {} bytes at {offset:#x} of region {}", data.len(), region.index);
        let done = place(region, offset, data.len()).and_then(|at| self.handle.file().write_all_at(data, at));
        done.map_err(|cause| VfioError::new(&self.name, what(), cause, ""))
    }

    /// Whether it is open by its group.
    pub(super) fn is_by_group(&self) -> bool {
        matches!(self.handle, Handle::Group { .. })
    }

    /// Whether the kernel can reset this function by itself.
    pub fn can_reset(&self) -> bool {
        self.resettable
    }

    /// Resets this function alone, by the best means the kernel has.
    pub fn reset(&self) -> Result<(), VfioError> {
        let hint = "The device may need a power cycle; see the kernel's log (`dmesg`)";
        let fail = |cause| VfioError::new(&self.name, "reset it", cause, hint);
        ioctl::none(self.handle.file(), ioctl::VFIO_DEVICE_RESET()).map_err(fail)?;
        Ok(())
    }
}

/// Where in the device's file an access goes; an error when it leaves the region.
fn place(region: &Region, offset: u64, len: usize) -> io::Result<u64> {
    let end = offset.checked_add(len as u64).filter(|end| *end <= region.size);
    let at = end.and_then(|_| region.offset.checked_add(offset));
    at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("it has {:#x} bytes", region.size)))
}

impl AsFd for VfioDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.file().as_fd()
    }
}

impl AsRawFd for VfioDevice {
    fn as_raw_fd(&self) -> RawFd {
        self.handle.file().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use crate::fake::FakeIommu;

    #[test]
    fn what_keeps_a_device_open_keeps_what_its_dma_goes_by() {
        let iommu = FakeIommu::new();
        let domain = iommu.domain("guest", Kind::Host);
        let ram = Arc::new(memory::Ram::new(&memory::ram_ranges(1 << 20)).unwrap());
        memory::MemoryMap::new(ram).attach(domain.clone()).unwrap();
        let region = Region {
            index: region::CONFIG,
            size: 256,
            offset: 0,
            readable: true,
            writable: true,
            mappable: Vec::new(),
        };
        let handle =
            Handle::Group { file: File::open("/dev/null").unwrap(), _group: Arc::new(Group::of_nothing()) };
        let name = "0000:01:00.0".to_owned();
        let device = Arc::new(VfioDevice { handle, name, resettable: true, config: region, _domain: domain });
        let wire = device.clone();
        drop(device);
        assert_eq!(iommu.held().len(), 1);
        drop(wire);
        assert_eq!(iommu.held(), []);
    }

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
}
