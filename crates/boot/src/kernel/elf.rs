//! Uncompressed kernels: an x86 ELF of 64 or 32 bits whose note names the PVH entry point
//! (xen/docs/misc/pvh.pandoc, xen/include/public/elfnote.h).

use memory::{Gpa, GpaRange};

use super::{Header, KernelError, damaged, multiboot, unsupported};
use crate::source::Source;

pub(super) const MAGIC: &[u8] = b"\x7fELF";

/// More program headers than any kernel has (Linux has 5).
const MAX_PROGRAM_HEADERS: u16 = 128;
const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// As much of a note segment as is searched. Linux's is about 500 bytes.
const MAX_NOTES: u64 = 64 << 10;
/// XEN_ELFNOTE_PHYS32_ENTRY of xen/include/public/elfnote.h.
const PHYS32_ENTRY: u32 = 18;

const OTHER: &str = "skep starts x86 kernels only.";
const NO_PVH: &str = "Use the distribution's bzImage, or build the kernel with a PVH entry (Linux: CONFIG_PVH=y) and take its vmlinux.";
const ONLY_MULTIBOOT: &str =
    "Build it with a PVH entry (Xen: CONFIG_PVH_GUEST=y), or start it by a boot loader that has one.";

/// The two classes of ELF files, which differ in the widths and the order of their fields. System V ABI, chapters 4 and 5.
/// PVH enters both in 32-bit protected mode.
#[derive(Debug, Clone, Copy)]
enum Class {
    Elf32,
    Elf64,
}

/// A program header of either class.
struct Program {
    kind: u32,
    offset: u64,
    address: u64,
    in_file: u64,
    len: u64,
    alignment: u64,
}

impl Class {
    /// The CPU for which files of this class are taken, and its number in the file header.
    fn machine(self) -> u16 {
        match self {
            Class::Elf32 => 3,
            Class::Elf64 => 62,
        }
    }

    /// Where the program headers are, their size and their number, out of the file header; `None` when it is too short.
    fn programs(self, header: &Header<'_>) -> Option<(u64, u16, u16)> {
        match self {
            Class::Elf32 => Some((header.u32(28)?.into(), header.u16(42)?, header.u16(44)?)),
            Class::Elf64 => Some((header.u64(32)?, header.u16(54)?, header.u16(56)?)),
        }
    }

    /// Bytes of a program header.
    fn program_len(self) -> u16 {
        match self {
            Class::Elf32 => 32,
            Class::Elf64 => 56,
        }
    }

    fn program(self, header: &Header<'_>) -> Program {
        let narrow = |at| header.u32(at).expect("a whole program header");
        let wide = |at| match self {
            Class::Elf32 => narrow(at).into(),
            Class::Elf64 => header.u64(at).expect("a whole program header"),
        };
        let kind = narrow(0);
        let [offset, address, in_file, len, alignment] = match self {
            Class::Elf32 => [4, 12, 16, 20, 28],
            Class::Elf64 => [8, 24, 32, 40, 48],
        }
        .map(wide);
        Program { kind, offset, address, in_file, len, alignment }
    }
}

/// What a kernel's ELF headers say.
#[derive(Debug)]
pub(crate) struct Elf {
    parts: Vec<Part>,
    range: GpaRange,
    entry: u32,
}

/// A piece of the kernel: `in_file` bytes from `offset` of the file, then zeroes to the end of `range`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// Where it goes.
    pub(crate) range: GpaRange,
    /// Where it begins in the file.
    pub(crate) offset: u64,
    /// Its bytes in the file, at most `range.len()`.
    pub(crate) in_file: u64,
}

impl Elf {
    /// Parts in order of their addresses, never overlapping.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// From the first part to the last.
    pub(crate) fn range(&self) -> GpaRange {
        self.range
    }

    /// The PVH entry point, inside one of the parts.
    pub(crate) fn entry(&self) -> u32 {
        self.entry
    }

