//! The back end over a VFIO container with a type1 IOMMU (linux/vfio.h).

use std::fs::File;
use std::io;
use std::path::Path;

use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
    VFIO_TYPE1v2_IOMMU, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info,
};

use crate::backend::{BackEnd, Backend, Source};
use crate::iova::{Iova, IovaRange};
use crate::ledger::Permission;
use crate::limits::Limits;
use crate::memlock::{self, MemlockError};
use crate::vfio::{Group, VfioError, ioctl};

const CONTAINER: &str = "/dev/vfio/vfio";

/// What a mapping is aligned to where the kernel names no page sizes.
const PAGE: u64 = 4096;

/// A container with an IOMMU chosen, which is so once a group is in it.
pub(crate) struct Type1 {
    container: File,
}

impl Type1 {
    /// Opens a container and puts the groups into it.
    pub fn new(groups: &[Group]) -> Result<Type1, VfioError> {
        let Some((first, more)) = groups.split_first() else {
            let cause = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(VfioError::new(CONTAINER, "make a DMA domain of no IOMMU group", cause, ""));
        };
        let container = open(Path::new(CONTAINER))?;
        first.enter(&container)?;
        ioctl::value(&container, ioctl::VFIO_SET_IOMMU(), VFIO_TYPE1v2_IOMMU.into()).map_err(|cause| {
            let hint = match cause.raw_os_error() {
                Some(libc::EPERM) => {
                    "Interrupt remapping is missing, so a device could raise any interrupt of the host: enable it in \
                     the firmware set-up (VT-d, AMD-Vi, x2APIC). To run without that protection, load \
                     vfio_iommu_type1 with allow_unsafe_interrupts=1"
                }
                Some(libc::EINVAL | libc::ENODEV) => "The IOMMU does not translate for this group",
                _ => "See the kernel's log (`dmesg`)",
            };
            VfioError::new(format!("IOMMU group {}", first.number()), "set up DMA translation", cause, hint)
        })?;
        more.iter().try_for_each(|group| group.enter(&container))?;
        Ok(Type1 { container })
    }
}

fn open(path: &Path) -> Result<File, VfioError> {
    let name = path.display().to_string();
    let container = File::options().read(true).write(true).open(path).map_err(|cause| {
        let hint = match cause.raw_os_error() {
            Some(libc::ENOENT) => "Load VFIO: `modprobe vfio-pci` (and `modprobe vfio_iommu_type1`)",
            Some(libc::EACCES) => "Run as root, or give your user access to /dev/vfio",
            Some(libc::ENODEV) => "Load the type1 IOMMU driver: `modprobe vfio_iommu_type1`",
            _ => "See the kernel's log (`dmesg`)",
        };
        VfioError::new(&name, "open it", cause, hint)
    })?;
    let fail =
        |what| move |cause| VfioError::new(&name, what, cause, "This kernel's VFIO is not one skep knows");
    let version =
        ioctl::none(&container, ioctl::VFIO_GET_API_VERSION()).map_err(fail("ask for its version"))?;
    let speaks = ioctl::value(&container, ioctl::VFIO_CHECK_EXTENSION(), VFIO_TYPE1v2_IOMMU.into());
    if version as u32 != VFIO_API_VERSION || !matches!(speaks, Ok(1)) {
        let cause = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        let hint = "Load the type1 IOMMU driver: `modprobe vfio_iommu_type1`";
        return Err(VfioError::new(path.display().to_string(), "use a type1 IOMMU", cause, hint));
    }
    Ok(container)
}

impl Backend for Type1 {
    fn kind(&self) -> BackEnd {
        BackEnd::Type1
    }

    fn limits(&self) -> io::Result<Limits> {
        let (info, bytes) =
            ioctl::info(&self.container, ioctl::VFIO_IOMMU_GET_INFO(), vfio_iommu_type1_info::default())?;
        let page_sizes = if info.flags & VFIO_IOMMU_INFO_PGSIZES != 0 { info.iova_pgsizes } else { PAGE };
        let offset = if info.flags & VFIO_IOMMU_INFO_CAPS != 0 { info.cap_offset } else { 0 };
        Ok(Limits { page_sizes, ..limits(&bytes, offset) })
    }

    fn reserve(&self, _: &Source<'_>, bytes: u64) -> Result<(), MemlockError> {
        // Each container counts for itself what it pins.
        memlock::raise_memlock(bytes)
    }

    unsafe fn map(&mut self, iova: IovaRange, source: Source<'_>, permission: Permission) -> io::Result<()> {
        let write = if permission == Permission::ReadWrite { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
        let request = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | write,
            vaddr: source.host.as_ptr() as u64,
            iova: iova.first().0,
            size: iova.len(),
        };
        ioctl::read(&self.container, ioctl::VFIO_IOMMU_MAP_DMA(), &request)?;
        Ok(())
    }

    fn unmap(&mut self, iova: IovaRange) -> io::Result<u64> {
        let mut request = vfio_iommu_type1_dma_unmap {
            argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
            iova: iova.first().0,
            size: iova.len(),
            ..Default::default()
        };
        ioctl::write(&self.container, ioctl::VFIO_IOMMU_UNMAP_DMA(), &mut request)?;
        Ok(request.size)
    }
}

/// What the capability chain of VFIO_IOMMU_GET_INFO says.
fn limits(bytes: &[u8], offset: u32) -> Limits {
    let mut limits = Limits { ranges: Vec::new(), page_sizes: 0, mappings_left: None };
    for (id, body) in ioctl::capabilities(bytes, offset) {
        match u32::from(id) {
            VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                let ranges = ioctl::pairs(body).into_iter();
                limits.ranges = ranges
                    .filter_map(|(first, last)| IovaRange::inclusive(Iova(first), Iova(last)))
                    .collect();
                limits.ranges.sort_unstable();
            }
            VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => {
                limits.mappings_left = ioctl::u32_at(body, 0).map(u64::from);
            }
            _ => {}
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_the_number_of_mappings_are_read_from_the_chain() {
        let mut bytes = vec![0; 24];
        bytes.extend([1u16, 1].map(u16::to_le_bytes).concat());
        bytes.extend([72u32, 2, 0].map(u32::to_le_bytes).concat());
        bytes.extend([0u64, 0xfedf_ffff, 0xfef0_0000, u64::MAX].map(u64::to_le_bytes).concat());
        bytes.extend([3u16, 1].map(u16::to_le_bytes).concat());
        bytes.extend([0u32, 65535].map(u32::to_le_bytes).concat());
        let limits = limits(&bytes, 24);
        assert_eq!(limits.mappings_left, Some(65535));
        assert_eq!(limits.ranges[1], IovaRange::inclusive(Iova(0xfef0_0000), Iova(u64::MAX)).unwrap());
        assert_eq!(super::limits(&bytes, 0).ranges, []);
    }

    #[test]
    fn without_vfio_the_error_says_what_to_load() {
        let text = open(Path::new("/no/vfio")).unwrap_err().to_string();
        assert!(text.starts_with("/no/vfio: cannot open it: No such file or directory"), "{text}");
        assert!(text.contains("modprobe vfio-pci"), "{text}");
    }
}
