//! The smallest guests: an ELF kernel with a PVH entry and a few instructions.

use std::fmt::Write;

/// Waits for ever, deaf to interrupts and power button: cli; again: hlt; jmp again.
pub const DEAF: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];

/// Crashes: without an interrupt table, an undefined instruction is a triple fault. lidt of ten zero bytes; ud2.
pub const CRASH: [u8; 19] = [0x0f, 0x01, 0x1d, 0x09, 0, 0x10, 0, 0x0f, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const CODE_AT: u32 = 0x10_0000;
const CODE_OFFSET: usize = 0x1000;

/// The shell command that writes such a kernel to a file of the host.
pub fn written_to(path: &str, code: &[u8]) -> String {
    let mut octal = String::new();
    for byte in elf(code) {
        write!(octal, "\\0{byte:03o}").expect("a String takes all text");
    }
    // Most of it is zeros, which truncate makes.
    let header = &octal[..5 * HEADERS];
    let code = &octal[5 * CODE_OFFSET..];
    format!(
        "printf '%b' '{header}' > {path}; truncate -s {CODE_OFFSET} {path}; printf '%b' '{code}' >> {path}"
    )
}

/// The ELF header, two program headers and a note.
const HEADERS: usize = 64 + 2 * 56 + 20;

fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let note_at = 64 + 2 * 56;
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [u64::from(CODE_AT), 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable, writable, executable; PT_NOTE, readable.
    let length = code.len() as u64;
    segment(&mut file, 1, 7, CODE_OFFSET as u64, CODE_AT.into(), length, 0x1000);
    segment(&mut file, 4, 4, note_at, 0, 20, 4);
    // XEN_ELFNOTE_PHYS32_ENTRY (18), named "Xen".
    for word in [4u32, 4, 18] {
        file.extend(word.to_le_bytes());
    }
    file.extend(b"Xen\0");
    file.extend(CODE_AT.to_le_bytes());
    file.resize(CODE_OFFSET, 0);
    file.extend(code);
    file
}

fn segment(file: &mut Vec<u8>, kind: u32, flags: u32, offset: u64, at: u64, length: u64, align: u64) {
    file.extend(kind.to_le_bytes());
    file.extend(flags.to_le_bytes());
    for word in [offset, at, at, length, length, align] {
        file.extend(word.to_le_bytes());
    }
}
