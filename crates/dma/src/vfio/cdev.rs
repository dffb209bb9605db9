//! Devices as VFIO's character devices (/dev/vfio/devices/vfioN, Linux 6.6), which iommufd translates for.

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use vfio_bindings::bindings::vfio::{
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_detach_iommufd_pt,
};

use super::error::VfioError;
use super::ioctl;
use crate::iommufd::{IoasId, Iommufd, Space};

/// A device's character device, open but not yet bound to an iommufd.
#[derive(Debug)]
pub struct Cdev {
    name: String,
    file: File,
}

impl Cdev {
    /// Opens the character device of the PCI device `address`, which must be with vfio-pci.
    pub fn open(address: &str, path: &Path) -> Result<Cdev, VfioError> {
        let file = File::options().read(true).write(true).open(path).map_err(|cause| {
            let hint = match cause.raw_os_error() {
                Some(libc::ENOENT) => {
                    "It is not bound to vfio-pci, or the kernel lacks CONFIG_VFIO_DEVICE_CDEV; VFIO type1 needs none \
                     (`--dma type1`)"
                }
                Some(libc::EACCES | libc::EPERM) => {
                    "Run as root, or give your user access to that file (`chown`)"
                }
                _ => "See the kernel's log (`dmesg`)",
            };
            VfioError::new(address, format!("open {}", path.display()), cause, hint)
        })?;
        Ok(Cdev { name: address.to_owned(), file })
    }

    /// Binds it to an iommufd, which takes its whole IOMMU group from the host. Its DMA is blocked until
    /// it is attached to something.
    pub(crate) fn bind(self, iommufd: &Arc<Iommufd>) -> Result<BoundCdev, VfioError> {
        let mut request = vfio_device_bind_iommufd {
            // The fields of Linux 6.6.
            argsz: offset_of!(vfio_device_bind_iommufd, token_uuid_ptr) as u32,
            iommufd: iommufd.as_fd().as_raw_fd(),
            ..Default::default()
        };
        ioctl::write(&self.file, ioctl::VFIO_DEVICE_BIND_IOMMUFD(), &mut request).map_err(|cause| {
            let hint = match cause.raw_os_error() {
                Some(libc::EPERM) => {
                    "Interrupt remapping is missing, so a device could raise any interrupt of the host: enable it in \
                     the firmware set-up (VT-d, AMD-Vi, x2APIC). To run without that protection, load iommufd with \
                     allow_unsafe_interrupts=1"
                }
                Some(libc::EBUSY) => {
                    "The host's drivers have other devices of its IOMMU group, or another process has the group open"
                }
                Some(libc::EINVAL) => {
                    "Another process has it open (`fuser -v /dev/vfio/devices/*` names it), or its DMA does not keep \
                     to the host's caches"
                }
                _ => "See the kernel's log (`dmesg`)",
            };
            VfioError::new(&self.name, "have iommufd translate its DMA", cause, hint)
        })?;
        Ok(BoundCdev {
            name: self.name,
            file: self.file,
            place: Mutex::new(Place::Blocked),
            _iommufd: iommufd.clone(),
        })
    }
}

/// A device that an iommufd translates for; ours alone, and its DMA blocked unless attached.
#[derive(Debug)]
pub(crate) struct BoundCdev {
    name: String,
    file: File,
    place: Mutex<Place>,
    _iommufd: Arc<Iommufd>,
}

/// What translates a device's DMA, as far as the kernel has confirmed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nowhere.
    Blocked,
    /// To what an IOAS maps.
    Attached,
}

impl BoundCdev {
    /// Its PCI address.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the device use an IOAS for its DMA. Memory that the IOAS maps is pinned now, unless it is already.
    pub fn attach(&self, ioas: IoasId) -> Result<(), VfioError> {
        let mut place = self.place();
        if *place == Place::Attached {
            // The kernel would take it as moving from one IOAS to the other.
            let cause = io::Error::from_raw_os_error(libc::EBUSY);
            return Err(VfioError::new(&self.name, "open it", cause, "It is open already"));
        }
        let mut request = vfio_device_attach_iommufd_pt {
            argsz: offset_of!(vfio_device_attach_iommufd_pt, pasid) as u32,
            pt_id: ioas.0,
            ..Default::default()
        };
        ioctl::write(&self.file, ioctl::VFIO_DEVICE_ATTACH_IOMMUFD_PT(), &mut request).map_err(|cause| {
            let hint = match cause.raw_os_error() {
                Some(libc::ENOMEM) => {
                    "Either the limit on locked memory is too low (`ulimit -l`, LimitMEMLOCK= in a unit; all processes \
                     of a user count together) or the host is short of memory"
                }
                Some(libc::EADDRINUSE) => {
                    "Memory is mapped where its IOMMU group has a reserved window; see the group's reserved_regions \
                     in sysfs"
                }
                Some(libc::EFAULT) => "The memory could not be pinned; huge pages may have run out",
                Some(libc::EINVAL) => "Its IOMMU cannot translate together with those of the domain's other devices",
                _ => "See the kernel's log (`dmesg`)",
            };
            VfioError::new(&self.name, "put it into a DMA domain", cause, hint)
        })?;
        *place = Place::Attached;
        Ok(())
    }

    /// Blocks its DMA again.
    pub fn detach(&self) -> Result<(), VfioError> {
        let mut place = self.place();
        let request = vfio_device_detach_iommufd_pt {
            argsz: offset_of!(vfio_device_detach_iommufd_pt, pasid) as u32,
            ..Default::default()
        };
        let fail = |cause| {
            let hint = "Its DMA still reaches what the domain maps; see the kernel's log (`dmesg`)";
            VfioError::new(&self.name, "take it out of its DMA domain", cause, hint)
        };
        ioctl::read(&self.file, ioctl::VFIO_DEVICE_DETACH_IOMMUFD_PT(), &request).map_err(fail)?;
        *place = Place::Blocked;
        Ok(())
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock()
    }
}

impl AsFd for BoundCdev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A device in a domain; dropping it takes the device out.
#[derive(Debug)]
pub(crate) struct Attached {
    cdev: Arc<BoundCdev>,
    /// An IOAS cannot be removed while a device is attached to it.
    _space: Arc<Space>,
}

impl Attached {
    pub fn new(cdev: &Arc<BoundCdev>, space: &Arc<Space>) -> Result<Attached, VfioError> {
        cdev.attach(space.id())?;
        Ok(Attached { cdev: cdev.clone(), _space: space.clone() })
    }

    pub fn file(&self) -> &File {
        self.cdev.file()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Err(error) = self.cdev.detach() {
            say::error(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_character_devices_is_told_from_other_failures() {
        let text = Cdev::open("0000:01:00.0", Path::new("/no/vfio0")).unwrap_err().to_string();
        assert!(text.starts_with("0000:01:00.0: cannot open /no/vfio0: No such file"), "{text}");
        assert!(text.contains("CONFIG_VFIO_DEVICE_CDEV") && text.contains("--dma type1"), "{text}");
    }

    #[test]
    fn requests_have_the_length_that_the_first_kernels_with_them_know() {
        assert_eq!(offset_of!(vfio_device_bind_iommufd, token_uuid_ptr), 16);
        assert_eq!(offset_of!(vfio_device_attach_iommufd_pt, pasid), 12);
        assert_eq!(offset_of!(vfio_device_detach_iommufd_pt, pasid), 8);
    }
}
