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

/// Protocol 2.07, Linux 2.6.24: the first whose kernels can be entered in protected mode by the documented protocol.
const OLDEST_PROTOCOL: u16 = 0x0207;
/// The first with `pref_address` and `init_size`.
const SAYS_ITS_NEEDS: u16 = 0x020a;
/// The first with `xloadflags`.
const SAYS_ITS_ENTRIES: u16 = 0x020c;
/// Where the header of [`OLDEST_PROTOCOL`] ends.
const SHORTEST_HEADER_END: usize = 0x248;

const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry lies this far into the kernel.
const ENTRY_64: u64 = 0x200;
/// `syssize` counts in these bytes.
pub(super) const PARAGRAPH: u64 = 16;
/// Kernels that do not say how much memory they need while they unpack themselves need less than their size so many
/// times over. (GRUB takes the same.)
const UNPACKED_AT_MOST: u64 = 3;

/// What a bzImage's header says.
#[derive(Debug)]
pub(crate) struct BzImage {
    header: Vec<u8>,
    code: Range<u64>,
    range: GpaRange,
    entry: Entry,
    initrd_max: Gpa,
    command_line_max: u32,
}

/// How a bzImage is entered. boot.rst, "32-bit Boot Protocol" and "64-bit Boot Protocol".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// In protected mode without paging, at this address.
    Protected(Gpa),
    /// In long mode, at this address.
    Long(Gpa),
}

impl BzImage {
    pub(super) fn is_one(start: &[u8]) -> bool {
        start.get(0x1fe..0x200) == Some(b"\x55\xaa") && start.get(0x202..0x206) == Some(b"HdrS")
    }

    /// The setup header, as it belongs at [`SETUP_HEADER`] of the boot parameters.
    pub(crate) fn header(&self) -> &[u8] {
        &self.header
    }

    /// The part of the file that is the kernel. In RAM, zeroes fill its last paragraph of 16 bytes.
    pub(crate) fn code(&self) -> Range<u64> {
        self.code.clone()
    }

    /// Where the kernel goes, with the memory it needs until it has read the memory map. At least whole paragraphs of code.
    pub(crate) fn range(&self) -> GpaRange {
        self.range
    }

    /// Where it is entered: in long mode if it can be.
    pub(crate) fn entry(&self) -> Entry {
        self.entry
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

        let version = field16(0x206);
        check_protocol(source, version, field8(0x211))?;
        // Protocol: 0 stands for 4 sectors.
        let sectors = match field8(SETUP_HEADER) {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let code = (sectors + 1) * 512..source.len();
        let size = u64::from(field32(0x1f4)) * PARAGRAPH;
        let in_file = code.end.saturating_sub(code.start);
        // The last paragraph need not be whole in the file.
        let len = in_file.next_multiple_of(PARAGRAPH);
        if size == 0 || len < size {
            let what = format!("its header speaks of {size} bytes of code, but the file has {in_file}");
            return Err(damaged(source, what));
        }

        let (preferred, working) = if version >= SAYS_ITS_NEEDS {
            (header.u64(0x258).expect("inside the setup header"), u64::from(field32(0x260)))
        } else {
            (low::HIGH.0, len.saturating_mul(UNPACKED_AT_MOST))
        };
        let (alignment, relocatable) = (field32(0x230), field8(0x234) != 0);
        let range = place(preferred, alignment, relocatable, working.max(len)).ok_or_else(|| {
            damaged(source, format!("it wants to lie at {preferred:#x}, aligned to {alignment:#x}"))
        })?;
        let is_long = version >= SAYS_ITS_ENTRIES && field16(0x236) & XLF_KERNEL_64 != 0;
        let entry = if is_long {
            long_entry(source, range.start(), in_file)?
        } else {
            protected_entry(source, range.start(), in_file, field32(0x214))?
        };

        let end = (0x202 + usize::from(field8(0x201))).clamp(SHORTEST_HEADER_END, SETUP_HEADER_END);
        Ok(BzImage {
            header: whole[SETUP_HEADER..end].to_vec(),
            code,
            range,
            entry,
            initrd_max: Gpa(field32(0x22c).into()),
            command_line_max: field32(0x238),
        })
    }
}

fn check_protocol(source: &Source, version: u16, loadflags: u8) -> Result<(), KernelError> {
    if version < OLDEST_PROTOCOL {
        let what = format!(
            "speaks version {}.{:02} of Linux's boot protocol, which enters kernels in real mode, with a BIOS",
            version >> 8,
            version & 0xff
        );
        let hint =
            "skep has no BIOS. Give a kernel that speaks version 2.07 or later, as Linux has since 2.6.24.";
        return Err(unsupported(source, what, hint));
    }
    if loadflags & LOADED_HIGH == 0 {
        return Err(unsupported(source, "is a zImage, which loads below 1 MiB", "Build a bzImage."));
    }
    Ok(())
}

fn long_entry(source: &Source, start: Gpa, in_file: u64) -> Result<Entry, KernelError> {
    if in_file <= ENTRY_64 {
        let what = format!("its code of {in_file} bytes ends before its 64-bit entry at {ENTRY_64:#x}");
        return Err(damaged(source, what));
    }
    Ok(Entry::Long(Gpa(start.0 + ENTRY_64)))
}

/// The 32-bit entry is where the code begins. That it is code, its header says by `code32_start`, which in an image of
/// Linux is the usual place of the code. Programs that only look like Linux (iPXE) have 0 there, and data at its beginning.
fn protected_entry(
    source: &Source,
    start: Gpa,
    in_file: u64,
    code32_start: u32,
) -> Result<Entry, KernelError> {
    let usual = low::HIGH.0..low::HIGH.0 + in_file;
    if !usual.contains(&code32_start.into()) {
        let what = format!(
            "can only be entered in real mode, with a BIOS: its header names {code32_start:#x} for protected mode, where \
             none of its code lies"
        );
        let hint = "skep has no BIOS. Give a kernel that can be entered in protected mode, as every Linux since 2.6.24 can.";
        return Err(unsupported(source, what, hint));
    }
    Ok(Entry::Protected(start))
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
    fn each_way_to_be_no_bzimage_has_its_own_words() {
        let said = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = tiny_bzimage();
            edit(&mut bytes);
            KernelImage::from_bytes("tiny", bytes).unwrap_err().to_string()
        };
        assert!(said(&|b| b[0x206] = 6).contains("version 2.06 of Linux's boot protocol"));
        assert!(said(&|b| b[0x206] = 6).contains("Give a kernel that speaks version 2.07"));
        assert!(said(&|b| b[0x211] = 0).contains("zImage"));
        assert!(said(&|b| b[0x1f4] = 0xff).contains("bytes of code, but the file has"));
        assert!(said(&|b| b[0x1f4..0x1f8].fill(0)).contains("speaks of 0 bytes of code"));
        assert!(said(&|b| b.truncate(0x210)).contains("ends within its boot header"));
        assert!(said(&|b| b[0x230] = 3).contains("aligned to"));
        assert!(said(&|b| b[0x258..0x260].fill(0xff)).contains("wants to lie at"));
        let short = said(&|b| {
            b[0x1f4..0x1f8].copy_from_slice(&1u32.to_le_bytes());
            b.truncate(1024 + 0x200);
        });
        assert!(short.contains("ends before its 64-bit entry"), "{short}");
        let real_mode = said(&|b| {
            b[0x236] = 0;
            b[0x214..0x218].fill(0);
        });
        assert!(real_mode.contains("can only be entered in real mode") && real_mode.contains("has no BIOS"));
    }

