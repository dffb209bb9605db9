//! Compressed Linux kernels: the boot header of Linux's x86 boot protocol
//! (Documentation/arch/x86/boot.rst).

use std::ops::Range;

use memory::{Gpa, GpaRange};

use super::{Header, KernelError, damaged, unsupported};
use crate::map::low;
use crate::source::Source;

/// Where the setup header begins, in the file and in the boot parameters.
pub(crate) const SETUP_HEADER: usize = 0x1f1;
/// Where it ends at most: where the boot parameters' next field begins.
const SETUP_HEADER_END: usize = 0x290;

/// Protocol 2.12, Linux 3.8: the first with `xloadflags`.
const OLDEST_PROTOCOL: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry lies this far into the kernel.
const ENTRY_64: u64 = 0x200;

/// What a bzImage's header says.
#[derive(Debug)]
pub(crate) struct BzImage {
    header: Vec<u8>,
    code: Range<u64>,
    range: GpaRange,
    initrd_max: Gpa,
    command_line_max: u32,
}

impl BzImage {
    pub(super) fn is_one(start: &[u8]) -> bool {
        start.get(0x1fe..0x200) == Some(b"\x55\xaa") && start.get(0x202..0x206) == Some(b"HdrS")
    }

    /// The setup header, as it belongs at [`SETUP_HEADER`] of the boot parameters.
    pub(crate) fn header(&self) -> &[u8] {
        &self.header
    }

    /// The part of the file that is the kernel.
    pub(crate) fn code(&self) -> Range<u64> {
        self.code.clone()
    }

    /// Where the kernel goes, with the memory it needs until it has read the memory map.
    pub(crate) fn range(&self) -> GpaRange {
        self.range
    }

    /// The 64-bit entry point.
    pub(crate) fn entry(&self) -> Gpa {
        Gpa(self.range.start().0 + ENTRY_64)
    }

    /// The last byte of an initrd may lie here.
    pub(crate) fn initrd_max(&self) -> Gpa {
        self.initrd_max
    }

    /// The longest command line, without its final zero.
    pub(crate) fn command_line_max(&self) -> u32 {
        self.command_line_max
    }

    pub(super) fn parse(source: &Source, start: &[u8]) -> Result<BzImage, KernelError> {
        let Some(whole) = start.get(..SETUP_HEADER_END) else {
            return Err(damaged(source, "it ends within its boot header"));
        };
        let header = Header(whole);
        let field8 = |at| header.u8(at).expect("inside the setup header");
        let field16 = |at| header.u16(at).expect("inside the setup header");
        let field32 = |at| header.u32(at).expect("inside the setup header");

        check_protocol(source, field16(0x206), field8(0x211), field16(0x236))?;
        // Protocol: 0 stands for 4 sectors.
        let sectors = match field8(SETUP_HEADER) {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let code = (sectors + 1) * 512..source.len();
        let size = u64::from(field32(0x1f4)) * 16;
        let in_file = code.end.saturating_sub(code.start);
        if size == 0 || in_file < size || in_file <= ENTRY_64 {
            let what = format!("its header speaks of {size} bytes of code, but the file has {in_file}");
            return Err(damaged(source, what));
        }

        let preferred = header.u64(0x258).expect("inside the setup header");
        let (alignment, relocatable) = (field32(0x230), field8(0x234) != 0);
        let working = u64::from(field32(0x260)).max(in_file);
        let range = place(preferred, alignment, relocatable, working).ok_or_else(|| {
            damaged(source, format!("it wants to lie at {preferred:#x}, aligned to {alignment:#x}"))
        })?;

        let end = (0x202 + usize::from(field8(0x201))).clamp(0x268, SETUP_HEADER_END);
        Ok(BzImage {
            header: whole[SETUP_HEADER..end].to_vec(),
            code,
            range,
            initrd_max: Gpa(field32(0x22c).into()),
            command_line_max: field32(0x238),
        })
    }
}

fn check_protocol(source: &Source, version: u16, loadflags: u8, xloadflags: u16) -> Result<(), KernelError> {
    if version < OLDEST_PROTOCOL {
        let what = format!("speaks version {}.{:02} of Linux's boot protocol", version >> 8, version & 0xff);
        return Err(unsupported(source, what, "skep needs 2.12, which Linux has had since 3.8."));
    }
    if loadflags & LOADED_HIGH == 0 {
        return Err(unsupported(source, "is a zImage, which loads below 1 MiB", "Build a bzImage."));
    }
    if xloadflags & XLF_KERNEL_64 == 0 {
        return Err(unsupported(source, "is a 32-bit kernel", "skep starts 64-bit x86 kernels only."));
    }
    Ok(())
}

/// The kernel's own favourite place, or the next one above that is aligned and above 1 MiB. Lower places would not do:
/// Linux unpacks itself at its favourite place or above, wherever it was loaded.
fn place(preferred: u64, alignment: u32, relocatable: bool, len: u64) -> Option<GpaRange> {
    let start = if relocatable {
        let alignment = u64::from(alignment);
        if !alignment.is_power_of_two() {
            return None;
        }
        Gpa(preferred).max(low::HIGH).align_up(alignment)?
    } else {
        Gpa(preferred)
    };
    GpaRange::new(start, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelImage;
    use crate::tests::tiny_bzimage;

    #[test]
    fn each_way_to_be_no_64_bit_bzimage_has_its_own_words() {
        let said = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = tiny_bzimage();
            edit(&mut bytes);
            KernelImage::from_bytes("tiny", bytes).unwrap_err().to_string()
        };
        assert!(said(&|b| b[0x206] = 0x0b).contains("version 2.11"));
        assert!(said(&|b| b[0x211] = 0).contains("zImage"));
        assert!(said(&|b| b[0x236] = 0).contains("32-bit kernel"));
        assert!(said(&|b| b[0x1f4] = 0xff).contains("bytes of code, but the file has"));
        assert!(said(&|b| b.truncate(0x210)).contains("ends within its boot header"));
        assert!(said(&|b| b[0x230] = 3).contains("aligned to"));
        assert!(said(&|b| b[0x258..0x260].fill(0xff)).contains("wants to lie at"));
    }

    #[test]
    fn a_kernel_lies_at_its_favourite_place_or_aligned_above() {
        let start = |preferred, alignment, relocatable| {
            place(preferred, alignment, relocatable, 0x1000).map(|range| range.start().0)
        };
        assert_eq!(start(0x100_0000, 0x20_0000, true), Some(0x100_0000));
        assert_eq!(start(0x110_0000, 0x20_0000, true), Some(0x120_0000));
        assert_eq!(start(0, 0x20_0000, true), Some(0x20_0000));
        assert_eq!(start(0x12_3456, 0, false), Some(0x12_3456));
        assert_eq!(start(u64::MAX, 0x20_0000, true), None);
    }
}
