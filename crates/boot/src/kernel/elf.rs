//! Uncompressed kernels: a 64-bit x86 ELF whose note names the PVH entry point.

use memory::{Gpa, GpaRange};

use super::{Header, KernelError, damaged, unsupported};
use crate::source::Source;

pub(super) const MAGIC: &[u8] = b"\x7fELF";

/// More program headers than any kernel has (Linux has 5).
const MAX_PROGRAM_HEADERS: u16 = 128;
const PROGRAM_HEADER: u64 = 56;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const MACHINE_X86_64: u16 = 62;

/// As much of a note segment as is searched. Linux's is about 500 bytes.
const MAX_NOTES: u64 = 64 << 10;
/// XEN_ELFNOTE_PHYS32_ENTRY of xen/include/public/elfnote.h.
const PHYS32_ENTRY: u32 = 18;

const NO_PVH: &str =
    "Use the distribution's bzImage, or build the kernel with CONFIG_PVH=y and take its vmlinux.";

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
        let programs = program_headers(source, &Header(start))?;
        let mut parts = Vec::new();
        let mut entry = None;
        for program in programs.chunks_exact(PROGRAM_HEADER as usize).map(Header) {
            match program.u32(0) {
                Some(LOAD) => parts.extend(part(source, &program)?),
                Some(NOTE) if entry.is_none() => entry = pvh_entry(source, &program)?,
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
            return Err(unsupported(source, "has no PVH entry (no Xen note 18)", NO_PVH));
        };
        if !parts.iter().any(|part| part.range.contains(Gpa(entry.into()))) {
            return Err(damaged(source, format!("its PVH entry {entry:#x} lies in none of its segments")));
        }
        Ok(Elf { parts, range, entry })
    }
}

/// Checks the file header and reads the program headers. ELF-64 object file format, 1.5; System V ABI.
fn program_headers(source: &Source, header: &Header<'_>) -> Result<Vec<u8>, KernelError> {
    const OTHER: &str = "skep starts 64-bit x86 kernels only.";
    let short = || damaged(source, "it ends within its ELF header");
    match header.u8(4).ok_or_else(short)? {
        2 => {}
        1 => return Err(unsupported(source, "is a 32-bit ELF file", OTHER)),
        class => return Err(damaged(source, format!("its ELF class is {class}"))),
    }
    if header.u8(5) == Some(2) {
        return Err(unsupported(source, "is a big-endian ELF file", OTHER));
    }
    let machine = header.u16(18).ok_or_else(short)?;
    if machine != MACHINE_X86_64 {
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
    let offset = header.u64(32).ok_or_else(short)?;
    let size = header.u16(54).ok_or_else(short)?;
    let count = header.u16(56).ok_or_else(short)?;
    if u64::from(size) != PROGRAM_HEADER || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(damaged(source, format!("it has {count} program headers of {size} bytes")));
    }
    let len = u64::from(count) * PROGRAM_HEADER;
    if !source.has(offset, len) {
        return Err(damaged(source, format!("its program headers at {offset:#x} lie beyond its end")));
    }
    let mut programs = vec![0; len as usize];
    source.read_at(offset, &mut programs)?;
    Ok(programs)
}

/// A loadable segment; `None` when it is empty.
fn part(source: &Source, program: &Header<'_>) -> Result<Option<Part>, KernelError> {
    let field = |at| program.u64(at).expect("a whole program header");
    let (offset, address, in_file, len) = (field(8), field(24), field(32), field(40));
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
fn pvh_entry(source: &Source, program: &Header<'_>) -> Result<Option<u32>, KernelError> {
    let field = |at| program.u64(at).expect("a whole program header");
    let (offset, len) = (field(8), field(32));
    if !source.has(offset, len) {
        return Err(damaged(source, format!("its notes at {offset:#x} lie beyond its end")));
    }
    let mut notes = vec![0; len.min(MAX_NOTES) as usize];
    source.read_at(offset, &mut notes)?;
    // Notes are aligned to 4 bytes, except in segments that ask for 8.
    let alignment = if field(48) == 8 { 8 } else { 4 };
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
    use crate::tests::tiny_elf;

    #[test]
    fn a_kernel_with_a_pvh_note_is_understood() {
        let image = KernelImage::from_bytes("tiny", tiny_elf()).unwrap();
        let super::super::Format::Pvh(elf) = image.format() else { panic!("not PVH") };
        assert_eq!(elf.entry(), 0x100_0000);
        assert_eq!(elf.parts().len(), 2);
        assert_eq!(elf.range().start(), Gpa(0x100_0000));
    }

    #[test]
    fn each_way_to_be_no_pvh_kernel_has_its_own_words() {
        let said = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = tiny_elf();
            edit(&mut bytes);
            KernelImage::from_bytes("tiny", bytes).unwrap_err().to_string()
        };
        assert!(said(&|b| b[4] = 1).contains("is a 32-bit ELF file"));
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