    pub(super) fn parse(source: &Source, start: &[u8]) -> Result<Elf, KernelError> {
        let mut parts = Vec::new();
        let mut entry = None;
        for program in program_headers(source, &Header(start))? {
            match program.kind {
                LOAD => parts.extend(part(source, &program)?),
                NOTE if entry.is_none() => entry = pvh_entry(source, &program)?,
                _ => {}
            }
        }
        parts.sort_by_key(|part| part.range.start());
        if let Some(pair) = parts.windows(2).find(|pair| pair[0].range.overlaps(pair[1].range)) {
            return Err(damaged(
                source,
                format!("its segments {} and {} overlap", pair[0].range, pair[1].range),
            ));
        }
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
            return Err(damaged(source, "it has nothing to load"));
        };
        let start = first.range.start();
        let range = GpaRange::new(start, last.range.end().0 - start.0).expect("parts are ordered, not empty");
        let Some(entry) = entry else {
            return Err(match multiboot::version(source)? {
                Some(version) => {
                    let what =
                        format!("is made for {version} boot loaders and has no PVH entry (no Xen note 18)");
                    unsupported(source, what, ONLY_MULTIBOOT)
                }
                None => unsupported(source, "has no PVH entry (no Xen note 18)", NO_PVH),
            });
        };
        if !parts.iter().any(|part| part.range.contains(Gpa(entry.into()))) {
            return Err(damaged(source, format!("its PVH entry {entry:#x} lies in none of its segments")));
        }
        Ok(Elf { parts, range, entry })
    }
}

/// Checks the file header and reads the program headers.
fn program_headers(source: &Source, header: &Header<'_>) -> Result<Vec<Program>, KernelError> {
    let short = || damaged(source, "it ends within its ELF header");
    let class = match header.u8(4).ok_or_else(short)? {
        1 => Class::Elf32,
        2 => Class::Elf64,
        class => return Err(damaged(source, format!("its ELF class is {class}"))),
    };
    if header.u8(5) == Some(2) {
        return Err(unsupported(source, "is a big-endian ELF file", OTHER));
    }
    let machine = header.u16(18).ok_or_else(short)?;
    if machine != class.machine() {
        return Err(unsupported(
            source,
            format!("is an ELF file for another CPU (machine {machine})"),
            OTHER,
        ));
    }
    if header.u16(16) == Some(1) {
        let hint = "Give the linked vmlinux.";
        return Err(unsupported(source, "is an object file (a kernel module, say)", hint));
    }
    let (offset, size, count) = class.programs(header).ok_or_else(short)?;
    if size != class.program_len() || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(damaged(source, format!("it has {count} program headers of {size} bytes")));
    }
    let len = u64::from(count) * u64::from(size);
    if !source.has(offset, len) {
        return Err(damaged(source, format!("its program headers at {offset:#x} lie beyond its end")));
    }
    let mut programs = vec![0; len as usize];
    source.read_at(offset, &mut programs)?;
    Ok(programs.chunks_exact(size.into()).map(|bytes| class.program(&Header(bytes))).collect())
}

/// A loadable segment; `None` when it is empty.
fn part(source: &Source, program: &Program) -> Result<Option<Part>, KernelError> {
    let Program { offset, address, in_file, len, .. } = *program;
    if len == 0 && in_file == 0 {
        return Ok(None);
    }
    let segment = format!("its segment of {len:#x} bytes for {address:#x}");
    let Some(range) = GpaRange::new(Gpa(address), len) else {
        return Err(damaged(source, format!("{segment} has an impossible size")));
    };
    if in_file > len {
        return Err(damaged(source, format!("{segment} has more bytes in the file, {in_file:#x}")));
    }
    if !source.has(offset, in_file) {
        let end = source.len();
        return Err(damaged(
            source,
            format!("{segment} lies at {offset:#x} of the file, which ends at {end:#x}"),
        ));
    }
    Ok(Some(Part { range, offset, in_file }))
}

/// Looks for the PVH entry point in a note segment.
fn pvh_entry(source: &Source, program: &Program) -> Result<Option<u32>, KernelError> {
    let (offset, len) = (program.offset, program.in_file);
    if !source.has(offset, len) {
        return Err(damaged(source, format!("its notes at {offset:#x} lie beyond its end")));
    }
    let mut notes = vec![0; len.min(MAX_NOTES) as usize];
    source.read_at(offset, &mut notes)?;
    // Notes are aligned to 4 bytes, except in segments that ask for 8.
    let alignment = if program.alignment == 8 { 8 } else { 4 };
    Ok(find_note(&notes, alignment))
}