    fn parsed(edit: &dyn Fn(&mut Vec<u8>)) -> BzImage {
        let mut bytes = tiny_bzimage();
        edit(&mut bytes);
        let start = bytes.clone();
        BzImage::parse(&Source::from_bytes("tiny", bytes), &start).unwrap()
    }

    #[test]
    fn the_last_paragraph_of_the_code_need_not_be_whole() {
        for missing in 1..PARAGRAPH {
            let image = parsed(&|b| b.truncate(b.len() - missing as usize));
            assert_eq!(image.code().end - image.code().start, 2048 - missing);
        }
        let mut bytes = tiny_bzimage();
        bytes.truncate(bytes.len() - PARAGRAPH as usize);
        let error = KernelImage::from_bytes("tiny", bytes).unwrap_err().to_string();
        assert!(error.contains("speaks of 2048 bytes of code, but the file has 2032"), "{error}");
    }

    #[test]
    fn a_kernel_without_a_64_bit_entry_is_entered_where_its_code_begins() {
        assert_eq!(parsed(&|_| {}).entry(), Entry::Long(Gpa(0x100_0200)));
        assert_eq!(parsed(&|b| b[0x236] = 0).entry(), Entry::Protected(Gpa(0x100_0000)));
        // Before 2.12 there was no word about a 64-bit entry: what lies there is not looked at.
        assert_eq!(parsed(&|b| b[0x206] = 0x0b).entry(), Entry::Protected(Gpa(0x100_0000)));
    }

    #[test]
    fn before_2_10_a_kernel_lies_at_1_mib_and_is_taken_to_need_three_times_its_size() {
        let old = |relocatable: u8| {
            parsed(&|b| {
                (b[0x206], b[0x201], b[0x234]) = (7, 0x46, relocatable);
                // The place and the need of later protocols are code of this one's.
                b[0x248..0x268].fill(0xcc);
            })
        };
        assert_eq!(old(0).range(), GpaRange::new(Gpa(0x10_0000), 3 * 2048).unwrap());
        assert_eq!(old(1).range(), GpaRange::new(Gpa(0x20_0000), 3 * 2048).unwrap());
        assert_eq!(old(0).header().len(), SHORTEST_HEADER_END - SETUP_HEADER);
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
