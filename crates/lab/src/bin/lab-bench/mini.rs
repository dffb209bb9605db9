//! The smallest guest: a mark as its first instruction, a line on the serial port, and a halt. An ELF file with a PVH entry,
//! which both monitors take as a kernel.

use lab::count::{GUEST_LIVES, nop};

/// Where it lies in the guest's memory, and begins.
const AT: u32 = 0x10_0000;

/// What it says.
const LINE: &[u8] = b"lab: init\n";

/// The PVH entry is a note of Xen's of this type, with a physical address of 32 bits (xen/include/public/elfnote.h).
const PHYS32_ENTRY: u32 = 18;

/// Sizes and places in the file: the ELF header, two program headers, the note, the code.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const NOTE: usize = HEADER + 2 * PROGRAM_HEADER;
const NOTE_SIZE: usize = 20;
const CODE: usize = (NOTE + NOTE_SIZE).next_multiple_of(16);

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// The file.
pub fn elf() -> Vec<u8> {
    let code = code();
    let end = CODE + code.len();
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    // An executable for x86-64, of version 1.
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    // Its entry, its program headers, and no sections.
    for word in [u64::from(AT) + CODE as u64, HEADER as u64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [HEADER, PROGRAM_HEADER, 2, 64, 0, 0] {
        elf.extend((half as u16).to_le_bytes());
    }
    for (kind, flags, offset, size) in [(PT_LOAD, 7u32, 0, end), (PT_NOTE, 4, NOTE, NOTE_SIZE)] {
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        let address = u64::from(AT) + offset as u64;
        for word in [offset as u64, address, address, size as u64, size as u64, 4] {
            elf.extend(word.to_le_bytes());
        }
    }
    for word in [4, 4, PHYS32_ENTRY] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(b"Xen\0");
    elf.extend((AT + CODE as u32).to_le_bytes());
    elf.resize(CODE, 0);
    elf.extend(code);
    elf
}

/// 32-bit code.
fn code() -> Vec<u8> {
    let mut code = nop(GUEST_LIVES).to_vec();
    // mov $line, %esi; mov $0x3f8, %dx
    code.push(0xbe);
    let operand = code.len();
    code.extend([0; 4]);
    code.extend([0x66, 0xba, 0xf8, 0x03]);
    // next: lodsb; test %al, %al; jz halt; out %al, (%dx); jmp next; halt: cli; hlt; jmp halt
    code.extend([0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, 0xfa, 0xf4, 0xeb, 0xfc]);
    let line = AT + (CODE + code.len()) as u32;
    code[operand..operand + 4].copy_from_slice(&line.to_le_bytes());
    code.extend(LINE);
    code.push(0);
    code
}