fn find_note(mut notes: &[u8], alignment: usize) -> Option<u32> {
    loop {
        let header = Header(notes);
        let (name_len, value_len) = (header.u32(0)? as usize, header.u32(4)? as usize);
        let kind = header.u32(8)?;
        let name = notes.get(12..12usize.checked_add(name_len)?)?;
        let value_at = 12usize.checked_add(name_len)?.checked_next_multiple_of(alignment)?;
        let value_end = value_at.checked_add(value_len)?;
        let value = notes.get(value_at..value_end)?;
        if name == b"Xen\0" && kind == PHYS32_ENTRY {
            // 4 or 8 bytes, by the kernel's word size; the address itself is below 4 GiB.
            return match value_len {
                4 => Header(value).u32(0),
                8 => Header(value).u64(0).and_then(|entry| u32::try_from(entry).ok()),
                _ => None,
            };
        }
        notes = notes.get(value_end.checked_next_multiple_of(alignment)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelImage;
    use crate::tests::{tiny_elf, tiny_elf32};

    #[test]
    fn a_kernel_with_a_pvh_note_is_understood() {
        let image = KernelImage::from_bytes("tiny", tiny_elf()).unwrap();
        let super::super::Format::Pvh(elf) = image.format() else { panic!("not PVH") };
        assert_eq!(elf.entry(), 0x100_0000);
        assert_eq!(elf.parts().len(), 2);
        assert_eq!(elf.range().start(), Gpa(0x100_0000));
    }

    #[test]
    fn a_32_bit_kernel_with_a_pvh_note_is_understood() {
        let image = KernelImage::from_bytes("tiny", tiny_elf32()).unwrap();
        let super::super::Format::Pvh(elf) = image.format() else { panic!("not PVH") };
        let parts: Vec<_> = elf.parts().iter().map(|part| (part.offset, part.in_file)).collect();
        assert_eq!((elf.entry(), parts), (0x100_0010, vec![(0x200, 64)]));
        assert_eq!(elf.range(), GpaRange::new(Gpa(0x100_0000), 64 + 0x100).unwrap());
        let mut bytes = tiny_elf32();
        bytes[42] = 56;
        let error = KernelImage::from_bytes("tiny", bytes).unwrap_err().to_string();
        assert!(error.contains("2 program headers of 56 bytes"), "{error}");
    }

    #[test]
    fn each_way_to_be_no_pvh_kernel_has_its_own_words() {
        let said = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = tiny_elf();
            edit(&mut bytes);
            KernelImage::from_bytes("tiny", bytes).unwrap_err().to_string()
        };
        assert!(said(&|b| b[4] = 3).contains("its ELF class is 3"));
        // A 64-bit x86 CPU in a file of the other class (the x32 ABI), and the other way round.
        assert!(said(&|b| b[4] = 1).contains("another CPU (machine 62)"));
        assert!(said(&|b| b[18] = 3).contains("another CPU (machine 3)"));
        assert!(said(&|b| b[5] = 2).contains("big-endian"));
        assert!(said(&|b| b[18] = 183).contains("another CPU (machine 183)"));
        assert!(said(&|b| b[16] = 1).contains("kernel module"));
        assert!(said(&|b| b.truncate(40)).contains("ends within its ELF header"));
        assert!(said(&|b| b[56] = 255).contains("255 program headers"));
        // The first program header is the note, the others are segments.
        assert!(said(&|b| b[64] = 0).contains("no PVH entry"));
        assert!(said(&|b| b[64 + 56 + 8 + 7] = 0x80).contains("which ends at"));
        assert!(said(&|b| b[64 + 56 + 40..][..8].fill(0xff)).contains("impossible size"));
    }

    #[test]
    fn a_note_that_lies_about_its_size_ends_the_search() {
        let mut note = vec![0xff; 12];
        assert_eq!(find_note(&note, 4), None);
        note[..4].copy_from_slice(&4u32.to_le_bytes());
        assert_eq!(find_note(&note, 8), None);
        assert_eq!(find_note(&[0; 12 * 100], 4), None);
    }
}
