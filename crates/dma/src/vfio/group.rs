//! IOMMU groups as VFIO opens them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use vfio_bindings::bindings::vfio::{
    VFIO_GROUP_FLAGS_CONTAINER_SET, VFIO_GROUP_FLAGS_VIABLE, vfio_group_status,
};

use super::error::VfioError;
use super::ioctl;

/// An open IOMMU group, which is ours alone while it is open.
#[derive(Debug)]
pub struct Group {
    number: u32,
    file: File,
}

impl Group {
    /// Opens group `number`; all its devices must be free of the host's drivers.
    pub fn open(number: u32) -> Result<Group, VfioError> {
        Group::open_at(Path::new("/dev/vfio"), number)
    }

    fn open_at(dir: &Path, number: u32) -> Result<Group, VfioError> {
        let path = dir.join(number.to_string());
        let name = format!("IOMMU group {number}");
        let file = File::options().read(true).write(true).open(&path).map_err(|cause| {
            let hint = match cause.raw_os_error() {
                Some(libc::ENOENT) => "No device of it is bound to vfio-pci",
                Some(libc::EACCES | libc::EPERM) => {
                    "Run as root, or give your user access to that file (`chown`)"
                }
                Some(libc::EBUSY) => "Another process has it open: `fuser -v /dev/vfio/*` names it",
                _ => "See the kernel's log (`dmesg`)",
            };
            VfioError::new(&name, format!("open {}", path.display()), cause, hint)
        })?;
        let mut status =
            vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, ..Default::default() };
        ioctl::write(&file, ioctl::VFIO_GROUP_GET_STATUS(), &mut status)
            .map_err(|cause| VfioError::new(&name, "ask for its status", cause, ""))?;
        let refuse =
            |what, hint| Err(VfioError::new(&name, what, io::Error::from_raw_os_error(libc::EBUSY), hint));
        if status.flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            let hint = "The host's drivers have other devices of the group; bind all of them to vfio-pci";
            return refuse("use it", hint);
        }
        if status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET != 0 {
            return refuse("put it into a DMA domain", "It is in one already");
        }
        Ok(Group { number, file })
    }

    /// The kernel's number for it.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Puts the group into a container.
    pub(crate) fn enter(&self, container: &File) -> Result<(), VfioError> {
        let fd = container.as_raw_fd();
        ioctl::read(&self.file, ioctl::VFIO_GROUP_SET_CONTAINER(), &fd).map_err(|cause| {
            let hint = match cause.raw_os_error() {
                Some(libc::EBUSY) => "It is in a container already, or a driver of the host still owns it",
                Some(libc::EPERM) => "Interrupt remapping is missing; enable it in the firmware set-up",
                Some(libc::EINVAL) => "Its IOMMU cannot translate together with the other groups of this VM",
                _ => "See the kernel's log (`dmesg`)",
            };
            VfioError::new(format!("IOMMU group {}", self.number), "put it into a DMA domain", cause, hint)
        })?;
        Ok(())
    }

    /// One that is no group, for tests.
    #[cfg(test)]
    pub(super) fn of_nothing() -> Group {
        Group { number: 0, file: File::open("/dev/null").unwrap() }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_a_device_at_vfio_says_so() {
        let text = Group::open_at(Path::new("/no/vfio"), 9).unwrap_err().to_string();
        assert!(text.starts_with("IOMMU group 9: cannot open /no/vfio/9: No such file"), "{text}");
        assert!(text.contains("bound to vfio-pci"), "{text}");
    }

    #[test]
    fn a_file_that_is_no_group_is_an_error() {
        let text = Group::open_at(Path::new("/dev"), 0).unwrap_err().to_string();
        assert!(text.contains("/dev/0"), "{text}");
    }
}
