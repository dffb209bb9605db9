//! The address space of a domain: an IOAS, and what the devices that are to be attached to it can reach.

use std::io;
use std::sync::Arc;

use super::Iommufd;
use super::kernel::{DevIommu, IoasId};
use super::share::Ioas;
use crate::backend::{BackEnd, Backend, Source};
use crate::iova::IovaRange;
use crate::ledger::Permission;
use crate::limits::Limits;
use crate::memlock::{self, MemlockError};
use crate::vfio::{BoundCdev, VfioError};

/// An IOAS and its limits.
#[derive(Debug)]
pub(crate) struct Space {
    ioas: Ioas<DevIommu>,
    limits: Limits,
}

impl Space {
    /// Makes the address space in which these devices will do DMA. They are attached to it, empty as it is, for a
    /// moment: an IOAS without devices claims that everything can be mapped.
    pub fn new(iommufd: &Iommufd, cdevs: &[Arc<BoundCdev>]) -> Result<Space, VfioError> {
        let fail =
            |what| move |cause| VfioError::new(super::PATH, what, cause, "See the kernel's log (`dmesg`)");
        let ioas = Ioas::new(&iommufd.share).map_err(fail("make an address space (IOAS)"))?;
        let mut attached = Vec::new();
        let measured = cdevs.iter().try_for_each(|cdev| {
            cdev.attach(ioas.id)?;
            attached.push(cdev);
            Ok(())
        });
        let ranges = measured.and_then(|()| ioas.ranges().map_err(fail("ask what can be mapped")));
        let detached = attached.into_iter().map(|cdev| cdev.detach()).fold(Ok(()), Result::and);
        // If both fail, the first error matters: the devices are closed then, which also detaches them.
        let (ranges, alignment) = ranges?;
        detached?;
        Ok(Space { ioas, limits: limits(ranges, alignment) })
    }

    /// The number that devices are attached by.
    pub fn id(&self) -> IoasId {
        self.ioas.id
    }
}

/// The kernel splits mappings into pages as the IOMMU has them, so that only the smallest is of interest.
fn limits(ranges: Vec<IovaRange>, alignment: u64) -> Limits {
    Limits { ranges, page_sizes: alignment.max(4096), mappings_left: None }
}

/// A domain's hold on its address space; the devices attached to it hold it too.
impl Backend for Arc<Space> {
    fn kind(&self) -> BackEnd {
        BackEnd::Iommufd
    }

    fn limits(&self) -> io::Result<Limits> {
        Ok(self.limits.clone())
    }

    fn reserve(&self, source: &Source<'_>, bytes: u64) -> Result<(), MemlockError> {
        // What is mapped is pinned, and counts, only when a device is attached: until then this is the sum to be.
        let (all, new) = self.ioas.pins_with(source, bytes);
        memlock::raise_for_pins(all, new)
    }

    unsafe fn map(&mut self, iova: IovaRange, source: Source<'_>, permission: Permission) -> io::Result<()> {
        // SAFETY: the same contract.
        let mapped = unsafe { self.ioas.map(iova, source, permission) };
        match source.file {
            Some(_) => mapped,
            None => mapped.map_err(of_device_memory),
        }
    }

    fn unmap(&mut self, iova: IovaRange) -> io::Result<u64> {
        self.ioas.unmap(iova)
    }
}

/// iommufd pins what it maps, and what a device's memory is mapped by in this process has no pages to pin.
fn of_device_memory(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EFAULT) => io::Error::new(
            io::ErrorKind::Unsupported,
            "iommufd does not map the memory of devices in this kernel, VFIO type1 does (--dma type1)",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iova::Iova;

    #[test]
    fn mappings_are_whole_pages_even_where_the_kernel_asks_for_less() {
        let all = IovaRange::inclusive(Iova(0), Iova(u64::MAX)).unwrap();
        assert_eq!(limits(vec![all], 1).page_sizes, 4096);
        assert_eq!(limits(vec![all], 65536).page_sizes, 65536);
    }

    #[test]
    fn device_memory_that_cannot_be_mapped_is_not_taken_for_a_shortage() {
        let text = of_device_memory(io::Error::from_raw_os_error(libc::EFAULT)).to_string();
        assert!(text.contains("--dma type1"), "{text}");
        let other = of_device_memory(io::Error::from_raw_os_error(libc::EEXIST));
        assert_eq!(other.raw_os_error(), Some(libc::EEXIST));
    }
}
