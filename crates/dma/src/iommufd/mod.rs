//! The back end over iommufd (linux/iommufd.h): every domain is an IOAS of one /dev/iommu, and memory that several
//! of them map is pinned once.

mod kernel;
mod share;
mod space;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

pub(crate) use kernel::IoasId;
pub(crate) use space::Space;

use crate::vfio::VfioError;
use kernel::DevIommu;
use share::{Naming, Share};

/// Where the kernel offers iommufd.
const PATH: &str = "/dev/iommu";

/// /dev/iommu, opened once for a VM: its domains share what they pin only within one.
#[derive(Debug)]
pub struct Iommufd {
    share: Arc<Share<DevIommu>>,
}

impl Iommufd {
    /// Opens /dev/iommu.
    pub fn open() -> Result<Arc<Iommufd>, VfioError> {
        Iommufd::open_at(Path::new(PATH))
    }

    fn open_at(path: &Path) -> Result<Arc<Iommufd>, VfioError> {
        let file = File::options().read(true).write(true).open(path).map_err(|cause| {
            let hint = match cause.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                    "Load iommufd (`modprobe iommufd`; it needs a kernel with CONFIG_IOMMUFD), or use VFIO type1 \
                     (`--dma type1`)"
                }
                Some(libc::EACCES | libc::EPERM) => {
                    "Run as root, or give your user access to that file (`chown`)"
                }
                _ => "See the kernel's log (`dmesg`)",
            };
            VfioError::new(path.display().to_string(), "open it", cause, hint)
        })?;
        Ok(Arc::new(Iommufd { share: Arc::new(Share::new(DevIommu(file))) }))
    }

    /// Whether the kernel maps guest RAM by its files (Linux 6.13), not by where they lie in this process.
    pub fn maps_files(&self) -> bool {
        self.share.naming == Naming::File
    }

    /// Bytes that its domains map, each byte counted once however many of them do.
    pub fn mapped(&self) -> u64 {
        self.share.bytes()
    }
}

impl AsFd for Iommufd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.share.kernel.0.as_fd()
    }
}

#[cfg(test)]
mod opening {
    use super::*;

    #[test]
    fn without_iommufd_the_error_says_what_to_load_and_what_else_there_is() {
        let text = Iommufd::open_at(Path::new("/no/iommu")).unwrap_err().to_string();
        assert!(text.starts_with("/no/iommu: cannot open it: No such file or directory"), "{text}");
        assert!(text.contains("modprobe iommufd") && text.contains("--dma type1"), "{text}");
    }
}
